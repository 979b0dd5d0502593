"""Migration of an installation of sesame_csm_openai: its folders, and the requests of its web page and README."""

from __future__ import annotations

import base64
import dataclasses
import json
import wave
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import soxr

from app import wiring
from app.engines.registry import EngineSpec
from app.types import Capabilities
from app.voices.window import MAX_WINDOW_S
from tests.integration.test_api_routes import problem
from tests.support import samples
from tests.support.live import serving, wait_until
from tests.support.reading_engine import ReadingEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.engines.registry import BuildContext
    from app.settings import Settings

pytestmark = pytest.mark.integration

LONG = (*samples.WORDS, "Seventeen boats were tied up near the bridge.", "Her sister studies chemistry in Oslo.") * 2


class CapableEngine(ReadingEngine):
    """An engine that clones voices and supports the request fields of the earlier server."""

    info = dataclasses.replace(
        ReadingEngine.info, capabilities=Capabilities(temperature=True, top_k=True, context=True)
    )


def build(_: Settings, __: BuildContext) -> CapableEngine:
    return CapableEngine()


STANDARD = ["alloy", "echo", "fable", "onyx", "nova", "shimmer"]


def float_wav(sound: np.ndarray, rate_hz: int = 24_000) -> bytes:
    """Return a WAV file of 32-bit floats at 24 kHz, as the earlier server writes its recordings."""
    return samples.file(sound, "wav", rate_hz, codec="pcm_f32le")


def at_24k(sentences: tuple[str, ...]) -> np.ndarray:
    return soxr.resample(samples.speech(sentences, gap_s=0.5), samples.RATE_HZ, 24_000).astype(np.float32)  # type: ignore[no-any-return]


SHORT = float_wav(at_24k(samples.WORDS[:3]))
ONE_MINUTE = float_wav(at_24k(LONG))

# Folder name -> the voice: name, recording, transcript (None = no file), and other fields of info.json.
FOLDERS: dict[str, tuple[str, bytes, str | None]] = {
    "1710805983_anna": ("Anna", SHORT, samples.TEXT),
    "1710805984_without_words": ("Without Words", SHORT, None),
    "1710805985_o'brien_wow!": ("O'Brien Wow!", SHORT, samples.TEXT),
    "1710805988_dr._renée_(b)": ("Dr. Renée (b)", SHORT, samples.TEXT),
    "1710805990_one_minute": ("One Minute", ONE_MINUTE, " ".join(LONG)),
    "1710805991_one_minute_silent": ("One Minute Silent", ONE_MINUTE, None),
    "1710805992_long_text": ("Long Text", SHORT, "These are other words of a page that is not read here. " * 80),
    "1710805993_short_piece": ("Short Piece", ONE_MINUTE, "Only a few words."),
}
REFUSED: dict[str, tuple[str, bytes, str | None]] = {
    "1710805994_silence": ("Silence", float_wav(np.zeros(72_000, np.float32)), None),
    "1710805995_no_sound_file": ("No Sound File", b"this is no recording", "Words."),
}


def old_installation(data: Path) -> None:
    """Write the folders that an installation of the earlier server leaves behind."""
    for name, (voice, recording, words) in {**FOLDERS, **REFUSED}.items():
        folder = data / "cloned_voices" / name
        folder.mkdir(parents=True)
        info = {"id": name, "name": voice, "created_at": 1_710_805_983.5, "speaker_id": 10, "description": None}
        (folder / "info.json").write_text(json.dumps({**info, "audio_duration": 1.0, "sample_count": 24_000}))
        (folder / "reference.wav").write_bytes(recording)
        if words is not None:
            (folder / "transcript.txt").write_text(words)
    broken = data / "cloned_voices" / "1710805996_broken_info"
    broken.mkdir()
    (broken / "info.json").write_text("{broken")
    (broken / "reference.wav").write_bytes(SHORT)
    (broken / "transcript.txt").write_text(samples.TEXT)
    (data / "cloned_voices" / "1710805997_empty").mkdir()
    for folder in ("voice_references", "voice_profiles", "voice_memories", "models"):
        (data / folder).mkdir()
    (data / "voice_references" / "alloy").mkdir()
    (data / "voice_references" / "alloy" / "reference.wav").write_bytes(SHORT)
    (data / "voice_profiles" / "voice_profiles.pt").write_bytes(b"a pickle")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    old_installation(folder)
    return folder


@pytest.fixture(scope="module")
def http(data: Path) -> Iterator[httpx.Client]:
    """Start a server on the old folders, with an engine that clones and without a speech recogniser."""
    spec = EngineSpec("reading", "reading-1", "tests.integration.test_migration:build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring.registry, "specs", lambda: {"reading": spec})
        with (
            serving(data, TTS_ENGINE="reading", TTS_FALLBACK_ENGINE="", TTS_ASR="off") as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            wait_until(lambda: len(listed(client)["voices"]) == len(FOLDERS), 120)
            wait_until(lambda: not any("soon" in each["reason"] for each in listed(client)["refused"]), 120)
            yield client


def listed(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/v1/voice-cloning/voices")
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


def by_name(http: httpx.Client) -> dict[str, dict[str, Any]]:
    return {voice["name"]: voice for voice in listed(http)["voices"]}


def speak(http: httpx.Client, voice: str) -> httpx.Response:
    body = {"model": "csm-1b", "input": "This is my cloned voice.", "voice": voice, "response_format": "pcm"}
    return http.post("/v1/audio/speech", json={**body, "model": "reading-1"})


@pytest.mark.slow
def test_every_old_voice_is_usable_or_listed_with_what_it_lacks(http: httpx.Client) -> None:
    names = {voice: (folder, words) for folder, (voice, _, words) in FOLDERS.items()}
    voices = by_name(http)
    assert voices.keys() == names.keys()
    for name, voice in voices.items():
        folder, _ = names[name]
        assert voice["origin"] == "migrated"
        assert voice["created_at"] == 1_710_805_983
        assert voice["audio_duration"] <= MAX_WINDOW_S + 1
        answer = speak(http, folder)
        if voice["status"] == "ready":
            assert answer.status_code == 200, (name, answer.text)
            assert voice["detail"] == ""
            assert speak(http, name).content == answer.content == speak(http, voice["id"]).content
        else:
            error = problem(answer)
            assert (answer.status_code, error["code"], error["param"]) == (400, "voice_needs_words", "voice")
            assert f"PATCH /v1/voice-cloning/voices/{voice['id']}" in error["message"]
            assert f"PATCH /v1/voice-cloning/voices/{voice['id']}" in voice["detail"]
    lacking = {name for name, voice in voices.items() if voice["status"] == "needs words"}
    assert lacking == {"Without Words", "One Minute Silent", "Long Text", "Short Piece"}
    assert voices["One Minute"]["transcript"] in " ".join(LONG)
    assert len(voices["One Minute"]["transcript"].split()) > 15


def test_old_ids_with_any_letters_stay_usable(http: httpx.Client) -> None:
    for folder in FOLDERS:
        found = http.get(f"/v1/voice-cloning/voices/{httpx.URL('/' + folder).raw_path.decode()[1:]}")
        assert found.status_code == 200, folder
        voice = found.json()
        assert folder in (voice["id"], *voice["aliases"])
        preview = http.post(f"/v1/voice-cloning/voices/{httpx.URL('/' + folder).raw_path.decode()[1:]}/preview")
        assert preview.status_code == (200 if voice["status"] == "ready" else 400)


def test_second_start_finds_the_same_voices(http: httpx.Client, data: Path) -> None:
    from app.voices.store import VoiceStore

    again = VoiceStore(data / "cloned_voices", data / "voice_references")
    assert {voice.id for voice in again.stored()} == {voice["id"] for voice in listed(http)["voices"]}
    for folder in FOLDERS:
        assert again.get(folder).id == again.find(folder).id
        # the files of the earlier server stay
        assert (data / "cloned_voices" / again.find(folder).id / "info.json").exists()


def test_refused_folders_have_a_reason_and_can_be_mended_or_deleted(http: httpx.Client, data: Path) -> None:
    refused = {each["id"]: each["reason"] for each in listed(http)["refused"]}
    assert refused.keys() == {*REFUSED, "1710805996_broken_info", "1710805997_empty"}
    assert "no speech" in refused["1710805994_silence"]
    assert "info.json" in refused["1710805996_broken_info"]
    assert "missing" in refused["1710805997_empty"]
    assert speak(http, "1710805994_silence").status_code == 400

    mended = http.patch("/v1/voice-cloning/voices/1710805996_broken_info", json={"name": "Mended"})
    assert mended.status_code == 200, mended.text
    assert (mended.json()["name"], mended.json()["status"]) == ("Mended", "ready")
    assert speak(http, "Mended").status_code == 200

    still = http.patch("/v1/voice-cloning/voices/1710805994_silence", json={"transcript": "Some words."})
    assert "no speech" in problem(still)["message"]
    assert http.patch("/v1/voice-cloning/voices/1710805997_empty", json={"name": "x"}).status_code == 404
    for name in ("..", "../logs", "%2e%2e", "nothing"):
        assert http.delete(f"/v1/voice-cloning/voices/{name}").status_code in (404, 405)
    for name in (*REFUSED, "1710805997_empty"):
        assert http.delete(f"/v1/voice-cloning/voices/{name}").status_code == 200
        assert not (data / "cloned_voices" / name).exists()
    assert listed(http)["refused"] == []
    http.delete(f"/v1/voice-cloning/voices/{mended.json()['id']}").raise_for_status()


def test_missing_words_can_be_added(http: httpx.Client) -> None:
    voice = by_name(http)["Without Words"]
    recording = http.get(f"/v1/voice-cloning/voices/{voice['id']}/reference")
    assert recording.headers["content-type"] == "audio/wav"
    added = http.patch("/v1/voice-cloning/voices/1710805984_without_words", json={"transcript": samples.TEXT})
    assert added.status_code == 200
    assert (added.json()["status"], added.json()["transcript"]) == ("ready", samples.TEXT)
    assert "transcript_missing" not in [check["id"] for check in added.json()["quality"]["checks"]]
    assert speak(http, "1710805984_without_words").status_code == 200


# ---- the calls of the earlier server's page and README


def test_page_clones_without_a_transcript_previews_and_deletes(http: httpx.Client) -> None:
    form = {"name": "Page Voice", "transcript": "", "description": ""}
    answer = http.post("/v1/voice-cloning/clone", data=form, files={"audio_file": ("sample.mp3", SHORT)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    voice = answer.json()["voice"]
    assert {"id", "name", "created_at", "speaker_id", "description", "audio_duration", "sample_count"} <= voice.keys()
    assert voice["status"] == "needs words"
    assert "PATCH" in answer.json()["message"]
    assert "undefined" not in answer.text
    (own,) = [each for each in listed(http)["voices"] if each["name"] == "Page Voice"]
    preview = http.post(f"/v1/voice-cloning/voices/{own['id']}/preview", json={"text": "This is a preview."})
    assert problem(preview)["code"] == "voice_needs_words"
    deleted = http.delete(f"/v1/voice-cloning/voices/{own['id']}")
    assert deleted.json()["status"] == "success"


def test_openai_client_clones_without_a_transcript(http: httpx.Client) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{http.base_url}/v1".replace("//v1", "/v1"), api_key="unused", max_retries=0)
    consent = client.audio.voice_consents.create(name="Mine", language="en", recording=("consent.wav", SHORT))
    made = client.audio.voices.create(name="Official", consent=consent.id, audio_sample=("me.wav", ONE_MINUTE))
    stored = http.get(f"/v1/voice-cloning/voices/{made.id}").json()
    assert stored["status"] == "needs words"
    assert 6 <= stored["audio_duration"] <= MAX_WINDOW_S + 1
    client.audio.voices.delete(made.id)


def test_commands_of_the_earlier_readme_work(http: httpx.Client) -> None:
    voice = "1710805983_anna"
    generated = {"voice_id": voice, "text": "This is my cloned voice speaking.", "temperature": 0.7}
    for path, body, kind in (
        ("/v1/voice-cloning/generate", generated, "audio/mpeg"),
        ("/v1/voice-cloning/generate", {**generated, "response_format": "ogg"}, "audio/ogg"),
        ("/v1/voice-cloning/generate", {**generated, "response_format": "m4a"}, "audio/mp4"),
        (f"/v1/voice-cloning/voices/{voice}/preview", None, "audio/mpeg"),
        (
            "/v1/audio/speech",
            {"input": "Hello.", "voice": voice, "response_format": "mp3", "max_audio_length_ms": 90000.0},
            "audio/mpeg",
        ),
        (
            "/v1/audio/speech/streaming?t=1710805983",
            {"input": "Hello.", "voice": voice, "temperature": 0.7, "speed": 1.0, "max_audio_length_ms": 1234.5},
            "audio/mpeg",
        ),
        ("/v1/audio/speech", {"input": "Hello.", "voice": "nova", "topk": 50, "speed": 1.0}, "audio/mpeg"),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        assert answer.headers["content-type"] == kind
        assert len(answer.content) > 500


def test_conversation_is_a_wav_file_unless_a_format_is_requested(http: httpx.Client) -> None:
    audio = base64.b64encode(SHORT).decode()
    context = [{"speaker": 1, "text": samples.TEXT, "audio": audio}]
    body = {"text": "Nice to meet you too!", "speaker_id": 0, "context": context}
    answer = http.post("/api/v1/audio/conversation", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(BytesIO(answer.content)) as file:
        assert file.getframerate() == 24_000
    mp3 = http.post("/v1/audio/conversation", json={**body, "response_format": "mp3"})
    assert mp3.headers["content-type"] == "audio/mpeg"


def test_lists_have_the_fields_that_clients_read(http: httpx.Client) -> None:
    voices = http.get("/v1/audio/voices").json()["voices"]
    assert {voice["voice_id"]: voice["name"] for voice in voices}.keys() >= set(STANDARD)
    assert all(voice["voice_id"] == voice["id"] and "description" in voice for voice in voices)
    formats = http.get("/v1/audio/speech/response-formats").json()["response_formats"]
    assert {"name": "mp3", "content_type": "audio/mpeg"} in formats
    streams = http.get("/v1/audio/speech/stream-formats").json()["stream_formats"]
    assert {"mp3", "opus", "aac", "flac", "wav"} <= {each["format"] for each in streams}
    for model in http.get("/v1/audio/models").json()["data"]:
        assert model["description"]
        assert model["max_input_length"] >= 4096
    health = http.get("/health").json()
    assert health["tts_engine"] == "reading"
    assert set(STANDARD) <= set(health["standard_voices"])
    assert len(health["cloned_voices"]) == health["cloned_voices_count"]
    assert {"id", "name", "speaker_id"} == health["cloned_voices"][0].keys()
    assert health["sample_rate"] == 24_000
    assert health["recogniser"]["state"] == "off"
    version = http.get("/version").json()
    assert (version["api_version"], version["model_version"]) == (version["version"], "reading-1")
