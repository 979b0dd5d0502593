"""/docs (Swagger UI) and /redoc (ReDoc) in a browser: both load only this server's files and obey the page policy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from app.keys import KeyFile
from tests.support.live import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]


def test_a_request_can_be_sent_from_the_documentation(tmp_path: Path, visit: Visit) -> None:
    """`visit` also checks that the page contacts no other host and breaks no policy."""
    key = KeyFile(tmp_path).add("reader", ["speak"])
    with serving(tmp_path) as url:
        watched = visit(f"{url}/docs")
        watched.expected |= {"401", "405"}  # Swagger UI requests the audio again by GET to play it
        page = watched.page
        speech = page.locator("#operations-speech-create_speech")
        speech.locator(".opblock-summary-control").click()
        speech.get_by_role("button", name="Try it out").click()
        text = speech.locator("textarea").first
        text.fill('{"input": "Tried in the documentation.", "response_format": "wav"}')
        speech.get_by_role("button", name="Execute").click()
        answer = speech.locator(".live-responses-table .response").first
        answer.get_by_text("No API key was given").first.wait_for()

        page.get_by_role("button", name="Authorize").first.click()
        dialog = page.locator(".dialog-ux")
        bearer = dialog.locator(".auth-container", has_text="bearer").first  # there are two ways to send a key
        bearer.locator("input").fill(key)
        bearer.get_by_role("button", name="Apply credentials").click()
        dialog.get_by_role("button", name="Close").first.click()
        speech.get_by_role("button", name="Execute").click()
        answer.locator("audio").wait_for()
        status = answer.locator(".response-col_status").text_content() or ""
        assert re.match(r"\s*200", status)
        assert len(watched.requests) > 4
        page.get_by_role("link", name="Back to the studio").click()
        page.get_by_role("heading", name="Speak", level=1).wait_for()


def test_redoc_shows_the_operations(tmp_path: Path, visit: Visit) -> None:
    """ReDoc works without another host. The policy blocks a logo on another host and the styles of a scrollbar."""
    logo = "https://cdn.redoc.ly/redoc/logo-mini.svg"
    with serving(tmp_path) as url:
        watched = visit(f"{url}/redoc")
        page = watched.page
        page.get_by_role("heading", name="create_speech", exact=False).first.wait_for()
        page.get_by_text("/v1/audio/speech").first.wait_for()
        page.get_by_role("link", name="Back to the studio").wait_for()
        page.wait_for_function("logo => observed.violations.includes(`img-src ${logo}`)", arg=logo)
        assert set(page.evaluate("observed.violations.splice(0)")) == {f"img-src {logo}", "style-src-elem inline"}
        watched.expected |= {logo, "Applying inline style"}
        watched.requests.remove(logo)  # Chromium reports it although the policy has blocked it
