"""Compares Triton's kernels for the state of rows and the codec with torch, in Triton's interpreter: `make kernels`."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed here: make kernels")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton is not asked to interpret: make kernels", allow_module_level=True)

from app.nn.kernels import torch_kernels, torch_state, triton_launch, triton_state
from app.nn.kernels.sets import fused_kernels
from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows
from app.nn.mimi.config import MimiConfig
from app.nn.mimi.model import MimiDecoder
from bench.kernels import mend_interpreter

mend_interpreter()

pytestmark = pytest.mark.unit

# Failing cases are not shrunk: with the interpreter, that takes minutes.
SHORT = settings(
    deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck)
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
END, PAD, BURST = 40, 41, 3


class Numbers:
    """Random tensors."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._random)

    def flags(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._random) < share

    def exact(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Numbers whose sums in float32 are exact, because torch adds numbers in an order of its own."""
        return (self.whole(-200, 201, *shape) / 64).to(dtype)

    def normal(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(dtype)


def copied(state: Any) -> Any:
    return replace(
        state,
        **{
            field.name: value.clone()
            for field in fields(state)
            if isinstance(value := getattr(state, field.name), Tensor)
        },
    )


def assert_same(ours: Any, theirs: Any) -> None:
    """All tensors of two states are equal, bit for bit."""
    for field in fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert mine.equal(other) if isinstance(mine, Tensor) else mine == other, field.name


def delayed_rows(numbers: Numbers, rows: int, channels: int, positions: int) -> DelayedRows:
    """Rows in all states: in the prompt, between the delays, after the end, not selected, stopped, out of positions."""
    delays = numbers.whole(0, 8, channels)
    delays[0] = 0
    whole = numbers.whole(0, END, rows, positions, channels + 3)  # the rows of the codes have a stride
    return DelayedRows(
        whole[..., :channels],
        numbers.whole(0, positions // 2, rows),
        numbers.whole(1, positions, rows),
        numbers.flags(0.8, rows),
        numbers.flags(0.8, rows),
        numbers.whole(0, positions + 3, rows),
        numbers.whole(0, 1000, rows),
        numbers.whole(-2, 4, rows),
        numbers.whole(1, positions, rows),
        delays,
        int(delays.max()),
        END,
        PAD,
    )


@given(
    rows=st.integers(1, 5),
    channels=st.integers(1, 9),
    positions=st.integers(4, 40),
    width=st.sampled_from([1, 48, 130, 1500]),
    dtype=DTYPES,
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=40)
def test_inputs_of_delayed_rows_equal_torch(
    *, rows: int, channels: int, positions: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    numbers = Numbers(seed)
    state = delayed_rows(numbers, rows, channels, positions)
    table, lengths = numbers.exact(dtype, channels * 45, width), numbers.whole(1, 300, rows)
    for wide in {dtype, torch.float32}:  # a model that overflows computes in float32 and keeps its tables
        expected = torch_state.delayed_inputs(copied(state), table, lengths, wide)
        found = triton_state.delayed_inputs(copied(state), table, lengths, wide)
        assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))


@given(
    rows=st.integers(1, 5),
    channels=st.integers(1, 9),
    positions=st.integers(4, 40),
    ends=st.sampled_from([0.0, 0.3, 1.0]),
    finite=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=60)
def test_outputs_of_delayed_rows_equal_torch(
    *, rows: int, channels: int, positions: int, ends: float, finite: float, seed: int
) -> None:
    """ends: how many rows draw the end. finite: how many channels have finite logits."""
    numbers = Numbers(seed)
    state = delayed_rows(numbers, rows, channels, positions)
    results = DelayedResults(
        numbers.whole(0, BURST, rows),
        numbers.whole(0, 9, BURST, rows + 2, channels + 1).to(torch.int16),
        numbers.flags(0.5, BURST, rows + 2, 3),
    )
    ours, theirs = (copied(state), copied(results)), (copied(state), copied(results))
    for _ in range(5):  # the end comes at different channels in successive steps
        drawn = numbers.whole(0, END, rows, channels)
        drawn[:, 0] = torch.where(numbers.flags(ends, rows), END, drawn[:, 0])
        rest = drawn, numbers.flags(0.5, rows), numbers.flags(finite, rows, channels)
        torch_state.delayed_outputs(theirs[0], *rest, theirs[1])
        triton_state.delayed_outputs(ours[0], *rest, ours[1])
        assert_same(ours[0], theirs[0])
        assert_same(ours[1], theirs[1])


@given(
    rows=st.integers(1, 5),
    codebooks=st.integers(1, 33),
    codes=st.integers(2, 70),
    width=st.sampled_from([1, 48, 130, 1500]),
    dtype=DTYPES,
    finite=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=60)
def test_frames_equal_torch(
    *, rows: int, codebooks: int, codes: int, width: int, dtype: torch.dtype, finite: bool, seed: int
) -> None:
    numbers = Numbers(seed)
    end = int(numbers.whole(0, codes, 1))
    state = FrameRows(
        numbers.flags(0.8, rows),
        numbers.whole(0, 50, rows),
        numbers.whole(0, 50, rows),
        numbers.whole(0, 4, rows),
        numbers.whole(-2, 4, rows),
        numbers.normal(dtype, rows, width),
        numbers.whole(0, 9, rows, codebooks).to(torch.int16),
        numbers.flags(0.5, rows, 4),
        end,
    )
    table = numbers.exact(dtype, codebooks * (codes + 3), width)
    ours, theirs = copied(state), copied(state)
    for _ in range(4):
        for found, expected in zip(
            triton_state.frame_inputs(ours, 50), torch_state.frame_inputs(theirs, 50), strict=True
        ):
            assert found.equal(expected)
        drawn = numbers.whole(0, codes, rows, codebooks)
        drawn[numbers.flags(0.3, rows)] = end  # such a frame is silent
        drawn[numbers.flags(0.3, rows), :-1] = end
        first, last = numbers.normal(torch.float32, 2, rows, codes + 9)[:, :, :codes]
        first[:, end] += 4
        if not finite:
            last[0, -1] = [math.nan, math.inf, -math.inf][seed % 3]
        audible = triton_state.frame_outputs(ours, drawn, first, last)
        assert audible.equal(torch_state.frame_outputs(theirs, drawn, first, last))
        assert_same(ours, theirs)
        triton_state.frame_embeddings(ours, drawn, table)
        torch_state.frame_embeddings(theirs, drawn, table)
        assert_same(ours, theirs)


@given(
    rows=st.integers(1, 4),
    codes=st.integers(2, 300),
    width=st.sampled_from([1, 48, 700]),
    dtype=DTYPES,
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=30)
def test_draw_copies_the_embeddings_of_its_codes(
    *, rows: int, codes: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    numbers = Numbers(seed)
    table = numbers.normal(dtype, codes + 3, width)
    limits = torch.ones(rows), numbers.whole(0, 9, rows), torch.ones(rows)
    places = numbers.whole(0, 99, rows), numbers.whole(0, 99, rows)
    request = (numbers.normal(torch.float32, rows, codes), *limits, *places, 1, 3, torch.full((rows,), -1))
    alone = triton_launch.sample(*request)
    for kernels in (triton_launch, torch_kernels):
        embedded = torch.full((rows, width), math.nan, dtype=dtype)
        assert kernels.sample(*request, table=table, embedded=embedded).equal(alone)
        assert embedded.equal(table[alone])


def test_embeddings_of_another_dtype_or_of_several_codebooks_are_rejected() -> None:
    params = torch.ones(2), torch.zeros(2).long(), torch.ones(2), torch.zeros(2).long(), torch.zeros(2).long()
    table = torch.zeros(5, 8)
    for logits, embedded in (
        (torch.zeros(2, 5), torch.zeros(2, 8).half()),
        (torch.zeros(2, 3, 5), torch.zeros(2, 8)),
        (torch.zeros(2, 6), torch.zeros(2, 8)),
        (torch.zeros(2, 5), torch.zeros(3, 8)),
    ):
        banned = torch.full(logits.shape[:-1], -1)
        with pytest.raises(ValueError, match="no embeddings"):
            triton_launch.sample(logits, *params, 0, 9, banned, table=table, embedded=embedded)


def test_state_with_strides_is_rejected() -> None:
    numbers = Numbers(0)
    state = delayed_rows(numbers, 4, 3, 20)
    state = replace(state, positions=torch.zeros(4, 2, dtype=torch.int64)[:, 0])
    with pytest.raises(ValueError, match="no Triton kernel for the strides"):
        triton_state.delayed_inputs(state, torch.zeros(30, 8), torch.ones(4).long(), torch.float32)


@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 4),
    shape=st.sampled_from([(8, 1, 64), (2, 3, 16), (1, 5, 32)]),
    window=st.integers(4, 90),
    spare=st.integers(0, 20),
    done=st.integers(0, 400),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=40)
def test_window_attention_equals_torch(
    *, rows: int, tokens: int, shape: tuple[int, int, int], window: int, spare: int, done: int, seed: int
) -> None:
    """Each row has another position, and entries that no token may read contain NaN."""
    groups, share, size = shape
    numbers = Numbers(seed)
    ring = window + tokens + spare
    begin = torch.tensor([max(0, done - 57 * row) for row in range(rows)])
    cache = numbers.normal(torch.float32, 2, 2, rows + 1, groups, ring, size)[:, 1, :rows]
    entry = torch.arange(ring)
    position = begin[:, None] - 1 - (begin[:, None] - 1 - entry) % ring
    unread = (position < 0) | (position <= begin[:, None] - window)
    hidden = cache.masked_fill(unread[None, :, None, :, None], math.nan)
    masked = torch.empty_strided(cache.shape, cache.stride()).copy_(hidden)
    heads = numbers.normal(torch.float32, rows * tokens, groups * (share + 2), size)
    angles = 6 * torch.rand(rows * tokens, 1, size, generator=torch.Generator().manual_seed(seed))
    turn = angles.cos(), angles.sin()
    plain = cache.clone()
    expected = torch_kernels.window_attention(heads, *turn, *plain, begin, window)
    found = triton_launch.window_attention(heads, *turn, *masked, begin, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    places = (begin[:, None] + torch.arange(tokens)) % ring
    written = torch.zeros(rows, ring, dtype=torch.bool).scatter(1, places, True)[None, :, None, :, None]
    assert masked.nan_to_num(9).equal(torch.where(written, plain, hidden).nan_to_num(9))


@pytest.mark.parametrize("fault", ["size", "dtype", "window", "strides"])
def test_unsupported_window_attention_is_rejected(fault: str) -> None:
    size = 24 if fault == "size" else 16
    heads, turn, cache = torch.zeros(2, 3, size), torch.zeros(2, 1, size), torch.zeros(2, 1, 1, 10, size)
    if fault == "dtype":
        cache = cache.half()
    if fault == "strides":
        heads = torch.zeros(2, 3, 2 * size)[..., ::2]
    with pytest.raises(ValueError, match=r"no Triton kernel|do not fit"):
        triton_launch.window_attention(heads, turn, turn, *cache, torch.zeros(1).long(), 9 if fault == "window" else 8)


@given(
    tokens=st.integers(1, 5),
    width=st.integers(1, 700),
    adds=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=30)
def test_add_layer_norm_equals_torch(*, tokens: int, width: int, adds: bool, seed: int) -> None:
    numbers = Numbers(seed)
    x, update = (numbers.normal(torch.float32, tokens, width) + 3 for _ in range(2))
    weight, bias = numbers.normal(torch.float32, 2, width)
    request = x, update if adds else None, weight, bias, 1e-5
    expected, summed = torch_kernels.add_layer_norm(*request)
    found, total = triton_launch.add_layer_norm(*request)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert total.equal(summed)


@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 30),
    channels=st.integers(1, 40),
    kernel=st.integers(2, 7),
    dilation=st.integers(1, 3),
    elu=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=30)
def test_windows_of_convolutions_equal_torch(
    *, rows: int, tokens: int, channels: int, kernel: int, dilation: int, elu: bool, seed: int
) -> None:
    numbers = Numbers(seed)
    reach = (kernel - 1) * dilation
    x = numbers.normal(torch.float32, rows, tokens, channels)
    state = numbers.normal(torch.float32, rows, 5 + reach * channels)  # the state of a row has a stride
    past = state[:, 5:].unflatten(1, (reach, channels))
    before = state.clone()
    results = []
    for kernels in (torch_kernels, triton_launch):
        whole = torch.zeros_like(state)
        new = whole[:, :-5].unflatten(1, (reach, channels))
        results.append((kernels.conv_windows(x, past, new, kernel, dilation, elu=elu), whole))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if elu else 0)
    assert state.equal(before)


@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    stride=st.integers(1, 8),
    channels=st.integers(1, 40),
    grouped=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=30)
def test_overlaps_of_transposed_convolutions_equal_torch(
    *, rows: int, tokens: int, stride: int, channels: int, grouped: bool, bias: bool, seed: int
) -> None:
    numbers = Numbers(seed)
    shape = (rows, tokens, channels, 2, stride) if grouped else (rows, tokens, 2, stride, channels)
    spread = numbers.normal(torch.float32, *shape)
    spread = spread.permute(0, 1, 3, 4, 2) if grouped else spread
    state = numbers.normal(torch.float32, rows, 5 + stride * channels)
    overlap, added = state[:, 5:].unflatten(1, (stride, channels)), numbers.normal(torch.float32, channels)
    results = []
    for kernels in (torch_kernels, triton_launch):
        whole = torch.zeros_like(state)
        new = whole[:, :-5].unflatten(1, (stride, channels))
        results.append((kernels.overlap_add(spread, overlap, new, added if bias else None), whole))
    for ours, theirs in zip(*results, strict=True):
        assert ours.equal(theirs)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"upsample_groups": 4, "residual_layers": 2, "kv_heads": 1}], ids=str)
def test_frames_of_the_codec_equal_torch(changes: dict[str, Any]) -> None:
    """Rows pause, and the ring buffers wrap around."""
    config = MimiConfig(
        width=32, filters=4, ratios=(3, 2, 2), codebook_size=16, codebooks=4, upsample_groups=32, layers=2, ffn=48,
        heads=2, kv_heads=2, head_dim=16, window=6,
    )  # fmt: skip
    config = replace(config, **changes)
    random = torch.Generator().manual_seed(4)
    decoders = [MimiDecoder(config, rows=3, device=torch.device("cpu")) for _ in range(3)]
    for weight, *others in zip(*(decoder.parameters() for decoder in decoders), strict=True):
        weight.normal_(0, 0.6 * weight.shape[-1] ** -0.5, generator=random)
        for other in others:
            other.copy_(weight)
    eager, graph, fused = decoders
    ticks = torch.zeros(3)
    for _ in range(24):
        codes, active = torch.randint(16, (3, 4), generator=random), torch.rand(3, generator=random) < 0.7
        rows = active.nonzero()[:, 0].tolist()
        expected = graph.frame(codes, active)[active]
        found = fused.frame(codes, active, fused_kernels())[active]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        if rows:
            torch.testing.assert_close(eager.decode(rows, codes[active][..., None]), expected, rtol=0, atol=2e-5)
        ticks += active
    assert ticks.min() * config.latent_stride > config.window + 16  # more than a ring
