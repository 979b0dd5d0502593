"""The Wyoming protocol over TCP: the speech protocol of Home Assistant (`TTS_WYOMING`). See docs/live.md.

An event is a line of JSON, then JSON data, then binary data. The library `wyoming` defines the events. This module
reads them itself, because it limits their size and the time in which they arrive. The protocol has no API keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import structlog
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from app import __version__
from app.api.errors import status_of
from app.api.live_contexts import NO_TEXT_YET, checked_body, client_names, context_spec, live_session, with_client_names
from app.api.routes.voices import listed, refresh
from app.api.sockets import Closed
from app.errors import EmptyText, InvalidValue, RequestError, SpeechError, UnknownVoice
from app.generator.live import Audio, Cancelled, Failed
from app.generator.planning import SILENT_TEXT_S
from app.generator.prompts import can_speak
from app.settings import address_of

if TYPE_CHECKING:
    from types import TracebackType

    from app.api.auth import Gate
    from app.api.speaking import Speaking
    from app.generator.live import LiveContext, LiveSession
    from app.types import EngineInfo, Voice
    from app.voices.store import VoiceStore

log: Any = structlog.get_logger(__name__)

ROUTE = "wyoming"  # name of this route in the metrics
RATE_HZ, WIDTH, CHANNELS = 24_000, 2, 1
MAX_HEADER_BYTES = 64 << 10
MAX_DATA_BYTES = 16 << 20
# The largest binary data of an event from a client. The data is dropped, because this server does not need audio.
MAX_PAYLOAD_BYTES = 16 << 20
MAX_CONNECTIONS = 256
MAX_WAITING = 8  # the largest number of texts of one connection that are spoken or wait
IDLE_S = 15 * 60.0  # a connection without events and without speech is closed after this time
SHUTDOWN_S = 5.0  # running speech has this time to end when the server stops
IN_THREAD_BYTES = 64 << 10  # longer data is parsed in a thread
# Home Assistant needs audio for each text, so this silence is sent for a text without words.
_SILENCE = bytes(WIDTH * round(SILENT_TEXT_S * RATE_HZ))
_FIELD_NAMES = {"input": "text", "voice": "voice.name", "language": "voice.language"}
_BLOCK_BYTES = 64 << 10
_KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
_SERVICE = "_wyoming._tcp.local."

Object = dict[str, Any]


def check_zeroconf() -> None:
    """Check that the library for TTS_WYOMING_ZEROCONF is installed. Raises ValueError."""
    if find_spec("zeroconf") is None:
        raise ValueError("TTS_WYOMING_ZEROCONF needs zeroconf: pip install -c constraints.txt '.[zeroconf]'")


# ---- events


async def read_event(reader: asyncio.StreamReader, timeout_s: float) -> Event | None:
    """Wait for the next event; None = the client has closed the connection.

    timeout_s: seconds in which the rest of an event must arrive after its first byte. Raises InvalidValue,
    TimeoutError, OSError.
    """
    first = await reader.read(1)
    if not first:
        return None
    if first != b"{":  # for example because another program speaks TLS or HTTP
        raise InvalidValue("An event must begin with a JSON object.")
    async with asyncio.timeout(timeout_s):
        try:
            line = first + await reader.readline()
        except ValueError:
            raise InvalidValue(f"The first line of an event has more than {MAX_HEADER_BYTES} bytes.") from None
        header = _object(_parsed(line), "The first line of an event")
        kind, data = header.get("type"), header.get("data")
        if not isinstance(kind, str):
            raise InvalidValue("An event must have a `type`.")
        found = {} if data is None else _object(data, "`data`")
        try:
            if length := _length(header, "data_length", MAX_DATA_BYTES):
                content = await reader.readexactly(length)
                parsed = await asyncio.to_thread(_parsed, content) if length > IN_THREAD_BYTES else _parsed(content)
                found |= _object(parsed, "The data of an event")
            left = _length(header, "payload_length", MAX_PAYLOAD_BYTES)
            while left:
                left -= len(await reader.readexactly(min(left, _BLOCK_BYTES)))
        except asyncio.IncompleteReadError:
            return None
    return Event(kind, found)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidValue("The event is not valid JSON.") from None


def _object(value: object, what: str) -> Object:
    if not isinstance(value, dict):
        raise InvalidValue(f"{what} must be a JSON object.")
    return value


def _length(header: Object, name: str, limit: int) -> int:
    """Return the length with this name in the header of an event; 0 if it is missing. Raises InvalidValue."""
    length = header.get(name) or 0
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= limit:
        raise InvalidValue(f"`{name}` must be a number from 0 to {limit}.")
    return length


def _text_of(event: Event) -> str:
    text = event.data.get("text")
    if not isinstance(text, str):
        raise InvalidValue("`text` must be a text.", param="text")
    return text


def _audio_event(kind: str, at_ms: int | None, data: bytes | None = None) -> Event:
    """Return an `audio-start` or `audio-chunk` event.

    `wyoming.audio` has classes for these events, but it needs a module that Python 3.13 does not have.
    """
    return Event(kind, {"rate": RATE_HZ, "width": WIDTH, "channels": CHANNELS, "timestamp": at_ms}, data)


# ---- voices


def info_event(voices: list[Voice], engine: EngineInfo | None, model: str) -> Event:
    """Return the answer to `describe`: the voices that the engine can speak, with their languages.

    engine: None = no engine runs. model: the id of the model.
    """
    about = {"attribution": {"name": engine.name if engine else model, "url": ""}, "installed": True}
    spoken = [] if engine is None else list(engine.languages)
    shown = [
        {
            "name": voice.id,
            "description": voice.name,
            "version": None,
            "speakers": None,
            "languages": list(dict.fromkeys(map(_tag, [voice.language, *spoken]))),
            **about,
        }
        for voice in voices
        if engine is None or can_speak(voice, engine)
    ]
    program = {
        "name": "tts-server",
        "description": f"tts-server with {model}",
        "version": __version__,
        "voices": shown,
        "supports_synthesize_streaming": True,
        **about,
    }
    return Event("info", {**{kind: [] for kind in ("asr", "handle", "intent", "wake", "mic", "snd")}, "tts": [program]})


def _tag(language: str) -> str:
    """Return a language tag with the usual case, such as en-GB or zh-Hant."""
    first, *rest = language.split("-")
    return "-".join([first.lower(), *({2: part.upper(), 4: part.title()}.get(len(part), part) for part in rest)])


# ---- connections


@dataclass(frozen=True, slots=True, eq=False)
class _Speech:
    """A text that is being spoken, or that waits to be spoken."""

    context: LiveContext
    streaming: bool  # whether its text arrives in parts


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection. `run` handles its events until the connection is closed."""

    server: WyomingServer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    live: LiveSession
    task: asyncio.Task[None] = field(init=False)  # the task that executes `run`
    _waiting: asyncio.Queue[_Speech] = field(default_factory=asyncio.Queue)
    _speaking: _Speech | None = None
    _receiving: _Speech | None = None  # the speech whose text still arrives
    _finishing: bool = False
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def busy(self) -> bool:
        """Whether a text is being spoken or waits to be spoken."""
        return self._speaking is not None or not self._waiting.empty()

    async def run(self) -> None:
        sender = asyncio.create_task(self._send_all(), name="wyoming speech")
        try:
            while await self._next():
                pass
        except (Closed, OSError):
            pass
        except TimeoutError:
            log.info("closed a Wyoming connection whose event did not arrive in time")
        except SpeechError as error:
            self.server.count(error)
            with contextlib.suppress(Closed, OSError):
                await self._refuse(error)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await self.live.close()
            self.writer.close()

    def finish(self) -> None:
        """Speak the texts that have arrived, then close the connection."""
        self._finishing = True
        if not self.busy:
            self.writer.close()

    async def _next(self) -> bool:
        """Handle the next event. Returns False if the connection ends after it."""
        waiting = asyncio.ensure_future(read_event(self.reader, self.server.read_timeout_s))
        try:
            while not (await asyncio.wait({waiting}, timeout=IDLE_S))[0]:
                # A text that is spoken or waits keeps the connection open, but only if the whole text has arrived.
                if not self.busy or (self._receiving is not None and self._waiting.empty()):
                    return False
        finally:
            waiting.cancel()
        event = waiting.result()
        if event is not None:
            await self._handle(event)
        return event is not None

    async def _handle(self, event: Event) -> None:
        """Handle an event. An event of an unknown type is ignored, as the protocol demands."""
        if event.type == "describe":
            await self._send(await self.server.info())
        elif Ping.is_type(event.type):
            text = event.data.get("text")
            await self._send(Pong(text if isinstance(text, str) else None).event())
        elif Synthesize.is_type(event.type):
            # While a text arrives in parts, `synthesize` is ignored: it repeats the whole text, for servers that do not
            # accept parts.
            if self._receiving is None:
                await self._open(event, _text_of(event))
        elif SynthesizeStart.is_type(event.type):
            if self._receiving is not None:
                await self._receiving.context.cancel(words_s=0)
            self._receiving = await self._open(event, None)
        elif SynthesizeChunk.is_type(event.type):
            if self._receiving is None:
                raise InvalidValue("Send `synthesize-start` before `synthesize-chunk`.")
            await self._receiving.context.append(_text_of(event))
        elif SynthesizeStop.is_type(event.type):
            if self._receiving is not None:
                self._receiving.context.end()
                self._receiving = None
            elif not self.busy:
                await self._send(SynthesizeStopped().event())

    async def _open(self, event: Event, text: str | None) -> _Speech:
        """Begin to speak a text. text: None = the text arrives in parts. Raises RequestError, NotReady."""
        if self._waiting.qsize() + (self._speaking is not None) >= MAX_WAITING:
            raise InvalidValue(f"This connection has {MAX_WAITING} texts already. Wait for the end of one of them.")
        name, language = await self.server.voice_of(event.data.get("voice"))
        words = text if text and not text.isspace() else ""  # Home Assistant gets silence for a text without words
        fields = {
            "input": words or NO_TEXT_YET,
            "voice": name,
            "language": language,
            "response_format": "pcm",
            "sample_rate": RATE_HZ,
        }
        with client_names(_FIELD_NAMES):
            spec = await context_spec(self.server.speaking, checked_body(fields), "", later=not words)
        speech = _Speech(self.live.open(spec), text is None)
        if text is not None and not words:
            speech.context.end()
        self._waiting.put_nowait(speech)
        return speech

    async def _send_all(self) -> None:
        """Send the speech of all texts, one text after the other."""
        try:
            going_on = True
            while going_on:
                self._speaking = await self._waiting.get()
                going_on = await self._speak(self._speaking) and not (self._finishing and self._waiting.empty())
                self._speaking = None
        except (Closed, OSError):
            pass
        except Exception:
            log.exception("the speech of a Wyoming connection failed with an unexpected error")
        finally:
            self.writer.close()  # otherwise the client would wait for more audio

    async def _speak(self, speech: _Speech) -> bool:
        """Send the speech of a text. Returns False if the speech has failed.

        After a failure, the caller closes the connection. Otherwise the client would wait for the end of the audio.
        """
        samples = 0
        async with contextlib.aclosing(speech.context.events()) as events:
            async for event in events:
                if isinstance(event, Audio) and event.data:
                    await self._send_audio(event.data, samples)
                    samples += len(event.data) // WIDTH
                elif isinstance(event, Failed) and not isinstance(event.error, EmptyText):
                    self.server.count(event.error)
                    with_client_names(event.error, _FIELD_NAMES)
                    await self._refuse(event.error)
                    return False
                elif isinstance(event, Cancelled) and speech is self._receiving:
                    self._receiving = None
        if not samples:
            await self._send_audio(_SILENCE, 0)
            samples = len(_SILENCE) // WIDTH
        await self._send(Event("audio-stop", {"timestamp": 1000 * samples // RATE_HZ}))
        if speech.streaming:
            await self._send(SynthesizeStopped().event())
        self.server.count(None)
        return True

    async def _send_audio(self, data: bytes, at_sample: int) -> None:
        """Send audio of a text. at_sample: how many samples of this text were sent before."""
        if not at_sample:
            await self._send(_audio_event("audio-start", 0))
        await self._send(_audio_event("audio-chunk", 1000 * at_sample // RATE_HZ, data))

    async def _refuse(self, error: SpeechError) -> None:
        if isinstance(error, UnknownVoice):  # its message could list voices that this client must not know
            error.message = "There is no voice with this name. The answer to `describe` has the names of the voices."
        await self._send(Error(error.message, error.code).event())

    async def _send(self, event: Event) -> None:
        """Send an event. Waits while the client reads no data. Raises Closed, OSError."""
        try:
            async with asyncio.timeout(self.server.send_timeout_s), self._sending:
                await async_write_event(event, self.writer)
        except TimeoutError:
            log.warning("stopped a Wyoming connection whose client read nothing", for_s=self.server.send_timeout_s)
            self.writer.transport.abort()
            raise Closed from None


class WyomingServer:
    """The Wyoming server, which listens while its `async with` block runs."""

    def __init__(
        self,
        speaking: Speaking,
        voices: VoiceStore,
        gate: Gate,
        uri: str,
        *,
        name: str = "",
        send_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        """Set the options. Raises ValueError.

        uri: the address to listen on. name: the name under which the server is announced in the local network; "" = do
        not announce it. send_timeout_s: how long to wait for a client that reads nothing. read_timeout_s: how long the
        rest of an event may take to arrive after its first byte.
        """
        self.host, self.port = address_of(uri)
        if name:
            check_zeroconf()
        self.speaking = speaking
        self.send_timeout_s = send_timeout_s
        self.read_timeout_s = read_timeout_s
        self._voices = voices
        self._gate = gate
        self._name = name
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._announced: Any = None

    async def __aenter__(self) -> Self:
        """Start to listen. Raises OSError."""
        try:
            self._server = await asyncio.start_server(self._connected, self.host, self.port, limit=MAX_HEADER_BYTES)
        except OSError as error:
            log.error("The Wyoming server can't listen on TTS_WYOMING: %s", error)
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        log.info(
            "The Wyoming server listens on tcp://%s:%d. It needs no API key, so all who reach this port can use it",
            self.host,
            self.port,
        )
        if self._name:
            await self._announce()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening. Running speech has SHUTDOWN_S to end."""
        if self._server is not None:
            self._server.close()
        if self._announced is not None:
            with contextlib.suppress(Exception):
                await self._announced.async_unregister_all_services()
                await self._announced.async_close()
        tasks = {connection.task for connection in self._connections}
        for connection in self._connections:
            connection.finish()
        if tasks:
            await asyncio.wait(tasks, timeout=SHUTDOWN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def info(self) -> Event:
        """Return the answer to `describe`."""
        manager = self.speaking.manager
        engine = manager.current
        return info_event(
            await listed(self._voices, self._gate), None if engine is None else engine.info, manager.requested.model_id
        )

    async def voice_of(self, wanted: object) -> tuple[str, str | None]:
        """Return the id of the voice to speak with, and the language to speak. Raises InvalidValue.

        wanted: the object `voice` of an event. The language is None if the voice determines the language.
        """
        chosen = {} if wanted is None else _object(wanted, "`voice`")
        name, language = chosen.get("name"), chosen.get("language")
        if any(value is not None and not isinstance(value, str) for value in (name, language)):
            raise InvalidValue("`name` and `language` of `voice` must be texts.", param="voice")
        await refresh(self._voices)
        default = self.speaking.manager.default_voice()
        if name or not language:
            return name or default, None
        base = language.replace("_", "-").split("-")[0].lower()
        engine = self.speaking.manager.current
        if engine is not None and base in {tag.split("-")[0].lower() for tag in engine.info.languages}:
            return default, language.replace("_", "-")
        known = [voice.id for voice in self._voices.all() if voice.language.split("-")[0].lower() == base]
        return (default if not known or default in known else known[0]), None

    def count(self, error: SpeechError | None) -> None:
        """Count a text in the metrics. error: why it could not be spoken; None = it was spoken."""
        status = 200 if error is None else status_of(error) if isinstance(error, RequestError) else 503
        self.speaking.metrics.request(ROUTE, status)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("refused a Wyoming connection, because there are too many", limit=MAX_CONNECTIONS)
            writer.close()
            return
        _keep_alive(writer.get_extra_info("socket"))
        connection = _Connection(self, reader, writer, live_session(self.speaking))
        connection.task = asyncio.create_task(connection.run(), name="wyoming connection")
        self._connections.add(connection)
        began_s = time.monotonic()
        try:
            await connection.task
        except Exception:
            log.exception("a Wyoming connection failed with an unexpected error")
        finally:
            self._connections.discard(connection)
            log.info("closed a Wyoming connection", after_s=round(time.monotonic() - began_s, 1))

    async def _announce(self) -> None:
        """Announce the server in the local network (DNS-SD). An error is logged and not raised."""
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf  # noqa: PLC0415 - an extra

        try:
            addresses = await asyncio.to_thread(_own_addresses, self.host)
            self._announced = AsyncZeroconf()
            service = AsyncServiceInfo(_SERVICE, f"{self._name}.{_SERVICE}", parsed_addresses=addresses, port=self.port)
            await self._announced.async_register_service(service, allow_name_change=True)
        except Exception as error:  # noqa: BLE001 - the library raises errors of many kinds
            log.warning("The Wyoming server is not announced in the local network: %s", error or type(error).__name__)
        else:
            log.info("announced the Wyoming server in the local network", name=service.name, addresses=addresses)


def _own_addresses(host: str) -> list[str]:
    """Return the addresses at which other machines reach a server that listens on `host`. Raises OSError."""
    import ifaddr  # noqa: PLC0415 - a dependency of zeroconf

    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    if any(ipaddress.ip_address(address).is_unspecified for address in found):
        every = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]
        return [address for address in every if not ipaddress.ip_address(address).is_loopback] or every
    return sorted(found)


def _keep_alive(connection: socket.socket) -> None:
    """Make the kernel close the connection if the machine of the client is gone."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
