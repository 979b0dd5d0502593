"""The usage on the Server page: a plot, and a table with the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.keys import KeyFile
from tests.browser.test_manners import axe_violations
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
        assert axe_violations(page) == []
        assert page.get_by_role("region", name="API keys").count() == 0
        for code, name in (("de-DE", "Nutzung"), ("fr-FR", "Utilisation")):
            other = visit(f"{url}/server", locale=code).page
            expect(other.get_by_role("heading", name=name)).to_be_visible()


def test_an_admin_sees_the_requests_of_each_key(tmp_path: Path, visit: Callable[..., Any]) -> None:
    keys = KeyFile(tmp_path)
    secret, kiosk = keys.add("owner", ["admin", "speak"]), keys.add("kiosk", ["speak"], per_minute=90)
    with serving(tmp_path) as url:
        for path in ("audio/voices", "audio/voices", "usage"):  # the last one needs the scope `admin`
            httpx.get(f"{url}/v1/{path}", headers={"Authorization": f"Bearer {kiosk}"})
        store = f"sessionStorage.setItem('studio.key', '{secret}')"
        page = visit(f"{url}/server", prepare=lambda page: page.add_init_script(store)).page
        row = page.get_by_role("region", name="API keys").locator("tr", has_text="kiosk").first
        expect(row).to_be_visible()
        assert row.locator("td").all_inner_texts() == ["speak", "90", "–", "3", "1"]
        expect(page.get_by_text("owner (speak, admin)")).to_be_visible()
        assert axe_violations(page) == []
        for text in (secret, kiosk):
            assert text not in page.content()
