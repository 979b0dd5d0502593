"""Compares Triton's kernels for linear layers with those in torch, in Triton's interpreter: `make kernels`."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed here: make kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is not asked to interpret: make kernels", allow_module_level=True)

from app.nn.kernels import torch_kernels, triton_launch
from app.nn.kernels.torch_kernels import MAX_TOKENS
from app.nn.linear import Fp8Weight
from bench.kernels import mend_interpreter

mend_interpreter()

pytestmark = pytest.mark.unit

# Failing cases are not shrunk: with the interpreter, that takes minutes.
SHORT = settings(
    deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck)
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
# a value is the rounding of a sum of about 1, after a few roundings of its parts
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = {"tokens": st.integers(1, MAX_TOKENS), "width": st.integers(1, 700), "outputs": st.integers(1, 70)}


class Numbers:
    """Random tensors with values of about 1."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def of(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self._random)).to(self._dtype)

    def weight(self, outputs: int, width: int, *, fp8: bool) -> Tensor | Fp8Weight:
        """Return a weight whose outputs have different sizes."""
        weight = self.of(outputs, width, scale=width**-0.5) / (1 + torch.arange(outputs)[:, None] % 3).to(self._dtype)
        return Fp8Weight.of(weight) if fp8 else weight


def assert_equal(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@given(
    **SHAPES,
    dtype=DTYPES,
    parts=st.integers(0, 3),
    activation=st.sampled_from([None, "silu", "gelu"]),
    wide=st.booleans(),
    fp8=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=40)
def test_norm_linear_equals_torch(
    *,
    tokens: int,
    width: int,
    outputs: int,
    dtype: torch.dtype,
    parts: int,
    activation: torch_kernels.Activation | None,
    wide: bool,
    fp8: bool,
    seed: int,
) -> None:
    numbers = Numbers(seed, dtype)
    x = numbers.of(tokens, width + 8)[:, :width]
    update = numbers.of(parts, tokens, width).float() if parts else None
    norm = numbers.of(width)
    weight = numbers.weight(outputs * (1 if activation is None else 2), width, fp8=fp8)
    expected, expected_sum = torch_kernels.norm_linear(x, update, norm, 1e-5, weight, activation, wide=wide)
    found, summed = triton_launch.norm_linear(x, update, norm, 1e-5, weight, activation, wide=wide)
    assert_equal(found, expected, dtype)
    # the parts are added in float32, in an order of their own
    torch.testing.assert_close(summed, expected_sum, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@given(
    **SHAPES,
    dtype=DTYPES,
    every=st.integers(1, 3),
    constants=st.booleans(),
    whole=st.booleans(),
    fp8=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=40)
def test_add_linear_equals_torch(
    *,
    tokens: int,
    width: int,
    outputs: int,
    dtype: torch.dtype,
    every: int,
    constants: bool,
    whole: bool,
    fp8: bool,
    seed: int,
) -> None:
    numbers = Numbers(seed, dtype)
    count = max(1, tokens // every)
    x, residual = numbers.of(count, width + 8)[:, :width], numbers.of(count * every, outputs + 8)[:, :outputs]
    weight = numbers.weight(outputs, width, fp8=fp8)
    constant = numbers.of(count, outputs) if constants else numbers.of(outputs)
    options = {"every": every, "constant": None if every == 1 else constant, "whole": whole}
    expected, _ = torch_kernels.add_linear(x, weight, residual, **options)
    found, update = triton_launch.add_linear(x, weight, residual, **options)
    assert (update is None) == (
        whole or triton_launch.sums_in_parts(width, outputs, 512 // x.element_size(), 132)[0] == 1
    )
    if update is not None:
        found = found + update.sum(dim=0).to(dtype)
    assert_equal(found, expected, dtype)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_token_has_the_same_bits_alone_and_beside_others(dtype: torch.dtype, fp8: bool) -> None:
    numbers = Numbers(1, dtype)
    x, update = numbers.of(MAX_TOKENS, 600), numbers.of(2, MAX_TOKENS, 600).float()
    norm, weight = numbers.of(600), numbers.weight(40, 600, fp8=fp8)
    together = triton_launch.norm_linear(x, update, norm, 1e-5, weight, "silu")
    added, parts = triton_launch.add_linear(x, weight, x[:, :40])
    assert parts is not None
    for first, count in ((0, 1), (5, 1), (9, 2), (4, 8)):
        rows = slice(first, first + count)
        alone = triton_launch.norm_linear(x[rows], update[:, rows].contiguous(), norm, 1e-5, weight, "silu")
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours, theirs[rows])
        ours, ours_parts = triton_launch.add_linear(x[rows], weight, x[rows, :40])
        assert ours_parts is not None
        assert torch.equal(ours_parts, parts[:, rows])
        assert torch.equal(ours, added[rows])


def test_values_of_float16_do_not_overflow_before_the_norm() -> None:
    x = torch.full((1, 64), 3e4, dtype=torch.float16)
    norm, weight = torch.full((64,), 30.0, dtype=torch.float16), torch.eye(64, dtype=torch.float16)
    found, _ = triton_launch.norm_linear(x, None, norm, 1e-5, weight)
    assert torch.equal(found, torch.full((1, 64), 30.0, dtype=torch.float16))


def test_few_outputs_divide_their_sums_into_parts() -> None:
    assert triton_launch.sums_in_parts(8192, 1024, 256, 132) == (2, 4096)
    assert triton_launch.sums_in_parts(8192, 2048, 256, 132) == (1, 8192)
    assert triton_launch.sums_in_parts(200, 16, 256, 132) == (1, 256)
    for width in range(1, 4000, 37):
        for outputs in (1, 16, 300, 1024):
            parts, span = triton_launch.sums_in_parts(width, outputs, 256, 132)
            assert (parts - 1) * span < width <= parts * span
            assert span % 256 == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp8_weights_give_the_bits_of_the_same_weights_in_16_bits(dtype: torch.dtype) -> None:
    """Their scales are powers of two, so they change no rounding: rows with other kernels get the same products."""
    numbers = Numbers(3, dtype)
    x, norm = numbers.of(5, 600), numbers.of(600)
    narrow = numbers.weight(48, 600, fp8=True)
    assert isinstance(narrow, Fp8Weight)
    plain = narrow.rounded(dtype)
    for activation in (None, "silu"):
        ours, _ = triton_launch.norm_linear(x, None, norm, 1e-5, narrow, activation)
        theirs, _ = triton_launch.norm_linear(x, None, norm, 1e-5, plain, activation)
        assert torch.equal(ours, theirs)
    ours, _ = triton_launch.add_linear(x, narrow, x[:, :48], whole=True)
    theirs, _ = triton_launch.add_linear(x, plain, x[:, :48], whole=True)
    assert torch.equal(ours, theirs)


def test_early_requests_stay_inside_of_aligned_rows() -> None:
    requested = triton_launch._requested
    for width, blocks in ((100, 0), (256, 1), (768, 2), (1024, 4), (2048, 8), (8192, 8), (700, 0)):
        weight = torch.zeros(4, width, dtype=torch.bfloat16)
        assert requested(weight) == blocks
        assert 256 * blocks <= width
    unaligned = torch.zeros(4 * 1024 + 1, dtype=torch.bfloat16)[1:].view(4, 1024)
    assert requested(unaligned) == 0


@pytest.mark.parametrize("fault", ["tokens", "strides", "dtype"])
def test_unsupported_products_are_rejected(fault: str) -> None:
    x, weight = torch.zeros(MAX_TOKENS + (fault == "tokens"), 32), torch.zeros(8, 32)
    if fault == "strides":
        weight = torch.zeros(32, 8).t()
    if fault == "dtype":
        weight = weight.bfloat16()
    with pytest.raises(ValueError, match="no Triton kernel"):
        triton_launch.norm_linear(x, None, x[0], 1e-5, weight)
    with pytest.raises(ValueError, match="no Triton kernel"):
        triton_launch.add_linear(x, weight, x[:, :8])
