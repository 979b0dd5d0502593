"""What a connection may do before there is a request: uvicorn's protocol, with the limits that it has not.

uvicorn takes heads of any size and waits for them for ever: one connection could fill the memory, and some hundreds
that trickle take up all there may be. Here a head is bounded in bytes and in time, and so is what comes after an answer
that was early. How fast a body must come, `access.BodyLimit` decides. Knows no routes.
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

# Bytes of an answer that the kernel may hold. Its default grows to megabytes, which is minutes of audio: a client that
# reads as fast as it plays would seem to read nothing for minutes (TTS_READER_TIMEOUT_S), and the audio made meanwhile
# would be lost when it leaves.
SEND_BUFFER_BYTES = 128 << 10
MAX_HEAD_BYTES = 64 << 10  # as in uvicorn's other protocol, h11, where it has this limit
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """For uvicorn's `http`. head_timeout_s: within which the head of a request must be here."""
    # Not a class made here: with DEV_MODE it goes to another process, by its name.
    return cast("type[asyncio.Protocol]", partial(_Wire, head_timeout_s=head_timeout_s))


class _Wire(HttpToolsProtocol):
    def __init__(self, *args: Any, head_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout_s = head_timeout_s
        self._held_bytes = 0  # read since the parser last had something whole: a head, a piece of a body, an end
        self._in_head = True
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        listening = transport.get_extra_info("socket")
        if listening is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._held_bytes += len(data)
        super().data_received(data)
        if self._held_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.", "head_too_large")
        elif self._timer is None and (self._in_head or self._answered):
            self._set_timer()

    def on_headers_complete(self) -> None:
        self._held_bytes = 0
        self._in_head = False
        self._unset_timer()
        # Counted here as well, since what came in one piece was not held.
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.", "head_too_large")
        elif not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._held_bytes = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._held_bytes = 0
        self._in_head = True
        self._unset_timer()
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, f"{msg} Send HTTP/1.1.", "invalid_http")

    @property
    def _answered(self) -> bool:
        """Whether no answer is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(self._head_timeout_s, self._late)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if not self._answered:  # the next request of a caller who still listens to the answer before it
            self._set_timer()
        elif self._in_head and self._held_bytes:
            message = f"The head of the request took longer than {self._head_timeout_s:g} s (TTS_READ_TIMEOUT_S)."
            self._refuse(408, message, "request_timeout")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Say why, unless an answer is under way, and close."""
        if self._refused:
            return
        self._refused = True
        self._unset_timer()
        if self._answered and not self.transport.is_closing():
            body = json.dumps(envelope(message, status=status, code=code)).encode()
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
