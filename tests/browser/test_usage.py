"""The usage on the Server page: a plot, and a table with the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.live import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.browser
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect


def test_usage_is_plotted_and_listed(tmp_path: Path, visit: Callable[..., Any]) -> None:
    with serving(tmp_path) as url:
        page = visit(f"{url}/server").page
        section = page.get_by_role("region", name="Usage", exact=True)
        expect(section).to_contain_text("No speech in the last 30 days.")
        for _ in range(2):
            httpx.post(f"{url}/v1/audio/speech", json={"input": "Hello there."}).raise_for_status()
        page.reload()
        expect(section).to_contain_text("in 2 requests")
        assert section.locator("rect").count() == 1
        section.get_by_text("Show all numbers").click()
        row = section.locator("tbody tr")
        expect(row).to_have_count(1)
        assert row.locator("td").all_inner_texts()[:4] == ["–", "espeak", "2", "24"]
        for code, name in (("de-DE", "Nutzung"), ("fr-FR", "Utilisation")):
            other = visit(f"{url}/server", locale=code).page
            expect(other.get_by_role("heading", name=name)).to_be_visible()
