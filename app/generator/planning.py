"""Splits the text of a request into words and pauses, then into sentences, and combines sentences into utterances.

`parse_lines` parses each text once. The texts are normalised and split while the answer is spoken, so that a long text
does not delay the first audio. This module does not depend on HTTP, audio or a particular engine.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.errors import EmptyText, TextTooLong
from app.text.languages import guess_language
from app.text.machine_text import remove_machine_text
from app.text.nonverbal import perform_sounds
from app.text.punctuation import has_words, punctuation_names
from app.text.script import SPEAKER_TAG, Pause, parse, split_speakers
from app.text.sentences import split
from app.text.spans import SpannedText
from app.types import SpokenLine

if TYPE_CHECKING:
    from app.generator.job import ParsedLine, SpeechJob
    from app.text.normalizer import Normalizer
    from app.text.pronunciations import Lexicon
    from app.types import EngineInfo, Line, TextPacking, Voice, VoicePrompt

# Silence between the turns of a dialogue. Each turn also begins and ends with a little silence, so the listener hears a
# gap of 0.3 to 0.45 s. The gap in conversations is about 0.2 s (Stivers et al., PNAS 2009). A longer gap sounds calmer.
TURN_GAP_S = 0.25
LEAST_NATURAL_CHARS = 80  # a lower limit would split most sentences, which sounds worse than fast speech
MAX_PAUSES_S = 600  # the sum for one answer: pause tags could otherwise produce hours of silence
# The most characters in an utterance of an answer that is held back for a check, unless one sentence is longer: about
# 30 s of speech. The recogniser accepts 120 s, and a bad take of 30 s is repeated in less time.
HELD_PASSAGE_CHARS = 450
# The silence for a text in which nothing is spoken, such as "---" or "(laughs)". A voice agent that sends such a piece
# in the middle of its answer goes on.
SILENT_TEXT_S = 0.25
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
        """Whether the engine can add `line` to this utterance. one_voice: all lines must have the same voice."""
        lines = (*self.lines, line)
        if one_voice and line.voice != self.lines[0].voice:
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
    raise EmptyText("`input` contains nothing that can be spoken. Send a text with words.", param="input")


def parse_lines(texts: Sequence[SpannedText]) -> tuple[ParsedLine, ...]:
    """Split the text of each line into words and pauses. Raises TextTooLong."""
    parsed = tuple(tuple(parse(text)) for text in texts)
    parts = [part for line in parsed for part in line]
    if sum(part.seconds for part in parts if isinstance(part, Pause)) > MAX_PAUSES_S:
        raise TextTooLong(
            f"The pauses in `input` add up to more than {MAX_PAUSES_S} seconds. Shorten or remove pauses.",
            param="input",
        )
    return parsed


class Planner:
    """Splits the text of one job into the utterances that the engine speaks."""

    def __init__(self, job: SpeechJob, normalizer: Normalizer) -> None:
        self._job = job
        self._normalizer = normalizer

    async def utterances(self) -> AsyncGenerator[PlannedUtterance | Pause]:
        """Yield the utterances and pauses in order. An utterance has as many lines as the engine accepts."""
        job = self._job
        one_voice = job.request.conversation is not None  # only an utterance with one voice can be remembered
        utterance: PlannedUtterance | None = None
        async for part in self._lines():
            if utterance is not None and (
                isinstance(part, Pause)
                or job.request.parallel
                or (job.held and job.info.text.continues and len(utterance.text) + len(part.text) >= HELD_PASSAGE_CHARS)
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

    async def _lines(self) -> AsyncGenerator[SpokenLine | Pause]:
        """Yield the sentences and pauses of all lines. Adds pauses between lines that the engine speaks separately."""
        job, progress = self._job, self._job.progress
        adds_gaps = job.request.parallel or not (job.info.text.continues or job.info.text.max_passage_chars > 0)
        texts_left = sum(not isinstance(part, Pause) for parts in job.parsed_lines for part in parts)
        any_spoken = any_words = any_pause = False
        marks: list[str] = []  # sentences without words
        for number, parts in enumerate(job.parsed_lines):
            voice, speaker, prompt = job.voices[number], job.speakers[number], job.prompts[number]
            line_begun = False
            for part in parts:
                if isinstance(part, Pause):
                    any_pause = True
                    yield part
                    continue
                sentences = await self._sentences(part.text, voice, prompt)
                marks += [sentence.text for sentence in sentences if not has_words(sentence.text)]
                if job.request.normalize:
                    sentences = [sentence for sentence in sentences if has_words(sentence.text)]
                texts_left -= 1
                progress.line_of_sentence += [number] * len(sentences)
                progress.all_planned = not texts_left
                for sentence in sentences:
                    if adds_gaps and any_spoken and not line_begun:
                        yield Pause(TURN_GAP_S)
                    any_spoken = line_begun = True
                    any_words = any_words or has_words(sentence.text)
                    line = _spoken_line(sentence, speaker, voice, prompt, job.turns[number])
                    yield replace(line, language=guess_language(part.text.text))
        if any_words:
            return
        if names := punctuation_names(" ".join(marks)):  # a text such as "?!" is spoken as the names of its marks
            progress.line_of_sentence.append(0)
            named = SpannedText.of(names, (0, len(job.request.lines[0].text)))
            yield _spoken_line(named, job.speakers[0], job.voices[0], job.prompts[0], 0)
        elif not any_pause:
            yield Pause(SILENT_TEXT_S)

    async def _sentences(self, text: SpannedText, voice: Voice, prompt: VoicePrompt | None) -> list[SpannedText]:
        """Normalise the text and split it into sentences that are short enough for the engine."""
        info, normalizer = self._job.info, self._normalizer if self._job.request.normalize else None
        prompt_s = 0.0 if prompt is None else prompt.codes.shape[1] * info.frame_s
        language = self._job.language_of(text.text, voice)
        lexicon = self._job.lexicons.get(voice.id)
        if len(text) > IN_THREAD_CHARS:
            return await asyncio.to_thread(_sentences, text, normalizer, language, info.text, prompt_s, lexicon=lexicon)
        return _sentences(text, normalizer, language, info.text, prompt_s, lexicon=lexicon)


def read_text(
    text: str,
    normalizer: Normalizer,
    packing: TextPacking,
    language_of: Callable[[str], str],
    lexicon: Lexicon | None = None,
) -> list[SpannedText]:
    """Return what an engine would speak for a text: its sentences with the characters that they come from.

    packing: the limits and the sounds of the engine. language_of: returns the language of a part of the text.
    The result is empty if nothing would be spoken. Raises TextTooLong.
    """
    source = remove_machine_text(SpannedText(text))
    lines = [line for _, line in split_speakers(source)] if SPEAKER_TAG.search(source.text) else [source]
    parsed = parse_lines([perform_sounds(line, packing.sounds) for line in lines])
    sentences: list[SpannedText] = []
    for part in (part for parts in parsed for part in parts if not isinstance(part, Pause)):
        language = language_of(part.text.text)
        sentences += _sentences(part.text, normalizer, language, packing, lexicon=lexicon)
    spoken = [sentence for sentence in sentences if has_words(sentence.text)]
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
) -> list[SpannedText]:
    """Normalise a text, and split it into sentences that are short enough for an engine.

    normalizer: None = the text is not normalised. prompt_s: the length of the voice's recording in seconds.
    """
    words = text
    if normalizer is not None:
        english = language.lower().startswith("en")
        words = normalizer.spoken(text, english=english, language=language, lexicon=lexicon)
    elif lexicon is not None:
        words = lexicon.replaced(text)
    size = _size(words.text, packing)
    longest = _natural_chars(packing.max_chars, prompt_s, packing)
    return split(words, max(1, longest * len(words) // size) if size else 1)


def _spoken_line(text: SpannedText, speaker: int, voice: Voice, prompt: VoicePrompt | None, turn: int) -> SpokenLine:
    """Create a line from a text with spans. turn: the index of the caller's text."""
    start, end = text.span
    return SpokenLine(text.text, speaker, voice, prompt, tuple(text.words()), start, end, turn)


def _natural_chars(most: int, prompt_s: float, packing: TextPacking) -> int:
    """Return the length limit `most`, or a lower limit with which recordings and text last at most `natural_s` seconds.

    prompt_s: the length of the voices' recordings in seconds. The result is not lowered below LEAST_NATURAL_CHARS.
    """
    if not packing.natural_s:
        return most
    left = int((packing.natural_s - prompt_s) * packing.chars_per_s)
    return min(most, max(LEAST_NATURAL_CHARS, left))


def _size(text: str, packing: TextPacking) -> int:
    """The length of a text in characters, or in UTF-8 bytes if the engine's limits count bytes."""
    return len(text.encode("utf-8", "replace")) if packing.utf8_bytes else len(text)
