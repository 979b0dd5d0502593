"""Voices under failure: full disks, voices deleted during a change, parallel requests and killed processes."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import Busy, NotFound, NotStored, UnknownVoice
from app.types import Reference
from app.voices import folder_store, store
from app.voices.consents import ConsentStore
from app.voices.folder_store import FolderStore
from app.voices.memory import Memory, RememberedTurn
from app.voices.store import VoiceStore
from app.voices.voice_file import Consent
from tests.support.live import ROOT, environment

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
PAUSE_S = 0.2  # how long one thread is held inside an operation while another one tries to overtake it


def recording(seed: int = 0, seconds: float = 0.5) -> Reference:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE_HZ)).astype(np.float32)
    return Reference(samples, RATE_HZ, "These are the words.")


def opened(folder: Path) -> VoiceStore:
    return VoiceStore(folder / "cloned_voices", folder / "voice_references")


def files_in(folder: Path) -> list[str]:
    """Return every file and folder except lock files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


# ---- disk errors


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let the operating system refuse to make a file larger than this (EFBIG), as a full disk does."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


WRITES: dict[str, Callable[[VoiceStore, str], Any]] = {
    "add": lambda voices, _: voices.add("Berta", recording(1)),
    "add with consent": lambda voices, _: voices.add(
        "Berta", recording(1, 0.01), consent=Consent("Yes.", "", recording(2))
    ),
    "draft": lambda voices, _: voices.add_draft(recording(1), sample_count=1, quality={}),
    "change": lambda voices, voice_id: voices.change(voice_id, description="x" * 900),
    "first recording": lambda voices, _: voices.set_reference("nova", recording(3)),
    "new recording": lambda voices, _: voices.set_reference("onyx", recording(4)),
}


@pytest.mark.parametrize("name", WRITES)
def test_failed_write_raises_an_error_and_leaves_no_files(tmp_path, name):
    voices = opened(tmp_path)
    voice_id = voices.add("Anna", recording()).id
    voices.set_reference("onyx", recording(5))
    before = files_in(tmp_path)
    with largest_file(600), pytest.raises(NotStored, match="File too large"):
        WRITES[name](voices, voice_id)
    assert files_in(tmp_path) == before
    for view in (voices, opened(tmp_path)):
        assert view.problems == {}
        assert [voice.voice.description for voice in view.stored()] == [""]
        assert len(view.reference(view.get("onyx")).samples) == RATE_HZ // 2
        assert view.recording_of("nova") is None
    WRITES[name](voices, voice_id)  # the disk has space again


def test_failed_write_of_codes_is_not_an_error_and_leaves_no_files(tmp_path, caplog):
    voices = opened(tmp_path)
    voice = voices.add("Anna", recording()).voice
    before = files_in(tmp_path)
    with largest_file(600):
        voices.keep_codes(voice, "mimi", "a", np.zeros((32, 100), np.int16))
    assert files_in(tmp_path) == before
    assert "could not be stored" in caplog.text
    assert voices.codes(voice, "mimi", "a") is None


def test_failed_write_of_a_consent_leaves_no_files(tmp_path):
    consents = ConsentStore(tmp_path)
    kept = consents.add("Anna", "en", recording(0, 0.01))
    before = files_in(tmp_path)
    with largest_file(100):
        with pytest.raises(NotStored):
            consents.add("Berta", "en", recording())
        with pytest.raises(NotStored):
            consents.rename(kept.id, "Another name")
    assert files_in(tmp_path) == before
    assert [consent.name for consent in consents.page(None, 10).consents] == ["Anna"]


def test_failed_write_of_a_conversation_keeps_it_in_memory_and_leaves_no_files(tmp_path, caplog):
    memory = Memory(tokens=1_000, ttl_s=60.0, folder=tmp_path)
    with largest_file(100):
        memory.remember("key", "engine", [RememberedTurn("anna", "Hello.", np.zeros((2, 5), np.int16))])
    assert files_in(tmp_path) == []
    assert [turn.text for turn in memory.recall("key", "engine", {}, 1_000)] == ["Hello."]
    assert caplog.records


@pytest.mark.parametrize("call", ["rename", "replace"])
def test_failed_rename_leaves_no_files(tmp_path, monkeypatch, call):
    voices = opened(tmp_path)
    voice_id = voices.add("Anna", recording()).id
    before = files_in(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, call, refuse)
    if call == "rename":
        with pytest.raises(NotStored, match="Read-only file system"):
            voices.add("Berta", recording(1))
        with pytest.raises(NotStored, match="Read-only file system"):
            voices.delete(voice_id)
    else:
        with pytest.raises(NotStored, match="Read-only file system"):
            voices.change(voice_id, name="Berta")
    monkeypatch.undo()
    assert files_in(tmp_path) == before
    assert [voice.voice.name for voice in opened(tmp_path).stored()] == ["Anna"]


# ---- deletion during a change


def remove_before_write(monkeypatch: pytest.MonkeyPatch, remove: Callable[[], Any]) -> None:
    """Call `remove` just before the store writes its next file."""
    replace_file = folder_store.replace_file

    def remove_then_replace(path: Path, data: bytes, **options: Any) -> None:
        monkeypatch.setattr(folder_store, "replace_file", replace_file)
        remove()
        replace_file(path, data, **options)

    monkeypatch.setattr(folder_store, "replace_file", remove_then_replace)


def test_changing_a_voice_that_another_process_deletes_gives_not_found(tmp_path, monkeypatch):
    voices, other = opened(tmp_path), opened(tmp_path)
    voice_id = voices.add("Anna", recording()).id
    remove_before_write(monkeypatch, lambda: other.delete(voice_id))
    with pytest.raises(NotFound, match=voice_id):
        voices.change(voice_id, name="Berta")
    voices.refresh()
    assert voices.stored() == []
    assert files_in(tmp_path / "cloned_voices") == [".drafts"]


def test_renaming_a_consent_that_another_process_deletes_gives_not_found(tmp_path, monkeypatch):
    consents, other = ConsentStore(tmp_path), ConsentStore(tmp_path)
    consent_id = consents.add("Anna", "en", recording()).id
    remove_before_write(monkeypatch, lambda: other.delete(consent_id))
    with pytest.raises(NotFound, match=consent_id):
        consents.rename(consent_id, "Berta")
    assert files_in(tmp_path) == []


def test_codes_are_not_stored_if_the_voice_is_deleted_during_encoding(tmp_path):
    voices, other = opened(tmp_path), opened(tmp_path)
    voice = voices.add("Anna", recording()).voice
    other.refresh()
    other.delete(voice.id)
    voices.keep_codes(voice, "mimi", "a", np.zeros((2, 2), np.int16))
    assert files_in(tmp_path / "cloned_voices") == [".drafts"]


def test_deleting_a_voice_that_another_process_deletes_gives_not_found(tmp_path, monkeypatch):
    voices, other = opened(tmp_path), opened(tmp_path)
    voice_id = voices.add("Anna", recording()).id
    remove = FolderStore.remove

    def lose_the_race(self: FolderStore[Any], name: str) -> bool:
        monkeypatch.setattr(FolderStore, "remove", remove)
        other.delete(voice_id)
        return self.remove(name)

    monkeypatch.setattr(FolderStore, "remove", lose_the_race)
    with pytest.raises(NotFound, match=voice_id):
        voices.delete(voice_id)
    assert voices.stored() == []


# ---- parallel requests


class Overtaking:
    """Delays the first call of a method after its work is done, while a second thread tries to overtake it.

    Without a lock, the second thread finishes first, and the first thread then stores an outdated result. With a lock,
    the second thread waits, and the first thread continues after PAUSE_S.
    """

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, method: str) -> None:
        self._inside, self._overtaken = threading.Event(), threading.Event()
        original = getattr(owner, method)

        def held(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if not self._inside.is_set():
                self._inside.set()
                self._overtaken.wait(PAUSE_S)
            return result

        patch.setattr(owner, method, held)

    def run(self, first: Callable[[], Any], second: Callable[[], Any]) -> None:
        failures: list[BaseException] = []

        def guarded(call: Callable[[], Any]) -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - it is reported in the test's thread
                failures.append(error)

        ahead = threading.Thread(target=guarded, args=(first,))
        ahead.start()
        assert self._inside.wait(30)
        behind = threading.Thread(target=guarded, args=(second,))
        behind.start()
        behind.join(2 * PAUSE_S)
        self._overtaken.set()
        ahead.join(30)
        behind.join(30)
        assert failures == []


OPERATIONS = {
    "add": lambda voices, _: voices.add("Berta", recording(1)),
    "draft": lambda voices, _: voices.add_draft(recording(1), sample_count=1, quality={}),
    "drop draft": lambda voices, ids: voices.drop_draft(ids["draft"]),
    "change": lambda voices, ids: voices.change(ids["anna"], name="Clara"),
    "delete": lambda voices, ids: voices.delete(ids["dora"]),
    "set recording": lambda voices, _: voices.set_reference("onyx", recording(2)),
}


@pytest.mark.parametrize("first", OPERATIONS)
def test_parallel_operations_keep_all_results(tmp_path, monkeypatch, first):
    """Afterwards the store shows exactly what a new process reads from the disk."""
    for second, operation in OPERATIONS.items():
        if second == first and not second.startswith(("add", "draft")):
            continue
        folder = tmp_path / second
        voices = opened(folder)
        voices.set_reference("nova", recording(7))
        ids = {
            "anna": voices.add("Anna", recording()).id,
            "dora": voices.add("Dora", recording()).id,
            "draft": voices.add_draft(recording(), sample_count=1, quality={}).id,
        }
        with monkeypatch.context() as patch:
            race = Overtaking(patch, voices, "_build_index")
            # disabled, because this scan would repair the index after a race
            patch.setattr(voices, "_rescan", lambda: None)
            race.run(lambda: OPERATIONS[first](voices, ids), lambda: operation(voices, ids))  # noqa: B023
        fresh = opened(folder)
        assert voices._index == fresh._index, f"{first} and {second}"


def test_parallel_drafts_are_all_found(tmp_path):
    voices = opened(tmp_path)
    draft_ids: list[str] = []

    def draft(seed: int) -> None:
        references = [recording(10 * seed + number, 0.05) for number in range(5)]
        draft_ids.extend([voices.add_draft(reference, sample_count=1, quality={}).id for reference in references])

    threads = [threading.Thread(target=draft, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(draft_ids) == 30
    for draft_id in draft_ids:
        assert len(voices.reference(voices.get(draft_id)).samples) == RATE_HZ // 20


def test_slow_folder_scan_does_not_hide_a_record_added_during_the_scan(tmp_path, monkeypatch):
    records = FolderStore(tmp_path, "marker", lambda folder: folder.name)
    records.create("first", {"marker": b"1"})
    race = Overtaking(monkeypatch, records, "_entries")
    race.run(lambda: records.refresh(full=True), lambda: records.create("second", {"marker": b"2"}))
    assert set(records.records) == {"first", "second"}


def test_parallel_changes_of_a_conversation_keep_every_turn(tmp_path, monkeypatch):
    memory = Memory(tokens=10_000, ttl_s=60.0, folder=tmp_path)
    race = Overtaking(monkeypatch, memory, "_find")

    def remember(text: str) -> None:
        memory.remember("key", "engine", [RememberedTurn("anna", text, np.zeros((2, 5), np.int16))])

    race.run(lambda: remember("First."), lambda: remember("Second."))
    assert {turn.text for turn in memory.recall("key", "engine", {}, 1_000)} == {"First.", "Second."}


def test_store_locked_by_another_process_is_busy(tmp_path, monkeypatch):
    voices = opened(tmp_path)
    voice_id = voices.add("Anna", recording()).id
    script = """
        import fcntl, sys, time
        file = open(sys.argv[1], "ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("locked", flush=True)
        time.sleep(600)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "cloned_voices" / ".lock")],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        monkeypatch.setattr(folder_store, "LOCK_WAIT_S", 0.1)
        for write in (lambda: voices.add("Berta", recording()), lambda: voices.change(voice_id, name="Clara")):
            with pytest.raises(Busy, match="Another server process"):
                write()
        assert [voice.voice.name for voice in voices.stored()] == ["Anna"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert voices.add("Berta", recording()).voice.name == "Berta"


# ---- old drafts


def test_expired_drafts_are_removed_by_the_next_draft_and_at_start(tmp_path, monkeypatch):
    voices = opened(tmp_path)
    old = voices.add_draft(recording(), sample_count=1, quality={}).id
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + store.DRAFT_S + 1)
    with pytest.raises(UnknownVoice, match="older than 30 minutes"):
        voices.draft(old)
    new = voices.add_draft(recording(), sample_count=1, quality={}).id
    assert [path.name for path in (tmp_path / "cloned_voices" / ".drafts").iterdir()] == [new]
    monkeypatch.setattr(time, "time", lambda: now_s + 3 * store.DRAFT_S)
    opened(tmp_path)
    assert list((tmp_path / "cloned_voices" / ".drafts").iterdir()) == []


# ---- kill -9 between any two steps of a write

KILLED_WRITE = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from app.types import Reference
    from app.voices.store import VoiceStore

    folder, operation, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    voices = VoiceStore(folder / "cloned_voices", folder / "voice_references")
    recording = Reference(np.full(2_400, 0.25, np.float32), 24_000, "Other words.")
    (anna,) = voices.stored()
    done = 0

    def count(event, args):  # dies before the chosen change of the file system
        global done
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime"):
            return
        done += 1
        if done > step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    if operation == "add":
        voices.add("Berta", recording)
    elif operation == "change":
        voices.change(anna.id, transcript="Other words.")
    elif operation == "delete":
        voices.delete(anna.id)
    else:
        voices.set_reference("onyx", recording)
"""


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["add", "change", "delete", "set recording"])
def test_kill_before_any_step_of_a_write_keeps_either_the_old_or_the_new_voice(tmp_path, operation):
    outcomes = set()
    for step in range(40):
        folder = tmp_path / str(step)
        voices = opened(folder)
        voices.add("Anna", recording())
        voices.set_reference("onyx", recording(1))
        before = _content(voices)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED_WRITE), str(folder), operation, str(step)],
            cwd=ROOT,
            env=environment(folder),
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        after = opened(folder)
        assert after.problems == {}
        assert not [name for name in files_in(folder) if "/.new-" in name or "/.gone-" in name]
        outcomes.add(_content(after) == before)
        if done.returncode == 0:
            break
    else:
        pytest.fail("the write never ended")
    assert outcomes == {True, False}
    assert step >= 3


def _content(voices: VoiceStore) -> dict[str, tuple[str, str]]:
    """Read each voice with a recording; return name -> (transcript, digest of the samples)."""
    recorded = [voice for voice in voices.all() if voice.recorded]
    for voice in recorded:
        voices.reference(voice)
    return {voice.name: (voices.reference(voice).transcript, voice.digest) for voice in recorded}
