"""CSM on a CUDA device against the same model on the CPU: `python -m pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engines.csm import CsmRunner
from app.models.layers import Stage
from app.types import Sampling, Utterance
from bench.fabricate import fabricate_csm
from tests.driver import Driver
from tests.unit.test_csm_runner import alone, make, prompt, speech

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda", 0)
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


def heard(runner: CsmRunner, utterance: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """codes (T, K) and samples (N,)."""
    driver = Driver(runner)
    driver.start(0, utterance)
    driver.finish()
    return driver.said(0), np.concatenate(driver.sounds[0])


def test_the_tokens_and_the_sound_of_a_cpu(folder: Path, on_cpu: CsmRunner) -> None:
    runner = make(folder, device=CUDA)
    utterance = speech("The same words on another device.", sampling=GREEDY, frames=40, prompt=prompt(on_cpu))
    expected, sound_there = heard(on_cpu, utterance)
    codes, sound = heard(runner, utterance)
    assert np.array_equal(codes, expected)
    assert np.abs(sound - sound_there).max() < 1e-3 * np.abs(sound_there).max()


def test_a_seeded_request_does_not_depend_on_its_company(folder: Path) -> None:
    runner = make(folder, device=CUDA)
    mine = speech("What I say, whoever else is speaking.", seed=5, frames=20)
    expected = alone(runner, mine)
    driver = Driver(runner)
    for row in range(7):
        driver.start(row, speech(f"Somebody else, number {row}.", seed=row, frames=10 + row))
        driver.turn()
    driver.start(7, mine)
    driver.finish()
    assert np.array_equal(driver.said(7), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_speaks(folder: Path, dtype: torch.dtype) -> None:
    codes, sound = heard(make(folder, device=CUDA, dtype=dtype), speech("In half the bytes.", frames=20))
    assert len(codes) == 20
    assert np.isfinite(sound).all()
    assert sound.std() > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_split_over_two_devices(folder: Path, on_cpu: CsmRunner) -> None:
    stages = (Stage(CUDA, 1), Stage(torch.device("cuda", 1), 1))
    utterance = speech("Half of me is elsewhere.", sampling=GREEDY, frames=30)
    assert np.array_equal(alone(make(folder, device=CUDA, stages=stages), utterance), alone(on_cpu, utterance))
