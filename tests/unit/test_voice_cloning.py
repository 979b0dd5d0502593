"""Voice cloning: speech detection, choice of the section, quality checks and transcripts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from app.audio import helper_process, pitch
from app.audio.loudness import denoised, integrated_lufs
from app.audio.sandbox import Limits, decode_in_sandbox
from app.errors import BadReference
from app.settings import Settings
from app.types import Reference
from app.voices import quality, vad, window
from app.voices.cloning import (
    RATE_HZ,
    Cloner,
    Sample,
    change_voice,
    check_stored,
    cleaned,
    import_preset_files,
    without_rumble,
)
from app.voices.store import VoiceStore
from app.voices.transcribe import NoTranscriber, WhisperTranscriber, cut_to
from app.voices.vad import Span, SpeechFinder, by_energy
from app.wiring import create_transcriber
from tests.support import samples
from tests.support.live import ROOT
from tests.support.overlap import Overlap, in_threads

pytestmark = pytest.mark.unit


class Recogniser:
    """A recogniser that returns a fixed text; the real recogniser needs weights."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.durations_s: list[float] = []

    is_here = True

    def missing(self) -> str:
        return ""

    def transcribe(self, sound: np.ndarray, rate_hz: int, language: str) -> str:
        self.durations_s.append(len(sound) / rate_hz)
        return self.text


@pytest.fixture(scope="module")
def finder() -> SpeechFinder:
    return SpeechFinder()


def make(sound: np.ndarray, words: str = samples.TEXT, recogniser: object = None, **options: object):
    cloner = Cloner(recogniser or NoTranscriber())  # type: ignore[arg-type]
    return cloner.make([Sample(samples.file(sound), words)], **options)  # type: ignore[arg-type]


# ---- the sandbox process


def test_sandbox_decoding_keeps_the_samples():
    sound = samples.said(samples.WORDS[0])
    decoded = decode_in_sandbox(samples.file(sound), RATE_HZ, max_seconds=60)
    assert np.abs(decoded.samples - sound).max() < 1e-4
    assert (decoded.source_hz, decoded.channels, decoded.truncated) == (RATE_HZ, 1, False)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(memory_bytes=200 << 20), "limits of memory and time"),
        (Limits(wall_s=0.01), "takes too long"),
        (Limits(input_bytes=1000), "larger than 1000 bytes"),
    ],
)
def test_sandbox_limits_are_enforced(limits, message):
    with pytest.raises(BadReference, match=message) as error:
        decode_in_sandbox(samples.file(samples.said(samples.WORDS[0])), RATE_HZ, max_seconds=60, limits=limits)
    assert error.value.param == "audio"


def test_sandbox_environment_contains_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TTS_API_KEYS", "secret")
    assert "secret" not in helper_process.child_environment().values()


def test_clipping_is_measured_at_any_level():
    sound = samples.speech()
    sound /= np.abs(sound).max()
    shares = []
    for gain, level in ((1.0, 1.0), (2.0, 1.0), (2.0, 0.3), (20.0, 0.3)):
        spoiled = level * np.clip(gain * sound, -1, 1)
        shares.append(decode_in_sandbox(samples.file(spoiled), RATE_HZ, max_seconds=60).clipped)
    assert shares[0] < 0.001 < shares[1]
    assert shares[1] == pytest.approx(shares[2], rel=0.1)
    assert shares[3] > 0.1


# ---- speech detection


@pytest.mark.parametrize("how", ["model", "energy"])
def test_speech_spans_match_the_sentences(finder, how):
    sound = samples.speech() + samples.noise(len(samples.speech()), 0.0005)
    spans = finder.find(sound, samples.RATE_HZ) if how == "model" else by_energy(sound, samples.RATE_HZ)
    starts = np.cumsum([0.25, *(len(samples.said(words)) / samples.RATE_HZ + 0.5 for words in samples.WORDS[:2])])
    assert sum(span.seconds for span in spans) == pytest.approx(10, abs=1.5)
    for start in starts:
        assert min(abs(span.start_s - start) for span in spans) < 0.25


def test_without_torch_speech_is_found_by_energy(monkeypatch):
    sound = samples.speech()  # torch is hidden after this line, since the offline voice calls find_spec too
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(vad.importlib.util, "find_spec", lambda name: None)
    assert SpeechFinder().find(sound, samples.RATE_HZ)


def test_speech_finder_keeps_the_number_of_torch_threads():
    """The test runs in a new process, because only the first import of silero_vad changes the number of threads."""
    code = """
import numpy as np, torch
from app.voices.vad import SpeechFinder
torch.set_num_threads(3)
SpeechFinder().find(np.sin(np.arange(32_000, dtype=np.float32)), 16_000)
print(torch.get_num_threads())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, env=environment, check=False
    )
    assert done.stdout == b"3\n", done.stderr.decode()


def test_speech_finder_runs_its_model_in_one_thread_at_a_time(monkeypatch):
    import silero_vad

    overlap = Overlap(silero_vad.get_speech_timestamps)
    monkeypatch.setattr(silero_vad, "get_speech_timestamps", overlap)
    finder, speech = SpeechFinder(), samples.speech()
    found = in_threads(lambda: finder.find(speech, samples.RATE_HZ))
    assert found == [found[0]] * 4
    assert found[0]
    assert (overlap.calls, overlap.most) == (4, 1)


@pytest.mark.parametrize("sound", [np.zeros(44_100, np.float32), samples.noise(200_000, 0.1), np.zeros(0, np.float32)])
def test_silence_and_noise_contain_no_speech(finder, sound):
    assert finder.find(sound, samples.RATE_HZ) == []


# ---- choice of the section


def flat(spans: list[Span], seconds: float) -> np.ndarray:
    sound = samples.noise(round(seconds * 1000), 0.0001)
    for span in spans:
        at = slice(round(span.start_s * 1000), round(span.end_s * 1000))
        sound[at] = samples.noise(len(sound[at]), 0.1, 1)
    return sound


def test_short_speech_is_used_completely():
    spans = [Span(1, 3), Span(4, 8)]
    assert window.best_window(spans, flat(spans, 10), 1000) == Span(1, 8)


def test_long_speech_is_cut_between_long_pauses():
    spans = [Span(0, 4.5), Span(5.4, 10.5), Span(12, 16), Span(16.4, 21.5), Span(23, 30), Span(30.4, 40)]
    chosen = window.best_window(spans, flat(spans, 41), 1000)
    assert chosen == Span(12, 21.5)


def test_pause_longer_than_a_second_counts_as_one_second():
    """The first window has the best length. Each other window has a pause of 20 s on one side."""
    spans = [Span(0, 10), Span(11.5, 18), Span(38, 47)]
    assert window.best_window(spans, flat(spans, 48), 1000) == Span(0, 10)


def test_noisy_section_is_not_used():
    spans = [Span(0, 9), Span(10, 19), Span(20, 29)]
    sound = flat(spans, 30)
    sound[9_000:20_000] += samples.noise(11_000, 0.05, 3)
    assert window.best_window(spans, sound, 1000) == Span(20, 29)


def test_speech_without_pauses_is_cut_at_a_quiet_place():
    spans = [Span(0, 20), Span(21, 45)]
    assert window.best_window(spans, flat(spans, 46), 1000) == Span(0, 20)
    endless = [Span(0, 60)]
    sound = flat(endless, 60)
    sound[10_000:10_200] *= 0.01
    chosen = window.best_window(endless, sound, 1000)
    assert chosen.end_s == pytest.approx(10.1, abs=0.1)


def test_window_is_padded_to_the_middle_of_a_pause():
    spans = [Span(0, 2), Span(2.1, 8), Span(8.1, 9)]
    padded = window.padded(Span(2.1, 8), spans, 10)
    assert (padded.start_s, padded.end_s) == pytest.approx((2.05, 8.05))
    assert window.padded(Span(0.05, 9.9), [Span(0.05, 9.9)], 10) == Span(0.0, 10)


# ---- the reference


def test_reference_is_the_recording_at_a_fixed_loudness():
    source = samples.speech()
    for gain in (0.05, 1.0):
        result = make(source * gain)
        reference = result.reference
        assert reference.rate_hz == RATE_HZ
        assert reference.transcript == samples.TEXT
        assert integrated_lufs(reference.samples, RATE_HZ) == pytest.approx(-20, abs=0.3)
        assert np.abs(reference.samples).max() <= 0.9
        assert not reference.samples[-round(0.4 * RATE_HZ) :].any()
        first = round(result.window.start_s * RATE_HZ)
        cut = source[first : first + len(reference.samples) - round(0.4 * RATE_HZ)]
        same = np.corrcoef(cut[1000:-1000], reference.samples[1000 : len(cut) - 1000])[0, 1]
        assert same > 0.999


def test_only_rumble_and_dc_are_removed():
    t = np.arange(RATE_HZ * 4) / RATE_HZ
    for tone, kept in ((10, 0.0), (15, 0.0), (50, 0.0), (60, 0.0), (85, 1.0), (100, 1.0), (1_000, 1.0), (15_000, 1.0)):
        wave = np.sin(2 * np.pi * tone * t).astype(np.float32)
        middle = slice(RATE_HZ, 3 * RATE_HZ)
        out = without_rumble(wave + 0.3, RATE_HZ)
        assert abs(out[middle].mean()) < 0.002
        if kept:
            assert np.abs(out - wave)[middle].max() < 0.03
        else:
            assert np.abs(out)[middle].max() < 0.03


def test_optional_denoising_lowers_the_noise():
    source = samples.speech()
    noisy = source + samples.noise(len(source), samples.rms(source) * 0.2)
    quiet = slice(0, round(0.2 * RATE_HZ))
    place = Span(0.0, len(source) / RATE_HZ)
    plain, clean = (cleaned(noisy, place, denoise=denoise) for denoise in (False, True))
    assert len(plain) == len(clean)
    pause = slice(round(0.5 * RATE_HZ) * -1, None)
    assert samples.rms(clean[pause]) < 0.6 * samples.rms(plain[pause])
    assert len(denoised(noisy[quiet], RATE_HZ, -30)) == len(noisy[quiet])


def test_loudness_matches_bs_1770():
    """A sine of 997 Hz at full scale in one channel has -3.01 LUFS."""
    tone = np.sin(2 * np.pi * 997 * np.arange(RATE_HZ * 3) / RATE_HZ).astype(np.float32)
    for gain_db in (0, -20, -40):
        loud = integrated_lufs(tone * np.float32(10 ** (gain_db / 20)), RATE_HZ)
        assert loud == pytest.approx(-3.01 + gain_db, abs=0.1)
    assert integrated_lufs(tone[:2_000], RATE_HZ) == pytest.approx(-3.0, abs=0.3)
    assert integrated_lufs(np.zeros(RATE_HZ, np.float32), RATE_HZ) == -70


# ---- quality checks


@pytest.mark.parametrize("snr", [40, 25, 15, 8])
def test_snr_is_measured(snr):
    source = samples.speech()
    level = samples.rms(source) * 10 ** (-snr / 20)
    result = make(source + samples.noise(len(source), level))
    (check,) = [check for check in result.report.checks if check.id == "snr_db"]
    assert check.value == pytest.approx(snr + 1, abs=1.5)  # the pauses in the source lower its level by 0.8 dB
    assert check.level == ("good" if snr >= 18 else "warning")


@pytest.mark.parametrize(("pitch_hz", "harmonics"), [(80, 20), (120, 10), (210, 8), (300, 5)])
def test_pitch_is_measured(pitch_hz, harmonics):
    t = np.arange(16_000) / 16_000
    tone = sum(np.sin(2 * np.pi * pitch_hz * n * t) / n for n in range(1, harmonics)).astype(np.float32)
    assert np.median(pitch.voiced(tone, 16_000)) == pytest.approx(pitch_hz, rel=0.005)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_bandwidth_of_very_short_speech_is_half_the_sample_rate(rate_hz):
    speech = samples.noise(2047, 0.1)
    assert quality.bandwidth_of(speech, speech, rate_hz) == rate_hz / 2


def test_two_speakers_are_detected():
    def apart(*voices: str) -> quality.Check:
        parts = [samples.speech([words], voice=voice) for words, voice in zip(samples.WORDS, voices, strict=False)]
        result = make(np.concatenate(parts), " ".join(samples.WORDS[: len(voices)]))
        return next(check for check in result.report.checks if check.id == "speakers")

    for voice in ("gmw/en-US+announcer", "gmw/en-GB-x-rp+f5"):
        assert apart(voice, voice, voice).level == "good"
    assert apart("gmw/en-US+f2", "gmw/en-US+announcer", "gmw/en-US+f2").level == "warning"


def test_report_has_the_level_of_its_worst_check():
    good = quality.Check("a", "good", 1.0, "Fine.")
    bad = quality.Check("b", "bad", 2.0, "Too soft.")
    assert quality.Report((good,)).level == "good"
    assert quality.Report((good, bad)).refusal == "Too soft."
    both = quality.worst([quality.Report((good,)), quality.Report((quality.Check("a", "warning", 3.0, "Hm."),))])
    assert both.as_json() == {
        "level": "warning",
        "checks": [{"id": "a", "level": "warning", "value": 3.0, "message": "Hm."}],
    }


# ---- transcripts


LONG = " ".join(samples.WORDS)


@pytest.mark.parametrize(
    ("recognised", "part"),
    [
        (samples.WORDS[1], samples.WORDS[1]),
        ("nobody knew the weigh home but everyone was happy about it", samples.WORDS[1]),
        (f"{samples.WORDS[3]} {samples.WORDS[4]}", f"{samples.WORDS[3]} {samples.WORDS[4]}"),
        ("Knew the way home. But everyone was happy", "knew the way home, but everyone was happy"),
        ("The whether was fine so they walked along the river and taught", samples.WORDS[0]),
        ("Something else is said here altogether.", ""),
        ("", ""),
    ],
)
def test_long_transcript_is_cut_to_the_recognised_part(recognised, part):
    assert cut_to(LONG, recognised) == part
    assert cut_to("", recognised) == ""


def test_transcript_of_a_long_recording_is_cut_with_it():
    sound = samples.speech(samples.WORDS * 2, gap_s=0.6)
    recogniser = Recogniser(f"{samples.WORDS[1]} {samples.WORDS[2]}")
    result = make(sound, " ".join(samples.WORDS * 2), recogniser)
    assert result.reference.transcript == f"{samples.WORDS[1]} {samples.WORDS[2]}"
    assert 6 < result.reference.seconds < 13
    assert recogniser.durations_s == [pytest.approx(result.reference.seconds - 0.4, abs=0.01)]
    for recogniser in (Recogniser("Quite other words than these were heard by it."), None):
        aligned = make(sound, " ".join(samples.WORDS * 2), recogniser).reference
        assert aligned.transcript == f"{samples.WORDS[0]} {samples.WORDS[1]}"  # the word aligner finds the spoken words
        assert aligned.seconds == result.reference.seconds


SENTENCES = (
    *samples.WORDS,
    "Seventeen boats were tied up near the bridge last Sunday.",
    "The old man sold his piano to a school in Oslo.",
    "Please bring me two cups of coffee and a newspaper.",
    "Her sister studies chemistry at the university.",
    "We found a small café behind the railway station.",
    "Nothing in this letter explains why he left.",
)


@pytest.mark.parametrize(
    "repeats", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))]
)  # 40 s to 3 minutes
def test_best_section_of_a_long_recording_is_used_with_and_without_a_recogniser(repeats):
    sentences = SENTENCES * repeats
    sound = samples.speech(sentences, gap_s=0.6)
    with_words = make(sound, " ".join(sentences))
    assert 6 <= with_words.window.seconds <= 13
    found = with_words.reference.transcript
    assert found in " ".join(sentences)  # the transcript has whole sentences in their order
    assert found.endswith(".")
    assert found[0].isupper()
    recognised = make(sound, "", Recogniser("What was recognised."))
    assert (recognised.window, recognised.reference.transcript) == (with_words.window, "What was recognised.")


def test_words_that_do_not_fit_a_long_recording_are_not_used():
    sound = samples.speech(SENTENCES, gap_s=0.6)
    wrong = make(sound, "Quite other words are written here. " * 30)
    assert (wrong.reference.transcript, wrong.report.level) == ("", "warning")
    assert "could not be found" in wrong.missing_words


def test_up_to_thirty_seconds_are_used_with_the_full_transcript():
    sound = samples.speech(samples.WORDS)
    result = make(sound, LONG)
    assert result.reference.transcript == LONG
    assert result.reference.seconds == pytest.approx(len(sound) / RATE_HZ, abs=0.6)


def test_missing_transcript_is_recognised_or_requested():
    result = make(samples.speech(samples.WORDS * 2), "", Recogniser("What was heard there."))
    assert result.reference.transcript == "What was heard there."
    assert result.reference.seconds < 13
    for deaf, reason in ((None, "TTS_ASR=off"), (Recogniser(""), "found no words")):
        silent = make(samples.speech(), "", deaf)
        assert (silent.reference.transcript, silent.report.level) == ("", "warning")
        assert reason in silent.missing_words
        (missing,) = [check for check in silent.report.checks if check.id == "transcript_missing"]
        assert "send exactly what is said" in missing.message


def whisper_in(folder: Path) -> WhisperTranscriber:
    """Return a recogniser with the weights in this folder."""
    return WhisperTranscriber("openai/whisper-base.en", lambda: folder)


def test_missing_recogniser_gives_a_reason(tmp_path):
    absent = WhisperTranscriber("openai/whisper-base.en", lambda: None)
    assert "TTS_ASR_MODEL" in absent.missing()
    assert "TTS_ASR_DOWNLOAD" in absent.missing()
    assert absent.state().state == "unavailable"
    assert WhisperTranscriber("openai/whisper-base.en", lambda: None, lambda *_: tmp_path).missing() == ""
    assert "TTS_ASR_MODEL" in whisper_in(tmp_path).missing()  # an empty folder contains no model
    (tmp_path / "preprocessor_config.json").touch()
    assert whisper_in(tmp_path).missing() == ""
    # Unreadable weights do not cause a response with status 500.
    assert make(samples.speech(), "", whisper_in(tmp_path)).reference.transcript == ""


def cached_recogniser(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> WhisperTranscriber:
    """Return the recogniser of a server that uses this cache of huggingface_hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    settings = Settings(_env_file=None, TTS_DATA_DIR=str(folder), TTS_ASR_MODEL=model, TTS_ASR_DOWNLOAD=False)
    return create_transcriber(settings)


def test_recogniser_in_the_hub_cache_needs_all_its_files(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--openai--whisper-base.en"
    snapshot = cached / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    recogniser = cached_recogniser("openai/whisper-base.en", tmp_path, monkeypatch)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert "TTS_ASR_MODEL" in recogniser.missing()
        (snapshot / name).write_bytes((2).to_bytes(8, "little") + b"{}")  # a safetensors file without tensors
    assert "TTS_ASR_MODEL" in recogniser.missing()  # without the file refs/main, the complete snapshot is unknown
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert recogniser.missing() == ""
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/missing")
    assert "TTS_ASR_MODEL" in recogniser.missing()


@pytest.mark.slow
def test_recogniser_in_the_hub_cache_is_used_and_the_cache_not_changed(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--someone--whisper"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    small_whisper(cached / "snapshots" / "abc")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "hub").rglob("*")}
    recogniser = cached_recogniser("someone/whisper", tmp_path, monkeypatch)
    expected = whisper_in(cached / "snapshots" / "abc")
    speech = samples.speech()
    assert recogniser.transcribe(speech, RATE_HZ, "en") == expected.transcribe(speech, RATE_HZ, "en")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "hub").rglob("*")} == before
    assert not list((tmp_path / "models").iterdir())


def small_whisper(folder: Path) -> None:
    """Write a random Whisper checkpoint of a few kilobytes with a vocabulary of bytes."""
    import torch
    import transformers

    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    tokenizer = transformers.WhisperTokenizer(vocab={letter: n for n, letter in enumerate(letters)}, merges=[])
    marks = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    start, end = tokenizer.convert_tokens_to_ids([marks[0], "<|endoftext|>"])
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        **dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16),
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
        max_target_positions=48,
        decoder_start_token_id=start,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end),
        **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens")),
    )
    torch.manual_seed(3)  # this seed gives a transcript with letters
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


@pytest.mark.parametrize(
    ("recognised", "words"),
    [("Hello\x11there.\n", "Hello there."), ("...", ""), (" . ", ""), ("\x11\x11", ""), ("“”", ""), ("♪", "")],
)
def test_recogniser_output_without_words_gives_no_transcript(recognised, words):
    assert make(samples.speech(), "", Recogniser(recognised)).reference.transcript == words


class UnreachableRecogniser(Recogniser):
    """A recogniser whose weights can't be downloaded."""

    def transcribe(self, sound: np.ndarray, rate_hz: int, language: str) -> str:
        raise OSError("cannot reach the hub")


def test_failed_download_of_the_recogniser_is_logged_without_a_traceback(caplog):
    assert make(samples.speech(), "", UnreachableRecogniser("")).reference.transcript == ""
    assert "cannot reach the hub" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_recogniser_output_becomes_the_transcript(tmp_path):
    """Random weights give a random text. The test checks that it becomes the transcript."""
    small_whisper(tmp_path)
    recogniser = whisper_in(tmp_path)
    recognised = recogniser.transcribe(samples.speech(), RATE_HZ, "en")
    assert len(recognised) > 10
    assert recognised == recogniser.transcribe(samples.speech(), RATE_HZ, "en")
    result = make(samples.speech(), "", recogniser)
    assert result.reference.transcript
    assert result.reference.transcript.isprintable()


@pytest.mark.slow
def test_recogniser_transcribes_one_recording_at_a_time(tmp_path, monkeypatch):
    """Each call loads the weights, so two calls at the same time would need twice the memory."""
    import transformers

    small_whisper(tmp_path)
    recogniser, speech = whisper_in(tmp_path), samples.speech()
    overlap = Overlap(transformers.AutoProcessor.from_pretrained)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", overlap)
    texts = in_threads(lambda: recogniser.transcribe(speech, RATE_HZ, "en"), 3)
    assert texts == [texts[0]] * 3
    assert (overlap.calls, overlap.most) == (3, 1)


@pytest.mark.parametrize("count", [0, 9])
def test_wrong_number_of_recordings_is_refused(count):
    with pytest.raises(BadReference):
        Cloner(NoTranscriber()).make([Sample(b"")] * count)


# ---- reference files of the operator


def test_reference_file_replaces_a_preset_voice_once(tmp_path, caplog):
    store = VoiceStore(tmp_path / "cloned", tmp_path / "references")
    folder, cloner = tmp_path / "references", Cloner(NoTranscriber())
    (folder / "onyx.mp3").write_bytes(samples.file(samples.speech(), "mp3"))
    (folder / "onyx.txt").write_text(samples.TEXT)
    (folder / "nova.wav").write_bytes(b"no sound")
    for name in ("nobody.wav", "Onyx.WAV", "my voice.m4a"):
        (folder / name).write_bytes(b"")
    for name in ("README.txt", "notes.TXT", "README.md", "onyx (copy)", ".hidden.wav"):
        (folder / name).write_text("Notes.")
    (folder / "sage.wav").write_bytes(samples.file(samples.speech()))
    import_preset_files(store, folder, cloner)
    assert "nova" in caplog.text
    unused = {path.removeprefix("references/"): reason for path, reason in store.doubtful.items()}
    assert sorted(unused) == ["Onyx.WAV", "my voice.m4a", "nobody.wav", "nova.wav", "sage.wav"]
    assert "no preset voice has the name 'Onyx'" in unused["Onyx.WAV"]
    assert "Write the words of the recording to sage.txt" in unused["sage.wav"]
    first = store.recording_of("onyx")
    assert first.transcript == samples.TEXT
    import_preset_files(store, folder, cloner)
    assert store.recording_of("onyx") == first
    (folder / "onyx.txt").write_text("Other words that are said here, about as long as the recording, are these ones.")
    import_preset_files(VoiceStore(tmp_path / "cloned", folder), folder, cloner)
    assert VoiceStore(tmp_path / "cloned", folder).get("onyx").digest != first.voice.digest


@pytest.mark.parametrize("kind", ["noise", "silence", "short", "hum", "good"])
def test_stored_voice_without_a_report_gets_a_measured_report(tmp_path, kind):
    speech = samples.speech()
    rng = np.random.default_rng(3)
    sound = {
        "noise": rng.normal(0, 0.2, len(speech)).astype(np.float32),
        "silence": np.zeros(len(speech), np.float32),
        "short": speech[: round(0.2 * samples.RATE_HZ)],
        "hum": (0.3 * np.sin(np.arange(len(speech)) * 0.02)).astype(np.float32),
        "good": speech,
    }[kind]
    store = VoiceStore(tmp_path / "cloned_voices", tmp_path / "references")
    stored = store.add("Ann", Reference(sound, samples.RATE_HZ, samples.TEXT))
    assert store.quality_of(stored) == {}
    check_stored(store, Cloner(NoTranscriber()), ended=threading.Event())
    report = store.quality_of(store.find(stored.id))
    path = f"cloned_voices/{stored.id}"
    if kind == "good":
        assert report["level"] != "bad"
        assert not store.doubtful
        return
    assert report["level"] == "bad"
    assert any(check["level"] == "bad" for check in report["checks"])
    assert store.doubtful[path]
    store.change(stored.id, name="Berta")
    assert store.quality_of(store.find(stored.id)) == report
    assert path in store.doubtful
    store.delete(stored.id)
    assert not store.doubtful


def test_changed_transcript_removes_the_warning_about_a_stored_voice(tmp_path):
    store, cloner = VoiceStore(tmp_path / "cloned_voices", tmp_path / "references"), Cloner(NoTranscriber())
    stored = store.add("Ann", Reference(samples.speech(), samples.RATE_HZ, 15 * samples.TEXT[:100]))
    check_stored(store, cloner, ended=threading.Event())
    assert "cloned_voices/" + stored.id in store.doubtful
    change_voice(store, cloner, stored.id, name=None, description=None, transcript=samples.TEXT)
    assert not store.doubtful
    assert store.quality_of(store.find(stored.id))["level"] != "bad"
