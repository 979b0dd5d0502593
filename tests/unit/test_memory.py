"""Conversation memory keeps the newest turns for a limited time and only for their owner."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from app.types import conversation_key
from app.voices.memory import Memory, RememberedTurn
from tests.support.pickles import RunsCode

pytestmark = pytest.mark.unit

KEY = conversation_key("", "a talk")


def turn(number: int, frames: int = 20, voice: str = "alloy") -> RememberedTurn:
    codes = np.random.default_rng(number).integers(0, 2048, (32, frames)).astype(np.int16)
    return RememberedTurn(voice, f"Turn {number}.", codes)


def memory(folder: Path | None = None, tokens: int = 100, ttl_s: float = 60.0, **more: int) -> Memory:
    return Memory(tokens=tokens, ttl_s=ttl_s, folder=folder, **more)


def texts(store: Memory, key: str = KEY, room: int = 10_000) -> list[str]:
    return [recalled.text for recalled in store.recall(key, "csm", {}, room)]


def test_newest_turns_that_fit_are_recalled() -> None:
    store = memory(tokens=100)
    assert texts(store) == []
    for number in range(5):
        store.remember(KEY, "csm", [turn(number)])
    assert texts(store) == ["Turn 2.", "Turn 3.", "Turn 4."]  # 28 positions each
    assert texts(store, room=60) == ["Turn 3.", "Turn 4."]
    assert texts(store, room=0) == []
    store.remember(KEY, "csm", [turn(9, frames=99)])
    assert texts(store) == []  # the turn is longer than the limit, so neither it nor any earlier turn is returned


def test_codes_are_recalled_unchanged() -> None:
    store = memory()
    store.remember(KEY, "csm", [turn(1)])
    recalled = store.recall(KEY, "csm", {"alloy": 7}, 1000)
    assert recalled[0].speaker == 7
    assert np.array_equal(recalled[0].codes, turn(1).codes)


def test_each_voice_gets_its_own_speaker_number() -> None:
    store = memory(tokens=1000)
    store.remember(KEY, "csm", [turn(1, voice="anna"), turn(2, voice="ben"), turn(3, voice="anna")])
    assert [recalled.speaker for recalled in store.recall(KEY, "csm", {"ben": 0}, 1000)] == [1, 0, 1]
    assert [recalled.speaker for recalled in store.recall(KEY, "csm", {"carl": 1}, 1000)] == [0, 2, 0]


def test_conversations_are_isolated_by_key_and_id() -> None:
    store = memory()
    keys = [conversation_key(*pair) for pair in (("", "ab"), ("a", "b"), ("key 1", "b"), ("key", "1 b"), ("b", ""))]
    assert len(set(keys)) == len(keys)
    for number, key in enumerate(keys):
        store.remember(key, "csm", [turn(number)])
    assert [texts(store, key) for key in keys] == [[f"Turn {number}."] for number in range(len(keys))]


def test_codes_of_another_engine_are_not_recalled() -> None:
    store = memory()
    store.remember(KEY, "csm", [turn(1)])
    assert store.recall(KEY, "another", {}, 1000) == ()
    store.remember(KEY, "another", [turn(2)])
    assert [recalled.text for recalled in store.recall(KEY, "another", {}, 1000)] == ["Turn 2."]


def test_memory_expires_after_its_ttl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now_s = time.time()
    for folder in (None, tmp_path):
        store = memory(folder, ttl_s=60.0)
        store.remember(KEY, "csm", [turn(1)])
        monkeypatch.setattr(time, "time", lambda: now_s + 59)
        assert texts(store) == ["Turn 1."]
        monkeypatch.setattr(time, "time", lambda: now_s + 125)
        assert texts(store) == []
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_oldest_conversations_are_evicted(tmp_path: Path) -> None:
    store = memory(tmp_path, max_conversations=2)
    for number in range(3):
        store.remember(conversation_key("", str(number)), "csm", [turn(number)])
    assert texts(store, conversation_key("", "0")) == []
    assert texts(store, conversation_key("", "2")) == ["Turn 2."]
    assert len(list(tmp_path.iterdir())) == 2


def test_memory_in_a_folder_survives_a_restart(tmp_path: Path) -> None:
    memory(tmp_path).remember(KEY, "csm", [turn(1), RememberedTurn("böse/../x", "¡Ünïcode! \x00", turn(2).codes)])
    again = memory(tmp_path)
    first, second = again.recall(KEY, "csm", {}, 1000)
    assert np.array_equal(first.codes, turn(1).codes)
    assert second.text.startswith("¡Ünïcode!")
    assert again.forget(KEY)
    assert not again.forget(KEY)
    assert texts(memory(tmp_path)) == []


def test_damaged_files_are_ignored_and_old_files_are_removed(tmp_path: Path) -> None:
    memory(tmp_path).remember(KEY, "csm", [turn(1)])
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    store = memory(tmp_path)
    assert texts(store) == []
    store.remember(KEY, "csm", [turn(2)])
    assert texts(memory(tmp_path)) == ["Turn 2."]
    np.savez(path, told=np.array([RunsCode(tmp_path / "ran")], dtype=object))
    assert texts(memory(tmp_path)) == []
    assert not (tmp_path / "ran").exists()
    left = tmp_path / "x.1.new"
    left.write_bytes(b"")
    memory(tmp_path)
    assert left.exists()  # another replica may still write this file
    os.utime(left, (0, 0))
    old = tmp_path / "old.npz"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    memory(tmp_path)
    assert [left.suffix for left in tmp_path.iterdir()] == [".npz"]
