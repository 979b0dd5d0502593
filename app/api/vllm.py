"""The WebSocket messages of vLLM-Omni's `/v1/audio/speech/stream`: text in parts, and audio for each sentence.

`input.text` adds text, and `input.done` ends an utterance. The connection stays open for the next utterance. The text
is spoken as one unit, or as one unit for each sentence or clause (`split_granularity`). Each unit is one speech request
with one file of audio.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.api.live_contexts import (
    NO_TEXT_YET,
    checked_body,
    context_spec,
    count_usage,
    end_pass,
    live_session,
    with_client_names,
)
from app.api.sockets import KEY_CHECK_S, NORMAL, POLICY_VIOLATION, SERVER_ERROR, Closed
from app.errors import EmptyText, InvalidValue, NotSupported, SpeechError, TextTooLong, Unauthorized
from app.generator.live import Audio, Done, Failed, Words
from app.text.captions import words_of
from app.text.incremental import IncrementalSplitter

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.api.requests import SpeechBody
    from app.api.sockets import Socket
    from app.api.speaking import Speaking
    from app.generator.live import LiveSession
    from app.keys import Pass
    from app.types import TimedSentence

CONFIG_S, IDLE_S = 10.0, 30.0
MAX_CONFIG_CHARS = 4 << 20
MAX_TEXT_CHARS = 128 << 10  # largest size of a message with text
GRANULARITIES = ("none", "sentence", "clause")
_SAMPLE_BYTES = 2
# Fields of `session.config` that describe a voice to clone. This server does not accept these fields.
_CLONING = ("ref_audio", "ref_text", "references", "speaker_embedding")
_SPEECH_FIELDS = ("model", "language", "instructions", "speed", "seed", "temperature", "top_k", "top_p", "sample_rate")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """The settings of `session.config`."""

    body: SpeechBody  # a request body whose `input` is a placeholder
    stream_audio: bool
    word_timestamps: bool
    granularity: str

    @classmethod
    def of(cls, message: Object) -> SessionConfig:
        """Create the settings from a message `session.config`. Raises RequestError."""
        for name in _CLONING:
            if message.get(name) is not None:
                raise NotSupported(
                    f"This server does not clone voices from `{name}`. Create the voice first "
                    "(POST /v1/voice-cloning/clone), and send its id as `voice`.",
                    param=name,
                )
        audio_format = message.get("response_format")
        fields = {name: message.get(name) for name in _SPEECH_FIELDS}
        voice = message.get("speaker") if message.get("voice") is None else message["voice"]
        fields |= {"input": NO_TEXT_YET, "voice": voice, "response_format": audio_format or "wav"}
        body = checked_body(fields)
        stream, words = _flag(message, "stream_audio"), _flag(message, "word_timestamps")
        if stream and body.response_format != "pcm":
            raise InvalidValue("`stream_audio` needs `response_format` pcm.", param="response_format")
        if words and not stream:
            raise InvalidValue(
                "`word_timestamps` needs `stream_audio` and `response_format` pcm.", param="stream_audio"
            )
        granularity = message.get("split_granularity") or "none"
        if granularity not in GRANULARITIES:
            raise InvalidValue(
                f"`split_granularity` must be one of: {', '.join(GRANULARITIES)}.", param="split_granularity"
            )
        return cls(body, stream, words, granularity)


def _flag(message: Object, name: str) -> bool:
    value = message.get(name)
    if not isinstance(value, bool | None):
        raise InvalidValue(f"`{name}` must be true or false.", param=name)
    return bool(value)


@dataclass(slots=True, eq=False)
class _Utterance:
    """The text between two `input.done` messages. Use `create` to make an object of this class."""

    index: int
    config: SessionConfig
    splitter: IncrementalSplitter
    parts: list[str] = field(default_factory=list)  # the parts of a text that is not split into sentences
    chars: int = 0
    units: int = 0
    admitted: Pass | None = None
    failed: bool = False

    @classmethod
    def create(cls, index: int, config: SessionConfig) -> _Utterance:
        return cls(index, config, IncrementalSplitter(eager=False, clauses=config.granularity == "clause"))


@dataclass(slots=True)
class SpeechStream:
    """One WebSocket connection. `run` handles its messages until the connection is closed."""

    socket: Socket
    speaking: Speaking
    gate: Gate
    _config: SessionConfig | None = None
    _utterance: _Utterance | None = None  # the utterance whose text still arrives
    _count: int = 0  # the number of utterances whose text is complete
    # The units to speak: the utterance and the text of each unit. None instead of a text = the end of the utterance.
    _units: deque[tuple[_Utterance, str | None]] = field(default_factory=deque)
    _waiting_chars: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False

    async def run(self) -> None:
        """Handle the messages of the client until the connection is closed. Raises Closed."""
        live = live_session(self.speaking)
        sender = asyncio.create_task(self._send_all(live), name="speech stream")
        try:
            while await self._next():
                pass
            self._ended = True
            self._changed.set()
            await sender
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await live.close()
            for utterance in {each for each, _ in self._units} | {self._utterance}:
                self._close(utterance)

    # ---- messages

    async def _next(self) -> bool:
        """Handle the next message. Returns False if the connection ends after it."""
        try:
            message = await self._receive()
            if message is None:
                return False
            self.gate.present(self.socket.key)
            return await self._handle(message)
        except Unauthorized as error:
            await self._error(error.message)
            await self.socket.close(POLICY_VIOLATION, error.message)
            raise Closed from None
        except SpeechError as error:
            await self._error(error.message)
            if self._config is None:
                await self.socket.close(NORMAL)
                return False
            return True

    async def _receive(self) -> Object | None:
        """Return the next message; None if no message has arrived in time, and the connection was therefore closed.

        Raises Unauthorized, InvalidValue, Closed.
        """
        waits_s = CONFIG_S if self._config is None else IDLE_S
        since_s = time.monotonic()
        receiving = asyncio.ensure_future(self.socket.receive_json())
        try:
            while not (await asyncio.wait({receiving}, timeout=min(waits_s, KEY_CHECK_S)))[0]:
                self.gate.present(self.socket.key)
                if self._units:
                    since_s = time.monotonic()
                if time.monotonic() - since_s < waits_s:
                    continue
                if self._config is None:
                    await self._error("Timeout waiting for session.config")
                else:
                    await self._error("Idle timeout: no message received")
                await self.socket.close(NORMAL)
                return None
        finally:
            receiving.cancel()
        return receiving.result()

    async def _handle(self, message: Object) -> bool:
        kind = message.get("type")
        shown = kind[:64] if isinstance(kind, str) else str(type(kind).__name__)
        if kind == "session.config":
            if self._utterance is not None:
                raise InvalidValue(
                    "session.config cannot be applied while an utterance is in progress; send input.done first"
                )
            if sum(len(value) for value in message.values() if isinstance(value, str)) > MAX_CONFIG_CHARS:
                raise InvalidValue("session.config message too large")
            config = SessionConfig.of(message)
            spec = await context_spec(self.speaking, config.body, "", later=True, words=config.word_timestamps)
            await self.speaking.generator.check(spec.request, spec.extras)
            self._config = config
        elif self._config is None:
            raise InvalidValue(f"Expected session.config, got: {shown}")
        elif kind == "input.text":
            text = message.get("text", "")
            if not isinstance(text, str):
                raise InvalidValue("input.text requires a string value")
            if len(text) > MAX_TEXT_CHARS:
                raise InvalidValue("input.text message too large")
            if text:
                self._append(self._config, text)
        elif kind == "input.done":
            self._finish(self._config)
        elif kind == "session.close":
            if self._utterance is not None:  # speak the text that has arrived, although `input.done` is missing
                self._finish(self._config)
            return False
        else:
            raise InvalidValue(f"Unknown message type: {shown}")
        return True

    def _append(self, config: SessionConfig, text: str) -> None:
        """Add text to the utterance. Raises TextTooLong, RateLimited."""
        limit = self.speaking.max_input_chars
        opened = self._utterance
        if (0 if opened is None else opened.chars) + len(text) > limit or self._waiting_chars + len(text) > 4 * limit:
            raise TextTooLong(
                f"The text has more than {limit} characters (TTS_MAX_INPUT_CHARS). Send `input.done`, then the rest."
            )
        if opened is None:
            opened = self._utterance = _Utterance.create(self._count, config)
            opened.admitted = self.gate.admit(self.socket.key, "speak")
        opened.chars += len(text)
        if config.granularity == "none":
            opened.parts.append(text)
            self._waiting_chars += len(text)
            return
        for piece in opened.splitter.append(text):
            self._queue(opened, piece.text)

    def _finish(self, config: SessionConfig) -> None:
        """End the utterance."""
        utterance = self._utterance or _Utterance.create(self._count, config)
        self._utterance = None
        self._count += 1
        if utterance.parts:
            text = "".join(utterance.parts)
            self._waiting_chars -= len(text)
            self._queue(utterance, text)
        for piece in utterance.splitter.finish():
            self._queue(utterance, piece.text)
        self._queue(utterance, None)

    def _queue(self, utterance: _Utterance, text: str | None) -> None:
        if text is None or text.strip():
            self._units.append((utterance, text))
            self._waiting_chars += len(text or "")
            self._changed.set()

    async def _error(self, message: str, **more: Any) -> None:
        await self.socket.send({"type": "error", "message": message, **more})

    # ---- speech

    async def _send_all(self, live: LiveSession) -> None:
        """Send the audio of all units, one after the other."""
        try:
            while self._units or not self._ended:
                if not self._units:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                utterance, text = self._units[0]
                if text is None:
                    done = {"utterance_index": utterance.index, "total_sentences": utterance.units}
                    await self.socket.send({"type": "session.done", **done})
                    self._close(utterance)
                else:
                    await self._speak(utterance, text, live)
                    utterance.units += 1
                    self._waiting_chars -= len(text)
                self._units.popleft()
            await self.socket.close(NORMAL)
        except Closed:  # the receiving task ends the session
            pass
        except Exception:
            await self.socket.close(SERVER_ERROR, "The server failed because of an internal error.")
            raise

    async def _speak(self, utterance: _Utterance, text: str, live: LiveSession) -> None:
        """Send the audio of one unit between `audio.start` and `audio.done`."""
        place = {"utterance_index": utterance.index, "sentence_index": utterance.units}
        unit = _Unit(self.socket, utterance.config, place, text)
        failed = False
        try:
            body = utterance.config.body.model_copy(update={"input": text})
            owner = "" if self.socket.key is None else self.socket.key.sha256
            spec = await context_spec(self.speaking, body, owner, later=False, words=utterance.config.word_timestamps)
            if not utterance.config.stream_audio:
                await unit.start()
            async with contextlib.aclosing(live.open(spec).events()) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    await unit.send(event)
                    if isinstance(event, Done):
                        count_usage(self.speaking.metrics, utterance.admitted, event.usage)
        except EmptyText:
            pass
        except SpeechError as error:
            failed = utterance.failed = True
            with_client_names(error, {"input": "text"})
            await unit.start()
            partial = {"partial_audio": True, "action": "discard"} if unit.total_bytes else {}
            where = f"utterance {utterance.index}, sentence {utterance.units}"
            await self._error(f"Generation failed for {where}: {error.message}", **partial)
        await unit.start()
        await self.socket.send({"type": "audio.done", **place, "total_bytes": unit.total_bytes, "error": failed})

    def _close(self, utterance: _Utterance | None) -> None:
        """Count the request of an utterance. Further calls do nothing."""
        if utterance is not None:
            end_pass(self.speaking.metrics, utterance.admitted, 500 if utterance.failed else 200)
            utterance.admitted = None


@dataclass(slots=True)
class _Unit:
    """Sends the audio of a unit in the form that the client wants."""

    socket: Socket
    config: SessionConfig
    place: Object
    text: str
    total_bytes: int = 0
    _started: bool = False
    _chunks: int = 0
    _held: list[bytes] = field(default_factory=list)
    _words: list[TimedSentence] = field(default_factory=list)

    @property
    def _rate_hz(self) -> int:
        return self.config.body.sample_rate or 24_000

    async def start(self) -> None:
        """Send `audio.start`. Further calls do nothing."""
        if self._started:
            return
        self._started = True
        content: Object = {"sentence_text": self.text, "format": self.config.body.response_format}
        if self.config.word_timestamps:
            content["word_timestamps"] = True
        if self.config.stream_audio and self.total_bytes:
            content |= {"sample_rate": self._rate_hz, "channels": 1}
        await self.socket.send({"type": "audio.start", **self.place, **content})

    async def send(self, event: object) -> None:
        """Handle an event of the speech: send its audio at once, or keep the audio until the unit is complete."""
        if isinstance(event, Audio) and event.data:
            begin = self.total_bytes
            self.total_bytes += len(event.data)
            if not self.config.stream_audio:
                self._held.append(event.data)
                return
            await self.start()
            if self.config.word_timestamps:
                await self._send_chunk(event.data, begin, self.total_bytes, None)
            else:
                await self.socket.send_bytes(event.data)
        elif isinstance(event, Words):
            self._words += event.sentences
        elif isinstance(event, Done):
            if self._held:
                await self.socket.send_bytes(b"".join(self._held))
            elif self.config.word_timestamps:
                await self._send_chunk(b"", 0, self.total_bytes, self._timestamps())

    def _timestamps(self) -> list[Object] | None:
        """Return the times of the words; None if the times of some words are not known."""
        if any(not sentence.words and words_of(sentence) for sentence in self._words):
            return None
        return [
            {"word": word.word, "start_ms": round(word.start_s * 1000), "end_ms": round(word.end_s * 1000)}
            for sentence in self._words
            for word in sentence.words
        ]

    async def _send_chunk(self, data: bytes, begin: int, end: int, timestamps: list[Object] | None) -> None:
        """Send audio as JSON. begin, end: where `data` begins and ends in the audio of the unit, in bytes."""
        per_s = _SAMPLE_BYTES * self._rate_hz
        await self.socket.send(
            {
                "type": "audio.chunk",
                **self.place,
                "chunk_id": self._chunks,
                "chunk_start_ms": round(1000 * begin / per_s),
                "chunk_end_ms": round(1000 * end / per_s),
                "sample_rate": self._rate_hz,
                "channels": 1,
                "audio_b64": base64.b64encode(data).decode(),
                "timestamps": timestamps,
            }
        )
        self._chunks += 1
