"""Every route over a real socket: lists, health, keys, limits and unusual bodies, also under /api/v1."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.audio.formats import AUDIO_FORMATS
from app.voices.presets import PROFILES
from tests.support.ears import decode
from tests.support.live import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


def problem(answer: httpx.Response) -> dict[str, Any]:
    """Return the `error` object of an error response and check its keys."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", ["/audio/speech", "/audio/speech/streaming", "/audio/speech/stream"])
@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
def test_all_speech_paths_return_the_same_audio(http: httpx.Client, prefix: str, path: str) -> None:
    body = {"input": "One sentence for all paths.", "response_format": "pcm"}
    answer = http.post(prefix + path, json=body)
    assert answer.status_code == 200
    assert answer.content == http.post("/v1/audio/speech", json=body).content


@pytest.mark.parametrize("prefix", ["", "/v1", "/api/v1"])
def test_system_paths_are_served(http: httpx.Client, prefix: str) -> None:
    health = http.get(f"{prefix}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert health.json()["engine"] == "espeak"
    assert http.get(f"{prefix}/ready").status_code == 200
    assert re.fullmatch(r"\d+\.\d+\.\d+", http.get(f"{prefix}/version").json()["version"])
    assert "tts_requests_total" in http.get(f"{prefix}/metrics").text
    assert http.get(f"{prefix}/debug").json()["settings"]["TTS_ENGINE"] == "espeak"


def test_voice_list_has_the_shapes_of_all_clients(http: httpx.Client) -> None:
    body = http.get("/v1/audio/voices").json()
    assert body["object"] == "list"
    assert body["voices"] == body["data"]
    assert {voice["id"]: voice["name"] for voice in body["voices"]}.keys() == PROFILES.keys()
    assert http.get("/v1/audio/voices?legacy=true").json()["voices"] == list(PROFILES)


def test_models_are_listed_with_details(http: httpx.Client) -> None:
    body = http.get("/api/v1/audio/models").json()
    (listed,) = [each for each in body["models"] if each["id"] == "espeak"]
    assert (listed["name"], listed["max_input_length"]) == ("espeak", 1_000_000)
    assert listed["description"] == "eSpeak NG, an offline voice without a model"
    assert all(each["description"] and each["max_input_length"] == 1_000_000 for each in body["data"])
    assert body["data"][0]["object"] == "model"
    model = http.get("/v1/models/espeak").json()
    assert model["task"] == "text-to-speech"
    assert model["status"] == "ready"
    assert model["sample_rate"] == 24_000
    assert model["voices"][0] == {"name": "alloy", "language": "en"}
    assert model["clones"] is False


@pytest.mark.parametrize("path", ["/v1/models/org%2Fmodel", "/v1/models/org/model", "/v1/models/none"])
def test_unknown_models_are_404(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert problem(answer)["code"] == "model_not_found"


def test_response_and_stream_formats_are_listed(http: httpx.Client) -> None:
    formats = http.get("/v1/audio/speech/response-formats").json()["response_formats"]
    assert [each["name"] for each in formats] == list(AUDIO_FORMATS)
    assert {"name": "opus", "content_type": "audio/opus"} in formats
    streamed = http.get("/v1/audio/speech/stream-formats").json()["stream_formats"]
    assert [each["format"] for each in streamed] == [*AUDIO_FORMATS, "sse"]
    assert streamed[-1]["content_type"] == "text/event-stream"
    assert all(each.keys() == {"format", "content_type", "description"} for each in streamed)


def test_unknown_paths_and_methods_return_error_envelopes(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    problem(http.get("/v1/nothing"))
    wrong = http.get("/v1/audio/speech")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    problem(wrong)
    # Wyoming's autodetection must not take this server for another product.
    assert http.get("/v1/readyz").status_code == 404
    assert http.get("/v1/test").status_code == 404


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/audio/voices", "/openapi.json"])
def test_head_request_has_the_headers_of_get_without_a_body(http: httpx.Client, path: str) -> None:
    head, get = http.head(path), http.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert not head.content
    assert http.head("/v1/audio/speech").status_code == 405


def test_invalid_query_error_names_the_parameter(http: httpx.Client) -> None:
    answer = http.get("/v1/audio/voices?legacy=perhaps")
    assert answer.status_code == 400
    assert problem(answer)["param"] == "legacy"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("\u200b\ufeff", 0.25), ("[pause:1s]", 1.0), ("<break/> [pause]", 1.0), *((mark, 0.25) for mark in "—[(`.")],
)
def test_text_without_words_gives_silence(http: httpx.Client, text: str, seconds: float) -> None:
    answer = http.post("/v1/audio/speech", json={"input": text, "response_format": "pcm"})
    assert answer.status_code == 200
    assert len(answer.content) / 2 / 24_000 == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("text", ["", "  \n", "\x00"])
def test_blank_text_is_empty_input(http: httpx.Client, text: str) -> None:
    answer = http.post("/v1/audio/speech", json={"input": text})
    assert answer.status_code == 400
    error = problem(answer)
    assert (error["code"], error["param"]) == ("empty_input", "input")
    assert "Value error" not in error["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b'{"input": "Hi."', "application/json", 400, "invalid_json"),
        (b"", "application/json", 400, None),
        (b"[]", "application/json", 400, None),
        (b'"Hi."', "application/json", 400, None),
        (b"null", "application/json", 400, None),
        (b"[" * 100_000, "application/json", 400, None),
        (b'{"input": "\xff"}', "application/json", 400, None),
        (b'{"input": "\\ud800"}', "application/json", 400, "empty_input"),
        (b'{"input": "Hi.", "seed": ' + b"9" * 5000 + b"}", "application/json", 400, None),
        (b'{"input": "Hi.", "speed": NaN}', "application/json", 400, None),
        (b'{"input": "Hi.", "speed": Infinity}', "application/json", 400, None),
        (b'{"input": "Hi."}', "text/plain", 400, "unsupported_content_type"),
        (b"input=Hi.", "application/x-www-form-urlencoded", 400, "unsupported_content_type"),
        (b'{"input": "' + b"a" * 17_000_000 + b'"}', "application/json", 413, "request_too_large"),
    ],
)
def test_invalid_request_bodies_are_rejected(
    http: httpx.Client, content: bytes, content_type: str, status: int, code: str | None
) -> None:
    answer = http.post("/v1/audio/speech", content=content, headers={"Content-Type": content_type})
    assert answer.status_code == status
    error = problem(answer)
    assert code is None or error["code"] == code
    assert http.post("/v1/audio/speech", json={"input": "Still here."}).status_code == 200


def test_huge_chunked_body_is_rejected(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(300):
            yield b"a" * 65_536

    answer = http.post("/v1/audio/speech", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert problem(answer)["code"] == "request_too_large"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"])
def test_every_json_content_type_is_accepted(http: httpx.Client, content_type: str) -> None:
    answer = http.post(
        "/v1/audio/speech?api-version=2025-01-01",
        content=json.dumps({"input": "Hello."}),
        headers={"Content-Type": content_type},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "text",
    ["?!", "😀", "🎉🎉", "<b>Hi</b>", "a\x00b\x07", "你好", "\u202eabc", "&amp;", "%", "→"],
)
def test_unusual_texts_are_spoken(http: httpx.Client, text: str) -> None:
    answer = http.post("/v1/audio/speech", json={"input": text, "response_format": "wav"})
    assert answer.status_code == 200
    assert decode(answer.content, "wav").loudness_dbfs > -40


def test_longest_text_of_wide_characters_is_accepted(http: httpx.Client) -> None:
    body = {"input": "好" * 1_000_000, "response_format": "pcm", "max_audio_length_ms": 500}
    answer = http.post("/v1/audio/speech", json=body)
    assert answer.status_code == 200
    assert decode(answer.content, "pcm").seconds == pytest.approx(0.5, abs=0.01)


def test_all_model_aliases_return_the_same_audio(http: httpx.Client) -> None:
    body = {"input": "One engine has many names."}
    answers = [
        http.post("/v1/audio/speech", json={**body, "model": model}) for model in ("tts-1", "tts-1-hd", "espeak")
    ]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "hit"]
    assert len({answer.headers["x-tts-seed"] for answer in answers}) == 1


def test_repeated_request_returns_the_cached_bytes(http: httpx.Client) -> None:
    body = {"input": "A sentence for the cache, said once.", "voice": "coral"}
    first, second = (http.post("/v1/audio/speech", json=body) for _ in range(2))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert first.content == second.content
    assert first.headers["x-tts-seed"] == second.headers["x-tts-seed"]
    fresh = http.post("/v1/audio/speech", json={**body, "cache": False})
    assert fresh.headers["x-cache"] == "off"
    seeds = {http.post("/v1/audio/speech", json={**body, "seed": "random"}).headers["x-tts-seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_each_format_has_its_file_header(http: httpx.Client) -> None:
    def head(audio_format: str) -> bytes:
        body = {"input": "Hello.", "response_format": audio_format, "cache": False}
        return http.post("/v1/audio/speech", json=body).content

    wav = head("wav")
    assert wav[:4] == b"RIFF"
    assert wav[4:8] == wav[40:44] == b"\xff\xff\xff\xff"
    assert wav[36:40] == b"data"
    mp3 = head("mp3")
    assert mp3[0] == 0xFF
    assert mp3[1] & 0xE0 == 0xE0
    assert b"Xing" not in mp3[:500]
    assert head("opus")[:4] == b"OggS"
    assert head("aac")[:2] in (b"\xff\xf1", b"\xff\xf9")
    assert head("flac")[:4] == b"fLaC"


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_requested_sample_rate_is_used(http: httpx.Client, audio_format: str, rate_hz: int) -> None:
    text = "A short sentence at some rate."
    body = {"input": text, "response_format": audio_format, "sample_rate": rate_hz}
    decoded = decode(http.post("/v1/audio/speech", json=body).content, audio_format, rate_hz)
    usual = decode(http.post("/v1/audio/speech", json={"input": text, "response_format": "pcm"}).content, "pcm")
    assert decoded.rate_hz == (48_000 if audio_format == "opus" else rate_hz)
    # Compressed formats add padding. AAC adds most, since its frames of 1024 samples are long at 8 kHz.
    assert decoded.seconds == pytest.approx(usual.seconds, abs=0.3)


def test_pauses_have_the_requested_length(http: httpx.Client) -> None:
    def seconds(text: str, speed: float) -> float:
        answer = http.post("/v1/audio/speech", json={"input": text, "response_format": "pcm", "speed": speed})
        return decode(answer.content, "pcm").seconds

    for speed in (1.0, 2.0, 0.5):
        longer = seconds("One. [pause:2s] Two.", speed) - seconds("One. [pause:0.5s] Two.", speed)
        assert longer == pytest.approx(1.5, abs=0.05), speed


def test_request_without_a_valid_key_is_rejected(tmp_path: Any) -> None:
    with (
        serving(tmp_path, TTS_API_KEYS="first-key-0123456, second-key-0123456") as url,
        httpx.Client(base_url=url) as http,
    ):
        speech = {"json": {"input": "Hello."}}
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}, {"api-key": "first"}):
            answer = http.post("/v1/audio/speech", headers=headers, **speech)  # type: ignore[arg-type]
            assert answer.status_code == 401
            assert problem(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": "Bearer second-key-0123456"}, {"api-key": "first-key-0123456"}):
            assert http.post("/v1/audio/speech", headers=headers, **speech).status_code == 200  # type: ignore[arg-type]
        for path in ("/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/audio/voices", "/v1/audio/models"):
            assert http.get(path).status_code == 200
        assert http.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert http.get("/debug").status_code == 401
        shown = http.get("/debug", headers={"Authorization": "Bearer first-key-0123456"})
        assert shown.status_code == 200
        assert "first-key-0123456" not in shown.text
        assert "second-key-0123456" not in shown.text


def test_limits_come_from_settings(tmp_path: Any) -> None:
    with serving(tmp_path, TTS_MAX_INPUT_CHARS=10, TTS_MAX_BODY_BYTES=1024, TTS_CACHE_BYTES=0) as url:
        assert httpx.post(f"{url}/v1/audio/speech", json={"input": "好" * 10}).status_code == 200
        assert httpx.post(f"{url}/v1/audio/speech", json={"input": "a" * 11}).status_code == 400
        assert httpx.post(f"{url}/v1/audio/speech", json={"input": "a" * 1100}).status_code == 413
        again = [httpx.post(f"{url}/v1/audio/speech", json={"input": "Hello."}) for _ in range(2)]
        assert [answer.headers["x-cache"] for answer in again] == ["off", "off"]


def test_cors_allows_only_the_configured_origin(tmp_path: Any, http: httpx.Client) -> None:
    origin = {"Origin": "https://studio.example"}
    assert "access-control-allow-origin" not in http.get("/v1/models", headers=origin).headers
    with serving(tmp_path, TTS_CORS_ORIGINS="https://studio.example") as url:
        answer = httpx.get(f"{url}/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://studio.example"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        preflight = httpx.options(
            f"{url}/v1/audio/speech",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        assert preflight.status_code == 200
        assert (
            "access-control-allow-origin"
            not in httpx.get(f"{url}/v1/models", headers={"Origin": "https://evil"}).headers
        )


def test_a_page_of_another_origin_can_read_errors_and_limits(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"Origin": "https://studio.example"}

    def broken(*_: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("app.api.routes.voices.refresh", broken)
    with serving(tmp_path, TTS_CORS_ORIGINS="https://studio.example", TTS_API_KEYS="a-key-for-cross-origins") as url:
        for path, status in (("/v1/audio/voices", 500), ("/v1/nothing", 404), ("/debug", 401)):
            # the call of logs.set_up is missing here, so tracebacks take seconds
            answer = httpx.get(url + path, headers=origin, timeout=60)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://studio.example"
            assert answer.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in answer.headers  # keys are sent in a header, not as cookies
            exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
            assert {"retry-after", "x-request-id", "x-should-retry", "x-ratelimit-reset-requests"} <= exposed
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        preflight_headers = {
            **origin,
            "Access-Control-Request-Method": "DELETE",
            "Access-Control-Request-Headers": "api-key",
        }
        preflight = httpx.options(f"{url}/v1/audio/voices/voice_1", headers=preflight_headers)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-headers"] == "api-key"
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        evil = httpx.options(
            f"{url}/v1/audio/voices/voice_1", headers={**preflight_headers, "Origin": "https://evil.example"}
        )
        assert evil.status_code == 400
        assert "access-control-allow-origin" not in evil.headers


def test_cross_origin_form_is_rejected(tmp_path: Any, http: httpx.Client) -> None:
    """A foreign page can send a form without a CORS preflight, so the server checks the origin."""
    form: dict[str, Any] = {"data": {"name": "Eve"}, "files": {"audio_file": b"x"}}
    path = "/v1/voice-cloning/clone"
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for headers in (foreign, {**foreign, "Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = http.post(path, headers=headers, **form)
        assert answer.status_code == 403
        assert problem(answer)["code"] == "cross_origin"
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "app://obsidian.md"}):
        assert http.post(path, headers=headers, **form).status_code == 400  # the upload is not a recording
    assert http.get("/health", headers=foreign).status_code == 200
    for allowed in ("*", "https://evil.example"):
        with serving(tmp_path / allowed[:1], TTS_CORS_ORIGINS=allowed) as url:
            answer = httpx.post(url + path, headers=foreign, **form)
            assert answer.status_code == 400
            assert answer.headers["access-control-allow-origin"] == allowed


@pytest.mark.parametrize("path", ["/health", "/v1/nothing", "/v1/audio/voices", "/metrics", "/openapi.json", "/debug"])
def test_data_responses_have_strict_security_headers(http: httpx.Client, path: str) -> None:
    for answer in (http.get(path), http.post("/v1/audio/speech", json={"input": "Hello."})):
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers


def test_a_raw_keep_alive_connection_survives_errors(server: str) -> None:
    """One connection carries an error, a cache hit and a stream. Each response keeps the framing intact."""
    with httpx.Client(base_url=server, limits=httpx.Limits(max_connections=1)) as http:
        for body, status in (
            ({"input": ""}, 400),
            ({"input": "Hello."}, 200),
            ({"input": "Hello.", "cache": False}, 200),
        ):
            assert http.post("/v1/audio/speech", json=body).status_code == status
    where = urlsplit(server)
    assert where.hostname is not None
    assert where.port is not None
    with socket.create_connection((where.hostname, where.port)) as raw:
        raw.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert raw.recv(64).startswith(b"HTTP/1.1 200")


def test_bounds_of_integers_are_exact_in_the_schema(http: httpx.Client) -> None:
    """FastAPI converts the limits to floats, which cannot represent 2**63 - 1."""
    seed = http.get("/openapi.json").json()["components"]["schemas"]["SpeechBody"]["properties"]["seed"]
    (integer,) = [each for each in seed["anyOf"] if each.get("type") == "integer"]
    assert (integer["minimum"], integer["maximum"]) == (-(2**63), 2**63 - 1)
