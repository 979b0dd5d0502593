"""Live speech: the text arrives in parts, the audio is sent at once, and the speech can be stopped at any time.

A LiveSession has the voice, the model and the format. It opens contexts. A LiveContext is one answer: its text is added
by `append`, `flush` and `end`, and its events are read from `events`. Several contexts of a session speak at the same
time. A context whose events are not read pauses its own generation. This module does not depend on a network protocol.

If the request has `timestamps`, the times of the words are found while the audio is sent. The times show which words a
listener has heard at a given moment, also if the speech was cancelled.

If the whole text is known before the answer begins, the answer comes from `SpeechGenerator.answer`, so it can also come
from the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from app.errors import EmptyText, SpeechError
from app.generator.later_text import TextParts
from app.generator.timeline import Timeline
from app.text.captions import words_of

if TYPE_CHECKING:
    from app.generator.generation import Usage
    from app.generator.speech import Answer, SpeechGenerator
    from app.metrics import Metrics
    from app.types import SpeechRequest, TimedSentence

log = logging.getLogger(__name__)

_CHARS_PER_S = 15.0  # an estimate for a sentence whose end is not generated yet
_WORD_MARGIN_S = 0.02  # a word counts as heard at a moment if it ends at most _WORD_MARGIN_S after the moment
CANCEL_WORDS_S = 0.25  # how long `cancel` waits for the times of the last words


@dataclass(frozen=True, slots=True)
class SentenceStarted:
    """The audio of a sentence, or of several that are spoken together, begins with the next Audio event."""

    index: int  # from 0
    start_char: int  # start of the sentence in the text of the context
    end_char: int  # exclusive
    start_s: float  # start of the sentence in the audio of the context


@dataclass(frozen=True, slots=True)
class Audio:
    """Encoded audio."""

    data: bytes
    # Seconds of audio of this answer so far, with `data`: exact for PCM, an estimate for other formats.
    end_s: float


@dataclass(frozen=True, slots=True)
class Words:
    """The times of the words of sentences whose audio was sent. The character positions refer to the text of the
    context.
    """

    sentences: tuple[TimedSentence, ...]


@dataclass(frozen=True, slots=True)
class SentenceDone:
    """All audio of a sentence was sent. The event can be late: it comes with the next sentence or at the end."""

    index: int


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of a context whose whole text was spoken."""

    usage: Usage | None
    audio_s: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The last event of a context that was cancelled. No audio follows it."""

    sent_ms: int  # the length of the audio that was sent
    # How many characters and words of the text this audio contains, up to the last whole word. An estimate for words
    # whose times are not known.
    spoken_chars: int
    spoken_words: int
    text_spoken: str
    text_unspoken: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a context that failed."""

    error: SpeechError
    unexpected: bool = False


Event = SentenceStarted | Audio | Words | SentenceDone | Done | Cancelled | Failed


@dataclass(slots=True)
class SpokenText:
    """Computes which part of a text a listener has heard at a given moment."""

    sentences: list[SentenceStarted] = field(default_factory=list)
    audio_s: float = 0.0  # sent so far
    complete: bool = False  # whether the whole text was spoken
    # For each word that has a time, in order: the end of its audio, and its last character in the text.
    word_ends_s: array[float] = field(default_factory=lambda: array("d"))
    word_end_chars: array[int] = field(default_factory=lambda: array("q"))
    timed_chars: int = 0  # the words of the text up to this character have times

    def add(self, sentences: Iterable[TimedSentence]) -> None:
        """Add the times of the words of the next sentences."""
        for sentence in sentences:
            for word in words_of(sentence):
                self.word_ends_s.append(word.end_s)
                self.word_end_chars.append(word.end_char)
            self.timed_chars = sentence.end_char

    def chars_at(self, seconds: float, text: str) -> int:
        """Return how many characters of `text` are heard in the first `seconds` of the audio. Only whole words count.

        If the audio ends inside a sentence whose words have no times, the number is an estimate: each character of the
        sentence is assumed to take the same time.
        """
        if self.complete and seconds >= self.audio_s:
            return len(text)
        begun = [sentence for sentence in self.sentences if sentence.start_s < seconds]
        if not begun:
            return 0
        if begun[-1].start_char < self.timed_chars:
            return self._timed_chars_at(seconds)
        return self._estimated_chars_at(seconds, text, begun)

    def _timed_chars_at(self, seconds: float) -> int:
        """Return where in the text (an index) the last word ends that has a time and is heard completely within the
        first `seconds` of the audio.
        """
        heard = bisect_right(self.word_ends_s, seconds + _WORD_MARGIN_S)
        if not self.complete:  # a word at the end of the audio that was sent may continue after it
            heard = min(heard, bisect_left(self.word_ends_s, self.audio_s - _WORD_MARGIN_S))
        return self.word_end_chars[heard - 1] if heard else 0

    def _estimated_chars_at(self, seconds: float, text: str, begun: Sequence[SentenceStarted]) -> int:
        sentence = begun[-1]
        length = sentence.end_char - sentence.start_char
        if len(begun) < len(self.sentences):
            end_s = self.sentences[len(begun)].start_s
        elif self.complete:
            end_s = self.audio_s
        else:
            end_s = max(self.audio_s, sentence.start_s + length / _CHARS_PER_S)
        part = (seconds - sentence.start_s) / max(end_s - sentence.start_s, 1e-6)
        if part >= 1:
            return sentence.end_char
        return _word_end(text, sentence.start_char, sentence.start_char + int(part * length))


def _word_end(text: str, start: int, end: int) -> int:
    """Return the end of the last word that ends in `text[start:end + 1]`, or of the last word before `start`."""
    if end < len(text) and text[end : end + 1].isspace():
        return end
    words = text[start:end].rstrip()
    while words and not text[start + len(words) : start + len(words) + 1].isspace():
        words = words[:-1]
    return len(text[: start + len(words)].rstrip())


@dataclass(frozen=True, slots=True)
class ContextSpec:
    """What a context speaks and how."""

    # The request has one line, which names the voice. If this line has a text, it is the whole text; "" = the text
    # arrives by `append`.
    request: SpeechRequest
    extras: frozenset[str] = frozenset()  # see SpeechGenerator.answer
    random_seed: bool = False  # see SpeechGenerator.answer
    convert: Callable[[bytes], bytes] | None = None  # changes each block of audio
    # Called with the text so far, after the request is checked and before its audio begins.
    on_answer: Callable[[str], None] = lambda _: None
    words: bool = False  # send the times of words as events; `Done` waits for them. `request` must have `timestamps`


class LiveSession:
    """Opens contexts with the same generator. Used from one event loop."""

    def __init__(self, generator: SpeechGenerator, metrics: Metrics, *, max_chars: int) -> None:
        """max_chars: the maximum length of the text of one context."""
        self._generator = generator
        self._metrics = metrics
        self._max_chars = max_chars
        self._contexts: set[LiveContext] = set()

    def open(self, spec: ContextSpec) -> LiveContext:
        """Open a context and begin to speak it."""
        context = LiveContext(self._generator, self._metrics, spec, TextParts(self._max_chars))
        self._contexts.add(context)
        context.task.add_done_callback(lambda _: self._contexts.discard(context))
        return context

    async def close(self) -> None:
        """Cancel all contexts."""
        for context in list(self._contexts):
            await context.cancel(words_s=0)
            context.close()


class LiveContext:
    """One answer whose text can arrive in parts. `LiveSession.open` creates it."""

    def __init__(self, generator: SpeechGenerator, metrics: Metrics, spec: ContextSpec, text: TextParts) -> None:
        self._generator = generator
        self._metrics = metrics
        self._spec = spec
        self._whole = spec.request.lines[0].text
        self._parts = text
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)  # the generation pauses while one of its events waits to be read
        self._following: asyncio.Task[None] | None = None  # finds the times of the words
        self._over = False
        self._spoken_pieces = 0  # how many pieces of the text have begun in the audio
        self.spoken = SpokenText()
        self.task = asyncio.create_task(self._run(), name="live context")

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self._whole or self._parts.text

    @property
    def has_unspoken_text(self) -> bool:
        """Whether a part of the text so far waits for the engine or for more text."""
        return self._parts.pending or self._spoken_pieces < len(self._parts.pieces)

    @property
    def ended(self) -> bool:
        """Whether no more text can arrive."""
        return self._over or bool(self._whole) or self._parts.ended

    async def append(self, text: str) -> None:
        """Add text. Raises TextTooLong."""
        if not self._over:
            await self._parts.append(text)

    def flush(self) -> None:
        """Speak all text so far, although its last sentence may be incomplete."""
        if not self._over:
            self._parts.flush()

    def end(self, *, drop_unflushed: bool = False) -> None:
        """End the text. The context ends when all text is spoken.

        drop_unflushed: do not speak the text after the last `flush`, unless its speech has begun.
        """
        if not self._over:
            self._parts.end(drop_unflushed=drop_unflushed)

    async def cancel(self, *, words_s: float = CANCEL_WORDS_S) -> None:
        """Stop the speech. After this call, the row of the engine is free, and the next event is Cancelled.

        words_s: how long to wait for the times of the last words. Does nothing if the last event was sent already.
        """
        if self._over:
            return
        self._over = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self._metrics.cancelled()
        await self.words_found(words_s)
        self._drop_events()
        sent_s = self.spoken.audio_s
        chars = self.spoken.chars_at(sent_s, self.text)
        words = len(self.text[:chars].split())
        self._events.put_nowait(Cancelled(round(sent_s * 1000), chars, words, self.text[:chars], self.text[chars:]))

    async def words_found(self, timeout_s: float) -> None:
        """Wait until the words of all audio that was sent have times, but at most `timeout_s` seconds."""
        if self._following is not None and timeout_s > 0:
            await asyncio.wait({self._following}, timeout=timeout_s)

    def close(self) -> None:
        """Stop the search for the times of words. Call this after the last event."""
        if self._following is not None:
            self._following.cancel()

    async def events(self) -> AsyncGenerator[Event]:
        """Yield the events of the context. The last one is Done, Cancelled or Failed."""
        while True:
            event = await self._events.get()
            if not isinstance(event, Words):
                self._room.release()
            if isinstance(event, SentenceStarted):
                self.spoken.sentences.append(event)
            elif isinstance(event, Audio):
                self.spoken.audio_s = event.end_s
            elif isinstance(event, Done):
                self.spoken.complete = True
            yield event
            if isinstance(event, Done | Cancelled | Failed):
                return

    def _drop_events(self) -> None:
        while not self._events.empty():
            self._events.get_nowait()

    async def _run(self) -> None:
        """Speak the text, and put all events into the queue."""
        last: Event
        try:
            last = await self._speak()
        except SpeechError as error:
            if not isinstance(error, EmptyText):  # EmptyText is no failure: clients may end a context without text
                self._metrics.failed(type(error).__name__)
                log.info("live speech failed: %s", type(error).__name__)
            last = Failed(error)
        except Exception as error:
            log.exception("live speech failed with an unexpected error")
            self._metrics.failed(type(error).__name__)
            message = "The server failed because of an internal error. The log of the server has the reason."
            last = Failed(SpeechError(message), unexpected=True)
        finally:
            self._parts.close()
        await self._put(last)
        self._over = True

    async def _put(self, event: Event) -> None:
        """Wait until the previous event was read, and then put an event into the queue."""
        await self._room.acquire()
        self._events.put_nowait(event)

    async def _speak(self) -> Event:
        answer, began_s = await self._begin()
        self._spec.on_answer(self.text)
        if answer.times is not None:
            answer.times.keep = True
            self._following = asyncio.create_task(self._follow(answer), name="live words")
        announced = 0
        audio_s = 0.0
        is_first = True
        request, convert = self._spec.request, self._spec.convert
        pcm_bytes = 0
        try:
            async with contextlib.aclosing(answer.stream) as stream:
                async for data in stream:
                    if is_first:
                        self._metrics.first_audio(answer.engine, time.monotonic() - began_s, answer.cache)
                        is_first = False
                    if not announced and not answer.progress.utterances:  # from the cache
                        await self._put(SentenceStarted(0, 0, len(self.text), 0.0))
                        announced = 1
                    while announced < len(answer.progress.utterances):
                        if announced:
                            await self._put(SentenceDone(announced - 1))
                        await self._put(self._started(answer, announced))
                        announced += 1
                    pcm_bytes += len(data)
                    is_pcm = request.format == "pcm"  # other formats have no fixed number of bytes per second
                    audio_s = pcm_bytes / (2 * request.sample_rate_hz) if is_pcm else answer.audio_s
                    await self._put(Audio(data if convert is None else convert(data), audio_s))
        finally:
            if answer.times is not None:
                answer.times.close(Timeline())  # if the stream has begun, it has already called `close`
        if announced:
            await self._put(SentenceDone(announced - 1))
        if self._spec.words and self._following is not None:
            await asyncio.wait({self._following})
        return Done(answer.usage, audio_s)

    async def _follow(self, answer: Answer) -> None:
        """Store the times of words as soon as they are found, and send them as events if the caller wants them."""
        async for sentences in answer.later_timed(0):
            placed = tuple(map(self._placed, sentences))
            self.spoken.add(placed)
            if self._spec.words and not self._over:
                self._events.put_nowait(Words(placed))

    def _placed(self, sentence: TimedSentence) -> TimedSentence:
        """Return a sentence with character positions in the text of the context instead of in its piece."""
        if self._whole:
            return sentence
        offset, first = self._parts.offsets[sentence.turn], self._parts.pieces[sentence.turn].start_char

        def place(char: int) -> int:
            return max(first, offset + char)

        start, end = place(sentence.start_char), place(sentence.end_char)
        words = tuple(
            replace(word, start_char=place(word.start_char), end_char=place(word.end_char), turn=0)
            for word in sentence.words
        )
        return replace(sentence, text=self.text[start:end], start_char=start, end_char=end, turn=0, words=words)

    async def _begin(self) -> tuple[Answer, float]:
        """Wait for text and begin the answer. Returns the answer, and the time in seconds at which its first text had
        arrived.
        """
        request = self._spec.request
        if self._whole:
            began_s = time.monotonic()
            return await self._generator.answer(
                request, extras=self._spec.extras, random_seed=self._spec.random_seed
            ), began_s
        piece = await self._parts.next()
        began_s = time.monotonic()
        if piece is None:
            raise EmptyText("The text contains nothing that can be spoken. Send a text with words.", param="text")
        request = replace(request, lines=(replace(request.lines[0], text=piece.text),))
        return await self._generator.answer_in_parts(
            request, self._parts, extras=self._spec.extras, random_seed=self._spec.random_seed
        ), began_s

    def _started(self, answer: Answer, index: int) -> SentenceStarted:
        turn, start, end = answer.progress.spans[index]
        start_s = answer.progress.utterances[index].start_s
        if self._whole:
            return SentenceStarted(index, start, end, start_s)
        offset, piece = self._parts.offsets[turn], self._parts.pieces[turn]
        self._spoken_pieces = turn + 1
        return SentenceStarted(index, max(piece.start_char, offset + start), offset + end, start_s)
