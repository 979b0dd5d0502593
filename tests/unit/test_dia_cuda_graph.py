"""Steps from a replayed CUDA graph are equal to eager steps. See test_csm_cuda_graph.py."""

from __future__ import annotations

import dataclasses
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
from app.nn.dac.config import parse_dac_config
from app.nn.dac.model import DacDecoder, DacEncoder
from app.nn.kernels.sets import TORCH
from app.nn.transformer import Stack
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling
from tests.support.dia_requests import alone, make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_dia import SHAPES, dac_config, dia_config, dia_config_v01, fabricate_dia
from tests.support.recordable import META, OnlyPinnedUploads, operations
from tests.unit.test_csm_cuda_graph import RunningCapture
from tests.unit.test_dia_runner import REQUESTS

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
BURST = 4


def captured(folder: Path, **options: object) -> DiaRunner:
    return make(folder, **{"capture": GraphCapture(CPU), "burst": BURST, **options})


@pytest.fixture(scope="module")
def runner(tiny_dia: Path) -> DiaRunner:
    return captured(tiny_dia, capture=RunningCapture(CPU))


@pytest.fixture(scope="module")
def eager(tiny_dia: Path) -> DiaRunner:
    return make(tiny_dia)


ALL_REQUESTS = [*REQUESTS, speech("Seven takes many.", 7, 18, sampling=Sampling(top_k=500, top_p=0.95))]


@pytest.mark.parametrize("index", range(len(ALL_REQUESTS)))
def test_graph_gives_the_codes_and_samples_of_eager_steps(runner: DiaRunner, eager: DiaRunner, index: int) -> None:
    drivers = [Driver(some) for some in (eager, runner)]
    for driver in drivers:
        driver.start(1, ALL_REQUESTS[index])
        driver.finish()
    ours, theirs = drivers
    assert len(ours.frames(1)) > 10
    assert np.array_equal(ours.frames(1), theirs.frames(1))
    assert np.array_equal(ours.samples(1), theirs.samples(1))


@pytest.mark.parametrize("index", range(len(ALL_REQUESTS)))
def test_steps_with_kernels_for_linear_layers_give_the_same_codes(
    tiny_dia: Path, eager: DiaRunner, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(Stack, "decode_stage", lambda *_: calls.append(1))  # the form for other kernels is not used
    some = captured(tiny_dia, kernels=(dataclasses.replace(TORCH, name="triton-linear"),), max_rows=2)
    monkeypatch.undo()
    assert not calls
    assert np.array_equal(alone(some, ALL_REQUESTS[index], row=1), alone(eager, ALL_REQUESTS[index]))


@pytest.mark.parametrize("burst", [1, 3])
def test_burst_size_does_not_change_the_result(tiny_dia: Path, eager: DiaRunner, burst: int) -> None:
    some = captured(tiny_dia, burst=burst, capture=RunningCapture(CPU), max_rows=2)
    for request in ALL_REQUESTS[:3]:
        assert np.array_equal(alone(some, request), alone(eager, request))


def test_other_rows_do_not_change_the_result(runner: DiaRunner, eager: DiaRunner) -> None:
    expected = [alone(eager, request) for request in ALL_REQUESTS]
    driver = Driver(runner)
    random = np.random.default_rng(0)
    rows = [2, 0, 3, 1]
    for row, request in zip(rows, ALL_REQUESTS, strict=False):
        driver.start(row, request)
        for _ in range(int(random.integers(1, 9))):
            driver.iterate(frozenset(random.choice(4, 1).tolist()))
    driver.stop(2)  # the request is cancelled; another request takes the row
    driver.start(2, ALL_REQUESTS[5])
    driver.finish()
    for row, codes in zip(rows, (expected[5], *expected[1:4]), strict=True):
        assert np.array_equal(driver.frames(row), codes), row


@pytest.mark.parametrize("capture", [False, True])
def test_moved_rows_continue_with_the_same_codes_and_samples(
    tiny_dia: Path, runner: DiaRunner, eager: DiaRunner, capture: bool
) -> None:
    """Rows move to lower rows between any two steps: with steps in flight, with results that are partly read, and while
    paused."""
    some = runner if capture else make(tiny_dia)
    chosen = [ALL_REQUESTS[0], ALL_REQUESTS[3], speech("With a voice.", 9, 40, prompt=prompt())]
    driver = Driver(some)
    rows = dict(zip((3, 5, 4), range(3), strict=True))  # row -> request
    for row, request in rows.items():
        driver.start(row, chosen[request])
    random = np.random.default_rng(3)
    moved = 0
    for iteration in range(150):
        driver.iterate(frozenset(random.choice(6, 1).tolist()))
        free = [row for row in range(6) if row not in (*driver.speaking, *rows)]
        source = max(driver.speaking, default=0)
        if iteration % 5 == 4 and free and free[0] < source:
            driver.move(source, free[0])
            rows[free[0]] = rows.pop(source)
            moved += 1
    driver.finish()
    assert moved >= 3
    for row, request in rows.items():
        lone = Driver(eager)
        lone.start(0, chosen[request])
        lone.finish()
        assert np.array_equal(driver.frames(row), lone.frames(0)), request
        assert np.abs(driver.samples(row) - lone.samples(0)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("release", "seed"), [("0626", 4), ("v0.1", 6)])
def test_both_releases_end_as_in_eager_steps(tmp_path: Path, release: str, seed: int) -> None:
    """The device detects the end. EOS in the first steps is suppressed and counted."""
    folder = fabricate_dia(tmp_path, release=release, layout_name="nari", eos=True)
    counts: list[list[str]] = []
    found = []
    for capture in (False, True):
        counted: list[str] = []
        make_runner: Callable[..., DiaRunner] = captured if capture else make
        some = make_runner(folder, guards=Guards(min_s=0.05), on_guard=counted.append)
        found.append(alone(some, speech("It ends.", seed, 300)))
        counts.append(counted)
    assert np.array_equal(*found)
    assert 0 < len(found[0]) < 300
    assert counts[0] == counts[1]


@pytest.mark.parametrize("capture", [False, True])
def test_nan_ends_only_its_own_row(tiny_dia: Path, capture: bool) -> None:
    some = captured(tiny_dia) if capture else make(tiny_dia)
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
def test_step_reads_nothing_back_to_the_host(fast_path: bool, release: str) -> None:
    config = parse_config(dia_config(SHAPES["tiny"]) if release == "0626" else dia_config_v01(SHAPES["tiny"]))
    model = DiaModel(config, device=META, dtype=torch.bfloat16)
    cache = model.cache(8, batched=True, scratch=1)
    frames = DiaCudaGraph(model, cache, DelayPattern(config, 8, META), rows=8, burst=2)
    with torch.inference_mode():
        for rows in (1, 4, 8):
            assert operations(lambda n=rows: frames.advance(n, BucketKey(64, 64, fast_path), TORCH)) > 100  # type: ignore[misc]


def test_prefill_does_not_wait_for_queued_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script and the recordings are copied to the device from pinned memory."""
    config = parse_config(dia_config(SHAPES["tiny"]))
    model = DiaModel(config, device=META, dtype=torch.bfloat16)
    codec = parse_dac_config(dac_config("tiny"))
    with META:
        encoder = DacEncoder(codec)
    some = DiaRunner(model, encoder, DacDecoder(codec, rows=2, codebooks=9, device=META), max_rows=2, chunk=16)
    mode = OnlyPinnedUploads()
    monkeypatch.setattr("app.engines.dia.runner.upload", mode.upload)
    with torch.inference_mode(), mode:
        some.admit(1, speech("With a voice.", prompt=prompt(frames=40)))
        while not some.prefill(1):
            pass
    assert mode.uploads == 2


def test_failed_capture_on_an_amd_gpu_runs_without_graphs(
    tiny_dia: Path, eager: DiaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMD GPUs were never tested. On an NVIDIA GPU, the same error ends the start."""

    class Refusing(GraphCapture):
        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("HIP error: operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="HIP error"):
        captured(tiny_dia, capture=Refusing(CPU))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    some = captured(tiny_dia, capture=Refusing(CPU))
    facts = dict(some.setup)
    assert facts["recorded"] is False
    assert "on an AMD GPU could not be captured: HIP error: operation not permitted" in str(facts["recorded_reason"])
    assert np.array_equal(alone(some, REQUESTS[0]), alone(eager, REQUESTS[0]))


def test_short_memory_reduces_the_rows(tiny_dia: Path, eager: DiaRunner) -> None:
    class Small(GraphCapture):
        calls = 0

        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            self.calls += 1
            if self.calls == 1:
                raise torch.OutOfMemoryError
            return super().capture(body)

    some = make(tiny_dia, capture=Small(CPU))
    assert some.max_rows == 4 < eager.max_rows
    assert dict(some.setup)["recorded_rows"] == some.max_rows
    assert np.array_equal(alone(some, REQUESTS[0], row=some.max_rows - 1), alone(eager, REQUESTS[0]))


@pytest.mark.parametrize("burst", [1, 2, 8])
def test_warm_up_reaches_the_codec(tiny_dia: Path, burst: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = DacDecoder.decode

    def counting(self: DacDecoder, rows: list[int], codes: torch.Tensor) -> object:
        decoded.append(codes.shape[-1])
        return decode(self, rows, codes)

    monkeypatch.setattr(DacDecoder, "decode", counting)
    make(tiny_dia, capture=GraphCapture(CPU), burst=burst)
    assert decoded
