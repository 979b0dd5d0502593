"""The events of OpenAI's Realtime API, for speech only: a client sends texts, and the server speaks them word for word.

A `RealtimeSession` handles one WebSocket. It keeps the session's settings and the items of the conversation, and it
speaks each response as a context of `generator/live.py`. The server only speaks: it refuses audio input, tools and text
output. `instructions` are never spoken.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import structlog

from app.api.errors import body_of
from app.api.live_contexts import (
    NO_TEXT_YET,
    check_voice,
    checked_body,
    context_spec,
    count_usage,
    end_pass,
    live_session,
)
from app.api.requests import too_long
from app.api.sockets import GOING_AWAY, KEY_CHECK_S, POLICY_VIOLATION, Closed
from app.audio import g711
from app.errors import InvalidValue, NotFound, NotSupported, RequestError, SpeechError, Unauthorized
from app.generator.live import Audio, Cancelled, Done, Failed, SentenceStarted, SpokenText, Words
from app.generator.resolving import find_model
from app.text.captions import words_of
from app.voices.presets import DEFAULT_VOICE

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from app.api.auth import Gate
    from app.api.requests import SpeechBody
    from app.api.sockets import Socket
    from app.api.speaking import Speaking
    from app.engines.model_manager import ModelManager
    from app.generator.live import LiveContext
    from app.keys import Pass
    from app.voices.store import VoiceStore

log: Any = structlog.get_logger(__name__)

MAX_SESSION_S = 60 * 60.0
IDLE_S = 15 * 60.0  # a connection without messages and without speech is closed after this time
MAX_RESPONSES = 8  # the largest number of responses that one connection speaks at the same time
# How long the server tries to send the last events of a cancelled response before it handles the client's next event.
UNREAD_S = 1.0
TRUNCATE_WORDS_S = 1.0  # how long a truncation waits for the times of the words
# The largest number of items in the `input` of a response. A conversation with more items loses its oldest items.
MAX_ITEMS = 500
MAX_PARTS = 1_000  # the largest number of parts in the content of an item
TURN_S = 0.01  # after this many seconds, a connection that handles events lets other connections run
MAX_METADATA = 16
_TEXT_TYPES = ("input_text", "output_text", "text")
# Fields of a session that OpenAI does not have. They mean the same as in a speech request.
_SPEECH_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "cfg_scale",
    "language",
    "seed",
    "lexicon",
    "normalize",
    "enhance",
    "timestamps",
)
_RATES_HZ = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
_LAWS: dict[str, g711.Law] = {"audio/pcmu": "ulaw", "audio/pcma": "alaw"}
_ONLY_SPEAKS = "This server only speaks: it turns text into audio."

Object = dict[str, Any]


def new_id(kind: str) -> str:
    """Return a new id, such as resp_0123456789abcdef0123."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"


# ---- reading what the client sends


def _text(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidValue(f"`{param}` must be a text.", param=param)
    return value


def _object(value: object, param: str) -> Object:
    if not isinstance(value, dict):
        raise InvalidValue(f"`{param}` must be an object.", param=param)
    return value


def _check_only_speech(settings: Object, param: str) -> None:
    """Refuse tools and text output. Raises NotSupported, InvalidValue."""
    modalities = settings.get("output_modalities", settings.get("modalities"))
    if modalities is not None and (not isinstance(modalities, list) or "audio" not in modalities):
        raise NotSupported(f'{_ONLY_SPEAKS} Set `output_modalities` to ["audio"].', param=f"{param}.output_modalities")
    if settings.get("tools"):
        raise NotSupported(f"{_ONLY_SPEAKS} It calls no tools. Leave out `tools`.", param=f"{param}.tools")
    if settings.get("tool_choice") not in (None, "none", "auto"):
        raise NotSupported(f'{_ONLY_SPEAKS} Set `tool_choice` to "none".', param=f"{param}.tool_choice")


@dataclass(frozen=True, slots=True)
class Changes:
    """The part of a `session` or a `response` object that has an effect."""

    settings: Object = field(default_factory=dict)  # field of SessionSettings -> its new value
    output: Object = field(default_factory=dict)  # new values of `format`, `voice` and `speed`
    speech: Object = field(default_factory=dict)  # new values of the fields in _SPEECH_FIELDS
    # The name of a field in a speech request -> the place where the client has sent it, such as session.speed.
    params: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def naming_params(self) -> Iterator[None]:
        """In errors of this `with` block, set `param` to the place of the field in the client's object."""
        try:
            yield
        except SpeechError as error:
            error.param = self.param_of(error)
            raise

    def param_of(self, error: SpeechError) -> str | None:
        """Return where the client has sent the field that `error` names, such as session.speed; None if not sent."""
        name, dot, rest = (error.param or "").partition(".")
        place = self.params.get(name)
        return None if place is None else f"{place}{dot}{rest}"


def checked_changes(settings: Object, where: str) -> Changes:
    """Check the object `session` or `response` of an event, and return its changes. Raises RequestError.

    where: the name of the object, for `param` of errors.
    """
    _check_only_speech(settings, where)
    changes = Changes()
    if (instructions := settings.get("instructions")) is not None:
        changes.settings["instructions"] = _text(instructions, f"{where}.instructions")
    tokens = settings.get("max_output_tokens")
    if tokens is not None:
        if tokens != "inf" and (isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= 4096):
            raise InvalidValue('`max_output_tokens` must be 1 to 4096, or "inf".', param=f"{where}.max_output_tokens")
        changes.settings["max_output_tokens"] = tokens
    for name in _SPEECH_FIELDS:
        if settings.get(name) is not None:
            changes.speech[name] = settings[name]
            changes.params[name] = f"{where}.{name}"
    audio = _object(settings.get("audio") or {}, f"{where}.audio")
    output = _object(audio.get("output") or {}, f"{where}.audio.output")
    for name, old in (("format", "output_audio_format"), ("voice", "voice"), ("speed", "speed")):
        for fields, key, place in ((output, name, f"{where}.audio.output.{name}"), (settings, old, f"{where}.{old}")):
            if fields.get(key) is not None:  # `old` is the name of the field in the beta of the Realtime API
                changes.output[name] = _OUTPUT_CHECKS[name](fields[key], place)
                changes.params[name] = place
                break
    return changes


def _checked_format(value: object, param: str) -> Object:
    fields = {"type": value} if isinstance(value, str) else _object(value, param)
    kind = fields.get("type")
    kind = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}.get(str(kind), kind)
    if not isinstance(kind, str) or kind not in _RATES_HZ:
        raise InvalidValue(
            "The type of the audio format must be one of `audio/pcm`, `audio/pcmu`, `audio/pcma`.",
            param=param if isinstance(value, str) else f"{param}.type",
        )
    if fields.get("rate") not in (None, _RATES_HZ[kind]):
        raise InvalidValue(f"The rate of {kind} must be {_RATES_HZ[kind]}.", param=f"{param}.rate")
    return {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind}


def _checked_voice(value: object, param: str) -> object:
    name = value.get("id") if isinstance(value, dict) else value
    if not isinstance(name, str) or not name.strip():
        raise InvalidValue('`voice` must be the id of a voice, or an object such as {"id": "alloy"}.', param=param)
    return value


def _checked_speed(value: object, param: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.25 <= value <= 4:
        raise InvalidValue("`speed` must be a number from 0.25 to 4.", param=param)
    return value


_OUTPUT_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "format": _checked_format,
    "voice": _checked_voice,
    "speed": _checked_speed,
}


def _metadata(value: object) -> dict[str, str] | None:
    """Check the metadata of a response and return them. Raises InvalidValue."""
    if value is None:
        return None
    pairs = _object(value, "response.metadata")
    if len(pairs) > MAX_METADATA or not all(
        isinstance(content, str) and len(name) <= 64 and len(content) <= 512 for name, content in pairs.items()
    ):
        raise InvalidValue(
            f"`metadata` may have up to {MAX_METADATA} texts of up to 512 characters, with names of up to 64 "
            "characters.",
            param="response.metadata",
        )
    return pairs


def checked_item(item: object, param: str) -> Object:
    """Check an item and return it with an id. Raises InvalidValue, NotSupported."""
    item = _object(item, param)
    if item.get("type", "message") != "message":
        raise NotSupported(
            f"{_ONLY_SPEAKS} It accepts items of the type `message`, not of another type.", param=f"{param}.type"
        )
    role = item.get("role")
    if role not in ("user", "assistant", "system"):
        raise InvalidValue("`role` must be one of `user`, `assistant`, `system`.", param=f"{param}.role")
    content = item.get("content")
    if not isinstance(content, list):
        raise InvalidValue("`content` must be a list of parts.", param=f"{param}.content")
    if len(content) > MAX_PARTS:
        raise InvalidValue(f"`content` may have up to {MAX_PARTS} parts. Join their texts.", param=f"{param}.content")
    parts = []
    for number, part in enumerate(content):
        where = f"{param}.content.{number}"
        kind = _object(part, where).get("type")
        if kind not in (*_TEXT_TYPES, "output_audio"):
            raise NotSupported(f"{_ONLY_SPEAKS} A part of `content` must have the type `input_text`.", param=where)
        if kind == "output_audio":
            parts.append({"type": kind, "transcript": _text(part.get("transcript") or "", f"{where}.transcript")})
        else:
            parts.append({"type": kind, "text": _text(part.get("text"), f"{where}.text")})
    found = item.get("id")
    return {
        "id": new_id("item") if found is None else _text(found, f"{param}.id")[:64],
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": role,
        "content": parts,
    }


def spoken_text(item: Object) -> str:
    """Return the text to speak for an item. JSON is unpacked: {"response_text": "Hello"} -> "Hello"."""
    text = "".join(part.get("text") or part.get("transcript") or "" for part in item["content"])
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            wrapped = json.loads(text)
            if isinstance(wrapped, dict) and isinstance(wrapped.get("response_text"), str):
                return str(wrapped["response_text"])
    return text


# ---- responses


@dataclass(slots=True, eq=False)
class Response:
    """A response that is being spoken or was spoken."""

    id: str
    item: Object
    context: LiveContext
    conversation: str | None  # None = the response is not in the conversation
    metadata: dict[str, str] | None
    output: Object  # `format`, `voice` and `speed` of the audio
    changes: Changes  # the settings in the event that created the response
    admitted: Pass | None
    previous_item: str | None = None
    status: str = "in_progress"
    details: Object | None = None
    usage: Object | None = None
    timed: bool = False  # whether the transcript is sent word by word, with the times of the words
    announced: int = 0  # how many characters of the text were sent as a transcript
    task: asyncio.Task[None] | None = None  # sends the events
    # The tasks that send the events of earlier responses. The events of this response are sent after they have ended.
    after: set[asyncio.Task[None]] = field(default_factory=set)

    def shown(self) -> Object:
        """Return the JSON object that describes the response in events."""
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": self.details,
            "output": [] if self.status == "in_progress" else [self.item],
            "conversation_id": self.conversation,
            "output_modalities": ["audio"],
            "max_output_tokens": "inf",
            "audio": {"output": self.output},
            "metadata": self.metadata,
            "usage": self.usage,
        }


@dataclass(slots=True, eq=False)
class SpokenItem:
    """What was spoken for an item of the conversation. A conversation can have many such objects, so each is small."""

    item: Object
    spoken: SpokenText
    # The context that speaks the item; None = the next response has begun, so the context is no longer needed.
    context: LiveContext | None
    text: str = ""  # the whole text; "" until the response has ended
    end_ms: int | None = None  # how much of the audio was heard before a truncation; None = the item was not truncated

    def show_heard(self) -> None:
        """After a truncation, set the transcript of the item to the words that were heard."""
        if self.end_ms is not None:
            text = self.text or ("" if self.context is None else self.context.text)
            heard = text[: self.spoken.chars_at(self.end_ms / 1000, text)]
            self.item["content"] = [{"type": "output_audio", "transcript": heard}]

    async def words_found(self) -> None:
        """If the response has ended, wait for the times of its words, at most TRUNCATE_WORDS_S."""
        if self.context is not None and self.text:
            await self.context.words_found(TRUNCATE_WORDS_S)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The effective settings of a session."""

    model: str
    instructions: str = ""
    output: Object = field(
        default_factory=lambda: {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "voice": DEFAULT_VOICE,
            "speed": 1.0,
        }
    )
    max_output_tokens: int | str = "inf"
    speech: Object = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, manager: ModelManager) -> Self:
        """Return the settings of a new session with this model and the default voice of the model."""
        settings = cls(model)
        settings.output["voice"] = manager.default_voice(model)
        return settings

    @property
    def voice(self) -> str:
        """The id of the voice."""
        voice = self.output["voice"]
        return str(voice["id"] if isinstance(voice, dict) else voice)

    def with_changes(self, changes: Changes) -> SessionSettings:
        """Return a copy of the settings with these changes."""
        output, speech = {**self.output, **changes.output}, {**self.speech, **changes.speech}
        return replace(self, **changes.settings, output=output, speech=speech)


def changed_settings(
    settings: SessionSettings, session: Object, speaking: Speaking, voices: VoiceStore
) -> tuple[SessionSettings, Changes]:
    """Return two values: the new settings after the changes in the object `session`; the changes. Raises RequestError.

    This function does not check whether the model can speak with the settings; `check_settings` does.
    """
    if session.get("type", "realtime") != "realtime":
        raise NotSupported(f'{_ONLY_SPEAKS} Set `session.type` to "realtime".', param="session.type")
    changes = checked_changes(session, "session")
    if (model := session.get("model")) is not None:
        changes.settings["model"] = _text(model, "session.model")
        changes.params["model"] = "session.model"
    changed = settings.with_changes(changes)
    with changes.naming_params():
        if "model" in changes.params:
            find_model(changed.model, speaking.manager, speaking.generator.adapters)
        check_voice(voices, changed.voice)
        speech_body(changed)
    return changed, changes


async def check_settings(settings: SessionSettings, changes: Changes, speaking: Speaking) -> None:
    """Check that the model can speak with changed settings. Raises RequestError.

    changes: the changes that led to `settings`. They say where the client has sent a field, for `param` of errors.
    """
    with changes.naming_params():
        spec = await context_spec(speaking, speech_body(settings), "", later=True)
        await speaking.generator.check(spec.request, spec.extras)


def speech_body(settings: SessionSettings) -> SpeechBody:
    """Return a speech request with these settings and a placeholder for the text. Raises InvalidValue."""
    output = settings.output
    fields = {
        "model": settings.model,
        "input": NO_TEXT_YET,
        "voice": output["voice"],
        "speed": output["speed"],
        "response_format": "pcm",
        "sample_rate": _RATES_HZ[output["format"]["type"]],
        "instructions": settings.instructions,
        **settings.speech,
    }
    return checked_body(fields)


class RealtimeSession:
    """One connection of a client. `run` handles its events until the connection is closed."""

    def __init__(
        self, socket: Socket, speaking: Speaking, voices: VoiceStore, gate: Gate, settings: SessionSettings
    ) -> None:
        self._socket = socket
        self._speaking = speaking
        self._voices = voices
        self._gate = gate
        self._live = live_session(speaking)
        self._settings = settings
        self._id = new_id("sess")
        self._conversation = new_id("conv")
        self._ends_at = time.time() + MAX_SESSION_S
        self._items: dict[str, Object] = {}  # in the order of the conversation
        self._most_chars = 0  # an upper bound of the number of characters in all items
        self._responses: dict[str, Response] = {}  # the responses that are being spoken, by their ids
        # The tasks of responses that were cancelled, whose last events the client has not read yet.
        self._unread: set[asyncio.Task[None]] = set()
        self._spoken: dict[str, SpokenItem] = {}  # the items that the server has spoken, by their ids
        self._buffered: Response | None = None  # the response whose text arrives by input_text_buffer.append
        self._refused_audio = False
        self._turn_began_s = time.monotonic()
        self._handlers: dict[str, Callable[[Object], Awaitable[None]]] = {
            "session.update": self._update,
            "response.create": self._create,
            "response.cancel": self._cancel,
            "conversation.item.create": self._create_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "input_text_buffer.append": self._append_text,
            "input_text_buffer.commit": self._commit_text,
            "input_text_buffer.clear": self._clear_text,
            "input_audio_buffer.append": self._refuse_audio,
            "input_audio_buffer.commit": self._refuse_audio,
            "input_audio_buffer.clear": self._clear_audio,
            "output_audio_buffer.clear": self._clear_output,
        }

    async def run(self) -> None:
        """Handle the events of the client until the connection is closed. Raises Closed."""
        await self._send("session.created", session=self._shown())
        await self._send(
            "conversation.created", conversation={"id": self._conversation, "object": "realtime.conversation"}
        )
        key_check = asyncio.create_task(self._check_key(), name="realtime key")
        try:
            async with asyncio.timeout(MAX_SESSION_S):
                while await self._next():
                    pass
        except TimeoutError:
            message = "Your session hit the maximum duration of 60 minutes."
            await self._stop()
            await self._error(SpeechError(message), code="session_expired")
            await self._socket.close(GOING_AWAY, message)
        finally:
            key_check.cancel()
            await self._stop()

    async def _check_key(self) -> None:
        """Close the connection if its API key is removed."""
        while True:
            await asyncio.sleep(KEY_CHECK_S)
            try:
                self._gate.present(self._socket.key)
            except Unauthorized as error:
                with contextlib.suppress(Closed):
                    await self._stop()
                    await self._refuse(error)
                return

    async def _refuse(self, error: Unauthorized, event_id: str | None = None) -> None:
        """End the connection, because its API key is not valid."""
        await self._error(error, event_id)
        await self._socket.close(POLICY_VIOLATION, error.message)

    async def _stop(self) -> None:
        """Cancel all responses and free their rows."""
        await self._live.close()
        speaking = {response.task for response in self._responses.values() if response.task is not None}
        tasks = speaking | self._unread
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> bool:
        """Handle the next event. Returns False if the session has ended."""
        event_id: str | None = None
        # Other connections must be able to run, although this client may have sent many events.
        if time.monotonic() - self._turn_began_s > TURN_S:
            await asyncio.sleep(0)
            self._turn_began_s = time.monotonic()
        try:
            try:
                async with asyncio.timeout(IDLE_S):
                    event = await self._socket.receive_json()
            except TimeoutError:
                if self._responses:
                    return True
                await self._socket.close(GOING_AWAY, f"No event has arrived for {IDLE_S / 60:.0f} minutes.")
                return False
            found = event.get("event_id")
            event_id = found[:512] if isinstance(found, str) else None
            self._gate.present(self._socket.key)
            kind = event.get("type")
            if not isinstance(kind, str):
                raise InvalidValue("`type` must be a text, such as `response.create`.", param="type")
            if (handler := self._handlers.get(kind)) is None:
                known = ", ".join(self._handlers)
                raise InvalidValue(f"The event type {kind[:64]!r} is not known. Known types: {known}.", param="type")
            await handler(event)
        except Unauthorized as error:
            await self._refuse(error, event_id)
            return False
        except SpeechError as error:
            await self._error(error, event_id)
        return True

    # ---- sending

    async def _send(self, kind: str, **content: Any) -> None:
        await self._socket.send({"type": kind, "event_id": new_id("event"), **content})

    async def _error(self, error: SpeechError, event_id: str | None = None, code: str | None = None) -> None:
        shown = body_of(error)["error"]
        if code is not None:
            shown["code"] = code
        await self._send("error", error={**shown, "event_id": event_id})

    def _shown(self) -> Object:
        settings = self._settings
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self._id,
            "model": settings.model,
            "output_modalities": ["audio"],
            "instructions": settings.instructions,
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24_000},
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": None,
                },
                "output": settings.output,
            },
            "tools": [],
            "tool_choice": "none",
            "max_output_tokens": settings.max_output_tokens,
            "tracing": None,
            "truncation": "auto",
            "prompt": None,
            "include": None,
            "expires_at": int(self._ends_at),
            **settings.speech,
        }

    # ---- the session

    async def _update(self, event: Object) -> None:
        session = _object(event.get("session"), "session")
        settings, changes = changed_settings(self._settings, session, self._speaking, self._voices)
        await check_settings(settings, changes, self._speaking)
        self._settings = settings
        await self._send("session.updated", session=self._shown())

    # ---- responses

    async def _create(self, event: Object) -> None:
        wanted = _object(event.get("response") or {}, "response")
        changes = checked_changes(wanted, "response")
        conversation = wanted.get("conversation", "auto")
        if conversation not in ("auto", "none", None):
            raise InvalidValue("`conversation` must be `auto` or `none`.", param="response.conversation")
        in_conversation = conversation != "none"
        if in_conversation and any(each.conversation for each in self._responses.values()):
            error = RequestError("A response of the conversation is being spoken. Wait for its end or cancel it.")
            error.code = "conversation_already_has_active_response"
            raise error
        metadata = _metadata(wanted.get("metadata"))
        text = self._text_of(wanted.get("input"))
        if wanted.get("input") is not None:
            changes.params["input"] = "response.input"
        response = await self._open(text, in_conversation=in_conversation, metadata=metadata, changes=changes)
        self._begin(response)

    def _text_of(self, items: object) -> str:
        """Return the text to speak: the text of the last message in `items`. Raises RequestError.

        items: None = use the items that the client has added to the conversation.
        """
        if items is None:
            sent = (item for key, item in self._items.items() if key not in self._spoken)
            texts = [spoken_text(item) for item in sent if item["role"] != "system"]
        else:
            if not isinstance(items, list):
                raise InvalidValue("`input` must be a list of items.", param="response.input")
            if len(items) > MAX_ITEMS:
                raise InvalidValue(
                    f"`input` may have up to {MAX_ITEMS} items. Only the last message is spoken.",
                    param="response.input",
                )
            texts = []
            for number, item in enumerate(items):
                param = f"response.input.{number}"
                if isinstance(item, dict) and item.get("type") == "item_reference":
                    found = self._item(item.get("id"), f"{param}.id")
                    if (spoken := self._spoken.get(found["id"])) is not None:
                        spoken.show_heard()
                else:
                    found = checked_item(item, param)
                if found["role"] != "system":
                    texts.append(spoken_text(found))
        text = texts[-1] if texts else ""
        if not text.strip():
            raise InvalidValue(
                "There is no text to speak. Send a message of the user or the assistant with an `input_text`.",
                param=None if items is None else "response.input",
            )
        return text

    async def _open(
        self, text: str, *, in_conversation: bool, metadata: dict[str, str] | None, changes: Changes
    ) -> Response:
        """Start a response. text: "" = the text arrives later. Raises RequestError, RateLimited."""
        if len(self._responses) >= MAX_RESPONSES:
            raise InvalidValue(
                f"This connection is already speaking {MAX_RESPONSES} responses. Wait for the end of one of them, or "
                "cancel one."
            )
        settings = self._settings.with_changes(changes)
        with changes.naming_params():
            if len(text) > self._speaking.max_input_chars:
                raise too_long("The text has", len(text), self._speaking.max_input_chars, "input")
            check_voice(self._voices, settings.voice)
            body = speech_body(settings)
            if text:
                body.input = text
            law = _LAWS.get(settings.output["format"]["type"])
            convert = None if law is None else partial(g711.encode, law=law)
            owner = "" if self._socket.key is None else self._socket.key.sha256
            timed = body.timestamps is True
            spec = await context_spec(
                self._speaking, body, owner, later=not text, convert=convert, timestamps=True, words=timed
            )
            await self._speaking.generator.check(spec.request, spec.extras)
        admitted = self._gate.admit(self._socket.key, "speak")
        item = {
            "id": new_id("item"),
            "object": "realtime.item",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        response = Response(
            new_id("resp"),
            item,
            self._live.open(spec),
            self._conversation if in_conversation else None,
            metadata,
            settings.output,
            changes,
            admitted,
            timed=timed,
        )
        self._responses[response.id] = response
        return response

    def _begin(self, response: Response, *after: asyncio.Task[None]) -> None:
        """Start to send the events of a response, after the last events of the responses that were cancelled before.

        after: the tasks of other responses that must end first.
        """
        response.after = {*after, *self._unread}
        response.task = asyncio.create_task(self._speak(response), name="realtime response")

    async def _speak(self, response: Response) -> None:
        """Send all events of a response."""
        try:
            if response.after:
                await asyncio.wait(response.after)
                response.after.clear()  # do not keep the tasks of earlier responses in memory
            await self._send("response.created", response=response.shown())
            item, place = response.item, {"response_id": response.id, "output_index": 0}
            await self._send("response.output_item.added", item=copy.copy(item), **place)
            if response.conversation:
                response.previous_item = next(reversed(self._items), None)
                self._add_item(item, response.context)
                await self._send(
                    "conversation.item.added", item=copy.copy(item), previous_item_id=response.previous_item
                )
            place |= {"item_id": item["id"], "content_index": 0}
            await self._send("response.content_part.added", part={"type": "audio", "transcript": ""}, **place)
            await self._send_audio(response, place)
            text = self._transcript(response)
            if response.status == "completed" and response.announced < len(text):
                await self._send_transcript(response, place, len(text))
            item["content"] = [{"type": "output_audio", "transcript": text}]
            item["status"] = "completed" if response.status == "completed" else "incomplete"
            if (spoken := self._spoken.get(item["id"])) is not None:
                spoken.text = response.context.text
                self._most_chars += len(spoken.text)
                spoken.show_heard()
            await self._send("response.output_audio.done", **place)
            await self._send("response.output_audio_transcript.done", transcript=text, **place)
            await self._send("response.content_part.done", part={"type": "audio", "transcript": text}, **place)
            if response.conversation:
                await self._send("conversation.item.done", item=item, previous_item_id=response.previous_item)
            await self._send("response.output_item.done", response_id=response.id, output_index=0, item=item)
            self._end(response)
            await self._send("response.done", response=response.shown())
        except Closed:  # the receiving task ends the session
            pass
        finally:
            self._end(response)
            await response.context.cancel()

    def _end(self, response: Response, *, cancelled: bool = False) -> None:
        """Remove a response that has ended, and count its request. Further calls do nothing.

        cancelled: whether the client has cancelled the response, although its status does not show this yet.
        """
        if self._responses.pop(response.id, None) is not None:
            status = 200 if cancelled or response.status in ("completed", "cancelled") else 500
            end_pass(self._speaking.metrics, response.admitted, status)
            if self._buffered is response:
                self._buffered = None

    async def _send_audio(self, response: Response, place: Object) -> None:
        """Send the audio and the transcript of a response, and set its status."""
        context = response.context
        async with contextlib.aclosing(context.events()) as events:
            async for event in events:
                if isinstance(event, SentenceStarted) and not response.timed:
                    await self._send_transcript(response, place, event.end_char)
                elif isinstance(event, Words):
                    for word in (word for sentence in event.sentences for word in words_of(sentence)):
                        span = {"start_ms": round(1000 * word.start_s), "end_ms": round(1000 * word.end_s)}
                        await self._send_transcript(response, place, word.end_char, **span)
                elif isinstance(event, Audio):
                    if event.data:
                        delta = base64.b64encode(event.data).decode()
                        await self._send("response.output_audio.delta", delta=delta, **place)
                elif isinstance(event, Done):
                    response.status = "completed"
                    if event.usage is not None:
                        counts = event.usage
                        response.usage = {
                            "total_tokens": counts.total_tokens,
                            "input_tokens": counts.input_tokens,
                            "output_tokens": counts.output_tokens,
                            "input_token_details": {"text_tokens": counts.input_tokens, "audio_tokens": 0},
                            "output_token_details": {"text_tokens": 0, "audio_tokens": counts.output_tokens},
                        }
                        count_usage(self._speaking.metrics, response.admitted, counts)
                elif isinstance(event, Cancelled):
                    response.status = "cancelled"
                    response.details = {
                        "type": "cancelled",
                        "reason": "client_cancelled",
                        # Not in OpenAI's API: the length of the sent audio, and how much of the text it contains.
                        "sent_ms": event.sent_ms,
                        "spoken_chars": event.spoken_chars,
                        "spoken_words": event.spoken_words,
                    }
                elif isinstance(event, Failed):
                    response.status = "failed"
                    event.error.param = response.changes.param_of(event.error)
                    response.details = {"type": "failed", "error": body_of(event.error)["error"]}

    async def _send_transcript(self, response: Response, place: Object, end: int, **times: int) -> None:
        """Send the transcript from the first character that was not sent yet to the last one before index `end`."""
        delta = response.context.text[response.announced : end]
        if delta:
            response.announced = end
            await self._send("response.output_audio_transcript.delta", delta=delta, **times, **place)

    @staticmethod
    def _transcript(response: Response) -> str:
        """Return the whole text if the response is completed, otherwise the part that was sent as a transcript."""
        text = response.context.text
        return text if response.status == "completed" else text[: response.announced]

    def _running(self, response_id: object) -> list[Response]:
        """Return the response with this id if it is being spoken.

        response_id: None = return all responses of the conversation that are being spoken. If there are none, return
        the responses outside of the conversation that are being spoken.
        """
        if response_id is None:
            return [each for each in self._responses.values() if each.conversation] or [*self._responses.values()]
        found = self._responses.get(response_id) if isinstance(response_id, str) else None
        return [] if found is None else [found]

    async def _cancel(self, event: Object) -> None:
        responses = self._running(event.get("response_id"))
        if not responses:
            error = RequestError("Cancellation failed: no such response is being spoken.")
            error.code = "response_cancel_not_active"
            raise error
        await self._end_all(responses)

    async def _end_all(self, responses: Sequence[Response]) -> None:
        """Cancel responses, and send their last events before the next event of the client is handled.

        responses: in the order in which they were created. If one of them waits for the end of a response that is
        still being spoken and not in `responses`, its events are sent later.
        """
        await asyncio.gather(*(response.context.cancel() for response in responses))
        ending: set[asyncio.Task[None]] = set()
        for response in responses:
            waits = any(not each.done() for each in response.after - ending - self._unread)
            if response.task is not None and not waits:
                ending.add(response.task)
        if ending:
            _, unread = await asyncio.wait(ending, timeout=UNREAD_S)
            if unread:  # the client may send more events before it reads, so do not wait longer
                self._socket.after(unread)
                for task in unread:
                    self._unread.add(task)
                    task.add_done_callback(self._unread.discard)
                for response in responses:
                    self._end(response, cancelled=True)

    # ---- the conversation

    def _add_item(self, item: Object, context: LiveContext | None = None, *, place: int | None = None) -> None:
        """Add an item to the conversation, and remove its oldest items if it has too many.

        context: the context that speaks the item; None = the client has sent the item. place: how many items come
        before the new item; None = add it at the end.
        """
        later = [] if place is None else [*self._items.items()][place:]
        for key, _ in later:
            del self._items[key]
        self._items[item["id"]] = item
        self._items.update(later)
        if context is not None:
            for earlier in self._spoken.values():
                earlier.context = None
            self._spoken[item["id"]] = SpokenItem(item, context.spoken, context)
        limit = 4 * self._speaking.max_input_chars
        self._most_chars += _size(item)
        if self._most_chars > limit:  # count again, because texts may have been removed or truncated
            self._most_chars = sum(map(_size, self._items.values()))
        while len(self._items) > 1 and (len(self._items) > MAX_ITEMS or self._most_chars > limit):
            oldest = self._items.pop(next(iter(self._items)))
            self._spoken.pop(oldest["id"], None)
            self._most_chars -= _size(oldest)

    def _item(self, item_id: object, param: str = "item_id") -> Object:
        """Return the item with this id. Raises NotFound."""
        found = self._items.get(item_id) if isinstance(item_id, str) else None
        if found is None:
            raise NotFound("The conversation has no item with this id.", param=param)
        return found

    async def _create_item(self, event: Object) -> None:
        item = checked_item(event.get("item"), "item")
        if item["id"] in self._items:
            raise InvalidValue("The conversation already has an item with this id.", param="item.id")
        if _size(item) > 2 * self._speaking.max_input_chars:
            raise InvalidValue("The text of the item is too long (TTS_MAX_INPUT_CHARS).", param="item.content")
        previous = event.get("previous_item_id")
        if previous is None:
            previous = next(reversed(self._items), None)
            self._add_item(item)
        elif previous == "root":
            previous = None
            self._add_item(item, place=0)
        else:
            self._item(previous, "previous_item_id")
            self._add_item(item, place=[*self._items].index(previous) + 1)
        await self._send("conversation.item.added", item=item, previous_item_id=previous)
        await self._send("conversation.item.done", item=item, previous_item_id=previous)

    async def _delete_item(self, event: Object) -> None:
        item = self._item(event.get("item_id"))
        del self._items[item["id"]]
        self._spoken.pop(item["id"], None)
        await self._send("conversation.item.deleted", item_id=item["id"])

    async def _retrieve_item(self, event: Object) -> None:
        item = self._item(event.get("item_id"))
        if (spoken := self._spoken.get(item["id"])) is not None and spoken.end_ms is not None:
            await spoken.words_found()
            spoken.show_heard()
        await self._send("conversation.item.retrieved", item=item)

    async def _truncate_item(self, event: Object) -> None:
        item = self._item(event.get("item_id"))
        spoken = self._spoken.get(item["id"])
        if spoken is None:
            raise InvalidValue("Only an item that the server has spoken can be truncated.", param="item_id")
        if event.get("content_index", 0) != 0:
            raise InvalidValue("`content_index` must be 0.", param="content_index")
        end_ms = event.get("audio_end_ms")
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise InvalidValue("`audio_end_ms` must be a whole number of at least 0.", param="audio_end_ms")
        sent_ms = spoken.spoken.audio_s * 1000
        if end_ms > math.ceil(sent_ms):
            raise InvalidValue(
                f"`audio_end_ms` is larger than the length of the audio, {sent_ms:.0f} ms.", param="audio_end_ms"
            )
        spoken.end_ms = end_ms
        await spoken.words_found()
        spoken.show_heard()
        await self._send("conversation.item.truncated", item_id=item["id"], content_index=0, audio_end_ms=end_ms)

    # ---- text that arrives in parts

    async def _append_text(self, event: Object) -> None:
        name = "delta" if "delta" in event and "text" not in event else "text"
        text = _text(event.get(name), name)
        if self._buffered is None:
            earlier = [each.task for each in self._responses.values() if each.conversation and each.task is not None]
            changes = Changes(params={"input": name, "text": name})
            response = await self._open("", in_conversation=True, metadata=None, changes=changes)
            self._buffered = response
            self._begin(response, *earlier[-1:])
        with self._buffered.changes.naming_params():
            await self._buffered.context.append(text)

    async def _commit_text(self, event: Object) -> None:
        response, self._buffered = self._buffered, None
        if response is None:
            raise InvalidValue("The text buffer is empty. Send `input_text_buffer.append` first.")
        response.context.end()
        await self._send("input_text_buffer.committed", response_id=response.id, item_id=response.item["id"])

    async def _clear_text(self, event: Object) -> None:
        response, self._buffered = self._buffered, None
        if response is not None:
            await self._end_all([response])
        await self._send("input_text_buffer.cleared")

    # ---- audio

    async def _refuse_audio(self, event: Object) -> None:
        if not self._refused_audio or event["type"] == "input_audio_buffer.commit":
            self._refused_audio = True
            error = NotSupported(f"{_ONLY_SPEAKS} It does not listen, so audio input is dropped.")
            error.code = "audio_input_not_supported"
            raise error

    async def _clear_audio(self, event: Object) -> None:
        await self._send("input_audio_buffer.cleared")

    async def _clear_output(self, event: Object) -> None:
        await self._end_all([each for each in self._responses.values() if each.conversation])
        await self._send("output_audio_buffer.cleared", response_id=None)


def _size(item: Object) -> int:
    """Return the number of characters of an item."""
    return sum(len(part.get("text") or part.get("transcript") or "") for part in item["content"])
