"""The answer cache returns the stored samples or nothing, keeps its budget, and survives disk errors."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from app.generator import cache as module
from app.generator.cache import AnswerCache, Entry

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
FACTS = {"input_tokens": 3, "output_tokens": 40}
OVERHEAD_BYTES = 300  # for the metadata of an entry: larger than a trailer, smaller than the audio of the entries below


def digest(name: str) -> str:
    return f"{name}{'0' * (64 - len(name))}"


def make(folder: Path, budget_bytes: int = 1 << 20) -> AnswerCache:
    cache = AnswerCache(folder, budget_bytes)
    cache.scan()
    return cache


def put(cache: AnswerCache, name: str, data: bytes) -> Entry:
    entry = cache.begin(digest(name), RATE_HZ)
    for start in range(0, len(data), 1000):
        entry.write(data[start : start + 1000])
    entry.commit(FACTS)
    entry.close()  # the generator always calls it at the end
    return entry


async def get(cache: AnswerCache, name: str) -> bytes | None:
    found = await cache.find(digest(name))
    return found.read(0, found.samples) if found is not None else None


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def path_of(folder: Path, name: str) -> Path:
    (path,) = folder.glob(f"*/{digest(name)}.pcm")
    return path


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"\0\1", b"TTSB" * 5000, bytes(range(256)) * 700])
async def test_stored_bytes_are_returned(tmp_path, data):
    cache = make(tmp_path)
    put(cache, "a", data)
    found = await cache.find(digest("a"))
    assert found is not None
    assert (found.samples, found.rate_hz) == (len(data) // 2, RATE_HZ)
    assert found.read(0, found.samples + 9) == data
    assert found.facts == FACTS
    assert cache.size_bytes == on_disk(tmp_path)


async def test_unknown_answer_is_not_found(tmp_path):
    assert await get(make(tmp_path), "a") is None
    assert await get(make(tmp_path / "missing"), "a") is None


async def test_least_recently_used_answer_is_evicted_first(tmp_path):
    cache = make(tmp_path, 3 * 10_000 + 4 * OVERHEAD_BYTES)
    for name in ("a", "b", "c"):
        put(cache, name, name.encode() * 10_000)
    # a was just used, so b is the oldest entry, although a was written first
    assert await get(cache, "a") == b"a" * 10_000
    put(cache, "d", b"d" * 10_000)
    assert await get(cache, "b") is None
    assert [len(await get(cache, name) or b"") for name in "acd"] == [10_000] * 3
    assert len(files(tmp_path)) == 3
    assert cache.size_bytes == on_disk(tmp_path)


async def test_budget_is_never_exceeded(tmp_path):
    budget_bytes = 50_000
    cache = make(tmp_path, budget_bytes)
    for number in range(60):
        put(cache, f"{number:02}", bytes(97 * number * 14 % 24_000))
        assert on_disk(tmp_path) == cache.size_bytes <= budget_bytes
    assert len(files(tmp_path)) > 1


async def test_answer_that_is_too_large_is_not_stored(tmp_path, monkeypatch):
    cache = make(tmp_path, 20_000)
    put(cache, "a", b"a" * 9_000)
    put(cache, "b", b"b" * 10_002)  # the entry is larger than half of the budget
    assert await get(cache, "b") is None
    assert await get(cache, "a") is not None
    assert files(tmp_path) == [digest("a") + ".pcm"]
    monkeypatch.setattr(module, "MAX_ENTRY_BYTES", 500)
    put(cache, "c", b"c" * 502)
    assert await get(cache, "c") is None


async def test_without_a_budget_nothing_is_stored_or_read(tmp_path):
    put(make(tmp_path), "a", b"a" * 100)
    cache = make(tmp_path, 0)
    put(cache, "b", b"b" * 100)
    assert await get(cache, "a") is None
    assert await get(cache, "b") is None
    assert files(tmp_path) == [digest("a") + ".pcm"]
    assert cache.size_bytes == 0


async def test_order_of_use_survives_a_restart(tmp_path):
    cache = make(tmp_path)
    for at, name in enumerate(("a", "b", "c")):
        put(cache, name, name.encode() * 10_000)
        os.utime(path_of(tmp_path, name), ns=(at, at))
    assert await get(cache, "a") is not None
    cache = make(tmp_path, 3 * 10_000 + 4 * OVERHEAD_BYTES)
    assert cache.size_bytes == on_disk(tmp_path)
    put(cache, "d", b"d" * 10_000)
    assert [await get(cache, name) is not None for name in "abcd"] == [True, False, True, True]


async def test_smaller_budget_is_enforced_at_the_start(tmp_path):
    cache = make(tmp_path)
    for at, name in enumerate(("a", "b", "c")):
        put(cache, name, name.encode() * 10_000)
        os.utime(path_of(tmp_path, name), ns=(at, at))
    assert make(tmp_path, 22_000).size_bytes == on_disk(tmp_path) <= 22_000
    assert files(tmp_path) == [digest("b") + ".pcm", digest("c") + ".pcm"]
    assert make(tmp_path, 5_000).size_bytes == on_disk(tmp_path) == 0


async def test_crash_while_writing_leaves_no_answer(tmp_path):
    entry = make(tmp_path).begin(digest("a"), RATE_HZ)
    entry.write(b"half of it")  # the process ends here, before it calls commit
    cache = make(tmp_path)
    assert await get(cache, "a") is None
    assert cache.size_bytes == 0
    (left,) = tmp_path.rglob("*.tmp")
    put(cache, "a", b"it all")
    assert await get(cache, "a") == b"it all"
    assert left.exists()  # another process may still write to it
    os.utime(left, (0, 0))
    make(tmp_path)
    assert files(tmp_path) == [digest("a") + ".pcm"]
    entry.abandon()


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 500, 998, 1000, 1001, 1002, -1])
async def test_truncated_answer_is_removed(tmp_path, keep, caplog):
    cache = make(tmp_path)
    put(cache, "a", bytes(range(250)) * 4)
    path = path_of(tmp_path, "a")
    path.write_bytes(path.read_bytes()[:keep])
    assert await get(cache, "a") is None
    assert files(tmp_path) == []
    assert cache.size_bytes == 0
    assert "damaged" in caplog.text


async def test_any_flipped_bit_is_detected(tmp_path):
    cache = make(tmp_path)
    put(cache, "a", b"some audio")
    path = path_of(tmp_path, "a")
    good = path.read_bytes()
    facts = good.index(b'"facts"')  # the facts have no checksum, since a wrong token count is harmless
    footer = len(good) - 8
    for position in [*range(facts), *range(footer, len(good))]:
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        found = await get(cache, "a")
        assert found in (None, b"some audio"), position
        if position < 10:
            assert found is None
        path.write_bytes(good)


@pytest.mark.parametrize("free_bytes", [0, 1500, 3000, 3050])  # the disk is full in `write`, or in `commit`
async def test_full_disk_loses_only_the_new_entry(tmp_path, monkeypatch, free_bytes):
    cache = make(tmp_path)
    put(cache, "b", b"before")
    plain, free = os.write, [free_bytes]

    def full(descriptor, data):
        """Simulate a disk that is nearly full: write only the bytes that fit."""
        part = bytes(data)[: free[0]]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        free[0] -= len(part)
        return plain(descriptor, part)

    monkeypatch.setattr(os, "write", full)
    entry = cache.begin(digest("a"), RATE_HZ)
    for start in range(0, 3000, 1000):
        entry.write(bytes([start // 1000]) * 1000)
    entry.commit(FACTS)
    assert entry.size == min(free_bytes, 3000) // 1000 * 1000
    for start in range(0, entry.size, 1000):  # followers still read what was written
        assert entry.read(start, 1000) == bytes([start // 1000]) * 1000
    entry.close()
    monkeypatch.undo()
    assert await get(cache, "a") is None
    assert files(tmp_path) == [digest("b") + ".pcm"]
    assert cache.size_bytes == on_disk(tmp_path)


async def test_failed_rename_leaves_no_file(tmp_path, monkeypatch):
    cache = make(tmp_path)

    def fail(path, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", fail)
    put(cache, "a", b"a")
    assert files(tmp_path) == []
    assert cache.size_bytes == 0


async def test_unwritable_folder_stores_nothing_and_logs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")  # chmod does not stop root
    cache = make(tmp_path / "file")
    put(cache, "a", b"a")
    assert await get(cache, "a") is None
    assert "can't be written" in caplog.text


async def test_entry_whose_first_write_fails_is_never_stored(tmp_path, monkeypatch):
    """If the next write opened the file again, the stored answer would lack its beginning."""
    cache = make(tmp_path / "cache")
    mkdir = Path.mkdir

    def fail(path, *arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    entry = cache.begin(digest("a"), RATE_HZ)
    entry.write(b"the beginning")
    monkeypatch.setattr(Path, "mkdir", mkdir)
    entry.write(b"the rest")
    entry.commit(FACTS)
    assert await get(cache, "a") is None


async def test_read_only_folder_still_returns_answers(tmp_path, monkeypatch):
    """A request does not fail if a damaged or evicted file can't be removed."""
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
    entry = small.begin(digest("d"), RATE_HZ)
    entry.write(b"d")
    entry.abandon()


async def test_two_writers_of_one_answer_store_it_once(tmp_path):
    cache = make(tmp_path)
    first, second = cache.begin(digest("a"), RATE_HZ), cache.begin(digest("a"), RATE_HZ)
    for part in (b"one ", b"two ", b"three!"):
        first.write(part)
        second.write(part)
    first.commit(FACTS)
    assert await get(cache, "a") == b"one two three!"
    second.commit(FACTS)
    assert await get(cache, "a") == b"one two three!"
    assert files(tmp_path) == [digest("a") + ".pcm"]
    assert cache.size_bytes == on_disk(tmp_path)


async def test_abandoned_entry_leaves_no_file(tmp_path):
    cache = make(tmp_path)
    entry = cache.begin(digest("a"), RATE_HZ)
    entry.write(b"some")
    entry.abandon()
    entry.abandon()
    entry.write(b"more")
    entry.commit(FACTS)
    assert files(tmp_path) == []
    assert await get(cache, "a") is None


async def test_unrelated_files_in_the_folder_are_ignored(tmp_path):
    (tmp_path / "README").write_text("mine")
    (tmp_path / "00").mkdir()
    (tmp_path / "00" / "folder").mkdir()
    cache = make(tmp_path, 20_000)
    for name in ("a", "b", "c", "d"):
        put(cache, name, b"x" * 9_000)
    assert await get(cache, "d") is not None
    assert (tmp_path / "README").exists()


async def test_many_concurrent_reads_return_the_stored_bytes(tmp_path):
    cache = make(tmp_path)
    for number in range(20):
        put(cache, f"{number:02}", b"%02d" % number)
    found = await asyncio.gather(*(get(cache, f"{number % 20:02}") for number in range(100)))
    assert found == [b"%02d" % (number % 20) for number in range(100)]


async def test_long_audio_is_read_in_parts(tmp_path):
    """Only the first block of a long answer stays in memory; the rest is read from the open file."""
    data = bytes(range(256)) * 4096  # 1 MiB
    cache = make(tmp_path, 8 << 20)
    put(cache, "a", data)
    found = await cache.find(digest("a"))
    assert found is not None
    assert found.in_memory(1000)
    assert not found.in_memory(found.samples)
    assert b"".join(found.read(start, 30_000) for start in range(0, found.samples, 30_000)) == data
    path_of(tmp_path, "a").unlink()  # the file is evicted while it is sent
    assert found.read(500_000, 10) == data[1_000_000:1_000_020]


async def test_files_of_earlier_versions_are_removed_at_the_start(tmp_path):
    old = tmp_path / "aa" / digest("aa")
    old.parent.mkdir()
    old.write_bytes(b"encoded audio" + b"TTSA")
    put(make(tmp_path), "a", b"new!")
    assert files(tmp_path) == [digest("a") + ".pcm"]


async def test_file_with_half_a_sample_is_damaged(tmp_path):
    cache = make(tmp_path)
    put(cache, "a", b"odd")
    assert await get(cache, "a") is None


async def test_stored_files_are_private(tmp_path):
    cache = make(tmp_path)
    put(cache, "a", b"some")
    assert path_of(tmp_path, "a").stat().st_mode & 0o077 == 0


async def test_times_are_stored_with_an_answer(tmp_path):
    cache = make(tmp_path)
    entry = put(cache, "a", b"a" * 1_000)
    text = "times " * 1_000
    await cache.keep_times(digest("a"), entry.checksum, text)
    assert await cache.find_times(digest("a"), entry.checksum) == text
    assert cache.size_bytes == on_disk(tmp_path)
    await cache.keep_times(digest("a"), entry.checksum, text * 2)
    assert await cache.find_times(digest("a"), entry.checksum) == text * 2
    assert cache.size_bytes == on_disk(tmp_path)
    assert await get(cache, "a") == b"a" * 1_000
    assert cache.size_bytes == on_disk(tmp_path)
    again = make(tmp_path)
    assert again.size_bytes == on_disk(tmp_path)
    assert await again.find_times(digest("a"), entry.checksum) == text * 2


async def test_times_of_other_samples_are_not_found(tmp_path):
    cache = make(tmp_path)
    entry = put(cache, "a", b"a" * 1_000)
    await cache.keep_times(digest("a"), entry.checksum, "times")
    assert await cache.find_times(digest("a"), entry.checksum ^ 1) is None
    assert await cache.find_times(digest("b"), entry.checksum) is None


async def test_any_flipped_bit_of_times_is_detected(tmp_path):
    cache = make(tmp_path)
    entry = put(cache, "a", b"a" * 100)
    await cache.keep_times(digest("a"), entry.checksum, "times of words")
    path = path_of(tmp_path, "a").with_suffix(".times")
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        assert await cache.find_times(digest("a"), entry.checksum) is None
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert await cache.find_times(digest("a"), entry.checksum) is None


async def test_times_are_removed_with_their_answer(tmp_path):
    cache = make(tmp_path, 3 * 10_000 + 4 * OVERHEAD_BYTES)
    for name in ("a", "b", "c"):
        entry = put(cache, name, name.encode() * 10_000)
        await cache.keep_times(digest(name), entry.checksum, "times")
        assert on_disk(tmp_path) == cache.size_bytes <= 3 * 10_000 + 4 * OVERHEAD_BYTES
    put(cache, "d", b"d" * 10_000)
    names = files(tmp_path)
    assert digest("a") + ".times" not in names
    assert {name.removesuffix(".times") + ".pcm" for name in names if name.endswith(".times")} <= set(names)
    path_of(tmp_path, "c").unlink()
    make(tmp_path)
    assert digest("c") + ".times" not in files(tmp_path)
    await cache.keep_times(digest("e"), 1, "times of an answer that is not stored")
    assert digest("e") + ".times" not in files(tmp_path)


async def test_times_are_not_stored_on_a_full_disk(tmp_path, monkeypatch, caplog):
    cache = make(tmp_path)
    entry = put(cache, "a", b"a" * 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    await cache.keep_times(digest("a"), entry.checksum, "times")
    assert "can't be written" in caplog.text
    assert files(tmp_path) == [digest("a") + ".pcm"]
    assert cache.size_bytes == on_disk(tmp_path)
