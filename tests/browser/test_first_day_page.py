"""The report of the first-day check in a browser, opened as a file: it plays its takes and requests nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.test_cli import cli

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = [pytest.mark.integration, pytest.mark.browser]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_works_offline(tmp_path: Path, chromium: Browser, scheme: str) -> None:
    cli(tmp_path, "check", "--engine", "espeak", "--voices", "alloy", "--sentences", "2")
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 420, "height": 900})  # type: ignore[arg-type]
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "first-day" / "report.html").as_uri())
    page.get_by_text("Alloy").click()
    seconds = page.evaluate(
        "async () => { const a = document.querySelector('audio'); await a.play(); return a.duration; }"
    )
    assert 0.5 < seconds < 5
    assert page.locator("figure svg circle").count() >= 8
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert errors == []
    assert all(url.startswith("file:") for url in requests)
    page.close()
