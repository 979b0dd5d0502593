"""Every error has one status and OpenAI's four keys; temporary errors have a Retry-After header."""

from __future__ import annotations

import json

import pytest
from fastapi.exceptions import RequestValidationError

from app import errors
from app.api.errors import PROBLEMS, STATUS, body_of, described, envelope, problem, response_to, status_of, unexpected

pytestmark = pytest.mark.unit


def subclasses(kind: type) -> list[type]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))]


# Only the errors of the app, since a test may define other subclasses.
KINDS = [kind for kind in subclasses(errors.SpeechError) if kind.__module__ == "app.errors"]
EXPECTED_STATUS = {
    "VoiceNeedsWords": 400,
    "ForeignHost": 403,
    "SpeechError": 500,
    "RequestError": 400,
    "EmptyText": 400,
    "TextTooLong": 400,
    "UnknownVoice": 400,
    "UnsupportedFormat": 400,
    "UnsupportedParameter": 400,
    "TooManySpeakers": 400,
    "BadAdapter": 400,
    "BadBook": 400,
    "BadReference": 400,
    "NotSupported": 400,
    "UnknownModel": 404,
    "Unauthorized": 401,
    "Forbidden": 403,
    "ForeignPage": 403,
    "HubRefused": 400,
    "HubUnreachable": 503,
    "TooLittleDisk": 507,
    "BodyTooLarge": 413,
    "Conflict": 409,
    "PreconditionFailed": 412,
    "RangeNotSatisfiable": 416,
    "Busy": 429,
    "RateLimited": 429,
    "NotReady": 503,
    "EngineError": 500,
    "InvalidValue": 400,
    "NotFound": 404,
    "VoiceNotSupported": 400,
    "Unfetchable": 400,
    "VoiceNotReady": 503,
    "NotStored": 507,
    "DamagedVoice": 500,
    "OutOfMemory": 500,
    "NothingSpoken": 500,
    "SpeechTooShort": 500,
    "EngineStopped": 503,
}


def test_expected_statuses_cover_every_error():
    assert {kind.__name__ for kind in KINDS} == EXPECTED_STATUS.keys()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_has_its_status_and_four_keys(kind):
    error = kind("in words")
    assert status_of(error) == EXPECTED_STATUS[kind.__name__]
    body = body_of(error)
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"] == "in words" == str(error)
    status = EXPECTED_STATUS[kind.__name__]
    assert body["error"]["type"] == (
        "requests" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    )
    response = response_to(error)
    assert response.status_code == status
    assert json.loads(response.body) == body
    assert response.headers["content-type"] == "application/json"
    assert ("retry-after" in response.headers) == (
        kind
        in (
            errors.Busy,
            errors.RateLimited,
            errors.NotReady,
            errors.VoiceNotReady,
            errors.HubUnreachable,
            errors.EngineStopped,
        )
    )
    assert ("x-should-retry" in response.headers) == (
        kind in (errors.OutOfMemory, errors.NotStored, errors.TooLittleDisk, errors.DamagedVoice, errors.Conflict)
    )
    assert ("www-authenticate" in response.headers) == (kind is errors.Unauthorized)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.__name__ not in ("SpeechError", "RequestError")])
def test_each_error_has_a_unique_code(kind):
    assert kind.code
    same = (
        {errors.VoiceNotReady, errors.VoiceNotSupported},  # one cause with two different statuses
        {errors.Busy, errors.RateLimited},  # OpenAI uses one code for both errors
    )
    others = [other for other in KINDS if other is not kind and not any({kind, other} <= pair for pair in same)]
    assert kind.code not in {other.code for other in others}


def test_no_status_row_is_hidden_by_an_earlier_row():
    """The first match wins, so a row after its base class would never be used."""
    for at, (kind, _) in enumerate(STATUS):
        assert not any(issubclass(kind, above) for above, _ in STATUS[:at])


@pytest.mark.parametrize(("retry_after_s", "expected"), [(7, "7"), (1, "1"), (0, "1"), (-3, "1")])
def test_retry_after_is_whole_seconds_and_at_least_one(retry_after_s, expected):
    for kind in (errors.Busy, errors.NotReady):
        assert response_to(kind("later", retry_after_s=retry_after_s)).headers["retry-after"] == expected


@pytest.mark.parametrize(
    ("reset_s", "expected"),
    [
        (0, "0ms"),
        (0.34, "340ms"),
        (0.999, "999ms"),
        (1, "1s"),
        (1.001, "1.001s"),
        (7.5, "7.5s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (72, "1m12s"),
        (601, "10m1s"),
    ],
)
def test_rate_limit_headers_match_openai(reset_s, expected):
    headers = response_to(errors.RateLimited("too many", limit=60, reset_s=reset_s, retry_after_s=3)).headers
    assert headers["retry-after"] == "3"
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == expected


def test_error_that_a_retry_cannot_fix_disables_retries():
    assert response_to(errors.OutOfMemory("full")).headers["x-should-retry"] == "false"


def test_body_contains_param_and_code():
    body = body_of(errors.UnknownVoice("none such", param="voice"))
    assert (body["error"]["param"], body["error"]["code"]) == ("voice", "voice_not_found")


@pytest.mark.parametrize("message", ["voice '\ud83d'", "\udcff\udfff", "a \x00 b", "naïve 音"])
def test_message_may_contain_any_text(message):
    response = response_to(errors.UnknownVoice(message))
    quoted = json.loads(bytes(response.body).decode("utf-8"))["error"]["message"]
    assert quoted == message.encode("utf-8", "replace").decode()


def test_unexpected_error_reveals_no_internal_details():
    response = unexpected()
    assert response.status_code == 500
    assert json.loads(response.body)["error"].keys() == {"message", "type", "param", "code"}


def test_envelope_keeps_null_values():
    assert envelope("x", status=400)["error"] == {
        "message": "x",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_module_docstring_names_every_error():
    drawn = errors.__doc__ or ""
    for kind in KINDS:
        assert kind.__name__ in drawn
    for kind in subclasses(errors.EngineUnavailable):
        # this error reports why no engine runs, and is never a response
        assert not issubclass(kind, errors.SpeechError)


@pytest.mark.parametrize("status", PROBLEMS)
def test_documented_headers_of_an_error(status):
    expected = {
        401: {"WWW-Authenticate"},
        409: {"x-should-retry"},
        429: {"Retry-After"},
        500: {"x-should-retry"},
        503: {"Retry-After", "x-should-retry"},
        507: {"x-should-retry"},
    }
    assert set(problem(status).get("headers", {})) == expected.get(status, set())


@pytest.mark.parametrize(
    ("location", "field"),
    [
        (("body", "seed"), "seed"),
        (("body", "seed", "int"), "seed"),
        (("query", "limit"), "limit"),
        (("body", "turns", 3), "turns.3"),
        (("body", "turns", 3, "text"), "turns.3.text"),
        (("body", "turns", 3, "text", "str"), "turns.3.text"),
        (("body", "(tag)", "seed"), "seed"),
        (("body", "(tag)", "turns", 0, "text", "str"), "turns.0.text"),
        (("body", "(tag)"), "(tag)"),
    ],
)
def test_wrong_field_has_its_name_in_the_request(location, field):
    found = RequestValidationError([{"type": "int_type", "loc": location, "msg": "Input should be an integer"}])
    assert described(found) == (field, f"`{field}`: Input should be an integer")


@pytest.mark.parametrize(
    ("kind", "limits", "words"),
    [
        ("string_too_short", {"min_length": 1}, "must not be empty"),
        ("too_short", {"min_length": 1}, "must not be empty"),
        ("string_too_short", {"min_length": 2}, "must have at least 2 characters"),
        ("string_too_long", {"max_length": 9}, "must have at most 9 characters"),
        ("too_short", {"min_length": 2}, "must have at least 2 items"),
        ("too_long", {"max_length": 9}, "must have at most 9 items"),
    ],
)
def test_wrong_length_is_described_in_words(kind, limits, words):
    found = RequestValidationError([{"type": kind, "loc": ("body", "x"), "msg": "", "ctx": limits}])
    assert described(found) == ("x", f"`x`: {words}")


def test_five_wrong_fields_are_described():
    found = RequestValidationError([{"type": "t", "loc": ("body", f"f{n}"), "msg": f"m{n}"} for n in range(7)])
    assert described(found) == ("f0", "`f0`: m0; `f1`: m1; `f2`: m2; `f3`: m3; `f4`: m4")
