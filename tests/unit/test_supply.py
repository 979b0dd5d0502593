"""Lock files, hashes and licences match, and no lock file contains a URL."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.support.live import ROOT
from tools import supply

pytestmark = pytest.mark.unit

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {supply.normal(re.split(r"[\[<>=;, ]", each, maxsplit=1)[0]) for each in requirements}


def test_locks_contain_all_dependencies_in_constrained_versions() -> None:
    server, torch, here = supply.pinned(supply.SERVER), supply.pinned(supply.TORCH), supply.pinned(supply.CONSTRAINTS)
    required = names(PROJECT["dependencies"])
    for extra in supply.EXTRAS:
        required |= names(PROJECT["optional-dependencies"][extra])
    assert required <= server.keys() | torch.keys()
    assert not server.keys() & torch.keys()
    for name, version in {**server, **torch}.items():
        assert here.get(name, version) == version, name


@pytest.mark.parametrize("path", [supply.SERVER, supply.TORCH], ids=lambda path: path.name)
def test_every_lock_entry_has_hashes_and_no_url(path) -> None:
    text = path.read_text()
    assert "://" not in text
    blocks = re.split(r"(?m)^(?=[a-zA-Z0-9])", re.sub(r"(?m)^#.*\n", "", text))[1:]
    assert len(blocks) == len(supply.pinned(path))
    for block in blocks:
        first, *rest = block.rstrip("\n").split("\n")
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+( ; [^\\]+)? \\", first), first
        assert rest
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in rest)


@pytest.mark.parametrize("name", ["voice", "litellm"])
def test_clients_are_pinned(name) -> None:
    text = (ROOT / "tests" / "clients" / f"{name}.txt").read_text()
    assert "://" not in text
    assert all(re.match(r"[A-Za-z0-9._-]+==\S+( ; .+)?$", line) for line in text.splitlines())


def test_node_clients_are_locked_by_hash() -> None:
    here = ROOT / "tests" / "clients" / "node"
    required = json.loads((here / "package.json").read_text())["dependencies"]
    packages = json.loads((here / "package-lock.json").read_text())["packages"]
    for name, version in required.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert packages[f"node_modules/{name}"]["version"] == version
    for at, package in packages.items():
        assert "resolved" not in package, at
        assert not at or package["integrity"].startswith("sha512-")


def test_licence_page_matches_the_lock() -> None:
    declared = dict(re.findall(r"(?m)^\| ([a-z0-9-]+) \| (\d\S*) \|", supply.LICENSES.read_text()))
    for path in (supply.CONSTRAINTS, supply.SERVER, supply.TORCH):
        for name, version in supply.pinned(path).items():
            assert declared[name] == version, f"{name}: run `make licenses`"


def test_every_licence_on_the_page_is_accepted() -> None:
    rows = re.findall(r"(?m)^\| ([a-z0-9-]+) \| \d\S* \| (.+) \|$", supply.LICENSES.read_text())
    assert len(rows) > 100
    assert not [(name, licence) for name, licence in rows if supply.disagreed(name, licence)]


@pytest.mark.parametrize(
    ("declared", "parts"),
    [
        ("AGPL-3.0-only", ["AGPL-3.0-only"]),
        ("MIT AND GPL-3.0-or-later", ["GPL-3.0-or-later"]),
        ("UNKNOWN", ["UNKNOWN"]),
        ("", [""]),
        ("Apache Software License; BSD License", []),
        ("MIT OR Apache-2.0", []),
    ],
)
def test_unaccepted_licence_is_detected(declared, parts) -> None:
    assert supply.disagreed("newcomer", supply.licence_of("newcomer", declared)) == parts


def test_package_exceptions_have_a_reason() -> None:
    assert supply.disagreed("espeakng-loader", supply.licence_of("espeakng-loader", "")) == []
    assert all(why for _, why in supply.EXPLAINED.values())
