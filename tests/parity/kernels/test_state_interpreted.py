"""Compares Triton's kernels for the state of rows with those in torch, in Triton's interpreter: `make kernels`."""

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
from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows
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
