"""Splits the text of a request into words and pauses, then into sentences, and combines sentences into utterances.

`parse_lines` parses each text once. The texts are normalised and split while the answer is spoken, and a long text is
parsed and normalised in windows (`windows.py`), so that its length does not delay the first audio. This module does not
depend on HTTP, audio or a particular engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import unicodedata
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from app.errors import EmptyText, TextTooLong
from app.generator.job import LineText
from app.generator.windows import windows
from app.text.languages import guess_language
from app.text.machine_text import remove_machine_text
from app.text.nonverbal import perform_sounds, remove_unsupported_sounds
from app.text.pronunciations import take_ipa
from app.text.punctuation import has_words, punctuation_names
from app.text.script import MAX_PAUSE_S, SPEAKER_TAG, Pause, Words, parse, split_speakers
from app.text.sentences import split
from app.text.spans import SpannedText
from app.text.word_spans import word_spans
from app.types import SpokenLine

if TYPE_CHECKING:
    from app.generator.job import ParsedLine, SpeechJob
    from app.text.normalizer import Normalizer
    from app.text.pronunciations import Lexicon
    from app.types import EngineInfo, Line, TextPacking, Voice, VoicePrompt

# Silence between the turns of a dialogue. Each turn also begins and ends with a little silence, so the listener hears a
# gap of 0.3 to 0.45 s. The gap in conversations is about 0.2 s (Stivers et al., PNAS 2009). A longer gap sounds calmer.
TURN_GAP_S = 0.25
# The limit of `_natural_chars` is never lower than this, because a lower limit would split most sentences. Split
# sentences would sound worse than fast speech.
LEAST_NATURAL_CHARS = 80
MAX_PAUSES_S = 600  # limit for the sum of all pauses of one answer; without it, pause tags could give hours of silence
# If an answer is held back for a check, its utterances have at most HELD_PASSAGE_CHARS characters (about 30 s of
# speech), unless one sentence is longer. The recogniser accepts 120 s, but a bad take of 30 s can be repeated in less
# time.
HELD_PASSAGE_CHARS = 450
# If nothing in a text can be spoken, as in "---" or "(laughs)", the answer is SILENT_TEXT_S seconds of silence instead
# of an error. So a voice agent that sends such a text in the middle of its answer can continue.
SILENT_TEXT_S = 0.25
LONG_TEXT_CHARS = 20_000  # a longer text is planned in windows
# These limits are for an engine that speaks any number of sentences in one utterance. If a text has more characters
# than the first limit, an utterance has at most as many characters as the second limit.
ENDLESS_TEXT_CHARS, LONG_PASSAGE_CHARS = 20_000, 4_000
IN_THREAD_CHARS = 2_000  # a longer text is normalised in a thread: normalisation takes up to 0.05 ms per character


@dataclass(frozen=True, slots=True)
class PlannedUtterance:
    """The lines that the engine speaks as one utterance."""

    lines: tuple[SpokenLine, ...]

    @property
    def text(self) -> str:
        """The text of all lines."""
        return " ".join(line.text for line in self.lines)

    def fits(self, line: SpokenLine, info: EngineInfo, *, one_voice: bool) -> bool:
        """Return whether the engine can add `line` to this utterance. one_voice: all lines must have the same voice."""
        lines = (*self.lines, line)
        first = self.lines[0].voice
        if line.voice.adapter != first.adapter or (one_voice and line.voice != first):
            return False
        # The engine needs the prompt of a voice once for each speaker that uses the voice.
        prompts = {
            (each.speaker, each.voice.id): each.prompt.codes.shape[1] for each in lines if each.prompt is not None
        }
        return (
            (
                info.text.continues
                or sum(_size(each.text, info.text) + 1 for each in lines)
                <= _natural_chars(info.text.max_passage_chars, sum(prompts.values()) * info.frame_s, info.text)
            )
            and len({(each.speaker, each.voice.id) for each in lines}) <= info.text.max_speakers
            and (info.prompts.max_prompt_s is None or sum(prompts.values()) * info.frame_s <= info.prompts.max_prompt_s)
        )


def check_not_blank(lines: Sequence[Line]) -> None:
    """Check that the lines have a character that is not white space or a control character. Raises EmptyText."""
    for line in lines:
        if any(not char.isspace() and unicodedata.category(char) not in ("Cc", "Cs") for char in line.text):
            return
    raise EmptyText("The text contains nothing that can be spoken. Send a text with words.", param="input")


def parse_lines(texts: Sequence[SpannedText]) -> tuple[ParsedLine, ...]:
    """Split the text of each line into words and pauses. A long line stays whole: `Planner` parses its windows.

    Raises TextTooLong.
    """
    parsed = tuple((Words(text),) if len(text) > LONG_TEXT_CHARS else tuple(parse(text)) for text in texts)
    parts = [part for line in parsed for part in line]
    pauses_s = sum(part.seconds for part in parts if isinstance(part, Pause))
    pauses_s += sum(_pauses_s(text) for text in texts if len(text) > LONG_TEXT_CHARS)
    if pauses_s > MAX_PAUSES_S:
        raise TextTooLong(
            f"The pauses in the text add up to more than {MAX_PAUSES_S} seconds. Shorten or remove pauses.",
            param="input",
        )
    return parsed


def _pauses_s(text: SpannedText) -> float:
    """Return the total length in seconds of the pauses in a long text. If there are too few to exceed MAX_PAUSES_S,
    return 0.
    """
    lowered = text.text.lower()
    if (lowered.count("pause") + lowered.count("break")) * MAX_PAUSE_S <= MAX_PAUSES_S:
        return 0.0
    # Parse pieces of the text, because one search of the whole text would hold the GIL for too long.
    starts = range(0, len(lowered), LONG_TEXT_CHARS)
    parts = [part for start in starts for part in parse(text[start : start + LONG_TEXT_CHARS])]
    return sum(part.seconds for part in parts if isinstance(part, Pause))


class _PartEnd(Enum):
    """The end of a part of a text that arrives in parts."""

    END = 1


class Planner:
    """Splits the text of one job into the utterances that the engine speaks."""

    def __init__(self, job: SpeechJob, normalizer: Normalizer) -> None:
        self._job = job
        self._normalizer = normalizer

    async def utterances(self) -> AsyncGenerator[PlannedUtterance | Pause]:
        """Yield the utterances and pauses in order. Each utterance gets as many lines as the engine accepts in one
        utterance.
        """
        job = self._job
        one_voice = job.request.conversation is not None  # only an utterance with one voice can be remembered
        utterance: PlannedUtterance | None = None
        most_chars = self._most_chars()
        async for part in self._lines():
            if isinstance(part, _PartEnd):
                # The next part of the text may arrive much later, so the utterance is not kept open for it. An engine
                # that speaks any number of sentences loses no time if an utterance ends here.
                waits = job.info.text.continues or (job.later is not None and not job.later.ready)
                if utterance is not None and waits:
                    yield utterance
                    utterance = None
                continue
            if utterance is not None and (
                isinstance(part, Pause)
                or job.request.parallel
                or (most_chars is not None and len(utterance.text) + len(part.text) >= most_chars)
                or not utterance.fits(part, job.info, one_voice=one_voice)
            ):
                yield utterance
                utterance = None
            if isinstance(part, Pause):
                yield part
            else:
                utterance = PlannedUtterance((*(utterance.lines if utterance else ()), part))
        if utterance is not None:
            yield utterance

    async def sentences(self) -> AsyncGenerator[SpokenLine | Pause]:
        """Yield the sentences and pauses of the text in order, each sentence short enough for the engine."""
        async with contextlib.aclosing(self._lines()) as lines:
            async for part in lines:
                if not isinstance(part, _PartEnd):
                    yield part

    def _most_chars(self) -> int | None:
        """Return the largest number of characters of one utterance; None = no limit. Only an engine that speaks any
        number of sentences in one utterance has this limit.
        """
        job = self._job
        if not job.info.text.continues:
            return None
        if job.held:
            return HELD_PASSAGE_CHARS
        characters = sum(len(line.text) for line in job.request.lines)
        return LONG_PASSAGE_CHARS if characters > ENDLESS_TEXT_CHARS else None

    async def _texts(self) -> AsyncGenerator[LineText | _PartEnd]:
        """Yield the lines of the job, and then the lines of the text that arrives later. A _PartEnd follows each part
        of a text that arrives in parts.
        """
        job = self._job
        for number, parts in enumerate(job.parsed_lines):
            yield LineText(parts, job.voices[number], job.speakers[number], job.prompts[number], job.turns[number])
        if job.later is None:
            return
        yield _PartEnd.END
        while (lines := await job.later.next()) is not None:
            for line in lines:
                yield line
            yield _PartEnd.END

    async def _lines(self) -> AsyncGenerator[SpokenLine | Pause | _PartEnd]:
        """Yield the sentences and pauses of all lines. Adds pauses between lines that the engine speaks separately.

        A _PartEnd follows each part of a text that arrives in parts.
        """
        job, progress = self._job, self._job.progress
        adds_gaps = job.request.parallel or not (job.info.text.continues or job.info.text.max_passage_chars > 0)
        texts_left = sum(not isinstance(part, Pause) for parts in job.parsed_lines for part in parts)
        any_spoken = any_words = any_pause = False
        marks: list[str] = []  # the sentences without words before the first sentence with words
        number = -1
        async with contextlib.aclosing(self._texts()) as texts:
            async for text in texts:
                if isinstance(text, _PartEnd):
                    yield text
                    continue
                number += 1
                voice, prompt = text.voice, text.prompt
                line_begun = not text.new_turn
                is_start = job.later is None or text.turn == 0
                for part in text.parts:
                    if isinstance(part, Pause):
                        any_pause = True
                        yield part
                        continue
                    texts_left -= 1
                    async with contextlib.aclosing(
                        self._planned(part.text, voice, prompt, is_start=is_start)
                    ) as planned:
                        async for passage in planned:
                            if isinstance(passage, Pause):
                                any_pause = True
                                yield passage
                                continue
                            sentences = passage.sentences
                            if not any_words:
                                marks += [sentence.text for sentence in sentences if not has_words(sentence.text)]
                            if job.request.normalize:
                                sentences = [sentence for sentence in sentences if has_words(sentence.text)]
                            progress.line_of_sentence += [number] * len(sentences)
                            progress.all_planned = passage.is_last and not texts_left and job.later is None
                            for sentence in sentences:
                                if adds_gaps and any_spoken and not line_begun:
                                    yield Pause(TURN_GAP_S)
                                any_spoken = line_begun = True
                                any_words = any_words or has_words(sentence.text)
                                yield _spoken_line(
                                    sentence, text.speaker, voice, prompt, text.turn, language=passage.language
                                )
        if any_words:
            return
        if names := punctuation_names(" ".join(marks)):  # a text such as "?!" is spoken as the names of its marks
            progress.line_of_sentence.append(0)
            named = SpannedText.of(names, (0, len(job.request.lines[0].text)))
            yield _spoken_line(named, job.speakers[0], job.voices[0], job.prompts[0], 0)
        elif not any_pause:
            yield Pause(SILENT_TEXT_S)

    async def _planned(
        self, text: SpannedText, voice: Voice, prompt: VoicePrompt | None, *, is_start: bool
    ) -> AsyncGenerator[_Passage | Pause]:
        """Yield the sentences of a text and, if it is long, its pauses. is_start: see `sentences.split`.

        A long text is planned in windows. While one window is spoken, a thread plans the next one.
        """
        if len(text) <= LONG_TEXT_CHARS:
            in_thread = len(text) > IN_THREAD_CHARS
            plan = partial(self._plan, text, voice, prompt, is_start=is_start, is_last=True)
            yield await asyncio.to_thread(plan) if in_thread else plan()
            return
        cut = windows(text)
        any_words = False
        ahead = asyncio.create_task(asyncio.to_thread(self._plan_window, cut, voice, prompt))
        try:
            while (window := await ahead) is not None:
                ahead = asyncio.create_task(asyncio.to_thread(self._plan_window, cut, voice, prompt))
                for part in window:
                    any_words = any_words or (isinstance(part, _Passage) and part.has_words)
                    yield part
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        if any_words:
            yield _Passage([], None, is_last=True)
        else:  # the text has no words, so the names of its first flags and emoji are spoken
            first = next(windows(text), text)
            yield await asyncio.to_thread(self._plan, first, voice, prompt, is_last=True)

    def _plan_window(
        self, cut: Iterator[SpannedText], voice: Voice, prompt: VoicePrompt | None
    ) -> list[_Passage | Pause] | None:
        """Parse and normalise the next window of a long text -> sentences and pauses; None at the end of the text."""
        window = next(cut, None)
        if window is None:
            return None
        job = self._job
        if job.request.normalize:
            window = remove_machine_text(window)
        parts = parse(spell_sounds(window, job.info.text.sounds, normalize=job.request.normalize))
        return [
            part if isinstance(part, Pause) else self._plan(part.text, voice, prompt, is_window=True) for part in parts
        ]

    def _plan(
        self,
        text: SpannedText,
        voice: Voice,
        prompt: VoicePrompt | None,
        *,
        is_window: bool = False,
        is_start: bool = True,
        is_last: bool = False,
    ) -> _Passage:
        """Normalise the text and split it into sentences that are short enough for the engine.

        is_window: the text belongs to a window of a longer text. is_start: see `sentences.split`. is_last: whether this
        is the last part of the text.
        """
        info, normalizer = self._job.info, self._normalizer if self._job.request.normalize else None
        prompt_s = 0.0 if prompt is None else prompt.codes.shape[1] * info.frame_s
        # if the text arrives in parts, one short part is not enough to guess the language
        shown = text.text if self._job.later is None else self._job.later.recent
        language = self._job.language_of(shown, voice)
        lexicon = self._job.lexicons.get(voice.id)
        sentences = _sentences(
            text,
            normalizer,
            language,
            info.text,
            prompt_s,
            lexicon=lexicon,
            is_window=is_window,
            is_start=is_start,
        )
        return _Passage(sentences, guess_language(shown), is_last)


@dataclass(frozen=True, slots=True)
class _Passage:
    """The sentences of a text, or of one window of a long text."""

    sentences: list[SpannedText]
    language: str | None  # BCP 47 tag of the language that was guessed from the words; None = not clear
    is_last: bool = False  # whether this is the last part of the text

    @property
    def has_words(self) -> bool:
        return any(has_words(sentence.text) for sentence in self.sentences)


def read_text(
    text: str,
    normalizer: Normalizer,
    packing: TextPacking,
    language_of: Callable[[str], str],
    lexicon: Lexicon | None = None,
) -> list[SpannedText]:
    """Return the sentences that an engine would speak for a text, with the positions of their words in the text.

    packing: the limits and the sounds of the engine. language_of: returns the language of a part of the text.
    The result is empty if nothing would be spoken. Raises TextTooLong.
    """
    source = remove_machine_text(SpannedText(text))
    lines = [line for _, line in split_speakers(source)] if SPEAKER_TAG.search(source.text) else [source]
    is_long = any(len(line) > LONG_TEXT_CHARS for line in lines)
    cut = [window for line in lines for window in (windows(line) if len(line) > LONG_TEXT_CHARS else [line])]
    parsed = parse_lines([perform_sounds(line, packing.sounds) for line in cut])
    texts = [part.text for parts in parsed for part in parts if not isinstance(part, Pause)]

    def read(text: SpannedText, *, is_window: bool) -> list[SpannedText]:
        language = language_of(text.text)
        return _sentences(text, normalizer, language, packing, lexicon=lexicon, is_window=is_window)

    sentences = [sentence for text in texts for sentence in read(text, is_window=is_long)]
    spoken = [sentence for sentence in sentences if has_words(sentence.text)]
    if is_long and texts and not spoken:  # the text has no words, so the names of its first flags and emoji are spoken
        spoken = [sentence for sentence in read(texts[0], is_window=False) if has_words(sentence.text)]
    if not spoken and (names := punctuation_names(" ".join(sentence.text for sentence in sentences))):
        return [SpannedText.of(names, (0, len(text)))]
    return spoken


def _sentences(
    text: SpannedText,
    normalizer: Normalizer | None,
    language: str,
    packing: TextPacking,
    prompt_s: float = 0.0,
    *,
    lexicon: Lexicon | None = None,
    is_window: bool = False,
    is_start: bool = True,
) -> list[SpannedText]:
    """Normalise a text, and split it into sentences that are short enough for an engine.

    normalizer: None = the text is not normalised. prompt_s: the length of the voice's recording in seconds. is_window:
    the text belongs to a window of a longer text. is_start: see `sentences.split`.
    """
    words = text
    if normalizer is not None:
        english = language.lower().startswith("en")
        words = normalizer.spoken(text, english=english, language=language, lexicon=lexicon, is_window=is_window)
    elif lexicon is not None:
        words = lexicon.replaced(text)
    size = _size(words.text, packing)
    longest = _natural_chars(packing.max_chars, prompt_s, packing)
    return split(words, max(1, longest * len(words) // size) if size else 1, is_start=is_start)


def spell_sounds(text: SpannedText, sounds: frozenset[str], *, normalize: bool) -> SpannedText:
    """Write the non-verbal sounds as the engine's tags, and remove the sounds that are not in `sounds`."""
    return (perform_sounds if normalize else remove_unsupported_sounds)(text, sounds)


def _spoken_line(
    text: SpannedText,
    speaker: int,
    voice: Voice,
    prompt: VoicePrompt | None,
    turn: int,
    *,
    language: str | None = None,
) -> SpokenLine:
    """Create a line from a text with spans. turn: the index of the caller's text. language: see `SpokenLine`."""
    text, ipa = take_ipa(text)
    start, end = text.span
    return SpokenLine(
        text.text, speaker, voice, prompt, tuple(text.words(word_spans(text.text))), start, end, turn, language, ipa
    )


def _natural_chars(most: int, prompt_s: float, packing: TextPacking) -> int:
    """Return the limit of characters for a text: `most`, or less if the recordings and the text together would last
    more than `packing.natural_s` seconds.

    prompt_s: the length of the voices' recordings in seconds. The limit is never lowered below LEAST_NATURAL_CHARS.
    """
    if not packing.natural_s:
        return most
    left = int((packing.natural_s - prompt_s) * packing.chars_per_s)
    return min(most, max(LEAST_NATURAL_CHARS, left))


def _size(text: str, packing: TextPacking) -> int:
    """Return the length of a text in characters, or in UTF-8 bytes if the engine's limits count bytes."""
    return len(text.encode("utf-8", "replace")) if packing.utf8_bytes else len(text)
