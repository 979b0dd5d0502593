"""Limits of the HTTP protocol layer: large or slow request heads, slow bodies, and idle connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.api import http_protocol
from app.api.http_protocol import MAX_HEAD_BYTES
from tests.support.live import LONG, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

PATIENCE_S = 0.6
BODY = json.dumps({"input": "Hello."}).encode()
HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(
        tmp_path_factory.mktemp("impatient"),
        TTS_READ_TIMEOUT_S=PATIENCE_S,
        TTS_KEEP_ALIVE_S=1,
        TTS_API_KEYS="a-key-of-patience",
    ) as url:
        yield url


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as raw:
        yield raw


def rest(raw: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := raw.recv(65_536):
            got += data
    return got


def one_response(raw: socket.socket) -> bytes:
    """Return the bytes of one response with a Content-Length. The connection stays open."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += raw.recv(65_536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += raw.recv(65_536)
    assert len(body) == length
    return head + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code(answer: bytes) -> Any:
    error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


SPEECH = json.dumps({"input": "Hello there, you.", "response_format": "wav", "cache": False}).encode()
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"


def post(url: str, head: bytes, body: bytes = SPEECH, *, path: str = "/v1/audio/speech", parts: int = 1) -> bytes:
    """Send a POST with these header lines, split into `parts` parts, and return all bytes of the answer."""
    start = f"POST {path} HTTP/1.1\r\n".encode() if not head.startswith(b"POST") else b""
    with connected(url) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = start + head + b"Host: here\r\nContent-Type: application/json\r\n\r\n" + body
        size = -(-len(data) // parts)
        for begin in range(0, len(data), size):
            raw.sendall(data[begin : begin + size])
            if parts > 1:
                time.sleep(0.01)
        return rest(raw)


def length(body: bytes = SPEECH) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


@pytest.mark.parametrize("parts", [1, 7, 60])
@pytest.mark.parametrize(
    "head",
    [
        H2C,
        b"Connection: upgrade\r\nUpgrade: H2C\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n",
        b"Connection: keep-alive, UPGRADE\r\nUpgrade: TLS/1.3, h2c , websocket\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        b"UPGRADE: foo/2\r\nCONNECTION: Upgrade\r\n",
        b"Upgrade: h2c\r\n",  # without the header `Upgrade`, the request offers no protocol
        b"HTTP2-Settings: AAMAAABk\r\n",
    ],
)
def test_body_of_a_request_that_offers_an_upgrade_is_read(server: str, head: bytes, parts: int) -> None:
    answer = post(server, head + b"Connection: close\r\n" + length(), parts=parts)
    assert status(answer) == 200
    assert b"RIFF" in answer


def test_request_that_offers_an_upgrade_can_have_chunks_and_expect(server: str) -> None:
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (5, SPEECH[:5], len(SPEECH) - 5, SPEECH[5:])
    head = H2C + b"Connection: close\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
    answer = post(server, head, chunks)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert b"RIFF" in answer


def test_connection_that_offered_an_upgrade_stays_open(server: str) -> None:
    """The second request begins in the same packet as the end of the first one."""
    with connected(server) as raw:
        again = b"GET /version HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        raw.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n" + H2C)
        raw.sendall(length() + b"\r\n" + SPEECH + again)
        answer = rest(raw)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.endswith(b"}")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
def test_upgrade_of_a_request_without_a_body_is_ignored(server: str, method: bytes) -> None:
    with connected(server) as raw:
        raw.sendall(method + b" /v1/models HTTP/1.1\r\nHost: here\r\nConnection: close\r\n" + H2C + b"\r\n")
        assert status(rest(raw)) == (200 if method in (b"GET", b"HEAD") else 405)


def test_headers_of_an_offered_upgrade_are_limited(server: str) -> None:
    head = H2C + b"Connection: close\r\nX-Long: " + b"a" * MAX_HEAD_BYTES + b"\r\n"
    assert status(post(server, head + length())) == 431


STREAMS = {
    "/v1/audio/speech": {"input": "Hello there."},
    "/v1/audio/speech/streaming": {"input": "Hello there."},
    "/v1/audio/speech/stream": {"input": "Hello there.", "stream_format": "sse"},
    "/v1/audio/dialogue": {"turns": [{"text": "Hello."}, {"text": "You too."}]},
    "/v1/audio/conversation": {"text": "Hello there."},
    "/v1/voice-cloning/generate": {"text": "Hello there.", "voice_id": "nova"},
    "/v1/voice-cloning/voices/nova/preview": {},
}


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
@pytest.mark.parametrize("path", STREAMS)
def test_http_1_0_client_gets_bytes_without_chunks(server: str, path: str, keep: bytes) -> None:
    body = json.dumps({"response_format": "wav", "cache": False, **STREAMS[path]}).encode()
    answer = post(server, f"POST {path} HTTP/1.0\r\n".encode() + keep + length(body), body)
    head, _, audio = answer.partition(b"\r\n\r\n")
    assert status(answer) == 200
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    if b"event-stream" in head:
        assert audio.startswith(b"data: {")
        assert audio.endswith(b"data: [DONE]\n\n")
    else:
        assert audio[:4] == b"RIFF"
        assert len(audio) > 20_000
        assert (len(audio) - 44) % 2 == 0


def test_http_1_0_client_gets_other_answers(server: str) -> None:
    for target in (b"/", b"/health", b"/static/js/main.js", b"/docs", b"/openapi.json"):
        with connected(server) as raw:
            raw.sendall(b"GET " + target + b" HTTP/1.0\r\n\r\n")
            answer = rest(raw)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert status(answer) == 200
        assert b"transfer-encoding" not in head.lower()
        assert body[:1] in (b"<", b"{", b"/", b"i")


def trickle(raw: socket.socket, data: bytes, pause_s: float = 0.05, most: int = 200) -> None:
    """Send single bytes until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        for _ in range(most):
            raw.sendall(data)
            time.sleep(pause_s)


def test_endless_request_head_is_rejected(server: str) -> None:
    with connected(server) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                raw.sendall(b"a" * 8192)
        answer = rest(raw)
    assert not answer or (status(answer), code(answer)) == (
        431,
        "head_too_large",
    )  # a connection reset may lose the response


@pytest.mark.parametrize(
    "head",
    [
        b"X-Long: " + b"a" * MAX_HEAD_BYTES + b"\r\n",
        b"".join(b"X-%d: some value\r\n" % n for n in range(5000)),
        b"Cookie: " + b"a=b; " * 14_000 + b"\r\n",
    ],
)
def test_large_request_head_is_a_431_error(server: str, head: bytes) -> None:
    with connected(server) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n" + head + b"\r\n")
        answer = rest(raw)
    assert (status(answer), code(answer)) == (431, "head_too_large")
    assert httpx.get(f"{server}/health").status_code == 200


def test_long_url_is_rejected_and_50_kb_of_headers_are_accepted(server: str) -> None:
    with connected(server) as raw:
        raw.sendall(b"GET /health?" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: here\r\n\r\n")
        assert status(rest(raw)) == 431
    headers = {f"X-{n}": "v" * 1000 for n in range(50)}
    assert httpx.get(f"{server}/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 50]
)
def test_invalid_http_is_a_400_error(server: str, sent: bytes) -> None:
    with connected(server) as raw:
        raw.sendall(sent)
        answer = rest(raw)
    assert (status(answer), code(answer)) == (400, "invalid_http")


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",  # the chunk length is not a hexadecimal number
        b'3\r\n{"i\r\nzz\r\n',  # the fault is in the second chunk
        b'3\r\n{"input": "too long"}\r\n0\r\n\r\n',  # the body has more bytes than the chunk length says
        b"-1\r\n",
        b"2\r\n{}0\r\n\r\n",  # the line break after the chunk is missing
        b"2\r\n{}\r\nffffffffffffffffff\r\n",
    ],
)
def test_invalid_chunk_is_a_400_error(server: str, body: bytes) -> None:
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    with connected(server) as raw:
        raw.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        answer = rest(raw)
    assert (status(answer), code(answer)) == (400, "invalid_http")
    assert answer.count(b"HTTP/1.1 400") == 1
    assert httpx.get(f"{server}/health").status_code == 200


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),  # the client sends no bytes
        (b"\r\n", b"\r\n"),  # empty lines before a request are allowed
        (b"GET /health HTTP/1.1\r\nHost: here\r\n", b"X: y\r\n"),
    ],
)
def test_slow_request_head_times_out(impatient: str, first: bytes, then: bytes) -> None:
    with connected(impatient) as raw:
        raw.sendall(first)
        if then:
            trickle(raw, then)
        answer = rest(raw)  # returns only when the server closes the connection
    assert not answer or (status(answer), code(answer)) == (408, "request_timeout")


def test_second_request_and_idle_connection_time_out(impatient: str) -> None:
    with connected(impatient) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
        assert status(one_response(raw)) == 200
        raw.sendall(b"GET /hea")
        assert status(rest(raw)) == 408
    with connected(impatient) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
        assert status(one_response(raw)) == 200
        assert rest(raw) == b""  # the server closes the connection after TTS_KEEP_ALIVE_S


@pytest.mark.parametrize("length", [b"Content-Length: 5000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_slow_request_body_times_out(impatient: str, length: bytes) -> None:
    piece = b"1\r\n \r\n" if b"chunked" in length else b" "
    with connected(impatient) as raw:
        raw.sendall(HEAD + b"Authorization: Bearer a-key-of-patience\r\n" + length + b"\r\n")
        trickle(raw, piece)
        answer = rest(raw)
    assert (status(answer), code(answer)) == (408, "request_timeout")
    assert b"connection: close" in answer.lower()


def test_body_above_the_minimum_rate_is_accepted(impatient: str) -> None:
    """The whole body takes longer than the limit, but its rate never falls below 1 kB/s."""
    body = json.dumps({"input": "Hello.", "user": "x" * 3000}).encode()
    with connected(impatient) as raw:
        raw.sendall(HEAD + b"Authorization: Bearer a-key-of-patience\r\nConnection: close\r\n")
        raw.sendall(b"Content-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 600):
            raw.sendall(body[at : at + 600])
            time.sleep(0.25)
        assert status(rest(raw)) == 200


def test_connection_closes_if_the_body_trickles_after_an_error(impatient: str) -> None:
    """The 401 is sent before the body arrives.

    If the rest of the body arrives slowly, the server still closes the connection.
    """
    with connected(impatient) as raw:
        raw.sendall(HEAD + b"Content-Length: 50000\r\n\r\n")
        assert raw.recv(65_536).startswith(b"HTTP/1.1 401")
        trickle(raw, b" ")
        assert rest(raw) == b""


def test_request_timeouts_do_not_limit_the_response(impatient: str) -> None:
    """Timeouts apply to request data only. The first bytes of the next request do not end the current response."""
    body = json.dumps({"input": LONG[:3000], "response_format": "pcm", "cache": False}).encode()
    with connected(impatient) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # the response does not fit into the buffers
        raw.sendall(HEAD + b"Authorization: Bearer a-key-of-patience\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        got = raw.recv(1024)
        raw.sendall(b"GET /hea")
        time.sleep(3 * PATIENCE_S)
        raw.sendall(b"lth HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        got += rest(raw)
    assert got.count(b"HTTP/1.1 200") == 2
    assert b"0\r\n\r\nHTTP/1.1 200" in got
    assert b'"status":"ok"' in got


def test_endless_trailers_and_chunk_extensions_are_rejected(server: str) -> None:
    for endless in (b"2\r\n{}\r\n0\r\nX: ", b"2;a="):
        with connected(server) as raw:
            raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + endless)
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    raw.sendall(b"a" * 8192)
                raise AssertionError("8 MB were taken")
    assert httpx.get(f"{server}/health").status_code == 200


def test_two_hundred_idle_connections_time_out_without_blocking_requests(impatient: str) -> None:
    with contextlib.ExitStack() as stack:
        sitting = [stack.enter_context(connected(impatient)) for _ in range(200)]
        for raw in sitting:
            raw.sendall(b"GET / HTTP/1.1\r\n")
        assert httpx.get(f"{impatient}/health", timeout=60).status_code == 200
        wait_until(lambda: all(status(rest(raw)) == 408 for raw in sitting))


def test_websocket_upgrade_is_ignored(server: str) -> None:
    with connected(server) as raw:
        raw.sendall(
            b"GET /health HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert status(raw.recv(65_536)) == 200  # a server may ignore an upgrade


async def test_server_stops_while_a_client_closes_its_websocket() -> None:
    """Between the client's close frame and the end of the connection, a second close frame is an error."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    config = uvicorn.Config(app, lifespan="off", log_config=None)  # logging is a state of the whole process
    config.load()
    loop = asyncio.get_running_loop()
    protocol = http_protocol.SocketProtocol(config, ServerState(), {}, loop)
    listener = await loop.create_server(lambda: protocol, "127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(
            b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22 + b"==\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        code = (1000).to_bytes(2, "big")
        protocol.data_received(b"\x88\x82" + bytes(4) + code)
        protocol.shutdown()
        assert await reader.read() == b"\x88\x02" + code
        writer.close()
    finally:
        listener.close()
