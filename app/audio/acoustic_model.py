"""The acoustic model of the `words` extra: how well each moment of speech fits each English phoneme.

The pocketsphinx wheel contains the model: US English, 42 phonemes, and 5,126 senones. A senone is a state of a phoneme
in its context, and similar contexts share a senone. The output density of a senone is a mixture of Gaussians, which all
senones of one phoneme share. This module reads the files of the model and computes log-likelihoods with numpy.

The pocketsphinx library is never imported, because its decoder says only whether the words could be aligned.
Log-likelihoods also show how well each word is spoken.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.types import Samples

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

RATE_HZ = 16_000
FRAME_S = 0.01
STATES = 3  # number of consecutive states of a phoneme
SILENCE = "SIL"

# Lengths for the feature extraction in samples: the hop, the window and the Fourier transform. They are from the file
# `feat.params` of the model.
_SHIFT, _WINDOW, _FFT = 160, 410, 512
_PREEMPHASIS = np.float32(0.97)
_LOW_HZ, _HIGH_HZ, _FILTERS = 130.0, 6_800.0, 25
_CEPSTRA, _LIFTER = 13, 22
_NOISE_FLOOR = 10 ** (-50 / 20)  # amplitude of the added noise, relative to loud speech: -50 dB
_VARIANCE_FLOOR = 1e-4
_NATS_PER_WEIGHT_STEP = 1_024 * float(np.log(1.0001))


def find_model() -> Path | None:
    """Return the folder of the model, or None if the `words` extra is not installed."""
    spec = importlib.util.find_spec("pocketsphinx")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model" / "en-us"
    return folder if (folder / "en-us" / "mdef").is_file() else None


@dataclass(frozen=True, slots=True)
class AcousticModel:
    """The parameters of the acoustic model, about 10 MB in memory."""

    phonemes: tuple[str, ...]
    senone_codebook: Ints  # (S,) index of the phoneme whose Gaussians the senone mixes
    # One matrix (1 + 2 D, codebooks * G) per stream: [1, x, x^2] @ matrix is the log-density of each Gaussian at x.
    projections: tuple[Floats, ...]
    weights: Floats  # (streams, S, G) mixture weights of the Gaussians of each senone
    stay: Floats  # (phonemes, STATES) log-probability to stay in a state for another frame
    leave: Floats  # (phonemes, STATES) log-probability to leave a state
    _triphones: NDArray[np.int64]  # (triphones,) the key of each triphone, sorted
    _triphone_senones: Ints  # (triphones, STATES) senones of each triphone, in the order of `_triphones`
    _base_senones: Ints  # (phonemes, STATES) senones of each phoneme without context

    @property
    def codebooks(self) -> int:
        return len(self.phonemes)

    def senones(self, phoneme: int, left: int, right: int, position: int) -> Ints:
        """Return the senones (STATES,) of a phoneme between the phonemes `left` and `right`.

        If the model does not know this triphone, return the senones of the phoneme without context. position: the place
        of the phoneme in its word: 0 = inside, 1 = first, 2 = last, 3 = the only phoneme.
        """
        key = _triphone_key(phoneme, left, right, position)
        at = int(np.searchsorted(self._triphones, key))
        known = at < len(self._triphones) and self._triphones[at] == key
        found: Ints = self._triphone_senones[at] if known else self._base_senones[phoneme]
        return found

    @property
    def base_senones(self) -> Ints:
        """Return the senones (phonemes, STATES) of all phonemes without context."""
        return self._base_senones


def _triphone_key(phoneme: int, left: int, right: int, position: int) -> int:
    return ((phoneme * 64 + left) * 64 + right) * 4 + position


@functools.cache
def load_model(folder: Path) -> AcousticModel:
    """Read the model from its folder. Raises OSError for a missing file and ValueError for a file of another format."""
    files = folder / "en-us"
    phonemes, senone_codebook, keys, triphone_senones, base = _read_definition((files / "mdef").read_bytes())
    means = _read_parameters((files / "means").read_bytes())
    variances = _read_parameters((files / "variances").read_bytes())
    projections = []
    for mean, variance in zip(means, variances, strict=True):  # shape of mean and variance: (codebooks, G, D)
        inverse = 1.0 / np.maximum(variance, _VARIANCE_FLOOR)
        constant = -0.5 * (np.log(2 * np.pi / inverse) + mean**2 * inverse).sum(-1)
        terms = np.concatenate((constant[..., None], mean * inverse, -0.5 * inverse), axis=-1)
        projections.append(np.ascontiguousarray(terms.reshape(-1, terms.shape[-1]).T, dtype=np.float32))
    weights = _read_weights((files / "sendump").read_bytes(), len(means), means[0].shape[1])
    stay, leave = _read_transitions((files / "transition_matrices").read_bytes())
    if weights.shape[1] != len(senone_codebook) or len(stay) != len(phonemes):
        raise ValueError(f"The files of the acoustic model in {files} have different numbers of senones or phonemes.")
    return AcousticModel(
        phonemes, senone_codebook, tuple(projections), weights, stay, leave, keys, triphone_senones, base
    )


def _read_definition(data: bytes) -> tuple[tuple[str, ...], Ints, NDArray[np.int64], Ints, Ints]:
    """Read the file `mdef`. Returns these items in this order: the phonemes, the codebook of each senone, the sorted
    keys of the triphones, the senones of each triphone, and the senones of each phoneme without context.
    """
    if data[:4] != b"BMDF":
        raise ValueError("The file `mdef` of the acoustic model is not in the binary little-endian format.")
    at = 12 + struct.unpack_from("<i", data, 8)[0]
    bases, phones, states, _, senones, _, sequences, _, nodes, _ = struct.unpack_from("<10i", data, at)
    at += 40
    names = []
    for _ in range(bases):
        end = data.index(b"\0", at)
        names.append(data[at:end].decode("ascii"))
        at = end + 1
    at += -at % 4 + 8 * nodes
    entry = np.dtype([("sequence", "<i4"), ("transitions", "<i4"), ("position", "u1"), ("context", "u1", (3,))])
    table = np.frombuffer(data, entry, phones, at)
    at += entry.itemsize * phones + 4
    sequence = np.frombuffer(data, "<u2", sequences * states, at).reshape(sequences, states).astype(np.int32)
    codebook = np.zeros(senones, np.int32)
    of_base, of_triphone = table[:bases], table[bases:]
    codebook[sequence[of_triphone["sequence"]]] = of_triphone["context"][:, :1]
    codebook[sequence[of_base["sequence"]]] = np.arange(bases)[:, None]
    context = of_triphone["context"].astype(np.int64)
    keys = ((context[:, 0] * 64 + context[:, 1]) * 64 + context[:, 2]) * 4 + of_triphone["position"]
    order = np.argsort(keys)
    return (
        tuple(names),
        codebook,
        keys[order],
        sequence[of_triphone["sequence"][order]],
        sequence[of_base["sequence"]],
    )


def _after_header(data: bytes) -> int:
    at = data.index(b"endhdr\n") + 7
    if struct.unpack_from("<I", data, at)[0] != 0x11223344:
        raise ValueError("A parameter file of the acoustic model is not little-endian.")
    return at + 4


def _read_parameters(data: bytes) -> list[Floats]:
    """Read a file of means or variances. Returns one array (codebooks, Gaussians, dimensions) for each stream."""
    at = _after_header(data)
    codebooks, streams, gaussians = struct.unpack_from("<3i", data, at)
    lengths = struct.unpack_from(f"<{streams}i", data, at + 12)
    at += 12 + 4 * streams + 4
    values = np.frombuffer(data, "<f4", codebooks * gaussians * sum(lengths), at).reshape(codebooks, -1)
    parts = np.split(values, np.cumsum([gaussians * length for length in lengths])[:-1], axis=1)
    return [part.reshape(codebooks, gaussians, length) for part, length in zip(parts, lengths, strict=True)]


def _read_weights(data: bytes, streams: int, gaussians: int) -> Floats:
    """Read the file `sendump`. Returns the mixture weights (streams, senones, Gaussians). The weights of one senone in
    one stream sum to about 1.
    """
    at = 0
    while length := struct.unpack_from("<i", data, at)[0]:
        at += 4 + length
    rows, senones = struct.unpack_from("<2i", data, at + 4)
    if rows != gaussians:
        raise ValueError("The files `sendump` and `means` of the acoustic model have different numbers of Gaussians.")
    steps = np.frombuffer(data, np.uint8, streams * rows * senones, at + 12).reshape(streams, rows, senones)
    weights = np.exp(np.arange(256, dtype=np.float32) * np.float32(-_NATS_PER_WEIGHT_STEP))[steps]
    return np.ascontiguousarray(weights.transpose(0, 2, 1))


def _read_transitions(data: bytes) -> tuple[Floats, Floats]:
    at = _after_header(data)
    count, sources, targets = struct.unpack_from("<3i", data, at)
    matrix = np.frombuffer(data, "<f4", count * sources * targets, at + 16).reshape(count, sources, targets)
    matrix = matrix / matrix.sum(-1, keepdims=True)
    states = np.arange(sources)
    stay, leave = matrix[:, states, states], matrix[:, states, states + 1]
    return np.log(np.maximum(stay, 1e-5)), np.log(np.maximum(leave, 1e-5))


# ---- features


def _mel(hz: float) -> float:
    return float(2595.0 * np.log10(1.0 + hz / 700.0))


@functools.cache
def _tables() -> tuple[Floats, Floats, Floats]:
    """Return the Hamming window (_WINDOW,), the mel filters (bins, _FILTERS) and the cosine transform (_FILTERS,
    _CEPSTRA).
    """
    bin_hz = RATE_HZ / _FFT
    step = (_mel(_HIGH_HZ) - _mel(_LOW_HZ)) / (_FILTERS + 1)
    mels = _mel(_LOW_HZ) + step * np.arange(_FILTERS + 2)
    edges = np.floor(700.0 * (10.0 ** (mels / 2595.0) - 1.0) / bin_hz + 0.5) * bin_hz
    hz = np.arange(_FFT // 2 + 1)[:, None] * bin_hz
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)) * 2.0 / (high - low)
    index = np.arange(_CEPSTRA)
    cosines = np.cos(np.pi * index * (np.arange(_FILTERS)[:, None] + 0.5) / _FILTERS) * np.sqrt(2.0 / _FILTERS)
    cosines[:, 0] = np.sqrt(1.0 / _FILTERS)
    cosines *= 1.0 + _LIFTER / 2 * np.sin(np.pi * index / _LIFTER)
    return (
        np.hamming(_WINDOW).astype(np.float32),
        np.maximum(filters, 0.0).astype(np.float32),
        cosines.astype(np.float32),
    )


def cepstra(samples: Samples) -> Floats:
    """Compute the mel cepstra (T, 13) of samples (N,) at RATE_HZ, without normalisation. Each row of the result
    describes one frame of FRAME_S seconds.
    """
    window, filters, cosines = _tables()
    loud = _with_noise_floor(samples * np.float32(32_768.0))
    emphasised = np.concatenate((loud[:1], loud[1:] - _PREEMPHASIS * loud[:-1]))
    count = max(1, (len(samples) - _WINDOW) // _SHIFT + 1)
    emphasised = np.pad(emphasised, (0, max(0, (count - 1) * _SHIFT + _WINDOW - len(emphasised))))
    frames = np.lib.stride_tricks.sliding_window_view(emphasised, _WINDOW)[::_SHIFT][:count]
    spectrum = np.fft.rfft(frames * window, _FFT)
    power = np.square(np.abs(spectrum)).astype(np.float32)
    mels = _remove_noise(power @ filters)
    cepstrum: Floats = np.log(np.maximum(mels, np.float32(1e-4))) @ cosines
    return cepstrum


def _with_noise_floor(samples: Samples) -> Samples:
    """Add noise that is far softer than the speech. Without noise, the model finds phonemes in digital silence, because
    its training data had no digital silence.
    """
    blocks = np.square(samples[: len(samples) // _SHIFT * _SHIFT]).reshape(-1, _SHIFT).mean(axis=1)
    level = float(np.sqrt(np.percentile(blocks, 90))) if len(blocks) else 0.0
    noise = np.random.default_rng(0).standard_normal(len(samples), np.float32)
    noisy: Samples = samples + noise * np.float32(max(0.5, level * _NOISE_FLOOR))
    return noisy


def _remove_noise(mels: Floats) -> Floats:
    """Reduce steady noise in mel energies (T, _FILTERS), with the same method as in the training of the model."""
    most = np.float32(20.0)
    power = mels[0].copy()
    noise, floor, peak = power / most, power / most, np.zeros_like(power)
    gains = np.empty_like(mels)
    for at, mel in enumerate(mels):
        power = np.float32(0.7) * power + np.float32(0.3) * mel
        noise = _lower_envelope(power, noise)
        signal = np.maximum(power - noise, np.float32(1.0))
        floor = _lower_envelope(signal, floor)
        peak = peak * np.float32(0.85)
        masked = np.where(signal < np.float32(0.85) * peak, peak * np.float32(0.2), signal)
        peak = np.maximum(peak, signal)
        masked = np.maximum(masked, floor)
        gains[at] = np.where(masked < most * power, masked / np.maximum(power, np.float32(1e-9)), most)
    gains = np.maximum(gains, np.float32(1.0) / most)
    sums = np.cumsum(np.pad(gains, ((0, 0), (1, 0))), axis=1)
    index = np.arange(_FILTERS)
    first, end = np.maximum(index - 4, 0), np.minimum(index + 5, _FILTERS)
    means = (sums[:, end] - sums[:, first]) / (end - first)
    smooth: Floats = mels * means.astype(np.float32)
    return smooth


def _lower_envelope(values: Floats, envelope: Floats) -> Floats:
    rate = np.where(values >= envelope, np.float32(0.999), np.float32(0.5))
    return rate * envelope + (np.float32(1.0) - rate) * values


def features(cepstrum: Floats) -> list[Floats]:
    """Return the features (T, 27) of each of the three streams, from normalised cepstra (T, 13).

    The features of a stream are [1, x, x^2]. In the three streams, x is the cepstra, their first time difference, and
    their second time difference.
    """
    padded = np.pad(cepstrum, ((3, 3), (0, 0)), mode="edge")
    count = len(cepstrum)

    def shifted(by: int) -> Floats:
        return padded[3 + by : 3 + by + count]

    delta = shifted(2) - shifted(-2)
    acceleration = (shifted(3) - shifted(-1)) - (shifted(1) - shifted(-3))
    one = np.ones((count, 1), np.float32)
    return [np.concatenate((one, part, part * part), axis=1) for part in (shifted(0), delta, acceleration)]


def log_likelihoods(model: AcousticModel, streams: Sequence[Floats], senones: Ints) -> Floats:
    """Return the natural log-likelihood of each of the `senones` at each frame: (T, len(senones)). streams: the result
    of `features`. senones: indices of senones, each only once.
    """
    count = len(streams[0])
    gaussians = model.weights.shape[2]
    out = np.zeros((count, len(senones)), np.float32)
    books = model.senone_codebook[senones]
    used = np.unique(books)
    for stream, (values, projection) in enumerate(zip(streams, model.projections, strict=True)):
        columns = projection.reshape(len(projection), model.codebooks, gaussians)
        for book in used:
            densities = values @ columns[:, book]  # (T, G)
            top = densities.max(axis=1, keepdims=True)
            np.exp(densities - top, out=densities)
            chosen = np.flatnonzero(books == book)
            mixed = densities @ model.weights[stream, senones[chosen]].T
            out[:, chosen] += np.log(np.maximum(mixed, np.float32(1e-30))) + top
    return out
