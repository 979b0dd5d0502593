"""Voice cloning over real sockets: clone, list, speak, export, import, and error messages."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
import time
import wave
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest
import soxr

from app.audio import pcm
from app.engines.csm.runner import CsmRunner
from app.engines.dia.runner import DiaRunner
from app.types import Reference
from app.voices.voice_file import read_wav
from tests.integration.test_api_routes import problem
from tests.support import samples
from tests.support.ears import decode
from tests.support.live import serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.types import Utterance

pytestmark = pytest.mark.integration

FRAME_SAMPLES = 1920  # samples of one frame of Mimi at 24 kHz
TEXT = samples.WORDS[0]


@pytest.fixture(scope="module")
def sample() -> bytes:
    """A recording of TEXT, 4 s. Checks, encoding and decoding of a longer recording take more CPU time."""
    return samples.file(samples.speech([TEXT]), "mp3")


@pytest.fixture(scope="module")
def long_sample() -> bytes:
    """A recording of `samples.TEXT`, 12 s, whose checks are all good."""
    return samples.file(samples.speech(), "mp3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder) as served:
        yield served


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/v1", timeout=60) as http_client:
        yield http_client
        for voice in http_client.get("/voice-cloning/voices").json()["voices"]:
            http_client.delete(f"/voice-cloning/voices/{voice['id']}").raise_for_status()


def clone(http: httpx.Client, audio: bytes, name: str = "Anna", **fields: Any) -> httpx.Response:
    data = {"name": name, "transcript": TEXT, **fields}
    return http.post("/voice-cloning/clone", data=data, files={"audio_file": ("my sample.mp3", audio)})


def everything(folder: Path) -> list[str]:
    """Return all stored files except logs, locks, and databases, which other tasks of the server write."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        str(path) for path in paths if path.parts[0] not in ("logs", "usage", "jobs") and path.name != ".lock"
    )


# ---- what a clone is


def test_new_voice_is_in_every_list(http: httpx.Client, long_sample: bytes) -> None:
    answer = clone(http, long_sample, transcript=samples.TEXT, description="My sister.", consent="She agrees.")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "success"
    voice = body["voice"]
    assert voice["id"].startswith("voice_")
    assert (voice["name"], voice["description"], voice["sample_count"]) == ("Anna", "My sister.", 1)
    assert voice["transcript"] == samples.TEXT
    assert 9 < voice["audio_duration"] < 13
    assert voice["quality"]["level"] == "good"
    assert all(check["level"] == "good" and check["message"] for check in voice["quality"]["checks"])
    assert voice["consent"] == {"text": "She agrees.", "id": ""}
    assert abs(voice["created_at"] - time.time()) < 100

    listed = http.get("/audio/voices").json()
    assert {"id": voice["id"], "name": "Anna"}.items() <= listed["voices"][-1].items()
    assert listed["voices"] == listed["data"]
    assert http.get("/audio/voices?legacy=true").json()["voices"][-1] == voice["id"]
    (own,) = http.get("/voice-cloning/voices").json()["voices"]
    assert own == voice == http.get(f"/voice-cloning/voices/{voice['id']}").json()
    compatible = http.get("/voice-cloning/openai-compatible-voices").json()["voices"]
    assert len(compatible) == 14
    last = compatible[-1]
    assert (last["voice_id"], last["name"], last["cloned"], last["languages"]) == (voice["id"], "Anna", True, ["en"])
    reference_response = httpx.get(str(http.base_url).removesuffix("/v1/") + last["preview_url"])
    assert decode(reference_response.content, "wav").seconds == pytest.approx(voice["audio_duration"], abs=0.01)
    assert voice["id"] in [item["name"] for item in http.get("/models/espeak").json()["voices"]]


def test_offline_voice_rejects_a_cloned_voice(http: httpx.Client, sample: bytes) -> None:
    voice = clone(http, sample).json()["voice"]
    turns = [{"voice": "Anna", "text": "Hello."}, {"voice": "alloy", "text": "Hi."}]
    for path, body in (
        ("/audio/speech", {"input": "Hello.", "voice": "Anna"}),
        ("/audio/speech", {"input": "Hello.", "voice": {"id": voice["id"]}}),
        ("/audio/conversation", {"text": "Hello.", "voice": voice["id"]}),
        ("/audio/dialogue", {"turns": turns}),
        ("/voice-cloning/generate", {"voice_id": voice["id"], "text": "Hello."}),
        (f"/voice-cloning/voices/{voice['id']}/preview", {}),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == 400, path
        assert problem(answer)["code"] == "voice_not_supported_by_engine"
    assert http.post("/audio/speech", json={"input": "Hello."}).status_code == 200


def test_fallback_engine_answers_503_for_a_cloned_voice(tmp_path: Path, sample: bytes) -> None:
    with (
        serving(tmp_path, TTS_ENGINE="csm", CSM_MODEL=str(tmp_path / "none")) as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as http,
    ):
        assert clone(http, sample).status_code == 200
        answer = http.post("/audio/speech", json={"input": "Hello.", "voice": "Anna"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        error = problem(answer)
        assert error["code"] == "voice_not_supported_by_engine"
        assert "in place of the configured engine" in error["message"]
        assert "Use a preset voice" in error["message"]


@pytest.mark.parametrize("kind", ["film", pytest.param("webm", marks=pytest.mark.slow)])
def test_videos_and_other_containers_are_accepted(http: httpx.Client, kind: str) -> None:
    sound = samples.speech()
    audio = samples.film(sound) if kind == "film" else samples.file(sound, kind)
    answer = clone(http, audio, transcript=samples.TEXT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["voice"]["audio_duration"] == pytest.approx(12.1, abs=0.4)


def test_duplicate_voice_name_gets_a_number(http: httpx.Client, sample: bytes) -> None:
    assert [clone(http, sample, name).json()["voice"]["name"] for name in ("Nova", "anna", "ANNA")] == [
        "Nova (2)",
        "anna",
        "ANNA (2)",
    ]


def test_several_recordings_become_one_voice(http: httpx.Client) -> None:
    files = [("audio_file", (f"{n}.wav", samples.file(samples.speech([samples.WORDS[n]])))) for n in range(3)]
    data = {"name": "Anna", "transcript": list(samples.WORDS[:3])}
    voice = http.post("/voice-cloning/clone", data=data, files=files).json()["voice"]
    assert voice["sample_count"] == 3
    assert voice["transcript"] == samples.TEXT
    assert 11 < voice["audio_duration"] < 15
    wrong = http.post("/voice-cloning/clone", data={"name": "B", "transcript": "One."}, files=files)
    assert wrong.status_code == 400
    assert problem(wrong)["param"] == "transcript"


def test_voice_can_be_changed_and_deleted(http: httpx.Client, sample: bytes, folder: Path) -> None:
    before = everything(folder)
    voice = clone(http, sample).json()["voice"]
    path = f"/voice-cloning/voices/{voice['id']}"
    changed = http.patch(path, json={"name": "Berta", "description": "New.", "transcript": "New words."}).json()
    assert (changed["name"], changed["description"], changed["transcript"]) == ("Berta", "New.", "New words.")
    assert http.patch(path, json={}).json() == changed
    assert problem(http.patch(path, json={"name": "x" * 101}))["param"] == "name"
    assert problem(http.patch(path, json={"transcript": " "}))["param"] == "transcript"
    assert problem(http.patch(path, json={"name": 5}))["param"] == "name"
    gone = http.delete(path)
    assert gone.json()["id"] == voice["id"]
    assert gone.status_code == 200
    assert everything(folder) == before
    for again in (http.delete(path), http.patch(path, json={}), http.get(path), http.get(f"{path}/export")):
        assert again.status_code == 404
        problem(again)
    assert http.post(f"{path}/preview").status_code == 404
    answer = http.post("/audio/speech", json={"input": "Hello.", "voice": "Berta"})
    assert problem(answer)["code"] == "voice_not_found"
    assert http.delete("/voice-cloning/voices/alloy").status_code == 404
    assert http.delete("/voice-cloning/voices/..%2F..%2Fmodels").status_code == 404


def test_another_server_on_the_same_folder_lists_a_new_voice_within_two_seconds(
    http: httpx.Client, sample: bytes, folder: Path
) -> None:
    with serving(folder) as other:

        def there() -> set[str]:
            return {voice["name"] for voice in httpx.get(f"{other}/v1/audio/voices").json()["voices"]}

        assert "Anna" not in there()
        voice = clone(http, sample).json()["voice"]
        wait_until(lambda: "Anna" in there())
        http.patch(f"/voice-cloning/voices/{voice['id']}", json={"name": "Berta"})
        wait_until(lambda: "Berta" in there())
        with httpx.Client(base_url=f"{other}/v1", timeout=60) as there_too:
            assert clone(there_too, sample, "berta").json()["voice"]["name"] == "berta (2)"
        http.delete(f"/voice-cloning/voices/{voice['id']}").raise_for_status()
        wait_until(lambda: "Berta" not in there())


def test_voice_routes_require_a_key(tmp_path: Path, sample: bytes) -> None:
    with (
        serving(tmp_path, TTS_API_KEYS="a-secret-of-voices") as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as http,
    ):
        for answer in (
            clone(http, sample),
            http.get("/voice-cloning/voices"),
            http.delete("/voice-cloning/voices/voice_1"),
            http.get("/audio/voice_consents"),
            http.delete("/audio/voices/voice_1"),
        ):
            assert answer.status_code == 401
        assert http.get("/voice-cloning/openai-compatible-voices").status_code == 200
        http.headers["authorization"] = "Bearer a-secret-of-voices"
        assert clone(http, sample).status_code == 200


# ---- drafts


def levels(quality: dict[str, Any]) -> dict[str, str]:
    return {"whole": quality["level"]} | {check["id"]: check["level"] for check in quality["checks"]}


def test_a_checked_recording_becomes_a_voice(http: httpx.Client, long_sample: bytes, folder: Path) -> None:
    drafts = set(folder.glob("cloned_voices/.drafts/draft_*"))  # drafts of other tests
    answer = http.post("/voice-cloning/check", data={"transcript": samples.TEXT}, files={"audio_file": long_sample})
    body = answer.json()
    assert answer.status_code == 200
    assert body["quality"]["level"] == "good"
    assert body["transcript"] == samples.TEXT
    assert http.get("/voice-cloning/voices").json()["voices"] == []
    assert len(http.get("/audio/voices").json()["voices"]) == 13
    preview = http.post(f"/voice-cloning/voices/{body['draft_id']}/preview")
    assert problem(preview)["code"] == "voice_not_supported_by_engine"
    assert problem(preview)["param"] == "id"
    mended = samples.TEXT.upper()
    data = {"name": "Anna", "draft_id": body["draft_id"], "transcript": mended}
    voice = http.post("/voice-cloning/clone", data=data).json()["voice"]
    assert (voice["name"], voice["transcript"]) == ("Anna", mended)
    assert levels(voice["quality"]) == levels(body["quality"])
    again = http.post("/voice-cloning/clone", data=data)
    assert again.status_code == 400
    assert problem(again)["param"] == "draft_id"
    assert set(folder.glob("cloned_voices/.drafts/draft_*")) == drafts


def test_expired_drafts_are_removed(http: httpx.Client, sample: bytes, folder: Path) -> None:
    def drafts() -> set[str]:
        return {path.name for path in folder.glob("cloned_voices/.drafts/draft_*")}

    of_other_tests = drafts()
    ask = {"data": {"transcript": TEXT}, "files": {"audio_file": sample}}
    old = http.post("/voice-cloning/check", **ask).json()["draft_id"]  # type: ignore[arg-type]
    marker = folder / "cloned_voices" / ".drafts" / old / "voice.json"
    draft_fields = json.loads(marker.read_text())
    marker.write_text(json.dumps({**draft_fields, "created_at": "2020-01-01T00:00:00+00:00"}))
    time.sleep(1.1)
    http.get("/audio/voices")
    assert http.post("/voice-cloning/clone", data={"name": "A", "draft_id": old}).status_code == 400
    new = http.post("/voice-cloning/check", **ask).json()["draft_id"]  # type: ignore[arg-type]
    assert drafts() == {*of_other_tests, new}


# ---- OpenAI's client


def test_official_client_manages_consents_and_custom_voices(url: str, http: httpx.Client, sample: bytes) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        consent = client.audio.voice_consents.create(
            name="Anna's", language="en-US", recording=("consent.mp3", sample, "audio/mpeg")
        )
        assert consent.id.startswith("cons_")
        assert (consent.object, consent.name, consent.language) == ("audio.voice_consent", "Anna's", "en-US")
        assert client.audio.voice_consents.retrieve(consent.id) == consent
        assert client.audio.voice_consents.update(consent.id, name="Other").name == "Other"

        voice = client.audio.voices.create(
            name="Anna",
            consent=consent.id,
            audio_sample=("sample.mp3", sample, "audio/mpeg"),
            extra_body={"transcript": TEXT},
        )
        assert (voice.object, voice.name, voice.type) == ("audio.voice", "Anna", "audio_sample")
        (stored,) = http.get("/voice-cloning/voices").json()["voices"]
        assert (stored["id"], stored["consent"]["id"], stored["language"]) == (voice.id, consent.id, "en-US")
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.speech.create(model="tts-1", input="Hello.", voice={"id": voice.id})
        assert caught.value.code == "voice_not_supported_by_engine"
        gone = client.audio.voices.delete(voice.id)
        assert (gone.object, gone.id, gone.deleted) == ("audio.voice.deleted", voice.id, True)
        with pytest.raises(openai.NotFoundError):
            client.audio.voices.delete(voice.id)

        assert client.audio.voice_consents.delete(consent.id).deleted is True
        with pytest.raises(openai.NotFoundError):
            client.audio.voice_consents.retrieve(consent.id)
        for wrong in (consent.id, "yes"):
            with pytest.raises(openai.BadRequestError) as refused:
                client.audio.voices.create(name="A", consent=wrong, audio_sample=("a.mp3", sample, "audio/mpeg"))
            assert refused.value.param == "consent"
        with pytest.raises(openai.BadRequestError) as unsupported:
            client.audio.voices.create(name="A", prompt="A warm voice.", type="prompt")
        assert unsupported.value.code == "not_supported"


def test_consents_are_listed_in_pages(url: str) -> None:
    recording = samples.file(samples.said(samples.WORDS[0]), "flac")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        for left in list(client.audio.voice_consents.list()):  # by other tests
            client.audio.voice_consents.delete(left.id)
        consent_ids = [
            client.audio.voice_consents.create(
                name=f"Number {n}", language="en", recording=("c.flac", recording, "audio/flac")
            ).id
            for n in range(5)
        ]
        first = client.audio.voice_consents.list(limit=2)
        assert [consent.id for consent in first.data] == consent_ids[:2:-1]
        assert first.has_more
        assert [consent.id for consent in client.audio.voice_consents.list(limit=2)] == consent_ids[
            ::-1
        ]  # the voices of all pages
        for consent_id in consent_ids:
            client.audio.voice_consents.delete(consent_id)
        assert list(client.audio.voice_consents.list()) == []
        with pytest.raises(openai.NotFoundError):
            client.audio.voice_consents.list(after="cons_none")
        with pytest.raises(openai.BadRequestError):
            client.audio.voice_consents.list(limit=101)


# ---- there and back


def test_exported_voice_can_be_imported_on_another_server(http: httpx.Client, sample: bytes, tmp_path: Path) -> None:
    voice = clone(http, sample, description="Travels.", consent="Yes.").json()["voice"]
    answer = http.get(f"/voice-cloning/voices/{voice['id']}/export")
    assert answer.headers["content-type"] == "application/zip"
    with serving(tmp_path) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as there:
        taken = there.post("/voice-cloning/import", files={"file": ("v.zip", answer.content)}).json()["voice"]
        assert taken["id"] != voice["id"]
        same = ("name", "description", "transcript", "audio_duration", "quality", "consent", "sample_count")
        assert [taken[key] for key in same] == [voice[key] for key in same]
        sounds = [
            c.get(f"/voice-cloning/voices/{v['id']}/reference").content for c, v in ((http, voice), (there, taken))
        ]
        assert sounds[0] == sounds[1]
    twin = http.post("/voice-cloning/import", files={"file": ("v.zip", answer.content)}).json()["voice"]
    assert twin["name"] == "Anna (2)"


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_hostile_zips_are_rejected_and_leave_no_files(http: httpx.Client, sample: bytes, folder: Path) -> None:
    voice = clone(http, sample).json()["voice"]
    good = http.get(f"/voice-cloning/voices/{voice['id']}/export").content
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    marker = json.loads(members["voice.json"])

    def changed(**changes: Any) -> bytes:
        return zipped({**members, "voice.json": json.dumps({**marker, **changes}).encode()})

    before, outside = everything(folder), sorted(folder.parent.iterdir())
    hostile = [
        *(b"", b"no zip", good[: len(good) // 2], good[:-30] + b"\0" * 30),
        *(zipped({}), zipped({"voice.json": members["voice.json"]})),
        zipped({f"../{name}": data for name, data in members.items()}),
        zipped({f"/tmp/{name}": data for name, data in members.items()}),
        zipped({**members, **{f"more{n}": b"" for n in range(20)}}),
        zipped({**members, "reference.wav": b"RIFF nothing"}),
        zipped({**members, "reference.wav": b"\0" * (40 << 20)}),  # a bomb: 40 kB
        zipped({**members, "voice.json": b" " * (1 << 20)}),
        zipped({**members, "voice.json": b"[" * 100_000}),
        *(changed(name=""), changed(name="x" * 5_000), changed(transcript="x" * 5_000), changed(format=9)),
        *(changed(language="../.."), changed(reference={**marker["reference"], "rate_hz": 10**9})),
        changed(reference={**marker["reference"], "file": "/etc/passwd"}),
        changed(created_at="tomorrow"),
    ]
    for data in hostile:
        answer = http.post("/voice-cloning/import", files={"file": ("v.zip", data)})
        assert 400 <= answer.status_code < 500, (data[:80], answer.text)
        problem(answer)
    assert everything(folder) == before
    assert sorted(folder.parent.iterdir()) == outside
    fine = http.post("/voice-cloning/import", files={"file": zipped({**members, "../evil": b"x"})})
    assert fine.status_code == 200  # the server ignores unknown files of the archive
    assert not list(folder.parent.rglob("evil"))


# ---- bad input


def bomb() -> bytes:
    return samples.file(np.zeros(8_000 * 700, np.float32), "flac", 8_000)


def an_hour() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(8_000)
        writer.writeframes(b"\x80" * 8_000 * 3_600)
    return file.getvalue()


@pytest.mark.parametrize(
    ("audio", "expected_message"),
    [
        (lambda: b"", "empty"),
        (lambda: b"This is a text file, not a sound." * 100, "not an audio file"),
        (lambda: b"<html><body>404</body></html>", "not an audio file"),
        (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not an audio file"),
        (lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 5004 RTP/AVP 0\n", "not an audio file"),
        (lambda: samples.file(samples.speech()[: samples.RATE_HZ * 3 // 10]), "Send 1 s or more"),
        (lambda: samples.file(np.zeros(samples.RATE_HZ * 5, np.float32)), "no speech"),
        (lambda: samples.file(samples.noise(samples.RATE_HZ * 5, 0.1)), "no speech"),
        (lambda: samples.file(0.2 * samples.music(samples.RATE_HZ * 8)), "speech"),
        pytest.param(an_hour, "longer than 10 minutes", marks=pytest.mark.slow),
        (bomb, "longer than 10 minutes"),
        (lambda: samples.file(np.clip(40 * samples.speech(), -1, 1)), "is clipped"),
        (lambda: samples.file(samples.speech() + samples.noise(len(samples.speech()), 0.2)), "speech"),
    ],
)
def test_bad_recordings_are_rejected_and_leave_no_files(
    http: httpx.Client, folder: Path, audio: Any, expected_message: str
) -> None:
    before = everything(folder)
    answer = clone(http, audio())
    assert answer.status_code == 400
    error = problem(answer)
    assert expected_message.lower() in error["message"].lower()
    assert error["param"] == "audio_file"
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 10_000}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"description": "x" * 10_000}, "description"),
        ({"transcript": "x" * 100_000}, "transcript"),
        ({"transcript": "word " * 1_000}, "audio_file"),
        ({"consent": "cons_none"}, "consent"),
        ({"consent": "x" * 10_000}, "consent"),
        ({"language": "not a language"}, "language"),
        ({"draft_id": "draft_none"}, None),
    ],
)
def test_bad_fields_are_rejected_and_leave_no_files(
    http: httpx.Client, folder: Path, sample: bytes, fields: dict[str, str], param: str | None
) -> None:
    before = everything(folder)
    answer = clone(http, sample, **fields)
    if param is None:  # an uploaded recording takes precedence over `draft_id`
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    assert problem(answer)["param"] == param
    assert everything(folder) == before


@pytest.mark.slow
def test_recordings_without_usable_words_are_stored_for_later(http: httpx.Client) -> None:
    long = samples.file(samples.speech(samples.WORDS * 2))
    for fields in (
        {"transcript": ""},
        {"transcript": "   "},
        {"transcript": samples.TEXT.replace("e", "o"), "language": "de"},  # the word aligner supports English only
        {"transcript": "Other words that are not in this recording at all. " * 8},
    ):
        answer = clone(http, long, **fields)
        assert answer.status_code == 200, answer.text
        voice = answer.json()["voice"]
        assert (voice["status"], voice["transcript"]) == ("needs words", "")
        assert 6 <= voice["audio_duration"] <= 13
        assert voice["detail"] in answer.json()["message"]
        listed = http.get("/audio/voices").json()["voices"][-1]
        assert (listed["id"], listed["status"]) == (voice["id"], "needs words")
        path = f"/voice-cloning/voices/{voice['id']}"
        again = http.patch(path, json={"transcript": f"{samples.WORDS[0]} {samples.WORDS[1]}"})
        assert (again.status_code, again.json()["status"], again.json()["detail"]) == (200, "ready", "")


MARKS = ("...", "!!!", "—", "。", "?! …", "-", "“”", "🙂")  # texts without words


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", samples.TEXT])
def test_new_transcript_of_a_voice_is_checked_like_an_upload(
    http: httpx.Client, long_sample: bytes, first: str
) -> None:
    """After PATCH, and after `clone` with a draft, the report names a transcript that does not fit the recording."""
    pytest.importorskip("pocketsphinx")
    others = " ".join(samples.WORDS[3:6])
    half = " ".join(samples.TEXT.split()[: len(samples.TEXT.split()) // 2])
    path = f"/voice-cloning/voices/{clone(http, long_sample, transcript=first).json()['voice']['id']}"
    levels = {samples.TEXT: "good", others: "warning"}
    if not first:
        levels |= {half: "warning", "Hello.": "warning", "123": "warning", samples.TEXT.upper(): "good"}
    for words, level in levels.items():
        reports = [http.patch(path, json={"transcript": words}).json()["quality"]]
        if words in (samples.TEXT, others):
            draft = http.post(
                "/voice-cloning/check", data={"transcript": first}, files={"audio_file": long_sample}
            ).json()
            adopted = http.post(
                "/voice-cloning/clone", data={"draft_id": draft["draft_id"], "name": "Berta", "transcript": words}
            )
            reports.append(adopted.json()["voice"]["quality"])
        for quality in reports:
            of_words = [check for check in quality["checks"] if check["id"].startswith("transcript_")]
            assert of_words, words
            assert ({check["level"] for check in of_words} == {"good"}) == (level == "good"), (words, of_words)
            assert len({check["id"] for check in quality["checks"]}) == len(quality["checks"])
    before = http.get(path).json()
    for words in ("word " * 390, *MARKS):
        error = problem(http.patch(path, json={"transcript": words}))
        assert (error["type"], error["param"]) == ("invalid_request_error", "transcript")
    assert http.get(path).json() == before


@pytest.mark.parametrize("words", MARKS)
def test_transcripts_without_words_are_rejected(http: httpx.Client, sample: bytes, words: str) -> None:
    for route, data in (("clone", {"name": "Anna"}), ("check", {})):
        answer = http.post(
            f"/voice-cloning/{route}", data={**data, "transcript": words}, files={"audio_file": ("a.mp3", sample)}
        )
        error = problem(answer)
        assert (answer.status_code, error["param"]) == (400, "transcript")
        assert "no words" in error["message"]


def test_error_for_a_voice_name_instead_of_an_id_contains_the_id(http: httpx.Client, sample: bytes) -> None:
    voice = clone(http, sample).json()["voice"]
    for name in ("Anna", "anna", " ANNA "):
        for method in ("GET", "PATCH", "DELETE"):
            answer = http.request(method, f"/voice-cloning/voices/{name}", json={} if method == "PATCH" else None)
            assert answer.status_code == 404
            assert repr(voice["id"]) in problem(answer)["message"]
    assert "preset voice" in problem(http.delete("/voice-cloning/voices/Alloy"))["message"]
    spoken = http.post("/audio/speech", json={"input": "Hello.", "voice": "Berta"})
    assert f"'{voice['id']}' (Anna)" in problem(spoken)["message"]


def test_voice_without_words_is_exported_and_imported(http: httpx.Client, sample: bytes) -> None:
    voice = clone(http, sample, transcript="").json()["voice"]
    exported = http.get(f"/voice-cloning/voices/{voice['id']}/export").content
    imported = http.post("/voice-cloning/import", files={"file": ("voice.zip", exported)})
    assert imported.json()["voice"]["status"] == "needs words"


@pytest.mark.parametrize(
    ("language", "tag"),
    [
        ("French", "fr"),
        ("Deutsch", "de"),
        ("FRANÇAIS", "fr"),
        (" spanish ", "es"),
        ("Mandarin", "cmn"),
        ("pt-BR", "pt-BR"),
        ("en_GB", "en_GB"),
        ("auto", "en"),
        ("", "en"),
    ],
)
def test_voices_and_speech_accept_the_same_languages(
    http: httpx.Client, sample: bytes, language: str, tag: str
) -> None:
    body = {"input": "Hello.", "language": language}
    assert http.post("/audio/speech", json=body).status_code == 200
    cloned = clone(http, sample, language=language)
    assert cloned.status_code == 200, cloned.text
    assert cloned.json()["voice"]["language"] == tag
    checked = http.post(
        "/voice-cloning/check",
        data={"transcript": TEXT, "language": language},
        files={"audio_file": ("a.mp3", sample)},
    )
    assert checked.status_code == 200, checked.text


@pytest.mark.parametrize(
    ("unknown", "header"),
    [
        ({"language": "de"}, "language"),
        ({"Name": "Berta", "consent": "yes"}, "Name, consent"),
        ({"na\u00efve field": 1}, "na%C3%AFve%20field"),
        ({"language": None}, None),
        ({}, None),
    ],
)
def test_changes_name_unknown_fields(
    http: httpx.Client, sample: bytes, unknown: dict[str, Any], header: str | None
) -> None:
    voice = clone(http, sample).json()["voice"]
    changed = http.patch(f"/voice-cloning/voices/{voice['id']}", json={"description": "New.", **unknown})
    assert changed.status_code == 200, changed.text
    assert changed.json()["description"] == "New."
    assert changed.headers.get("X-TTS-Ignored") == header
    consent = http.post(
        "/audio/voice_consents",
        data={"name": "Ann", "language": "English"},
        files={"recording": ("a.mp3", sample)},
    ).json()
    assert consent["language"] == "en"
    renamed = http.post(f"/audio/voice_consents/{consent['id']}", json={"name": "Berta", **unknown})
    assert renamed.headers.get("X-TTS-Ignored") == header
    replaced = http.put("/audio/lexicon", json={"entries": [], **unknown})
    assert replaced.headers.get("X-TTS-Ignored") == header


def test_tags_and_colour_are_kept_with_the_voice(http: httpx.Client, sample: bytes) -> None:
    voice = clone(http, sample).json()["voice"]
    path = f"/voice-cloning/voices/{voice['id']}"
    assert (voice["tags"], voice["color"]) == ([], "")
    marks = {"tags": [" warm ", "WARM", "for  books", ""], "color": "#0B675E"}
    changed = http.patch(path, json={**marks, "transcript": voice["transcript"]}).json()
    assert (changed["tags"], changed["color"]) == (["WARM", "for books"], "#0b675e")
    (listed,) = [each for each in http.get("/audio/voices").json()["voices"] if each["id"] == voice["id"]]
    assert (listed["tags"], listed["color"]) == (["WARM", "for books"], "#0b675e")
    exported = http.get(f"{path}/export").content
    imported = http.post("/voice-cloning/import", files={"file": ("voice.zip", exported)}).json()["voice"]
    assert (imported["tags"], imported["color"]) == (["WARM", "for books"], "#0b675e")
    assert http.patch(path, json={"name": "Berta"}).json()["tags"] == ["WARM", "for books"]
    assert http.patch(path, json={"tags": [], "color": ""}).json()["tags"] == []
    for wrong in ({"color": "red"}, {"tags": ["x" * 41]}, {"tags": [str(n) for n in range(21)]}):
        assert http.patch(path, json=wrong).status_code == 400


@pytest.mark.parametrize("files", [("reference.wav", "transcript.txt"), ("reference.wav",), ("notes.txt",), ()])
def test_incomplete_folder_names_both_layouts(http: httpx.Client, folder: Path, files: tuple[str, ...]) -> None:
    # Each case has its own name, so that the list can't show the reason of an earlier case.
    placed = folder / "cloned_voices" / "-".join(("by_hand", *(name.split(".")[0] for name in files)))
    placed.mkdir()
    try:
        for name in files:
            (placed / name).write_bytes(samples.file(samples.speech(), "wav") if name.endswith("wav") else b"Words.")

        def reason_in_list() -> str | None:
            problems = http.get("/voice-cloning/voices").json()["problems"]
            return problems.get(f"cloned_voices/{placed.name}")  # type: ignore[no-any-return]

        wait_until(lambda: reason_in_list() is not None)  # the server looks for changes every two seconds
        reason = reason_in_list()
    finally:
        shutil.rmtree(placed)
    assert reason is not None
    for name in ("voice.json", "info.json", "reference.wav", "transcript.txt"):
        assert name in reason


def test_bad_bodies_are_rejected(http: httpx.Client, tmp_path: Path) -> None:
    for path in ("/voice-cloning/clone", "/voice-cloning/import", "/audio/voices", "/audio/voice_consents"):
        for answer in (
            http.post(path),
            http.post(path, json={"name": "Anna"}),
            http.post(path, content=b"{", headers={"content-type": "application/json"}),
            http.post(path, content=b"--x\r\n\r\n", headers={"content-type": "multipart/form-data; boundary=y"}),
            http.post(path, data={"name": "Anna", "audio_file": "text", "file": "text"}),
        ):
            assert answer.status_code == 400, (path, answer.text)
            problem(answer)
    with serving(tmp_path, TTS_MAX_UPLOAD_BYTES=100_000) as url:
        answer = httpx.post(
            f"{url}/v1/voice-cloning/clone", data={"name": "A"}, files={"audio_file": b"\0" * 200_000}, timeout=60
        )
        assert answer.status_code == 413
        assert "TTS_MAX_UPLOAD_BYTES" in problem(answer)["message"]


def test_poor_recordings_are_accepted_with_a_warning(http: httpx.Client) -> None:
    sound = samples.speech()
    level = samples.rms(sound)
    telephone = soxr.resample(sound, samples.RATE_HZ, 8_000)
    two = np.concatenate(
        [samples.speech([samples.WORDS[0]]), samples.speech([samples.WORDS[1]], voice="gmw/en-US+announcer")]
    )
    surround = np.zeros((8, len(sound) * 192_000 // samples.RATE_HZ), np.float32)
    surround[2] = soxr.resample(sound, samples.RATE_HZ, 192_000)[: surround.shape[1]]
    for audio, warned in (
        (samples.file(telephone, "wav", 8_000, codec="pcm_u8"), "bandwidth_hz"),
        (samples.file(sound + samples.music(len(sound)) * level * 0.2), "music"),
        (samples.file(two), "speakers"),
        (samples.file(surround, "wav", 192_000, layout="7.1"), None),
    ):
        answer = clone(http, audio, transcript=samples.TEXT)
        assert answer.status_code == 200, answer.text
        levels = {check["id"]: check["level"] for check in answer.json()["voice"]["quality"]["checks"]}
        warnings = {name for name, value in levels.items() if value == "warning"}
        assert (warned in warnings) if warned else not warnings


# ---- on a model


class DecodedAudio:
    """Records the recordings and utterances that reach the runner."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.utterances: list[Utterance] = []
        self.encoded: list[Reference] = []
        self.runner: Any = None
        self.lock = threading.Lock()
        admit, encode = CsmRunner.admit, CsmRunner.encode

        def listening(runner: CsmRunner, row: int, utterance: Utterance) -> None:
            self.runner = runner
            self.utterances.append(utterance)
            admit(runner, row, utterance)

        def counting(runner: CsmRunner, reference: Reference) -> np.ndarray:
            with self.lock:
                self.encoded.append(reference)
            time.sleep(0.3)  # so that other requests arrive during the encoding
            return encode(runner, reference)

        monkeypatch.setattr(CsmRunner, "admit", listening)
        monkeypatch.setattr(CsmRunner, "encode", counting)
        self.encode = encode


def on_csm(folder: Path, checkpoint: Path) -> Any:
    return serving(
        folder, TTS_ENGINE="csm", CSM_MODEL=str(checkpoint), TTS_DTYPE="float32", TTS_FALLBACK_ENGINE="", TTS_OUTBOX_S=2
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_recording_sent_by_curl_reaches_csm_unchanged(
    tmp_path: Path, tiny_csm: Path, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_input = DecodedAudio(monkeypatch)
    (tmp_path / "anna.mp3").write_bytes(sample)
    short = {"max_audio_length_ms": 400, "response_format": "pcm", "cache": False}
    with on_csm(tmp_path / "data", tiny_csm) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        form = [f"audio_file=@{tmp_path / 'anna.mp3'}", "name=Anna", f"transcript={TEXT}"]
        command = ["curl", "-sf", f"{url}/v1/voice-cloning/clone", *(part for field in form for part in ("-F", field))]
        done = subprocess.run(command, check=True, capture_output=True, timeout=60)
        voice = json.loads(done.stdout)["voice"]

        before = base64.b64encode(samples.file(samples.said("How are you?"))).decode()
        context = [{"speaker": 1, "text": "How are you?", "audio": before}]
        asks: list[tuple[str, dict[str, Any]]] = [
            ("/audio/speech", {"input": "Hello there.", "voice": voice["id"]}),
            ("/audio/speech", {"input": "Hello there.", "voice": "anna"}),
            ("/audio/speech/stream", {"input": "Hello there.", "voice": {"id": voice["id"]}}),
            ("/audio/conversation", {"text": "Fine.", "voice": "Anna", "context": context}),
            ("/audio/dialogue", {"turns": [{"voice": "Anna", "text": "Yes?"}, {"voice": "alloy", "text": "No."}]}),
            ("/voice-cloning/generate", {"voice_id": voice["id"], "text": "Hello there."}),
            (f"/voice-cloning/voices/{voice['id']}/preview", {}),
        ]
        with ThreadPoolExecutor(3) as pool:  # the first three requests run at the same time
            answers = list(pool.map(lambda ask: http.post(ask[0], json={**ask[1], **short}), asks[:3]))
        answers += [http.post(path, json={**body, **short}) for path, body in asks[3:]]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            assert len(answer.content) > 10_000
        sounds = [decode(answer.content, "pcm").samples for answer in answers[:3]]
        assert max(np.abs(sounds[0] - other).max() for other in sounds[1:]) <= 1 / 32768

        # Three parallel requests encode the voice once. The other recording is the turn of the conversation.
        stored = (tmp_path / "data" / "cloned_voices" / voice["id"] / "reference.wav").read_bytes()
        window, rate_hz = read_wav(stored)
        mine = [reference for reference in model_input.encoded if reference.transcript == TEXT]
        assert len(mine) == 1
        assert len(model_input.encoded) == 2
        assert np.array_equal(mine[0].samples, soxr.resample(window, rate_hz, 24_000))

        # The model gets the codes of exactly this window and its transcript.
        expected_codes = model_input.encode(
            model_input.runner, Reference(soxr.resample(window, rate_hz, 24_000), 24_000, "")
        )
        assert expected_codes.shape[1] == -(-len(mine[0].samples) // FRAME_SAMPLES)
        with_voice = [
            line for utterance in model_input.utterances for line in utterance.lines if line.voice.id != "alloy"
        ]
        assert len(with_voice) >= len(asks)
        for line in with_voice:
            assert line.prompt is not None
            assert (line.prompt.codec, line.prompt.transcript) == ("mimi", TEXT)
            assert np.array_equal(line.prompt.codes, expected_codes)
        (other,) = [
            line for utterance in model_input.utterances for line in utterance.lines if line.voice.id == "alloy"
        ]
        assert other.prompt is None

        # The whole recording is the window: no part of it is lost or replaced.
        source = samples.speech([TEXT])
        heard_at = np.correlate(source[::20], window[: -round(0.4 * rate_hz)][::20], "valid")
        start = 20 * int(np.argmax(np.abs(heard_at)))
        assert start / samples.RATE_HZ == pytest.approx(0.15, abs=0.15)
        assert voice["audio_duration"] == pytest.approx(len(source) / samples.RATE_HZ, abs=0.7)
        assert not window[-round(0.39 * rate_hz) :].any()
        assert len(pcm.to_bytes(window)) == len(stored) - 44

    # The codes are stored with the voice: after a restart, the server encodes nothing and returns the same audio.
    model_input.encoded.clear()
    with on_csm(tmp_path / "data", tiny_csm) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        again = http.post("/audio/speech", json={"input": "Hello there.", "voice": "ANNA", **short})
        assert np.abs(decode(again.content, "pcm").samples - sounds[0]).max() <= 1 / 32768
        assert model_input.encoded == []
        files = sorted(path.name for path in (tmp_path / "data" / "cloned_voices" / voice["id"]).iterdir())
        assert [name.split("-")[0] for name in files] == ["codes", "reference.wav", "voice.json"]

        # With another transcript, the cache and the model treat the voice as a different one.
        http.patch(f"/voice-cloning/voices/{voice['id']}", json={"transcript": "Other words."})
        other_words = http.post("/audio/speech", json={"input": "Hello there.", "voice": "Anna", **short})
        assert other_words.content != again.content
        assert model_input.utterances[-1].lines[0].prompt.transcript == "Other words."  # type: ignore[union-attr]

        draft = http.post("/voice-cloning/check", data={"transcript": TEXT}, files={"audio_file": sample})
        spoken = http.post(f"/voice-cloning/voices/{draft.json()['draft_id']}/preview", json=short)
        assert spoken.status_code == 200
        assert np.array_equal(model_input.utterances[-1].lines[0].prompt.codes, expected_codes)  # type: ignore[union-attr]


def test_dia_speaks_a_script_with_two_cloned_voices(
    tmp_path: Path, tiny_dia: Path, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[Utterance] = []
    runners: list[DiaRunner] = []
    admit = DiaRunner.admit

    def listening(runner: DiaRunner, row: int, utterance: Utterance) -> None:
        runners.append(runner)
        admitted.append(utterance)
        admit(runner, row, utterance)

    monkeypatch.setattr(DiaRunner, "admit", listening)
    dia = {"TTS_ENGINE": "dia", "DIA_MODEL": str(tiny_dia), "TTS_DTYPE": "float32", "TTS_FALLBACK_ENGINE": ""}
    short = {"max_audio_length_ms": 400, "response_format": "pcm", "cache": False}
    words = "The birds sang in the morning."
    with (
        serving(tmp_path, **dia, TTS_OUTBOX_S=2) as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as http,
    ):
        anna = clone(http, sample).json()["voice"]
        bert = clone(http, samples.file(samples.said(words * 2), "wav"), "Bert", transcript=words * 2).json()["voice"]
        script = {"input": "[S1] Are you there? [S2] I am (laughs). [S1] Good.", "voice": "Anna+Bert"}
        turns = [{"voice": "Bert", "text": "Are you there?"}, {"voice": "Anna", "text": "I am."}]
        for path, body in (
            ("/audio/speech", {"input": "Hello there.", "voice": "Anna"}),
            ("/audio/speech", script),
            ("/audio/dialogue", {"turns": turns}),
        ):
            answer = http.post(path, json={**body, **short})
            assert answer.status_code == 200, answer.text
            assert len(answer.content) > 10_000

    assert [[line.voice.id for line in utterance.lines] for utterance in admitted] == [
        [anna["id"]],
        [anna["id"], bert["id"], anna["id"]],
        [bert["id"], anna["id"]],
    ]
    assert "(laughs)" in admitted[1].lines[1].text
    for voice, expected_transcript in ((anna, TEXT), (bert, words * 2)):
        window, rate_hz = read_wav((tmp_path / "cloned_voices" / voice["id"] / "reference.wav").read_bytes())
        expected_codes = runners[0].encode(Reference(soxr.resample(window, rate_hz, 44_100), 44_100, ""))
        own = [line for utterance in admitted for line in utterance.lines if line.voice.id == voice["id"]]
        for line in own:
            assert line.prompt is not None
            assert (line.prompt.codec, line.prompt.transcript) == ("dac", expected_transcript)
            assert np.array_equal(line.prompt.codes, expected_codes)
