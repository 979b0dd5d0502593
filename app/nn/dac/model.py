"""DAC, the codec of Dia: a streaming decoder with independent rows, and an encoder for whole recordings.

All convolutions are symmetric, so a sample depends on the ten frames before it and the ten frames after it. For
streaming, each convolution keeps the inputs that later outputs need, and returns only the outputs that do not depend on
later inputs. So the decoder computes no output twice. At the end of a stream, each convolution is padded with zeros, as
in a decode of the whole recording. A residual unit adds the unit's input to the output of the unit's convolutions. The
convolutions delay the output, so a buffer delays the input by the same time.

Exactness in float32 on a CPU: a decode in chunks and a decode in one call give samples that differ by less than 1e-6 of
full scale because of rounding (the lowest bit of 16-bit audio is 3e-5). If codes are decoded twice, both times
without other rows and in the same chunks, the samples have the same bits. With other chunks or with more rows, the
matrix products have other shapes, and the last bits may differ.

Tensors have the layout (B, T, C). Activations and state are float32; weights and matrix products have the decoder's
`dtype`. References: Kumar et al., arXiv 2306.06546, and the config.json of descript/dac_44khz.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.nn.dac.checkpoint import UNITS
from app.nn.dac.config import DILATIONS, RESIDUAL_KERNEL, DacConfig
from app.weights.tensors import Checkpoint

_CHUNK_FRAMES = 64  # the largest number of frames in one pass through the first convolution
# The largest number of time steps of a block's output in one pass, summed over all rows. On a CPU, the data of
# _CPU_STEPS time steps fits into the CPU's cache.
_CPU_STEPS = 1024
_GPU_STEPS = 1 << 16
# If there are fewer time steps than this, one matrix product over windows is faster than one product for each kernel
# position.
_FEW_STEPS = 64
_MIN_ALPHA = 1e-8  # if alpha is smaller than this, x + sin(alpha x)**2 / alpha rounds to x
_ENCODER_FRAMES = 256  # number of frames in one pass of the encoder: 3 s of audio


def _weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def _alpha(weights: Checkpoint, name: str) -> Tensor:
    """Read the alpha (C,) float32 of a Snake activation. Values near 0 become _MIN_ALPHA, to avoid a division by 0."""
    alpha = weights.read(name).float().flatten()
    return torch.where(alpha.abs() < _MIN_ALPHA, _MIN_ALPHA, alpha)


class Snake(nn.Module):
    """The Snake activation (arXiv 2306.06546) multiplied by alpha: x -> a (x + b) + sin(a (x + b))**2, a = alpha.

    The weights of the next convolution are divided by a, so the factor a cancels. b is the sum of those biases of
    earlier convolutions that are not yet added to x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = _weight(width), _weight(width)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.addcmul(self.shift, x, self.scale)
        sine = z.sin()
        return z.addcmul_(sine, sine)

    def fill(self, alpha: Tensor, bias: Tensor) -> None:
        """Set a and b of the activation's formula: a = `alpha` (C,), b = `bias` (C,)."""
        self.scale.copy_(alpha)
        self.shift.copy_(alpha * bias)


class Conv(nn.Module):
    """A convolution without padding, computed as matrix products of shifted copies or of windows of the input.

    The weight has the shape (kernel, inputs, outputs).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, bias: bool = True, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.pad = (kernel - 1) * dilation // 2  # padding at each end of the input in a decode of a whole recording
        self.weight = _weight(kernel, inputs, outputs, dtype=dtype)
        self.bias = _weight(outputs, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution: x (B, 2 * pad + T, C) -> (B, T, outputs), both in the dtype of the weights."""
        rows, length, channels = x.shape
        count = length - 2 * self.pad
        kernel, _, outputs = self.weight.shape
        if outputs == 1:  # multiply each input by all kernel weights, then sum the diagonals of the products
            taps = x @ self.weight[..., 0].t()  # (B, T + 2 * pad, kernel)
            out = taps.as_strided((rows, count, kernel), (length * kernel, kernel, kernel + 1)).sum(dim=2)
            return (out if self.bias is None else out + self.bias)[..., None]
        # For a long input of one row in float32, add one product for each kernel position. In bfloat16, each partial
        # sum would be rounded, so the code below computes one product over windows.
        if rows == 1 and count >= _FEW_STEPS and x.dtype == torch.float32:
            inputs = x[0]
            if self.bias is None:
                out = inputs[:count] @ self.weight[0]
            else:
                out = torch.addmm(self.bias, inputs[:count], self.weight[0])
            for k in range(1, kernel):
                out.addmm_(inputs[k * self.dilation : k * self.dilation + count], self.weight[k])
            return out[None]
        windows = x.as_strided(
            (rows, count, kernel, channels), (x.stride(0), x.stride(1), self.dilation * x.stride(1), 1)
        ).reshape(rows * count, kernel * channels)
        flat = self.weight.view(kernel * channels, outputs)
        out = windows @ flat if self.bias is None else torch.addmm(self.bias, windows, flat)
        return out.view(rows, count, outputs)


class Upsample(nn.Module):
    """A transposed convolution with kernel 2 * stride.

    Each input contributes to 2 * stride outputs. The last `stride` of these outputs (`overlap`) are added to the first
    `stride` outputs of the next input. The decoder removes `pad` outputs at each end of a stream.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.pad = stride // 2
        self.weight = _weight(inputs, 2 * stride * outputs, dtype=dtype)

    def forward(self, x: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs (B, T * stride, outputs) float32 without bias, and the new overlap.

        x: (B, T, C) in the dtype of the weights. overlap: (B, stride, outputs) float32 of the previous input.
        """
        rows, length, _ = x.shape
        spread = (x.reshape(rows * length, -1) @ self.weight).view(rows, length, 2, self.stride, self.outputs)
        overlaps = torch.cat((overlap[:, None], spread[:, :, 1]), dim=1)  # (B, T + 1, stride, outputs)
        out = torch.add(overlaps[:, :-1], spread[:, :, 0]).view(rows, length * self.stride, self.outputs)
        return out, overlaps[:, -1]


class Unit(nn.Module):
    """A residual unit: x + conv1x1(snake(conv(snake(x)))). The next Snake adds the bias of conv1x1."""

    def __init__(self, width: int, dilation: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = width
        self.snake = Snake(width)
        self.first = Conv(width, width, RESIDUAL_KERNEL, dilation=dilation, dtype=dtype)
        self.second = _weight(width, width, dtype=dtype)

    def fill(self, weights: Checkpoint, name: str, pending: Tensor) -> Tensor:
        """Copy the unit's weights from the checkpoint. name: the name of the unit in the checkpoint.

        pending (C,): the sum of earlier biases that are not yet added to the input. Returns the sum of the biases that
        a later Snake must add to the output.
        """
        alpha, beta = _alpha(weights, f"{name}.snake1.alpha"), _alpha(weights, f"{name}.snake2.alpha")
        self.snake.fill(alpha, pending)
        first = weights.read(f"{name}.conv1.weight").float()  # (outputs, inputs, kernel)
        self.first.weight.copy_((first * (beta[:, None, None] / alpha[None, :, None])).permute(2, 1, 0))
        cast(Tensor, self.first.bias).copy_(weights.read(f"{name}.conv1.bias").float() * beta)
        self.second.copy_((weights.read(f"{name}.conv2.weight").float()[..., 0] / beta).t())
        return pending + weights.read(f"{name}.conv2.bias").float()


class Block(nn.Module):
    """One block of the decoder: Snake, Upsample and three residual units."""

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.snake = Snake(inputs)
        self.up = Upsample(inputs, outputs, stride, dtype)
        self.units = nn.ModuleList([Unit(outputs, dilation, dtype) for dilation in DILATIONS])

    def fill(self, weights: Checkpoint, name: str, pending: Tensor) -> Tensor:
        """Copy the block's weights from the checkpoint. name: the name of the block in the checkpoint.

        pending (C,): the sum of earlier biases that are not yet added to the input. Returns the sum of the biases that
        a later Snake must add to the output.
        """
        alpha = _alpha(weights, f"{name}.snake1.alpha")
        self.snake.fill(alpha, pending)
        spread = weights.read(f"{name}.conv_t1.weight").float() / alpha[:, None, None]  # (inputs, outputs, kernel)
        self.up.weight.copy_(spread.transpose(1, 2).reshape(self.up.weight.shape))
        pending = weights.read(f"{name}.conv_t1.bias").float()
        for unit, unit_name in zip(self.units, UNITS, strict=True):
            pending = cast(Unit, unit).fill(weights, f"{name}.{unit_name}", pending)
        return pending


class DacDecoder(nn.Module):
    """Decodes codes to samples. Each row is an independent stream. Not thread-safe.

    Uses the first `codebooks` codebooks. After F frames of a row, `decode` has returned max(0, F * frame_samples -
    lookahead_samples) samples in total, and `flush` returns the remaining samples. A call of `decode` computes all rows
    with at least `lookahead_frames` earlier frames in one batch. A row with fewer than `lookahead_frames`
    earlier frames is computed only together with rows that have the same number of earlier frames.
    """

    def __init__(
        self,
        config: DacConfig,
        *,
        rows: int,
        codebooks: int | None = None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        c = config
        self.config = config
        self.codebooks = codebooks or c.codebooks
        if self.codebooks > c.codebooks:
            raise ValueError(f"the codec has {c.codebooks} codebooks, fewer than the {self.codebooks} requested")
        self._device, self._dtype = device, dtype
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        widths = c.decoder_widths
        with device:
            self.table = _weight(self.codebooks, c.codebook_size, c.codebook_dim)
            # The weights of the first convolution include the output projections of the codebooks. The last input
            # channel of this convolution is 1 in each frame, and its weights contain the biases of the projections. In
            # the padding before and after a stream this channel is 0, so the padding gets no bias.
            self.first = Conv(self.codebooks * c.codebook_dim + 1, widths[0], 7, dtype=dtype)
            self.blocks = nn.ModuleList(
                [Block(*shape, dtype) for shape in zip(widths, widths[1:], c.up_ratios, strict=False)]
            )
            self.snake = Snake(widths[-1])
            # The last convolution uses `_wide`, the dtype of the activations. It has only one output channel, so it is
            # fast even in this dtype.
            self.last = Conv(widths[-1], 1, 7, dtype=self._wide)
        self._offsets = torch.arange(self.codebooks, device=device) * c.codebook_size
        self._steps = _CPU_STEPS if device.type == "cpu" else _GPU_STEPS
        self._frames = [0] * rows
        self._states: dict[nn.Module, Tensor] = {}
        self._add_state(self.first, 2 * self.first.pad, self.first.weight.shape[1], dtype=dtype)
        lag = self.first.pad  # number of outputs that wait for later inputs, in time steps of the current layer
        for module in self.blocks:
            block = cast(Block, module)
            self._add_state(block.up, block.up.stride, block.up.outputs)
            lag = lag * block.up.stride + block.up.pad
            for inner in block.units:
                unit = cast(Unit, inner)
                self._add_state(unit.first, 2 * unit.first.pad, unit.width, dtype=dtype)
                self._add_state(unit, unit.first.pad, unit.width)
                lag += unit.first.pad
        self._add_state(self.last, 2 * self.last.pad, widths[-1], dtype=self._wide)
        self.lookahead_samples = lag + self.last.pad
        self.lookahead_frames = -(-self.lookahead_samples // c.frame_samples)

    def _add_state(self, module: nn.Module, *shape: int, dtype: torch.dtype | None = None) -> None:
        self._states[module] = torch.zeros(len(self._frames), *shape, dtype=dtype or self._wide, device=self._device)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products."""
        return self._dtype

    @torch.no_grad()
    def converted(self, dtype: torch.dtype) -> DacDecoder:
        """Return a new decoder with the weights of this decoder, matrix products in `dtype`, and empty rows."""
        rows = len(self._frames)
        other = DacDecoder(self.config, rows=rows, codebooks=self.codebooks, device=self._device, dtype=dtype)
        for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
            theirs.copy_(mine)
        return other.train(self.training)

    def narrowed(self, x: Tensor) -> Tensor:
        """Convert `x`, the input of a matrix product, to the dtype of the weights, and return it."""
        return x.to(self._dtype)

    @property
    def state_bytes(self) -> int:
        """The size of the state of all rows in bytes, without the weights."""
        return sum(tensor.nbytes for tensor in self._states.values())

    def reset(self, row: int) -> None:
        """Clear the state of the row, so that the row can begin a new stream."""
        for state in self._states.values():
            state[row] = 0
        self._frames[row] = 0

    def move_row(self, source: int, target: int) -> None:
        """Move the stream of row `source` to row `target`."""
        for state in self._states.values():
            state[target] = state[source]
        self._frames[target] = self._frames[source]

    @torch.no_grad()
    def decode(self, rows: Sequence[int], codes: Tensor) -> list[Tensor]:
        """Decode the next frames of these rows: codes (n, K, T) int64 -> samples (N,) float32 of each row.

        Returns the samples that do not depend on later frames. N is T * frame_samples for a row that had at least
        `lookahead_frames` frames before this call. For all other rows, N is smaller. Raises ValueError if `rows`
        contains a row twice.
        """
        if len(set(rows)) != len(rows):
            raise ValueError(f"rows {list(rows)} contain a row twice")
        decoded = [torch.empty(0, device=self._device)] * len(rows)
        by_frames: dict[int, list[int]] = {}  # number of earlier frames -> indices into `rows`
        for i, row in enumerate(rows):
            by_frames.setdefault(min(self._frames[row], self.lookahead_frames), []).append(i)
        for frames, indices in by_frames.items():
            group = [rows[i] for i in indices]
            group_codes = codes if len(indices) == len(rows) else codes[indices]
            done, parts = frames, []
            for chunk in torch.split(group_codes, _CHUNK_FRAMES, dim=2):
                parts.append(self._advance(group, self._embed(chunk), done))
                done = min(done + chunk.shape[2], self.lookahead_frames)
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            for i, samples in zip(indices, joined, strict=True):
                decoded[i] = samples
            for row in group:
                self._frames[row] += codes.shape[2]
        return decoded

    @torch.no_grad()
    def flush(self, row: int) -> Tensor:
        """Return the last samples (N,) float32 of a row's stream, and reset the row.

        `decode` and `flush` together return frame_samples samples for each frame.
        """
        frames = min(self._frames[row], self.lookahead_frames)
        if frames:
            nothing = torch.empty(1, 0, self.first.weight.shape[1], dtype=self._dtype, device=self._device)
            samples = self._advance([row], nothing, frames, final=True)[0]
        else:
            samples = torch.empty(0, device=self._device)
        self.reset(row)
        return samples

    def _embed(self, codes: Tensor) -> Tensor:  # (n, K, T) -> (n, T, K * d + 1)
        index = (codes + self._offsets[:, None]).transpose(1, 2)
        vectors = functional.embedding(index, self.table.flatten(0, 1)).flatten(2)
        return self.narrowed(functional.pad(vectors, (0, 1), value=1.0))

    # The methods below get the next inputs x (n, L, C) of a layer, and return the next outputs of the layer. The result
    # may be empty, because an output waits for later inputs. done: the number of inputs that the layer got before x.
    # The methods need this number only at the start of a stream, so `decode` never counts further than the lookahead.
    # final: True = x contains the last inputs of the stream.

    def _advance(self, rows: Sequence[int], x: Tensor, done: int, *, final: bool = False) -> Tensor:
        x = self._conv(rows, self.first, x, done, final)  # (n, L, C)
        return self._from_block(0, rows, x.to(self._wide), max(0, done - self.first.pad), final)

    def _from_block(self, index: int, rows: Sequence[int], x: Tensor, done: int, final: bool) -> Tensor:
        """Compute block `index` and all later blocks, then the last convolution. Return samples (n, N).

        x: the next inputs of block `index`. First divides the rows into parts, and then divides the time steps into
        parts. On a CPU, the data of each part fits into the CPU's cache.
        """
        if index == len(self.blocks):
            return self._conv(rows, self.last, self.snake(x), done, final)[..., 0].tanh_()
        block = cast(Block, self.blocks[index])
        max_steps = max(1, self._steps // block.up.stride)
        count, length, _ = x.shape
        if count > 1 and count * length > max_steps:
            each = max(1, max_steps // length)
            if each < count:
                return torch.cat(
                    [
                        self._from_block(index, rows[i : i + each], x[i : i + each], done, final)
                        for i in range(0, count, each)
                    ]
                )
        if length > max_steps:
            parts = torch.split(x, max_steps, dim=1)
            decoded = []
            for i, part in enumerate(parts):
                decoded.append(self._from_block(index, rows, part, done, final and i == len(parts) - 1))
                done += part.shape[1]
            return torch.cat(decoded, dim=1)
        x = self._up(rows, block.up, block.snake(x), done, final)
        done = max(0, done * block.up.stride - block.up.pad)
        for module in block.units:
            unit = cast(Unit, module)
            x = self._unit(rows, unit, x, done, final)
            done = max(0, done - unit.first.pad)
        if not x.shape[1] and not final:
            return x.new_empty(count, 0)
        return self._from_block(index + 1, rows, x, done, final)

    def _up(self, rows: Sequence[int], up: Upsample, x: Tensor, done: int, final: bool) -> Tensor:
        if not x.shape[1] and not final:
            return x.new_empty(len(x), 0, up.outputs)
        where, state = self._where(rows), self._states[up]
        out, overlap = up.forward(self.narrowed(x), state[where])
        state[where] = overlap
        if final:
            out = torch.cat((out, overlap[:, : up.stride - up.pad]), dim=1)
        return out if done else out[:, up.pad :]

    def _unit(self, rows: Sequence[int], unit: Unit, x: Tensor, done: int, final: bool) -> Tensor:
        if not x.shape[1] and not final:
            return x
        pad = unit.first.pad
        y = self._conv(rows, unit.first, self.narrowed(unit.snake(x)), done, final)
        residual = self._with_past(rows, unit, x)[:, max(0, pad - done) :]
        count = y.shape[1]
        if not count:
            return x.new_empty(len(x), 0, x.shape[2])
        if y.dtype != self._wide:
            y = y.to(self._wide)
        sine = y.sin()
        y = self.narrowed(y.addcmul_(sine, sine).view(-1, unit.width))
        residual = residual[:, :count].reshape(-1, unit.width)
        y = torch.addmm(residual, y, unit.second) if y.dtype == residual.dtype else residual + y @ unit.second
        return y.view(len(x), count, unit.width)

    def _conv(self, rows: Sequence[int], conv: Conv, x: Tensor, done: int, final: bool) -> Tensor:
        x = self._with_past(rows, conv, x)
        # At the start of a stream, the state contains zeros. The first output needs only `pad` zeros before it, so
        # remove the zeros that no output needs.
        x = x[:, max(0, conv.pad - done) :]
        if final:
            x = functional.pad(x, (0, 0, 0, conv.pad))
        if x.shape[1] <= 2 * conv.pad:
            return x.new_empty(len(x), 0, conv.weight.shape[2])
        return conv(x)  # type: ignore[no-any-return]

    def _with_past(self, rows: Sequence[int], module: nn.Module, x: Tensor) -> Tensor:
        """Return the inputs that the previous call has kept, followed by x. Keep the last inputs for the next call."""
        where, state = self._where(rows), self._states[module]
        x = torch.cat((state[where], x), dim=1)
        state[where] = x[:, -state.shape[1] :]
        return x

    def _where(self, rows: Sequence[int]) -> Tensor | slice:
        """Return an index that selects these rows in a state tensor."""
        first, count = rows[0], len(rows)
        if list(rows) == list(range(first, first + count)):
            return slice(first, first + count)  # a view, so the state is not copied
        return torch.tensor(rows, device=self._device)

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checked checkpoint into the codec. checkpoint.py describes the names."""
        device = torch.device("cpu")
        projections, bias = [], torch.zeros(self.config.latent_width, dtype=torch.float64, device=device)
        for k in range(self.codebooks):
            name = f"quantizer.quantizers.{k}"
            weights.copy_to(self.table[k], f"{name}.codebook.weight")
            projections.append(weights.read(f"{name}.out_proj.weight").double()[..., 0])
            bias += weights.read(f"{name}.out_proj.bias").double()
        projection = torch.cat((*projections, bias[:, None]), dim=1)  # (latent, K * d + 1)
        first = weights.read("decoder.conv1.weight").double()  # (outputs, latent, kernel)
        self.first.weight.copy_((first.permute(2, 0, 1) @ projection).transpose(1, 2))
        weights.copy_to(cast(Tensor, self.first.bias), "decoder.conv1.bias")
        pending = torch.zeros(self.config.decoder_width, device=device)
        for i, block in enumerate(self.blocks):
            pending = cast(Block, block).fill(weights, f"decoder.block.{i}", pending)
        alpha = _alpha(weights, "decoder.snake1.alpha")
        self.snake.fill(alpha, pending)
        last = weights.read("decoder.conv2.weight").float() / alpha[None, :, None]  # (1, inputs, kernel)
        self.last.weight.copy_(last.permute(2, 1, 0))
        weights.copy_to(cast(Tensor, self.last.bias), "decoder.conv2.bias")


class _EncoderUnit(nn.Module):
    """A residual unit of the encoder: x + conv1x1(snake(conv(snake(x))))."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        pad = (RESIDUAL_KERNEL - 1) * dilation // 2
        self.alpha1, self.alpha2 = _weight(width, 1), _weight(width, 1)
        self.first = nn.Conv1d(width, width, RESIDUAL_KERNEL, dilation=dilation, padding=pad)
        self.second = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, N)
        return x + self.second(_snake(self.first(_snake(x, self.alpha1)), self.alpha2))  # type: ignore[no-any-return]

    def fill(self, weights: Checkpoint, name: str) -> None:
        for conv, at in ((self.first, "conv1"), (self.second, "conv2")):
            _fill_conv(conv, weights, f"{name}.{at}")
        self.alpha1.copy_(_alpha(weights, f"{name}.snake1.alpha")[:, None])
        self.alpha2.copy_(_alpha(weights, f"{name}.snake2.alpha")[:, None])


class _EncoderBlock(nn.Module):
    """One block of the encoder: three residual units, a Snake and a strided convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.units = nn.ModuleList([_EncoderUnit(width, dilation) for dilation in DILATIONS])
        self.alpha = _weight(width, 1)
        self.down = nn.Conv1d(width, 2 * width, 2 * stride, stride=stride, padding=stride // 2)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return self.down(_snake(x, self.alpha))  # type: ignore[no-any-return]

    def fill(self, weights: Checkpoint, name: str) -> None:
        for unit, at in zip(self.units, UNITS, strict=True):
            cast(_EncoderUnit, unit).fill(weights, f"{name}.{at}")
        self.alpha.copy_(_alpha(weights, f"{name}.snake1.alpha")[:, None])
        _fill_conv(self.down, weights, f"{name}.conv1")


def _snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Return the Snake activation x + sin(alpha x)**2 / alpha. x: (B, C, N). alpha: (C, 1)."""
    sine = torch.sin(alpha * x)
    return torch.addcmul(x, sine, sine / alpha)


def _fill_conv(conv: nn.Conv1d, weights: Checkpoint, name: str) -> None:
    weights.copy_to(conv.weight, f"{name}.weight")
    weights.copy_to(cast(Tensor, conv.bias), f"{name}.bias")


class DacEncoder(nn.Module):
    """Encodes whole recordings to codes. An encoder has no state, so any thread may call it.

    The encoder processes a recording in overlapping windows, which limits the memory and does not change the result.
    All computation is in float32: with the rounding of a shorter number format, another code vector could become the
    nearest one.
    """

    def __init__(self, config: DacConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        widths = c.encoder_widths
        self.first = nn.Conv1d(1, widths[0], 7, padding=3)
        self.blocks = nn.ModuleList(
            [_EncoderBlock(width, stride) for width, stride in zip(widths, c.down_ratios, strict=False)]
        )
        self.alpha = _weight(widths[-1], 1)
        self.last = nn.Conv1d(widths[-1], c.latent_width, 3, padding=1)
        self.requires_grad_(False)
        self.in_weight, self.in_bias = (
            _weight(c.codebooks, c.codebook_dim, c.latent_width),
            _weight(c.codebooks, c.codebook_dim),
        )
        self.out_weight, self.out_bias = (
            _weight(c.codebooks, c.latent_width, c.codebook_dim),
            _weight(c.codebooks, c.latent_width),
        )
        self.table = _weight(c.codebooks, c.codebook_size, c.codebook_dim)
        # A latent (the encoder's output for one frame) depends on `reach` samples before it and `reach` samples after
        # it.
        stride, reach = 1, 3
        for ratio in c.down_ratios:
            reach += stride * (sum(DILATIONS) * (RESIDUAL_KERNEL - 1) // 2 + 2 * ratio)
            stride *= ratio
        self._margin_frames = -(-(reach + stride) // stride)

    @torch.no_grad()
    def forward(self, samples: Tensor) -> Tensor:
        """Encode samples (N,) float32 at the codec's rate -> codes (K, T) int64.

        A partial last frame is padded with zeros, as in transformers' DacFeatureExtractor.
        """
        hop, margin = self.config.frame_samples, self._margin_frames
        samples = functional.pad(samples, (0, -len(samples) % hop))
        frames = len(samples) // hop
        latents = []
        for start in range(0, frames, _ENCODER_FRAMES):
            stop = min(frames, start + _ENCODER_FRAMES)
            left, right = max(0, start - margin), min(frames, stop + margin)
            x = self.first(samples[None, None, left * hop : right * hop])
            for block in self.blocks:
                x = block(x)
            latents.append(self.last(_snake(x, self.alpha))[0, :, start - left : stop - left])
        if not latents:
            return torch.empty(self.config.codebooks, 0, dtype=torch.int64, device=samples.device)
        return self._quantize(torch.cat(latents, dim=1).t())

    def _quantize(self, latents: Tensor) -> Tensor:  # (T, C) -> (K, T)
        codes = []
        residual = latents
        for k in range(self.config.codebooks):
            vectors = functional.linear(residual, self.in_weight[k], self.in_bias[k])
            # Find the nearest code vector after normalisation to length 1. The order of operations is that of DacModel
            # in transformers.
            latent, table = functional.normalize(vectors), functional.normalize(self.table[k])
            similarity = -(latent.pow(2).sum(1, keepdim=True) - 2 * latent @ table.t()) + table.pow(2).sum(1)
            code = similarity.argmax(dim=1)
            residual = residual - functional.linear(self.table[k][code], self.out_weight[k], self.out_bias[k])
            codes.append(code)
        return torch.stack(codes)

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy the tensors of a checked checkpoint into the codec. checkpoint.py describes the names."""
        _fill_conv(self.first, weights, "encoder.conv1")
        for i, block in enumerate(self.blocks):
            cast(_EncoderBlock, block).fill(weights, f"encoder.block.{i}")
        self.alpha.copy_(_alpha(weights, "encoder.snake1.alpha")[:, None])
        _fill_conv(self.last, weights, "encoder.conv2")
        for k in range(self.config.codebooks):
            name = f"quantizer.quantizers.{k}"
            for weight, bias, part in (
                (self.in_weight, self.in_bias, "in_proj"),
                (self.out_weight, self.out_bias, "out_proj"),
            ):
                weight[k].copy_(weights.read(f"{name}.{part}.weight")[..., 0])
                weights.copy_to(bias[k], f"{name}.{part}.bias")
            weights.copy_to(self.table[k], f"{name}.codebook.weight")
