"""Documentation is correct: snippets of the README run, and links and paths exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from tests.support.live import ROOT

pytestmark = pytest.mark.integration

README = (ROOT / "README.md").read_text()
PAGES = (
    "architecture",
    "glossary",
    "engines",
    "api",
    "proxies",
    "studio",
    "voices",
    "lexicon",
    "captions",
    "books",
    "live",
    "provenance",
    "watermark",
    "models",
    "scaling",
    "benchmarks",
    "reliability",
    "licenses",
    "tests",
)
BASE = "http://localhost:8000"


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def is_mp3(path: Path) -> bool:
    data = path.read_bytes()
    return len(data) > 5_000 and data[0] == 0xFF


def test_python_snippet_of_the_readme_writes_an_mp3(server: str, tmp_path: Path) -> None:
    (code,) = snippets("python")
    run([sys.executable, "-c", code.replace(BASE, server)], tmp_path)
    assert is_mp3(tmp_path / "hello.mp3")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_snippet_of_the_readme_writes_an_mp3(server: str, tmp_path: Path) -> None:
    (command,) = [snippet for snippet in snippets("bash") if "curl" in snippet]
    run(["bash", "-ec", command.replace(BASE, server)], tmp_path)
    assert is_mp3(tmp_path / "hello.mp3")


def test_readme_starts_with_the_run_and_test_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:20])
    assert "make run" in first_screen
    assert "make test" in first_screen


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_and_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_architecture_and_glossary_name_existing_files() -> None:
    for page in ("architecture", "glossary"):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        paths = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.[a-z]+)?)`", text)
        assert len(paths) > 15
        for path in paths:
            assert (ROOT / "app" / path).exists() or (ROOT / path).exists(), (page, path)


def test_changelog_has_an_entry_for_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
