"""The table of audio formats: one row for each `response_format`, and everything that is specific to it.

Adding a format means adding a row here. The API, its lists, /openapi.json, the CLI and the encoders read this table.
This module holds plain data: it imports neither numpy nor FFmpeg, so that the HTTP layer can use it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 48_000

# The sampling frequencies of an MPEG audio header. ADTS also has 64 to 96 kHz, which are above our range.
_MPEG_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True, slots=True)
class PcmRecipe:
    """16-bit little-endian samples behind a header."""

    header: Callable[[int], bytes]  # of the sample rate in Hz


@dataclass(frozen=True, slots=True)
class CodecRecipe:
    """FFmpeg's container and codec of one format."""

    container: str
    codec: str
    sample_format: str  # FFmpeg's name: fltp, flt, s16
    bit_rate: Callable[[int], int | None]  # bit/s, of the codec's sample rate in Hz; None for lossless codecs
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)
    lead_in_samples: int = 0  # silence in front of the audio
    codec_rates_hz: tuple[int, ...] = ()  # the codec gets the next one at or above the answer's; empty: the answer's

    def codec_rate_hz(self, rate_hz: int) -> int:
        """The rate that the codec runs at for audio of `rate_hz`."""
        return next((rate for rate in self.codec_rates_hz if rate >= rate_hz), rate_hz)


@dataclass(frozen=True, slots=True)
class Format:
    """One row of the table."""

    media_type: str
    recipe: PcmRecipe | CodecRecipe
    rates_hz: tuple[int, ...] = ()  # sample rates that it can have; empty: any from MIN_RATE_HZ to MAX_RATE_HZ


def wav_header(rate_hz: int) -> bytes:
    """44 bytes for 16-bit mono of unknown length: both sizes are 0xFFFFFFFF, as api.openai.com streams it.

    Python's `wave`, FFmpeg and browsers read that. `wave` refuses a size of 0, the other common convention.
    """
    unknown = 0xFFFFFFFF
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", unknown, b"WAVE"),
        *(b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16),  # tag 1 = PCM, 1 channel, bytes/s, bytes/frame, bits
        *(b"data", unknown),
    )


# CPU and size below: 22.9 s of speech at 24 kHz on one core, best of four runs.
# reservoir=0: frames stand alone, so that streams can be joined and cut. compression_level=7 (LAME's -q 7):
# 6.1 ms of CPU per second of audio against 9.3 at the default, SNR 26.0 dB against 25.9 at 128 kbit/s.
# MPEG-2.5 (below 16 kHz) has no bit rate above 64 kbit/s that all its sample rates can use.
_MP3 = CodecRecipe(
    "mp3",
    "libmp3lame",
    "fltp",
    lambda rate_hz: 128_000 if rate_hz >= 16_000 else 64_000,
    {"write_xing": "0", "id3v2_version": "0"},
    {"reservoir": "0", "compression_level": "7"},
)
# FFmpeg's default is a page per second, which would delay the first audio by a second. With 20 ms pages the first 80 ms
# of input give 53 ms of audio at once (40 ms pages: 33 ms), for 11 kbit/s of page headers: 61 kbit/s in all, where
# api.openai.com sends about 56. At that size application=audio, compression_level=5 beats voip, which also removes the
# lowest frequencies: SNR 17.8 dB against 11.2, log-spectral distance 4.5 dB against 4.8, 4.8 ms/s against 9.5.
_OPUS = CodecRecipe(
    "ogg",
    "libopus",
    "flt",
    lambda _: 40_000,
    {"page_duration": "20000"},
    {"frame_duration": "20", "application": "audio", "compression_level": "5"},
    codec_rates_hz=_OPUS_RATES_HZ,
)
# aac_coder=fast: 3.0 ms/s and SNR 28.9 dB, against 8.9 ms/s and 23.3 dB for the default two-loop search.
# A frame is 1024 samples and leaves the codec once the next one is full, 85 ms at 24 kHz: 5 ms more than CSM's first
# frame of 80 ms. 128 samples of lead-in bring the first bytes one engine frame (80 ms) forward.
# 64 kbit/s; at 8 and 11 kHz what a frame can hold, since AAC-LC allows 6 bits per sample and channel.
_AAC = CodecRecipe(
    "adts",
    "aac",
    "fltp",
    lambda rate_hz: min(64_000, 4 * rate_hz),
    {},
    {"aac_coder": "fast"},
    lead_in_samples=128,
)
# compression_level=2 for its 27 ms blocks (the default's 105 ms would delay the first bytes), with the default's linear
# prediction: 1.0 ms/s and 233 kbit/s, as small as the default. No padding block: it is 8 kB before the first audio.
_FLAC = CodecRecipe(
    "flac",
    "flac",
    "s16",
    lambda _: None,
    {"metadata_header_padding": "0"},
    {"compression_level": "2", "lpc_type": "levinson", "max_prediction_order": "8"},
)

AUDIO_FORMATS: dict[str, Format] = {
    "mp3": Format("audio/mpeg", _MP3, _MPEG_RATES_HZ),
    "opus": Format("audio/opus", _OPUS),
    "aac": Format("audio/aac", _AAC, _MPEG_RATES_HZ),
    "flac": Format("audio/flac", _FLAC),
    "wav": Format("audio/wav", PcmRecipe(wav_header)),
    "pcm": Format("audio/pcm", PcmRecipe(lambda _: b"")),
}
