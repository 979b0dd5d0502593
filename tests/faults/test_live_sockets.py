"""Live sockets with faulty clients, which read no data, disconnect, or send too much.

Other clients are not affected.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket as raw_socket
import struct
import time
from socket import SO_LINGER, SO_RCVBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.integration.test_realtime import calling, is_free, message
from tests.support.live import LONG, serving, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

PATHS = ("realtime", "text-to-speech/alloy/stream-input", "text-to-speech/alloy/multi-stream-input")


def test_quiet_socket_stays_open(tmp_path: Path) -> None:
    """TTS_READ_TIMEOUT_S is for the head of a request, not for the time between two messages of a WebSocket."""
    with serving(tmp_path, TTS_READ_TIMEOUT_S=1) as url, calling(url) as caller:
        time.sleep(2.5)
        assert caller.speak("Still here.")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("path", PATHS)
def test_client_that_disconnects_is_not_an_error_in_the_log(
    server: str, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    """The connection ends while the server sends audio. pipecat says before that it closes the socket."""
    texts = {"realtime": [{"type": "input_text_buffer.append", "text": LONG}]}
    messages = texts.get(path) or [{"text": LONG, "context_id": "a"}, {"close_socket": True}]
    for _ in range(5):
        with connect(f"ws{server[4:]}/v1/{path}") as socket:
            for message in messages:
                socket.send(json.dumps(message))
            while not re.search(r'"(audio|delta)":"', str(socket.recv())):
                pass
            socket.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            socket.socket.close()
        wait_until(lambda: is_free(server))
    assert "unexpected error" not in capsys.readouterr().out


def test_sockets_that_read_nothing_pause_and_then_lose_only_their_own_rows(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(tmp_path, TTS_MAX_ROWS=8, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=2))
        for _ in range(4):
            socket = stack.enter_context(connect(f"ws{url[4:]}/v1/realtime", max_queue=1, close_timeout=0.1))
            socket.send(json.dumps({"type": "input_text_buffer.append", "text": LONG}))
            socket.send(json.dumps({"type": "input_text_buffer.commit"}))
        with calling(url) as caller:
            for _ in range(3):
                assert caller.speak("They do not read, but I do.")[-1]["response"]["status"] == "completed"
            wait_until(lambda: is_free(url))  # while the sockets are open
            assert caller.speak("Their rows are free.")[-1]["response"]["status"] == "completed"


def test_client_that_sends_all_before_it_reads_gets_all_answers(tmp_path: Path) -> None:
    """Its events are read although it reads nothing: otherwise it and the server would wait for each other."""
    with (
        serving(tmp_path, TTS_OUTBOX_S=0.5) as url,
        calling(url, max_queue=1) as caller,
    ):
        caller.send("input_text_buffer.append", text=LONG)
        caller.send("input_text_buffer.commit")
        time.sleep(1)  # the audio fills the buffers of the connection
        caller.send("wrong", padding="x" * 20_000)
        caller.send("output_audio_buffer.clear")
        for _ in range(500):
            caller.send("wrong", padding="x" * 20_000)
        caller.create("I read now.", conversation="auto")
        events = caller.until("output_audio_buffer.cleared")
        (done,) = [event for event in events if event["type"] == "response.done"]
        assert done["response"]["status"] == "cancelled"
        assert [event["type"] for event in events].count("error") == 1
        events = caller.until("response.done")
        assert [event["type"] for event in events].count("error") == 500
        assert events[-1]["response"]["status"] == "completed"
        wait_until(lambda: is_free(url))


class _Silent:
    """A client that opens a WebSocket and sends messages. Then it reads nothing and answers no ping."""

    def __init__(self, url: str, path: str, *messages: dict[str, Any]) -> None:
        where = urlsplit(url)
        self.raw = raw_socket.socket()
        self.raw.settimeout(30)
        self.raw.setsockopt(SOL_SOCKET, SO_RCVBUF, 16_384)
        self.raw.connect((where.hostname, where.port))
        head = f"GET /v1/{path} HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        self.raw.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
        assert self.raw.recv(1024).startswith(b"HTTP/1.1 101")
        for content in messages:
            self.send(content)

    def send(self, content: dict[str, Any]) -> None:
        """Send a text frame with a mask of zeros."""
        data = json.dumps(content).ljust(126).encode()
        self.raw.sendall(b"\x81\xfe" + len(data).to_bytes(2, "big") + bytes(4) + data)

    def is_closed(self) -> bool:
        """Send a message, and return whether the server has closed the connection."""
        try:
            self.send({"type": "input_text_buffer.commit"})
        except ConnectionError:
            return True
        return False

    def has_ended(self) -> bool:
        """Read what the server has sent until now, and return whether it has ended the connection."""
        self.raw.setblocking(False)
        try:
            while self.raw.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True


def test_client_that_vanishes_is_noticed_in_each_dialect(tmp_path: Path) -> None:
    """No packet says that the client is gone: the server gets no pong, and its data is not read."""
    long = LONG[:60_000]
    eleven = {"text": long, "context_id": "a"}
    config = {"type": "session.config", "response_format": "pcm", "stream_audio": True, "split_granularity": "sentence"}
    with (
        serving(tmp_path, TTS_MAX_ROWS=8, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=1.5) as url,
        calling(url) as idle,
        calling(url) as caller,
    ):
        speaking = [
            _Silent(url, "realtime", {"type": "input_text_buffer.append", "text": long}),
            _Silent(url, "text-to-speech/alloy/stream-input?output_format=pcm_24000", eleven),
            _Silent(url, "text-to-speech/alloy/multi-stream-input?output_format=pcm_24000", eleven),
            _Silent(url, "audio/speech/stream", config, {"type": "input.text", "text": long}, {"type": "input.done"}),
        ]
        waiting = [_Silent(url, "realtime"), _Silent(url, "text-to-speech/alloy/multi-stream-input")]
        wait_until(lambda: not is_free(url))
        wait_until(lambda: is_free(url))
        wait_until(lambda: all(client.has_ended() for client in (*speaking, *waiting)))
        for client in (*speaking, *waiting):
            client.raw.close()
        for other in (idle, caller):
            assert other.speak("We answer the pings.")[-1]["response"]["status"] == "completed"


def test_client_that_reads_slowly_is_not_disconnected(tmp_path: Path) -> None:
    """Its pongs come late or never, because the pings wait behind the audio."""
    with serving(tmp_path, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=6) as url:
        client = _Silent(url, "realtime", {"type": "input_text_buffer.append", "text": LONG})
        until_s = time.monotonic() + 7
        while time.monotonic() < until_s:
            client.raw.recv(1 << 14)
            time.sleep(0.2)
        assert not is_free(url)
    client.raw.close()  # the server has stopped although this client does not read


def test_client_that_sends_but_reads_nothing_loses_its_connection(tmp_path: Path) -> None:
    """The connection does not stay open for its unsent data."""
    with serving(tmp_path, TTS_OUTBOX_S=0.5, TTS_READER_TIMEOUT_S=2) as url:
        client = _Silent(url, "realtime", {"type": "input_text_buffer.append", "text": LONG})
        wait_until(client.is_closed)
        wait_until(lambda: is_free(url))
        client.raw.close()


def _open_contexts(socket: ClientConnection, count: int) -> None:
    """Open contexts, and read until the server closes the connection."""
    for number in range(count):
        socket.send(json.dumps({"text": "One of many texts. ", "context_id": f"c{number}"}))
    while True:
        socket.recv(timeout=30)


def test_thousand_contexts_are_refused_and_other_clients_go_on(tmp_path: Path) -> None:
    with serving(tmp_path) as url, calling(url) as other:
        with connect(f"ws{url[4:]}/v1/text-to-speech/alloy/multi-stream-input", max_size=None) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                _open_contexts(socket, 1_000)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
        with calling(url) as caller:
            for _ in range(1_000):
                caller.create("One of many texts.")
            ends = [caller.until("response.done", "error")[-1] for _ in range(1_000)]
            refused = [event for event in ends if event["type"] == "error"]
            assert 0 < len(refused) < 1_000
            assert all("Wait for the end of one of them" in event["error"]["message"] for event in refused)
            assert caller.speak("Here I am again.")[-1]["response"]["status"] == "completed"
        assert other.speak("I was here all the time.")[-1]["response"]["status"] == "completed"
        wait_until(lambda: is_free(url))


@pytest.mark.parametrize("size", [5 << 20, 64 << 10])
def test_text_of_five_megabytes_is_refused_and_the_session_goes_on(tmp_path: Path, size: int) -> None:
    text = ("A sentence of the text that never ends. " * (1 + size // 40))[:size]
    with serving(tmp_path, TTS_MAX_INPUT_CHARS=100_000) as url, calling(url) as caller, calling(url) as other:
        for _ in range((5 << 20) // size):
            caller.send("input_text_buffer.append", text=text)
        assert "TTS_MAX_INPUT_CHARS" in caller.until("error")[-1]["error"]["message"]
        assert other.speak("I notice nothing.")[-1]["response"]["status"] == "completed"
        caller.send("input_text_buffer.clear")
        caller.until("input_text_buffer.cleared")
        caller.send("response.create", response={"conversation": "none", "input": [message("Shorter.")]})
        while caller.until("response.done")[-1]["response"]["status"] != "completed":
            pass  # the response of the refused text was cancelled
        wait_until(lambda: is_free(url))
