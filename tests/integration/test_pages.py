"""The files of the studio: how the server sends them, and checks of their content without a browser."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from app.api.routes import pages
from app.api.routes.pages import DOCS, PATHS
from app.audio.formats import AUDIO_FORMATS
from app.generator.resolving import MODEL_ALIASES
from app.text.nonverbal import NON_VERBAL_SOUNDS
from app.voices.presets import DEFAULT_VOICE
from tests.support.live import LONG, ROOT, serving
from tests.support.studio import error_codes, texts_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.integration

STATIC = ROOT / "app" / "static"
LANGUAGES = {language: texts_of(language) for language in pages.LANGUAGES}
# The texts that are equal in all languages.
IN_ALL_LANGUAGES = {
    "ltr",
    "Studio",
    "Live",
    "{count} / {limit}",
    "Pause",
    "Position",
    "Hello, I am {name}. This is how I sound.",  # the voices speak English
    "Top k",
    "Top p",
    "Code",
    "Have you seen my umbrella?",
    "You left it on the bus, I think.",
    "Again? That is the third one this year.",
    "Then take mine. But bring it back.",
    "{s} s",
    "{n} min",
    "{n} h",
    "Version",
    "Standard",
    "YouTube",
}
CODE = "".join(path.read_text() for path in [*(STATIC / "js").rglob("*.js"), *STATIC.glob("*.html")])
CSS = "".join(path.read_text() for path in sorted(STATIC.glob("*.css")))


@pytest.mark.parametrize("path", [*PATHS, *DOCS])
def test_pages_have_a_strict_security_policy(server: str, path: str) -> None:
    first, second = httpx.get(server + path), httpx.get(server + path)
    assert first.status_code == 200
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["cache-control"] == "no-store"
    assert first.headers["x-frame-options"] == "DENY"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.headers["referrer-policy"] == "no-referrer"
    microphone = "()" if path in DOCS else "(self)"
    assert first.headers["permissions-policy"] == f"microphone={microphone}, camera=(), geolocation=()"
    policy = dict(part.split(" ", 1) for part in first.headers["content-security-policy"].split("; "))
    for directive in ("default-src", "base-uri", "frame-ancestors"):
        assert policy[directive] == "'none'"
    for directive in ("script-src", "connect-src", "worker-src", "form-action"):
        assert policy[directive] == "'self'"
    nonce = re.search(r"'nonce-([^']+)'", policy["style-src"])
    assert nonce
    assert f'nonce="{nonce[1]}"' in first.text
    assert nonce[1] not in second.text
    assert not re.search(r"<script(?![^>]*\bsrc=)", first.text)
    assert not re.search(r"\sstyle=|\son\w+=", first.text)


def test_browsers_find_an_icon_and_a_page_at_unknown_addresses(server: str) -> None:
    icon = httpx.get(f"{server}/favicon.ico")
    assert icon.status_code == 200
    assert icon.headers["content-type"] == "image/svg+xml"
    browser = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    page = httpx.get(f"{server}/v1/no/such", headers=browser)
    assert page.status_code == 404
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for accept in ("*/*", "application/json"):
        assert httpx.get(f"{server}/v1/no/such", headers={"accept": accept}).json()["error"]["code"] == "not_found"
    assert httpx.post(f"{server}/v1/no/such", headers=browser).json()["error"]["code"] == "not_found"


def test_files_are_compressed_and_have_an_etag(server: str) -> None:
    url = f"{server}/static/js/player.js"
    whole = httpx.get(url)
    assert whole.headers["content-encoding"] == "gzip"
    assert whole.headers["content-type"].startswith("text/javascript")
    assert whole.headers["cache-control"] == "no-cache"
    assert httpx.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    assert httpx.get(url, headers={"accept-encoding": "identity"}).text == (STATIC / "js" / "player.js").read_text()
    gone = httpx.get(f"{server}/static/../app.py")
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "not_found"
    assert httpx.get(f"{server}/static/%2e%2e/app.py").status_code == 404


def test_all_addresses_have_the_path_prefix_of_a_proxy(tmp_path: Path) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from app.wiring import create_app
    from tests.support.live import settings

    outer = FastAPI()
    outer.mount("/tts", create_app(settings(tmp_path)))
    with TestClient(outer) as client:
        for page in ("/tts/", "/tts/docs", "/tts/redoc"):
            shell = client.get(page).text
            assert 'data-root="/tts"' in shell
            for address in re.findall(r'(?:src|href)="(/[^"]*)"', shell):
                assert address.startswith("/tts/")
                assert client.get(address).status_code == 200, address


@pytest.mark.parametrize(
    ("path", "bundle", "name"),
    [("/docs", "swagger-ui-bundle.js", "SwaggerUIBundle"), ("/redoc", "redoc.standalone.js", "Redoc")],
)
def test_the_documentation_needs_no_other_host(server: str, path: str, bundle: str, name: str) -> None:
    page = httpx.get(f"{server}{path}").text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith(("/", "data:")) for address in addresses)
    assert f"/static/swagger/{bundle}" in addresses
    script = httpx.get(f"{server}/static/swagger/{bundle}")
    assert script.headers["content-encoding"] == "gzip"
    assert name in script.text


def test_texts_of_one_language_have_an_etag(server: str) -> None:
    url = f"{server}/static/i18n/voices/de.json"
    german = httpx.get(url)
    assert german.json()["trim"]["to"] == "Ende"
    assert (german.headers["content-encoding"], german.headers["cache-control"]) == ("gzip", "no-cache")
    assert httpx.get(url, headers={"if-none-match": german.headers["etag"]}).status_code == 304
    for gone in ("voices/it.json", "other/de.json", "../de.json"):
        assert httpx.get(f"{server}/static/i18n/{gone}").status_code == 404


def test_every_language_has_each_text_with_the_same_slots() -> None:
    for path in (STATIC / "i18n").rglob("*.json"):
        for group in json.loads(path.read_text()).values():
            rows = [group] if isinstance(group, list) else group.values()
            assert {len(row) for row in rows} <= {1, len(LANGUAGES)}, path
            assert {row[0] for row in rows if len(row) == 1} <= IN_ALL_LANGUAGES, path
    english = LANGUAGES["en"]
    for name, words in LANGUAGES.items():
        for key, text in words.items():
            assert text.strip(), f"{name} {key}"
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), f"{name} {key}"
    listed = re.search(r"export const LANGUAGES = \{(.*?)\}", CODE)
    assert listed
    assert re.findall(r"(\w+):", listed[1]) == list(LANGUAGES)


def test_every_caption_in_the_code_exists() -> None:
    words = LANGUAGES["en"]
    used = set(re.findall(r'\bt\(\s*"([\w.]+)"', CODE)) | set(re.findall(r'data-t(?:-label)?="([\w.]+)"', CODE))
    used |= set(re.findall(r'"((?:server|nav|take|error|keys|history|voice)\.[\w.]+)"', CODE))
    assert len(used) > 150
    assert not [key for key in used if key not in words and f"{key}.other" not in words]


def test_every_error_code_has_words() -> None:
    """The other languages have the same keys. `test_error_codes_have_words` of tests/browser asks the page itself."""
    listed = re.search(r"const SAME = \{(.*?)\n\};", CODE, re.DOTALL)
    assert listed
    same = dict(re.findall(r'(\w+): "(\w+)"', listed[1]))
    codes = error_codes()
    assert {"voice_not_found", "youtube_live", "wrong_job_status", "request_timeout", "session_expired"} <= codes
    assert {code for code in same if not code.isdecimal()} <= codes
    words = LANGUAGES["en"]
    for code in codes:
        parts = same.get(code, code).split("_")
        assert any(f"errors.{'_'.join(parts[:n])}" in words for n in range(1, len(parts) + 1)), code


def test_no_file_refers_to_another_host() -> None:
    named = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", CODE + CSS))
    assert named <= {"http://www.w3.org", "//www.w3.org"}  # the SVG name space: an identifier that no browser downloads


def test_no_text_is_inserted_as_html() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", CODE)


# The formats that a page may name. It writes WAV and PCM itself. Its first example and first visit use the API's
# default.
PAGE_FORMATS = {"wav", "pcm", "mp3"}


def copies(code: str) -> set[str]:
    """Return the formats, non-verbal sounds, model aliases, default voice and limits that a page's code contains."""
    quoted = set(re.findall(r"""["'`(]([\w -]+)["'`)]""", code))
    found = quoted & (AUDIO_FORMATS.keys() - PAGE_FORMATS | NON_VERBAL_SOUNDS | {DEFAULT_VOICE})
    found |= {alias for alias in MODEL_ALIASES if alias in code}
    named = r"\btts-1|\bgpt-|\b20_?000\b|maxlength: *\d|duration\) *[<>]=? *\d"
    fallback = r"\b(?:limits|limitOf)\b[^\n;]*\?\? *\[?[\d\"]"
    return found | set(re.findall(f"{named}|{fallback}", code))


def test_page_code_has_no_copy_of_an_api_list() -> None:
    assert copies(CODE) == set()


@pytest.mark.parametrize(
    "code",
    [
        'const FORMATS = ["mp3", "flac"];',
        'const SOUNDS = ["(laughs)"];',
        'const SOUNDS = ["clears throat"];',
        "/^(tts-1|gpt-)/.test(model.id)",
        "health.last?.limits?.dialogue_turns ?? 200",
        "const limit = 20_000;",
        'const DEFAULT_VOICE = "alloy";',
        'h("input", { maxlength: 100 })',
        "Number(w.duration) <= 600",
    ],
)
def test_check_finds_a_copy_of_an_api_list(code: str) -> None:
    assert copies(code)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2.2 defines it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ratio(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_have_enough_contrast() -> None:
    blocks = re.findall(r":root[^{]*\{([^}]*--bg:[^}]*)\}", CSS)
    assert len(blocks) == 3  # three themes: light, dark by choice, dark by the system setting
    themes = [dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{3,6});", block)) for block in blocks]
    assert themes[1] == themes[2]
    for theme in themes:
        grounds = [theme[name] for name in ("--bg", "--surface", "--sunken")]
        for name in ("--text", "--muted", "--accent", "--danger", "--warn", "--ok", "--s2"):
            assert min(ratio(theme[name], ground) for ground in grounds) >= 4.5, name
        for name in ("--edge", "--rest"):
            assert min(ratio(theme[name], ground) for ground in grounds) >= 3, name
        assert ratio(theme["--on-accent"], theme["--accent"]) >= 4.5
        assert ratio(theme["--surface"], theme["--danger"]) >= 4.5  # Stop


def test_the_api_has_what_the_pages_need(server: str) -> None:
    health = httpx.get(f"{server}/health").json()
    fields = health["limits"].pop("fields")
    assert health["limits"] == {
        "input_chars": 1_000_000,
        "dialogue_turns": 200,
        "response_formats": ["mp3", "opus", "aac", "flac", "wav", "pcm", "ogg", "m4a"],
        "sample_s": {"minimum": 1.0, "maximum": 30.0},
        "best_sample_s": {"minimum": 6.0, "maximum": 12.0},
        "youtube_s": {"minimum": 1.0, "maximum": 600.0},
        "voice_name_chars": 100,
        "voice_description_chars": 1000,
        "jobs": {
            "input_chars": 20_000_000,
            "file_types": [".txt", ".md", ".html", ".epub"],
            "response_formats": ["mp3", "m4b", "wav", "flac", "opus", "zip", "epub"],
            "captions": ["srt", "vtt", "lrc", "json"],
        },
    }
    assert health["default_voice"] == DEFAULT_VOICE
    assert fields["speed"] == {"minimum": 0.25, "maximum": 4.0}
    assert fields["top_p"] == {"exclusiveMinimum": 0.0, "maximum": 1.0}
    assert fields.keys() >= {"temperature", "top_k", "cfg_scale"}
    assert health["key_needed"] is False
    memory = health["memory"]
    assert [each["device"] for each in memory] == ["cpu"]
    assert 10_000_000 < memory[0]["used_bytes"] < memory[0]["total_bytes"]
    model = httpx.get(f"{server}/v1/models/espeak").json()
    assert model["parameters"] == ["language"]
    assert model["max_speakers"] == 1
    assert (model["sounds"], model["alias"]) == ([], False)
    assert {"en", "de"} <= {tag.split("-")[0] for tag in model["languages"]}
    alias = httpx.get(f"{server}/v1/models/tts-1").json()
    assert alias["alias"] is True
    assert alias["languages"] is None  # a long list is only in /v1/models, not in each alias


def test_health_reports_whether_a_key_is_needed(tmp_path: Path) -> None:
    with serving(tmp_path, TTS_API_KEYS="one-key-to-enter-with") as url:
        assert httpx.get(f"{url}/health").json()["key_needed"] is True
        assert httpx.get(url).status_code == 200  # the page needs no key, so that a person can enter a key there


def events(url: str, path: str, **body: object) -> list[dict[str, Any]]:
    answer = httpx.post(url + path, json={"stream_format": "sse", "response_format": "pcm", **body}, timeout=60)
    assert answer.status_code == 200
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def audio_of(received: list[dict[str, Any]]) -> NDArray[np.float32]:
    data = b"".join(base64.b64decode(event["audio"]) for event in received if event["type"] == "speech.audio.delta")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32_768


def is_quiet(sound: NDArray[np.float32], from_s: float, to_s: float) -> bool:
    return bool(np.abs(sound[int(24_000 * from_s) : int(24_000 * to_s)]).max() < 0.02)


def test_progress_events_have_text_and_start_of_each_sentence(server: str) -> None:
    text = "The train leaves at 9:41 in the morning. We walked along the river after dinner. [pause:2s] The end."
    received = events(server, "/v1/audio/speech", input=text, progress=True, cache=False)
    parts = [event for event in received if event["type"] == "speech.progress"]
    assert received[0] is parts[0]
    assert parts[0]["text"] == "The train leaves at nine forty one in the morning."
    assert parts[0]["start_s"] == 0
    assert parts[-1]["text"] == "The end."
    assert [part["sentence"] for part in parts] == [0, 1, 2]
    assert [part["sentences"] for part in parts[1:]] == [3, 3]
    sound, last_s = audio_of(received), parts[-1]["start_s"]
    assert is_quiet(sound, last_s - 1.9, last_s - 0.01)
    assert not is_quiet(sound, last_s, last_s + 0.3)


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_progress_events_of_a_dialogue_have_the_turn(server: str, speed: float) -> None:
    turns = [{"text": "Hello there, you."}, {"text": "Who, me? Yes.", "voice": "nova"}, {"text": "Fine."}]
    received = events(server, "/v1/audio/dialogue", turns=turns, progress=True, cache=False, speed=speed)
    parts = [event for event in received if event["type"] == "speech.progress"]
    assert [part["turn"] for part in parts] == [0, 1, 2]
    sound = audio_of(received)
    for part in parts[1:]:
        assert is_quiet(sound, part["start_s"] - 0.15, part["start_s"] - 0.03)
        assert not is_quiet(sound, part["start_s"], part["start_s"] + 0.3)


def test_event_stream_without_progress_has_only_openai_events(server: str) -> None:
    received = events(server, "/v1/audio/speech", input=LONG[:200])
    assert {event["type"] for event in received} == {"speech.audio.delta", "speech.audio.done"}


@pytest.mark.slow
def test_the_installed_package_has_the_pages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for path in STATIC.rglob("*"):
        if path.is_file():
            assert path.relative_to(ROOT).as_posix() in packed
