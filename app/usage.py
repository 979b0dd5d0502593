"""Counts the usage of each API key per day and model: requests, characters and seconds of audio.

Counts are collected in memory. Every few seconds, they are added to the counts in a SQLite file in the data folder. So
several processes can share the file, and kill -9 loses at most the counts of FLUSH_S seconds. The file has no texts.
This module does not depend on HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from app.errors import NotStored

log = logging.getLogger(__name__)

FOLDER, FILE = "usage", "usage.sqlite"
FLUSH_S = 5.0  # seconds between two writes
LOCK_WAIT_S = 10.0  # how many seconds a write waits while another process writes
# The file is not in WAL mode, because the shared memory of WAL does not work on a network file system. One short write
# in FLUSH_S seconds needs no WAL.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS usage (day TEXT, key TEXT, model TEXT, requests INTEGER, characters INTEGER, "
    "seconds REAL, PRIMARY KEY (day, key, model)) WITHOUT ROWID"
)
_ADD = (
    "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (day, key, model) DO UPDATE SET "
    "requests = requests + excluded.requests, characters = characters + excluded.characters, "
    "seconds = seconds + excluded.seconds"
)
_READ = "SELECT * FROM usage WHERE day BETWEEN ? AND ? ORDER BY day, key, model"


@dataclass(slots=True)
class UsageRow:
    """The usage of one model with one key on one day."""

    day: str  # YYYY-MM-DD, UTC
    key: str  # the name of the API key; "" = the request had no key
    model: str
    requests: int = 0
    characters: int = 0  # the number of characters in the callers' texts
    seconds: float = 0.0  # the seconds of audio that were sent


class UsageStore:
    """The counts of a data folder. Thread-safe."""

    def __init__(self, data_dir: Path, *, today: Callable[[], date] = lambda: datetime.now(UTC).date()) -> None:
        self._path = data_dir / FOLDER / FILE
        self._today = today
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str, str], UsageRow] = {}  # counts that are not written yet
        self._logged_error = ""

    def add(self, key: str, model: str, *, requests: int, characters: int, seconds: float) -> None:
        """Count an answer. key: the name of the API key, never a text from the request; "" = the request had no key."""
        day = self._today().isoformat()
        with self._lock:
            row = self._waiting.setdefault((day, key, model), UsageRow(day, key, model))
            row.requests += requests
            row.characters += characters
            row.seconds += seconds

    def flush(self) -> None:
        """Write the counts to the file. Blocks. If the file can't be written, the counts stay in memory."""
        with self._lock:
            rows, self._waiting = self._waiting, {}
        if not rows:
            return
        try:
            with closing(self._open()) as file, file:
                file.executemany(_ADD, [astuple(row) for row in rows.values()])
        except (OSError, sqlite3.Error) as error:
            self._keep(rows)
            if str(error) != self._logged_error:
                self._logged_error = str(error)
                log.error("the usage can't be written to %s; it stays in memory: %s", self._path, error)
        else:
            self._logged_error = ""

    def read(self, first: date, last: date) -> list[UsageRow]:
        """Return the counts from the day `first` to the day `last`, both included. Blocks. Raises NotStored."""
        self.flush()
        try:
            with closing(self._open()) as file:
                found = file.execute(_READ, (first.isoformat(), last.isoformat())).fetchall()
        except (OSError, sqlite3.Error) as error:
            raise NotStored(
                f"The usage can't be read ({error}). If the file {FOLDER}/{FILE} in the data folder is damaged, move "
                "it away."
            ) from error
        return [UsageRow(*row) for row in found]

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[None]:
        """Write the counts every FLUSH_S seconds while the `with` block runs, and once more at its end."""

        async def write() -> None:
            while True:
                await asyncio.sleep(FLUSH_S)
                await asyncio.to_thread(self.flush)

        task = asyncio.create_task(write(), name="write-usage")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.to_thread(self.flush)

    def _keep(self, rows: dict[tuple[str, str, str], UsageRow]) -> None:
        with self._lock:
            for place, row in rows.items():
                kept = self._waiting.setdefault(place, UsageRow(*place))
                kept.requests += row.requests
                kept.characters += row.characters
                kept.seconds += row.seconds

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = sqlite3.connect(self._path, timeout=LOCK_WAIT_S)
        try:
            file.execute(_SCHEMA)
        except sqlite3.Error:
            file.close()
            raise
        return file
