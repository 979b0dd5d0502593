"""Every regular expression in app/ takes linear time, near enough, on what is made to be slow for it.

Attacks come from the pattern itself: what stands before a repetition once, what the repetition takes many thousand
times, then something it can't go on with. Time is CPU time, and its limit is for the longest text a request may have.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Iterable, Iterator
from re import _constants as constants
from re import _parser as parser
from typing import Any

import pytest

import app
from app.text import dialogue, script
from app.text.normalizer import Normalizer
from app.text.sentences import split
from tests.live import ROOT

pytestmark = pytest.mark.unit

LONGEST = 20_000  # TTS_MAX_INPUT_CHARS
SIZE, LIMIT_S = 2_000, 0.02  # what is quadratic takes 2 s for LONGEST then
ENDINGS = ("", "\0", " x")
MANY = 12  # a repetition of fewer is bounded

# By how they begin: never given longer texts than these.
BOUNDED = {
    r"\s*(?:[:=]\s*)?([0-9]{1,12}": (60, "what stands in a pause tag"),
    r"(?:.*\s)?[\"'(\[]?(": (12, "the end of a sentence"),
    r"(?:^|.*[\s(\"'])(?:M": (12, "the end of a sentence"),
    r"([A-Za-z]+) $": (20, "what stands before a number"),
    r"[\"')\]]{0,2}(?:\s{1": (40, "what stands behind an abbreviation"),
    r"([A-Za-z]+-?) ?$": (16, "what stands before a decade"),
    r"([\w'.-]+) $": (30, "what stands before a street"),
    r"[0-9]+/[0-9]+": (60, "a number that a bounded pattern has found"),
    r"[\w.-]+/[\w.-]+": (200, "a setting"),
    r"(?P<stem>.+)-(?P<num": (200, "a file name"),
}


def patterns() -> dict[str, re.Pattern[str]]:
    """All that modules hold, and all that is written in calls; by where it was found."""
    found: dict[str, re.Pattern[str]] = {}
    for info in pkgutil.walk_packages(app.__path__, "app."):
        if info.name in ("app.scale.ray", "app.models.kernels.fused", "app.models.kernels.programs"):
            # They need Ray and Triton, and have none.
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            for index, pattern in enumerate(_inside(value, 4)):
                found.setdefault(f"{info.name}.{name}[{index}]", pattern)
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
                and node.func.attr != "escape"
            ):
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = re.compile(node.args[0].value)
    once = {pattern.pattern: where for where, pattern in reversed(found.items())}  # modules import each other's
    return {where: found[where] for where in reversed(once.values())}


def _inside(value: Any, depth: int) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, str):
            yield value
    elif depth and isinstance(value, tuple | list | frozenset | set):
        for each in value:
            yield from _inside(each, depth - 1)
    elif depth and isinstance(value, dict):
        yield from _inside(list(value.values()), depth - 1)
    elif depth and hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from _inside(getattr(value, name, None), depth - 1)


# ---- attacks


def _any_of(node: Any) -> str:
    """A text that a set takes: one of its members, or something outside of what it does not take."""
    negated, members = False, []
    for kind, value in node:
        if kind is constants.NEGATE:
            negated = True
        elif kind is constants.LITERAL:
            members.append(chr(value))
        elif kind is constants.RANGE:
            members.append(chr(value[0]))
        elif kind is constants.CATEGORY:
            members.append(_category(value))
    if not negated:
        return members[0] if members else "a"
    return next((char for char in "a 1-.x" if char not in members), "~")


def _category(kind: Any) -> str:
    name = str(kind)
    return {"DIGIT": "1", "SPACE": " ", "WORD": "a"}.get(name.rsplit("_", 1)[-1], "a") if "NOT" not in name else "-"


def _text(nodes: Iterable[tuple[Any, Any]]) -> str:
    """One text that these nodes take."""
    out = ""
    for kind, value in nodes:
        if kind is constants.LITERAL:
            out += chr(value)
        elif kind is constants.NOT_LITERAL:
            out += "a" if value != ord("a") else "b"
        elif kind is constants.ANY:
            out += "a"
        elif kind is constants.IN:
            out += _any_of(value)
        elif kind is constants.BRANCH:
            out += _text(value[1][0])
        elif kind is constants.SUBPATTERN:
            out += _text(value[3])
        elif kind is constants.ATOMIC_GROUP:
            out += _text(value)
        elif kind in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            out += _text(value[2]) * max(1, value[0])
    return out


def _pumps(nodes: Iterable[tuple[Any, Any]], before: str) -> Iterator[tuple[str, str]]:
    """(what stands before, what is repeated), of every repetition with room for many."""
    for kind, value in nodes:
        if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            if value[1] >= MANY:
                yield before, _text(value[2])
            yield from _pumps(value[2], before)
        elif kind is constants.BRANCH:
            for branch in value[1]:
                yield from _pumps(branch, before)
        elif kind is constants.SUBPATTERN:
            yield from _pumps(value[3], before)
        elif kind is constants.ATOMIC_GROUP:
            yield from _pumps(value, before)
        elif kind in (constants.ASSERT, constants.ASSERT_NOT):
            yield from _pumps(value[1], before)
        before += _text([(kind, value)])


def attacks(pattern: re.Pattern[str]) -> set[tuple[str, str]]:
    tree = list(parser.parse(pattern.pattern, pattern.flags))
    found = {(before, pump) for before, pump in _pumps(tree, "") if pump}
    whole = _text(tree)
    found |= {("", pump) for _, pump in found} | ({("", whole)} if whole else set())
    return found | {("", before + pump) for before, pump in found}


def worst(pattern: re.Pattern[str], longest: int) -> tuple[float, str]:
    """The most CPU time that one text takes, and the text's ends; small sizes first, so that what explodes is seen."""
    slowest = (0.0, "")
    for before, pump in sorted(attacks(pattern)):
        for ending in ENDINGS:
            for size in (14, 20, longest):
                text = before + pump * (size // len(pump)) + ending
                slowest = max(slowest, (_cpu_s(pattern, text), ascii(text[:40] + "..." + text[-5:])))
                if slowest[0] > LIMIT_S:
                    return slowest
    return slowest


def _cpu_s(pattern: re.Pattern[str], text: str) -> float:
    """The least of a few, of this thread: other processes make any one longer, none shorter, and a server that runs in
    this one does not count."""
    least = float("inf")
    for _ in range(8):
        began_s = time.thread_time()
        pattern.sub("", text)
        least = min(least, time.thread_time() - began_s)
        if least < LIMIT_S:
            break
    return least


FOUND = patterns()


@pytest.mark.parametrize("where", FOUND)
def test_no_text_makes_it_slow(where: str) -> None:
    pattern = FOUND[where]
    bound = next((size for head, (size, _) in BOUNDED.items() if pattern.pattern.startswith(head)), SIZE)
    used_s, text = worst(pattern, bound)
    assert used_s < LIMIT_S, f"{where} = {pattern.pattern[:200]!r} takes {used_s:.2f} s for {text}"


def test_what_is_said_to_be_bounded_is_still_there() -> None:
    for head in BOUNDED:
        assert any(pattern.pattern.startswith(head) for pattern in FOUND.values()), head


@pytest.mark.parametrize(
    ("slow", "size"),
    [
        (r"(a+)+$", 20),
        (r"(a|aa)+$", 26),
        (r"(\w+\s?)*!", 20),
        (r"(x+x+)+y", 20),
        (r"\s+$x", 3 * SIZE),
        (r"a*b?a*$", SIZE // 4),
    ],
)
def test_the_check_finds_what_is_slow(slow: str, size: int) -> None:
    used_s, _ = worst(re.compile(slow), size)
    assert used_s > LIMIT_S


# ---- and all of them together, on the longest text that a request may have


@pytest.mark.parametrize(
    "text",
    [
        *("-" * LONGEST + "x", "( " * LONGEST, "(" + "\u266f" * LONGEST + "x", "," * LONGEST + "x", "!?" * LONGEST),
        *("[0, 0]" * LONGEST, " " * LONGEST + "x", "a" * LONGEST, "a." * LONGEST, "1," * LONGEST, "1" * 10_000),
        *("1" * LONGEST, "9." * LONGEST, "$" * LONGEST, "$1" * LONGEST, "<a " * LONGEST, "<" * LONGEST, "&" * LONGEST),
        *("`" * LONGEST, "*_" * LONGEST, "![" * LONGEST, "|-" * LONGEST, "> " * LONGEST, "- " * LONGEST),
        *("http://a." * LONGEST, "a@b." * LONGEST, "Mr. " * LONGEST, "'\"" * LONGEST, "\\frac{" * LONGEST),
        *("[pause:" * LONGEST, "[S1]" * LONGEST, "(laughs" * LONGEST, "\u00bd" * LONGEST, "\U0001f600\u200d" * LONGEST),
    ],
    ids=lambda text: ascii(text[:8]),
)
def test_the_longest_texts_are_read_in_time(text: str) -> None:
    text = text[:LONGEST]
    began_s = time.process_time()
    words = Normalizer().normalize(text)
    split(words, 300)
    script.parse(text)
    dialogue.tidy(text)
    script.turns(text)
    assert time.process_time() - began_s < 5.0
    assert len(words) < 30 * LONGEST
