"""Code that all live protocols share: it turns the settings of a client into a context of `generator/live.py`."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from app.api.errors import described
from app.api.requests import SpeechBody
from app.errors import InvalidValue, SpeechError, UnknownVoice
from app.generator.live import ContextSpec, LiveSession
from app.voices.presets import standard_voices_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from app.api.requests import SpokenBody
    from app.api.speaking import Speaking
    from app.generator.generation import Usage
    from app.keys import Pass
    from app.metrics import Metrics
    from app.voices.store import VoiceStore

NO_TEXT_YET = "-"  # the `input` of a body whose text arrives later
_Body = TypeVar("_Body", bound="SpokenBody")
_FIELD = re.compile(r"`([a-z_0-9.]+)`")


def live_session(speaking: Speaking) -> LiveSession:
    """Return a new session of live contexts, whose texts can be as long as this server allows."""
    return LiveSession(speaking.generator, speaking.metrics, max_chars=speaking.max_input_chars)


def count_usage(metrics: Metrics, admitted: Pass | None, usage: Usage | None) -> None:
    """Count the tokens of a completed context in the metrics of its API key.

    admitted: None = the server has no keys. usage: None = count nothing.
    """
    if admitted is not None and usage is not None:
        metrics.key_tokens(admitted.key.name, usage.input_tokens, usage.output_tokens)


def end_pass(metrics: Metrics, admitted: Pass | None, status: int) -> None:
    """Close the pass of a context that has ended, and count its request in the metrics of its API key.

    admitted: None = the server has no keys. status: the HTTP status that is counted.
    """
    if admitted is not None:
        admitted.close()
        metrics.key_request(admitted.key.name, status)


def checked_body(fields: Mapping[str, Any]) -> SpeechBody:
    """Return the speech request with these fields. Raises InvalidValue with the name of the wrong field as `param`."""
    return checked(SpeechBody, fields)


def checked(kind: type[_Body], fields: Mapping[str, Any]) -> _Body:
    """Return a body of the class `kind` with these fields. Raises the same error as `checked_body`."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        param, message = described(error, "body")
        raise InvalidValue(message, param=param) from None


def check_voice(voices: VoiceStore, name: str) -> None:
    """Check that a voice exists. A name such as nova+echo names several voices, which must all exist.

    Raises UnknownVoice.
    """
    if standard_voices_of(name):
        return
    try:
        voices.get(name)
    except UnknownVoice:
        if "+" not in name:
            raise
        for part in name.split("+"):
            voices.get(part)


def with_client_names(error: SpeechError, names: Mapping[str, str]) -> None:
    """In an error, replace the names of speech request fields with the names that the client uses.

    names: field of a speech request -> field of the client.
    """

    def renamed(path: str) -> str:
        return ".".join(names.get(part, part) for part in path.split("."))

    error.message = _FIELD.sub(lambda found: f"`{renamed(found[1])}`", error.message)
    if error.param is not None:
        error.param = renamed(error.param)


@contextlib.contextmanager
def client_names(names: Mapping[str, str]) -> Iterator[None]:
    """Change the errors that this `with` block raises: see `with_client_names`."""
    try:
        yield
    except SpeechError as error:
        with_client_names(error, names)
        raise


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

    owner: the digest of the API key; "" if the server has no keys. later: True = the text arrives later, and
    `body.input` is ignored. convert, words: see `ContextSpec`. timestamps: whether to find the times of the words.
    """
    request = await speaking.prepare(body, owner)
    request = replace(request, timestamps=timestamps or words)
    if later:
        request = replace(request, lines=(replace(request.lines[0], text=""),))

    def begun(text: str) -> None:
        speaking.log(replace(request, lines=(replace(request.lines[0], text=text),)))

    return ContextSpec(request, body.extras, body.seed == "random", convert, begun, words)
