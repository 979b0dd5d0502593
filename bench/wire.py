"""A small HTTP and WebSocket client for benchmarks. The client records when data arrives, and needs little CPU time.

The client runs on the same machine as the measured server, so CPU time of the client slows down the server. The client
needs a tenth of the CPU time of an HTTP library. A connection carries one request at a time and is reused for later
requests. The library httptools, a dependency of uvicorn, parses HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Heard:
    """One answer: status, headers (names in lower case), body and times. Times are from time.perf_counter().

    pieces: for each part of the body, the time and the number of body bytes received until then. whole: whether the
    body is complete.
    """

    begun_s: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    pieces: list[tuple[float, int]] = field(default_factory=list)
    ended_s: float = 0.0
    whole: bool = False
    on_first: Callable[[], object] = lambda: None  # called when the first bytes of the body arrive


TOLERANCE_S = 0.02  # a listener does not notice a gap in the audio that is shorter than this


def gaps(arrivals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the gaps that a listener hears if playing starts when the first audio arrives.

    arrivals: (time, seconds of audio that have arrived so far). The result has, for each gap, the time of its end and
    its length in seconds.
    """
    found: list[tuple[float, float]] = []
    first_s: float | None = None
    played_s = gap_s = 0.0
    for when_s, audio_s in arrivals:
        if first_s is None:
            first_s = when_s
        elif (dry_s := when_s - first_s - gap_s - played_s) > TOLERANCE_S:
            found.append((when_s, dry_s))
            gap_s += dry_s
        played_s = audio_s
    return found


class Connection(asyncio.Protocol):
    """One connection. `ask` sends a request and waits for the complete answer. `Client` creates the connections."""

    def __init__(self, *, keep_body: bool) -> None:
        self._keep_body = keep_body
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._heard: Heard | None = None
        self._done: asyncio.Future[None] | None = None
        self._received = 0
        self.usable = True

    async def ask(self, request: bytes, heard: Heard) -> None:
        """Send a request and fill `heard`. Raises ConnectionError if the answer is incomplete."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._heard, self._received = heard, 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            heard.ended_s = time.perf_counter()
            if not heard.whole:
                self.close()

    def pause(self) -> None:
        """Stop reading until `resume` is called, to simulate a slow reader."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # ---- methods that asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.connection_lost(ConnectionError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("the connection ended before the end of the answer"))

    # ---- methods that httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._heard is not None
        self._heard.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._heard is not None
        self._heard.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        heard = self._heard
        assert heard is not None
        if not self._received:
            heard.on_first()
        self._received += len(body)
        if self._keep_body:
            heard.body += body
        heard.pieces.append((time.perf_counter(), self._received))

    def on_message_complete(self) -> None:
        assert self._heard is not None
        assert self._done is not None
        self._heard.whole = True
        if not self._parser.should_keep_alive():
            self.close()
        if not self._done.done():
            self._done.set_result(None)


class Client:
    """Opens connections to one server and reuses them. All calls must come from one event loop."""

    def __init__(self, url: str, *, keep_body: bool = True, headers: dict[str, str] | None = None) -> None:
        """url: http://host:port with an optional path, which is put before the path of each request."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{url!r} is not an http:// address")
        self._host, self._port = parts.hostname, parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._keep_body = keep_body
        self._free: list[Connection] = []

    async def connection(self) -> Connection:
        while self._free:
            kept = self._free.pop()
            if kept.usable:
                return kept
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Connection(keep_body=self._keep_body), self._host, self._port)
        return made

    def give_back(self, connection: Connection) -> None:
        if connection.usable:
            self._free.append(connection)

    def request(self, path: str, body: bytes | None = None) -> bytes:
        """Return the bytes of a GET request, or of a POST request with a JSON body."""
        head = (
            f"{'GET' if body is None else 'POST'} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        )
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}{self._extra}\r\n".encode() + (body or b"")

    async def ask(
        self, path: str, body: bytes | None = None, *, on_first: Callable[[], object] = lambda: None
    ) -> Heard:
        """Send a request and return the answer. If the answer is incomplete, `whole` is False.

        on_first: called when the first bytes of the body arrive.
        """
        heard = Heard(time.perf_counter(), on_first=on_first)
        connection = await self.connection()
        try:
            await connection.ask(self.request(path, body), heard)
        except ConnectionError:
            heard.whole = False
        self.give_back(connection)
        return heard

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()


class WebSocket(asyncio.Protocol):
    """One WebSocket. It receives only complete text messages. The frames that it sends have a mask of zeros."""

    def __init__(self, head: bytes, on_message: Callable[[str], None]) -> None:
        """head: the request that opens the WebSocket. on_message: called with each text message."""
        self._head = head
        self._on_message = on_message
        self._data = bytearray()  # received bytes that are not handled yet
        self._transport: asyncio.Transport | None = None
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.close_code: int | None = None

    @classmethod
    async def connect(cls, url: str, on_message: Callable[[str], None]) -> WebSocket:
        """Open a WebSocket. url: http://host:port/path. Raises ConnectionError if the server refuses it."""
        parts = urlsplit(url)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: cls(head.encode(), on_message), parts.hostname or "", parts.port or 80
        )
        await made._open
        return made

    def send(self, text: str) -> None:
        """Send a text message."""
        self._frame(0x1, text.encode())

    def close(self) -> None:
        """Close the connection without a closing handshake."""
        if self._transport is not None:
            self._transport.abort()

    def _frame(self, code: int, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        size = len(data)
        head = bytes([0x80 | code])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += b"\xfe" + size.to_bytes(2, "big")
        else:
            head += b"\xff" + size.to_bytes(8, "big")
        self._transport.write(head + bytes(4) + data)

    # ---- methods that asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open.done():
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._data.startswith(b"HTTP/1.1 101"):
                self._open.set_exception(ConnectionError(bytes(self._data[:300]).decode("latin-1")))
                self.close()
                return
            del self._data[: end + 4]
            self._open.set_result(None)
        while self._take_frame():
            pass

    def _take_frame(self) -> bool:
        """Handle the next frame. Returns False if it has not arrived completely."""
        data = self._data
        if len(data) < 2:
            return False
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return False
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return False
        code, body = data[0] & 0xF, bytes(data[start : start + size])
        del data[: start + size]
        if code == 0x1:
            self._on_message(body.decode())
        elif code == 0x8:
            self.close_code = int.from_bytes(body[:2], "big") if body else None
            self._frame(0x8, body[:2])
        elif code == 0x9:
            self._frame(0xA, body)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        if not self._open.done():
            self._open.set_exception(error or ConnectionError("the connection was closed"))
