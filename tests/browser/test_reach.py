"""What a person always reaches: Speak and Stop, saving what was heard, the sentences, and one list of takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from app.audio.decode import decode
from app.audio.provenance import parse
from tests.browser.test_manners import PHONE, axe_violations, scrolls_sideways
from tests.support.live import wait_until
from tests.support.studio import (
    LONG,
    SHORT,
    at_s,
    newest_take,
    speak,
    until,
    wait_audible,
    wait_state,
    wait_takes,
    wait_worth_keeping,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from playwright.sync_api import Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect

LAPTOP = {"width": 1280, "height": 720}
# Whether a button can be pressed without scrolling: its centre is on the screen, and nothing covers it.
REACHED = """(selector) => {
  const box = document.querySelector(selector).getBoundingClientRect();
  return Boolean(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)?.closest(selector));
}"""
SPEAKS = ("/audio/speech", "/audio/dialogue", "/audio/conversation")


def spoken(watched: Watched) -> int:
    return len([url for url in watched.requests if url.endswith(SPEAKS)])


def save(page: Page, name: str) -> bytes:
    page.locator("#dock").get_by_role("button", name="Save").click()
    with page.expect_download() as saving:
        page.locator(f'[data-format="{name}"]').click()
    return saving.value.path().read_bytes()


@pytest.mark.parametrize("viewport", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_speak_and_stop_are_reached_in_every_state(server: str, visit: Visit, viewport: dict[str, int]) -> None:
    page = visit(server, viewport=viewport).page
    assert page.evaluate(REACHED, ".go")
    write(page, LONG)  # the text has the focus
    page.evaluate("document.getElementById('text').style.height = '900px'")
    assert page.evaluate(REACHED, ".go")
    page.keyboard.press("Control+Enter")
    wait_audible(page)
    for button in (".go.stop", "#dock .stop"):
        assert page.evaluate(REACHED, button)
    until(page, "async () => (await import('/static/js/player.js')).player.at_s > 0.6")
    page.locator("#dock .stop").click()
    wait_state(page, "partial")
    assert page.locator("#dock .stop").is_hidden()
    wait_takes(page, 1)
    page.evaluate("scrollTo(0, 0)")
    assert page.evaluate(REACHED, ".go")
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    last = page.locator("main .hint:visible").last.bounding_box()
    top = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.act, #dock')].filter((each) => getComputedStyle(each).position"
        " === 'fixed').map((each) => each.getBoundingClientRect().top))"
    )
    assert last
    assert last["y"] + last["height"] <= top  # nothing is hidden under the dock


def test_at_400_percent_text_and_speak_are_reached(server: str, visit: Visit) -> None:
    """A window of 1280 x 1024 pixels, four times enlarged."""
    page = visit(server, viewport={"width": 320, "height": 256}, locale="de-DE").page
    text = page.locator("#text")
    for docked in (False, True):
        if docked:
            text.fill(SHORT)
            page.keyboard.press("Control+Enter")
            wait_takes(page, 1)
        assert page.locator("#dock").is_visible() is docked
        page.locator("h1").focus()
        text.focus()
        box = text.bounding_box()
        top = page.locator(".act").bounding_box()
        assert box
        assert top
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= top["y"]  # the whole field is visible
        for each in (".go", "#text", *(["#dock .save", "#dock .round"] if docked else [])):
            assert page.evaluate(REACHED, each)
        page.evaluate("scrollTo(0, 0)")
        assert page.evaluate(REACHED, "#menu-button")
    wide = (
        "[...document.querySelectorAll('nav span')].filter((each) => each.offsetWidth > each.parentElement.offsetWidth)"
    )
    assert page.evaluate(f"{wide}.map((each) => each.textContent)") == []
    assert not scrolls_sideways(page)
    page.get_by_role("button", name="Menü").click()
    page.get_by_role("button", name="Liste der Tasten").click()
    page.locator("dialog[open] .dialog-head button").wait_for()
    assert page.evaluate(REACHED, "dialog[open] .dialog-head button")


def test_stop_in_the_dock_works_on_another_page(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, LONG)
    wait_audible(page)
    page.get_by_role("navigation").get_by_role("link", name="Server").click()
    page.get_by_role("button", name="Stop speaking").click()
    expect(page.locator("#status")).to_have_text("Stopped")
    assert page.locator("#dock .stop").is_hidden()


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop_stays_while_finished_speech_is_played(server: str, visit: Visit, way: str) -> None:
    page = visit(server).page
    go = page.locator(".go")
    speak(page, " ".join([SHORT] * 10))
    wait_state(page, "done")
    expect(go).to_contain_text("Stop")
    page.wait_for_timeout(500)  # a press directly after the one of Speak is taken for a double press
    if way == "button":
        go.click()
    else:
        page.keyboard.press("Escape")
    expect(go).to_contain_text("Speak")
    assert page.locator("#dock").get_attribute("data-playing") == "false"
    assert not newest_take(page)["partial"]  # the whole speech is kept
    assert page.locator(".read [data-now]").count() == 1
    page.evaluate("import('/static/js/player.js').then(({ player }) => player.seek(player.track.seconds - 3))")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(go).to_contain_text("Stop")
    expect(go).to_contain_text("Speak")  # at the end of the sound
    expect(page.locator(".read [data-now]")).to_have_count(0)


def test_the_player_is_closed_and_its_place_is_free(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, LONG)
    wait_audible(page)
    page.get_by_role("button", name="Close the player").click()
    expect(page.locator("#dock")).to_be_hidden()
    assert page.evaluate("document.activeElement.tagName") == "H1"
    expect(page.locator("#status")).to_have_text("Stopped")
    assert not page.locator("html.docked").count()
    wait_until(lambda: httpx.get(f"{server}/health").json()["rows"]["active"] == 0)


def test_a_stopped_take_is_saved_as_it_was_heard(server: str, visit: Visit) -> None:
    watched = visit(server)
    page = watched.page
    speak(page, LONG)
    wait_worth_keeping(page)
    page.wait_for_selector(".read .unmade", state="attached")  # the times of the first words have arrived
    page.keyboard.press("Escape")
    wait_state(page, "partial")
    wait_takes(page, 1)
    take = newest_take(page)
    assert take["seconds"] == pytest.approx(at_s(page), abs=1e-3)
    asked = spoken(watched)
    for name in ("mp3", "flac", "ogg"):
        made = decode(save(page, name), 24_000, max_seconds=60)
        assert len(made.samples) / 24_000 == pytest.approx(take["seconds"], abs=0.1)  # codecs pad
        assert parse(made.comment) is not None
    srt = save(page, "srt").decode()
    assert "Sentence number zero" in srt or "Sentence number 0" in srt
    assert "Sentence number 9" not in srt
    assert spoken(watched) == asked  # nothing is spoken again
    # The text that was not spoken has another shade.
    assert "Sentence number 9" in page.locator(".read .unmade").inner_text()


@pytest.mark.parametrize("path", ["/dialogue", "/live"])
def test_other_pages_save_without_speaking_again(server: str, visit: Visit, path: str) -> None:
    watched = visit(server + path)
    page = watched.page
    if path == "/dialogue":
        page.get_by_role("button", name="Fill in a sample").click()
        page.get_by_role("button", name="Speak all").click()
        wait_takes(page, 1)
        assert page.evaluate(REACHED, ".go")
    else:
        page.locator("#live-text").press_sequentially("Good morning. ")
        wait_audible(page)
        page.wait_for_selector('#dock[data-playing="false"]')
    asked = spoken(watched)
    assert decode(save(page, "mp3"), 24_000, max_seconds=60).seconds > 0.5
    assert spoken(watched) == asked


def test_saving_can_be_cancelled(server: str, visit: Visit) -> None:
    def hold(_: Any) -> None:
        """Never answer."""

    page = visit(server, prepare=lambda page: page.route("**/v1/audio/encode", hold)).page
    speak(page, SHORT)
    wait_takes(page, 1)
    page.locator("#dock").get_by_role("button", name="Save").click()
    page.locator('[data-format="opus"]').click()
    waiting = page.get_by_role("region", name="Saving OPUS")
    waiting.get_by_role("progressbar").wait_for()
    waiting.get_by_role("button", name="Cancel").click()
    waiting.wait_for(state="detached")
    assert page.locator(".toast").count() == 0  # the person's own act is not an error


def test_keys_move_by_sentences(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, "This is the first sentence here. Here comes the second sentence for $5. And now the third one.")
    wait_state(page, "done")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.locator("h1").focus()
    page.get_by_role("slider", name="Position").press("Home")
    page.locator("h1").focus()
    starts = page.evaluate("async () => (await import('/static/js/player.js')).player.track.starts")
    assert len(starts) == 3
    found = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(f"Shift+{key}")
        found.append(at_s(page))
    assert found == pytest.approx([starts[n] for n in (1, 2, 2, 1, 0)], abs=1e-3)
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#dock .what")).to_have_text("Here comes the second sentence for $5.")  # as it is written
    page.keyboard.press("?")
    page.get_by_role("dialog").get_by_text("A sentence back or forward").wait_for()


def test_one_list_has_the_takes_of_all_pages(server: str, visit: Visit) -> None:
    page = visit(f"{server}/dialogue").page
    page.get_by_role("button", name="Fill in a sample").click()
    page.get_by_role("button", name="Speak all").click()
    wait_takes(page, 1)
    page.get_by_role("button", name="Remove all lines").click()
    page.get_by_role("navigation").get_by_role("link", name="Speak").click()
    page.wait_for_selector(".take")
    for count in (2, 3):
        speak(page, SHORT)
        wait_state(page, "done")
        wait_takes(page, count)
    rows = page.locator(".take")
    expect(rows).to_have_count(3)  # no take is listed twice
    assert [row.locator("b").inner_text() for row in rows.all()] == ["Take 2", "Take 1", "Take 1"]
    assert page.locator(".take[data-own]").count() == 2
    page.get_by_role("searchbox").fill("umbrella")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Use again").click()
    page.wait_for_selector('main[data-page="/dialogue"]')
    expect(page.locator(".line")).to_have_count(4)
