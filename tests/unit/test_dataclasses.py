"""Dataclasses refuse mistakes: each of them has slots, and is frozen unless the code changes its fields.

With slots, an assignment to a misspelt name is an error. A frozen object can be shared between threads and tasks,
because no code can change it. These tests read the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Found:
    """A dataclass in the source."""

    name: str
    options: dict[str, bool]
    fields: set[str]
    set_by_itself: set[str]  # the attributes that its own methods assign


@dataclass(frozen=True, slots=True)
class File:
    """What one file contains."""

    dataclasses: list[Found] = field(default_factory=list)
    assigned: set[str] = field(default_factory=set)  # the attributes of other objects than `self` that it assigns
    names: set[str] = field(default_factory=set)  # every name in the file


def assignments(node: ast.AST) -> Iterator[ast.Attribute]:
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store | ast.Del):
            yield each


def of_self(target: ast.Attribute) -> bool:
    return isinstance(target.value, ast.Name) and target.value.id == "self"


def options_of(decorator: ast.expr) -> dict[str, bool] | None:
    """Return the options of @dataclass; None if this is another decorator."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    if ast.unparse(function) not in {"dataclass", "dataclasses.dataclass"}:
        return None
    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
    return {str(each.arg): ast.literal_eval(each.value) for each in keywords}


def read(source: str) -> File:
    tree = ast.parse(source)
    found = File(assigned={target.attr for target in assignments(tree) if not of_self(target)})
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.names.add(node.id)
        elif isinstance(node, ast.alias):
            found.names.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.names.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            by_itself = {target.attr for target in assignments(node) if of_self(target)}
            fields = {
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
            for decorator in node.decorator_list:
                if (options := options_of(decorator)) is not None:
                    found.dataclasses.append(Found(node.name, options, fields, by_itself))
    return found


def faults(files: dict[str, File]) -> list[str]:
    found = []
    for name, file in files.items():
        for each in file.dataclasses:
            # The objects of a class are changed in its own file, or in a file that names the class.
            changed = each.set_by_itself.union(
                *(other.assigned for path, other in files.items() if path == name or each.name in other.names)
            )
            if not each.options.get("slots"):
                found.append(f"{name}: {each.name} has no slots")
            if not each.options.get("frozen") and not changed & each.fields:
                found.append(f"{name}: {each.name} is not frozen, and no code assigns to its fields")
    return found


def test_every_dataclass_has_slots_and_is_frozen_if_no_code_changes_it() -> None:
    paths = sorted((ROOT / "app").rglob("*.py"))
    files = {path.relative_to(ROOT).as_posix(): read(path.read_text("utf-8")) for path in paths}
    assert sum(len(file.dataclasses) for file in files.values()) > 200
    assert not faults(files)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("@dataclass(frozen=True, slots=True)\nclass A:\n    x: int", ""),
        ("@dataclass(slots=True)\nclass A:\n    x: int\n    def f(self):\n        self.x += 1", ""),
        ("@dataclass(slots=True)\nclass A:\n    x: int\ndef f(a: A):\n    a.x = 1", ""),
        ("@dataclass(slots=True)\nclass A:\n    x: int\ndef f(a: A):\n    del a.x", ""),
        ("@dataclass(frozen=True)\nclass A:\n    x: int", "no slots"),
        ("@dataclasses.dataclass\nclass A:\n    x: int\ndef f(a: A):\n    a.x = 1", "no slots"),
        ("@dataclass(frozen=False, slots=True)\nclass A:\n    x: int", "not frozen"),
        ("@dataclass(slots=True)\nclass A:\n    x: int\nclass B:\n    def f(self):\n        self.x = 1", "not frozen"),
    ],
)
def test_missing_options_are_found(source: str, fault: str) -> None:
    found = faults({"a.py": read(source), "b.py": read("def f(other):\n    other.x = 1")})
    assert len(found) == bool(fault)
    assert fault in "".join(found)


def test_class_may_be_changed_in_a_file_that_names_it() -> None:
    source = "@dataclass(slots=True)\nclass A:\n    x: int"
    other = "from a import A\ndef f(a: A):\n    a.x = 1"
    assert not faults({"a.py": read(source), "b.py": read(other)})
