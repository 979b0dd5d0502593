"""Paths, names and bodies as clients of other servers send them, and requests from web pages of other origins."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support import samples
from tests.support.live import free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SPEECH = {"input": "Hello there.", "response_format": "wav"}
KEY = "a-key-for-the-wire-1"


def error(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    return body  # type: ignore[no-any-return]


# ---- paths


@pytest.mark.parametrize(
    "path",
    [
        "/v1//audio/speech",
        "//v1/audio//speech",
        "/v1/audio/speech/",
        "/v1/audio/speech//",
        "/v1/v1/audio/speech",
        "/v1/v1/v1/audio/speech/",
        "/api/v1/v1/audio/speech",
        "/api/v1//audio/speech/stream/",
        "/audio/speech",
        "/audio/speech/",
        "/api/audio/speech",
        "/openai/v1/audio/speech",
        "/openai/audio/speech",
        "/openai/deployments/tts-1/audio/speech?api-version=2025-03-01-preview",
        "/openai/deployments/espeak/audio/speech?api-version=2024-02-15",
        "/openai/deployments/TTS-1-HD/audio/speech/",
        "/v1/audio/speech%20",
    ],
)
def test_other_spellings_of_the_speech_path_are_served(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=SPEECH, follow_redirects=False)
    assert answer.status_code == 200
    assert answer.content[:4] == b"RIFF"


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("/models", "/v1/models"),
        ("/models/", "/v1/models"),
        ("/models/tts-1", "/v1/models/tts-1"),
        ("/v1/models/", "/v1/models"),
        ("/openai/models?api-version=1", "/v1/models"),
        ("/openai/v1/models/tts-1", "/v1/models/tts-1"),
        ("/audio/voices", "/v1/audio/voices"),
        ("/v1/v1/audio/voices", "/v1/audio/voices"),
        ("/voice-cloning/voices", "/v1/voice-cloning/voices"),
        ("/health/", "/health"),
        ("//docs", "/docs"),
        ("/voice-cloning/", "/voice-cloning"),
        ("/dialogue//", "/dialogue"),
    ],
)
def test_other_spellings_of_other_paths_are_served(http: httpx.Client, path: str, like: str) -> None:
    answer, usual = http.get(path, follow_redirects=False), http.get(like)
    assert answer.status_code == usual.status_code == 200
    if "json" in usual.headers["content-type"] and path[:7] != "/health":
        assert answer.json() == usual.json()
    assert http.head(path).status_code == 200


def test_model_of_an_azure_path_is_used(http: httpx.Client) -> None:
    path = "/openai/deployments/{}/audio/speech?api-version=2025-03-01-preview"
    answer = http.post(path.format("my-deployment"), json=SPEECH | {"model": "tts-1"})
    assert answer.status_code == 404
    assert (error(answer)["code"], error(answer)["param"]) == ("model_not_found", "model")
    assert "my-deployment" in error(answer)["message"]
    assert http.post(path.format("dia-1.6b"), json=SPEECH).headers["x-tts-ignored"] == "model"


def test_uploads_have_the_same_limit_under_other_spellings(http: httpx.Client) -> None:
    form: dict[str, Any] = {"data": {"name": "Ada"}, "files": {"audio_file": b"x" * 2_000_000}}
    for path in ("/v1/voice-cloning/clone", "/v1//voice-cloning/clone/", "/voice-cloning/clone"):
        # the status is not 413: the limit holds, but the file is no recording
        assert http.post(path, **form).status_code == 400


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/audio/speach", "/v1/audio/speech"),
        ("/v1/audio/Speech", "/v1/audio/speech"),
        ("/v1/speech", "/v1/audio/speech"),
        ("/v1/tts", "/v1/audio/speech"),
        ("/api/tts", "/v1/audio/speech"),
        ("/v1/audio/voice", "/v1/audio/voices"),
        ("/v1/speakers/list", "/v1/audio/voices"),
        ("/v1/model", "/v1/models"),
        ("/v1/audio/dialog", "/v1/audio/dialogue"),
        ("/helth", "/health"),
        ("/doc", "/docs"),
    ],
)
def test_similar_path_is_suggested(http: httpx.Client, path: str, near: str) -> None:
    for answer in (http.get(path), http.post(path, json=SPEECH)):
        assert answer.status_code == 404
        if path == "/swagger/docs":
            assert "/docs" in error(answer)["message"]
        else:
            assert f"Did you mean {near}?" in error(answer)["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/wp-login.php", "/v1/embeddings", "/.env", "/" + "a" * 3000])
def test_unrelated_path_gets_no_suggestion(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert "Did you mean" not in error(answer)["message"]
    assert len(answer.content) < 400


# ---- names


@pytest.mark.parametrize(
    ("model", "ignored"),
    [
        ("espeak", False),
        ("eSpeak", False),
        ("espeak-ng", False),
        ("", False),
        ("TTS-1", False),
        ("openai/tts-1", False),
        ("openai/gpt-4o-mini-tts", False),
        ("gpt-4o-mini-tts-2026-01-01", False),
        ("kokoro", False),
        ("hexgrad/Kokoro-82M", False),
        ("speaches-ai/Kokoro-82M-v1.0-ONNX", False),
        ("csm-1b", True),
        ("CSM-1B", True),
        ("csm", True),
        ("sesame/csm-1b", True),
        ("dia", True),
        ("dia-1.6b", True),
        ("nari-labs/Dia-1.6B-0626", True),
        ("nari-labs/Dia-1.6B", True),
    ],
)
def test_model_names_of_clients_are_accepted(http: httpx.Client, model: str, ignored: bool) -> None:
    answer = http.post("/v1/audio/speech", json=SPEECH | {"model": model})
    assert answer.status_code == 200
    assert answer.headers["x-tts-engine"] == "espeak"
    assert answer.headers.get("x-tts-ignored") == ("model" if ignored else None)
    if model:
        listed = http.get(f"/v1/models/{model}")
        assert listed.status_code == 200
        assert listed.json()["id"] == model


@pytest.mark.parametrize("model", ["gpt-5", "tts-2", "whisper-1", "dia-2", "gpt-4o-mini-tts-x", "csm-1b-pro", "koko"])
def test_unknown_models_stay_unknown(http: httpx.Client, model: str) -> None:
    answer = http.post("/v1/audio/speech", json=SPEECH | {"model": model})
    assert answer.status_code == 404
    assert error(answer)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("kokoro", "ours"),
    [
        ("af_nova", "nova"),
        ("am_echo", "echo"),
        ("am_onyx", "onyx"),
        ("bm_fable", "fable"),
        ("AF_ALLOY", "alloy"),
        ("af_nova+am_echo", "nova"),
        ("af_nova(2)+af_sky(1)", "nova"),
    ],
)
def test_kokoro_voice_is_a_standard_voice(http: httpx.Client, kokoro: str, ours: str) -> None:
    answers = [http.post("/v1/audio/speech", json=SPEECH | {"voice": voice}) for voice in (kokoro, ours)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content[44:] == answers[1].content[44:]  # the header of a cached answer has its length


@pytest.mark.parametrize("voice", ["xf_nova", "af_", "af_nova+", "af_nova+nobody", "a_nova", "heart"])
def test_other_names_are_not_kokoro_voices(http: httpx.Client, voice: str) -> None:
    answer = http.post("/v1/audio/speech", json=SPEECH | {"voice": voice})
    assert error(answer)["code"] == "voice_not_found"


# ---- bodies


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Content-Encoding": "gzip"}, gzip.compress(json.dumps(SPEECH).encode(), mtime=0)),
        ({"Content-Encoding": "deflate"}, zlib.compress(json.dumps(SPEECH).encode())),
        ({"Content-Encoding": "identity"}, json.dumps(SPEECH).encode()),
        ({"Content-Type": "application/json; charset=latin-1"}, b'{"input": "caf\xe9", "response_format": "wav"}'),
        ({"Content-Type": "application/json; charset=utf-16"}, json.dumps(SPEECH).encode("utf-16")),
        ({}, b'{"input": "caf\xe9", "response_format": "wav"}'),
        ({}, b'\xef\xbb\xbf{"input": "one\ntwo\tthree", "response_format": "WAV", "speed": "1.0", "cache": "false"}'),
    ],
)
def test_unusual_bodies_are_spoken(http: httpx.Client, headers: dict[str, str], content: bytes) -> None:
    answer = http.post("/v1/audio/speech", content=content, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == 200, answer.text
    assert answer.content[:4] == b"RIFF"


def test_latin_1_body_has_the_same_audio_as_utf_8(http: httpx.Client) -> None:
    text = {"input": "Café à Genève.", "response_format": "wav"}
    latin = json.dumps(text, ensure_ascii=False).encode("latin-1")
    answer = http.post("/v1/audio/speech", content=latin, headers={"Content-Type": "application/json"})
    assert answer.content[44:] == http.post("/v1/audio/speech", json=text).content[44:]


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"Content-Encoding": "br"}, b"x", 400, "unsupported_content_encoding"),
        ({"Content-Encoding": "gzip"}, b'{"input": "x"}', 400, "invalid_content_encoding"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b'{"input": "x"}', mtime=0)[:-4], 400, "invalid_content_encoding"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 20_000_000, mtime=0), 413, "request_too_large"),
        ({"Content-Type": "application/json; charset=klingon"}, b"{}", 400, "unsupported_charset"),
        ({}, b'{"input": "caf\xff"}', 400, "invalid_utf8"),
        ({}, b'{"input": "x",}', 400, "invalid_json"),
        ({}, b"[" * 5000, 400, "json_too_deep"),
    ],
)
def test_unreadable_bodies_have_a_code(
    http: httpx.Client, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    for path in ("/v1/audio/speech", "/v1/audio/dialogue", "/v1/voice-cloning/voices/nova/preview"):
        answer = http.post(path, content=content, headers={"Content-Type": "application/json"} | headers)
        assert (answer.status_code, error(answer)["code"]) == (status, code)


def test_compressed_upload_form_is_read(http: httpx.Client) -> None:
    request = http.build_request(
        "POST", "/v1/voice-cloning/clone", data={"name": "A"}, files={"audio_file": b"no sound"}
    )
    plain = error(http.send(request))
    headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": "gzip"}
    answer = http.post("/v1/voice-cloning/clone", content=gzip.compress(request.read()), headers=headers)
    assert error(answer) == plain


def test_unknown_fields_are_listed_in_the_ignored_header(http: httpx.Client) -> None:
    for path, body in (
        ("/v1/audio/speech", SPEECH),
        ("/v1/audio/speech/stream", SPEECH | {"stream_format": "sse"}),
        ("/v1/audio/dialogue", {"turns": [{"text": "Hi."}]}),
        ("/v1/audio/conversation", {"text": "Hi."}),
        ("/v1/voice-cloning/generate", {"text": "Hi.", "voice_id": "nova"}),
        ("/v1/voice-cloning/voices/nova/preview", {}),
    ):
        answer = http.post(path, json=body | {"emotion": "glad", "stream": True, "Zß": 1, "x y": 2, "nothing": None})
        assert answer.headers["x-tts-ignored"] == "Z%C3%9F, emotion, stream, x%20y", path
    many = http.post("/v1/audio/speech", json=SPEECH | {f"field_{n}" * 20: n for n in range(500)})
    assert len(many.headers["x-tts-ignored"]) < 2000
    assert many.headers["x-tts-ignored"].endswith(", ...")


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_audio_has_a_file_name(http: httpx.Client, name: str) -> None:
    answer = http.post("/v1/audio/speech", json={"input": "Hi.", "response_format": name})
    assert answer.headers["content-disposition"] == f'inline; filename="speech.{name}"'


def test_equal_requests_without_the_cache_give_equal_bytes(http: httpx.Client) -> None:
    for voice in ("alloy", "coral", "fable", "sage"):
        body = SPEECH | {"voice": voice, "cache": False, "seed": 7, "input": "She sells sea shells, doesn't she?"}
        first = http.post("/v1/audio/speech", json=body).content
        http.post("/v1/audio/speech", json=body | {"input": "Something else."})
        assert http.post("/v1/audio/speech", json=body).content == first


# ---- web pages of other origins

FORM: dict[str, Any] = {"data": {"name": "Eve"}, "files": {"audio_file": b"x"}}
CLONE = "/v1/voice-cloning/clone"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://evil.example:8000"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:3000", "Host": "localhost:8000"},
        {"Origin": "https://tts.evil.example", "Host": "tts.lan", "X-Forwarded-Host": "tts.example.com"},
        {"Origin": "http://tts.lan.evil.example", "Host": "tts.lan"},
        {"Origin": "http://tts.lan@evil.example", "Host": "tts.lan"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8001"},
        {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_page_of_another_origin_cannot_change_anything(http: httpx.Client, headers: dict[str, str]) -> None:
    for method, path in (("POST", CLONE), ("POST", "/v1/audio/speech"), ("DELETE", "/v1/voice-cloning/voices/x")):
        answer = http.request(method, path, headers=headers, **(FORM if path == CLONE else {}))
        assert answer.status_code == 403
        assert error(answer)["code"] == "cross_origin"
        assert "TTS_CORS_ORIGINS" in error(answer)["message"]
    assert http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://tts.lan:8000", "Host": "tts.lan:8000"},
        {"Origin": "http://TTS.lan", "Host": "tts.lan:80"},
        {"Origin": "https://tts.lan", "Host": "tts.lan:443"},
        {"Origin": "https://tts.example.com", "Host": "127.0.0.1:8000", "X-Forwarded-Host": "tts.example.com"},
        {"Origin": "https://tts.example.com", "Host": "tts:8000", "X-Forwarded-Host": "tts.example.com, inner"},
        {"Origin": "https://tts.example.com", "Host": "tts", "Forwarded": 'for=1.2.3.4;host="tts.example.com"'},
        {"Origin": "https://tts.lan:8443", "Host": "tts.lan", "X-Forwarded-For": "1.2.3.4"},
        {"Origin": "https://tts.example.com", "Host": "localhost", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
        {"Origin": "app://obsidian.md"},
        {"Origin": "chrome-extension://abc", "Sec-Fetch-Site": "none"},
    ],
)
def test_page_of_the_server_and_programs_can_change_things(http: httpx.Client, headers: dict[str, str]) -> None:
    assert http.post(CLONE, headers=headers, **FORM).status_code == 400  # the upload is not a recording


BROWSER = {"Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.nip.io", "a.local.evil.example", "evil.example."]
)
def test_foreign_host_is_refused_for_web_pages(http: httpx.Client, host: str) -> None:
    name = host.partition(":")[0].rstrip(".")
    for headers in (BROWSER, {"Origin": f"http://{host}"}, {"Origin": f"http://{host}", **BROWSER}):
        for method in ("GET", "POST", "DELETE"):
            answer = http.request(method, "/v1/audio/voices", headers={"Host": host, **headers})
            assert answer.status_code == 403
            assert error(answer)["code"] == "host_not_allowed"
            assert f"TTS_ALLOWED_HOSTS={name}" in error(answer)["message"]
    assert http.get("/v1/audio/voices", headers={"Host": host}).status_code == 200  # not a browser


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/v1/voice-cloning/voices", "/debug", "/", "/openapi.json"])
@pytest.mark.parametrize("languages", ["de,en-US;q=0.7,en;q=0.3", "en", "*", ""])
def test_foreign_host_is_refused_for_reading_pages(http: httpx.Client, path: str, languages: str) -> None:
    """When a page with an http URL reads from its own host, browsers send neither Origin nor Sec-Fetch-Site."""
    answer = http.get(path, headers={"Host": "evil.example:8000", "Accept-Language": languages})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    assert http.get(path, headers={"Host": "tts.lan", "Accept-Language": languages}).status_code == 200


@pytest.mark.parametrize(
    "own",
    [
        {"Accept-Language": "*", "Sec-Fetch-Mode": "cors"},  # Node's `fetch`, which sends no Sec-Fetch-Site
        {"Accept-Language": "en-GB,en;q=0.9", "User-Agent": "Reader/12 CFNetwork/1568.100.1 Darwin/24.0.0"},
    ],
    ids=["node", "apple"],
)
def test_program_with_a_language_may_read_with_a_public_host(http: httpx.Client, own: dict[str, str]) -> None:
    assert http.get("/v1/audio/voices", headers={"Host": "tts.example.com", **own}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.1.5",
        "10.0.0.7:8000",
        "169.254.1.1",
        "203.0.113.9",
        "mybox",
        "mybox:8000",
        "mybox.local",
        "tts.lan",
        "tts.speech.svc",
        "tts.speech.svc.cluster.local",
        "host.docker.internal:8000",
        "app.localhost",
        "studio.test",
    ],
)
def test_private_host_is_allowed(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/audio/voices", headers={"Host": host, **BROWSER}).status_code == 200


def test_hosts_of_the_settings_are_allowed(tmp_path: Path) -> None:
    variables = {
        "TTS_ALLOWED_HOSTS": "tts.example.com, *.voice.example",
        "TTS_CORS_ORIGINS": "https://studio.example",
        "HOST": "127.0.0.1",
    }
    with serving(tmp_path, **variables) as url, httpx.Client(base_url=url) as http:
        for host, status in (
            ("tts.example.com", 200),
            ("TTS.example.com:8443", 200),
            ("a.voice.example", 200),
            ("studio.example", 200),
            ("voice.example", 403),
            ("evil-tts.example.com", 403),
            ("tts.example.com.evil.example", 403),
        ):
            assert http.get("/v1/models", headers={"Host": host, **BROWSER}).status_code == status, host


@pytest.mark.parametrize("variable", [{"TTS_ALLOWED_HOSTS": "*"}, {"TTS_CORS_ORIGINS": "*"}])
def test_all_hosts_can_be_allowed(tmp_path: Path, variable: dict[str, str]) -> None:
    with serving(tmp_path, **variable) as url:
        assert httpx.get(f"{url}/v1/models", headers={"Host": "any.example", **BROWSER}).status_code == 200


def test_keys_make_the_allowed_hosts_optional(tmp_path: Path) -> None:
    evil = {"Host": "evil.example", **BROWSER}
    with serving(tmp_path / "a", TTS_API_KEYS=KEY) as url:
        assert httpx.get(f"{url}/v1/models", headers=evil).status_code == 200
        assert httpx.post(f"{url}/v1/audio/speech", json=SPEECH, headers=evil).status_code == 401
    with serving(tmp_path / "b", TTS_API_KEYS=KEY, TTS_ALLOWED_HOSTS="tts.example.com") as url:
        assert httpx.get(f"{url}/v1/models", headers=evil).status_code == 403
        assert httpx.get(f"{url}/v1/models", headers={**evil, "Authorization": f"Bearer {KEY}"}).status_code == 200


# ---- CORS preflights

PREFLIGHT = {
    "Origin": "https://studio.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


@pytest.fixture(scope="module")
def cors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with (
        serving(tmp_path_factory.mktemp("all"), TTS_CORS_ORIGINS="*") as everyone,
        serving(tmp_path_factory.mktemp("one"), TTS_CORS_ORIGINS="https://studio.example") as one,
    ):
        yield {"*": everyone, "one": one}


@pytest.mark.parametrize("which", ["*", "one"])
def test_preflight_of_a_private_network_is_answered(cors: dict[str, str], which: str) -> None:
    headers = {**PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    answer = httpx.options(f"{cors[which]}/v1/audio/speech", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["access-control-allow-origin"] in ("*", "https://studio.example")
    plain = httpx.options(f"{cors[which]}/v1/audio/speech", headers=PREFLIGHT)
    assert plain.status_code == 200
    assert "access-control-allow-private-network" not in plain.headers


def test_refused_preflight_names_the_setting(cors: dict[str, str], server: str) -> None:
    for url in (server, cors["one"]):
        for more in ({}, {"Access-Control-Request-Private-Network": "true"}, {"Sec-Fetch-Site": "cross-site"}):
            headers = {**PREFLIGHT, "Origin": "https://other.example", **more}
            answer = httpx.options(f"{url}/v1/audio/speech", headers=headers)
            assert answer.status_code == 400
            assert error(answer)["code"] == "cross_origin"
            assert "TTS_CORS_ORIGINS=https://other.example" in error(answer)["message"]
            assert "access-control-allow-origin" not in answer.headers
    assert httpx.options(f"{server}/v1/audio/speech").status_code == 405  # no preflight


# ---- the path prefix of a proxy

ROOT = {"X-Forwarded-Prefix": "/tts"}


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("rooted"), TTS_ROOT_PATH="/tts/") as url:
        yield url


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("configured", [True, False])
def test_all_links_contain_the_prefix(server: str, rooted: str, *, configured: bool, stripped: bool) -> None:
    url, headers = (rooted, {}) if configured else (server, ROOT)
    with httpx.Client(base_url=url if stripped else f"{url}/tts", headers=headers) as http:
        for page in ("/", "/voice-cloning", "/docs", "/redoc"):
            html = http.get(page).text
            assert 'data-root="/tts"' in html
            for address in re.findall(r'(?:src|href)="(/[^"]*)"', html):
                assert address.startswith("/tts/"), address
                assert http.get(address.removeprefix("/tts")).status_code == 200, address
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/tts"}]
        assert http.post("/v1/audio/speech", json=SPEECH).content[:4] == b"RIFF"
        assert http.post("/v1//audio/speech/", json=SPEECH).content[:4] == b"RIFF"
        assert http.get("/v1/models").status_code == http.get("/health").status_code == 200
        assert "Did you mean /v1/audio/speech?" in error(http.get("/v1/audio/speach"))["message"]
        form: dict[str, Any] = {"data": {"name": "Ada"}, "files": {"audio_file": b"x" * 2_000_000}}
        # the upload is below the limit, but is not a recording
        assert http.post("/v1/voice-cloning/clone", **form).status_code == 400
    assert "servers" not in httpx.get(f"{server}/openapi.json").json()


@pytest.mark.parametrize(
    ("prefix", "root"),
    [
        ("/tts", "/tts"),
        ("/tts/", "/tts"),
        ("/a/b-c_d~e.f", "/a/b-c_d~e.f"),
        ("/outer, /inner", "/outer/inner"),
        ("/", ""),
        ("", ""),
        ("tts", ""),
        ("//evil.example", ""),
        ("https://evil.example", ""),
        ("/../..", ""),
        ("/a/../b", ""),
        ('/"><script>', ""),
        ("/a b", ""),
        ("/" + "a" * 500, ""),
    ],
)
def test_only_valid_prefixes_are_used(server: str, prefix: str, root: str) -> None:
    answer = httpx.get(f"{server}/", headers={"X-Forwarded-Prefix": prefix})
    assert answer.status_code == 200
    assert f'data-root="{root}"' in answer.text


def test_prefix_of_an_unknown_proxy_is_ignored(tmp_path: Path) -> None:
    for trusted, root in (("10.0.0.0/8", ""), ("127.0.0.0/8", "/tts"), ("*", "/tts"), ("192.0.2.1, 127.0.0.1", "/tts")):
        with serving(tmp_path / trusted[:2], FORWARDED_ALLOW_IPS=trusted) as url:
            headers = {**ROOT, "X-Forwarded-For": "203.0.113.7"}
            assert f'data-root="{root}"' in httpx.get(f"{url}/", headers=headers).text


# ---- lists of voices


def test_cloned_voices_can_be_hidden_from_callers_without_a_key(tmp_path: Path) -> None:
    sample = samples.file(samples.speech(), "mp3")
    port = free_port()
    with (
        serving(tmp_path, TTS_API_KEYS=KEY, TTS_VOICE_LISTS="keyed", TTS_WYOMING=f"tcp://127.0.0.1:{port}") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        keyed = {"Authorization": f"Bearer {KEY}"}
        form = {"name": "Secret Ada", "transcript": samples.TEXT}
        cloned = http.post(CLONE, data=form, files={"audio_file": ("a.mp3", sample)}, headers=keyed)
        assert cloned.status_code == 200, cloned.text
        voice_id = cloned.json()["voice"]["id"]
        for path in (
            "/v1/audio/voices",
            "/v1/audio/voices?legacy=true",
            "/v1/models",
            "/v1/models/tts-1",
            "/v1/audio/models",
            "/v1/voice-cloning/openai-compatible-voices",
            "/v1/voices",
            "/v2/voices",
            "/health",
        ):
            hidden = http.get(path)
            assert hidden.status_code == 200
            assert voice_id not in hidden.text, path
            assert "Secret Ada" not in hidden.text, path
            assert "nova" in hidden.text, path
            assert voice_id in http.get(path, headers=keyed).text, path
        sent = [*map(_unkeyed_socket, [url] * 2, ["nobody", voice_id]), _wyoming_answers(port, "nobody")]
        sent += [http.post(f"/v1/text-to-speech/{name}", json={"text": "Hi."}).text for name in ("nobody", voice_id)]
        assert http.get(f"/v1/voices/{voice_id}").status_code == 404
        for text in sent:
            assert len(text) > 50
            assert voice_id not in text
            assert "Secret Ada" not in text


def _unkeyed_socket(url: str, voice: str) -> str:
    """Return what a WebSocket of ElevenLabs answers to a caller without a key."""
    path = f"/v1/text-to-speech/{voice}/stream-input"
    with connect(url.replace("http", "ws") + path) as connection, contextlib.suppress(ConnectionClosed):
        connection.send(json.dumps({"text": "Hi."}))
        return str(connection.recv(timeout=30))
    return ""


def _wyoming_answers(port: int, voice: str) -> str:
    """Return the list of voices, and the error for an unknown voice."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        unknown = {"type": "synthesize", "data": {"text": "Hi.", "voice": {"name": voice}}}
        raw.sendall(b'{"type": "describe"}\n' + json.dumps(unknown).encode() + b"\n")
        return raw.makefile("rb").read().decode()
