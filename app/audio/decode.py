"""Decode an untrusted audio file in any common format to mono float32.

The format is detected from the bytes only, never from a file name. FFmpeg is restricted in these ways:

- containers: only formats that contain audio and refer to no other file;
- protocols: none. Without this limit, an SDP file could open sockets, and a playlist could read a local file;
- codecs: only the decoders in `_CODECS`, which are common for recordings;
- memory: the size of every single allocation is limited, and so is the amount of data that FFmpeg reads to find the
  streams;
- length: decoding stops at `max_seconds`, so ten hours of silence in a file of 10 MB take only 0.1 s;
- time: decoding stops at `time_limit_s`, which is checked between packets.

`decode` blocks, so call it in a thread. This module does not depend on HTTP.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import av
import numpy as np
from av import _core as core
from av.stream import Disposition

from app.audio import pcm
from app.audio.provenance import MAX_COMMENT_CHARS
from app.audio.resample import StreamResampler
from app.errors import BadReference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from av import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from numpy.typing import NDArray

    from app.types import Samples

FORMATS = "WAV, MP3, Ogg, Opus, FLAC, M4A, MP4, WebM, AAC, AIFF, AMR or CAF"
PLAIN_FORMATS = "wav,w64,mp3,ogg,flac,mov,matroska,aac,aiff,amr,asf,caf,ac3"
# PLAIN_FORMATS and more containers. Only the sandbox (app/audio/sandbox.py) decodes the additional containers.
MORE_FORMATS = f"{PLAIN_FORMATS},avi,mpegts,mpeg,flv,au,wv,eac3"
MIN_SECONDS = 0.1
PADDING_S = 0.1  # a file may exceed max_seconds by PADDING_S, because MP3 and AAC add 20 to 70 ms of padding
# Recordings have rates in this range, and higher rates would need larger filters.
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
# The largest allocations that valid files need are the index of a one-hour M4A (less than 4 MB) and a cover picture
# (less than 20 MB).
MAX_ALLOCATION_BYTES = 64 << 20
_DEFAULT_ALLOCATION_BYTES = 2**31 - 1  # FFmpeg's default limit
FULL_SCALE = 0.998  # samples of at least this magnitude count as clipped
_INAUDIBLE = 1e-4  # a track with a lower peak is silent; -80 dBFS
# Channels cancel each other if the power of their mean is less than _CANCELLED times the power of the loudest channel.
_CANCELLED = 0.1
# In a float file, a sample whose magnitude is above _LOUDEST becomes 1 or -1. Some float files contain the values of
# 16-bit samples (up to 32,768), which are below _LOUDEST.
_LOUDEST = 1e5
TIME_LIMIT_S = 10.0  # an hour of ordinary audio decodes in 1 to 7 s

# Names of FFmpeg's decoders that are allowed. A video stream in the same file is ignored.
_CODECS = (
    *("aac", "aac_latm", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "amrnb", "amrwb", "eac3", "flac"),
    *("gsm", "gsm_ms", "libopus", "mp1float", "mp2float", "mp3", "mp3float", "opus", "pcm_alaw", "pcm_f32be"),
    *("pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_mulaw", "pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_s24le"),
    *("pcm_s32be", "pcm_s32le", "pcm_s8", "pcm_u8", "vorbis", "wavpack", "wmapro", "wmav1", "wmav2"),
)
_GUARD: Mapping[str, str] = MappingProxyType(
    {
        "codec_whitelist": ",".join(_CODECS),
        "protocol_whitelist": "none",
        "max_streams": "16",
        "probesize": "5000000",  # bytes
        "analyzeduration": "10000000",  # microseconds
    }
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoded audio, and facts about the file."""

    samples: Samples  # (N,) float32 mono in [-1, 1] at rate_hz
    rate_hz: int
    truncated: bool  # the file has more than max_seconds of audio
    source_hz: int = 0  # sample rate of the file
    channels: int = 0  # number of channels of the file
    clipped: float = 0.0  # share of the file's samples that were clipped, from 0 to 1
    comment: str = ""  # the tag `comment` of the file or of the audio stream; at most MAX_COMMENT_CHARS characters

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


def decode(
    data: bytes,
    rate_hz: int,
    *,
    max_seconds: float,
    what: str = "audio",
    time_limit_s: float = TIME_LIMIT_S,
    formats: str = PLAIN_FORMATS,
    start_s: float = 0.0,
) -> Decoded:
    """Decode the audio of a file to mono at rate_hz: at most max_seconds, from start_s on.

    If the file has several audio tracks, the default track is used. If the default track is silent, the first track
    that is not silent is used. Mono is the mean of the channels. If the channels cancel each other, mono is the loudest
    channel. If the file is damaged or truncated, the part that can be decoded is returned.

    data: the bytes of the file. what: name of the request's field, for error messages. formats: FFmpeg's names of the
    containers that are allowed. Raises BadReference if the file is empty, can't be decoded, has less than MIN_SECONDS
    of audio, or takes longer than time_limit_s.
    """
    if not data:
        raise BadReference(f"`{what}` is empty.", param=what)
    deadline_s = time.monotonic() + time_limit_s
    guard = {"format_whitelist": formats, **_GUARD}

    def read(track: int | None = None, channel: int | None = None) -> _Reading:
        reading = _Reading(rate_hz, max_seconds, what, deadline_s, start_s)
        # metadata_errors: do not refuse a file because of the text encoding of its tags.
        with _MEMORY_BOUND, av.open(io.BytesIO(data), "r", metadata_errors="ignore", options=guard) as container:
            reading.read(container, track, channel)
        return reading

    try:
        reading = read()
        for track in () if reading.audible else reading.other_tracks:
            with contextlib.suppress(av.FFmpegError, BadReference):  # skip a track that can't be decoded
                other = read(track)
                if other.audible:
                    reading = other
                    break
        if reading.cancelling_channels:
            reading = read(reading.track, reading.loudest_channel)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        # PyAV raises ValueError for impossible numbers in a header, and MemoryError for sizes above the limit.
        if _lacks_index(data):
            raise BadReference(
                f"`{what}` is cut off: the end of the file is missing, and with it the index of the audio. Send the "
                "complete file.",
                param=what,
            ) from error
        raise BadReference(f"`{what}` is not an audio file that can be decoded. Send {FORMATS}.", param=what) from error
    return reading.decoded()


def _lacks_index(data: bytes) -> bool:
    """Return whether data is an MP4, M4A or MOV file without its index. Recorders write the index at the end of the
    file, so it is missing in a truncated file.
    """
    at = 0
    if data[4:8] != b"ftyp":
        return False
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:  # the size is in the next 64 bits
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if kind == b"moov":
            return at + size > len(data)
        if size < 8:  # size 0 means that this part of the file continues to the end of the file, so no index follows
            return True
        at += size
    return True


class _MemoryBound:
    """A context manager that limits each single allocation of FFmpeg to MAX_ALLOCATION_BYTES.

    Without this limit, a WAV file of 200 bytes can take 1.2 GB of memory and 0.9 s, if its header says that a comment
    has 1 GB. FFmpeg has one limit for the whole process. The limit is active while at least one thread is in the
    context. The last thread that leaves the context restores FFmpeg's default for encoders and filters.

    PyAV has no function for the limit, so this class calls the FFmpeg library that PyAV links to. If the library does
    not have the function, allocations are not limited.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            _limit_allocations(MAX_ALLOCATION_BYTES)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _limit_allocations(_DEFAULT_ALLOCATION_BYTES)


def _limit_allocations(size_bytes: int) -> None:
    limit = _av_max_alloc()
    if limit is not None:
        limit(size_bytes)


@functools.cache
def _av_max_alloc() -> Callable[[int], None] | None:
    """Return FFmpeg's function `av_max_alloc`; None if the library does not have it.

    The result is cached, because a process in the sandbox can't open a library later.
    """
    with contextlib.suppress(AttributeError, OSError):
        function = ctypes.CDLL(core.__file__).av_max_alloc
        function.argtypes, function.restype = [ctypes.c_size_t], None
        return function
    return None


_MEMORY_BOUND = _MemoryBound()


class _Reading:
    """The state of decoding one file: `read` collects samples, `decoded` returns the result."""

    def __init__(self, rate_hz: int, max_seconds: float, what: str, deadline_s: float, start_s: float = 0.0) -> None:
        self._skip_s = start_s  # seconds of audio still to skip; only whole frames (at most 0.1 s) are skipped
        self._rate_hz = rate_hz
        self._max_seconds = max_seconds
        self._what = what
        self._deadline_s = deadline_s  # value of time.monotonic() at which decoding must stop
        self._frame_kind: tuple[int, str, str] | None = None  # rate, sample format, channel layout of the last frame
        self._mixer = _Mixer(None)
        self._channel: int | None = None
        self._float_pcm = False  # whether the file has float samples, which may exceed full scale
        self._peak = 0.0  # highest magnitude of the mixed samples
        self.track = 0  # index of the decoded track among the audio streams
        self.other_tracks: tuple[int, ...] = ()
        self._resampler = StreamResampler(rate_hz, rate_hz)
        self._parts: list[Samples] = []
        self._decoded_s = 0.0
        self._damaged = False
        self._channels = 0
        self._comment = ""

    @property
    def audible(self) -> bool:
        return self._mixer.peak > _INAUDIBLE

    @property
    def cancelling_channels(self) -> bool:
        """Whether the mean of the channels is much weaker than the loudest channel, for example because a channel is
        inverted.
        """
        powers = self._mixer.channel_powers
        return len(powers) > 1 and self._mixer.mono_power < _CANCELLED * float(powers.max())

    @property
    def loudest_channel(self) -> int:
        return int(np.argmax(self._mixer.channel_powers))

    def read(self, container: InputContainer, track: int | None, channel: int | None) -> None:
        """Decode one track and collect its samples. track: None = the default track. channel: None = the mean of all
        channels.
        """
        self._channel = channel
        if not container.streams.audio:
            raise BadReference(f"`{self._what}` has no audio stream. Send {FORMATS}.", param=self._what)
        streams = container.streams.audio
        order = sorted(range(len(streams)), key=lambda index: Disposition.default not in streams[index].disposition)
        self.track = order[0] if track is None else track
        self.other_tracks = tuple(index for index in order if index != self.track)
        stream = streams[self.track]
        # `codec_context` is None if FFmpeg has no decoder for this stream.
        codec = getattr(stream.codec_context, "codec", None)
        if codec is None or codec.name not in _CODECS:
            name = codec.name if codec else "an unknown codec"
            raise BadReference(
                f"The audio in `{self._what}` is encoded with {name}. This server can't decode it. Send {FORMATS}.",
                param=self._what,
            )
        self._comment = container.metadata.get("comment") or stream.metadata.get("comment") or ""
        self._float_pcm = codec.name.startswith("pcm_f") or codec.name == "wavpack"
        stream.codec_context.thread_count = 1  # more threads would not be faster, and each upload would start them
        for frame in self._frames(container, stream):
            self._take(frame)
            if self._decoded_s > self._max_seconds + PADDING_S:
                break
        self._parts.append(self._resampler.flush())

    def decoded(self) -> Decoded:
        """Return the decoded audio. Raises BadReference if there is less than MIN_SECONDS of audio."""
        samples = np.concatenate(self._parts)
        if self._peak > 1.0:
            samples *= np.float32(1.0 / self._peak)
        samples = pcm.clip(samples)  # the output of a resampler can exceed 1 at steep edges
        samples = samples[: round(self._max_seconds * self._rate_hz)]
        truncated = self._decoded_s > self._max_seconds + PADDING_S
        rate_hz, channels = (self._frame_kind[0], self._channels) if self._frame_kind else (0, 0)
        clipped = self._mixer.clipped(float_pcm=self._float_pcm)
        comment = self._comment[:MAX_COMMENT_CHARS]
        decoded = Decoded(samples, self._rate_hz, truncated, rate_hz, channels, clipped, comment)
        if decoded.seconds >= MIN_SECONDS:
            return decoded
        if self._damaged or not self._decoded_s:
            raise BadReference(
                f"`{self._what}` is damaged: its audio can't be decoded. Send another file.", param=self._what
            )
        raise BadReference(
            f"`{self._what}` is too short: it has {decoded.seconds:.2f} s of audio. Send at least {MIN_SECONDS:g} s.",
            param=self._what,
        )

    def _frames(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """Yield the frames in order. Packets that can't be decoded are skipped, and a truncated file ends early."""
        packets = container.demux(stream)
        while True:
            self._check_time()
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file is truncated, or data that is not audio follows
                self._damaged = True
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self._damaged = True

    def _take(self, frame: AudioFrame) -> None:
        """Mix, resample and collect one frame. Raises BadReference for a sample rate out of range."""
        kind = (frame.sample_rate, frame.format.name, frame.layout.name)
        # The sample rate may differ from the header (AAC) or change within a file (Ogg).
        if kind != self._frame_kind:
            self._frame_kind = kind
            self._channels = frame.layout.nb_channels
            if not MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ:
                raise BadReference(
                    f"`{self._what}` has a sample rate of {frame.sample_rate} Hz. Send a file with {MIN_RATE_HZ} to "
                    f"{MAX_RATE_HZ} Hz.",
                    param=self._what,
                )
            self._parts.append(self._resampler.flush())
            self._mixer = _Mixer(self._channel)
            self._resampler = StreamResampler(frame.sample_rate, self._rate_hz)
        samples = self._mixer.mono(frame)
        if self._skip_s > 0:
            self._skip_s -= len(samples) / frame.sample_rate
            return
        self._decoded_s += len(samples) / frame.sample_rate
        # Replace NaN before resampling, because one NaN would stay in the state of the filter.
        samples = _within(samples, _LOUDEST) if self._float_pcm else pcm.clip(samples)
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))
        self._parts.append(self._resampler.push(samples))

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise BadReference(
                f"`{self._what}` takes too long to decode. Send a shorter or simpler file.", param=self._what
            )


class _Mixer:
    """Mixes frames of one kind (rate, format, layout) to mono, and counts clipped samples.

    FFmpeg converts the samples to packed float first, because PyAV's `to_ndarray` crashes the process for planar frames
    with 8 or more channels (PyAV 18.1). Mono is the mean of the channels. FFmpeg's mix is not used, because the mix of
    two equal channels is 3 dB louder than each channel and can clip.
    """

    def __init__(self, channel: int | None) -> None:
        """channel: index of the channel that becomes the mono signal; None = the mean of all channels."""
        self._channel = channel
        self.channel_powers = np.zeros(0)  # sum of squared samples of each channel
        self.mono_power = 0.0
        self._packer = av.AudioResampler(format="flt")
        # Three counts: all samples, samples clipped at full scale, and samples clipped at the peak.
        self._all = self._at_full_scale = self._at_peak = 0
        self._peak = 0.0

    @property
    def peak(self) -> float:
        """The highest magnitude of a sample in any channel."""
        return self._peak

    def clipped(self, *, float_pcm: bool) -> float:
        """Return the share of clipped samples, from 0 to 1.

        A sample counts as clipped if it and its two neighbours are at full scale, or at the highest level of the file.
        float_pcm: True = the file may have valid samples above full scale. If the file has such samples, samples at
        full scale do not count as clipped.
        """
        exceeds = float_pcm and self._peak > 1.001
        return max(0 if exceeds else self._at_full_scale, self._at_peak) / max(1, self._all)

    def _count(self, samples: Samples) -> None:
        """Count all samples and the clipped samples of one frame (N, channels)."""
        self._all += samples.size
        level = np.abs(samples)
        peak = float(level.max(initial=0.0))
        if peak > self._peak * 1.0005:
            self._peak, self._at_peak = peak, 0
        if peak >= FULL_SCALE:
            self._at_full_scale += _in_runs(level >= FULL_SCALE)
        if peak >= max(0.05, self._peak * 0.9995):
            self._at_peak += _in_runs(level >= self._peak * 0.9995)

    def mono(self, frame: AudioFrame) -> Samples:
        """Mix one frame to mono samples (N,) float32. NaN and infinite samples are not replaced."""
        packed = [
            np.asarray(part.to_ndarray(), np.float32).reshape(-1, part.layout.nb_channels)
            for part in self._packer.resample(frame)
        ]
        with np.errstate(over="ignore", invalid="ignore"):  # `pcm.clip` replaces NaN later
            parts = [self._mix(samples) for samples in packed]
            for samples in packed:
                self._count(samples)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _mix(self, samples: Samples) -> Samples:
        """Mix samples (N, channels) to mono (N,), and add the powers of the channels and of the mix to the totals."""
        channels = samples.shape[1]
        channel = self._channel if self._channel is not None and self._channel < channels else None
        mono = np.asarray(samples.mean(axis=1, dtype=np.float32) if channel is None else samples[:, channel])
        if channels > 1 and self._channel is None:
            if len(self.channel_powers) != channels:
                self.channel_powers = np.zeros(channels)
            finite = _within(samples, _LOUDEST)
            self.channel_powers += np.einsum("nc,nc->c", finite, finite)
            self.mono_power += float(np.square(_within(mono, _LOUDEST)).sum())
        return mono


def _within(samples: Samples, most: float) -> Samples:
    """Replace NaN by 0, each sample above `most` by 1, and each sample below -`most` by -1. Returns an array of the
    same shape.
    """
    if np.abs(samples).max(initial=0.0) <= most:  # the comparison is False if a sample is NaN
        return samples
    samples = np.nan_to_num(samples, nan=0.0)
    return np.where(np.abs(samples) > most, np.sign(samples), samples).astype(np.float32)


def _in_runs(clipped: NDArray[np.bool_]) -> int:
    """Count the clipped samples of which both neighbours in the same channel are clipped, too. clipped (N, channels):
    whether each sample is clipped.
    """
    return int(np.count_nonzero(clipped[2:] & clipped[1:-1] & clipped[:-2]))
