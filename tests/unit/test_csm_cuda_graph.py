"""Frames recorded once and replayed say what frames computed one after another say.

Without a CUDA device nothing is recorded, but the same fixed work runs, over the same tensors, a step ahead of what it
tells. That it would run on a CUDA device is shown with tensors that have a device and a shape but no contents: whoever
asks for a number, or mixes devices, fails.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.csm.config import parse_config
from app.engines.csm.cuda_graph import BucketKey, CsmCudaGraph
from app.engines.csm.limits import Guards
from app.engines.csm.model import CsmModel
from app.engines.csm.runner import CsmRunner
from app.nn.kernels.choice import TORCH, compiled_kernels
from app.nn.kv_cache import KVCache
from app.nn.mimi.config import read_mimi_config
from app.nn.mimi.model import MimiDecoder
from app.runtime.cuda_graphs import WARM_UPS, GraphCapture, _is_out_of_memory
from app.types import Sampling, Utterance
from tests.support.driver import Driver
from tests.support.random_csm import csm_config, fabricate_csm
from tests.support.recordable import META, operations
from tests.unit.test_csm_runner import FRAME_S, AlwaysEos, alone, lines, make, prompt, speech, stubborn

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("csm"))


class AsOnAGpu(GraphCapture):
    """Calls what it records, as often as a CUDA device would be made to: it may leave nothing behind."""

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_UPS):
            body()
        return super().capture(body)


def captured(folder: Path, **options: object) -> CsmRunner:
    return make(folder, **{"capture": GraphCapture(CPU), **options})


@pytest.fixture(scope="module")
def runner(folder: Path) -> CsmRunner:
    return captured(folder, capture=AsOnAGpu(CPU))


@pytest.fixture(scope="module")
def plain(folder: Path) -> CsmRunner:
    return make(folder)


REQUESTS = [
    speech("One.", 1, 14),
    speech("Two is greedy.", 2, 12, sampling=Sampling(temperature=0.0)),
    speech("Three is hot.", 3, 9, sampling=Sampling(temperature=1.5, top_k=0)),
    speech("Four is narrow.", 4, 11, sampling=Sampling(top_k=3)),
    speech("Five takes the likely ones.", 5, 8, sampling=Sampling(top_p=0.6)),
    speech("Six takes many.", 6, 10, sampling=Sampling(top_k=63, top_p=0.9)),
    speech("Seven is long. " * 20, 7, 13),
]


def test_the_same_codes_and_sound(runner: CsmRunner, plain: CsmRunner) -> None:
    for request in [*REQUESTS, speech("With a voice.", 8, 10, prompt=prompt(plain))]:
        drivers = [Driver(some) for some in (plain, runner)]
        for driver in drivers:
            driver.start(2, request)
            driver.finish()
        ours, theirs = drivers
        assert np.array_equal(ours.frames(2), theirs.frames(2)), request.lines[0].text
        assert np.abs(ours.samples(2) - theirs.samples(2)).max() < 1e-5


def test_company_changes_nothing(runner: CsmRunner, plain: CsmRunner) -> None:
    """At different times, in any row, with pauses and one who leaves: calls of every size come to pass."""
    expected = [alone(plain, request) for request in REQUESTS]
    driver = Driver(runner)
    rows = [5, 2, 7, 0, 3, 1, 6]
    random = np.random.default_rng(0)
    for turn, (row, request) in enumerate(zip(rows, REQUESTS, strict=True)):
        driver.start(row, request)
        driver.iterate(frozenset(random.choice(8, 2).tolist()))
        if turn == 4:
            driver.stop(5)
            driver.start(5, REQUESTS[0])
    driver.finish()
    for row, codes in zip(rows, expected, strict=True):
        assert np.array_equal(driver.frames(row), codes), row
    sounds = [driver.samples(row) for row in rows]
    for row, request in enumerate(REQUESTS):
        alone_in_it = Driver(runner)
        alone_in_it.start(row, request)
        alone_in_it.finish()
        assert np.abs(alone_in_it.samples(row) - sounds[row]).max() < 1e-5


def test_lines_follow_in_place(folder: Path) -> None:
    """The end of a line is seen on the device, and nothing that was on its way behind it is heard."""
    spoken = lines("First line.", "Second line.", "Third.")
    request = Utterance(spoken, Sampling(temperature=0.0), 1, 24 * FRAME_S)
    said = []
    for some in (make(folder), captured(folder)):
        stubborn(some, {6, 13})
        said.append(alone(some, request))
    ours, theirs = said
    assert len(ours) == 24
    # The recorded frame went on being called while the host read of the end, so the draws are not counted alike; up to
    # the first forced end they are.
    assert np.array_equal(ours[:6], theirs[:6])
    assert len(theirs) == 24


def test_a_line_that_reaches_its_limit_goes_on_alike(folder: Path) -> None:
    guards = Guards(min_frames=2, frames_per_token=0, slack_frames=7)
    request = Utterance(lines("First line.", "Second.", "And the third."), Sampling(), 1, 60.0)
    ours, theirs = (alone(some, request) for some in (make(folder, guards=guards), captured(folder, guards=guards)))
    assert len(ours) == 21
    assert np.array_equal(ours, theirs)


def test_guards(folder: Path) -> None:
    """No end in the first frames; a model that repeats itself is ended, and what it had on its way is dropped."""
    guards = Guards(min_frames=4, frames_per_token=1, slack_frames=5)
    counted: list[str] = []
    some = captured(folder, guards=guards, on_guard=counted.append)
    some.model.head = AlwaysEos()
    codes = alone(some, speech("Never ends.", frames=999))
    assert (codes[:4, 0] != 0).all()
    assert (codes[4:, 0] == 0).all()
    assert counted.count("early_end") == 4

    class Same(torch.nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(h), 64)
            logits[:, 7] = 100.0
            return logits

    said = []
    for stuck in (make(folder, guards=Guards()), captured(folder, guards=Guards())):
        stuck.model.head = Same()
        for i in range(len(stuck.model.heads)):
            stuck.model.heads[i] = Same()
        said.append(alone(stuck, Utterance(lines("One line.", "Another."), Sampling(), 1, 60.0)))
    assert np.array_equal(*said)


@pytest.mark.parametrize("capture", [False, True])
def test_numbers_that_go_wrong_are_one_rows_affair(folder: Path, capture: bool) -> None:
    """NaN in a row ends that row; the others, and who takes the row next, are none the wiser."""
    some = captured(folder) if capture else make(folder)
    expected = alone(some, REQUESTS[0])
    driver = Driver(some)
    driver.start(0, REQUESTS[0])
    driver.start(1, speech("This one breaks.", 3, 30))
    for _ in range(4):
        driver.iterate()
    some._next[1] = math.nan
    driver.finish()
    assert driver.non_finite == [1]
    assert len(driver.codes[1]) < 10
    assert np.array_equal(driver.frames(0), expected)
    driver.start(1, REQUESTS[0])
    driver.finish()
    assert np.array_equal(driver.frames(1), expected)
    assert np.isfinite(driver.samples(1)).all()


def test_a_released_row_says_no_more(runner: CsmRunner, plain: CsmRunner) -> None:
    """What was on its way for one who left is not told to one who comes."""
    driver = Driver(runner)
    driver.start(0, speech("Who leaves.", 1, 30))
    for _ in range(3):
        driver.iterate()
    driver.stop(0)
    driver.start(0, REQUESTS[1])
    driver.finish()
    assert np.array_equal(driver.frames(0), alone(plain, REQUESTS[1]))


def on_meta(size: str, rows: int) -> CsmCudaGraph:
    raw = csm_config(size)
    model = CsmModel(parse_config(raw), device=META, dtype=torch.bfloat16)
    decoder = MimiDecoder(read_mimi_config(raw["codec_config"]), rows=rows, device=META)
    cache = model.kv_cache(rows, batched=True, scratch=1)
    assert isinstance(cache, KVCache)
    inputs = torch.zeros(rows, model.config.backbone.width, device=META, dtype=model.dtype)
    return CsmCudaGraph(model, decoder, cache, model.depth_kv_cache(rows), inputs)


@pytest.mark.parametrize("fast_path", [False, True])
def test_nothing_is_asked_of_the_host(fast_path: bool) -> None:
    frames = on_meta("tiny", 8)
    with torch.inference_mode():
        for rows in (1, 4, 8):
            assert operations(lambda n=rows: frames.advance(n, BucketKey(512, fast_path=fast_path), TORCH)) > 1000  # type: ignore[misc]


def test_the_check_would_see_it() -> None:
    with torch.inference_mode(), pytest.raises(AssertionError, match="waits for the device"):
        operations(lambda: print(bool(torch.ones(3, device=META).sum() > 1)))
    with torch.inference_mode(), pytest.raises(AssertionError, match="host"):
        operations(lambda: print(torch.zeros(4, device=META)[torch.tensor([1, 2])]))


def test_without_memory_for_many_rows_it_starts_with_fewer(folder: Path) -> None:
    """An 8 GB card: what does not fit is not recorded, and the runner has so many rows less."""

    class Small(GraphCapture):
        asked = 0

        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            self.asked += 1
            if self.asked in (1, 4):  # eight rows do not fit, nor, after two forms of it, do four
                raise torch.OutOfMemoryError
            return super().capture(body)

    some = make(folder, capture=Small(CPU))
    assert some.max_rows == 2
    assert dict(some.setup)["graphs"] == 2 * 5
    assert np.array_equal(alone(some, REQUESTS[0], row=1), alone(make(folder), REQUESTS[0]))

    class Nothing(GraphCapture):
        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        make(folder, capture=Nothing(CPU))


def test_what_it_says_of_itself(runner: CsmRunner, plain: CsmRunner) -> None:
    said = dict(runner.setup)
    assert said["recorded"] is True
    assert said["recorded_rows"] == runner.max_rows == 8
    assert said["kernels"] == "torch"
    assert said["graphs"] == 4 * 5  # 1, 2, 4, 8 rows; four lengths, and one for uncommon knobs
    assert dict(plain.setup) == {"recorded": False}


def test_the_faster_kernels_are_taken(folder: Path) -> None:
    """Timed on the device, so what is faster there is taken, and says the same."""

    def slow(*rest: Any) -> Any:
        time.sleep(0.002)
        return TORCH.gate(*rest)

    sluggish = dataclasses.replace(TORCH, name="triton", gate=slow)
    some = make(folder, capture=GraphCapture(CPU), kernels=(sluggish, TORCH))
    assert dict(some.setup)["kernels"] == "torch"
    assert set(some._graph.steps.kernel_seconds) == {"torch", "triton"}  # type: ignore[union-attr]
    assert np.array_equal(alone(some, REQUESTS[0]), alone(make(folder), REQUESTS[0]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_compiler_makes_of_them_says_the_same(folder: Path, plain: CsmRunner) -> None:
    some = make(folder, capture=GraphCapture(CPU), kernels=(compiled_kernels(),), max_rows=2)
    assert dict(some.setup)["kernels"] == "compiled"
    for request in REQUESTS[:5]:
        assert np.array_equal(alone(some, request), alone(plain, request))


def test_lack_of_memory_is_known_behind_another_error() -> None:
    def cut_short() -> None:
        try:
            raise torch.OutOfMemoryError("no room")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="capture") as caught:
        cut_short()
    assert _is_out_of_memory(caught.value)
    assert not _is_out_of_memory(RuntimeError("an illegal address"))
