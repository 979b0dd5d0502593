"""/openapi.json: what FastAPI reads off the routes, and here what it can't: each answer's shape, headers and errors.

`ANSWERS` has a row for every operation; a test says so. Errors of keys are added to what needs one, only where
there are keys. FastAPI's 422 goes: a body that does not fit is a 400 here, as OpenAI's clients expect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from app.api import responses
from app.audio.formats import AUDIO_FORMATS

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

    from app.api.auth import Gate

Schema = dict[str, Any]

_REF = "#/components/schemas/{model}"
_INT64 = 2**63  # FastAPI carries bounds as floats, which end at 2**53


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation answers: shape, a JSON body; or content, by media type. errors: which statuses it can end with
    but those of keys. also: further statuses whose body is the shape's."""

    errors: tuple[int, ...]
    shape: type[BaseModel] | None = None
    content: Mapping[str, Schema] | None = None
    headers: Mapping[str, Schema] | None = None
    description: str = "What was asked for."
    also: tuple[int, ...] = ()


def _text(description: str, **schema: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **schema}}


def _whole(description: str) -> Schema:
    return {"description": description, "schema": {"type": "integer", "minimum": 0}}


_BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_ID = _text("Names this request in the server's log.", pattern="^req_[0-9a-f]{32}$")
_RETRY_AFTER = {**_whole("Seconds until it is worth another try.")}
_AUDIO_HEADERS: Mapping[str, Schema] = {
    "X-TTS-Engine": _text("The engine that spoke."),
    "X-TTS-Seed": _text("Send it as `seed` to hear the same again.", pattern="^-?[0-9]+$"),
    "X-Cache": _text("Whether the answer was kept from an earlier request.", enum=["hit", "miss"]),
    "X-Voice-State": _text("`uncast`: the voice has no recording yet.", enum=["uncast"]),
    "X-TTS-Ignored": _text("Parameters that this engine or this route could not follow."),
}
_LIMIT_HEADERS: Mapping[str, Schema] = {
    "x-ratelimit-limit-requests": _whole("Requests a minute that this key may make."),
    "x-ratelimit-remaining-requests": _whole("How many of them are left."),
    "x-ratelimit-reset-requests": _text("When all of them are there again, as `7.5s`."),
}


def _events(*shapes_of_data: Schema) -> Schema:
    """Server-sent events as OpenAPI 3.2 describes them, as FastAPI does too. The last one's data is `[DONE]`."""
    data = {
        "type": "string",
        "anyOf": [
            {"contentMediaType": "application/json", "contentSchema": {"oneOf": list(shapes_of_data)}},
            {"const": "[DONE]"},
        ],
    }
    return {"itemSchema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}


def _object(kind: str | None = None, **properties: Schema) -> Schema:
    if kind is not None:
        properties = {"type": {"const": kind}, **properties}
    return {"type": "object", "properties": properties, "required": list(properties)}


_COUNT: Schema = {"type": "integer", "minimum": 0}
_ERROR_DATA: Schema = {"$ref": _REF.format(model=responses.ErrorEnvelope.__name__)}
_SPEECH_EVENTS = _events(
    _object("speech.audio.delta", audio={"type": "string", "contentEncoding": "base64"}),
    _object("speech.audio.done", usage=_object(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT)),
    _object(
        "speech.progress",
        text={"type": "string"},
        start_s={"type": "number", "minimum": 0},
        sentence=_COUNT,
        sentences={"type": ["integer", "null"], "minimum": 0},
        turn=_COUNT,
    ),
    _ERROR_DATA,
)
_CLONING_EVENTS = _events(
    _object("progress", stage={"type": "string"}, bytes=_COUNT, total={"type": ["integer", "null"], "minimum": 0}),
    _object("done", voice={"$ref": _REF.format(model=responses.ClonedVoice.__name__)}),
    _ERROR_DATA,
)

_AUDIO_TYPES = tuple(row.media_type for row in AUDIO_FORMATS.values())
_SPEECH = Answer(
    (400, 404, 408, 413, 429, 500, 503),
    content={**dict.fromkeys(_AUDIO_TYPES, _BINARY), "text/event-stream": _SPEECH_EVENTS},
    headers=_AUDIO_HEADERS,
    description="The audio, chunked from its first sound; or server-sent events with `stream_format: sse`.",
)
_UPLOAD = (400, 408, 413, 429, 507)

ANSWERS: Mapping[str, Answer] = {
    "POST /v1/audio/speech": _SPEECH,
    "POST /v1/audio/speech/streaming": _SPEECH,
    "POST /v1/audio/speech/stream": _SPEECH,
    "POST /v1/audio/conversation": _SPEECH,
    "POST /v1/audio/dialogue": _SPEECH,
    "POST /v1/voice-cloning/generate": _SPEECH,
    "POST /v1/voice-cloning/voices/{voice_id}/preview": _SPEECH,
    "DELETE /v1/audio/conversations/{conversation_id}": Answer((), responses.ForgottenConversation),
    "GET /v1/audio/speech/response-formats": Answer((), responses.ResponseFormats),
    "GET /v1/audio/speech/stream-formats": Answer((), responses.StreamFormats),
    "GET /v1/audio/voices": Answer((400,), responses.VoiceList),
    "GET /v1/voice-cloning/openai-compatible-voices": Answer((), responses.CompatibleVoices),
    "GET /v1/models": Answer((), responses.ModelList),
    "GET /v1/models/{model_id}": Answer((404,), responses.Model),
    "GET /v1/audio/models": Answer((), responses.AudioModelList),
    "POST /v1/voice-cloning/clone": Answer((*_UPLOAD, 404, 500), responses.Cloned),
    "POST /v1/voice-cloning/check": Answer(_UPLOAD, responses.Draft),
    "GET /v1/voice-cloning/voices": Answer((), responses.ClonedVoices),
    "GET /v1/voice-cloning/voices/{voice_id}": Answer((404,), responses.ClonedVoice),
    "PATCH /v1/voice-cloning/voices/{voice_id}": Answer((400, 404, 408, 413, 429, 507), responses.ClonedVoice),
    "DELETE /v1/voice-cloning/voices/{voice_id}": Answer((404, 429, 507), responses.DeletedClone),
    "GET /v1/voice-cloning/voices/{voice_id}/reference": Answer((404, 500), content={"audio/wav": _BINARY}),
    "GET /v1/voice-cloning/voices/{voice_id}/export": Answer(
        (404, 500),
        content={"application/zip": _BINARY},
        headers={"Content-Disposition": _text("A name for the file.")},
    ),
    "POST /v1/voice-cloning/import": Answer(_UPLOAD, responses.Cloned),
    "POST /v1/audio/voices": Answer(_UPLOAD, responses.CustomVoice),
    "DELETE /v1/audio/voices/{voice_id}": Answer((404, 429, 507), responses.DeletedVoice),
    "POST /v1/audio/voice_consents": Answer(_UPLOAD, responses.Consent),
    "GET /v1/audio/voice_consents": Answer((400, 404), responses.ConsentPage),
    "GET /v1/audio/voice_consents/{consent_id}": Answer((404,), responses.Consent),
    "POST /v1/audio/voice_consents/{consent_id}": Answer((400, 404, 408, 413, 429, 507), responses.Consent),
    "DELETE /v1/audio/voice_consents/{consent_id}": Answer((404, 429, 507), responses.DeletedConsent),
    "POST /v1/audio/watermark/detect": Answer((400, 408, 413, 429), responses.Detection),
    **dict.fromkeys(
        ("POST /v1/voice-cloning/clone-from-youtube", "POST /v1/audio/speech/voice-cloning/youtube"),
        Answer(
            _UPLOAD,
            content={
                "application/json": {"schema": {"$ref": _REF.format(model=responses.Cloned.__name__)}},
                "text/event-stream": _CLONING_EVENTS,
            },
            description="The voice, as `/voice-cloning/clone` tells it; or events.",
        ),
    ),
    "GET /health": Answer((), responses.Health, also=(503,), description="`starting`, `ok` or `degraded`."),
    "GET /ready": Answer((503,), responses.Ready, description="A speech request would be answered."),
    "GET /version": Answer((), responses.Version),
    "GET /metrics": Answer(
        (), content={"text/plain": {"schema": {"type": "string"}}}, description="Prometheus' text format."
    ),
    "GET /debug": Answer((), responses.Debug),
}

# Status: what it means, and an example of (message, param, code).
_PROBLEMS: Mapping[int, tuple[str, tuple[str, str | None, str | None]]] = {
    400: (
        "The request can't be answered as it is; the message says why.",
        ("`speed`: Input should be less than or equal to 4", "speed", "less_than_equal"),
    ),
    401: (
        "A key is needed, or is wrong.",
        (
            "No API key was given. Send `Authorization: Bearer <key>`.",
            None,
            "invalid_api_key",
        ),
    ),
    403: (
        "The key lacks the scope that the message names.",
        ("The API key 'kiosk' lacks the scope `clone`, which this needs; it has: speak.", None, "missing_scope"),
    ),
    404: (
        "No such model, voice or consent here.",
        ("The model `gpt-5` does not exist or you do not have access to it.", "model", "model_not_found"),
    ),
    408: ("The body came too slowly.", ("The request came too slowly. Send it again.", None, "request_timeout")),
    413: (
        "The body is too large.",
        ("The request body is larger than 1048576 bytes (TTS_MAX_BODY_BYTES).", None, "request_too_large"),
    ),
    429: (
        "The queue is full, or the key has used what it may; Retry-After says when to come back.",
        ("All 8 rows and 64 places in the queue are taken. Try again.", None, "rate_limit_exceeded"),
    ),
    500: ("The engine failed, or a voice's files are damaged.", ("The engine failed.", None, "engine_error")),
    503: (
        "The engine is starting or can't be had; Retry-After says when to look again.",
        ("The engine csm is starting. Try again.", None, "engine_not_ready"),
    ),
    507: (
        "It could not be stored: the disk is full or read-only.",
        ("It could not be stored: No space left on device.", None, "storage_error"),
    ),
}
_BEARER: Schema = {"type": "http", "scheme": "bearer", "description": "As OpenAI's clients send a key."}
_API_KEY: Schema = {"type": "apiKey", "in": "header", "name": "api-key", "description": "As Azure's clients send it."}


def install(app: FastAPI, gate: Gate, *, max_input_chars: int) -> None:
    """Let `app.openapi` tell all of this; keys may come while the server runs."""
    generate: Callable[[], Schema] = app.openapi
    told: dict[bool, Schema] = {}

    def openapi() -> Schema:
        if gate.needed not in told:
            app.openapi_schema = None
            told[gate.needed] = _described(generate(), keys=gate.needed, max_input_chars=max_input_chars)
            app.openapi_schema = None
        return told[gate.needed]

    app.openapi = openapi  # type: ignore[method-assign]


def _described(schema: Schema, *, keys: bool, max_input_chars: int) -> Schema:
    """`schema` as FastAPI made it, completed in place."""
    components = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    kinds = {answer.shape for answer in ANSWERS.values() if answer.shape is not None}
    kinds |= {responses.ErrorEnvelope, responses.Cloned, responses.ClonedVoice}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, made = models_json_schema([(kind, "serialization") for kind in ordered], ref_template=_REF)
    components.update(made["$defs"])
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            at = f"{method.upper()} {path}"
            needs_key = "403" in operation["responses"]
            told_of_keys = "401" in operation["responses"]
            operation["responses"] = _responses(
                ANSWERS[at], needs_key=keys and needs_key, wrong_key=keys and told_of_keys
            )
            if keys and told_of_keys:
                operation["security"] = [{"bearer": []}, {"api-key": []}] + ([] if needs_key else [{}])
    if keys:
        schema["components"]["securitySchemes"] = {"bearer": _BEARER, "api-key": _API_KEY}
    _exact(components)
    for name, form in components.items():
        if name.startswith("Body_"):  # a form can leave a field out, but not say null
            for field in form["properties"].values():
                given = [kind for kind in field.pop("anyOf", []) if kind != {"type": "null"}]
                field.update(given[0] if given else {})
    for body in ("SpeechBody", "ConversationBody", "GenerateBody", "PreviewBody"):
        fields = components[body]["properties"]
        fields["input" if body == "SpeechBody" else "text"]["maxLength"] = max_input_chars
    return schema


def _responses(answer: Answer, *, needs_key: bool, wrong_key: bool) -> dict[str, Schema]:
    if answer.content is not None:
        content = dict(answer.content)
    else:
        assert answer.shape is not None  # noqa: S101 - one or the other
        content = {"application/json": {"schema": {"$ref": _REF.format(model=answer.shape.__name__)}}}
    limited = _LIMIT_HEADERS if needs_key else {}
    headers = {"X-Request-ID": {**_REQUEST_ID, "required": True}, **(answer.headers or {}), **limited}
    told = {"200": {"description": answer.description, "content": content, "headers": headers}}
    for status in answer.also:
        told[str(status)] = {"description": "Not well, and why.", "content": content, "headers": headers}
    statuses = {*answer.errors, *((401,) if wrong_key else ()), *((403, 429) if needs_key else ())}
    for status in sorted(statuses):
        told[str(status)] = _problem(status, limited)
    return dict(sorted(told.items()))


def _problem(status: int, limited: Mapping[str, Schema]) -> Schema:
    description, (message, param, code) = _PROBLEMS[status]
    kind = "requests" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    example = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = {"X-Request-ID": {**_REQUEST_ID, "required": True}, **(limited if status == 429 else {})}
    if status in (429, 503):
        headers["Retry-After"] = {**_RETRY_AFTER, "required": True}
    if status == 401:
        headers["WWW-Authenticate"] = {**_text("`Bearer`."), "required": True}
    if status >= 500:
        headers["x-should-retry"] = _text("`false`: the same request will fail again.", enum=["false"])
    return {
        "description": description,
        "headers": headers,
        "content": {"application/json": {"schema": _ERROR_DATA, "example": example}},
    }


def _exact(node: Any) -> None:
    """Bounds of integers as integers again, and files also as OpenAPI 3.0 has them; in place."""
    if isinstance(node, dict):
        if node.get("contentMediaType") == "application/octet-stream":
            node["format"] = "binary"
        if node.get("type") == "integer":
            for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                if isinstance(node.get(bound), float):
                    node[bound] = min(int(node[bound]), _INT64 - 1)
        for value in node.values():
            _exact(value)
    elif isinstance(node, list):
        for value in node:
            _exact(value)
