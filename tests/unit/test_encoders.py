"""Tests every format with real decoders: FFmpeg through PyAV, and the standard library's `wave`."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import struct
import threading
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio import pcm
from app.audio.encoders import check_rate, open_encoder
from app.audio.formats import AUDIO_FORMATS, wav_header
from app.errors import UnsupportedParameter

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
OPUS = ("opus", "ogg")
LOSSLESS = ("wav", "pcm", "flac")
CODED = ("mp3", "opus", "aac", "flac")


def speechlike(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Return a signal like speech: harmonics with a gliding pitch, four syllables per second and a little noise; peaks
    near 0.6."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * (150 * t + 8 * np.sin(2 * np.pi * 0.7 * t))
    voice = sum(np.sin(k * phase) / k for k in range(1, 11) if 180 * k < rate_hz / 2)
    noise = np.random.default_rng(7).standard_normal(len(t))
    return (0.3 * voice * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * t)) + 0.005 * noise).astype(np.float32)


def encode(audio_format: str, samples: np.ndarray, rate_hz: int = RATE_HZ, chunk: int = 1920) -> bytes:
    with contextlib.closing(open_encoder(audio_format, rate_hz)) as encoder:
        parts = [encoder.encode(samples[i : i + chunk]) for i in range(0, len(samples), chunk)]
        return b"".join([*parts, encoder.flush()])


def decode(data: bytes, audio_format: str, rate_hz: int = RATE_HZ) -> tuple[np.ndarray, int]:
    """Return (N,) float32 samples and the rate; check for one mono stream. Raw PCM needs rate_hz."""
    options = {"sample_rate": str(rate_hz)} if audio_format == "pcm" else {}
    with av.open(io.BytesIO(data), format="s16le" if audio_format == "pcm" else None, options=options) as container:
        assert len(container.streams) == 1
        stream = container.streams.audio[0]
        assert stream.codec_context.layout.nb_channels == 1
        frames = [frame.to_ndarray() for frame in container.decode(stream)]
        out_hz = stream.rate
    if not frames:
        return np.zeros(0, np.float32), out_hz
    joined = np.concatenate([frame[0] for frame in frames])
    if joined.dtype == np.int16:
        return joined.astype(np.float32) / 32768, out_hz
    return joined.astype(np.float32), out_hz


def likeness(reference: np.ndarray, decoded: np.ndarray) -> tuple[float, int]:
    """Return the best normalised cross-correlation, and the delay in samples of `decoded` behind `reference`."""
    size = 1 << (len(reference) + len(decoded)).bit_length()
    product = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(reference, size))
    delay = int(np.argmax(np.fft.irfft(product, size)[: size // 2]))
    aligned = decoded[delay : delay + len(reference)]
    cut = reference[: len(aligned)]
    return float(cut @ aligned / np.sqrt((cut @ cut) * (aligned @ aligned))), delay


SPEECH = speechlike(1.5)


def test_media_types_are_those_of_the_api():
    assert {name: row.media_type for name, row in AUDIO_FORMATS.items()} == {
        "mp3": "audio/mpeg",
        "opus": "audio/opus",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
        "ogg": "audio/ogg",
        "m4a": "audio/mp4",
    }


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_encoded_audio_decodes_to_the_input(audio_format, rate_hz):
    sound = speechlike(1.0, rate_hz)
    decoded, decoded_hz = decode(encode(audio_format, sound, rate_hz), audio_format, rate_hz)
    assert decoded_hz == (48_000 if audio_format in OPUS else rate_hz)

    extra_s = len(decoded) / decoded_hz - len(sound) / rate_hz
    if audio_format in LOSSLESS:
        assert len(decoded) == len(sound)
        assert np.max(np.abs(decoded - sound)) <= 0.51 / 32768
        return
    if audio_format in OPUS:
        assert abs(extra_s) <= 0.001
        decoded = soxr.resample(decoded, 48_000, rate_hz)
    else:  # encoder delay and padding: up to 3 frames of 576 or 1152 samples in MP3, 2 frames of 1024 in AAC
        assert 0 <= extra_s <= 3 * 1152 / rate_hz
    alike, delay = likeness(sound, decoded)
    assert alike > 0.98
    assert delay <= {"mp3": 1105 + 60, "aac": 1024 + 128, "m4a": 1024 + 128}.get(audio_format, 8)


@pytest.mark.parametrize("rate_hz", [8_001, 11_025, 12_345, 32_000, 47_999])
def test_opus_resamples_unsupported_rates(rate_hz):
    sound = speechlike(1.0, rate_hz)
    decoded, decoded_hz = decode(encode("opus", sound, rate_hz), "opus")
    assert decoded_hz == 48_000
    assert abs(len(decoded) / 48_000 - len(sound) / rate_hz) <= 0.001
    alike, delay = likeness(soxr.resample(sound, rate_hz, 48_000), decoded)
    assert alike > 0.98
    assert delay <= 16


@pytest.mark.parametrize("rate_hz", [8_001, 12_345, 37_800])
@pytest.mark.parametrize("audio_format", ["wav", "flac", "pcm"])
def test_lossless_formats_accept_any_rate(audio_format, rate_hz):
    sound = speechlike(0.3, rate_hz)
    decoded, decoded_hz = decode(encode(audio_format, sound, rate_hz), audio_format, rate_hz)
    assert decoded_hz == rate_hz
    np.testing.assert_allclose(decoded, sound, atol=0.51 / 32768)


@pytest.mark.parametrize("audio_format", ["wav", "flac", "pcm"])
def test_lossless_formats_keep_noise(audio_format):
    noise = np.random.default_rng(1).normal(0, 0.05, 24_000).astype(np.float32)
    decoded, _ = decode(encode(audio_format, noise), audio_format)
    np.testing.assert_allclose(decoded, noise, atol=0.51 / 32768)


@pytest.mark.parametrize(
    ("audio_format", "rate_hz"),
    [("mp3", 23_999), ("aac", 9_000), ("aac", 96_000), ("mp3", 0), ("opus", 48_001), ("wav", 7_999), ("pcm", -1)],
)
def test_unsupported_rate_is_refused_with_a_message(audio_format, rate_hz):
    with pytest.raises(UnsupportedParameter) as caught:
        open_encoder(audio_format, rate_hz)
    assert caught.value.param == "sample_rate"
    assert str(rate_hz) in caught.value.message
    assert "48000" in caught.value.message
    assert audio_format in caught.value.message


def test_every_standard_rate_is_accepted():
    for audio_format in AUDIO_FORMATS:
        for rate_hz in (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
            check_rate(audio_format, rate_hz)
            data = encode(audio_format, speechlike(0.2, rate_hz), rate_hz)
            assert len(decode(data, audio_format, rate_hz)[0]) > 0


# --- the exact bytes ---


def test_mp3_is_bare_cbr_frames():
    data = encode("mp3", SPEECH)
    assert data[:2] == b"\xff\xf3"  # an MPEG-2 layer III frame without CRC, as api.openai.com sends
    for tag in (b"ID3", b"TAG", b"Xing", b"Info"):
        assert tag not in data
    assert len(data) % 384 == 0  # 128 kbit/s at 24 kHz: 576 samples = 24 ms = 384 bytes, no padding
    headers = {data[i : i + 3] for i in range(0, len(data), 384)}
    assert headers == {b"\xff\xf3\xc4"}


@pytest.mark.parametrize(("rate_hz", "bit_rate"), [(8_000, 64_000), (12_000, 64_000), (16_000, 128_000)])
def test_mp3_bit_rate_depends_on_the_sample_rate(rate_hz, bit_rate):
    data = encode("mp3", speechlike(1.0, rate_hz), rate_hz)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.audio[0].codec_context.bit_rate == bit_rate


def test_mp3_files_can_be_concatenated():
    first, second = encode("mp3", SPEECH), encode("mp3", SPEECH[::-1].copy())
    joined, _ = decode(first + second, "mp3")
    assert len(joined) == len(decode(first, "mp3")[0]) + len(decode(second, "mp3")[0])
    assert likeness(SPEECH, joined)[0] > 0.98
    assert likeness(SPEECH[::-1].copy(), joined[len(decode(first, "mp3")[0]) - 1000 :])[0] > 0.98


def ogg_pages(data: bytes) -> list[dict[str, int]]:
    pages, at = [], 0
    while at < len(data):
        magic, _, kind, granule, serial, number, _, segments = struct.unpack_from("<4sBBqIIIB", data, at)
        assert magic == b"OggS"
        size = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        pages.append({"kind": kind, "granule": granule, "serial": serial, "number": number, "size": size})
        at += size
    return pages


def test_opus_is_one_logical_stream_of_small_pages():
    data = encode("opus", SPEECH)
    pages = ogg_pages(data)
    assert [page["number"] for page in pages] == list(range(len(pages)))
    assert len({page["serial"] for page in pages}) == 1
    assert [page["kind"] & 2 for page in pages] == [2] + [0] * (len(pages) - 1)  # begins once
    assert [page["kind"] & 4 for page in pages] == [0] * (len(pages) - 1) + [4]  # ends once
    audio = [page["granule"] for page in pages[2:]]
    assert max(np.diff(audio)) == 960  # 20 ms at 48 kHz
    head = data[28 : 28 + 19]
    assert struct.unpack("<8sBBHIhB", head) == (b"OpusHead", 1, 1, 312, 24_000, 0, 0)
    assert audio[-1] == len(SPEECH) * 2 + 312  # the granule position is the exact end of the audio, without padding


def test_aac_has_adts_framing():
    data = encode("aac", SPEECH)
    assert data[:2] == b"\xff\xf1"
    at, frames = 0, 0
    while at < len(data):
        assert data[at : at + 2] == b"\xff\xf1"
        assert data[at + 2] >> 6 == 1  # AAC-LC
        assert (data[at + 2] >> 2) & 15 == 6  # 24 kHz
        assert ((data[at + 2] & 1) << 2 | data[at + 3] >> 6) == 1  # mono
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        frames += 1
    assert at == len(data)
    assert frames == 2 + (len(SPEECH) + 128) // 1024


def test_flac_header_marks_the_length_as_unknown():
    data = encode("flac", SPEECH)
    assert data[:8] == b"fLaC\x00\x00\x00\x22"
    info = data[8 : 8 + 34]
    # the smallest frame size is 0 = unknown; the largest one, info[7:10], is FFmpeg's upper bound
    assert info[4:7] == bytes(3)
    rate_channels_bits_total = int.from_bytes(info[10:18], "big")
    assert rate_channels_bits_total >> 44 == RATE_HZ
    assert (rate_channels_bits_total >> 41) & 7 == 0  # one channel
    assert (rate_channels_bits_total >> 36) & 31 == 15  # 16 bits
    assert rate_channels_bits_total & ((1 << 36) - 1) == 0  # the field for the total number of samples is 0 = unknown
    assert data.index(b"\xff\xf8") < 100  # the first frame follows without a padding block


def test_wav_header_is_exact():
    header = wav_header(RATE_HZ)
    assert header == bytes.fromhex(
        "52494646 ffffffff 57415645"  # the chunk names RIFF and WAVE with the size between them
        "666d7420 10000000 0100 0100 c05d0000 80bb0000 0200 1000"  # fmt: PCM, mono, 24000, 48000 bytes/s, 2, 16
        "64617461 ffffffff"  # data, size
    )
    assert len(header) == 44
    data = encode("wav", SPEECH)
    assert data[:44] == header
    assert data[44:] == pcm.to_bytes(SPEECH)  # the file ends after the samples
    with wave.open(io.BytesIO(data)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, RATE_HZ)
        assert reader.readframes(len(SPEECH) + 100) == pcm.to_bytes(SPEECH)


def test_pcm_has_no_header():
    assert encode("pcm", SPEECH) == pcm.to_bytes(SPEECH)


# --- streaming ---


@pytest.mark.parametrize(
    ("audio_format", "first_bytes_ms", "sound_after_80_ms", "sound_after_160_ms"),
    [
        # FLAC sends its header first, and then blocks of 24 ms
        *(("wav", 1, 80, 160), ("pcm", 1, 80, 160), ("flac", 1, 72, 144)),
        # Opus sends its header first, and then pages of 20 ms
        *(("opus", 1, 53, 133), ("mp3", 48, 48, 120), ("aac", 80, 42, 85)),
    ],
)
def test_first_bytes_have_low_latency(audio_format, first_bytes_ms, sound_after_80_ms, sound_after_160_ms):
    """Times are in ms of input at 24 kHz and include codec priming."""
    encoder = open_encoder(audio_format, RATE_HZ)
    fed, data = 0, b""
    while not data:
        data = encoder.encode(SPEECH[fed : fed + 24])
        fed += 24
    assert fed / 24 <= first_bytes_ms

    encoder = open_encoder(audio_format, RATE_HZ)
    data = b""
    for start, expected_ms in ((0, sound_after_80_ms), (1920, sound_after_160_ms)):
        data += encoder.encode(SPEECH[start : start + 1920])
        if audio_format == "aac":  # FFmpeg does not detect AAC from a single ADTS frame, but can decode it
            decoder = av.CodecContext.create("aac", "r")
            packets = [*decoder.parse(data), *decoder.parse(None)]
            decoded_hz, frames = RATE_HZ, [frame for packet in packets for frame in decoder.decode(packet)]
            decoded_samples = sum(frame.samples for frame in frames)
        else:
            decoded, decoded_hz = decode(data, audio_format)
            decoded_samples = len(decoded)
        assert decoded_samples * 1000 / decoded_hz >= expected_ms


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 24_000), max_size=8), audio_format=st.sampled_from(list(AUDIO_FORMATS)))
def test_chunk_boundaries_do_not_change_the_output(cuts, audio_format):
    sound = SPEECH[:24_000]
    encoder = open_encoder(audio_format, 22_050)
    edges = [0, *sorted(cuts), len(sound)]
    parts = [encoder.encode(sound[a:b]) for a, b in itertools.pairwise(edges)]
    assert b"".join([*parts, encoder.flush()]) == encode(audio_format, sound, 22_050, chunk=len(sound))


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_feeding_single_samples_gives_the_same_output(audio_format):
    assert encode(audio_format, SPEECH[:3000], chunk=1) == encode(audio_format, SPEECH[:3000], chunk=3000)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_no_samples_give_an_empty_file(audio_format):
    encoder = open_encoder(audio_format, RATE_HZ)
    assert encoder.encode(SPEECH[:0]) == b""
    data = encoder.flush()
    assert data == (wav_header(RATE_HZ) if audio_format == "wav" else b"")
    if audio_format == "wav":
        with wave.open(io.BytesIO(data)) as reader:
            assert reader.readframes(10) == b""


@pytest.mark.parametrize("count", [1, 2, 575, 577, 1025])
@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_very_short_audio_can_be_decoded(audio_format, count):
    decoded, decoded_hz = decode(encode(audio_format, SPEECH[:count]), audio_format)
    assert len(decoded) / decoded_hz >= count / RATE_HZ
    if audio_format in LOSSLESS:
        assert len(decoded) == count


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_ended_encoder_raises_an_error(audio_format):
    for end in ("flush", "close"):
        encoder = open_encoder(audio_format, RATE_HZ)
        encoder.encode(SPEECH[:5000])
        getattr(encoder, end)()
        assert encoder.flush() == b""
        encoder.close()
        with pytest.raises(ValueError, match="ended"):
            encoder.encode(SPEECH[:10])


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_clipped_nan_and_inf_samples_give_finite_audio(audio_format):
    loud = 4 * SPEECH[:12_000]
    assert encode(audio_format, loud, 22_050) == encode(audio_format, np.clip(loud, -1, 1), 22_050)
    broken = SPEECH[:12_000].copy()
    broken[100:110] = np.nan
    broken[200], broken[201] = np.inf, -np.inf
    decoded, _ = decode(encode(audio_format, broken, 22_050), audio_format)
    assert np.isfinite(decoded).all()
    assert np.max(np.abs(decoded)) < 1.3


def test_parallel_encoders_give_the_same_output():
    alone = {audio_format: encode(audio_format, SPEECH) for audio_format in AUDIO_FORMATS}
    together: list[tuple[str, bytes]] = []

    def work() -> None:
        for audio_format in AUDIO_FORMATS:
            together.extend((audio_format, encode(audio_format, SPEECH)) for _ in range(2))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 4 * len(AUDIO_FORMATS)
    assert all(data == alone[audio_format] for audio_format, data in together)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("ending", ["flush", "close", "dropped"])
def test_memory_does_not_grow(ending):
    """The test creates 150 encoders for each format.

    The garbage collector is off, so that objects are freed in a fixed order.
    """

    def use(audio_format: str) -> None:
        encoder = open_encoder(audio_format, RATE_HZ)
        encoder.encode(SPEECH[:1920])
        if ending != "dropped":
            getattr(encoder, ending)()

    def round_of(count: int) -> None:
        for audio_format in CODED:
            for _ in range(count):
                use(audio_format)

    gc.collect()
    gc.disable()
    try:
        round_of(40)
        before = resident_bytes()
        round_of(150)
        grown = resident_bytes() - before
    finally:
        gc.enable()
    assert grown < 8_000_000  # if each encoder leaked, the process would grow by over 1 GB, mainly by FLAC
