"""CSM on several devices: which device gets which layers, and that codes do not change.

Without GPUs, all stages are on the CPU. Tensors on the meta device show that each stage stays on its own device: they
can't be mixed with tensors of another device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.engines.csm import loading as csm_loading
from app.engines.csm.config import parse_config, read_config
from app.engines.csm.cuda_graph import BucketKey, CsmCudaGraph
from app.engines.csm.files import CsmFolders
from app.engines.csm.loading import engine_of, load_from, load_runner, measure
from app.engines.csm.model import CsmModel
from app.engines.csm.placement import DeviceMemory, Sizes, bytes_per_device, plan
from app.engines.csm.runner import CsmRunner
from app.engines.registry import BuildContext
from app.errors import EngineUnavailable
from app.nn.kernels.sets import TORCH
from app.nn.mimi.config import MimiConfig, read_mimi_config
from app.nn.mimi.model import MimiDecoder
from app.nn.transformer import Stage
from app.runtime import device as devices
from app.runtime.cuda_graphs import SplitCapture
from app.runtime.device import choose_device, choose_devices, free_bytes
from app.settings import Settings
from app.types import Sampling
from app.weights.hub import files_for
from app.weights.load_cache import LoadCache
from app.weights.located import Located
from tests.support.csm_requests import alone, prompt, speech
from tests.support.driver import Driver
from tests.support.random_csm import csm_config, fabricate_csm
from tests.support.recordable import operations
from tests.unit.test_csm_cuda_graph import RunningCapture
from tests.unit.test_cuda_graphs import Failing

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU, META = torch.device("cpu"), torch.device("meta")
CUDA = torch.device("cuda", 0)
LAYERS = 5
GREEDY = Sampling(temperature=0.0)
PLENTY = 10**15


# ---- the plan


def memory(*free: int) -> list[DeviceMemory]:
    return [DeviceMemory(f"cuda:{i}", size) for i, size in enumerate(free)]


@pytest.mark.parametrize(
    ("how", "home", "layers", "free", "counts"),
    [
        ("balanced", 0, [10] * 8, [PLENTY] * 2, (4, 4)),
        ("balanced", 40, [10] * 8, [PLENTY] * 2, (2, 6)),
        ("balanced", 35, [10] * 8, [PLENTY] * 2, (2, 6)),
        ("balanced", 500, [10] * 8, [PLENTY] * 3, (0, 4, 4)),
        ("balanced", 0, [50, 10, 10, 10, 10, 10], [PLENTY] * 2, (1, 5)),
        ("balanced", 10, [10, 10], [PLENTY] * 4, (0, 1, 1, 0)),
        ("balanced", 10, [10] * 5, [PLENTY], (5,)),
        ("sequential", 40, [10] * 8, [77, 55, 100], (3, 5, 0)),
        ("sequential", 40, [10] * 8, [44, 22, PLENTY], (0, 2, 6)),
        ("sequential", 40, [10] * 8, [PLENTY, PLENTY], (8, 0)),
        (
            "sequential",
            0,
            [40, 20, 10, 10],
            [55, 55],
            (1, 3),
        ),  # layers are placed in order: a later small layer does not fill the rest of the first device
        ("auto", 40, [10] * 8, [132, PLENTY], (8, 0)),  # 10 % more than 120
        ("auto", 40, [10] * 8, [131, PLENTY], (2, 6)),
        ("auto", 40, [10] * 8, [132], (8,)),
    ],
)
def test_layers_are_planned_by_free_memory(
    how: Any, home: int, layers: list[int], free: list[int], counts: tuple[int, ...]
) -> None:
    assert plan(how, Sizes(home, tuple(layers)), memory(*free)) == counts


@given(st.integers(0, 200), st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 4))
def test_balanced_plan_is_the_most_equal_one(home: int, layers: list[int], count: int) -> None:
    sizes = Sizes(home, tuple(layers))

    def squares(counts: tuple[int, ...]) -> int:
        found = bytes_per_device(sizes, counts)
        assert sum(found) == sizes.total_bytes
        return sum(load**2 for load in found)

    every = [c for c in itertools.product(range(len(layers) + 1), repeat=count) if sum(c) == len(layers)]
    assert squares(plan("balanced", sizes, memory(*[PLENTY] * count))) == min(map(squares, every))


@pytest.mark.parametrize(
    ("how", "free", "named"),
    [
        ("balanced", [PLENTY, 50], ["cuda:1 would need", "sequential"]),
        ("auto", [60, 50], ["cuda:0", "cuda:1"]),
        ("auto", [131], ["cuda:0"]),
        # the memory is smaller than the part of the model that must be on the first device
        ("sequential", [40, 80], ["cuda:0 would need"]),
        ("sequential", [60, 60], ["cuda:1 would need"]),
    ],
)
def test_error_names_the_devices_that_are_too_small(how: Any, free: list[int], named: list[str]) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        plan(how, Sizes(40, (10,) * 8), memory(*free))
    message = f"{caught.value.reason} {caught.value.remedy}"
    for part in (*named, "GB free", "TTS_DEVICES", "TTS_MAX_ROWS"):
        assert part in message


def test_devices_with_one_name_share_its_memory() -> None:
    sizes = Sizes(40, (10,) * 8)
    assert plan("balanced", sizes, [DeviceMemory("cpu", 132)] * 2) == (2, 6)
    with pytest.raises(EngineUnavailable, match="cpu would need"):
        plan("balanced", sizes, [DeviceMemory("cpu", 100)] * 2)
    with pytest.raises(EngineUnavailable, match="cpu would need"):
        plan("sequential", sizes, [DeviceMemory("cpu", 100)] * 2)


# ---- devices


def test_available_devices_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_devices(()) == ()
    assert choose_devices(("cpu", "cpu:1")) == (CPU, CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices(("auto",)) == (CPU,)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    assert choose_devices(("auto",)) == (CUDA, torch.device("cuda", 1))
    assert choose_devices(("cuda", "cuda:1", "cpu")) == (CUDA, torch.device("cuda", 1), CPU)
    assert choose_device("auto") == CUDA


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda:2", 2, "There is no cuda:2: this machine has the CUDA devices cuda:0 to cuda:1"),
        ("cuda:0", 0, "no CUDA device"),
        ("mps", 0, "no MPS device"),
        ("gpu", 1, "'gpu' is not a device"),
        ("meta", 1, "Models can't run on the device 'meta'"),
        ("auto", 1, "TTS_DEVICES contains 'auto' together with device names"),
    ],
)
def test_error_names_the_missing_device(monkeypatch: pytest.MonkeyPatch, name: str, count: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EngineUnavailable) as caught:
        choose_devices(("cpu", name))
    assert message in caught.value.reason
    assert caught.value.remedy


def test_free_memory_of_a_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 26 < free_bytes(CPU) < 1 << 46
    monkeypatch.setattr(devices.Path, "read_text", lambda *_: "MemTotal: 9 kB\nMemAvailable:       7 kB\n")
    assert free_bytes(CPU) == 7 << 10
    monkeypatch.setattr(devices.Path, "read_text", lambda *_: "")  # the system does not report this information
    assert free_bytes(CPU) > 1 << 26
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9) if device == CUDA else None)
    assert free_bytes(CUDA) == 5


# ---- the model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("csm"), changes={"num_hidden_layers": LAYERS}, seed=2)


def make(folder: Path, *counts: int, **options: Any) -> CsmRunner:
    stages = tuple(Stage(CPU, count) for count in counts)
    values: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "max_rows": 3, "guards": None, "chunk": 16}
    return load_runner(folder, None, stages=stages, **(values | options))


@pytest.fixture(scope="module")
def whole(folder: Path) -> CsmRunner:
    return make(folder)


@pytest.mark.parametrize("counts", [(2, 3), (0, 1, 4)])
def test_split_model_gives_the_same_codes(folder: Path, whole: CsmRunner, counts: tuple[int, ...]) -> None:
    split = make(folder, *counts)
    assert split.fingerprint == whole.fingerprint
    for sampling in (GREEDY, Sampling()):
        request = speech("No difference.", seed=7, frames=5, sampling=sampling, prompt=prompt(whole))
        expected = alone(whole, request)
        assert len(expected) == 5
        assert np.array_equal(alone(split, request), expected)
        assert len(split._prefill.prefixes) == 1
        assert np.array_equal(
            alone(split, request, row=2), expected
        )  # each part of the prefix cache is on its own device; the voice comes from this cache


def test_split_model_gives_the_same_codes_with_other_rows(folder: Path, whole: CsmRunner) -> None:
    split = make(folder, 1, 4)
    requests = [speech("One.", 1, 6), speech("Two of them.", 2, 4, prompt=prompt(whole)), speech("Three.", 3, 5)]
    driver = Driver(split)
    for row, request in enumerate(requests):
        driver.start(row, request)
        driver.iterate()
    driver.finish()
    for row, request in enumerate(requests):
        assert np.array_equal(driver.frames(row), alone(whole, request))


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"dtype": torch.bfloat16, "quantize": "int8"}])
def test_split_model_gives_the_same_codes_in_bfloat16_and_int8(folder: Path, options: dict[str, Any]) -> None:
    request = speech("Narrow.", frames=6)
    assert np.array_equal(alone(make(folder, 2, 3, **options), request), alone(make(folder, **options), request))


def test_frame_enters_each_stage_once(folder: Path) -> None:
    runner = make(folder, 1, 0, 2, 2)
    entered: list[tuple[int, int]] = []  # stage, tokens
    for index, entry in enumerate(runner.model.backbone.entries):
        entry.register_forward_hook(lambda _, inputs, __, index=index: entered.append((index, len(inputs[0]))))
    driver = Driver(runner)
    for row in range(2):
        driver.start(row, speech("Some words, so that the prefill takes several chunks.", frames=3))
    while driver.prefilling:
        driver.iterate()
    entered.clear()
    driver.iterate()
    assert entered == [(0, 1), (2, 1), (3, 1)] * 2  # on a CPU, float32 rows are computed one by one


def on_meta(config: Any, *stages: Stage) -> CsmModel:
    model = CsmModel(config, device=CPU, dtype=torch.float32, stages=stages)
    for tensor in model.parameters():
        tensor.data.zero_()
    return model


def test_each_stage_stays_on_its_device() -> None:
    """All tensors of the second stage are on its device. Only the copy back fails: meta tensors have no data."""
    config = parse_config(csm_config("tiny") | {"num_hidden_layers": 3})
    model = on_meta(config, Stage(CPU, 1), Stage(META, 2))
    assert model.devices == (CPU, META)
    remote = {name for name, tensor in model.named_parameters() if tensor.device == META}
    assert {name.split(".")[2] for name in remote} == {"1", "2"}
    assert all(name.startswith("backbone.blocks.") for name in remote)
    cache = model.kv_cache(4)
    assert [part.k.device for part in cache.parts] == [CPU, META]
    assert [part.k.shape[0] for part in cache.parts] == [1, 2]
    done: list[torch.device] = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda _, __, output: done.append(output.device))
    x = torch.zeros(4, config.backbone.width)
    for run in (lambda: model.read(x, cache, 0, 0), lambda: model.advance(x, cache, [0, 1, 2, 3], [4, 0, 9, 7])):
        done.clear()
        with torch.inference_mode(), pytest.raises(NotImplementedError, match="no data"):
            run()
        assert done == [CPU, META, META]


# ---- CUDA graphs of a split model


class RunningSplit(SplitCapture):
    """Runs each section during its capture, as often as on a CUDA device."""

    def __init__(self) -> None:
        super().__init__((CPU, CPU))
        self._captures = {CPU: RunningCapture(CPU)}


@pytest.mark.parametrize("counts", [(2, 3), (0, 1, 4)])
def test_captured_split_model_gives_the_same_codes_and_samples(
    folder: Path, whole: CsmRunner, counts: tuple[int, ...]
) -> None:
    """The codes and samples are equal also while rows pause, move and end at different times."""
    split = make(folder, *counts, max_rows=4, capture=RunningSplit())
    # 1, 2, 4 rows; four lengths; with and without the fast path; one graph a stage, and one for the rest of the frame
    assert dict(split.setup)["graphs"] == 3 * 4 * 2 * (len(counts) + 1)
    assert dict(split.setup)["recorded"] is True
    requests = [
        speech("No difference.", seed=7, frames=12, prompt=prompt(whole)),
        speech("Two.", seed=8, frames=9, sampling=GREEDY),
        speech("Three takes any.", seed=9, frames=7, sampling=Sampling(top_k=0, top_p=0.8)),
    ]
    driver = Driver(split)
    for row, request in zip((3, 2, 1), requests, strict=True):
        driver.start(row, request)
        driver.iterate()
        driver.iterate(frozenset((3,)))
    driver.move(3, 0)
    driver.finish()
    for row, request in zip((0, 2, 1), requests, strict=True):
        lone = Driver(whole)
        lone.start(0, request)
        lone.finish()
        assert np.array_equal(driver.frames(row), lone.frames(0)), row
        assert np.abs(driver.samples(row) - lone.samples(0)).max() < 1e-5


def split_graph(*stages: Stage) -> CsmCudaGraph:
    raw = csm_config("tiny") | {"num_hidden_layers": LAYERS}
    home = stages[0].device
    model = CsmModel(parse_config(raw), device=home, dtype=torch.bfloat16, stages=stages)
    decoder = MimiDecoder(read_mimi_config(raw["codec_config"]), rows=4, device=home)
    inputs = torch.zeros(4, model.config.backbone.width, device=home, dtype=model.dtype)
    cache = model.kv_cache(4, batched=True, scratch=1)
    return CsmCudaGraph(model, decoder, cache, model.depth_kv_cache(4), inputs)


@pytest.mark.parametrize("fast_path", [False, True])
def test_captured_sections_of_a_split_model_read_nothing_back(fast_path: bool) -> None:
    """Each section runs on tensors without data, on one device. Only the copies between devices are not captured."""
    sections = split_graph(Stage(META, 2), Stage(META, 3)).sections()
    assert [device for _, device in sections] == [META, None, META, None, META]
    with torch.inference_mode():
        for body, device in sections:
            for rows in (1, 4):
                count = operations(lambda b=body, n=rows: b(n, BucketKey(512, fast_path), TORCH))  # type: ignore[misc]
                # on the CPU, the section only makes copies and views of their tensors
                assert count > 100 if device else count <= 4 * 2


def test_captured_section_stays_on_its_device() -> None:
    """The tensors of the second stage are on the meta device, all other tensors on the CPU.

    Only the copy reads both devices.
    """
    sections = split_graph(Stage(CPU, 2), Stage(META, 3)).sections()
    assert [device for _, device in sections] == [CPU, None, META, None, CPU]
    with torch.inference_mode():
        assert operations(lambda: sections[2][0](4, BucketKey(512, True), TORCH)) > 100
        with pytest.raises(AssertionError, match="host"):
            operations(lambda: sections[1][0](4, BucketKey(512, True), TORCH))


def test_short_memory_reduces_the_rows_of_a_split_model(folder: Path, whole: CsmRunner) -> None:
    class Small(SplitCapture):
        def __init__(self) -> None:
            super().__init__((CPU, CPU))
            # captures 2 and 6 fail: after the first section of the first size, and in the next size
            self._captures = {CPU: Failing(2, 6)}

    capture = Small()
    split = make(folder, 2, 3, max_rows=4, capture=capture)
    assert split.max_rows == 1
    assert capture.cost.graphs == 4 * 2 * 3
    request = speech("In one row.", seed=7, frames=6)
    assert np.array_equal(alone(split, request), alone(whole, request))


def test_split_model_without_captured_graphs_runs_and_says_why(
    folder: Path, whole: CsmRunner, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(SplitCapture):
        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("CUDA error: peer access is not supported\nCompile with ...")

    split = make(folder, 2, 3, capture=Refusing((CPU, CPU)))
    facts = dict(split.setup)
    assert facts["recorded"] is False
    assert "on 2 devices could not be captured: CUDA error: peer access is not supported" in str(
        facts["recorded_reason"]
    )
    assert "The server runs steps without CUDA graphs" in caplog.text
    request = speech("All the same.", seed=7, frames=6)
    assert np.array_equal(alone(split, request), alone(whole, request))
    with pytest.raises(RuntimeError, match="peer"):
        make(folder, capture=Refusing((CPU, CPU)))  # a model on a single device


def test_stages_that_do_not_match_the_model_are_refused() -> None:
    config = parse_config(csm_config("tiny"))
    for stages in ([Stage(CPU, 1)], [Stage(CPU, 1), Stage(CPU, 2)]):
        with pytest.raises(ValueError, match="2 layers"):
            CsmModel(config, device=META, dtype=torch.float32, stages=[Stage(META, 0), *stages[1:], stages[0]])
    with pytest.raises(ValueError, match="must be on the device of the model, cpu"):
        CsmModel(config, device=CPU, dtype=torch.float32, stages=[Stage(META, 2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measured_sizes_equal_the_real_ones(folder: Path, dtype: torch.dtype) -> None:
    runner = make(folder, dtype=dtype)
    config = read_config(folder)
    sizes = measure(config, runner.codec, dtype=dtype, max_rows=3)
    # the model is checked before it is packed for the CPU
    model, _ = csm_loading.load_model(folder, device=CPU, dtype=dtype)
    of_model = (*model.parameters(), *model.buffers(), runner._cache.k, runner._cache.v)
    of_codec = [t for part in (runner._encoder, runner._decoder) for t in (*part.parameters(), *part.buffers())]
    needed = sum(tensor.nbytes for tensor in (*of_model, *of_codec)) + runner._decoder.state_bytes
    assert sizes.total_bytes == needed
    assert len(sizes.layers_bytes) == LAYERS
    block = sum(tensor.nbytes for tensor in model.backbone.blocks[0].parameters())
    assert sizes.layers_bytes[0] == block + (runner._cache.k.nbytes + runner._cache.v.nbytes) // LAYERS


def test_int8_weights_are_measured_as_one_byte_and_a_scale_for_32() -> None:
    config = parse_config(csm_config("full"))
    assert config.codec is not None
    wide, narrow = (
        measure(config, config.codec, dtype=torch.float32, max_rows=1, quantize=quantize)
        for quantize in ("none", "int8")
    )
    cached = 2 * config.backbone.kv_heads * config.max_positions * config.backbone.head_dim * 4
    ratio = (wide.layers_bytes[0] - cached) / (narrow.layers_bytes[0] - cached)
    assert 3.7 < ratio < 4 / (1 + 2 / 32)


# ---- the settings


def settings_for(folder: Path, tmp_path: Path, **values: Any) -> Settings:
    fixed = {"CSM_MODEL": str(folder), "TTS_DATA_DIR": str(tmp_path), "TTS_MAX_ROWS": 2, "TTS_DTYPE": "float32"}
    return Settings(_env_file=None, **(fixed | values))


def runner_for(settings: Settings) -> CsmRunner:
    threads = torch.get_num_threads()
    try:
        return load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"TTS_DEVICES": "cpu,cpu", "CSM_DEVICE_MAP": "balanced"}, "cpu,cpu"),
        ({"TTS_DEVICES": "cpu, cpu ,cpu", "CSM_DEVICE_MAP": " Balanced "}, "cpu,cpu,cpu"),
        ({"TTS_DEVICES": "cpu,cpu", "CSM_DEVICE_MAP": "auto"}, "cpu"),  # the model fits on the first device
        ({"TTS_DEVICES": "cpu,cpu", "CSM_DEVICE_MAP": "sequential"}, "cpu"),
        ({"TTS_DEVICES": "cpu,cpu"}, "cpu"),
        ({"TTS_DEVICES": "cpu,cpu", "CSM_DEVICE_MAP": ""}, "cpu"),
        ({"TTS_DEVICES": "cpu", "CSM_DEVICE_MAP": "balanced"}, "cpu"),
        ({"TTS_DEVICES": "", "CSM_DEVICE_MAP": "balanced", "TTS_DEVICE": "cpu"}, "cpu"),
    ],
)
def test_settings_choose_the_devices(  # noqa: PLR0917 - fixtures
    folder: Path,
    tmp_path: Path,
    whole: CsmRunner,
    caplog: pytest.LogCaptureFixture,
    values: dict[str, str],
    shown: str,
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_for(folder, tmp_path, **values)
    runner = runner_for(settings)
    assert engine_of(runner, settings).info.device == shown
    planned = "CSM_DEVICE_MAP" in values and "," in values["TTS_DEVICES"] and values["CSM_DEVICE_MAP"] != ""
    assert ("layers" in caplog.text) is planned
    if shown != "cpu":
        assert np.array_equal(alone(runner, speech("As ever.", 4, 4)), alone(whole, speech("As ever.", 4, 4)))


def test_auto_splits_a_model_that_does_not_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(folder, tmp_path, TTS_DEVICES="cpu,cpu", CSM_DEVICE_MAP="auto")
    config = read_config(folder)
    assert config.codec is not None
    total = measure(config, config.codec, dtype=torch.float32, max_rows=2).total_bytes
    number = itertools.count()  # gives each CPU device another number, so that one CPU counts as two devices
    monkeypatch.setattr(csm_loading, "DeviceMemory", lambda name, free: DeviceMemory(f"{name} {next(number)}", free))
    # the free memory is less than the need with its margin of 10 %
    monkeypatch.setattr(csm_loading, "usable_bytes", lambda *_: total)
    assert engine_of(runner_for(settings), settings).info.device == "cpu,cpu"
    monkeypatch.setattr(csm_loading, "usable_bytes", lambda *_: total // 3)
    with pytest.raises(EngineUnavailable, match="does not fit"):
        runner_for(settings)


def simulate_cards(monkeypatch: pytest.MonkeyPatch, folder: Path, free_gib: tuple[float, ...]) -> dict[str, Any]:
    """Let `load_from` plan a full-size CSM for cards with this free memory. Returns the options of `load_runner`."""
    config = dataclasses.replace(parse_config(csm_config("full")), codec=MimiConfig())
    loaded: dict[str, Any] = {}
    folders = CsmFolders((files_for("csm"),), Located((files_for("csm"),), folder), folder)
    monkeypatch.setattr(csm_loading, "fetch", lambda *_: (folders, "csm"))
    monkeypatch.setattr(csm_loading, "read_config", lambda _: config)
    monkeypatch.setattr(csm_loading, "graph_capture", lambda *_, **__: (None, (), ()))
    monkeypatch.setattr(csm_loading, "loading_on", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(devices, "free_bytes", lambda device: int(free_gib[device.index or 0] * (1 << 30)))
    monkeypatch.setattr(csm_loading, "load_runner", lambda *_, **options: loaded.update(options))
    return loaded


@pytest.mark.parametrize(
    ("how", "free", "expected"),
    [
        ("auto", (8, 4), (16, ())),  # the model is not split: it fits on one card
        ("auto", (3.8, 3.8), (1, (1, 15))),  # no single card has memory for all layers
        (
            "balanced",
            (8, 4.3),
            (16, (3, 13)),
        ),  # both cards together have memory for 32 rows, but no split between layers fits
        ("auto", (1.0, 1.0), None),
    ],
)
def test_rows_are_counted_for_a_model_on_two_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, free: tuple[float, float], expected: Any
) -> None:
    """The model has its full size on simulated cards: nothing is loaded, and only the plan is checked."""
    loaded = simulate_cards(monkeypatch, tmp_path, free)
    monkeypatch.setattr(csm_loading, "choose_devices", lambda _: (CUDA, torch.device("cuda", 1)))
    settings = settings_for(
        tmp_path, tmp_path, TTS_DEVICES="cuda:0,cuda:1", CSM_DEVICE_MAP=how, TTS_MAX_ROWS="auto", TTS_DTYPE="bfloat16"
    )
    if expected is None:
        with pytest.raises(EngineUnavailable, match="together have"):
            load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
        return
    load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
    assert (loaded["max_rows"], tuple(stage.layers for stage in loaded["stages"])) == expected


@pytest.mark.parametrize(("gpus", "layers"), [(2, (3, 13)), (1, ())])
def test_device_map_alone_uses_all_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gpus: int,
    layers: tuple[int, ...],
) -> None:
    """TTS_DEVICES and TTS_DEVICE are not set. With one GPU the model is not split, and the log gives the reason."""
    caplog.set_level(logging.INFO)
    loaded = simulate_cards(monkeypatch, tmp_path, (8, 4.3))
    found = tuple(torch.device("cuda", index) for index in range(gpus))
    monkeypatch.setattr(csm_loading, "choose_devices", lambda names: found if names == ("auto",) else ())
    monkeypatch.setattr(csm_loading, "choose_device", lambda _: found[0])
    settings = settings_for(tmp_path, tmp_path, CSM_DEVICE_MAP="balanced", TTS_MAX_ROWS="auto", TTS_DTYPE="bfloat16")
    load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
    assert tuple(stage.layers for stage in loaded["stages"]) == layers
    assert ("there is only one device" in caplog.text) == (gpus == 1)


def test_unknown_values_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'auto', 'balanced' or 'sequential'"):
        settings_for(folder, tmp_path, CSM_DEVICE_MAP="everywhere")
    with pytest.raises(EngineUnavailable, match="'nowhere' is not a device"):
        runner_for(settings_for(folder, tmp_path, TTS_DEVICES="cpu,nowhere"))


def test_split_model_uses_the_load_cache_of_a_whole_one(folder: Path, tmp_path: Path) -> None:
    cache = LoadCache(tmp_path, "x", min_bytes=0)
    request = speech("Kept.", frames=4)
    first = alone(make(folder, dtype=torch.bfloat16, cache=cache), request)
    [kept] = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    assert np.array_equal(alone(make(folder, 2, 3, dtype=torch.bfloat16, cache=cache), request), first)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [before]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("names", [("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "cuda:0")])
def test_split_between_real_devices_gives_the_same_codes(
    folder: Path, whole: CsmRunner, names: tuple[str, str]
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    first, second = map(torch.device, names)
    split = load_runner(
        folder,
        None,
        device=first,
        dtype=torch.float32,
        max_rows=3,
        guards=None,
        stages=(Stage(first, 2), Stage(second, 3)),
    )
    for sampling in (GREEDY, Sampling()):
        request = speech("Over there and back.", sampling=sampling, prompt=prompt(whole))
        assert np.array_equal(alone(split, request), alone(whole, request))
