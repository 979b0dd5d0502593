"""Actions and waits of the browser tests on the pages of the studio."""

from __future__ import annotations

import ast
import base64
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from app import wiring
from app.api.routes.pages import texts
from app.engines.registry import EngineSpec, specs
from tests.support.live import ROOT, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from playwright.sync_api import Page, Route

I18N = ROOT / "app" / "static" / "i18n"
SHORT = "Hello there. This is my own machine speaking."
# Twenty minutes of speech: the offline voice needs several seconds for it, in which a test can act.
LONG = " ".join(f"Sentence number {n} is about nothing at all, and it goes on for quite a while." for n in range(240))

TAKE = """
async () => {
  const { takes } = await import("/static/js/takes.js");
  const [take] = await takes.all();
  if (!take) return null;
  const samples = await takes.sound(take.id);
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return { ...take, pcm: btoa(binary) };
}
"""


@contextmanager
def serving_clones(folder: Path, **variables: Any) -> Iterator[str]:
    """Run a server with an engine that supports cloned voices."""
    known = {**specs(), "reading": EngineSpec("reading", "reading-1", "tests.support.reading_engine:build")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring.registry, "specs", lambda: known)
        with serving(folder, TTS_ENGINE="reading", TTS_FALLBACK_ENGINE="", **variables) as url:
            yield url


def texts_of(language: str) -> dict[str, str]:
    """Return all texts of a language of the pages: key -> text."""
    found = {}
    for folder in text_folders():
        for group, entries in json.loads(texts(folder, language)).items():
            for key, text in {"": entries}.items() if isinstance(entries, str) else entries.items():
                found[f"{group}.{key}" if key else group] = text
    return found


def text_folders() -> list[str]:
    """Return the folders with texts of the pages, relative to static/i18n: "", "books/" and so on."""
    folders = (path.parent.relative_to(I18N).as_posix() for path in I18N.rglob("texts.json"))
    return ["" if folder == "." else f"{folder}/" for folder in folders]


def error_codes() -> set[str]:
    """Return the error codes in the source of the app: attributes, variables and arguments with the name `code`."""
    found = set()
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named: list[tuple[ast.expr, ast.expr]] = []
            if isinstance(node, ast.keyword) and node.arg == "code":
                named = [(ast.Name("code"), node.value)]
            elif isinstance(node, ast.AnnAssign) and node.value:
                named = [(node.target, node.value)]
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        named += zip(target.elts, node.value.elts, strict=False)
                    else:
                        named.append((target, node.value))
            for target, value in named:
                name = getattr(target, "id", None) or getattr(target, "attr", None)
                if name == "code" and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found.add(value.value)
    return found


def write(page: Page, text: str) -> None:
    page.get_by_role("textbox").first.fill(text)


def speak(page: Page, text: str) -> None:
    write(page, text)
    page.get_by_role("button", name="Speak", exact=True).click()


def wait_state(page: Page, *states: str) -> None:
    selector = ", ".join(f'[data-state="{state}"]' for state in states)
    page.wait_for_selector(selector)


def until(page: Page, expression: str, timeout_s: float = 60.0) -> None:
    """Wait until the expression is true. Playwright's wait_for_function needs eval, which the pages forbid."""
    wait_until(lambda: page.evaluate(expression), timeout_s)


def hold_first(page: Page, url: str) -> list[Route]:
    """Hold back the first request for `url`. Returns a list that will contain its route."""
    held: list[Route] = []

    def handle(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route(url, handle)
    return held


def held_route(page: Page, held: list[Route]) -> Route:
    """Wait for the request that `hold_first` holds back, and return its route."""
    wait_until(lambda: page.evaluate("true") and held)
    return held[0]


def pick_voice(page: Page, label: str, voice: str) -> None:
    """Choose the voice with this id in the gallery that the button with this label opens."""
    page.get_by_label(label, exact=True).click()
    gallery = page.get_by_role("dialog", name="Choose a voice")
    gallery.get_by_role("list", name="All voices").locator("li").first.wait_for()
    row = gallery.locator("li").filter(has=page.locator(".choose"))
    row.and_(page.locator(f"[data-voice={json.dumps(voice)}]")).locator(".choose").click()
    gallery.wait_for(state="detached")


def wait_voices(page: Page) -> None:
    """Wait until the page knows the voices of the server."""
    page.wait_for_selector('.pick:not([data-voices="0"])', state="attached")


def wait_takes(page: Page, count: int) -> None:
    until(page, f"async () => (await (await import('/static/js/takes.js')).takes.all()).length === {count}")


def wait_audible(page: Page) -> None:
    """Wait until the audio graph plays something other than silence."""
    until(page, "() => loudest() > 0.05")


def wait_worth_keeping(page: Page) -> None:
    """Wait until enough audio was heard that Stop keeps it as a take."""
    until(page, "async () => (await import('/static/js/player.js')).player.at_s > 0.6")


def newest_take(page: Page) -> dict[str, Any]:
    take: dict[str, Any] = page.evaluate(TAKE)
    take["pcm"] = base64.b64decode(take["pcm"])
    return take


def samples(pcm: bytes) -> NDArray[np.float32]:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32_768


def at_s(page: Page) -> float:
    return float(page.evaluate("async () => (await import('/static/js/player.js')).player.at_s"))
