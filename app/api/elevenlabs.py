"""ElevenLabs' WebSocket messages: `stream-input` with one context, and `multi-stream-input` with several contexts.

A context is one text that arrives in parts. The server sends the audio of a context in base64. After the audio of a
sentence, it sends the times of the sentence's characters in a message without audio. An error ends the connection.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from starlette.datastructures import MutableHeaders

from app.api.errors import body_of, status_of
from app.api.live_contexts import (
    NO_TEXT_YET,
    check_voice,
    checked_body,
    client_names,
    context_spec,
    count_usage,
    end_pass,
    live_session,
    with_client_names,
)
from app.api.sockets import KEY_CHECK_S, NORMAL, POLICY_VIOLATION, SERVER_ERROR, Closed
from app.audio import g711
from app.errors import EmptyText, InvalidValue, SpeechError, Unauthorized, UnknownModel, UnsupportedFormat
from app.generator.live import Audio, Done, Failed, Words
from app.generator.resolving import find_model
from app.text.character_times import CharacterTimes
from app.voices.presets import DEFAULT_VOICE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.api.auth import Gate
    from app.api.requests import SpeechBody
    from app.api.sockets import Socket
    from app.api.speaking import Speaking
    from app.generator.live import LiveContext, LiveSession
    from app.generator.speech import Answer
    from app.keys import Pass
    from app.text.character_times import TimedCharacter
    from app.types import TimedSentence
    from app.voices.store import VoiceStore

log: Any = structlog.get_logger(__name__)

_SENTENCE_ENDS = tuple(".!?\u2026\u3002\uff01\uff1f")
_OPENING, _CLOSING = "\"'\u201c\u2018([\u00bf\u00a1", "\"'\u201d\u2019)] \n"
MAX_CONTEXTS = 5  # the largest number of open contexts of one connection, as in ElevenLabs' API
# The largest number of closed contexts of one connection whose speech is still sent. If there are so many, a new
# context waits until the speech of one of them has ended.
MAX_CLOSED_CONTEXTS = 10
DEFAULT_FORMAT = "mp3_44100_128"
# The default and the largest `inactivity_timeout`. ElevenLabs documents 180 s, but older agents of LiveKit send 300 s.
INACTIVITY_S, MAX_INACTIVITY_S = 20, 300
MAX_SEED = 2**32 - 1
_PATHS = re.compile(r"(?:/api)?/v1/(?:text-to-speech|text-to-dialogue|voices)(?:/|$)|/v2/")
# Field of a speech request -> field of ElevenLabs
FIELD_NAMES = {
    "input": "text",
    "voice": "voice_id",
    "turns": "inputs",
    "speed": "voice_settings.speed",
    "language": "language_code",
    "model": "model_id",
    "normalize": "apply_text_normalization",
    "response_format": "output_format",
    "sample_rate": "output_format",
}

_CODECS = {"mp3": "mp3", "pcm": "pcm", "ulaw": "pcm", "alaw": "pcm", "opus": "opus", "wav": "wav"}
_LAWS: dict[str, g711.Law] = {"ulaw": "ulaw", "alaw": "alaw"}
_LAW_MEDIA_TYPES: dict[g711.Law, str] = {"ulaw": "audio/basic", "alaw": "audio/x-alaw-basic"}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """An output format such as mp3_44100_128. The server chooses the bit rate itself."""

    response_format: str
    rate_hz: int
    law: g711.Law | None = None

    @classmethod
    def of(cls, name: str) -> OutputFormat:
        """Create an OutputFormat from its name, such as mp3_44100_128. Raises UnsupportedFormat."""
        codec, _, rest = name.partition("_")
        rate = rest.partition("_")[0]
        if codec not in _CODECS or not rate.isascii() or not rate.isdecimal() or not 8_000 <= int(rate[:6]) <= 48_000:
            raise UnsupportedFormat(
                f"The output format {name[:40]!r} is not known. Use for example mp3_44100_128, pcm_24000, wav_24000, "
                "ulaw_8000 or opus_48000_64.",
                param="output_format",
            )
        return cls(_CODECS[codec], int(rate), _LAWS.get(codec))


def model_of(name: Any, speaking: Speaking) -> str | None:
    """Return `name` if it is the name of a model of this server; otherwise None, which means the default model."""
    if isinstance(name, str):
        with contextlib.suppress(UnknownModel):
            find_model(name, speaking.manager, speaking.generator.adapters)
            return name
    return None


def speech_fields(output: OutputFormat, settings: Mapping[str, Any], model: str | None) -> Object:
    """Return the fields of a speech request, without its text and voice. Raises InvalidValue.

    settings: can have `voice_settings`, `language_code`, `seed` and `apply_text_normalization`. model: the result of
    `model_of`.
    """
    voice_settings = settings.get("voice_settings")
    if not isinstance(voice_settings, dict | None):
        raise InvalidValue("`voice_settings` must be an object.", param="voice_settings")
    normalization = settings.get("apply_text_normalization")
    if normalization not in (None, "auto", "on", "off"):
        raise InvalidValue("`apply_text_normalization` must be auto, on or off.", param="apply_text_normalization")
    return {
        "model": model,
        "speed": (voice_settings or {}).get("speed"),
        "response_format": output.response_format,
        "sample_rate": output.rate_hz,
        "language": settings.get("language_code"),
        "seed": settings.get("seed"),
        "normalize": False if normalization == "off" else None,
    }


def speech_body(
    text: str, voice: str, output: OutputFormat, settings: Mapping[str, Any], model: str | None
) -> SpeechBody:
    """Return the speech request for a text. Raises InvalidValue. settings, model: see `speech_fields`."""
    return checked_body({"input": text, "voice": voice, **speech_fields(output, settings, model)})


# ---- the times of characters


def socket_alignment(characters: Sequence[TimedCharacter], origin_s: float) -> Object:
    """Return the `alignment` of a WebSocket message. origin_s: this time in seconds is subtracted from all times."""
    starts = [round(1000 * (start_s - origin_s)) for _, start_s, _ in characters]
    ends = [round(1000 * (end_s - origin_s)) for _, _, end_s in characters]
    return {
        "chars": [char for char, _, _ in characters],
        "charStartTimesMs": starts,
        "charDurationsMs": [end - start for start, end in zip(starts, ends, strict=True)],
    }


class TimedChunks:
    """Builds the JSON objects for the HTTP routes with timestamps. Times are in seconds from the start of the audio."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._times = CharacterTimes()

    def __call__(
        self, answer: Answer, audio: bytes, sentences: Sequence[TimedSentence] | None, *, last: bool
    ) -> Object:
        """See `ChunkContent`."""
        characters = self._times.add(self._text, sentences or ())
        if last:
            characters += self._times.finish(self._text, answer.audio_s)
        alignment = {
            "characters": [char for char, _, _ in characters],
            "character_start_times_seconds": [round(start_s, 3) for _, start_s, _ in characters],
            "character_end_times_seconds": [round(end_s, 3) for _, _, end_s in characters],
        }
        found = alignment if characters else None
        return {
            "audio_base64": base64.b64encode(audio).decode(),
            "alignment": found,
            "normalized_alignment": found,
        }


# ---- HTTP


def in_law(answer: Answer, law: g711.Law | None) -> Answer:
    """Convert the audio of an answer from PCM to telephone audio (G.711). law: None = do not convert."""
    if law is None:
        return answer

    async def converted(stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(stream):
            async for data in stream:
                yield g711.encode(data, law)

    answer.stream = converted(answer.stream)
    answer.media_type = _LAW_MEDIA_TYPES[law]
    if answer.size_bytes is not None:
        answer.size_bytes //= 2
    return answer


class DetailedErrors:
    """Adds the field `detail` to the errors of requests that have a path of ElevenLabs or the header `xi-api-key`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (
            _PATHS.match(scope["path"].removeprefix(scope.get("root_path", "")))
            or any(name == b"xi-api-key" for name, _ in scope["headers"])
        ):
            send = _with_detail(send)
        await self._app(scope, receive, send)


def _with_detail(send: Send) -> Send:
    start: Message | None = None
    held = bytearray()

    async def changed(message: Message) -> None:
        nonlocal start
        if message["type"].endswith("http.response.start") and message["status"] >= 400:
            start = message
            return
        if start is None:
            await send(message)
            return
        held.extend(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = bytes(held)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            content = json.loads(body)
            error = content["error"]
            detail = {"status": error["code"] or error["type"], "message": error["message"]}
            body = json.dumps({"detail": detail, **content}, separators=(",", ":")).encode()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-length"] = str(len(body))
        await send({**start, "headers": headers.raw})
        await send({"type": start["type"].replace("start", "body"), "body": body})

    return changed


# ---- WebSockets


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The options in the URL of a connection."""

    output: OutputFormat
    settings: Mapping[str, Any]  # see `speech_fields`
    model_id: str | None
    inactivity_s: int
    sync_alignment: bool
    auto_mode: bool

    @classmethod
    def of(cls, query: Mapping[str, str]) -> SocketOptions:
        """Create the options from the query of the URL. Raises InvalidValue, UnsupportedFormat."""
        output = OutputFormat.of(query.get("output_format") or DEFAULT_FORMAT)
        settings: Object = {name: query.get(name) or None for name in ("language_code", "apply_text_normalization")}
        settings["seed"] = _whole(query, "seed", 0, MAX_SEED)
        speech_body(NO_TEXT_YET, DEFAULT_VOICE, output, settings, None)
        inactivity_s = _whole(query, "inactivity_timeout", 1, MAX_INACTIVITY_S) or INACTIVITY_S
        sync_alignment, auto_mode = _flag(query, "sync_alignment"), _flag(query, "auto_mode")
        return cls(output, settings, query.get("model_id"), inactivity_s, sync_alignment, auto_mode)


def _whole(query: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """Return the whole number with this name in a query; None if it is missing. Raises InvalidValue."""
    text = query.get(name)
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:12]) <= most:
        raise InvalidValue(f"`{name}` must be a whole number from {least} to {most}.", param=name)
    return int(text)


def _flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "").lower()
    if text not in ("", "true", "false", "1", "0"):
        raise InvalidValue(f"`{name}` must be true or false.", param=name)
    return text in ("true", "1")


@dataclass(slots=True, eq=False)
class _Context:
    name: str
    live: LiveContext
    admitted: Pass | None
    begun: bool = False  # whether text that is not white space has arrived
    ends_sentence: bool = False  # whether the text so far ends with a sentence, without a space after it


@dataclass(slots=True)
class StreamInput:
    """One WebSocket connection. `run` handles its messages until the connection is closed."""

    socket: Socket
    speaking: Speaking
    gate: Gate
    voices: VoiceStore
    voice: str
    options: SocketOptions
    several: bool  # whether the connection can have several contexts, which `context_id` names
    _open: dict[str, _Context] = field(default_factory=dict)  # the contexts that still accept text, by their names
    _tasks: dict[asyncio.Task[None], _Context] = field(default_factory=dict)  # tasks that send the speech of contexts
    # The value of time.monotonic() since which the connection waits for a message.
    _active_s: float = field(default_factory=time.monotonic)
    # The value of time.monotonic() at which a listener has heard all audio that was sent.
    _heard_s: float = 0.0

    async def run(self) -> None:
        """Handle the messages of the client until the connection is closed. Raises Closed."""
        live = live_session(self.speaking)
        try:
            while await self._next(live):
                pass
        finally:
            await live.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self, live: LiveSession) -> bool:
        """Handle the next message. Returns False if the connection ends after it."""
        try:
            with client_names(FIELD_NAMES):
                message = await self._receive()
                self._authenticate(message)
                return await self._handle(message, live)
        except SpeechError as error:
            await self._refuse(body_of(error)["error"]["code"] or "error", error.message, status_of(error))
        except TimeoutError:
            seconds = self.options.inactivity_s
            await self._refuse(
                "input_timeout_exceeded",
                f"No text has arrived for {seconds} s. When a text is complete, send an empty `text`. Or connect with "
                "a longer `inactivity_timeout`.",
            )
        return False

    async def _receive(self) -> Object:
        """Wait for the next message. Raises TimeoutError if no message arrives before the time of `_deadline_s`.

        Also raises Unauthorized if the API key was removed, InvalidValue for a wrong message, and Closed.
        """
        self._active_s = time.monotonic()
        receiving = asyncio.ensure_future(self.socket.receive_json())
        try:
            while not receiving.done():
                left_s = self._deadline_s() - time.monotonic()  # speech that is sent in the meantime moves the deadline
                await asyncio.wait({receiving}, timeout=max(0.0, min(left_s, self.options.inactivity_s, KEY_CHECK_S)))
                if not receiving.done() and self._deadline_s() <= time.monotonic():
                    raise TimeoutError
                if self.socket.key is not None:
                    self.gate.present(self.socket.key)
        finally:
            receiving.cancel()
        return receiving.result()

    def _deadline_s(self) -> float:
        """Return the value of time.monotonic() at which the connection is closed if no message arrives.

        The time in which speech is generated or played does not count as inactivity.
        """
        now_s = time.monotonic()
        if any(context.live.ended for context in self._tasks.values()):
            return now_s + self.options.inactivity_s
        busy = any(context.live.has_unspoken_text for context in self._open.values())
        waits_s = MAX_INACTIVITY_S if busy else self.options.inactivity_s
        return max(self._active_s, self._heard_s) + waits_s

    def _authenticate(self, message: Object) -> None:
        """Use the API key in the first message if the headers had no key.

        Raises Unauthorized, Forbidden, UnknownVoice.
        """
        if self.socket.key is None:
            sent = message.get("xi-api-key") or message.get("xi_api_key") or message.get("authorization") or ""
            key = self.gate.connect(str(sent).removeprefix("Bearer ").strip())
            self.gate.check_scope(key, "speak")
            if key is not None:
                check_voice(self.voices, self.voice)
            self.socket.key = key
        self.gate.present(self.socket.key)

    async def _refuse(self, code: str, message: str, status: int = 400, **ids: str) -> None:
        """Send an error and close the connection. status: the HTTP status of the error."""
        close_code = POLICY_VIOLATION if status < 500 else SERVER_ERROR
        await self.socket.send({"message": message, "error": code, "code": close_code, **ids})
        await self.socket.close(close_code, message)

    async def _handle(self, message: Object, live: LiveSession) -> bool:
        text = message.get("text")
        if not isinstance(text, str | None):
            raise InvalidValue("`text` must be a text.", param="text")
        name = ""
        if self.several:
            found = message.get("context_id", message.get("contextId")) or ""
            if not isinstance(found, str) or len(found) > 256:
                raise InvalidValue("`context_id` must be a text of at most 256 characters.", param="context_id")
            name = found
        context = self._open.get(name)
        if not self.several and context is None and self._tasks:  # the only text of the connection has ended
            return True
        if text and context is None:
            if len(self._open) >= MAX_CONTEXTS:
                await self._refuse(
                    "max_active_conversations",
                    f"Maximum simultaneous contexts per connection exceeded ({MAX_CONTEXTS}). Close a context first.",
                )
                return False
            context = await self._begin(name, message, live)
        if context is not None:
            if text and (context.begun or not text.isspace()):
                await self._append(context, text)
            if message.get("flush") is True:
                context.live.flush()
            if message.get("close_context") is True:
                self._close(context, drop_unflushed=self.several)
            elif text == "" and not self.several and not message.get("flush"):
                self._close(context, drop_unflushed=False)
        elif text == "" and not self.several:
            await self.socket.send({"audio": None, "isFinal": True, "normalizedAlignment": None, "alignment": None})
            await self.socket.close(NORMAL)
            return False
        if message.get("close_socket") is True:
            for each in list(self._open.values()):
                self._close(each, drop_unflushed=False)
            await asyncio.gather(*self._tasks)
            await self.socket.close(NORMAL)
            return False
        return True

    def _close(self, context: _Context, *, drop_unflushed: bool) -> None:
        """End the text of a context. A later context can have the same id."""
        context.live.end(drop_unflushed=drop_unflushed)
        self._open.pop(context.name, None)

    async def _append(self, context: _Context, text: str) -> None:
        """Add text to a context. Raises TextTooLong.

        With `auto_mode`, each message contains whole sentences, often without a space at the end. This method then adds
        the missing space. After a message of several words that ends a sentence, it speaks all text without waiting for
        more.
        """
        auto = self.options.auto_mode
        if auto and context.ends_sentence and (text[0].isalnum() or text[0] in _OPENING):
            text = f" {text}"
        bare = text.rstrip(_CLOSING)
        context.begun = True
        context.ends_sentence = bare[-1:] in _SENTENCE_ENDS and not text[-1].isspace()
        await context.live.append(text)
        if auto and bare[-1:] in _SENTENCE_ENDS and len(bare.split()) > 1:
            context.live.flush()

    async def _begin(self, name: str, message: Object, live: LiveSession) -> _Context:
        """Open a context and begin to send its audio. Raises RequestError, RateLimited."""
        while len(self._tasks) - len(self._open) >= MAX_CLOSED_CONTEXTS:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        output = self.options.output
        model = model_of(self.options.model_id, self.speaking)
        body = speech_body(NO_TEXT_YET, self.voice, output, {**self.options.settings, **message}, model)
        key = self.socket.key
        convert = None if output.law is None else partial(g711.encode, law=output.law)
        owner = "" if key is None else key.sha256
        spec = await context_spec(self.speaking, body, owner, later=True, convert=convert, words=True)
        await self.speaking.generator.check(spec.request, spec.extras)
        admitted = self.gate.admit(key, "speak")
        context = self._open[name] = _Context(name, live.open(spec), admitted)
        task = asyncio.create_task(self._send(context), name="elevenlabs context")
        self._tasks[task] = context
        task.add_done_callback(self._tasks.pop)
        return context

    async def _send(self, context: _Context) -> None:
        """Send the audio of a context, and then the last message of the context."""
        ids = {"contextId": context.name, "context_id": context.name} if self.several else {}
        status = 200
        with contextlib.suppress(Closed):
            try:
                error = await self._send_speech(context, ids)
                if error is not None:
                    with_client_names(error, FIELD_NAMES)
                    status = status_of(error)
                    await self._refuse(body_of(error)["error"]["code"] or "error", error.message, status, **ids)
                    return
                final = {"is_final": True} if self.several else {}
                nothing = {"normalizedAlignment": None, "alignment": None}
                await self.socket.send({"audio": None, "isFinal": True, **final, **nothing, **ids})
            except Closed:
                raise
            except Exception:
                log.exception("a context failed with an unexpected error")
                status = 500
                await self.socket.close(SERVER_ERROR, "The server failed because of an internal error.")
            finally:
                if self._open.get(context.name) is context:
                    del self._open[context.name]
                end_pass(self.speaking.metrics, context.admitted, status)
            if not self.several:
                await self.socket.close(NORMAL)

    async def _send_speech(self, context: _Context, ids: Object) -> SpeechError | None:
        """Send the audio of a context and the times of its characters.

        Returns the error that ended the speech; None if there was none.
        """
        live = context.live
        # With `sync_alignment`, times are counted from the start of the context. Without it, the times of a message are
        # counted from the last time in the previous message with times, and clients add these times up.
        sync = self.options.sync_alignment
        times = CharacterTimes()
        sent_s = 0.0

        async def send_times(characters: list[TimedCharacter], origin_s: float) -> None:
            if characters:
                found = socket_alignment(characters, origin_s)
                aligned = {"normalizedAlignment": found, "alignment": found}
                await self.socket.send({"audio": "", "isFinal": None, **aligned, **ids})

        async with contextlib.aclosing(live.events()) as events:
            async for event in events:
                origin_s = 0.0 if sync else times.end_s
                if isinstance(event, Audio) and event.data:
                    audio = base64.b64encode(event.data).decode()
                    no_times = {"normalizedAlignment": None, "alignment": None}
                    await self.socket.send({"audio": audio, "isFinal": None, **no_times, **ids})
                    self._heard_s = max(self._heard_s, time.monotonic()) + event.end_s - sent_s
                    sent_s = event.end_s
                elif isinstance(event, Words):
                    if characters := times.add(live.text, event.sentences):
                        # pipecat recognises the end of a word only by the space after the word
                        characters += times.add_spaces(live.text)
                        await send_times(characters, origin_s)
                elif isinstance(event, Done):
                    await send_times(times.finish(live.text, event.audio_s), origin_s)
                    count_usage(self.speaking.metrics, context.admitted, event.usage)
                elif isinstance(event, Failed) and not isinstance(event.error, EmptyText):
                    return event.error
        return None


def check_connection(gate: Gate, sent: str) -> Any:
    """Return the API key of a connection. Raises Unauthorized, Forbidden.

    Returns None if the server has no keys, or if the headers contain no key. In the second case, the first message must
    contain the key. sent: the key in the headers; "" if they contain none.
    """
    try:
        key = gate.connect(sent)
    except Unauthorized:
        if sent:
            raise
        return None
    gate.check_scope(key, "speak")
    return key
