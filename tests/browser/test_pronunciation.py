"""The Pronunciation page: add, hear, remove, import and export entries of the server's and a voice's dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.studio import held_route, hold_first, until, wait_audible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page, Route

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]

LEXICON = "/v1/audio/lexicon"


@pytest.fixture
def dictionaries(server: str) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """A function that returns the entries of the server's or a voice's dictionary. Empty before and after the test."""

    def entries(voice: str = "", put: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        params = {"voice": voice} if voice else {}
        if put is not None:
            httpx.put(server + LEXICON, params=params, json={"entries": put}).raise_for_status()
        return list(httpx.get(server + LEXICON, params=params).json()["entries"])

    yield entries
    for voice in ("", "nova"):
        entries(voice, [])


def rows(page: Page) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts()[:2] for row in page.locator("tbody tr").all()]


def fill(page: Page, word: str, say: str) -> None:
    page.get_by_label("Word or phrase").fill(word)
    page.get_by_label("Spoken as").fill(say)


def test_an_entry_is_added_replaced_removed_and_restored(server: str, visit: Visit, dictionaries: Any) -> None:
    page = visit(f"{server}/pronunciation").page
    page.get_by_text("There are no entries yet.").wait_for()
    fill(page, "SQL", "sequel")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Remove SQL", exact=True).wait_for()
    assert rows(page) == [["SQL", "sequel"]]
    assert page.get_by_label("Word or phrase").input_value() == ""
    fill(page, "sql", "squeal")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Remove sql", exact=True).wait_for()
    assert [entry["say"] for entry in dictionaries()] == ["squeal"]
    fill(page, "US", "you ess")
    page.get_by_label("Capitals matter").check()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove US", exact=True).wait_for()
    assert [(entry["word"], entry["case_sensitive"]) for entry in dictionaries()] == [("sql", False), ("US", True)]
    page.get_by_role("button", name="Remove sql", exact=True).click()
    until(page, "() => document.querySelectorAll('tbody tr').length === 1")
    assert [entry["word"] for entry in dictionaries()] == ["US"]
    page.get_by_role("button", name="Undo").click()
    until(page, "() => document.querySelectorAll('tbody tr').length === 2")
    assert sorted(entry["word"] for entry in dictionaries()) == ["US", "sql"]


def test_the_next_entry_can_be_written_while_one_is_stored(server: str, visit: Visit, dictionaries: Any) -> None:
    page = visit(f"{server}/pronunciation").page
    page.get_by_text("There are no entries yet.").wait_for()
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if route.request.method == "PUT" and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/audio/lexicon", hold_the_first)
    fill(page, "SQL", "sequel")
    with page.expect_request(lambda sent: sent.method == "PUT"):
        page.keyboard.press("Enter")
    fill(page, "US", "you ess")
    page.keyboard.press("Enter")
    fill(page, "York", "jork")
    held[0].continue_()
    page.get_by_role("button", name="Remove US", exact=True).wait_for()
    assert page.get_by_label("Word or phrase").input_value() == "York"
    assert sorted(entry["word"] for entry in dictionaries()) == ["SQL", "US"]


def test_an_entry_is_heard_before_it_is_stored(server: str, visit: Visit, dictionaries: Any) -> None:
    watched = visit(f"{server}/pronunciation")
    page = watched.page
    bodies: list[Any] = []
    page.on("request", lambda sent: bodies.append(sent.post_data_json) if sent.url.endswith("/speech") else None)
    fill(page, "SQL", "sequel")
    page.get_by_role("button", name="Hear it").click()
    wait_audible(page)
    entry = {"word": "SQL", "say": "sequel", "case_sensitive": False, "ipa": None}
    assert (bodies[0]["input"], bodies[0]["lexicon"]) == ("SQL", [entry])
    assert dictionaries() == []


CONFLICT = "Someone else has changed this dictionary. Below are the entries as they are now."


def test_changes_of_another_person_are_never_overwritten(server: str, visit: Visit, dictionaries: Any) -> None:
    dictionaries("", [{"word": "SQL", "say": "sequel"}])
    watched = visit(f"{server}/pronunciation")
    watched.expected.add("412")
    page = watched.page
    page.get_by_role("button", name="Remove SQL", exact=True).wait_for()
    dictionaries("", [{"word": "SQL", "say": "squeal"}, {"word": "York", "say": "yawk"}])  # another person
    page.get_by_role("button", name="Remove SQL", exact=True).click()
    page.locator(".error").get_by_text(CONFLICT).wait_for()
    assert rows(page) == [["SQL", "squeal"], ["York", "yawk"]]
    assert [entry["say"] for entry in dictionaries()] == ["squeal", "yawk"]
    page.get_by_role("button", name="Repeat my change").click()
    until(page, "() => document.querySelectorAll('tbody tr').length === 1")
    assert [entry["word"] for entry in dictionaries()] == ["York"]
    assert page.locator(".error").get_by_text(CONFLICT).count() == 0
    dictionaries("", [])
    page.get_by_role("button", name="Undo").click()
    page.locator(".error").get_by_text(CONFLICT).wait_for()
    assert dictionaries() == []
    page.get_by_role("button", name="Repeat my change").click()
    until(page, "() => document.querySelectorAll('tbody tr').length === 1")
    assert [entry["say"] for entry in dictionaries()] == ["squeal"]


def test_form_and_file_stay_until_they_are_stored(server: str, visit: Visit, dictionaries: Any, tmp_path: Path) -> None:
    watched = visit(f"{server}/pronunciation")
    watched.expected.add("412")
    page = watched.page
    page.get_by_text("There are no entries yet.").wait_for()
    dictionaries("", [{"word": "York", "say": "yawk"}])
    fill(page, "SQL", "sequel")
    page.get_by_role("button", name="Add").click()
    page.locator(".error").get_by_text(CONFLICT).wait_for()
    assert page.get_by_label("Word or phrase").input_value() == "SQL"
    page.get_by_role("button", name="Repeat my change").click()
    page.get_by_role("button", name="Remove SQL", exact=True).wait_for()
    assert page.get_by_label("Word or phrase").input_value() == ""
    assert [entry["word"] for entry in dictionaries()] == ["York", "SQL"]
    dictionaries("", [])
    path = tmp_path / "words.tsv"
    path.write_text("US\tyou ess\n")
    page.locator("input[type=file]").set_input_files(path)
    page.locator(".error").get_by_text(CONFLICT).wait_for()
    page.get_by_role("button", name="Repeat my change").click()
    page.get_by_role("button", name="Remove US", exact=True).wait_for()
    assert [entry["word"] for entry in dictionaries()] == ["US"]


def test_entry_added_while_the_dictionary_is_read_keeps_the_others(
    server: str, visit: Visit, dictionaries: Any
) -> None:
    """Also if the first request fails: an unread dictionary is never replaced."""
    dictionaries("", [{"word": "York", "say": "yawk"}])
    held: list[list[Route]] = []
    watched = visit(f"{server}/pronunciation", prepare=lambda page: held.append(hold_first(page, "**" + LEXICON)))
    watched.expected.add("ERR_FAILED")
    page = watched.page
    fill(page, "SQL", "sequel")
    page.get_by_role("button", name="Add").click()
    assert page.get_by_text("There are no entries yet.").is_hidden()
    held_route(page, held[0]).abort()
    page.get_by_role("button", name="Remove SQL", exact=True).wait_for()
    assert [entry["word"] for entry in dictionaries()] == ["York", "SQL"]


def test_a_voice_has_its_own_dictionary(server: str, visit: Visit, dictionaries: Any) -> None:
    dictionaries("", [{"word": "SQL", "say": "sequel"}])
    page = visit(f"{server}/pronunciation").page
    page.get_by_role("button", name="Remove SQL", exact=True).wait_for()
    page.get_by_label("Dictionary", exact=True).select_option("nova")
    page.get_by_text("There are no entries yet.").wait_for()
    fill(page, "York", "yawk")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Remove York", exact=True).wait_for()
    assert [entry["word"] for entry in dictionaries("nova")] == ["York"]
    assert [entry["word"] for entry in dictionaries()] == ["SQL"]


def test_a_wrong_entry_shows_what_is_wrong(server: str, visit: Visit, dictionaries: Any) -> None:
    watched = visit(f"{server}/pronunciation")
    watched.expected.add("400")
    page = watched.page
    fill(page, "SQL", "...")
    page.get_by_role("button", name="Add").click()
    page.locator(".error").get_by_text("The server does not accept this (say).").wait_for()
    page.locator(".error").get_by_text("contains nothing that can be spoken").wait_for()
    assert page.get_by_label("Word or phrase").input_value() == "SQL"
    assert dictionaries() == []


def test_a_file_is_imported_and_exported(server: str, visit: Visit, dictionaries: Any, tmp_path: Path) -> None:
    dictionaries("", [{"word": "SQL", "say": "old"}])
    page = visit(f"{server}/pronunciation").page
    page.get_by_role("button", name="Remove SQL", exact=True).wait_for()
    text = (
        "# names\nSQL\tsequel\nUS\tyou ess\tcase\n\\#1\tnumber one\n"
        "Win\tn\u026a\tipa\nJoe\tjoh\tcase ipa=d\u0292o\nbroken\n"
    )
    path = tmp_path / "words.tsv"
    path.write_text(text)
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text("5 entries were imported. Lines that can\u2019t be read: 7.", exact=True).first.wait_for()
    stored = {entry["word"]: entry for entry in dictionaries()}
    assert list(stored) == ["SQL", "US", "#1", "Win", "Joe"]
    assert (stored["SQL"]["say"], stored["Win"]["say"], stored["Win"]["ipa"]) == ("sequel", "", "n\u026a")
    assert (stored["Joe"]["case_sensitive"], stored["Joe"]["ipa"]) == (True, "d\u0292o")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export TSV").click()
    expected = text.removeprefix("# names\n").removesuffix("broken\n")
    assert download.value.path().read_text() == expected


def test_the_search_limits_the_rows(server: str, visit: Visit, dictionaries: Any) -> None:
    dictionaries("", [{"word": f"word{number}", "say": "x"} for number in range(250)])
    page = visit(f"{server}/pronunciation").page
    page.get_by_text("50 more entries. The search finds them.").wait_for()
    page.get_by_label("Search entries").fill("word249")
    assert rows(page) == [["word249", "x"]]


def test_the_voices_page_links_to_the_dictionary(server: str, visit: Visit) -> None:
    page = visit(f"{server}/voice-cloning").page
    page.get_by_role("link", name="Pronunciation").click()
    page.wait_for_selector('main[data-page="/pronunciation"]')
    page.get_by_label("Word or phrase").wait_for()
