"""Faults of uploaded recordings: channels that cancel each other, silent tracks, floats above full scale, lost
indexes."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from app.audio import decode as decoding
from app.audio.decode import decode
from app.audio.sandbox import decode_in_sandbox
from app.errors import BadReference
from tests.support import samples

pytestmark = pytest.mark.unit

RATE_HZ = 44_100
LEFT_HZ, RIGHT_HZ = 440.0, 1_000.0


def tone(hertz: float = LEFT_HZ, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def share(sound: np.ndarray, hertz: float) -> float:
    """Return the share of the energy within 20 Hz of a frequency."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(sound), 1 / RATE_HZ) - hertz) < 20
    return float(spectrum[near].sum() / max(1e-12, spectrum.sum()))


def tracks(sounds: list[np.ndarray], container: str = "mp4", default: int | None = None) -> bytes:
    """Return a file with one track for each mono sound."""
    file = io.BytesIO()
    codec = "aac" if container == "mp4" else "pcm_s16le"
    with av.open(file, "w", format=container) as out:
        streams = [out.add_stream(codec, rate=RATE_HZ, layout="mono") for _ in sounds]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for stream, sound in zip(streams, sounds, strict=True):
            packer = av.AudioResampler(
                format=stream.codec_context.format, layout="mono", rate=RATE_HZ, frame_size=stream.frame_size or 1024
            )
            frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
            for piece in [*packer.resample(frame), *packer.resample(None)]:
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
    return file.getvalue()


# ---- channels


@pytest.mark.parametrize("balance", [1.0, 0.9, 0.8])
def test_inverted_channel_does_not_cancel_the_voice(balance):
    speech = samples.speech(samples.WORDS[:1])
    stereo = np.stack([speech, -np.float32(balance) * speech])
    decoded = decode(samples.file(stereo, layout="stereo"), RATE_HZ, max_seconds=60)
    assert decoded.channels == 2
    assert np.abs(decoded.samples - speech).max() < 1e-3


def test_louder_one_of_two_cancelling_channels_is_used():
    speech = samples.speech(samples.WORDS[:1])
    stereo = np.stack([0.7 * speech, -speech])
    decoded = decode(samples.file(stereo, layout="stereo"), RATE_HZ, max_seconds=60)
    assert np.abs(decoded.samples + speech).max() < 1e-3


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_channels_that_do_not_cancel_are_averaged(right):
    left = tone()
    decoded = decode(samples.file(np.stack([left, np.float32(right) * left]), layout="stereo"), RATE_HZ, max_seconds=5)
    assert decoded.samples == pytest.approx(left * (1 + right) / 2, abs=1e-3)


def test_different_sounds_in_two_channels_are_averaged():
    stereo = np.stack([tone(LEFT_HZ), tone(RIGHT_HZ)])
    decoded = decode(samples.file(stereo, layout="stereo"), RATE_HZ, max_seconds=5)
    assert share(decoded.samples, LEFT_HZ) == pytest.approx(0.5, abs=0.02)


def test_sandbox_uses_the_louder_channel_too():
    speech = samples.speech(samples.WORDS[:1])
    file = samples.file(np.stack([speech, -speech]), layout="stereo")
    assert np.abs(decode_in_sandbox(file, RATE_HZ, max_seconds=60).samples - speech).max() < 1e-3


# ---- tracks


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_silent_first_track_is_skipped(container):
    silent = np.zeros(RATE_HZ, np.float32)
    for sounds in ([silent, tone()], [silent, silent, tone()]):
        decoded = decode(tracks(sounds, container), RATE_HZ, max_seconds=5)
        assert share(decoded.samples, LEFT_HZ) > 0.95


def test_default_track_is_used_before_the_first_one():
    file = tracks([tone(LEFT_HZ), tone(RIGHT_HZ)], "matroska", default=1)
    assert share(decode(file, RATE_HZ, max_seconds=5).samples, RIGHT_HZ) > 0.95


def test_first_audible_track_is_used_if_the_default_one_is_silent():
    silent = np.zeros(RATE_HZ, np.float32)
    file = tracks([tone(LEFT_HZ), silent, tone(RIGHT_HZ)], "matroska", default=1)
    assert share(decode(file, RATE_HZ, max_seconds=5).samples, LEFT_HZ) > 0.95


def test_file_of_silent_tracks_is_decoded_as_silence():
    silent = np.zeros(RATE_HZ, np.float32)
    decoded = decode(tracks([silent, silent], "matroska"), RATE_HZ, max_seconds=5)
    assert (decoded.seconds, float(np.abs(decoded.samples).max())) == (1.0, 0.0)


# ---- 32-bit float


@pytest.mark.parametrize("peak", [1.2, 2.0, 8.0, 32_767.0])
def test_float_samples_above_full_scale_are_scaled(peak):
    speech = samples.speech(samples.WORDS[:1])
    speech /= np.abs(speech).max()
    decoded = decode(samples.file(speech * np.float32(peak), codec="pcm_f32le"), RATE_HZ, max_seconds=60)
    assert np.abs(decoded.samples - speech).max() < 1e-3
    assert decoded.clipped < 0.001


def test_float_samples_within_full_scale_are_unchanged():
    speech = samples.speech(samples.WORDS[:1])
    decoded = decode(samples.file(speech, codec="pcm_f32le"), RATE_HZ, max_seconds=60)
    assert (decoded.samples == speech).all()


def test_one_extremely_large_sample_does_not_silence_the_rest():
    sound = tone()
    sound[1_000], sound[2_000] = 1e30, np.inf
    decoded = decode(samples.file(sound, codec="pcm_f32le"), RATE_HZ, max_seconds=5)
    assert np.abs(decoded.samples[5_000:]).max() > 0.2


def test_float_recording_that_was_clipped_is_reported_as_clipped():
    clipped = np.clip(3 * tone(level=1.0), -2.0, 2.0)
    assert decode(samples.file(clipped, codec="pcm_f32le"), RATE_HZ, max_seconds=5).clipped > 0.1


# ---- files that are cut off


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_mp4_without_its_end_is_reported_as_cut_off(kept):
    file = samples.file(samples.speech(), "mp4")
    with pytest.raises(BadReference, match="cut off"):
        decode(file[: round(kept * len(file))], RATE_HZ, max_seconds=60)


def test_file_of_another_kind_is_not_reported_as_cut_off():
    file = samples.file(samples.speech(), "mp4")
    for data in (b"no audio at all", file[:4] + b"free" + file[8:200]):
        with pytest.raises(BadReference) as caught:
            decode(data, RATE_HZ, max_seconds=60)
        assert "cut off" not in caught.value.message


@pytest.mark.parametrize(
    ("data", "lacking"),
    [
        (b"\0\0\0\x08ftyp", True),
        (b"\0\0\0\x08ftyp\0\0\0\0mdat", True),
        (b"\0\0\0\x08ftyp\0\0\0\x01mdat" + (40).to_bytes(8, "big") + b"x" * 100, True),
        (b"\0\0\0\x08ftyp\0\0\0\x10moov12345678", False),
        (b"\0\0\0\x08ftyp\0\0\0\x10moov123", True),
        (b"RIFF", False),
        (b"", False),
    ],
)
def test_index_of_an_mp4_is_looked_for_in_its_boxes(data, lacking):
    assert decoding._lacks_index(data) is lacking
