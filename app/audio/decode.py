"""Untrusted bytes to mono float32: whatever recording a caller sends, in any common format.

What the bytes are is read from the bytes alone, never from a name. FFmpeg is held to formats that hold sound and name
no other file, to no protocol at all (an SDP text opened sockets without this, a playlist read a local file), to codecs
that recorders use, to a bounded search for streams and to bounded pieces of memory. Decoding stops at the wanted
length, whatever is behind it: ten hours of silence in 10 MB cost 0.1 s. It also stops at a time limit, looked at
between packets.

Blocks for as long as it decodes, so call it in a thread. Knows no HTTP and keeps nothing.
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

from app.audio import pcm
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
MORE_FORMATS = f"{PLAIN_FORMATS},avi,mpegts,mpeg,flv,au,wv,eac3"  # where a process of its own decodes
MIN_SECONDS = 0.1
PADDING_S = 0.1  # so much more than max_seconds is no length: MP3 and AAC pad their ends by 20 to 70 ms
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000  # outside of these nothing is a recording, and soxr's filters grow with it
MAX_ALLOCATION_BYTES = 64 << 20  # a frame is below 4 MB, an hour's index of an M4A too, a cover picture below 20 MB
_DEFAULT_ALLOCATION_BYTES = 2**31 - 1  # FFmpeg's own limit
FULL_SCALE = 0.998  # a sample this large is taken for one that was cut off there
TIME_LIMIT_S = 10.0  # an honest hour decodes in 1 to 7 s

# FFmpeg's decoders that a recording may need. A video stream in the same file is ignored.
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
    """samples (N,) float32 mono in [-1, 1] at rate_hz. truncated: there was more sound than was asked for.

    Of the file: its rate, its channels, and the share of its samples that were cut off: that lie in a row at full
    scale, or at the highest level the file has.
    """

    samples: Samples
    rate_hz: int
    truncated: bool
    source_hz: int = 0
    channels: int = 0
    clipped: float = 0.0

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
    """The first sound stream of a file, mixed to mono, at rate_hz, from start_s on, no longer than max_seconds.

    A file that is damaged or cut off gives what can be heard of it. `what` names the field in the errors' words and
    `param`. Raises BadReference for what is empty, no sound, shorter than MIN_SECONDS, or takes too long.
    """
    if not data:
        raise BadReference(f"`{what}` is empty.", param=what)
    reading = _Reading(rate_hz, max_seconds, what, time.monotonic() + time_limit_s, start_s)
    guard = {"format_whitelist": formats, **_GUARD}
    try:
        # metadata_errors: tags in any encoding are no reason to refuse a sound.
        with _MEMORY_BOUND, av.open(io.BytesIO(data), "r", metadata_errors="ignore", options=guard) as container:
            reading.read(container)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        # ValueError is PyAV's own, of a header with numbers that can't be; MemoryError, of sizes that can't be had.
        raise BadReference(f"`{what}` is not a sound file that can be read. Send {FORMATS}.", param=what) from error
    return reading.decoded()


class _MemoryBound:
    """Refuses every single allocation of FFmpeg beyond MAX_ALLOCATION_BYTES while at least one thread is inside.

    A WAV of 200 bytes whose comment claims a length of one gigabyte took 1.2 GB and 0.9 s before it was refused.
    FFmpeg keeps this limit per process, so the last thread to leave restores the default: encoders and filters in the
    same process keep their room. PyAV does not offer the limit, so this class calls the library that PyAV links to.
    Where the library has no such function, the other protections still hold.
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
    """FFmpeg's `av_max_alloc`. Cached because the process that decodes uploads can't open a library later."""
    with contextlib.suppress(AttributeError, OSError):
        function = ctypes.CDLL(core.__file__).av_max_alloc
        function.argtypes, function.restype = [ctypes.c_size_t], None
        return function
    return None


_MEMORY_BOUND = _MemoryBound()


class _Reading:
    """One file on its way: sound of any rate in, sound of one rate out."""

    def __init__(self, rate_hz: int, max_seconds: float, what: str, deadline_s: float, start_s: float = 0.0) -> None:
        self._to_leave_out_s = start_s  # in whole frames, which are at most 0.1 s long
        self._rate_hz = rate_hz
        self._max_seconds = max_seconds
        self._what = what
        self._deadline_s = deadline_s  # by time.monotonic
        self._like: tuple[int, str, str] | None = None  # rate, sample format, channels of the last frame
        self._mixer = _Mixer()
        self._resampler = StreamResampler(rate_hz, rate_hz)
        self._parts: list[Samples] = []
        self._heard_s = 0.0
        self._damaged = False
        self._channels = 0

    def read(self, container: InputContainer) -> None:
        if not container.streams.audio:
            raise BadReference(f"`{self._what}` has no sound in it.", param=self._what)
        stream = container.streams.audio[0]
        codec = getattr(stream.codec_context, "codec", None)  # there is no context where FFmpeg knows no decoder
        if codec is None or codec.name not in _CODECS:
            coding = codec.name if codec else "nothing known"
            raise BadReference(
                f"`{self._what}` holds sound coded as {coding}, which is not read here. Send {FORMATS}.",
                param=self._what,
            )
        stream.codec_context.thread_count = (
            1  # sound decodes fast enough; a thread per core for each upload does not pay
        )
        for frame in self._frames(container, stream):
            self._take(frame)
            if self._heard_s > self._max_seconds + PADDING_S:
                break
        self._parts.append(self._resampler.flush())

    def decoded(self) -> Decoded:
        """Raises BadReference where nothing, or next to nothing, could be heard."""
        samples = pcm.clip(np.concatenate(self._parts))  # a resampler overshoots at steep edges
        samples = samples[: round(self._max_seconds * self._rate_hz)]
        truncated = self._heard_s > self._max_seconds + PADDING_S
        rate_hz, channels = (self._like[0], self._channels) if self._like else (0, 0)
        clipped = self._mixer.clipped
        decoded = Decoded(samples, self._rate_hz, truncated, rate_hz, channels, clipped)
        if decoded.seconds >= MIN_SECONDS:
            return decoded
        if self._damaged or not self._heard_s:
            raise BadReference(f"`{self._what}` is damaged: no sound in it can be decoded.", param=self._what)
        raise BadReference(
            f"`{self._what}` is too short: {decoded.seconds:.2f} s of sound, and it needs at least {MIN_SECONDS:g} s.",
            param=self._what,
        )

    def _frames(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """Frames in order. A packet that does not decode is left out, as players do; a file may end anywhere."""
        packets = container.demux(stream)
        while True:
            self._check_time()
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file is cut off here, or goes on as something else
                self._damaged = True
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self._damaged = True

    def _take(self, frame: AudioFrame) -> None:
        like = (frame.sample_rate, frame.format.name, frame.layout.name)
        if like != self._like:  # AAC tells its true rate only here, and an Ogg may go on as something else
            self._like = like
            self._channels = frame.layout.nb_channels
            if not MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ:
                raise BadReference(
                    f"`{self._what}` has a sample rate of {frame.sample_rate} Hz; it must have {MIN_RATE_HZ} to "
                    f"{MAX_RATE_HZ} Hz.",
                    param=self._what,
                )
            self._parts.append(self._resampler.flush())
            self._mixer = _Mixer()
            self._resampler = StreamResampler(frame.sample_rate, self._rate_hz)
        samples = self._mixer.mono(frame)
        if self._to_leave_out_s > 0:
            self._to_leave_out_s -= len(samples) / frame.sample_rate
            return
        self._heard_s += len(samples) / frame.sample_rate
        # Clipped before the resampler: one NaN would stay in its filter.
        self._parts.append(self._resampler.push(pcm.clip(samples)))

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise BadReference(f"`{self._what}` takes too long to decode. Send a plainer file.", param=self._what)


class _Mixer:
    """Frames of one kind to mono.

    FFmpeg makes the samples float and packed, and never PyAV's `to_ndarray` on planes: with 8 planar channels or more
    that reads behind the list of planes and takes the process down (PyAV 18.1). The mean is ours: FFmpeg's own mix to
    mono is 3 dB louder than two equal channels, which clips.
    """

    def __init__(self) -> None:
        self._packer = av.AudioResampler(format="flt")
        self._all = self._full = self._top = 0
        self._peak = 0.0

    @property
    def clipped(self) -> float:
        """Share of the samples, of all channels, that lie in a row of three or more at full scale, or at the top."""
        return max(self._full, self._top) / max(1, self._all)

    def _count(self, sound: Samples) -> None:
        """sound (N, channels)."""
        self._all += sound.size
        level = np.abs(sound)
        peak = float(level.max(initial=0.0))
        if peak > self._peak * 1.0005:
            self._peak, self._top = peak, 0
        if peak >= FULL_SCALE:
            self._full += _in_rows(level >= FULL_SCALE)
        if peak >= max(0.05, self._peak * 0.9995):
            self._top += _in_rows(level >= self._peak * 0.9995)

    def mono(self, frame: AudioFrame) -> Samples:
        """(N,) float32."""
        packed = [part.to_ndarray().reshape(-1, part.layout.nb_channels) for part in self._packer.resample(frame)]
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number becomes 0 later
            parts = [sound.mean(axis=1, dtype=np.float32) for sound in packed]
            for sound in packed:
                self._count(np.asarray(sound, np.float32))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _in_rows(there: NDArray[np.bool_]) -> int:
    """How many of (N, channels) have a neighbour on both sides."""
    return int(np.count_nonzero(there[2:] & there[1:-1] & there[:-2]))
