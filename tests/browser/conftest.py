"""Chromium as Debian packages it, driven by Playwright; every page is watched for what must never happen on it."""

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
# A name that is not this machine's own, so that the browser takes plain http for insecure, as it does a LAN address.
ELSEWHERE = "studio.test"

WATCH = """
window.seen = { violations: [], shift: 0 };
document.addEventListener("securitypolicyviolation", (event) => seen.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
new PerformanceObserver((list) => { for (const each of list.getEntries()) if (!each.hadRecentInput) seen.shift += each.value; })
  .observe({ type: "layout-shift", buffered: true });
"""  # noqa: E501
# What leaves for the loudspeaker, measured at the context's own end.
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
    """Not for the whole session: Playwright's loop runs in this thread, where other files' async tests want theirs."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group `browser`)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    heard.write_bytes(samples.file(0.7 * samples.speech(), "wav"))
    with playwright.sync_playwright() as driver:
        arguments = [
            "--no-sandbox",
            "--use-fake-device-for-media-stream",  # speaks for ever; whether a page may listen, its context says
            f"--use-file-for-fake-audio-capture={heard}",
            "--autoplay-policy=no-user-gesture-required",
            f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
        ]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and all that went wrong on it."""

    page: Page
    base: str
    expected: set[str] = field(default_factory=set)  # parts of console errors that the test itself provokes
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        foreign = [url for url in self.requests if not url.startswith((self.base, "data:", "blob:"))]
        assert not foreign
        unexpected = [text for text in self.errors if not any(part in text for part in self.expected)]
        assert not unexpected
        assert self.page.evaluate("seen.violations") == []


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens an address in a context of its own; at the end nothing may have gone wrong there."""
    contexts: list[BrowserContext] = []
    opened: list[Watched] = []

    def open_page(url: str, *, prepare: Callable[[Page], Any] | None = None, **options: Any) -> Watched:
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options}
        context = chromium.new_context(**options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        context.add_init_script(WATCH)
        context.add_init_script(LISTEN)
        page = context.new_page()
        parts = urlsplit(url)
        watched = Watched(page, f"{parts.scheme}://{parts.netloc}")
        opened.append(watched)
        page.on("console", lambda said: watched.errors.append(said.text) if said.type == "error" else None)
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
