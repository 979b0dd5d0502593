"""The Live page: it speaks a text while it is written, stops immediately, and marks the heard words."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.browser.test_manners import DESKTOP, PHONE, axe_violations, scrolls_sideways, settle
from tests.support.ears import SENTENCES, Recogniser, decode
from tests.support.live import serving, wait_until
from tests.support.studio import LONG, pick_voice, speak, until, wait_audible, wait_voices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.browser.conftest import Watched

    Visit = Callable[..., Watched]

pytestmark = [pytest.mark.integration, pytest.mark.browser]

MARKS = "[...document.querySelectorAll('.live-marks [data-mark]')].map((each) => [each.dataset.mark, each.textContent])"
PLAYED = """
async () => {
  const { player } = await import("/static/js/player.js");
  const samples = player.track.samples();
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(binary);
}
"""


def marks(page: Page) -> dict[str, str]:
    """The marked text by its mark."""
    found: dict[str, str] = {}
    for mark, text in page.evaluate(MARKS):
        found[mark] = found.get(mark, "") + text
    return found


def write_live(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Text", exact=True).press_sequentially(text, delay=5)


def paste(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Text", exact=True).focus()
    page.keyboard.insert_text(text)


def wait_heard(page: Page, text: str) -> None:
    """Wait until exactly this text is heard and nothing else is marked."""
    wait_until(lambda: {mark: found.strip() for mark, found in marks(page).items()} == {"heard": text})


def wait_silent(page: Page) -> None:
    until(page, "() => loudest() < 0.001")


def played(page: Page) -> Any:
    return decode(base64.b64decode(page.evaluate(PLAYED)), "pcm")


def rows(url: str) -> int:
    return int(httpx.get(f"{url}/health").json()["rows"]["active"])


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop", exact=True).click()


# ---- the keyboard


def test_text_is_spoken_while_it_is_typed(server: str, visit: Visit, recogniser: Recogniser) -> None:
    page = visit(f"{server}/live").page
    first, second = (f"{sentence.capitalize()}." for sentence in SENTENCES[:2])
    write_live(page, f"{first} ")
    wait_audible(page)
    page.wait_for_selector(".live-marks [data-mark=now]")
    write_live(page, second)
    wait_heard(page, f"{first} {second}")
    count = len(f"{first} {second}".split())
    assert page.locator("#live-progress").inner_text() == f"{count} of {count} words heard"
    until(page, f"() => document.getElementById('status').textContent === '{count} of {count} words heard'")
    # The pause between the sentences is longer if the second one is typed late, so each one is recognised alone.
    assert [recogniser.recognise(half) for half in played(page).halves()] == [*SENTENCES[:2]]
    assert page.locator(".live-marks").text_content() == f"{first} {second}\u200b"


def test_pieces_are_marked_one_after_another(server: str, visit: Visit) -> None:
    page = visit(f"{server}/live").page
    sentences = ["This is the first sentence of all.", "Here comes the second one.", "The third one is the last one."]
    paste(page, " ".join(sentences))
    spoken: list[str] = []

    def ended() -> bool:
        found = marks(page)
        if "now" in found and found["now"] not in spoken:
            spoken.append(found["now"])
            assert "".join(sentences).replace(" ", "").startswith("".join(found.values()).replace(" ", ""))
        return found.keys() == {"heard"}

    wait_until(ended)
    assert [piece for piece in spoken if piece in sentences] == spoken
    assert spoken == [sentence for sentence in sentences if sentence in spoken]
    page.get_by_role("button", name="Stop speaking").wait_for(state="hidden")
    page.get_by_role("navigation").get_by_role("link", name="Speak").click()
    page.get_by_role("button", name="Play", exact=True).click()
    wait_audible(page)
    page.wait_for_selector("[role=region].read", state="attached")
    assert page.locator(".read").is_hidden()  # the text belongs to another page
    assert len(spoken) > 1  # a test on a busy machine may miss one


@pytest.mark.parametrize("name", ["Stop", "Stop speaking"], ids=["page", "player"])
def test_stop_silences_and_marks_what_was_not_heard(server: str, visit: Visit, name: str) -> None:
    page = visit(f"{server}/live").page
    paste(page, LONG)
    wait_audible(page)
    until(page, "() => parseInt(document.getElementById('live-progress').textContent) > 5")
    page.get_by_role("button", name=name, exact=True).click()
    wait_silent(page)
    page.get_by_role("button", name="Stop speaking").wait_for(state="hidden")
    until(page, "() => document.getElementById('status').textContent.startsWith('Stopped. ')")
    found = marks(page)
    assert found.keys() == {"heard", "unheard"}
    assert found["heard"] + found["unheard"] == LONG
    assert found["heard"][-1] in " ." or found["unheard"][0] in " ."  # a whole word
    heard = len(found["heard"].split())
    assert page.locator("#live-progress").inner_text().startswith(f"{heard} of ")
    wait_until(lambda: rows(server) == 0)
    write_live(page, " And now something else.")
    wait_until(lambda: marks(page)["heard"].endswith("And now something else."))
    assert marks(page)["unheard"] == found["unheard"]


def test_escape_stops_from_the_text(server: str, visit: Visit) -> None:
    page = visit(f"{server}/live").page
    paste(page, LONG)
    wait_audible(page)
    page.keyboard.press("Escape")
    wait_silent(page)
    assert page.locator("#live-text").evaluate("field => field === document.activeElement")
    wait_until(lambda: rows(server) == 0)


def test_changed_words_are_spoken_only_if_they_were_not_heard(server: str, visit: Visit) -> None:
    sent: list[str] = []

    def watch(page: Page) -> None:
        page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(str(frame))))

    page = visit(f"{server}/live", prepare=watch).page

    def written() -> str:
        return "".join(json.loads(frame).get("text", "") for frame in sent)

    start = "Good morning. This is a rather long sentence about nothing at all, and it goes on. I like an apple."
    paste(page, start)
    wait_until(lambda: page.evaluate("true") and "apple." in written())  # Playwright reports frames during its calls
    page.wait_for_selector(".live-marks [data-mark=now]")
    for _ in "apple.":
        page.keyboard.press("Backspace")
    page.keyboard.type("orange.")
    wait_heard(page, start.replace("apple", "orange"))
    assert [frame for frame in sent if "input_text_buffer.clear" in frame]
    assert "orange." in written()
    before = len(sent)
    page.keyboard.press("Control+Home")
    page.keyboard.type("So: ")
    wait_heard(page, "So: " + start.replace("apple", "orange"))
    assert len([frame for frame in sent[before:] if "append" in frame]) == 0


def test_speak_from_the_start_and_clear(server: str, visit: Visit, recogniser: Recogniser) -> None:
    page = visit(f"{server}/live").page
    text = f"{SENTENCES[3].capitalize()}."
    paste(page, text)
    wait_heard(page, text)
    page.get_by_role("button", name="Speak from the start").click()
    page.wait_for_selector(".live-marks [data-mark=now]")
    wait_heard(page, text)
    assert recogniser.recognise(played(page)) == SENTENCES[3]
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#live-text").input_value() == ""
    assert marks(page) == {}
    assert page.locator("#live-text").evaluate("field => field === document.activeElement")


def test_voice_is_that_of_the_speak_page(server: str, visit: Visit) -> None:
    sent: list[str] = []

    def watch(page: Page) -> None:
        page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(str(frame))))

    page = visit(server, prepare=watch).page
    settle(page)
    pick_voice(page, "Voice", "onyx")
    page.get_by_role("navigation").get_by_role("link", name="Live").click()
    wait_voices(page)
    assert page.locator("#live-voice").get_attribute("value") == "onyx"
    page.locator("#live-language").fill("de")
    page.locator("#live-language").press("Enter")
    write_live(page, "Guten Morgen.")
    wait_heard(page, "Guten Morgen.")
    [session] = [json.loads(frame)["session"] for frame in sent if "session.update" in frame]
    assert session["audio"]["output"]["voice"] == "onyx"
    assert session["language"] == "de"


def test_another_page_ends_the_speech_and_keeps_the_text(server: str, visit: Visit) -> None:
    page = visit(f"{server}/live").page
    paste(page, LONG)
    wait_audible(page)
    page.get_by_role("navigation").get_by_role("link", name="Speak").click()
    wait_silent(page)
    wait_until(lambda: rows(server) == 0)
    page.get_by_role("navigation").get_by_role("link", name="Live").click()
    page.wait_for_selector("#live-text")
    assert page.locator("#live-text").input_value() == LONG
    assert marks(page) == {}


def test_live_text_replaces_the_speech_of_another_page(server: str, visit: Visit) -> None:
    page = visit(server).page
    speak(page, LONG)
    wait_audible(page)
    page.get_by_role("navigation").get_by_role("link", name="Live").click()
    page.wait_for_selector("#live-text")
    write_live(page, "Now I speak.")
    wait_heard(page, "Now I speak.")


@pytest.mark.parametrize("key", ["sk-live-0123456789abcdef", "sk/live:0123456789=abcdef"])
def test_page_asks_for_the_key(visit: Visit, tmp_path: Path, key: str) -> None:
    """The name of a subprotocol can't contain the second key, so the page uses a client secret."""
    with serving(tmp_path, TTS_API_KEYS=key) as url:
        watched = visit(f"{url}/live")
        watched.expected.add("401")
        page = watched.page
        write_live(page, "Hello.")
        page.locator("#key-field").fill(key)
        page.keyboard.press("Enter")
        wait_heard(page, "Hello.")


def test_wrong_voice_is_an_error_in_words(server: str, visit: Visit) -> None:
    page = visit(f"{server}/live").page
    page.evaluate("localStorage.setItem('studio.speak', JSON.stringify({ voice: 'nobody' }))")
    page.reload()
    wait_voices(page)
    write_live(page, "Hello.")
    page.locator(".error").wait_for()
    assert page.locator(".error .headline").inner_text() == "This voice can’t be used."
    page.locator(".error summary").click()
    assert "nobody" in page.locator(".error").inner_text()


# ---- a language model

ANSWER = f"{SENTENCES[0].capitalize()}. {SENTENCES[4].capitalize()}."


class Model(BaseHTTPRequestHandler):
    """A server with OpenAI's chat completions, which streams ANSWER word by word."""

    asked: list[dict[str, Any]]
    go_on: threading.Event

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self._cors()
        self.end_headers()

    def _cors(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "*")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "key": self.headers["Authorization"], "path": self.path})
        wrong = body.get("model") == "missing"
        self.send_response(404 if wrong else 200)
        self._cors()
        self.send_header("Content-Type", "application/json" if wrong else "text/event-stream")
        self.end_headers()
        if wrong:
            self.wfile.write(b'{"error": {"message": "The model is missing."}}')
            return
        words = ANSWER.split(" ") * (50 if "long" in body["messages"][0]["content"] else 1)
        for number, word in enumerate(words):
            event = {"choices": [{"delta": {"content": word if number == 0 else f" {word}"}}]}
            try:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            except OSError:
                self.asked.append({"broken": number})
                return
            if self.go_on.wait(0.02):
                return
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def language_model() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The origin of a language model's server, and the requests that it has received."""
    asked: list[dict[str, Any]] = []
    ended = threading.Event()
    handler = type("Handler", (Model,), {"asked": asked, "go_on": ended})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", asked
        finally:
            ended.set()
            http.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """A server whose pages may contact a language model, the origin of the model, and its requests."""
    with (
        language_model() as (origin, asked),
        serving(tmp_path_factory.mktemp("data"), TTS_STUDIO_LLM_ORIGINS=origin) as url,
    ):
        yield url, origin, asked


def ask(page: Page, origin: str, question: str, name: str = "small") -> None:
    page.get_by_label("a language model").check()
    page.get_by_label("Address of the model server").fill(f"{origin}/v1/")
    page.get_by_label("Model", exact=True).fill(name)
    page.get_by_label("Its key").fill("sk-model")
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def test_answer_of_a_language_model_is_spoken_while_it_is_written(
    model: tuple[str, str, list[dict[str, Any]]], visit: Visit, recogniser: Recogniser
) -> None:
    url, origin, asked = model
    watched = visit(f"{url}/live")
    page = watched.page
    ask(page, origin, "Say something.")
    wait_audible(page)
    wait_heard(page, ANSWER)
    assert page.get_by_role("textbox", name="Answer").input_value() == ANSWER
    assert recogniser.recognise(played(page), several=True) == f"{SENTENCES[0]} {SENTENCES[4]}"
    request = asked[-1]
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] == "Bearer sk-model"
    assert request["model"] == "small"
    assert request["messages"] == [{"role": "user", "content": "Say something."}]
    assert "sk-model" not in page.evaluate("JSON.stringify(localStorage)")
    watched.requests[:] = [request for request in watched.requests if not request.startswith(origin)]


def test_stop_ends_the_answer_and_the_voice(model: tuple[str, str, list[dict[str, Any]]], visit: Visit) -> None:
    url, origin, asked = model
    watched = visit(f"{url}/live")
    page = watched.page
    ask(page, origin, "Write a long text.")
    wait_audible(page)
    stop(page)
    wait_silent(page)
    wait_until(lambda: "broken" in asked[-1])
    text = page.get_by_role("textbox", name="Answer").input_value()
    wait_until(lambda: rows(url) == 0)
    assert page.get_by_role("textbox", name="Answer").input_value() == text
    assert marks(page)["unheard"]
    watched.requests[:] = [request for request in watched.requests if not request.startswith(origin)]


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (("", "Hello?", "missing"), "The model is missing."),
        (("http://elsewhere.test", "Hello?"), "This page may only contact"),
        (("nothing", "Hello?"), "This page may only contact"),
        (("", " "), "The text is empty."),
    ],
)
def test_faults_of_a_language_model_are_shown(
    model: tuple[str, str, list[dict[str, Any]]], visit: Visit, request_of: tuple[str, ...], words: str
) -> None:
    url, origin, _ = model
    address, *rest = request_of
    watched = visit(f"{url}/live")
    watched.expected.add("404")
    ask(watched.page, address or origin, *rest)
    watched.page.locator(".error").wait_for()
    assert words in watched.page.locator(".error").inner_text()
    watched.requests[:] = [request for request in watched.requests if not request.startswith(origin)]


def test_page_says_that_language_models_are_off(server: str, visit: Visit) -> None:
    page = visit(f"{server}/live").page
    page.get_by_label("a language model").check()
    assert "TTS_STUDIO_LLM_ORIGINS" in page.locator("main").inner_text()
    assert page.get_by_role("button", name="Ask").count() == 0


def test_policy_allows_only_the_listed_origins(server: str, model: tuple[str, str, list[dict[str, Any]]]) -> None:
    url, origin, _ = model
    for path in ("/", "/live"):
        assert f"connect-src 'self' {origin};" in httpx.get(url + path).headers["content-security-policy"]
        assert "connect-src 'self';" in httpx.get(server + path).headers["content-security-policy"]
    assert "connect-src 'self';" in httpx.get(f"{url}/docs").headers["content-security-policy"]


# ---- accessibility


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_with_marks_passes_axe(
    model: tuple[str, str, list[dict[str, Any]]], visit: Visit, scheme: str, viewport: dict[str, int]
) -> None:
    page = visit(f"{model[0]}/live", viewport=viewport, color_scheme=scheme).page
    paste(page, LONG)
    page.wait_for_selector(".live-marks [data-mark=now]")
    assert axe_violations(page) == []
    stop(page)
    page.get_by_label("a language model").check()
    assert axe_violations(page) == []
    assert not scrolls_sideways(page)
    if viewport is PHONE:
        small = page.evaluate(
            """() => [...document.querySelectorAll("main button, main select, main input:not([type=radio])")]
            .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 44)
            .map((each) => each.outerHTML)"""
        )
        assert small == []


def test_tab_key_visits_the_controls_in_order(server: str, visit: Visit) -> None:
    page = visit(f"{server}/live").page
    wait_voices(page)
    page.get_by_label("your keyboard").focus()
    found = []
    for _ in range(6):
        page.keyboard.press("Tab")
        found.append(page.evaluate("document.activeElement.id || document.activeElement.innerText.split('\\n')[0]"))
    assert [each.replace("Esc", "").strip() for each in found] == [
        "live-text",
        "Stop",
        "Speak from the start",
        "Clear",
        "live-voice",
        "live-language",
    ]
