"""Maps each error to an HTTP status and OpenAI's error body, so that the official SDKs raise the matching exception.

`STATUS` maps the classes of app/errors.py to statuses. `PROBLEMS` describes each status for /openapi.json. A route
lists its possible error statuses: `responses=problems(400, 404)`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import errors
from app.api import bodies
from app.api.paths import suggestion
from app.api.responses import ErrorEnvelope, Schema, integer_header, text_header

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response
    from pydantic import ValidationError
    from starlette.requests import HTTPConnection

log = logging.getLogger(__name__)

RETRY_STOPPED_S = 10  # the value of Retry-After while the server stops: about as many seconds as a restart takes

# The first row whose class matches an error gives the HTTP status. SpeechError, in the last row, is the base class of
# all errors.
STATUS: tuple[tuple[type[errors.SpeechError], int], ...] = (
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.ForeignPage, 403),
    (errors.ForeignHost, 403),
    (errors.UnknownModel, 404),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.PreconditionFailed, 412),
    (errors.BodyTooLarge, 413),
    (errors.RangeNotSatisfiable, 416),
    (errors.RequestError, 400),
    (errors.Busy, 429),
    (errors.NotReady, 503),
    (errors.EngineStopped, 503),
    (errors.NotStored, 507),
    (errors.SpeechError, 500),
)


# Status -> its meaning, and an example of (message, param, code).
PROBLEMS: Mapping[int, tuple[str, tuple[str, str | None, str | None]]] = {
    400: (
        "The request is not valid; the message says why.",
        ("`speed`: Input should be less than or equal to 4", "speed", "less_than_equal"),
    ),
    401: (
        "The API key is missing or wrong.",
        ("No API key was given. Send `Authorization: Bearer <key>`.", None, "invalid_api_key"),
    ),
    403: (
        "The API key lacks the scope that the message names.",
        (
            "The API key 'kiosk' lacks the scope `clone`, which this request needs. Its scopes are: speak.",
            None,
            "missing_scope",
        ),
    ),
    404: (
        "The model, the voice or the consent does not exist.",
        ("The model `gpt-5` does not exist or you do not have access to it.", "model", "model_not_found"),
    ),
    408: (
        "The body arrived too slowly.",
        ("The request arrived too slowly. Send it again.", None, "request_timeout"),
    ),
    409: (
        "The object is in a state in which this request is not possible; the message says which.",
        ("The job is running. Its result exists when it is completed.", None, "job_not_completed"),
    ),
    412: (
        "The object has changed: its ETag is not in `If-Match`. Nothing was stored.",
        (
            "The object has changed since you read it, so nothing was stored. Get it again, repeat your change, and "
            "send its new ETag in the header `If-Match`.",
            None,
            "precondition_failed",
        ),
    ),
    413: (
        "The body is too large.",
        ("The request body is larger than 1048576 bytes (TTS_MAX_BODY_BYTES).", None, "request_too_large"),
    ),
    416: (
        "The header `Range` begins after the end of the file.",
        (
            "The file has 169032 bytes. Send a `Range` that begins before its end.",
            None,
            "range_not_satisfiable",
        ),
    ),
    429: (
        "The queue is full, or the API key has reached its rate limit. Retry-After says when to try again.",
        ("All 8 rows and 64 places in the queue are taken. Try again.", None, "rate_limit_exceeded"),
    ),
    500: (
        "The engine failed, or a voice's files are damaged.",
        ("The engine failed.", None, "engine_error"),
    ),
    503: (
        "The engine is starting or not available. Retry-After says when to try again.",
        ("The engine is starting. Try again.", None, "engine_not_ready"),
    ),
    507: (
        "The server could not store the data: its disk is full or read-only.",
        ("The voice could not be stored: No space left on device.", None, "storage_error"),
    ),
}


def problem(status: int) -> Schema:
    """Return the OpenAPI description of the error response with this status."""
    description, (message, param, code) = PROBLEMS[status]
    headers: Schema = {}
    if status in (429, 503):
        headers["Retry-After"] = {**integer_header("Seconds to wait before the next try."), "required": True}
    if status == 401:
        headers["WWW-Authenticate"] = {**text_header("`Bearer`."), "required": True}
    if status >= 500 or status == 409:
        headers["x-should-retry"] = text_header("`false`: the same request will fail again.", enum=["false"])
    content = {
        "schema": {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"},
        "example": envelope(message, status=status, param=param, code=code),
    }
    return {"description": description, "headers": headers, "content": {"application/json": content}}


def problems(*statuses: int) -> dict[int | str, Schema]:
    """Return the OpenAPI `responses` of a route that can answer with these error statuses."""
    return {status: problem(status) for status in statuses}


def error_schemas() -> Schema:
    """Return a dict: name -> schema, for each schema that the results of `problem` refer to.

    The routes do not name the model of these responses, because FastAPI would build it again for each status of each
    route, which takes CPU time at every start.
    """
    schema = ErrorEnvelope.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), ErrorEnvelope.__name__: schema}


def status_of(error: errors.SpeechError) -> int:
    """Return the HTTP status of an error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def envelope(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the JSON body of an error, in OpenAI's format.

    The field `type` depends on the status: `requests` for 429, `invalid_request_error` for any other 4xx, and
    `server_error` for 5xx.
    """
    kind = "requests" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: errors.SpeechError) -> dict[str, Any]:
    """Return the JSON body of an error that the server has raised, in OpenAI's format."""
    return envelope(error.message, status=status_of(error), param=error.param, code=error.code)


def response_to(error: errors.SpeechError) -> JSONResponse:
    """Return the HTTP response to an error: status, headers such as Retry-After, and body."""
    headers = {}
    if isinstance(error, errors.Busy | errors.NotReady):
        headers["Retry-After"] = str(max(1, error.retry_after_s))
    if isinstance(error, errors.RateLimited) and error.limit is not None:
        headers.update(limit_headers(error.limit, 0, error.reset_s))
    if isinstance(error, errors.EngineStopped):
        headers["Retry-After"] = str(RETRY_STOPPED_S)
    # OpenAI's clients repeat a request after a 409 or a 5xx, unless the response has "x-should-retry: false".
    if isinstance(error, errors.OutOfMemory | errors.NotStored | errors.DamagedVoice | errors.Conflict):
        headers["x-should-retry"] = "false"
    if isinstance(error, errors.RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return _json(status_of(error), body_of(error), headers)


def limit_headers(limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    """Return the rate limit headers, with OpenAI's names and time format (340ms, 7.5s, 1m12s).

    limit: the requests per minute of the API key. remaining: the requests that the key may still make this minute.
    reset_s: seconds until the key may make all its requests per minute again.
    """
    ms = round(reset_s * 1000)
    minutes, seconds = divmod(ms / 1000, 60)
    reset = f"{ms}ms" if ms < 1000 else f"{seconds:g}s" if not minutes else f"{minutes:.0f}m{seconds:.0f}s"
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
    }


def unexpected() -> JSONResponse:
    """Return the response to an unexpected exception: a 500 without details. The log has the details."""
    return _json(
        500,
        envelope("The server failed because of an internal error. The log of the server has the reason.", status=500),
        {},
    )


def _json(status: int, body: dict[str, Any], headers: Mapping[str, str] | None) -> JSONResponse:
    # A message may quote the caller's text. UTF-8 can't encode lone surrogates in this text, so they become `?`.
    error = body["error"]
    error["message"] = error["message"].encode("utf-8", "replace").decode()
    return JSONResponse(body, status, headers=dict(headers or {}))


def install(app: FastAPI, known_paths: Collection[str], unknown_page: Callable[[Request], Awaitable[Response]]) -> None:
    """Register a handler for each kind of error that a route can raise, and refuse WebSockets with unknown paths.

    Call this after all routes are added. known_paths: the paths that a 404 can suggest. unknown_page: returns the page
    for a browser that opens an unknown path.
    """

    async def speech_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.SpeechError)  # noqa: S101 - Starlette declares the parameter as Exception
        return response_to(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return _invalid(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if isinstance(error, bodies.BodyRejected):
            return response_to(error.error)
        if error.status_code == 405:  # Starlette lists only the methods of one route with this path
            error.headers = {"Allow": ", ".join(_methods_at(request))}
        if error.status_code == 404:
            if request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", ""):
                return await unknown_page(request)
            return _unknown_path(request, known_paths)
        return _http_error(error)

    app.add_exception_handler(errors.SpeechError, speech_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)

    @app.websocket("/{path:path}")
    async def unknown_socket(connection: WebSocket) -> None:
        await connection.send_denial_response(_unknown_path(connection, known_paths))


def _methods_at(request: Request) -> list[str]:
    """Return the HTTP methods that at least one route supports at the path of this request."""

    def allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [
        method for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT") if allowed(method.replace("HEAD", "GET"))
    ]


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Return the response to a request that does not pass pydantic's validation: a 400 that names the wrong fields."""
    problems = error.errors()
    kind = request.headers.get("content-type", "")
    media = kind.split(";")[0].strip().lower()
    whole_body = any(problem["loc"] == ("body",) for problem in problems)
    if whole_body and not bodies.is_json(request.headers) and problems[0]["type"] != "missing":
        message = (
            f"Unsupported content type: {media[:80]!r}. This endpoint only accepts 'application/json'; send the JSON "
            "body with the header `Content-Type: application/json`."
        )
        return _json(400, envelope(message, status=400, code="unsupported_content_type"), None)
    first = problems[0]
    if whole_body:
        return _json(400, envelope("The body must be a JSON object.", status=400, code="invalid_type"), None)
    param, message = described(error)
    return _json(400, envelope(message, status=400, param=param or None, code=first["type"]), None)


def described(error: ValidationError | RequestValidationError, *outer: str) -> tuple[str, str]:
    """Return the name of the first wrong field, and a message that says what is wrong with the first five wrong fields.

    outer: parts that are added at the beginning of the location of each problem. They are needed if these locations do
    not begin with a part of the request, such as `body`.
    """
    problems = [(_field_at((*outer, *problem["loc"])), _in_words(problem)) for problem in error.errors()[:5]]
    return problems[0][0], "; ".join(f"`{field}`: {problem}" for field, problem in problems)


def _in_words(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a field. pydantic's messages about wrong lengths are replaced with clearer ones."""
    limits = problem.get("ctx", {})
    match problem["type"]:
        case "string_too_short" | "too_short" if limits["min_length"] == 1:
            return "must not be empty"
        case "string_too_short":
            return f"must have at least {limits['min_length']} characters"
        case "string_too_long":
            return f"must have at most {limits['max_length']} characters"
        case "too_short":
            return f"must have at least {limits['min_length']} items"
        case "too_long":
            return f"must have at most {limits['max_length']} items"
        case "string_unicode":
            return "must not contain halves of characters (surrogates)"
    return str(problem["msg"])


def _field_at(location: Sequence[str | int]) -> str:
    """Return the name of the field at a pydantic error location: for example `seed`, or `turns.3.text` inside a list.

    Three things are left out: the first part of the location (`body`), a tag in parentheses that names one of several
    bodies, and the parts that pydantic adds after the field.
    """
    if len(location) > 2 and isinstance(location[1], str) and location[1].startswith("("):
        location = location[1:]  # the tag takes the place of `body`
    inside_list = len(location) > 2 and isinstance(location[2], int)
    return ".".join(str(part) for part in location[1 : 4 if inside_list else 2])


def _unknown_path(request: HTTPConnection, known_paths: Collection[str]) -> JSONResponse:
    """Return the response to a request whose path belongs to no route."""
    near = suggestion(request.scope["path"].removeprefix(request.scope.get("root_path", "")), known_paths)
    hint = f" Did you mean {near}?" if near else ""
    message = f"This URL does not exist on this server.{hint} The page /docs lists the URLs that exist."
    return _json(404, envelope(message, status=404, code="not_found"), None)


def _http_error(error: HTTPException) -> JSONResponse:
    """Return the response to an HTTPException of Starlette or of a middleware, for example to a 405."""
    status = error.status_code
    if status == 405:
        message, code = (
            "This URL does not support this HTTP method. The response header Allow lists the "
            "supported methods. See also /docs.",
            "method_not_allowed",
        )
    elif status == 408:
        message, code = str(error.detail), "request_timeout"
    elif status == 413:
        message, code = str(error.detail), errors.BodyTooLarge.code
    else:
        message, code = str(error.detail) or HTTPStatus(status).phrase, None
    return _json(status, envelope(message, status=status, code=code), error.headers)
