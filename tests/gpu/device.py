"""The device of the tests in this folder."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from app.nn.kernels.sets import TORCH, Kernels, early_kernels, fused_kernels

# TTS_GPU_TESTS_ON=cpu rehearses the tests on a machine without a CUDA device.
DEVICE = torch.device(os.environ.get("TTS_GPU_TESTS_ON", "cuda"))
ON_CUDA = DEVICE.type == "cuda"
if not ON_CUDA:
    torch.set_num_threads(1)  # for tiny models on a CPU, a second thread only costs time
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]


def kernels(name: str) -> Kernels:
    """Return the set of Triton's kernels with this name, or the kernels of torch if there is no such set.

    Skips the test where Triton or an early start of its kernels is not possible.
    """
    if name not in {"triton", "triton-linear", "triton-pdl", "persistent"}:
        return TORCH
    if not ON_CUDA:
        pytest.skip("Triton needs a CUDA device")
    pytest.importorskip("triton")
    fused = fused_kernels()
    if name == "triton-pdl":
        if torch.cuda.get_device_capability(DEVICE) < (9, 0):
            pytest.skip("programmatic dependent launch needs compute capability 9.0")
        return early_kernels(fused)
    return replace(fused, name=name)  # type: ignore[arg-type]
