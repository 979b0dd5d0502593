"""Mutation test: changes app/ in 150 places, one place at a time, and counts the changes that no test detects.

    make mutants                                     # about an hour on two cores
    python -m tools.mutants --only app/voices        # only mutants of one package
    python -m tools.mutants --seed 2 --count 40

A mutant is one changed place. The tool cosmic-ray finds the places and makes the changes; the Makefile installs
cosmic-ray in .mutants. The mutants are drawn at random with a fixed seed, at most one for each line of code. First, one
test run with coverage records which tests execute which line. Then, in a copy of the repository, the tests that execute
the line of a mutant run against this mutant, and the tests that read the source. Tests whose file has the name of the
changed module run first. If a test fails or takes longer than its own limit, the mutant is killed; otherwise it has
survived. `--again FILE` runs only the mutants that have survived in the log FILE of an earlier run. Mutants that do not
change behaviour are listed in tests/support/equivalent_mutants.txt with the reason.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import coverage
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from coverage.numbits import num_in_numbits

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutants" / "work"
DATA = WORK / "executed"
EQUIVALENT = ROOT / "tests" / "support" / "equivalent_mutants.txt"
PYTHON = str(ROOT / ".venv" / "bin" / "python")
# Code that the fast tests cannot execute: kernels for a GPU, code for Ray, modules that run in a child process.
LEFT_OUT = ("app/nn/kernels/triton", "app/scale/", "app/audio/decoder_process.py", "app/voices/youtube_child.py")
# Operators of cosmic-ray that are not used, because their mutants show little about the tests.
SKIPPED = (
    "_BitOr_",
    "BitOr",
    "_Is",
    "Is_",
    "BitAnd",
    "BitXor",
    "Shift",
    "Invert",
    "Pow",
    "VariableReplacer",
    "VariableInserter",
)
FIRST_TESTS = 60  # number of tests that run first; the other tests run only if the mutant survives these tests
# Tests that read the source of app/. They run with each mutant, because the coverage does not show what they read.
SOURCE_TESTS = [f"tests/unit/test_{name}.py" for name in ("dataclasses", "transfers", "floors", "laws")]


@dataclass(frozen=True)
class Mutant:
    path: str
    operator: str
    occurrence: int
    line: int
    source: str

    @property
    def package(self) -> str:
        parts = self.path.split("/")
        return parts[1] if len(parts) > 2 else "app"

    @property
    def key(self) -> str:
        return f"{self.path} | {self.operator.removeprefix('core/')} | {self.source}"


def places(only: str) -> Iterator[Mutant]:
    """Yield each place that an operator of cosmic-ray can change."""
    files = [
        path
        for path in sorted((ROOT / "app").rglob("*.py"))
        if path.relative_to(ROOT).as_posix().startswith(only)
        and not path.relative_to(ROOT).as_posix().startswith(LEFT_OUT)
    ]
    for item in _all_work_items(files, {}):
        (change,) = item.mutations
        if any(part in change.operator_name for part in SKIPPED):
            continue
        line = change.start_pos[0]
        source = change.module_path.read_text().splitlines()[line - 1].strip()
        at = change.module_path.relative_to(ROOT).as_posix()
        yield Mutant(at, change.operator_name, change.occurrence, line, source)


def sample(only: str, count: int, seed: int, executed: Executed) -> list[Mutant]:
    """Draw `count` lines that a test executes, and return one mutant of each line."""
    by_line: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    lines_of = functools.cache(executed.lines)
    for mutant in places(only):
        if mutant.line in lines_of(mutant.path):
            by_line[mutant.path, mutant.line].append(mutant)
    draw = random.Random(seed)
    lines = draw.sample(sorted(by_line), min(count, len(by_line)))
    return [draw.choice(by_line[line]) for line in lines]


def measure() -> None:
    """Run the fast tests once with coverage, which records the tests that execute each line."""
    WORK.mkdir(parents=True, exist_ok=True)
    marks = "not (slow or gpu or fleet or ray or clients or openapi or browser)"
    command = [PYTHON, "-m", "pytest", "-q", "-n", "auto", "-m", marks, "-p", "tools.executed_lines"]
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    subprocess.run(command, cwd=ROOT, env=os.environ | {"EXECUTED_LINES": str(DATA)}, check=False)


class Executed:
    """The lines of app/ that the fast tests execute."""

    def __init__(self) -> None:
        self._parts = []
        for file in sorted(DATA.iterdir()):
            part = coverage.CoverageData(no_disk=True)
            part.loads(file.read_bytes())
            self._parts.append(part)

    def lines(self, path: str) -> set[int]:
        """Return the lines of a file that are executed."""
        return {line for part in self._parts for line in part.lines(str(ROOT / path)) or ()}

    def tests(self, path: str, line: int) -> list[str]:
        """Return the tests that execute a line. If only an import executes it, return the tests of the whole file."""
        query = (
            "select context.context, line_bits.numbits from line_bits join context on context.id = line_bits.context_id"
            " join file on file.id = line_bits.file_id where context.context != '' and file.path = ?"
        )
        of_file: set[str] = set()
        of_line: set[str] = set()
        for part in self._parts:
            with part._connect() as connection, connection.execute(query, (str(ROOT / path),)) as rows:
                for test, lines in rows:
                    (of_line if num_in_numbits(line, lines) else of_file).add(test)
        return sorted(of_line or of_file)

    def share(self) -> float:
        """Return the share of the statements of app/ that are executed."""
        source = coverage.Coverage(data_file=None, config_file=str(ROOT / "pyproject.toml"))
        files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "app").rglob("*.py"))]
        statements = {path: set(source.analysis2(str(ROOT / path))[1]) for path in files}
        found = sum(len(lines & self.lines(path)) for path, lines in statements.items())
        return found / sum(map(len, statements.values()))


def copy_tree(into: Path) -> None:
    shutil.rmtree(into, ignore_errors=True)
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, into / name)
    (into / ".venv").symlink_to(ROOT / ".venv")


def in_order(tests: Sequence[str], mutant: Mutant, seed: int) -> list[str]:
    """Return the tests in the order in which they run: the tests that most probably fail come first.

    Tests whose file is named after the changed module come first, then tests whose file is named after its package.
    Otherwise, the order is random.
    """
    stem = Path(mutant.path).stem
    names = {stem, Path(mutant.path).parent.name} - {"__init__", "app"}

    def rank(test: str) -> int:
        file = Path(test.partition("::")[0])
        if stem in file.stem:
            return 0
        return 1 if any(name in file.stem for name in names) else 2

    return sorted(random.Random(seed).sample(tests, len(tests)), key=rank)


def survives(mutant: Mutant, tests: Sequence[str], tree: Path, limit_s: float) -> bool:
    """Return whether no test fails within `limit_s` with the mutant in the folder `tree`."""
    source = (ROOT / mutant.path).read_text()
    changed = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    (tree / mutant.path).write_text(changed or source)
    names = tree / "selected_tests.txt"  # thousands of names are too long for a command line
    names.write_text("\n".join(tests))
    command = [PYTHON, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=120", f"@{names}"]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return True
    finally:
        (tree / mutant.path).write_text(source)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="app/", help="only files whose path begins with this text")
    parser.add_argument("--measured", action="store_true", help="use the coverage of the last run")
    parser.add_argument(
        "--limit-s", type=float, default=400.0, help="a mutant survives if no test fails within this time"
    )
    parser.add_argument("--again", type=Path, metavar="LOG", help="only the survivors in the output of an earlier run")
    options = parser.parse_args()
    if not options.measured or not DATA.exists():
        measure()
    executed = Executed()
    print(f"executed: {executed.share():.1%} of the statements of app/", flush=True)
    equivalent = (
        {line.rpartition("  # ")[0] for line in EQUIVALENT.read_text().splitlines()} if EQUIVALENT.exists() else set()
    )
    mutants = sample(options.only, options.count, options.seed, executed)
    if options.again:
        lines = options.again.read_text().splitlines()
        survivors = {
            tuple(line.split("  ")[1:3])
            for line in (re.sub(" {2,}", "  ", text) for text in lines)
            if line.startswith("survived")
        }
        mutants = [
            each for each in mutants if (f"{each.path}:{each.line}", each.operator.removeprefix("core/")) in survivors
        ]
    tests_of = {mutant: executed.tests(mutant.path, mutant.line) for mutant in mutants}
    trees: Queue[Path] = Queue()
    for number in range((os.cpu_count() or 1) + 1):  # one tree more than there are cores, because tests often wait
        copy_tree(WORK / f"tree{number}")
        trees.put(WORK / f"tree{number}")

    def judge(mutant: Mutant) -> str:
        if mutant.key in equivalent or "TYPE_CHECKING" in mutant.source:  # only type checkers read these imports
            return "equivalent"
        tests = in_order(tests_of[mutant], mutant, options.seed)
        first, others = [*tests[:FIRST_TESTS], *SOURCE_TESTS], tests[FIRST_TESTS:]
        tree = trees.get()
        try:
            survived = all(survives(mutant, part, tree, options.limit_s) for part in (first, others) if part)
            outcome = "survived" if survived else "killed"
        finally:
            trees.put(tree)
        operator = mutant.operator.removeprefix("core/")
        print(f"{outcome:10}  {mutant.path}:{mutant.line}  {operator}  {mutant.source}", flush=True)
        return outcome

    found: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(trees.qsize()) as pool:
        for mutant, outcome in zip(mutants, pool.map(judge, mutants), strict=True):
            found[mutant.package].append(outcome)
    rows = {name: (results.count("killed"), results.count("survived")) for name, results in sorted(found.items())}
    for name, (killed, survived) in rows.items():
        print(f"{name:12} {killed}/{killed + survived}")
    killed, survived = (sum(column) for column in zip(*rows.values(), strict=True))
    print(json.dumps({"mutants": len(mutants), "killed": killed, "survived": survived, "seed": options.seed}))
    weak = any(k < 0.8 * (k + s) for k, s in rows.values() if k + s >= 5)
    sys.exit(1 if killed < 0.9 * (killed + survived) or weak else 0)


if __name__ == "__main__":
    main()
