"""API keys over a real socket: scopes, limits, metrics, logs, and changes of the key file at runtime."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.keys import SCOPES, KeyFile
from tests.integration.test_api_routes import problem
from tests.support import samples
from tests.support.commands import run_command
from tests.support.live import LONG, Process, environment, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

SPEECH = {"input": "Hello.", "response_format": "pcm"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def counted(url: str, key: str) -> dict[str, float]:
    answer = httpx.get(f"{url}/metrics", headers=bearer(key))
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if "key" in sample.labels:
                found[f"{sample.name} {' '.join(sample.labels.values())}"] = sample.value
    return found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a server with one key for each scope; return its URL and the keys by scope."""
    folder = tmp_path_factory.mktemp("keyed")
    keys_by_scope = {scope: KeyFile(folder).add(f"only-{scope}", [scope]) for scope in SCOPES}
    with serving(folder) as url:
        yield url, keys_by_scope


ROUTES = [
    ("speak", "POST", "/v1/audio/speech", {"json": SPEECH}),
    ("speak", "POST", "/api/v1/audio/speech/stream", {"json": SPEECH}),
    ("speak", "POST", "/v1/audio/conversation", {"json": {"text": "Hello."}}),
    ("speak", "POST", "/v1/audio/dialogue", {"json": {"turns": [{"text": "Hello."}]}}),
    ("speak", "POST", "/v1/audio/captions", {"json": SPEECH}),
    ("speak", "POST", "/dev/captioned_speech", {"json": SPEECH}),
    ("speak", "DELETE", "/v1/audio/conversations/none", {}),
    ("speak", "GET", "/v1/audio/lexicon", {}),
    ("speak", "POST", "/v1/realtime/client_secrets", {"json": {}}),
    ("speak", "POST", "/v1/text-to-speech/alloy", {"json": {"text": "Hello."}}),
    ("speak", "POST", "/v1/text-to-speech/alloy/stream", {"json": {"text": "Hello."}}),
    ("speak", "POST", "/v1/text-to-speech/alloy/with-timestamps", {"json": {"text": "Hello."}}),
    ("speak", "POST", "/v1/text-to-speech/alloy/stream/with-timestamps", {"json": {"text": "Hello."}}),
    ("admin", "GET", "/v1/audio/adapters", {}),
    ("admin", "POST", "/v1/audio/adapters", {"json": {"name": "x", "source": "me/x"}}),
    ("admin", "DELETE", "/v1/audio/adapters/none", {}),
    ("admin", "GET", "/v1/models/espeak/weights", {}),
    ("admin", "POST", "/v1/models/espeak/weights", {}),
    ("admin", "POST", "/v1/models/espeak/weights/cancel", {}),
    ("admin", "DELETE", "/v1/hub-token", {}),
    ("clone", "PUT", "/v1/audio/lexicon", {"json": {"entries": []}}),
    ("clone", "DELETE", "/v1/audio/lexicon/none", {}),
    ("speak", "POST", "/v1/voice-cloning/generate", {"json": {"voice_id": "alloy", "text": "Hello."}}),
    ("speak", "POST", "/v1/voice-cloning/voices/alloy/preview", {}),
    ("speak", "POST", "/v1/audio/watermark/detect", {"files": {"file": b"x"}}),
    ("speak", "POST", "/v1/audio/encode", {"files": {"file": b"x"}}),
    ("clone", "POST", "/v1/voice-cloning/clone", {"data": {"name": "x"}}),
    ("clone", "POST", "/v1/voice-cloning/check", {}),
    ("clone", "POST", "/v1/voice-cloning/import", {"files": {"file": b"x"}}),
    ("clone", "GET", "/v1/voice-cloning/voices", {}),
    ("clone", "GET", "/v1/voice-cloning/voices/voice_0", {}),
    ("clone", "PATCH", "/v1/voice-cloning/voices/voice_0", {"json": {}}),
    ("clone", "DELETE", "/v1/voice-cloning/voices/voice_0", {}),
    ("clone", "GET", "/v1/voice-cloning/voices/voice_0/reference", {}),
    ("clone", "GET", "/v1/voice-cloning/voices/voice_0/export", {}),
    ("clone", "POST", "/v1/audio/voices", {"data": {"name": "x"}}),
    ("clone", "DELETE", "/v1/audio/voices/voice_0", {}),
    ("clone", "GET", "/v1/audio/voice_consents", {}),
    ("clone", "POST", "/v1/audio/voice_consents", {}),
    ("clone", "POST", "/v1/voice-cloning/clone-from-youtube", {"json": {}}),
    ("admin", "GET", "/v1/usage", {}),
    ("admin", "GET", "/debug", {}),
    ("admin", "GET", "/v1/debug", {}),
]


@pytest.mark.parametrize(("scope", "method", "path", "content"), ROUTES, ids=[f"{r[1]} {r[2]}" for r in ROUTES])
def test_each_route_requires_its_scope(
    keys: tuple[str, dict[str, str]], scope: str, method: str, path: str, content: dict[str, Any]
) -> None:
    url, keys_by_scope = keys
    for key_scope, key in keys_by_scope.items():
        answer = httpx.request(method, url + path, headers=bearer(key), **content)
        if key_scope == scope:
            assert answer.status_code not in (401, 403, 429, 500)
        else:
            assert answer.status_code == 403
            if "/text-to-speech/" in path:  # ElevenLabs' clients read `detail`
                error, detail = answer.json()["error"], answer.json()["detail"]
                assert detail == {"status": "missing_scope", "message": error["message"]}
            else:
                error = problem(answer)
            assert error["code"] == "missing_scope"
            assert error["type"] == "invalid_request_error"
            assert f"'only-{key_scope}' lacks the scope `{scope}`" in error["message"]
    assert httpx.request(method, url + path, **content).status_code == 401


def test_schema_names_every_route_that_needs_a_key(keys: tuple[str, dict[str, str]]) -> None:
    """The test reads all routes from the schema, so a new route cannot be forgotten."""
    url, _ = keys
    schema = httpx.get(f"{url}/openapi.json").json()
    needing = 0
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            status = httpx.request(method, url + path.replace("{", "").replace("}", "")).status_code
            needs = "403" in operation["responses"]
            assert (status == 401) == needs, (method, path)
            assert (operation.get("security") == [{"bearer": []}, {"api-key": []}]) == needs
            assert needs or method == "get"
            needing += needs
    assert needing > 20
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "api-key"}


def test_schema_of_a_server_without_keys_has_no_security_requirements(server: str) -> None:
    schema = httpx.get(f"{server}/openapi.json").json()
    assert "securitySchemes" not in schema["components"]
    assert "security" not in schema["paths"]["/v1/audio/speech"]["post"]


def test_official_client_raises_the_matching_error_class(keys: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    url, keys_by_scope = keys

    def speak(key: str, url: str = url) -> bytes:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            return client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.").content

    assert speak(keys_by_scope["speak"])
    with pytest.raises(openai.PermissionDeniedError, match="lacks the scope `speak`"):
        speak(keys_by_scope["clone"])
    with pytest.raises(openai.AuthenticationError):
        speak("sk-none")
    slow = KeyFile(tmp_path).add("slow", ["speak"], per_minute=1)
    with serving(tmp_path) as limited:
        assert speak(slow, limited)
        with pytest.raises(openai.RateLimitError) as caught:
            speak(slow, limited)
        assert caught.value.code == "rate_limit_exceeded"
        assert 55 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_missing_key_is_rejected_before_the_body_is_sent(keys: tuple[str, dict[str, str]]) -> None:
    """The 401 arrives before the caller sends a byte of the announced body."""
    where = urlsplit(keys[0])
    for path, kind in (("speech", "application/json"), ("voices", "multipart/form-data; boundary=x")):
        with socket.create_connection((where.hostname, where.port), timeout=60) as raw:
            raw.sendall(
                f"POST /v1/audio/{path} HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\n"
                "Content-Length: 50000\r\n\r\n".encode()
            )
            assert raw.recv(1024).startswith(b"HTTP/1.1 401")


def test_rate_limit_headers_count_down_to_the_limit(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    limited, free = file.add("limited", ["speak"], per_minute=3), file.add("free", ["speak"])
    with serving(tmp_path) as url, httpx.Client(base_url=url, headers=bearer(limited)) as http:
        left = []
        for _ in range(3):
            answer = http.post("/v1/audio/speech", json=SPEECH)
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
        assert left == [2, 1, 0]
        refused = http.post("/v1/audio/speech", json=SPEECH)
        assert refused.status_code == 429
        error = problem(refused)
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert "'limited' may make 3 requests per minute" in error["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"]
        assert http.get("/v1/models").status_code == 200  # a request for a list does not count against the limit
        other = http.post("/v1/audio/speech", json=SPEECH, headers=bearer(free))
        assert other.status_code == 200
        assert "x-ratelimit-limit-requests" not in other.headers


def test_running_streams_count_towards_the_concurrency_limit(tmp_path: Path) -> None:
    key = KeyFile(tmp_path).add("two-at-once", ["speak"], concurrent=2)
    body = {"input": LONG, "response_format": "pcm", "cache": False}
    with serving(tmp_path, TTS_OUTBOX_S=1) as url, httpx.Client(base_url=url, headers=bearer(key), timeout=120) as http:
        with (
            http.stream("POST", "/v1/audio/speech", json=body) as one,
            http.stream("POST", "/v1/audio/speech", json=body) as two,
        ):
            assert (one.status_code, two.status_code) == (200, 200)
            refused = http.post("/v1/audio/speech", json=SPEECH)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert "2 requests running" in problem(refused)["message"]
        # Both callers have disconnected. This frees their places, as an error or a complete answer does.
        wait_until(lambda: http.post("/v1/audio/speech", json=SPEECH).status_code == 200)
        for _ in range(4):
            assert http.post("/v1/audio/speech", json={"input": ""}).status_code == 400
            assert http.post("/v1/audio/speech", content=b"{").status_code == 400
            assert http.post("/v1/audio/speech", json=SPEECH).status_code == 200


def test_parallel_requests_do_not_exceed_the_rate_limit(tmp_path: Path) -> None:
    key = KeyFile(tmp_path).add("crowd", ["speak"], per_minute=5)
    with serving(tmp_path) as url, ThreadPoolExecutor(12) as pool:

        def ask(_: int) -> int:
            return httpx.post(f"{url}/v1/audio/speech", json=SPEECH, headers=bearer(key), timeout=120).status_code

        statuses = list(pool.map(ask, range(12)))
    assert sorted(statuses) == [200] * 5 + [429] * 7


def test_metrics_per_key_are_visible_to_admins_only(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    alice, root = file.add("alice", ["speak"], per_minute=2), file.add("root", ["admin"])
    with serving(tmp_path) as url:
        for path in ("/v1/audio/speech", "/v1/voice-cloning/clone", "/v1/audio/speech", "/v1/audio/speech"):
            httpx.post(url + path, json=SPEECH, headers=bearer(alice))
        httpx.post(f"{url}/v1/audio/speech", json=SPEECH, headers=bearer("sk-of-nobody"))
        counts = counted(url, root)
        assert counts["tts_key_requests_total alice 200"] == 2
        assert counts["tts_key_requests_total alice 403"] == 1
        assert counts["tts_key_requests_total alice 429"] == 1
        assert counts["tts_key_refused_total alice scope"] == 1
        assert counts["tts_key_refused_total alice rate"] == 1
        assert counts["tts_key_tokens_total alice input"] == 4  # "Hello." has two tokens and was spoken twice
        assert counts["tts_key_tokens_total alice output"] > 4
        assert {name.split()[1] for name in counts} == {"alice"}  # the request of root is counted after its response
        assert counted(url, alice) == {}
        assert "alice" not in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/metrics", headers=bearer("sk-of-nobody")).status_code == 401


def test_keys_are_listed_for_admins_only(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    alice, root = file.add("alice", ["speak", "clone"], per_minute=60, concurrent=4), file.add("root", ["admin"])
    with serving(tmp_path, TTS_API_KEYS="a-key-of-the-settings") as url:
        listed = httpx.get(f"{url}/v1/keys", headers=bearer(root)).json()["data"]
        created = {each["name"]: each.pop("created_at") for each in listed}
        assert listed == [
            {"name": "env:1", "scopes": ["speak", "clone", "admin"], "per_minute": None, "concurrent": None},
            {"name": "alice", "scopes": ["speak", "clone"], "per_minute": 60, "concurrent": 4},
            {"name": "root", "scopes": ["admin"], "per_minute": None, "concurrent": None},
        ]
        assert created["env:1"] is None
        assert created["alice"] == pytest.approx(time.time(), abs=60)
        assert httpx.get(f"{url}/v1/keys", headers=bearer(alice)).status_code == 403
        assert httpx.get(f"{url}/v1/keys").status_code == 401
        own = {"name": "alice", "scopes": ["speak", "clone"], "per_minute": 60, "concurrent": 4}
        assert httpx.get(f"{url}/health", headers=bearer(alice)).json()["key"] == own
        assert httpx.get(f"{url}/health", headers=bearer("sk-of-nobody")).json()["key"] is None
        assert httpx.get(f"{url}/health").json()["key"] is None


def cli(data_dir: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(data_dir, COLUMNS="200", **variables)
    done = run_command(("keys", *arguments), Path.cwd(), env)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_key_changes_apply_while_the_server_runs(tmp_path: Path) -> None:
    with Process(tmp_path) as process:
        process.wait()

        def speaks(key: str = "") -> int:
            headers = bearer(key) if key else {}
            return httpx.post(f"{process.url}/v1/audio/speech", json=SPEECH, headers=headers).status_code

        assert speaks() == 200
        added = cli(tmp_path, "add", "alice", "--scope", "speak", "--per-minute", "90", "--concurrent", "4")
        assert added.returncode == 0
        key = added.stdout.strip()  # the key is the only output, so a script can read it
        assert key.startswith("sk-")
        assert "requests for speech need a key" in added.stderr
        wait_until(lambda: speaks() == 401)
        assert speaks(key) == 200
        assert httpx.get(f"{process.url}/health").json()["key_needed"] is True
        listed = cli(tmp_path, "list").stdout
        assert listed.splitlines()[1].split()[:4] == ["alice", "speak", "90", "4"]
        assert key not in listed
        assert cli(tmp_path, "remove", "alice").returncode == 0
        wait_until(lambda: speaks(key) == 401)
        assert speaks() == 401
        process.child.terminate()
        process.child.wait(10)
        log = (tmp_path / "logs" / "server.log").read_text()
        assert [line for line in map(json.loads, log.splitlines()) if line.get("key") == "alice" and line.get("status")]
        assert key not in log + process.console()


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["add", "a b"], {}, "letters, digits"),
        (["add", "a", "--scope", "fly"], {}, "speak, clone, admin"),
        (["add", "a", "--per-minute", "0"], {}, "per-minute"),
        (["remove", "nobody"], {}, "no key 'nobody'"),
        (["add", "a"], {"TTS_DATA_DIR": "/dev/null/data"}, "not added"),
        (["list"], {"TTS_API_KEYS": "weak"}, "too weak"),
    ],
)
def test_invalid_key_commands_print_an_error(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], words: str
) -> None:
    done = cli(variables.pop("TTS_DATA_DIR", tmp_path), *arguments, **variables)  # type: ignore[arg-type]
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "sk-" not in done.stdout


@pytest.mark.parametrize(
    ("variables", "content", "words"),
    [
        ({"TTS_API_KEYS": "weak"}, None, "TTS_API_KEYS: key 1 is too weak"),
        ({"TTS_API_KEYS": ","}, None, "no key"),
        ({}, "{", "keys.json can't be used"),
    ],
)
def test_invalid_key_settings_prevent_the_start(
    tmp_path: Path, variables: dict[str, str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "keys.json").write_text(content)
    with Process(tmp_path, **variables) as process:
        assert process.child.wait(30) == 2
        assert words in process.console()
        assert "Traceback" not in process.console()


def test_voice_cloning_requires_the_clone_scope(keys: tuple[str, dict[str, str]]) -> None:
    url, keys_by_scope = keys
    recording = samples.file(samples.speech(), "wav")
    answer = httpx.post(
        f"{url}/v1/voice-cloning/clone",
        data={"name": "Berta", "transcript": samples.TEXT},
        files={"audio_file": recording},
        headers=bearer(keys_by_scope["clone"]),
        timeout=60,
    )
    assert answer.status_code == 200
    voice = answer.json()["voice"]["id"]
    listed = httpx.get(f"{url}/v1/audio/voices", headers=bearer(keys_by_scope["speak"])).json()["voices"]
    assert voice in [each["id"] for each in listed]
    path = f"{url}/v1/voice-cloning/voices/{voice}/reference"
    # each person's own recording needs the scope `clone`
    assert httpx.get(path, headers=bearer(keys_by_scope["speak"])).status_code == 403
    assert httpx.get(path, headers=bearer(keys_by_scope["clone"])).status_code == 200
