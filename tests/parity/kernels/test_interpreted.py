"""Compares Triton's kernels with the same kernels in torch, in Triton's interpreter: `make kernels`, or

TRITON_INTERPRET=1 python -m pytest tests/parity/kernels/test_interpreted.py
"""

from __future__ import annotations

import math
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
from app.nn.kernels.sets import LINEAR_OPERATIONS, fused_kernels
from app.runtime.sampling import SamplingParams, exponential_noise
from bench.kernels import Case, cases, check, mend_interpreter
from tests.unit.test_kernels import asked, draws, sample_each_removal
from tests.unit.test_sampling import FULL_BITS, Place

mend_interpreter()

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
# Failing cases are not shrunk: with the interpreter, that takes minutes.
SHORT = settings(
    deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate), suppress_health_check=list(HealthCheck)
)
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # tolerances for sums of values of about 1
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


# Linear layers of full size would take minutes here: see test_linear_interpreted.py and test_persistent_interpreted.py.
SLOW = {*LINEAR_OPERATIONS, "depth_frame"}
QUICK = [case for case in cases(2, torch.bfloat16) if case.kernel not in SLOW]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_kernels_equal_torch_for_the_shapes_of_the_models(case: Case) -> None:
    check(case, fused_kernels(), CPU)


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """Draw heads (B, H + 2 G, d), k, v and positions. The cache has NaN beyond each row's position."""
    groups, share, size = draw(
        st.sampled_from([(8, 4, 64), (2, 4, 128), (4, 4, 128), (1, 1, 16), (2, 3, 32), (2, 17, 16)])
    )
    rows = draw(st.integers(1, 4))
    length = draw(st.one_of(st.integers(1, 70), st.integers(1, 700)))
    dtype = draw(DTYPES)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    cache = torch.randn(2, 2, rows + 1, groups, length + 3, size, generator=random)
    positions = draw(st.lists(st.integers(0, length - 1), min_size=rows, max_size=rows))
    heads = torch.randn(rows, groups * (share + 2), size, generator=random)
    whole = cache.to(dtype)
    return heads.to(dtype), whole[0, 1, :rows], whole[1, 1, :rows], torch.tensor(positions), torch.tensor(length)


def blinded(cache: Tensor, positions: Tensor) -> Tensor:
    """Return a copy with the same strides and NaN after the position of each row."""
    behind = torch.arange(cache.shape[2]) > positions[:, None]
    result = torch.empty_strided(cache.shape, cache.stride(), dtype=cache.dtype)
    return result.copy_(cache.masked_fill(behind[:, None, :, None], math.nan))


@given(case=attentions(), turned=st.booleans())
@settings(SHORT, max_examples=40)
def test_decode_attention_equals_torch(case: tuple[Tensor, ...], turned: bool) -> None:
    heads, k, v, positions, length = case
    q = heads[:, : heads.shape[1] - 2 * k.shape[1]]
    angles = torch.rand(2 * len(heads), 1, heads.shape[2])[::2] * 6  # as in a step with two tokens of each row
    both = torch.stack((angles.cos(), angles.sin())).repeat(1, 2, 1, 1)[:, ::2]
    turn = (both[0], both[1]) if turned else None
    expected = torch_kernels.decode_attention(q, k, v, positions, int(length), 0.2, turn)
    result = triton_launch.decode_attention(
        q, blinded(k, positions), blinded(v, positions), positions, int(length), 0.2, turn
    )
    torch.testing.assert_close(result, expected, rtol=0, atol=ROUNDING[q.dtype])


@given(case=attentions())
@settings(SHORT, max_examples=25)
def test_step_attention_equals_torch(case: tuple[Tensor, ...]) -> None:
    heads, k, v, positions, length = case
    angles = torch.rand(len(heads), 1, heads.shape[2]) * 6
    expected_k, expected_v = k.clone(), v.clone()
    expected = torch_kernels.step_attention(
        heads, angles.cos(), angles.sin(), expected_k, expected_v, positions, int(length), 0.2
    )
    # the kernel must write the new position before it reads it
    made_k, made_v = (blinded(part, positions - 1) for part in (k, v))
    result = triton_launch.step_attention(
        heads, angles.cos(), angles.sin(), made_k, made_v, positions, int(length), 0.2
    )
    torch.testing.assert_close(result, expected, rtol=0, atol=ROUNDING[heads.dtype])
    assert torch.equal(made_k.nan_to_num(9), blinded(expected_k, positions).nan_to_num(9))
    assert torch.equal(made_v.nan_to_num(9), blinded(expected_v, positions).nan_to_num(9))


def test_attention_is_exact_for_large_score_differences() -> None:
    """The score differences exceed the range of exp2, so the running maximum must be kept between blocks."""
    random = torch.Generator().manual_seed(0)
    cache, q = torch.randn(2, 2, 4, 700, 64, generator=random), torch.randn(2, 8, 64, generator=random)
    positions = torch.tensor([699, 130])
    cache[0, :, :, 20] = 4 * q[:, ::2]
    expected = torch_kernels.decode_attention(q, *cache, positions, 700, 2.0)
    torch.testing.assert_close(
        triton_launch.decode_attention(q, *cache, positions, 700, 2.0), expected, rtol=0, atol=1e-4
    )


def test_attention_reads_only_the_given_length() -> None:
    """Inactive rows have a position after the given length. The kernel computes these rows too."""
    random = torch.Generator().manual_seed(0)
    cache, q = torch.randn(2, 2, 4, 700, 64, generator=random), torch.randn(2, 8, 64, generator=random)
    for length in (70, 300):
        cut = cache.clone()
        cut[:, :, :, length:] = math.nan
        result = triton_launch.decode_attention(q, *cut, torch.tensor([699, length - 1]), length, 0.1)
        expected = torch_kernels.decode_attention(q, *cache, torch.tensor([length - 1, length - 1]), length, 0.1)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_long_rows_are_split_and_short_ones_are_not() -> None:
    assert triton_launch.splits_of(8, 256, 64, 132) == (1, 256)
    assert triton_launch.splits_of(8, 2048, 64, 132) == (16, 128)
    assert triton_launch.splits_of(512, 2048, 64, 132) == (1, 2048)
    for programs in (1, 8, 20, 64, 300):
        for length in range(1, 3100, 7):
            splits, span = triton_launch.splits_of(programs, length, 64, 132)
            assert (splits - 1) * span < length <= splits * span
            assert span % 64 == 0


def test_unsupported_head_shapes_are_rejected() -> None:
    cache = torch.zeros(1, 1, 4, 24)
    with pytest.raises(ValueError, match="24"):
        triton_launch.decode_attention(torch.zeros(1, 1, 24), cache, cache, torch.zeros(1).long(), 4, 1.0)
    cache = torch.zeros(1, 1, 16, 4).transpose(2, 3)
    with pytest.raises(ValueError, match="strides"):
        triton_launch.decode_attention(torch.zeros(1, 1, 16), cache, cache, torch.zeros(1).long(), 4, 1.0)


def differing(result: Tensor, expected: Tensor) -> float:
    return float((result != expected).sum()) / max(200, result.numel())


@given(tokens=st.integers(1, 4), width=st.integers(1, 3000), dtype=DTYPES, seed=st.integers(0, 2**32))
@settings(SHORT, max_examples=25)
def test_add_rms_norm_equals_torch(tokens: int, width: int, dtype: torch.dtype, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, residual = torch.randn(2, tokens, 2 * width, generator=random).to(dtype)[:, :, :width]
    weight = torch.randn(width, generator=random).to(dtype)
    expected_norm, expected_sum = torch_kernels.add_rms_norm(x, residual, weight, 1e-5)
    normed, summed = triton_launch.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(summed, expected_sum)
    torch.testing.assert_close(normed, expected_norm)
    assert dtype == torch.float32 or differing(normed, expected_norm) < 0.01


@given(
    tokens=st.integers(1, 3),
    width=st.integers(1, 2500),
    dtype=DTYPES,
    activation=st.sampled_from(["silu", "gelu"]),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=25)
def test_gate_equals_torch(
    tokens: int, width: int, dtype: torch.dtype, activation: torch_kernels.Activation, seed: int
) -> None:
    both = (4 * torch.randn(tokens, 2 * width, generator=torch.Generator().manual_seed(seed))).to(dtype)
    expected, result = torch_kernels.gate(both, activation), triton_launch.gate(both, activation)
    torch.testing.assert_close(result, expected)
    # Both kernels round at the same steps. The error function of gelu is an approximation in torch.
    assert dtype == torch.float32 or differing(result, expected) < (0.01 if activation == "silu" else 0.1)


def chances(logits: Tensor, knob: SamplingParams, noise: Tensor, top_p: float) -> Tensor:
    """Return (V,) float64: the probability weight of each code, 0 for removed codes."""
    scores = logits / knob.temperature
    if 0 < knob.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(knob.top_k).values[-1], -math.inf)
    share = scores.double().softmax(0)
    if top_p < 1:
        below = torch.stack([share[scores <= score].sum() for score in scores])
        share = share.masked_fill((below <= 1 - top_p) & (scores < scores.max()), 0)
    return share / noise.double()


def could_be(code: int, logits: Tensor, knob: SamplingParams, noise: Tensor) -> bool:
    """Return whether exact arithmetic could draw the code, within the rounding of probabilities and limits."""
    if knob.temperature <= 0:
        return code == int(logits.argmax())
    nearby = (knob.top_p,) if knob.top_p >= 1 else (knob.top_p, knob.top_p - 1e-6, knob.top_p + 1e-6)
    found = [chances(logits, knob, noise, top_p) for top_p in nearby]
    return any(bool(drawn[code] >= drawn.max() * (1 - 1e-5)) for drawn in found)


@given(case=draws(codes=70), codebook=st.integers(0, 3))
@settings(SHORT, max_examples=100)
def test_sampled_codes_equal_torch(case: tuple[list[SamplingParams], Tensor, list[int], int], codebook: int) -> None:
    params, logits, banned, seed = case
    rows = len(params)
    seeds, frames = torch.arange(seed, seed + rows), torch.arange(rows)
    request = (logits, *asked(params), seeds, frames, codebook, 4, torch.tensor(banned))
    expected, result = torch_kernels.sample(*request), triton_launch.sample(*request)
    noise = exponential_noise(seeds, frames, 4, logits.shape[1])[:, codebook]
    for row, knob in enumerate(params):
        allowed = logits[row].clone()
        if banned[row] >= 0:
            allowed[banned[row]] = -math.inf
        assert could_be(int(result[row]), allowed, knob, noise[row])
        if int(result[row]) != int(expected[row]):  # if the codes differ, their scores differ only by a rounding
            assert could_be(int(expected[row]), allowed, knob, noise[row])


@pytest.mark.parametrize(("size", "top_k", "top_p"), [(40, 7, 1.0), (2051, 50, 1.0), (40, 0, 0.8), (300, 45, 0.95)])
def test_top_k_and_top_p_have_the_same_limits_as_in_torch(size: int, top_k: int, top_p: float) -> None:
    """Compare the draws that would change if the limit moved by one code."""
    rows = 4000
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    where, none = torch.arange(rows), torch.full((rows,), -1)

    def drawn(top_k: int, top_p: float) -> Tensor:
        params = torch.full((rows,), 1.7), torch.full((rows,), top_k), torch.full((rows,), top_p)
        return torch_kernels.sample(logits, *params, where, where, 1, 2, none)

    right = drawn(top_k, top_p)
    nearby = [drawn(top_k + 1, 1.0), drawn(top_k - 1, 1.0)] if top_k and top_p == 1 else []
    nearby += [drawn(top_k, top_p - 0.01), drawn(top_k, top_p + 0.01)] if top_p < 1 else []
    for others in nearby:
        sensitive_rows = (right != others).nonzero()[:12, 0]
        assert len(sensitive_rows) >= 6
        some = len(sensitive_rows)
        params = torch.full((some,), 1.7), torch.full((some,), top_k), torch.full((some,), top_p)
        result = triton_launch.sample(
            logits[sensitive_rows], *params, sensitive_rows, sensitive_rows, 1, 2, none[sensitive_rows]
        )
        assert torch.equal(result, right[sensitive_rows])


@given(seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), frame=st.integers(0, 2**40))
@settings(SHORT, max_examples=20)
def test_noise_equals_that_of_the_torch_kernel(seeds: list[int], frame: int) -> None:
    """2051 codes have similar probabilities, so the noise of each code decides which one is drawn."""
    rows = len(seeds)
    params = torch.ones(rows), torch.zeros(rows).long(), torch.ones(rows)
    logits = torch.randn(rows, 4, 2051, generator=torch.Generator().manual_seed(0))
    request = (logits, *params, torch.tensor(seeds), torch.arange(frame, frame + rows))
    none = torch.full((rows, 4), -1)
    assert torch.equal(triton_launch.sample(*request, 3, 9, none), torch_kernels.sample(*request, 3, 9, none))


@pytest.mark.parametrize("place", FULL_BITS[::3])  # two cases of CSM, one case of Dia
def test_noise_at_its_limits_never_draws_a_removed_code(place: Place) -> None:
    """With the largest noise, a removed code is never drawn, and a kept code is drawn."""
    result = sample_each_removal(triton_launch.sample, place)
    assert place.code not in result
    assert result == sample_each_removal(torch_kernels.sample, place)
    params = (
        torch.ones(1),
        torch.zeros(1).long(),
        torch.ones(1),
        torch.tensor([place.seed]),
        torch.tensor([place.frame]),
    )
    level = torch.zeros(1, place.codes)
    assert (
        int(triton_launch.sample(level, *params, place.codebook, place.codebooks, torch.tensor([-1]))[0]) == place.code
    )


def test_codes_with_equal_scores_at_the_limit_stay_and_zeros_of_both_signs_are_equal() -> None:
    logits = torch.tensor([[3.0, 0.0, -0.0, 0.0, -1.0]]).expand(80, -1)
    rows, none = torch.arange(80), torch.full((80,), -1)
    for top_k, top_p in ((2, 1.0), (0, 0.6)):
        params = torch.full((80,), 5.0), torch.full((80,), top_k), torch.full((80,), top_p)
        result = triton_launch.sample(logits, *params, rows, rows, 0, 1, none)
        assert torch.equal(result, torch_kernels.sample(logits, *params, rows, rows, 0, 1, none))
        assert set(result.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_k", [1, 2, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.3])
def test_codes_that_need_many_draws_equal_torch(top_k: int, top_p: float) -> None:
    """With a high temperature, most draws are outside of top-k, so codes are drawn again until one is kept."""
    logits = torch.randn(30, 700, generator=torch.Generator().manual_seed(1))
    rows, none = torch.arange(30), torch.full((30,), -1)
    params = torch.full((30,), 50.0), torch.full((30,), top_k), torch.full((30,), top_p)
    result = triton_launch.sample(logits, *params, rows, rows, 0, 1, none)
    assert torch.equal(result, torch_kernels.sample(logits, *params, rows, rows, 0, 1, none))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, with which the interpreter computes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (0, 0.5), (3, 0.9), (0, 1.0)])
def test_draw_of_a_row_that_is_not_finite_ends(bad: float, top_k: int, top_p: float) -> None:
    for places in (slice(None), slice(3, 4), slice(3, 30)):
        logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
        logits[:, places] = bad
        params = torch.ones(1), torch.tensor([top_k]), torch.tensor([top_p])
        zero = torch.zeros(1, dtype=torch.int64)
        code = triton_launch.sample(logits, *params, zero, zero, 0, 1, zero - 1)
        assert 0 <= int(code) < 40


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, if top-k keeps only codes that can't be drawn
@given(
    rows=st.integers(1, 3),
    codes=st.integers(8, 70),
    channels=st.integers(1, 3),
    end_factor=st.sampled_from([None, 0.8]),
    limits=st.tuples(st.sampled_from([0.0, 0.7, 1.8]), st.sampled_from([0, 1, 5, 500]), st.sampled_from([1.0, 0.6])),
    scale=st.sampled_from([0.0, 3.0]),
    suppressed=st.integers(-1, 2),
    bonus=st.sampled_from([0.0, 8.0]),
    seed=st.integers(0, 2**32),
)
@settings(SHORT, max_examples=60)
def test_guided_codes_equal_torch(
    *,
    rows: int,
    codes: int,
    channels: int,
    end_factor: float | None,
    limits: tuple[float, int, float],
    scale: float,
    suppressed: int,
    bonus: float,
    seed: int,
) -> None:
    """bonus: is added to the logit of the end in channel 0, so that the end is the best code."""
    logits = 2 * torch.randn(rows, 2, channels, codes, generator=torch.Generator().manual_seed(seed))
    end = codes - 4
    logits[:, :, 0, end] += bonus
    temperature, top_k, top_p = limits
    params = torch.full((rows,), temperature), torch.full((rows,), top_k), torch.full((rows,), top_p)
    scales, held = torch.full((rows,), scale), torch.full((rows,), suppressed)
    seeds, frames = torch.arange(seed, seed + rows), torch.arange(rows)
    request = (logits, scales, *params, seeds, frames, held, end, end_factor)
    expected, result = torch_kernels.guided_sample(*request), triton_launch.guided_sample(*request)
    assert torch.equal(result[1], expected[1])
    assert torch.equal(result[2], expected[2])
    assert bool(result[2].all())
    # Only if a sum is at the limit of top-p within its rounding, another code may be drawn.
    assert torch.equal(result[0], expected[0]) or (top_p < 1 and differing(result[0], expected[0]) <= 1 / 200)


def test_rows_that_are_not_finite_are_reported() -> None:
    logits = torch.zeros(5, 2, 3, 12)
    logits[1, 0, 0, 3], logits[2, 1, 2, 11], logits[3, 0, 1, 0] = math.nan, math.inf, -math.inf
    ones, zeros = torch.ones(5), torch.zeros(5, dtype=torch.int64)
    for kernels in (torch_kernels, triton_launch):
        finite = kernels.guided_sample(logits, ones, 0 * ones, zeros, ones, zeros, zeros, zeros, 8, None)[2]
        assert finite.all(dim=1).tolist() == [True, False, False, False, True]
        assert [row.tolist().index(False) for row in finite[1:4]] == [0, 2, 1]  # the channel


def test_missing_codebooks_are_rejected() -> None:
    params = torch.ones(1), torch.zeros(1).long(), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long()
    with pytest.raises(ValueError, match=r"codebooks 4\.\.4 do not exist"):
        triton_launch.sample(torch.zeros(1, 5), *params, 4, 4, torch.tensor([-1]))
