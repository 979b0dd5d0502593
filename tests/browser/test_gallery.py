"""The gallery of voices: preview, search, filters, favourites, five voices in turn, keys, and a thousand voices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.test_manners import DESKTOP, PHONE, axe_violations, scrolls_sideways
from tests.support.live import serving
from tests.support.studio import pick_voice, speak, until, wait_audible, wait_state, wait_voices, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect

COUNT = 1000


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("gallery")) as url:
        yield url


def thousand() -> list[dict[str, Any]]:
    languages = ("en", "de", "fr-CA", "es")
    return [
        {"id": f"voice_{n}", "name": f"Speaker {n}", "type": "cloned", "language": languages[n % 4], "description": ""}
        for n in range(COUNT)
    ]


def crowd(page: Page) -> None:
    """Let the server list a thousand cloned voices beside its own."""

    def more(route: Any) -> None:
        listed = route.fetch().json()["voices"] + thousand()
        route.fulfill(json={"object": "list", "voices": listed, "data": listed})

    page.route("**/v1/audio/voices", more)


def opened(page: Page) -> Locator:
    wait_voices(page)
    page.get_by_label("Voice", exact=True).click()
    return page.get_by_role("dialog", name="Choose a voice")


def test_a_list_that_could_not_be_loaded_is_loaded_again(offline: str, visit: Visit) -> None:
    refusal = {"error": {"message": "Later.", "type": "server_error", "param": None, "code": "engine_not_ready"}}
    watched = visit(
        offline,
        viewport=PHONE,
        prepare=lambda page: page.route("**/v1/audio/voices", lambda route: route.fulfill(status=503, json=refusal)),
    )
    watched.expected.add("503")
    page = watched.page
    page.get_by_label("Voice", exact=True).click()
    gallery = page.get_by_role("dialog", name="Choose a voice")
    gallery.locator(".error").get_by_text("The engine is not ready yet.").wait_for()
    expect(gallery.get_by_role("status")).to_have_text("")
    page.unroute("**/v1/audio/voices")
    gallery.get_by_role("button", name="Try again").click()
    gallery.locator("li").first.wait_for()
    assert gallery.locator(".error").count() == 0
    kinds = gallery.get_by_role("group", name="Which voices").get_by_role("button")
    assert kinds.count() == 4
    for button in kinds.all():
        box = button.bounding_box()
        assert box
        assert box["x"] + box["width"] <= PHONE["width"]


def test_a_voice_is_heard_found_and_chosen(offline: str, visit: Visit) -> None:
    page = visit(offline).page
    write(page, "My own sentence. Another one.")
    gallery = opened(page)
    assert gallery.get_by_label("Sentence to hear").input_value() == "My own sentence."
    with page.expect_request("**/v1/audio/speech") as asked:
        gallery.get_by_role("button", name="Play a sentence with Nova").click()
    assert (asked.value.post_data_json["voice"], asked.value.post_data_json["input"]) == ("nova", "My own sentence.")
    wait_audible(page)
    assert axe_violations(page) == []
    gallery.get_by_role("button", name="Favourite: Nova").click()
    gallery.get_by_role("button", name="Favourites").click()
    expect(gallery.get_by_role("status")).to_have_text("1 voice")
    assert gallery.locator("li:visible b").all_inner_texts() == ["Nova"]
    gallery.get_by_role("button", name="All", exact=True).click()
    gallery.get_by_label("Search the voices").fill("ony")
    expect(gallery.locator("li:visible b")).to_have_text(["Onyx"])
    gallery.locator("li:visible .choose").click()
    expect(page.get_by_label("Voice", exact=True)).to_have_attribute("value", "onyx")
    expect(page.get_by_label("Voice", exact=True)).to_be_focused()
    again = opened(page)  # the place is kept
    assert again.get_by_label("Search the voices").input_value() == "ony"
    page.keyboard.press("Escape")
    speak(page, "Hello.")
    wait_state(page, "done")
    page.reload()
    wait_voices(page)
    assert page.get_by_label("Voice", exact=True).get_attribute("value") == "onyx"
    expect(opened(page).locator(".starred")).to_have_count(1)


def test_the_sentence_is_the_one_just_written(offline: str, visit: Visit) -> None:
    page = visit(offline).page
    wait_voices(page)
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.insert_text("Just now.")
    page.evaluate("document.querySelector('#voice').focus()")
    page.keyboard.press("ArrowDown")
    gallery = page.get_by_role("dialog", name="Choose a voice")
    assert gallery.get_by_label("Sentence to hear").input_value() == "Just now."


@pytest.mark.parametrize(("path", "id_"), [("/", "voice"), ("/live", "live-voice")])
def test_a_choice_holds_when_the_engine_changes_meanwhile(offline: str, visit: Visit, path: str, id_: str) -> None:
    page = visit(offline + path).page
    wait_voices(page)
    old = page.locator(f"#{id_}").element_handle()
    page.locator(f"#{id_}").click()
    gallery = page.get_by_role("dialog", name="Choose a voice")
    gallery.wait_for()
    page.evaluate("import('/static/js/api.js').then(({ health }) => health.dispatchEvent(new Event('changed')))")
    page.wait_for_function("(old) => !old.isConnected", arg=old)
    gallery.locator('[data-voice="onyx"] .choose').click()
    expect(page.locator(f"#{id_}")).to_have_attribute("value", "onyx")
    expect(page.locator(f"#{id_}")).to_be_focused()


def test_five_voices_speak_one_after_the_other(offline: str, visit: Visit) -> None:
    page = visit(offline).page
    gallery = opened(page)
    gallery.get_by_label("Sentence to hear").fill("Yes.")
    asked: list[str] = []
    page.on("request", lambda request: "/audio/speech" in request.url and asked.append(request.post_data_json["voice"]))
    gallery.get_by_role("button", name="Hear it in five voices").click()
    gallery.get_by_role("button", name="Stop", exact=True).wait_for()
    gallery.get_by_role("button", name="Hear it in five voices").wait_for()  # it ends by itself
    assert len(set(asked)) == len(asked) == 5
    gallery.get_by_role("button", name="Hear it in five voices").click()
    wait_audible(page)
    gallery.get_by_role("button", name="Stop", exact=True).click()
    gallery.get_by_role("button", name="Hear it in five voices").wait_for()
    assert len(asked) == 5  # what was heard once is kept


def test_the_gallery_works_with_the_keyboard_alone(offline: str, visit: Visit) -> None:
    page = visit(offline).page
    wait_voices(page)
    page.get_by_label("Voice", exact=True).focus()
    page.keyboard.press("ArrowDown")
    gallery = page.get_by_role("dialog", name="Choose a voice")
    expect(gallery.locator('[aria-current="true"]')).to_be_focused()
    names = gallery.locator("li b").all_inner_texts()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(gallery.locator("li").nth(1).locator(".choose")).to_be_focused()
    page.keyboard.press("Tab")
    expect(gallery.get_by_role("button", name=f"Play a sentence with {names[1]}")).to_be_focused()
    page.keyboard.press("Enter")
    wait_audible(page)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Voice", exact=True)).to_contain_text(names[1])
    until(page, "async () => !(await import('/static/js/player.js')).player.playing")


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_a_thousand_voices_are_searched(offline: str, visit: Visit, size: dict[str, int], scheme: str) -> None:
    page = visit(offline, prepare=crowd, viewport=size, color_scheme=scheme).page
    gallery = opened(page)
    expect(gallery.get_by_role("status")).to_contain_text("voices")
    until(page, f"() => document.querySelectorAll('.cards li:not([hidden])').length > {COUNT}")
    assert gallery.bounding_box()["height"] <= size["height"]  # type: ignore[index]
    gallery.get_by_label("Language").select_option("fr")
    gallery.get_by_label("Search the voices").fill("speaker 99")
    expect(gallery.get_by_role("status")).to_have_text("3 voices")  # 99 is Spanish; 990, 994 and 998 are French
    gallery.get_by_label("Language").select_option("")
    expect(gallery.get_by_role("status")).to_have_text("11 voices")
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    gallery.get_by_label("Search the voices").fill("")
    gallery.get_by_role("button", name="Standard").click()
    expect(gallery.get_by_role("status")).not_to_have_text("11 voices")
    page.keyboard.press("Escape")
    page.goto(f"{offline}/dialogue")
    for _ in range(2):
        page.get_by_role("button", name="Add a line").click()
    pick_voice(page, "Voice: Line 2", "onyx")
    expect(page.get_by_label("Voice: Line 2")).to_have_attribute("value", "onyx")
