"""Dia gives the same codes on a CUDA device as on the CPU: `make gpu` on a machine with a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.dia.runner import DiaRunner
from app.nn.dac.precision import BOUND_DB
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling, Utterance
from tests.gpu.device import DEVICE, GPU, kernels
from tests.support.dia_requests import make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_dia import fabricate_dia

pytestmark = GPU

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(autouse=True, scope="module")
def _exact() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module", params=["0626", "v0.1"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = "transformers" if request.param == "0626" else "nari"
    return fabricate_dia(tmp_path_factory.mktemp("dia"), release=request.param, layout_name=layout)


@pytest.fixture(params=["eager", "graph", "in bursts", "triton", "triton-linear", "triton-pdl"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of a runner: eager steps, or steps replayed from a CUDA graph, one or several at a time."""
    if request.param == "eager":
        return {"device": DEVICE}
    graph = {"device": DEVICE, "capture": GraphCapture(DEVICE)}
    if request.param.startswith("triton"):
        return graph | {"kernels": (kernels(request.param),)}
    return graph | {"burst": 8 if request.param == "in bursts" else 1}


def speak(runner: DiaRunner, utterance: Utterance, row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Speak one utterance; return its codes (T, C) and samples (N,)."""
    driver = Driver(runner)
    driver.start(row, utterance)
    driver.finish()
    return driver.frames(row), np.concatenate(driver.chunks[row])


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
def test_codes_and_samples_equal_those_of_the_cpu(folder: Path, mode: dict[str, Any], sampling: Sampling) -> None:
    utterance = speech("The same words on another device.", sampling=sampling, frames=60, prompt=prompt())
    expected, expected_samples = speak(make(folder), utterance)
    codes, samples = speak(make(folder, **mode), utterance)
    assert np.array_equal(codes, expected)
    assert np.abs(samples - expected_samples).max() < 1e-3 * max(1e-3, np.abs(expected_samples).max())


def test_codes_do_not_depend_on_other_rows(folder: Path, mode: dict[str, Any]) -> None:
    runner = make(folder, **mode)
    request = speech("The same words beside other rows.", seed=5, frames=40)
    expected, _ = speak(runner, request, row=5)
    driver = Driver(runner)
    for row in range(5):
        driver.start(row, speech(f"Another request, number {row}.", seed=row, frames=20 + row))
        driver.iterate()
    driver.start(5, request)
    driver.finish()
    assert np.array_equal(driver.frames(5), expected)


def test_moved_row_continues_with_the_same_codes(folder: Path, mode: dict[str, Any]) -> None:
    runner = make(folder, **mode)
    request = speech("From a high row to a low one.", seed=5, frames=60)
    expected, _ = speak(runner, request)
    driver = Driver(runner)
    driver.start(5, request)
    for target in (3, 1, 0):
        for _ in range(9):
            driver.iterate()
        driver.move(driver.speaking[0], target)
    driver.finish()
    assert np.array_equal(driver.frames(0), expected)


def test_error_of_the_codec_in_half_precision_is_below_the_bound(folder: Path) -> None:
    runner = make(folder, device=DEVICE, codec_dtype="auto")
    facts = dict(runner.setup)
    assert facts["codec_dtype"] == "float16"
    assert float(str(facts["codec_error_db"])) < BOUND_DB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_samples(folder: Path, mode: dict[str, Any], dtype: torch.dtype) -> None:
    codes, samples = speak(make(folder, dtype=dtype, **mode), speech("In half the bytes.", frames=60))
    assert len(codes)
    assert np.isfinite(samples).all()
    assert samples.std() > 0
