"""All pages: accessibility, keyboard, size of the first load, languages, themes, and hostile names."""

from __future__ import annotations

import gzip
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.api.routes.pages import texts
from tests.support.live import ROOT
from tests.support.studio import (
    SHORT,
    error_codes,
    pick_voice,
    speak,
    text_folders,
    texts_of,
    until,
    wait_audible,
    wait_state,
    wait_takes,
    wait_voices,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page, Route

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect

PAGES = ("/", "/voice-cloning", "/dialogue", "/live", "/books", "/server", "/pronunciation")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
AXE = (Path(__file__).parent / "vendor" / "axe-4.14.1.min.js").read_text()
STATIC = ROOT / "app" / "static"


def settle(page: Page) -> None:
    page.wait_for_load_state("networkidle")


def fill(page: Page, path: str) -> None:
    """Use the page, so that it shows its contents."""
    settle(page)
    if path == "/":
        speak(page, f"{SHORT} {SHORT}")
        wait_state(page, "done")
        page.wait_for_selector(".take")
    if path == "/dialogue":
        page.get_by_role("button", name="Fill in a sample").click()
    if path == "/server":
        page.wait_for_selector(".engines td")


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def axe_violations(page: Page) -> list[str]:
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'], preload: false })")
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:160]} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("size", [(390, 844), (768, 1024), (1280, 720), (1440, 900)], ids=str)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_no_violation(server: str, visit: Visit, path: str, scheme: str, size: tuple[int, int]) -> None:
    viewport = {"width": size[0], "height": size[1]}
    page = visit(server + path, viewport=viewport, color_scheme=scheme).page
    fill(page, path)
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)


@pytest.mark.parametrize("locale", ["en-GB", "de-DE", "fr-FR"])
def test_every_page_fits_each_width(server: str, visit: Visit, locale: str) -> None:
    """With the longest state that the header shows."""
    page = visit(server, locale=locale).page
    settle(page)
    for path in PAGES:
        page.goto(server + path)
        settle(page)
        for width in (360, 390, 719, 720, 768, 900, 901, 1024, 1080, 1081, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            page.evaluate("document.getElementById('pill-text').textContent = 'unsloth/csm-1b-quite-long is starting'")
            assert not scrolls_sideways(page), (path, width)


def test_dialogs_pass_axe_and_give_the_focus_back(server: str, visit: Visit) -> None:
    page = visit(server).page
    settle(page)
    menu = page.get_by_role("button", name="Menu")
    menu.click()
    assert axe_violations(page) == []
    page.keyboard.press("Escape")
    assert menu.evaluate("menu => menu === document.activeElement")
    menu.click()
    page.get_by_role("button", name="API key").click()
    assert axe_violations(page) == []
    page.keyboard.press("Escape")


def test_buttons_on_a_phone_are_at_least_44_pixels_high(server: str, visit: Visit) -> None:
    page = visit(server, viewport=PHONE).page
    fill(page, "/")
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, nav a, input:not([type=checkbox])")]
        .filter((each) => each.checkVisibility())
        .map((each) => [each.outerHTML.slice(0, 90), each.getBoundingClientRect()])
        .filter(([, box]) => box.height < 44 && box.height > 0).map(([html, box]) => `${html} ${box.height}`)"""
    )
    assert small == []


def test_the_first_load_is_small_and_does_not_shift(server: str, visit: Visit) -> None:
    sizes: list[int] = []

    def weigh(page: Page) -> None:
        page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))

    watched = visit(server, prepare=weigh)
    settle(watched.page)
    requests = [url for url in watched.requests if not url.startswith("data:")]
    assert len(requests) <= 15, requests
    assert sum(sizes) <= 60_000
    assert watched.page.evaluate("observed.shift") < 0.02
    print("first load:", len(requests), "requests,", sum(sizes), "bytes")


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()) <= 450_000
    code = b"".join(path.read_bytes() for path in STATIC.rglob("*.js"))
    assert len(gzip.compress(code)) < 101_000


def test_the_tab_key_visits_the_controls_in_order(server: str, visit: Visit) -> None:
    page = visit(server).page
    settle(page)
    write(page, SHORT)
    page.get_by_role("textbox").first.focus()
    way = [
        "Insert a pause",
        "voice",
        "Play a sentence with this voice",
        "model",
        "speed",
        "Sampling, seed, format",
        "Speak",
    ]
    name_of = r"""() => {
      const at = document.activeElement;
      return at.getAttribute("aria-label") || at.id || at.innerText.split("\n")[0];
    }"""
    found = []
    for _ in way:
        page.keyboard.press("Tab")
        found.append(page.evaluate(name_of))
    assert [each.replace("Ctrl+Enter", "").strip() for each in found] == way
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "2px"
    page.keyboard.press("Enter")
    wait_audible(page)


def test_single_keys_work_outside_fields_and_can_be_turned_off(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, f"{SHORT} {SHORT}")
    wait_audible(page)
    page.locator("h1").focus()
    page.keyboard.press(" ")
    page.wait_for_selector('#dock[data-playing="false"]')
    page.keyboard.press("/")
    assert page.get_by_role("textbox").first.evaluate("field => field === document.activeElement")
    page.keyboard.type("/ ?x")
    assert page.get_by_role("textbox").first.input_value().endswith("/ ?x")
    page.locator("h1").focus()
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="List of keys")
    keys.wait_for()
    assert {"Ctrl+Enter", "Esc", "Space", "X", "?", "Alt+↑", "["} <= set(keys.locator("kbd").all_inner_texts())
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Menu").click()
    page.get_by_label("Single-key shortcuts").uncheck()
    page.keyboard.press("Escape")
    page.locator("h1").focus()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").count() == 0


def test_changing_the_page_continues_playback_and_focuses_the_heading(server: str, visit: Visit) -> None:
    watched = visit(server)
    page = watched.page
    speak(page, " ".join([SHORT] * 6))
    wait_audible(page)
    loads = len([url for url in watched.requests if url.endswith("/js/main.js")])
    for name, path in (("Voices", "/voice-cloning"), ("Dialogue", "/dialogue"), ("Server", "/server")):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        page.wait_for_selector(f'main[data-page="{path}"]')
        until(page, "() => document.activeElement.tagName === 'H1'")
        assert page.title().startswith(name)
    page.go_back()
    page.wait_for_selector('main[data-page="/dialogue"]')
    assert page.get_attribute("#dock", "data-playing") == "true"
    assert len([url for url in watched.requests if url.endswith("/js/main.js")]) == loads
    page.reload()
    page.wait_for_selector('main[data-page="/dialogue"]')


def test_an_unknown_address_has_a_page_in_words(server: str, visit: Visit) -> None:
    watched = visit(f"{server}/dialog/ue", locale="fr-FR")
    watched.expected.add("404")
    page = watched.page
    page.get_by_role("heading", name="Cette page n’existe pas", level=1).wait_for()
    assert axe_violations(page) == []
    page.get_by_role("link", name="Vers le studio").click()
    page.get_by_role("heading", name="Parler", level=1).wait_for()
    page.get_by_text("Votre texte devient parole sur ce serveur").wait_for()  # what this is


def test_a_page_that_can_not_be_loaded_says_so_and_is_tried_again(server: str, visit: Visit) -> None:
    watched = visit(server)
    watched.expected |= {"net::ERR", "Failed to fetch dynamically imported module"}
    page = watched.page
    settle(page)
    page.route("**/pages/dialogue.js", lambda route: route.abort())
    page.get_by_role("navigation").get_by_role("link", name="Dialogue").click()
    page.get_by_text("This page could not be loaded.").first.wait_for()
    assert page.locator("h1").inner_text() == "Dialogue"
    assert axe_violations(page) == []
    page.unroute("**/pages/dialogue.js")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="Fill in a sample").wait_for()


def test_a_studio_that_can_not_start_says_so(server: str, visit: Visit) -> None:
    watched = visit(server, locale="de-DE", prepare=lambda page: page.route("**/js/ui.js", lambda route: route.abort()))
    watched.expected.add("net::ERR")
    page = watched.page
    page.get_by_role("heading", name="Das Studio konnte nicht geladen werden.").wait_for()
    page.unroute("**/js/ui.js")
    page.get_by_role("link", name="Noch einmal versuchen").click()
    page.get_by_role("heading", name="Sprechen", level=1).wait_for()


HOSTILE = '<img src=x onerror="window.owned = true">'


def test_html_in_a_voice_name_is_shown_as_text(server: str, visit: Visit) -> None:
    voice = {
        "id": HOSTILE,
        "name": HOSTILE,
        "object": "audio.voice",
        "type": "preset",
        "language": "en",
        "description": HOSTILE,
    }

    def plant(page: Page) -> None:
        page.route("**/v1/audio/voices", lambda route: route.fulfill(json={"voices": [voice], "data": [voice]}))

    watched = visit(server, prepare=plant)
    watched.expected.add("400")
    page = watched.page
    wait_voices(page)
    pick_voice(page, "Voice", HOSTILE)
    speak(page, HOSTILE)
    wait_state(page, "error")
    assert HOSTILE[:20] not in page.locator(".error").inner_text()
    page.locator(".error summary").click()
    assert HOSTILE[:20] in page.locator(".error").inner_text()  # the API quotes it
    assert page.locator(".error").inner_text().count("Choose another voice.") == 1
    assert page.locator(".error .headline").inner_text() == "This voice can’t be used."
    page.get_by_role("navigation").get_by_role("link", name="Voices").click()
    page.locator("main").get_by_text(HOSTILE).first.wait_for()
    assert page.locator("main img, dialog img, #dock img").count() == 0
    assert page.evaluate("window.owned") is None


ERRORS = """async ([language, errors]) => {
  const { ApiError } = await import("/static/js/api.js");
  const { loadLanguage, loadTexts } = await import("/static/js/ui.js");
  await loadLanguage(language);
  await loadTexts("errors/");
  return errors.map((error) => new ApiError(error).headline);
}"""
IN_WORDS = {
    "en": "This voice can’t be used.",
    "de": "Diese Stimme ist nicht verwendbar.",
    "fr": "Cette voix n’est pas utilisable.",
}


@pytest.mark.parametrize("language", ["en", "de", "fr"])
def test_error_codes_have_words(server: str, visit: Visit, language: str) -> None:
    page = visit(server).page
    codes = sorted(error_codes())

    def headlines(status: int) -> list[str]:
        errors = [{"status": status, "code": code, "message": "API"} for code in codes]
        headlines: list[str] = page.evaluate(ERRORS, [language, errors])
        return headlines

    first = headlines(418)
    assert first == headlines(599)  # the words of a code, not those of a status
    assert dict(zip(codes, first, strict=True))["voice_not_found"] == IN_WORDS[language]
    known = set(texts_of(language).values())
    assert {headline for headline in first if headline not in known} == {
        texts_of(language)[f"errors.{key}"].replace(" ({param})", "")
        for key in ("invalid", "string_too_long", "unsupported")
    }
    wrong = {"status": 400, "code": "less_than_equal", "param": "speed", "message": "API"}
    [headline] = page.evaluate(ERRORS, [language, [wrong]])
    assert headline == texts_of(language)["errors.invalid"].replace("{param}", "speed")


def test_an_error_is_shown_in_the_language_of_the_page(server: str, visit: Visit) -> None:
    def choose(page: Page) -> None:
        page.add_init_script("localStorage.setItem('studio.voice', 'gone')")

    watched = visit(server, locale="de-DE", prepare=choose)
    watched.expected.add("400")
    page = watched.page
    write(page, SHORT)
    page.get_by_role("button", name="Sprechen", exact=True).click()
    wait_state(page, "error")
    error = page.locator(".error")
    assert error.locator(".headline").inner_text() == IN_WORDS["de"]
    details = error.locator("details")
    assert details.locator("p").first.is_hidden()
    details.locator("summary").click()
    assert "gone" in details.locator("[lang=en]").inner_text()
    assert details.locator("code").inner_text().startswith("req_")
    assert axe_violations(page) == []


def pseudo(words: dict[str, str], group: str = "") -> dict[str, str]:
    """Lengthen the captions by 40 %, as in other languages. Placeholders stay."""

    def longer(text: str) -> str:
        slots = re.sub(r"\{\w+\}", "", text)
        return text + "·" + "ēxtra "[: max(1, round(0.4 * len(slots)) % 6 + 1)] * max(1, round(0.4 * len(slots)) // 6)

    return {key: text if key == "dir" or group == "sample" else longer(text) for key, text in words.items()}


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_longer_captions_fit(server: str, visit: Visit, viewport: dict[str, int]) -> None:
    def fulfill(words: object, route: Route) -> None:
        route.fulfill(json=words)

    def lengthen(page: Page) -> None:
        for folder in text_folders():
            words = {
                group: pseudo({group: entries})[group] if isinstance(entries, str) else pseudo(entries, group)
                for group, entries in json.loads(texts(folder, "en")).items()
            }
            page.route(f"**/i18n/{folder}en.json", partial(fulfill, words))

    for path in PAGES:
        page = visit(server + path, prepare=lengthen, viewport=viewport).page
        settle(page)
        assert page.locator("h1").inner_text().endswith(("ē", "ēx", "ēxt", "ēxtr", "ēxtra"))
        assert not scrolls_sideways(page)


@pytest.mark.parametrize(("language", "heading"), [("de", "Sprechen"), ("fr", "Parler")])
def test_the_chosen_language_applies_at_once_and_after_a_reload(
    server: str, visit: Visit, language: str, heading: str
) -> None:
    page = visit(server).page
    write(page, SHORT)
    page.get_by_role("button", name="Menu").click()
    page.get_by_label("Language", exact=True).select_option(language)
    page.get_by_role("heading", name=heading, level=1).wait_for()
    assert page.get_by_role("textbox").first.input_value() == SHORT
    page.reload()
    page.get_by_role("heading", name=heading, level=1).wait_for()
    assert page.get_attribute("html", "lang") == language
    page.get_by_role("button", name=heading, exact=True).click()
    wait_takes(page, 1)
    settle(page)
    assert not re.search(r"\b[a-z]+\.[a-z_]+\b(?!\.)", page.locator("nav").inner_text())
    raw = page.evaluate(
        r"""() => {
          const found = [];
          const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walk.nextNode()) found.push(walk.currentNode.data);
          return found.filter((text) => /^[a-z]+(\.[a-z_0-9]+)+$/.test(text));
        }"""
    )
    assert raw == []


def test_the_language_of_the_browser_is_the_default(server: str, visit: Visit) -> None:
    page = visit(server, locale="de-AT").page
    page.get_by_role("heading", name="Sprechen", level=1).wait_for()
    assert page.get_attribute("html", "lang") == "de"


def test_the_theme_stays_after_a_reload(server: str, visit: Visit) -> None:
    page = visit(server, color_scheme="light").page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Menu").click()
    page.get_by_label("Theme").select_option("dark")
    page.keyboard.press("Escape")
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate(ground) != light


def test_the_server_page_shows_engines_and_load(server: str, visit: Visit) -> None:
    page = visit(f"{server}/server").page
    page.wait_for_selector(".engines td")
    page.get_by_text("The server is ready.").wait_for()
    row = page.locator(".engines tbody tr").first
    assert row.locator("th").inner_text() == "espeak"
    assert "ready" in row.inner_text()
    assert "0 of 32" in row.inner_text()
    page.get_by_text("Memory (cpu)").wait_for()
    speaking: Any = page.locator(".plot", has_text="Speaking")
    assert "0 of 32" in speaking.inner_text()
    assert speaking.locator(".axes span").all_inner_texts() == ["32", "0", "-5 min", "Now"]
    row = page.locator(".facts-list").get_by_role("link", name="Entries")
    row.wait_for()
    answers = page.locator(".plot", has_text="Spoken answers per minute")
    expect(answers.locator(".now")).to_have_text("0.0")  # the requests of the page itself do not count
    httpx.post(f"{server}/v1/audio/speech", json={"input": SHORT}).raise_for_status()
    expect(answers.locator(".now")).not_to_have_text("0.0")


@pytest.mark.slow
def test_the_server_page_shows_the_last_values_of_a_stopped_server(visit: Visit, tmp_path: Path) -> None:
    from tests.support.live import serving

    with serving(tmp_path) as url:
        watched = visit(f"{url}/server")
        watched.expected.add("net::ERR")
        watched.page.wait_for_selector(".engines td")
    watched.page.get_by_text("These values are").wait_for()
    assert watched.page.locator(".engines tbody tr").first.locator("th").inner_text() == "espeak"


def test_no_script_is_longer_than_400_lines() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (STATIC / "js").rglob("*.js")}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
