"""Launches the Triton kernel that computes all steps of a depth decoder. The import of this module imports Triton.

The programs of the launch wait for each other, so all of them must run at the same time. A cooperative launch either
starts all programs together or fails with an error. There is one program for each multiprocessor, so there is room for
all of them if one fits. The sizes of the launch depend only on the shapes of the arguments, so a CUDA graph can capture
the call.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from app.nn.kernels import persistent_kernel
from app.nn.kernels.depth import MAX_DEPTH_ROWS, DepthWeights, DrawParameters
from app.nn.kernels.triton_launch import _processors

_WARPS = 8  # each warp computes one of the parts of a sum
_MIN_SIZE = 16  # the smallest size of a dimension of a matrix product in Triton
_MAX_LANES = 256  # the largest number of inputs of a tile in one part of a sum
_COLUMNS = 16  # number of outputs in a tile of a product with many outputs
_POLLS = 1 << 22  # a program that waits gives up after this number of reads, which take seconds
_FEW = 8  # number of outputs in a tile of a product whose outputs are as many as the values of a token


def programs_of(device: torch.device) -> int:
    """Return the number of programs of a launch. Without a GPU, the interpreter runs one program after the other."""
    return _processors(device) if device.type == "cuda" else 1


def _lanes(inputs: int, most: int | None = None) -> int:
    """Return the number of inputs of a tile in one part of a sum. most: an upper limit."""
    whole: int = max(_MIN_SIZE, triton.next_power_of_2(-(-inputs // _WARPS)))
    return whole if most is None else min(most, whole)


def depth_frame(
    weights: DepthWeights, k: Tensor, v: Tensor, x: Tensor, first: Tensor, draws: DrawParameters
) -> tuple[Tensor, Tensor]:
    """Compute `depth.depth_frame` with one launch of a Triton kernel. Overwrites x."""
    rows, width = x.shape
    layer, codebooks = weights.layers[0], weights.codebooks
    groups, size = weights.groups, k.shape[-1]
    share = layer.out.shape[1] // size // groups
    ffn, codes_each = layer.down.shape[1], len(weights.heads[0])
    contiguous = all(each.is_contiguous() and each.dtype == x.dtype for each in weights.tensors)
    if not (1 <= rows <= MAX_DEPTH_ROWS and contiguous and x.is_contiguous() and weights.table.is_contiguous()):
        raise ValueError(
            f"no Triton kernel for a depth decoder with {rows} rows in {x.dtype}, with weights that are not contiguous "
            "or in another dtype"
        )
    if size < _MIN_SIZE or size & (size - 1) or not k.stride(4) == v.stride(4) == 1:
        raise ValueError(f"no Triton kernel for heads of {size} values with strides {k.stride()}, {v.stride()}")
    device = x.device
    codes = torch.empty(rows, codebooks, device=device, dtype=torch.int64)
    heads = torch.empty(rows, groups * (share + 2) * size, device=device, dtype=x.dtype)
    attended = torch.empty(rows, groups * share * size, device=device, dtype=x.dtype)
    hidden = torch.empty(rows, ffn, device=device, dtype=x.dtype)
    logits = torch.empty(rows, codes_each, device=device, dtype=torch.float32)
    counter = torch.zeros(1, device=device, dtype=torch.int32)
    persistent_kernel.depth_frame[(programs_of(device),)](
        weights.addresses,
        weights.table,
        x,
        first,
        codes,
        logits,
        heads,
        attended,
        hidden,
        counter,
        k,
        v,
        weights.cos,
        weights.sin,
        draws.temperature,
        draws.top_k,
        draws.top_p,
        draws.seeds,
        draws.frames,
        rows,
        weights.eps,
        weights.scale,
        *k.stride()[:4],
        *v.stride()[:4],
        STEPS=codebooks,
        LAYERS=len(weights.layers),
        WIDTH=width,
        FFN=ffn,
        GROUPS=groups,
        SHARE=share,
        PADDED=max(_MIN_SIZE, triton.next_power_of_2(share)),
        SIZE=size,
        LENGTH=max(_MIN_SIZE, triton.next_power_of_2(codebooks)),
        CODES=codes_each,
        VOCAB=weights.vocab,
        BLOCK=triton.next_power_of_2(codes_each),
        SILU=weights.activation == "silu",
        TOKENS=MAX_DEPTH_ROWS,
        SPLITS=_WARPS,
        LANES=_lanes(width),
        OUT_LANES=_lanes(groups * share * size, _MAX_LANES),
        DOWN_LANES=_lanes(ffn, _MAX_LANES),
        COLUMNS=_COLUMNS,
        FEW=_FEW,
        POLLS=_POLLS,
        num_warps=_WARPS,
        num_stages=1,  # the kernel itself requests each tile before the one before it is multiplied
        enable_fp_fusion=False,  # no fused multiply-add, so that RoPE gives the same bits as the torch kernel
        launch_cooperative_grid=True,
    )
    return codes, logits
