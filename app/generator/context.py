"""The earlier turns of a conversation: decode uploaded recordings, encode them to codec codes, and remember answers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING

from app.audio.decode import TIME_LIMIT_S
from app.audio.sandbox import decode_short
from app.errors import BadReference
from app.lru import LRU
from app.types import ContextTurn, Reference, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.audio.threads import ThreadLimit
    from app.generator.job import SpeechJob
    from app.types import Codes, UploadedTurn
    from app.voices.memory import Memory, RememberedTurn

MAX_TURN_S = 60.0  # the longest recording of a turn; limited because a codec encodes each recording in one step
# The time limit for decoding all recordings of one request. Half an hour of recordings normally takes 1 to 5 s.
DECODE_LIMIT_S = 20.0
MEMORY_SHARE = 0.5  # the fraction of the engine's context for remembered turns; voice prompts use the other half
CACHED_TURNS = 256  # number of turns whose codes stay in memory, because each request sends the earlier turns again


class ConversationContext:
    """Decodes, encodes and remembers the turns of conversations. Use it from one event loop."""

    def __init__(self, memory: Memory | None, uploads: ThreadLimit) -> None:
        """memory: stores conversations; None = no memory. uploads: limits the threads that decode recordings."""
        self._memory = memory
        self._uploads = uploads
        # (engine, digest of the samples, text) -> codes.
        self._codes: LRU[tuple[str, str, str], Codes] = LRU(CACHED_TURNS)

    async def decode(self, uploaded: Sequence[UploadedTurn], rate_hz: int) -> tuple[Turn, ...]:
        """Decode the caller's recordings to samples. Raises BadReference, whose `param` is `context.N.audio`."""
        turns = []
        left_s = DECODE_LIMIT_S
        for index, recording in enumerate(uploaded):
            turn, took_s = await self._uploads.run(_decode, recording, rate_hz, f"context.{index}.audio", left_s)
            turns.append(turn)
            left_s -= took_s
        return tuple(turns)

    async def encode(self, job: SpeechJob) -> tuple[tuple[ContextTurn, ...], int]:
        """Return the earlier turns of a job as codes, and how many of them are remembered turns.

        The remembered turns come first, then the uploaded turns. Raises BadReference.
        """
        remembered = await self._recall(job)
        uploaded = [await self._encode(turn, index, job) for index, turn in enumerate(job.request.context)]
        return (*remembered, *uploaded), len(remembered)

    async def _recall(self, job: SpeechJob) -> tuple[ContextTurn, ...]:
        """Return the remembered turns of the job's conversation as codes."""
        conversation = job.request.conversation
        if conversation is None or self._memory is None:
            return ()
        speakers = {voice.id: job.speakers[number] for number, voice in enumerate(job.voices)}
        positions = round((job.info.prompts.max_context_s or 0.0) * MEMORY_SHARE / job.info.frame_s)
        recall = self._memory.recall
        return await asyncio.to_thread(recall, conversation, job.info.fingerprint, speakers, positions)

    async def _encode(self, turn: Turn, index: int, job: SpeechJob) -> ContextTurn:
        """Encode an uploaded turn to codes. index: the position of the turn in `context`. Raises BadReference."""
        key = (job.info.fingerprint, turn.digest, turn.text)
        codes = self._codes.get(key)
        if codes is None:
            try:
                codes = (await job.engine.encode_reference(turn.reference)).codes
            except BadReference as error:
                param = f"context.{index}.audio"
                raise BadReference(f"`{param}`: {error.message}", param=param) from error
            self._codes.put(key, codes)
        return ContextTurn(turn.speaker, turn.text, codes)

    async def remember(self, job: SpeechJob, spoken: Sequence[RememberedTurn]) -> None:
        """Store the turns `spoken` that a job has generated, for the next request of the conversation."""
        conversation = job.request.conversation
        if spoken and conversation is not None and self._memory is not None:
            await asyncio.to_thread(self._memory.remember, conversation, job.info.fingerprint, spoken)

    async def forget(self, conversation: str) -> bool:
        """Delete the remembered turns of a conversation. Returns False if no turns were remembered."""
        return self._memory is not None and await asyncio.to_thread(self._memory.forget, conversation)


def _decode(uploaded: UploadedTurn, rate_hz: int, param: str, limit_s: float) -> tuple[Turn, float]:
    """Decode the recording of a turn in at most `limit_s` seconds. Returns the turn and the time in seconds that
    decoding took.

    param: the name of the recording's field, for errors. Raises BadReference.
    """
    started_s = time.monotonic()
    limit_s = min(limit_s, TIME_LIMIT_S)
    decoded = decode_short(uploaded.audio, rate_hz, max_seconds=MAX_TURN_S, what=param, time_limit_s=limit_s)
    if decoded.truncated:
        raise BadReference(f"`{param}` is longer than {MAX_TURN_S:g} s. Send a shorter recording.", param=param)
    digest = hashlib.sha256(decoded.samples.tobytes()).hexdigest()
    turn = Turn(uploaded.speaker, uploaded.text, digest, Reference(decoded.samples, rate_hz, uploaded.text))
    return turn, time.monotonic() - started_s
