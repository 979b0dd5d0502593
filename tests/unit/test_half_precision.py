"""float16 on GPUs without bfloat16: activations that are too large, and the model in float32 instead."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.engines.csm import loading as csm_loading
from app.engines.dia import loading as dia_loading
from app.engines.registry import BuildContext
from app.engines.shared.half_precision import LIMIT, HalfPrecisionOverflow, check_range, largest_activation
from app.nn.kv_cache import KVCache
from app.nn.rope import Rope
from app.nn.transformer import Stack, StackConfig
from app.settings import Settings
from tests.support import csm_requests, dia_requests

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
# One layer of the full width of CSM's backbone, of its depth decoder, and of Dia's decoder.
SHAPES = {"csm": (2048, 32, 8, 64, 8192), "depth": (1024, 8, 2, 128, 8192), "dia": (2048, 16, 4, 128, 8192)}


def layer(shape: str, *, mlp: float = 1.0, values: float = 1.0, norms: float = 1.0) -> Stack:
    """Return a float16 layer with random weights of ordinary size, multiplied by these factors."""
    width, heads, kv_heads, head_dim, ffn = SHAPES[shape]
    config = StackConfig(1, width, heads, kv_heads, head_dim, ffn, 1e-5, Rope(10_000.0))
    stack = Stack(config, max_positions=8, device=CPU, dtype=torch.float16)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in stack.named_parameters():
        factor = mlp if "gate_up" in name else values if "qkv" in name else 1.0
        if parameter.ndim == 1:
            parameter.data.fill_(norms)
            continue
        block = torch.randn(256, parameter.shape[1], generator=generator) * factor / math.sqrt(parameter.shape[1])
        parameter.data.copy_(block.repeat(len(parameter) // 256, 1)[: len(parameter)])
    return stack


def outputs(stack: Stack, scale: float) -> Tensor:
    cache = KVCache(stack.config, rows=1, positions=8, device=CPU, dtype=torch.float16)
    x = torch.randn(4, stack.config.width, generator=torch.Generator().manual_seed(1)) * scale
    return stack(x.half(), slice(0, 4), cache.prefill_attention(0, 0, 4))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("factors", "scale", "fits"),
    [
        ({}, 1.0, True),
        ({}, 1000.0, True),  # some models have outliers of this size
        ({"mlp": 30.0}, 1.0, True),
        ({"values": 100.0}, 1.0, True),
        ({"mlp": 300.0}, 1.0, False),  # the product of the projections gate and up overflows
        ({"norms": 400.0}, 1.0, False),
        ({"values": 30_000.0}, 1.0, False),
        ({}, 8000.0, False),  # a residual that is already near the limit of float16
        ({}, 60_000.0, False),
    ],
)
def test_full_width_layers_stay_finite_or_are_refused(
    shape: str, factors: dict[str, float], scale: float, fits: bool
) -> None:
    stack = layer(shape, **factors)
    largest = largest_activation(stack, partial(outputs, stack, scale))
    assert (largest <= LIMIT) is fits
    if fits:
        check_range(stack, torch.float16, partial(outputs, stack, scale), required=True)
        assert bool(outputs(stack, scale).isfinite().all())
    else:
        with pytest.raises(HalfPrecisionOverflow, match="float16 has values up to 65504"):
            check_range(stack, torch.float16, partial(outputs, stack, scale), required=True)


def test_only_float16_is_checked() -> None:
    def run() -> Tensor:
        raise AssertionError("not called")

    for dtype in (torch.bfloat16, torch.float32):
        check_range(torch.nn.Module(), dtype, run, required=True)


def enlarged(load: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """Return `load_model` with larger weights in one MLP."""

    def load_model(*rest: Any, **options: Any) -> Any:
        found = load(*rest, **options)
        model = found[0] if isinstance(found, tuple) else found
        stack = model.backbone if hasattr(model, "backbone") else model.decoder
        stack.blocks[0].gate_up.weight.data.mul_(factor)
        return found

    return load_model


CASES = [
    ("csm", 1.0, "auto", torch.float16, ""),
    ("csm", 3000.0, "auto", torch.float32, "runs in float32"),
    ("csm", 3000.0, "float16", torch.float16, "because TTS_DTYPE=float16 is set"),
    ("csm", 3000.0, "float32", torch.float32, ""),
    ("dia", 1.0, "auto", torch.float16, ""),
    ("dia", 3000.0, "auto", torch.float32, "runs in float32"),
    ("dia", 3000.0, "float16", torch.float16, "because TTS_DTYPE=float16 is set"),
]


@pytest.mark.parametrize(("engine", "factor", "name", "dtype", "words"), CASES)
def test_model_that_overflows_runs_in_float32_and_says_why(  # noqa: PLR0917 - fixtures
    engine: str,
    factor: float,
    name: str,
    dtype: torch.dtype,
    words: str,
    tiny_csm: Path,
    tiny_dia: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The test simulates a GPU of compute capability 7.5, for which `auto` is float16."""
    caplog.set_level(logging.WARNING)
    loading = csm_loading if engine == "csm" else dia_loading
    choose = loading.choose_dtype
    monkeypatch.setattr(loading, "choose_dtype", lambda each, at: torch.float16 if each == "auto" else choose(each, at))
    monkeypatch.setattr(loading, "load_model", enlarged(loading.load_model, factor))
    folders = {"CSM_MODEL": str(tiny_csm), "DIA_MODEL": str(tiny_dia), "DIA_CODEC": str(tiny_dia / "dac")}
    settings = Settings(_env_file=None, TTS_DATA_DIR=str(tmp_path), TTS_MAX_ROWS=2, TTS_DTYPE=name, **folders)
    threads = torch.get_num_threads()
    try:
        runner = loading.load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
    finally:
        torch.set_num_threads(threads)
    assert runner.model.dtype == dtype
    assert (words in caplog.text) if words else ("float16" not in caplog.text)
    facts = dict(runner.setup)
    assert ("dtype_reason" in facts) is ("float32" in words)
    if words.startswith("runs"):
        assert "float16 has values up to 65504" in str(facts["dtype_reason"])
        requests = csm_requests if engine == "csm" else dia_requests
        request = requests.speech("In the larger format.", frames=20)
        assert len(requests.alone(runner, request)) == 20
        assert np.isfinite(requests.alone(runner, request)).all()
