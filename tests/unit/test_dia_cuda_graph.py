"""Steps recorded once and replayed say what steps computed one after another say: see test_csm_cuda_graph.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engines.dia.config import parse_config
from app.engines.dia.cuda_graph import BucketKey, DiaCudaGraph
from app.engines.dia.delay import DelayPattern
from app.engines.dia.limits import Guards
from app.engines.dia.model import DiaModel
from app.engines.dia.runner import DiaRunner
from app.nn.kernels.choice import TORCH
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling
from tests.support.driver import Driver
from tests.support.random_dia import SHAPES, dia_config, dia_config_v01, fabricate_dia
from tests.support.recordable import META, operations
from tests.unit.test_csm_cuda_graph import AsOnAGpu
from tests.unit.test_dia_runner import REQUESTS, alone, make, speech

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
BURST = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("dia"))


def captured(folder: Path, **options: object) -> DiaRunner:
    return make(folder, **{"capture": GraphCapture(CPU), "burst": BURST, **options})


@pytest.fixture(scope="module")
def runner(folder: Path) -> DiaRunner:
    return captured(folder, capture=AsOnAGpu(CPU))


@pytest.fixture(scope="module")
def plain(folder: Path) -> DiaRunner:
    return make(folder)


MORE = [*REQUESTS, speech("Seven takes a great many.", 7, 18, sampling=Sampling(top_k=500, top_p=0.95))]


@pytest.mark.parametrize("index", range(len(MORE)))
def test_the_same_codes_and_sound(runner: DiaRunner, plain: DiaRunner, index: int) -> None:
    drivers = [Driver(some) for some in (plain, runner)]
    for driver in drivers:
        driver.start(1, MORE[index])
        driver.finish()
    ours, theirs = drivers
    assert len(ours.frames(1)) > 10
    assert np.array_equal(ours.frames(1), theirs.frames(1))
    assert np.array_equal(ours.samples(1), theirs.samples(1))


@pytest.mark.parametrize("burst", [1, 3])
def test_a_burst_is_nobodys_business(folder: Path, plain: DiaRunner, burst: int) -> None:
    some = captured(folder, burst=burst, capture=AsOnAGpu(CPU), max_rows=2)
    for request in MORE[:3]:
        assert np.array_equal(alone(some, request), alone(plain, request))


def test_company_changes_nothing(runner: DiaRunner, plain: DiaRunner) -> None:
    expected = [alone(plain, request) for request in MORE]
    driver = Driver(runner)
    random = np.random.default_rng(0)
    rows = [2, 0, 3, 1]
    for row, request in zip(rows, MORE, strict=False):
        driver.start(row, request)
        for _ in range(int(random.integers(1, 9))):
            driver.iterate(frozenset(random.choice(4, 1).tolist()))
    driver.stop(2)  # the first is gone, and somebody else comes
    driver.start(2, MORE[5])
    driver.finish()
    for row, codes in zip(rows, (expected[5], *expected[1:4]), strict=True):
        assert np.array_equal(driver.frames(row), codes), row


@pytest.mark.parametrize(("release", "seed"), [("0626", 4), ("v0.1", 6)])
def test_both_releases_end_by_themselves(tmp_path: Path, release: str, seed: int) -> None:
    """The end is seen on the device; what would have been the end before anything was said is counted."""
    folder = fabricate_dia(tmp_path, release=release, layout_name="nari", eos=True)
    counts: list[list[str]] = []
    said = []
    for capture in (False, True):
        counted: list[str] = []
        make_it: Callable[..., DiaRunner] = captured if capture else make
        some = make_it(folder, guards=Guards(min_s=0.05), on_guard=counted.append)
        said.append(alone(some, speech("It ends.", seed, 300)))
        counts.append(counted)
    assert np.array_equal(*said)
    assert 0 < len(said[0]) < 300
    assert counts[0] == counts[1]


@pytest.mark.parametrize("capture", [False, True])
def test_numbers_that_go_wrong_are_one_rows_affair(folder: Path, capture: bool) -> None:
    some = captured(folder) if capture else make(folder)
    expected = alone(some, REQUESTS[0])
    driver = Driver(some)
    driver.start(0, REQUESTS[0])
    driver.start(1, speech("This one breaks.", 3, 60))
    for _ in range(20):
        driver.iterate()
    some._cache.audio.k[:, 2:4, :, :3] = math.nan
    driver.finish()
    assert driver.non_finite == [1]
    assert np.array_equal(driver.frames(0), expected)
    driver.start(1, REQUESTS[0])
    driver.finish()
    assert np.array_equal(driver.frames(1), expected)


@pytest.mark.parametrize("fast_path", [False, True])
@pytest.mark.parametrize("release", ["0626", "v0.1"])
def test_nothing_is_asked_of_the_host(fast_path: bool, release: str) -> None:
    config = parse_config(dia_config(SHAPES["tiny"]) if release == "0626" else dia_config_v01(SHAPES["tiny"]))
    model = DiaModel(config, device=META, dtype=torch.bfloat16)
    cache = model.cache(8, batched=True, scratch=1)
    frames = DiaCudaGraph(model, cache, DelayPattern(config, 8, META), rows=8, burst=2)
    with torch.inference_mode():
        for rows in (1, 4, 8):
            assert operations(lambda n=rows: frames.advance(n, BucketKey(64, 64, fast_path), TORCH)) > 100  # type: ignore[misc]


def test_without_memory_for_many_rows_it_starts_with_fewer(folder: Path, plain: DiaRunner) -> None:
    class Small(GraphCapture):
        asked = 0

        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            self.asked += 1
            if self.asked == 1:
                raise torch.OutOfMemoryError
            return super().capture(body)

    some = make(folder, capture=Small(CPU))
    assert some.max_rows == 4 < plain.max_rows
    assert dict(some.setup)["recorded_rows"] == some.max_rows
    assert np.array_equal(alone(some, REQUESTS[0], row=some.max_rows - 1), alone(plain, REQUESTS[0]))
