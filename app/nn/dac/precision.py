"""Chooses the number format of DAC's matrix products on a GPU, by the spectral error of the decoded samples.

The decoder computes 136 GFLOP for a second of speech, and products in 16 bits take a fraction of the time of float32.
Activations between the products, states and the last convolution stay float32. A format is used only if its error stays
below BOUND_DB, measured with the loaded weights on the device of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.nn.dac.model import DacDecoder

# The largest error of any band, relative to the power of the band. At -50 dB, the error is below the masking threshold
# of the band's own signal, which is 20 to 30 dB below the signal.
BOUND_DB = -50.0
# A band counts with at least this power, relative to the power of all bands. So the error of a band without sound is
# compared with the whole signal.
QUIET_DB = -60.0
BANDS = 32  # of equal width
_WINDOW = 2048  # samples
_FRAMES = 32  # length of the measured speech: 0.37 s
HALF = (torch.float16, torch.bfloat16)  # tried in this order: float16 is 8 times as exact, and bfloat16 never overflows


def spectral_error_db(found: Tensor, reference: Tensor) -> float:
    """Return the error of samples `found` (N,) in dB: the largest error of a band, relative to the band's power.

    inf = a sample is NaN or infinite.
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
    """Return the decoder in the first of `formats` whose error stays below BOUND_DB, or `decoder` if there is none.

    decoder: a loaded float32 decoder. Also returns the measured error of each tried format in dB.
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
    """Decode codes (1, K, T) to samples (N,) in row 0, and reset the row."""
    decoder.reset(0)
    [samples] = decoder.decode([0], codes.to(decoder.device))
    return torch.cat((samples, decoder.flush(0)))
