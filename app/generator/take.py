"""Take: one attempt to generate an utterance. Its audio is held back while the listener has enough earlier audio.

Meanwhile the output guard (`audio/guard.py`) checks the audio. If a take is silent or breaks a rule of the guard, and
if none of its audio was sent, the utterance is generated once more with another seed. The take releases its audio when
the listener has less than RELEASE_S seconds of audio left.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import numpy as np

from app.audio import pcm
from app.audio.alignment import MAX_SECONDS
from app.audio.shape import EdgeTrimmer, Fader
from app.audio.stages import chain
from app.types import WordMark

if TYPE_CHECKING:
    from app.audio.verification import Verdict
    from app.generator.job import SpeechJob
    from app.generator.lookahead import SubmittedUtterance
    from app.types import AnswerPart, AudioChunk, Codes, Samples

SENTENCE_GAP_S = 0.1  # silence between utterances, in addition to up to 0.2 s at the edges of each utterance
# Held audio is sent, even if it is not checked, when the listener has less than RELEASE_S of audio left.
RELEASE_S = 2.0


class Edges:
    """Trims and fades both ends of an utterance, or of several utterances that follow each other without a gap."""

    def __init__(self, rate_hz: int) -> None:
        self.trimmer = EdgeTrimmer(rate_hz)
        self._stages = chain(self.trimmer, Fader(rate_hz))

    def push(self, samples: Samples) -> Samples:
        """Process samples (N,) and return the trimmed samples that can be returned now."""
        return self._stages.push(samples)

    def flush(self) -> Samples:
        """End the audio and return its faded end. Further calls return nothing."""
        return self._stages.flush()


class Take:
    """Holds the audio of one attempt until the audio is sent. Trims and fades both ends of the audio."""

    def __init__(
        self,
        job: SpeechJob,
        *,
        hold: bool,
        until_end: bool = False,
        keep: bool = False,
        edges: Edges | None = None,
    ) -> None:
        """hold: hold audio back while the listener has enough audio; False = send each chunk immediately.

        until_end: hold all audio back until `end`. keep: keep the audio that was sent, so that it can be checked.
        edges: the `edges` of the previous utterance, if this utterance continues it without a gap; None = it does not.

        If the engine has lost the state with which it would continue the previous utterance, the take begins with the
        faded end of the previous utterance and a gap.
        """
        self._job = job
        self._hold = hold or until_end
        self._until_end = until_end
        self._keep = keep
        self._audio: list[Samples] | None = []  # all audio so far; None = it is not kept
        self._size = 0
        self.edges = Edges(job.info.rate_hz) if edges is None else copy.deepcopy(edges)
        self._sounds_before = self.edges.trimmer.sounds
        self._joined = edges is not None
        self._part: AnswerPart | None = None
        # How many samples at the start of the take are the end of the previous utterance and the gap.
        self._samples_before = 0
        self._held: list[Samples] = []
        self._codes: list[Codes] = []
        self._rules: list[str] = []
        self._marks: list[WordMark] = []
        self.sent = False  # whether audio has left the take
        self.verdict: Verdict | None = None  # result of the check; None = the take was not checked
        self.checking: asyncio.Task[None] | None = None  # the check that sets `verdict`

    @property
    def silent(self) -> bool:
        """Whether the take has only silence so far."""
        return self.edges.trimmer.sounds == self._sounds_before

    @property
    def failures(self) -> tuple[str, ...]:
        """The rules of the output guard that the take broke, in order."""
        return tuple(self._rules)

    @property
    def marks(self) -> list[WordMark]:
        """The places of words in the trimmed audio. The list is empty if the engine does not report them."""
        removed = 0 if self._sounds_before else self.edges.trimmer.removed_samples
        before = self._samples_before
        return [WordMark(before + max(0, mark.sample - removed), mark.line, mark.char) for mark in self._marks]

    @property
    def number(self) -> int:
        """The index of this take among the takes of its utterance; 0 if the engine got no `AnswerPart`."""
        return 0 if self._part is None else self._part.take

    @property
    def bad(self) -> bool:
        """Whether the check has found that the take does not contain its text."""
        return self.verdict is not None and self.verdict.status == "bad"

    @property
    def codes(self) -> Codes | None:
        """The codec tokens (K, T); None if the engine has no codec.

        Also None if the request has no conversation and its text does not arrive in parts.
        """
        return np.concatenate(self._codes, axis=1) if self._codes else None

    def add(self, chunk: AudioChunk) -> None:
        """Add the next chunk from the engine."""
        if self._joined and self._part is not None and not self._part.resumed.is_set():
            self._begin_anew()
        self._joined = False
        self._rules += chunk.rules
        self._marks += chunk.marks
        kept = self._job.request.conversation is not None or self._job.later is not None
        if chunk.codes is not None and kept:
            self._codes.append(chunk.codes)
        self._hold_back(self.edges.push(chunk.samples))

    def _begin_anew(self) -> None:
        """End the previous utterance and add a gap, because the engine has lost its state and can't continue it."""
        rate_hz = self._job.info.rate_hz
        before = [self.edges.flush(), pcm.silence(SENTENCE_GAP_S, rate_hz)]
        self._held += before
        self._samples_before = sum(map(len, before))
        self.edges = Edges(rate_hz)
        self._sounds_before = 0

    def end(self) -> None:
        """End the take after its last chunk: add the faded end to the held audio, and stop holding audio back.

        If the next utterance continues this one without a gap, `edges` keeps the end instead.
        """
        if not self._job.goes_on:
            self._hold_back(self.edges.flush())
        self._hold = False

    def _hold_back(self, samples: Samples) -> None:
        """Add audio to the held audio."""
        self._held.append(samples)
        self._size += len(samples)
        if self._audio is not None:
            self._audio.append(samples)
        if self._size > MAX_SECONDS * self._job.info.rate_hz:  # do not keep a take that is too long to be checked
            self._audio = None

    @property
    def audio(self) -> Samples | None:
        """All audio of the take (N,); None if it is empty, too long to be checked, or was not kept."""
        return np.concatenate(self._audio) if self._audio and self._size else None

    @property
    def due_s(self) -> float:
        """Seconds until the held audio must be sent; 0 = now, infinity = not before the end."""
        if self._hold and self._until_end:
            return math.inf
        return max(0.0, self._job.playback.time_left_s(time.monotonic()) - RELEASE_S) if self._hold else 0.0

    def release(self) -> list[Samples]:
        """Return the held audio if it must be sent now; otherwise an empty list."""
        if self.due_s > 0 or self.silent:
            return []
        held, self._held = [samples for samples in self._held if len(samples)], []
        self.sent = self.sent or bool(held)
        if held and not self._keep:
            self._audio = None
        return held

    async def chunks(self, submitted: SubmittedUtterance) -> AsyncGenerator[AudioChunk | None]:
        """Yield the chunks from the engine. Yields None if held audio must be released before the next chunk."""
        self._part = submitted.part
        following: asyncio.Task[AudioChunk | None] | None = None
        try:
            while True:
                due_s = self.due_s if any(map(len, self._held)) else 0.0
                if 0 < due_s < math.inf or following is not None:
                    following = following or asyncio.create_task(submitted.next())
                    await asyncio.wait({following}, timeout=due_s if 0 < due_s < math.inf else None)
                    if not following.done():
                        yield None
                        continue
                    chunk, following = following.result(), None
                else:
                    chunk = await submitted.next()
                if chunk is None:
                    return
                yield chunk
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
