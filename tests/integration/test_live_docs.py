"""The clients in docs/live.md run as they are written, except for the addresses."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.ears import decode
from tests.support.live import ROOT, free_port, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SECTIONS = (ROOT / "docs" / "live.md").read_text().split("\n## ")[1:]
SNIPPETS = {
    section.partition("\n")[0]: code
    for section in SECTIONS
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses in the page -> those of a server."""
    wyoming = f"tcp://127.0.0.1:{free_port()}"
    with serving(tmp_path_factory.mktemp("data"), TTS_WYOMING=wyoming) as url:
        yield {"//127.0.0.1:8000": url.removeprefix("http:"), "tcp://127.0.0.1:10200": wyoming}


def test_each_protocol_has_a_client() -> None:
    assert SNIPPETS.keys() == {section.partition("\n")[0] for section in SECTIONS}


@pytest.mark.parametrize("protocol", SNIPPETS)
def test_client_of_the_page_writes_the_speech(addresses: dict[str, str], tmp_path: Path, protocol: str) -> None:
    code = SNIPPETS[protocol]
    for shown, real in addresses.items():
        code = code.replace(shown, real)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    written = decode((tmp_path / "hello.pcm").read_bytes(), "pcm")
    body = {"input": "Hello there.", "voice": "alloy", "response_format": "pcm"}
    url = f"http:{addresses['//127.0.0.1:8000']}/v1/audio/speech"
    speech = decode(httpx.post(url, json=body, timeout=120).content, "pcm")
    assert written.seconds == pytest.approx(speech.seconds, rel=0.2)
    assert written.loudness_dbfs == pytest.approx(speech.loudness_dbfs, abs=2)
