"""The Wyoming protocol over real sockets: the sequences of Home Assistant, several connections, and bad input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeTextFormat,
    SynthesizeVoice,
)

from app.api import wyoming as protocol
from app.api.auth import Gate
from app.api.speaking import Speaking
from app.api.wyoming import WyomingServer, info_event
from app.keys import KeyFile, KeyRing
from app.types import Voice
from app.wiring import core_services
from tests.support.live import LONG, free_port, serving, settings, wait_until
from tests.support.scripted_runner import info as engine_info

with warnings.catch_warnings():  # this module of the library imports a module that Python 3.13 lacks
    warnings.simplefilter("ignore", DeprecationWarning)
    from wyoming.audio import AudioChunk, AudioStart
    from wyoming.info import Describe, Info

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

TEXT = "Hello there my friend. It costs $3.50 today, as always. And how are you doing?"


class Server:
    def __init__(self, url: str, port: int) -> None:
        self.url = url
        self.port = port

    def speech(self, text: str = TEXT, **fields: Any) -> bytes:
        body = {"input": text, "voice": "alloy", "response_format": "pcm", "cache": False, **fields}
        return httpx.post(f"{self.url}/v1/audio/speech", json=body, timeout=60).content

    def is_free(self) -> bool:
        return not httpx.get(f"{self.url}/health").json()["rows"]["active"]

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncTcpClient]:
        async with AsyncTcpClient("127.0.0.1", self.port, read_timeout=60) as client:
            yield client

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    data = tmp_path_factory.mktemp("data")
    with serving(data, TTS_OUTBOX_S=0.5, TTS_WYOMING=f"tcp://127.0.0.1:{port}", TTS_MAX_INPUT_CHARS=20_000) as url:
        yield Server(url, port)


async def send(client: AsyncTcpClient, *events: Any) -> None:
    for event in events:
        await client.write_event(event if isinstance(event, Event) else event.event())


async def read(client: AsyncTcpClient) -> Event | None:
    return await client.read_event()


async def until(client: AsyncTcpClient, kind: str) -> list[Event]:
    """Return all events up to the first one of this kind."""
    events: list[Event] = []
    while not events or events[-1].type != kind:
        event = await read(client)
        assert event is not None, [each.type for each in events]
        events.append(event)
    return events


async def until_closed(client: AsyncTcpClient) -> list[Event]:
    events = []
    while (event := await read(client)) is not None:
        events.append(event)
    return events


def audio_of(events: list[Event]) -> bytes:
    return b"".join(AudioChunk.from_event(event).audio for event in events if AudioChunk.is_type(event.type))


def kinds(events: list[Event]) -> list[str]:
    """Return the types of the events, with one entry for consecutive chunks."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event.type:
            found.append(event.type)
    return found


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


# ---- the sequences of Home Assistant


async def test_info_has_all_voices_with_languages(server: Server) -> None:
    async with server.client() as client:
        await send(client, Describe())
        events = await until(client, "info")
    info = Info.from_event(events[-1])
    assert not [*info.asr, *info.handle, *info.intent, *info.wake, *info.mic, *info.snd]
    [program] = info.tts
    assert program.installed
    assert program.supports_synthesize_streaming
    assert all(voice.installed and voice.languages for voice in program.voices)
    listed = (await in_thread(httpx.get, f"{server.url}/v1/audio/voices")).json()["voices"]
    assert [voice.name for voice in program.voices] == [voice["id"] for voice in listed]
    assert "de" in program.voices[0].languages
    assert "en-GB" in program.voices[0].languages


async def test_text_gives_the_audio_of_a_speech_request_and_one_stop_event(server: Server) -> None:
    """Home Assistant reads until the first audio-stop."""
    async with server.client() as client:
        await send(client, Synthesize(TEXT, SynthesizeVoice("echo")))
        events = await until(client, "audio-stop")
        assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop"]
        assert audio_of(events) == await in_thread(lambda: server.speech(voice="echo"))
        start = AudioStart.from_event(events[0])
        assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
        chunks = [AudioChunk.from_event(event) for event in events[1:-1]]
        assert all((chunk.rate, chunk.width, chunk.channels) == (24_000, 2, 1) for chunk in chunks)
        samples = 0
        for chunk in chunks:
            assert chunk.timestamp == samples * 1000 // 24_000
            samples += chunk.samples
        await send(client, Ping("next"))
        assert Pong.from_event((await until(client, "pong"))[0]).text == "next"


async def test_text_in_parts_of_home_assistant(server: Server) -> None:
    """The whole text comes again before the end, and must not be spoken twice."""
    async with server.client() as client:
        await send(client, SynthesizeStart(SynthesizeVoice("alloy")))
        words = TEXT.split(" ")
        for word in words[:8]:
            await send(client, SynthesizeChunk(f"{word} "))
        # the speech of the first sentence begins before the rest of the text arrives
        first = [await read(client), await read(client)]
        assert [event.type for event in first if event] == ["audio-start", "audio-chunk"]
        await send(client, SynthesizeChunk(" ".join(words[8:])), Synthesize(TEXT), SynthesizeStop())
        events = [event for event in first if event] + await until(client, "synthesize-stopped")
        assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
        assert audio_of(events) == await in_thread(server.speech)
        await send(client, Ping("x"))
        assert kinds(await until(client, "pong")) == ["pong"]


@pytest.mark.parametrize("size", [1, 3, 1_000])
async def test_text_in_parts_of_any_size(server: Server, size: int) -> None:
    async with server.client() as client:
        parts = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
        await send(client, SynthesizeStart(), *map(SynthesizeChunk, parts), Synthesize(TEXT), SynthesizeStop())
        assert audio_of(await until(client, "synthesize-stopped")) == await in_thread(server.speech)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\u200b", "<br>", "<think>Not this.</think>"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_text_without_words_is_silence(server: Server, text: str, streaming: bool) -> None:
    async with server.client() as client:
        if streaming:
            await send(client, SynthesizeStart(), SynthesizeChunk(text), SynthesizeStop())
        else:
            await send(client, Synthesize(text))
        events = await until(client, "synthesize-stopped" if streaming else "audio-stop")
        assert audio_of(events)  # Home Assistant makes a file of it
        assert not any(audio_of(events))
        assert kinds(events)[:3] == ["audio-start", "audio-chunk", "audio-stop"]
        await send(client, Synthesize("Hello."))
        assert audio_of(await until(client, "audio-stop"))


@pytest.mark.parametrize(
    ("voice", "expected"),
    [
        ({"name": "echo"}, {"voice": "echo"}),
        ({"name": "Echo", "speaker": "ignored"}, {"voice": "echo"}),
        ({"name": None}, {}),
        ({"name": ""}, {}),
        ({"language": "de"}, {"language": "de"}),
        ({"language": "de_DE"}, {"language": "de-DE"}),
        ({"language": "xx"}, {}),
        ({"name": "nova", "language": "de"}, {"voice": "nova"}),
        ({}, {}),
        (None, {}),
    ],
)
async def test_voices_are_found_by_name_and_language(
    server: Server, voice: dict[str, Any] | None, expected: dict[str, str]
) -> None:
    async with server.client() as client:
        await send(client, Event("synthesize", {"text": "Das ist gut.", "voice": voice}))
        audio = audio_of(await until(client, "audio-stop"))
    assert audio == await in_thread(lambda: server.speech("Das ist gut.", **expected))


async def test_ssml_is_spoken_without_its_tags(server: Server) -> None:
    text = "<speak>Hello <emphasis>there</emphasis>.</speak>"
    async with server.client() as client:
        await send(client, Synthesize(text, text_format=SynthesizeTextFormat.SSML))
        assert audio_of(await until(client, "audio-stop")) == await in_thread(server.speech, "Hello there.")


# ---- several texts and connections


async def test_texts_of_a_connection_are_spoken_one_after_the_other(server: Server) -> None:
    texts = ["One is here.", "Two is here.", "Three is here."]
    async with server.client() as client:
        await send(client, *map(Synthesize, texts))
        for text in texts:
            assert audio_of(await until(client, "audio-stop")) == await in_thread(server.speech, text)


async def test_too_many_texts_are_an_error(server: Server) -> None:
    async with server.client() as client:
        await send(client, *(Synthesize(LONG[:15_000]) for _ in range(protocol.MAX_WAITING + 1)))
        assert (await until_closed(client))[-1].type == "error"
    await in_thread(wait_until, server.is_free)


async def test_connections_speak_at_the_same_time(server: Server) -> None:
    async def speak(number: int) -> bytes:
        async with server.client() as client:
            await send(client, Describe(), Synthesize(f"This is number {number}."))
            return audio_of(await until(client, "audio-stop"))

    found = await asyncio.gather(*map(speak, range(12)))
    for number, audio in enumerate(found):
        assert audio == await in_thread(server.speech, f"This is number {number}.")


async def test_ping_is_answered_during_the_speech(server: Server) -> None:
    async with server.client() as client:
        await send(client, Synthesize(LONG[:10_000]))
        await until(client, "audio-chunk")
        await send(client, Ping("now"), Describe())
        events = await until(client, "info")
        assert "pong" in kinds(events)
        assert "audio-stop" not in kinds(events)


async def test_new_start_cancels_a_text_that_still_arrives(server: Server) -> None:
    async with server.client() as client:
        await send(client, SynthesizeStart(), SynthesizeChunk("This is not spoken. " * 200))
        await until(client, "audio-chunk")
        await send(client, SynthesizeStart(), SynthesizeChunk("But this is."), SynthesizeStop())
        await until(client, "synthesize-stopped")
        assert audio_of(await until(client, "synthesize-stopped")) == await in_thread(server.speech, "But this is.")


# ---- clients that leave or do not read


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_disconnected_wyoming_client_frees_its_row(server: Server, how: str, streaming: bool) -> None:
    with server.raw() as raw:
        text = LONG[:15_000]
        if streaming:
            raw.sendall(b'{"type": "synthesize-start"}\n' + line("synthesize-chunk", text=text))
        else:
            raw.sendall(line("synthesize", text=text))
        await in_thread(raw.recv, 1000)
        await in_thread(wait_until, lambda: not server.is_free())
        if how == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half":
            raw.shutdown(socket.SHUT_WR)
            await in_thread(wait_until, server.is_free)
        else:
            raw.close()
            await in_thread(wait_until, server.is_free)


async def test_wyoming_client_that_reads_no_data_is_disconnected(tmp_path: Path) -> None:
    port = free_port()
    options = {"TTS_OUTBOX_S": 0.5, "TTS_READER_TIMEOUT_S": 1, "TTS_WYOMING": f"tcp://127.0.0.1:{port}"}
    with serving(tmp_path, **options) as url:
        server = Server(url, port)
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            raw.connect(("127.0.0.1", port))
            raw.sendall(line("synthesize", text=LONG))
            await in_thread(wait_until, lambda: not server.is_free())
            async with server.client() as other:  # the others are served
                await send(other, Synthesize("Hello."))
                assert audio_of(await until(other, "audio-stop"))
            await in_thread(wait_until, server.is_free)


async def test_event_that_does_not_arrive_completely_closes_the_connection(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, TTS_READ_TIMEOUT_S=0.5, TTS_WYOMING=f"tcp://127.0.0.1:{port}") as url:
        server = Server(url, port)
        for start in (b"{", b'{"type": "synthesize", "data_length": 10}\n{"te'):
            with server.raw() as raw:
                raw.sendall(start)
                assert await in_thread(raw.recv, 100) == b""
        async with server.client() as client:  # a connection without a begun event stays open
            await asyncio.sleep(1)
            await send(client, Ping("x"))
            assert await read(client)


async def test_silent_connection_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "IDLE_S", 0.2)
    async with server.client() as client:
        assert await read(client) is None
    async with server.client() as client:  # a text whose end does not come
        await send(client, SynthesizeStart(), SynthesizeChunk("Hello there. "))
        assert "audio-stop" not in kinds(await until_closed(client))
    with server.raw() as raw:  # speech is not silence, also if the client reads slowly
        raw.sendall(line("synthesize", text=LONG[:15_000]))
        for _ in range(4):
            assert await in_thread(raw.recv, 1000)
            await asyncio.sleep(0.2)
        monkeypatch.setattr(protocol, "IDLE_S", 900)
        raw.sendall(line("ping", text="x"))
    await in_thread(wait_until, server.is_free)


# ---- bad input


def line(kind: str, **data: Any) -> bytes:
    return json.dumps({"type": kind, "data": data}).encode() + b"\n"


BAD = [
    b"\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\n\r\n" + line("synthesize", text="Hello."),
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b"\xff\xfe\x00\n",
    b"null\n",
    b"[]\n",
    b'"describe"\n',
    b"{}\n",
    b'{"type": 1}\n',
    b'{"type": null}\n',
    b'{"type": "describe", "data": []}\n',
    b'{"type": "describe", "data_length": -1}\n',
    b'{"type": "describe", "data_length": "1"}\n1',
    b'{"type": "describe", "data_length": true}\n1',
    b'{"type": "describe", "data_length": 1.5}\n11',
    b'{"type": "describe", "data_length": 99999999999}\n',
    b'{"type": "describe", "payload_length": 99999999999}\n',
    b'{"type": "describe", "data_length": 2}\n[]',
    b'{"type": "describe", "data_length": 2}\n\xff\xff',
    b"[" * 60_000 + b"\n",
    b'{"type": "describe", "x": "' + b"a" * 70_000 + b'"}\n',
    line("synthesize"),
    line("synthesize", text=1),
    line("synthesize", text=None),
    line("synthesize", text=["a"]),
    line("synthesize", text="a", voice="alloy"),
    line("synthesize", text="a", voice={"name": 1}),
    line("synthesize", text="a", voice={"language": []}),
    line("synthesize", text="a", voice={"name": "nobody"}),
    line("synthesize", text="a", voice={"name": "x" * 5000}),
    line("synthesize", text="a " * 20_000),
    line("synthesize-chunk", text="a"),
    line("synthesize-start", voice=1),
    line("synthesize-start", voice={"name": "nobody"}) + line("synthesize-chunk", text="Hello there. ") * 2,
    line("synthesize-start") + line("synthesize-chunk"),
    line("synthesize-start") + line("synthesize-chunk", text={}),
    line("synthesize-start") + line("synthesize-chunk", text="a " * 20_000),
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
async def test_bad_input_is_an_error_event_and_closes_the_connection(server: Server, bad: bytes) -> None:
    with server.raw() as raw:
        raw.sendall(bad)
        received = await in_thread(raw.makefile("rb").read)
    found = [json.loads(part) for part in received.split(b"\n")[:1]]
    assert found[0]["type"] == "error", received[:300]
    message = json.loads(received.split(b"\n", 1)[1])
    assert message["text"]
    async with server.client() as client:
        await send(client, Synthesize("Hello."))
        assert audio_of(await until(client, "audio-stop"))


async def test_unknown_events_are_ignored(server: Server) -> None:
    async with server.client() as client:
        await send(
            client,
            Event("select-program", {"name": "tts-server"}),
            Event("transcribe", {"language": "en"}),
            Event("audio-chunk", {"rate": 16000}, b"\0" * 200_000),
            Event("x" * 1000),
            Ping(),
        )
        assert kinds(await until(client, "pong")) == ["pong"]


async def test_stop_event_without_a_start_is_answered(server: Server) -> None:
    async with server.client() as client:
        await send(client, SynthesizeStop())
        assert SynthesizeStopped.is_type((await until(client, "synthesize-stopped"))[0].type)
        await send(client, SynthesizeStart(), SynthesizeChunk("Hello."), SynthesizeStop(), SynthesizeStop())
        assert audio_of(await until(client, "synthesize-stopped"))  # the event comes after the speech


async def test_random_bytes_never_end_the_server(server: Server) -> None:
    rng = random.Random(5)
    good = [
        line("describe"),
        line("ping", text="x"),
        line("synthesize", text="Hi there."),
        line("synthesize-start"),
        line("synthesize-chunk", text="Hello you. "),
        line("synthesize-stop"),
    ]
    for _ in range(60):
        data = bytearray(b"".join(rng.choices(good, k=4)))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with server.raw() as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                await in_thread(raw.makefile("rb").read)
    await in_thread(wait_until, server.is_free)
    async with server.client() as client:
        await send(client, Synthesize("Hello."))
        assert audio_of(await until(client, "audio-stop"))


async def test_too_many_connections_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    async with server.client() as one, server.client() as two:
        await send(one, Ping())
        await send(two, Ping())
        assert await read(one)
        assert await read(two)
        async with server.client() as three:
            assert await read(three) is None


async def test_texts_are_counted(server: Server) -> None:
    def counts() -> str:
        return httpx.get(f"{server.url}/metrics").text

    async with server.client() as client:
        await send(client, Synthesize("Hello."))
        await until(client, "audio-stop")
    assert 'tts_requests_total{route="wyoming",status="200"}' in await in_thread(counts)
    async with server.client() as client:
        await send(client, Synthesize("Hello.", SynthesizeVoice("nobody")))
        await until_closed(client)
    assert 'tts_requests_total{route="wyoming",status="400"}' in await in_thread(counts)


# ---- start and stop


@contextlib.asynccontextmanager
async def listening(folder: Path, uri: str, name: str = "") -> AsyncIterator[WyomingServer]:
    config = settings(folder)
    services = core_services(config)
    speaking = Speaking(services.generator, services.manager, services.metrics, max_input_chars=1000, log_texts=False)
    gate = Gate(KeyRing([], KeyFile(folder)), services.metrics)
    async with (
        services.manager,
        WyomingServer(speaking, services.voices, gate, uri, name=name, send_timeout_s=5, read_timeout_s=5) as server,
    ):
        await services.manager.settled()
        yield server
    services.word_timer.close()


async def test_port_is_closed_with_the_server(tmp_path: Path) -> None:
    async with listening(tmp_path, "tcp://127.0.0.1:0") as server:
        idle = await asyncio.open_connection("127.0.0.1", server.port)
        client = AsyncTcpClient("127.0.0.1", server.port, read_timeout=60)
        await client.connect()
        await send(client, Synthesize("Hello there, this is spoken to its end."))
        await until(client, "audio-start")
    assert "audio-stop" in kinds(await until_closed(client))  # running speech ends
    assert await idle[0].read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await client.disconnect()
    idle[1].close()


async def test_occupied_port_prevents_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with listening(tmp_path, f"tcp://127.0.0.1:{taken.getsockname()[1]}"):
            pass


async def test_server_is_announced_in_the_local_network(tmp_path: Path) -> None:
    zeroconf = pytest.importorskip("zeroconf")
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

    found = asyncio.Event()
    names: list[str] = []

    def changed(service_type: str, name: str, **_: Any) -> None:
        names.append(name)
        if name.startswith("Kitchen voice"):
            found.set()

    async with AsyncZeroconf() as here, listening(tmp_path, "tcp://0.0.0.0:0", "Kitchen voice") as server:
        browser = AsyncServiceBrowser(here.zeroconf, "_wyoming._tcp.local.", handlers=[changed])
        try:
            async with asyncio.timeout(20):
                await found.wait()
        except TimeoutError:
            pytest.skip("this network has no multicast")
        name = next(name for name in names if name.startswith("Kitchen voice"))
        service = zeroconf.asyncio.AsyncServiceInfo("_wyoming._tcp.local.", name)
        assert await service.async_request(here.zeroconf, 5000)
        assert service.port == server.port
        assert service.parsed_addresses()
        assert not service.properties
        await browser.async_cancel()


def test_voices_that_the_engine_cannot_speak_are_not_listed() -> None:
    voices = [
        Voice("alloy", "Alloy", "preset"),
        Voice("voice_1", "Ann", "cloned", recorded=True),
        Voice("voice_2", "Ben", "cloned", recorded=True, needs_words=True),
    ]

    def names(engine: Any) -> list[str]:
        return [voice["name"] for voice in info_event(voices, engine, "m").data["tts"][0]["voices"]]

    assert names(None) == ["alloy", "voice_1", "voice_2"]
    assert names(engine_info("plain")) == ["alloy"]
