"""An inaudible mark that says "made by a machine", put into sound as it streams, and found again in a file.

The network is Perth (Resemble AI, MIT licence): a residual on the log magnitudes below 2 kHz, a hundred a second.
Only its weights are used, from the `watermark` extra; its own code needs packages that no longer install together. What
runs here is ours: the weights in NumPy, which is faster at these sizes than torch, and a transform whose windows and
hops are as long in time at every rate as Perth's at 32 kHz, so that nothing is resampled to be marked.

Perth looks 15 frames (150 ms) ahead; a stream can't wait that long. `StreamMarker` looks LOOKAHEAD frames ahead, which
docs/watermark.md measures. It carries one bit and no payload. Knows samples and rates; no voices, no HTTP.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import pickle  # for its error's name: torch.load is called with weights_only # nosec B403
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.audio.shape import soft_limit
from app.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from app.types import Samples, Voice

    Array = NDArray[np.float32]

log = logging.getLogger(__name__)

Scope = Literal["cloned", "all", "off"]

VERSION = "perth-250000.1"  # changes whenever the same sound would be marked otherwise
DETECT_RATE_HZ = 32_000  # Perth's own
FOUND = 0.5  # the score from which sound counts as marked; docs/watermark.md has both sides of it

_PACKAGE = "perth"
_HOW = "Install it with: pip install 'tts-server[watermark]' (resemble-perth, MIT licence)."
_WEIGHTS = Path("perth_net/pretrained/implicit/perth_net_250000.pth.tar")

WINDOW_S, HOP_S = 0.064, 0.01  # 2048 and 320 samples at 32 kHz, as the network was trained
BANDS = 128  # of the transform, 15.6 Hz each: up to 2 kHz
REACH = 15  # frames that the network sees to either side: five convolutions over 7 frames
BLOCK = 8  # frames that are marked together
LOOKAHEAD = 3  # frames behind a block that it waits for

_FLOOR = 1e-9  # magnitude; -180 dB
_FLOOR_DB, _SPAN_DB = -180.0, 195.0  # log magnitudes are brought to 0..1 over this span
# Perth leaves frames alone whose mean log magnitude is below 5 % of the loudest frame's, -170 dB or so: digital
# silence. Loudest of a stream is not known, so a fixed value stands for it.
_SILENT = 0.04
_SLOPE = np.float32(0.01)  # of the leaky rectifier


class WatermarkMissing(NotSupported):
    """The extra is not installed, or not as it should be; the message says what to do."""


class Watermark:
    """Which answers are marked. Raises WatermarkMissing at once where all should be and can't."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self.missing = None if scope == "off" else _missing()  # why nothing is marked, in words
        if scope == "all":
            load()
        elif self.missing is not None:
            log.warning("cloned voices are not marked: %s", self.missing)

    def marks(self, voices: Iterable[Voice]) -> bool:
        """Whether an answer by these voices carries the mark: one cloned voice in it is enough."""
        if self.scope == "off" or self.missing is not None:
            return False
        return self.scope == "all" or any(voice.kind == "cloned" for voice in voices)


@dataclass(frozen=True, slots=True)
class _Layer:
    weight: Array  # (taps * inputs, outputs)
    bias: Array  # (outputs,)
    taps: int

    def __call__(self, x: Array) -> Array:
        """(T, inputs) -> (T - taps + 1, outputs): no padding."""
        count = len(x) - self.taps + 1
        x = np.ascontiguousarray(x)
        windows = np.lib.stride_tricks.as_strided(x, (count, self.taps * x.shape[1]), x.strides)
        return windows @ self.weight + self.bias


@dataclass(frozen=True, slots=True)
class Perth:
    """The trained network: an encoder, and a decoder in three branches, each with how far it stretches time first."""

    encoder: tuple[_Layer, ...]
    decoders: tuple[tuple[float, tuple[_Layer, ...]], ...]

    def residual(self, levels: Array, before: int, after: int) -> Array:
        """What to add to the log magnitudes of the frames in the middle, (T - before - after, BANDS).

        levels (T, BANDS), 0..1. Its first `before` frames (at most REACH) are context; where they are fewer than
        REACH, the sound begins there. After its last frame the network sees what it was trained to see after an end.
        """
        begins = before < REACH
        x = _through(self.encoder, levels, begins=begins)
        return x[before if begins else 0 : len(x) - after]

    def score(self, samples: Samples) -> float:
        """How sure the network is, 0 to 1, that samples (N,) at DETECT_RATE_HZ carry the mark; 0 for silence."""
        levels = np.concatenate([level for level, _ in _spectra(samples, _Grid.of(DETECT_RATE_HZ))])
        audible = levels.mean(axis=1) > _SILENT
        if not audible.any():
            return 0.0
        marks, sure = [], []
        for stretch, layers in self.decoders:
            count = int(len(levels) * stretch)
            if not count:
                return 0.0
            out = _through(layers, _lerp(levels, count), begins=True)
            heard = audible[(np.arange(count) * len(levels)) // count]
            if not heard.any():
                return 0.0
            attention, mark = out[heard].mean(axis=0)
            sure.append(attention)
            marks.append(mark)
        weights = np.exp(np.array(sure) - max(sure))
        return float(np.clip((weights * np.array(marks)).sum() / weights.sum(), 0.0, 1.0))


def detect(samples: Samples) -> float:
    """How sure it is, 0 to 1, that samples (N,) at DETECT_RATE_HZ are marked; FOUND and more is a mark.

    Blocks for 10 ms a second of sound. Raises WatermarkMissing.
    """
    return load().score(samples)


@functools.cache
def load() -> Perth:
    """The network, read once: 0.1 s with torch already there, 37 MB. Raises WatermarkMissing."""
    package = _package()
    if (missing := _missing()) is not None or package is None:
        raise WatermarkMissing(missing or _HOW)
    try:
        import torch  # noqa: PLC0415 - only to read the file; speaking offline needs no torch
        from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - of the extra

        # NumPy's matrix products in one thread, for good: at these sizes more gain nothing, and on a machine that is
        # busy anyway they wait for each other, 20 times as long as the product takes.
        ThreadpoolController().select(internal_api="openblas").limit(limits=1)
        state = torch.load(package / _WEIGHTS, map_location="cpu", weights_only=True)["model"]
    except (ImportError, OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise WatermarkMissing(f"The watermark's weights can't be read ({error}). {_HOW}") from error

    def layers(name: str) -> tuple[_Layer, ...]:
        found = []
        for index in range(7):
            weight = state[f"{name}.{index}.conv.weight"].numpy()  # (outputs, inputs, taps)
            flat = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))
            found.append(_Layer(flat, state[f"{name}.{index}.conv.bias"].numpy(), weight.shape[2]))
        return tuple(found)

    branches = ((1.25, "slow"), (1.0, "normal"), (0.75, "fast"))
    return Perth(
        layers("encoder.layers"), tuple((stretch, layers(f"decoder.{name}_layers")) for stretch, name in branches)
    )


class StreamMarker:
    """A `Stage` that marks sound. As many samples come out as went in; above 2 kHz they are the same.

    The first output comes after 132 ms of input, and output is at most 163 ms behind input: half a window before and
    after each frame, LOOKAHEAD and BLOCK.
    """

    def __init__(self, rate_hz: int, perth: Perth, *, block: int = BLOCK, lookahead: int = LOOKAHEAD) -> None:
        self._perth = perth
        self._grid = _Grid.of(rate_hz)
        self._block, self._lookahead = block, lookahead
        half = self._grid.window_samples // 2
        self._pending = np.zeros(half, np.float32)  # input from the next frame's first sample on
        self._levels = np.zeros((0, BANDS), np.float32)  # REACH frames before the next block, and what is behind them
        self._spectra: list[NDArray[np.complex64]] = []  # of the next block's frames and those behind
        self._before = 0  # how many of `_levels` are before the next block
        self._dry = np.zeros(half, np.float32)  # input not yet given back, from the next block's first sample on
        self._wet = np.zeros(self._grid.window_samples, np.float32)  # the mark, from the same place on
        self._envelope = np.zeros(self._grid.window_samples, np.float32)
        self._skip = half  # of the first outputs: they are before the sound's beginning
        self._taken = self._given = 0

    def push(self, samples: Samples) -> Samples:
        self._taken += len(samples)
        self._feed(samples)
        out = []
        while len(self._spectra) >= self._block + self._lookahead:
            out.append(self._mark(self._block, len(self._spectra) - self._block))
        return self._give(out)

    def flush(self) -> Samples:
        frames = self._taken // self._grid.hop_samples + 1  # the last one's middle is within the sound
        done = frames - len(self._spectra)
        behind = np.zeros(self._grid.window_samples + self._grid.hop_samples, np.float32)
        self._feed(behind)
        extra = done + len(self._spectra) - frames
        if extra > 0:
            del self._spectra[len(self._spectra) - extra :]
            self._levels = self._levels[: len(self._levels) - extra]
        out = []
        while self._spectra:
            count = min(self._block, len(self._spectra))
            out.append(self._mark(count, len(self._spectra) - count))
        left = self._taken - self._given
        return self._give([*out, self._finished(len(self._dry))])[:left]

    def _feed(self, samples: Samples) -> None:
        self._dry = np.concatenate((self._dry, samples))
        self._pending = np.concatenate((self._pending, samples))
        for levels, spectra in _spectra(self._pending, self._grid, whole=False):
            self._levels = np.concatenate((self._levels, levels))
            self._spectra.extend(spectra)
            self._pending = self._pending[len(levels) * self._grid.hop_samples :].copy()

    def _mark(self, count: int, after: int) -> Samples:
        """Mark the next `count` frames, with `after` more to look at; returns what is finished then."""
        # Of what is behind never more than LOOKAHEAD, however much happens to be there: the same cuts, the same sound.
        after = min(after, self._lookahead)
        levels = self._levels[: self._before + count + after]
        residual = self._perth.residual(levels, self._before, after)
        residual *= (levels[self._before : self._before + count].mean(axis=1) > _SILENT)[:, None]
        gain = np.float32(10.0) ** (residual * np.float32(_SPAN_DB / 20)) - np.float32(1.0)
        grid = self._grid
        change = np.zeros((count, grid.window_samples // 2 + 1), np.complex64)
        change[:, :BANDS] = np.array(self._spectra[:count])[:, :BANDS] * gain
        sounds = np.fft.irfft(change, grid.window_samples, axis=1).astype(np.float32) * grid.window
        del self._spectra[:count]
        drop = max(0, self._before + count - REACH)
        self._levels = self._levels[drop:]
        self._before += count - drop
        out = []
        for sound in sounds:
            self._wet += sound
            self._envelope += grid.window_squared
            out.append(self._finished(grid.hop_samples))
        return np.concatenate(out)

    def _finished(self, count: int) -> Samples:
        """The next samples, which no later frame reaches."""
        dry, self._dry = self._dry[:count], self._dry[count:].copy()
        reach = min(count, len(self._wet))
        mark = np.zeros(len(dry), np.float32)
        usable = min(reach, len(dry))
        mark[:usable] = self._wet[:usable] / np.maximum(self._envelope[:usable], np.float32(1e-3))
        for held in (self._wet, self._envelope):
            held[: len(held) - reach] = held[reach:].copy()
            held[len(held) - reach :] = 0
        return dry + mark

    def _give(self, parts: list[Samples]) -> Samples:
        samples = np.concatenate([np.zeros(0, np.float32), *parts])
        early = min(self._skip, len(samples))
        self._skip -= early
        samples = soft_limit(samples[early:])
        self._given += len(samples)
        return samples


@dataclass(frozen=True, slots=True)
class _Grid:
    """Windows and hops at one rate. scale: a tone's magnitude at 32 kHz over that here."""

    window_samples: int
    hop_samples: int
    window: Array
    window_squared: Array
    scale: np.float32

    @staticmethod
    @functools.lru_cache(maxsize=16)
    def of(rate_hz: int) -> _Grid:
        count = 2 * round(WINDOW_S * rate_hz / 2)
        window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)).astype(np.float32)
        scale = np.float32(WINDOW_S * DETECT_RATE_HZ / count)
        return _Grid(count, round(HOP_S * rate_hz), window, np.square(window), scale)


def _spectra(samples: Samples, grid: _Grid, *, whole: bool = True) -> list[tuple[Array, NDArray[np.complex64]]]:
    """Log magnitudes (T, BANDS) at 0..1 and spectra (T, bins), in batches of at most 10 s.

    whole: samples are a whole sound, whose frames are centred; else they begin with the first frame's first sample.
    """
    if whole:
        samples = np.pad(samples, grid.window_samples // 2)
    count = max(0, (len(samples) - grid.window_samples) // grid.hop_samples + 1)
    batches = []
    for first in range(0, count, 1000):
        frames = np.lib.stride_tricks.sliding_window_view(samples, grid.window_samples)[:: grid.hop_samples]
        spectra = np.fft.rfft(frames[first : min(count, first + 1000)] * grid.window, axis=1).astype(np.complex64)
        magnitudes = np.maximum(np.abs(spectra[:, :BANDS]) * grid.scale, np.float32(_FLOOR))
        levels = (np.float32(20.0) * np.log10(magnitudes) - np.float32(_FLOOR_DB)) / np.float32(_SPAN_DB)
        batches.append((levels, spectra))
    return batches or [(np.zeros((0, BANDS), np.float32), np.zeros((0, 1), np.complex64))]


def _through(layers: tuple[_Layer, ...], x: Array, *, begins: bool) -> Array:
    """x (T, inputs) -> (T, outputs) where the sound begins with x, else (T - REACH, outputs): those with all context.

    As in training each convolution sees zeros before the sound's beginning and behind its end.
    """
    for layer in layers:
        side = layer.taps // 2
        x = layer(np.pad(x, ((side if begins else 0, side), (0, 0))))
        if layer is not layers[-1]:
            x = np.maximum(x, _SLOPE * x)
    return x


def _lerp(x: Array, count: int) -> Array:
    """(T, C) -> (count, C), linear, both ends kept."""
    at = np.linspace(0, len(x) - 1, count)
    left = np.minimum(at.astype(int), max(0, len(x) - 2))
    share = (at - left).astype(np.float32)[:, None]
    between: Array = x[left] * (1 - share) + x[np.minimum(left + 1, len(x) - 1)] * share
    return between


def _missing() -> str | None:
    """What is not installed, in words; None where all is there."""
    package = _package()
    if package is None or not (package / _WEIGHTS).is_file():
        return f"the watermark's weights are not installed. {_HOW}"
    if importlib.util.find_spec("torch") is None:
        return "the watermark needs PyTorch to read its weights. Install torch."
    return None


@functools.cache
def _package() -> Path | None:
    """Where the extra's package lies; it is found, not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None
