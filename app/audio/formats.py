"""The table of audio formats. One row contains everything that is specific to one `response_format`.

To add a format, add a row. The API, /openapi.json, the CLI and the encoders read this table. This module imports
neither numpy nor FFmpeg, so that the HTTP layer can import it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 48_000

# The sample rates that an MPEG audio header can state. ADTS also has 64 to 96 kHz, which are above MAX_RATE_HZ.
_MPEG_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True, slots=True)
class PcmRecipe:
    """A format that consists of a header and 16-bit little-endian samples."""

    # (sample rate in Hz, number of samples or None = unknown, comment or "" = none) -> header
    header: Callable[[int, int | None, str], bytes]


@dataclass(frozen=True, slots=True)
class CodecRecipe:
    """FFmpeg's container and codec of one format."""

    container: str
    codec: str
    sample_format: str  # FFmpeg's name: fltp, flt, s16
    bit_rate: Callable[[int], int | None]  # sample rate of the codec in Hz -> bit/s; None for lossless codecs
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)
    lead_in_samples: int = 0  # silence in front of the audio
    codec_rates_hz: tuple[int, ...] = ()  # sample rates of the codec; empty: any rate
    # Options that the container needs only if the file has a comment.
    comment_options: Mapping[str, str] = field(default_factory=dict)

    def codec_rate_hz(self, rate_hz: int) -> int:
        """Return the sample rate at which the codec encodes audio with the sample rate `rate_hz`.

        The result is the lowest rate of the codec that is not below `rate_hz`.
        """
        return next((rate for rate in self.codec_rates_hz if rate >= rate_hz), rate_hz)


@dataclass(frozen=True, slots=True)
class Format:
    """One response format."""

    media_type: str
    recipe: PcmRecipe | CodecRecipe
    rates_hz: tuple[int, ...] = ()  # valid sample rates; empty: any from MIN_RATE_HZ to MAX_RATE_HZ
    # How many samples decoders return before the first sample of the audio, at the sample rate of the codec.
    delay_samples: int = 0
    # Whether every answer has a comment (app/audio/provenance.py), because the header has a place for it anyway. Other
    # formats have a comment only on request.
    always_comment: bool = False

    def delay_s(self, rate_hz: int) -> float:
        """Return the time in seconds from the start of the decoded file to the start of the audio. rate_hz: the sample
        rate of the request.
        """
        recipe = self.recipe
        return self.delay_samples / (recipe.codec_rate_hz(rate_hz) if isinstance(recipe, CodecRecipe) else rate_hz)


WAV_HEADER_BYTES = 44
_MAX_RIFF_BYTES = 0xFFFFFFFE


def wav_header(rate_hz: int, samples: int | None = None, comment: str = "") -> bytes:
    """Build the header of a WAV file: 16 bit, mono. samples: the number of samples; None = unknown.

    comment: is written as ICMT in LIST/INFO. Without a comment the header has 44 bytes.

    If the number is unknown, both size fields contain 0xFFFFFFFF, as in the streams of api.openai.com. Python's `wave`,
    FFmpeg and browsers accept this value. Other programs write the size 0 for an unknown length, but `wave` does not
    accept 0. The header of a file of more than 4 GB also contains 0xFFFFFFFF, because the real sizes do not fit in 32
    bits.
    """
    info = _list_info(comment) if comment else b""
    data_bytes = riff_bytes = 0xFFFFFFFF
    other_bytes = WAV_HEADER_BYTES - 8 + len(info)
    if samples is not None and 2 * samples + other_bytes <= _MAX_RIFF_BYTES:
        data_bytes, riff_bytes = 2 * samples, 2 * samples + other_bytes
    start = struct.pack(
        "<4sI4s4sIHHIIHH",
        *(b"RIFF", riff_bytes, b"WAVE"),
        # The values after `fmt `: size, tag (1 = PCM), channels, sample rate, bytes per second, bytes per sample, bits.
        *(b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16),
    )
    return start + info + struct.pack("<4sI", b"data", data_bytes)


def _list_info(comment: str) -> bytes:
    """Build the chunk LIST/INFO of a WAV file with a comment."""
    text = comment.encode("utf-8", "replace") + b"\0"
    text += b"\0" * (len(text) % 2)
    return struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text


# The figures below are from 22.9 s of speech at 24 kHz on one core, best of four runs.
# reservoir=0: each frame can be decoded alone, so streams can be joined and cut.
# compression_level=7 (LAME's -q 7) takes 6.1 ms of CPU per second of audio and has an SNR of 26.0 dB at 128 kbit/s.
# LAME's default level takes 9.3 ms and has an SNR of 25.9 dB.
# For sample rates below 16 kHz (MPEG-2.5), the bit rate is 64 kbit/s. Some of these sample rates allow no higher bit
# rate.
_MP3 = CodecRecipe(
    "mp3",
    "libmp3lame",
    "fltp",
    lambda rate_hz: 128_000 if rate_hz >= 16_000 else 64_000,
    {"write_xing": "0", "id3v2_version": "0"},
    {"reservoir": "0", "compression_level": "7"},
    comment_options={"id3v2_version": "3"},
)
# FFmpeg's default is one page per second, which would delay the first audio by a second. With pages of 20 ms, the first
# 80 ms of input immediately give 53 ms of encoded audio. With pages of 40 ms, the first 80 ms of input give 33 ms of
# encoded audio. The page headers take 11 kbit/s, and the whole stream takes 61 kbit/s. api.openai.com sends about 56
# kbit/s.
# application=audio with compression_level=5 has an SNR of 17.8 dB and a log-spectral distance of 4.5 dB, and takes
# 4.8 ms of CPU per second of audio.
# application=voip at the same file size has an SNR of 11.2 dB and a log-spectral distance of 4.8 dB, and takes 9.5 ms
# of CPU per second of audio. application=voip also removes the lowest frequencies.
_OPUS = CodecRecipe(
    "ogg",
    "libopus",
    "flt",
    lambda _: 40_000,
    {"page_duration": "20000"},
    {"frame_duration": "20", "application": "audio", "compression_level": "5"},
    codec_rates_hz=_OPUS_RATES_HZ,
)
# aac_coder=fast takes 3.0 ms of CPU per second of audio and has an SNR of 28.9 dB.
# The default coder takes 8.9 ms and has an SNR of 23.3 dB.
# The encoder returns its first AAC frame of 1024 samples when its second AAC frame is full: after 85 ms of input at
# 24 kHz. The first frame of CSM has only 80 ms, so the first bytes would wait for the second frame of CSM. With 128
# samples of silence in front of the audio, the first frame of CSM is enough.
# The bit rate is 64 kbit/s, but at most 4 bits per sample, because AAC-LC allows at most 6 bits per sample.
_AAC = CodecRecipe(
    "adts",
    "aac",
    "fltp",
    lambda rate_hz: min(64_000, 4 * rate_hz),
    {},
    {"aac_coder": "fast"},
    lead_in_samples=128,
    comment_options={"write_id3v2": "1"},
)
# An MP4 file with an index at its end can't be streamed, so the file consists of fragments of 0.1 s.
_M4A = replace(
    _AAC,
    container="mp4",
    container_options={"movflags": "empty_moov+default_base_moof", "frag_duration": "100000"},
    comment_options={},
)
# compression_level=2 uses blocks of 27 ms. The default level uses blocks of 105 ms, which would delay the first bytes.
# lpc_type and max_prediction_order have the values of the default level, so the file is as small as with the default
# level: 233 kbit/s, with 1.0 ms of CPU per second.
# min_prediction_order=1 forbids a prediction of order 0. Without this option, FFmpeg can choose the order 0 for
# noise at this level, and it then writes frames that no decoder can read.
# metadata_header_padding=0 leaves out the padding block, which would add 8 kB before the first audio.
_FLAC = CodecRecipe(
    "flac",
    "flac",
    "s16",
    lambda _: None,
    {"metadata_header_padding": "0"},
    {"compression_level": "2", "lpc_type": "levinson", "min_prediction_order": "1", "max_prediction_order": "8"},
)

AUDIO_FORMATS: dict[str, Format] = {
    "mp3": Format("audio/mpeg", _MP3, _MPEG_RATES_HZ, delay_samples=1105),
    "opus": Format("audio/opus", _OPUS, always_comment=True),
    "aac": Format("audio/aac", _AAC, _MPEG_RATES_HZ, delay_samples=1024 + _AAC.lead_in_samples),
    "flac": Format("audio/flac", _FLAC, always_comment=True),
    "wav": Format("audio/wav", PcmRecipe(wav_header)),
    "pcm": Format("audio/pcm", PcmRecipe(lambda *_: b"")),
    "ogg": Format("audio/ogg", _OPUS, always_comment=True),
    "m4a": Format("audio/mp4", _M4A, _MPEG_RATES_HZ, delay_samples=1024 + _M4A.lead_in_samples, always_comment=True),
}
