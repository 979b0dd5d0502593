"""Pauses by garbage collection and thread switches are short, and the server reports when it is ready."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING

import pytest

from app.runtime import pauses
from app.wiring import create_app
from tests.support.live import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    gc.unfreeze()  # tests/conftest.py has frozen the objects of the collection
    yield
    gc.freeze()
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("_as_it_was")
def test_loaded_objects_are_excluded_from_garbage_collection() -> None:
    gc.collect()
    before = len(gc.get_objects())
    pauses.freeze_loaded_objects()
    assert gc.get_freeze_count() > 0.9 * before
    assert len(gc.get_objects()) < 0.1 * before
    loop: list[object] = []
    loop.append(loop)
    del loop
    assert gc.collect() > 0  # objects that were made later are still collected


@pytest.mark.usefixtures("_as_it_was")
def test_thread_switch_interval_is_short() -> None:
    pauses.shorten_switch_interval()
    assert sys.getswitchinterval() < 0.001


async def test_server_calls_on_ready_one_time(tmp_path: Path) -> None:
    settled = asyncio.Event()
    times = 0

    def count() -> None:
        nonlocal times
        times += 1
        settled.set()

    app = create_app(settings(tmp_path), on_ready=count)
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(settled.wait(), 30)
        await asyncio.sleep(0.05)
    assert times == 1


async def test_server_that_stops_early_does_not_call_on_ready(tmp_path: Path) -> None:
    settled: list[bool] = []
    app = create_app(settings(tmp_path), on_ready=lambda: settled.append(True))
    async with app.router.lifespan_context(app):
        pass
    await asyncio.sleep(0.1)
    assert not settled
