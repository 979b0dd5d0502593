"""Errors for a GPU that cannot be used, and the choice of device, dtype and threads. The messages of `torch.cuda` here
are those of PyTorch 2.13 (torch/csrc/cuda, c10/cuda); the tests need no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app.engines.shared.loading import graph_capture
from app.engines.shared.rows import must_step_one_by_one
from app.errors import EngineUnavailable
from app.runtime import device
from app.runtime.device import choose_device, cpu_threads
from app.settings import Settings

pytestmark = pytest.mark.unit

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
NO_GPUS = "No CUDA GPUs are available"
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:"


def no_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda_message: str, *, cuda: str | None, driver: str
) -> str:
    """Return the error for the device `cuda` if PyTorch raises this message."""
    file = tmp_path / "version"
    if driver:
        file.write_text(driver)

    def init() -> None:
        raise RuntimeError(cuda_message)

    monkeypatch.setattr(device, "_DRIVER_FILE", file)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(EngineUnavailable) as caught:
        choose_device("cuda")
    return f"{caught.value.reason} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("cuda_message", "cuda", "driver", "words"),
    [
        (TOO_OLD, "13.0", VERSION, ["driver 535.183.01 is too old", "CUDA 13.0", "driver 580 or newer", "update"]),
        (TOO_OLD, "12.8", VERSION, ["too old", "driver 525 or newer"]),
        (TOO_OLD, "14.1", VERSION, ["too old", "driver of CUDA 14.1 or newer"]),
        (NO_DRIVER, "13.0", "", ["no NVIDIA driver is loaded", "580 or newer", "Container Toolkit"]),
        (NO_GPUS, "13.0", VERSION, ["driver 535.183.01 is loaded", NO_GPUS, "CUDA_VISIBLE_DEVICES"]),
        ("", None, VERSION, ["built without CUDA", "pip install torch"]),
    ],
)
def test_error_explains_why_cuda_is_unavailable(  # noqa: PLR0917 - fixtures
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda_message: str, cuda: str | None, driver: str, words: list[str]
) -> None:
    message = no_cuda(monkeypatch, tmp_path, cuda_message, cuda=cuda, driver=driver)
    for word in words:
        assert word in message


def test_auto_logs_why_it_does_not_use_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_cuda(monkeypatch, tmp_path, TOO_OLD, cuda="13.0", driver=VERSION)
    assert choose_device("auto").type == "cpu"
    assert "driver 580 or newer" in caplog.text


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90", "compute_120"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),
        ((12, 1), ["sm_80", "sm_90"], True),  # translated from the newest
        ((7, 0), ["sm_75", "sm_80", "sm_90a"], False),
        ((6, 1), ["sm_75"], False),
        ((6, 1), [], True),
    ],
)
def test_gpu_of_unsupported_architecture_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    if fits:
        assert choose_device("cuda:0") == torch.device("cuda", 0)
    else:
        with pytest.raises(EngineUnavailable, match="Some GPU"):
            choose_device("cuda:0")


def test_rocm_and_mps_run_with_a_warning_or_are_refused_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailable, match=r"built for AMD GPUs \(ROCm 6\.4\.1\), and it finds no GPU") as refused:
        choose_device("cuda")
    assert "rocminfo" in refused.value.remedy
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx90a", "gfx942"])
    for name in ("auto", "cuda", "cuda:0"):
        caplog.clear()
        chosen = choose_device(name)
        assert chosen == torch.device("cuda", 0)
        assert "never tested" in caplog.text
    assert "ROCm 6.4.1" in dict(device.device_notes(chosen))["device_reason"]
    monkeypatch.setattr(torch.version, "hip", None)
    assert device.device_notes(chosen) == ()

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for built, word in ((True, "macOS is too old"), (False, "built without MPS")):
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda built=built: built)
        with pytest.raises(EngineUnavailable, match=word):
            choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    caplog.clear()
    chosen = choose_device("mps")
    assert chosen.type == "mps"
    assert "never tested" in caplog.text
    assert "MPS" in dict(device.device_notes(chosen))["device_reason"]
    for new_enough, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_, yes=new_enough: yes)
        assert device.choose_dtype("auto", chosen) == dtype


@pytest.mark.parametrize(
    ("cuda_message", "cuda", "word"),
    [("", None, "built without CUDA"), (TOO_OLD, "13.0", "too old"), (NO_GPUS, "13.0", NO_GPUS)],
)
def test_health_says_why_the_model_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda_message: str, cuda: str | None, word: str
) -> None:
    """The machine has an NVIDIA driver, but the torch package has no CUDA, or the driver is too old."""
    no_cuda(monkeypatch, tmp_path, cuda_message, cuda=cuda, driver=VERSION)
    reason = dict(device.device_notes(choose_device("auto")))["device_reason"]
    assert word in reason
    monkeypatch.setattr(device, "_DRIVER_FILE", tmp_path / "absent")
    assert device.device_notes(torch.device("cpu")) == ()


@pytest.mark.parametrize(
    ("kind", "graphs", "impossible", "words"),
    [
        ("cpu", True, "", {"recorded_reason": "model runs on cpu", "kernels_reason": "need a CUDA device"}),
        ("mps", True, "", {"recorded_reason": "model runs on mps", "device_reason": "never tested"}),
        ("cuda", False, "", {"recorded_reason": "TTS_CUDA_GRAPHS=0", "kernels_reason": "TTS_CUDA_GRAPHS=0"}),
        ("cuda", True, "It is split.", {"recorded_reason": "It is split.", "kernels": "torch"}),
    ],
)
def test_health_says_why_nothing_is_captured(kind: str, graphs: bool, impossible: str, words: dict[str, str]) -> None:
    settings = Settings(TTS_CUDA_GRAPHS=graphs)
    capture, kernels, notes = graph_capture(settings, torch.device(kind), torch.float32, impossible=impossible)
    assert capture is None
    assert kernels == ()
    for name, word in words.items():
        assert word in str(dict(notes)[name])


def test_split_model_with_a_part_on_the_cpu_is_not_captured() -> None:
    card = torch.device("cuda", 0)
    _, _, notes = graph_capture(Settings(), card, torch.float32, other_devices=[torch.device("cpu")])
    assert "A part of the model is on cpu" in str(dict(notes)["recorded_reason"])


def test_number_of_rows_depends_on_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test covers cards of 8 GB and 141 GB, and the error if not even one row fits."""
    gpu = torch.device("cuda", 0)
    weights, row = 4_200_000_000, 70_000_000
    two = [gpu, torch.device("cuda", 1)]

    def bytes_of(rows: int) -> int:
        return weights + rows * row

    for free, fraction, rows in ((8e9, 0.9, 16), (8e9, 1.0, 32), (141e9, 0.9, 64), (6e9, 0.9, 1)):
        monkeypatch.setattr(device, "free_bytes", lambda _, free=free: int(free))
        assert device.plan_rows([gpu], fraction, bytes_of, most=64).rows == rows
    monkeypatch.setattr(device, "free_bytes", lambda _: int(5.2e9))
    with pytest.raises(EngineUnavailable, match=r"cuda:0 has 5\.2 GB free") as caught:
        device.plan_rows([gpu], 0.9, bytes_of, most=64)
    assert "TTS_GPU_MEMORY_FRACTION" in caught.value.remedy
    assert device.plan_rows(two, 0.9, bytes_of, most=64).rows == 32  # two devices together have enough memory
    assert device.plan_rows([*two, gpu], 0.9, bytes_of, most=64).rows == 32
    least = weights + row + device.LEAST_SCRATCH_BYTES
    monkeypatch.setattr(device, "free_bytes", lambda _: least)
    assert device.plan_rows([gpu], 1.0, bytes_of, most=64).rows == 1
    monkeypatch.setattr(device, "free_bytes", lambda _: least - 1)
    with pytest.raises(EngineUnavailable):
        device.plan_rows([gpu], 1.0, bytes_of, most=64)
    monkeypatch.setattr(device, "free_bytes", lambda _: int(3e9))
    with pytest.raises(EngineUnavailable, match=r"cuda:0 and cuda:1 together have 6\.0 GB free"):
        device.plan_rows(two, 0.9, bytes_of, most=64)


def test_auto_dtype_is_the_fast_format_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert device.choose_dtype("auto", gpu) == expected
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "cpu_has_bfloat16", lambda has=has: has)
        assert device.choose_dtype("auto", torch.device("cpu")) == expected
    assert device.choose_dtype("float16", gpu) == torch.float16


def test_tf32_applies_to_matrix_products_and_convolutions() -> None:
    def flags() -> tuple[str, bool, bool]:
        products = torch.backends.cuda.matmul.allow_tf32
        return torch.get_float32_matmul_precision(), products, torch.backends.cudnn.allow_tf32

    try:
        device.set_math_backends(tf32=True)
        assert flags() == ("high", True, True)
    finally:
        device.set_math_backends(tf32=False)
    assert flags() == ("highest", False, False)
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction


def test_attention_does_not_use_cudnn() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    device.set_math_backends(tf32=False)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_only_the_device_of_the_engine_becomes_current(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device | str] = []

    @contextmanager
    def guard(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.append("left")

    monkeypatch.setattr(torch.cuda, "device", guard)
    with device.using(torch.device("cuda", 1)):
        assert current == [torch.device("cuda", 1)]
    assert current[-1] == "left"
    current.clear()
    with device.using(torch.device("cpu")):
        assert current == []


def test_omp_num_threads_sets_the_cpu_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own = cpu_threads()
    assert 1 <= own <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_threads() == 3
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert cpu_threads() == own


@pytest.mark.parametrize(
    ("device", "dtype", "quantized", "expected"),
    [
        ("cpu", torch.float32, False, True),
        ("cpu", torch.bfloat16, False, False),
        ("cpu", torch.float32, True, False),
        ("cuda", torch.float32, False, False),
    ],
)
def test_only_float32_on_a_cpu_steps_one_row_at_a_time(device, dtype, quantized, expected):
    assert must_step_one_by_one(torch.device(device), dtype, quantized=quantized) is expected
