"""Live sockets with faulty clients, which read no data, disconnect, or send too much.

Other clients are not affected.
"""

from __future__ import annotations

import json
import re
import struct
import time
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import connect

from tests.integration.test_realtime import calling, is_free
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
