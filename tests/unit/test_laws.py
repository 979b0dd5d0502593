"""No engine is named outside app/engines and the settings: others read an EngineSpec, an EngineInfo or the API."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.engines.registry import BUILT_IN

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
# A name in any case, also as a part of an identifier (CSM_MODEL, DiaRunner), but not inside a word (dialogue).
ENGINE_NAME = re.compile(rf"(?<![a-z])(?:{'|'.join(spec.name for spec in BUILT_IN)})(?![a-z])", re.IGNORECASE)
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
ALLOWED = ("app/engines/", "app/settings.py")
# (file, text) that may contain an engine's name, and why.
EXCEPTIONS = {
    ("app/weights/hub.py", "csm"): "a key of the table of published models",
    ("app/weights/hub.py", "CSM_MODEL"): "the same table: the setting that names the source",
    ("app/weights/hub.py", "sesame/csm-1b"): "the same table: the source",
    ("app/weights/hub.py", "unsloth/csm-1b"): "the same table: a mirror",
    ("app/weights/hub.py", "eustlb/csm-1b"): "the same table: a mirror",
    ("app/weights/hub.py", "CSM_CODEC"): "the same table: the setting of the codec",
    ("app/weights/hub.py", "CSM_TOKENIZER"): "the same table: the setting of the codec",
    ("app/weights/hub.py", "dia"): "a key of the same table",
    ("app/weights/hub.py", "DIA_MODEL"): "the same table: the setting that names the source",
    ("app/weights/hub.py", "nari-labs/Dia-1.6B-0626"): "the same table: the source",
    ("app/weights/hub.py", "dia-v*.safetensors"): "the same table: a file name",
    ("app/weights/hub.py", "dia-v*.pth"): "the same table: a file name",
    ("app/weights/hub.py", "DIA_CODEC"): "the same table: the setting of the codec",
}


def texts_in_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every identifier and string constant, without docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield line, node.value
        for field in ("id", "attr", "arg", "name", "asname", "module", "rest"):
            if isinstance(name := getattr(node, field, None), str):
                yield line, CAMEL_CASE.sub("_", name)


def texts_in_javascript(source: str) -> Iterator[tuple[int, str]]:
    """Yield the number and text of every line, without comments."""
    source = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), source, flags=re.DOTALL)
    for number, line in enumerate(source.splitlines(), 1):
        yield number, CAMEL_CASE.sub("_", re.sub(r"(?:^|\s)//.*", "", line))


def engine_names(file: str, texts: Iterator[tuple[int, str]]) -> list[tuple[str, int, str]]:
    return [(file, line, text) for line, text in texts if ENGINE_NAME.search(text)]


def names_in(suffix: str) -> list[tuple[str, int, str]]:
    read = {".py": texts_in_python, ".js": texts_in_javascript}[suffix]
    found = []
    for path in sorted((ROOT / "app").rglob(f"*{suffix}")):
        file = path.relative_to(ROOT).as_posix()
        if not file.startswith(ALLOWED):
            found += engine_names(file, read(path.read_text(encoding="utf-8")))
    return found


def test_python_code_names_no_engine_outside_engines_and_settings() -> None:
    found = [(file, line, text) for file, line, text in names_in(".py") if (file, text) not in EXCEPTIONS]
    assert not found, "\n".join(f"{file}:{line}: {text!r}" for file, line, text in found)


def test_pages_name_no_engine() -> None:
    found = names_in(".js")
    assert not found, "\n".join(f"{file}:{line}: {text!r}" for file, line, text in found)


def test_every_exception_in_the_table_is_needed() -> None:
    assert {(file, text) for file, _, text in names_in(".py")} == EXCEPTIONS.keys()


@pytest.mark.parametrize(
    "code",
    [
        'x = "csm"',
        'x = f"use CSM_MODEL={y}"',
        "from app.engines.dia import loading",
        "import app.engines.espeak as voice",
        "class DiaPlanner: pass",
        "if is_csm: pass",
        "settings.dia_model",
        "f(csm=1)",
        "def f(espeak_rate): pass",
        'match x:\n    case "dia": pass',
    ],
)
def test_engine_names_in_python_are_found(code: str) -> None:
    assert engine_names("x.py", texts_in_python(code))


@pytest.mark.parametrize(
    "code", ['"""Like CSM."""', "x = 1  # CSM", 'x = "dialogue media dial"', "class Dialogue: pass"]
)
def test_ordinary_words_in_python_are_not_reported(code: str) -> None:
    assert not engine_names("x.py", texts_in_python(code))


@pytest.mark.parametrize("code", ['model.startsWith("dia")', "const csmOnly = 1;", "if (isDia) {}", "`${x} espeak`"])
def test_engine_names_in_javascript_are_found(code: str) -> None:
    assert engine_names("x.js", texts_in_javascript(code))


@pytest.mark.parametrize("code", ["// Dia's sounds", "x = 1; // CSM", "/* CSM\n Dia */", 'call("/v1/audio/dialogue")'])
def test_ordinary_words_in_javascript_are_not_reported(code: str) -> None:
    assert not engine_names("x.js", texts_in_javascript(code))
