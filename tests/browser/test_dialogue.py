"""The Dialogue page: keys, one request for all lines, and the highlighted line during playback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.live import wait_until
from tests.support.studio import newest_take, until, wait_audible, wait_state, wait_takes, wait_voices

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]


def lines(page: Page) -> list[tuple[str, str, str]]:
    return [
        (
            row.locator("input").input_value(),
            str(row.locator(".pick").get_attribute("value")),
            row.locator("textarea").input_value(),
        )
        for row in page.locator(".line").all()
    ]


def texts(page: Page) -> list[str]:
    return [text for _, _, text in lines(page)]


def test_a_dialogue_is_one_request_and_highlights_the_line_that_plays(server: str, visit: Visit) -> None:
    watched = visit(f"{server}/dialogue")
    page = watched.page
    page.get_by_role("button", name="Fill in a sample").click()
    assert [(name, voice) for name, voice, _ in lines(page)] == [("Ann", "alloy"), ("Ben", "onyx")] * 2
    page.get_by_role("button", name="Speak all").click()
    wait_audible(page)
    highlighted: list[str] = []

    def played() -> bool:
        for text in page.evaluate(
            "[...document.querySelectorAll('.line[data-lit] textarea')].map((each) => each.value)"
        ):
            if text not in highlighted:
                highlighted.append(text)
        return page.get_attribute("#dock", "data-playing") == "false"

    wait_until(played)
    assert highlighted == texts(page)
    wait_takes(page, 1)
    take = newest_take(page)
    assert take["kind"] == "dialogue"
    assert [turn["speaker"] for turn in take["body"]["turns"]] == ["Ann", "Ben", "Ann", "Ben"]
    body = {**take["body"], "response_format": "pcm"}
    assert take["pcm"] == httpx.post(f"{server}/v1/audio/dialogue", json=body).content
    assert [part["turn"] for part in take["parts"]] == sorted(part["turn"] for part in take["parts"])
    assert len([url for url in watched.requests if url.endswith("/v1/audio/dialogue")]) == 1


def test_keys_add_move_and_join_lines(server: str, visit: Visit) -> None:
    page = visit(f"{server}/dialogue").page
    page.wait_for_selector("#dialogue-model option", state="attached")
    page.get_by_role("button", name="Add a line").click()
    page.keyboard.type("Hello.")
    page.keyboard.press("Enter")
    page.keyboard.type("Hi.")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("You.")
    page.keyboard.press("Enter")
    page.keyboard.type("Bye.")
    assert texts(page) == ["Hello.", "Hi.\nYou.", "Bye."]
    names = [name for name, _, _ in lines(page)]
    assert names[0] == names[2] != names[1]
    page.keyboard.press("Alt+ArrowUp")
    assert texts(page) == ["Hello.", "Bye.", "Hi.\nYou."]
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Enter")
    assert len(lines(page)) == 4
    page.keyboard.press("Backspace")
    assert texts(page) == ["Hello.", "Hi.\nYou.", "Bye."]
    page.keyboard.type("!")  # the cursor is at the end of the line before
    assert texts(page)[-1] == "Bye.!"
    page.keyboard.press("Control+Enter")
    wait_audible(page)
    wait_state(page, "done")
    page.reload()
    page.wait_for_selector(".line")
    assert texts(page) == ["Hello.", "Hi.\nYou.", "Bye.!"]


def test_line_can_be_played_moved_removed_and_restored(server: str, visit: Visit) -> None:
    watched = visit(f"{server}/dialogue")
    page = watched.page
    page.get_by_role("button", name="Fill in a sample").click()
    before = texts(page)
    page.get_by_role("button", name="Play line 2 alone, without context").click()
    wait_audible(page)
    assert [url for url in watched.requests if url.endswith("/v1/audio/speech")]
    page.get_by_role("button", name="Move line 2 up").click()
    assert texts(page)[:2] == [before[1], before[0]]
    page.get_by_role("button", name="Remove line 1").click()
    assert len(lines(page)) == 3
    page.get_by_role("button", name="Undo").click()
    assert texts(page)[:2] == [before[1], before[0]]
    page.get_by_role("button", name="Remove all lines").click()
    page.get_by_role("button", name="Fill in a sample").wait_for()
    page.get_by_role("button", name="Speak all").click()
    page.locator(".error").get_by_text("There are no lines yet.").wait_for()


def test_the_page_does_not_scroll_below_a_pressed_button(server: str, visit: Visit) -> None:
    """The text to read along comes into view when it is shown, but a button that is held down stays where it is."""
    page = visit(f"{server}/dialogue", viewport={"width": 1280, "height": 500}).page
    page.get_by_role("button", name="Fill in a sample").click()
    wait_voices(page)
    before = texts(page)
    page.get_by_role("button", name="Move line 2 up").hover()
    page.mouse.down()
    top = page.evaluate("scrollY")
    page.evaluate("document.querySelector('.go').click()")
    page.locator(".read [data-now]").wait_for()
    assert page.evaluate("scrollY") == top
    page.mouse.up()
    assert texts(page)[:2] == [before[1], before[0]]


def test_ten_speakers_of_a_pasted_script_have_ten_voices(server: str, visit: Visit) -> None:
    page = visit(f"{server}/dialogue").page
    page.get_by_role("button", name="Paste a script").click()
    script = "\n".join(f"Person {'ABCDEFGHIJ'[n]}: This is line {n}." for n in range(10))
    page.get_by_role("dialog").get_by_role("textbox").fill(script)
    page.get_by_role("button", name="Use this script").click()
    until(page, "() => document.querySelectorAll('.line').length === 10")
    assert len({voice for _, voice, _ in lines(page)}) == 10


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("Ann: Hello there.\nBen: Hi!\nand welcome.", [("Ann", "Hello there."), ("Ben", "Hi! and welcome.")]),
        ("[S1] Hello. [S2] Hi. [S1] Bye.", [("S1", "Hello."), ("S2", "Hi."), ("S1", "Bye.")]),
        ("Nobody says this.", [("Speaker 1", "Nobody says this.")]),
    ],
)
def test_a_pasted_script_becomes_lines(server: str, visit: Visit, script: str, found: list[tuple[str, str]]) -> None:
    page = visit(f"{server}/dialogue").page
    page.wait_for_selector("#dialogue-model option", state="attached")
    page.get_by_role("button", name="Paste a script").click()
    page.get_by_role("dialog").get_by_role("textbox").fill(script)
    page.get_by_role("button", name="Use this script").click()
    until(page, f"() => document.querySelectorAll('.line').length === {len(found)}")
    assert [(name, text) for name, _, text in lines(page)] == found
    voices = {name: voice for name, voice, _ in lines(page)}
    assert len(set(voices.values())) == len(voices)
