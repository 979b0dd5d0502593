"""NaN in a row fails only this row, and a lack of GPU memory has a separate error."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from app.errors import BadReference, EngineError, OutOfMemory
from app.runtime import faults
from tests.support.scripted_runner import Part
from tests.unit.test_runtime import Desk, collect_frames, running, spoken, until

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("fails", ["nan codes", "nan sound"])
async def test_nan_fails_only_its_own_row(fails: str) -> None:
    desk = Desk.of(4, 9)
    neighbours = [desk.submit(Part(frames=6)), desk.submit(Part(frames=3))]
    failing = desk.submit(Part(frames=6, fails=fails, at=2))
    desk.finish()
    with pytest.raises(EngineError, match="NaN or Inf"):
        await collect_frames(failing)
    for neighbour in neighbours:
        assert await collect_frames(neighbour) == desk.runner.expected(neighbour.utterance)
    later = desk.submit(Part(frames=6))
    desk.finish()
    assert await collect_frames(later) == desk.runner.expected(later.utterance)
    assert desk.runner.rows == {}
    assert desk.runner.violations == []


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]
DEVICE_LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_each_kind_of_out_of_memory_is_recognised(error: Exception) -> None:
    assert faults.is_out_of_memory(error)
    assert not faults.is_device_lost(error)
    assert isinstance(faults.to_speech_error(error), OutOfMemory)


@pytest.mark.parametrize("error", DEVICE_LOST, ids=repr)
def test_errors_of_a_lost_device_are_recognised(error: Exception) -> None:
    assert faults.is_device_lost(error)
    assert not faults.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: no"),
        RuntimeError("shapes differ"),
        KeyError("k"),
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
    ],
    ids=repr,
)
def test_other_errors_do_not_count_as_a_lost_device(error: Exception) -> None:
    assert not faults.is_device_lost(error)
    assert not faults.is_out_of_memory(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("call", ["admit", "prefill", "step", "decode"])
@pytest.mark.parametrize("error", DEVICE_LOST, ids=repr)
async def test_lost_device_makes_the_engine_unhealthy_immediately(call: str, error: Exception) -> None:
    async with running(rows=2, queue=5) as (engine, runner):
        parts = [Part(frames=9), Part(frames=9, fails=call, at=0, error=error), Part(frames=9)]
        jobs = [asyncio.create_task(spoken(engine, runner.utterance(part))) for part in parts]
        for job in jobs:
            with pytest.raises(EngineError, match="Restart the server"):
                await asyncio.wait_for(job, 60)
        await until(lambda: not engine.healthy)
        assert engine.restarts == 0
        with pytest.raises(EngineError, match="Restart the server"):
            await spoken(engine, runner.utterance(Part(frames=1)))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("call", ["admit", "prefill"])
async def test_out_of_memory_fails_only_its_own_utterance(call: str, error: Exception) -> None:
    desk = Desk.of(4, 9)
    neighbour = desk.submit(Part(frames=6))
    desk.turn(3)
    failing = desk.submit(Part(frames=6, fails=call, error=error))
    desk.finish()
    with pytest.raises(OutOfMemory, match="Send a shorter text"):
        await collect_frames(failing)
    assert await collect_frames(neighbour) == desk.runner.expected(neighbour.utterance)


def test_callers_get_typed_errors_without_internal_details() -> None:
    typed = BadReference("in words")
    assert faults.to_speech_error(typed) is typed
    assert type(faults.to_speech_error(ZeroDivisionError("inside"))) is EngineError
    assert "inside" not in faults.to_speech_error(ZeroDivisionError("inside")).message


def test_rows_without_codes_do_not_fail() -> None:
    assert faults.broken_rows(np.zeros((3, 0), np.int16)) == []
    assert faults.broken_rows(np.zeros((0, 4), np.int16)) == []
