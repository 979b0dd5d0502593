"""CSM as an engine: the thread of the loop, audio queues, cancellation, and several lines in the same row."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from app.engines.batched import BatchedEngine
from app.engines.csm.limits import Guards
from app.engines.csm.loading import load_runner
from app.engines.csm.runner import CsmRunner
from app.errors import TextTooLong
from app.types import AudioChunk, EngineInfo, Sampling, SpokenLine, Utterance, Voice

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

VOICE = Voice("v", "v", "cloned")


@pytest.fixture(scope="module")
def runner(tiny_csm: Path) -> CsmRunner:
    guards = Guards(frames_per_token=1, slack_frames=20)  # the frame limit comes before the other rules
    cpu = torch.device("cpu")
    return load_runner(tiny_csm, None, device=cpu, dtype=torch.float32, max_rows=3, chunk=8, guards=guards)


def engine(runner: CsmRunner) -> BatchedEngine:
    info = EngineInfo(id="csm", name="CSM", fingerprint=runner.fingerprint, rate_hz=runner.rate_hz, frame_s=0.08)
    return BatchedEngine(info, runner, max_queue=8, audio_queue_s=30.0)


def utterance(*texts: str, frames: int = 10, seed: int = 1) -> Utterance:
    return Utterance(tuple(SpokenLine(text, 0, VOICE) for text in texts), Sampling(), seed, frames * 0.08)


async def collect(speaker: BatchedEngine, request: Utterance) -> tuple[np.ndarray, np.ndarray]:
    chunks: list[AudioChunk] = [chunk async for chunk in speaker.speak(request)]
    starts = np.cumsum([0, *(len(chunk.samples) for chunk in chunks)])
    assert [chunk.start for chunk in chunks] == starts[:-1].tolist()
    return np.concatenate([c.codes for c in chunks], axis=1), np.concatenate([c.samples for c in chunks])


async def test_concurrent_requests_give_the_same_result_as_single_ones(runner: CsmRunner) -> None:
    requests = [utterance(f"Number {i} speaks.", seed=i, frames=6 + i) for i in range(5)]
    async with engine(runner) as speaker:
        lone = [await collect(speaker, one) for one in requests]
        together = await asyncio.gather(*(collect(speaker, one) for one in requests))
    for i, ((codes, samples), (lone_codes, lone_samples)) in enumerate(zip(together, lone, strict=True)):
        assert codes.shape == (8, 6 + i)
        assert len(samples) == 1920 * (6 + i)
        assert np.array_equal(codes, lone_codes)
        assert np.abs(samples - lone_samples).max() < 1e-5


async def test_next_line_is_read_while_another_row_speaks(runner: CsmRunner) -> None:
    """With random weights, only the frame limit ends a line.

    The prompt of the next line is read between frames of the other row.
    """
    async with engine(runner) as speaker:
        lines = utterance("a", "A rather longer second line, so that it is read in many chunks.", frames=100)
        (codes, _), (other, _) = await asyncio.gather(
            collect(speaker, lines), collect(speaker, utterance("b" * 50, frames=60))
        )
    assert codes.shape[1] == 100
    assert other.shape[1] == 60


async def test_cancelling_frees_the_row(runner: CsmRunner) -> None:
    async with engine(runner) as speaker:
        stream = speaker.speak(utterance("Too long to wait for.", frames=900))
        await anext(stream)
        await stream.aclose()
        codes, _ = await collect(speaker, utterance("Next.", frames=3))
        assert codes.shape[1] == 3
        for _ in range(100):
            if speaker.load.active_rows == 0:
                break
            await asyncio.sleep(0.02)
        assert speaker.load.active_rows == 0


async def test_error_fails_only_its_own_request(runner: CsmRunner) -> None:
    async with engine(runner) as speaker:
        good = asyncio.create_task(collect(speaker, utterance("Fine.", frames=5)))
        with pytest.raises(TextTooLong):
            await collect(speaker, utterance("word " * 700, frames=100))
        assert (await good)[0].shape[1] == 5
