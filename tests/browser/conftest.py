"""Debian's Chromium with Playwright. `visit` fails on console errors, policy violations and foreign requests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A host name other than localhost: for the browser, plain http is then insecure, as with an address in a LAN.
ELSEWHERE = "studio.test"
PATIENCE_MS = 90_000  # for what a page is expected to do or to show, on a busy machine

WATCH = """
window.observed = { violations: [], shift: 0 };
document.addEventListener("securitypolicyviolation", (event) => observed.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
new PerformanceObserver((list) => { for (const each of list.getEntries()) if (!each.hadRecentInput) observed.shift += each.value; })
  .observe({ type: "layout-shift", buffered: true });
// A value that is missing is never shown as a word.
const check = (node) => {
  if (node.nodeType === Node.TEXT_NODE && /^(null|false|\\[object \\w+\\])$|\\b(undefined|NaN)\\b/.test(node.data.trim())) console.error(`the page shows: ${node.data}`);
  for (const child of node.childNodes) check(child);
};
new MutationObserver((changes) => { if (document.getElementById("dock")) for (const { target, addedNodes } of changes) [target.nodeType === Node.TEXT_NODE ? target : null, ...addedNodes].forEach((node) => node && check(node)); })
  .observe(document, { subtree: true, childList: true, characterData: true });
"""  # noqa: E501
# Measures the audio that is played, at the destination of the audio context.
LISTEN = """
const connect = AudioNode.prototype.connect;
window.taps = [];
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    const tap = this.context.createAnalyser();
    tap.fftSize = 4096;
    connect.call(this, tap);
    taps.push(tap);
  }
  return connect.call(this, to, ...rest);
};
window.loudest = () => Math.max(0, ...taps.map((tap) => {
  const wave = new Float32Array(tap.fftSize);
  tap.getFloatTimeDomainData(wave);
  return Math.max(...wave.map(Math.abs));
}));
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser per test file: Playwright's event loop blocks this thread for the async tests of other files."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    recording = tmp_path_factory.mktemp("microphone") / "recording.wav"
    recording.write_bytes(samples.file(0.7 * samples.speech(), "wav"))
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        arguments = [
            "--no-sandbox",
            "--use-fake-device-for-media-stream",  # plays in a loop; the context of a page grants the microphone
            f"--use-file-for-fake-audio-capture={recording}",
            "--autoplay-policy=no-user-gesture-required",
            f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
        ]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page with its console errors and its requests."""

    page: Page
    base: str
    expected: set[str] = field(default_factory=set)  # parts of console errors that the test causes on purpose
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        foreign = [url for url in self.requests if not url.startswith((self.base, "data:", "blob:"))]
        assert not foreign
        unexpected = [text for text in self.errors if not any(part in text for part in self.expected)]
        assert not unexpected
        assert self.page.evaluate("observed.violations") == []


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Watched]]:
    """Open an address in a new browser context. At the end, check that nothing went wrong there."""
    contexts: list[BrowserContext] = []
    opened: list[Watched] = []

    def open_page(url: str, *, prepare: Callable[[Page], Any] | None = None, **options: Any) -> Watched:
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options}
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        context.add_init_script(WATCH)
        context.add_init_script(LISTEN)
        page = context.new_page()
        parts = urlsplit(url)
        watched = Watched(page, f"{parts.scheme}://{parts.netloc}")
        opened.append(watched)
        page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on("request", lambda request: watched.requests.append(request.url))
        if prepare:
            prepare(page)
        page.goto(url)
        page.wait_for_selector("main h1:not(.loading)")
        return watched

    yield open_page
    for watched in opened:
        watched.check()
    for context in contexts:
        context.close()
