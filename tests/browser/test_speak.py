"""The Speak page: streaming playback, stop, takes, comparison, saving, and error messages."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from app import wiring
from app.audio.decode import decode as decode_upload
from app.audio.provenance import parse as parse_comment
from app.engines.registry import EngineSpec, specs
from app.keys import KeyFile
from app.text.nonverbal import NON_VERBAL_SOUNDS
from tests.browser.test_manners import PHONE, axe_violations, scrolls_sideways
from tests.support.live import LONG as LONG_SPEECH
from tests.support.live import Process, request_speech, serving, stuck_reader, wait_until
from tests.support.studio import (
    LONG,
    SHORT,
    at_s,
    held_route,
    hold_first,
    newest_take,
    pick_voice,
    samples,
    speak,
    until,
    wait_audible,
    wait_state,
    wait_takes,
    wait_voices,
    wait_worth_keeping,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page, Route

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)").expect


def rows(url: str) -> int:
    return int(httpx.get(f"{url}/health").json()["rows"]["active"])


# ---- playback


def test_the_played_and_kept_audio_is_that_of_the_api(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, SHORT)
    wait_audible(page)
    wait_state(page, "done")
    wait_takes(page, 1)
    take = newest_take(page)
    audio = samples(take["pcm"])
    assert np.sqrt(np.mean(np.square(audio))) > 0.02
    body = {**take["body"], "response_format": "pcm"}
    assert body["input"] == SHORT
    assert isinstance(body["seed"], int)
    assert take["pcm"] == httpx.post(f"{server}/v1/audio/speech", json=body).content
    page.wait_for_selector('#dock[data-playing="false"]')
    assert at_s(page) == pytest.approx(len(audio) / 24_000, abs=1e-3)
    assert page.get_attribute("#dock", "data-underruns") == "0"
    assert page.get_attribute("#dock", "data-sink") == "worklet"
    page.locator('[data-badge="first"]').wait_for()
    page.locator('[data-badge="factor"]').wait_for()


def test_playback_starts_during_the_stream_and_stop_frees_the_row(server: str, visit: Visit) -> None:
    page = visit(server).page
    before = cancelled(server)
    speak(page, LONG)
    wait_audible(page)
    assert page.get_attribute(".speak", "data-state") == "streaming"
    wait_until(lambda: rows(server) >= 1)  # between two sentences the row can be free for a moment
    page.wait_for_selector('[data-badge="made"]')
    page.wait_for_selector(".caption:visible")
    assert re.match(r"Sentence \d+ of 240", page.locator(".caption").inner_text())
    wait_worth_keeping(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_state(page, "partial")
    wait_until(lambda: rows(server) == 0)
    assert cancelled(server) == before + 1
    wait_takes(page, 1)
    take = newest_take(page)
    assert take["partial"] == "stopped"
    assert take["seconds"] >= 0.5
    expect(page.locator(".take .facts")).to_contain_text("Stopped")
    assert page.locator("main .error, .take .bad, .badge.warn").count() == 0  # the person's own Stop is no fault
    until(page, "() => loudest() < 0.001")


def test_a_link_fills_in_the_page_and_speaks_nothing(server: str, visit: Visit) -> None:
    watched = visit(f"{server}/?text=Good%20morning.&voice=nova&speed=1.5")
    page = watched.page
    text = page.get_by_role("textbox").first
    expect(text).to_have_value("Good morning.")
    expect(page.locator("#voice")).to_have_attribute("value", "nova")
    expect(page.locator("#speed")).to_have_value("1.5")
    expect(page).to_have_url(f"{server}/")  # a reload keeps later changes
    page.get_by_role("button", name="Undo").click()
    expect(text).to_have_value("")
    page.evaluate("location.hash = 'text=Again&voice=onyx'")
    expect(text).to_have_value("Again")
    expect(page.locator("#voice")).to_have_attribute("value", "onyx")
    assert not [url for url in watched.requests if "/audio/speech" in url]


def test_a_sample_is_in_the_language_of_the_voice(server: str, visit: Visit) -> None:
    voices = [
        {"id": name, "name": name, "object": "audio.voice", "type": "preset", "language": tag, "description": ""}
        for name, tag in (("alloy", "en"), ("Uwe", "de-DE"))
    ]

    def plant(page: Page) -> None:
        page.route("**/v1/audio/voices", lambda route: route.fulfill(json={"voices": voices, "data": voices}))

    page = visit(server, locale="de-DE", prepare=plant).page
    wait_voices(page)
    text = page.get_by_role("textbox").first
    for voice, start in (("alloy", "Hello there."), ("Uwe", "Guten Tag.")):
        page.evaluate("document.getElementById('text').dataset.old = ''")
        page.evaluate("voice => (location.hash = `voice=${voice}&text=`)", voice)
        expect(page.locator("#text[data-old]")).to_have_count(0)  # the page was drawn anew
        expect(page.locator("#voice")).to_have_attribute("value", voice)
        page.get_by_role("button", name="Ein Gruß").click()
        expect(text).to_have_value(re.compile(start))


def test_a_take_is_shared_as_a_link_and_as_a_file(server: str, visit: Visit) -> None:
    page = visit(server).page
    page.locator("#speed").fill("1.2")
    speak(page, SHORT)
    wait_takes(page, 1)
    take = newest_take(page)
    page.get_by_role("button", name="Share").click()
    dialog = page.get_by_role("dialog", name="Share")
    link = dialog.locator("pre").inner_text()
    assert axe_violations(page) == []
    with page.expect_download() as saving:
        dialog.get_by_role("button", name="Save the request").click()
    file = saving.value.path().read_bytes()
    assert httpx.post(
        f"{server}/v1/audio/speech", content=file, headers={"content-type": "application/json"}
    ).is_success
    for way in ("link", "file"):
        other = visit(link if way == "link" else server).page
        if way == "file":
            other.get_by_role("button", name="Menu").click()
            with other.expect_file_chooser() as choosing:
                other.get_by_role("button", name="Open a take file").click()
            choosing.value.set_files({"name": "request.json", "mimeType": "application/json", "buffer": file})
        expect(other.get_by_role("textbox").first).to_have_value(SHORT)
        other.get_by_role("button", name="Speak", exact=True).click()
        wait_takes(other, 1)
        again = newest_take(other)
        assert (again["voice"], again["model"], again["seed"]) == (take["voice"], take["model"], take["seed"])
        assert again["pcm"] == take["pcm"]


def cancelled(url: str) -> float:
    return float(re.findall(r"^tts_cancelled_total (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)[0])


def test_double_click_does_not_stop_but_escape_does(server: str, visit: Visit) -> None:
    page = visit(server).page
    write(page, LONG)
    page.get_by_role("button", name="Speak", exact=True).dblclick()
    wait_audible(page)
    assert page.get_attribute(".speak", "data-state") == "streaming"
    wait_worth_keeping(page)
    page.keyboard.press("Escape")
    wait_state(page, "partial")
    assert page.locator("#status").inner_text() == "Stopped"


def test_pause_does_not_stop_the_stream(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, " ".join([SHORT] * 4))
    wait_audible(page)
    page.get_by_role("button", name="Pause", exact=True).click()
    wait_state(page, "done")  # the stream continues to its end
    stopped_s = at_s(page)
    page.wait_for_timeout(300)
    assert at_s(page) == pytest.approx(stopped_s, abs=0.06)
    page.get_by_role("slider", name="Position").press("End")
    end_s = at_s(page)
    assert end_s > 8
    page.get_by_role("slider", name="Position").press("ArrowLeft")
    assert at_s(page) == pytest.approx(end_s - 1, abs=0.01)
    assert (
        page.get_by_role("slider", name="Position").get_attribute("aria-valuetext")
        == f"{end_s - 1:.0f} of {end_s:.0f} seconds"
    )


def test_ctrl_enter_stops_the_old_request_and_starts_a_new_one(server: str, visit: Visit) -> None:
    page = visit(server).page
    write(page, LONG)
    page.keyboard.press("Control+Enter")
    wait_audible(page)
    wait_worth_keeping(page)
    write(page, SHORT)
    page.keyboard.press("Control+Enter")
    wait_state(page, "done")
    wait_takes(page, 2)
    assert newest_take(page)["text"] == SHORT
    wait_until(lambda: rows(server) == 0)


def test_enter_is_a_new_line(server: str, visit: Visit) -> None:
    page = visit(server).page
    write(page, "One")
    page.keyboard.press("Enter")
    page.keyboard.type("two")
    assert page.get_by_role("textbox").first.input_value() == "One\ntwo"
    assert page.get_attribute(".speak", "data-state") == "idle"


def test_playback_works_without_a_secure_context(server: str, visit: Visit) -> None:
    page = visit(server.replace("127.0.0.1", "studio.test")).page
    assert page.evaluate("isSecureContext") is False
    speak(page, SHORT)
    wait_audible(page)
    wait_state(page, "done")
    assert page.get_attribute("#dock", "data-sink") == "nodes"
    page.wait_for_selector('#dock[data-playing="false"]')
    assert page.get_attribute("#dock", "data-underruns") == "0"
    wait_takes(page, 1)
    assert at_s(page) == pytest.approx(newest_take(page)["seconds"], abs=0.01)
    page.get_by_role("tab", name="Code").click()
    page.get_by_role("button", name="Copy").first.click()
    assert "curl " in page.evaluate("getSelection().toString()")  # browsers block the clipboard on plain http


def test_settings_reach_the_request(server: str, visit: Visit) -> None:
    page = visit(server).page
    wait_voices(page)
    pick_voice(page, "Voice", "onyx")
    page.get_by_label("Speed", exact=True).fill("1.5")
    page.locator("main").get_by_text("Sampling, seed, format").click()
    page.get_by_label("Seed", exact=True).fill("41")
    page.get_by_label("Seed", exact=True).press("Enter")
    page.get_by_label("Language tag").fill("de")
    page.get_by_label("Language tag").press("Tab")
    assert page.get_by_label("Temperature").is_disabled()  # the offline voice has no temperature
    assert "Temperature" in page.locator("#sampling-hint").inner_text()
    speak(page, "Guten Tag.")
    wait_takes(page, 1)
    body = newest_take(page)["body"]
    assert body == {
        "model": "espeak",
        "voice": "onyx",
        "input": "Guten Tag.",
        "speed": 1.5,
        "language": "de",
        "seed": 41,
    }


def test_ranges_formats_and_sounds_come_from_the_api(server: str, visit: Visit) -> None:
    health = httpx.get(f"{server}/health").json()
    health["limits"]["fields"] |= {
        "speed": {"minimum": 0.5, "maximum": 3},
        "top_p": {"exclusiveMinimum": 0, "maximum": 0.7},
    }
    health["limits"] |= {"input_chars": 7, "response_formats": ["mp3", "wav", "xyz"]}
    models = httpx.get(f"{server}/v1/models").json()
    models["data"][0]["sounds"] = ["yodels", *NON_VERBAL_SOUNDS]

    def answer(page: Any) -> None:
        page.route("**/health", lambda route: route.fulfill(json=health))
        page.route("**/v1/models", lambda route: route.fulfill(json=models))

    page = visit(server, prepare=answer).page
    page.get_by_role("button", name="(yodels)").click()
    assert page.get_by_role("textbox").first.input_value() == "(yodels) "
    assert page.locator("#count").inner_text() == "9 / 7"
    speed, top_p = page.get_by_label("Speed", exact=True), page.locator("#set-top_p")
    assert (speed.get_attribute("min"), speed.get_attribute("max")) == ("0.5", "3")
    assert (top_p.get_attribute("min"), top_p.get_attribute("max")) == ("0.01", "0.7")
    assert page.locator("#set-format option").all_text_contents() == ["MP3", "WAV", "XYZ"]
    assert page.locator("#model > option").count() == len([each for each in models["data"] if not each["alias"]])
    page.set_viewport_size(PHONE)
    assert not scrolls_sideways(page)


def test_a_sample_text_and_a_pause_are_inserted(server: str, visit: Visit) -> None:
    page = visit(server).page
    page.get_by_role("button", name="A story").click()
    text = page.get_by_role("textbox").first
    assert "lighthouse" in text.input_value()
    assert page.get_by_role("button", name="A story").is_hidden()
    text.press("Control+Home")
    page.get_by_role("button", name="Insert a pause").click()
    assert text.input_value().startswith("[pause:0.5s] The lighthouse")


# ---- takes and history


def test_history_takes_and_the_draft_survive_a_reload(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, SHORT)
    wait_takes(page, 1)
    before = newest_take(page)
    page.reload()
    page.wait_for_selector(".take")
    assert page.get_by_role("textbox").first.input_value() == SHORT
    assert newest_take(page)["pcm"] == before["pcm"]
    page.get_by_role("button", name="Play Take 1").click()
    wait_audible(page)
    page.get_by_role("searchbox").fill("nothing like it")
    page.locator("main").get_by_text("Nothing found.").wait_for()
    page.get_by_role("searchbox").fill("own machine")
    history = page.locator('[role="tabpanel"] .take')
    assert history.count() == 1
    history.get_by_role("button", name="Delete").click()
    wait_takes(page, 0)
    page.get_by_role("button", name="Undo").click()
    wait_takes(page, 1)
    assert newest_take(page)["pcm"] == before["pcm"]
    write(page, "Something else")
    page.locator('[role="tabpanel"] .take').get_by_role("button", name="Use again").click()
    assert page.get_by_role("textbox").first.input_value() == SHORT


def test_takes_are_kept_in_memory_when_storage_is_blocked(server: str, visit: Visit) -> None:
    def forbid(page: Any) -> None:
        page.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('forbidden'); } })")

    page = visit(server, prepare=forbid).page
    speak(page, SHORT)
    wait_takes(page, 1)
    page.locator("main").get_by_text("does not let the page store anything").wait_for()
    until(page, "async () => !(await import('/static/js/player.js')).player.playing")  # until then, the button pauses
    page.get_by_role("button", name="Play Take 1").click()
    wait_audible(page)


@pytest.mark.parametrize("path", ["/", "/dialogue"])
def test_a_press_before_the_models_are_known_waits_for_them(server: str, visit: Visit, path: str) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    watched = visit(server + path, prepare=lambda page: page.route("**/v1/models", hold, times=1))
    page = watched.page
    if path == "/":
        write(page, SHORT)
    else:
        page.get_by_role("button", name="Fill in a sample").click()
    go = page.locator("button.go")
    go.click()
    go.click()  # a second press does not start a second take
    assert not any(url.endswith(("/audio/speech", "/audio/dialogue")) for url in watched.requests)
    held[0].continue_()
    wait_takes(page, 1)
    assert newest_take(page)["model"]
    if path == "/":
        page.get_by_role("button", name="Play Take 1").wait_for()


def test_two_takes_are_compared_at_the_same_second(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, " ".join([SHORT] * 3))
    wait_takes(page, 1)
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_takes(page, 2)
    page.get_by_role("button", name=re.compile("Take 1: .* as A")).click()
    page.get_by_role("button", name=re.compile("Take 2: .* as B")).click()
    page.get_by_role("button", name="Compare A and B").click()
    page.get_by_role("group", name="Compare A and B").wait_for()  # until then, the player has the take before
    page.get_by_role("slider", name="Position").press("ArrowRight")
    page.get_by_role("slider", name="Position").press("ArrowRight")
    page.get_by_role("button", name="Pause", exact=True).click()
    before_s = at_s(page)
    assert before_s >= 2
    playing = "async () => (await import('/static/js/player.js')).player.track.id"
    first = page.evaluate(playing)
    page.locator("h1").focus()
    page.keyboard.press("x")
    assert page.evaluate(playing) != first
    assert at_s(page) == before_s
    assert (
        page.get_by_role("group", name="Compare A and B").get_by_role("button", name="B").get_attribute("aria-pressed")
        == "true"
    )
    page.keyboard.press(" ")
    wait_audible(page)
    page.get_by_label("Blind", exact=True).check()
    page.get_by_role("button", name="Compare A and B").click()
    group = page.get_by_role("group", name="Compare A and B")
    wait_until(lambda: page.locator(".take[data-now]").count() == 0)  # the page does not show which take plays
    group.get_by_role("button", name="Pick this one").click()
    page.wait_for_selector(".starred")
    group.get_by_role("button", name="A").wait_for()


def test_files_are_saved_by_the_page_and_by_the_server(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, SHORT)
    wait_takes(page, 1)
    take = newest_take(page)
    for name, starts in (("WAV", b"RIFF"), ("FLAC", b"fLaC"), ("OPUS", b"OggS")):
        page.locator("#dock").get_by_role("button", name="Save").click()
        with page.expect_download() as saving:
            page.get_by_role("button", name=name).click()
        path = saving.value.path()
        assert path.read_bytes().startswith(starts)
        assert saving.value.suggested_filename == f"hello-there-this-is-my-alloy.{name.lower()}"
        made = decode_upload(path.read_bytes(), 24_000, max_seconds=60)
        stated = parse_comment(made.comment)
        assert stated is not None
        assert (stated.model, stated.voices) == ("espeak", ("alloy",))
        assert stated.created_s is not None
        if name == "WAV":
            assert path.read_bytes().endswith(take["pcm"])
            assert len(made.samples) == len(take["pcm"]) // 2


@pytest.mark.parametrize("path", ["/", "/voice-cloning#nova"])
def test_the_snippets_run(server: str, visit: Visit, tmp_path: Path, path: str) -> None:
    """The models are listed late, and there is no code before."""
    held: list[list[Route]] = []
    page = visit(server + path, prepare=lambda page: held.append(hold_first(page, "**/v1/models"))).page
    if path == "/":
        write(page, 'It\'s "quoted" \\ and über.')
        page.get_by_role("tab", name="Code").click()
        page.locator("pre code").first.wait_for(state="attached")
    assert "model" not in "".join(page.locator("pre").all_text_contents())
    held_route(page, held[0]).continue_()
    if path != "/":
        page.get_by_text("Use it in code").click()
    page.locator("pre").get_by_text("model").first.wait_for()
    if path == "/":
        until(page, "() => document.body.innerText.includes('über')")
    curl = page.locator("pre code").nth(0).text_content()
    python = page.locator("pre code").nth(1).text_content()
    assert curl
    assert python
    for command in (["bash", "-ec", curl], [sys.executable, "-c", python]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
        sound = tmp_path / "speech.mp3"
        assert sound.stat().st_size > 5_000
        sound.unlink()


# ---- errors


def test_request_is_sent_again_after_a_429(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url:
        watched = visit(url)
        watched.expected.add("429")
        page = watched.page
        with stuck_reader(url):
            speak(page, SHORT)
            page.wait_for_selector('[data-badge="busy"]')
            assert re.search(r"Again in \d+ s", page.locator('[data-badge="busy"]').inner_text())
        wait_state(page, "done")
        speak(page, SHORT)
        wait_audible(page)


def test_a_request_that_waits_shows_its_place_in_the_queue(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=4, TTS_OUTBOX_S=0.5) as url:
        page = visit(url).page
        place = page.locator('[data-badge="place"]')
        with stuck_reader(url):
            with socket.socket() as raw:
                request_speech(raw, url, {"input": LONG_SPEECH})
                wait_until(lambda: httpx.get(f"{url}/health").json()["queue"]["waiting"] == 1)
                speak(page, SHORT)
                place.get_by_text("2").wait_for()
            place.get_by_text("1").wait_for()
        wait_state(page, "done")
        assert place.count() == 0


def test_stop_ends_the_countdown(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path, TTS_MAX_ROWS=1, TTS_MAX_QUEUE=0, TTS_OUTBOX_S=0.5) as url:
        watched = visit(url)
        watched.expected.add("429")
        with stuck_reader(url):
            speak(watched.page, SHORT)
            watched.page.wait_for_selector('[data-badge="busy"]')
            watched.page.wait_for_timeout(450)
            watched.page.get_by_role("button", name="Stop", exact=True).click()
            wait_state(watched.page, "idle")


def test_the_error_of_an_engine_is_shown(tmp_path: Path, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EngineSpec("broken", "broken-1b", "tests.support.broken_engine:build")
    monkeypatch.setattr(wiring.registry, "specs", lambda: {"broken": broken, **specs()})
    with serving(tmp_path, TTS_ENGINE="broken") as url:
        watched = visit(url)
        watched.expected |= {"500", "net::ERR_INCOMPLETE"}
        page = watched.page
        speak(page, "Now break.")
        wait_state(page, "partial")
        assert page.locator(".error .headline").inner_text() == "The engine failed. Try again."
        page.locator(".error summary").click()
        page.locator("main").get_by_text("The engine broke in the middle.").wait_for()
        broken_off = re.compile(r"The speech broke off after 1\.\d s\. This part is kept\.")
        page.locator("main").get_by_text(broken_off).wait_for()
        wait_takes(page, 1)
        speak(page, "No memory.")
        wait_state(page, "error")
        page.locator("main").get_by_text("The server has too little memory for this.").wait_for()
        page.locator(".error summary").click()
        page.locator("main").get_by_text("The engine has no memory left").wait_for()
        assert re.search(r"req_[0-9a-f]{32}", page.locator(".error").inner_text())
        assert page.get_by_role("textbox").first.input_value() == "No memory."


@contextmanager
def breaking_connection(url: str, after_bytes: int) -> Iterator[str]:
    """A proxy to the server that closes the connection after `after_bytes` of one response."""
    port = int(url.rsplit(":", 1)[1])
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    ending = threading.Event()

    def forward(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as upstream:

            def back() -> None:
                passed = 0
                while data := upstream.recv(4096):
                    passed += len(data)
                    if passed > after_bytes:
                        client.shutdown(socket.SHUT_RDWR)
                        upstream.shutdown(socket.SHUT_RDWR)
                        return
                    client.sendall(data)
                    time.sleep(0.002)  # 2 MB/s, so that the page can read the data before the connection breaks

            answering = threading.Thread(target=quietly, args=(back,), daemon=True)
            answering.start()
            while data := client.recv(4096):
                upstream.sendall(data)
            answering.join(60)

    def quietly(work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except OSError:
            return

    def accept() -> None:
        while not ending.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=quietly, args=(forward, client), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ending.set()
        thread.join(60)
        listener.close()


def test_audio_is_kept_when_the_connection_breaks(server: str, visit: Visit) -> None:
    with breaking_connection(server, 400_000) as url:
        watched = visit(url)
        watched.expected.add("net::ERR")
        page = watched.page
        speak(page, LONG)
        wait_state(page, "partial")
        page.locator("main").get_by_text("The server does not answer. Your text is safe.").wait_for()
        wait_takes(page, 1)
        take = newest_take(page)
        assert take["partial"]
        audio = samples(take["pcm"])
        assert len(audio) >= 12_000  # half a second at least; how much more arrives depends on the browser
        assert np.sqrt(np.mean(np.square(audio))) > 0.02


def test_a_missing_scope_is_explained(tmp_path: Path, visit: Visit) -> None:
    file = KeyFile(tmp_path)
    reader, cloner = file.add("reader", ["speak"]), file.add("cloner", ["clone"])
    with serving(tmp_path) as url:
        watched = visit(f"{url}/voice-cloning")
        watched.expected |= {"401", "403"}
        page = watched.page
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Key", exact=True).fill(reader)
        page.keyboard.press("Enter")
        page.get_by_text("The key reader can't change anything here").first.wait_for()
        page.locator("[data-voice=nova]").wait_for()  # the voices are listed all the same
        assert page.get_by_role("link", name="New voice").count() == 0
        page.goto(f"{url}/pronunciation")
        page.get_by_text("The key reader can't change anything here").first.wait_for()
        page.goto(f"{url}/voice-cloning#new")
        page.locator("[data-voice=nova]").wait_for()
        page.get_by_text("The key reader can't change anything here").first.wait_for()
        assert page.locator(".wizard").count() == 0
        page.get_by_role("button", name="Use another key").click()
        dialog.get_by_label("Key", exact=True).fill(cloner)
        page.keyboard.press("Enter")
        page.locator(".wizard").wait_for()  # the page that the link names
        page.goto(f"{url}/voice-cloning")
        page.get_by_role("link", name="New voice").first.wait_for()
        assert page.get_by_text("change anything here").count() == 0
        page.goto(url)
        speak(page, SHORT)
        page.locator(".error").get_by_text("This key does not allow that.").wait_for()
        assert "'cloner' lacks the scope `speak`" in page.locator(".error").text_content()


def test_the_page_asks_for_a_key_and_uses_it(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path, TTS_API_KEYS="open-sesame-0123") as url:
        watched = visit(url)
        watched.expected.add("401")
        page = watched.page
        speak(page, SHORT)
        page.get_by_role("dialog").get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_text("This server needs a valid API key.").wait_for()
        page.get_by_role("dialog").get_by_label("Key", exact=True).fill("open-sesame-0123")
        page.keyboard.press("Enter")
        wait_state(page, "done")
        page.get_by_role("tab", name="Code").click()
        assert "$API_KEY" in (page.locator("pre code").first.text_content() or "")
        assert "open-sesame-0123" not in page.content()


def test_missing_weights_are_explained_and_the_fallback_speaks(tmp_path: Path, visit: Visit) -> None:
    with Process(tmp_path, TTS_ENGINE="csm", HF_ENDPOINT="http://127.0.0.1:9") as process:
        process.wait("/ready")
        page = visit(process.url).page
        banner = page.locator("#banner")
        banner.get_by_text("csm-1b is not running. espeak can speak instead.").wait_for()
        banner.locator("summary").click()
        banner.get_by_text("cannot reach").wait_for()
        assert page.get_by_label("Engine", exact=True).input_value() == "espeak"
        option = page.locator('#model option[value="csm-1b"]')
        assert option.get_attribute("aria-disabled") == "true"
        speak(page, SHORT)
        wait_audible(page)
        page.get_by_label("Engine", exact=True).focus()
        page.keyboard.type("csm")  # a model that is not ready can be chosen
        page.get_by_role("button", name="Speak", exact=True).click()
        page.locator("main").get_by_text("csm-1b has no weights yet.").wait_for()
        page.locator(".error").get_by_role("button", name="Use espeak").click()
        assert page.get_by_label("Engine", exact=True).input_value() == "espeak"


def test_too_long_and_empty_texts_are_not_sent(server: str, visit: Visit) -> None:
    watched = visit(server)
    page = watched.page
    page.get_by_role("button", name="Speak", exact=True).click()
    page.locator("main").get_by_text("The text is empty.").wait_for()
    write(page, "a" * 1_000_003)
    assert page.locator("#count").inner_text() == "1,000,003 / 1,000,000"
    page.get_by_role("button", name="Speak", exact=True).click()
    page.locator("main").get_by_text("3 characters too many.").wait_for()
    assert not [url for url in watched.requests if "/v1/audio/speech" in url]


def test_a_stopped_server_is_reported(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path) as url:
        watched = visit(url)
        watched.expected |= {"net::ERR", "worklet's module"}
        wait_voices(watched.page)
    speak(watched.page, SHORT)
    wait_state(watched.page, "error")
    watched.page.locator("main").get_by_text("The server does not answer. Your text is safe.").wait_for()
    assert watched.page.get_by_role("textbox").first.input_value() == SHORT


@pytest.mark.slow
def test_the_time_to_first_audio_is_measured(server: str, visit: Visit) -> None:
    """Prints the times (pytest -s). The test has no limit for them."""
    page = visit(server).page
    wait_voices(page)
    found = []
    for n in range(10):
        speak(page, f"{SHORT} {n}")
        wait_state(page, "done")
        wait_takes(page, n + 1)
        until(page, "async () => (await (await import('/static/js/takes.js')).takes.all())[0].first_s !== null")
        found.append(newest_take(page)["first_s"])
        time.sleep(0.2)
    print("first sound, s:", sorted(found))
    assert all(each > 0 for each in found)
