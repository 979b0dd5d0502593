"""Finished answers on disk: the same bytes back or nothing, within the budget, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from pathlib import Path

import pytest

from app.generator import cache as module
from app.generator.cache import AnswerCache

pytestmark = pytest.mark.unit

FACTS = {"input_tokens": 3, "output_tokens": 40}
OVERHEAD_BYTES = 300  # more than a trailer, less than the entries below


def digest(name: str) -> str:
    return f"{name}{'0' * (64 - len(name))}"


def make(folder: Path, budget_bytes: int = 1 << 20) -> AnswerCache:
    cache = AnswerCache(folder, budget_bytes)
    cache.scan()
    return cache


def put(cache: AnswerCache, name: str, data: bytes) -> None:
    entry = cache.begin(digest(name))
    for start in range(0, len(data), 1000):
        entry.write(data[start : start + 1000])
    entry.commit(FACTS)
    entry.abandon()  # as the studio does, in any case


async def get(cache: AnswerCache, name: str) -> bytes | None:
    found = await cache.find(digest(name))
    return found.data if found is not None else None


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def path_of(folder: Path, name: str) -> Path:
    (path,) = folder.glob(f"*/{digest(name)}")
    return path


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"\0", b"TTSA" * 5000, bytes(range(256)) * 700])
async def test_the_same_bytes_come_back(tmp_path, data):
    cache = make(tmp_path)
    put(cache, "a", data)
    found = await cache.find(digest("a"))
    assert found is not None
    assert found.data == data
    assert found.facts == FACTS
    assert cache.size_bytes == on_disk(tmp_path)


async def test_what_was_never_kept_is_not_found(tmp_path):
    assert await get(make(tmp_path), "a") is None
    assert await get(make(tmp_path / "missing"), "a") is None


async def test_the_least_recently_used_goes_first(tmp_path):
    cache = make(tmp_path, 3 * 10_000 + 4 * OVERHEAD_BYTES)
    for name in ("a", "b", "c"):
        put(cache, name, name.encode() * 10_000)
    assert await get(cache, "a") == b"a" * 10_000  # used: now b is the oldest, though a was written first
    put(cache, "d", b"d" * 10_000)
    assert await get(cache, "b") is None
    assert [len(await get(cache, name) or b"") for name in "acd"] == [10_000] * 3
    assert len(files(tmp_path)) == 3
    assert cache.size_bytes == on_disk(tmp_path)


async def test_the_budget_is_kept_whatever_comes(tmp_path):
    budget_bytes = 50_000
    cache = make(tmp_path, budget_bytes)
    for number in range(60):
        put(cache, f"{number:02}", bytes(97 * number * 7 % 24_000))
        assert on_disk(tmp_path) == cache.size_bytes <= budget_bytes
    assert len(files(tmp_path)) > 1


async def test_an_answer_too_large_for_the_budget_is_not_kept(tmp_path, monkeypatch):
    cache = make(tmp_path, 20_000)
    put(cache, "a", b"a" * 9_000)
    put(cache, "b", b"b" * 10_001)  # more than half would push out all others
    assert await get(cache, "b") is None
    assert await get(cache, "a") is not None
    assert files(tmp_path) == [digest("a")]
    monkeypatch.setattr(module, "MAX_ENTRY_BYTES", 500)
    put(cache, "c", b"c" * 501)
    assert await get(cache, "c") is None


async def test_without_a_budget_nothing_is_kept_or_read(tmp_path):
    put(make(tmp_path), "a", b"a" * 100)
    cache = make(tmp_path, 0)
    put(cache, "b", b"b" * 100)
    assert await get(cache, "a") is None
    assert await get(cache, "b") is None
    assert files(tmp_path) == [digest("a")]
    assert cache.size_bytes == 0


async def test_the_order_of_use_survives_a_restart(tmp_path):
    cache = make(tmp_path)
    for at, name in enumerate(("a", "b", "c")):
        put(cache, name, name.encode() * 10_000)
        os.utime(path_of(tmp_path, name), ns=(at, at))
    assert await get(cache, "a") is not None
    cache = make(tmp_path, 3 * 10_000 + 4 * OVERHEAD_BYTES)
    assert cache.size_bytes == on_disk(tmp_path)
    put(cache, "d", b"d" * 10_000)
    assert [await get(cache, name) is not None for name in "abcd"] == [True, False, True, True]


async def test_a_smaller_budget_is_kept_from_the_start(tmp_path):
    cache = make(tmp_path)
    for at, name in enumerate(("a", "b", "c")):
        put(cache, name, name.encode() * 10_000)
        os.utime(path_of(tmp_path, name), ns=(at, at))
    assert make(tmp_path, 22_000).size_bytes == on_disk(tmp_path) <= 22_000
    assert files(tmp_path) == [digest("b"), digest("c")]
    assert make(tmp_path, 5_000).size_bytes == on_disk(tmp_path) == 0


async def test_a_crash_before_the_end_leaves_nothing_to_serve(tmp_path):
    entry = make(tmp_path).begin(digest("a"))
    entry.write(b"half of it")
    entry._file.flush()  # and here the process dies
    cache = make(tmp_path)
    assert await get(cache, "a") is None
    assert cache.size_bytes == 0
    (left,) = tmp_path.rglob("*.tmp")
    put(cache, "a", b"whole")
    assert await get(cache, "a") == b"whole"
    assert left.exists()  # it might belong to a process that is still writing
    os.utime(left, (0, 0))
    make(tmp_path)
    assert files(tmp_path) == [digest("a")]
    entry.abandon()


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 500, 999, 1000, 1001, -1])
async def test_a_truncated_answer_is_removed_and_missed(tmp_path, keep, caplog):
    cache = make(tmp_path)
    put(cache, "a", bytes(range(250)) * 4)
    path = path_of(tmp_path, "a")
    path.write_bytes(path.read_bytes()[:keep])
    assert await get(cache, "a") is None
    assert files(tmp_path) == []
    assert cache.size_bytes == 0
    assert "damaged" in caplog.text


async def test_any_flipped_bit_is_noticed(tmp_path):
    cache = make(tmp_path)
    put(cache, "a", b"some sound")
    path = path_of(tmp_path, "a")
    good = path.read_bytes()
    facts = good.index(b'"facts"')  # the facts are told by no checksum: a wrong count of tokens harms nobody
    footer = len(good) - 8
    for position in [*range(facts), *range(footer, len(good))]:
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        found = await get(cache, "a")
        assert found in (None, b"some sound"), position
        if position < 10:
            assert found is None
        path.write_bytes(good)


class FullDisk(io.RawIOBase):
    """A file that takes room_bytes, then nothing more."""

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        if len(data) > self._room_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room_bytes -= len(data)
        return len(data)


@pytest.mark.parametrize("room_bytes", [0, 1500, 3000, 3050])  # in write, or in commit's trailer
@pytest.mark.parametrize("buffered", [False, True])  # or when it is closed
async def test_a_full_disk_costs_the_entry_and_nothing_else(tmp_path, monkeypatch, room_bytes, buffered):
    cache = make(tmp_path)
    put(cache, "b", b"before")
    plain = Path.open

    def full(path, mode="r", *arguments, **named):
        if "w" not in mode:
            return plain(path, mode, *arguments, **named)
        path.touch()
        disk = FullDisk(room_bytes)
        return io.BufferedWriter(disk) if buffered else disk

    monkeypatch.setattr(Path, "open", full)
    put(cache, "a", b"a" * 3000)
    monkeypatch.undo()
    assert await get(cache, "a") is None
    assert files(tmp_path) == [digest("b")]
    assert cache.size_bytes == on_disk(tmp_path)


async def test_a_rename_that_fails_leaves_nothing(tmp_path, monkeypatch):
    cache = make(tmp_path)

    def fail(path, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", fail)
    put(cache, "a", b"a")
    assert files(tmp_path) == []
    assert cache.size_bytes == 0


async def test_a_folder_that_takes_nothing_is_no_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")  # root may write anywhere, so no chmod here
    cache = make(tmp_path / "file")
    put(cache, "a", b"a")
    assert await get(cache, "a") is None
    assert "can't be written" in caplog.text


async def test_a_place_that_could_not_be_had_stays_without(tmp_path, monkeypatch):
    """Were it opened again at the next write, the answer would be kept without its beginning."""
    cache = make(tmp_path / "cache")
    mkdir = Path.mkdir

    def fail(path, *arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    entry = cache.begin(digest("a"))
    entry.write(b"the beginning, ")
    monkeypatch.setattr(Path, "mkdir", mkdir)
    entry.write(b"the rest")
    entry.commit(FACTS)
    assert await get(cache, "a") is None


async def test_a_folder_that_can_only_be_read_still_serves(tmp_path, monkeypatch):
    """Neither a damaged answer nor one too many may fail the request that came across it."""
    cache = make(tmp_path)
    for at, name in enumerate("abc"):
        put(cache, name, name.encode() * 10_000)
        os.utime(path_of(tmp_path, name), ns=(at, at))
    path_of(tmp_path, "c").write_bytes(b"damaged")

    def fail(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    monkeypatch.setattr(os, "utime", fail)
    assert await get(cache, "c") is None
    assert await get(cache, "a") == b"a" * 10_000
    small = make(tmp_path, 15_000)
    assert await get(small, "a") == b"a" * 10_000
    entry = small.begin(digest("d"))
    entry.write(b"d")
    entry.abandon()


async def test_two_writers_of_one_answer(tmp_path):
    cache = make(tmp_path)
    first, second = cache.begin(digest("a")), cache.begin(digest("a"))
    for part in (b"one ", b"two ", b"three"):
        first.write(part)
        second.write(part)
    first.commit(FACTS)
    assert await get(cache, "a") == b"one two three"
    second.commit(FACTS)
    assert await get(cache, "a") == b"one two three"
    assert files(tmp_path) == [digest("a")]
    assert cache.size_bytes == on_disk(tmp_path)


async def test_an_abandoned_entry_leaves_nothing(tmp_path):
    cache = make(tmp_path)
    entry = cache.begin(digest("a"))
    entry.write(b"some")
    entry.abandon()
    entry.abandon()
    entry.write(b"more")
    entry.commit(FACTS)
    assert files(tmp_path) == []
    assert await get(cache, "a") is None


async def test_files_of_others_in_the_folder_do_no_harm(tmp_path):
    (tmp_path / "README").write_text("mine")
    (tmp_path / "00").mkdir()
    (tmp_path / "00" / "folder").mkdir()
    cache = make(tmp_path, 20_000)
    for name in ("a", "b", "c", "d"):
        put(cache, name, b"x" * 9_000)
    assert await get(cache, "d") is not None
    assert (tmp_path / "README").exists()


async def test_many_at_once(tmp_path):
    cache = make(tmp_path)
    for number in range(20):
        put(cache, f"{number:02}", b"%d" % number)
    found = await asyncio.gather(*(get(cache, f"{number % 20:02}") for number in range(100)))
    assert found == [b"%d" % (number % 20) for number in range(100)]
