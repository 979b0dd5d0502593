"""Streaming encoders: float32 samples in, the bytes of one container out, in any format of formats.py.

One encoder per answer, from its first sample to its last, so that the sum of all outputs is one gapless file; joining
separately encoded sentences would put codec padding between them. The bytes are shaped as api.openai.com shapes them:
bare MP3 frames, ADTS, one logical Ogg Opus stream, FLAC and WAV of unknown length, raw PCM. They depend on the samples
only, not on how these were cut, on the clock or on chance, so the same sound is always the same file.

Knows samples, rates and codecs. Knows no HTTP, no engine and no text.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, cast

import av
import numpy as np

from app.audio import pcm
from app.audio.formats import AUDIO_FORMATS, MAX_RATE_HZ, MIN_RATE_HZ, CodecRecipe, PcmRecipe
from app.audio.resample import StreamResampler
from app.errors import UnsupportedParameter

if TYPE_CHECKING:
    from av import AudioCodecContext
    from av.container import OutputContainer
    from numpy.typing import NDArray

    from app.types import AudioFormat, Samples


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
    rates_hz = AUDIO_FORMATS[audio_format].rates_hz
    if rates_hz and rate_hz not in rates_hz:
        rates = ", ".join(map(str, rates_hz))
        message = f"{audio_format} can't have a sample rate of {rate_hz} Hz; it can have {rates}."
        raise UnsupportedParameter(message, param="sample_rate")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        message = f"{audio_format} can have a sample rate of {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, not {rate_hz}."
        raise UnsupportedParameter(message, param="sample_rate")


def open_encoder(audio_format: AudioFormat, rate_hz: int) -> Encoder:
    """An encoder for samples at rate_hz. Takes 0.5-2 ms for mp3, opus, aac and flac. Raises as `check_rate` does."""
    check_rate(audio_format, rate_hz)
    recipe = AUDIO_FORMATS[audio_format].recipe
    return _PcmEncoder(recipe.header(rate_hz)) if isinstance(recipe, PcmRecipe) else _CodecEncoder(recipe, rate_hz)


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

    def __init__(self, recipe: CodecRecipe, rate_hz: int) -> None:
        self._container: OutputContainer | None = None  # first, for __del__ when what follows raises
        codec_rate_hz = recipe.codec_rate_hz(rate_hz)
        self._recipe = recipe
        self._rate_hz = codec_rate_hz
        self._resampler = StreamResampler(rate_hz, codec_rate_hz)
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
        if (bit_rate := recipe.bit_rate(codec_rate_hz)) is not None:
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
