"""Chooses the number format of DAC's matrix products on a GPU, by the spectral error of the decoded samples.

The decoder computes 136 GFLOP for a second of speech, and products in 16 bits take a fraction of the time of products
in float32. Activations between the products, states and the last convolution stay in float32. A format is used only if
its error is below BOUND_DB. The error is measured with the loaded weights on the decoder's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.nn.dac.model import DacDecoder

# The largest accepted error of a frequency band, relative to the power of the band. The signal of a band masks noise
# that is 20 to 30 dB weaker than the signal, so an error of -50 dB is not audible.
BOUND_DB = -50.0
# In `spectral_error_db`, a band with less power than this counts as a band with this power. It is in dB, relative to
# the power of all bands together. Without this limit, the error of a silent band would be infinite.
QUIET_DB = -60.0
BANDS = 32  # number of frequency bands of equal width
_WINDOW = 2048  # length of a window in samples
_FRAMES = 32  # number of frames of the measured speech: 0.37 s
# The formats in the order of the trials. float16 is first, because it is 8 times as exact as bfloat16. If values
# overflow in float16, its error is too large, and bfloat16 is tried.
HALF = (torch.float16, torch.bfloat16)


def spectral_error_db(found: Tensor, reference: Tensor) -> float:
    """Return the spectral error of the samples `found` (N,) against the samples `reference` (N,), in dB.

    The result is the largest error of a frequency band. The error of a band is relative to the power of the band in
    `reference`.

    Returns inf if `found` contains NaN or infinite samples.
    """
    if not bool(found.isfinite().all()):
        return float("inf")
    signal, error = (_power(samples.double()) for samples in (reference, found.double() - reference.double()))
    floor = signal.sum() * 10 ** (QUIET_DB / 10)
    return float(10 * torch.log10((error / torch.maximum(signal, floor)).max().clamp(min=1e-30)))


def _power(samples: Tensor) -> Tensor:  # (N,) -> (BANDS,)
    window = torch.hann_window(_WINDOW, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, _WINDOW, _WINDOW // 4, window=window, return_complex=True)
    power = spectrum.abs().square().sum(dim=1)[:-1]
    return power.view(BANDS, -1).sum(dim=1)


@torch.no_grad()
def fastest_decoder(
    decoder: DacDecoder, formats: Sequence[torch.dtype] = HALF
) -> tuple[DacDecoder, dict[torch.dtype, float]]:
    """Return a copy of `decoder` in the first of `formats` whose error is below BOUND_DB, and the measured errors.

    If the errors of all formats are too large, return `decoder` itself. The second result is a mapping: format that
    was tried -> its error in dB.

    decoder: a loaded float32 decoder.
    """
    codes = torch.randint(
        decoder.config.codebook_size, (1, decoder.codebooks, _FRAMES), generator=torch.Generator().manual_seed(0)
    )
    expected = decoded(decoder, codes)
    errors: dict[torch.dtype, float] = {}
    for dtype in formats:
        narrow = decoder.converted(dtype)
        errors[dtype] = spectral_error_db(decoded(narrow, codes), expected)
        if errors[dtype] < BOUND_DB:
            return narrow, errors
    return decoder, errors


def decoded(decoder: DacDecoder, codes: Tensor) -> Tensor:
    """Decode codes (1, K, T) as a new stream in row 0, and return all samples (N,). Reset row 0 before and after."""
    decoder.reset(0)
    [samples] = decoder.decode([0], codes.to(decoder.device))
    return torch.cat((samples, decoder.flush(0)))
