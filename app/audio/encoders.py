"""Streaming encoders: float32 samples in, the bytes of one container out, in the six formats of the OpenAI API.

One encoder per answer, from its first sample to its last, so that the sum of all outputs is one gapless file; joining
separately encoded sentences would put codec padding between them. The bytes are shaped as api.openai.com shapes them:
bare MP3 frames, ADTS, one logical Ogg Opus stream, FLAC and WAV of unknown length, raw PCM. They depend on the samples
only, not on how these were cut, on the clock or on chance, so the same sound is always the same file.

Knows samples, rates and codecs. Knows no HTTP, no engine and no text.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, assert_never, cast

import av
import numpy as np

from app.audio import pcm
from app.audio.resample import StreamResampler
from app.errors import UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from av import AudioCodecContext
    from av.container import OutputContainer
    from numpy.typing import NDArray

    from app.types import AudioFormat, Samples

MEDIA_TYPES: Mapping[AudioFormat, str] = MappingProxyType(
    {
        "mp3": "audio/mpeg",
        "opus": "audio/opus",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
)

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 48_000

# The sampling frequencies an MPEG audio header can name; ADTS knows 64-96 kHz too, which are above our range.
_MPEG_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


class Encoder(Protocol):
    """One answer becoming bytes, in one thread at a time. `flush`, `close` or dropping it frees the codec."""

    def encode(self, samples: Samples) -> bytes:
        """(N,) mono float32 -> whatever the codec has ready, maybe b"". Beyond +-1 clips. ValueError once ended."""
        ...

    def flush(self) -> bytes:
        """The sound has ended: the rest of the bytes. A second call gives b"".

        With no samples at all the file is empty; for wav it is the header alone, which decodes to no samples.
        """
        ...

    def close(self) -> None:
        """Give up: free the codec, drop what it held. Harmless after `flush` and when repeated."""
        ...


def check_rate(audio_format: AudioFormat, rate_hz: int) -> None:
    """UnsupportedParameter when the format can't carry the rate; the message names the rates it can."""
    if audio_format in {"mp3", "aac"}:
        if rate_hz not in _MPEG_RATES_HZ:
            rates = ", ".join(str(rate) for rate in _MPEG_RATES_HZ)
            message = f"{audio_format} can't have a sample rate of {rate_hz} Hz; it can have {rates}."
            raise UnsupportedParameter(message, param="sample_rate")
    elif not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        message = f"{audio_format} can have a sample rate of {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, not {rate_hz}."
        raise UnsupportedParameter(message, param="sample_rate")


def open_encoder(audio_format: AudioFormat, rate_hz: int) -> Encoder:
    """An encoder for samples at rate_hz. Takes 0.5-2 ms for mp3, opus, aac and flac. Raises as `check_rate` does."""
    check_rate(audio_format, rate_hz)
    match audio_format:
        case "pcm":
            return _PcmEncoder(b"")
        case "wav":
            return _PcmEncoder(wav_header(rate_hz))
        case "mp3":
            return _CodecEncoder(_MP3, rate_hz, _mp3_bit_rate(rate_hz))
        case "aac":
            # 64 kbit/s, and at 8 and 11 kHz what a frame can hold: AAC-LC allows 6 bits per sample and channel.
            return _CodecEncoder(_AAC, rate_hz, min(64_000, 4 * rate_hz))
        case "opus":
            return _CodecEncoder(_OPUS, next(rate for rate in _OPUS_RATES_HZ if rate >= rate_hz), 40_000, rate_hz)
        case "flac":
            return _CodecEncoder(_FLAC, rate_hz, None)
        case _:
            assert_never(audio_format)


def wav_header(rate_hz: int) -> bytes:
    """44 bytes for 16-bit mono of unknown length: both sizes are 0xFFFFFFFF, as api.openai.com streams it.

    Python's `wave`, FFmpeg and browsers read that; a size of 0, the other custom, `wave` refuses.
    """
    unknown = 0xFFFFFFFF
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", unknown, b"WAVE"),
        *(b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16),  # tag 1 = PCM, 1 channel, bytes/s, bytes/frame, bits
        *(b"data", unknown),
    )


class _PcmEncoder:
    """16-bit little-endian samples behind a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header
        self._ended = False

    def encode(self, samples: Samples) -> bytes:
        if self._ended:
            raise ValueError("this encoder has ended")
        return self._take_header() + pcm.to_bytes(samples) if len(samples) else b""

    def flush(self) -> bytes:
        if self._ended:
            return b""
        self._ended = True
        return self._take_header()

    def close(self) -> None:
        self._ended = True

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How FFmpeg makes one format. lead_in_samples of silence go in front of the sound."""

    container: str
    codec: str
    sample_format: str
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)
    lead_in_samples: int = 0


# CPU and size below: 22.9 s of speech at 24 kHz on one core, best of four runs.
# reservoir=0: frames stand alone, so that streams can be joined and cut. compression_level=7 (LAME's -q 7):
# 6.1 ms of CPU per second of sound against 9.3 at the default, SNR 26.0 dB against 25.9 at 128 kbit/s.
_MP3 = _Recipe(
    "mp3",
    "libmp3lame",
    "fltp",
    {"write_xing": "0", "id3v2_version": "0"},
    {"reservoir": "0", "compression_level": "7"},
)
# FFmpeg's default is a page per second: the first sound would come a second late. With 20 ms pages the first 80 ms of
# input give 53 ms of sound at once (40 ms pages: 33 ms), for 11 kbit/s of page headers: 61 kbit/s in all, where
# api.openai.com sends about 56. At that size application=audio, compression_level=5 beats voip, which also filters the
# lowest tones away: SNR 17.8 dB against 11.2, log-spectral distance 4.5 dB against 4.8, 4.8 ms/s against 9.5.
_OPUS = _Recipe(
    "ogg",
    "libopus",
    "flt",
    {"page_duration": "20000"},
    {"frame_duration": "20", "application": "audio", "compression_level": "5"},
)
# aac_coder=fast: 3.0 ms/s and SNR 28.9 dB, against 8.9 ms/s and 23.3 dB for the default two-loop search.
# A frame is 1024 samples and leaves the codec once the next one is full, 85 ms at 24 kHz: 5 ms more than CSM's first
# frame of 80 ms. 128 samples of lead-in bring the first bytes one engine frame (80 ms) forward.
_AAC = _Recipe("adts", "aac", "fltp", {}, {"aac_coder": "fast"}, lead_in_samples=128)
# compression_level=2 for its 27 ms blocks (the default's 105 ms would delay the first bytes), with the default's linear
# prediction: 1.0 ms/s and 233 kbit/s, as small as the default. No padding block: it is 8 kB before the first sound.
_FLAC = _Recipe(
    "flac",
    "flac",
    "s16",
    {"metadata_header_padding": "0"},
    {"compression_level": "2", "lpc_type": "levinson", "max_prediction_order": "8"},
)


def _mp3_bit_rate(rate_hz: int) -> int:
    # MPEG-2.5 (below 16 kHz) has no bit rate above 64 kbit/s that all its rates can use.
    return 128_000 if rate_hz >= 16_000 else 64_000


class _Sink:
    """The file FFmpeg writes to: not seekable, so no header is ever rewritten."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class _CodecEncoder:
    """A container with one mono stream, fed in whole codec frames so that the caller's cuts never show in the bytes."""

    def __init__(self, recipe: _Recipe, codec_rate_hz: int, bit_rate: int | None, rate_hz: int | None = None) -> None:
        self._container: OutputContainer | None = None  # first, for __del__ when what follows raises
        self._recipe = recipe
        self._rate_hz = codec_rate_hz
        self._resampler = StreamResampler(rate_hz or codec_rate_hz, codec_rate_hz)
        self._sink = _Sink()
        # bitexact: no version strings and no random Ogg serial number. flush_packets: nothing waits in FFmpeg's buffer.
        self._container = av.open(
            self._sink,
            "w",
            format=recipe.container,
            options={"fflags": "+bitexact", "flush_packets": "1", **recipe.container_options},
        )
        stream = self._container.add_stream(
            recipe.codec,
            rate=codec_rate_hz,
            layout="mono",
            options={"flags": "+bitexact", **recipe.codec_options},
        )
        self._codec = cast("AudioCodecContext", stream.codec_context)
        self._codec.format = recipe.sample_format
        self._codec.time_base = self._time_base = Fraction(1, codec_rate_hz)
        if bit_rate is not None:
            self._codec.bit_rate = bit_rate
        self._container.start_encoding()
        self._frame_samples = self._codec.frame_size
        self._pending = np.zeros(recipe.lead_in_samples, dtype=np.float32)  # less than a frame between calls
        self._position_samples = 0
        self._started = False

    def __del__(self) -> None:
        # Container and stream refer to each other, so an encoder that is only dropped would hold its native memory
        # (7 MB for FLAC) until a full garbage collection, which Python has no reason to hurry.
        self.close()

    def encode(self, samples: Samples) -> bytes:
        container = self._container
        if container is None:
            raise ValueError("this encoder has ended")
        if not len(samples):
            return b""
        self._started = True
        # Clipped here, as one NaN would stay in the resampler, and again after it, as it overshoots at steep edges.
        self._pending = np.concatenate((self._pending, self._resampler.push(pcm.clip(samples))))
        whole = len(self._pending) - len(self._pending) % self._frame_samples
        self._feed(container, self._pending[:whole])
        self._pending = self._pending[whole:].copy()  # a view would keep the whole push alive
        return self._sink.take()

    def flush(self) -> bytes:
        container = self._container
        if container is None:
            return b""
        if not self._started:
            self.close()
            return b""
        self._feed(container, np.concatenate((self._pending, self._resampler.flush())))
        for packet in self._codec.encode(None):
            container.mux(packet)
        self._end(container)
        return self._sink.take()

    def close(self) -> None:
        if self._container is not None:
            self._end(self._container)
            self._sink.take()

    def _end(self, container: OutputContainer) -> None:
        self._container = None
        container.close()

    def _feed(self, container: OutputContainer, samples: Samples) -> None:
        """Encode samples (N,) frame by frame; only the stream's last frame may be short."""
        sound: NDArray[np.float32] | NDArray[np.int16]
        sound = pcm.to_int16(samples) if self._recipe.sample_format == "s16" else pcm.clip(samples)
        for start in range(0, len(sound), self._frame_samples):
            block = sound[None, start : start + self._frame_samples]  # (1, <= frame_samples)
            frame = av.AudioFrame.from_ndarray(block, format=self._recipe.sample_format, layout="mono")
            frame.sample_rate = self._rate_hz
            frame.time_base = self._time_base
            frame.pts = self._position_samples
            self._position_samples += block.shape[1]
            for packet in self._codec.encode(frame):
                container.mux(packet)
