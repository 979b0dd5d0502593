"""The Books page: a book is dropped, spoken, listened to, corrected and saved; reload, phone, errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.browser.test_manners import DESKTOP, PHONE, axe_violations, scrolls_sideways
from tests.support.ears import decode
from tests.support.live import serving
from tests.support.studio import LONG, pick_voice, until, wait_audible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect

BOOK = """---
title: The Lamp Keeper
author: Ada Example
---
# The Harbour

The lamp was lit every evening. The keeper was never seen.

# The Storm

One night it stayed dark.
"""
JOBS = "/v1/audio/jobs"
WAIT_MS = 120_000  # a busy machine
SENTENCES = 400  # so many that a test can act before they are spoken


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("library")) as url:
        yield url


def drop(page: Page, text: str, name: str) -> None:
    """Drop a file on the page, as a person does with the mouse."""
    script = """([text, name]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name));
      return data;
    }"""
    data = page.evaluate_handle(script, [text, name])
    page.dispatch_event(".book-drop", "drop", {"dataTransfer": data})


def job_of(page: Page, url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}{JOBS}/{page.url.partition('#')[2]}").json()
    return found


def status(page: Page, text: str) -> None:
    expect(page.locator(".book-card .head .badge")).to_have_text(text, timeout=WAIT_MS)


def create(url: str, **fields: str) -> str:
    answer = httpx.post(f"{url}{JOBS}", data=fields, files={"file": ("book.md", BOOK)}, timeout=60)
    return str(answer.raise_for_status().json()["id"])


def test_a_dropped_book_is_spoken_corrected_and_saved(library: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(f"{library}/books").page
    drop(page, BOOK, "lamp.md")
    page.locator("strong", has_text="lamp.md").wait_for()
    page.get_by_label("Result").select_option("m4b")
    page.get_by_role("button", name="See the chapters first").click()
    status(page, "paused")
    page.get_by_role("heading", name="The Lamp Keeper").wait_for()
    assert page.locator(".chapter h3").all_inner_texts() == ["The Harbour", "The Storm"]
    pick_voice(page, "Voice of The Storm", "nova")
    until(page, "() => document.getElementById('status').textContent.includes('The Storm is spoken by')")

    page.reload()  # everything is kept by the server
    status(page, "paused")
    assert page.get_by_label("Voice of The Storm").get_attribute("value") == "nova"
    page.get_by_role("button", name="Start").click()
    status(page, "finished")
    assert [chapter["voice"] for chapter in job_of(page, library)["chapters"]] == [None, "nova"]

    page.get_by_role("button", name="Sentences of The Harbour").click()
    sentences = page.locator(".sentence")
    expect(sentences).to_have_count(2 + 1)  # the heading is read, too
    page.get_by_role("button", name="Play sentence 2").click()
    wait_audible(page)
    expect(page.locator(".read")).to_have_text("The lamp was lit every evening.")  # the text can be read along
    expect(page.locator("#dock .what")).to_have_text("The lamp was lit every evening.")

    page.get_by_role("button", name="Redo sentence 3").click()
    dialog = page.get_by_role("dialog", name="Redo a sentence")
    dialog.get_by_label("Text").fill("The keeper had a secret.")
    assert axe_violations(page) == []
    dialog.get_by_role("button", name="Speak it again").click()
    expect(page.locator('.sentence[data-take="1"][data-status="done"] p')).to_have_text(
        "The keeper had a secret.", timeout=WAIT_MS
    )
    status(page, "finished")
    assert page.evaluate("document.activeElement.dataset.act") == "redo"

    with page.expect_download() as saved:
        page.get_by_role("button", name="Download").click()
    assert saved.value.suggested_filename == "The Lamp Keeper.m4b"
    saved.value.save_as(tmp_path / "book.m4b")
    sound = decode((tmp_path / "book.m4b").read_bytes(), "m4b")
    assert len(sound.samples) / sound.rate_hz == pytest.approx(job_of(page, library)["result"]["seconds"], abs=0.5)
    assert abs(sound.samples).max() > 0.1
    with page.expect_download() as saved:
        page.get_by_role("button", name="Captions as SRT").click()
    assert "The keeper had a secret." in Path(saved.value.path()).read_text()


def test_a_reload_in_the_middle_shows_the_book_and_a_chapter_is_heard_while_it_is_made(
    library: str, visit: Visit
) -> None:
    page = visit(f"{library}/books").page
    page.get_by_label("Or paste a text").fill("The lamp was lit every evening. " * SENTENCES)
    page.get_by_label("Title").fill("Evenings")
    page.get_by_role("button", name="Make the audiobook").click()
    page.get_by_role("heading", name="Evenings").wait_for()
    listen = page.get_by_role("button", name=re.compile("^Listen to"))
    expect(listen).to_be_enabled(timeout=WAIT_MS)
    listen.click()
    wait_audible(page)
    page.get_by_role("button", name="Pause", exact=True).first.click()
    status(page, "paused")
    done = job_of(page, library)["progress"]["sentences_done"]
    assert 0 < done < SENTENCES
    page.reload()
    status(page, "paused")
    page.locator(".book-card", has_text=re.compile(rf"\d+ of {SENTENCES} sentences")).wait_for()
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".book-card .head .badge")).not_to_have_text("paused")
    page.get_by_role("button", name="Cancel the book").click()
    status(page, "cancelled")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.locator(".book-form").wait_for()
    expect(page.locator(".book", has_text="Evenings")).to_have_count(0)


def test_errors_are_shown_in_words(library: str, visit: Visit) -> None:
    watched = visit(f"{library}/books")
    watched.expected |= {"400", "404"}
    page = watched.page
    page.get_by_role("button", name="Make the audiobook").click()
    page.locator("main").get_by_text("Choose a file, or paste a text.").wait_for()
    drop(page, "%PDF-1.7", "book.pdf")
    page.get_by_role("button", name="Make the audiobook").click()
    error = page.locator(".error")
    error.get_by_text("This book can’t be made.").wait_for()
    assert "Books of this type can’t be read. Choose another file." in error.inner_text()
    assert "Books of this type can’t be read. Choose another file." in page.locator("#alert").inner_text()
    assert "PDF files can't be read" in error.locator("details").text_content()
    page.goto(f"{library}/books#job_missing")
    page.locator(".error").get_by_text("The server cannot find this.").wait_for()
    page.get_by_role("link", name="All books").click()
    page.locator(".book-form").wait_for()


HOLD = """
() => {
  const real = window.fetch;
  window.released = [];
  window.fetch = async (...request) => {
    const answer = await real(...request);
    if (String(request[0]).includes("/sentences?chapter=0")) {
      const { data } = await answer.clone().json();
      await new Promise((resolve) => setTimeout(resolve, 3000));
      setTimeout(() => released.push(data[2].status), 200); // once the page has used it
    }
    return answer;
  };
}
"""


def test_an_old_answer_does_not_undo_what_an_event_has_shown(library: str, visit: Visit) -> None:
    """The list of sentences arrives after the event that a sentence in it is done."""
    page = visit(f"{library}/books#{create(library, voice='alloy')}").page
    status(page, "finished")
    page.get_by_role("button", name="Sentences of The Harbour").click()
    expect(page.locator(".sentence")).to_have_count(3)
    page.get_by_role("button", name="Redo sentence 3").click()
    dialog = page.get_by_role("dialog", name="Redo a sentence")
    dialog.get_by_label("Text").fill(LONG[:4000])
    page.evaluate(HOLD)
    dialog.get_by_role("button", name="Speak it again").click()
    status(page, "finished")
    until(page, "() => released.length > 0")
    page.locator('.sentence[data-take="1"][data-status="done"]').wait_for()


def test_a_lost_connection_is_replaced_by_polling(library: str, visit: Visit) -> None:
    job = create(library, paused="true")

    def cut(page: Page) -> None:
        page.route("**/events", lambda route: route.abort())

    watched = visit(f"{library}/books#{job}", prepare=cut)
    watched.expected.add("net::ERR")
    status(watched.page, "paused")
    httpx.post(f"{library}{JOBS}/{job}/resume").raise_for_status()
    status(watched.page, "finished")


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop-light", "phone-dark"]
)
def test_the_page_is_accessible_and_fits(library: str, visit: Visit, viewport: dict[str, int], scheme: str) -> None:
    job = create(library, title="A very long title of a book that " * 4)
    page = visit(f"{library}/books", viewport=viewport, color_scheme=scheme).page
    page.locator(f'[data-job="{job}"]').wait_for()
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    text = page.get_by_label("Or paste a text").bounding_box()
    assert text
    assert text["width"] > 300
    page.locator(f'[data-job="{job}"] a').click()
    status(page, "finished")
    page.get_by_role("button", name="Sentences of The Harbour").click()
    page.locator(".sentence").first.wait_for()
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    if viewport is PHONE:
        low = page.locator("main button:visible").evaluate_all(
            "all => all.filter((each) => each.getBoundingClientRect().height < 44).length"
        )
        assert low == 0
