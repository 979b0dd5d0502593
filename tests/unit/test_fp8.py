"""Weights in fp8: rounding, the model that has them, and where the server refuses them."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.engines.csm import loading
from app.engines.csm.config import parse_config
from app.engines.registry import BuildContext
from app.engines.shared.quantization import check_fp8
from app.errors import EngineUnavailable
from app.nn.kernels import choice
from app.nn.kernels.checks import wrong_operations
from app.nn.kernels.choice import candidates
from app.nn.kernels.sets import TORCH
from app.nn.linear import Fp8Weight, Linear
from app.settings import Settings
from tests.support.csm_requests import alone, make, speech
from tests.support.random_csm import csm_config

pytestmark = pytest.mark.unit

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
VALUES = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, (3, 8), elements=VALUES))
def test_each_value_keeps_three_bits_of_its_mantissa(values: Any) -> None:
    weight = torch.from_numpy(values)
    found = Fp8Weight.of(weight)
    rounded = found.rounded(torch.float32)
    # half of a step of 1/8, or half of the smallest number of fp8
    limit = torch.maximum(weight.abs() / 16, found.scales[:, None] * 2.0**-10)
    assert bool(((rounded - weight).abs() <= limit).all())
    assert bool((found.scales.log2() == found.scales.log2().round()).all())


@given(arrays(np.float32, (3, 8), elements=st.floats(-60, 60, width=32)), st.sampled_from(["bfloat16", "float16"]))
def test_rounded_values_are_exact_in_16_bits(values: Any, name: str) -> None:
    found = Fp8Weight.of(torch.from_numpy(values))
    assert torch.equal(found.rounded(getattr(torch, name)).float(), found.rounded(torch.float32))


def test_an_output_is_rounded_alone() -> None:
    """A large weight of one output does not change the others."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    large = weight.clone()
    large[0] *= 1e6
    large[3] = 0
    found, plain = Fp8Weight.of(large).rounded(torch.float32), Fp8Weight.of(weight).rounded(torch.float32)
    assert torch.equal(found[1:3], plain[1:3])
    assert torch.equal(found[3], torch.zeros(64))


def test_a_layer_computes_with_the_rounded_weight() -> None:
    linear = Linear(64, 8, bias=False, device=CPU, dtype=torch.bfloat16)
    linear.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    before = linear(x)
    linear.round_to_fp8()
    assert linear.fp8 is not None
    assert linear.fp8.values.element_size() == 1
    assert torch.equal(linear.weight, linear.fp8.rounded(torch.bfloat16))
    assert not torch.equal(linear(x), before)
    torch.testing.assert_close(linear(x), before, rtol=0.1, atol=1.0)


def test_only_the_depth_decoder_is_rounded(tiny_csm: Path) -> None:
    """The backbone's codes depend on text and voice, and the errors of heads go into the logits unchanged."""
    model, _ = loading.load_model(tiny_csm, device=CPU, dtype=torch.bfloat16)
    plain, _ = loading.load_model(tiny_csm, device=CPU, dtype=torch.bfloat16)
    quantized = loading.adapt(model, "fp8")
    assert quantized is not None
    assert quantized.name == "fp8 depth decoder"
    changed = {
        name.split(".")[0]
        for (name, now), then in zip(model.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(now, then)
    }
    assert changed == {"depth"}
    rounded = [part for part in model.modules() if isinstance(part, Linear) and part.fp8 is not None]
    assert len(rounded) == 4 * len(model.depth.blocks)


def test_codes_and_fingerprint_depend_on_fp8(tiny_csm: Path) -> None:
    plain, narrow = (make(tiny_csm, dtype=torch.bfloat16, quantize=each) for each in ("none", "fp8"))
    assert plain.fingerprint != narrow.fingerprint
    request = speech("The same words.")
    assert not np.array_equal(alone(narrow, request), alone(plain, request))


def test_memory_of_fp8_is_one_byte_and_a_scale_more_for_each_weight_of_the_depth_decoder() -> None:
    config = parse_config(csm_config("full"))
    assert config.codec is not None
    plain, narrow = (
        loading.measure(config, config.codec, dtype=torch.bfloat16, max_rows=1, quantize=each)
        for each in ("none", "fp8")
    )
    c = config.depth
    qkv = (c.heads + 2 * c.kv_heads) * c.head_dim
    weights = c.layers * c.width * (qkv + c.heads * c.head_dim + 3 * c.ffn)
    more = narrow.total_bytes - plain.total_bytes
    assert weights < more < 1.08 * weights
    assert narrow.layers_bytes == plain.layers_bytes


@pytest.mark.parametrize(
    ("capability", "dtype", "kernels", "words"),
    [
        (None, torch.bfloat16, True, "need an NVIDIA GPU, but the model runs on cpu"),
        ((8, 6), torch.bfloat16, True, "compute capability 8.9 or higher"),
        ((9, 0), torch.float32, True, "TTS_DTYPE=bfloat16"),
        ((9, 0), torch.bfloat16, False, "need Triton's kernels"),
        ((8, 9), torch.float16, True, ""),
        ((12, 0), torch.bfloat16, True, ""),
    ],
)
def test_fp8_is_refused_where_no_kernel_reads_it(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    kernels: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = CPU if capability is None else GPU
    if not words:
        check_fp8(device, dtype, kernels=kernels)
        return
    with pytest.raises(EngineUnavailable, match=words) as refused:
        check_fp8(device, dtype, kernels=kernels)
    assert refused.value.remedy == "Set TTS_QUANTIZE=none."


def test_a_server_on_a_cpu_refuses_fp8_before_it_loads_weights(
    tiny_csm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_runner", lambda *_, **__: pytest.fail("the weights were loaded"))
    values: dict[str, Any] = {"CSM_MODEL": str(tiny_csm), "TTS_DATA_DIR": str(tmp_path), "TTS_QUANTIZE": "fp8"}
    settings = Settings(_env_file=None, TTS_DEVICE="cpu", **values)
    with pytest.raises(EngineUnavailable, match="fp8 weights need an NVIDIA GPU"):
        loading.build(settings, BuildContext(lambda _: None, lambda: False))


def test_kernels_that_read_fp8_wrongly_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may be right for 16 bits and wrong for fp8. Only a model with fp8 then loses it."""

    def norm_linear(x: Any, update: Any, norm: Any, eps: float, weight: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(weight, Fp8Weight):
            weight = Fp8Weight(weight.values, 2 * weight.scales)
        return TORCH.norm_linear(x, update, norm, eps, weight, *rest, **options)

    fused = dataclasses.replace(TORCH, name="triton", norm_linear=norm_linear)
    monkeypatch.setattr(choice, "fused_kernels", lambda: fused)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(
        choice, "wrong_operations", lambda each, _, dtype, **more: wrong_operations(each, CPU, dtype, **more)
    )
    names = [[each.name for each in candidates("auto", GPU, torch.bfloat16, fp8=fp8).kernels] for fp8 in (False, True)]
    assert names == [["torch", "triton", "triton-linear"], ["torch", "triton"]]
