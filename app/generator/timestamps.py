"""The times of words and sentences of an answer, found from its audio while the audio is sent.

`AnswerTimes` collects the 16-bit samples of one answer. When all audio of an utterance was sent, a `WordTimer` finds
the spoken words in the audio. The times are in seconds from the start of the encoded file. Each word has its character
positions in the caller's text.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from app.generator.cache import SAMPLE_BYTES
from app.generator.stored_times import fits, pack, pack_utterance
from app.generator.timeline import Timeline
from app.generator.word_timing import count_letters, share_time
from app.text.word_spans import UNSPACED, word_spans
from app.types import TimedSentence, TimedWord, Timestamps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.generator.timeline import TimelineLine, TimelineUtterance
    from app.generator.word_timing import Found, Span, WordTimer

_LONG_WORD_CHARS = 1_000
LONG_TEXT_CHARS = 20_000  # the words of a longer text are found in a thread
WAITING_BYTES = 8 << 20  # if more bytes of samples (about three minutes) wait to be aligned, the answer waits too
NO_WORDS = "The text contains no words that are spoken."
# The first pattern matches the last word of a sentence, but not an initial such as "J.". The second pattern matches the
# first word of the next sentence.
_SENTENCE_END = re.compile(
    rf"(?<![.!?\u2026])(?:(?<!\b\w)|(?<=[{UNSPACED}])|(?=[.!?\u2026]{{2}}))[.!?\u2026]+[\"'\u201d\u2019)\]]*$"
    rf"|[\u3002\uff01\uff1f\uff61][^\w\s]*$"
)
_SENTENCE_START = re.compile(r"[\"'\u201c\u2018(\[]*(?:[^\W\d_a-z]|\d)")
_DIGITS = 3  # decimals of the times: milliseconds


# ---- from spoken words to the caller's words


class _Texts:
    """The caller's texts, and the places of their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._tokens: dict[int, tuple[array[int], array[int]]] = {}
        self._letters: dict[tuple[int, int], int] = {}  # (text, word) -> number of letters; only for long words

    def tokens(self, turn: int) -> tuple[array[int], array[int]]:
        """Return the starts and the ends of the words of one text."""
        if turn not in self._tokens:
            starts, ends = array("I"), array("I")
            for start, end in word_spans(self.texts[turn]):
                starts.append(start)
                ends.append(end)
            self._tokens[turn] = (starts, ends)
        return self._tokens[turn]

    def letters(self, turn: int, part: int) -> int:
        """Return the number of letters of a word."""
        starts, ends = self.tokens(turn)
        start, end = starts[part], ends[part]
        if end - start < _LONG_WORD_CHARS:
            return count_letters(self.texts[turn][start:end])
        # Count the letters only once, because many utterances can speak parts of one long word.
        if (turn, part) not in self._letters:
            self._letters[turn, part] = count_letters(self.texts[turn][start:end])
        return self._letters[turn, part]

    async def prepare(self, turn: int) -> None:
        """Find the words of a long text in a thread, so that the event loop does not wait."""
        if turn not in self._tokens and len(self.texts[turn]) > LONG_TEXT_CHARS:
            await asyncio.to_thread(self.tokens, turn)

    def within(self, turn: int, start: int, end: int) -> range:
        """Return the indices of the words that have characters in `text[start:end]`, where `text` is `texts[turn]`."""
        starts, ends = self.tokens(turn)
        return range(bisect_right(ends, start), bisect_left(starts, max(end, start + 1)))


@dataclass(slots=True)
class _Group:
    """Words of the caller's text that are spoken together: from the index `first` to the index `last`."""

    first: int
    last: int
    start_s: float
    end_s: float


def _caller_words(line: TimelineLine, times: Sequence[Span | None], texts: _Texts) -> list[tuple[int, Span]]:
    """Return the index and the time of each word of the caller's text that is spoken in a line."""
    groups: list[_Group] = []
    for word, span in zip(line.words, times, strict=True):
        if span is None:
            continue
        covered = texts.within(line.turn, word.start_char, word.end_char)
        if not len(covered):
            continue
        if groups and covered[0] <= groups[-1].last:
            groups[-1].last = max(groups[-1].last, covered[-1])
            groups[-1].end_s = max(groups[-1].end_s, span[1])
        else:
            groups.append(_Group(covered[0], covered[-1], *span))
    found = []
    for group in groups:
        every = range(group.first, group.last + 1)
        letters = [texts.letters(line.turn, part) for part in every]
        parts = [part for part, count in zip(every, letters, strict=True) if count] or list(every)
        weights = [count for count in letters if count] or [1] * len(parts)
        found += list(zip(parts, share_time(group.start_s, group.end_s, weights), strict=True))
    return found


def _sentences_of(
    line: TimelineLine, times: Sequence[Span | None]
) -> Iterator[tuple[TimelineLine, Sequence[Span | None]]]:
    """Yield the sentences of a line with the times of their words. A line can have several short sentences."""
    words = line.words
    ends = [
        at + 1
        for at, (word, following) in enumerate(pairwise(words))
        if _SENTENCE_END.search(word.word) and _SENTENCE_START.match(following.word)
    ]
    for start, end in pairwise([0, *ends, len(words)]) if ends else ():
        text = " ".join(word.word for word in words[start:end])
        first = words[start].start_char if start else line.start_char
        last = words[end - 1].end_char if end < len(words) else line.end_char
        yield replace(line, text=text, words=words[start:end], start_char=first, end_char=last), times[start:end]
    if not ends:
        yield line, times


class AnswerTimes:
    """The times of one answer. Used from one event loop.

    `sentences` grows while the answer is sent. `push` and `end` return immediately, and `finished` waits.
    """

    def __init__(
        self,
        timer: WordTimer,
        texts: Sequence[str],
        *,
        rate_hz: int,
        speed: float,
        language: str | None,
        delay_s: float,
    ) -> None:
        """texts: the texts of the caller. rate_hz: the sample rate of the samples. speed, language: as in the request.

        delay_s: the time from the start of the encoded file to the start of the audio. It is added to all times.
        """
        self._timer = timer
        self._texts = _Texts(texts)
        self._rate_hz = rate_hz
        self._speed = speed
        self._language = language
        self._delay_s = delay_s
        self._sound = bytearray()  # the samples that were sent and belong to no queued utterance yet
        self._sound_start = 0  # the position of the first sample of `_sound` in the answer, in samples
        self._samples = 0
        self._taken = 0  # how many utterances of the timeline were queued
        self._queue: deque[tuple[TimelineUtterance, bytes]] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._changed = asyncio.Event()
        self._open: _Open | None = None  # the last sentence, while the next sentence may continue its last word
        self._last_s = 0.0  # the end of the last sentence or word that has a time
        self._last_part = (-1, -1)  # index of the caller's text and index of the last word in this text
        self._reasons: list[str] = []
        self.keep = False  # True = if the stream is closed before its end, the words that were sent get times too
        self._stored: Sequence[Found | None] = ()  # times from the cache, for the first utterances
        self._packed: list[str] = []  # the times of each utterance, for the cache
        self._has_new = False  # whether `_packed` has times that the cache does not have
        self._keeping: asyncio.Task[None] | None = None
        self.timeline: Timeline | None = None  # the timeline of an answer from the cache
        self.complete = False  # whether the cache had all times
        self.sentences: list[TimedSentence] = []  # the sentences that have their times

    def load(self, timeline: Timeline, stored: Sequence[Found | None], samples: int) -> None:
        """Use the timeline and the times that the cache has stored with the audio. Call it before `push`.

        stored: the times of the utterances. If it has the times of all utterances, `push` and `end` need not be called.
        samples: the length of the audio in samples. The call takes longer for a longer answer.
        """
        self.timeline = timeline
        self._stored = stored
        utterances = [timeline[at] for at in range(len(timeline))]
        if len(stored) != len(utterances) or not all(map(fits, stored, utterances)):
            return
        self._samples = samples
        for utterance, found in zip(utterances, stored, strict=True):
            end = samples if utterance.end is None else min(samples, self._place(utterance.end))
            assert found is not None  # noqa: S101 - it fits
            self._add(utterance, found, end - min(self._place(utterance.start), end))
        if self._open is not None:
            self._publish(self._open)
            self._open = None
        self._ended = self.complete = True

    def store_later(self, store: Callable[[str], Awaitable[None]]) -> None:
        """Store the times when they are found, unless the cache has them. Call it after `end`."""

        async def work() -> None:
            while self._task is not None:
                await self._wait()
            if self._has_new:
                await store(pack(self._packed))

        self._keeping = asyncio.create_task(work(), name="stored timestamps")

    def push(self, data: bytes, timeline: Timeline) -> None:
        """Add 16-bit samples that were sent. timeline: the utterances of the answer so far."""
        self._sound += data
        self._samples += len(data) // SAMPLE_BYTES
        while self._taken < len(timeline):
            utterance = timeline[self._taken]
            if utterance.end is None or self._place(utterance.end) > self._samples:
                return
            self._take(utterance, self._place(utterance.end))

    def end(self, timeline: Timeline) -> None:
        """Record that all samples were added."""
        while self._taken < len(timeline):
            utterance = timeline[self._taken]
            end = self._samples if utterance.end is None else min(self._samples, self._place(utterance.end))
            self._take(utterance, end)
        self._sound.clear()
        self._ended = True
        if self._task is None:
            self._finish()

    async def room(self) -> None:
        """Wait while many samples wait to be aligned."""
        while self._waiting_bytes > WAITING_BYTES and self._task is not None:
            await self._wait()

    async def finished(self) -> Timestamps:
        """Wait until all words have times. Call it after `end`."""
        while not self._ended or self._task is not None:
            await self._wait()
        if self._keeping is not None:
            await asyncio.wait({self._keeping})
        reasons = self._reasons if self.sentences else [NO_WORDS]
        return Timestamps(tuple(self.sentences), self._shown(self._samples / self._rate_hz), " ".join(reasons))

    async def follow(self, count: int = 0) -> AsyncGenerator[list[TimedSentence]]:
        """Yield the sentences after the first `count` sentences as soon as they have times. Call it after `end`."""
        while True:
            if new := self.sentences[count:]:
                count += len(new)
                yield new
            elif self._ended and self._task is None:
                return
            else:
                await self._wait()

    def close(self, timeline: Timeline) -> None:
        """Record that the stream of the answer was closed.

        If the stream was closed before the end of the answer, no more times are found, unless `keep` is set.
        """
        if self._ended:
            return
        if not self.keep:
            if self._task is not None:
                self._task.cancel()
            return
        while self._taken < len(timeline):
            utterance = timeline[self._taken]
            if self._place(utterance.start) >= self._samples:
                break
            if utterance.end is None or self._place(utterance.end) > self._samples:
                utterance = replace(utterance, end=None)
            self._take(utterance, self._samples if utterance.end is None else self._place(utterance.end))
        self.end(Timeline())

    # ---- internals

    async def _wait(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _place(self, sample: int) -> int:
        """Convert a position at speed 1 to the position in the audio of the answer, in samples."""
        return round(sample / self._speed)

    def _shown(self, seconds: float) -> float:
        return round(seconds + self._delay_s, _DIGITS)

    def _take(self, utterance: TimelineUtterance, end: int) -> None:
        """Queue the next utterance of the timeline with its samples."""
        self._taken += 1
        start = min(self._place(utterance.start), end)
        first = SAMPLE_BYTES * (start - self._sound_start)
        last = SAMPLE_BYTES * (end - self._sound_start)
        sound = bytes(self._sound[first:last])
        del self._sound[:last]
        self._sound_start = end
        self._queue.append((utterance, sound))
        self._waiting_bytes += len(sound)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="timestamps")

    async def _work(self) -> None:
        try:
            while self._queue:
                utterance, sound = self._queue[0]
                for turn in {line.turn for line in utterance.lines}:
                    await self._texts.prepare(turn)
                number = len(self._packed)
                known = self._stored[number] if number < len(self._stored) else None
                if known is not None and fits(known, utterance):
                    found = known
                else:
                    found = await self._timer.find(utterance, sound, self._rate_hz, self._speed, self._language)
                    self._has_new = self._has_new or not found.reason
                self._packed.append(pack_utterance(found))
                self._queue.popleft()
                self._waiting_bytes -= len(sound)
                self._add(utterance, found, len(sound) // SAMPLE_BYTES)
                self._notify()
        finally:
            self._task = None
            if self._ended and not self._queue:
                self._finish()
            self._notify()

    def _finish(self) -> None:
        """Add the last sentence to `sentences`."""
        if self._open is not None:
            self._publish(self._open)
            self._open = None
        self._notify()

    def _add(self, utterance: TimelineUtterance, found: Found, samples: int) -> None:
        """Add the sentences of an utterance. samples: the length of its audio in samples."""
        start_s = self._place(utterance.start) / self._rate_hz
        end_s = start_s + samples / self._rate_hz
        if found.reason and found.reason not in self._reasons:
            self._reasons.append(found.reason)
        lines = [
            part
            for at, line in enumerate(utterance.lines)
            for part in _sentences_of(line, found.words[at] if found.words else [None] * len(line.words))
        ]
        bounds = share_time(start_s, end_s, [max(1, len(line.text)) for line, _ in lines])
        for at, (line, times) in enumerate(lines):
            words = [
                (part, (start_s + first / self._speed, min(end_s, start_s + last / self._speed)))
                for part, (first, last) in _caller_words(line, times, self._texts)
                if start_s + first / self._speed < end_s
            ]
            bound = (words[0][1][0], words[-1][1][1]) if words else bounds[at]
            if found.words and not words and any(span is not None for span in times):
                continue  # the audio ended before this line
            may_go_on = self._may_go_on(line)
            self._join(_Open(line.turn, line.start_char, line.end_char, *bound, words, may_go_on))

    def _may_go_on(self, line: TimelineLine) -> bool:
        """Return whether the next line may continue the last word of a line, for example the words of a long number."""
        if not line.words or _SENTENCE_END.search(line.words[-1].word):
            return False
        last = line.words[-1]
        if last.end_char - last.start_char > _LONG_WORD_CHARS:
            return True
        written = self._texts.texts[line.turn][last.start_char : last.end_char]
        return [*filter(str.isalnum, written)] != [*filter(str.isalnum, last.word)]

    def _join(self, new: _Open) -> None:
        """Add a sentence. If the previous sentence has ended inside a word of the caller's text, join the two."""
        before = self._open
        if before is not None:
            if before.turn == new.turn and new.start_char < max(before.cut_part_end(self._texts), before.end_char):
                before.add(new)
                new = before
            else:
                self._publish(before)
        self._open = new if new.may_go_on or new.cut_part_end(self._texts) else None
        if self._open is None:
            self._publish(new)

    def _publish(self, sentence: _Open) -> None:
        """Add a sentence to `sentences`. Neither the sentence nor its words begin before the end of an earlier word."""
        starts, ends = self._texts.tokens(sentence.turn)
        text = self._texts.texts[sentence.turn]
        words = []
        for part, span in sentence.words:
            if (sentence.turn, part) <= self._last_part:
                continue
            self._last_part = (sentence.turn, part)
            first, last = starts[part], ends[part]
            words.append(TimedWord(text[first:last], *self._in_order(span), first, last, sentence.turn))
        start_char, end_char = sentence.start_char, sentence.end_char
        if words:
            start_char, end_char = min(start_char, words[0].start_char), max(end_char, words[-1].end_char)
            shown = (words[0].start_s, words[-1].end_s)
        else:
            shown = self._in_order((sentence.start_s, sentence.end_s))
        self.sentences.append(
            TimedSentence(text[start_char:end_char], *shown, start_char, end_char, sentence.turn, tuple(words))
        )

    def _in_order(self, span: Span) -> Span:
        """Return the start and the end of a span in seconds of the encoded file.

        A span that begins before the end of an earlier span is moved or cut, so that it begins at this end.
        """
        start_s = max(span[0], self._last_s)
        self._last_s = max(start_s, span[1])
        return self._shown(start_s), self._shown(self._last_s)


@dataclass(slots=True)
class _Open:
    """A sentence that is not in `AnswerTimes.sentences` yet, because the next sentence may continue its last word."""

    turn: int
    start_char: int
    end_char: int
    start_s: float
    end_s: float
    words: list[tuple[int, Span]]  # the index of each word in the caller's text, and its time
    may_go_on: bool  # whether the next sentence may continue the last word

    def cut_part_end(self, texts: _Texts) -> int:
        """Return the end of the caller's word inside which the sentence ends; 0 if the sentence does not end inside a
        word, or if no letters of the word follow.
        """
        starts, ends = texts.tokens(self.turn)
        at = bisect_left(ends, self.end_char)
        if at == len(ends) or starts[at] >= self.end_char:
            return 0
        rest = texts.texts[self.turn][self.end_char : ends[at]]
        return ends[at] if any(map(str.isalnum, rest)) else 0

    def add(self, new: _Open) -> None:
        """Add the next sentence to this one."""
        self.end_char = max(self.end_char, new.end_char)
        self.end_s = new.end_s
        self.may_go_on = new.may_go_on
        for part, span in new.words:
            if self.words and self.words[-1][0] == part:
                self.words[-1] = (part, (self.words[-1][1][0], span[1]))
            else:
                self.words.append((part, span))
