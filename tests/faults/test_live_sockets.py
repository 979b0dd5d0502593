"""Live sockets whose clients misbehave: they read nothing, vanish, or send too much. Other clients notice nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_realtime import calling
from tests.support.live import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_quiet_socket_stays_open(tmp_path: Path) -> None:
    """TTS_READ_TIMEOUT_S is for the head of a request, not for the time between two messages of a WebSocket."""
    with serving(tmp_path, TTS_READ_TIMEOUT_S=1) as url, calling(url) as caller:
        time.sleep(2.5)
        assert caller.speak("Still here.")[-1]["response"]["status"] == "completed"
