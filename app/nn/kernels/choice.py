"""Defines the sets of kernels, and chooses the sets that a device can run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from app.errors import EngineUnavailable
from app.nn.kernels import torch_kernels, torch_state
from app.nn.kernels.depth import (
    MAX_DEPTH_ROWS,
    DepthFrame,
    DepthWeights,
    DrawParameters,
    LayerWeights,
    depth_frame,
)
from app.nn.kernels.state_trials import state_trials
from app.nn.kernels.torch_state import DelayedResults, DelayedRows, FrameRows
from app.nn.linear import Fp8Weight
from app.runtime.cuda_graphs import GraphCapture
from app.runtime.faults import is_device_lost

KernelSet = Literal["auto", "torch", "triton", "persistent"]
LINEAR_OPERATIONS = ("norm_linear", "add_linear")
CODEC_OPERATIONS = ("window_attention", "add_layer_norm", "conv_windows", "overlap_add")
# the operations of the set "triton-pdl" whose kernels start early
EARLY_OPERATIONS = ("step_attention", "decode_attention", "sample", "guided_sample", *LINEAR_OPERATIONS)
OPERATIONS = (
    "step_attention",
    "decode_attention",
    "add_rms_norm",
    "gate",
    "sample",
    "guided_sample",
    "delayed_inputs",
    "delayed_outputs",
    "frame_inputs",
    "frame_outputs",
    "frame_embeddings",
    *CODEC_OPERATIONS,
    *LINEAR_OPERATIONS,
)

_WITH_LINEAR = ("triton-linear", "triton-pdl", "persistent")  # the sets whose kernels compute matrix products
_LINEAR_CAPABILITY = (8, 0)  # the first compute capability with the matrix instructions of these kernels

log = logging.getLogger(__name__)


class Sample(Protocol):
    """The type of the kernel that draws codes. `torch_kernels.sample` describes the parameters."""

    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        seeds: Tensor,
        frames: Tensor,
        codebook: int,
        codebooks: int,
        banned: Tensor,
        *,
        fast_path: bool = False,
        table: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor: ...


class GuidedSample(Protocol):
    """The type of the kernel that draws codes with guidance. See `torch_kernels.guided_sample`."""

    def __call__(
        self,
        logits: Tensor,
        scales: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        seeds: Tensor,
        frames: Tensor,
        suppressed: Tensor,
        end: int,
        end_factor: float | None,
        *,
        fast_path: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class NormLinear(Protocol):
    """The type of the kernel for an RMSNorm and a linear layer. See `torch_kernels.norm_linear`."""

    def __call__(
        self,
        x: Tensor,
        update: Tensor | None,
        norm: Tensor,
        eps: float,
        weight: Tensor | Fp8Weight,
        activation: torch_kernels.Activation | None = None,
        *,
        wide: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


class AddLinear(Protocol):
    """The type of the kernel for a linear layer and a sum. See `torch_kernels.add_linear`."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | Fp8Weight,
        residual: Tensor,
        *,
        every: int = 1,
        constant: Tensor | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...


class ConvWindows(Protocol):
    """The type of the kernel for the windows of a convolution. See `torch_kernels.conv_windows`."""

    def __call__(self, x: Tensor, past: Tensor, new: Tensor, kernel: int, dilation: int, *, elu: bool) -> Tensor: ...


class DecodeAttention(Protocol):
    """The type of the kernel for attention to a cache. See `torch_kernels.decode_attention`."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        length: int,
        scale: float,
        turn: tuple[Tensor, Tensor] | None = None,
        /,
    ) -> Tensor: ...


WindowAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
AddLayerNorm = Callable[[Tensor, "Tensor | None", Tensor, Tensor, float], tuple[Tensor, Tensor]]
DelayedInputs = Callable[[DelayedRows, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor, Tensor]]
DelayedOutputs = Callable[[DelayedRows, Tensor, Tensor, Tensor, DelayedResults], None]


@dataclass(frozen=True, slots=True)
class Kernels:
    """One set of kernels. torch_kernels.py and torch_state.py describe each kernel.

    The set "triton-linear" is the set "triton" for steps in which `norm_linear` and `add_linear` also compute the
    matrix products. The kernels of the set "triton-pdl" are the same, but those of EARLY_OPERATIONS start before the
    kernel before them has ended. The set "persistent" is the set "triton-linear" for frames in which `depth_frame`
    computes all steps of the depth decoder.
    """

    name: Literal["torch", "triton", "triton-linear", "triton-pdl", "persistent", "compiled"]
    decode_attention: DecodeAttention
    step_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, torch_kernels.Activation], Tensor]
    sample: Sample
    guided_sample: GuidedSample = torch_kernels.guided_sample
    delayed_inputs: DelayedInputs = torch_state.delayed_inputs
    delayed_outputs: DelayedOutputs = torch_state.delayed_outputs
    frame_inputs: Callable[[FrameRows, int], tuple[Tensor, Tensor, Tensor]] = torch_state.frame_inputs
    frame_outputs: Callable[[FrameRows, Tensor, Tensor, Tensor], Tensor] = torch_state.frame_outputs
    frame_embeddings: Callable[[FrameRows, Tensor, Tensor], None] = torch_state.frame_embeddings
    window_attention: WindowAttention = torch_kernels.window_attention
    add_layer_norm: AddLayerNorm = torch_kernels.add_layer_norm
    conv_windows: ConvWindows = torch_kernels.conv_windows
    overlap_add: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = torch_kernels.overlap_add
    norm_linear: NormLinear = torch_kernels.norm_linear
    add_linear: AddLinear = torch_kernels.add_linear
    depth_frame: DepthFrame = depth_frame
    # In a set of Triton kernels: the operations for which the torch kernel is used instead.
    from_torch: tuple[str, ...] = ()

    @property
    def sorts(self) -> bool:
        """Whether `sample` may sort all codes of a row.

        False = `sample` never sorts. True = `sample` sorts the codes if the sampling parameters do not allow the fast
        path of sampling.py.
        """
        return not self.fused or "sample" in self.from_torch

    @property
    def fused(self) -> bool:
        """Whether this is one of the sets of Triton kernels."""
        return self.name not in {"torch", "compiled"}

    @property
    def computes_codec(self) -> bool:
        """Whether the codec uses CODEC_OPERATIONS. With torch's kernels these would not save launches."""
        return self.fused and not set(CODEC_OPERATIONS) & set(self.from_torch)

    def computes_linear(self, tokens: int) -> bool:
        """Whether a step with this number of tokens uses `norm_linear` and `add_linear`."""
        return self.name in _WITH_LINEAR and tokens <= torch_kernels.MAX_TOKENS

    def computes_depth(self, rows: int) -> bool:
        """Whether a frame of this number of rows uses `depth_frame`."""
        return self.name == "persistent" and rows <= MAX_DEPTH_ROWS

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that steps with this set use."""
        found = tuple(each for each in OPERATIONS if self.name in _WITH_LINEAR or each not in LINEAR_OPERATIONS)
        return (*found, "depth_frame") if self.computes_depth(1) else found


TORCH = Kernels(
    "torch",
    torch_kernels.decode_attention,
    torch_kernels.step_attention,
    torch_kernels.add_rms_norm,
    torch_kernels.gate,
    torch_kernels.sample,
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The kernel sets that can run a model. If there are several sets, the caller measures which set is fastest."""

    kernels: tuple[Kernels, ...]
    reason: str = ""  # why all or some of Triton's kernels are not used


def candidates(
    name: KernelSet,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    other_devices: Sequence[torch.device] = (),
    fp8: bool = False,
    depth: bool = False,
) -> Candidates:
    """Return the kernel sets that can run a model of `dtype` on a device.

    name: "auto" = the torch kernels, and on a CUDA device with Triton also the Triton kernels. If a Triton kernel fails
    or gives other results than torch, the torch kernel replaces this kernel. "persistent" = only the set of this name,
    or the sets of "triton" without `depth`. compiled: True = ignore `name` and return only the torch kernels, compiled
    by torch.compile. other_devices: all devices of the model except `device`. fp8: whether the model has weights in
    fp8. depth: whether the model has a depth decoder, which is on `device`. Without it, the set "persistent" would be
    the same as "triton-linear".
    Raises EngineUnavailable if `name` is "triton" or "persistent" and this set can't run.
    """
    if compiled:
        return Candidates((compiled_kernels(),), "TTS_COMPILE=1 uses torch's kernels, compiled by torch.compile.")
    if name in {"triton", "persistent"} and device.type != "cuda":
        raise EngineUnavailable(
            f"Triton's kernels need a CUDA device, but the model runs on {device.type}.",
            remedy="Set TTS_KERNELS=torch.",
        )
    if device.type != "cuda":
        return Candidates((TORCH,), f"Triton's kernels need a CUDA device, but the model runs on {device.type}.")
    if name == "torch":
        return Candidates((TORCH,), "TTS_KERNELS=torch turns Triton's kernels off.")
    devices = list(dict.fromkeys((device, *other_devices)))
    if name == "persistent" and depth:
        _require_linear(devices, dtype, fp8=fp8)
        return Candidates((replace(fused_kernels(), name="persistent"),))
    if name in {"triton", "persistent"}:
        fused = fused_kernels()
        return Candidates((fused, *_with_linear(fused, devices, dtype, fp8=fp8)))
    found = _checked_kernels(devices, dtype, fp8=fp8)
    if depth and not fp8:  # the kernel for the depth decoder reads no weights in fp8
        found = _with_depth(found, device, dtype)
    if found.reason:
        log.warning("%s Speech does not change, but a step may take longer.", found.reason)
    return found


def _with_linear(
    fused: Kernels, devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool
) -> tuple[Kernels, ...]:
    """Return the sets "triton-linear" and "triton-pdl", except a set that would be slow or wrong on one of the devices.

    The products of the kernels need the matrix instructions for 16-bit numbers of compute capability 8.0, and an early
    start needs compute capability 9.0.
    """
    if dtype == torch.float32 or set(fused.from_torch) & set(LINEAR_OPERATIONS):
        return ()
    capability = min(torch.cuda.get_device_capability(device) for device in devices)
    if capability < _LINEAR_CAPABILITY:
        return ()
    linear, early = replace(fused, name="triton-linear"), early_kernels(fused)
    if capability < (9, 0):
        return (linear,)
    if fault := early_fault(early, devices, dtype, fp8=fp8):
        log.warning("Triton's kernels do not start early (programmatic dependent launch): %s.", fault)
        return (linear,)
    return linear, early


def early_kernels(fused: Kernels) -> Kernels:
    """Return the set "triton-pdl" for the set "triton"."""
    names = [name for name in EARLY_OPERATIONS if name not in fused.from_torch]
    starts: dict[str, Any] = {name: partial(getattr(fused, name), early=True) for name in names}
    return replace(fused, name="triton-pdl", **starts)


def early_fault(early: Kernels, devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool = False) -> str:
    """Return what is wrong with the kernels that start early, if a CUDA graph replays them; "" = nothing is wrong."""
    for device in devices:
        operation = "the check"
        try:
            with torch.cuda.device(device):  # Triton launches kernels on the current device
                for operation, run in _trials(device, dtype, fp8=fp8).items():
                    if operation not in EARLY_OPERATIONS or operation in early.from_torch:
                        continue
                    expected, found = run(TORCH), _replayed(partial(run, early), device)
                    if not all(_equal(operation, *pair, dtype) for pair in zip(found, expected, strict=True)):
                        return f"{operation} gives other results than torch's kernel"
        except Exception as error:
            if is_device_lost(error):
                raise
            return f"{operation} fails ({_fault_of(error)})"
    return ""


def _replayed(run: Callable[[], Sequence[Tensor]], device: torch.device) -> Sequence[Tensor]:
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


def _require_linear(devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool) -> None:
    """Raise EngineUnavailable if the model has no weights of 16 bits, or if products of them can't run on a device."""
    if dtype == torch.float32 or fp8:
        raise EngineUnavailable(
            "TTS_KERNELS=persistent needs weights in float16 or bfloat16, but the model has them in "
            f"{'fp8' if fp8 else 'float32'}.",
            remedy="Set TTS_KERNELS=auto, or TTS_QUANTIZE=none and TTS_DTYPE=bfloat16 or float16.",
        )
    for device in devices:
        found = torch.cuda.get_device_capability(device)
        if found < _LINEAR_CAPABILITY:
            raise EngineUnavailable(
                f"TTS_KERNELS=persistent needs compute capability 8.0, but {device} has {found[0]}.{found[1]}.",
                remedy="Set TTS_KERNELS=auto.",
            )


def _with_depth(found: Candidates, device: torch.device, dtype: torch.dtype) -> Candidates:
    """Add the set "persistent", if "triton-linear" is a candidate and a graph with `depth_frame` is right."""
    linear = next((each for each in found.kernels if each.name == "triton-linear"), None)
    if linear is None:
        return found
    trial = depth_trial(device, dtype)

    def run(each: Kernels) -> Sequence[Tensor]:
        return trial(each) if each is TORCH else _replayed(partial(trial, each), device)

    with torch.cuda.device(device):  # Triton launches kernels on the current device
        fault = _fault_of_operation("depth_frame", run, linear, dtype)
    if fault:
        reason = f"The kernels persistent are not used: depth_frame {fault} on {device}."
        return Candidates(found.kernels, f"{found.reason} {reason}".strip())
    return Candidates((*found.kernels, replace(linear, name="persistent")), found.reason)


def _checked_kernels(devices: Sequence[torch.device], dtype: torch.dtype, *, fp8: bool) -> Candidates:
    """Return the torch kernels and the Triton kernels.

    If a Triton kernel fails or gives other results than torch on one of the devices, the torch kernel replaces it.
    """
    wrong: dict[str, str] = {}
    try:
        fused = fused_kernels()
        for device in devices:
            with torch.cuda.device(device):  # Triton launches kernels on the current device
                for operation, fault in wrong_operations(fused, device, dtype, fp8=fp8):
                    wrong.setdefault(operation, f"{operation} {fault} on {device}")
    except Exception as error:
        if is_device_lost(error):
            raise
        return Candidates((TORCH,), f"Triton's kernels are not used: {_fault_of(error)}.")
    if not wrong:
        return Candidates((TORCH, fused, *_with_linear(fused, devices, dtype, fp8=fp8)))
    reason = f"Triton's kernels are not used for every operation: {'; '.join(wrong.values())}."
    if set(wrong) == set(OPERATIONS):
        return Candidates((TORCH,), reason.replace("every operation", "any operation"))
    mixed = replace(fused, from_torch=tuple(wrong), **{operation: getattr(TORCH, operation) for operation in wrong})
    return Candidates((TORCH, mixed, *_with_linear(mixed, devices, dtype, fp8=fp8)), reason)


def _fault_of(error: Exception) -> str:
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
        fault = _fault_of_operation(operation, run, kernels, dtype)
        if fault:
            yield operation, fault


def _fault_of_operation(
    operation: str, run: Callable[[Kernels], Sequence[Tensor]], kernels: Kernels, dtype: torch.dtype
) -> str:
    """Return how `run` with `kernels` differs from `run` with the torch kernels; "" = it does not differ."""
    expected = run(TORCH)
    try:
        found = run(kernels)
    except Exception as error:
        if is_device_lost(error) or "C compiler" in str(error):
            raise
        return f"fails ({_fault_of(error)})"
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


def compiled_kernels() -> Kernels:
    """Return the torch kernels, compiled by torch.compile. Needs a C++ compiler on a CPU, and Triton on CUDA."""

    def compiled(kernel: Any) -> Any:
        return torch.compile(kernel, dynamic=True)

    return Kernels(
        "compiled",
        decode_attention=compiled(torch_kernels.decode_attention),
        step_attention=compiled(torch_kernels.step_attention),
        add_rms_norm=compiled(torch_kernels.add_rms_norm),
        gate=compiled(torch_kernels.gate),
        sample=compiled(torch_kernels.sample),
    )


def fused_kernels() -> Kernels:
    """Return the Triton kernels. If TRITON_INTERPRET=1 is set, the Triton kernels can run on a CPU.

    Raises EngineUnavailable if Triton can't be imported.
    """
    try:
        from app.nn.kernels import persistent_launch, triton_launch, triton_state  # noqa: PLC0415 - import Triton
    except ImportError as error:
        raise EngineUnavailable(
            f"Triton can't be imported: {error}.",
            remedy="Install the CUDA build of torch, which includes Triton, or set TTS_KERNELS=torch.",
        ) from error
    return Kernels(
        "triton",
        triton_launch.decode_attention,
        triton_launch.step_attention,
        triton_launch.add_rms_norm,
        triton_launch.gate,
        triton_launch.sample,
        triton_launch.guided_sample,
        triton_state.delayed_inputs,
        triton_state.delayed_outputs,
        triton_state.frame_inputs,
        triton_state.frame_outputs,
        triton_state.frame_embeddings,
        triton_launch.window_attention,
        triton_launch.add_layer_norm,
        triton_launch.conv_windows,
        triton_launch.overlap_add,
        triton_launch.norm_linear,
        triton_launch.add_linear,
        persistent_launch.depth_frame,
    )
