"""Streaming encoders: convert float32 samples to the bytes of one audio file, in any format of `formats.py`.

One encoder encodes all samples of a response, so that the joined output is one file without gaps. If each sentence had
a separate encoder, the padding of the codec would be between the sentences. The layout of the files is the same as from
api.openai.com: MP3 frames without a header, AAC as ADTS, one logical Ogg Opus stream, FLAC and WAV of unknown length,
raw PCM. If the number of samples is known in advance, the headers of FLAC and WAV files contain it. The same samples
always give the same file, even if they are encoded in blocks of another size.

This module does not depend on HTTP, engines or text.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, cast

import av
import numpy as np

from app.audio import pcm
from app.audio.formats import AUDIO_FORMATS, MAX_RATE_HZ, MIN_RATE_HZ, CodecRecipe
from app.audio.resample import StreamResampler, resampled_length
from app.errors import UnsupportedParameter

if TYPE_CHECKING:
    from av import AudioCodecContext
    from av.container import OutputContainer
    from numpy.typing import NDArray

    from app.types import AudioFormat, Samples


class Encoder(Protocol):
    """Encodes the audio of one response, in one thread at a time.

    `flush`, `close` and garbage collection free the memory of the codec.
    """

    def encode(self, samples: Samples) -> bytes:
        """Encode mono float32 samples (N,) and return the next bytes of the file. The codec may hold them back, so the
        result may be empty.

        Samples outside [-1, 1] are clipped. Raises ValueError after `flush` or `close`.
        """
        ...

    def flush(self) -> bytes:
        """End the audio and return the remaining bytes. A second call returns b"".

        If no samples were encoded, a WAV file has only its header, and a file of any other format is empty.
        """
        ...

    def close(self) -> None:
        """Free the codec without finishing the file. Does nothing after `flush` or `close`."""
        ...


def check_rate(audio_format: AudioFormat, rate_hz: int) -> None:
    """Check that a format supports a sample rate. Raises UnsupportedParameter, whose message lists the valid rates."""
    rates_hz = AUDIO_FORMATS[audio_format].rates_hz
    if rates_hz and rate_hz not in rates_hz:
        rates = ", ".join(map(str, rates_hz))
        message = f"{audio_format} does not support a sample rate of {rate_hz} Hz. Use one of: {rates}."
        raise UnsupportedParameter(message, param="sample_rate")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        message = (
            f"{audio_format} does not support a sample rate of {rate_hz} Hz. Use {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz."
        )
        raise UnsupportedParameter(message, param="sample_rate")


def open_encoder(audio_format: AudioFormat, rate_hz: int, samples: int | None = None, *, comment: str = "") -> Encoder:
    """Return a new encoder for samples at rate_hz. Takes up to 2 ms.

    samples: how many samples the caller will encode, for the header of the file; None = not known yet. comment: is
    written into the header of the file, see app/audio/provenance.py; "" = none. Raw PCM has no place for it. Raises
    UnsupportedParameter if the format does not support the sample rate.
    """
    check_rate(audio_format, rate_hz)
    recipe = AUDIO_FORMATS[audio_format].recipe
    if isinstance(recipe, CodecRecipe):
        return _CodecEncoder(recipe, rate_hz, samples, comment)
    return _PcmEncoder(recipe.header(rate_hz, samples, comment))


def encoded_bytes(audio_format: AudioFormat, rate_hz: int, samples: int, *, comment: str = "") -> int | None:
    """Return the size in bytes of a file with `samples` samples and a comment. Returns None for a format whose size
    depends on the audio.
    """
    recipe = AUDIO_FORMATS[audio_format].recipe
    if isinstance(recipe, CodecRecipe):
        return None
    return len(recipe.header(rate_hz, samples, comment)) + 2 * samples


def with_length(audio_format: AudioFormat, rate_hz: int, samples: int, data: bytes) -> bytes:
    """Write the number of samples into the header of a complete FLAC file, and return the file. A file of any other
    format is returned unchanged.
    """
    recipe = AUDIO_FORMATS[audio_format].recipe
    if not isinstance(recipe, CodecRecipe) or recipe.container != "flac":
        return data
    return _with_flac_total(data, _codec_samples(recipe, rate_hz, samples))


def _codec_samples(recipe: CodecRecipe, rate_hz: int, samples: int) -> int:
    """Return the number of samples that the codec encodes if the caller encodes `samples` samples at rate_hz."""
    return resampled_length(samples, rate_hz, recipe.codec_rate_hz(rate_hz)) + recipe.lead_in_samples


class _PcmEncoder:
    """Writes a header and 16-bit little-endian samples."""

    def __init__(self, header: bytes) -> None:
        self._header = header
        self._ended = False

    def encode(self, samples: Samples) -> bytes:
        if self._ended:
            raise ValueError("the encoder has ended: open a new one")
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


_FLAC_START = b"fLaC\x00\x00\x00\x22"  # start of a FLAC file: its marker, then the header of the block STREAMINFO
_FLAC_TOTAL_AT = 21  # offset of a byte; its last 4 bits are the first 4 of the 36 bits for the number of samples


def _with_flac_total(start: bytes, samples: int) -> bytes:
    """Write the number of samples into the first bytes of a FLAC file, and return these bytes."""
    if not start.startswith(_FLAC_START) or len(start) < _FLAC_TOTAL_AT + 5 or samples >= 1 << 36:
        return start
    field = int.from_bytes(start[_FLAC_TOTAL_AT : _FLAC_TOTAL_AT + 5], "big") >> 36 << 36 | samples
    return start[:_FLAC_TOTAL_AT] + field.to_bytes(5, "big") + start[_FLAC_TOTAL_AT + 5 :]


class _Sink:
    """The output file for FFmpeg. The file is not seekable, so FFmpeg never rewrites a header."""

    def __init__(self, flac_samples: int | None = None) -> None:
        """flac_samples: how many samples the header of a FLAC file must state; None = do not change the header."""
        self._parts: list[bytes] = []
        self._flac_samples = flac_samples

    def write(self, data: bytes) -> int:
        if self._flac_samples is not None:
            data, self._flac_samples = _with_flac_total(bytes(data), self._flac_samples), None
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class _CodecEncoder:
    """Encodes with FFmpeg to one mono stream in a container.

    The codec gets only whole frames, so that the output does not depend on the number of samples in each call.
    """

    def __init__(self, recipe: CodecRecipe, rate_hz: int, samples: int | None = None, comment: str = "") -> None:
        # Set this attribute first: `__del__` needs it, even if the constructor raises an error.
        self._container: OutputContainer | None = None
        codec_rate_hz = recipe.codec_rate_hz(rate_hz)
        self._recipe = recipe
        self._rate_hz = codec_rate_hz
        self._resampler = StreamResampler(rate_hz, codec_rate_hz)
        total = None if samples is None else _codec_samples(recipe, rate_hz, samples)
        self._sink = _Sink(total if recipe.container == "flac" else None)
        # bitexact: no version strings, no random Ogg serial number. flush_packets: FFmpeg does not buffer the output.
        self._container = av.open(
            self._sink,
            "w",
            format=recipe.container,
            options={
                "fflags": "+bitexact",
                "flush_packets": "1",
                **recipe.container_options,
                **(recipe.comment_options if comment else {}),
            },
        )
        if comment:
            self._container.metadata["comment"] = comment
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
        # Samples that are not encoded yet. Between two calls, they are less than one frame.
        self._pending = np.zeros(recipe.lead_in_samples, dtype=np.float32)
        self._position_samples = 0
        self._started = False

    def __del__(self) -> None:
        # The container and the stream refer to each other. Without `close`, their native memory (7 MB for FLAC) would
        # stay allocated until the next full garbage collection.
        self.close()

    def encode(self, samples: Samples) -> bytes:
        container = self._container
        if container is None:
            raise ValueError("the encoder has ended: open a new one")
        if not len(samples):
            return b""
        self._started = True
        # Clip before resampling, because one NaN would stay in the state of the resampling filter. `_feed` clips again,
        # because the output of a resampler can exceed 1 at steep edges.
        self._pending = np.concatenate((self._pending, self._resampler.push(pcm.clip(samples))))
        whole = len(self._pending) - len(self._pending) % self._frame_samples
        self._feed(container, self._pending[:whole])
        self._pending = self._pending[whole:].copy()  # without the copy, the whole array would stay in memory
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
        """Encode samples (N,) frame by frame. Only the last frame of the stream may be shorter."""
        converted: NDArray[np.float32] | NDArray[np.int16]
        converted = pcm.to_int16(samples) if self._recipe.sample_format == "s16" else pcm.clip(samples)
        for start in range(0, len(converted), self._frame_samples):
            block = converted[None, start : start + self._frame_samples]  # (1, <= frame_samples)
            frame = av.AudioFrame.from_ndarray(block, format=self._recipe.sample_format, layout="mono")
            frame.sample_rate = self._rate_hz
            frame.time_base = self._time_base
            frame.pts = self._position_samples
            self._position_samples += block.shape[1]
            for packet in self._codec.encode(frame):
                container.mux(packet)
