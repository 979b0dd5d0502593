"""WebSocket connections: checks API keys, writes log lines, reads and sends JSON, and limits clients that do not read.

For each protocol, a class handles the messages of one connection, for example in `api/realtime.py`. `browser_checks.py`
checks the web pages that open WebSockets, as it does for HTTP requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from starlette.websockets import WebSocketDisconnect, WebSocketState

from app.api.errors import response_to, status_of
from app.api.http_protocol import ABORT
from app.api.waiting import within
from app.errors import InvalidValue, RequestError, SpeechError

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from app.keys import Key
    from app.metrics import Metrics

log: Any = structlog.get_logger("app.sockets")

IN_THREAD_BYTES = 64 << 10  # a longer message is parsed in a thread
NORMAL, GOING_AWAY, POLICY_VIOLATION, SERVER_ERROR = 1000, 1001, 1008, 1011  # close codes
KEY_CHECK_S = 5.0  # how often the API key of a connection is checked while the client sends nothing
MAX_REASON_BYTES = 123  # the largest size of the reason in a close message (RFC 6455)
# If the unsent replies have more bytes than this, no further message is received until all of them are sent.
MAX_WAITING_BYTES = 1 << 20
MESSAGE_BYTES = 500  # about how much memory a reply takes in addition to its text
_SWITCHING_PROTOCOLS = 101


_Message = dict[str, Any]


class Closed(Exception):
    """The client has closed the connection, or has read nothing for too long."""


@dataclass(slots=True)
class Socket:
    """One accepted connection. Several tasks may send; the task that has created the object receives.

    Messages are sent in the order of the calls. While the client reads nothing, a call of `send` waits, with one
    exception: in the receiving task, `send` puts the message, which is a reply, into a queue and returns. The reason is
    that some clients send all their messages before they read. If the server stopped receiving because of its unsent
    replies, client and server would wait for each other.
    """

    connection: WebSocket
    key: Key | None  # the API key of the caller; None = the server has no keys
    send_timeout_s: float
    stuck: bool = False  # whether a message could not be sent in time, because the client read nothing
    _task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while a message is sent
    # The unsent replies, and the tasks that must end before the replies after them are sent: see `after`.
    _replies: deque[_Message | set[asyncio.Task[None]]] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _sender: asyncio.Task[None] | None = None  # the task that sends the replies; None = there was no reply yet

    async def receive(self) -> str | bytes:
        """Wait for the next message. Raises Closed."""
        message = await self.connection.receive()
        if message["type"] != "websocket.receive":
            raise Closed
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def receive_json(self) -> dict[str, Any]:
        """Wait for the next message, which must be a JSON object. Raises Closed, InvalidValue."""
        message = await self.receive()
        if isinstance(message, bytes):
            try:
                message = message.decode()
            except UnicodeDecodeError as error:
                raise InvalidValue("The message is not valid UTF-8. Send JSON as text.") from error
        content = await asyncio.to_thread(_parsed, message) if len(message) > IN_THREAD_BYTES else _parsed(message)
        if not isinstance(content, dict):
            raise InvalidValue("A message must be a JSON object.")
        return content

    async def send(self, content: dict[str, Any]) -> None:
        """Send a JSON object. Raises Closed, but not in the receiving task: there the next `receive` raises Closed."""
        text = json.dumps(content, separators=(",", ":"))
        message = {"type": "websocket.send", "text": text}
        if asyncio.current_task() is not self._task:
            await self._send(message)
            return
        self._queue(message)
        self._waiting_bytes += len(text) + MESSAGE_BYTES
        if self._waiting_bytes > MAX_WAITING_BYTES:
            await self.flush()

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message. Waits while the client reads nothing. Raises Closed."""
        await self._send({"type": "websocket.send", "bytes": data})

    def after(self, tasks: set[asyncio.Task[None]]) -> None:
        """Send the next replies only after these tasks have ended. Call this only in the receiving task."""
        self._queue(tasks)

    async def flush(self) -> None:
        """Wait until all replies are sent, or the connection has ended."""
        if self._sender is not None:
            await asyncio.wait({self._sender})

    async def close(self, code: int, reason: str = "") -> None:
        """Close the connection. Does nothing if it is closed."""
        if self.connection.application_state is WebSocketState.CONNECTED:
            await self.flush()
            with contextlib.suppress(Closed):
                text = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
                await self._send({"type": "websocket.close", "code": code, "reason": text})

    def release(self) -> None:
        """Drop the replies that wait. If the client reads nothing, close the connection without its unsent data."""
        if self._sender is not None:
            self._sender.cancel()
        if self.stuck and (abort := self.connection.scope.get("state", {}).get(ABORT)) is not None:
            abort()

    def _queue(self, item: _Message | set[asyncio.Task[None]]) -> None:
        self._replies.append(item)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_replies(), name="socket replies")

    async def _send_replies(self) -> None:
        try:
            while self._replies:
                first = self._replies[0]
                if isinstance(first, set):
                    await asyncio.wait(first)
                    self._replies.popleft()
                    continue
                async with self._turn:  # no other task sends a message between these replies
                    while self._replies and not isinstance(reply := self._replies[0], set):
                        await self._write(reply)
                        self._replies.popleft()
            self._waiting_bytes = 0
        except Closed:  # the next `receive` raises Closed, too
            self._replies.clear()

    async def _send(self, message: _Message) -> None:
        async with self._turn:
            await self._write(message)

    async def _write(self, message: _Message) -> None:
        if self.stuck:
            raise Closed
        try:
            await within(self.send_timeout_s, self.connection.send(message))
        except TimeoutError:
            if not self.stuck:
                self.stuck = True
                log.warning("stopped a WebSocket whose client read nothing", for_s=self.send_timeout_s)
                if self._task is not None and self._task is not asyncio.current_task():
                    self._task.cancel()  # the receiving task waits for a message, which may never arrive
            raise Closed from None
        except (WebSocketDisconnect, RuntimeError, OSError) as error:  # the connection has ended
            raise Closed from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InvalidValue("The message has too many nested lists or objects.") from error
    except ValueError as error:
        raise InvalidValue("The message is not valid JSON.") from error


@contextlib.asynccontextmanager
async def accepted(
    connection: WebSocket,
    check: Callable[[], Key | None],
    metrics: Metrics,
    *,
    send_timeout_s: float,
    subprotocol: str | None = None,
) -> AsyncGenerator[Socket | None]:
    """Check and accept a connection, and write a log line when it has ended. Yields None if it was refused.

    check: returns the API key of the caller, or raises SpeechError; the client then gets an HTTP error.
    """
    route: str = connection.scope["route"].path
    request_id = f"req_{uuid.uuid4().hex}"
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        try:
            key = check()
        except SpeechError as error:
            status = status_of(error) if isinstance(error, RequestError) else 503
            metrics.request(route, status)
            log.info("refused a WebSocket", path=route, status=status)
            await connection.send_denial_response(response_to(error))
            yield None
            return
        if key is not None:
            structlog.contextvars.bind_contextvars(key=key.name)
        await connection.accept(subprotocol=subprotocol, headers=[(b"x-request-id", request_id.encode())])
        metrics.request(route, _SWITCHING_PROTOCOLS)
        began_s = time.monotonic()
        socket = Socket(connection, key, send_timeout_s)
        try:
            yield socket
            await socket.flush()
        except Closed:
            pass
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not socket.stuck or task is None:
                raise
            task.uncancel()
        except Exception:
            log.exception("a WebSocket failed with an unexpected error")
            await socket.close(SERVER_ERROR, "The server failed because of an internal error.")
        finally:
            socket.release()
            log.info("closed a WebSocket", path=route, after_s=round(time.monotonic() - began_s, 1))
            structlog.contextvars.unbind_contextvars("key")
