"""The speech recogniser of a new installation: it is downloaded when a recording first needs it, or is missing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.integration.test_youtube import WORDS, body, site  # noqa: F401 - the fixture `site`
from tests.support import samples, tube
from tests.support.fake_hub import FakeHub
from tests.support.live import serving, wait_until
from tests.unit.test_voice_cloning import small_whisper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.test_youtube import Site

pytestmark = pytest.mark.integration

MODEL = "openai/whisper-base.en"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a random Whisper model of a few kilobytes."""
    folder = tmp_path_factory.mktemp("whisper")
    small_whisper(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(weights: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub({MODEL: weights}) as fake_hub:
        monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield fake_hub


def clone(url: str, **fields: str) -> dict[str, Any]:
    sound = samples.file(samples.speech(), "mp3")
    answer = httpx.post(
        f"{url}/v1/voice-cloning/clone",
        data={"name": "Anna", **fields},
        files={"audio_file": ("a.mp3", sound)},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["voice"]  # type: ignore[no-any-return]


def recogniser(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/health").json()["recogniser"]  # type: ignore[no-any-return]


def test_recogniser_is_downloaded_when_a_clone_first_needs_it(tmp_path: Path, hub: FakeHub) -> None:
    with serving(tmp_path / "data", TTS_ASR_DOWNLOAD=True) as url:
        assert recogniser(url)["state"] == "not_downloaded"
        assert clone(url, transcript=samples.TEXT)["status"] == "ready"
        assert not hub.downloads()  # a clone with a transcript needs no recogniser
        hub.bytes_per_s = 60_000
        answers: list[dict[str, Any]] = []
        request = threading.Thread(target=lambda: answers.append(clone(url)))
        request.start()
        wait_until(lambda: recogniser(url)["state"] == "downloading", 60)
        progress = recogniser(url)
        assert progress["total_bytes"] > 0
        hub.bytes_per_s = None
        request.join(120)
        (voice,) = answers
        assert recogniser(url)["state"] == "ready"
        assert (voice["status"], bool(voice["transcript"])) == ("ready", True)
        assert hub.downloads("model.safetensors")
        before = len(hub.requests)
        clone(url)
        assert len(hub.requests) == before


@pytest.mark.parametrize("fault", ["status", "offline", "empty"])
def test_voice_without_a_recogniser_is_stored_and_listed_as_incomplete(
    tmp_path: Path, hub: FakeHub, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "status":
        hub.status = 404
    elif fault == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        hub.repos[MODEL] = {"README.md": b"no weights"}
    with serving(tmp_path / "data", TTS_ASR_DOWNLOAD=True) as url:
        voice = clone(url)
        assert voice["status"] == "needs words"
        assert f"PATCH /v1/voice-cloning/voices/{voice['id']}" in voice["detail"]
        state = recogniser(url)
        assert state["state"] == "unavailable"
        assert state["reason"]
        requests = len(hub.requests)
        assert clone(url)["status"] == "needs words"
        assert len(hub.requests) == requests  # the server does not try again within a minute


def test_missing_words_are_recognised_at_the_next_start(tmp_path: Path, hub: FakeHub) -> None:
    with serving(tmp_path / "data", TTS_ASR="off") as url:
        voice = clone(url)
        assert voice["status"] == "needs words"
    with serving(tmp_path / "data", TTS_ASR_DOWNLOAD=True) as url:

        def found() -> bool:
            stored = httpx.get(f"{url}/v1/voice-cloning/voices/{voice['id']}").json()
            return bool(stored["status"] == "ready" and stored["transcript"])

        wait_until(found, 60)


def test_recogniser_is_downloaded_before_the_video(tmp_path: Path, hub: FakeHub, site: Site) -> None:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.tube.serving", lambda data: serving(data, TTS_ASR_DOWNLOAD=True))
        with tube.fetching(tmp_path / "data") as url:
            request = {**body(site), "transcript": ""}
            path = "/v1/voice-cloning/clone-from-youtube?stream=true"
            answer = httpx.post(url + path, json=request, timeout=120)
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines[:-1]]
    stages = list(dict.fromkeys(event["stage"] for event in events if event["type"] == "progress"))
    assert stages[0] == "recogniser"
    assert stages.index("recogniser") < stages.index("looking")
    assert events[-1]["type"] == "done"
    assert events[-1]["voice"]["status"] == "ready"
    assert events[-1]["voice"]["transcript"] != WORDS  # the random model transcribes other words
