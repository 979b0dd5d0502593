"""Run one target under libFuzzer: `python -m tests.faults.fuzz.one TARGET [libFuzzer's arguments]`.

Needs atheris; see run.py.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import atheris

from tests.faults.fuzz import json_mutator

# The fuzzer measures the coverage of the app's own code, and not of libraries.
with atheris.instrument_imports(include=["app"]):
    from tests.faults.fuzz.targets import TARGETS, warm


if TYPE_CHECKING:
    from collections.abc import Callable

UNIT_CPU_S = 2.0  # the CPU time that one input may take; an input is a few hundred characters or a small file
HUNG_S = 120  # wall-clock seconds that one input may take; other processes may slow the machine


def bounded(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Wrap a target, so that an input that takes too much CPU time also counts as an error."""

    def checked(data: bytes) -> None:
        began_s = time.process_time()
        check(data)
        used_s = time.process_time() - began_s
        assert used_s < UNIT_CPU_S, f"{used_s:.1f} s for {len(data)} bytes"

    return checked


def main() -> None:
    check = bounded(TARGETS[sys.argv[1]])

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        return json_mutator.mutate(data, max_size, seed, atheris.Mutate)

    more = {"custom_mutator": mutated} if sys.argv[1] == "schemas" else {}
    warm()
    itself = os.environ.get("FUZZ_ITSELF", sys.argv[0])  # the program that libFuzzer starts again for a merge
    atheris.Setup([itself, *sys.argv[2:], f"-timeout={HUNG_S}"], check, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
