"""Compares the Triton kernels with the torch kernels: first the results, then the time of a call in a CUDA graph.

    python -m bench.kernels [--rows 1,8,64] [--dtype bfloat16] [--only attention,sample]
    python -m bench.kernels --check     # compares only the results; without a GPU, Triton's interpreter is used

The shapes are those of CSM's backbone and depth decoder and of Dia's decoder, where guidance doubles the rows. One
graph contains many calls with several sets of inputs. Together, the inputs are larger than the GPU's cache, as in a
step with many layers. `limit_us` is the time that the GPU needs to move the necessary bytes at its bandwidth. A copy in
the same run measures this bandwidth. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.nn.kernels.depth import MAX_DEPTH_ROWS, DepthWeights, DrawParameters, LayerWeights
from app.nn.kernels.sets import EARLY_OPERATIONS, TORCH, Kernels, early_kernels, fused_kernels
from app.nn.kernels.torch_kernels import MAX_TOKENS
from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows

INTERPRETED = "TRITON_INTERPRET"
_CALLS = 48  # number of calls in one graph
_REPLAYS = 20
_CACHE_BYTES = 128 << 20  # larger than the L2 cache of any current GPU
_ATOL = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}

Inputs = tuple[Any, ...]  # tensors, and objects that contain tensors


@dataclass(frozen=True)
class Case:
    """One kernel call of a model. make(generator, device) returns the inputs; run calls a kernel with these inputs.

    bytes: the smallest number of bytes that the call reads and writes.
    """

    name: str
    kernel: str
    rows: int
    bytes: int
    make: Callable[[torch.Generator, torch.device], Inputs]
    run: Callable[[Kernels, Inputs], Sequence[Tensor]]


@dataclass(frozen=True)
class Attention:
    """The shape of a model's attention.

    heads: query heads. groups: heads of keys and values. size: the size of a head. length: the largest number of
    positions. doubled: whether guidance doubles the rows.
    """

    name: str
    heads: int
    groups: int
    size: int
    length: int
    doubled: bool = False


ATTENTIONS = (
    Attention("csm backbone", 32, 8, 64, 512),
    Attention("csm backbone", 32, 8, 64, 2048),
    Attention("csm depth", 8, 2, 128, 32),
    Attention("dia self", 16, 4, 128, 512, doubled=True),
    Attention("dia self", 16, 4, 128, 3072, doubled=True),
)
CROSS = Attention("dia cross", 16, 16, 128, 512)
WIDTHS = (("csm backbone", 2048, 8192), ("csm depth", 1024, 8192), ("dia", 2048, 8192))
# Linear layers: name, inputs, outputs, activation of the gate, whether guidance doubles the rows
NORM_LINEARS = (
    ("csm backbone qkv", 2048, 3072, None, False),
    ("csm depth qkv", 1024, 1536, None, False),
    ("csm depth gate_up", 1024, 16384, "silu", False),
    ("csm depth head", 1024, 2051, None, False),
    ("dia gate_up", 2048, 16384, "silu", True),
)
ADD_LINEARS = (
    ("csm depth out", 1024, 1024, 1),
    ("csm depth down", 8192, 1024, 1),
    ("csm backbone down", 8192, 2048, 1),
    ("dia cross_out", 2048, 2048, 2),
)
HEADS_OF_CODES = (("csm", 2051, 1, 32), ("dia", 1028, 9, 9))


def _normal(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def _weight(generator: torch.Generator, device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> Tensor:
    """Return the weight of a linear layer. Its rows repeat, because many random numbers take long on a CPU."""
    some = _normal(generator, device, dtype, 61, inputs) / math.sqrt(inputs)
    return some.repeat(-(-outputs // len(some)), 1)[:outputs]


def _positions(rows: int, length: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return a random position from `length // 2` to `length - 1` for each row. Row 0 gets the last position."""
    positions = torch.randint(length // 2, length, (rows,), generator=generator, device=device)
    positions[0] = length - 1
    return positions


def _cache(
    shape: Attention, rows: int, dtype: torch.dtype, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return keys and values: views of a cache that has more rows and positions than the views, as in the models."""
    whole = _normal(generator, device, dtype, 2, rows + 1, shape.groups, shape.length + 16, shape.size)
    return whole[0, :rows], whole[1, :rows]


def attention_case(shape: Attention, rows: int, dtype: torch.dtype, *, fresh: bool, turned: bool = False) -> Case:
    """turned: whether attention to cached keys applies RoPE to the queries, as in Dia v0.1."""
    scale = shape.size**-0.5
    item = torch.finfo(dtype).bits // 8
    seen = rows * shape.groups * shape.size * shape.length * 3 // 4  # the mean of `_positions` is 3/4 of the length

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        k, v = _cache(shape, rows, dtype, generator, device)
        positions = _positions(rows, shape.length, generator, device)
        count = shape.heads + 2 * shape.groups if fresh else shape.heads
        heads = _normal(generator, device, dtype, rows, count, shape.size)
        turn = [_normal(generator, device, torch.float32, rows, 1, shape.size) for _ in range(2)]
        return (heads, *turn, k, v, positions)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        heads, cos, sin, k, v, positions = inputs
        if fresh:
            return kernels.step_attention(heads, cos, sin, k, v, positions, shape.length, scale), k, v
        turn = (cos, sin) if turned else None
        return (kernels.decode_attention(heads, k, v, positions, shape.length, scale, turn),)

    kernel = "step_attention" if fresh else "decode_attention"
    name = f"{kernel} {'RoPE ' * turned}{shape.name} {shape.heads}/{shape.groups}x{shape.size} of {shape.length}"
    return Case(name, kernel, rows, 2 * seen * item, make, run)


def norm_case(name: str, width: int, rows: int, dtype: torch.dtype) -> Case:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        x, residual = (_normal(generator, device, dtype, rows, width) for _ in range(2))
        return x, residual, _normal(generator, device, dtype, width)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        x, residual, weight = inputs
        return kernels.add_rms_norm(x, residual, weight, 1e-5)

    moved = (4 * rows + 1) * width * torch.finfo(dtype).bits // 8
    return Case(f"add_rms_norm {name} {width}", "add_rms_norm", rows, moved, make, run)


def gate_case(name: str, ffn: int, rows: int, dtype: torch.dtype) -> Case:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return (_normal(generator, device, dtype, rows, 2 * ffn),)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        return (kernels.gate(inputs[0], "silu"),)

    return Case(f"gate {name} {ffn}", "gate", rows, 3 * rows * ffn * torch.finfo(dtype).bits // 8, make, run)


def norm_linear_case(  # noqa: PLR0917 - a row of NORM_LINEARS, and then what `cases` is called with
    name: str, width: int, outputs: int, activation: Any, rows: int, dtype: torch.dtype
) -> Case:
    parts = 2 if "depth" in name else 0  # an update of the kernel before

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        x, norm = _normal(generator, device, dtype, rows, width), _normal(generator, device, dtype, width)
        weight = _weight(generator, device, dtype, outputs, width)
        return x, _normal(generator, device, torch.float32, parts, rows, width), norm, weight

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        x, update, norm, weight = inputs
        wide = name.endswith("head")
        y, summed = kernels.norm_linear(x, update if parts else None, norm, 1e-5, weight, activation, wide=wide)
        return y.to(dtype), summed

    moved = (width * outputs + rows * (width + outputs)) * torch.finfo(dtype).bits // 8
    return Case(f"norm_linear {name} {width}x{outputs}", "norm_linear", rows, moved, make, run)


def add_linear_case(  # noqa: PLR0917 - a row of ADD_LINEARS, and then what `cases` is called with
    name: str, width: int, outputs: int, every: int, rows: int, dtype: torch.dtype
) -> Case:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        x = _normal(generator, device, dtype, rows, width)
        residual = _normal(generator, device, dtype, every * rows, outputs)
        return (
            x,
            _weight(generator, device, dtype, outputs, width),
            residual,
            _normal(generator, device, dtype, outputs),
        )

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        x, weight, residual, constant = inputs
        options: dict[str, Any] = {"every": every, "constant": constant} if every > 1 else {}
        summed, update = kernels.add_linear(x, weight, residual, **options)
        return (summed if update is None else summed + update.sum(dim=0).to(dtype),)

    moved = (width * outputs + rows * (width + 2 * every * outputs)) * torch.finfo(dtype).bits // 8
    return Case(f"add_linear {name} {width}x{outputs}", "add_linear", rows, moved, make, run)


def depth_case(rows: int, dtype: torch.dtype) -> Case:
    """Return a call for the first two of 32 steps of CSM's depth decoder: the cache does not depend on drawn codes."""
    layers, width, heads, groups, size, ffn, codes = 4, 1024, 8, 2, 128, 8192, 2048

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def weight(outputs: int, inputs: int) -> Tensor:
            return _weight(generator, device, dtype, outputs, inputs)

        ones = torch.ones(width, device=device, dtype=dtype)
        angles = _normal(generator, device, torch.float32, 2, 1, size)
        table = _normal(generator, device, dtype, codes, width)
        layer_weights = [
            LayerWeights(
                ones,
                weight((heads + 2 * groups) * size, width),
                weight(width, heads * size),
                ones,
                weight(2 * ffn, width),
                weight(width, ffn),
            )
            for _ in range(layers)
        ]
        # The table of addresses is created here, because a CUDA graph can't capture the copy from the host.
        weights = DepthWeights(
            layer_weights,
            ones,
            [weight(codes, width)],
            table,
            angles.cos(),
            angles.sin(),
            groups=groups,
            scale=size**-0.5,
            eps=1e-5,
            activation="silu",
        )
        numbers = torch.arange(rows, device=device)
        draws = DrawParameters(
            torch.full((rows,), 0.9, device=device), 0 * numbers + 50, torch.ones(rows, device=device), numbers, numbers
        )
        cache = torch.zeros(2, layers, rows, groups, 32, size, device=device, dtype=dtype)
        return weights, cache, _normal(generator, device, dtype, rows, width), numbers, draws

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        weights, cache, x, first, draws = inputs
        k, v = cache
        kernels.depth_frame(weights, k, v, x, first, draws)
        return (cache[:, :, :, :, :2],)

    item = torch.finfo(dtype).bits // 8
    layer = (heads + 2 * groups) * size * width + heads * size * width + 3 * ffn * width
    moved = (2 * layers * layer + codes * width) * item
    return Case("depth_frame csm 2 of 32 steps", "depth_frame", rows, moved, make, run)


def sample_case(name: str, codes: int, channels: int, codebooks: int, rows: int) -> Case:
    wanted = [[0.9, 50, 1.0], [0.0, 50, 1.0]] if name == "csm" else [[1.3, 45, 0.95], [1.0, 0, 1.0]]
    fast_path = name == "csm"  # the value that the runner of the model passes for these parameters

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        logits = 2 * _normal(generator, device, torch.float32, rows, channels, codes)
        params = torch.tensor(wanted, device=device)
        mine = params[torch.arange(rows, device=device) % len(params)]
        seeds, frames = torch.randint(1 << 50, (2, rows), generator=generator, device=device)
        banned = torch.full((rows, channels), -1, device=device)
        banned[:, 0] = 0
        return logits, mine[:, 0].contiguous(), mine[:, 1].long(), mine[:, 2].contiguous(), seeds, frames, banned

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        logits, temperature, top_k, top_p, seeds, frames, banned = inputs
        return (
            kernels.sample(logits, temperature, top_k, top_p, seeds, frames, 0, codebooks, banned, fast_path=fast_path),
        )

    return Case(f"sample {name} {channels}x{codes}", "sample", rows, 4 * rows * channels * codes, make, run)


def guided_case(name: str, codes: int, channels: int, rows: int) -> Case:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        logits = 2 * _normal(generator, device, torch.float32, rows, 2, channels, codes)
        params = torch.tensor([1.8, 0.9, 3.0], device=device).repeat(rows, 1)
        limits, suppressed = torch.full((rows,), 45, device=device), torch.arange(rows, device=device) % 2
        seeds, frames = torch.randint(1 << 50, (2, rows), generator=generator, device=device)
        temperature, top_p, scales = (each.contiguous() for each in params.unbind(1))
        return logits, scales, temperature, limits, top_p, seeds, frames, suppressed

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        logits, scales, *params, suppressed = inputs
        temperature, top_k, top_p, seeds, frames = params
        found = kernels.guided_sample(
            logits, scales, temperature, top_k, top_p, seeds, frames, suppressed, codes - 4, None, fast_path=True
        )
        return [each.long() for each in found]

    return Case(
        f"guided_sample {name} {channels}x{codes}", "guided_sample", rows, 8 * rows * channels * codes, make, run
    )


DIA_DELAYS = 0, 8, 9, 10, 11, 12, 13, 14, 15


def delayed_case(rows: int, dtype: torch.dtype, *, before: bool) -> Case:
    """before: True = the inputs of a step of Dia; False = what follows the draw."""
    channels, positions, width = len(DIA_DELAYS), 3073, 2048

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        codes = torch.randint(1024, (rows, positions, channels), generator=generator, device=device)
        counters = torch.randint(20, 40, (6, rows), generator=generator, device=device)
        return codes, counters, _weight(generator, device, dtype, channels * 1028, width)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        codes, (prompts, ends, at, draws, held, first), table = inputs[0].clone(), inputs[1].clone(), inputs[2]
        selected = torch.ones(rows, dtype=torch.bool, device=codes.device)
        delays = torch.tensor(DIA_DELAYS, device=codes.device)
        speaking = selected.clone()
        state = DelayedRows(
            codes, prompts, ends, selected, speaking, at, draws, held, first, delays, max(DIA_DELAYS), 1024, 1025
        )
        if before:
            return kernels.delayed_inputs(state, table, prompts, dtype)
        frames = torch.zeros(4, rows, channels + 1, dtype=torch.int16, device=codes.device)
        flags = torch.zeros(4, rows, 3, dtype=torch.bool, device=codes.device)
        finite = torch.ones(rows, channels, dtype=torch.bool, device=codes.device)
        results = DelayedResults(torch.zeros_like(at), frames, flags)
        kernels.delayed_outputs(state, codes[:, 0].contiguous(), speaking, finite, results)
        return [each.long() for each in (codes, ends, speaking, at, draws, held, frames, flags)]

    kernel = "delayed_inputs" if before else "delayed_outputs"
    moved = rows * (channels + 2) * width * torch.finfo(dtype).bits // 8 if before else 32 * rows * channels
    return Case(f"{kernel} dia", kernel, rows, moved, make, run)


def frame_case(kernel: str, rows: int, dtype: torch.dtype) -> Case:
    """kernel: "frame_inputs", "frame_outputs" or "frame_embeddings", as in a frame of CSM."""
    codebooks, width, codes, sizes = 32, 2048, 2048, 64

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        counters = torch.randint(9, (4, rows), generator=generator, device=device)
        drawn = torch.randint(sizes, (rows, codebooks), generator=generator, device=device)
        logits = _normal(generator, device, torch.float32, 2, rows, codes)
        return counters, drawn, logits, _weight(generator, device, dtype, codebooks * sizes, width)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        (at, draws, left, held), drawn, logits, table = inputs[0].clone(), *inputs[1:]
        results = torch.zeros(rows, codebooks, dtype=torch.int16, device=drawn.device)
        flags = torch.ones(rows, 4, dtype=torch.bool, device=drawn.device)
        inputs_of_rows = torch.zeros(rows, width, dtype=dtype, device=drawn.device)
        state = FrameRows(flags[:, 0].clone(), at, draws, left, held, inputs_of_rows, results, flags, 0)
        if kernel == "frame_inputs":
            return kernels.frame_inputs(state, 2048)
        if kernel == "frame_embeddings":
            kernels.frame_embeddings(state, drawn, table)
            return (inputs_of_rows,)
        audible = kernels.frame_outputs(state, drawn, *logits)
        return [each.long() for each in (audible, at, draws, left, held, results, flags)]

    item = torch.finfo(dtype).bits // 8
    moved = {"frame_inputs": 64, "frame_outputs": 8 * codes, "frame_embeddings": (codebooks + 1) * width * item}
    return Case(f"{kernel} csm", kernel, rows, rows * moved[kernel], make, run)


def window_case(rows: int) -> Case:
    """The attention of a layer of Mimi's decoder for one frame: two tokens of each row."""
    heads, size, ring, window = 8, 64, 266, 250

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        cached = _normal(generator, device, torch.float32, 2, rows, heads, ring, size)
        fresh = _normal(generator, device, torch.float32, 2 * rows, 3 * heads, size)
        turn = _normal(generator, device, torch.float32, 2, 2 * rows, 1, size)
        done = torch.randint(2000, (rows,), generator=generator, device=device)
        done[0] = 1000
        return cached, fresh, turn, done

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        (k, v), fresh, turn, done = inputs[0].clone(), *inputs[1:]
        return kernels.window_attention(fresh, turn[0], turn[1], k, v, done, window), k, v

    return Case("window_attention mimi", "window_attention", rows, 8 * rows * heads * window * size, make, run)


def layer_norm_case(rows: int) -> Case:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        x, update = (_normal(generator, device, torch.float32, 2 * rows, 512) for _ in range(2))
        return x, update, *_normal(generator, device, torch.float32, 2, 512)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        x, update, weight, bias = inputs
        return kernels.add_layer_norm(x, update, weight, bias, 1e-5)

    return Case("add_layer_norm mimi 512", "add_layer_norm", rows, 4 * (8 * rows + 2) * 512, make, run)


def conv_case(rows: int) -> Case:
    """The windows of the last convolution of Mimi's decoder for one frame."""
    tokens, channels, kernel = 1920, 64, 3

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        chunk = _normal(generator, device, torch.float32, rows, tokens, channels)
        return chunk, *_normal(generator, device, torch.float32, 2, rows, kernel - 1, channels)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        new = inputs[2].clone()
        return kernels.conv_windows(inputs[0], inputs[1], new, kernel, 1, elu=True), new

    return Case("conv_windows mimi", "conv_windows", rows, 16 * rows * tokens * channels, make, run)


def overlap_case(rows: int) -> Case:
    """The last transposed convolution of Mimi's decoder for one frame, after its product."""
    tokens, stride, channels = 480, 4, 64

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        spread = _normal(generator, device, torch.float32, rows, tokens, 2, stride, channels)
        return spread, *_normal(generator, device, torch.float32, 2, rows, stride, channels)

    def run(kernels: Kernels, inputs: Inputs) -> Sequence[Tensor]:
        new = inputs[2].clone()
        return kernels.overlap_add(inputs[0], inputs[1], new, inputs[1][0, 0]), new

    return Case("overlap_add mimi", "overlap_add", rows, 12 * rows * tokens * stride * channels, make, run)


def cases(rows: int, dtype: torch.dtype) -> Iterator[Case]:
    """Yield all kernel calls in a step of each model with `rows` rows."""
    for shape in ATTENTIONS:
        yield attention_case(shape, rows * (1 + shape.doubled), dtype, fresh=True)
    yield attention_case(CROSS, rows, dtype, fresh=False)
    yield attention_case(CROSS, rows, dtype, fresh=False, turned=True)
    for name, width, ffn in WIDTHS:
        count = rows * (1 + (name == "dia"))
        yield norm_case(name, width, count, dtype)
        yield gate_case(name, ffn, count, dtype)
    for name, width, outputs, activation, doubled in NORM_LINEARS:
        if rows * (1 + doubled) <= MAX_TOKENS:
            yield norm_linear_case(name, width, outputs, activation, rows * (1 + doubled), dtype)
    for name, width, outputs, every in ADD_LINEARS:
        if rows * every <= MAX_TOKENS:
            yield add_linear_case(name, width, outputs, every, rows, dtype)
    if rows <= MAX_DEPTH_ROWS and dtype != torch.float32:
        yield depth_case(rows, dtype)
    yield guided_case("dia", 1028, 9, rows)
    yield delayed_case(rows, dtype, before=True)
    yield delayed_case(rows, dtype, before=False)
    yield window_case(rows)
    yield layer_norm_case(rows)
    yield conv_case(rows)
    yield overlap_case(rows)
    for kernel in ("frame_inputs", "frame_outputs", "frame_embeddings"):
        yield frame_case(kernel, rows, dtype)
    for name, codes, channels, codebooks in HEADS_OF_CODES:
        yield sample_case(name, codes, channels, codebooks, rows)


def check(case: Case, kernels: Kernels, device: torch.device, seed: int = 0) -> float:
    """Return the largest difference between the results of `kernels` and of torch; for codes, the share that differs.

    Raises AssertionError if the difference is larger than rounding errors can be.
    """
    results = []
    for some in (TORCH, kernels):
        inputs = case.make(torch.Generator(device).manual_seed(seed), device)
        results.append(case.run(some, inputs))
    worst = 0.0
    for expected, made in zip(*results, strict=True):
        assert made.shape == expected.shape
        assert made.dtype == expected.dtype
        if made.dtype == torch.int64:
            worst = max(worst, float((made != expected).float().mean()))
            assert worst <= 0.02, f"{case.name}: {worst:.1%} of the codes differ"
        else:
            difference = float((made.double() - expected.double()).abs().max())
            bound = _ATOL[made.dtype] * max(1.0, float(expected.abs().max()) / 4)
            assert difference <= bound, f"{case.name}: off by {difference}"
            worst = max(worst, difference)
    return worst


def mend_interpreter() -> None:
    """Correct bfloat16 in Triton's interpreter (version 3.7.1).

    Without this correction, a conversion to bfloat16 cuts off bits instead of rounding to nearest even, and a product
    reads the bits of bfloat16 numbers as integers.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(numbers: Any, source: Any, target: Any, mode: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(numbers.copy()).bfloat16().view(torch.uint16).numpy()
        return convert(numbers, source, target, mode)

    def widened(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == b.dtype.scalar == tl.bfloat16:
            a, b = builder.cast_impl(a, tl.float32), builder.cast_impl(b, tl.float32)
        return dot(builder, a, b, *others)

    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = widened


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return begun, ended


def _graph_us(case: Case, kernels: Kernels, device: torch.device) -> float:
    """Return the microseconds of one call: the median over several replays of a graph with many calls."""
    generator = torch.Generator(device).manual_seed(1)
    sets = max(1, min(_CALLS, math.ceil(_CACHE_BYTES / max(1, case.bytes))))
    inputs = [case.make(generator, device) for _ in range(sets)]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for some in inputs[:2]:
            case.run(kernels, some)  # in the first call, Triton compiles and torch allocates workspaces
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(_CALLS):
            case.run(kernels, inputs[call % sets])
    times = []
    for replay in range(_REPLAYS + 3):
        begun, ended = _events()
        begun.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize(device)
        if replay >= 3:
            times.append(float(begun.elapsed_time(ended)) * 1000 / _CALLS)
    return statistics.median(times)


def _bandwidth(device: torch.device) -> float:
    """Return how many bytes per second a large copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        begun, ended = _events()
        begun.record()
        target.copy_(source)
        ended.record()
        torch.cuda.synchronize(device)
        best = max(best, 2 * source.numel() / (float(begun.elapsed_time(ended)) / 1000))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,64", help="numbers of rows, separated by commas")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--only", default="", help="parts of kernel names, separated by commas")
    parser.add_argument("--check", action="store_true", help="compare only the results")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu and not args.check:
        sys.exit("There is no CUDA device, so times can't be measured. Use --check to compare only the results.")
    if importlib.util.find_spec("triton") is None:
        sys.exit("Triton is not installed. The CUDA build of torch includes it; `make kernels` installs it for a CPU.")
    if not gpu:
        os.environ[INTERPRETED] = "1"  # Triton reads this variable when the kernels are imported
        mend_interpreter()
    device, dtype = torch.device("cuda" if gpu else "cpu"), getattr(torch, args.dtype)
    kernels = fused_kernels()
    parts = [part for part in args.only.split(",") if part]
    starts_early = gpu and torch.cuda.get_device_capability(device) >= (9, 0)
    copied = _bandwidth(device) if gpu and not args.check else 0.0
    found: dict[str, dict[str, float | int]] = {}
    for rows in map(int, args.rows.split(",")):
        for case in cases(rows, dtype):
            if parts and not any(part in case.kernel for part in parts):
                continue
            row: dict[str, float | int] = {"rows": case.rows, "difference": check(case, kernels, device)}
            if not args.check:
                early = [early_kernels(kernels)] if starts_early and case.kernel in EARLY_OPERATIONS else []
                times = {some.name: _graph_us(case, some, device) for some in (TORCH, kernels, *early)}
                row |= {f"{name}_us": round(us, 2) for name, us in times.items()}
                row["limit_us"] = round(case.bytes / copied * 1e6, 2)
                row["speedup"] = round(times["torch"] / times["triton"], 2)
            found[f"{case.name}, {case.rows} rows"] = row
            print(f"{case.name}, {case.rows} rows:", row, flush=True)
    result = {
        "device": torch.cuda.get_device_name(device) if gpu else "cpu, Triton's interpreter",
        "dtype": args.dtype,
        "torch": torch.__version__,
        "copy_gb_per_s": round(copied / 1e9, 1),
        "faster": sum(row.get("speedup", 0) > 1 for row in found.values()),
        "of": len(found),
        "kernels": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
