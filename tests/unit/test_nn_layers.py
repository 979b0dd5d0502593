"""Decode attention of rows at different positions, and linear layers with packed and int8 weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.nn.kv_cache import KVCache
from app.nn.linear import Int8Linear, Linear, PackedLinear
from app.nn.low_rank import GATHERED_TOKENS, LowRankAdapters, Part, Place, Selection
from app.nn.mimi import model as mimi
from app.nn.rope import Rope
from app.nn.transformer import StackConfig

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CONFIG = StackConfig(layers=2, width=48, heads=6, kv_heads=2, head_dim=8, ffn=64, eps=1e-5, rope=Rope(100.0))


def test_batched_and_row_by_row_decode_attention_agree() -> None:
    """The masked product of a GPU and the loop of a CPU give the same results."""
    random = torch.Generator().manual_seed(0)
    caches = [
        KVCache(CONFIG, rows=5, positions=30, device=CPU, dtype=torch.float32, batched=batched)
        for batched in (True, False)
    ]
    for cache in caches[1:]:
        cache.k.copy_(caches[0].k.normal_(generator=random))
        cache.v.copy_(caches[0].v.normal_(generator=random))
    q = torch.randn(3, 6, 8, generator=random)
    k, v = torch.randn(2, 3, 2, 8, generator=random)
    outputs = [cache.decode_attention([4, 0, 2], [29, 0, 11])(1, q, k, v) for cache in caches]
    assert torch.allclose(*outputs, atol=1e-6)
    assert torch.equal(caches[0].k, caches[1].k)
    assert torch.equal(caches[0].v[1, 4, :, 29], v[0])
    # this token attends only to itself
    assert torch.allclose(outputs[0][1], v[1].repeat_interleave(3, 0).flatten())


def dense(dtype: torch.dtype, *, bias: bool) -> Linear:
    linear = Linear(64, 33, bias=bias, device=CPU, dtype=dtype)
    random = torch.Generator().manual_seed(1)
    for tensor in linear.parameters():
        tensor.data.normal_(0, 0.2, generator=random)
    return linear


@pytest.mark.parametrize("bias", [False, True])
def test_packed_linear_equals_the_plain_linear(bias: bool) -> None:
    plain = dense(torch.bfloat16, bias=bias)
    if not PackedLinear.supports(plain):
        pytest.skip("no bfloat16 products in oneDNN here")
    packed = PackedLinear(plain)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.allclose(packed(x).float(), plain(x).float(), atol=0.05)
    assert torch.equal(torch.cat([packed(x[i : i + 1]) for i in range(7)]), packed(x))
    assert not PackedLinear.supports(dense(torch.float32, bias=bias))


def test_packed_rows_are_the_same_in_batches_of_any_size() -> None:
    """The test uses the width of a real model, for which oneDNN has another kernel for a single row."""
    plain = Linear(2048, 2048, bias=False, device=CPU, dtype=torch.bfloat16)
    plain.weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    if not PackedLinear.supports(plain):
        pytest.skip("no bfloat16 products in oneDNN here")
    packed = PackedLinear(plain)
    x = torch.randn(8, 2048, generator=torch.Generator().manual_seed(2)).bfloat16()
    for count in (1, 2, 3, 5):
        assert torch.equal(torch.cat([packed(part) for part in x.split(count)]), packed(x)), count


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_linear_approximates_the_plain_linear(bias: bool, dtype: torch.dtype) -> None:
    plain = dense(dtype, bias=bias)
    small = Int8Linear(plain)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    x *= torch.tensor([1, 100, 0.01, 1, 1, 0, 3])[:, None]  # rows of very different sizes
    y, exact = small(x), plain(x)
    assert y.dtype == torch.float32
    assert torch.equal(torch.cat([small(x[i : i + 1]) for i in range(7)]), y)  # no row depends on another row
    error = (y.float() - exact.float()).norm(dim=1) / exact.float().norm(dim=1).clamp_min(1e-6)
    assert float(error.max()) < 0.03


@pytest.mark.parametrize("bias", [False, True])
def test_int8_linear_with_a_fused_norm_is_accurate(bias: bool) -> None:
    plain = dense(torch.float32, bias=bias)
    norm = torch.randn(64, generator=torch.Generator().manual_seed(3)) + 1
    small = Int8Linear(plain, norm, 1e-5)
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    x *= torch.tensor([1, 100, 0.01, 1e-4, 0, 3])[:, None]  # the fourth row is small compared with eps
    y, normed = small(x), torch.nn.functional.rms_norm(x, (64,), norm, 1e-5)
    assert torch.equal(torch.cat([small(part) for part in x.split(1)]), y)
    for expected, tolerance in ((plain(normed), 0.03), (Int8Linear(plain)(normed), 0.005)):
        error = (y - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-6)
        assert float(error.max()) < tolerance


def test_prompt_beside_an_adapter_keeps_its_bits() -> None:
    """A model with quantized weights computes in float32, and its adapters are in bfloat16."""
    random = torch.Generator().manual_seed(0)
    parent = nn.Module()
    parent.layer = Linear(16, 32, bias=False, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        parent.layer.weight.normal_(generator=random)
    adapters = LowRankAdapters({"layer": Place(parent, "layer", (32,), CPU)}, torch.bfloat16)
    x = torch.randn(2 * (GATHERED_TOKENS + 3), 16, generator=random)
    plain = parent.layer(x)
    down, up = (torch.randn(*shape, generator=random).bfloat16() for shape in ((4, 16), (4, 32)))
    adapters.set_slot(1, {"layer": [Part(0, down, up)]})
    adapters.select((0, 1))
    adapted = parent.layer(x)
    half = len(x) // 2
    assert torch.equal(adapted[:half], plain[:half])
    added = x[half:] @ down.float().T @ up.float()
    assert torch.allclose(adapted[half:], plain[half:] + added, rtol=1e-5, atol=1e-4)


def test_indices_of_a_batch_are_computed_once() -> None:
    layout, selection = ((0,), (((0, 4),),)), Selection()
    first = selection.indices(layout, (32,), 32)
    assert selection.indices(layout, (64,), 32) is not first
    assert selection.indices(layout, (32,), 32) is first


def test_long_convolution_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    conv = mimi.Conv(3, 4, 5)
    for parameter in conv.parameters():
        parameter.normal_(generator=random)
    x = torch.randn(2, 100 + conv.reach, 3, generator=random)
    whole = conv(x)
    linear, sizes = torch.nn.functional.linear, []

    def measured(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        sizes.append(x.numel())
        return linear(x, *weights)

    monkeypatch.setattr("torch.nn.functional.linear", measured)
    monkeypatch.setattr(mimi, "_WINDOW_FLOATS", 300)
    assert torch.allclose(conv(x), whole, atol=1e-6)
    assert len(sizes) == 10
    assert max(sizes) <= 300


def test_another_adapter_does_not_copy_the_matrices_of_rows_that_speak() -> None:
    """The engine's thread copies the matrices of a batch, so the copies must stay while adapters come and go."""
    random = torch.Generator().manual_seed(0)
    parent = nn.Module()
    parent.layer = plain = Linear(16, 32, bias=False, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        plain.weight.normal_(generator=random)
    adapters = LowRankAdapters({"layer": Place(parent, "layer", (32,), CPU)}, torch.float32)
    parts = [Part(0, *(torch.randn(*shape, generator=random) for shape in ((4, 16), (4, 32)))) for _ in range(4)]
    for slot in (1, 2):
        adapters.set_slot(slot, {"layer": [parts[slot]]})
    x = torch.randn(2, 16, generator=random)

    def step() -> tuple[torch.Tensor, object]:
        adapters.select((1, 2))
        return parent.layer(x), parent.layer.tables

    first, tables = step()
    adapters.set_slot(3, {"layer": [parts[3]]})
    again, kept = step()
    assert kept is tables
    adapters.clear_slot(3)
    assert step()[1] is tables
    assert torch.equal(first, again)
    adapters.clear_slot(2)  # another adapter in the slot of a row
    adapters.set_slot(2, {"layer": [parts[0]]})
    changed, _ = step()
    assert torch.equal(changed[0], first[0])
    expected = plain(x[1:]) + x[1:] @ parts[0].down.T @ parts[0].up
    assert torch.allclose(changed[1:], expected, rtol=1e-5, atol=1e-4)
