"""uvicorn's HTTP protocol, extended: it limits request headers, and supports HTTP/1.0 clients and clients that offer an
upgrade.

Without limits on headers, a client could fill the memory with endless headers. A few hundred clients that send their
headers very slowly could use up all connections. A route can send an error response before the request has ended; the
limits also apply to the data that arrives after such a response. `middleware.BodyLimit` limits request bodies.

uvicorn's own protocol drops the body of a request that offers an upgrade such as `Upgrade: h2c`. Java's HTTP client
offers this upgrade by default. This protocol ignores each upgrade that the server does not support, as RFC 9110 allows.
uvicorn also sends chunked responses to HTTP/1.0 clients, which do not support them. To HTTP/1.0 clients, this protocol
sends plain bytes until the connection closes.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from app.api.errors import envelope

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_log = logging.getLogger("app.sockets.protocol")
_log.setLevel(logging.WARNING)

# If the buffer of a TLS connection has more unsent bytes than this, the answer waits for its client. asyncio's default
# for TLS is 512 KiB, which is 11 seconds of audio in addition to the kernel's send buffer.
TLS_BUFFER_BYTES = 64 << 10
# The size of the kernel's send buffer for a connection. By default the buffer grows to megabytes, which is minutes of
# audio. A client that reads at playback speed needs minutes to make space in such a buffer, so the server would
# disconnect this client (TTS_READER_TIMEOUT_S). If the client disconnects, the audio in the send buffer was generated
# for nothing.
SEND_BUFFER_BYTES = 128 << 10
# Key in the state of a WebSocket. Its value is a function that drops the unsent data and closes the connection.
ABORT = "abort"
# Key in the state of a request. The key exists if the server has begun its graceful shutdown.
STOPPING = "stopping"
MAX_HEAD_BYTES = 64 << 10  # the largest size of the headers of a request, as in uvicorn's h11 protocol
# The ends of the paths of the WebSocket routes.
SOCKET_PATHS = (
    b"/realtime",
    b"/stream-input",
    b"/multi-stream-input",
    b"/audio/speech/stream",
)
# The server sends pings to the client of a WebSocket, and waits PING_S seconds before each ping. It closes the
# WebSocket if the client shows no sign of life in the PING_S seconds after a ping. Both times are at most a third of
# TTS_READER_TIMEOUT_S.
PING_S = 20.0
# When the server closes a WebSocket because its client shows no sign of life, or because the server stops, it sends the
# last data for at most CLOSE_S seconds, and then drops the unsent data.
CLOSE_S = 1.0
MAX_MESSAGE_BYTES = 16 << 20  # limit of a WebSocket message; OpenAI allows 15 MiB of audio in one event
_HEAD_TOO_LARGE = f"The headers of the request are larger than {MAX_HEAD_BYTES} bytes. Send fewer or shorter headers."
# Headers that offer an upgrade. If the upgrade of a request is ignored, these headers are removed from the request.
_UPGRADE_HEADERS = frozenset({b"upgrade", b"connection", b"http2-settings"})
# Values of the socket option SO_LINGER. The first value sets its timeout to 0 s: closing the connection sends a reset,
# so that the client reports an error. The second value is the default of the system.
_RESET_ON_CLOSE, _CLOSE_NORMALLY = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
_BYTES_ACKED = 120  # offset in bytes of tcpi_bytes_acked in the struct tcp_info of Linux
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """Return the value for uvicorn's option `http`. head_timeout_s: seconds in which request headers must arrive."""
    # With DEV_MODE uvicorn pickles the returned class and sends it to another process. A class that is defined inside
    # this function could not be pickled.
    return cast("type[asyncio.Protocol]", partial(_LimitedProtocol, head_timeout_s=head_timeout_s))


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with its own check for silent clients, and without uvicorn's log.

    uvicorn's log would contain the query strings of requests.

    uvicorn sends a ping and closes the connection if no pong arrives. This check has two faults. A client that reads
    at the speed of playback answers the ping late, because it reads the audio before the ping. And a connection with
    unsent data is not closed before the client has read the data. So this protocol disconnects a client only if the
    client has neither sent nor received any data since the ping. It then drops the unsent data.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _log
        self._has_received = False  # whether data was received since the last call of `_has_progress`
        self._acknowledged_bytes = 0  # the number of acknowledged bytes at the last call of `_has_progress`

    def data_received(self, data: bytes) -> None:
        self._has_received = True
        super().data_received(data)

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:
            self.scope["state"][ABORT] = self.transport.abort

    def send_keepalive_ping(self) -> None:
        self._has_progress()
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        # If reading is paused, a pong may have arrived that is not read yet.
        if not self.close_sent and (self._has_progress() or self.read_paused):
            self.pong_timer = self.loop.call_later(self.ping_timeout or 0, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self.loop.call_later(CLOSE_S, self.transport.abort)

    def shutdown(self) -> None:
        if self.handshake_complete and self.conn.state is not State.OPEN:
            self.close_sent = True  # the client is closing the connection; a further close frame would be an error
        super().shutdown()
        self.loop.call_later(CLOSE_S, self.transport.abort)  # the client may never read the unsent data

    def _has_progress(self) -> bool:
        """Return whether data was received, or sent data was acknowledged, since the last call."""
        received, self._has_received = self._has_received, False
        before = self._acknowledged_bytes
        self._acknowledged_bytes = _acknowledged_bytes(self.transport.get_extra_info("socket"))
        return received or self._acknowledged_bytes > before

    async def send(self, message: Any) -> None:
        await super().send(message)
        # `close_sent` is also set after a refused handshake. Without the next line, uvicorn would then log an error.
        if self.close_sent:
            self.handshake_complete = True


def _acknowledged_bytes(connection: socket.socket | None) -> int:
    """Return how many bytes the other side of a TCP connection has acknowledged; 0 if the system does not report it."""
    if connection is None or not hasattr(socket, "TCP_INFO") or connection.family == socket.AF_UNIX:
        return 0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
    return int.from_bytes(info[_BYTES_ACKED : _BYTES_ACKED + 8], sys.byteorder)


class _LimitedProtocol(HttpToolsProtocol):
    """Handles one connection. Closes it with an error response if the headers are too large or arrive too slowly."""

    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        # The number of bytes received since the parser last completed the headers, a part of the body, or the request.
        self._held_bytes = 0
        self._in_head = True
        self._rejected = False
        self._upgraded = False  # whether the connection is a WebSocket now
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if transport.get_extra_info("sslcontext") is not None:
            transport.set_write_buffer_limits(TLS_BUFFER_BYTES)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            return
        self._held_bytes += len(data)
        self._parse(data)
        if self._held_bytes > MAX_HEAD_BYTES:
            self._reject(431, _HEAD_TOO_LARGE, "head_too_large")
        elif self._timer is None and (self._in_head or self._idle) and not self._upgraded:
            self._set_timer()

    def _parse(self, data: bytes) -> None:
        """Pass data to the parser. This method replaces uvicorn's `data_received`, which stops if a request offers an
        upgrade.
        """
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            if self._upgrades:
                self._upgraded = True
                self._unset_timer()
                self.handle_websocket_upgrade()
            elif self._offers_upgrade:
                self._ignore_upgrade(data[stopped.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    @property
    def _offers_upgrade(self) -> bool:
        """Return whether the parser has stopped after the headers because they offer an upgrade."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    @property
    def _upgrades(self) -> bool:
        """Return whether this request becomes a WebSocket."""
        return self._offers_upgrade and self._should_upgrade()

    def _should_upgrade(self) -> bool:
        offered = b",".join(value for name, value in self.headers if name == b"upgrade").lower().split(b",")
        return (
            self._should_upgrade_to_ws()
            and self.parser.get_method() == b"GET"
            and b"websocket" in [token.strip() for token in offered]
            # Any other route ignores the upgrade and answers over HTTP.
            and self.url.partition(b"?")[0].rstrip(b"/").endswith(SOCKET_PATHS)
        )

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again without the headers that offer an upgrade. rest: the data after the headers."""
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        head += [name + b": " + value for name, value in self.headers if name not in _UPGRADE_HEADERS]
        offered = b",".join(value for name, value in self.headers if name == b"connection").split(b",")
        # Remove only `upgrade` from the header Connection: other options, such as `close` and `keep-alive`, stay valid.
        kept = [token.strip() for token in offered if token.strip().lower() not in _UPGRADE_HEADERS]
        head += [b"Connection: " + b", ".join(kept)] if kept else []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # uvicorn sets this option, too
        self._parse(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def shutdown(self) -> None:
        """Begin a graceful shutdown. Set STOPPING, so that a response that would not end by itself can end."""
        super().shutdown()
        if self.cycle is not None:
            self.cycle.scope["state"][STOPPING] = True

    def on_headers_complete(self) -> None:
        self._held_bytes = 0
        self._in_head = False
        self._unset_timer()
        # If all headers arrive together, the parser calls this method before data_received compares their size with the
        # limit. So compare the size of the headers here too.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._reject(431, _HEAD_TOO_LARGE, "head_too_large")
        elif not self._rejected and (self._upgrades or not self._offers_upgrade):
            super().on_headers_complete()
            if self.parser.get_http_version() == "1.0" and self.cycle is not None:
                self._send_without_chunks(self.cycle)

    def _send_without_chunks(self, cycle: RequestResponseCycle) -> None:
        """Make uvicorn send a response of unknown length as plain bytes that end when the connection closes.

        If such a response is incomplete, the connection is reset. Without the reset, the client would treat the
        response as complete.
        """
        send = cycle.send
        connection = self.transport.get_extra_info("socket")
        length_unknown = False

        def set_linger(value: bytes) -> None:
            if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)

        async def send_plain(message: Any) -> None:
            nonlocal length_unknown
            if message["type"] == "http.response.start":
                length_unknown = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if length_unknown:
                    cycle.chunked_encoding = False
                    set_linger(_RESET_ON_CLOSE)
            elif length_unknown:
                cycle.expected_content_length = len(message.get("body", b""))
                if not message.get("more_body", False):
                    set_linger(_CLOSE_NORMALLY)
            await send(message)

        cycle.send = send_plain  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        self._held_bytes = 0
        if not self._rejected:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._held_bytes = 0
        if self._offers_upgrade and not self._upgrades:
            return  # _ignore_upgrade parses the request again
        self._in_head = True
        self._unset_timer()
        if not self._rejected:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._reject(400, f"{msg} Send a valid HTTP/1.1 request.", "invalid_http")

    @property
    def _idle(self) -> bool:
        """Whether no response is being sent."""
        return self.cycle is None or self.cycle.response_complete

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(self._head_timeout_s, self._timed_out)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if not self._idle:  # the client has sent the next request while it still receives a response
            self._set_timer()
        elif self._in_head and self._held_bytes:
            message = (
                f"The headers of the request took longer than {self._head_timeout_s:g} s (TTS_READ_TIMEOUT_S). "
                "Send the request again."
            )
            self._reject(408, message, "request_timeout")
        else:
            self.transport.close()

    def _cancel_unanswered(self) -> bool:
        """Cancel a request whose body is incomplete and whose response has not started. Return whether such a request
        exists.

        The route of a cancelled request can't send a response any more.
        """
        cycle = self.cycle
        if cycle is None or self.pipeline or cycle.response_started or not cycle.more_body:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _reject(self, status: int, message: str, code: str) -> None:
        """Send an error response, unless another response is being sent, and close the connection."""
        if self._rejected:
            return
        self._rejected = True
        self._unset_timer()
        if (self._idle or self._cancel_unanswered()) and not self.transport.is_closing():
            body = json.dumps(envelope(message, status=status, code=code)).encode()
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
