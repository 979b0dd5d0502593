"""A pytest plugin that records which tests execute which line of app/.

    EXECUTED_LINES=FOLDER python -m pytest -p tools.executed_lines

Each process of the test run writes one file to the folder: the result of `CoverageData.dumps`. In the records, each
test has its own context, and the context "" has the lines that run during an import. The records stay in memory until
the end of the run. pytest-cov is not used, because it keeps the records in a database on the disk, and a test run with
forks damaged this database.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent

_coverage = coverage.Coverage(data_file=None, config_file=str(ROOT / "pyproject.toml"), branch=False)
_coverage.start()  # must run before the test files import the app


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _coverage.switch_context(item.nodeid)
    return (yield)


def pytest_sessionfinish() -> None:
    _coverage.stop()
    path = Path(os.environ["EXECUTED_LINES"]) / f"{os.getpid()}.lines"
    path.write_bytes(_coverage.get_data().dumps())
