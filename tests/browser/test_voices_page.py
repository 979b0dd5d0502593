"""The Voices page: new voices from a file, the microphone and YouTube; edit, export, import, delete; error messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from app import wiring
from app.types import Reference
from app.voices.store import VoiceStore
from app.voices.transcribe import RecogniserState
from tests.browser.test_manners import DESKTOP, PHONE, axe_violations, scrolls_sideways
from tests.browser.test_reach import REACHED
from tests.support import samples, tube
from tests.support.ears import decode
from tests.support.live import serving, wait_until
from tests.support.studio import serving_clones, speak, until, wait_audible, wait_state, wait_voices
from tests.unit.test_youtube import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]

HOSTILE = '<img src=x onerror="window.owned = true">'
CLONING = "/v1/voice-cloning"
RECORDED_S = 3.5
SENTENCE = "My own words, in my own voice."


@pytest.fixture(scope="module")
def sample() -> bytes:
    return samples.file(samples.speech(), "mp3")


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_clones(tmp_path_factory.mktemp("learning")) as url:
        yield url


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the offline voice. It stores recordings, but cannot speak with them."""
    with serving(tmp_path_factory.mktemp("offline")) as url:
        yield url


@pytest.fixture(autouse=True)
def _no_voices_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"learning", "offline"} & set(request.fixturenames):
        url = request.getfixturevalue(name)
        for voice in own(url):
            httpx.delete(f"{url}{CLONING}/voices/{voice['id']}").raise_for_status()


def own(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}{CLONING}/voices").json()["voices"]
    return found


def clone(url: str, sample: bytes, name: str = "Ann", **fields: str) -> dict[str, Any]:
    data = {"name": name, "transcript": samples.TEXT, **fields}
    answer = httpx.post(f"{url}{CLONING}/clone", data=data, files={"audio_file": ("a.mp3", sample)}, timeout=60)
    voice: dict[str, Any] = answer.raise_for_status().json()["voice"]
    return voice


# ---- actions in the wizard


def step(page: Page, name: str) -> None:
    page.wait_for_selector(f'.wizard[data-step="{name}"]')


def onward(page: Page) -> None:
    page.locator(".wizard-foot button.primary").click()


def begin(page: Page, way: str) -> None:
    page.get_by_role("link", name="New voice").click()
    step(page, "sample")
    page.get_by_role("tab", name=way).click()


def upload(page: Page, data: bytes, name: str = "ann.mp3") -> None:
    begin(page, "Upload")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files({"name": name, "mimeType": "audio/mpeg", "buffer": data})
    page.locator("strong", has_text=name).wait_for()


def trimmed(page: Page) -> None:
    step(page, "trim")
    page.wait_for_selector(".trim-handle.from[aria-valuenow]")


def words(page: Page, text: str = samples.TEXT) -> None:
    step(page, "words")
    page.get_by_label("Words", exact=True).fill(text)
    onward(page)
    step(page, "check")
    judged(page)
    onward(page)


def judged(page: Page) -> None:
    """Wait for the result of the check. It takes seconds on a busy machine."""
    page.wait_for_selector(".verdict", timeout=60_000)


def agree(page: Page) -> None:
    step(page, "consent")
    page.get_by_label("It is my own voice.").check()
    onward(page)


def name_and_save(page: Page, name: str) -> None:
    step(page, "try")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Save the voice").click()
    page.get_by_role("heading", name=name, level=2, exact=True).wait_for()


def shows(page: Page, text: str) -> None:
    """Wait until the page shows the text. Announcements for screen readers do not count."""
    page.locator("main, .toast").get_by_text(text).first.wait_for()


def focused(page: Page, locator: Locator) -> bool:
    return bool(locator.evaluate("element => element === document.activeElement"))


# ---- making a voice


def test_a_voice_made_from_a_file_can_speak(learning: str, sample: bytes, visit: Visit) -> None:
    watched = visit(f"{learning}/voice-cloning")
    watched.expected.add("400")  # the server cannot recognise the words
    page = watched.page
    upload(page, sample)
    onward(page)
    trimmed(page)
    start_s, end_s = (
        float(str(page.get_attribute(f".trim-handle.{edge}", "aria-valuenow"))) for edge in ("from", "to")
    )
    assert 0 <= start_s < 0.3  # the sample starts with 0.25 s of silence
    assert 8 <= end_s - start_s <= 20
    canvas = page.locator("canvas.trim-screen")
    assert canvas.bounding_box()["width"] > 300  # type: ignore[index]
    onward(page)
    step(page, "words")
    shows(page, "Type them.")  # the server has no recogniser
    onward(page)
    shows(page, "Write what is said in the recording.")
    assert focused(page, page.get_by_label("Words", exact=True))
    page.get_by_label("Words", exact=True).fill(samples.TEXT)
    onward(page)
    judged(page)
    assert page.get_attribute(".verdict", "data-level") == "good"
    assert page.locator('[data-check="snr_db"]').inner_text().split("\n")[0] == "Good"
    onward(page)
    step(page, "consent")
    onward(page)
    shows(page, "Say whose voice it is.")
    assert focused(page, page.get_by_label("It is my own voice."))
    agree(page)
    step(page, "try")
    page.get_by_label("Sentence", exact=True).fill(SENTENCE)
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_audible(page)
    page.get_by_role("button", name="Compare with the sample").click()
    page.wait_for_selector("#dock .ab:not([hidden])")
    page.get_by_role("button", name="B", exact=True).click()
    wait_audible(page)
    name_and_save(page, "Ann")
    assert page.evaluate("location.hash").startswith("#voice_")
    (voice,) = own(learning)
    assert (voice["name"], voice["transcript"], voice["language"]) == ("Ann", samples.TEXT, "en")
    assert voice["consent"]["text"] == "It is my own voice."
    assert voice["quality"]["level"] == "good"

    assert httpx.get(f"{learning}/v1/models/reading-1").json()["clones"] is True
    shows(page, "can use it")
    page.get_by_role("button", name="Use as default").click()
    page.get_by_role("button", name="Compare with your recording").click()
    page.wait_for_selector("#dock .ab:not([hidden])")
    page.get_by_role("button", name="Speak with this voice").click()
    wait_voices(page)
    assert page.get_by_role("textbox").first.input_value() == SENTENCE
    assert page.get_by_label("Voice", exact=True).get_attribute("value") == voice["id"]
    page.reload()
    wait_voices(page)
    assert page.get_by_label("Voice", exact=True).get_attribute("value") == voice["id"]
    speak(page, "The same words as ever.")
    wait_audible(page)
    wait_state(page, "done")
    assert "Ann · reading-1" in page.locator(".take").first.inner_text()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save MP3").click()
    assert saved.value.suggested_filename == "the-same-words-as-ever-ann.mp3"
    page.get_by_label("Voice", exact=True).click()
    assert page.locator(".cards li").first.get_attribute("data-voice") == voice["id"]  # before the standard voices


def test_header_counts_the_standard_voices_while_they_are_made(tmp_path: Path, visit: Visit) -> None:
    with serving_clones(tmp_path, TTS_CASTING="auto") as url:
        page = visit(url).page
        pill = page.locator("#pill")
        pill.get_by_text(re.compile(r"^Voices ready: [1-9]\d* of 13$")).wait_for()


def test_missing_words_of_a_voice_can_be_written(learning: str, sample: bytes, visit: Visit) -> None:
    form = {"name": "Wordless"}
    made = httpx.post(
        f"{learning}/v1/voice-cloning/clone", data=form, files={"audio_file": ("a.mp3", sample)}, timeout=60
    )
    voice = made.json()["voice"]
    assert voice["status"] == "needs words"
    watched = visit(f"{learning}/voice-cloning#{voice['id']}")
    page = watched.page
    shows(page, "The words of this recording are missing.")
    assert page.locator(f'[data-voice="{voice["id"]}"] .badge.warn').inner_text() == "Needs words"
    assert page.locator("main .head .badge").count() == 0  # an engine can't use it yet
    assert "undefined" not in page.locator("main").inner_text()
    page.get_by_label("Words of the recording").fill(samples.TEXT)
    page.locator('[data-needs="words"] button.primary').click()
    shows(page, samples.TEXT)
    assert page.locator('[data-needs="words"]').count() == 0
    stored = httpx.get(f"{learning}/v1/voice-cloning/voices/{voice['id']}").json()
    assert (stored["status"], stored["transcript"]) == ("ready", samples.TEXT)
    watched.check()
    httpx.delete(f"{learning}/v1/voice-cloning/voices/{voice['id']}").raise_for_status()


class Listener:
    """A speech recogniser without weights that always returns the sample's words."""

    is_here = True

    def missing(self) -> str:
        return ""

    def prepare(self, _: Any = None) -> str:
        return ""

    def state(self) -> RecogniserState:
        return RecogniserState("ready")

    def close(self) -> None:
        pass

    def transcribe(self, _: Any, __: int, ___: str) -> str:
        return samples.TEXT


def test_recognised_words_can_be_corrected(
    tmp_path: Path, sample: bytes, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "create_transcriber", lambda *_, **__: Listener())
    with serving(tmp_path) as url:
        watched = visit(f"{url}/voice-cloning")
        page = watched.page
        upload(page, sample)
        onward(page)
        trimmed(page)
        onward(page)
        shows(page, "Recognised by the server")
        field = page.get_by_label("Words", exact=True)
        assert field.input_value() == samples.TEXT
        corrected = samples.TEXT.replace("weather", "whether")
        words(page, corrected)
        agree(page)
        name_and_save(page, "Ann")
        (voice,) = own(url)
        assert voice["transcript"] == corrected
        watched.check()


@pytest.mark.slow
def test_a_voice_is_made_from_the_microphone(offline: str, visit: Visit) -> None:
    watched = visit(f"{offline}/voice-cloning#new", permissions=["microphone"])
    watched.expected.add("400")  # the offline voice cannot speak with recordings
    page = watched.page
    step(page, "sample")
    script = page.locator("blockquote.script").inner_text()
    assert len(script.split()) > 25
    onward(page)
    shows(page, "Record something first.")
    page.get_by_role("button", name="Check the microphone").click()
    until(page, "() => Number(document.querySelector('[role=meter]')?.getAttribute('aria-valuenow') ?? -60) > -45")
    page.get_by_role("button", name="End the check").click()
    page.locator("button.record").click()
    page.wait_for_selector('[data-recorder="counting"]')
    page.wait_for_selector('[data-recorder="recording"]')
    until(page, f"() => document.querySelector('.wizard progress')?.value > {RECORDED_S}")
    page.locator("button.record").click()
    shows(page, "s recorded")
    page.get_by_role("button", name="Listen").click()
    wait_audible(page)
    onward(page)
    trimmed(page)
    onward(page)
    step(page, "words")
    assert page.get_by_label("Words", exact=True).input_value() == script
    shows(page, "From the text you read")
    words(page, "So they walked along the river and talked about it.")
    agree(page)
    step(page, "try")
    page.get_by_role("button", name="Speak", exact=True).click()
    box = page.locator(".error")
    box.get_by_text("This engine can’t speak with recordings.").wait_for()
    box.get_by_text("You can save the voice.").wait_for()
    name_and_save(page, "Me")
    (voice,) = own(offline)
    recording = decode(httpx.get(f"{offline}{CLONING}/voices/{voice['id']}/reference").content, "wav")
    assert recording.seconds > 2
    assert abs(recording.samples).max() > 0.1
    shows(page, "can't use recordings")


@pytest.mark.parametrize("same", [False, True])
def test_words_that_differ_from_the_script_are_noticed(offline: str, visit: Visit, *, same: bool) -> None:
    page = visit(f"{offline}/voice-cloning#new", permissions=["microphone"]).page
    step(page, "sample")
    heard = page.locator("blockquote.script").inner_text().upper() if same else "Something else was said here."
    answer = {"draft_id": "d", "transcript": heard, "audio_duration": 4, "quality": {"level": "good", "checks": []}}
    page.route("**/v1/voice-cloning/check", lambda route: route.fulfill(json=answer))  # there is no recogniser here
    page.locator("button.record").click()
    page.wait_for_selector('[data-recorder="recording"]')
    until(page, f"() => document.querySelector('.wizard progress')?.value > {RECORDED_S}")
    page.locator("button.record").click()
    shows(page, "s recorded")
    onward(page)
    trimmed(page)
    with page.expect_response("**/v1/voice-cloning/check"):
        onward(page)
    step(page, "words")
    page.get_by_text("The server recognises the words").wait_for(state="hidden")
    if same:
        assert page.locator("[data-differs]").count() == 0
        return
    shows(page, "What you said is not the text you were shown.")
    page.get_by_role("button", name="Use what was heard").click()
    assert page.get_by_label("Words", exact=True).input_value() == heard
    assert page.locator("[data-differs]").count() == 0


def test_a_recorded_consent_is_stored_with_the_voice(offline: str, sample: bytes, visit: Visit) -> None:
    watched = visit(f"{offline}/voice-cloning", permissions=["microphone"])
    watched.expected.add("400")
    page = watched.page
    upload(page, sample)
    onward(page)
    trimmed(page)
    onward(page)
    words(page)
    step(page, "consent")
    page.get_by_label("The speaker agreed").check()
    page.get_by_text("Add a spoken statement").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).click()
    shows(page, "That was too short.")
    assert page.locator("main").get_by_text("s recorded").count() == 0
    page.get_by_role("button", name="Record again", exact=True).click()
    until(page, "() => Number(document.querySelector('[role=meter]').getAttribute('aria-valuenow')) > -45")
    page.locator("main .time").get_by_text("0:02").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    shows(page, "s recorded")
    assert page.locator("main").get_by_text("That was too short.").count() == 0
    onward(page)
    name_and_save(page, "Ann")
    (voice,) = own(offline)
    assert voice["consent"]["id"].startswith("cons_")
    listed = httpx.get(f"{offline}/v1/audio/voice_consents").json()["data"]
    assert voice["consent"]["id"] in [each["id"] for each in listed]


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this name has the focus."""
    called = """() => { const e = document.activeElement;
        return (e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || '').trim(); }"""
    visited = []
    for _ in range(40):
        page.keyboard.press("Tab")
        visited.append(page.evaluate(called))
        if visited[-1].startswith(name):
            return
    raise AssertionError(f"{name!r} is not among {visited}")


def edges(page: Page) -> tuple[float, float]:
    start_s, end_s = (
        float(str(page.get_attribute(f".trim-handle.{edge}", "aria-valuenow"))) for edge in ("from", "to")
    )
    return start_s, end_s


def test_a_voice_is_made_with_the_keyboard_alone(offline: str, sample: bytes, visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "ann.mp3"
    path.write_bytes(sample)
    watched = visit(f"{offline}/voice-cloning")
    watched.expected.add("400")
    page = watched.page
    page.locator("h1").focus()
    tab_to(page, "New voice")
    page.keyboard.press("Enter")
    step(page, "sample")
    assert focused(page, page.locator(".wizard h2"))
    tab_to(page, "Record")
    page.keyboard.press("ArrowRight")
    with page.expect_file_chooser() as chooser:  # the file dialog opens while the keys are pressed
        tab_to(page, "Choose a file")
        page.keyboard.press("Enter")
    chooser.value.set_files(path)
    page.locator("strong", has_text="ann.mp3").wait_for()
    tab_to(page, "Next")
    page.keyboard.press("Enter")
    trimmed(page)
    assert focused(page, page.locator(".wizard h2"))
    tab_to(page, "Start")
    start_s, end_s = edges(page)
    for key, moved_s in (("ArrowRight", 0.05), ("Shift+ArrowRight", 0.5), ("ArrowLeft", -0.05), ("PageUp", 1.0)):
        page.keyboard.press(key)
        assert edges(page) == (pytest.approx(start_s + moved_s, abs=0.011), end_s)
        start_s += moved_s
    page.keyboard.press("Home")
    assert edges(page) == (0.0, end_s)
    page.keyboard.press("End")  # the server takes recordings of 1 s and more
    total_s = float(str(page.get_attribute(".trim-handle.to", "aria-valuemax")))
    assert edges(page) == (pytest.approx(total_s - 1, abs=0.02), pytest.approx(total_s, abs=0.02))
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    wait_audible(page)
    until(page, "async () => (await import('/static/js/player.js')).player.at_s > 0.5")
    page.keyboard.press(" ")
    page.wait_for_selector('#dock[data-playing="false"]')
    page.keyboard.press("[")
    assert 0.4 < edges(page)[0] < 3
    tab_to(page, "Start")
    page.keyboard.press("Control+a")
    page.keyboard.type("0:00.1")
    page.keyboard.press("Enter")  # confirms the field and opens the next step
    step(page, "words")
    tab_to(page, "Words")
    page.keyboard.insert_text(samples.TEXT)
    tab_to(page, "Next")
    page.keyboard.press("Enter")
    judged(page)
    tab_to(page, "Next")
    page.keyboard.press("Enter")
    step(page, "consent")
    tab_to(page, "It is my own voice.")
    page.keyboard.press(" ")
    page.keyboard.press("Enter")
    step(page, "try")
    tab_to(page, "Name")
    page.keyboard.press("Control+a")
    page.keyboard.type("Keys")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Keys", level=2).wait_for()
    assert focused(page, page.locator("#voice-title"))
    (voice,) = own(offline)
    assert voice["name"] == "Keys"


def test_the_handles_can_be_dragged_within_limits(offline: str, visit: Visit) -> None:
    long = samples.file(samples.speech(samples.WORDS * 2), "wav")
    page = visit(f"{offline}/voice-cloning").page
    upload(page, long, "long.wav")
    onward(page)
    trimmed(page)
    start_s, _ = edges(page)
    box = page.locator(".trim-handle.from").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 120, box["y"] + 5, steps=5)
    page.mouse.up()
    assert edges(page)[0] > start_s + 1
    for field, text in (("End", "500"), ("Start", "0")):
        page.get_by_label(field, exact=True).nth(1).fill(text)
        page.get_by_label(field, exact=True).nth(1).press("Tab")
    wait_until(lambda: edges(page) == (0.0, 30.0))


def test_a_file_without_audio_is_refused_with_the_error_of_the_api(offline: str, visit: Visit) -> None:
    watched = visit(f"{offline}/voice-cloning")
    watched.expected.add("400")
    page = watched.page
    upload(page, b"This is not sound. " * 100, "letter.mp3")
    shows(page, "This browser cannot decode this file.")
    onward(page)
    shows(page, "This recording cannot be used.")
    message = httpx.post(
        f"{offline}{CLONING}/check",
        files={"audio_file": ("letter.mp3", b"This is not sound. " * 100)},
    ).json()["error"]["message"]
    page.locator(".error").get_by_text("Choose another one.").wait_for()
    assert message in page.locator(".error").text_content()
    step(page, "sample")  # the fault is shown where the file was chosen
    assert focused(page, page.get_by_role("button", name="Choose a file"))
    assert own(offline) == []


def test_a_recording_that_fails_the_check_can_be_replaced(offline: str, visit: Visit) -> None:
    """The browser can decode the file. Only the server finds that it contains no speech."""
    watched = visit(f"{offline}/voice-cloning")
    watched.expected.add("400")
    page = watched.page
    upload(page, samples.file(samples.noise(5 * samples.RATE_HZ, 0.1), "wav"), "wind.wav")
    onward(page)
    trimmed(page)
    onward(page)
    error = page.locator(".error").get_by_text("This recording cannot be used.")
    for name in ("words", "check"):
        step(page, name)
        error.wait_for(timeout=60_000)
        assert "no speech" in (page.locator(".error").text_content() or "")
        if name == "words":
            page.get_by_label("Words", exact=True).fill(samples.TEXT)
        onward(page)
    shows(page, "The recording has not passed the check.")
    another = page.get_by_role("button", name="Another sample")
    assert focused(page, another)
    another.click()
    step(page, "sample")
    assert own(offline) == []


def test_a_silent_file_and_an_engine_without_clones_are_noticed_at_once(offline: str, visit: Visit) -> None:
    page = visit(f"{offline}/voice-cloning").page
    upload(page, samples.file(np.zeros(24_000 * 5, np.float32), "wav"), "silent.wav")
    page.locator('[data-help="clones"]').get_by_text("The running engine cannot use recordings.").wait_for()
    onward(page)
    shows(page, "The file contains only silence. Choose another file.")
    page.locator('[data-help="clones"]').get_by_role("link", name="See the engines of the server").wait_for()


def test_an_expired_draft_is_sent_again(offline: str, sample: bytes, visit: Visit) -> None:
    watched = visit(f"{offline}/voice-cloning")
    watched.expected.add("400")
    page = watched.page
    upload(page, sample)
    onward(page)
    trimmed(page)
    onward(page)
    step(page, "words")
    page.get_by_label("Words", exact=True).fill(samples.TEXT)
    with page.expect_response(lambda answer: answer.url.endswith("/check") and answer.ok, timeout=60_000) as checked:
        onward(page)
    draft = checked.value.json()["draft_id"]
    judged(page)
    onward(page)
    agree(page)
    taken = httpx.post(f"{offline}{CLONING}/clone", data={"name": "Other", "draft_id": draft})
    taken.raise_for_status()  # this uses up the draft, as half an hour does
    name_and_save(page, "Ann")
    assert sorted(voice["name"] for voice in own(offline)) == ["Ann", "Other"]


def test_any_language_tag_can_be_given(offline: str, sample: bytes, visit: Visit) -> None:
    watched = visit(f"{offline}/voice-cloning")
    watched.expected.add("400")
    page = watched.page
    upload(page, sample)
    language = page.get_by_label("Language spoken")
    assert language.locator("option", has_text="Spanish").count() == 1  # as the running engine lists it
    language.select_option("Another language…")
    onward(page)
    shows(page, "Write the language tag, such as es.")
    page.get_by_label("Language tag").fill("tlh")
    onward(page)
    trimmed(page)
    onward(page)
    words(page)
    agree(page)
    name_and_save(page, "Ann")
    (voice,) = own(offline)
    assert voice["language"] == "tlh"


@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 720}, {"width": 390, "height": 844}])
def test_the_chosen_file_and_next_are_seen_above_the_player(
    offline: str, sample: bytes, visit: Visit, viewport: dict[str, int]
) -> None:
    page = visit(offline, viewport=viewport).page
    speak(page, SENTENCE)
    wait_audible(page)
    page.get_by_role("navigation").get_by_role("link", name="Voices").click()
    upload(page, sample)
    page.get_by_role("button", name="Listen").click()
    assert page.evaluate(REACHED, ".wizard strong")
    page.get_by_role("tab", name="YouTube").click()
    page.get_by_role("button", name="Next").click()
    page.locator("#wizard-fault").wait_for()
    assert page.evaluate(REACHED, "#wizard-fault")
    assert page.evaluate(REACHED, ".wizard-foot .primary")


def test_leaving_the_wizard_asks_first(offline: str, sample: bytes, visit: Visit) -> None:
    page = visit(f"{offline}/voice-cloning").page
    upload(page, sample)
    page.get_by_role("navigation").get_by_role("link", name="Speak").click()
    box = page.get_by_role("dialog")
    assert focused(page, box.get_by_role("button", name="Keep editing"))
    box.get_by_role("button", name="Keep editing").click()
    step(page, "sample")
    page.go_back()
    page.get_by_role("dialog").get_by_role("button", name="Keep editing").click()
    step(page, "sample")
    assert page.evaluate("location.hash") == "#new"
    page.get_by_role("navigation").get_by_role("link", name="Speak").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    page.wait_for_selector('main[data-page="/"]')


# ---- without a microphone


def test_a_denied_microphone_is_explained(offline: str, visit: Visit) -> None:
    page = visit(f"{offline}/voice-cloning#new").page  # no permission is granted
    step(page, "sample")
    page.locator("button.record").click()
    shows(page, "Allow the microphone in the address bar, or upload a file.")
    page.get_by_role("button", name="Upload a file instead").click()
    page.get_by_role("button", name="Choose a file").wait_for()


def test_plain_http_is_explained_and_uploads_work(offline: str, sample: bytes, visit: Visit) -> None:
    page = visit(offline.replace("127.0.0.1", "studio.test") + "/voice-cloning#new").page
    step(page, "sample")
    shows(page, "Recording needs https or localhost.")
    assert page.locator("button.record").count() == 0
    page.get_by_role("button", name="Upload a file instead").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files({"name": "ann.mp3", "mimeType": "audio/mpeg", "buffer": sample})
    page.get_by_role("button", name="Listen").click()
    wait_audible(page)
    onward(page)
    trimmed(page)


# ---- from YouTube


@pytest.fixture(scope="module")
def site(sample: bytes) -> Iterator[Site]:
    with tube.showing(sample) as fake_site:
        yield fake_site


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tube.fetching(tmp_path_factory.mktemp("fetching")) as url:
        yield url


def address(page: Page, url: str) -> None:
    begin(page, "YouTube")
    page.get_by_label("Address of the video").fill(url)
    page.get_by_label("What is said").fill(samples.TEXT)
    onward(page)
    agree(page)


def test_a_voice_is_made_from_a_video(fetching: str, site: Site, visit: Visit) -> None:
    page = visit(f"{fetching}/voice-cloning").page
    begin(page, "YouTube")
    onward(page)
    shows(page, "Paste the address of the video.")
    page.get_by_label("Address of the video").fill(f"{site.url}/sound.mp3")
    page.get_by_label("What is said").fill(samples.TEXT)
    onward(page)
    agree(page)
    step(page, "words")
    assert page.get_by_label("Words", exact=True).input_value() == samples.TEXT
    page.get_by_role("button", name="Hear the sample").click()
    wait_audible(page)
    onward(page)
    judged(page)
    onward(page)
    name_and_save(page, "From afar")
    (voice,) = own(fetching)
    assert (voice["name"], voice["origin"], voice["consent"]["text"]) == ("From afar", "youtube", "It is my own voice.")
    httpx.delete(f"{fetching}{CLONING}/voices/{voice['id']}")


def test_a_refused_video_is_explained_and_a_cancelled_one_is_deleted(fetching: str, site: Site, visit: Visit) -> None:
    watched = visit(f"{fetching}/voice-cloning")
    watched.expected.add("400")
    page = watched.page
    address(page, f"{site.url}/gone")
    shows(page, "The video cannot be used.")
    request = {"youtube_url": f"{site.url}/gone", "voice_name": "A", "transcript": samples.TEXT}
    message = httpx.post(f"{fetching}{CLONING}/clone-from-youtube", json=request, timeout=60).json()["error"]["message"]
    step(page, "sample")  # the fault is shown where the link was written
    assert message in page.locator(".error").text_content()
    assert focused(page, page.get_by_label("Address of the video"))
    page.get_by_label("Address of the video").fill(f"{site.url}/slow.mp3")
    onward(page)
    step(page, "consent")
    onward(page)
    page.locator("#fetch-stage", has_text="Fetching").wait_for()
    page.get_by_role("button", name="Stop fetching").click()
    step(page, "sample")
    wait_until(lambda: own(fetching) == [])
    # Cancel deletes a voice that was fetched.
    page.get_by_label("Address of the video").fill(f"{site.url}/sound.mp3")
    onward(page)
    step(page, "consent")
    onward(page)
    step(page, "words")
    assert len(own(fetching)) == 1
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    page.wait_for_selector(".voice-list")
    wait_until(lambda: own(fetching) == [])


# ---- the library


def test_doubtful_recordings_on_the_disk_are_listed_with_reasons(tmp_path: Path, visit: Visit) -> None:
    store = VoiceStore(tmp_path / "cloned_voices", tmp_path / "voice_references")
    speech = samples.speech()
    noise = np.random.default_rng(5).normal(0, 0.2, len(speech)).astype(np.float32)
    short = speech[: round(0.2 * samples.RATE_HZ)]
    sounds = {"Noise": noise, "Short": short, "Silence": np.zeros_like(speech)}
    ids = {name: store.add(name, Reference(sound, samples.RATE_HZ, samples.TEXT)).id for name, sound in sounds.items()}
    with serving(tmp_path) as url:
        wait_until(lambda: len(httpx.get(f"{url}/health").json()["casting"]["problems"]) == 3, 60)
        reasons = httpx.get(f"{url}/health").json()["casting"]["problems"]
        page = visit(f"{url}/voice-cloning").page
        for name, voice_id in ids.items():
            page.locator(f'[data-voice="{voice_id}"] .badge[data-level=bad]').wait_for()
            page.get_by_role("link", name=name).click()
            page.locator(".banner").get_by_text(reasons[f"cloned_voices/{voice_id}"]).wait_for()
            assert page.locator(".head .badge[data-level=bad]").count() == 1
        page.goto(f"{url}/server")
        page.get_by_text("3 recordings are doubtful or not usable").click()
        for path, reason in reasons.items():
            shown = page.locator("main details li", has_text=path)
            assert reason in shown.inner_text()


def test_cloned_voices_are_not_offered_to_an_engine_that_cannot_speak_them(
    offline: str, sample: bytes, visit: Visit
) -> None:
    voice = clone(offline, sample)
    page = visit(f"{offline}/voice-cloning#{voice['id']}").page
    page.get_by_role("heading", name="Ann", level=2).wait_for()
    marked = "needs a model that speaks clones"
    page.locator(f'[data-voice="{voice["id"]}"]').get_by_text(marked).wait_for()
    page.locator("article").get_by_text("The running engine cannot use recordings.").wait_for()
    assert page.get_by_role("button", name="Play the recording", exact=True).count() == 1
    assert page.get_by_role("button", name="Speak a sentence").count() == 0
    assert page.locator("[data-act=default]").count() == 0
    page.evaluate(f"""() => {{
        localStorage.setItem("studio.voice", "{voice["id"]}");
        localStorage.setItem("studio.speak", JSON.stringify({{ voice: "{voice["id"]}" }}));
    }}""")
    page.goto(offline)
    page.get_by_text("The default voice of the server speaks instead.").wait_for()
    default = httpx.get(f"{offline}/health").json()["default_voice"]
    assert page.locator("#voice").get_attribute("value") == default
    wait_voices(page)
    page.locator("#voice").click()
    card = page.locator(f'.gallery [data-voice="{voice["id"]}"]')
    card.get_by_text(marked).wait_for()
    card.locator(".choose").click(force=True)
    assert page.locator("#voice").get_attribute("value") == default  # it cannot be chosen
    assert card.locator(".hear").count() == 0
    page.keyboard.press("Escape")
    speak(page, "Hello.")
    wait_state(page, "done")
    assert page.evaluate("JSON.parse(localStorage.getItem('studio.speak')).voice") == voice["id"]  # for a later engine
    page.goto(f"{offline}/dialogue")
    page.goto(f"{offline}/dialogue")
    page.get_by_role("button", name="Add a line").click()
    wait_voices(page)
    page.locator(".pick").first.click()
    card.get_by_text(marked).wait_for()


def test_a_voice_is_edited_and_found(offline: str, sample: bytes, visit: Visit) -> None:
    voice = clone(offline, sample)
    watched = visit(f"{offline}/voice-cloning#{voice['id']}")
    watched.expected.add("400")
    page = watched.page
    page.get_by_role("button", name="Edit").click()
    box = page.get_by_role("dialog")
    box.get_by_label("Name").fill("x" * 40 + " ")
    box.get_by_label("Words of the recording").fill(" ")
    box.get_by_role("button", name="Save").click()
    box.get_by_text("`transcript` is empty").wait_for()  # the dialog stays open
    assert focused(page, box.get_by_label("Words of the recording"))
    box.get_by_label("Name").fill(HOSTILE)
    box.get_by_label("Description").fill(HOSTILE)
    box.get_by_label("Words of the recording").fill(samples.TEXT + " Yes.")
    box.get_by_label("Tags").fill("warm, for books")
    box.get_by_label("Colour").fill("#c2410c")
    box.get_by_role("button", name="Save").click()
    page.get_by_role("heading", name=HOSTILE, level=2).wait_for()
    assert focused(page, page.get_by_role("button", name="Edit"))
    (kept,) = own(offline)
    assert (kept["name"], kept["description"], kept["transcript"]) == (HOSTILE, HOSTILE, samples.TEXT + " Yes.")
    assert (kept["tags"], kept["color"]) == (["warm", "for books"], "#c2410c")
    page.get_by_label("Search the voices").fill("for books")
    assert page.locator(".voice-list li.voice").count() == 1
    page.get_by_label("Search the voices").fill("nobody has this name")
    shows(page, "Nothing found.")
    page.get_by_label("Search the voices").fill("")
    page.get_by_role("button", name="Play the recording", exact=True).click()
    wait_audible(page)
    page.get_by_text("Use it in code").click()
    assert voice["id"] in page.locator(".code code").first.inner_text()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog", name=HOSTILE).wait_for()
    page.keyboard.press("Escape")
    assert page.locator("main img, dialog img, #dock img").count() == 0
    assert page.evaluate("window.owned") is None


def test_a_voice_is_exported_and_imported(offline: str, sample: bytes, visit: Visit, tmp_path: Path) -> None:
    voice = clone(offline, sample, HOSTILE, consent="She agrees.")
    watched = visit(f"{offline}/voice-cloning#{voice['id']}")
    watched.expected.add("400")
    page = watched.page
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    path = tmp_path / "voice.zip"
    download.value.save_as(path)
    assert download.value.suggested_filename.endswith(".zip")
    page.set_input_files(".voices-tools input", path)
    shows(page, "The voice was saved as")
    first, second = own(offline)
    assert second["name"].startswith(HOSTILE[:10])
    assert second["name"] != first["name"]
    assert (second["transcript"], second["consent"]["text"]) == (samples.TEXT, "She agrees.")
    page.wait_for_selector(f'[data-shown="{second["id"]}"]')
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no zip at all")
    page.set_input_files(".voices-tools input", broken)
    shows(page, "This file could not be imported.")
    assert page.locator("main img, dialog img").count() == 0
    assert page.evaluate("window.owned") is None


def test_a_voice_is_deleted_and_an_error_stays_in_the_dialog(offline: str, sample: bytes, visit: Visit) -> None:
    first, second = clone(offline, sample, "Ann"), clone(offline, sample, "Bea")
    watched = visit(f"{offline}/voice-cloning#{first['id']}")
    watched.expected.add("500")
    page = watched.page
    refusal = {"error": {"message": "Read-only.", "type": "server_error", "param": None, "code": "storage_error"}}
    page.route(
        "**/voices/voice_*",
        lambda route: (
            route.fulfill(status=500, body=json.dumps(refusal))
            if route.request.method == "DELETE"
            else route.continue_()
        ),
    )
    page.get_by_role("button", name="Delete").click()
    box = page.get_by_role("dialog", name="Delete Ann?")
    assert focused(page, box.get_by_role("button", name="Cancel"))
    box.get_by_role("button", name="Delete").click()
    box.get_by_text("its disk is full or read-only").wait_for()
    assert len(own(offline)) == 2
    page.unroute("**/voices/voice_*")
    box.get_by_role("button", name="Delete").click()
    shows(page, "Ann was deleted.")
    assert [voice["id"] for voice in own(offline)] == [second["id"]]
    assert focused(page, page.locator(f'[data-voice="{second["id"]}"] a'))
    assert page.locator(f'[data-voice="{first["id"]}"]').count() == 0


def test_a_phone_shows_the_list_or_the_details(offline: str, sample: bytes, visit: Visit) -> None:
    voice = clone(offline, sample)
    page = visit(f"{offline}/voice-cloning", viewport=PHONE).page
    page.locator(f'[data-voice="{voice["id"]}"] a').click()
    page.get_by_role("heading", name="Ann", level=2).wait_for()
    page.locator(".voice-list").wait_for(state="hidden")
    page.get_by_role("link", name="All voices").click()
    page.wait_for_selector(".voice-list")
    page.locator(".voice-detail").wait_for(state="hidden")


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [pytest.param("light", PHONE, id="phone", marks=pytest.mark.slow), pytest.param("dark", DESKTOP, id="desktop")],
)
def test_axe_finds_no_violation_in_any_step(
    offline: str, sample: bytes, visit: Visit, scheme: str, viewport: dict[str, int]
) -> None:
    watched = visit(f"{offline}/voice-cloning", viewport=viewport, color_scheme=scheme, permissions=["microphone"])
    watched.expected.add("400")
    page = watched.page
    page.wait_for_selector(".voice-list li")

    def look() -> None:
        assert axe_violations(page) == []
        assert not scrolls_sideways(page)

    look()
    begin(page, "Record")
    look()
    page.get_by_role("button", name="Check the microphone").click()
    page.get_by_role("meter").wait_for()
    onward(page)
    look()
    page.get_by_role("tab", name="YouTube").click()
    look()
    page.get_by_role("tab", name="Upload").click()
    page.set_input_files(".drop input", {"name": "ann.mp3", "mimeType": "audio/mpeg", "buffer": sample})
    page.locator("strong", has_text="ann.mp3").wait_for()
    look()
    onward(page)
    trimmed(page)
    look()
    onward(page)
    step(page, "words")
    page.get_by_label("Words", exact=True).fill(samples.TEXT)
    look()
    onward(page)
    judged(page)
    look()
    onward(page)
    page.get_by_text("Add a spoken statement").click()
    look()
    agree(page)
    step(page, "try")
    page.get_by_role("button", name="Speak", exact=True).click()
    page.wait_for_selector(".error")
    look()
    name_and_save(page, "Ann")
    for fold in page.locator(".voice-detail summary").all():
        fold.click()
    look()
    page.get_by_role("button", name="Edit").click()
    look()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete").click()
    look()
