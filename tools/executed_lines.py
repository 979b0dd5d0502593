"""A pytest plugin that records which tests execute which line of app/.

    EXECUTED_LINES=FOLDER python -m pytest -p tools.executed_lines

Each process of the test run writes one file to the folder: the result of `CoverageData.dumps`. Each test has a context
of its own, and the context of an import is "". The records stay in memory until the end. pytest-cov keeps them in a
database on the disk, which a test run with forks has damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent

_coverage = coverage.Coverage(data_file=None, config_file=str(ROOT / "pyproject.toml"), branch=False)
_coverage.start()  # before the test files import the app


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _coverage.switch_context(item.nodeid)
    return (yield)


def pytest_sessionfinish() -> None:
    _coverage.stop()
    path = Path(os.environ["EXECUTED_LINES"]) / f"{os.getpid()}.lines"
    path.write_bytes(_coverage.get_data().dumps())
