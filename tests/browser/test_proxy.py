"""The pages below a path prefix, behind a real HAProxy with the configuration of docs/proxies.md."""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.contract.fleets import answers, haproxy
from tests.support.live import ROOT, free_port, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]


@contextlib.contextmanager
def proxied(folder: Path, server: str) -> Iterator[str]:
    """The URL of HAProxy, which serves `server` below /tts without TLS."""
    (text,) = re.findall(r"```haproxy\n(.*?)```", (ROOT / "docs" / "proxies.md").read_text(), re.DOTALL)
    port = free_port()
    text = re.sub(r"bind :443 .*", f"bind 127.0.0.1:{port}", text)
    text = text.replace("X-Forwarded-Proto https", "X-Forwarded-Proto http")
    text = text.replace("server tts 127.0.0.1:8000", f"server tts {server.removeprefix('http://')}")
    file = folder / "haproxy.cfg"
    file.write_text(f"defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n{text}")
    with (folder / "haproxy.log").open("wb") as log:
        running = subprocess.Popen([haproxy(), "-W", "-db", "-f", file], stdout=log, stderr=log)
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/tts/ready"))
            yield f"http://127.0.0.1:{port}/tts"
        finally:
            running.terminate()
            running.wait(20)


def test_studio_works_below_a_prefix(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path / "data") as server, proxied(tmp_path, server) as url:
        watched = visit(f"{url}/")
        page = watched.page
        page.locator("textarea").first.fill("Spoken below a prefix.")
        with page.expect_response(lambda answer: "/audio/speech" in answer.url) as spoken:
            page.keyboard.press("Control+Enter")
        assert spoken.value.status == 200
        wait_until(lambda: page.evaluate("loudest()") > 0.01)
        for path in ("/voice-cloning", "/dialogue", "/live", "/server", "/"):
            page.locator(f'nav a[data-route="{path}"]').click()
            page.wait_for_url(f"{url}{path}")
            page.wait_for_selector("main h1:not(.loading)")
            page.reload()
            page.wait_for_selector("main h1:not(.loading)")
        outside = [each for each in watched.requests if each.startswith("http") and not each.startswith(f"{url}/")]
        assert outside == []


def test_live_page_speaks_below_a_prefix(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path / "data") as server, proxied(tmp_path, server) as url:
        page = visit(f"{url}/live").page
        page.locator("#live-text").press_sequentially("Spoken below a prefix.")
        page.wait_for_selector(".live-marks [data-mark=now]")
        wait_until(lambda: page.evaluate("loudest()") > 0.01)


def test_documentation_works_below_a_prefix(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path / "data") as server, proxied(tmp_path, server) as url:
        watched = visit(f"{url}/docs")
        page = watched.page
        speech = page.locator("#operations-speech-create_speech")
        speech.locator(".opblock-summary-control").click()
        speech.get_by_role("button", name="Try it out").click()
        speech.get_by_role("button", name="Execute").click()
        status = speech.locator(".live-responses-table .response .response-col_status").first
        status.wait_for()
        assert "200" in (status.text_content() or "")
        watched.expected |= {"405"}  # Swagger UI requests the audio again by GET to play it
        outside = [each for each in watched.requests if each.startswith("http") and not each.startswith(f"{url}/")]
        assert outside == []
