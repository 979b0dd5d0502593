"""Counts of usage: they are sums over processes and restarts, and a failing disk loses none of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from app.errors import NotStored
from app.usage import FILE, FOLDER, UsageRow, UsageStore

pytestmark = pytest.mark.unit

DAY = date(2026, 11, 29)
ROOT = Path(__file__).parents[2]


def store(folder: Path, day: date = DAY) -> UsageStore:
    return UsageStore(folder, today=lambda: day)


def test_counts_of_several_processes_and_days_are_added(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    for each in (first, second, second):
        each.add("ann", "csm-1b", requests=1, characters=10, seconds=1.5)
    second.add("ann", "csm-1b", requests=0, characters=5, seconds=0.5)  # a part of a request
    second.add("", "espeak", requests=1, characters=1, seconds=0.25)
    first.flush()
    second.flush()
    tomorrow = store(tmp_path, date(2026, 11, 30))
    tomorrow.add("ann", "csm-1b", requests=1, characters=7, seconds=1.0)
    assert tomorrow.read(DAY, DAY) == [
        UsageRow("2026-11-29", "", "espeak", 1, 1, 0.25),
        UsageRow("2026-11-29", "ann", "csm-1b", 3, 35, 5.0),
    ]
    assert len(first.read(date(2026, 1, 1), date(2026, 12, 31))) == 3  # the counts of the other store were written


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from app.usage import UsageStore\n"
        "store = UsageStore(Path(sys.argv[1]))\n"
        "for _ in range(50): store.add('k', 'm', requests=1, characters=2, seconds=0.5); store.flush()"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    rows = UsageStore(tmp_path).read(date(2020, 1, 1), date(2100, 1, 1))
    assert sum(row.requests for row in rows) == 150
    assert sum(row.seconds for row in rows) == 75


async def test_counts_are_written_while_the_server_runs_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, written = asyncio.get_running_loop(), asyncio.Event()

    class Noting(UsageStore):
        def flush(self) -> None:
            super().flush()
            loop.call_soon_threadsafe(written.set)

    usage = Noting(tmp_path, today=lambda: DAY)
    usage.add("k", "m", requests=1, characters=1, seconds=1)
    with monkeypatch.context() as patch:
        patch.setattr("app.usage.FLUSH_S", 0.01)
        async with usage.writing():
            await asyncio.wait_for(written.wait(), 30)
            assert store(tmp_path).read(DAY, DAY)[0].requests == 1
    async with usage.writing():
        usage.add("k", "m", requests=1, characters=1, seconds=1)
    assert store(tmp_path).read(DAY, DAY)[0].requests == 2


def test_counts_stay_in_memory_while_the_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usage = store(tmp_path)
    path = tmp_path / FOLDER / FILE
    path.parent.mkdir()
    path.write_bytes(b"not a database, and longer than the header of a database" * 4)
    usage.add("k", "m", requests=1, characters=3, seconds=1)
    usage.flush()
    usage.flush()
    assert caplog.text.count("can't be written") == 1
    with pytest.raises(NotStored, match="move it away"):
        usage.read(DAY, DAY)
    path.unlink()
    usage.add("k", "m", requests=1, characters=3, seconds=1)
    assert usage.read(DAY, DAY) == [UsageRow("2026-11-29", "k", "m", 2, 6, 2.0)]
