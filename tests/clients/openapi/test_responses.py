"""Compares /openapi.json with the responses of the server and with the types of OpenAI's SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Required, get_args, get_origin, get_type_hints

import httpx
import openai
import pytest
from openai.types import Model
from openai.types.audio import (
    Voice,
    VoiceConsent,
    VoiceConsentDeleted,
    VoiceDeleted,
    speech_create_params,
    voice_consent_create_params,
    voice_consent_list_params,
    voice_consent_update_params,
    voice_create_params,
)
from pydantic import ConfigDict, create_model

from app.api import job_responses, responses
from app.api.routes import long_speech
from tests.support.live import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import BaseModel

pytestmark = pytest.mark.integration

KEY = "sk-for-the-schema-tests"
OPEN = {
    "/v1/audio/speech/response-formats",
    "/v1/audio/speech/stream-formats",
    "/v1/audio/voices",
    "/v1/voice-cloning/openai-compatible-voices",
    "/v1/models",
    "/v1/models/{model_id}",
    "/v1/audio/models",
    "/health",
    "/ready",
    "/version",
    "/metrics",
}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data = tmp_path_factory.mktemp("shapes")
    with serving(data) as url, httpx.Client(base_url=url, timeout=120) as http_client:
        yield http_client


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sample(http: httpx.Client) -> bytes:
    """A recording of the offline voice that is good enough to clone."""
    body = {"input": "This is how I sound when I talk for a while. " * 4, "response_format": "flac"}
    return http.post("/v1/audio/speech", json=body).content


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def fields(document: dict[str, Any], at: str, media_type: str = "application/json") -> dict[str, Any]:
    """The schema of an operation's body."""
    schema = operations(document)[at]["requestBody"]["content"][media_type]["schema"]
    for option in schema.get("anyOf", [schema]):
        if "$ref" in option:
            return document["components"]["schemas"][option["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
    return schema  # type: ignore[no-any-return]


def model_of(document: dict[str, Any], at: str) -> type[BaseModel]:
    """The model that describes the response of an operation."""
    schema = operations(document)[at]["responses"]["200"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    modules = (responses, job_responses, long_speech)
    return next(vars(module)[name] for module in modules if name in vars(module))  # type: ignore[no-any-return]


# ---- consistency of the document

# Every operation, so that one that appears or goes is noticed.
OPERATIONS = {
    "DELETE /v1/audio/adapters/{name}",
    "DELETE /v1/audio/conversations/{conversation_id}",
    "DELETE /v1/audio/jobs/{job_id}",
    "DELETE /v1/audio/lexicon/{word}",
    "DELETE /v1/audio/speech/long/{job_id}",
    "DELETE /v1/audio/voice_consents/{consent_id}",
    "DELETE /v1/audio/voices/{voice_id}",
    "DELETE /v1/hub-token",
    "DELETE /v1/voice-cloning/voices/{voice_id}",
    "GET /debug",
    "GET /health",
    "GET /metrics",
    "GET /ready",
    "GET /v1/audio/adapters",
    "GET /v1/audio/jobs",
    "GET /v1/audio/jobs/{job_id}",
    "GET /v1/audio/jobs/{job_id}/captions",
    "GET /v1/audio/jobs/{job_id}/events",
    "GET /v1/audio/jobs/{job_id}/result",
    "GET /v1/audio/jobs/{job_id}/sentences",
    "GET /v1/audio/jobs/{job_id}/sentences/{index}/audio",
    "GET /v1/audio/lexicon",
    "GET /v1/audio/models",
    "GET /v1/audio/speech/long-history",
    "GET /v1/audio/speech/long-history/stats",
    "GET /v1/audio/speech/long/{job_id}",
    "GET /v1/audio/speech/long/{job_id}/details",
    "GET /v1/audio/speech/long/{job_id}/download",
    "GET /v1/audio/speech/long/{job_id}/sse",
    "GET /v1/audio/speech/response-formats",
    "GET /v1/audio/speech/stream-formats",
    "GET /v1/audio/voice_consents",
    "GET /v1/audio/voice_consents/{consent_id}",
    "GET /v1/audio/voices",
    "GET /v1/models",
    "GET /v1/keys",
    "GET /v1/usage",
    "GET /v1/models/{model_id}",
    "GET /v1/models/{model_id}/weights",
    "GET /v1/voice-cloning/openai-compatible-voices",
    "GET /v1/voice-cloning/voices",
    "GET /v1/voice-cloning/voices/{voice_id}",
    "GET /v1/voice-cloning/voices/{voice_id}/export",
    "GET /v1/voice-cloning/voices/{voice_id}/reference",
    "GET /version",
    "PATCH /v1/audio/jobs/{job_id}",
    "PATCH /v1/audio/speech/long/{job_id}",
    "PATCH /v1/voice-cloning/voices/{voice_id}",
    "POST /dev/captioned_speech",
    "POST /v1/audio/adapters",
    "POST /v1/audio/captions",
    "POST /v1/audio/conversation",
    "POST /v1/audio/dialogue",
    "POST /v1/audio/encode",
    "POST /v1/audio/jobs",
    "POST /v1/audio/jobs/{job_id}/cancel",
    "POST /v1/audio/jobs/{job_id}/pause",
    "POST /v1/audio/jobs/{job_id}/resume",
    "POST /v1/audio/jobs/{job_id}/retry",
    "POST /v1/audio/jobs/{job_id}/sentences/{index}/redo",
    "POST /v1/audio/normalize",
    "POST /v1/audio/speech",
    "POST /v1/audio/speech/long",
    "POST /v1/audio/speech/long/{job_id}/retry",
    "POST /v1/audio/speech/stream",
    "POST /v1/audio/speech/streaming",
    "POST /v1/audio/speech/voice-cloning/youtube",
    "POST /v1/audio/voice_consents",
    "POST /v1/audio/voice_consents/{consent_id}",
    "POST /v1/audio/voices",
    "POST /v1/audio/watermark/detect",
    "POST /v1/realtime/client_secrets",
    "POST /v1/models/{model_id}/load",
    "POST /v1/models/{model_id}/unload",
    "POST /v1/models/{model_id}/weights",
    "POST /v1/models/{model_id}/weights/cancel",
    "POST /v1/voice-cloning/check",
    "POST /v1/voice-cloning/clone",
    "POST /v1/voice-cloning/clone-from-youtube",
    "POST /v1/voice-cloning/generate",
    "POST /v1/voice-cloning/import",
    "POST /v1/voice-cloning/voices/{voice_id}/preview",
    "PUT /v1/audio/lexicon",
    "PUT /v1/audio/speech/long/{job_id}/pause",
    "PUT /v1/audio/speech/long/{job_id}/resume",
}


ACCEPTED = {"POST /v1/audio/jobs", "POST /v1/models/{model_id}/weights"}  # operations that answer with a 202


def test_every_operation_has_a_response_and_a_unique_id(document: dict[str, Any]) -> None:
    found = operations(document)
    assert found.keys() == OPERATIONS
    for at, operation in found.items():
        content = operation["responses"]["202" if at in ACCEPTED else "200"]["content"]
        assert content, at
        assert all(media.get("schema") or media.get("itemSchema") for media in content.values()), at
    assert not [path for path in document["paths"] if path.startswith("/api/")]
    ids = [operation["operationId"] for operation in found.values()]
    assert len(ids) == len(set(ids))
    assert all(name.isidentifier() for name in ids)


def test_every_schema_reference_exists_and_every_schema_is_used(document: dict[str, Any]) -> None:
    referenced: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                referenced.add(node["$ref"].removeprefix("#/components/schemas/"))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert referenced == document["components"]["schemas"].keys()


def test_responses_describe_request_id_and_retry_after(document: dict[str, Any]) -> None:
    for at, operation in operations(document).items():
        assert "422" not in operation["responses"], at
        for status, response in operation["responses"].items():
            assert response["headers"]["X-Request-ID"]["required"], (at, status)
            assert response.get("content") or status == "304", (at, status)
            if status in ("429", "503") and at != "GET /health":
                assert response["headers"]["Retry-After"]["required"], (at, status)
            if int(status) >= 400 and at != "GET /health":
                responses.ErrorEnvelope.model_validate(response["content"]["application/json"]["example"])


def test_speech_response_is_binary_events_or_json(document: dict[str, Any]) -> None:
    content = operations(document)["POST /v1/audio/speech"]["responses"]["200"]["content"]
    assert content.keys() == {
        *("audio/mpeg", "audio/opus", "audio/aac", "audio/flac", "audio/wav", "audio/pcm", "text/event-stream"),
        *("audio/ogg", "audio/mp4", "application/json"),
    }
    assert "words" in content["application/json"]["schema"]["properties"]
    assert content["audio/mpeg"]["schema"] == {"type": "string", "format": "binary"}
    assert "itemSchema" in content["text/event-stream"]


def test_schema_has_the_limits_of_the_settings(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_MAX_INPUT_CHARS=77) as url:
        schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    assert schemas["SpeechBody"]["properties"]["input"]["maxLength"] == 77
    seed = schemas["SpeechBody"]["properties"]["seed"]["anyOf"][0]
    assert (seed["minimum"], seed["maximum"]) == (-(2**63), 2**63 - 1)


def test_schema_describes_keys_only_if_keys_are_set(document: dict[str, Any], tmp_path: Path) -> None:
    assert "securitySchemes" not in document["components"]
    for operation in operations(document).values():
        assert "security" not in operation
        assert not {"401", "403"} & operation["responses"].keys()
    with serving(tmp_path, TTS_API_KEYS=KEY) as url:
        keyed = httpx.get(f"{url}/openapi.json").json()
    assert keyed["components"]["securitySchemes"].keys() == {"bearer", "api-key"}
    for at, operation in operations(keyed).items():
        path = at.split()[1]
        if path in OPEN and at.startswith("GET"):
            assert "403" not in operation["responses"], at
            assert {} in operation.get("security", [{}]), at
        else:
            assert operation["security"] == [{"bearer": []}, {"api-key": []}], at
            assert {"401", "403", "429"} <= operation["responses"].keys(), at
            assert operation["responses"]["401"]["headers"]["WWW-Authenticate"], at


# ---- as it is sent


LISTS_AND_STATES = {at for at in OPERATIONS if at.startswith("GET ") and "{" not in at} - {"GET /metrics"}


@pytest.mark.parametrize("at", sorted(LISTS_AND_STATES))
def test_list_and_state_responses_match_their_model(http: httpx.Client, document: dict[str, Any], at: str) -> None:
    answer = model_of(document, at).model_validate_json(http.get(at.removeprefix("GET ")).content, strict=True)
    assert not answer.model_extra  # a new field of /health or /debug has to be described


def test_voice_and_consent_responses_match_their_model(
    http: httpx.Client, document: dict[str, Any], sample: bytes
) -> None:
    def take(at: str, **sent: Any) -> Any:
        method, path = at.split()
        answer = http.request(method, path.format(**ids), **sent)
        assert answer.status_code == 200, answer.text
        body = model_of(document, at).model_validate_json(answer.content, strict=True)
        for voice in (body, getattr(body, "voice", None), *getattr(body, "voices", ())):
            if isinstance(voice, responses.ClonedVoice):
                responses.Quality.model_validate(voice.quality, strict=True)
        return body

    ids: dict[str, str] = {"model_id": "espeak", "conversation_id": "none"}
    draft = take("POST /v1/voice-cloning/check", files={"audio_file": sample}, data={"transcript": "Hello."})
    form = {"name": "Ada", "draft_id": draft.draft_id}
    ids["voice_id"] = take("POST /v1/voice-cloning/clone", data=form).voice.id
    take("GET /v1/voice-cloning/voices")
    take("GET /v1/voice-cloning/voices/{voice_id}")
    take("PATCH /v1/voice-cloning/voices/{voice_id}", json={"description": "Calm."})
    take("GET /v1/audio/voices")
    take("GET /v1/audio/voices", params={"legacy": "true"})
    take("GET /v1/voice-cloning/openai-compatible-voices")
    exported = http.get(f"/v1/voice-cloning/voices/{ids['voice_id']}/export").content
    take("POST /v1/voice-cloning/import", files={"file": exported})
    take("DELETE /v1/voice-cloning/voices/{voice_id}")
    form = {"name": "Ada", "language": "en"}
    ids["consent_id"] = take("POST /v1/audio/voice_consents", data=form, files={"recording": sample}).id
    take("GET /v1/audio/voice_consents")
    take("GET /v1/audio/voice_consents/{consent_id}")
    take("POST /v1/audio/voice_consents/{consent_id}", json={"name": "Grace"})
    form = {"name": "Grace", "consent": ids["consent_id"], "transcript": "Hello."}
    ids["voice_id"] = take("POST /v1/audio/voices", data=form, files={"audio_sample": sample}).id
    take("DELETE /v1/audio/voices/{voice_id}")
    take("DELETE /v1/audio/voice_consents/{consent_id}")
    take("GET /v1/models/{model_id}")
    take("GET /v1/keys")
    take("GET /v1/usage")
    take("DELETE /v1/audio/conversations/{conversation_id}")
    take("POST /v1/audio/watermark/detect", files={"file": sample})


def test_unhealthy_response_matches_the_health_model(tmp_path: Path) -> None:
    with serving(tmp_path, wait=False, TTS_ENGINE="csm", TTS_FALLBACK_ENGINE="", HF_HUB_OFFLINE="1") as url:
        answer = httpx.get(f"{url}/health")
        assert answer.status_code in (200, 503)
        responses.Health.model_validate_json(answer.content)
        not_ready = httpx.get(f"{url}/ready")
        assert not_ready.status_code == 503
        responses.ErrorEnvelope.model_validate_json(not_ready.content)
        assert int(not_ready.headers["retry-after"]) >= 1


def test_a_405_names_every_method_of_the_path(http: httpx.Client) -> None:
    assert http.put("/v1/audio/voices").headers["allow"] == "GET, HEAD, POST"
    assert http.put("/v1/voice-cloning/voices/x").headers["allow"] == "DELETE, GET, HEAD, PATCH"
    assert http.get("/v1/audio/speech").headers["allow"] == "POST"


@pytest.mark.parametrize("number", ["7.0", "7"])
def test_integer_field_accepts_a_decimal_point(http: httpx.Client, number: str) -> None:
    body = f'{{"input": "Hello.", "seed": {number}, "sample_rate": 16000.0, "max_audio_length_ms": 1e4}}'
    answer = http.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"})
    assert answer.headers["x-tts-seed"] == "7"
    half = http.post("/v1/audio/speech", json={"input": "Hello.", "sample_rate": 16000.5})
    assert half.status_code == 400


# ---- as OpenAI's SDK has it


@pytest.mark.parametrize(
    ("at", "params", "media_type"),
    [
        ("POST /v1/audio/speech", speech_create_params.SpeechCreateParams, "application/json"),
        ("POST /v1/audio/voices", voice_create_params.CreateVoiceRequestAudioSample, "multipart/form-data"),
        (
            "POST /v1/audio/voice_consents",
            voice_consent_create_params.VoiceConsentCreateParams,
            "multipart/form-data",
        ),
        (
            "POST /v1/audio/voice_consents/{consent_id}",
            voice_consent_update_params.VoiceConsentUpdateParams,
            "application/json",
        ),
    ],
)
def test_every_sdk_parameter_is_a_field(document: dict[str, Any], at: str, params: Any, media_type: str) -> None:
    ours = fields(document, at, media_type)
    hints = get_type_hints(params, include_extras=True)
    assert hints.keys() <= ours["properties"].keys()
    required = {name for name, hint in hints.items() if get_origin(hint) is Required}
    assert set(ours.get("required", [])) <= required  # whatever the SDK may leave out, we do without


def test_enums_equal_those_of_the_sdk(document: dict[str, Any]) -> None:
    hints = get_type_hints(speech_create_params.SpeechCreateParams)
    ours = fields(document, "POST /v1/audio/speech")["properties"]

    def enum(name: str) -> set[str]:
        return set(next(kind["enum"] for kind in ours[name]["anyOf"] if "enum" in kind))

    assert enum("response_format") == {*get_args(hints["response_format"]), "ogg", "m4a"}
    assert enum("stream_format") == set(get_args(hints["stream_format"]))
    queries = {each["name"] for each in operations(document)["GET /v1/audio/voice_consents"]["parameters"]}
    assert get_type_hints(voice_consent_list_params.VoiceConsentListParams).keys() <= queries


def test_every_voice_of_the_sdk_exists(http: httpx.Client) -> None:
    options = get_args(speech_create_params.Voice)
    names = {name for option in options for name in get_args(option)}
    assert len(names) == 13
    assert names <= {voice["id"] for voice in http.get("/v1/audio/voices").json()["voices"]}


def strict(kind: type[BaseModel]) -> type[BaseModel]:
    """A strict copy of an SDK type, which accepts only the fields that it names."""
    field_types: dict[str, Any] = {
        name: (field.annotation, ... if field.is_required() else field.default)
        for name, field in kind.model_fields.items()
    }
    return create_model(kind.__name__, __config__=ConfigDict(strict=True, extra="forbid"), **field_types)


def test_responses_match_the_types_of_the_sdk(http: httpx.Client, sample: bytes) -> None:
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="any", max_retries=0) as client:
        for model in client.models.list():
            named = {name: getattr(model, name) for name in Model.model_fields if name in model.model_fields_set}
            strict(Model).model_validate(named)  # this server adds fields to models
        raw = client.audio.voice_consents.with_raw_response
        created = raw.create(name="Ada", language="en-GB", recording=("a.flac", sample, "audio/flac"))
        consent = created.parse()
        strict(VoiceConsent).model_validate_json(created.content)
        strict(VoiceConsent).model_validate_json(raw.retrieve(consent.id).content)
        strict(VoiceConsent).model_validate_json(raw.update(consent.id, name="Grace").content)
        assert [each.id for each in client.audio.voice_consents.list(limit=1)] == [consent.id]
        voices = client.audio.voices.with_raw_response
        voice_response = voices.create(
            name="Ada",
            consent=consent.id,
            audio_sample=("a.flac", sample, "audio/flac"),
            extra_body={"transcript": "This is how I sound when I talk for a while."},
        )
        strict(Voice).model_validate_json(voice_response.content)
        strict(VoiceDeleted).model_validate_json(voices.delete(voice_response.parse().id).content)
        strict(VoiceConsentDeleted).model_validate_json(raw.delete(consent.id).content)
