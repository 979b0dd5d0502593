"""Frames from a replayed CUDA graph are equal to frames from eager steps.

Without a CUDA device nothing is captured, but the same work of fixed shape runs on the same tensors, one step ahead of
its results. Tensors on the meta device show that the work could be captured: reading a value, or mixing devices, fails.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from app.engines.batched import BatchedEngine
from app.engines.csm.adapters import places_of
from app.engines.csm.config import parse_config
from app.engines.csm.cuda_graph import BucketKey, CsmCudaGraph
from app.engines.csm.limits import Guards, Limits
from app.engines.csm.model import CsmModel
from app.engines.csm.prefill import Prefill
from app.engines.csm.prompt import Segment
from app.engines.csm.rows import CsmRow
from app.engines.csm.runner import CsmRunner
from app.nn.kernels.sets import TORCH, Kernels, compiled_kernels
from app.nn.kv_cache import KVCache
from app.nn.low_rank import LowRankAdapters
from app.nn.mimi.config import read_mimi_config
from app.nn.mimi.model import MimiDecoder
from app.nn.transformer import Stack
from app.runtime.cuda_graphs import WARM_UPS, GraphCapture
from app.runtime.faults import is_out_of_memory
from app.runtime.sampling import SamplingParams
from app.types import Sampling, Utterance
from tests.support.csm_requests import FRAME_S, alone, in_parts, make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_csm import csm_config
from tests.support.recordable import META, OnlyPinnedUploads, operations
from tests.support.scripted_runner import info
from tests.unit.test_csm_runner import AlwaysEos, force_eos, lines

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")


class RunningCapture(GraphCapture):
    """Runs the body during the capture, as often as on a CUDA device.

    The runner must undo the effects of these runs.
    """

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_UPS):
            body()
        return super().capture(body)


def captured(folder: Path, **options: object) -> CsmRunner:
    return make(folder, **{"capture": GraphCapture(CPU), **options})


@pytest.fixture(scope="module")
def runner(tiny_csm: Path) -> CsmRunner:
    return captured(tiny_csm, capture=RunningCapture(CPU))


@pytest.fixture(scope="module")
def eager(tiny_csm: Path) -> CsmRunner:
    return make(tiny_csm)


REQUESTS = [
    speech("One.", 1, 14),
    speech("Two is greedy.", 2, 12, sampling=Sampling(temperature=0.0)),
    speech("Three is hot.", 3, 9, sampling=Sampling(temperature=1.5, top_k=0)),
    speech("Four is narrow.", 4, 11, sampling=Sampling(top_k=3)),
    speech("Five takes the likely ones.", 5, 8, sampling=Sampling(top_p=0.6)),
    speech("Six takes many.", 6, 10, sampling=Sampling(top_k=63, top_p=0.9)),
    speech("Seven is long. " * 20, 7, 13),
]


LINEAR = dataclasses.replace(TORCH, name="triton-linear")  # steps compute linear layers with the kernels of torch
PERSISTENT = dataclasses.replace(TORCH, name="persistent")  # and the depth decoder with one call of the torch kernel


def test_graph_gives_the_codes_and_samples_of_eager_steps(runner: CsmRunner, eager: CsmRunner) -> None:
    for request in [*REQUESTS, speech("With a voice.", 8, 10, prompt=prompt(eager))]:
        drivers = [Driver(some) for some in (eager, runner)]
        for driver in drivers:
            driver.start(2, request)
            driver.finish()
        ours, theirs = drivers
        assert np.array_equal(ours.frames(2), theirs.frames(2)), request.lines[0].text
        assert np.abs(ours.samples(2) - theirs.samples(2)).max() < 1e-5


def test_other_rows_do_not_change_the_result(runner: CsmRunner, eager: CsmRunner) -> None:
    """Requests start at different times in any row and pause, and one is cancelled. So launches of every size occur."""
    expected = [alone(eager, request) for request in REQUESTS]
    driver = Driver(runner)
    rows = [5, 2, 7, 0, 3, 1, 6]
    random = np.random.default_rng(0)
    for iteration, (row, request) in enumerate(zip(rows, REQUESTS, strict=True)):
        driver.start(row, request)
        driver.iterate(frozenset(random.choice(8, 2).tolist()))
        if iteration == 4:
            driver.stop(5)
            driver.start(5, REQUESTS[0])
    driver.finish()
    for row, codes in zip(rows, expected, strict=True):
        assert np.array_equal(driver.frames(row), codes), row
    samples = [driver.samples(row) for row in rows]
    for row, request in enumerate(REQUESTS):
        lone = Driver(runner)
        lone.start(row, request)
        lone.finish()
        assert np.abs(lone.samples(row) - samples[row]).max() < 1e-5


@pytest.mark.parametrize("capture", [False, True])
def test_moved_rows_continue_with_the_same_codes_and_samples(
    tiny_csm: Path, runner: CsmRunner, eager: CsmRunner, capture: bool
) -> None:
    """Rows move to lower rows between any two steps: with a step in flight, while paused, and between two lines."""
    some = runner if capture else make(tiny_csm)
    voiced = speech("With a voice.", 8, 10, prompt=prompt(eager))
    several = Utterance(lines("First line.", "Second.", "And the third."), Sampling(), 1, 40 * FRAME_S)
    requests = [REQUESTS[0], voiced, several, REQUESTS[4]]
    found, expected = [], []
    for moving in (False, True):
        driver = Driver(some)
        rows = dict(zip((4, 7, 5, 6), range(4), strict=True))  # row -> request
        for row, request in rows.items():
            driver.start(row, requests[request])
        random = np.random.default_rng(3)
        for iteration in range(60):
            paused = frozenset(random.choice(8, 2).tolist())
            driver.iterate(paused)
            free = [row for row in range(8) if row not in (*driver.speaking, *rows)]
            source = max(driver.speaking, default=0)
            if moving and iteration % 2 and free and free[0] < source:
                driver.move(source, free[0])
                rows[free[0]] = rows.pop(source)
        driver.finish()
        results = {request: (driver.frames(row), driver.samples(row)) for row, request in rows.items()}
        (found if moving else expected).append(results)
    assert set(rows) != {4, 5, 6, 7}
    for request, (codes, samples) in expected[0].items():
        assert np.array_equal(found[0][request][0], codes), request
        assert np.abs(found[0][request][1] - samples).max() < 1e-5


async def test_last_answer_of_a_full_batch_gets_the_smallest_graph(tiny_csm: Path) -> None:
    """The engine gets eight requests, and seven are cancelled. The remaining answer moves from row 7 to a lower row."""
    some = captured(tiny_csm)
    expected = alone(make(tiny_csm), speech("Long.", 3, 120))
    launched: list[int] = []
    launch = some._graph.steps.launch  # type: ignore[union-attr]

    def counting(rows: list[int], key: BucketKey) -> None:
        launched.append(max(rows) + 1)
        launch(rows, key)

    some._graph.steps.launch = counting  # type: ignore[union-attr,method-assign,assignment]
    engine = BatchedEngine(info("csm", rate_hz=some.rate_hz, frame_s=FRAME_S), some, max_queue=8, audio_queue_s=60.0)
    async with engine:
        shorts = [engine.speak(speech("Short.", 1, 100)) for _ in range(7)]
        for stream in shorts:
            await anext(stream)
        stream = engine.speak(speech("Long.", 3, 120))
        codes = [(await anext(stream)).codes]
        assert launched[-1] == 8
        for each in shorts:
            await each.aclose()
        codes += [chunk.codes async for chunk in stream]
    assert launched[-1] == 1
    assert np.array_equal(np.concatenate([each for each in codes if each is not None], axis=1).T, expected)


def test_next_line_follows_in_the_same_row(tiny_csm: Path) -> None:
    """The device detects the end of a line, and frames in flight after it are dropped."""
    spoken = lines("First line.", "Second line.", "Third.")
    request = Utterance(spoken, Sampling(temperature=0.0), 1, 24 * FRAME_S)
    found = []
    for some in (make(tiny_csm), captured(tiny_csm, max_rows=2)):
        force_eos(some, {6, 13})
        found.append(alone(some, request))
    ours, theirs = found
    assert len(ours) == 24
    # When the host reads a forced end, the graph has already launched one more frame and drawn numbers for it. So the
    # codes are equal only up to the first forced end.
    assert np.array_equal(ours[:6], theirs[:6])
    assert len(theirs) == 24


def test_frame_limit_ends_lines_as_in_eager_steps(tiny_csm: Path) -> None:
    guards = Guards(min_frames=2, frames_per_token=0, slack_frames=7)
    request = Utterance(lines("First line.", "Second.", "And the third."), Sampling(), 1, 60.0)
    ours, theirs = (alone(some, request) for some in (make(tiny_csm, guards=guards), captured(tiny_csm, guards=guards)))
    assert len(ours) == 21
    assert np.array_equal(ours, theirs)


def test_later_utterance_goes_on_as_in_one_utterance(tiny_csm: Path) -> None:
    runner = captured(tiny_csm, max_rows=2, guards=Guards(min_frames=2, frames_per_token=0, slack_frames=5))
    whole = Utterance(lines("First line.", "Second.", "And the third."), Sampling(), 1, 60.0)
    driver = Driver(runner)
    driver.start(1, whole)
    driver.finish()
    expected = driver.frames(1), driver.samples(1)
    codes, samples = in_parts(driver, whole)
    assert np.array_equal(codes, expected[0])
    assert np.abs(samples - expected[1]).max() < 1e-5


@pytest.mark.parametrize("kernels", [TORCH, PERSISTENT], ids=["torch", "persistent"])
def test_guards_end_stuck_lines_and_suppress_early_ends(tiny_csm: Path, kernels: Kernels) -> None:
    """EOS is suppressed in the first frames.

    If a line repeats a frame, the line ends, and its frames in flight are dropped.
    """
    guards = Guards(min_frames=4, frames_per_token=1, slack_frames=5)
    counted: list[str] = []
    some = captured(tiny_csm, guards=guards, on_guard=counted.append, max_rows=2, kernels=(kernels,))
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

    found = []
    for stuck in (make(tiny_csm, guards=Guards()), captured(tiny_csm, guards=Guards(), max_rows=2)):
        stuck.model.head = Same()
        for i in range(len(stuck.model.heads)):
            stuck.model.heads[i] = Same()
        found.append(alone(stuck, Utterance(lines("One line.", "Another."), Sampling(), 1, 60.0)))
    assert np.array_equal(*found)


@pytest.mark.parametrize("kernels", [None, TORCH, PERSISTENT], ids=["eager", "torch", "persistent"])
def test_nan_ends_only_its_own_row(tiny_csm: Path, kernels: Kernels | None) -> None:
    """NaN in a row ends that row. Other rows and the next utterance in the row are not affected."""
    some = captured(tiny_csm, max_rows=2, kernels=(kernels,)) if kernels else make(tiny_csm)
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


def test_frames_in_flight_of_a_released_row_are_dropped(runner: CsmRunner, eager: CsmRunner) -> None:
    """The next utterance in the row does not receive these frames."""
    driver = Driver(runner)
    driver.start(0, speech("This is cancelled.", 1, 30))
    for _ in range(3):
        driver.iterate()
    driver.stop(0)
    driver.start(0, REQUESTS[1])
    driver.finish()
    assert np.array_equal(driver.frames(0), alone(eager, REQUESTS[1]))


def on_meta(size: str, rows: int, adapters: int = 0) -> CsmCudaGraph:
    raw = csm_config(size)
    model = CsmModel(parse_config(raw), device=META, dtype=torch.bfloat16)
    decoder = MimiDecoder(read_mimi_config(raw["codec_config"]), rows=rows, device=META)
    cache = model.kv_cache(rows, batched=True, scratch=1)
    assert isinstance(cache, KVCache)
    inputs = torch.zeros(rows, model.config.backbone.width, device=META, dtype=model.dtype)
    if adapters:
        model.adapters = LowRankAdapters(places_of(model))
        model.adapters.reserve(adapters + 1, 16, model.dtype)
    return CsmCudaGraph(model, decoder, cache, model.depth_kv_cache(rows), inputs, adapters=adapters > 0)


@pytest.mark.parametrize("fast_path", [False, True])
def test_frame_reads_nothing_back_to_the_host(fast_path: bool) -> None:
    frames = on_meta("tiny", 8)
    with torch.inference_mode():
        for rows in (1, 4, 8):
            assert operations(lambda n=rows: frames.advance(n, BucketKey(512, fast_path=fast_path), TORCH)) > 1000  # type: ignore[misc]


def test_frame_with_adapters_reads_nothing_back_to_the_host() -> None:
    """A step of rows without adapters has the operations of a model without adapters."""
    plain, frames = on_meta("tiny", 8), on_meta("tiny", 8, adapters=32)
    with torch.inference_mode():
        for rows in (1, 4, 8):
            without = operations(lambda n=rows: plain.advance(n, BucketKey(512, True), TORCH))  # type: ignore[misc]
            added = operations(lambda n=rows: frames.advance(n, BucketKey(512, True, adapted=True), TORCH)) - without  # type: ignore[misc]
            assert added > 100
            idle = operations(lambda n=rows: frames.advance(n, BucketKey(512, True), TORCH))  # type: ignore[misc]
            assert idle - without <= 2  # selects the slots


def test_check_detects_reads_by_the_host() -> None:
    with torch.inference_mode(), pytest.raises(AssertionError, match="waits for the device"):
        operations(lambda: print(bool(torch.ones(3, device=META).sum() > 1)))
    with torch.inference_mode(), pytest.raises(AssertionError, match="host"):
        operations(lambda: print(torch.zeros(4, device=META)[torch.tensor([1, 2])]))


def test_prefill_does_not_wait_for_queued_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are copied to the device from pinned memory."""
    config = parse_config(csm_config("tiny"))
    model = CsmModel(config, device=META, dtype=torch.bfloat16)
    cache = model.kv_cache(2, batched=True, scratch=1)
    inputs = torch.zeros(2, config.backbone.width, device=META, dtype=model.dtype)
    limits = Limits(None, config.max_positions)
    prefill = Prefill(model, cache, inputs, limits, fingerprint="", chunk=16, prefix_bytes=1 << 30, context_lines=None)
    codes = np.ones((config.codebooks, 20), np.int16)
    state = CsmRow(
        lines=[(1, 2, 3), (4, 5)],
        lengths=[3.0, 2.0],
        paces=[None, None],
        segments=[Segment((1, 2), codes), Segment((3,), codes)],
        voices=1,
        params=SamplingParams(),
        seed=1,
        max_frames=30,
    )
    mode = OnlyPinnedUploads()
    monkeypatch.setattr("app.engines.csm.prefill.upload", mode.upload)
    with torch.inference_mode(), mode:
        prefill.begin(1, state)
        while not prefill.read_chunk(1, state):
            pass
        state.line_frames = [torch.ones(config.codebooks, dtype=torch.int64)]
        prefill.begin_next_line(state, [torch.ones(config.codebooks, dtype=torch.int64)])
        while not prefill.read_chunk(1, state):
            pass
    assert mode.uploads == 7 + 3  # 7: two segments with three uploads each, and a line; 3: a frame, its end, and a line
    with pytest.raises(AssertionError, match="waits for the device"), OnlyPinnedUploads():
        torch.tensor([1], device=META)
    with pytest.raises(AssertionError, match="waits for the device"), OnlyPinnedUploads():
        torch.ones(1).to(META)


def test_short_memory_reduces_the_rows(tiny_csm: Path) -> None:
    """As on an 8 GB card, sizes that do not fit are not captured, and the runner has fewer rows."""

    class Small(GraphCapture):
        calls = 0

        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            self.calls += 1
            if self.calls in (1, 4):  # the graphs of eight rows do not fit; of four rows, only two keys fit
                raise torch.OutOfMemoryError
            return super().capture(body)

    some = make(tiny_csm, capture=Small(CPU))
    assert some.max_rows == 2
    assert dict(some.setup)["graphs"] == 2 * 8
    assert np.array_equal(alone(some, REQUESTS[0], row=1), alone(make(tiny_csm), REQUESTS[0]))

    class Full(GraphCapture):
        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        make(tiny_csm, capture=Full(CPU))


def test_setup_describes_the_capture(runner: CsmRunner, eager: CsmRunner) -> None:
    facts = dict(runner.setup)
    assert facts["recorded"] is True
    assert facts["recorded_rows"] == runner.max_rows == 8
    assert facts["kernels"] == "torch"
    assert facts["graphs"] == 4 * 4 * 2  # 1, 2, 4, 8 rows; four lengths; with and without the fast path
    assert dict(eager.setup) == {"recorded": False}


def test_fastest_kernels_are_used(tiny_csm: Path) -> None:
    """Kernels are measured on the device. The fastest kernels are used, and codes stay the same."""

    def slow(*rest: Any) -> Any:
        time.sleep(0.002)
        return TORCH.gate(*rest)

    sluggish = dataclasses.replace(TORCH, name="triton", gate=slow)
    some = make(tiny_csm, capture=GraphCapture(CPU), kernels=(sluggish, TORCH))
    facts = dict(some.setup)
    assert facts["kernels"] == "torch"
    seconds = some._graph.steps.kernel_seconds  # type: ignore[union-attr]
    assert {rows: set(names) for rows, names in seconds.items()} == {1: {"torch", "triton"}, 8: {"torch", "triton"}}
    assert facts["kernels_reason"] == "The kernels triton are not used, because they are slower on this device."
    assert "8 rows: triton" in str(facts["kernels_timed"])
    assert np.array_equal(alone(some, REQUESTS[0]), alone(make(tiny_csm), REQUESTS[0]))


def test_kernels_are_chosen_for_several_numbers_of_rows(tiny_csm: Path) -> None:
    """Kernels that are slow for one row only are used from eight rows on."""

    def slow_for_one(both: torch.Tensor, activation: Any) -> torch.Tensor:
        time.sleep(0.003 if len(both) == 1 else 0.0)
        return TORCH.gate(both, activation)

    def slow_for_many(both: torch.Tensor, activation: Any) -> torch.Tensor:
        time.sleep(0.003 if len(both) > 4 else 0.0)
        return TORCH.gate(both, activation)

    sets = tuple(
        dataclasses.replace(TORCH, name=name, gate=gate, from_torch=partly)
        for name, gate, partly in (("torch", slow_for_many, ()), ("triton", slow_for_one, ("sample",)))
    )
    some = make(tiny_csm, capture=GraphCapture(CPU), kernels=sets, notes=(("kernels_reason", "Noted."),))
    facts = dict(some.setup)
    assert facts["kernels"] == "torch for 1, 2, 4 rows; triton for 8 rows"
    assert (
        facts["kernels_by_operation"]
        == "triton: step_attention, decode_attention, add_rms_norm, gate, guided_sample, delayed_inputs, "
        "delayed_outputs, frame_inputs, frame_outputs, frame_embeddings, window_attention, add_layer_norm, "
        "conv_windows, overlap_add; torch: sample"
    )
    assert facts["kernels_reason"] == "Noted."
    for row in (0, 7):
        assert np.array_equal(alone(some, REQUESTS[0], row=row), alone(make(tiny_csm), REQUESTS[0]))


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_steps_with_kernels_for_linear_layers_give_the_same_codes(
    tiny_csm: Path, eager: CsmRunner, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(Stack, "decode_stage", lambda *_: calls.append(1))  # the form for other kernels is not used
    some = captured(tiny_csm, kernels=(LINEAR,), max_rows=2)
    monkeypatch.undo()
    assert not calls
    assert np.array_equal(alone(some, REQUESTS[index], row=1), alone(eager, REQUESTS[index]))


def test_too_many_rows_and_selected_adapters_leave_linear_layers_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def norm_linear(*args: Any, **options: Any) -> Any:
        used.append(args)
        return TORCH.norm_linear(*args, **options)

    linear = dataclasses.replace(LINEAR, norm_linear=norm_linear)
    frames, key = on_meta("tiny", 32, adapters=2), BucketKey(512, fast_path=True)
    depth = frames._model.config
    # of position 0 of the depth decoder, only the keys of the last layer are computed
    whole = 2 * depth.backbone.layers + depth.codebooks * 2 * depth.depth.layers - 1 + depth.codebooks - 1
    with torch.inference_mode():
        for rows, adapted, expected in ((16, False, whole), (32, False, 0), (1, True, 0), (1, False, whole)):
            used.clear()
            frames.advance(rows, dataclasses.replace(key, adapted=adapted), linear)
            assert len(used) == expected


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_frames_with_one_kernel_for_the_depth_decoder_give_the_same_codes(
    tiny_csm: Path, eager: CsmRunner, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(CsmModel, "depth_decode", lambda *_: calls.append(1))  # the form for other kernels is not used
    some = captured(tiny_csm, kernels=(PERSISTENT,), max_rows=2)
    found = alone(some, REQUESTS[index], row=1)
    monkeypatch.undo()
    assert not calls
    assert np.array_equal(found, alone(eager, REQUESTS[index]))


def test_many_rows_and_adapters_leave_the_depth_decoder_to_its_steps() -> None:
    used = []

    def depth_frame(*args: Any) -> Any:
        used.append(args)
        return TORCH.depth_frame(*args)

    kernels = dataclasses.replace(PERSISTENT, depth_frame=depth_frame)
    frames, key = on_meta("tiny", 32, adapters=2), BucketKey(512, fast_path=True)
    with torch.inference_mode():
        for rows, adapted, expected in ((16, False, 1), (32, False, 0), (1, True, 0), (1, False, 1)):
            used.clear()
            frames.advance(rows, dataclasses.replace(key, adapted=adapted), kernels)
            assert len(used) == expected
        # the first call has created the table of addresses, and later calls copy nothing from the host
        assert operations(lambda: frames.advance(1, key, kernels)) > 500
    assert used[-1][0] is used[-2][0]


def test_kernels_for_linear_layers_are_timed_for_all_numbers_of_rows_that_they_support(tiny_csm: Path) -> None:
    early = dataclasses.replace(LINEAR, name="triton-pdl")
    some = make(tiny_csm, capture=GraphCapture(CPU), kernels=(TORCH, LINEAR, early, PERSISTENT), max_rows=32)
    seconds = some._graph.steps.kernel_seconds  # type: ignore[union-attr]
    names = ["torch", "triton-linear", "triton-pdl", "persistent"]
    assert {rows: set(timed) for rows, timed in seconds.items()} == {
        **{rows: set(names) for rows in (1, 2, 4, 8, 16)},
        32: set(),  # only one set is left
    }
    assert all(f"{name} " in dict(some.setup)["kernels_timed"] for name in names)  # type: ignore[operator]
    assert some._graph.steps.kernels_of(32).name == "torch"  # type: ignore[union-attr]


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_uncommon_sampling_parameters_do_not_change_the_attention_length(
    tiny_csm: Path, eager: CsmRunner, kernels: Literal["torch", "triton"]
) -> None:
    """A request with top_p stays on the fast path.

    A request with a large top_k needs another graph of the same length, except with Triton's kernels.
    """

    def one_form(*rest: Any, fast_path: bool, **options: Any) -> torch.Tensor:
        return TORCH.sample(*rest, **options)  # draws with any parameters in the same way, as the Triton kernel does

    chosen = TORCH if kernels == "torch" else dataclasses.replace(TORCH, name="triton", sample=one_form)
    some = make(tiny_csm, capture=GraphCapture(CPU), kernels=(chosen,), max_rows=4)
    assert some._graph is not None
    assert dict(some.setup)["graphs"] == 3 * 4 * (2 if kernels == "torch" else 1)
    keys: list[BucketKey] = []
    launch = some._graph.steps.launch

    def noting(rows: list[int], key: BucketKey) -> None:
        keys.append(key)
        launch(rows, key)

    some._graph.steps.launch = noting  # type: ignore[method-assign,assignment]
    plain = [REQUESTS[0], REQUESTS[3]]
    for other, fast in (
        (speech("Likely ones.", 5, 14, sampling=Sampling(top_p=0.6)), True),
        (speech("Likely ones.", 5, 14, sampling=Sampling(top_k=64, top_p=0.2)), True),
        (speech("Many.", 5, 14, sampling=Sampling(top_k=66)), True),  # the model has only 64 codes
        (speech("Many.", 5, 14, sampling=Sampling(top_k=70, top_p=0.9)), False),
        (speech("Any likely one.", 5, 14, sampling=Sampling(top_k=0, top_p=0.9)), False),
    ):
        keys.clear()
        driver = Driver(some)
        for row, request in enumerate([*plain, other]):
            driver.start(row, request)
        driver.finish()
        assert {key.length for key in keys} == {256}
        assert all(key.fast_path for key in keys) is fast
        for row, request in enumerate([*plain, other]):
            assert np.array_equal(driver.frames(row), alone(eager, request)), row


@pytest.mark.slow
@pytest.mark.timeout(400)  # without the compiler's cache, beside other work
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_kernels_give_the_same_codes(tiny_csm: Path, eager: CsmRunner) -> None:
    some = make(tiny_csm, capture=GraphCapture(CPU), kernels=(compiled_kernels(),), max_rows=2)
    assert dict(some.setup)["kernels"] == "compiled"
    for request in REQUESTS[:5]:
        assert np.array_equal(alone(some, request), alone(eager, request))


def test_out_of_memory_is_found_behind_another_error() -> None:
    def failed_capture() -> None:
        try:
            raise torch.OutOfMemoryError("no memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="capture") as caught:
        failed_capture()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("an illegal address"))
