"""The WebSocket messages of ElevenLabs: `stream-input` with one context, and `multi-stream-input` with several.

A context is one text that arrives in parts. The server sends its audio in base64, and the times of the characters when
they are known: after the audio of their sentence, in a message without audio.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders

from app.api.errors import body_of
from app.api.live_contexts import NO_TEXT_YET, checked_body, context_spec, count_usage, end_pass, live_session
from app.api.sockets import NORMAL, POLICY_VIOLATION, Closed
from app.audio import g711
from app.errors import EmptyText, InvalidValue, SpeechError, Unauthorized, UnsupportedFormat
from app.generator.live import Audio, Done, Failed, Words
from app.text.character_times import CharacterTimes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from fastapi.routing import APIRoute
    from starlette.types import Message, Receive, Scope, Send

    from app.api.auth import Gate
    from app.api.requests import SpeechBody
    from app.api.sockets import Socket
    from app.api.speaking import Speaking
    from app.generator.live import LiveContext, LiveSession
    from app.generator.speech import Answer
    from app.keys import Pass
    from app.text.character_times import TimedCharacter
    from app.types import TimedSentence

_SENTENCE_ENDS = tuple(".!?\u2026\u3002\uff01\uff1f")
_OPENING, _CLOSING = "\"'\u201c\u2018([\u00bf\u00a1", "\"'\u201d\u2019)] \n"
MAX_CONTEXTS = 5  # of one connection, as in the original
DEFAULT_FORMAT = "mp3_44100_128"
INACTIVITY_S, MAX_INACTIVITY_S = 20, 180

_CODECS = {"mp3": "mp3", "pcm": "pcm", "ulaw": "pcm", "alaw": "pcm", "opus": "opus"}
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
        """Read the name of a format. Raises UnsupportedFormat."""
        codec, _, rest = name.partition("_")
        rate = rest.partition("_")[0]
        if codec not in _CODECS or not rate.isascii() or not rate.isdecimal() or not 8_000 <= int(rate[:6]) <= 48_000:
            raise UnsupportedFormat(
                f"The output format {name[:40]!r} is not known. Use for example mp3_44100_128, pcm_24000, ulaw_8000 or "
                "opus_48000_64.",
                param="output_format",
            )
        return cls(_CODECS[codec], int(rate), _LAWS.get(codec))


def speech_body(text: str, voice: str, output: OutputFormat, settings: Mapping[str, Any]) -> SpeechBody:
    """Return the speech request for a text. Raises InvalidValue.

    settings: the fields `voice_settings`, `language_code`, `seed` and `apply_text_normalization`.
    """
    voice_settings = settings.get("voice_settings")
    speed = voice_settings.get("speed") if isinstance(voice_settings, dict) else None
    fields = {
        "input": text,
        "voice": voice,
        "speed": speed,
        "response_format": output.response_format,
        "sample_rate": output.rate_hz,
        "language": settings.get("language_code"),
        "seed": settings.get("seed"),
        "normalize": False if settings.get("apply_text_normalization") == "off" else None,
    }
    return checked_body(fields)


# ---- the times of characters


def socket_alignment(characters: Sequence[TimedCharacter], origin_s: float) -> Object:
    """Return the `alignment` of a WebSocket message. origin_s: the time from which its times count."""
    starts = [round(1000 * (start_s - origin_s)) for _, start_s, _ in characters]
    ends = [round(1000 * (end_s - origin_s)) for _, _, end_s in characters]
    return {
        "chars": [char for char, _, _ in characters],
        "charStartTimesMs": starts,
        "charDurationsMs": [end - start for start, end in zip(starts, ends, strict=True)],
    }


class TimedChunks:
    """Builds the JSON objects of the HTTP routes with timestamps. The times count from the start of the audio."""

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
    """Change an answer with PCM to telephone audio. law: None = leave it as it is."""
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


def route_with_details(base: type[APIRoute]) -> type[APIRoute]:
    """Return a route class whose errors also have the field `detail`, as ElevenLabs' clients expect."""

    class DetailedRoute(base):  # type: ignore[misc, valid-type]
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().handle(scope, receive, _with_detail(send))

    return DetailedRoute


def _with_detail(send: Send) -> Send:
    start: Message | None = None
    held = bytearray()

    async def changed(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and message["status"] >= 400:
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
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        await send(start)
        await send({"type": "http.response.body", "body": body})

    return changed


# ---- WebSockets


@dataclass(slots=True, eq=False)
class _Context:
    live: LiveContext
    admitted: Pass | None
    begun: bool = False  # whether it has text that is not white space
    ends_sentence: bool = False  # whether its text so far ends with a sentence, and without a space
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class StreamInput:
    """One connection. `run` handles its messages until it is closed."""

    socket: Socket
    speaking: Speaking
    gate: Gate
    voice: str
    output: OutputFormat
    settings: Mapping[str, str]  # the query of the URL
    several: bool  # whether messages have a `context_id`
    _contexts: dict[str, _Context] = field(default_factory=dict)

    async def run(self) -> None:
        """Handle the messages of the client until the connection is closed. Raises Closed."""
        live = live_session(self.speaking)
        try:
            while await self._next(live):
                pass
        finally:
            await live.close()
            tasks = [context.task for context in self._contexts.values() if context.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self, live: LiveSession) -> bool:
        """Handle the next message. Returns False at the end."""
        try:
            try:
                async with asyncio.timeout(self._inactivity_s):
                    message = await self.socket.receive_json()
            except TimeoutError:
                if self._contexts and not self._waiting:
                    return True
                return await self._refuse("input_timeout_exceeded", "No message has arrived for too long.")
            self._authenticate(message)
            return await self._handle(message, live)
        except SpeechError as error:
            return await self._refuse(body_of(error)["error"]["code"] or "error", error.message)

    @property
    def _inactivity_s(self) -> int:
        wanted = self.settings.get("inactivity_timeout", "")
        return min(int(wanted[:4]), MAX_INACTIVITY_S) or 1 if wanted.isdecimal() and wanted.isascii() else INACTIVITY_S

    @property
    def _waiting(self) -> bool:
        """Whether a context waits for text."""
        return any(not context.live.ended for context in self._contexts.values())

    def _authenticate(self, message: Object) -> None:
        """Take the API key of the first message, if the headers had none. Raises Unauthorized."""
        if self.socket.key is None:
            sent = message.get("xi-api-key") or message.get("xi_api_key") or message.get("authorization") or ""
            key = self.gate.connect(str(sent).removeprefix("Bearer ").strip())
            self.gate.check_scope(key, "speak")
            self.socket.key = key
        self.gate.present(self.socket.key)

    async def _refuse(self, code: str, message: str) -> bool:
        """Send an error and close the connection."""
        await self.socket.send({"message": message, "error": code, "code": POLICY_VIOLATION})
        await self.socket.close(POLICY_VIOLATION, message)
        return False

    async def _handle(self, message: Object, live: LiveSession) -> bool:
        text = message.get("text")
        if text is not None and not isinstance(text, str):
            raise InvalidValue("`text` must be a text.", param="text")
        name = ""
        if self.several:
            found = message.get("context_id", message.get("contextId")) or ""
            if not isinstance(found, str) or len(found) > 256:
                raise InvalidValue("`context_id` must be a text of at most 256 characters.", param="context_id")
            name = found
        context = self._contexts.get(name)
        if text and context is None:
            if len(self._contexts) >= MAX_CONTEXTS:
                message_text = f"Maximum simultaneous contexts per connection exceeded ({MAX_CONTEXTS})."
                return await self._refuse("max_active_conversations", message_text)
            context = await self._open(name, message, live)
        if context is not None:
            if text and (context.begun or not text.isspace()):
                await self._append(context, text)
            if message.get("flush") is True:
                context.live.flush()
            if message.get("close_context") is True or (text == "" and not self.several and not message.get("flush")):
                context.live.end()
        elif text == "" and not self.several:
            await self.socket.send({"audio": None, "isFinal": True, "normalizedAlignment": None, "alignment": None})
            await self.socket.close(NORMAL)
            return False
        if message.get("close_socket") is True:
            for each in self._contexts.values():
                each.live.end()
            await asyncio.gather(*(each.task for each in self._contexts.values() if each.task is not None))
            await self.socket.close(NORMAL)
            return False
        return True

    async def _append(self, context: _Context, text: str) -> None:
        """Add text to a context. Raises TextTooLong.

        With `auto_mode`, a message has whole sentences, often without a space after them.
        """
        auto = self.settings.get("auto_mode", "").lower() == "true"
        if auto and context.ends_sentence and (text[0].isalnum() or text[0] in _OPENING):
            text = f" {text}"
        bare = text.rstrip(_CLOSING)
        context.begun = True
        context.ends_sentence = bare[-1:] in _SENTENCE_ENDS and not text[-1].isspace()
        await context.live.append(text)
        if auto and bare[-1:] in _SENTENCE_ENDS and len(bare.split()) > 1:
            context.live.flush()

    async def _open(self, name: str, message: Object, live: LiveSession) -> _Context:
        """Open a context and begin to send its audio. Raises RequestError, RateLimited."""
        body = speech_body(NO_TEXT_YET, self.voice, self.output, {**self.settings, **message})
        key = self.socket.key
        convert = None if self.output.law is None else partial(g711.encode, law=self.output.law)
        owner = "" if key is None else key.sha256
        spec = await context_spec(self.speaking, body, owner, later=True, convert=convert, words=True)
        admitted = self.gate.admit(key, "speak")
        context = self._contexts[name] = _Context(live.open(spec), admitted)
        context.task = asyncio.create_task(self._send(name, context), name="elevenlabs context")
        return context

    async def _send(self, name: str, context: _Context) -> None:
        """Send the audio of a context, and its last message."""
        ids = {"contextId": name, "context_id": name} if self.several else {}
        nothing = {"normalizedAlignment": None, "alignment": None}
        # With `sync_alignment`, times count from the start of the context. Otherwise they count from the end of the
        # message before, and clients add them up.
        sync = self.settings.get("sync_alignment", "").lower() == "true"
        times = CharacterTimes()
        status = 200
        with contextlib.suppress(Closed):
            try:
                async with contextlib.aclosing(context.live.events()) as events:
                    async for event in events:
                        if isinstance(event, Audio) and event.data:
                            audio = base64.b64encode(event.data).decode()
                            await self.socket.send({"audio": audio, "isFinal": None, **nothing, **ids})
                        elif isinstance(event, Words):
                            origin_s = 0.0 if sync else times.end_s
                            if characters := times.add(context.live.text, event.sentences):
                                characters += times.add_spaces(context.live.text)  # they end the last word in pipecat
                                found = socket_alignment(characters, origin_s)
                                aligned = {"normalizedAlignment": found, "alignment": found}
                                await self.socket.send({"audio": "", "isFinal": None, **aligned, **ids})
                        elif isinstance(event, Failed) and not isinstance(event.error, EmptyText):
                            status = 500
                            error = body_of(event.error)["error"]
                            await self.socket.send({"message": error["message"], "error": error["code"], **ids})
                        elif isinstance(event, Done):
                            count_usage(self.speaking.metrics, context.admitted, event.usage)
                final = {"is_final": True} if self.several else {}
                await self.socket.send({"audio": None, "isFinal": True, **final, **nothing, **ids})
            finally:
                self._contexts.pop(name, None)
                end_pass(self.speaking.metrics, context.admitted, status)
            if not self.several:
                await self.socket.close(NORMAL if status == 200 else POLICY_VIOLATION)


def check_connection(gate: Gate, sent: str) -> Any:
    """Return the API key of a connection; None if the first message may have it. Raises Unauthorized, Forbidden."""
    try:
        key = gate.connect(sent)
    except Unauthorized:
        if sent:
            raise
        return None
    gate.check_scope(key, "speak")
    return key
