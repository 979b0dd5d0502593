"""DAC, the codec of Dia: a streaming decoder whose rows begin, advance and end on their own, and an encoder for whole
recordings.

Each convolution looks as far ahead as back, so nothing streams by itself: a decoded sample depends on ten frames on
either side of it. Here every convolution keeps the inputs it will need again and gives out only what no later input can
change, so nothing is computed twice, and the end of a stream is the last inputs pushed through with zeros behind them,
which is what the whole decode pads with. The running sum of a residual unit waits in a queue for its other half.

Exactness, float32 on a CPU: sound streamed in any pieces differs from sound decoded in one go by rounding only, below
1e-6 of full scale (an LSB of 16 bits is 3e-5). A row that is decoded alone in the same pieces gives the same bits; in
other pieces, or beside other rows, the products have other shapes and the last bits may differ. Who wants streamed and
whole sound to be the same bits decodes both in the same pieces.

Laid out (B, T, C). Numbers: Kumar et al., arXiv 2306.06546, and the config.json of descript/dac_44khz. Activations,
state and running sums are float32; `dtype` is that of the weights and so of the products.
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

_PIECE_FRAMES = 64  # longest piece that goes through the first convolution in one go
_CPU_COLUMNS = 1024  # columns (of all rows) of a block's output that are computed at a time: they stay in cache
_GPU_COLUMNS = 1 << 16
_FEW_COLUMNS = 64  # below this one product over windows reads the weights once instead of seven times
_LEAST_ALPHA = 1e-8  # x + sin(ax)**2 / a is x to rounding below it
_ENCODED_FRAMES = 256  # encoded at a time: 3 s, 34 MB per layer at full rate


def _weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def _alpha(weights: Checkpoint, name: str) -> Tensor:  # (C,)
    alpha = weights.read(name).float().flatten()
    return torch.where(alpha.abs() < _LEAST_ALPHA, _LEAST_ALPHA, alpha)


class Snake(nn.Module):
    """x -> a (x + b) + sin(a (x + b))**2, which is a times the activation of arXiv 2306.06546: the next convolution's
    weights are divided by a. b: biases that the running sum x still lacks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = _weight(width), _weight(width)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.addcmul(self.shift, x, self.scale)
        sine = z.sin()
        return z.addcmul_(sine, sine)

    def fill(self, alpha: Tensor, lacking: Tensor) -> None:
        self.scale.copy_(alpha)
        self.shift.copy_(alpha * lacking)


class Conv(nn.Module):
    """A convolution without padding as products of shifted inputs, or of windows where columns are few. Its weight is
    (kernel, inputs, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, bias: bool = True, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.pad = (kernel - 1) * dilation // 2  # what the whole decode puts on either side
        self.weight = _weight(kernel, inputs, outputs, dtype=dtype)
        self.bias = _weight(outputs, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 2 * pad + T, C) -> (B, T, outputs), both in the dtype of the weights."""
        rows, length, channels = x.shape
        count = length - 2 * self.pad
        kernel, _, outputs = self.weight.shape
        if outputs == 1:  # every tap of every input at once, then sums along the diagonals
            taps = x @ self.weight[..., 0].t()  # (B, T + 2 * pad, kernel)
            out = taps.as_strided((rows, count, kernel), (length * kernel, kernel, kernel + 1)).sum(dim=2)
            return (out if self.bias is None else out + self.bias)[..., None]
        if (
            rows == 1 and count >= _FEW_COLUMNS and x.dtype == torch.float32
        ):  # in bfloat16 partial sums would be rounded
            taken = x[0]
            if self.bias is None:
                out = taken[:count] @ self.weight[0]
            else:
                out = torch.addmm(self.bias, taken[:count], self.weight[0])
            for k in range(1, kernel):
                out.addmm_(taken[k * self.dilation : k * self.dilation + count], self.weight[k])
            return out[None]
        windows = x.as_strided(
            (rows, count, kernel, channels), (x.stride(0), x.stride(1), self.dilation * x.stride(1), 1)
        ).reshape(rows * count, kernel * channels)
        flat = self.weight.view(kernel * channels, outputs)
        out = windows @ flat if self.bias is None else torch.addmm(self.bias, windows, flat)
        return out.view(rows, count, outputs)


class Upsample(nn.Module):
    """A transposed convolution of kernel 2 * stride: an input spreads over 2 * stride outputs, the later half of which
    is owed to the next input's first half. `pad` outputs are cut at either end."""

    def __init__(self, inputs: int, outputs: int, stride: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.pad = stride // 2
        self.weight = _weight(inputs, 2 * stride * outputs, dtype=dtype)

    def forward(self, x: Tensor, owed: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, C) in the weights' dtype, owed (B, stride, outputs) float32 -> (B, T * stride, outputs) float32
        without bias, and what is owed after it."""
        rows, length, _ = x.shape
        spread = (x.reshape(rows * length, -1) @ self.weight).view(rows, length, 2, self.stride, self.outputs)
        later = torch.cat((owed[:, None], spread[:, :, 1]), dim=1)  # (B, T + 1, stride, outputs)
        sound = torch.add(later[:, :-1], spread[:, :, 0]).view(rows, length * self.stride, self.outputs)
        return sound, later[:, -1]


class Unit(nn.Module):
    """x + 1x1(snake(conv(snake(x)))), without the last bias, which the reader of the sum adds."""

    def __init__(self, width: int, dilation: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = width
        self.snake = Snake(width)
        self.first = Conv(width, width, RESIDUAL_KERNEL, dilation=dilation, dtype=dtype)
        self.second = _weight(width, width, dtype=dtype)

    def fill(self, weights: Checkpoint, name: str, lacking: Tensor) -> Tensor:
        """Return the biases that the sum still lacks."""
        alpha, beta = _alpha(weights, f"{name}.snake1.alpha"), _alpha(weights, f"{name}.snake2.alpha")
        self.snake.fill(alpha, lacking)
        first = weights.read(f"{name}.conv1.weight").float()  # (outputs, inputs, kernel)
        self.first.weight.copy_((first * (beta[:, None, None] / alpha[None, :, None])).permute(2, 1, 0))
        cast(Tensor, self.first.bias).copy_(weights.read(f"{name}.conv1.bias").float() * beta)
        self.second.copy_((weights.read(f"{name}.conv2.weight").float()[..., 0] / beta).t())
        return lacking + weights.read(f"{name}.conv2.bias").float()


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.snake = Snake(inputs)
        self.up = Upsample(inputs, outputs, stride, dtype)
        self.units = nn.ModuleList([Unit(outputs, dilation, dtype) for dilation in DILATIONS])

    def fill(self, weights: Checkpoint, name: str, lacking: Tensor) -> Tensor:
        alpha = _alpha(weights, f"{name}.snake1.alpha")
        self.snake.fill(alpha, lacking)
        spread = weights.read(f"{name}.conv_t1.weight").float() / alpha[:, None, None]  # (inputs, outputs, kernel)
        self.up.weight.copy_(spread.transpose(1, 2).reshape(self.up.weight.shape))
        lacking = weights.read(f"{name}.conv_t1.bias").float()
        for unit, unit_name in zip(self.units, UNITS, strict=True):
            lacking = cast(Unit, unit).fill(weights, f"{name}.{unit_name}", lacking)
        return lacking


class DacDecoder(nn.Module):
    """Decodes codes to samples, for rows that stream independently. Owns their state; one thread may call it.

    Uses the first `codebooks` codebooks. After F frames of a row, max(0, F * frame_samples - lookahead_samples) samples
    have come out; `flush` brings the rest. Rows of one call that are past their first `lookahead_frames` frames go
    through one product whatever their positions; younger ones with those of their age.
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
            raise ValueError(f"the codec has {c.codebooks} codebooks, {self.codebooks} are wanted")
        self._device, self._dtype = device, dtype
        widths = c.decoder_widths
        with device:
            self.table = _weight(self.codebooks, c.codebook_size, c.codebook_dim)
            # The output projections of the codebooks are folded into the first convolution. Its last input is 1 on
            # every frame and carries their biases: beyond the ends there is nothing, not a bias.
            self.first = Conv(self.codebooks * c.codebook_dim + 1, widths[0], 7, dtype=dtype)
            self.blocks = nn.ModuleList(
                [Block(*shape, dtype) for shape in zip(widths, widths[1:], c.up_ratios, strict=False)]
            )
            self.snake = Snake(widths[-1])
            self.last = Conv(widths[-1], 1, 7, dtype=dtype)
        self._offsets = torch.arange(self.codebooks, device=device) * c.codebook_size
        self._columns = _CPU_COLUMNS if device.type == "cpu" else _GPU_COLUMNS
        self._frames = [0] * rows
        self._states: dict[nn.Module, Tensor] = {}
        self._remember(self.first, 2 * self.first.pad, self.first.weight.shape[1], dtype=dtype)
        lag = self.first.pad  # by how many outputs of a layer the stream is behind its inputs
        for module in self.blocks:
            block = cast(Block, module)
            self._remember(block.up, block.up.stride, block.up.outputs)
            lag = lag * block.up.stride + block.up.pad
            for inner in block.units:
                unit = cast(Unit, inner)
                self._remember(unit.first, 2 * unit.first.pad, unit.width, dtype=dtype)
                self._remember(unit, unit.first.pad, unit.width)
                lag += unit.first.pad
        self._remember(self.last, 2 * self.last.pad, widths[-1], dtype=dtype)
        self.lookahead_samples = lag + self.last.pad
        self.lookahead_frames = -(-self.lookahead_samples // c.frame_samples)

    def _remember(self, module: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self._states[module] = torch.zeros(len(self._frames), *shape, dtype=dtype, device=self._device)

    @property
    def state_bytes(self) -> int:
        """Bytes of the rows' state, without the weights."""
        return sum(tensor.nbytes for tensor in self._states.values())

    def reset(self, row: int) -> None:
        """Reset the row for a new stream."""
        for state in self._states.values():
            state[row] = 0
        self._frames[row] = 0

    @torch.no_grad()
    def decode(self, rows: Sequence[int], codes: Tensor) -> list[Tensor]:
        """Go on with these rows, each named once: codes (n, K, T) int64 -> of each row the samples (N,) float32 that
        are certain now: none before `lookahead_frames` frames, T * frame_samples after them."""
        if len(set(rows)) != len(rows):
            raise ValueError(f"rows {list(rows)} hold one twice")
        sound = [torch.empty(0, device=self._device)] * len(rows)
        begun: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            begun.setdefault(min(self._frames[row], self.lookahead_frames), []).append(i)
        for frames, some in begun.items():
            group = [rows[i] for i in some]
            mine = codes if len(some) == len(rows) else codes[some]
            at, parts = frames, []
            for piece in torch.split(mine, _PIECE_FRAMES, dim=2):
                parts.append(self._advance(group, self._embed(piece), at))
                at = min(at + piece.shape[2], self.lookahead_frames)
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            for i, samples in zip(some, joined, strict=True):
                sound[i] = samples
            for row in group:
                self._frames[row] += codes.shape[2]
        return sound

    @torch.no_grad()
    def flush(self, row: int) -> Tensor:
        """The end of a row's sound (N,) float32, so that it is frames * frame_samples long in all. The row begins
        anew."""
        frames = min(self._frames[row], self.lookahead_frames)
        if frames:
            nothing = torch.empty(1, 0, self.first.weight.shape[1], dtype=self._dtype, device=self._device)
            sound = self._advance([row], nothing, frames, final=True)[0]
        else:
            sound = torch.empty(0, device=self._device)
        self.reset(row)
        return sound

    def _embed(self, codes: Tensor) -> Tensor:  # (n, K, T) -> (n, T, K * d + 1)
        index = (codes + self._offsets[:, None]).transpose(1, 2)
        vectors = functional.embedding(index, self.table.flatten(0, 1)).flatten(2)
        return functional.pad(vectors, (0, 1), value=1.0).to(self._dtype)

    # The methods below take the next values x (n, L, C) of a layer's input and `begun`, how many the rows had before
    # (or any number from which on it makes no difference); final: these are the last. They give the layer's next
    # outputs, maybe none.

    def _advance(self, rows: Sequence[int], x: Tensor, begun: int, *, final: bool = False) -> Tensor:
        x = self._conv(rows, self.first, x, begun, final)  # (n, L, C)
        return self._from_block(0, rows, x.float(), max(0, begun - self.first.pad), final)

    def _from_block(self, index: int, rows: Sequence[int], x: Tensor, begun: int, final: bool) -> Tensor:
        """-> samples (n, N). Rows, then columns, are taken in parts that stay in the cache all the way to the end."""
        if index == len(self.blocks):
            h = self.snake(x).to(self._dtype)
            return self._conv(rows, self.last, h, begun, final)[..., 0].float().tanh_()
        block = cast(Block, self.blocks[index])
        most = max(1, self._columns // block.up.stride)
        count, length, _ = x.shape
        if count > 1 and count * length > most:
            each = max(1, most // length)
            if each < count:
                return torch.cat(
                    [
                        self._from_block(index, rows[i : i + each], x[i : i + each], begun, final)
                        for i in range(0, count, each)
                    ]
                )
        if length > most:
            parts = torch.split(x, most, dim=1)
            sound = []
            for i, part in enumerate(parts):
                sound.append(self._from_block(index, rows, part, begun, final and i == len(parts) - 1))
                begun += part.shape[1]
            return torch.cat(sound, dim=1)
        x = self._up(rows, block.up, block.snake(x), begun, final)
        begun = max(0, begun * block.up.stride - block.up.pad)
        for module in block.units:
            unit = cast(Unit, module)
            x = self._unit(rows, unit, x, begun, final)
            begun = max(0, begun - unit.first.pad)
        if not x.shape[1] and not final:
            return x.new_empty(count, 0)
        return self._from_block(index + 1, rows, x, begun, final)

    def _up(self, rows: Sequence[int], up: Upsample, x: Tensor, begun: int, final: bool) -> Tensor:
        if not x.shape[1] and not final:
            return x.new_empty(len(x), 0, up.outputs)
        where, state = self._where(rows), self._states[up]
        sound, owed = up.forward(x.to(self._dtype), state[where])
        state[where] = owed
        if final:
            sound = torch.cat((sound, owed[:, : up.stride - up.pad]), dim=1)
        return sound if begun else sound[:, up.pad :]

    def _unit(self, rows: Sequence[int], unit: Unit, x: Tensor, begun: int, final: bool) -> Tensor:
        if not x.shape[1] and not final:
            return x
        pad = unit.first.pad
        y = self._conv(rows, unit.first, unit.snake(x).to(self._dtype), begun, final)
        waiting = self._follow(rows, unit, x)[:, max(0, pad - begun) :]
        count = y.shape[1]
        if not count:
            return x.new_empty(len(x), 0, x.shape[2])
        if y.dtype != torch.float32:
            y = y.float()
        sine = y.sin()
        y = y.addcmul_(sine, sine).view(-1, unit.width).to(self._dtype)
        waiting = waiting[:, :count].reshape(-1, unit.width)
        y = torch.addmm(waiting, y, unit.second) if y.dtype == waiting.dtype else waiting + y @ unit.second
        return y.view(len(x), count, unit.width)

    def _conv(self, rows: Sequence[int], conv: Conv, x: Tensor, begun: int, final: bool) -> Tensor:
        x = self._follow(rows, conv, x)
        # What lies before the stream is zeros, and before its first output `pad` of them are enough.
        x = x[:, max(0, conv.pad - begun) :]
        if final:
            x = functional.pad(x, (0, 0, 0, conv.pad))
        if x.shape[1] <= 2 * conv.pad:
            return x.new_empty(len(x), 0, conv.weight.shape[2])
        return conv(x)  # type: ignore[no-any-return]

    def _follow(self, rows: Sequence[int], module: nn.Module, x: Tensor) -> Tensor:
        """x with the inputs before it that the module remembers; remembers the last of both."""
        where, state = self._where(rows), self._states[module]
        x = torch.cat((state[where], x), dim=1)
        state[where] = x[:, -state.shape[1] :]
        return x

    def _where(self, rows: Sequence[int]) -> Tensor | slice:
        first, count = rows[0], len(rows)
        if list(rows) == list(range(first, first + count)):
            return slice(first, first + count)  # a view: nothing is copied
        return torch.tensor(rows, device=self._device)

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy in a checked checkpoint, with the names of checkpoint.py."""
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
        lacking = torch.zeros(self.config.decoder_width, device=device)
        for i, block in enumerate(self.blocks):
            lacking = cast(Block, block).fill(weights, f"decoder.block.{i}", lacking)
        alpha = _alpha(weights, "decoder.snake1.alpha")
        self.snake.fill(alpha, lacking)
        last = weights.read("decoder.conv2.weight").float() / alpha[None, :, None]  # (1, inputs, kernel)
        self.last.weight.copy_(last.permute(2, 1, 0))
        weights.copy_to(cast(Tensor, self.last.bias), "decoder.conv2.bias")


class _EncoderUnit(nn.Module):
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
    sine = torch.sin(alpha * x)
    return torch.addcmul(x, sine, sine / alpha)


def _fill_conv(conv: nn.Conv1d, weights: Checkpoint, name: str) -> None:
    weights.copy_to(conv.weight, f"{name}.weight")
    weights.copy_to(cast(Tensor, conv.bias), f"{name}.bias")


class DacEncoder(nn.Module):
    """Recordings to codes, each in one go, in windows that overlap by as much as an output depends on: the same as all
    at once, in bounded memory. Stateless: any thread may call it. Always float32: codes turn on ties."""

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
        stride, reach = 1, 3  # samples on either side that a latent depends on
        for ratio in c.down_ratios:
            reach += stride * (sum(DILATIONS) * (RESIDUAL_KERNEL - 1) // 2 + 2 * ratio)
            stride *= ratio
        self._margin_frames = -(-(reach + stride) // stride)

    @torch.no_grad()
    def forward(self, samples: Tensor) -> Tensor:
        """samples (N,) float32 at the codec's rate -> codes (K, T) int64; a partial last frame is padded
        with zeros, as in transformers' DacFeatureExtractor."""
        hop, margin = self.config.frame_samples, self._margin_frames
        samples = functional.pad(samples, (0, -len(samples) % hop))
        frames = len(samples) // hop
        latents = []
        for start in range(0, frames, _ENCODED_FRAMES):
            stop = min(frames, start + _ENCODED_FRAMES)
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
            # The nearest after both are brought to length 1, in the order of operations of DacModel.
            sought, known = functional.normalize(vectors), functional.normalize(self.table[k])
            nearness = -(sought.pow(2).sum(1, keepdim=True) - 2 * sought @ known.t()) + known.pow(2).sum(1)
            code = nearness.argmax(dim=1)
            residual = residual - functional.linear(self.table[k][code], self.out_weight[k], self.out_bias[k])
            codes.append(code)
        return torch.stack(codes)

    @torch.no_grad()
    def load(self, weights: Checkpoint) -> None:
        """Copy in a checked checkpoint, with the names of checkpoint.py."""
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
