"""`/v1/audio/jobs` over a real socket: each route, its errors, and who may see which job."""

from __future__ import annotations

import io
import json
import wave
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from app.keys import KeyFile
from tests.support.live import Process, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

JOBS = "/v1/audio/jobs"
BOOK = (
    b"# The storm\n\nIt was a dark and cold night. The rain fell on the roof.\n\n"
    b"# The morning\n\nThe sea was quiet again."
)
TWO = {
    "title": "The Lighthouse",
    "author": "A. Writer",
    "response_format": "wav",
    "chapters": [
        {"title": "The storm", "input": "It was a dark and cold night. The rain fell on the roof."},
        {"title": "The morning", "input": "The sea was quiet again.", "voice": "onyx"},
    ],
}


class Caller:
    """A client with an API key."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {key}"})

    def create(self, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        created = self.http.post(JOBS, json=TWO if body is None else body, headers=headers)
        assert created.status_code == 202, created.text
        return created.json()  # type: ignore[no-any-return]

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        answer = self.http.get(f"{JOBS}/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.http.post(f"{JOBS}/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def error(self, method: str, path: str, **options: Any) -> tuple[int, str | None]:
        answer = self.http.request(method, f"{JOBS}{path}", **options)
        return answer.status_code, answer.json()["error"]["code"]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Follow a job to its end."""
        with self.http.stream("GET", f"{JOBS}/{job_id}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    def completed(self, job_id: str) -> dict[str, Any]:
        assert self.events(job_id)[-1]["type"] == "job.completed"
        return self.get(job_id)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Caller]]:
    """Start a server with the keys ann and bob (scope speak), root (admin) and singer (clone)."""
    folder = tmp_path_factory.mktemp("jobs")
    file = KeyFile(folder)
    scopes = {"ann": ["speak"], "bob": ["speak"], "root": ["speak", "admin"], "singer": ["clone"]}
    secrets = {name: file.add(name, scope) for name, scope in scopes.items()}  # type: ignore[arg-type]
    with serving(folder) as url:
        callers = {name: Caller(url, secret) for name, secret in secrets.items()}
        yield callers
        for caller in callers.values():
            caller.http.close()


@pytest.fixture(scope="module")
def ann(keys: dict[str, Caller]) -> Caller:
    return keys["ann"]


@pytest.fixture(scope="module")
def done(ann: Caller) -> dict[str, Any]:
    """A completed job that no test changes."""
    return ann.completed(ann.create()["id"])


def seconds_of(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        return file.getnframes() / file.getframerate()


def test_job_becomes_a_file_with_its_chapters(ann: Caller, done: dict[str, Any]) -> None:
    assert (done["object"], done["title"], done["author"]) == ("audio.job", "The Lighthouse", "A. Writer")
    assert (done["engine"], done["voice"], done["error"]) == ("espeak", "alloy", None)
    assert [(each["title"], each["voice"], each["status"]) for each in done["chapters"]] == [
        ("The storm", None, "done"),
        ("The morning", "onyx", "done"),
    ]
    assert (done["progress"]["sentences_done"], done["progress"]["sentences_total"]) == (3, 3)
    result = ann.http.get(f"{JOBS}/{done['id']}/result")
    assert result.headers["content-type"] == "audio/wav"
    assert result.headers["content-disposition"] == (
        "attachment; filename=\"The Lighthouse.wav\"; filename*=UTF-8''The%20Lighthouse.wav"
    )
    assert seconds_of(result.content) == pytest.approx(done["result"]["seconds"], abs=0.01)
    assert -24 < done["result"]["levels"]["lufs_lowest"] < -16
    first, second = done["chapters"]
    assert (first["start_s"], second["start_s"]) == (0.0, first["seconds"])
    assert first["seconds"] + second["seconds"] == pytest.approx(done["result"]["seconds"], abs=0.01)


def test_part_of_the_result_is_sent_for_a_range(ann: Caller, done: dict[str, Any]) -> None:
    path = f"{JOBS}/{done['id']}/result"
    whole = ann.http.get(path).content
    part = ann.http.get(path, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    assert ann.http.get(path, headers={"Range": "Bytes= -5, 0-1"}).status_code == 206
    for wrong in ("words=1", "bytes=", "bytes=a-b", "bytes=5-2", "bytes=--5", "bytes"):  # as if it were not sent
        ignored = ann.http.get(path, headers={"Range": wrong})
        assert (ignored.status_code, len(ignored.content)) == (200, len(whole)), wrong


def test_range_behind_the_end_of_the_result_is_an_error_in_words(ann: Caller, done: dict[str, Any]) -> None:
    answer = ann.http.get(f"{JOBS}/{done['id']}/result", headers={"Range": "bytes=99999999-"})
    size = ann.http.head(f"{JOBS}/{done['id']}/result").headers["content-length"]
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"
    assert size in answer.json()["error"]["message"]


def test_sentences_are_listed_and_heard(ann: Caller, done: dict[str, Any]) -> None:
    listed = ann.get(f"{done['id']}/sentences")
    assert [(each["index"], each["chapter"], each["text"], each["voice"]) for each in listed["data"]] == [
        (0, 0, "It was a dark and cold night.", "alloy"),
        (1, 0, "The rain fell on the roof.", "alloy"),
        (2, 1, "The sea was quiet again.", "onyx"),
    ]
    for each in listed["data"]:
        sound = ann.http.get(f"{JOBS}/{done['id']}/sentences/{each['index']}/audio")
        assert sound.headers["content-type"] == "audio/wav"
        assert seconds_of(sound.content) == pytest.approx(each["seconds"], abs=0.001)
    page = ann.get(f"{done['id']}/sentences", after=0, limit=1)
    assert ([each["index"] for each in page["data"]], page["has_more"]) == ([1], True)
    page = ann.get(f"{done['id']}/sentences", chapter=1)
    assert ([each["index"] for each in page["data"]], page["has_more"]) == ([2], False)


def test_events_report_sentences_and_the_end(ann: Caller) -> None:
    events = ann.events(ann.create()["id"])
    assert events[0]["type"] == "job.updated"
    assert events[-1]["type"] == "job.completed"
    assert len(events[-1]["job"]["chapters"]) == 2
    spoken = {each["index"] for event in events if event["type"] == "job.sentences" for each in event["data"]}
    assert spoken <= {0, 1, 2}
    done = [event["job"]["progress"]["sentences_done"] for event in events if "job" in event]
    assert done == sorted(done)
    assert done[-1] == 3


def test_events_go_on_after_the_last_one_that_arrived(ann: Caller) -> None:
    """A client that connects again gets the sentences that have changed meanwhile."""
    job = ann.create(TWO | {"paused": True})["id"]
    path = f"{JOBS}/{job}/events"
    with ann.http.stream("GET", path) as stream:  # the connection is lost after the first event
        first = next(line for line in stream.iter_lines() if line.startswith("id: "))
    ann.post(f"{job}/resume")
    ann.completed(job)
    for last, expected in (
        (first.removeprefix("id: "), {0, 1, 2}),
        ("", set()),
        ("99999", set()),
        ("no number", set()),
    ):
        lines = ann.http.get(path, headers={"Last-Event-ID": last}).text.splitlines()
        found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        sentences = [each for event in found if event["type"] == "job.sentences" for each in event["data"]]
        assert {each["index"] for each in sentences if each["status"] == "done"} == expected, last
        assert [event["type"] for event in found][-2:] == ["job.updated", "job.completed"]
        assert len(found[-2]["job"]["chapters"]) == 2
    newest = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")][-1]
    again = ann.http.get(path, headers={"Last-Event-ID": newest}).text
    assert "job.sentences" not in again
    assert "job.completed" in again


def test_book_is_uploaded_as_a_form(ann: Caller) -> None:
    fields = {"voice": "nova", "response_format": "flac", "chapters": '[{"index": 1, "voice": "echo"}]', "speed": "1.5"}
    fields |= dict.fromkeys(
        ("model", "stream_format", "captions", "progress", "seed"), "null"
    )  # as JavaScript sends null
    created = ann.http.post(JOBS, data=fields, files={"file": ("My book.md", BOOK)})
    assert created.status_code == 202, created.text
    job = created.json()
    assert (job["title"], job["voice"]) == ("My book", "nova")
    assert [(each["title"], each["voice"]) for each in job["chapters"]] == [
        ("The storm", None),
        ("The morning", "echo"),
    ]
    job = ann.completed(job["id"])
    assert ann.http.get(f"{JOBS}/{job['id']}/result").content.startswith(b"fLaC")
    one_by_one = {
        "chapters": ['{"index": 0, "voice": "nova"}', '{"index": 1, "voice": "echo"}'],
        "captions": ["srt", "vtt"],
    }
    created = ann.http.post(JOBS, data=one_by_one | {"paused": "true"}, files={"file": ("My book.md", BOOK)})
    assert [each["voice"] for each in created.json()["chapters"]] == ["nova", "echo"], created.text
    assert {each["voice"] for each in ann.get(f"{job['id']}/sentences")["data"]} == {"nova", "echo"}


def test_job_waits_while_it_is_paused(ann: Caller) -> None:
    job = ann.create(TWO | {"paused": True})
    assert job["status"] == "paused"
    path = f"/{job['id']}"
    assert ann.error("GET", f"{path}/result") == (409, "job_not_completed")
    changes = {"title": "Another", "chapters": [{"index": 0, "voice": "echo"}]}
    assert ann.http.patch(JOBS + path, json=changes).json()["chapters"][0]["voice"] == "echo"
    assert ann.post(f"{job['id']}/pause")["status"] == "paused"
    assert ann.post(f"{job['id']}/resume")["status"] in ("queued", "running")
    completed = ann.completed(job["id"])
    assert completed["title"] == "Another"
    assert ann.get(f"{job['id']}/sentences")["data"][0]["voice"] == "echo"
    assert ann.error("POST", f"{path}/pause") == (409, "wrong_job_status")
    assert ann.error("POST", f"{path}/resume") == (409, "wrong_job_status")
    assert ann.error("POST", f"{path}/retry") == (409, "wrong_job_status")


def test_cancelled_job_is_retried(ann: Caller) -> None:
    job = ann.create(TWO | {"paused": True})
    assert ann.post(f"{job['id']}/cancel")["status"] == "cancelled"
    assert ann.error("POST", f"/{job['id']}/resume") == (409, "wrong_job_status")
    assert ann.error("POST", f"/{job['id']}/sentences/0/redo") == (404, "not_found")
    assert ann.events(job["id"])[-1]["type"] == "job.cancelled"
    assert ann.post(f"{job['id']}/retry")["status"] in ("queued", "running")
    ann.completed(job["id"])


def test_sentence_is_redone_with_another_text_voice_and_seed(ann: Caller) -> None:
    job = ann.completed(ann.create()["id"])
    before = ann.http.get(f"{JOBS}/{job['id']}/result").content
    path = f"{job['id']}/sentences/1/redo"
    redone = ann.post(path, {"text": "The rain fell for seven days.", "voice": "nova", "seed": 5})
    assert (redone["text"], redone["voice"], redone["seed"], redone["take"]) == (
        "The rain fell for seven days.",
        "nova",
        5,
        1,
    )
    ann.completed(job["id"])
    assert ann.http.get(f"{JOBS}/{job['id']}/result").content != before
    assert ann.post(path)["seed"] != 5
    assert ann.error("POST", f"/{job['id']}/sentences/1/redo", json={"voice": "nobody"}) == (400, "voice_not_found")
    assert ann.error("POST", f"/{job['id']}/sentences/99/redo") == (404, "not_found")
    ann.completed(job["id"])


def test_deleted_job_is_gone(ann: Caller) -> None:
    job = ann.create()
    deleted = ann.http.delete(f"{JOBS}/{job['id']}").json()
    assert deleted == {"id": job["id"], "object": "audio.job.deleted", "deleted": True}
    assert ann.error("GET", f"/{job['id']}") == (404, "not_found")
    assert ann.error("DELETE", f"/{job['id']}") == (404, "not_found")


def test_repeated_request_with_the_same_key_returns_the_first_job(ann: Caller) -> None:
    key = {"Idempotency-Key": "once"}
    job = ann.create(TWO | {"seed": "random"}, **key)
    assert ann.create(TWO | {"seed": "random"}, **key)["id"] == job["id"]
    assert ann.error("POST", "", json=TWO | {"title": "Other"}, headers=key) == (409, "idempotency_key_in_use")
    empty = ann.http.post(JOBS, json=TWO, headers={"Idempotency-Key": ""})
    assert empty.status_code == 400
    assert empty.json()["error"]["message"] == "`Idempotency-Key`: must not be empty"
    long = ann.http.post(JOBS, json=TWO, headers={"Idempotency-Key": "k" * 256})
    assert long.json()["error"]["message"] == "`Idempotency-Key`: must have at most 255 characters"
    body = TWO | {"paused": True}
    assert ann.error("POST", "", json=body | {"seed": "random"}, headers=key) == (409, "idempotency_key_in_use")
    assert ann.error("POST", "", json=TWO, headers=key) == (409, "idempotency_key_in_use")


def test_each_key_sees_its_own_jobs_and_admin_sees_all(keys: dict[str, Caller], done: dict[str, Any]) -> None:
    theirs = keys["bob"].create(TWO | {"paused": True})
    assert [job["id"] for job in keys["bob"].http.get(JOBS).json()["data"]] == [theirs["id"]]
    paths = ["", "/result", "/sentences", "/events", "/sentences/0/audio"]
    for path in paths:
        assert keys["bob"].error("GET", f"/{done['id']}{path}") == (404, "not_found")
    for path in ("pause", "resume", "cancel", "retry", "sentences/0/redo"):
        assert keys["bob"].error("POST", f"/{done['id']}/{path}") == (404, "not_found")
    assert keys["bob"].error("DELETE", f"/{done['id']}") == (404, "not_found")
    assert keys["bob"].error("PATCH", f"/{done['id']}", json={"title": "Mine"}) == (404, "not_found")
    assert keys["root"].get(done["id"])["id"] == done["id"]
    assert theirs["id"] in [job["id"] for job in keys["root"].http.get(JOBS, params={"limit": 100}).json()["data"]]
    assert keys["singer"].error("GET", "") == (403, "missing_scope")
    assert httpx.get(f"{keys['ann'].http.base_url}{JOBS}").status_code == 401


def test_list_has_pages(ann: Caller, done: dict[str, Any]) -> None:
    ann.create(TWO | {"paused": True})
    first = ann.http.get(JOBS, params={"limit": 1}).json()
    assert (len(first["data"]), first["has_more"]) == (1, True)
    assert first["first_id"] == first["last_id"] == first["data"][0]["id"]
    second = ann.http.get(JOBS, params={"limit": 100, "after": first["last_id"]}).json()
    assert first["last_id"] not in [job["id"] for job in second["data"]]
    assert done["id"] in [job["id"] for job in second["data"]]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "empty_input", "input"),
    ({"input": " "}, "empty_input", "input"),
    ({"input": "One.", "chapters": [{"input": "Two."}]}, "invalid_value", "chapters"),
    ({"chapters": []}, "too_short", "chapters"),
    ({"chapters": [{"title": "No text"}]}, "empty_input", "chapters.0.input"),
    ({"chapters": [{"input": "One.", "index": 0}]}, "invalid_value", "chapters.0.index"),
    ({"chapters": [{"input": "One.", "emotion": "sad"}]}, "extra_forbidden", "chapters.0.emotion"),
    ({"input": "One.", "voice": "nobody"}, "voice_not_found", "voice"),
    ({"chapters": [{"input": "One.", "voice": "nobody"}]}, "voice_not_found", "chapters.0.voice"),
    ({"input": "One.", "response_format": "aac"}, "literal_error", "response_format"),
    ({"input": "One.", "captions": "doc"}, "literal_error", "captions.0"),
    ({"input": "One.", "loudness": -90}, "greater_than_equal", "loudness"),
    ({"input": "One.", "temperature": 0.5}, "unsupported_parameter", "temperature"),
]


@pytest.mark.parametrize(("body", "code", "param"), WRONG, ids=[json.dumps(row[0])[:50] for row in WRONG])
def test_wrong_request_is_refused_at_once(ann: Caller, body: dict[str, Any], code: str, param: str) -> None:
    answer = ann.http.post(JOBS, json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_indexes_above_every_limit_are_refused(ann: Caller, done: dict[str, Any]) -> None:
    path, many = f"/{done['id']}", 10**20
    for query in ("chapter", "after"):
        assert ann.error("GET", f"{path}/sentences?{query}={many}") == (400, "less_than_equal")
    assert ann.error("GET", f"{path}/sentences/{many}/audio") == (400, "less_than_equal")
    assert ann.error("POST", f"{path}/sentences/{many}/redo") == (400, "less_than_equal")
    chapters = {"chapters": [{"index": many, "voice": "nova"}]}
    assert ann.error("PATCH", path, json=chapters) == (400, "less_than_equal")


def test_half_of_a_character_is_no_internal_error(ann: Caller) -> None:
    body = b'{"input": "One \\ud800 word.", "paused": true}'
    made = ann.http.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert made.status_code == 202
    assert ann.http.delete(f"{JOBS}/{made.json()['id']}").status_code == 200


def test_unknown_model_and_wrong_files_are_refused_at_once(ann: Caller) -> None:
    assert ann.error("POST", "", json=TWO | {"model": "gpt-5"}) == (404, "model_not_found")
    assert ann.error("POST", "", files={"file": ("a.exe", b"MZ")})[0] == 400
    assert ann.error("POST", "", files={"file": ("a.txt", b"")})[0] == 400
    fields = {"chapters": '[{"index": 7, "voice": "echo"}]'}
    assert ann.error("POST", "", data=fields, files={"file": ("a.md", BOOK)}) == (400, "invalid_value")
    assert ann.error("POST", "", data={"input": "One."}, files={"file": ("a.md", BOOK)}) == (400, "invalid_value")


def test_fields_without_an_effect_are_named(ann: Caller) -> None:
    body = TWO | {"stream_format": "sse", "cache": False, "instructions": "Whisper.", "mood": 1, "paused": True}
    answer = ann.http.post(JOBS, json=body)
    assert sorted(answer.headers["x-tts-ignored"].split(", ")) == ["cache", "instructions", "mood", "stream_format"]


def test_speech_fields_act(ann: Caller, done: dict[str, Any]) -> None:
    def spoken(**fields: Any) -> float:
        job = ann.completed(ann.create(TWO | fields)["id"])
        return float(job["progress"]["seconds_done"])

    plain = done["progress"]["seconds_done"]
    assert spoken(speed=2.0) == pytest.approx(plain / 2, rel=0.1)
    assert spoken(lexicon=[{"word": "rain", "say": "very long and cold winter rain"}]) > plain + 1
    job = ann.completed(ann.create(TWO | {"sample_rate": 8000})["id"])
    with wave.open(io.BytesIO(ann.http.get(f"{JOBS}/{job['id']}/result").content)) as file:
        assert file.getframerate() == 8000


def test_official_client_does_not_repeat_a_conflict(ann: Caller) -> None:
    job = ann.create(TWO | {"paused": True})
    key = ann.http.headers["authorization"].removeprefix("Bearer ")
    with (
        openai.OpenAI(base_url=f"{ann.http.base_url}/v1", api_key=key) as client,
        pytest.raises(openai.ConflictError) as caught,
    ):
        client.get(f"/audio/jobs/{job['id']}/result", cast_to=httpx.Response)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_captions_have_the_times_of_the_result(ann: Caller) -> None:
    waiting = ann.create(TWO | {"paused": True})
    assert ann.error("GET", f"/{waiting['id']}/captions") == (409, "job_not_completed")
    job = ann.completed(ann.create(TWO | {"captions": "srt"})["id"])
    path = f"{JOBS}/{job['id']}/captions"
    srt = ann.http.get(path)
    assert srt.headers["content-type"].startswith("application/x-subrip")
    assert "It was a dark and cold night." in srt.text
    words = ann.http.get(path, params={"format": "json"}).json()["words"]
    assert [word["word"] for word in words][-1].startswith("again")
    assert words[-1]["end"] == pytest.approx(job["result"]["seconds"] - 1.5, abs=0.5)
    for kind in ("vtt", "lrc"):
        assert "quiet" in ann.http.get(path, params={"format": kind}).text
    assert ann.error("GET", f"/{job['id']}/captions", params={"format": "doc"}) == (400, "literal_error")


def test_chatterbox_clients_find_their_paths_and_fields(ann: Caller) -> None:
    http, path = ann.http, "/v1/audio/speech/long"
    body = {"input": "It was late in the year. The boat was old.", "voice": "nova", "response_format": "wav"}
    created = http.post(path, json=body | {"quality_preset": "high", "session_id": "a"})
    assert sorted(created.headers["x-tts-ignored"].split(", ")) == ["quality_preset", "session_id"]
    job = created.json()
    assert {"job_id", "status", "estimated_processing_time_seconds", "total_chunks", "message"} < job.keys()
    with http.stream("GET", job["sse_url"]) as stream:
        lines = [line for line in stream.iter_lines() if line and not line.startswith(":")]
    assert [line for line in lines[-2:] if line.startswith("event")] == ["event: completed"]
    progress = json.loads(lines[-3].removeprefix("data: "))
    assert (progress["status"], progress["progress"], progress["total_chunks"]) == ("completed", 100, 2)
    state = http.get(job["status_url"]).json()
    assert (state["status"], state["can_pause"], state["can_resume"]) == ("completed", False, False)
    assert seconds_of(http.get(state["download_url"]).content) > 2
    assert [each["status"] for each in http.get(job["status_url"] + "/details").json()["chunks"]] == ["done", "done"]
    change = {"display_name": "A boat", "tags": ["draft"], "is_archived": True}
    assert http.patch(job["status_url"], json=change).json()["metadata"]["display_name"] == "A boat"
    page = http.get("/v1/audio/speech/long-history", params={"limit": 1, "include_archived": True}).json()
    assert len(page["jobs"]) == 1
    assert page["total"] == http.get("/v1/audio/speech/long-history/stats").json()["total_jobs"] > 1
    listed = http.get("/v1/audio/speech/long-history").json()["jobs"]
    assert job["job_id"] not in [each["job_id"] for each in listed]
    listed = http.get("/v1/audio/speech/long-history", params={"include_archived": True}).json()["jobs"]
    assert listed[0]["job_id"] == job["job_id"]
    assert http.get("/v1/audio/speech/long-history/stats").json()["by_status"]["completed"] >= 1

    other = http.post(path, json=body | {"paused": True}).json()["status_url"]
    assert http.get(other + "/download").status_code == 409
    assert http.put(other + "/pause").json()["can_resume"]
    assert http.delete(other, params={"action": "cancel"}).json()["status"] == "cancelled"
    assert http.put(other + "/resume").status_code == 409
    assert http.post(other + "/retry", json={"preserve_chunks": True}).json()["status"] in (
        "pending",
        "chunking",
        "processing",
    )
    assert http.put(other + "/pause").json()["status"] == "paused"
    assert http.put(other + "/resume").json()["status"] != "paused"
    assert http.delete(other).json()["status"] == "deleted"
    assert http.get(other).status_code == 404


def test_server_without_jobs_has_no_such_route(tmp_path: Path) -> None:
    with serving(tmp_path, wait=False, TTS_JOBS_MAX_CHARS=0) as url:
        assert httpx.get(url + JOBS).status_code == 404
    assert not (tmp_path / "jobs").exists()


def test_listener_of_events_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    with Process(tmp_path, TTS_SHUTDOWN_GRACE_S="60") as process:
        process.wait()
        body = {"input": "This sentence takes a while to say, and there are many of them. " * 100}
        with httpx.Client(base_url=process.url, timeout=120) as http:
            job = http.post(JOBS, json=body).json()
            with http.stream("GET", f"{JOBS}/{job['id']}/events") as stream:
                lines = stream.iter_lines()
                next(lines)
                process.child.terminate()
                for _ in lines:
                    pass
        assert process.child.wait(20) is not None
