"""The checks of one answer: which result counts if a check takes too long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.generator import checking
from app.generator.checking import AnswerChecks

pytestmark = pytest.mark.unit


async def test_check_that_ends_too_late_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as `unchecked`, because its result arrives after the end of the answer."""
    monkeypatch.setattr(checking, "LATE_CHECKS_S", 0.01)
    counted: list[str] = []
    job: Any = SimpleNamespace(request=SimpleNamespace(best_of=1), info=SimpleNamespace(id="csm"), seed=1)
    checks = AnswerChecks(None, job, None, SimpleNamespace(verified=counted.append))  # type: ignore[arg-type]
    ended = asyncio.Event()
    take: Any = SimpleNamespace(checking=asyncio.ensure_future(ended.wait()), failures=(), verdict=None, bad=False)
    checks.begin()
    checks.record(0, [take], take)
    assert await checks.finish() == "unchecked"
    ended.set()
    await take.checking
    await asyncio.sleep(0)
    await checks.close()
    assert counted == ["unchecked"]
