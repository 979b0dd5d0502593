"""CSM gives the same codes on a CUDA device as on the CPU: `make gpu` on a machine with a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.csm.runner import CsmRunner
from app.nn.transformer import Stage
from app.runtime.cuda_graphs import GraphCapture, SplitCapture
from app.types import Sampling, Utterance
from tests.gpu.device import DEVICE, GPU, ON_CUDA, kernels
from tests.support.csm_requests import FRAME_S, alone, make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_csm import fabricate_csm

pytestmark = GPU

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(autouse=True, scope="module")
def _exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("csm"))


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> CsmRunner:
    return make(folder)


@pytest.fixture(params=["eager", "graph", "triton", "triton-linear", "triton-pdl", "persistent"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of a runner: eager steps, or steps replayed from a CUDA graph with the kernels of torch or
    Triton."""
    if request.param == "eager":
        return {"device": DEVICE}
    return {"device": DEVICE, "capture": GraphCapture(DEVICE), "kernels": (kernels(request.param),)}


def speak(runner: CsmRunner, utterance: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """Speak one utterance; return its codes (T, K) and samples (N,)."""
    driver = Driver(runner)
    driver.start(0, utterance)
    driver.finish()
    return driver.frames(0), np.concatenate(driver.chunks[0])


@pytest.mark.parametrize(
    ("sampling", "frames"),
    # a prompt of 300 tokens is longer than the shortest captured length
    [(GREEDY, 300), (Sampling(), 40), (Sampling(top_k=0, top_p=0.9), 40)],
)
def test_codes_and_samples_equal_those_of_the_cpu(
    folder: Path, on_cpu: CsmRunner, mode: dict[str, Any], sampling: Sampling, frames: int
) -> None:
    runner = make(folder, **mode)
    utterance = speech("The same words on another device.", sampling=sampling, frames=frames, prompt=prompt(on_cpu))
    expected, expected_samples = speak(on_cpu, utterance)
    codes, samples = speak(runner, utterance)
    assert np.array_equal(codes, expected)
    assert np.abs(samples - expected_samples).max() < 1e-3 * np.abs(expected_samples).max()


def test_codes_do_not_depend_on_other_rows(folder: Path, mode: dict[str, Any]) -> None:
    runner = make(folder, **mode)
    request = speech("The same words beside other rows.", seed=5, frames=20)
    expected = alone(runner, request)
    driver = Driver(runner)
    for row in range(7):
        driver.start(row, speech(f"Another request, number {row}.", seed=row, frames=10 + row))
        driver.iterate()
    driver.start(7, request)
    driver.finish()
    assert np.array_equal(driver.frames(7), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_samples(folder: Path, mode: dict[str, Any], dtype: torch.dtype) -> None:
    codes, samples = speak(make(folder, dtype=dtype, **mode), speech("In half the bytes.", frames=20))
    assert len(codes) == 20
    assert np.isfinite(samples).all()
    assert samples.std() > 0


@pytest.mark.skipif(ON_CUDA and torch.cuda.device_count() < 2, reason="one CUDA device")
def test_split_over_two_devices_gives_the_same_codes(folder: Path, on_cpu: CsmRunner) -> None:
    stages = (Stage(DEVICE, 1), Stage(torch.device(DEVICE.type, 1), 1))
    utterance = speech("Half of the model is elsewhere.", sampling=GREEDY, frames=30)
    assert np.array_equal(alone(make(folder, device=DEVICE, stages=stages), utterance), alone(on_cpu, utterance))


@pytest.mark.skipif(ON_CUDA and torch.cuda.device_count() < 2, reason="one CUDA device")
def test_captured_split_gives_the_same_codes(folder: Path, on_cpu: CsmRunner) -> None:
    stages = (Stage(DEVICE, 1), Stage(torch.device(DEVICE.type, 1), 1))
    split = make(folder, device=DEVICE, stages=stages, capture=SplitCapture([stage.device for stage in stages]))
    assert dict(split.setup)["recorded"] is True
    utterance = speech("Half of the graphs are elsewhere.", sampling=GREEDY, frames=30)
    assert np.array_equal(alone(split, utterance), alone(on_cpu, utterance))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.7)])
def test_moved_row_continues_with_the_same_codes(folder: Path, mode: dict[str, Any], sampling: Sampling) -> None:
    runner = make(folder, **mode)
    request = speech("From a high row to a low one.", seed=5, frames=24, sampling=sampling)
    expected = alone(runner, request)
    driver = Driver(runner)
    driver.start(7, request)
    for target in (4, 1, 0):
        for _ in range(5):
            driver.iterate()
        driver.move(driver.speaking[0], target)
    driver.finish()
    assert np.array_equal(driver.frames(0), expected)


def test_lines_and_cancelled_rows_are_correct_with_steps_in_flight(folder: Path, on_cpu: CsmRunner) -> None:
    """A row is cancelled and reused while steps of other rows are in flight."""
    runner = make(folder, device=DEVICE, capture=GraphCapture(DEVICE))
    lines = Utterance(speech("One.").lines + speech("And two.").lines, GREEDY, 1, 40 * FRAME_S)
    driver = Driver(runner)
    driver.start(0, speech("This is cancelled.", frames=200))
    driver.start(1, lines)
    for _ in range(5):
        driver.iterate()
    driver.stop(0)
    driver.start(0, lines)
    driver.finish()
    expected = alone(on_cpu, lines)
    assert np.array_equal(driver.frames(0), expected)
    assert np.array_equal(driver.frames(1), expected)


class Small(GraphCapture):
    """A capture that runs out of memory the first time, after the body has run."""

    failed = False

    def _capture(self, body: Callable[[], None]) -> Callable[[], None]:
        if not self.failed:
            self.failed = True
            body()
            raise torch.OutOfMemoryError("no memory")
        return super()._capture(body)


@pytest.mark.skipif(not ON_CUDA, reason="other devices capture nothing")
def test_short_memory_reduces_the_rows(folder: Path, on_cpu: CsmRunner) -> None:
    runner = make(folder, device=DEVICE, capture=Small(DEVICE))
    assert runner.max_rows == 4
    assert torch.cuda.current_stream(DEVICE) == torch.cuda.default_stream(DEVICE)
    utterance = speech("As ever.", sampling=GREEDY, frames=20)
    assert np.array_equal(alone(runner, utterance, row=3), alone(on_cpu, utterance))
