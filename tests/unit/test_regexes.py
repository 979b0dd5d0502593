"""The time of every regular expression in app/ grows linearly with the text, also for texts made to slow it down.

An attack is built from the pattern: the text before a repetition once, then the repeated text many times, then an
ending that cannot match. Each pattern runs with the methods that the app calls on it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from re import _constants as constants
from re import _parser as parser
from types import ModuleType
from typing import Any

import pytest

from app.engines.dia.script import clean_line
from app.text import script
from app.text.normalizer import Normalizer
from app.text.sentences import split
from app.text.spans import SpannedText
from tests.support.growth import LINEAR, cpu_s, order
from tests.support.live import ROOT

pytestmark = pytest.mark.unit

LONGEST = 20_000  # the default of TTS_MAX_INPUT_CHARS
SIZE = 2_000  # the growth is measured from this length to four times this length
CUBIC_ORDER = 2.5  # limit of the growth between medium texts, so that a cubic pattern is found before it takes minutes
SHORT_ORDER = 3.5  # limit of the growth between short texts, which only an exponential pattern exceeds
METHODS = {
    "findall": re.Pattern.findall,
    "finditer": re.Pattern.findall,  # the iterator is read to its end
    "fullmatch": re.Pattern.fullmatch,
    "match": re.Pattern.match,
    "search": re.Pattern.search,
    "split": re.Pattern.split,
    "sub": lambda pattern, text: pattern.sub("", text),
}
ENDINGS = ("", "\0", " x")
MANY = 12  # fewer repetitions are too short for an attack

# By the start of the pattern: the longest text that the app passes to it.
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
    r"[^\W\d_]*$": (8, "what stands before a raised text"),
    r"(?P<stem>.+)-(?P<num": (200, "a file name"),
}


def names() -> list[str]:
    """Return the names of all modules."""
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "app").rglob("*.py"))
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


@functools.cache
def modules() -> dict[str, ModuleType]:
    """Import all modules, except those that need a package that is not installed here. They contain no pattern."""
    found = {}
    for name in names():
        try:
            found[name] = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in {"ray", "triton"}:
                raise
            assert "re.compile" not in (ROOT / f"{name.replace('.', '/')}.py").read_text("utf-8")
    return found


@functools.cache
def patterns() -> dict[str, re.Pattern[str]]:
    """Return all patterns in module variables and in calls, by their place in the code."""
    found: dict[str, re.Pattern[str]] = {}
    for module in modules().values():
        for name, value in vars(module).items():
            for index, pattern in enumerate(_inside(value, 4)):
                found.setdefault(f"{module.__name__}.{name}[{index}]", pattern)
    for where, call in _calls():
        if (pattern := _written(call)) is not None:
            found[where] = pattern
    # a module may import patterns of another module
    once = {pattern.pattern: where for where, pattern in reversed(found.items())}
    return {where: found[where] for where in reversed(once.values())}


@functools.cache
def methods() -> dict[str, set[str]]:
    """Return the methods that the app calls on each pattern, by the text of the pattern.

    A pattern that a loop takes from a table has no direct call; the loops call `sub`.
    """
    found: dict[str, set[str]] = defaultdict(set)
    known = {Path(module.__file__ or ""): module for module in modules().values()}
    for where, call in _calls():
        method = call.func.attr  # type: ignore[attr-defined]
        if method not in METHODS:
            continue
        if (pattern := _written(call)) is not None:
            found[pattern.pattern].add(method)
        elif method == "sub" and (module := known.get(ROOT / where.split(":")[0])) is not None and call.args:
            # `pattern.sub(new, text)`, or `text.sub(pattern, new)` of a SpannedText
            receiver = _receiver(call, module)
            for pattern in _inside(_value(call.args[0], module) if receiver is None else receiver, 4):
                found[pattern.pattern].add(method)
        elif (module := known.get(ROOT / where.split(":")[0])) is not None:
            for pattern in _inside(_receiver(call, module), 4):
                found[pattern.pattern].add(method)
    return found


@functools.cache
def _calls() -> list[tuple[str, ast.Call]]:
    """Return (file:line, call) for each call of a method or of a module's function."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted((ROOT / "app").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def _written(call: ast.Call) -> re.Pattern[str] | None:
    """Return the pattern in `re.method("pattern", ...)`."""
    function = call.func
    assert isinstance(function, ast.Attribute)
    if not isinstance(function.value, ast.Name) or function.value.id != "re" or function.attr == "escape":
        return None
    first = call.args[0] if call.args else None
    return re.compile(first.value) if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _receiver(call: ast.Call, module: ModuleType) -> Any:
    """Return the value before the dot, if it is a name of the module or of an imported module."""
    assert isinstance(call.func, ast.Attribute)
    return _value(call.func.value, module)


def _value(node: ast.expr, module: ModuleType) -> Any:
    """Return the value of a name of the module, of a name of an imported module, or of an item of such a name."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return getattr(vars(module).get(node.value.id), node.attr, None)
    return vars(module).get(node.id) if isinstance(node, ast.Name) else None


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
    """Return a character that the set matches."""
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
    """Return one text that these nodes match."""
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
    """Yield (text before, repeated text) for each repetition that may occur MANY times or more."""
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


def too_slow(run: Callable[[str], object], attacked: Iterable[tuple[str, str]], longest: int = SIZE) -> str:
    """Describe the first attack that costs too much, or return an empty string.

    Short texts come first, so that the check of an exponential pattern ends. If `longest`, the length of the longest
    text that the app passes to the pattern, is below SIZE, only exponential growth up to that length is reported.
    """
    steps = [(14, 20, SHORT_ORDER), (SIZE // 20, SIZE // 20 * 4, CUBIC_ORDER), (SIZE, 4 * SIZE, LINEAR)]
    if longest < SIZE:
        steps = [(longest // 2, longest, SHORT_ORDER)]
    for before, pump in sorted(attacked):
        for ending in ENDINGS:
            for smaller, larger, limit in steps:
                small, large = (before + pump * max(1, size // len(pump)) + ending for size in (smaller, larger))
                shown = ascii(large[:40] + "..." + large[-5:])
                if len(large) > len(small):
                    ratio = len(large) / len(small)
                    grown = order(functools.partial(run, small), functools.partial(run, large), ratio, limit)
                    if grown > limit:
                        return f"its time grows as the length to the power of {grown:.1f}, with {shown}"
                if cpu_s(functools.partial(run, small if longest >= SIZE else large)) > quadratic_s():
                    return f"it takes longer than a quadratic pattern, with {shown}"
    return ""


@functools.cache
def quadratic_s() -> float:
    """Return the CPU time of a quadratic pattern for SIZE characters. No other pattern may take longer."""
    text = " " * SIZE
    return cpu_s(lambda: re.sub(r"\s+$x", "", text), 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_no_attack_makes_a_pattern_of_a_module_slow(name: str) -> None:
    own = {where: pattern for where, pattern in patterns().items() if _module(where) == name}
    wrong = [message for where, pattern in own.items() for message in _slow(where, pattern)]
    assert not wrong, "\n".join(wrong)


def test_every_pattern_belongs_to_a_module() -> None:
    assert len(patterns()) > 400
    assert {_module(where) for where in patterns()} <= set(names())


def _module(where: str) -> str:
    """Return the module of a pattern. where: `module.VARIABLE[index]` or `file:line`."""
    file, colon, _ = where.partition(":")
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__") if colon else where.rpartition(".")[0]


def _slow(where: str, pattern: re.Pattern[str]) -> list[str]:
    bound = next((size for head, (size, _) in BOUNDED.items() if pattern.pattern.startswith(head)), SIZE)
    checked = {
        method: too_slow(functools.partial(METHODS[method], pattern), attacks(pattern), bound)
        for method in methods().get(pattern.pattern, {"sub"})
    }
    return [f"{where}.{method}, {pattern.pattern[:200]!r}: {wrong}" for method, wrong in checked.items() if wrong]


def test_each_bounded_pattern_still_exists() -> None:
    for head in BOUNDED:
        assert any(pattern.pattern.startswith(head) for pattern in patterns().values()), head


@pytest.mark.parametrize(
    ("where", "called"),
    [
        ("app.text.markup._TABLE_RULE[0]", {"fullmatch"}),
        ("app.text.markup._BULLET[0]", {"match"}),
        ("app.text.markup._EMPHASIS[0]", {"sub"}),
        ("app.engines.dia.script._BRACKETED[0]", {"finditer"}),
        ("app.text.sentences._CUTS[3]", {"finditer"}),
        ("app.text.rules.measures.UNKNOWN_UNIT[0]", {"sub"}),
        ("app.engines.dia.script.SPEAKER_TAG[0]", {"finditer", "match", "search", "sub"}),
        ("app.weights.hub._SHARD[0]", {"fullmatch"}),
    ],
)
def test_methods_of_a_pattern_are_found_in_the_code(where: str, called: set[str]) -> None:
    assert methods()[patterns()[where].pattern] == called


@pytest.mark.parametrize("slow", [r"(a+)+$", r"(a|aa)+$", r"(\w+\s?)*!", r"(x+x+)+y", r"a*b?a*$", r"(?:\s*,?)*\s*x"])
def test_check_finds_a_pattern_that_is_slow_from_one_position(slow: str) -> None:
    pattern = re.compile(slow)
    assert "to the power of" in too_slow(pattern.match, attacks(pattern))


@pytest.mark.parametrize(
    ("slow", "method"),
    [
        *((r"a+b", method) for method in ("sub", "search", "findall", "finditer", "split")),
        *((slow, "sub") for slow in (r"[a-z]+://", r" *\n", r"a*b?a*$")),
    ],
)
def test_check_finds_a_pattern_that_is_slow_from_every_position(slow: str, method: str) -> None:
    pattern = re.compile(slow)
    assert "to the power of" in too_slow(functools.partial(METHODS[method], pattern), attacks(pattern))


@pytest.mark.parametrize("slow", [r"\s+$x", r"a+b", r"[a-z]+://", r" *\n"])
def test_check_depends_on_the_method(slow: str) -> None:
    """From a single start position, these patterns are linear."""
    pattern = re.compile(slow)
    assert not too_slow(pattern.fullmatch, attacks(pattern))


def test_check_finds_exponential_growth_within_a_bound() -> None:
    pattern = re.compile(r"(a+)+$")
    assert "to the power of" in too_slow(pattern.search, attacks(pattern), 20)


def test_check_finds_a_large_constant_factor() -> None:
    """The pattern is linear, but takes thousands of steps for each character."""
    pattern = re.compile(r"(?=(?:a?b?){0,500}c)")
    assert "longer than a quadratic pattern" in too_slow(functools.partial(METHODS["sub"], pattern), [("", "a")])


# ---- all steps of the text package, with the longest text of a request


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pump", "ending"),
    [
        *(
            ("-", "x"),
            ("( ", ""),
            ("\u266f", "x"),
            (",", "x"),
            ("!?", ""),
            ("[0, 0]", ""),
            (" ", "x"),
            ("a", ""),
            ("a.", ""),
        ),
        *(("1,", ""), ("1", ""), ("9.", ""), ("$", ""), ("$1", ""), ("<a ", ""), ("<", ""), ("&", ""), ("`", "")),
        *(("*_", ""), ("![", ""), ("|-", ""), ("> ", ""), ("- ", ""), ("http://a.", ""), ("a@b.", ""), ("Mr. ", "")),
        *(("'\"", ""), ("\\frac{", ""), ("[pause:", ""), ("[S1]", ""), ("(laughs", ""), ("\u00bd", "")),
        *(("\U0001f600\u200d", ""),),
    ],
    ids=ascii,
)
def test_time_of_the_longest_texts_grows_linearly(pump: str, ending: str) -> None:
    small, large = (pump * (size // len(pump)) + ending for size in (LONGEST // 4, LONGEST))
    assert order(lambda: read(small), lambda: read(large), 4, LINEAR) <= LINEAR
    assert len(read(large)) < 30 * LONGEST


def read(text: str) -> str:
    """Return the words of a text after all steps of the text package."""
    words = Normalizer().normalize(text)
    split(SpannedText(words), 300)
    script.parse(SpannedText(text))
    clean_line(text)
    script.split_speakers(SpannedText(text))
    return words
