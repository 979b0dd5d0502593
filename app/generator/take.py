"""Take: one attempt at an utterance. Its audio is held back and judged while the listener has enough other audio.

A take that broke a rule of the output guard (`audio/guard.py`), or that is silent, is generated once more with another
seed, if nothing of it was sent. The listener decides how long audio is held: it is released when the listener has less
than RELEASE_S of audio left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import numpy as np

from app.audio.shape import EdgeTrimmer, Fader
from app.audio.stages import chain

if TYPE_CHECKING:
    from app.generator.job import SpeechJob
    from app.generator.lookahead import SubmittedUtterance
    from app.types import AudioChunk, Codes, Samples

RELEASE_S = 2.0  # the listener's buffer at which held audio is sent, judged or not
FAILURES = frozenset({"frame_cap", "repeat", "silence", "lead_in", "babble", "too_short"})


class Take:
    """The audio of one attempt, trimmed and faded at its edges, until it is sent."""

    def __init__(self, job: SpeechJob, *, hold: bool) -> None:
        """hold: keep audio back while the listener has enough; False = send it as it comes."""
        self._job = job
        self._hold = hold
        self._edges = EdgeTrimmer(job.info.rate_hz)
        self._shape = chain(self._edges, Fader(job.info.rate_hz))
        self._held: list[Samples] = []
        self._codes: list[Codes] = []
        self._rules: list[str] = []
        self.sent = False  # whether audio has left the take

    @property
    def silent(self) -> bool:
        """Whether the take has no sound."""
        return not self._edges.sounded

    @property
    def failures(self) -> tuple[str, ...]:
        """The rules of the output guard that the take broke, in order."""
        return tuple(rule for rule in self._rules if rule in FAILURES)

    @property
    def codes(self) -> Codes | None:
        """The codec tokens (K, T), or None if the engine has none or the request needs none."""
        return np.concatenate(self._codes, axis=1) if self._codes else None

    def add(self, chunk: AudioChunk) -> None:
        """Add the next chunk of the engine."""
        self._rules += chunk.rules
        if chunk.codes is not None and self._job.request.conversation is not None:
            self._codes.append(chunk.codes)
        self._held.append(self._shape.push(chunk.samples))

    def end(self) -> None:
        """No chunk follows. The fade at the end joins the held audio."""
        self._held.append(self._shape.flush())
        self._hold = False

    @property
    def due_s(self) -> float:
        """Seconds until the held audio must be sent; 0 = now."""
        return max(0.0, self._job.playback.time_left_s(time.monotonic()) - RELEASE_S) if self._hold else 0.0

    def release(self) -> list[Samples]:
        """The held audio, if it is time to send it."""
        if self.due_s > 0 or self.silent:
            return []
        held, self._held = [samples for samples in self._held if len(samples)], []
        self.sent = self.sent or bool(held)
        return held

    async def chunks(self, submitted: SubmittedUtterance) -> AsyncGenerator[AudioChunk | None]:
        """The chunks of the engine; None when it is time to call `release` although no chunk has come."""
        stream = submitted.chunks()
        following: asyncio.Task[AudioChunk | None] | None = None
        try:
            while True:
                if following is None:
                    following = asyncio.ensure_future(anext(stream, None))
                due_s = self.due_s if any(map(len, self._held)) else 0.0
                await asyncio.wait({following}, timeout=due_s or None)
                if not following.done():
                    yield None
                    continue
                chunk, following = following.result(), None
                if chunk is None:
                    return
                yield chunk
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await stream.aclose()
