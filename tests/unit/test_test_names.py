"""Names of tests are short enough for an environment variable, into which pytest writes the running test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("content", ["x" * 1_200_000, b"\x00" * 1_200_000, "\ud800" * 1_000])
def test_a_process_can_be_started_in_a_test_with_a_long_value(content: str | bytes) -> None:
    assert content
    assert len(os.environ["PYTEST_CURRENT_TEST"]) < 400
    assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0
