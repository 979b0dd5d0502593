"""Read along: the sounding word is lit in the text, a press on a word plays from there, and captions are saved."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.browser.test_manners import DESKTOP, PHONE, axe_violations, scrolls_sideways, settle
from tests.support.live import wait_until
from tests.support.studio import (
    LONG,
    at_s,
    newest_take,
    speak,
    until,
    wait_audible,
    wait_state,
    wait_takes,
    wait_worth_keeping,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]

TEXT = (
    "Good morning 🎉 to all! Tea costs $12.50 today, <b>and</b> the old clock struck seven.\n\n"
    "Why? Nobody knew about it."
)
LIT = "[...document.querySelectorAll('.read [data-now]')].map((each) => each.textContent)"
PLAYED = """
async () => {
  const { player } = await import("/static/js/player.js");
  const lit = document.querySelector(".read [data-now]");
  return { at_s: player.at_s, playing: player.playing, lit: lit && lit.textContent, n: lit && Number(lit.dataset.n) };
}
"""


def times(server: str, take: dict[str, Any]) -> list[dict[str, Any]]:
    """The words of a take with their times, as the API sends them."""
    body = {**take["body"], "response_format": "pcm", "captions": "json"}
    return httpx.post(f"{server}/v1/audio/captions", json=body).json()["words"]  # type: ignore[no-any-return]


def wait_words(page: Page) -> None:
    """Wait until the newest take has the times of its words."""
    until(page, "async () => (await (await import('/static/js/takes.js')).takes.all())[0]?.timed?.length > 0")


def wait_lit(page: Page, text: str) -> None:
    """Wait until exactly this word or sentence is lit."""
    wait_until(lambda: page.evaluate(LIT) == [text])


def play_to_the_end(page: Page) -> list[dict[str, Any]]:
    """Collect what is lit while the track plays."""
    seen: list[dict[str, Any]] = []

    def ended() -> bool:
        state = page.evaluate(PLAYED)
        if state["lit"] and (not seen or seen[-1]["n"] != state["n"]):
            seen.append(state)
        return not state["playing"]

    wait_until(ended)
    return seen


def pause_at(page: Page, second: float) -> None:
    page.evaluate(
        "async (at) => { const { player } = await import('/static/js/player.js'); player.pause(); player.seek(at); }",
        second,
    )


def test_the_sounding_word_is_lit_in_the_text(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, TEXT)
    wait_words(page)
    pause_at(page, 0)
    wait_lit(page, "Good")
    page.evaluate("async () => (await import('/static/js/player.js')).player.play()")
    seen = play_to_the_end(page)
    words = TEXT.replace("🎉 ", "").split()
    assert page.locator(".read").text_content() == TEXT
    assert page.locator(".read b").count() == 0  # markup in the text stays text
    assert len(seen) > len(words) // 2  # a test on a busy machine may miss words
    assert [each["lit"] for each in seen] == [words[each["n"]] for each in seen]
    timed = times(server, newest_take(page))
    assert [word["word"] for word in timed] == words
    for each in seen:
        word, following = timed[each["n"]], timed[min(each["n"] + 1, len(timed) - 1)]
        assert word["start"] - 0.1 < each["at_s"] < max(word["end"], following["start"]) + 0.2


def test_words_are_lit_while_the_speech_is_streamed(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, LONG)
    words = set(LONG.split())
    wait_until(lambda: [each for each in page.evaluate(LIT) if each in words] != [])
    assert page.get_attribute(".speak", "data-state") == "streaming"
    wait_worth_keeping(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_state(page, "partial")
    wait_words(page)  # a take that was stopped has the times of its words too


def test_each_moment_lights_its_word(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, TEXT)
    wait_words(page)
    for word in times(server, newest_take(page)):
        pause_at(page, (word["start"] + word["end"]) / 2)
        wait_lit(page, word["word"])


def test_press_on_a_word_plays_from_there(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, TEXT)
    wait_words(page)
    timed = times(server, newest_take(page))
    for place in (8, 2, len(timed) - 1):
        pause_at(page, 0)
        page.locator(f'.read [data-n="{place}"]').click()
        state = page.evaluate(PLAYED)
        assert state["playing"] or place == len(timed) - 1
        assert timed[place]["start"] - 0.001 <= state["at_s"] <= timed[place]["end"] + 1.0


def test_takes_of_the_history_light_their_words(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, TEXT)
    wait_state(page, "done")
    wait_words(page)
    page.reload()
    settle(page)
    page.get_by_role("textbox").first.fill("Another text.")
    assert page.locator(".read").count() == 0
    page.locator("[role=tabpanel] .take button").first.click()
    page.wait_for_selector(".read [data-now]")
    for word in times(server, newest_take(page))[::4]:
        pause_at(page, word["start"])
        wait_lit(page, word["word"])
    assert page.locator(".read").text_content() == TEXT


def test_old_takes_without_times_of_words_light_sentences(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, TEXT)
    wait_state(page, "done")
    wait_words(page)
    page.evaluate(
        "async () => { const { takes } = await import('/static/js/takes.js');"
        " await takes.change((await takes.all())[0].id, { timed: undefined }); }"
    )
    page.reload()
    settle(page)
    page.locator("[role=tabpanel] .take button").first.click()
    page.wait_for_selector(".read [data-now]")
    parts = newest_take(page)["parts"]
    assert len(parts) > 1
    for part in parts:
        pause_at(page, part["start_s"] + 0.1)
        wait_lit(page, part["text"])
    page.locator('.read [data-n="0"]').click()
    assert at_s(page) < parts[1]["start_s"]


def test_dialogue_lights_the_words_of_each_turn(server: str, visit: Visit) -> None:
    page = visit(f"{server}/dialogue").page
    page.get_by_role("button", name="Fill in a sample").click()
    page.get_by_role("button", name="Speak all").click()
    wait_words(page)
    take = newest_take(page)
    turns = take["body"]["turns"]
    page.wait_for_selector('.read [data-n="12"]')
    assert page.locator(".read").text_content() == "\n".join(f"{turn['speaker']}: {turn['text']}" for turn in turns)
    timed = times(server, take)
    assert [word["word"] for word in timed] == " ".join(turn["text"] for turn in turns).split()
    for place in (0, len(timed) // 2, len(timed) - 1):
        pause_at(page, (timed[place]["start"] + timed[place]["end"]) / 2)
        page.wait_for_selector(f'.read [data-now][data-n="{place}"]')
        assert page.evaluate(LIT) == [timed[place]["word"]]


def test_a_long_text_is_shown_in_parts(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, LONG)
    wait_audible(page)
    page.wait_for_selector(".read [data-now]")
    wait_state(page, "done")
    wait_words(page)
    timed = times(server, newest_take(page))
    for place in (0, 700, 1500, len(timed) - 1, 300):
        pause_at(page, (timed[place]["start"] + timed[place]["end"]) / 2)
        page.wait_for_selector(f'.read [data-now][data-n="{place}"]')
        assert page.evaluate(LIT) == [timed[place]["word"]]
        assert page.locator(".read span").count() < 900
        inside = page.evaluate(
            "(() => { const box = document.querySelector('.read').getBoundingClientRect();"
            " const word = document.querySelector('.read [data-now]').getBoundingClientRect();"
            " return word.top >= box.top - 1 && word.bottom <= box.bottom + 1; })()"
        )
        assert inside
        shown = page.locator(".read").text_content() or ""
        assert shown in LONG


CONTRAST = """
() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.querySelector(".read [data-now]"));
  const around = getComputedStyle(document.body).backgroundColor;
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  return [ratio(style.color, style.backgroundColor), ratio(style.backgroundColor, around)];
}
"""


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_lit_word_has_contrast_and_does_not_move(
    server: str, visit: Visit, scheme: str, viewport: dict[str, int]
) -> None:
    page = visit(server, viewport=viewport, color_scheme=scheme, reduced_motion="reduce").page
    speak(page, TEXT)
    wait_words(page)
    page.wait_for_selector(".read [data-now]")
    text, ground = page.evaluate(CONTRAST)
    assert text >= 4.5
    assert ground >= 3
    moving = page.evaluate(
        "[...document.querySelectorAll('.read, .read *')].map((each) => getComputedStyle(each))"
        ".filter((style) => style.animationName !== 'none' || style.transitionDuration !== '0s'"
        " || style.scrollBehavior !== 'auto').length"
    )
    assert moving == 0
    visible = page.evaluate(
        "(() => { const word = document.querySelector('.read [data-now]').getBoundingClientRect();"
        " const dock = document.querySelector('#dock').getBoundingClientRect();"
        " return word.top >= 0 && word.bottom <= dock.top; })()"
    )
    assert visible  # without scrolling by hand
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)


def test_the_text_is_hidden_in_a_blind_comparison(server: str, visit: Visit) -> None:
    page = visit(server).page
    for count in (1, 2):
        speak(page, TEXT)
        wait_state(page, "done")
        wait_takes(page, count)
    rows = page.locator(".take")
    rows.nth(0).get_by_role("button", name="A", exact=False).first.wait_for()
    page.locator('[data-mark="A"]').first.click()
    page.locator('[data-mark="B"]').nth(1).click()
    page.get_by_label("Blind").check()
    page.get_by_role("button", name="Compare A and B").click()
    until(page, "() => !document.querySelector('.read')?.checkVisibility()")


def test_captions_are_saved_beside_the_audio(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, TEXT)
    wait_state(page, "done")
    wait_takes(page, 1)
    body = {**newest_take(page)["body"], "response_format": "wav"}
    for kind in ("srt", "vtt"):
        page.locator("#dock").get_by_role("button", name="Save").click()
        with page.expect_download() as saving:
            page.get_by_role("button", name=kind.upper(), exact=True).click()
        content = saving.value.path().read_bytes()
        assert content == httpx.post(f"{server}/v1/audio/captions", json={**body, "captions": kind}).content
        assert re.fullmatch(rf"good-morning-.*\.{kind}", saving.value.suggested_filename)


def test_audio_is_saved_when_the_server_does_not_answer(server: str, visit: Visit) -> None:
    watched = visit(server)
    page = watched.page
    watched.expected.add("net::ERR_INTERNET_DISCONNECTED")
    speak(page, TEXT)
    wait_state(page, "done")
    wait_takes(page, 1)
    page.wait_for_selector(".read [data-now]")
    page.context.set_offline(True)
    page.locator("#dock").get_by_role("button", name="Save").click()
    with page.expect_download() as saving:
        page.get_by_role("button", name="WAV", exact=True).click()
    assert saving.value.path().read_bytes().startswith(b"RIFF")
    page.locator("#dock").get_by_role("button", name="Save").click()
    page.get_by_role("button", name="SRT", exact=True).click()
    page.get_by_text("The server does not answer.").first.wait_for()


def test_captions_of_a_dialogue_are_saved(server: str, visit: Visit) -> None:
    page = visit(f"{server}/dialogue").page
    page.get_by_role("button", name="Fill in a sample").click()
    page.get_by_role("button", name="Speak all").click()
    wait_takes(page, 1)
    page.locator("#dock").get_by_role("button", name="Save").click()
    with page.expect_download() as saving:
        page.get_by_role("button", name="VTT", exact=True).click()
    assert b"<v Ann>" in saving.value.path().read_bytes()


@pytest.mark.parametrize("highlight", ["none", "word"])
def test_the_browser_reads_the_captions(server: str, visit: Visit, highlight: str) -> None:
    """Chromium's own parser reads WebVTT with markup in the text, names of speakers and times of words."""
    page = visit(server).page
    turns = [{"speaker": "A<b> & C", "text": TEXT}, {"speaker": "Ben", "text": "It --> is &amp; 3 < 5, you know."}]
    cues = page.evaluate(
        """async ([turns, highlight]) => {
          const body = JSON.stringify({ turns, highlight, captions: "vtt", response_format: "wav" });
          const headers = { "Content-Type": "application/json" };
          const answer = await fetch("/v1/audio/captions", { method: "POST", body, headers });
          const audio = document.createElement("video");
          const track = document.createElement("track");
          track.src = URL.createObjectURL(await answer.blob());
          track.default = true;
          audio.append(track);
          document.body.append(audio);
          track.track.mode = "showing";
          await new Promise((resolve, reject) => { track.onload = resolve; track.onerror = reject; });
          return [...track.track.cues].map((cue) => [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent]);
        }""",
        [turns, highlight],
    )
    shown = "".join("".join(text.split()) for _, _, text in cues)
    assert shown == "".join("".join(turn["text"].split()) for turn in turns)
    assert all(start < end for start, end, _ in cues)
