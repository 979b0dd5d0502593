"""Compares sets of kernels with the torch kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from app.errors import EngineUnavailable
from app.nn.kernels import torch_kernels
from app.nn.kernels.depth import DepthWeights, DrawParameters, LayerWeights
from app.nn.kernels.sets import EARLY_OPERATIONS, TORCH, Kernels
from app.nn.kernels.state_trials import state_trials
from app.nn.linear import Fp8Weight
from app.runtime.cuda_graphs import GraphCapture
from app.runtime.faults import is_device_lost


def early_fault(early: Kernels, devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool = False) -> str:
    """Return what is wrong with the kernels that start early, if a CUDA graph replays them; "" = nothing is wrong."""
    for device in devices:
        operation = "the check"
        try:
            with torch.cuda.device(device):  # Triton launches kernels on the current device
                for operation, run in _trials(device, dtype, fp8=fp8).items():
                    if operation not in EARLY_OPERATIONS or operation in early.from_torch:
                        continue
                    if fault := fault_of_operation(operation, in_graph(run, device), early, dtype):
                        return f"{operation} {fault}"
        except Exception as error:
            if is_device_lost(error):
                raise
            return f"{operation} fails ({fault_of(error)})"
    return ""


def in_graph(run: Callable[[Kernels], Sequence[Tensor]], device: torch.device) -> Callable[[Kernels], Sequence[Tensor]]:
    """Return `run`, with all kernels except those of torch replayed by a CUDA graph."""
    return lambda kernels: run(kernels) if kernels is TORCH else replayed(partial(run, kernels), device)


def replayed(run: Callable[[], Sequence[Tensor]], device: torch.device) -> Sequence[Tensor]:
    """Return the results of `run` when a CUDA graph replays it."""
    found: list[Tensor] = []

    def body() -> None:
        found[:] = run()

    capture = GraphCapture(device)
    replay = capture.capture(body)
    for result in found:
        result.zero_()  # so that only the replay can give the right results
    replay()
    capture.wait()
    return [result.clone() for result in found]  # the memory of `found` belongs to the graph


def fault_of(error: Exception) -> str:
    """Return a description of an error that Triton has raised."""
    if isinstance(error, EngineUnavailable):
        return error.reason.rstrip(".")
    lines = str(error).strip().splitlines()
    if any("C compiler" in line for line in lines):
        return "Triton needs a C compiler, and this machine has none (install gcc, or set CC)"
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def differs(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> str:
    """Compare `kernels` with the torch kernels on `device`. Return the first operation that fails or differs.

    Returns "" if all operations give the same results as the torch kernels. The comparison takes about a second.
    """
    return next((operation for operation, _ in wrong_operations(kernels, device, dtype)), "")


def wrong_operations(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, *, fp8: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the wrong operations of `kernels`: the name of each operation, and a description of the fault.

    An operation is wrong if it fails, or if its result differs from the result of the torch kernel. fp8: whether to
    compute linear layers with weights in fp8, too.

    Raises the error of a kernel if the compiler is missing or the GPU no longer works, because then all operations
    fail.
    """
    for operation, run in _trials(device, dtype, fp8=fp8).items():
        fault = fault_of_operation(operation, run, kernels, dtype)
        if fault:
            yield operation, fault


def fault_of_operation(
    operation: str, run: Callable[[Kernels], Sequence[Tensor]], kernels: Kernels, dtype: torch.dtype
) -> str:
    """Return how `run` with `kernels` differs from `run` with the torch kernels; "" = it does not differ."""
    expected = run(TORCH)
    try:
        found = run(kernels)
    except Exception as error:
        if is_device_lost(error) or "C compiler" in str(error):
            raise
        return f"fails ({fault_of(error)})"
    same = all(_equal(operation, *pair, dtype) for pair in zip(found, expected, strict=True))
    return "" if same else "gives other results than torch's kernel"


def _equal(operation: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    if operation in {"sample", "guided_sample"}:
        # A few draws may differ, because Triton and torch round logarithms differently and two codes can have nearly
        # equal scores.
        return bool((found == expected).float().mean() > 0.95)
    if not found.is_floating_point():
        return torch.equal(found, expected)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def _trials(
    device: torch.device, dtype: torch.dtype, *, fp8: bool = False
) -> dict[str, Callable[[Kernels], Sequence[Tensor]]]:
    """Return a mapping: name of an operation -> a function that runs it with random inputs and returns the results."""
    linear = {name: partial(_one, trial) for name, trial in _float_trials(device, dtype, fp8=fp8).items()}
    return {**linear, **state_trials(device, dtype)}


def _one(trial: Callable[[Kernels], Tensor], kernels: Kernels) -> Sequence[Tensor]:
    return (trial(kernels),)


def _float_trials(device: torch.device, dtype: torch.dtype, *, fp8: bool) -> dict[str, Callable[[Kernels], Tensor]]:
    """Return `_trials` of all operations that have one result, except the operations of torch_state.py."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, kind)

    rows, groups, size, positions, length = 3, 2, 64, 600, 512
    at = torch.tensor([0, 63, 511], device=device)
    angles = random(rows, 1, size, kind=torch.float32)
    cache = random(2, rows, groups, positions, size)
    heads = random(rows, 8 + 2 * groups, size)
    q = random(rows, 8, size)
    x, residual, weight = random(rows, 256), random(rows, 256), random(256)
    both = random(rows, 256)
    many, update = random(torch_kernels.MAX_TOKENS, 8192), random(2, 5, 512, kind=torch.float32)
    weights = random(512, 8192) / 64, random(1024, 512) / 16
    logits = random(64, 2051, kind=torch.float32) * 3
    number = torch.arange(64, device=device)
    temperature, top_p = torch.linspace(0, 2, 64, device=device), torch.linspace(0.5, 1.0, 64, device=device)

    def step_attention(each: Kernels) -> Tensor:
        k, v = cache.clone()
        attended = each.step_attention(heads, angles.cos(), angles.sin(), k, v, at, length, size**-0.5)
        return torch.cat((attended.flatten(), k.flatten(), v.flatten()))

    def sample(each: Kernels) -> Tensor:
        table, embedded = weights[1][:, :72].repeat(3, 1), random(64, 72)
        limits = temperature, number * 3, top_p, number, number
        codes = each.sample(logits, *limits, 3, 32, number - 1, table=table, embedded=embedded)
        expected = table[codes.clamp(0, len(table) - 1)]  # a wrong kernel may return any codes
        return torch.where((embedded == expected).all(dim=1), codes, -1)

    def decode_attention(each: Kernels) -> Tensor:
        place = cache[0], cache[1], at, length, size**-0.5
        turn = angles.cos(), angles.sin()
        return torch.cat((each.decode_attention(q, *place), each.decode_attention(q, *place, turn)))

    pair = random(8, 2, 4, 1028, kind=torch.float32) * 3
    pair[::2, :, 0, 1024] += 20  # the end is the best code
    some = slice(4, 64, 8)
    heat, most, share = (each[some].contiguous() for each in (temperature, number, top_p))

    def guided_sample(each: Kernels) -> Tensor:
        limits = heat, most, share, number[:8], number[:8], number[:8] % 3 - 1
        drawn = [each.guided_sample(pair, share * 3, *limits, 1024, factor) for factor in (None, 0.8)]
        return torch.cat([part.flatten().long() for parts in drawn for part in parts])

    ring, wide = random(2, rows, groups, 40, size, kind=torch.float32), random(6, 512, kind=torch.float32)
    fresh = random(6, 8 + 2 * groups, size, kind=torch.float32)
    turn, done = random(2, 6, 1, size, kind=torch.float32), torch.tensor([0, 7, 1003], device=device)

    def window_attention(each: Kernels) -> Tensor:
        k, v = ring.clone()
        attended = each.window_attention(fresh, turn[0], turn[1], k, v, done, 30)
        return torch.cat((attended.flatten(), k.flatten(), v.flatten()))

    def add_layer_norm(each: Kernels) -> Tensor:
        found = [each.add_layer_norm(wide, part, wide[0], wide[1], 1e-5) for part in (None, wide.flip(0))]
        return torch.cat([tensor for tensors in found for tensor in tensors])

    parts = random(2, rows, 24, 32, kind=torch.float32)
    chunk, spread = random(rows, 3, 32, kind=torch.float32), random(rows, 3, 32, 2, 4, kind=torch.float32)

    def conv_windows(each: Kernels) -> Tensor:
        new = parts[0].clone()
        found = each.conv_windows(chunk, parts[1], new, 5, 6, elu=True)
        return torch.cat((found.flatten(), new.flatten()))

    def overlap_add(each: Kernels) -> Tensor:
        new = parts[0, :, :4].clone()
        found = each.overlap_add(spread.permute(0, 1, 3, 4, 2), parts[1, :, :4], new, chunk[0, 0])
        return torch.cat((found.flatten(), new.flatten()))

    def norm_linear(each: Kernels) -> Tensor:
        gated, summed = each.norm_linear(many[:5, :512], update, many[0, :512], 1e-5, weights[1], "silu")
        wide, _ = each.norm_linear(summed, None, many[0, :512], 1e-5, weights[1], wide=True)
        narrow = []
        if fp8:
            narrow = [each.norm_linear(summed, None, many[0, :512], 1e-5, Fp8Weight.of(weights[1]), "silu")[0]]
        return torch.cat([found.flatten() for found in (gated, summed, wide, *narrow)])

    def add_linear(each: Kernels) -> Tensor:
        found = []
        for whole, every, narrow in ((False, 1, False), (True, 2, False), *(((False, 1, True),) if fp8 else ())):
            x, constant = (many[::2], many[1, :512]) if every > 1 else (many, None)
            weight = Fp8Weight.of(weights[0]) if narrow else weights[0]
            summed, parts = each.add_linear(x, weight, many[:, :512], every=every, constant=constant, whole=whole)
            found.append(summed if parts is None else summed + parts.sum(dim=0).to(dtype))
        return torch.cat(found)

    return {
        "step_attention": step_attention,
        "decode_attention": decode_attention,
        "add_rms_norm": lambda each: torch.cat(each.add_rms_norm(x, residual, weight, 1e-5)),
        "gate": lambda each: each.gate(both, "silu"),
        "sample": sample,
        "guided_sample": guided_sample,
        "window_attention": window_attention,
        "add_layer_norm": add_layer_norm,
        "conv_windows": conv_windows,
        "overlap_add": overlap_add,
        "norm_linear": norm_linear,
        "add_linear": add_linear,
    }


def depth_trial(device: torch.device, dtype: torch.dtype) -> Callable[[Kernels], Sequence[Tensor]]:
    """Return a function that runs `depth_frame` with random weights.

    The function returns the KV cache, the logits, and 1 for each drawn code and 0 for each other code. With these
    weights, the best codes of each draw are so different that roundings do not change the drawn codes.
    """
    generator = torch.Generator().manual_seed(14)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, dtype)

    rows, layers, codebooks, width, groups, share, size, ffn, codes = 3, 2, 5, 96, 2, 2, 32, 136, 67
    weights = DepthWeights(
        [
            LayerWeights(
                random(width),
                random(groups * (share + 2) * size, width, scale=width**-0.5),
                random(width, groups * share * size, scale=0.05),
                random(width),
                random(2 * ffn, width, scale=width**-0.5),
                random(width, ffn, scale=0.05),
            )
            for _ in range(layers)
        ],
        random(width),
        [random(codes, width) for _ in range(codebooks - 1)],
        random((codebooks - 1) * codes, width),
        torch.ones(codebooks, 1, size, device=device),
        torch.zeros(codebooks, 1, size, device=device),
        groups=groups,
        scale=size**-0.5,
        eps=1e-5,
        activation="silu",
    )
    x, cache = random(rows, width), random(2, layers, rows, groups, codebooks, size)
    first = torch.tensor([3, 0, 66], device=device)
    draws = DrawParameters(
        torch.tensor([0.0, 3.0, 4.0], device=device),
        torch.tensor([0, 5, 0], device=device),
        torch.tensor([1.0, 1.0, 0.8], device=device),
        torch.arange(rows, device=device),
        torch.arange(rows, device=device) + 9,
    )

    def run(each: Kernels) -> Sequence[Tensor]:
        k, v = cache.clone()
        drawn, logits = each.depth_frame(weights, k, v, x.clone(), first, draws)
        return k, v, logits / 32, (drawn[..., None] == torch.arange(codes, device=device)).long()

    return run
