"""Only runners and codecs move tensors from the device to the host: each transfer waits for the device."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

APP = Path(__file__).parents[2] / "app"
TRANSFERS = ("cpu", "item", "numpy", "tolist")

# File -> function -> number of allowed calls. All other calls in files that import torch are forbidden.
ALLOWED = {
    # Runners, the files they are split into, and the codecs' reference recordings.
    "engines/csm/cuda_graph.py": {"*": 1},
    "engines/csm/decoding.py": {"*": 2},
    "engines/csm/prefill.py": {"*": 1},
    "engines/csm/runner.py": {"*": 4},
    "engines/dia/cuda_graph.py": {"*": 1},
    "engines/dia/decoding.py": {"*": 2},
    "engines/dia/runner.py": {"*": 2},
    "engines/shared/references.py": {"*": 2},
    # Before the first request: weights that are read, digested or stored.
    "audio/watermark.py": {"load": 2},
    "weights/load_cache.py": {"_bytes": 2},
    "weights/tensors.py": {"digest_of": 2},
    # numpy arrays, in a file that imports torch for its network.
    "voices/vad.py": {"runs": 2},
}


def transfers(source: str) -> Counter[str]:
    """Count the calls of TRANSFERS in each top-level function or method, if the source imports torch."""
    tree = ast.parse(source)
    found: Counter[str] = Counter()

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = (
                child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not function else function
            )
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr in TRANSFERS:
                found[inner] += 1
            visit(child, inner)

    visit(tree, "")
    return found if imports_torch(tree) else Counter()


def imports_torch(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.split(".")[0] == "torch" for name in names):
            return True
    return False


def refused(found: Counter[str], allowed: dict[str, int]) -> dict[str, int]:
    """Return the functions with more transfers than the table allows."""
    if "*" in allowed:
        found = Counter({"*": found.total()})
    return {name: count for name, count in found.items() if count > allowed.get(name, 0)}


@pytest.mark.parametrize("path", sorted(APP.rglob("*.py")), ids=lambda path: path.relative_to(APP).as_posix())
def test_only_runners_and_codecs_move_tensors_to_the_host(path: Path) -> None:
    name = path.relative_to(APP).as_posix()
    assert refused(transfers(path.read_text(encoding="utf-8")), ALLOWED.get(name, {})) == {}


def test_table_names_only_transfers_that_exist() -> None:
    for name, allowed in ALLOWED.items():
        found = transfers((APP / name).read_text(encoding="utf-8"))
        assert found, f"{name} moves nothing: take it out of the table"
        assert set(allowed) - {"*"} <= set(found), f"{name}: the table names a function without a transfer"


@pytest.mark.parametrize("call", TRANSFERS)
def test_new_transfer_is_found(call: str) -> None:
    source = f"import torch\nclass Codec:\n    def decode(self, x):\n        return [y.{call}() for y in x]\n"
    assert refused(transfers(source), {}) == {"decode": 1}
    assert refused(transfers(source.replace("import torch", "import numpy")), {}) == {}
    assert refused(transfers(source), {"decode": 1}) == {}
    assert refused(transfers(source), {"*": 0}) == {"*": 1}
