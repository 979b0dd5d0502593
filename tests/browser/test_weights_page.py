"""A server whose weights are missing: the banner, the panel that downloads them, and the first sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_manners import DESKTOP, PHONE, axe_violations, scrolls_sideways
from tests.support.fake_hub import FakeHub
from tests.support.live import serving
from tests.support.studio import SHORT, speak, until, wait_audible, wait_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]

ORIGINAL, COPY = "sesame/csm-1b", "unsloth/csm-1b"
TOKEN, WRONG, STRANGER = "hf_goodgoodgood", "hf_wrongwrong", "hf_strangerstranger"
CSM = {"TTS_ENGINE": "csm", "TTS_DTYPE": "float32", "TTS_MAX_ROWS": 2}
GET = "Get the real voice"
CLICKS = "window.clicks = 0; addEventListener('pointerdown', () => window.clicks++, true)"


@pytest.fixture
def hub(tiny_csm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a gated model and an open copy of it."""
    files = {path.relative_to(tiny_csm).as_posix(): path.read_bytes() for path in tiny_csm.rglob("*") if path.is_file()}
    with FakeHub(dict.fromkeys((ORIGINAL, COPY), files)) as fake:
        fake.gated, fake.tokens, fake.unknown_tokens = {ORIGINAL}, {TOKEN}, {WRONG}
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield fake


@pytest.fixture
def empty(hub: FakeHub, tmp_path: Path) -> Iterator[str]:
    """A server without weights. The offline voice speaks instead of the model."""
    with serving(tmp_path, **CSM) as url:
        yield url


def test_reasons_in_english_are_only_in_folds(empty: str, visit: Visit) -> None:
    page = visit(f"{empty}/server", viewport=PHONE, locale="de-DE").page
    page.get_by_text("Ein anderes Modell läuft stattdessen.").wait_for()
    page.get_by_text("csm-1b läuft nicht. espeak kann stattdessen sprechen.").wait_for()
    page.wait_for_selector(".engines td")
    english = page.locator("[lang=en]")
    assert english.count() > 2
    shown = [each for each in english.all() if each.is_visible()]
    assert [each.inner_text() for each in shown] == ["language"]  # a parameter of the API


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_real_voice_speaks_after_three_clicks(
    hub: FakeHub, empty: str, visit: Visit, viewport: dict[str, int], scheme: str
) -> None:
    page = visit(empty, viewport=viewport, color_scheme=scheme, prepare=lambda page: page.add_init_script(CLICKS)).page
    banner = page.locator("#banner")
    banner.get_by_text("csm-1b is not running. espeak can speak instead.").wait_for()
    assert axe_violations(page) == []
    banner.get_by_role("button", name=GET).click()
    panel = page.get_by_role("dialog", name=GET)
    panel.get_by_text(
        re.compile(r"csm-1b needs its weights \([\d.]+ GB\)\. The server has [\d.,]+ GB of free space\.")
    ).wait_for()
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    hub.bytes_per_s = 400_000
    panel.get_by_role("button", name=re.compile(r"Download the ungated copy \([\d.]+ GB\)")).click()
    panel.get_by_text(re.compile(r"[\d.]+ of [\d.]+ GB · [\d.]+ MB/s · \d+ \w+ left")).wait_for()
    assert axe_violations(page) == []
    hub.bytes_per_s = None
    panel.get_by_text("csm-1b is ready.").wait_for()
    panel.get_by_role("button", name="Hear it").click()
    wait_audible(page)
    assert page.evaluate("clicks") == 3
    banner.wait_for(state="hidden")
    assert page.evaluate("async () => (await import('/static/js/speech.js')).speech.engine") == "csm"
    page.keyboard.press("Escape")
    until(page, "() => document.getElementById('model').value === 'csm-1b'")
    speak(page, SHORT)
    wait_state(page, "streaming", "done")


def test_download_is_stopped_and_resumed(hub: FakeHub, empty: str, visit: Visit) -> None:
    page = visit(f"{empty}/server").page
    row = page.locator("tr", has=page.get_by_role("rowheader", name="csm-1b"))
    row.get_by_role("button", name=GET).click()
    panel = page.get_by_role("dialog", name=GET)
    hub.bytes_per_s = 400_000
    panel.get_by_role("button", name="Download the ungated copy").click()
    panel.get_by_text(re.compile(r"0\.00[1-9] of .*MB/s")).wait_for()
    page.keyboard.press("Escape")
    banner = page.locator("#banner")
    banner.get_by_text(re.compile(r"[\d.]+ of [\d.]+ GB")).wait_for()
    banner.get_by_role("button", name="Show the download").click()
    panel.get_by_role("button", name="Stop the download").click()
    panel.get_by_role("button", name=re.compile(r"Resume the download \([\d.]+ of [\d.]+ GB\)")).click()
    hub.bytes_per_s = None
    panel.get_by_text("csm-1b is ready.").wait_for()
    page.keyboard.press("Escape")
    row.locator(".badge").get_by_text("ready").wait_for()
    assert any(request.start > 0 for request in hub.requests)


def test_original_needs_a_licence_and_a_token(hub: FakeHub, empty: str, tmp_path: Path, visit: Visit) -> None:
    watched = visit(empty)
    watched.expected.add("400")
    page = watched.page
    page.locator("#banner").get_by_role("button", name=GET).click()
    panel = page.get_by_role("dialog", name=GET)
    panel.get_by_text("Download the original").first.click()
    assert panel.get_by_role("link").get_attribute("href") == f"https://huggingface.co/{ORIGINAL}"
    token = panel.get_by_label("Token of Hugging Face")
    for wrong, words in (
        (WRONG, "Hugging Face does not know this token."),
        (STRANGER, "Accept the licence with the account of the token first."),
    ):
        token.fill(wrong)
        page.keyboard.press("Enter")
        panel.get_by_text(words).wait_for()
        assert token.input_value() == ""
    token.fill(TOKEN)
    panel.get_by_label("Keep it on the server. It is never shown again.").check()
    page.keyboard.press("Enter")
    panel.get_by_text("csm-1b is ready.").wait_for()
    assert TOKEN not in page.content()
    assert (tmp_path / "hub" / "token").read_text().strip() == TOKEN


def test_lines_are_copied_one_by_one(hub: FakeHub, empty: str, visit: Visit) -> None:
    hub.status = 503
    watched = visit(empty, permissions=["clipboard-read", "clipboard-write"])
    page = watched.page
    page.locator("#banner").get_by_role("button", name=GET).click()
    panel = page.get_by_role("dialog", name=GET)
    panel.get_by_text("The server can’t reach Hugging Face.").wait_for()
    panel.get_by_text("Lines for a restart instead").click()
    for name, part in (
        ("Shell", "app.cli serve"),
        (".env", f"CSM_MODEL={COPY}"),
        ("compose.yaml", f"CSM_MODEL: {COPY}"),
    ):
        panel.get_by_role("button", name=f"Copy: {name}").click()
        copied = str(page.evaluate("navigator.clipboard.readText()"))
        assert part in copied
        assert copied in [text.text_content() for text in panel.locator("pre").all()]
    assert not scrolls_sideways(page)
