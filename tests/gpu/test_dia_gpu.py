"""Dia on a CUDA device against the same model on the CPU: `make gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.dia.runner import DiaRunner
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling, Utterance
from tests.support.driver import Driver
from tests.support.random_dia import fabricate_dia
from tests.unit.test_dia_runner import make, prompt, speech

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda", 0)
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


@pytest.fixture(params=["plain", "recorded", "in bursts"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a runner: each step launched anew, or recorded once and replayed, one or several at a time."""
    if request.param == "plain":
        return {"device": CUDA}
    return {"device": CUDA, "capture": GraphCapture(CUDA), "burst": 8 if request.param == "in bursts" else 1}


def heard(runner: DiaRunner, utterance: Utterance, row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """codes (T, C) and samples (N,)."""
    driver = Driver(runner)
    driver.start(row, utterance)
    driver.finish()
    return driver.frames(row), np.concatenate(driver.chunks[row])


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
def test_the_tokens_and_the_sound_of_a_cpu(folder: Path, how: dict[str, Any], sampling: Sampling) -> None:
    utterance = speech("The same words on another device.", sampling=sampling, frames=60, prompt=prompt())
    expected, sound_there = heard(make(folder), utterance)
    codes, sound = heard(make(folder, **how), utterance)
    assert np.array_equal(codes, expected)
    assert np.abs(sound - sound_there).max() < 1e-3 * max(1e-3, np.abs(sound_there).max())


def test_a_seeded_request_does_not_depend_on_its_company(folder: Path, how: dict[str, Any]) -> None:
    runner = make(folder, **how)
    mine = speech("What I say, whoever else is speaking.", seed=5, frames=40)
    expected, _ = heard(runner, mine, row=5)
    driver = Driver(runner)
    for row in range(5):
        driver.start(row, speech(f"Somebody else, number {row}.", seed=row, frames=20 + row))
        driver.iterate()
    driver.start(5, mine)
    driver.finish()
    assert np.array_equal(driver.frames(5), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_speaks(folder: Path, how: dict[str, Any], dtype: torch.dtype) -> None:
    codes, sound = heard(make(folder, dtype=dtype, **how), speech("In half the bytes.", frames=60))
    assert len(codes)
    assert np.isfinite(sound).all()
    assert sound.std() > 0
