"""The old names of the first version are gone, and sentences contain no unclear idioms."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("app", "bench", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))

# Identifiers of the first edition; docs/glossary.md has the words that replaced them.
OLD_NAMES = frozenset(
    """
    Studio EngineHost Outbox outbox Told CsmFrames DiaFrames Recorder RowCache FrameCache CrossCache Knobs knobs Mirror
    Tracks Shelf Below Rooms Miscast Casting enroll decode_apart TOP_K_FEW few young went laps send_off aside spell
    seeing blind uncast roof crafts twins AnswerResponse WorkResponse
    """.split()
)
OLD_MODULES = frozenset(
    """
    studio assemble casting outbox graphs prefix layers twins programs fused shelf character apart readings lexicon
    spelling marks scripts wire access respond shapes schemas openapi host csm_frames csm_load dia_frames dia_load
    """.split()
)
IDIOMS = re.compile(
    r"\b(whoever|whomever|nobody|those that|those who|those which|(?:is|are|be|was) told|what has not"
    r"|where there (?:is|are)|as far as there are|knows nothing of|so many of (?:them|it)|anyhow)\b",
    re.IGNORECASE,
)


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=asname):
                yield name.rpartition(".")[2]
                yield asname or ""
            case _:
                pass


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments and strings with the line on which they begin; a wrapped sentence is one text."""
    comment, begin, last = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield begin, comment
                comment, begin = "", token.start[0]
            comment, last = f"{comment} {token.string.lstrip('# ')}", token.start[0]
        elif token.type == tokenize.STRING and " " in token.string:  # a single word is a value, for example of JSON
            yield token.start[0], " ".join(token.string.split())
    yield begin, comment


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_identifier_of_the_first_version_is_left(path: Path) -> None:
    found = set(identifiers(ast.parse(path.read_text()))) & OLD_NAMES
    assert not found


def test_no_module_of_the_first_version_is_left() -> None:
    assert not {path.stem for path in (ROOT / "app").rglob("*.py")} & OLD_MODULES


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.is_relative_to(ROOT / "app")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_sentences_contain_no_unclear_idioms(path: Path) -> None:
    found = [f"{line}: {match[0]}" for line, text in prose(path.read_text()) for match in IDIOMS.finditer(text)]
    assert not found


@pytest.mark.parametrize(
    "text", ["# Whoever asks", "# a row that nobody\n# wants", '"""Nobody reads it."""', "x = 'the API is told'"]
)
def test_idiom_is_found(text: str) -> None:
    assert [match[0] for _, each in prose(text + "\n") for match in IDIOMS.finditer(each)]


def test_old_name_is_found() -> None:
    tree = ast.parse("from app.x import Outbox as queue\ndef f(few): return self.studio.enroll(knobs=few)")
    assert set(identifiers(tree)) & OLD_NAMES == {"Outbox", "few", "enroll", "knobs"}
