"""The WebSocket messages of ElevenLabs: `stream-input` with one context, and `multi-stream-input` with several.

A context is one text that arrives in parts. The server sends its audio in base64. The alignment of characters and times
is always null.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from app.api.errors import body_of
from app.api.requests import SpeechBody
from app.api.sockets import POLICY_VIOLATION, Closed
from app.audio import g711
from app.errors import EmptyText, InvalidValue, SpeechError, Unauthorized, UnsupportedFormat
from app.generator.live import Audio, ContextSpec, Done, Failed, LiveSession

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.api.auth import Gate
    from app.api.sockets import Socket
    from app.api.speaking import Speaking
    from app.generator.live import LiveContext
    from app.keys import Pass

MAX_CONTEXTS = 5  # of one connection, as in the original
DEFAULT_FORMAT = "mp3_44100_128"
INACTIVITY_S, MAX_INACTIVITY_S = 20, 180
NORMAL = 1000  # close code

_CODECS = {"mp3": "mp3", "pcm": "pcm", "ulaw": "pcm", "alaw": "pcm", "opus": "opus"}
_LAWS: dict[str, g711.Law] = {"ulaw": "ulaw", "alaw": "alaw"}

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
    try:
        return SpeechBody.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InvalidValue(f"`{where}`: {problem['msg']}", param=where) from None


@dataclass(slots=True, eq=False)
class _Context:
    live: LiveContext
    admitted: Pass | None
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
        live = LiveSession(self.speaking.generator, self.speaking.metrics, max_chars=self.speaking.max_input_chars)
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
            if text and not text.isspace():
                await context.live.append(text)
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

    async def _open(self, name: str, message: Object, live: LiveSession) -> _Context:
        """Open a context and begin to send its audio. Raises RequestError, RateLimited."""
        body = speech_body("-", self.voice, self.output, {**self.settings, **message})
        key = self.socket.key
        request = await self.speaking.prepare(body, "" if key is None else key.sha256)
        request = replace(request, lines=(replace(request.lines[0], text=""),))

        def begun(text: str) -> None:
            self.speaking.log(replace(request, lines=(replace(request.lines[0], text=text),)))

        admitted = self.gate.admit(key, "speak")
        convert = None if self.output.law is None else partial(g711.encode, law=self.output.law)
        spec = ContextSpec(request, body.extras, body.seed == "random", convert, begun)
        context = self._contexts[name] = _Context(live.open(spec), admitted)
        context.task = asyncio.create_task(self._send(name, context), name="elevenlabs context")
        return context

    async def _send(self, name: str, context: _Context) -> None:
        """Send the audio of a context, and its last message."""
        ids = {"contextId": name, "context_id": name} if self.several else {}
        nothing = {"normalizedAlignment": None, "alignment": None}
        status = 200
        with contextlib.suppress(Closed):
            try:
                async with contextlib.aclosing(context.live.events()) as events:
                    async for event in events:
                        if isinstance(event, Audio) and event.data:
                            audio = base64.b64encode(event.data).decode()
                            await self.socket.send({"audio": audio, "isFinal": None, **nothing, **ids})
                        elif isinstance(event, Failed) and not isinstance(event.error, EmptyText):
                            status = 500
                            error = body_of(event.error)["error"]
                            await self.socket.send({"message": error["message"], "error": error["code"], **ids})
                        elif isinstance(event, Done) and event.usage is not None and context.admitted is not None:
                            self.speaking.metrics.key_tokens(
                                context.admitted.key.name, event.usage.input_tokens, event.usage.output_tokens
                            )
                final = {"is_final": True} if self.several else {}
                await self.socket.send({"audio": None, "isFinal": True, **final, **nothing, **ids})
            finally:
                self._contexts.pop(name, None)
                if context.admitted is not None:
                    context.admitted.close()
                    self.speaking.metrics.key_request(context.admitted.key.name, status)
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
