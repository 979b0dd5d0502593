"""NaN fails only its own row, and out-of-memory has its own error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.errors import BadReference, EngineError, OutOfMemory
from app.runtime import faults
from tests.support.scripted_runner import Part
from tests.unit.test_runtime import Desk, collect_frames

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


def test_rows_without_codes_are_not_broken() -> None:
    assert faults.broken_rows(np.zeros((3, 0), np.int16)) == []
    assert faults.broken_rows(np.zeros((0, 4), np.int16)) == []
