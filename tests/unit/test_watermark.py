"""The watermark is detected after audio processing, absent in unmarked audio, and equal to the watermark of Perth."""

from __future__ import annotations

import importlib
import logging
import sys
import types

import numpy as np
import pytest
import soxr
import torch

from app.audio import watermark
from app.audio.decode import decode
from app.audio.encoders import open_encoder
from app.audio.stretch import StreamStretcher
from app.audio.watermark import DETECT_RATE_HZ, FOUND, REACH, Perth, StreamMarker, Watermark, WatermarkMissing
from app.engines.espeak import TIMBRES, Library
from app.types import Voice
from app.voices.presets import preset
from bench.sound import mp3_64k
from tests.support.ears import loudness_lufs
from tests.support.pickles import RunsCode

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
TEXT = "We walked along the river after dinner, and the library closes at eight this evening. Please call me back."
CLONED = Voice("voice_1", "Ann", "cloned")


@pytest.fixture(scope="module")
def perth() -> Perth:
    return watermark.load()


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def spoken(library: Library, voice: str = "onyx", rate_hz: int = RATE_HZ, text: str = TEXT) -> np.ndarray:
    timbre = TIMBRES[voice]
    samples = library.synthesize(text, f"{timbre.accent}+{timbre.variant}", timbre.pitch)
    return soxr.resample(samples * np.float32(0.7), library.rate_hz, rate_hz).astype(np.float32)


def marked(samples: np.ndarray, perth: Perth, rate_hz: int = RATE_HZ, chunk: int = 1920, **how: int) -> np.ndarray:
    stage = StreamMarker(rate_hz, perth, **how)
    parts = [stage.push(samples[at : at + chunk]) for at in range(0, len(samples), chunk)]
    return np.concatenate([*parts, stage.flush()])


def score(samples: np.ndarray, rate_hz: int, perth: Perth) -> float:
    return perth.score(soxr.resample(samples, rate_hz, DETECT_RATE_HZ).astype(np.float32))


def encoded(samples: np.ndarray, audio_format: str) -> bytes:
    if audio_format == "mp3 64k":
        return mp3_64k(samples)
    encoder = open_encoder(audio_format, RATE_HZ)
    try:
        return encoder.encode(samples) + encoder.flush()
    finally:
        encoder.close()


def snr_db(expected: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2)))


@pytest.mark.slow
@pytest.mark.parametrize("voice", TIMBRES)
def test_watermark_is_detected_in_every_marked_voice_and_in_no_other(library, perth, voice):
    samples = spoken(library, voice)
    assert score(samples, RATE_HZ, perth) < 0.1
    assert score(marked(samples, perth), RATE_HZ, perth) > 0.9


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_mark_is_detected_at_every_rate(library, perth, rate_hz):
    samples = spoken(library, "nova", rate_hz)
    got = marked(samples, perth, rate_hz)
    assert len(got) == len(samples)
    assert score(got, rate_hz, perth) > 0.9


@pytest.mark.parametrize("audio_format", ["mp3 64k", "opus", "aac"])
@pytest.mark.parametrize("speed", [1.0, 1.1])
def test_mark_survives_encoding_and_tempo_change(library, perth, audio_format, speed):
    stretcher = StreamStretcher(RATE_HZ, speed)
    got = np.concatenate((stretcher.push(marked(spoken(library, "echo"), perth)), stretcher.flush()))
    decoded = decode(encoded(got, audio_format), DETECT_RATE_HZ, max_seconds=60).samples
    assert perth.score(decoded) > 0.9


def test_mark_survives_cutting_and_noise(library, perth):
    got = marked(spoken(library, "onyx"), perth)
    assert score(got[RATE_HZ : 3 * RATE_HZ], RATE_HZ, perth) > 0.9
    noise = np.random.default_rng(1).standard_normal(len(got)).astype(np.float32)
    noisy = got + noise * np.sqrt(np.mean(got**2)) / 10**1.0  # 20 dB
    assert score(noisy, RATE_HZ, perth) > FOUND


def test_unmarked_audio_has_no_mark():
    dice = np.random.default_rng(2)
    time = np.arange(2 * DETECT_RATE_HZ) / DETECT_RATE_HZ
    perth = watermark.load()
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220, 277, 330)) * 0.1
    for sound in (np.zeros_like(time), dice.standard_normal(len(time)) * 0.1, chord):
        assert perth.score(sound.astype(np.float32)) < FOUND
    assert perth.score(np.zeros(0, np.float32)) == 0
    assert perth.score(np.zeros(100, np.float32)) == 0


def test_mark_changes_neither_loudness_nor_high_frequencies(library, perth):
    for voice in ("onyx", "nova"):
        samples = spoken(library, voice)
        got = marked(samples, perth)
        assert loudness_lufs(got, RATE_HZ) == pytest.approx(loudness_lufs(samples, RATE_HZ), abs=0.3)
        change = np.square(np.abs(np.fft.rfft(got - samples)))
        assert change[len(change) * 2_500 // 12_000 :].sum() < 1e-4 * change.sum()
        assert snr_db(samples, got) > 12


def test_silence_stays_silent(perth):
    assert not marked(np.zeros(RATE_HZ, np.float32), perth).any()


def test_chunk_size_does_not_change_the_output(library, perth):
    samples = spoken(library)
    whole = marked(samples, perth, chunk=len(samples))
    for chunk in (239, 1920, 5000):
        np.testing.assert_array_equal(marked(samples, perth, chunk=chunk), whole)


@pytest.mark.parametrize("count", [0, 1, 100, 240, 1536, 3168, 3169, 5000])
def test_no_sample_is_lost(perth, count):
    assert len(marked(np.full(count, 0.1, np.float32), perth)) == count


def test_first_output_comes_after_132_ms(perth):
    stage = StreamMarker(RATE_HZ, perth)
    assert len(stage.push(np.full(round(0.131 * RATE_HZ), 0.1, np.float32))) == 0
    assert len(stage.push(np.full(round(0.001 * RATE_HZ), 0.1, np.float32))) == round(0.048 * RATE_HZ)


# --- against Perth's own modules, which import no further than torch ---


@pytest.fixture(scope="module")
def oracle(perth):
    """Return (encoder, decoder) of resemble-perth without its parent packages, whose imports fail."""
    root = watermark._package()
    names = {"perth": root, "perth.perth_net": root / "perth_net"}
    names["perth.perth_net.perth_net_implicit"] = root / "perth_net/perth_net_implicit"
    for name, path in names.items():
        module = types.ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    try:
        package = "perth.perth_net.perth_net_implicit.model"
        encoder = importlib.import_module(f"{package}.encoder").Encoder(256, 128)
        decoder = importlib.import_module(f"{package}.decoder").Decoder(256, 128)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "perth"]:
            del sys.modules[name]
    state = torch.load(root / watermark._WEIGHTS, map_location="cpu", weights_only=True)["model"]
    for part, name in ((encoder, "encoder."), (decoder, "decoder.")):
        part.load_state_dict({key[len(name) :]: value for key, value in state.items() if key.startswith(name)})
    return encoder, decoder


def spectrum(samples):
    window = torch.hann_window(2048)
    found = torch.stft(torch.as_tensor(samples), 2048, 320, 2048, window, pad_mode="constant", return_complex=True)
    return (20 * torch.log10(found.abs().clip(1e-9)) + 180) / 195, torch.angle(found)


def whole_file(samples, encoder):
    """Mark a whole file like perth.PerthImplicitWatermarker.apply_watermark at 32 kHz."""
    with torch.inference_mode():
        levels, phase = spectrum(samples)
        levels, _ = encoder(levels[None])
        magnitudes = 10 ** ((levels[0] * 195 - 180) / 20)
        window = torch.hann_window(2048)
        return torch.istft(torch.polar(magnitudes, phase), 2048, 320, 2048, window, length=len(samples)).numpy()


def test_stream_with_full_context_equals_the_whole_file(library, perth, oracle):
    samples = spoken(library, "onyx", DETECT_RATE_HZ)
    expected = whole_file(samples, oracle[0])
    streamed = marked(samples, perth, DETECT_RATE_HZ, lookahead=REACH)
    edge = DETECT_RATE_HZ // 2  # the whole file mirrors its end, and a stream can't
    assert snr_db(expected[:-edge], streamed[:-edge]) > 100
    assert snr_db(expected, streamed) > 60
    got = marked(samples, perth, DETECT_RATE_HZ)
    assert snr_db(expected, got) > 30
    with torch.inference_mode():
        assert float(oracle[1](spectrum(got)[0][None])) > 0.9


def test_score_equals_that_of_perth(library, perth, oracle):
    samples = spoken(library, "fable", DETECT_RATE_HZ)
    noise = np.random.default_rng(3).standard_normal(len(samples)).astype(np.float32)
    for sound in (samples, whole_file(samples, oracle[0]), whole_file(samples, oracle[0]) + 0.03 * noise):
        with torch.inference_mode():
            expected = float(oracle[1](spectrum(sound)[0][None]).clip(0, 1))
        assert perth.score(sound) == pytest.approx(expected, abs=2e-3)


# --- choice of the marked voices ---


def test_setting_selects_the_marked_voices():
    standard = [preset("onyx")]
    assert Watermark("cloned").marks([CLONED], trained=True)
    assert Watermark("cloned").marks([*standard, CLONED], trained=True)
    assert not Watermark("cloned").marks(standard, trained=True)
    assert Watermark("model").marks(standard, trained=True)
    assert Watermark("model").marks([CLONED], trained=False)
    assert not Watermark("model").marks(standard, trained=False)
    assert Watermark("all").marks(standard, trained=False)
    assert not Watermark("off").marks([CLONED], trained=True)


def test_missing_extra_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(watermark, "_package", lambda: None)
    watermark.load.cache_clear()
    with caplog.at_level(logging.WARNING):
        marks = Watermark("model")
    assert not marks.marks([CLONED], trained=True)
    assert "pip install 'resemble-perth==1.0.1'" in str(marks.missing)
    assert caplog.text.count("Speech gets no watermark, although TTS_WATERMARK is model") == 1
    assert Watermark("off").missing is None
    with pytest.raises(WatermarkMissing, match="not installed"):
        Watermark("all")
    with pytest.raises(WatermarkMissing):
        watermark.detect(np.zeros(100, np.float32))


def test_damaged_weights_file_is_an_error(monkeypatch, tmp_path):
    file = tmp_path / watermark._WEIGHTS
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04 not really")
    monkeypatch.setattr(watermark, "_package", lambda: tmp_path)
    watermark.load.cache_clear()
    with pytest.raises(WatermarkMissing, match="can't be read"):
        Watermark("all")
    torch.save({"model": RunsCode(tmp_path / "ran")}, file)
    with pytest.raises(WatermarkMissing, match="can't be read"):
        Watermark("all")
    assert not (tmp_path / "ran").exists()


def test_frames_of_long_audio_are_complete_and_in_order() -> None:
    grid = watermark._Grid.of(DETECT_RATE_HZ)
    samples = np.random.default_rng(3).normal(0, 0.1, 25 * DETECT_RATE_HZ).astype(np.float32)
    batches = watermark._spectra(samples, grid)
    assert [len(levels) for levels, _ in batches] == [1000, 1000, 501]
    assert [len(spectra) for _, spectra in batches] == [1000, 1000, 501]
    padded = np.pad(samples, grid.window_samples // 2)
    for frame in (0, 999, 1000, 1999, 2000, 2500):
        start = frame * grid.hop_samples
        ((level, spectrum),) = watermark._spectra(padded[start : start + grid.window_samples], grid, whole=False)
        np.testing.assert_array_equal(batches[frame // 1000][0][frame % 1000], level[0])
        np.testing.assert_array_equal(batches[frame // 1000][1][frame % 1000], spectrum[0])
