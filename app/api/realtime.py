"""The events of OpenAI's Realtime API, for speech only: a client sends texts, and the server speaks them word for word.

A `RealtimeSession` handles one WebSocket. It keeps the session's settings and the items of the conversation, and it
speaks each response as a context of `generator/live.py`. The server listens to nothing and writes nothing: audio input,
tools and text output are refused. `instructions` are never spoken.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from app.api.errors import body_of
from app.api.live_contexts import NO_TEXT_YET, checked_body, context_spec, count_usage, end_pass, live_session
from app.api.sockets import GOING_AWAY, POLICY_VIOLATION, Closed
from app.audio import g711
from app.errors import InvalidValue, NotFound, NotSupported, RequestError, SpeechError, Unauthorized, UnknownVoice
from app.generator.live import Audio, Cancelled, Done, Failed, SentenceStarted, Words
from app.generator.resolving import find_model
from app.text.captions import words_of
from app.voices.presets import DEFAULT_VOICE, standard_voices_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.api.auth import Gate
    from app.api.requests import SpeechBody
    from app.api.sockets import Socket
    from app.api.speaking import Speaking
    from app.generator.live import LiveContext
    from app.keys import Pass
    from app.voices.store import VoiceStore

log: Any = structlog.get_logger(__name__)

MAX_SESSION_S = 60 * 60.0
IDLE_S = 15 * 60.0  # a connection without messages and without speech is closed after this time
MAX_RESPONSES = 8  # of one connection at the same time
TRUNCATE_WORDS_S = 1.0  # how long a truncation waits for the times of the words
MAX_ITEMS = 500  # of a conversation; the oldest ones are removed
MAX_METADATA = 16
_TEXT_TYPES = ("input_text", "output_text", "text")
# Fields of a session that OpenAI does not have. They have the meaning that they have in a speech request.
_SPEECH_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "cfg_scale",
    "language",
    "seed",
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


def _checked_output(output: Object, param: str) -> Object:
    """Check `audio.output` and return its known fields. Raises InvalidValue."""
    found: Object = {}
    if (audio_format := output.get("format")) is not None:
        kind = audio_format if isinstance(audio_format, str) else _object(audio_format, f"{param}.format").get("type")
        kind = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}.get(str(kind), kind)
        if not isinstance(kind, str) or kind not in _RATES_HZ:
            raise InvalidValue(
                "`format.type` must be one of `audio/pcm`, `audio/pcmu`, `audio/pcma`.", param=f"{param}.format.type"
            )
        rate_hz = audio_format.get("rate") if isinstance(audio_format, dict) else None
        if rate_hz not in (None, _RATES_HZ[kind]):
            raise InvalidValue(f"The rate of {kind} must be {_RATES_HZ[kind]}.", param=f"{param}.format.rate")
        found["format"] = {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind}
    if (voice := output.get("voice")) is not None:
        name = voice.get("id") if isinstance(voice, dict) else voice
        if not isinstance(name, str) or not name.strip():
            raise InvalidValue("`voice` must be the id of a voice, or an object with it.", param=f"{param}.voice")
        found["voice"] = voice
    if (speed := output.get("speed")) is not None:
        if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0.25 <= speed <= 4:
            raise InvalidValue("`speed` must be a number from 0.25 to 4.", param=f"{param}.speed")
        found["speed"] = speed
    return found


def checked_session(settings: Object) -> Object:
    """Check the `session` of an event and return the part that has an effect. Raises RequestError."""
    kind = settings.get("type", "realtime")
    if kind != "realtime":
        raise NotSupported(f'{_ONLY_SPEAKS} Set `session.type` to "realtime".', param="session.type")
    _check_only_speech(settings, "session")
    found: Object = {}
    audio = _object(settings.get("audio") or {}, "session.audio")
    output = dict(_object(audio.get("output") or {}, "session.audio.output"))
    for old, name in (("voice", "voice"), ("output_audio_format", "format"), ("speed", "speed")):  # the beta's fields
        if settings.get(old) is not None:
            output.setdefault(name, settings[old])
    found["output"] = _checked_output(output, "session.audio.output")
    if (instructions := settings.get("instructions")) is not None:
        found["instructions"] = _text(instructions, "session.instructions")
    if (model := settings.get("model")) is not None:
        found["model"] = _text(model, "session.model")
    tokens = settings.get("max_output_tokens")
    if tokens is not None:
        if tokens != "inf" and (isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= 4096):
            raise InvalidValue('`max_output_tokens` must be 1 to 4096, or "inf".', param="session.max_output_tokens")
        found["max_output_tokens"] = tokens
    found["speech"] = {name: settings[name] for name in _SPEECH_FIELDS if settings.get(name) is not None}
    return found


def _metadata(value: object) -> dict[str, str] | None:
    """Check the metadata of a response. Raises InvalidValue."""
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
    """Return the text of an item that is spoken. A JSON object with a text `response_text` stands for this text."""
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
    """A response that is being spoken, or was."""

    id: str
    item: Object
    context: LiveContext
    conversation: str | None  # None = the response is not in the conversation
    metadata: dict[str, str] | None
    output: Object  # format, voice and speed
    admitted: Pass | None
    previous_item: str | None = None
    status: str = "in_progress"
    details: Object | None = None
    usage: Object | None = None
    timed: bool = False  # whether the transcript comes word by word with its times
    announced: int = 0  # characters of the text that were sent as a transcript
    task: asyncio.Task[None] | None = None

    def shown(self) -> Object:
        """The response as the events show it."""
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


@dataclass(slots=True)
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

    def update(self, found: Object) -> None:
        self.model = found.get("model", self.model)
        self.instructions = found.get("instructions", self.instructions)
        self.output = {**self.output, **found["output"]}
        self.max_output_tokens = found.get("max_output_tokens", self.max_output_tokens)
        self.speech = {**self.speech, **found["speech"]}


def changed_settings(
    settings: SessionSettings, changes: Object, speaking: Speaking, voices: VoiceStore
) -> SessionSettings:
    """Return the settings after the changes of a `session` object. Raises RequestError."""
    found = checked_session(changes)
    changed = copy.copy(settings)
    changed.update(found)
    if "model" in found:
        find_model(changed.model, speaking.manager, speaking.generator.adapters)
    check_voice(voices, changed.output["voice"])
    _body(changed, changed.output)
    return changed


def check_voice(voices: VoiceStore, voice: Any) -> None:
    """Check that a voice exists. Raises UnknownVoice."""
    name = voice["id"] if isinstance(voice, dict) else voice
    try:
        voices.get(name)
    except UnknownVoice as error:
        if not standard_voices_of(name) and "+" not in name:
            error.param = "session.audio.output.voice"
            raise


def _body(settings: SessionSettings, output: Object) -> SpeechBody:
    """Return a speech request with these settings and a placeholder for the text. Raises InvalidValue."""
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
    return checked_body(fields, "session.")


class RealtimeSession:
    """One connection of a client. `run` handles its events until it is closed."""

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
        self._responses: dict[str, Response] = {}  # that are being spoken
        self._spoken: dict[str, Response] = {}  # by the id of the item
        self._buffered: Response | None = None  # the response whose text arrives by input_text_buffer.append
        self._refused_audio = False
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
            await self._stop()

    async def _stop(self) -> None:
        """Cancel all responses and free their rows."""
        await self._live.close()
        tasks = [response.task for response in self._responses.values() if response.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> bool:
        """Handle the next event. Returns False if the session has ended."""
        event_id: str | None = None
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
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                shown = kind[:64] if isinstance(kind, str) else ""
                raise InvalidValue(
                    f"The event type {shown!r} is not known. Known types: {', '.join(self._handlers)}.", param="type"
                )
            await handler(event)
        except Unauthorized as error:
            await self._error(error, event_id)
            await self._socket.close(POLICY_VIOLATION, error.message)
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
        changes = _object(event.get("session"), "session")
        self._settings = changed_settings(self._settings, changes, self._speaking, self._voices)
        await self._send("session.updated", session=self._shown())

    # ---- responses

    async def _create(self, event: Object) -> None:
        wanted = _object(event.get("response") or {}, "response")
        _check_only_speech(wanted, "response")
        conversation = wanted.get("conversation", "auto")
        if conversation not in ("auto", "none", None):
            raise InvalidValue("`conversation` must be `auto` or `none`.", param="response.conversation")
        in_conversation = conversation != "none"
        if in_conversation and any(each.conversation for each in self._responses.values()):
            error = RequestError("A response of the conversation is being spoken. Wait for its end or cancel it.")
            error.code = "conversation_already_has_active_response"
            raise error
        metadata = _metadata(wanted.get("metadata"))
        audio = _object(wanted.get("audio") or {}, "response.audio")
        output = _checked_output(_object(audio.get("output") or {}, "response.audio.output"), "response.audio.output")
        text = self._text_of(wanted.get("input"))
        response = await self._open(text, in_conversation=in_conversation, metadata=metadata, output=output)
        await self._begin(response)

    def _text_of(self, items: object) -> str:
        """The text to speak: that of the last message in `items`, or of the conversation. Raises RequestError."""
        if items is None:
            spoken = (item for key, item in self._items.items() if key not in self._spoken)
            texts = [spoken_text(item) for item in spoken if item["role"] != "system"]
        else:
            if not isinstance(items, list):
                raise InvalidValue("`input` must be a list of items.", param="response.input")
            texts = []
            for number, item in enumerate(items):
                param = f"response.input.{number}"
                if isinstance(item, dict) and item.get("type") == "item_reference":
                    found = self._item(item.get("id"), f"{param}.id")
                else:
                    found = checked_item(item, param)
                if found["role"] != "system":
                    texts.append(spoken_text(found))
        text = texts[-1] if texts else ""
        if not text.strip():
            raise InvalidValue(
                "There is no text to speak. Send a message of the user or the assistant with an `input_text`.",
                param="response.input",
            )
        return text

    async def _open(
        self, text: str, *, in_conversation: bool, metadata: dict[str, str] | None, output: Object
    ) -> Response:
        """Start a response. text: "" = the text arrives later. Raises RequestError, RateLimited."""
        if len(self._responses) >= MAX_RESPONSES:
            raise InvalidValue(
                f"This connection speaks {MAX_RESPONSES} responses already. Wait for the end of one of them, or cancel "
                "one."
            )
        output = {**self._settings.output, **output}
        check_voice(self._voices, output["voice"])
        body = _body(self._settings, output)
        if text:
            body.input = text
        law = _LAWS.get(output["format"]["type"])
        convert = None if law is None else partial(g711.encode, law=law)
        owner = "" if self._socket.key is None else self._socket.key.sha256
        timed = body.timestamps is True
        spec = await context_spec(
            self._speaking, body, owner, later=not text, convert=convert, timestamps=True, words=timed
        )
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
            output,
            admitted,
            timed=timed,
        )
        self._responses[response.id] = response
        return response

    async def _begin(self, response: Response, after: asyncio.Task[None] | None = None) -> None:
        """Send the events of a response. after: the task of a response that must end before."""
        response.task = asyncio.create_task(self._speak(response, after), name="realtime response")

    async def _speak(self, response: Response, after: asyncio.Task[None] | None) -> None:
        """Send all events of a response."""
        try:
            if after is not None:
                await asyncio.wait({after})
            await self._send("response.created", response=response.shown())
            item, place = response.item, {"response_id": response.id, "output_index": 0}
            await self._send("response.output_item.added", item=copy.copy(item), **place)
            if response.conversation:
                response.previous_item = next(reversed(self._items), None)
                self._add_item(item, response)
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

    def _end(self, response: Response) -> None:
        """Forget a response that was spoken. Further calls do nothing."""
        if self._responses.pop(response.id, None) is not None:
            status = 200 if response.status in ("completed", "cancelled") else 500
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
                        # Not in OpenAI's API: what the audio that was sent contains.
                        "sent_ms": event.sent_ms,
                        "spoken_chars": event.spoken_chars,
                        "spoken_words": event.spoken_words,
                    }
                elif isinstance(event, Failed):
                    response.status = "failed"
                    response.details = {"type": "failed", "error": body_of(event.error)["error"]}

    async def _send_transcript(self, response: Response, place: Object, end: int, **times: int) -> None:
        """Send the part of the text up to `end` that was not sent yet."""
        delta = response.context.text[response.announced : end]
        if delta:
            response.announced = end
            await self._send("response.output_audio_transcript.delta", delta=delta, **times, **place)

    @staticmethod
    def _transcript(response: Response) -> str:
        """The text that was spoken: the whole text, or the part whose transcript was sent."""
        text = response.context.text
        return text if response.status == "completed" else text[: response.announced]

    def _running(self, response_id: object) -> Response | None:
        """The response with this id that is being spoken; without an id, one of the conversation, or the last one."""
        if response_id is not None:
            return self._responses.get(response_id) if isinstance(response_id, str) else None
        running = [each for each in self._responses.values() if each.conversation] or [*self._responses.values()]
        return running[-1] if running else None

    async def _cancel(self, event: Object) -> None:
        response = self._running(event.get("response_id"))
        if response is None:
            error = RequestError("Cancellation failed: no such response is being spoken.")
            error.code = "response_cancel_not_active"
            raise error
        await response.context.cancel()

    # ---- the conversation

    def _add_item(self, item: Object, response: Response | None = None) -> None:
        self._items[item["id"]] = item
        if response is not None:
            self._spoken[item["id"]] = response
        while len(self._items) > MAX_ITEMS or (
            len(self._items) > 1 and sum(map(_size, self._items.values())) > 4 * self._speaking.max_input_chars
        ):
            oldest = next(iter(self._items))
            del self._items[oldest]
            self._spoken.pop(oldest, None)

    def _item(self, item_id: object, param: str = "item_id") -> Object:
        """The item with this id. Raises NotFound."""
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
        else:
            if previous != "root":
                self._item(previous, "previous_item_id")
            before = [] if previous == "root" else [*self._items][: [*self._items].index(previous) + 1]
            after = {key: self._items.pop(key) for key in [*self._items] if key not in before}
            self._add_item(item)
            self._items |= after
            previous = None if previous == "root" else previous
        await self._send("conversation.item.added", item=item, previous_item_id=previous)
        await self._send("conversation.item.done", item=item, previous_item_id=previous)

    async def _delete_item(self, event: Object) -> None:
        item = self._item(event.get("item_id"))
        del self._items[item["id"]]
        self._spoken.pop(item["id"], None)
        await self._send("conversation.item.deleted", item_id=item["id"])

    async def _retrieve_item(self, event: Object) -> None:
        await self._send("conversation.item.retrieved", item=self._item(event.get("item_id")))

    async def _truncate_item(self, event: Object) -> None:
        item = self._item(event.get("item_id"))
        response = self._spoken.get(item["id"])
        if response is None:
            raise InvalidValue("Only an item that the server has spoken can be truncated.", param="item_id")
        if event.get("content_index", 0) != 0:
            raise InvalidValue("`content_index` must be 0.", param="content_index")
        end_ms = event.get("audio_end_ms")
        spoken = response.context.spoken
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise InvalidValue("`audio_end_ms` must be a number of milliseconds.", param="audio_end_ms")
        if end_ms > round(spoken.audio_s * 1000):
            raise InvalidValue(
                f"`audio_end_ms` is larger than the length of the audio, {spoken.audio_s * 1000:.0f} ms.",
                param="audio_end_ms",
            )
        await response.context.words_found(TRUNCATE_WORDS_S)
        text = response.context.text
        heard = text[: spoken.chars_at(end_ms / 1000, text)]
        item["content"] = [{"type": "output_audio", "transcript": heard}]
        await self._send("conversation.item.truncated", item_id=item["id"], content_index=0, audio_end_ms=end_ms)

    # ---- text that arrives in parts

    async def _append_text(self, event: Object) -> None:
        text = _text(event.get("text", event.get("delta")), "text")
        if self._buffered is None:
            earlier = [each.task for each in self._responses.values() if each.conversation]
            response = await self._open("", in_conversation=True, metadata=None, output={})
            self._buffered = response
            await self._begin(response, earlier[-1] if earlier else None)
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
            await response.context.cancel()
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
        for response in [each for each in self._responses.values() if each.conversation]:
            await response.context.cancel()
        await self._send("output_audio_buffer.cleared", response_id=None)


def _size(item: Object) -> int:
    """The number of characters of an item."""
    return sum(len(part.get("text") or part.get("transcript") or "") for part in item["content"])
