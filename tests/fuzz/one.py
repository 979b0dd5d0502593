"""One target under libFuzzer: `python -m tests.fuzz.one TARGET [libFuzzer's arguments]`. Needs atheris; see run.py."""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import json_mutator

# What the app's own code decides is what is followed; libraries are only called.
with atheris.instrument_imports(include=["app"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    check = TARGETS[sys.argv[1]]

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        return json_mutator.mutate(data, max_size, seed, atheris.Mutate)

    more = {"custom_mutator": mutated} if sys.argv[1] == "schemas" else {}
    atheris.Setup([sys.argv[0], *sys.argv[2:]], check, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
