"""Code that all live protocols share: it turns the settings of a client into a context of `generator/live.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from app.api.requests import SpeechBody
from app.errors import InvalidValue
from app.generator.live import ContextSpec, LiveSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.api.speaking import Speaking
    from app.generator.generation import Usage
    from app.keys import Pass
    from app.metrics import Metrics

NO_TEXT_YET = "-"  # the `input` of a body whose text arrives later


def live_session(speaking: Speaking) -> LiveSession:
    """Return a new session with the limits of this server."""
    return LiveSession(speaking.generator, speaking.metrics, max_chars=speaking.max_input_chars)


def count_usage(metrics: Metrics, admitted: Pass | None, usage: Usage | None) -> None:
    """Count the tokens of a context that has ended for its API key. admitted: None = the server has no keys."""
    if admitted is not None and usage is not None:
        metrics.key_tokens(admitted.key.name, usage.input_tokens, usage.output_tokens)


def end_pass(metrics: Metrics, admitted: Pass | None, status: int) -> None:
    """Count the request of a context that has ended for its API key. admitted: None = the server has no keys."""
    if admitted is not None:
        admitted.close()
        metrics.key_request(admitted.key.name, status)


def checked_body(fields: Mapping[str, Any], param: str = "") -> SpeechBody:
    """Return the speech request with these fields. Raises InvalidValue.

    param: the text before the name of the wrong field in `error.param`.
    """
    try:
        return SpeechBody.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InvalidValue(f"`{where}`: {problem['msg']}", param=param + where) from None


async def context_spec(
    speaking: Speaking,
    body: SpeechBody,
    owner: str,
    *,
    later: bool,
    convert: Callable[[bytes], bytes] | None = None,
    timestamps: bool = False,
    words: bool = False,
) -> ContextSpec:
    """Return the specification of the speech of a context. Raises RequestError, NotReady.

    owner: the digest of the API key; "" without keys. later: the text arrives later, and `body.input` is ignored.
    convert, words: see `ContextSpec`. timestamps: find the times of the words.
    """
    request = await speaking.prepare(body, owner)
    request = replace(request, timestamps=timestamps or words)
    if later:
        request = replace(request, lines=(replace(request.lines[0], text=""),))

    def begun(text: str) -> None:
        speaking.log(replace(request, lines=(replace(request.lines[0], text=text),)))

    return ContextSpec(request, body.extras, body.seed == "random", convert, begun, words)
