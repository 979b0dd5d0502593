"""What schemathesis is told of this server, in its own environment: which names exist, and which 400s are no lie.

A schema says which requests are well formed, not which voices there are or what the running engine can do. So valid
data may be refused, but only for a reason of that kind, by its code; anything else is a schema that promises too much.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis

REASONS = {
    "empty_input",  # characters without speech: controls
    "voice_not_found",
    "voice_not_supported_by_engine",
    "unsupported_parameter",  # of this engine
    "unsupported_language",
    "unsupported_format",  # a sample rate that the format has not
    "invalid_value",  # consents that do not exist; names of unassigned characters
    "bad_reference",  # random bytes are no recording
    "book_type_unknown",  # random bytes are no book
    "book_not_readable",
    "book_empty",
    "youtube_url_invalid",
    "not_supported",
}
UNDERSTOOD = {401, 403, 404, 409, 412, 429, 507}  # 409: for example, a job that is not paused can't be resumed
KNOWN = {name: os.environ[f"KNOWN_{name.upper()}"].split() for name in ("voice_id", "consent_id")}


@schemathesis.check
def valid_data_is_understood(_: Any, response: Any, case: Any) -> None:
    """Takes the place of `positive_data_acceptance`."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code < 400 or response.status_code in UNDERSTOOD:
        return
    error = response.json()["error"]
    if error["param"] == "seed" and error["code"] in ("less_than_equal", "greater_than_equal"):
        return  # 2**63 + 191 is valid for a generator that compares 64-bit integers as floats
    assert response.status_code == 400, f"valid data was answered with {response.status_code}: {error['message']}"
    assert error["code"] in REASONS, f"valid data was refused as {error['code']}: {error['message']}"


# The server accepts numbers and booleans as strings, which the schema does not describe.
LENIENT = {
    *("speed", "temperature", "top_k", "topk", "top_p", "cfg_scale", "seed", "max_audio_length_ms", "sample_rate"),
    *("best_of", "speaker_id", "cache", "normalize", "enhance", "parallel", "verify", "progress", "timestamps"),
}


@schemathesis.hook
def filter_body(_: Any, body: Any) -> bool:
    """Leave out bodies with a string in a field of LENIENT: a valid string there is no error of the server."""
    if not isinstance(body, dict):
        return True
    options = body.get("normalization_options")
    if isinstance(options, dict) and isinstance(options.get("normalize"), str):
        return False
    return not any(isinstance(value := body.get(name), str) and value != "random" for name in LENIENT)


@schemathesis.hook
def map_path_parameters(_: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Replace every other name in a path by an existing one."""
    for name, known in KNOWN.items():
        original = str((path_parameters or {}).get(name, ""))
        if path_parameters and known and sum(original.encode()) % 2 == 0:
            path_parameters[name] = known[sum(original.encode()) // 2 % len(known)]
    return path_parameters
