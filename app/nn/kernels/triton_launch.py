"""Launches the Triton kernels. Each function has the signature and the result of the function in torch_kernels.py.

The import of this module imports Triton. The sizes of a launch depend only on the shapes of the arguments, and torch
allocates the memory. So a CUDA graph can capture each call. early: True = the kernel starts early, see
triton_kernels.py; only from compute capability 9.0 on, and not in Triton's interpreter.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from app.nn.kernels import triton_kernels
from app.nn.kernels.torch_kernels import MAX_TOKENS, Activation
from app.nn.linear import FP8, Fp8Weight

_MIN_ROWS = 16  # the smallest number of rows of a matrix product in Triton
_COLUMNS = 16  # the number of outputs that one program of a matrix product computes
_MAX_PARTS = 4  # the largest number of parts of the sums of a matrix product; the next product adds the parts
_STAGES = 6  # the largest number of blocks that a program of a matrix product keeps in memory while it requests more
_SHARED_BYTES = 80 << 10  # shared memory for these blocks; every GPU since compute capability 8.0 has 99 KiB
_VALUES = 1024  # number of values that one program of the codec's convolutions copies
_MAX_REQUESTED = 8  # blocks of 512 bytes of each row of a weight; so a thread requests at most two blocks
_MAX_UNSPLIT = 256  # up to this number of positions, one split is faster than several splits


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def splits_of(programs_each: int, length: int, block: int, processors: int) -> tuple[int, int]:
    """Divide `length` cache positions into splits. Returns the number of splits and the length of a split.

    A split is a range of consecutive positions that one program computes. programs_each: the number of programs
    that compute one split of all rows; there is one program for each row and key head. block: number of positions that
    a program reads in one iteration. processors: number of multiprocessors of the GPU. There are several splits only if
    all their programs together are at most two for each multiprocessor. If there are several splits, each split except
    the last has at least two blocks.
    """
    blocks = -(-length // block)
    if length <= _MAX_UNSPLIT:
        return 1, blocks * block
    max_splits = max(1, 2 * processors // programs_each)
    span = max(2, -(-blocks // max_splits)) * block
    return -(-length // span), span


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    length: int,
    scale: float,
    turn: tuple[Tensor, Tensor] | None = None,
    *,
    early: bool = False,
) -> Tensor:
    """Compute `torch_kernels.decode_attention` with a Triton kernel."""
    return _attend(q, q.shape[1], turn, k, v, positions, length, scale, fresh=False, early=early)


def step_attention(
    heads: Tensor,
    cos: Tensor,
    sin: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    length: int,
    scale: float,
    *,
    early: bool = False,
) -> Tensor:
    """Compute `torch_kernels.step_attention` with a Triton kernel."""
    count = heads.shape[1] - 2 * k.shape[1]
    return _attend(heads, count, (cos, sin), k, v, positions, length, scale, fresh=True, early=early)


def _attend(
    heads: Tensor,
    count: int,
    turn: tuple[Tensor, Tensor] | None,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    length: int,
    scale: float,
    *,
    fresh: bool,
    early: bool,
) -> Tensor:
    rows, _, size = heads.shape
    cos, sin = (positions, positions) if turn is None else turn
    groups = k.shape[1]
    if size < 16 or size & (size - 1) or not k.stride(3) == v.stride(3) == heads.stride(2) == 1:
        raise ValueError(
            f"no Triton kernel for heads of {size} values with strides {heads.stride()}, {k.stride()}, {v.stride()}"
        )
    # For wide heads, blocks of 64 positions would need too many registers.
    block = 32 if length <= 32 or size * k.element_size() > 256 else 64
    splits, span = splits_of(rows * groups, length, block, _processors(heads.device))
    out = torch.empty(rows, count * size, device=heads.device, dtype=heads.dtype)
    part = part_top = part_mass = out
    if splits > 1:
        part = torch.empty(rows, count, splits, size, device=heads.device, dtype=torch.float32)
        part_top, part_mass = torch.empty(2, rows, count, splits, device=heads.device, dtype=torch.float32)
    share = count // groups
    triton_kernels.attend[splits, groups, rows](
        heads,
        k,
        v,
        cos,
        sin,
        positions,
        out,
        part,
        part_top,
        part_mass,
        scale,
        length,
        span,
        heads.stride(0),
        heads.stride(1),
        k.stride(0),
        k.stride(1),
        k.stride(2),
        v.stride(0),
        v.stride(1),
        v.stride(2),
        cos.stride(0),
        GROUPS=groups,
        SHARE=share,
        PADDED=max(_MIN_ROWS, triton.next_power_of_2(share)),
        SIZE=size,
        BLOCK=block,
        WHOLE=splits == 1,
        TURN=turn is not None,
        FRESH=fresh,
        PDL=early,
        launch_pdl=early,
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=False,  # no fused multiply-add, so that RoPE gives the same bits as the torch kernel
    )
    if splits > 1:
        triton_kernels.combine[(rows * count,)](
            part,
            part_top,
            part_mass,
            out,
            splits,
            SIZE=size,
            PADDED=triton.next_power_of_2(splits),
            PDL=early,
            launch_pdl=early,
            num_warps=4,
        )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute `torch_kernels.add_rms_norm` with a Triton kernel."""
    tokens, width = x.shape
    normed, summed = torch.empty(2, tokens, width, device=x.device, dtype=x.dtype)
    block = triton.next_power_of_2(width)
    triton_kernels.add_norm[(tokens,)](
        x,
        residual,
        weight,
        normed,
        summed,
        x.stride(0),
        residual.stride(0),
        eps,
        WIDTH=width,
        BLOCK=block,
        num_warps=4 if block <= 1024 else 8,
        enable_fp_fusion=False,
    )
    return normed, summed


def window_attention(
    heads: Tensor, cos: Tensor, sin: Tensor, k: Tensor, v: Tensor, done: Tensor, window: int
) -> Tensor:
    """Compute `torch_kernels.window_attention` with a Triton kernel."""
    rows, groups, ring, size = k.shape
    tokens, count = len(heads) // rows, heads.shape[1] - 2 * groups
    whole = heads.is_contiguous() and cos.is_contiguous() and sin.is_contiguous() and done.is_contiguous()
    if size < 16 or size & (size - 1) or not whole or not k.stride(3) == v.stride(3) == 1:
        raise ValueError(f"no Triton kernel for heads of {size} values with strides {heads.stride()}, {k.stride()}")
    if heads.dtype != torch.float32 or k.dtype != torch.float32:
        raise ValueError(f"no Triton kernel for {heads.dtype} and {k.dtype}, only for torch.float32")
    if not tokens <= window <= ring - tokens:
        raise ValueError(f"{tokens} tokens with a window of {window} do not fit into {ring} entries")
    out = torch.empty(len(heads), count * size, device=heads.device, dtype=heads.dtype)
    share = count // groups
    triton_kernels.window_attend[groups, rows](
        heads,
        k,
        v,
        cos,
        sin,
        done,
        out,
        size**-0.5,
        ring,
        window,
        k.stride(0),
        k.stride(1),
        k.stride(2),
        v.stride(0),
        v.stride(1),
        v.stride(2),
        TOKENS=tokens,
        GROUPS=groups,
        SHARE=share,
        PADDED=max(_MIN_ROWS, triton.next_power_of_2(tokens * share)),
        SIZE=size,
        BLOCK=32,
        num_warps=4,
        num_stages=2,
        enable_fp_fusion=False,  # no fused multiply-add, so that RoPE gives the same bits as the torch kernel
    )
    return out


def add_layer_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute `torch_kernels.add_layer_norm` with a Triton kernel."""
    if not x.is_contiguous() or x.dtype != torch.float32 or (update is not None and not update.is_contiguous()):
        raise ValueError(f"no Triton kernel for {x.dtype} with strides {x.stride()}")
    tokens, width = x.shape
    normed = torch.empty_like(x)
    summed = x if update is None else torch.empty_like(x)
    block = triton.next_power_of_2(width)
    triton_kernels.add_layer[(tokens,)](
        x,
        x if update is None else update,
        weight,
        bias,
        normed,
        summed,
        eps,
        ADDS=update is not None,
        WIDTH=width,
        BLOCK=block,
        num_warps=4,
    )
    return normed, summed


def conv_windows(x: Tensor, past: Tensor, new: Tensor, kernel: int, dilation: int, *, elu: bool) -> Tensor:
    """Compute `torch_kernels.conv_windows` with a Triton kernel."""
    rows, tokens, channels = x.shape
    reach = past.shape[1]
    whole = x.is_contiguous() and past[0].is_contiguous() and new[0].is_contiguous()
    if not whole or x.dtype != torch.float32 or reach != (kernel - 1) * dilation:
        raise ValueError(f"no Triton kernel for {x.dtype} with strides {x.stride()} and {reach} earlier inputs")
    out = torch.empty(rows, tokens, kernel * channels, device=x.device, dtype=x.dtype)
    values = (tokens * kernel + reach) * channels
    triton_kernels.conv_window[-(-values // _VALUES), rows](
        x,
        past,
        new,
        out,
        past.stride(0),
        new.stride(0),
        TOKENS=tokens,
        REACH=reach,
        KERNEL=kernel,
        DILATION=dilation,
        CHANNELS=channels,
        ELU=elu,
        BLOCK=_VALUES,
        num_warps=4,
    )
    return out


def overlap_add(spread: Tensor, overlap: Tensor, new: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `torch_kernels.overlap_add` with a Triton kernel."""
    rows, tokens, _, stride, channels = spread.shape
    if spread.dtype != torch.float32 or not (overlap[0].is_contiguous() and new[0].is_contiguous()):
        raise ValueError(f"no Triton kernel for {spread.dtype} with strides {overlap.stride()} and {new.stride()}")
    out = torch.empty(rows, tokens * stride, channels, device=spread.device, dtype=spread.dtype)
    values = (tokens + 1) * stride * channels
    triton_kernels.overlap_block[-(-values // _VALUES), rows](
        spread,
        overlap,
        new,
        overlap if bias is None else bias,
        out,
        *spread.stride(),
        overlap.stride(0),
        new.stride(0),
        TOKENS=tokens,
        STRIDE=stride,
        CHANNELS=channels,
        BIAS=bias is not None,
        BLOCK=_VALUES,
        num_warps=4,
    )
    return out


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """Compute `torch_kernels.gate` with a Triton kernel."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, width, device=gate_up.device, dtype=gate_up.dtype)
    block = min(1024, triton.next_power_of_2(width))
    triton_kernels.gated[-(-width // block), tokens](
        gate_up, out, gate_up.stride(0), WIDTH=width, BLOCK=block, SILU=activation == "silu", num_warps=4
    )
    return out


def sums_in_parts(width: int, outputs: int, block: int, processors: int) -> tuple[int, int]:
    """Divide the sums of a matrix product into parts. Returns the number of parts and of the inputs in one part.

    width: number of inputs. outputs: number of outputs. block: number of inputs that a program reads in one iteration.
    processors: number of multiprocessors of the GPU. There are several parts only if one program for each _COLUMNS
    outputs leaves half of the multiprocessors without a program.
    """
    programs, blocks = -(-outputs // _COLUMNS), -(-width // block)
    parts = max(1, min(_MAX_PARTS, processors // programs, blocks))
    span = -(-blocks // parts) * block
    return -(-width // span), span


def _block(x: Tensor, weight: Tensor, size: int) -> int:
    """Return the number of inputs that a program of a matrix product reads in one iteration: `size` bytes of a row."""
    contiguous = weight.stride() == (weight.shape[1], 1) and x.stride(1) == 1
    if len(x) > MAX_TOKENS or not contiguous or weight.dtype not in {x.dtype, FP8}:
        raise ValueError(
            f"no Triton kernel for {len(x)} tokens with the strides {x.stride()} and weights with the strides "
            f"{weight.stride()}, in {x.dtype} and {weight.dtype}"
        )
    whole: int = triton.next_power_of_2(weight.shape[1])
    return min(size // x.element_size(), max(16, whole))


def _requested(weight: Tensor) -> int:
    """Return the number of blocks of 512 bytes that a kernel with an early start requests of each row of a weight."""
    row = weight.shape[1] * weight.element_size()
    if row < 512 or row % 16 or weight.data_ptr() % 16:
        return 0
    blocks: int = min(_MAX_REQUESTED, row // 512)
    return 1 << (blocks.bit_length() - 1)


def _stages(block_bytes: int) -> int:
    """Return the number of blocks that fit into shared memory. block_bytes: the size of one block of all tensors."""
    return min(_STAGES, 1 + _SHARED_BYTES // block_bytes)


def _stored(weight: Tensor | Fp8Weight) -> tuple[Tensor, Tensor]:
    """Return the stored values of a weight and their scales. The scales of a plain weight are not used."""
    return (weight.values, weight.scales) if isinstance(weight, Fp8Weight) else (weight, weight)


def norm_linear(
    x: Tensor,
    update: Tensor | None,
    norm: Tensor,
    eps: float,
    weight: Tensor | Fp8Weight,
    activation: Activation | None = None,
    *,
    wide: bool = False,
    early: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `torch_kernels.norm_linear` with a Triton kernel."""
    stored, scales = _stored(weight)
    block = _block(x, stored, 256)  # with larger blocks, the parts of the update would need too much shared memory
    tokens, width = x.shape
    outputs = len(stored) // (1 if activation is None else 2)
    out = torch.empty(tokens, outputs, device=x.device, dtype=torch.float32 if wide else x.dtype)
    summed = x if update is None else torch.empty(tokens, width, device=x.device, dtype=x.dtype)
    parts = 0 if update is None else len(update)
    # the weights, the tokens, and the parts of the update in float32
    read = _COLUMNS * (1 if activation is None else 2) * stored.element_size()
    read += MAX_TOKENS * (x.element_size() + 4 * parts)
    triton_kernels.norm_product[(-(-outputs // _COLUMNS),)](
        x,
        x if update is None else update,
        norm,
        stored,
        scales,
        summed,
        out,
        tokens,
        x.stride(0),
        eps,
        WIDTH=width,
        OUTPUTS=outputs,
        PARTS=parts,
        GATE=activation is not None,
        SILU=activation == "silu",
        SCALED=stored is not weight,
        EARLY=x.dtype == torch.float16,
        TOKENS=MAX_TOKENS,
        COLUMNS=_COLUMNS,
        BLOCK=block,
        PDL=early,
        launch_pdl=early,
        CHUNKS=_requested(stored) if early else 0,
        num_warps=4,
        num_stages=_stages(block * read),
    )
    return out, summed


def add_linear(
    x: Tensor,
    weight: Tensor | Fp8Weight,
    residual: Tensor,
    *,
    every: int = 1,
    constant: Tensor | None = None,
    whole: bool = False,
    early: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute `torch_kernels.add_linear` with a Triton kernel."""
    stored, scales = _stored(weight)
    block = _block(x, stored, 512)
    tokens = len(residual)
    outputs, width = stored.shape
    parts, span = (1, width) if whole else sums_in_parts(width, outputs, block, _processors(x.device))
    if parts == 1:
        out = torch.empty(tokens, outputs, device=x.device, dtype=residual.dtype)
    else:
        out = torch.empty(parts, tokens, outputs, device=x.device, dtype=torch.float32)
    triton_kernels.sum_product[-(-outputs // _COLUMNS), parts](
        x,
        stored,
        scales,
        residual,
        residual if constant is None else constant,
        out,
        tokens,
        x.stride(0),
        residual.stride(0),
        0 if constant is None or constant.dim() == 1 else constant.stride(0),
        span,
        WIDTH=width,
        OUTPUTS=outputs,
        EVERY=every,
        WHOLE=parts == 1,
        SCALED=stored is not weight,
        TOKENS=MAX_TOKENS,
        COLUMNS=_COLUMNS,
        BLOCK=block,
        PDL=early,
        launch_pdl=early,
        CHUNKS=_requested(stored) if early else 0,
        num_warps=4,
        num_stages=_stages(block * (_COLUMNS * stored.element_size() + MAX_TOKENS * x.element_size())),
    )
    return (out, None) if parts == 1 else (residual, out)


def sample(
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
    early: bool = False,
) -> Tensor:
    """Compute `torch_kernels.sample` with a Triton kernel."""
    del fast_path  # the Triton kernel is the same for all sampling parameters
    count, size = logits.shape[0], logits.shape[-1]
    channels = logits.shape[1] if logits.dim() == 3 else 1
    if not 0 <= codebook <= codebooks - channels:
        raise ValueError(f"codebooks {codebook}..{codebook + channels - 1} do not exist: there are {codebooks}")
    out = torch.empty(logits.shape[:-1], device=logits.device, dtype=torch.int64)
    embeds = table is not None and embedded is not None
    if table is not None and embedded is not None:
        same = table.dtype == embedded.dtype and table.is_contiguous() and embedded.is_contiguous()
        if not same or channels > 1 or len(table) < size or embedded.shape != (count, table.shape[1]):
            raise ValueError(f"no embeddings {tuple(embedded.shape)} of {channels} codes from {tuple(table.shape)}")
    triton_kernels.draw[(count * channels,)](
        logits,
        temperature,
        top_k,
        top_p,
        seeds,
        frames,
        banned.contiguous(),
        out,
        logits if table is None else table,
        logits if embedded is None else embedded,
        codebook,
        logits.stride(0),
        logits.stride(1) if logits.dim() == 3 else 0,
        CHANNELS=channels,
        CODES=size,
        WIDTH=table.shape[1] if embeds and table is not None else 0,
        BLOCK=triton.next_power_of_2(size),
        PDL=early,
        launch_pdl=early,
        num_warps=8,
    )
    return out


def guided_sample(
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
    early: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `torch_kernels.guided_sample` with a Triton kernel."""
    del fast_path  # the Triton kernel is the same for all sampling parameters
    count, _, channels, size = logits.shape
    out = torch.empty(count, channels, device=logits.device, dtype=torch.int64)
    endings = torch.empty(count, device=logits.device, dtype=torch.uint8)
    finite = torch.empty(count, channels, device=logits.device, dtype=torch.uint8)
    triton_kernels.guided_draw[(count * channels,)](
        logits.contiguous(),
        scales,
        temperature,
        top_k,
        top_p,
        seeds,
        frames,
        suppressed,
        out,
        endings,
        finite,
        CHANNELS=channels,
        CODES=size,
        END=end,
        CONDITIONAL=end_factor is None,
        FACTOR=1.0 if end_factor is None else end_factor,
        BLOCK=triton.next_power_of_2(size),
        PDL=early,
        launch_pdl=early,
        num_warps=8,
        enable_fp_fusion=False,  # no fused multiply-add, so that guidance gives the same bits as the torch kernel
    )
    return out, endings.view(torch.bool), finite.view(torch.bool)
