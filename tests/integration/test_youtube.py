"""Cloning from a URL over HTTP, with the real yt-dlp. The tests allow URLs of this machine instead of YouTube."""

from __future__ import annotations

import glob
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import soxr

from app.engines.espeak import Library
from tests.support import tube
from tests.support.live import Process, serving, wait_until
from tests.unit.test_youtube import Site, mp3

pytestmark = pytest.mark.integration

WORDS = "We walked along the river after dinner, and the library closes at eight this evening. Please call me back."
PATH = "/v1/voice-cloning/clone-from-youtube"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    library = Library()
    speech_samples = soxr.resample(library.synthesize(WORDS, "gmw/en-US+announcer", 50), library.rate_hz, 24_000)
    with tube.showing(mp3(speech_samples)) as fake_site:
        yield fake_site


@pytest.fixture(scope="module")
def cloning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tube.fetching(tmp_path_factory.mktemp("youtube")) as url:
        yield url


def body(site: Site, **fields: Any) -> dict[str, Any]:
    return {"youtube_url": f"{site.url}/sound.mp3", "voice_name": "Ann", "transcript": WORDS, **fields}


def downloads(pid: int | None = None) -> list[str]:
    """Return the temporary files of running downloads of a process; None = this process."""
    pattern = Path(tempfile.gettempdir()) / f"tts-youtube-{pid or os.getpid()}-*" / "sound.*"
    return glob.glob(str(pattern))  # noqa: PTH207 - Path.glob raises when a folder is removed meanwhile


def test_voice_is_cloned_from_a_video_url(cloning: str, site: Site) -> None:
    answer = httpx.post(cloning + PATH, json=body(site, duration="0:30", consent="She said yes."), timeout=60)
    assert answer.status_code == 200, answer.text
    voice = answer.json()["voice"]
    assert (voice["name"], voice["transcript"], voice["origin"]) == ("Ann", WORDS, "youtube")
    assert voice["consent"]["text"] == "She said yes."
    listed = httpx.get(f"{cloning}/v1/audio/voices").json()["voices"]
    assert voice["id"] in [one["id"] for one in listed]


@pytest.mark.parametrize("how", [{"params": {"stream": "true"}}, {"headers": {"Accept": "text/event-stream"}}])
def test_progress_is_sent_as_events(cloning: str, site: Site, how: dict[str, Any]) -> None:
    path = "/api/v1/audio/speech/voice-cloning/youtube"
    answer = httpx.post(cloning + path, json=body(site, voice_name="Bea"), timeout=60, **how)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert [event["type"] for event in events] == ["progress"] * (len(events) - 1) + ["done"]
    assert [event["stage"] for event in events[:-1] if event["stage"] != "fetching"] == [
        "looking",
        "decoding",
        "cloning",
    ]
    assert events[-1]["voice"]["name"].startswith("Bea")


@pytest.mark.parametrize("how", [{}, {"params": {"stream": "true"}}])
def test_unknown_fields_are_named(cloning: str, site: Site, how: dict[str, Any]) -> None:
    sent = body(site, voice_name="Cleo", durration=30, start=5)
    sent["url"] = sent.pop("youtube_url")
    sent["name"] = sent.pop("voice_name")
    answer = httpx.post(cloning + PATH, json=sent, timeout=60, **how)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-TTS-Ignored"] == "durration, start"


def test_failed_imports_are_errors(cloning: str, site: Site) -> None:
    stream = {"params": {"stream": "true"}}
    gone = body(site, youtube_url=f"{site.url}/gone")
    plain = httpx.post(cloning + PATH, json=gone, timeout=60)
    assert (plain.status_code, plain.json()["error"]["code"]) == (400, "youtube_failed")
    stream_response = httpx.post(cloning + PATH, json=gone, timeout=60, **stream)
    assert stream_response.status_code == 200
    last = json.loads(stream_response.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["error"]["code"] == "youtube_failed"
    for wrong in (
        {"duration": 0.5},
        {"start_time": -1},
        {"start_time": "soon"},
        {"voice_name": None},
        {"duration": "9:9:9"},
    ):
        for how in ({}, stream):
            answer = httpx.post(cloning + PATH, json=body(site, **wrong), timeout=60, **how)
            assert answer.status_code == 400, wrong
    answer = httpx.post(cloning + PATH, json=body(site, voice_name="x" * 10_000), timeout=60, **stream)
    # the server refuses the URL before the download, so no event is sent before the error
    assert answer.status_code == 400


def test_disconnect_removes_the_download(cloning: str, site: Site) -> None:
    slow = body(site, youtube_url=f"{site.url}/slow.mp3")
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", cloning + PATH, json=slow, params={"stream": "true"}) as answer,
    ):
        for line in answer.iter_lines():
            if "fetching" in line:
                break
    wait_until(lambda: not downloads())


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_server_shutdown_during_a_download_ends_the_answer_with_an_error_and_leaves_no_files(
    site: Site, tmp_path: Path, stream: bool
) -> None:
    request = body(site, youtube_url=f"{site.url}/slow.mp3")

    def receive(url: str) -> tuple[int, str, bool]:
        """Return the status, the text of the body, and whether the body ended correctly."""
        text = ""
        with httpx.stream("POST", url + PATH, json=request, params={"stream": stream}, timeout=60) as answer:
            try:
                for part in answer.iter_text():
                    text += part
            except httpx.RemoteProtocolError:
                return answer.status_code, text, False
        return answer.status_code, text, True

    with Process(tmp_path, "tests.support.tube", TTS_SHUTDOWN_GRACE_S="1") as process, ThreadPoolExecutor(1) as threads:
        process.wait()
        received = threads.submit(receive, process.url)
        wait_until(lambda: downloads(process.child.pid))
        process.child.send_signal(signal.SIGTERM)
        status, text, complete = received.result(30)
        assert process.child.wait(30) == -signal.SIGTERM, process.console()
        assert downloads(process.child.pid) == []
    if stream:
        last = json.loads(text.rstrip().rpartition("\n")[2].removeprefix("data: "))
        assert (status, complete) == (200, False)
        assert "[DONE]" not in text
    else:
        last = json.loads(text)
        assert (status, complete) == (503, True)
    assert last["error"]["code"] == "engine_stopped"
    assert list((tmp_path / "cloned_voices").glob("voice_*")) == []


def test_only_youtube_urls_are_accepted(server: str) -> None:
    assert httpx.get(f"{server}/health").json()["youtube"] == {"on": True, "reason": None}
    for url in ("http://127.0.0.1:1/x.mp3", "https://example.com/watch?v=dQw4w9WgXcQ", "file:///etc/passwd"):
        answer = httpx.post(server + PATH, json={"youtube_url": url, "voice_name": "A"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "youtube_url_invalid")


def test_disabled_import_has_no_route(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_YOUTUBE="off") as url:
        answer = httpx.post(url + PATH, json={"youtube_url": "https://youtu.be/dQw4w9WgXcQ", "voice_name": "A"})
        assert answer.status_code in (404, 405)
        assert httpx.get(f"{url}/health").json()["youtube"]["on"] is False
