"""Compares the torch kernels with the code that they replace: the model's attention, norms, gates and sampler."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from app.errors import EngineUnavailable
from app.nn.attention import grouped_attention
from app.nn.kernels import checks, choice, torch_kernels
from app.nn.kernels.checks import depth_trial, differs, early_fault, wrong_operations
from app.nn.kernels.choice import candidates
from app.nn.kernels.depth import MAX_DEPTH_ROWS, DrawParameters
from app.nn.kernels.sets import LINEAR_OPERATIONS, OPERATIONS, TORCH, Kernels, early_kernels
from app.nn.kv_cache import KVCache
from app.nn.rope import Rope, apply_rotary, rotary
from app.nn.transformer import Block, StackConfig
from app.runtime.sampling import Sampler, SamplingParams, exponential_noise
from tests.unit.test_sampling import FULL_BITS, Place, removals

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
SHAPES = {"csm": (32, 8, 64), "depth": (8, 2, 128), "dia": (16, 4, 128), "alone": (4, 4, 16)}  # H, G, d


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_attention_matches_grouped_attention(shape: str, dtype: torch.dtype) -> None:
    heads, groups, size = SHAPES[shape]
    cache = random(2, 3, 5, groups, 40, size, dtype=dtype)  # (k | v, layers, rows, G, S, d)
    k, v = cache[0, 1, :4], cache[1, 1, :4]
    q = random(4, heads, size, dtype=dtype)
    positions, length, scale = torch.tensor([0, 31, 7, 20]), 32, size**-0.5
    output = torch_kernels.decode_attention(q, k, v, positions, length, scale)
    assert output.dtype == dtype
    for row, at in enumerate(positions.tolist()):
        grouped = q[row].view(1, groups, heads // groups, size)
        mine = grouped_attention(grouped, k[row : row + 1, :, : at + 1], v[row : row + 1, :, : at + 1], None, scale)
        torch.testing.assert_close(output[row], mine.view(-1))
        keys, values = (part[row, :, : at + 1].repeat_interleave(heads // groups, 0).double() for part in (k, v))
        exact = functional.scaled_dot_product_attention(q[row, :, None].double(), keys, values).reshape(-1)
        torch.testing.assert_close(output[row].double(), exact, **tolerance(dtype))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 0, "atol": {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]}


def test_decode_attention_copies_no_cache() -> None:
    """Both matrix products read non-contiguous views of the cache directly."""
    cache = torch.zeros(2, 3, 8, 4, 1024, 64)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        torch_kernels.decode_attention(
            torch.zeros(4, 16, 64), cache[0, 1, :4], cache[1, 1, :4], torch.zeros(4).long(), 512, 1
        )
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 4 * 4 * 512 * 64 * 4  # the limit is the size of a copy of the keys that are read


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_attention_equals_the_attention_of_a_block(shape: str, dtype: torch.dtype) -> None:
    heads, groups, size = SHAPES[shape]
    config = StackConfig(2, 32, heads, groups, size, 64, 1e-5, Rope(10_000.0))
    cache = KVCache(config, rows=5, positions=24, device=CPU, dtype=dtype, batched=True)
    cache.k.copy_(random(*cache.k.shape, dtype=dtype))
    cache.v.copy_(random(*cache.v.shape, dtype=dtype, seed=1))
    k, v = cache.k.clone(), cache.v.clone()
    positions = [3, 17, 0]
    token = random(3, heads + 2 * groups, size, dtype=dtype)
    cos, sin = rotary(config.rope.frequencies(size), torch.tensor(positions))
    turned = apply_rotary(token[:, : heads + groups], cos, sin)
    attend = cache.decode_attention([0, 1, 2], positions)
    expected = attend(1, turned[:, :heads], turned[:, heads:], token[:, heads + groups :])
    output = torch_kernels.step_attention(token, cos, sin, k[1, :3], v[1, :3], torch.tensor(positions), 24, size**-0.5)
    torch.testing.assert_close(output, expected)
    assert torch.equal(k, cache.k)
    assert torch.equal(v, cache.v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_block_of_kernels_equals_the_module(dtype: torch.dtype) -> None:
    config = StackConfig(1, 48, 4, 2, 16, 80, 1e-5, Rope(10_000.0))
    block = Block(config, device=CPU, dtype=dtype)
    for number, parameter in enumerate(block.parameters()):
        parameter.copy_(random(*parameter.shape, dtype=dtype, seed=number) * (0.2 if parameter.dim() > 1 else 1))
    x = random(3, 48, dtype=dtype)
    positions = torch.tensor([0, 4, 9])
    turn = rotary(config.rope.frequencies(16), positions)
    cache = KVCache(config, rows=3, positions=16, device=CPU, dtype=dtype, batched=True)
    expected = block(x, 0, turn, cache.decode_attention([0, 1, 2], [0, 4, 9]))
    k, v = torch.zeros_like(cache.k), torch.zeros_like(cache.v)
    normed, before = torch_kernels.add_rms_norm(torch.zeros_like(x), x, block.attention_norm, config.eps)
    token = block.qkv(normed).view(3, 8, 16)
    output = torch_kernels.step_attention(token, *turn, k[0], v[0], positions, 16, 16**-0.5)
    normed, after = torch_kernels.add_rms_norm(block.out(output), before, block.mlp_norm, config.eps)
    result = after + block.down(torch_kernels.gate(block.gate_up(normed), "silu"))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gate_rounds_activation_and_product(activation: torch_kernels.Activation) -> None:
    both = random(3, 40, dtype=torch.bfloat16)
    first, up = both.chunk(2, dim=-1)
    kind = functional.silu if activation == "silu" else functional.gelu
    assert torch.equal(torch_kernels.gate(both, activation), kind(first) * up)


@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    frame=st.integers(0, 2**40),
    codes=st.integers(1, 70),
    codebook=st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_noise_of_later_codebooks_equals_the_whole_noise(
    seeds: list[int], frame: int, codes: int, codebook: int
) -> None:
    frames = torch.arange(frame, frame + len(seeds))
    whole = exponential_noise(torch.tensor(seeds), frames, 8, codes)
    assert torch.equal(
        exponential_noise(torch.tensor(seeds), frames, 3, codes, first=codebook)[:, : 8 - codebook],
        whole[:, codebook:][:, :3],
    )


KNOBS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.9, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 3, 7, 50, 999]),
    top_p=st.sampled_from([1.0, 1.0, 0.05, 0.5, 0.9, 0.95]),
)
# Few values, so that many are equal, or many; some forbidden.
LOGITS = st.one_of(
    st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0]), st.floats(-8, 8, width=32, allow_subnormal=False)
)


@st.composite
def draws(draw: st.DrawFn, rows: int = 4, codes: int = 24) -> tuple[list[SamplingParams], Tensor, list[int], int]:
    params = draw(st.lists(KNOBS, min_size=1, max_size=rows))
    size = draw(st.integers(2, codes))
    values = draw(st.lists(st.lists(LOGITS, min_size=size, max_size=size), min_size=len(params), max_size=len(params)))
    logits = torch.tensor(values, dtype=torch.float32)
    logits[:, 0] = logits[:, 0].clamp(min=-3.0)  # at least two codes may be drawn
    logits[:, 1] = logits[:, 1].clamp(min=-3.0)
    banned = draw(st.lists(st.integers(-1, size - 1), min_size=len(params), max_size=len(params)))
    return params, logits, banned, draw(st.integers(0, 2**50))


def asked(params: list[SamplingParams]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.tensor([knob.temperature for knob in params]),
        torch.tensor([knob.top_k for knob in params]),
        torch.tensor([knob.top_p for knob in params]),
    )


@given(case=draws(), codebook=st.integers(0, 3))
@settings(max_examples=400, deadline=None)
def test_sample_equals_the_sampler(case: tuple[list[SamplingParams], Tensor, list[int], int], codebook: int) -> None:
    params, logits, banned, seed = case
    seeds, frames = torch.arange(seed, seed + len(params)), torch.arange(len(params))
    noise = exponential_noise(seeds, frames, 4, logits.shape[1])[:, codebook]
    result = torch_kernels.sample(logits, *asked(params), seeds, frames, codebook, 4, torch.tensor(banned))
    for row, knob in enumerate(params):
        allowed = logits[row : row + 1].clone()
        if banned[row] >= 0:
            allowed[0, banned[row]] = -math.inf
        assert allowed[0, result[row]] > -math.inf
        if edge_is_tied(allowed[0], knob):
            continue  # of several codes with the same score, the sampler drops some, depending on its sort
        picked = Sampler([knob], CPU).pick(allowed, noise[row : row + 1])
        assert int(picked[0]) == int(result[row])


def edge_is_tied(logits: Tensor, knob: SamplingParams) -> bool:
    """Return whether the lowest score in the top-p nucleus occurs twice."""
    if knob.top_p >= 1 or knob.temperature <= 0:
        return False
    scores = Sampler([dataclasses.replace(knob, top_p=1.0)], CPU)._cut(logits[None] / knob.temperature)
    kept = Sampler([knob], CPU)._cut(scores)[0]
    edge = kept[kept > -math.inf].min()
    return int((scores[0] == edge).sum()) > 1


def test_tied_codes_at_the_top_p_edge_are_kept() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0, -4.0]])
    params = asked([SamplingParams(1.0, 0, 0.8)] * 400)
    rows = torch.arange(400)
    none = torch.full((400,), -1)
    codes = torch_kernels.sample(logits.expand(400, -1), *params, rows, rows, 0, 1, none)
    assert set(codes.tolist()) == {0, 1, 2, 3}


def test_codebooks_drawn_together_equal_separate_draws() -> None:
    logits = random(5, 9, 67)
    params = asked(
        [
            SamplingParams(0.0),
            SamplingParams(1.1, 7),
            SamplingParams(0.9, 0, 0.9),
            SamplingParams(0.9, 50, 0.8),
            SamplingParams(2.0, 0),
        ]
    )
    seeds, frames = torch.arange(5), torch.arange(5) * 3
    banned = (torch.arange(45) % 30 - 1).view(5, 9)
    together = torch_kernels.sample(logits, *params, seeds, frames, 2, 12, banned)
    assert together.shape == (5, 9)
    for channel in range(9):
        lone = torch_kernels.sample(logits[:, channel], *params, seeds, frames, 2 + channel, 12, banned[:, channel])
        assert torch.equal(lone, together[:, channel])
    with pytest.raises(ValueError, match=r"codebooks 4\.\.12 do not exist"):
        torch_kernels.sample(logits, *params, seeds, frames, 4, 12, banned)


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_norm_linear_equals_its_parts(activation: torch_kernels.Activation | None) -> None:
    x, norm, weight = random(3, 24), random(24), random(16, 24)
    update = random(2, 3, 24)
    summed = x + update[0] + update[1]
    expected = functional.rms_norm(summed, (24,), norm, 1e-5) @ weight.t()
    if activation is not None:
        expected = getattr(functional, activation)(expected[:, :8]) * expected[:, 8:]
    found, kept = torch_kernels.norm_linear(x, update, norm, 1e-5, weight, activation)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(kept, summed)
    half = [each.bfloat16() for each in (x, norm, weight)]
    wide, same = torch_kernels.norm_linear(half[0], None, *half[1:2], 1e-5, half[2], activation, wide=True)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, wide.bfloat16().float())
    assert same is half[0]


def test_add_linear_puts_constants_where_there_is_no_product() -> None:
    x, weight, residual = random(2, 24), random(16, 24), random(6, 16)
    expected = residual.clone()
    expected[[0, 3]] += x @ weight.t()
    for constant in (random(16), random(2, 16)):
        whole = expected.clone()
        for row in (1, 2, 4, 5):
            whole[row] += constant if constant.dim() == 1 else constant[row // 3]
        found, update = torch_kernels.add_linear(x, weight, residual, every=3, constant=constant)
        assert update is None
        torch.testing.assert_close(found, whole)


def test_kernels_do_not_read_tensor_values() -> None:
    """Tensors on the meta device have shapes and no values: code that reads a value fails. A CUDA graph has the same
    limit."""
    with torch.device("meta"):
        whole, positions = torch.empty(3, 24), torch.empty(3).long()
        cache = torch.empty(2, 5, 4, 64, 16)
        token, turn = torch.empty(3, 24, 16), torch.empty(3, 1, 16)
        params = torch.empty(3), torch.empty(3).long(), torch.empty(3), torch.empty(3).long(), torch.empty(3).long()
        logits, banned = torch.empty(3, 9, 40), torch.empty(3, 9).long()
    output = TORCH.step_attention(token, turn, turn, cache[0, :3], cache[1, :3], positions, 32, 0.25)
    assert output.shape == (3, 16 * 16)
    output = TORCH.decode_attention(token[:, :8], cache[0, :3], cache[1, :3], positions, 32, 0.25)
    assert output.shape == (3, 8 * 16)
    assert TORCH.add_rms_norm(whole, whole, whole[0], 1e-5)[0].shape == (3, 24)
    assert TORCH.gate(whole, "silu").shape == (3, 12)
    assert TORCH.sample(logits, *params, 0, 9, banned).shape == (3, 9)
    with pytest.raises(RuntimeError, match="meta"):  # a read of the values from the device fails
        whole[0, 0].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_kernel_is_detected(dtype: torch.dtype) -> None:
    assert not differs(TORCH, CPU, dtype)
    for name in ("step_attention", "decode_attention", "gate", "sample"):
        right = getattr(TORCH, name)
        non_finite: Any = dataclasses.replace(TORCH, **{name: partial(off, right)})
        assert differs(non_finite, CPU, dtype) == name
    norm = dataclasses.replace(TORCH, add_rms_norm=lambda x, residual, weight, eps: (x, residual))
    assert differs(norm, CPU, dtype) == "add_rms_norm"


def off(right: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    result = right(*args, **options)
    return result + result // 2 + 1


def test_triton_is_refused_without_cuda_or_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, dtype = torch.device("cuda"), torch.float32
    for name, device, word in (("auto", CPU, "CUDA device"), ("torch", gpu, "TTS_KERNELS=torch")):
        found = candidates(name, device, dtype)  # type: ignore[arg-type]
        assert found.kernels == (TORCH,)
        assert word in found.reason
    with pytest.raises(EngineUnavailable, match="CUDA device, but the model runs on cpu") as refused:
        candidates("triton", CPU, dtype)
    assert "TTS_KERNELS=torch" in refused.value.remedy
    monkeypatch.setitem(sys.modules, "triton", None)  # behaves as if Triton were not installed
    monkeypatch.delitem(sys.modules, "app.nn.kernels.triton_launch", raising=False)
    monkeypatch.delattr("app.nn.kernels.triton_launch", raising=False)  # the attribute stays after an import
    monkeypatch.delitem(sys.modules, "app.nn.kernels.persistent_launch", raising=False)
    monkeypatch.delattr("app.nn.kernels.persistent_launch", raising=False)
    with pytest.raises(EngineUnavailable, match="Triton can't be imported") as missing:
        candidates("triton", gpu, dtype)
    assert "Install" in missing.value.remedy
    assert candidates("auto", gpu, dtype).kernels == (TORCH,)  # the server still speaks, with the torch kernels


def broken(fault: Exception) -> Callable[..., Tensor]:
    def kernel(*_: Any, **__: Any) -> Tensor:
        raise fault

    return kernel


def wrong_on_the_cpu(kernels: Kernels, _: torch.device, dtype: torch.dtype, **more: Any) -> Iterator[tuple[str, str]]:
    return wrong_operations(kernels, CPU, dtype, **more)


NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set triton.knobs")


@pytest.mark.parametrize(
    ("changes", "used", "words"),
    [
        ({"gate": broken(NO_COMPILER), "sample": broken(NO_COMPILER)}, (), ["not used", "needs a C compiler", "gcc"]),
        ({"step_attention": broken(NO_COMPILER)}, (), ["needs a C compiler"]),
        ({"gate": lambda *rest: TORCH.gate(*rest) + 1}, ("gate",), ["gate gives other results"]),
        ({"sample": broken(RuntimeError("PassManager failed\nmore"))}, ("sample",), ["sample fails", "failed)"]),
        ({"step_attention": broken(ValueError())}, ("step_attention",), ["step_attention fails", "ValueError"]),
        (
            {"gate": broken(ValueError("shape")), "decode_attention": broken(torch.OutOfMemoryError("no room"))},
            ("decode_attention", "gate"),
            ["gate fails", "decode_attention fails", "no room"],
        ),
        ({"norm_linear": broken(ValueError("no"))}, ("norm_linear",), ["norm_linear fails"]),
        ({name: broken(ValueError("no")) for name in OPERATIONS}, (), ["any operation"]),
        ({}, None, []),
    ],
)  # fmt: skip
def test_reason_says_which_triton_kernel_is_not_used_and_why(
    changes: dict[str, Any],
    used: tuple[str, ...] | None,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """used: the operations that run with torch's kernel inside the Triton set; () = the set is not used at all."""
    fused = dataclasses.replace(TORCH, name="triton", **changes)
    monkeypatch.setattr(choice, "fused_kernels", lambda: fused)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(choice, "wrong_operations", wrong_on_the_cpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(choice, "early_fault", lambda *_, **__: "")
    found = candidates("auto", torch.device("cuda", 0), torch.bfloat16)
    for word in words:
        assert word in found.reason
        assert word in caplog.text
    if used is None:
        linear = dataclasses.replace(fused, name="triton-linear")
        assert found == choice.Candidates((TORCH, fused, linear, found.kernels[3]))
        assert found.kernels[3].name == "triton-pdl"
        assert not caplog.text
    elif not used:
        assert found.kernels == (TORCH,)
    else:
        linear = [] if set(used) & set(LINEAR_OPERATIONS) else ["triton-linear", "triton-pdl"]
        assert [kernels.name for kernels in found.kernels] == ["torch", "triton", *linear]
        assert set(found.kernels[1].from_torch) == set(used)
        for name in OPERATIONS:
            assert (getattr(found.kernels[1], name) is getattr(TORCH, name)) == (name in used or name not in changes)


@pytest.mark.parametrize(
    ("dtype", "capability", "linear"),
    [
        (torch.bfloat16, (8, 0), ["triton-linear"]),
        (torch.bfloat16, (8, 9), ["triton-linear"]),
        (torch.bfloat16, (9, 0), ["triton-linear", "triton-pdl"]),
        (torch.float16, (12, 0), ["triton-linear", "triton-pdl"]),
        (torch.float16, (7, 5), []),
        (torch.float32, (9, 0), []),
    ],
)
def test_kernels_for_linear_layers_need_16_bits_and_a_gpu_with_their_instructions(
    dtype: torch.dtype, capability: tuple[int, int], linear: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "early_fault", lambda *_, **__: "")
    monkeypatch.setattr(choice, "fused_kernels", lambda: dataclasses.replace(TORCH, name="triton"))
    monkeypatch.setattr(choice, "wrong_operations", lambda *_, **__: [])
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    # of two GPUs, one has all instructions
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device.index else capability)
    gpus = [torch.device("cuda", index) for index in range(2)]
    for name, sets in (("auto", ["torch", "triton"]), ("triton", ["triton"])):
        found = candidates(name, gpus[0], dtype, other_devices=gpus[1:])  # type: ignore[arg-type]
        assert [kernels.name for kernels in found.kernels] == [*sets, *linear]


@pytest.mark.parametrize("fault", ["", "sample fails (no room)"])
def test_kernels_that_fail_in_a_graph_do_not_start_early(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "fused_kernels", lambda: dataclasses.replace(TORCH, name="triton"))
    monkeypatch.setattr(choice, "wrong_operations", lambda *_, **__: [])
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(choice, "early_fault", lambda *_, **__: fault)
    names = [each.name for each in candidates("auto", torch.device("cuda", 0), torch.bfloat16).kernels]
    assert ("triton-pdl" in names) == (not fault)
    assert fault in caplog.text


def test_replayed_results_of_kernels_that_start_early_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    right = dataclasses.replace(TORCH, name="triton-pdl")
    assert not early_fault(right, [CPU], torch.bfloat16)
    for name, wrong, word in (
        ("decode_attention", lambda *rest: TORCH.decode_attention(*rest) + 1, "other results"),
        ("add_linear", broken(ValueError("no")), "add_linear fails"),
    ):
        assert word in early_fault(dataclasses.replace(right, **{name: wrong}), [CPU], torch.bfloat16)
    lost = dataclasses.replace(right, sample=broken(RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        early_fault(lost, [CPU], torch.bfloat16)
    # a kernel of torch in the set has no early start
    early = early_kernels(dataclasses.replace(TORCH, name="triton", from_torch=("sample",)))
    assert early.sample is TORCH.sample
    assert getattr(early.norm_linear, "keywords") == {"early": True}  # noqa: B009 - only a partial has keywords


@dataclasses.dataclass
class Cards:
    """GPUs that are not here: their checks run on the CPU."""

    capability: tuple[int, int]
    fused: Kernels


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    some = Cards((9, 0), dataclasses.replace(TORCH, name="triton"))
    monkeypatch.setattr(choice, "fused_kernels", lambda: some.fused)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(
        choice, "wrong_operations", lambda kernels, _, dtype, **__: wrong_operations(kernels, CPU, dtype)
    )
    monkeypatch.setattr(choice, "early_fault", lambda *_, **__: "")
    monkeypatch.setattr(checks, "replayed", lambda run, _: run())
    monkeypatch.setattr(choice, "depth_trial", lambda _, dtype: depth_trial(CPU, dtype))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: some.capability)
    return some


GPU = torch.device("cuda", 0)


def test_one_kernel_for_the_depth_decoder_is_a_candidate_for_models_that_have_one(cards: Cards) -> None:
    found = candidates("auto", GPU, torch.bfloat16, depth=True)
    linear = ["triton-linear", "triton-pdl"]
    assert [kernels.name for kernels in found.kernels] == ["torch", "triton", *linear, "persistent"]
    assert not found.reason
    persistent = found.kernels[-1]
    assert persistent.operations == (*OPERATIONS, "depth_frame")
    assert not persistent.sorts
    assert [persistent.computes_depth(rows) for rows in (1, MAX_DEPTH_ROWS, MAX_DEPTH_ROWS + 1)] == [True, True, False]
    assert not found.kernels[-2].computes_depth(1)
    assert [each.name for each in candidates("persistent", GPU, torch.float16, depth=True).kernels] == ["persistent"]
    for name, sets in (("auto", ["torch", "triton", *linear]), ("persistent", ["triton", *linear])):
        assert [each.name for each in candidates(name, GPU, torch.bfloat16).kernels] == sets  # type: ignore[arg-type]
    found = candidates("auto", GPU, torch.bfloat16, depth=True, fp8=True)
    assert [kernels.name for kernels in found.kernels] == ["torch", "triton", *linear]


def test_one_kernel_for_the_depth_decoder_says_in_words_where_it_cannot_run(cards: Cards) -> None:
    with pytest.raises(EngineUnavailable, match="CUDA device, but the model runs on cpu"):
        candidates("persistent", CPU, torch.bfloat16, depth=True)
    for dtype, fp8, word in ((torch.float32, False, "float32"), (torch.bfloat16, True, "fp8")):
        with pytest.raises(
            EngineUnavailable, match=f"float16 or bfloat16, but the model has them in {word}"
        ) as refused:
            candidates("persistent", GPU, dtype, depth=True, fp8=fp8)
        assert "TTS_DTYPE" in refused.value.remedy
    cards.capability = (7, 5)
    with pytest.raises(EngineUnavailable, match=r"compute capability 8\.0, but cuda:0 has 7\.5") as refused:
        candidates("persistent", GPU, torch.float16, depth=True)
    assert "TTS_KERNELS=auto" in refused.value.remedy
    for dtype in (torch.float16, torch.float32):  # with "auto", such a GPU uses other sets
        found = candidates("auto", GPU, dtype, depth=True)
        assert [kernels.name for kernels in found.kernels] == ["torch", "triton"]


def changed_draws(change: Callable[[DrawParameters], DrawParameters]) -> Callable[..., tuple[Tensor, Tensor]]:
    def kernel(*args: Any) -> tuple[Tensor, Tensor]:
        return TORCH.depth_frame(*args[:-1], change(args[-1]))

    return kernel


def without_value(*args: Any) -> tuple[Tensor, Tensor]:
    result = TORCH.depth_frame(*args)
    args[2][-1, 1, 0, -1] = 0
    return result


@pytest.mark.parametrize(
    ("kernel", "word"),
    [
        (broken(torch.OutOfMemoryError("no room")), "fails"),
        (lambda *args: (TORCH.depth_frame(*args)[0].roll(1, 1), TORCH.depth_frame(*args)[1]), "gives other results"),
        (lambda *args: (TORCH.depth_frame(*args)[0], torch.zeros(3, 67)), "gives other results"),
        (changed_draws(lambda draws: dataclasses.replace(draws, seeds=draws.seeds + 1)), "gives other results"),
        (changed_draws(lambda draws: dataclasses.replace(draws, frames=draws.frames + 1)), "gives other results"),
        (changed_draws(lambda draws: dataclasses.replace(draws, temperature=draws.temperature * 0)), "gives other"),
        (without_value, "gives other results"),
    ],
)
def test_wrong_kernel_for_the_depth_decoder_is_not_used(cards: Cards, kernel: Any, word: str) -> None:
    cards.fused = dataclasses.replace(cards.fused, depth_frame=kernel)
    found = candidates("auto", GPU, torch.bfloat16, depth=True)
    assert [kernels.name for kernels in found.kernels] == ["torch", "triton", "triton-linear", "triton-pdl"]
    assert f"The kernels persistent are not used: depth_frame {word}" in found.reason
    assert found.kernels[1].from_torch == ()  # the other kernels are used


def test_kernel_for_the_depth_decoder_that_no_graph_can_capture_is_not_used(
    cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "replayed", broken(RuntimeError("cooperative launch is not supported")))
    found = candidates("auto", GPU, torch.bfloat16, depth=True)
    assert [kernels.name for kernels in found.kernels] == ["torch", "triton", "triton-linear", "triton-pdl"]
    assert "persistent are not used: depth_frame fails (RuntimeError: cooperative launch is not" in found.reason


def test_roundings_do_not_change_the_codes_of_the_check_of_the_depth_decoder() -> None:
    """So a kernel that sums in another order passes the check."""
    drawn = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        drawn.append(depth_trial(CPU, dtype)(TORCH)[-1].argmax(dim=-1))
        assert len(set(drawn[-1].flatten().tolist())) > 8
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_lost_gpu_is_not_reported_as_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(choice, "fused_kernels", lambda: dataclasses.replace(TORCH, gate=broken(lost)))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(choice, "wrong_operations", wrong_on_the_cpu)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        candidates("auto", torch.device("cuda", 0), torch.float32)


def test_every_device_of_a_split_model_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[torch.device] = []

    def wrong(_: Kernels, device: torch.device, __: torch.dtype, *, fp8: bool) -> list[tuple[str, str]]:
        assert not fp8
        checked.append(device)
        return [("gate", "fails")] if device.index == 1 else []

    monkeypatch.setattr(choice, "fused_kernels", lambda: dataclasses.replace(TORCH, name="triton"))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(choice, "wrong_operations", wrong)
    cards = [torch.device("cuda", index) for index in (0, 1, 1)]
    found = candidates("auto", cards[0], torch.float32, other_devices=cards[1:])
    assert checked == cards[:2]
    assert "gate fails on cuda:1" in found.reason
    assert found.kernels[1].from_torch == ("gate",)


def test_shifted_kernel_output_is_detected() -> None:
    """The same check runs on a CUDA device before Triton's kernels are used."""
    cpu = torch.device("cpu")
    assert not differs(TORCH, cpu, torch.float32)
    for name in ("step_attention", "decode_attention", "gate", "sample"):
        real = getattr(TORCH, name)
        broken = dataclasses.replace(TORCH, **{name: lambda *rest, real=real, **more: real(*rest, **more) + 1})
        assert differs(broken, cpu, torch.float32) == name
    unnormed = dataclasses.replace(TORCH, add_rms_norm=lambda x, residual, *rest: (x + residual, x + residual))
    assert differs(unnormed, cpu, torch.float32) == "add_rms_norm"


def sample_each_removal(sample: Callable[..., Tensor], place: Place) -> list[int]:
    """Return the codes that `sample` draws if each of `removals` and `banned` removes a code, for the one codebook and
    for the whole frame."""
    drawn = []
    named = torch.tensor([place.seed]), torch.tensor([place.frame])
    none = torch.full((1, place.codebooks), -1)
    banned = none.clone()
    banned[0, place.codebook] = place.code
    free = torch.zeros(place.codebooks, place.codes), SamplingParams(0.9, 0)
    for logits, params, ban in [*((*removal, none) for removal in removals(place)), (*free, banned)]:
        lone = logits[None, place.codebook], *asked([params]), *named, place.codebook
        drawn.append(int(sample(*lone, place.codebooks, ban[:, place.codebook])[0]))
        drawn.append(int(sample(logits[None], *asked([params]), *named, 0, place.codebooks, ban)[0, place.codebook]))
    return drawn


@pytest.mark.parametrize("place", FULL_BITS)
def test_sample_draws_no_removed_code_with_noise_from_24_one_bits(place: Place) -> None:
    assert place.code not in sample_each_removal(torch_kernels.sample, place)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_summed_in_float32(dtype: torch.dtype) -> None:
    """With Dia's scale of 1, rounding the scores to bfloat16 before the softmax would cause eight times the error."""
    q, k, v = (
        random(2, 4, 4, 64, dtype=dtype) * 3,
        random(2, 4, 500, 64, dtype=dtype),
        random(2, 4, 500, 64, dtype=dtype),
    )
    exact = functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0)
    fused = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    error = (grouped_attention(q, k, v, None, 1.0).double() - exact).abs().mean()
    assert error < 1.5 * (fused.double() - exact).abs().mean()
