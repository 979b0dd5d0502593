"""Runs the saved fuzz inputs in every `make test`, without atheris."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fuzz import json_mutator
from tests.faults.fuzz.targets import TARGETS

pytestmark = pytest.mark.unit

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_saved_fuzz_inputs_pass(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{target} fails for {path.name}: {path.read_bytes()[:200]!r}") from error


@pytest.mark.parametrize("target", TARGETS)
def test_short_inputs_pass(target: str) -> None:
    for data in (b"", b"\0", b"\1", b"\xff" * 9, b"\1\xed\xa0\x80", b"\1\1[S1][S2]", bytes(range(256))):
        TARGETS[target](data)


def test_mutated_json_bodies_pass() -> None:
    start = b'\0{"input": "Hello.", "voice": {"id": "alloy"}, "speed": 1.5, "turns": [{"text": "a"}, {"text": "b"}]}'
    changed = {json_mutator.mutate(start, 4096, seed, lambda data, _: data) for seed in range(300)}
    assert len(changed) > 150
    for data in changed:
        TARGETS["schemas"](data)
