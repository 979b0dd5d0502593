"""uvicorn's HTTP protocol with limits on the size and the arrival time of request headers.

Without limits, a client could fill the memory with endless headers, and a few hundred clients that send their headers
very slowly could use up all connections. The limits also apply to data that arrives after an error response that was
sent before the end of the request. `middleware.BodyLimit` limits request bodies.
"""

from __future__ import annotations

import json
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.errors import envelope

if TYPE_CHECKING:
    import asyncio

# The size of the kernel's send buffer for a connection. By default the buffer grows to megabytes, which is minutes of
# audio. A client that reads at playback speed needs minutes to make space in such a buffer, so the server would
# disconnect this client (TTS_READER_TIMEOUT_S). Also, the audio in the buffer is wasted if the client disconnects.
SEND_BUFFER_BYTES = 128 << 10
MAX_HEAD_BYTES = 64 << 10  # uvicorn's h11 protocol has the same limit
_HEAD_TOO_LARGE = f"The headers of the request are larger than {MAX_HEAD_BYTES} bytes. Send fewer or shorter headers."
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """Return the value for uvicorn's option `http`. head_timeout_s: seconds in which request headers must arrive."""
    # With DEV_MODE uvicorn pickles this value and sends it to another process. A class that is defined inside this
    # function could not be pickled.
    return cast("type[asyncio.Protocol]", partial(_LimitedProtocol, head_timeout_s=head_timeout_s))


class _LimitedProtocol(HttpToolsProtocol):
    """Handles one connection. Closes it with an error response if the headers are too large or arrive too slowly."""

    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        # The bytes received since the parser last completed the headers, a part of the body, or the request.
        self._held_bytes = 0
        self._in_head = True
        self._rejected = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            return
        self._held_bytes += len(data)
        super().data_received(data)
        if self._held_bytes > MAX_HEAD_BYTES:
            self._reject(431, _HEAD_TOO_LARGE, "head_too_large")
        elif self._timer is None and (self._in_head or self._idle):
            self._set_timer()

    def on_headers_complete(self) -> None:
        self._held_bytes = 0
        self._in_head = False
        self._unset_timer()
        # If all headers arrive together, the parser calls this before data_received compares their size with the limit.
        # So compare the size here too.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._reject(431, _HEAD_TOO_LARGE, "head_too_large")
        elif not self._rejected:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._held_bytes = 0
        if not self._rejected:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._held_bytes = 0
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

    def _reject(self, status: int, message: str, code: str) -> None:
        """Send an error response, unless another response is being sent, and close the connection."""
        if self._rejected:
            return
        self._rejected = True
        self._unset_timer()
        if self._idle and not self.transport.is_closing():
            body = json.dumps(envelope(message, status=status, code=code)).encode()
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
