"""Decoding of uploads: common formats are decoded correctly, everything else is refused quickly."""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.audio import decode as decoding
from app.audio.decode import (
    _CODECS,
    _GUARD,
    _MEMORY_BOUND,
    MAX_ALLOCATION_BYTES,
    MIN_SECONDS,
    MORE_FORMATS,
    PLAIN_FORMATS,
    Decoded,
    decode,
)
from app.errors import BadReference
from tests.support.growth import cpu_s, order

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
LOW_HZ, HIGH_HZ = 440.0, 1320.0  # tones in the first half and in the second half of each file


@dataclass(frozen=True)
class Kind:
    """How PyAV writes one file format. spare_s: how much longer than its input the decoded audio may be."""

    container: str
    codec: str
    rate_hz: int
    layout: str = "mono"
    options: dict[str, str] = field(default_factory=dict)
    spare_s: float = 0.001

    def __str__(self) -> str:
        return f"{self.container} {self.codec} {self.rate_hz} {self.layout}"


KINDS = (
    Kind("wav", "pcm_s16le", 24_000),
    Kind("wav", "pcm_s16le", 44_100, "stereo"),
    Kind("wav", "pcm_u8", 11_025),
    Kind("wav", "pcm_s24le", 48_000, "stereo"),
    Kind("wav", "pcm_s32le", 96_000),
    Kind("wav", "pcm_f32le", 44_100),
    Kind("wav", "pcm_f64le", 16_000, "stereo"),
    Kind("wav", "pcm_mulaw", 8_000),
    Kind("wav", "pcm_alaw", 8_000),
    Kind("wav", "adpcm_ms", 22_050, spare_s=0.1),
    Kind("wav", "pcm_f32le", 48_000, "7.1"),
    Kind("w64", "pcm_s16le", 16_000),
    Kind("mp3", "libmp3lame", 44_100, "stereo"),
    Kind("mp3", "libmp3lame", 16_000, options={"write_xing": "0"}, spare_s=0.12),
    Kind("ogg", "vorbis", 44_100, "stereo", {"strict": "-2"}, spare_s=0.05),
    Kind("ogg", "libopus", 48_000),
    Kind("flac", "flac", 48_000, "stereo"),
    Kind("ogg", "flac", 24_000),
    Kind("ipod", "aac", 44_100, "stereo", spare_s=0.03),
    Kind("mp4", "aac", 16_000, spare_s=0.07),
    Kind("mp4", "aac", 48_000, "7.1", spare_s=0.03),
    Kind("3gp", "aac", 24_000, spare_s=0.05),
    Kind("ipod", "alac", 48_000),
    Kind("webm", "libopus", 48_000, "stereo"),
    Kind("webm", "libopus", 48_000, "7.1"),
    Kind("matroska", "pcm_s16le", 24_000),
    Kind("adts", "aac", 22_050, spare_s=0.1),
    Kind("aiff", "pcm_s16be", 44_100, "stereo"),
    Kind("amr", "libopencore_amrnb", 8_000, spare_s=0.03),
    Kind("caf", "pcm_s16le", 22_050),
    Kind("ac3", "ac3", 48_000, "stereo", spare_s=0.03),
)


def tones(rate_hz: int, seconds: float) -> np.ndarray:
    """Return (N,) float32: half at LOW_HZ, half at HIGH_HZ, peak 0.4."""
    at = np.arange(round(rate_hz * seconds)) / rate_hz
    hz = np.where(at < seconds / 2, LOW_HZ, HIGH_HZ)
    return (0.4 * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def made(kind: Kind, seconds: float = 2.0, samples: np.ndarray | None = None) -> bytes:
    """Return a file of this format with the same samples in each channel."""
    samples = tones(kind.rate_hz, seconds) if samples is None else samples
    file = io.BytesIO()
    with av.open(file, "w", format=kind.container, options=kind.options) as container:
        stream = container.add_stream(kind.codec, rate=kind.rate_hz, layout=kind.layout, options=kind.options)
        codec = stream.codec_context
        channels = codec.layout.nb_channels
        packed = np.ascontiguousarray(np.repeat(samples, channels))[None]  # (1, N * channels)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=kind.layout)
        frame.sample_rate, frame.time_base, frame.pts = kind.rate_hz, Fraction(1, kind.rate_hz), 0
        packer = av.AudioResampler(format=codec.format, layout=kind.layout, rate=kind.rate_hz)
        fifo = av.AudioFifo()
        for part in [*packer.resample(frame), *packer.resample(None)]:
            fifo.write(part)
        while fifo.samples:
            for packet in stream.encode(fifo.read(codec.frame_size or 1024, partial=True)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()


def wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """Build a float32 WAV file by hand, because FFmpeg does not write every value."""
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<HHIIHH", 3, 1, rate_hz, 4 * rate_hz & 0xFFFFFFFF, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def share(samples: np.ndarray, frequency_hz: float) -> float:
    """Return the share of the energy within 20 Hz of frequency_hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(samples), 1 / RATE_HZ) - frequency_hz) < 20
    return float(spectrum[near].sum() / spectrum.sum())


def refused(data: bytes, *, max_seconds: float = 60.0, **limits: float) -> BadReference:
    with pytest.raises(BadReference) as caught:
        decode(data, RATE_HZ, max_seconds=max_seconds, what="context.3.audio", **limits)
    assert caught.value.param == "context.3.audio"
    assert "context.3.audio" in caught.value.message
    return caught.value


# ---- decoded audio


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_file_format_is_decoded_correctly(kind: Kind) -> None:
    decoded = decode(made(kind), RATE_HZ, max_seconds=60.0)
    assert decoded.rate_hz == RATE_HZ
    assert decoded.samples.dtype == np.float32
    assert decoded.samples.ndim == 1
    assert not decoded.truncated
    assert 2.0 - 0.001 <= decoded.seconds <= 2.0 + kind.spare_s
    first, second = decoded.samples[2_400:21_600], decoded.samples[27_600:45_600]
    assert share(first, LOW_HZ) > 0.95
    assert share(second, HIGH_HZ) > 0.95
    # PyAV does the upmix to stereo or 7.1, so loudness is checked for mono only.
    if kind.layout == "mono":
        assert np.sqrt(np.mean(first**2)) == pytest.approx(
            0.4 / np.sqrt(2), rel=0.2 if kind.container == "amr" else 0.05
        )


@pytest.mark.parametrize("to_hz", [8_000, 16_000, 44_100, 48_000])
def test_audio_is_resampled_to_the_requested_rate(to_hz: int) -> None:
    decoded = decode(made(KINDS[1]), to_hz, max_seconds=60.0)
    assert len(decoded.samples) == 2 * to_hz


def test_audio_in_the_target_format_is_unchanged() -> None:
    samples = tones(RATE_HZ, 0.5)
    assert (decode(wav(samples, RATE_HZ), RATE_HZ, max_seconds=1.0).samples == samples).all()


def test_channels_are_averaged() -> None:
    """FFmpeg's own mix would clip two equal loud channels."""
    loud = (0.9 * np.sign(tones(RATE_HZ, 0.5))).astype(np.float32)
    decoded = decode(made(Kind("wav", "pcm_f32le", RATE_HZ, "stereo"), samples=loud), RATE_HZ, max_seconds=1.0)
    assert decoded.samples == pytest.approx(loud, abs=1e-6)


def test_nan_and_inf_samples_are_replaced() -> None:
    samples = tones(48_000, 1.0)
    samples[1000:1010] = np.nan
    samples[2000:2010] = np.inf
    samples[3000:3010] = -1e38
    decoded = decode(wav(samples, 48_000), RATE_HZ, max_seconds=2.0)
    assert np.isfinite(decoded.samples).all()
    assert np.abs(decoded.samples).max() <= 1.0
    assert share(decoded.samples[4_000:11_000], LOW_HZ) > 0.95


def test_only_the_first_audio_stream_is_decoded() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono") for _ in range(2)]
        for stream, hz in zip(streams, (LOW_HZ, HIGH_HZ), strict=True):
            sound = np.sin(2 * np.pi * hz * np.arange(RATE_HZ) / RATE_HZ) * 12_000
            frame = av.AudioFrame.from_ndarray(sound.astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    decoded = decode(file.getvalue(), RATE_HZ, max_seconds=2.0)
    assert decoded.seconds == 1.0
    assert share(decoded.samples, LOW_HZ) > 0.99


def test_chained_ogg_files_may_change_the_rate() -> None:
    parts = made(Kind("ogg", "flac", 16_000), 1.0) + made(Kind("ogg", "flac", 48_000), 1.0)
    decoded = decode(parts, RATE_HZ, max_seconds=10.0)
    assert 1.0 <= decoded.seconds <= 2.01  # FFmpeg may or may not find the second stream


# ---- length limits


def test_decoding_stops_at_max_seconds() -> None:
    data = made(KINDS[0], 5.0)
    cut = decode(data, RATE_HZ, max_seconds=2.0)
    assert cut.truncated
    assert len(cut.samples) == 2 * RATE_HZ
    whole = decode(data, RATE_HZ, max_seconds=5.0)
    assert not whole.truncated
    assert (whole.samples[: len(cut.samples)] == cut.samples).all()


def test_codec_padding_does_not_count_as_truncated() -> None:
    decoded = decode(made(Kind("adts", "aac", 22_050), 2.0), RATE_HZ, max_seconds=2.0)
    assert not decoded.truncated
    assert decoded.seconds == 2.0


def test_too_short_recording_is_refused() -> None:
    assert "too short" in refused(wav(tones(RATE_HZ, MIN_SECONDS - 0.01), RATE_HZ)).message
    assert decode(wav(tones(RATE_HZ, MIN_SECONDS), RATE_HZ), RATE_HZ, max_seconds=1.0).seconds == MIN_SECONDS


# ---- invalid files


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\0" * 5000,
        b"<html><body>" + b"Not found. " * 500,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 500,
        b"%PDF-1.7\n" + b"\xff" * 500,
        b"PK\x03\x04" + b"\0" * 500,
        b"RIFF\xff\xff\xff\xffWAVE",
        b"ID3\x04\0\0\0\0\0\0",
        b"OggS\0\2" + b"\0" * 60,
        b"fLaC" + b"\0" * 60,
    ],
)
def test_non_audio_files_are_refused_quickly(data: bytes) -> None:
    assert cpu_s(lambda: refused(data)) < minutes_s()


def test_empty_file_is_refused() -> None:
    assert "empty" in refused(b"").message


def test_video_without_audio_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        for packet in [*stream.encode(picture), *stream.encode(None)]:
            container.mux(packet)
    assert "no audio stream" in refused(file.getvalue()).message


def test_unsupported_codec_is_refused() -> None:
    assert "tta" in refused(made(Kind("matroska", "tta", 48_000, "stereo"))).message


@pytest.mark.parametrize("rate_hz", [1, 3_999, 384_001, 2**31 - 1])
def test_unsupported_sample_rates_are_refused(rate_hz: int) -> None:
    refused(wav(np.zeros(20_000, np.float32), rate_hz))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_truncated_file_is_decoded_in_part_or_refused(kind: Kind) -> None:
    data = made(kind)
    for part in (0.01, 0.1, 0.5, 0.9, 0.999):
        try:
            decoded = decode(data[: int(len(data) * part)], RATE_HZ, max_seconds=60.0)
        except BadReference:
            continue
        assert decoded.seconds <= 2.1


def test_damaged_packet_is_skipped() -> None:
    data = bytearray(made(Kind("flac", "flac", RATE_HZ), 4.0))
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff" * 40
    decoded = decode(bytes(data), RATE_HZ, max_seconds=60.0)
    assert 3.0 < decoded.seconds <= 4.0


def test_damage_in_the_first_tenth_of_a_second_is_reported_as_damage() -> None:
    """The first packet can be decoded and contains 0.096 s. The error must say "damaged" and not "too short"."""
    data = bytearray(made(Kind("matroska", "flac", 48_000), 0.4))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]
    for packet in packets[1:]:
        at = data.index(packet)
        data[at : at + len(packet)] = b"\xff" * len(packet)
    assert "is damaged" in refused(bytes(data)).message


def test_file_without_samples_is_reported_as_damaged() -> None:
    assert "is damaged" in refused(wav(np.zeros(0, np.float32), RATE_HZ)).message


# ---- attacks


def test_ffmpeg_gets_only_the_listed_codecs_formats_and_limits() -> None:
    """Each entry gives attackers more code to reach, so this test repeats the list."""
    lossy = "aac aac_latm ac3 amrnb amrwb eac3 gsm gsm_ms libopus mp1float mp2float mp3 mp3float opus vorbis"
    lossy += " wmapro wmav1 wmav2"
    lossless = "adpcm_ima_qt adpcm_ima_wav adpcm_ms alac flac pcm_alaw pcm_f32be pcm_f32le pcm_f64be pcm_f64le"
    lossless += " pcm_mulaw pcm_s16be pcm_s16le pcm_s24be pcm_s24le pcm_s32be pcm_s32le pcm_s8 pcm_u8 wavpack"
    assert sorted(_CODECS) == sorted([*lossy.split(), *lossless.split()])
    options = dict(_GUARD)
    assert options.pop("codec_whitelist").split(",") == list(_CODECS)
    assert options == {
        "protocol_whitelist": "none",
        "max_streams": "16",
        "probesize": "5000000",
        "analyzeduration": "10000000",
    }
    plain = ["wav", "w64", "mp3", "ogg", "flac", "mov", "matroska", "aac", "aiff", "amr", "asf", "caf", "ac3"]
    assert PLAIN_FORMATS.split(",") == plain
    assert MORE_FORMATS.split(",") == [*plain, "avi", "mpegts", "mpeg", "flv", "au", "wv", "eac3"]


SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio %d RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.wav"
    path.write_bytes(made(KINDS[0]))
    return path


def test_sdp_file_opens_no_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started_s = time.monotonic()
    refused(SDP % port)
    assert time.monotonic() - started_s < 3  # without the time limit, FFmpeg would listen for 6 s


def test_playlist_files_cannot_read_local_files(secret: Path) -> None:
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {secret}\n",
        f"ffconcat version 1.0\nfile 'file:{secret}'\n",
        f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
        f'mimeType="audio/wav"><Representation id="1"><BaseURL>{secret}</BaseURL></Representation></AdaptationSet>'
        f"</Period></MPD>",
        f"{secret}",
    ):
        refused(text.encode())


@functools.cache
def minutes_s() -> float:
    """Return the CPU time of decoding ten minutes of audio here. Files without audio must cost less."""
    data = bomb(Kind("flac", "flac", 48_000), 10 / 60)
    return cpu_s(lambda: decode(data, RATE_HZ, max_seconds=600.0, time_limit_s=600.0))


@contextlib.contextmanager
def grown_mb() -> Iterator[Callable[[], float]]:
    """Yield a function that returns how much the block raised the peak memory."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the memory use
    before_mb = _peak_mb()
    yield lambda: _peak_mb() - before_mb


def _peak_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def bomb(kind: Kind, hours: float) -> bytes:
    """Return a file with hours of silence: one encoded packet, repeated."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind.container) as container:
        stream = container.add_stream(kind.codec, rate=kind.rate_hz, layout=kind.layout, options=kind.options)
        container.start_encoding()
        codec = stream.codec_context
        frame = av.AudioFrame(format=codec.format.name, layout=kind.layout, samples=codec.frame_size)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.sample_rate, frame.time_base, frame.pts = kind.rate_hz, Fraction(1, kind.rate_hz), 0
        silence = bytes([*stream.encode(frame), *stream.encode(None)][0])
        for index in range(int(hours * 3600 * kind.rate_hz / codec.frame_size)):
            packet = av.Packet(silence)
            packet.stream, packet.time_base = stream, Fraction(1, kind.rate_hz)
            packet.pts = packet.dts = index * codec.frame_size
            packet.duration = codec.frame_size
            container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "hours"),
    [
        (Kind("flac", "flac", 48_000, "7.1"), 10.0),
        (Kind("ogg", "libopus", 48_000, options={"frame_duration": "60"}), 10.0),
    ],
    ids=str,
)
def test_decompression_bomb_stops_at_max_seconds(kind: Kind, hours: float) -> None:
    data = bomb(kind, hours)
    decode(data, RATE_HZ, max_seconds=1.0)
    with grown_mb() as grown:
        decoded = decode(data, RATE_HZ, max_seconds=60.0)
    assert grown() < 60
    shorter = bomb(kind, hours / 10)
    small, large = (functools.partial(decode, each, RATE_HZ, max_seconds=60.0) for each in (shorter, data))
    assert order(small, large, 10, 0.5) <= 0.5  # a file ten times as long costs about the same time
    assert decoded.truncated
    assert decoded.seconds == 60.0


def test_file_that_exceeds_the_time_limit_is_refused() -> None:
    data = bomb(Kind("flac", "flac", 48_000), 0.5)
    whole_s = cpu_s(lambda: decode(data, RATE_HZ, max_seconds=36_000.0, time_limit_s=600.0))
    limit_s = whole_s / 10
    refusals: list[str] = []
    used_s = cpu_s(lambda: refusals.append(refused(data, max_seconds=36_000.0, time_limit_s=limit_s).message))
    assert "too long" in refusals[0]
    assert used_s < whole_s / 2


def test_false_chunk_size_allocates_no_memory() -> None:
    """Without a limit FFmpeg would allocate the claimed size before it reads the 200 bytes."""
    info = b"LIST" + struct.pack("<I", 0x80000010) + b"INFO" + b"ISFT" + struct.pack("<I", 0x40000000) + b"x"
    data = b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + info + b"\0" * 100
    with grown_mb() as grown:
        refused(data)
    assert grown() < 100


def has_room(size_bytes: int = 2 * MAX_ALLOCATION_BYTES) -> bool:
    """Return whether FFmpeg can allocate a frame of this size in this process."""
    try:
        av.AudioFrame(format="flt", layout="mono", samples=size_bytes // 4)
    except MemoryError:
        return False
    return True


def test_allocation_limit_is_lifted_after_decoding() -> None:
    """FFmpeg keeps the limit per process: encoders and filters in the same process must not inherit it."""
    decode(made(Kind("wav", "pcm_s16le", 44_100)), RATE_HZ, max_seconds=60.0)
    assert has_room()
    refused(b"no sound")
    assert has_room()


def test_allocation_limit_holds_until_the_last_decoding_ends() -> None:
    with _MEMORY_BOUND:
        with _MEMORY_BOUND:
            assert not has_room()
        assert not has_room()
        assert has_room(MAX_ALLOCATION_BYTES // 2)
    assert has_room()


def test_allocation_limit_holds_for_a_thread_that_enters_while_another_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a lock the leaving thread would lift the limit that the entering thread has just set."""
    set_limit, leaving, entered, checked = decoding._limit_allocations, *(threading.Event() for _ in range(3))
    room: list[bool] = []

    def slow_limit(size_bytes: int) -> None:
        if size_bytes > MAX_ALLOCATION_BYTES and not leaving.is_set():
            leaving.set()
            entered.wait(0.3)  # the wait times out if the lock keeps the other thread outside
        set_limit(size_bytes)

    def enter() -> None:
        leaving.wait()
        with _MEMORY_BOUND:
            entered.set()
            checked.wait()
            room.append(has_room())

    monkeypatch.setattr(decoding, "_limit_allocations", slow_limit)
    other = threading.Thread(target=enter)
    other.start()
    with _MEMORY_BOUND:
        pass
    entered.wait()
    checked.set()
    other.join()
    assert room == [False]
    assert has_room()


@pytest.mark.parametrize("count", [2_000_000, 100_000_000, 2_000_000_000])
def test_false_index_length_is_refused_cheaply(count: int) -> None:
    data = bytearray(made(Kind("ipod", "aac", 44_100), 1.0))
    for name, words in ((b"stsz", (300, count)), (b"stsc", (1, 1, count, 1)), (b"stts", (1, count, 1024))):
        at = data.index(name) + 8
        data[at : at + 4 * len(words)] = struct.pack(f">{len(words)}I", *words)
    with grown_mb() as grown:
        refused(bytes(data))
    assert grown() < 200
    assert cpu_s(lambda: refused(bytes(data))) < minutes_s()


# ---- random bytes


def decoded_or_refused(data: bytes) -> None:
    try:
        decoded = decode(data, RATE_HZ, max_seconds=5.0)
    except BadReference:
        return
    assert isinstance(decoded, Decoded)
    assert decoded.samples.dtype == np.float32
    assert MIN_SECONDS <= decoded.seconds <= 5.0
    assert np.isfinite(decoded.samples).all()
    assert np.abs(decoded.samples).max() <= 1.0


HEADS = (
    *(b"", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"OggS\0\2", b"fLaC\0\0\0\x22", b"ID3\4", b"\xff\xfb\x90", b"\xff\xf1\x50"),
    *(b"\0\0\0\x20ftypM4A ", b"\x1a\x45\xdf\xa3", b"#!AMR\n", b"FORM\0\1\0\0AIFF", b"caff\0\1\0\0", b"\x0b\x77"),
)


@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=2000))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused_or_decoded(head: bytes, tail: bytes) -> None:
    decoded_or_refused(head + tail)


@functools.cache
def small(number: int) -> bytes:
    """Return a short file of KINDS[number]."""
    return made(KINDS[number], 0.3)


@given(
    number=st.integers(0, len(KINDS) - 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=20),
    head=st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
def test_corrupted_files_are_refused_or_decoded(number: int, changes: list[tuple[float, bytes]], head: bool) -> None:
    data = small(number)
    broken = bytearray(data)
    for place, wrong in changes:
        at = int(place * (min(300, len(data)) if head else len(data)))
        broken[at : at + len(wrong)] = wrong
    decoded_or_refused(bytes(broken))
