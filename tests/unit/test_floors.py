"""Import rules: imports go down only, and only certain packages import heavy libraries.

The tests read the source, including imports inside functions and under TYPE_CHECKING. One test runs a process.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
FLOORS = (
    # the name "app" is the file app/__init__.py, with the version
    ("app", "types", "errors", "settings", "metrics", "logs", "keys", "lru", "durable_file", "usage"),
    ("text", "audio", "voices", "books", "nn", "weights", "runtime"),
    ("engines",),
    ("generator",),
    ("jobs",),
    ("api",),
    ("main", "cli", "wiring", "first_day", "first_day_page", "healthcheck"),
    ("scale",),  # above the floors: it wraps `wiring`, and no other module imports it
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Pairs of packages on one floor of which the first may import the second. Each module may import types and errors of
# floor 0.
NEIGHBOURS = {
    ("keys", "durable_file"),
    ("voices", "audio"),
    ("books", "text"),
    ("books", "audio"),
    ("nn", "runtime"),  # kernels draw random numbers as runtime/sampling.py defines; the runtime imports no model
    ("nn", "weights"),  # a codec reads its checkpoint with the functions of `weights`
    ("main", "wiring"),
    ("main", "scale"),  # for `--ray`; imported only when needed, and the only module that imports `scale`
    ("cli", "wiring"),
    ("cli", "first_day"),
    ("cli", "first_day_page"),
    ("first_day", "wiring"),
    ("first_day_page", "first_day"),
    ("cli", "main"),
}
TORCH_ROOMS = ("app/engines/csm/", "app/engines/dia/", "app/engines/shared/", "app/nn/", "app/weights/", "app/runtime/")
LAZY_TORCH = ("app/audio/watermark.py", "app/voices/vad.py", "app/voices/transcribe.py")
PLAIN_RUNTIME = (
    "__init__",
    "scheduler",
    "slots",
    "audio_queue",
    "loop",
    "runner",
    "faults",
)  # offline, without torch


@dataclass(frozen=True)
class Import:
    file: str  # path of the file, relative to the root
    module: str  # dotted name of the module that imports
    target: str  # dotted
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"

    @property
    def package(self) -> str:
        return self.target.partition(".")[0]


def room_of(module: str) -> str:
    """Return the package of a module: Return the package of a module: app.api.app -> api; app.generator.speech ->
    generator; app -> app."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "app"


def imports_of(path: Path, root: Path = ROOT) -> Iterator[Import]:
    file = path.relative_to(root).as_posix()
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, module, name.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports hide the floor"
            for name in node.names:
                yield Import(file, module, _target(node.module or "", name.name, root), node.lineno)


def _target(module: str, name: str, root: Path) -> str:
    """Return the imported module: Return the imported module: `from app import errors` is app.errors; `from app
    import __version__` is app."""
    inside = root / module.replace(".", "/") / name
    return f"{module}.{name}" if inside.with_suffix(".py").is_file() or inside.is_dir() else module


def goes_down(found: Import) -> bool:
    here, there = room_of(found.module), room_of(found.target)
    return (
        here == there
        or FLOOR[there] < FLOOR[here]
        or (here, there) in NEIGHBOURS
        or (FLOOR[here] == 0 and there in ("types", "errors"))
    )


@functools.cache
def all_imports() -> list[Import]:
    return [found for path in sorted((ROOT / "app").rglob("*.py")) for found in imports_of(path)]


def own_imports() -> list[Import]:
    return [found for found in all_imports() if found.package == "app"]


def offences(bad: list[Import]) -> str:
    return "\n".join(map(str, bad))


def test_imports_are_found():
    assert len(own_imports()) > 100


def test_every_package_has_a_floor():
    rooms = {room_of(found.module) for found in all_imports()} | {room_of(found.target) for found in own_imports()}
    assert rooms <= FLOOR.keys()


def test_imports_go_only_to_lower_floors():
    bad = [found for found in own_imports() if not goes_down(found)]
    assert not bad, offences(bad)


@pytest.mark.parametrize(
    ("here", "there", "allowed"),
    [
        ("app.generator.speech", "app.api.app", False),
        ("app.text.script", "app.audio.pcm", False),
        ("app.voices.store", "app.audio.pcm", True),
        ("app.audio.pcm", "app.voices.store", False),
        ("app.runtime.loop", "app.weights.hub", False),
        ("app.runtime.loop", "app.types", True),
        ("app.metrics", "app.types", True),
        ("app.types", "app.settings", False),
        ("app.api.app", "app.wiring", False),
        ("app.wiring", "app.scale.ray", False),
    ],
)
def test_import_rule_for_known_pairs(here, there, allowed):
    assert goes_down(Import("", here, there, 0)) is allowed


def test_heavy_libraries_are_imported_only_by_their_packages():
    """Files in LAZY_TORCH import torch only inside functions and work without it."""
    rooms = (*TORCH_ROOMS, *LAZY_TORCH)
    bad = [found for found in all_imports() if found.package == "torch" and not found.file.startswith(rooms)]
    assert not bad, offences(bad)
    plain = {f"app/runtime/{name}.py" for name in PLAIN_RUNTIME}
    bad = [found for found in all_imports() if found.package == "torch" and found.file in plain]
    assert not bad, offences(bad)
    bad = [
        found for found in all_imports() if found.package == "transformers" and found.file != "app/voices/transcribe.py"
    ]
    assert not bad, offences(bad)


def test_http_libraries_are_imported_only_by_the_api():
    web = {"fastapi", "starlette", "uvicorn"}
    bad = [found for found in all_imports() if found.package in web and FLOOR[room_of(found.module)] < FLOOR["api"]]
    assert not bad, offences(bad)
    bad = [found for found in all_imports() if room_of(found.module) == "api" and found.package in {"torch", "numpy"}]
    assert not bad, offences(bad)


def test_import_reader_finds_all_import_forms(tmp_path):
    (tmp_path / "app/api").mkdir(parents=True)
    (tmp_path / "app/errors.py").touch()
    file = tmp_path / "app/api/x.py"
    file.write_text(
        textwrap.dedent("""
            from app import errors, __version__
            def f():
                import torch.nn as nn
            if TYPE_CHECKING:
                from numpy.typing import NDArray
        """)
    )
    assert [(found.module, found.target) for found in imports_of(file, tmp_path)] == [
        ("app.api.x", "app.errors"),
        ("app.api.x", "app"),
        ("app.api.x", "torch.nn"),
        ("app.api.x", "numpy.typing"),
    ]


OFFLINE = """
    import asyncio, sys

    class NoTorch:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "transformers"):
                raise ImportError(f"{name} is not installed")

    sys.meta_path.insert(0, NoTorch())
    import app.api.app
    import app.wiring
    assert "torch" not in sys.modules
    from app.engines.registry import BuildContext, specs
    from app.settings import Settings
    from app.types import Sampling, SpokenLine, Utterance
    from app.voices.presets import preset

    async def speak():
        settings = Settings(TTS_ENGINE="espeak", _env_file=None)
        engine = specs()["espeak"].builder()(settings, BuildContext(lambda progress: None, lambda: False))
        line = SpokenLine("There is no torch here.", 0, preset("alloy"))
        async with engine:
            chunks = [chunk async for chunk in engine.speak(Utterance((line,), Sampling(), 1, 10.0))]
        return sum(chunk.seconds for chunk in chunks)

    print(asyncio.run(speak()))
"""


def test_server_and_offline_voice_work_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OFFLINE)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert 0.8 < float(done.stdout) < 5
