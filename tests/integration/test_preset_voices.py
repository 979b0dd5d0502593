"""Preset voices get their recordings once, in the background, and near to their profiles."""

from __future__ import annotations

import dataclasses
import shutil
import wave
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from app import cli, wiring
from app.audio.loudness import integrated_lufs
from app.engines.registry import EngineSpec
from app.generator import preset_voices
from app.generator.preset_voices import SENTENCE, seed_of
from app.types import Reference
from app.voices.known_recordings import KNOWN
from app.voices.presets import PROFILES
from app.voices.store import VoiceStore
from app.voices.transcribe import NoTranscriber
from app.voices.voice_features import measure
from tests.support import human_speech
from tests.support import reading_engine as engine
from tests.support import samples as recorded
from tests.support.live import recognisers, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SPEECH = "/v1/audio/speech"
TEXT = "The same words as ever."


@pytest.fixture(autouse=True)
def _reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    spec = EngineSpec("reading", "reading-1", "tests.support.reading_engine:build")
    monkeypatch.setattr(wiring.registry, "specs", lambda: {"reading": spec})
    lists: tuple[list[Any], ...] = (engine.spoken, engine.trouble, engine.trouble_with_prompt)
    for each in lists:
        each.clear()
    yield
    engine.released.set()
    for each in lists:
        each.clear()


def start(folder: Path, **variables: Any) -> Any:
    return serving(folder, **{"TTS_ENGINE": "reading", "TTS_FALLBACK_ENGINE": "", "TTS_CASTING": "auto", **variables})


def say(url: str, voice: str, **extra: Any) -> httpx.Response:
    return httpx.post(
        f"{url}{SPEECH}", json={"input": TEXT, "voice": voice, "response_format": "pcm", **extra}, timeout=120
    )


def state(url: str) -> dict[str, Any]:
    progress: dict[str, Any] = httpx.get(f"{url}/health").json()["casting"]
    return progress


def finish(url: str) -> dict[str, Any]:
    wait_until(lambda: state(url)["state"] == "done", 240)
    return state(url)


@pytest.fixture
def two_candidates(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(preset_voices, "CANDIDATES", 2)
    return 2


def references(folder: Path) -> VoiceStore:
    return VoiceStore(folder / "cloned_voices", folder / "voice_references")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_every_preset_voice_gets_one_recording_near_its_profile(tmp_path: Path) -> None:
    with start(tmp_path) as url:
        progress = finish(url)
        assert (progress["cast"], progress["failed"]) == (len(PROFILES), {})
        assert all(utterance.scheduling.background for utterance in engine.spoken)
        first = say(url, "onyx")
        assert "x-voice-state" not in first.headers
        assert say(url, "onyx").headers["x-cache"] == "hit"
    store = references(tmp_path)
    pitches = {}
    for name in PROFILES:
        found = store.reference(store.get(name))
        assert found.transcript == SENTENCE
        measured = measure(found.samples, found.rate_hz)
        pitches[name] = measured.pitch_hz
        assert integrated_lufs(found.samples, found.rate_hz) == pytest.approx(-20, abs=0.7)
        assert not found.samples[-int(0.35 * found.rate_hz) :].any()
    assert pitches["onyx"] < 0.7 * pitches["shimmer"]
    low = [name for name in PROFILES if PROFILES[name].pitch_hz < 135]
    high = [name for name in PROFILES if PROFILES[name].pitch_hz > 180]
    assert max(pitches[name] for name in low) < min(pitches[name] for name in high)

    engine.spoken.clear()
    with start(tmp_path) as url:
        assert finish(url)["cast"] == len(PROFILES)
        assert engine.spoken == []
        assert say(url, "onyx").content == first.content


@pytest.mark.slow
def test_requested_voice_is_created_first_and_its_request_waits(tmp_path: Path) -> None:
    before = set(recognisers())
    with start(tmp_path, TTS_CASTING_WAIT_S=120) as url:
        answer = say(url, "verse")
        assert answer.status_code == 200
        assert "x-voice-state" not in answer.headers
        known = references(tmp_path)
        ready = [name for name in PROFILES if known.recording_of(name) is not None]
        assert "verse" in ready
        assert len(ready) < 5
        assert len(set(recognisers()) - before) == 1
    # the recogniser process ends with its server, although recordings are still being checked
    assert set(recognisers()) <= before


def test_voice_that_is_not_ready_in_time_is_spoken_with_its_seed_and_not_cached(
    tmp_path: Path, two_candidates: int
) -> None:
    engine.released.clear()
    engine.trouble += ["slow"] * 4
    with start(tmp_path, TTS_CASTING_WAIT_S=0.2) as url:
        answers = [say(url, "alloy") for _ in range(2)]
        for answer in answers:
            assert answer.status_code == 200
            assert answer.headers["x-voice-state"] == "uncast"  # the answer did not wait for the recording
            assert answer.headers["x-cache"] == "off"
            assert answer.headers["x-tts-seed"] == str(seed_of("alloy"))
        engine.trouble.clear()
        engine.released.set()
        wait_until(lambda: references(tmp_path).recording_of("alloy") is not None)
        later = say(url, "alloy")
        assert "x-voice-state" not in later.headers


def test_disabled_voice_creation_keeps_the_seeds(tmp_path: Path) -> None:
    with start(tmp_path, TTS_CASTING="off") as url:
        assert state(url)["state"] == "off"
        answer = say(url, "nova")
        assert answer.headers["x-voice-state"] == "uncast"
        assert answer.headers["x-tts-seed"] == str(seed_of("nova"))
        assert say(url, "nova", seed=5).headers["x-tts-seed"] == "5"
        assert [utterance.scheduling.background for utterance in engine.spoken] == [False, False]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param("noise", "changes too little", marks=pytest.mark.slow),
        pytest.param("silence", "its length is 0.0 s", marks=pytest.mark.slow),
        ("error", "failed"),
    ],
)
def test_voice_fails_only_once_if_all_candidates_are_rejected(
    tmp_path: Path, two_candidates: int, kind: str, reason: str
) -> None:
    engine.trouble += [kind] * two_candidates
    with start(tmp_path) as url:
        wait_until(lambda: state(url)["cast"] >= 2)
        progress = state(url)
        assert list(progress["failed"]) == ["alloy"]
        assert reason in progress["failed"]["alloy"]
        answer = say(url, "alloy")
        assert (answer.status_code, answer.headers["x-voice-state"]) == (200, "uncast")
        own = [each for each in engine.spoken if each.scheduling.background and each.seed == seed_of("alloy")]
        assert len(own) == 1


def test_preempted_candidate_is_repeated_with_its_seed(
    tmp_path: Path, two_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preset_voices, "RETRY_AFTER_PREEMPTION_S", 0.01)
    engine.trouble += ["busy", "busy"]
    with start(tmp_path) as url:
        wait_until(lambda: state(url)["cast"] >= 1)
        assert state(url)["failed"] == {}
        assert len({utterance.seed for utterance in engine.spoken[:3]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "reason"), [("other voice", "pitch"), ("other words", "recogniser")])
def test_take_that_fails_as_a_voice_prompt_is_not_used(tmp_path: Path, fault: str, reason: str) -> None:
    """If a take fails as a prompt, the next candidate is used."""
    if fault == "other words":
        pytest.importorskip("pocketsphinx")
    engine.trouble_with_prompt.append(fault)
    with start(tmp_path) as url:
        wait_until(lambda: state(url)["cast"] >= 1, 60)
        assert state(url)["failed"] == {}
    first = references(tmp_path).recording_of("alloy")
    assert first is not None
    prompts = [utterance for utterance in engine.spoken if utterance.lines[0].prompt is not None]
    assert [prompt.lines[0].text for prompt in prompts[:2]] == [preset_voices.SECOND_SENTENCE] * 2
    assert not np.array_equal(prompts[0].lines[0].prompt.codes, prompts[1].lines[0].prompt.codes)  # type: ignore[union-attr]


def test_published_recordings_of_people_are_used_first_and_alloy_has_one(tmp_path: Path) -> None:
    """The server recognises these recordings by their digests, under any file name."""
    folder = tmp_path / "voice_references"
    folder.mkdir()
    for number, one in enumerate(human_speech.sesame_prompts()):
        shutil.copy(one.path, folder / f"{number}.wav")
    with start(tmp_path) as url:
        wait_until(lambda: state(url)["cast"] >= 6, 60)
    store = references(tmp_path)
    for recording in KNOWN.values():
        stored = store.recording_of(recording.voice)
        assert stored is not None
        reference = store.reference(stored.voice)
        assert (reference.transcript, stored.quality["source"].endswith(".wav")) == (recording.words, True)
        assert 7.0 < reference.seconds < 19.0
        assert integrated_lufs(reference.samples, reference.rate_hz) == pytest.approx(-20, abs=0.7)
    assert {recording.voice for recording in KNOWN.values()} >= {"alloy"}


def test_published_recording_named_after_a_voice_needs_no_transcript(tmp_path: Path) -> None:
    folder = tmp_path / "voice_references"
    folder.mkdir()
    shutil.copy(human_speech.sesame_prompts()[0].path, folder / "onyx.wav")
    with start(tmp_path, TTS_CASTING="off") as url:
        wait_until(lambda: references(tmp_path).recording_of("onyx") is not None, 60)
        assert state(url)["problems"] == {}
    onyx = references(tmp_path).recording_of("onyx")
    assert onyx is not None
    assert onyx.transcript.startswith("like revising for an exam")


def wav_file(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def test_health_lists_unsuitable_recordings(tmp_path: Path) -> None:
    """The faults are music, a length of 0.2 s, and a wrong transcript, in files and folders of preset and cloned
    voices."""
    pytest.importorskip("pocketsphinx")
    said = recorded.speech(recorded.WORDS[:2])
    words = " ".join(recorded.WORDS[:2])
    other = " ".join(recorded.WORDS[2:4])
    music = 0.1 * recorded.music(len(said))
    short = said[: round(0.2 * recorded.RATE_HZ)]
    folder = tmp_path / "voice_references"
    folder.mkdir()
    for name, samples, text in (
        ("ash", music, words),
        ("nova", short, words),
        ("onyx", said, other),
        ("echo", said, words),
    ):
        wav_file(folder / f"{name}.wav", samples, recorded.RATE_HZ)
        (folder / f"{name}.txt").write_text(text)
    store = VoiceStore(tmp_path / "cloned_voices", folder)
    store.set_reference("sage", Reference(music, recorded.RATE_HZ, words), origin="file")
    store.set_reference("fable", Reference(said, recorded.RATE_HZ, words), origin="file")
    clones = {
        name: store.add(name, Reference(samples, recorded.RATE_HZ, text)).id
        for name, samples, text in (
            ("music", music, words),
            ("short", short, words),
            ("other", said, other),
            ("good", said, words),
        )
    }
    with start(tmp_path, TTS_CASTING="off") as url:
        wait_until(lambda: len(state(url)["problems"]) >= 7, 60)
        assert say(url, "echo").status_code == 200
        problems = state(url)["problems"]
    expected = {
        "voice_references/ash.wav": "no speech",
        "voice_references/nova.wav": "0.2 s",
        "voice_references/onyx.wav": "exact words",
        "voice_references/sage": "speech",
        f"cloned_voices/{clones['music']}": "speech",
        f"cloned_voices/{clones['short']}": "0.2 s",
        f"cloned_voices/{clones['other']}": "exact words",
    }
    assert problems.keys() == expected.keys()
    for path, reason in expected.items():
        assert reason in problems[path], (path, problems[path])


def test_recordings_of_the_model_with_known_words_are_assigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = engine.Library()
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    words = "People who read aloud for a living drink a great deal of water, and so should you, my friend."
    for name, timbre in (("deep", "onyx"), ("bright", "shimmer"), ("wordless", "nova")):
        voice = engine.TIMBRES[timbre]
        samples = library.synthesize(words, f"{voice.accent}+{voice.variant}", voice.pitch)
        with wave.open(str(prompts / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, engine.RATE_HZ, 0, "NONE", ""))
            file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
        if name != "wordless":
            (prompts / f"{name}.txt").write_text(words + "\n")
    info = engine.ReadingEngine.info
    info = dataclasses.replace(info, prompts=dataclasses.replace(info.prompts, examples=str(prompts)))
    assigned = preset_voices.match_examples(info, NoTranscriber())
    assert sorted(candidate.source for candidate in assigned.values()) == ["bright.wav", "deep.wav"]
    by_source = {candidate.source: name for name, candidate in assigned.items()}
    assert PROFILES[by_source["deep.wav"]].pitch_hz < 120
    assert PROFILES[by_source["bright.wav"]].pitch_hz > 180
    assert all(candidate.reference.transcript == words for candidate in assigned.values())


def test_recording_is_replaced_by_the_engine_or_by_a_file(
    tmp_path: Path, two_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("TTS_ENGINE", "reading"),
        ("TTS_FALLBACK_ENGINE", ""),
        ("TTS_DATA_DIR", str(tmp_path)),
    ):
        monkeypatch.setenv(name, value)
    run = CliRunner().invoke
    done = run(cli.app, ["voices", "cast", "--voice", "onyx"])
    assert done.exit_code == 0, done.output
    first = references(tmp_path).recording_of("onyx")
    assert first is not None
    assert run(cli.app, ["voices", "cast", "--voice", "onyx"]).exit_code == 0
    again = references(tmp_path).recording_of("onyx")
    assert again is not None
    assert (first.quality["take"], again.quality["take"]) == (0, 1)
    assert first.quality["source"] != again.quality["source"]
    assert run(cli.app, ["voices", "cast", "--voice", "nobody"]).exit_code == 1

    path = tmp_path / "mine.wav"
    tone = (0.3 * np.sin(np.arange(3 * 24_000) * 0.03)).astype(np.float32)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    assert run(cli.app, ["voices", "cast", "--voice", "onyx", "--file", str(path)]).exit_code == 1
    words = ["--transcript", "What I say."]
    assert run(cli.app, ["voices", "cast", "--voice", "onyx", "--file", str(path), *words]).exit_code == 0
    store = references(tmp_path)
    own = store.reference(store.get("onyx"))
    assert (own.transcript, own.seconds) == ("What I say.", pytest.approx(3.0))
    listed = run(cli.app, ["voices"])
    assert listed.exit_code == 0
    assert "onyx" in listed.output
