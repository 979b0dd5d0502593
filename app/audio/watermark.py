"""Add an inaudible watermark to a stream of audio, and detect it in a file.

The watermark has one bit: it says that the speech is synthetic. The network Perth (Resemble AI, MIT licence) computes a
residual for each frame of 10 ms. The residual is added to the log magnitudes of the frame below 2 kHz.

Only Perth's weights are used, from the `watermark` extra. Perth's own code needs packages that can no longer be
installed together. So this module evaluates the Perth network in NumPy, which is faster than torch for this small
network. The windows and hops of the Fourier transform have the same duration at every sample rate, so audio is marked
without resampling.

Perth uses 15 frames (150 ms) of lookahead, which is too long for a stream. `StreamMarker` uses LOOKAHEAD frames;
docs/watermark.md has measurements. This module does not depend on HTTP.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import pickle  # used only for its error class: torch.load is called with weights_only # nosec B403
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

Scope = Literal["off", "cloned", "model", "all"]

VERSION = "perth-250000.1"  # change VERSION whenever the output for the same input changes
DETECT_RATE_HZ = 32_000  # the sample rate of the audio with which Perth was trained
FOUND = 0.5  # audio with a score of at least FOUND counts as marked; docs/watermark.md has scores with and without mark

_PACKAGE = "perth"
_HOW_TO_INSTALL = (
    "The container image and `make install` have them. Elsewhere install them with: "
    "pip install 'resemble-perth==1.0.1' threadpoolctl (MIT and BSD licences)."
)
_WEIGHTS = Path("perth_net/pretrained/implicit/perth_net_250000.pth.tar")

WINDOW_S, HOP_S = 0.064, 0.01  # 2048 and 320 samples at 32 kHz, as in training
BANDS = 128  # the mark is in the lowest BANDS bins of the spectrum; a bin is 15.6 Hz wide, so they end at 2 kHz
REACH = 15  # frames of context that the network uses on each side: five convolutions over 7 frames
BLOCK = 8  # number of frames that are marked together
LOOKAHEAD = 3  # frames after a block that must arrive before the block is marked

_FLOOR = 1e-9  # lowest magnitude: -180 dB
_FLOOR_DB, _SPAN_DB = -180.0, 195.0  # log magnitudes in this range are scaled to 0..1
# Frames with a lower mean level are digital silence and are not marked. The limit of Perth is 5 % of the level of the
# loudest frame (about -170 dB). The loudest frame of a stream is unknown in advance, so the limit here is a constant.
_SILENT = 0.04
_SLOPE = np.float32(0.01)  # slope of the leaky ReLU for negative inputs


class WatermarkMissing(NotSupported):
    """The `watermark` extra is missing or incomplete. The message says how to install it."""


class Watermark:
    """Decides which answers are marked.

    scope: "cloned" = mark answers with a cloned voice; "model" = mark also all answers of a trained model; "all" = mark
    all answers; "off" = mark no answer. missing: the reason why no answer can be marked; None if answers can be marked.
    The constructor raises WatermarkMissing if the scope is "all" and the `watermark` extra is missing.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self.missing = None if scope == "off" else _missing()
        if scope == "all":
            load()
        elif self.missing is not None:
            log.warning("Speech gets no watermark, although TTS_WATERMARK is %s: %s", scope, self.missing)

    def marks(self, voices: Iterable[Voice], *, trained: bool) -> bool:
        """Return whether an answer with these voices is marked. One cloned voice is enough.

        trained: whether a trained model speaks. If an adapter speaks with a recording as its voice, this voice counts
        as cloned.
        """
        if self.scope == "off" or self.missing is not None:
            return False
        if self.scope == "all" or (self.scope == "model" and trained):
            return True
        return any(voice.kind == "cloned" or voice.reference_id for voice in voices)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A one-dimensional convolution."""

    weight: Array  # (taps * inputs, outputs)
    bias: Array  # (outputs,)
    taps: int

    def __call__(self, x: Array) -> Array:
        """Convolve x (T, inputs) without padding -> (T - taps + 1, outputs)."""
        count = len(x) - self.taps + 1
        x = np.ascontiguousarray(x)
        windows = np.lib.stride_tricks.as_strided(x, (count, self.taps * x.shape[1]), x.strides)
        return windows @ self.weight + self.bias


@dataclass(frozen=True, slots=True)
class Perth:
    """The trained network."""

    encoder: tuple[_Layer, ...]
    # Three branches: (factor that stretches the input in time, layers).
    decoders: tuple[tuple[float, tuple[_Layer, ...]], ...]

    def residual(self, levels: Array, before: int, after: int) -> Array:
        """Compute the residual (F, BANDS) to add to the log magnitudes of F = T - before - after frames.

        levels: (T, BANDS), scaled to 0..1. The first `before` and the last `after` frames are context only. If `before`
        is less than REACH, the audio starts with the first frame. The input is padded with zeros after the last frame,
        as at the end of audio in training.
        """
        begins = before < REACH
        x = _through(self.encoder, levels, begins=begins)
        return x[before if begins else 0 : len(x) - after]

    def score(self, samples: Samples) -> float:
        """Score samples (N,) at DETECT_RATE_HZ: 0 = not marked, 1 = marked. Silence and short audio score 0."""
        levels = np.concatenate([level for level, _ in _spectra(samples, _Grid.of(DETECT_RATE_HZ))])
        audible = levels.mean(axis=1) > _SILENT
        if not audible.any():
            return 0.0
        marks, attentions = [], []
        for stretch, layers in self.decoders:
            count = int(len(levels) * stretch)
            if not count:
                return 0.0
            out = _through(layers, _lerp(levels, count), begins=True)
            used = audible[(np.arange(count) * len(levels)) // count]
            if not used.any():
                return 0.0
            attention, mark = out[used].mean(axis=0)
            attentions.append(attention)
            marks.append(mark)
        weights = np.exp(np.array(attentions) - max(attentions))
        return float(np.clip((weights * np.array(marks)).sum() / weights.sum(), 0.0, 1.0))


def detect(samples: Samples) -> float:
    """Score samples (N,) at DETECT_RATE_HZ, from 0 to 1. A score of FOUND or more means that the audio is marked.

    Blocks for about 10 ms per second of audio. Raises the errors of `load`.
    """
    return load().score(samples)


@functools.cache
def load() -> Perth:
    """Load the network and cache it. The first call takes 0.1 s if torch is already imported. The network takes 37 MB.

    Raises WatermarkMissing if the `watermark` extra is not installed or can't be read.
    """
    package = _package()
    if (missing := _missing()) is not None or package is None:
        raise WatermarkMissing(missing or _HOW_TO_INSTALL)
    try:
        import torch  # noqa: PLC0415 - only reads the weights; the offline voice runs without torch
        from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - installed with the extra

        # From now on NumPy uses one thread for matrix products in this process. More threads are not faster for these
        # small matrices. On a busy machine, the threads wait for each other up to 20 times longer than the product
        # takes.
        ThreadpoolController().select(internal_api="openblas").limit(limits=1)
        state = torch.load(package / _WEIGHTS, map_location="cpu", weights_only=True)["model"]
    except (ImportError, OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise WatermarkMissing(f"The watermark's weights can't be read ({error}). {_HOW_TO_INSTALL}") from error

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
    """A `Stage` that adds the watermark. The output has as many samples as the input and is unchanged above 2 kHz.

    The first output comes after 132 ms of input. The delay is at most 163 ms: half a window on each side of a frame,
    LOOKAHEAD frames and BLOCK frames.
    """

    def __init__(self, rate_hz: int, perth: Perth, *, block: int = BLOCK, lookahead: int = LOOKAHEAD) -> None:
        self._perth = perth
        self._grid = _Grid.of(rate_hz)
        self._block, self._lookahead = block, lookahead
        half = self._grid.window_samples // 2
        self._pending = np.zeros(half, np.float32)  # input from the first sample of the next frame on
        # Levels of `_before` frames of context, then of all later frames.
        self._levels = np.zeros((0, BANDS), np.float32)
        self._spectra: list[NDArray[np.complex64]] = []  # spectra of the frames that are not marked yet
        self._before = 0  # frames in `_levels` before the next block; at most REACH
        self._dry = np.zeros(half, np.float32)  # input that was not returned yet, from the next block on
        self._wet = np.zeros(self._grid.window_samples, np.float32)  # sum of windowed marks, aligned with `_dry`
        self._envelope = np.zeros(self._grid.window_samples, np.float32)  # sum of squared windows, aligned with `_dry`
        self._skip = half  # samples to drop from the first outputs: padding before the start of the audio
        self._taken = self._given = 0  # numbers of input samples and of returned samples

    def push(self, samples: Samples) -> Samples:
        self._taken += len(samples)
        self._feed(samples)
        out = []
        while len(self._spectra) >= self._block + self._lookahead:
            out.append(self._mark(self._block, len(self._spectra) - self._block))
        return self._give(out)

    def flush(self) -> Samples:
        frames = self._taken // self._grid.hop_samples + 1  # the centre of the last frame is within the audio
        done = frames - len(self._spectra)
        padding = np.zeros(self._grid.window_samples + self._grid.hop_samples, np.float32)
        self._feed(padding)
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
        """Mark the next `count` frames, and return the samples that no later frame can change. after: the number of
        frames that have arrived after these `count` frames.
        """
        # Use at most LOOKAHEAD frames, so that the output does not depend on how the input is divided.
        after = min(after, self._lookahead)
        levels = self._levels[: self._before + count + after]
        residual = self._perth.residual(levels, self._before, after)
        residual *= (levels[self._before : self._before + count].mean(axis=1) > _SILENT)[:, None]
        gain = np.float32(10.0) ** (residual * np.float32(_SPAN_DB / 20)) - np.float32(1.0)
        grid = self._grid
        change = np.zeros((count, grid.window_samples // 2 + 1), np.complex64)
        change[:, :BANDS] = np.array(self._spectra[:count])[:, :BANDS] * gain
        windows = np.fft.irfft(change, grid.window_samples, axis=1).astype(np.float32) * grid.window
        del self._spectra[:count]
        drop = max(0, self._before + count - REACH)
        self._levels = self._levels[drop:]
        self._before += count - drop
        out = []
        for window in windows:
            self._wet += window
            self._envelope += grid.window_squared
            out.append(self._finished(grid.hop_samples))
        return np.concatenate(out)

    def _finished(self, count: int) -> Samples:
        """Return the next `count` samples. Call this only after all frames that contain these samples are marked."""
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
    """The window and the hop of the Fourier transform at one sample rate."""

    window_samples: int
    hop_samples: int
    window: Array  # (window_samples,)
    window_squared: Array
    scale: np.float32  # converts a magnitude at this rate to the magnitude of the same tone at 32 kHz

    @staticmethod
    @functools.lru_cache(maxsize=16)
    def of(rate_hz: int) -> _Grid:
        count = 2 * round(WINDOW_S * rate_hz / 2)
        window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)).astype(np.float32)
        scale = np.float32(WINDOW_S * DETECT_RATE_HZ / count)
        return _Grid(count, round(HOP_S * rate_hz), window, np.square(window), scale)


def _spectra(samples: Samples, grid: _Grid, *, whole: bool = True) -> list[tuple[Array, NDArray[np.complex64]]]:
    """Transform samples (N,) to log magnitudes (T, BANDS), scaled to 0..1, and spectra (T, bins).

    The result is a list of batches of at most 1000 frames (10 s). whole: True = `samples` is complete audio, and frame
    n is centred at hop n. False = the first frame begins at the first sample.
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
    """Run the layers on x (T, inputs). begins: whether x is the start of the audio.

    If `begins` is True, return (T, outputs). Otherwise return (T - REACH, outputs), without the first REACH frames,
    because their context is incomplete. As in training, each convolution is padded with zeros at the start and the end
    of the audio.
    """
    for layer in layers:
        side = layer.taps // 2
        x = layer(np.pad(x, ((side if begins else 0, side), (0, 0))))
        if layer is not layers[-1]:
            x = np.maximum(x, _SLOPE * x)
    return x


def _lerp(x: Array, count: int) -> Array:
    """Interpolate x (T, C) linearly to (count, C). The first and the last row do not change."""
    at = np.linspace(0, len(x) - 1, count)
    left = np.minimum(at.astype(int), max(0, len(x) - 2))
    share = (at - left).astype(np.float32)[:, None]
    between: Array = x[left] * (1 - share) + x[np.minimum(left + 1, len(x) - 1)] * share
    return between


def _missing() -> str | None:
    """Return a message that says what is not installed and how to install it. Returns None if nothing is missing."""
    package = _package()
    if package is None or not (package / _WEIGHTS).is_file():
        return f"The watermark's weights are not installed. {_HOW_TO_INSTALL}"
    if importlib.util.find_spec("torch") is None:
        return "The watermark needs PyTorch to read its weights. Install torch."
    return None


@functools.cache
def _package() -> Path | None:
    """Return the folder of the extra's package, without importing the package; None if it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None
