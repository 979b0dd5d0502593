"""A text that arrives in parts while its first part is already spoken, for example the answer of a language model.

`TextParts` collects the text and cuts it into pieces (`text/incremental.py`). If no more text arrives for a while, the
text so far becomes a piece, although its last sentence may continue. As in the text of a request, a sentence of one or
two words is joined to its neighbour, unless the listener is waiting for audio. `LaterLines` turns each piece into
lines, in the same way as the text of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from app.errors import TextTooLong
from app.text.incremental import IncrementalSplitter, Piece
from app.text.script import SPEAKER_TAG
from app.text.sentences import MIN_WORDS, word_count
from app.types import Line

if TYPE_CHECKING:
    from app.generator.job import LineText, SpeechJob
    from app.generator.prompts import Prompts
    from app.generator.resolving import RequestResolver
    from app.runtime.playback import Playback

SENTENCE_WAIT_S = 0.25  # the last sentence of the text so far is spoken if no more text arrives in SENTENCE_WAIT_S
# An incomplete sentence is spoken if no more text arrives in WORDS_WAIT_S and the listener has no audio left.
WORDS_WAIT_S = 1.0
JOIN_LEFT_S = 1.0  # a short sentence waits for the next one while the listener has more than JOIN_LEFT_S of audio left
JOINED_CHARS = 300  # the longest piece that is joined from several sentences, in characters
RECENT_CHARS = 1_000
# Matches a sentence that has only words. The number of spoken words of a sentence with a digit, a tag or a character of
# Markdown is not known yet.
_PLAIN = re.compile(r"[^\W\d_][\w\s,;:.!?'’…。！？，、-]*")
_BLOCK_CHARS = 16_384  # a long text is cut in blocks, so that other tasks can run in between


class TextParts:
    """Collects a text and returns its pieces in order. Used from one event loop, by one writer and one reader."""

    def __init__(self, max_chars: int) -> None:
        """max_chars: the maximum length of the whole text."""
        self._max_chars = max_chars
        self._splitter = IncrementalSplitter()
        self._parts: list[str] = []
        self._length = 0
        self._flushed = 0  # the length of the text at the last `flush`
        self._queued: deque[Piece] = deque()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.pieces: list[Piece] = []  # all pieces that `next` has returned
        # For each piece in `pieces`: the index in the whole text at which the line of the piece begins.
        self.offsets: list[int] = []
        self.ended = False
        self.playback: Playback | None = None  # the clock of the answer; None = the answer has not begun

    @property
    def text(self) -> str:
        """The whole text so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def pending(self) -> bool:
        """Whether `next` still has to return a part of the text so far."""
        return bool(self._queued or self._splitter.pending)

    @property
    def ready(self) -> bool:
        """Whether `next` returns without waiting."""
        return self.ended or (bool(self._queued) and not self._waits_to_join())

    async def append(self, text: str) -> None:
        """Add text. Raises TextTooLong. Text after the end is ignored."""
        if self.ended:
            return
        if self._length + len(text) > self._max_chars:
            raise TextTooLong(
                f"The text has more than {self._max_chars} characters (TTS_MAX_INPUT_CHARS). Send the rest as a new "
                "text.",
                param="text",
            )
        self._length += len(text)
        self._parts.append(text)
        self._stop_timer()
        if not self._queued and self._time_left_s() <= 0:
            self._splitter.restart()
        for start in range(0, len(text), _BLOCK_CHARS):
            self._add(self._splitter.append(text[start : start + _BLOCK_CHARS]))
            if len(text) > _BLOCK_CHARS:
                await asyncio.sleep(0)
        self._start_timer()

    def flush(self) -> None:
        """Make a piece of all text that is in no piece yet. Text that follows begins a new sentence."""
        self._complete()
        self._flushed = self._length

    def end(self, *, drop_unflushed: bool = False) -> None:
        """End the text. Further calls do nothing.

        drop_unflushed: remove the text after the last `flush`, except pieces that `next` has returned.
        """
        if self.ended:
            return
        if drop_unflushed:
            self._stop_timer()
            while self._queued and self._queued[-1].start_char >= self._flushed:
                self._queued.pop()
            kept = [*self.pieces[-1:], *self._queued][-1:]
            self._parts = [self.text[: max(self._flushed, *(piece.end_char for piece in kept), 0)]]
        else:
            self._complete()
        self.ended = True
        self._changed.set()

    def close(self) -> None:
        """Stop the timer, and drop the text that `next` has not returned yet."""
        self._stop_timer()
        self._queued.clear()
        self.ended = True
        self._changed.set()

    async def next(self) -> Piece | None:
        """Wait for the next piece and return it; None at the end of the text."""
        while not self.ready:
            # If a short piece is the only one that waits, it waits for another piece, at most until the listener needs
            # audio.
            timeout_s = self._time_left_s() - JOIN_LEFT_S if self._queued else None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
        if not self._queued:  # the text has ended, or `end` or `close` has dropped the waiting piece
            return None
        piece = self._queued.popleft()
        while self.pieces and self._queued and self._joins(piece, self._queued[0]):
            end = self._queued.popleft().end_char
            piece = Piece(self.text[piece.start_char : end], piece.start_char, end)
        self.pieces.append(piece)
        self.offsets.append(piece.start_char)
        return piece

    def _complete(self) -> None:
        self._stop_timer()
        self._add(self._splitter.finish())

    def _waits_to_join(self) -> bool:
        """Whether the next piece is so short that it waits for the piece after it. The first piece never waits."""
        alone = bool(self.pieces) and len(self._queued) == 1 and not self.ended
        return alone and _is_short(self._queued[0]) and self._time_left_s() > JOIN_LEFT_S

    def _joins(self, piece: Piece, following: Piece) -> bool:
        """Whether two pieces are spoken as one: a short sentence and its neighbour in the same line."""
        between = self.text[piece.end_char : following.start_char]
        return (
            (_is_short(piece) or _is_short(following))
            and "\n" not in between
            and following.end_char - piece.start_char <= JOINED_CHARS
            and not SPEAKER_TAG.search(following.text)
        )

    def _add(self, pieces: list[Piece]) -> None:
        self._queued += pieces
        if pieces:
            self._changed.set()

    def _time_left_s(self) -> float:
        """Seconds until the listener has no audio left."""
        return 0.0 if self.playback is None else self.playback.time_left_s(time.monotonic())

    def _start_timer(self) -> None:
        """Start the timer. If no more text arrives in time, it makes a piece of the text that is in no piece yet."""
        if self._splitter.pending:
            if self._splitter.ends_with_sentence:
                self._timer = asyncio.get_running_loop().call_later(SENTENCE_WAIT_S, self._complete)
            else:
                self._timer = asyncio.get_running_loop().call_later(WORDS_WAIT_S, self._take_words)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_words(self) -> None:
        """If the listener has no audio left, make a piece that ends with the last whole word. Otherwise try again
        later.
        """
        left_s = self._time_left_s()
        if self._queued or left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(max(left_s, SENTENCE_WAIT_S), self._take_words)
        else:
            self._add(self._splitter.take_words())


class LaterLines:
    """Turns the pieces of a TextParts into lines, as the resolver does for the text of a request."""

    def __init__(
        self, resolver: RequestResolver, prompts: Prompts, job: SpeechJob, line: Line, text: TextParts
    ) -> None:
        """job: the answer that speaks the text. line: the first line of the job's request, with the voice as the caller
        has named it.
        """
        self._resolver = resolver
        self._prompts = prompts
        self._job = job
        self._line = line
        self._text = text
        self._tag = _last_tag(line.text)
        self.texts = [*job.texts]  # the text of each piece; the positions of a piece's words refer to its text

    @property
    def ready(self) -> bool:
        """Whether `next` returns without waiting."""
        return self._text.ready

    @property
    def size_bytes(self) -> int:
        """The size of the whole text so far, as UTF-8."""
        return len(self._text.text.encode("utf-8", "ignore"))

    @property
    def recent(self) -> str:
        """The last part of the text so far. The language of the text is recognised from it."""
        return self._text.text[-RECENT_CHARS:]

    async def next(self) -> list[LineText] | None:
        """Wait for the next piece and return its lines; None at the end. Raises RequestError.

        `turn` of a line is the index of the piece in `TextParts.pieces`.
        """
        piece = await self._text.next()
        if piece is None:
            return None
        turn = len(self._text.pieces) - 1
        # A piece that does not begin with a speaker tag has the speaker of the last tag before it.
        tag = "" if not self._tag or SPEAKER_TAG.match(piece.text) else f"{self._tag} "
        line = replace(self._line, text=tag + piece.text)
        self._text.offsets[turn] -= len(tag)
        self.texts.append(line.text)
        self._tag = _last_tag(piece.text) or self._tag
        lines = await self._resolver.resolve_later(self._job, line)
        return [replace(each, turn=turn, prompt=await self._prompts.of(each.voice, self._job.engine)) for each in lines]


def _is_short(piece: Piece) -> bool:
    return word_count(piece.text) < MIN_WORDS and _PLAIN.fullmatch(piece.text) is not None


def _last_tag(text: str) -> str:
    """Return the last speaker tag in a text; "" if it has none."""
    found = [tag[0] for tag in SPEAKER_TAG.finditer(text)]
    return found[-1] if found else ""
