"""Captured steps of both models with interpreted Triton kernels give the codes of the torch kernels."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed here: make kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is not asked to interpret: make kernels", allow_module_level=True)

from app.nn.kernels import persistent_kernel, triton_launch
from app.nn.kernels.checks import wrong_operations
from app.nn.kernels.sets import TORCH, fused_kernels
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling
from bench.kernels import mend_interpreter
from tests.support.driver import Driver
from tests.support.program_threads import run_programs_in_threads
from tests.support.random_csm import csm_config, fabricate_csm
from tests.support.random_dia import fabricate_dia
from tests.unit import test_csm_runner, test_dia_runner

mend_interpreter()

# the interpreter runs each program number by number, which is slow
pytestmark = [pytest.mark.unit, pytest.mark.timeout(500)]

CPU = torch.device("cpu")
SetName = Literal["triton", "triton-linear", "persistent"]
SETS: tuple[SetName, ...] = ("triton", "triton-linear")


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each program compute more outputs, because the interpreter takes milliseconds for each program."""
    monkeypatch.setattr(triton_launch, "_COLUMNS", 1024)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_kernels_pass_the_start_check(dtype: torch.dtype) -> None:
    assert not list(wrong_operations(fused_kernels(), CPU, dtype, fp8=dtype == torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "quantize"), [*((name, "none") for name in (*SETS, "persistent")), ("triton-linear", "fp8")]
)
def test_csm_codes_are_equal_with_fused_kernels(tmp_path: Path, name: SetName, quantize: str) -> None:
    depth = csm_config("tiny")["depth_decoder_config"]  # the kernels support no smaller attention head
    changes = {"head_dim": 16, "depth_decoder_config": depth | {"head_dim": 16}}
    folder = fabricate_csm(tmp_path, changes=changes)
    request = test_csm_runner.speech("Two frames.", 2, 2, sampling=Sampling(top_k=20, top_p=0.9))
    options = {
        "capture": GraphCapture(CPU),
        "kernels": (dataclasses.replace(fused_kernels(), name=name),),
        "max_rows": 1,
        "quantize": quantize,
    }
    theirs = test_csm_runner.alone(test_csm_runner.make(folder, quantize=quantize), request)
    ours = test_csm_runner.alone(test_csm_runner.make(folder, **options), request)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("programs", [1, 3])
def test_csm_codes_are_equal_with_one_kernel_for_the_depth_decoder(
    tmp_path: Path, dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of two rows begin at different times, and one of them draws greedily."""
    if programs > 1:
        run_programs_in_threads(monkeypatch, persistent_kernel.depth_frame, range(programs), programs)
    folder = fabricate_csm(tmp_path)
    requests = (
        test_csm_runner.speech("Two frames.", 2, 2, sampling=Sampling(top_k=20, top_p=0.9)),
        test_csm_runner.speech("And one more.", 3, 2, sampling=Sampling(temperature=0.0)),
    )
    persistent = dataclasses.replace(fused_kernels(), name="persistent")
    found = []
    for kernels in (dataclasses.replace(persistent, depth_frame=TORCH.depth_frame), persistent):
        runner = test_csm_runner.make(folder, dtype=dtype, capture=GraphCapture(CPU), kernels=(kernels,), max_rows=2)
        driver = Driver(runner)
        for row, request in enumerate(requests):
            driver.start(row, request)
            driver.iterate()
        driver.finish()
        found.append([driver.frames(row) for row in range(2)])
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == 2
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "release"), [*((name, "0626") for name in SETS), ("triton-linear", "v0.1")])
def test_dia_codes_are_equal_with_fused_kernels(tmp_path: Path, name: SetName, release: str) -> None:
    folder = fabricate_dia(tmp_path, release=release, layout_name="nari" if release == "v0.1" else "transformers")
    request = test_dia_runner.speech("A few.", 2, 1)
    options = {
        "capture": GraphCapture(CPU),
        "kernels": (dataclasses.replace(fused_kernels(), name=name),),
        "max_rows": 1,
    }
    theirs = test_dia_runner.alone(test_dia_runner.make(folder), request)
    ours = test_dia_runner.alone(test_dia_runner.make(folder, **options), request)
    assert np.array_equal(ours, theirs)
