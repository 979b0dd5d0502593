"""Mimi, the codec of CSM: a streaming decoder with independent rows, and an encoder for whole recordings.

Tensors have the layout (B, T, C). All computation is in float32. A convolution is computed as a matrix product over
windows, which is twice as fast for short chunks as the convolution kernels of PyTorch. A decode in chunks gives the
same samples as a decode in one call, because the modules keep state. Each convolution keeps the inputs that later
outputs need. Each transposed convolution keeps the outputs to which the next input contributes. The transformer keeps
the keys and values in a ring buffer, whose length is the attention window plus one chunk. References: Kyutai, arXiv
2410.00037, and the config.json of kyutai/mimi.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.nn.attention import PrefillAttention, masked_attention, ring_mask
from app.nn.kernels.sets import TORCH, Kernels
from app.nn.mimi import checkpoint
from app.nn.mimi.config import MimiConfig
from app.nn.rope import apply_rotary, rotary
from app.weights.tensors import Checkpoint

CHUNK_FRAMES = 8  # the largest number of frames in one pass; the size of the ring buffer depends on it
_MIN_USAGE = 1e-5  # lower limit of a usage count, to avoid a division by the count 0 of an unused code
_WINDOW_FLOATS = 1 << 24  # the largest number of values of a convolution's windows that are in memory at the same time


@dataclass(frozen=True, slots=True)
class MimiStream:
    """A copy of the state of one stream of the decoder."""

    done: int  # number of latents (positions of the transformer) that `decode` has decoded
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that one call of the decoder computes."""

    where: Tensor | slice  # selects the rows in a state tensor
    index: Tensor  # (n, 1) the indices of the rows
    done: Tensor  # (n,) number of latents that each row has already decoded
    used: int  # number of entries of the ring buffer that attention reads
    active: Tensor | None = None  # (n,) bool: the state of inactive rows does not change; None = all rows are active

    def keep(self, state: Tensor, new: Tensor) -> None:
        """Write the new state (n, S) into `state` (rows, S), but only for the active rows of this call."""
        if self.active is not None:
            new = torch.where(self.active[:, None], new, state[self.where])
        state[self.where] = new


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class Conv(nn.Module):
    """A causal convolution, computed as a matrix product over windows.

    The first output of a chunk depends on the `reach` inputs before the chunk.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.inputs, self.kernel, self.stride, self.dilation = inputs, kernel, stride, dilation
        self.reach = (kernel - 1) * dilation + 1 - stride
        self.weight = _weight(outputs, kernel * inputs)
        self.bias = _weight(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution: x (B, reach + T, C) -> (B, T / stride, outputs).

        The first `reach` inputs of x come from before the chunk. T must be a multiple of the stride.
        """
        if self.kernel == 1:
            return functional.linear(x, self.weight, self.bias)
        rows, length, channels = x.shape
        count = (length - (self.kernel - 1) * self.dilation - 1) // self.stride + 1
        windows = x.contiguous().as_strided(
            (rows, count, self.kernel, channels),
            (length * channels, self.stride * channels, self.dilation * channels, 1),
        )
        # At the full sample rate, the windows of a minute of audio take gigabytes. So the product is computed in parts.
        part = max(1, _WINDOW_FLOATS // (rows * self.kernel * channels))
        if count <= part:
            return functional.linear(windows.reshape(rows, count, -1), self.weight, self.bias)
        return torch.cat(
            [
                functional.linear(window.reshape(rows, window.shape[1], -1), self.weight, self.bias)
                for window in torch.split(windows, part, dim=1)
            ],
            dim=1,
        )

    def whole(self, x: Tensor, *, repeat_edges: bool = False) -> Tensor:
        """Compute the convolution of a whole recording (B, T, C).

        Pads the start with `reach` values, and the end up to a multiple of the stride. repeat_edges: True = pad with
        the first and the last value; False = pad with zeros.
        """
        extra = -x.shape[1] % self.stride
        if repeat_edges:
            x = torch.cat((x[:, :1].expand(-1, self.reach, -1), x, x[:, -1:].expand(-1, extra, -1)), dim=1)
        else:
            x = functional.pad(x, (0, 0, self.reach, extra))
        return self(x)  # type: ignore[no-any-return]

    def fill(self, weights: Checkpoint, name: str) -> None:
        self.weight.copy_(weights.read(f"{name}.weight").transpose(1, 2).reshape(self.weight.shape))
        if self.bias is not None:
            weights.copy_to(self.bias, f"{name}.bias")


class Upsample(nn.Module):
    """A causal transposed convolution with kernel 2 * stride.

    Each input contributes to 2 * stride outputs. The last `stride` of these outputs (`overlap`) are added to the first
    `stride` outputs of the next input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.outputs, self.stride, self.groups = outputs, stride, groups
        self.weight = _weight(groups, inputs // groups, 2 * stride * (outputs // groups))
        self.bias = _weight(outputs) if bias else None

    def forward(self, x: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (B, T * stride, outputs) and the new overlap.

        x: (B, T, C). overlap: (B, stride, outputs) of the previous input.
        """
        rows, length, _ = x.shape
        spread = self.spread(x).contiguous()
        overlaps = torch.cat((overlap[:, None], spread[:, :, 1]), dim=1)  # (B, T + 1, stride, outputs)
        out = (spread[:, :, 0] + overlaps[:, :-1]).reshape(rows, length * self.stride, self.outputs)
        return out if self.bias is None else out + self.bias, overlaps[:, -1]

    def spread(self, x: Tensor) -> Tensor:
        """Return what each input adds to two successive blocks of outputs: (B, T, C) -> (B, T, 2, stride, outputs)."""
        rows, length, channels = x.shape
        if self.groups == 1:
            spread = x @ self.weight[0]
        elif self.groups == channels:
            spread = x[..., None] * self.weight[:, 0]
        else:
            spread = x.view(rows, length, self.groups, 1, -1) @ self.weight
        if self.groups == 1:
            return spread.view(rows, length, 2, self.stride, self.outputs)
        if self.groups == self.outputs:  # each group has one output
            return spread.view(rows, length, self.groups, 2, self.stride).permute(0, 1, 3, 4, 2)
        spread = spread.view(rows, length, self.groups, 2 * self.stride, -1).transpose(2, 3)
        return spread.reshape(rows, length, 2, self.stride, self.outputs)

    def fill(self, weights: Checkpoint, name: str) -> None:
        stored = weights.read(f"{name}.weight")  # (inputs, outputs of a group, kernel)
        grouped = stored.view(self.groups, -1, *stored.shape[1:]).transpose(2, 3)
        self.weight.copy_(grouped.reshape(self.weight.shape))
        if self.bias is not None:
            weights.copy_to(self.bias, f"{name}.bias")


class Residual(nn.Module):
    """A residual unit: x + conv1x1(elu(conv(elu(x))))."""

    def __init__(self, config: MimiConfig, width: int, dilation: int) -> None:
        super().__init__()
        hidden = width // config.compress
        self.first = Conv(width, hidden, config.residual_kernel, dilation=dilation)
        self.second = Conv(hidden, width, 1)
        self.shortcut = Conv(width, width, 1) if config.conv_shortcut else None

    def forward(self, x: Tensor, first: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the unit: x (B, T, C) -> (B, T, C).

        first: a function that computes the first convolution of the unit. It also puts the earlier inputs or the
        padding before x.
        """
        y = self.second(functional.elu(first(functional.elu(x))))
        return y + (x if self.shortcut is None else self.shortcut(x))  # type: ignore[no-any-return]

    def fill(self, weights: Checkpoint, name: str) -> None:
        self.first.fill(weights, f"{name}.block.1.conv")
        self.second.fill(weights, f"{name}.block.3.conv")
        if self.shortcut is not None:
            self.shortcut.fill(weights, f"{name}.shortcut.conv")


class Layer(nn.Module):
    """A transformer layer: LayerNorm, attention, LayerNorm, MLP.

    `fill` multiplies the weights `out` and `down` by the layer scales of the checkpoint.
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        outputs = (c.heads + 2 * c.kv_heads) * c.head_dim
        self.norm1, self.norm1_bias = _weight(c.width), _weight(c.width)
        self.norm2, self.norm2_bias = _weight(c.width), _weight(c.width)
        self.qkv, self.out = _weight(outputs, c.width), _weight(c.width, c.heads * c.head_dim)
        self.qkv_bias = _weight(outputs) if c.attention_bias else None
        self.out_bias = _weight(c.width) if c.attention_bias else None
        self.up, self.down = _weight(c.ffn, c.width), _weight(c.width, c.ffn)

    def forward(
        self, x: Tensor, index: int, cos: Tensor, sin: Tensor, attend: PrefillAttention
    ) -> Tensor:  # (M, C) -> (M, C)
        c = self.config
        normed = functional.layer_norm(x, (c.width,), self.norm1, self.norm1_bias, c.eps)
        heads = functional.linear(normed, self.qkv, self.qkv_bias).view(len(x), c.heads + 2 * c.kv_heads, c.head_dim)
        rotated = apply_rotary(heads[:, : c.heads + c.kv_heads], cos, sin)
        attended = attend(index, rotated[:, : c.heads], rotated[:, c.heads :], heads[:, c.heads + c.kv_heads :])
        x = x + functional.linear(attended, self.out, self.out_bias)
        normed = functional.layer_norm(x, (c.width,), self.norm2, self.norm2_bias, c.eps)
        wide = getattr(functional, c.activation)(functional.linear(normed, self.up))
        return x + functional.linear(wide, self.down)

    def step(
        self, x: Tensor, update: Tensor | None, attend: Callable[[Tensor], Tensor], kernels: Kernels
    ) -> tuple[Tensor, Tensor]:
        """Compute the layer for x + update (M, C). The result is the sum of the two returned tensors.

        update: None = nothing is added. attend: attention of queries, keys and values (M, H + 2 G, d) without RoPE.
        """
        c = self.config
        normed, x = kernels.add_layer_norm(x, update, self.norm1, self.norm1_bias, c.eps)
        heads = functional.linear(normed, self.qkv, self.qkv_bias).view(len(x), c.heads + 2 * c.kv_heads, c.head_dim)
        update = functional.linear(attend(heads), self.out, self.out_bias)
        normed, x = kernels.add_layer_norm(x, update, self.norm2, self.norm2_bias, c.eps)
        wide = getattr(functional, c.activation)(functional.linear(normed, self.up))
        return x, functional.linear(wide, self.down)

    def fill(self, weights: Checkpoint, name: str) -> None:
        for norm, bias, stored in (
            (self.norm1, self.norm1_bias, "input_layernorm"),
            (self.norm2, self.norm2_bias, "post_attention_layernorm"),
        ):
            weights.copy_to(norm, f"{name}.{stored}.weight")
            weights.copy_to(bias, f"{name}.{stored}.bias")
        attention_scale = weights.read(f"{name}.self_attn_layer_scale.scale")
        projections = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        self.qkv.copy_(torch.cat([weights.read(f"{part}.weight") for part in projections]))
        self.out.copy_(weights.read(f"{name}.self_attn.o_proj.weight") * attention_scale[:, None])
        if self.qkv_bias is not None and self.out_bias is not None:
            self.qkv_bias.copy_(torch.cat([weights.read(f"{part}.bias") for part in projections]))
            self.out_bias.copy_(weights.read(f"{name}.self_attn.o_proj.bias") * attention_scale)
        weights.copy_to(self.up, f"{name}.mlp.fc1.weight")
        mlp_scale = weights.read(f"{name}.mlp_layer_scale.scale")
        self.down.copy_(weights.read(f"{name}.mlp.fc2.weight") * mlp_scale[:, None])


class MimiEncoder(nn.Module):
    """Encodes whole recordings to codes. An encoder has no state, so any thread may call it."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.first = Conv(1, c.filters, c.kernel)
        self.residuals = nn.ModuleList()
        self.downs = nn.ModuleList()
        width = c.filters
        for ratio in reversed(c.ratios):
            self.residuals.append(
                nn.ModuleList([Residual(c, width, c.dilation_growth**i) for i in range(c.residual_layers)])
            )
            self.downs.append(Conv(width, 2 * width, 2 * ratio, stride=ratio))
            width *= 2
        self.last = Conv(width, c.width, c.last_kernel)
        self.layers = nn.ModuleList([Layer(c) for _ in range(c.layers)])
        self.downsample = Conv(c.width, c.width, 2 * c.latent_stride, stride=c.latent_stride, bias=False)
        projected = c.quantizer_dim != c.width
        self.semantic_in = _weight(c.quantizer_dim, c.width) if projected else None
        self.acoustic_in = _weight(c.quantizer_dim, c.width) if projected else None
        self.codebooks = _weight(c.codebooks, c.codebook_size, c.codebook_dim)
        self._frequencies = c.rope.frequencies(c.head_dim)

    def forward(self, samples: Tensor) -> Tensor:
        """Encode samples (N,) float32 at the codec's rate -> codes (K, T) int64. The last frame may be partial."""
        c = self.config
        x = self.first.whole(samples[None, :, None])
        for residuals, down in zip(self.residuals, self.downs, strict=True):
            for module in cast(nn.ModuleList, residuals):
                residual = cast(Residual, module)
                x = residual(x, residual.first.whole)
            x = cast(Conv, down).whole(functional.elu(x))
        x = self.last.whole(functional.elu(x))[0]  # (T, C) latents
        at = torch.arange(len(x), device=x.device)
        mask = (at[None, :] <= at[:, None]) & (at[None, :] > at[:, None] - c.window)
        cos, sin = rotary(self._frequencies.to(x.device), at)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            del index
            return masked_attention(q[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], mask[None, None])

        for index, layer in enumerate(self.layers):
            x = layer(x, index, cos, sin, attend)
        return self._quantize(self.downsample.whole(x[None], repeat_edges=True)[0])

    def _quantize(self, latents: Tensor) -> Tensor:  # (T, C) -> (K, T)
        codes = []
        residual = latents
        for k, codebook in enumerate(self.codebooks):
            # The second quantiser also begins with the latents, not with the residual of the first quantiser.
            if k in (0, self.config.semantic_codebooks):
                projection = self.semantic_in if k == 0 else self.acoustic_in
                residual = latents if projection is None else functional.linear(latents, projection)
            code = torch.cdist(residual[None], codebook[None])[0].argmin(dim=-1)
            residual = residual - codebook[code]
            codes.append(code)
        return torch.stack(codes)

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checked checkpoint into the codec. checkpoint.py describes the names."""
        c = self.config
        self.first.fill(weights, "encoder.layers.0.conv")
        index = 1
        for residuals, down in zip(self.residuals, self.downs, strict=True):
            for residual in cast(nn.ModuleList, residuals):
                cast(Residual, residual).fill(weights, f"encoder.layers.{index}")
                index += 1
            cast(Conv, down).fill(weights, f"encoder.layers.{index + 1}.conv")
            index += 2
        self.last.fill(weights, f"encoder.layers.{index + 1}.conv")
        for index, layer in enumerate(self.layers):
            cast(Layer, layer).fill(weights, f"encoder_transformer.layers.{index}")
        self.downsample.fill(weights, "downsample.conv")
        if self.semantic_in is not None and self.acoustic_in is not None:
            self.semantic_in.copy_(weights.read(f"{checkpoint.SEMANTIC}input_proj.weight")[..., 0])
            self.acoustic_in.copy_(weights.read(f"{checkpoint.ACOUSTIC}input_proj.weight")[..., 0])
        for k in range(c.codebooks):
            self.codebooks[k].copy_(codebook(weights, c, k))


def codebook(weights: Checkpoint, config: MimiConfig, index: int) -> Tensor:
    """Return the vectors of codebook `index`, (codes, d) float32: the stored sums divided by the usage counts."""
    semantic = config.semantic_codebooks
    at = (
        f"{checkpoint.SEMANTIC}layers.{index}"
        if index < semantic
        else f"{checkpoint.ACOUSTIC}layers.{index - semantic}"
    )
    usage = weights.read(f"{at}.codebook.cluster_usage").float()
    return weights.read(f"{at}.codebook.embed_sum").float() / usage.clamp(min=_MIN_USAGE)[:, None]


class MimiDecoder(nn.Module):
    """Decodes codes to samples. Each row is an independent stream. Not thread-safe.

    Uses the first `codebooks` codebooks. A call changes only the state of the rows that it gets as arguments.
    """

    def __init__(self, config: MimiConfig, *, rows: int, codebooks: int | None = None, device: torch.device) -> None:
        super().__init__()
        c = config
        self.config = config
        self.codebooks = codebooks or c.codebooks
        if self.codebooks > c.codebooks:
            raise ValueError(f"the codec has {c.codebooks} codebooks, fewer than the {self.codebooks} requested")
        with device:
            # The code vectors, already multiplied by the output projection of the quantiser.
            self.table = _weight(self.codebooks, c.codebook_size, c.width)
            self.upsample = Upsample(c.width, c.width, c.latent_stride, groups=c.upsample_groups, bias=False)
            self.layers = nn.ModuleList([Layer(c) for _ in range(c.layers)])
            width = c.filters * 2 ** len(c.ratios)
            self.first = Conv(c.width, width, c.kernel)
            self.ups = nn.ModuleList()
            self.residuals = nn.ModuleList()
            for ratio in c.ratios:
                self.ups.append(Upsample(width, width // 2, ratio))
                width //= 2
                self.residuals.append(
                    nn.ModuleList([Residual(c, width, c.dilation_growth**i) for i in range(c.residual_layers)])
                )
            self.last = Conv(width, 1, c.last_kernel)
        self._offsets = torch.arange(self.codebooks, device=device) * c.codebook_size
        self._frequencies = c.rope.frequencies(c.head_dim).to(device)
        self._device = device
        # The decoder writes all keys of a chunk before attention reads them. The first latent of the chunk attends to a
        # whole window of earlier keys. So the buffer must hold a window and a chunk.
        self._ring = c.window + CHUNK_FRAMES * c.latent_stride
        self._keys = torch.zeros(c.layers, rows, c.kv_heads, self._ring, c.head_dim, device=device)
        self._values = torch.zeros_like(self._keys)
        self._done = [0] * rows  # number of latents of each row that `decode` has decoded
        # The number of latents of each row that `frame` has decoded.
        self._done_on_device = torch.zeros(rows, dtype=torch.int64, device=device)
        self._shapes: dict[nn.Module, tuple[int, int]] = {}  # module -> length and channels of its state
        for module in self.modules():
            if isinstance(module, Conv) and module.reach > 0:
                self._shapes[module] = module.reach, module.inputs
            elif isinstance(module, Upsample):
                self._shapes[module] = module.stride, module.outputs
        # The earlier inputs of all convolutions and the overlaps of all transposed convolutions are in one tensor
        # (rows, S), so that one operation writes them.
        size = sum(length * width for length, width in self._shapes.values())
        self._state = torch.zeros(rows, size, device=device)
        # module -> its part of `_state`: (rows, earlier inputs or overlap, channels)
        self._states = dict(self._parts(self._state))

    @property
    def state_bytes(self) -> int:
        """The size of the state of all rows in bytes, without the weights."""
        return sum(tensor.nbytes for tensor in (self._keys, self._values, self._state))

    def reset(self, row: int) -> None:
        """Clear the state of the row, so that the row can begin a new stream.

        The old keys stay in memory, but the new stream does not read these keys.
        """
        self._state[row] = 0
        self._done[row] = 0
        self._done_on_device[row] = 0

    def move_row(self, source: int, target: int) -> None:
        """Move the stream of row `source` to row `target`."""
        for state in (self._state, self._done_on_device):
            state[target] = state[source]
        for cached in (self._keys, self._values):
            cached[:, target] = cached[:, source]
        self._done[target] = self._done[source]

    def export_row(self, row: int) -> MimiStream:
        """Return a copy of the stream of a row."""
        states = [state[row].clone() for state in (self._state, self._done_on_device)]
        cached = [cached[:, row].clone() for cached in (self._keys, self._values)]
        return MimiStream(self._done[row], (*states, *cached))

    def import_row(self, row: int, stream: MimiStream) -> None:
        """Continue `stream`, a result of `export_row`, in this row."""
        self._state[row], self._done_on_device[row], keys, values = stream.tensors
        self._keys[:, row] = keys
        self._values[:, row] = values
        self._done[row] = stream.done

    def zero_row(self, row: int) -> None:
        """Zero the keys and values of a row that contains NaN or Inf; see KVCache.zero_row."""
        self._keys[:, row] = 0
        self._values[:, row] = 0

    def decode(self, rows: Sequence[int], codes: Tensor) -> Tensor:
        """Decode the next frames of these rows: codes (n, K, T) int64 -> samples (n, T * frame_samples) float32."""
        chunks = [self._decode(rows, chunk) for chunk in torch.split(codes, CHUNK_FRAMES, dim=2)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)

    def _decode(self, rows: Sequence[int], codes: Tensor) -> Tensor:
        first, count = rows[0], len(rows)
        index = torch.tensor(rows, device=self._device)
        where: Tensor | slice = index
        if list(rows) == list(range(first, first + count)):
            where = slice(first, first + count)  # a view, so the state is not copied
        done = [self._done[row] for row in rows]
        length = codes.shape[2] * self.config.latent_stride
        used = min(self._ring, max(done) + length)
        samples = self._chunk(_Rows(where, index[:, None], torch.tensor(done, device=self._device), used), codes)
        for row in rows:
            self._done[row] += length
        return samples

    def frame(self, codes: Tensor, active: Tensor, kernels: Kernels = TORCH) -> Tensor:
        """Decode one frame of each of the first n rows: codes (n, K) int64 -> samples (n, frame_samples) float32.

        active (n,) bool: the state of inactive rows does not change, and their samples are undefined. All shapes are
        fixed, and no value is copied to the host, so a CUDA graph can capture this method. This method counts the
        position of a row on the device, but `decode` counts the position on the host. So between two resets of a row,
        call only one of these two methods for the row. With Triton's kernels, attention and norms are computed with
        fewer launches, and the samples differ by rounding errors.
        """
        count = len(codes)
        index = torch.arange(count, device=self._device)[:, None]
        done = self._done_on_device[:count]
        rows = _Rows(slice(0, count), index, done, self._ring, active)
        size = self.config.head_dim
        fits = kernels.computes_codec and size >= 16 and not size & (size - 1)  # otherwise there is no kernel
        samples = self._chunk(rows, codes[:, :, None], kernels if fits else None)
        done += active * self.config.latent_stride
        return samples

    def _chunk(self, rows: _Rows, codes: Tensor, kernels: Kernels | None = None) -> Tensor:
        """Decode up to CHUNK_FRAMES frames: codes (n, K, T) -> samples (n, T * frame_samples).

        kernels: compute parts of `frame`; None = torch computes the frame.
        """
        if kernels is not None:
            return self._chunk_with(rows, codes, kernels)
        new: dict[nn.Module, Tensor] = {}
        index = (codes + self._offsets[:, None]).transpose(1, 2)  # (n, T, K)
        x = functional.embedding(index, self.table.flatten(0, 1)).sum(dim=2)  # (n, T, C)
        x = self._up(self.upsample, x, rows, new)
        x = self._transform(rows, x)
        x = self._conv(self.first, x, rows, new)
        for up, residuals in zip(self.ups, self.residuals, strict=True):
            x = self._up(cast(Upsample, up), functional.elu(x), rows, new)
            for module in cast(nn.ModuleList, residuals):
                residual = cast(Residual, module)
                x = residual(x, lambda y, conv=residual.first: self._conv(conv, y, rows, new))
        samples = self._conv(self.last, functional.elu(x), rows, new)[..., 0]
        rows.keep(self._state, torch.cat([new[module].flatten(1) for module in self._states], dim=1))
        return samples

    def _chunk_with(self, rows: _Rows, codes: Tensor, kernels: Kernels) -> Tensor:
        """Compute `_chunk` for `frame` with kernels for the transformer and the windows of convolutions."""
        count = len(codes)
        state = torch.empty_like(self._state[:count])
        new = dict(self._parts(state))

        def conv(module: Conv, x: Tensor, *, elu: bool) -> Tensor:
            if module.reach == 0:
                return module(functional.elu(x) if elu else x)  # type: ignore[no-any-return]
            past = self._states[module][:count]
            windows = kernels.conv_windows(x.contiguous(), past, new[module], module.kernel, module.dilation, elu=elu)
            return functional.linear(windows, module.weight, module.bias)

        def upsampled(module: Upsample, x: Tensor) -> Tensor:
            return kernels.overlap_add(module.spread(x), self._states[module][:count], new[module], module.bias)

        index = (codes + self._offsets[:, None]).transpose(1, 2)  # (n, T, K)
        x = functional.embedding(index, self.table.flatten(0, 1)).sum(dim=2)  # (n, T, C)
        x = self._transform_windows(rows, upsampled(self.upsample, x), kernels)
        x = conv(self.first, x, elu=False)
        for up, residuals in zip(self.ups, self.residuals, strict=True):
            x = upsampled(cast(Upsample, up), functional.elu(x))
            for module in cast(nn.ModuleList, residuals):
                residual = cast(Residual, module)
                y = residual.second(functional.elu(conv(residual.first, x, elu=True)))
                x = y + (x if residual.shortcut is None else residual.shortcut(x))
        samples = conv(self.last, x, elu=True)[..., 0]
        rows.keep(self._state, state)
        return samples

    def _parts(self, state: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yield each module with a state, and its part (rows, length, channels) of `state` (rows, S)."""
        begin = 0
        for module, (length, channels) in self._shapes.items():
            end = begin + length * channels
            yield module, state[:, begin:end].view(len(state), length, channels)
            begin = end

    def _conv(self, conv: Conv, x: Tensor, rows: _Rows, new: dict[nn.Module, Tensor]) -> Tensor:
        """Compute a convolution of a chunk. Adds the state of the convolution after the chunk to `new`."""
        if conv.reach == 0:
            return conv(x)  # type: ignore[no-any-return]
        x = torch.cat((self._states[conv][rows.where], x), dim=1)
        new[conv] = x[:, -conv.reach :]
        return conv(x)  # type: ignore[no-any-return]

    def _up(self, up: Upsample, x: Tensor, rows: _Rows, new: dict[nn.Module, Tensor]) -> Tensor:
        """Compute a transposed convolution of a chunk. Adds its state after the chunk to `new`."""
        x, new[up] = up(x, self._states[up][rows.where])
        return x

    def _transform(self, rows: _Rows, x: Tensor) -> Tensor:
        c, ring = self.config, self._ring
        count, length, width = x.shape
        at = rows.done[:, None] + torch.arange(length, device=self._device)  # (n, T) positions
        mask = ring_mask(at, rows.used, ring, c.window)
        cos, sin = rotary(self._frequencies, at.flatten())
        places = at % ring

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # This line also writes keys of inactive rows. The next frame of an inactive row overwrites these keys.
            self._keys[index].transpose(1, 2)[rows.index, places] = k.view(count, length, c.kv_heads, c.head_dim)
            self._values[index].transpose(1, 2)[rows.index, places] = v.view(count, length, c.kv_heads, c.head_dim)
            queries = q.view(count, length, c.heads, c.head_dim)
            keys = self._keys[index][rows.where][:, :, : rows.used]
            values = self._values[index][rows.where][:, :, : rows.used]
            return masked_attention(queries, keys, values, mask)

        x = x.reshape(count * length, width)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, cos, sin, attend)
        return x.view(count, length, width)

    def _transform_windows(self, rows: _Rows, x: Tensor, kernels: Kernels) -> Tensor:
        """Compute `_transform` in `frame` with kernels for attention and for norms."""
        count, length, width = x.shape
        at = rows.done[:, None] + torch.arange(length, device=self._device)
        cos, sin = rotary(self._frequencies, at.flatten())
        window = self.config.window
        x = x.reshape(count * length, width)
        update: Tensor | None = None
        for index, module in enumerate(self.layers):
            layer, keys, values = cast(Layer, module), self._keys[index][:count], self._values[index][:count]

            def attend(heads: Tensor, k: Tensor = keys, v: Tensor = values) -> Tensor:
                return kernels.window_attention(heads, cos, sin, k, v, rows.done, window)

            x, update = layer.step(x, update, attend, kernels)
        return (x if update is None else x + update).view(count, length, width)

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checked checkpoint into the codec. checkpoint.py describes the names."""
        c = self.config
        for k in range(self.codebooks):
            vectors = codebook(weights, c, k)
            if c.quantizer_dim != c.width:
                prefix = checkpoint.SEMANTIC if k < c.semantic_codebooks else checkpoint.ACOUSTIC
                vectors = functional.linear(vectors, weights.read(f"{prefix}output_proj.weight")[..., 0].float())
            self.table[k].copy_(vectors)
        self.upsample.fill(weights, "upsample.conv")
        for index, layer in enumerate(self.layers):
            cast(Layer, layer).fill(weights, f"decoder_transformer.layers.{index}")
        self.first.fill(weights, "decoder.layers.0.conv")
        index = 1
        for up, residuals in zip(self.ups, self.residuals, strict=True):
            cast(Upsample, up).fill(weights, f"decoder.layers.{index + 1}.conv")
            index += 2
            for residual in cast(nn.ModuleList, residuals):
                cast(Residual, residual).fill(weights, f"decoder.layers.{index}")
                index += 1
        self.last.fill(weights, f"decoder.layers.{index + 1}.conv")
