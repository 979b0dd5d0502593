"""Pronunciation dictionaries over HTTP: their effect on speech, permissions to change them, and restarts."""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.generator import lexicons as lexicons_module
from app.keys import SCOPES, KeyFile
from tests.integration.test_api_routes import problem
from tests.support import samples
from tests.support.live import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

LEXICON = "/v1/audio/lexicon"
TEXT = "The SQL server runs."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server_url(folder: Path) -> Iterator[str]:
    with serving(folder) as url:
        yield url


@pytest.fixture
def http(server_url: str, folder: Path) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=60) as client:
        yield client
        client.put(LEXICON, json={"entries": []}).raise_for_status()
        (folder / "lexicons" / "lexicon.tsv").unlink(missing_ok=True)  # it keeps lines that can't be read
        for path in {*(folder / "lexicons").glob("*.tsv")} - {folder / "lexicons" / "lexicon.tsv"}:
            client.put(LEXICON, params={"voice": path.stem}, json={"entries": []}).raise_for_status()


def refused(answer: httpx.Response) -> tuple[int, str | None]:
    """Return the status and the `param` of an error."""
    return answer.status_code, problem(answer)["param"]


def put(http: httpx.Client, *entries: tuple[str, str], voice: str | None = None) -> dict[str, Any]:
    body = {"entries": [{"word": word, "say": say} for word, say in entries]}
    answer = http.put(LEXICON, json=body, params={"voice": voice} if voice else {})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def speak(http: httpx.Client, text: str = TEXT, **fields: Any) -> httpx.Response:
    answer = http.post("/v1/audio/speech", json={"input": text, "response_format": "pcm", **fields})
    assert answer.status_code == 200, answer.text
    return answer


def progress_texts(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """Return the texts of the `speech.progress` events, which the engine speaks."""
    answer = http.post(path, json={**body, "stream_format": "sse", "progress": True, "cache": False})
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return " ".join(event["text"] for event in map(json.loads, events) if event["type"] == "speech.progress")


def test_entries_are_stored_listed_and_deleted(http: httpx.Client, folder: Path) -> None:
    assert http.get(LEXICON).json() == {"entries": [], "problems": []}
    stored = put(http, ("SQL", "sequel"), ("24/7", "around the clock"))
    assert stored["entries"][0] == {"word": "SQL", "say": "sequel", "case_sensitive": False, "ipa": None}
    assert http.get("/api/v1/audio/lexicon").json() == stored
    assert (folder / "lexicons" / "lexicon.tsv").read_text() == "SQL\tsequel\n24/7\taround the clock\n"
    assert http.put(LEXICON, json=stored).json() == stored  # PUT accepts the body that GET returns
    deleted = http.delete(f"{LEXICON}/24%2F7")
    assert deleted.json()["entries"][0]["word"] == "24/7"
    assert http.delete(f"{LEXICON}/sql").json()["deleted"] is True
    assert refused(http.delete(f"{LEXICON}/sql")) == (404, "word")
    assert http.get(LEXICON).json()["entries"] == []


def test_new_entry_changes_only_the_speech_of_texts_with_its_word(http: httpx.Client) -> None:
    text, other_text = "Only this test speaks of SQL.", "Nothing of that kind is here."
    plain, other = speak(http, text), speak(http, other_text)
    assert speak(http, text).headers["x-cache"] == "hit"
    put(http, ("SQL", "sequel"))
    changed = speak(http, text)
    assert changed.headers["x-cache"] == "miss"
    assert changed.content != plain.content
    assert changed.headers["x-tts-seed"] == plain.headers["x-tts-seed"]
    again = speak(http, other_text)
    assert (again.headers["x-cache"], again.content) == ("hit", other.content)
    assert speak(http, text).headers["x-cache"] == "hit"
    put(http)
    assert speak(http, text).content == plain.content


def test_entries_of_a_request_replace_those_of_the_voice_and_the_server(http: httpx.Client) -> None:
    put(http, ("SQL", "server"))
    put(http, ("sql", "voice"), voice="nova")
    path = "/v1/audio/speech"
    body = {"input": TEXT, "voice": "nova"}
    assert progress_texts(http, path, {"input": TEXT}) == "The server server runs."
    assert progress_texts(http, path, body) == "The voice server runs."
    assert (
        progress_texts(http, path, {**body, "lexicon": [{"word": "SQL", "say": "request"}]})
        == "The request server runs."
    )
    assert http.get(LEXICON, params={"voice": "Nova"}).json()["entries"][0]["say"] == "voice"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/audio/speech", {"input": TEXT}),
        ("/v1/audio/speech/streaming", {"input": TEXT}),
        ("/api/v1/audio/speech/stream", {"input": TEXT}),
        ("/v1/audio/conversation", {"text": TEXT}),
        ("/v1/audio/dialogue", {"turns": [{"text": "The SQL"}, {"text": "server runs.", "voice": "echo"}]}),
        ("/v1/voice-cloning/generate", {"text": TEXT, "voice_id": "nova"}),
        ("/v1/voice-cloning/voices/nova/preview", {"text": TEXT}),
        ("/v1/audio/speech", {"input": TEXT, "normalize": False}),
        ("/v1/audio/speech", {"input": TEXT, "language": "de"}),
    ],
)
def test_lexicon_changes_the_speech_of_every_route(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    entry = {"word": "sql", "say": "sequel"}
    assert progress_texts(http, path, {**body, "lexicon": [entry]}) == "The sequel server runs."
    put(http, ("SQL", "sequel"))
    assert progress_texts(http, path, body) == "The sequel server runs."


def test_entries_of_a_request_are_part_of_its_cache_key(http: httpx.Client) -> None:
    first = speak(http, "An SQL query", lexicon=[{"word": "SQL", "say": "sequel"}])
    assert first.headers["x-cache"] == "miss"
    assert speak(http, "An SQL query", lexicon=[{"word": "SQL", "say": "sequel"}]).headers["x-cache"] == "hit"
    assert speak(http, "An SQL query", lexicon=[{"word": "SQL", "say": "squeal"}]).headers["x-cache"] == "miss"
    unrelated = [{"word": "SQL", "say": "sequel"}, {"word": "York", "say": "yawk"}]
    assert speak(http, "An SQL query", lexicon=unrelated).headers["x-cache"] == "hit"
    put(http, ("SQL", "sequel"))  # the server's dictionary gives the same pronunciation
    assert (speak(http, "An SQL query").headers["x-cache"], speak(http, "An SQL query").content) == (
        "hit",
        first.content,
    )


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ([{"word": "", "say": "x"}], "0.word"),
        ([{"word": "a", "say": "x"}, {"word": "b", "say": "."}], "1.say"),
        ([{"word": "a", "say": "x"}, {"word": "A", "say": "y"}], "1.word"),
        ([{"word": "a", "ipa": "5"}], "0.ipa"),
        ([{"say": "x"}], "0.word"),
        ([{"word": 5, "say": "x"}], "0.word"),
        ([{"word": "a", "say": "x", "case": True}], "0.case"),
        ([{"word": "a" * 201, "say": "x"}], "0.word"),
        ([{"word": "a"}], "0.say"),
    ],
)
def test_position_of_an_invalid_entry_is_in_the_error(
    http: httpx.Client, entries: list[dict[str, Any]], place: str
) -> None:
    assert refused(http.put(LEXICON, json={"entries": entries})) == (400, f"entries.{place}")
    answer = http.post("/v1/audio/speech", json={"input": TEXT, "lexicon": entries})
    assert refused(answer) == (400, f"lexicon.{place}")
    assert http.get(LEXICON).json()["entries"] == []


def test_too_many_entries_are_a_400(http: httpx.Client) -> None:
    entries = [{"word": f"w{number}", "say": "x"} for number in range(10_001)]
    assert refused(http.put(LEXICON, json={"entries": entries})) == (400, "entries")
    assert http.put(LEXICON, json={"entries": entries[:-1]}).status_code == 200
    speak(http, "w77 and w78")


def test_offline_voice_speaks_ipa(http: httpx.Client) -> None:
    entry = {"word": "SQL", "ipa": "\u02c8si\u02d0kw\u0259l"}
    plain, spelled = speak(http), speak(http, lexicon=[{"word": "SQL", "say": "sequel"}])
    pronounced = speak(http, lexicon=[entry])
    assert pronounced.headers.get("x-tts-ignored") is None
    assert pronounced.content != plain.content
    assert len(pronounced.content) == pytest.approx(len(spelled.content), rel=0.1)
    other = speak(http, lexicon=[{**entry, "ipa": "\u02c8skw\u026a\u0279\u0259l"}])
    assert (other.headers["x-cache"], other.content == pronounced.content) == ("miss", False)
    both = {**entry, "say": "squirrel"}
    assert progress_texts(http, "/v1/audio/speech", {"input": TEXT, "lexicon": [both]}) == "The squirrel server runs."


def test_ipa_of_an_engine_without_ipa_is_replaced_or_refused(http: httpx.Client) -> None:
    unknown = {"word": "Brun", "ipa": "b\u0281\u0153\u0303"}
    body = {"input": "Brun is here.", "response_format": "pcm"}
    assert refused(http.post("/v1/audio/speech", json={**body, "lexicon": [unknown]})) == (400, "lexicon.0.ipa")
    with_say = speak(http, body["input"], lexicon=[{**unknown, "say": "brown"}])
    assert with_say.content == speak(http, body["input"], lexicon=[{"word": "Brun", "say": "brown"}]).content
    german = {**body, "language": "de", "lexicon": [{"word": "Brun", "ipa": "b\u0279\u028cn"}]}
    assert refused(http.post("/v1/audio/speech", json=german)) == (400, "lexicon.0.ipa")
    assert http.put(LEXICON, json={"entries": [unknown]}).status_code == 200
    ignored = speak(http, body["input"])
    assert ignored.headers["x-tts-ignored"] == "lexicon"
    assert "x-tts-ignored" not in speak(http).headers


@pytest.mark.parametrize("voice", ["nobody", "draft_x", ""])
def test_dictionary_of_an_unknown_voice_is_a_404(http: httpx.Client, voice: str) -> None:
    assert refused(http.get(LEXICON, params={"voice": voice})) == (404, "voice")
    assert refused(http.put(LEXICON, params={"voice": voice}, json={"entries": []})) == (404, "voice")


def test_scopes(tmp_path: Path) -> None:
    keys = {scope: KeyFile(tmp_path).add(scope, [scope]) for scope in SCOPES}
    body = {"entries": [{"word": "SQL", "say": "sequel"}]}
    with serving(tmp_path) as url, httpx.Client(base_url=url) as http:
        for scope, key in keys.items():
            headers = {"Authorization": f"Bearer {key}"}
            assert http.get(LEXICON, headers=headers).status_code == (200 if scope == "speak" else 403)
            allowed = 200 if scope == "clone" else 403
            assert http.put(LEXICON, headers=headers, json=body).status_code == allowed
            assert http.delete(f"{LEXICON}/SQL", headers=headers).status_code == allowed
        assert http.get(LEXICON).status_code == 401


def test_restart_keeps_entries_and_an_edited_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexicons_module, "CHECK_FILES_S", 0.0)
    with serving(tmp_path) as url, httpx.Client(base_url=url) as http:
        put(http, ("SQL", "sequel"))
        put(http, ("York", "yawk"), voice="nova")
        spoken = speak(http).content
    with (tmp_path / "lexicons" / "lexicon.tsv").open("a") as file:
        file.write("this line is broken\n")
    with serving(tmp_path) as url, httpx.Client(base_url=url) as http:
        assert [entry["word"] for entry in http.get(LEXICON).json()["entries"]] == ["SQL"]
        assert http.get(LEXICON).json()["problems"][0].startswith("lexicon.tsv, line 2: The line has no tab.")
        assert [entry["word"] for entry in http.get(LEXICON, params={"voice": "nova"}).json()["entries"]] == ["York"]
        again = speak(http)
        assert (again.headers["x-cache"], again.content) == ("hit", spoken)
        (tmp_path / "lexicons" / "lexicon.tsv").write_text("SQL\tsquirrel\n")
        assert progress_texts(http, "/v1/audio/speech", {"input": TEXT}) == "The squirrel server runs."


def test_dictionary_of_a_cloned_voice_is_exported_imported_and_deleted(http: httpx.Client, folder: Path) -> None:
    files = {"audio_file": ("a.wav", samples.file(samples.speech(), "wav"))}
    fields = {"name": "Ada", "transcript": samples.TEXT}
    voice = http.post("/v1/voice-cloning/clone", data=fields, files=files).json()["voice"]["id"]
    put(http, ("SQL", "squeal"), voice="ada")
    assert (folder / "cloned_voices" / voice / "lexicon.tsv").read_text() == "SQL\tsqueal\n"
    exported = http.get(f"/v1/voice-cloning/voices/{voice}/export").content
    assert zipfile.ZipFile(io.BytesIO(exported)).read("lexicon.tsv") == b"SQL\tsqueal\n"
    imported = http.post("/v1/voice-cloning/import", files={"file": ("voice.zip", exported)}).json()["voice"]["id"]
    assert http.get(LEXICON, params={"voice": imported}).json()["entries"][0]["say"] == "squeal"
    assert http.get("/v1/voice-cloning/voices").json()["problems"] == {}
    for each in (voice, imported):
        http.delete(f"/v1/voice-cloning/voices/{each}").raise_for_status()
        assert http.get(LEXICON, params={"voice": each}).status_code == 404


def test_parallel_puts_leave_one_complete_dictionary(http: httpx.Client) -> None:
    lists = [[(f"word{number}x{place}", f"say {number}") for place in range(300)] for number in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda entries: put(http, *entries), lists))
    found = [(entry["word"], entry["say"]) for entry in http.get(LEXICON).json()["entries"]]
    assert found in lists
    assert [[(entry["word"], entry["say"]) for entry in answer["entries"]] for answer in answers] == lists


# ---- ETag


def tag(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["etag"])


def test_etag_names_the_state_of_a_dictionary(http: httpx.Client, folder: Path) -> None:
    empty = tag(http.get(LEXICON))
    assert empty == tag(http.get(LEXICON, params={"voice": "nova"}))  # equal bodies
    first = http.put(LEXICON, json={"entries": [{"word": "SQL", "say": "sequel"}]})
    assert tag(http.get(LEXICON)) == tag(first) != empty
    assert tag(http.get(LEXICON, params={"voice": "nova"})) == empty
    assert tag(http.put(LEXICON, json=first.json())) == tag(first)
    (folder / "lexicons" / "lexicon.tsv").write_text("SQL\tsequel\nbroken\n")  # only `problems` differs
    assert tag(http.get(LEXICON)) not in (tag(first), empty)
    assert tag(http.delete(f"{LEXICON}/SQL")) == tag(http.get(LEXICON)) == empty
    assert http.head(LEXICON).headers["etag"] == empty


def test_second_of_two_editors_gets_a_412_and_nothing_is_stored(http: httpx.Client) -> None:
    def edit(word: str, seen: str) -> httpx.Response:
        body = {"entries": [{"word": word, "say": "x"}]}
        return http.put(LEXICON, json=body, headers={"If-Match": seen})

    seen = tag(http.get(LEXICON))
    first = edit("ours", seen)
    second = edit("theirs", seen)
    assert second.status_code == 412
    error = problem(second)
    assert (error["code"], error["param"], error["type"]) == ("precondition_failed", None, "invalid_request_error")
    assert "If-Match" in error["message"]
    assert [entry["word"] for entry in http.get(LEXICON).json()["entries"]] == ["ours"]
    assert edit("theirs", tag(first)).status_code == 200
    refused_delete = http.delete(f"{LEXICON}/theirs", headers={"If-Match": tag(first)})
    assert (refused_delete.status_code, problem(refused_delete)["code"]) == (412, "precondition_failed")
    assert http.delete(f"{LEXICON}/theirs", headers={"If-Match": tag(http.get(LEXICON))}).status_code == 200
    assert http.get(LEXICON).json()["entries"] == []


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("*", 200),
        ("{now}", 200),
        ('"other", {now}', 200),
        ('{now},"other"', 200),
        ('W/"other" , {now}', 200),
        ('"other"', 412),
        ('""', 412),
        ("", 412),
        ("W/{now}", 412),  # RFC 9110: If-Match compares strongly
        ("{bare}", 412),
        ('"{bare}', 412),
        ('"*"', 412),
        ('"x{bare}"', 412),
    ],
)
def test_if_match_accepts_a_list_of_tags(http: httpx.Client, header: str, status: int) -> None:
    now = tag(http.get(LEXICON))
    sent = {"If-Match": header.format(now=now, bare=now.strip('"'))}
    body = {"entries": [{"word": "SQL", "say": "sequel"}]}
    assert http.put(LEXICON, json=body, headers=sent).status_code == status
    assert bool(http.get(LEXICON).json()["entries"]) == (status == 200)


@pytest.mark.parametrize(
    ("header", "status"),
    [("*", 304), ("{now}", 304), ("W/{now}", 304), ('"a", W/{now}', 304), ('"other"', 200), ("", 200), ("x", 200)],
)
def test_response_to_a_matching_if_none_match_has_no_body(http: httpx.Client, header: str, status: int) -> None:
    put(http, ("SQL", "sequel"))
    now = tag(http.get(LEXICON))
    answer = http.get(LEXICON, headers={"If-None-Match": header.format(now=now)})
    assert (answer.status_code, answer.headers["etag"]) == (status, now)
    assert answer.headers["cache-control"] == "no-cache"
    assert bool(answer.content) == (status == 200)
    put(http, ("SQL", "squeal"))
    assert http.get(LEXICON, headers={"If-None-Match": now}).status_code == 200


def test_other_errors_have_priority_over_status_412(http: httpx.Client) -> None:
    old = {"If-Match": '"old"'}
    assert http.put(LEXICON, json={"entries": [{"word": ""}]}, headers=old).status_code == 400
    assert http.put(LEXICON, params={"voice": "nobody"}, json={"entries": []}, headers=old).status_code == 404
    assert http.delete(f"{LEXICON}/none", headers=old).status_code == 412
    assert http.delete(f"{LEXICON}/none").status_code == 404


def test_only_one_of_many_editors_with_the_same_etag_wins(http: httpx.Client) -> None:
    headers = {"If-Match": tag(http.get(LEXICON))}
    bodies = [{"entries": [{"word": f"word{number}", "say": "x"}]} for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: http.put(LEXICON, json=body, headers=headers), bodies))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    (stored,) = (answer for answer in answers if answer.status_code == 200)
    assert http.get(LEXICON).json() == stored.json()


def test_changed_file_is_not_overwritten(http: httpx.Client, folder: Path) -> None:
    seen = tag(http.get(LEXICON))
    (folder / "lexicons" / "lexicon.tsv").write_text("SQL\tby hand\n")
    assert http.put(LEXICON, json={"entries": []}, headers={"If-Match": seen}).status_code == 412
    assert http.get(LEXICON).json()["entries"][0]["say"] == "by hand"


def test_page_of_another_origin_can_read_the_etag(tmp_path: Path) -> None:
    origin = {"Origin": "https://studio.example"}
    with serving(tmp_path, TTS_CORS_ORIGINS=origin["Origin"]) as url:
        answer = httpx.get(url + LEXICON, headers=origin)
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert "etag" in exposed & answer.headers.keys()
