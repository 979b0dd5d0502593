"""Voices on disk stay complete after kills, copies, renames and concurrent writes."""

from __future__ import annotations

import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio import pcm
from app.errors import BadReference, DamagedVoice, InvalidValue, NotFound, NotStored, UnknownVoice
from app.types import Reference
from app.voices.presets import PROFILES
from app.voices.store import VoiceStore
from app.voices.voice_file import (
    MAX_NAME_CHARS,
    Consent,
    clean_name,
    name_key,
    read_wav,
    samples_digest,
    voice_digest,
    wav,
)
from tests.support.live import ROOT, environment
from tests.support.pickles import RunsCode

pytestmark = pytest.mark.unit

RATE_HZ = 24_000


def sound(seed: int = 0, seconds: float = 0.5, rate_hz: int = RATE_HZ) -> Reference:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate_hz)).astype(np.float32)
    return Reference(samples, rate_hz, "These are the words.")


def opened(folder: Path) -> VoiceStore:
    return VoiceStore(folder / "cloned_voices", folder / "voice_references")


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".drafts")]


def test_voice_is_found_by_id_and_name_after_a_restart(tmp_path):
    store = opened(tmp_path)
    added = store.add("  Anna   Lee ", sound(), description="A friend.", quality={"level": "good"}, sample_count=2)
    assert added.id.startswith("voice_")
    for known in (store, opened(tmp_path)):
        for query in (added.id, "Anna Lee", "anna lee", " ANNA  LEE "):
            assert known.get(query).id == added.id
        voice = known.find(added.id)
        assert voice == added
        assert (voice.voice.name, voice.voice.kind, voice.voice.recorded) == ("Anna Lee", "cloned", True)
        assert (voice.seconds, voice.rate_hz, voice.sample_count) == (0.5, RATE_HZ, 2)
        assert voice.quality == {"level": "good"}
        reference = known.reference(voice.voice)
        assert np.array_equal(pcm.to_int16(reference.samples), pcm.to_int16(sound().samples))
        assert reference.transcript == "These are the words."
        assert voice.voice.digest == voice_digest(samples_digest(reference.samples), reference.transcript)
        assert known.all()[-1].id == added.id
    with wave.open(str(tmp_path / "cloned_voices" / added.id / "reference.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)


def test_names_are_unique_regardless_of_case(tmp_path):
    store = opened(tmp_path)
    names = [store.add(name, sound()).voice.name for name in ("Anna", "anna", "ANNA", "Nova", "none", "ﬁn", "FIN")]
    assert names == ["Anna", "anna (2)", "ANNA (3)", "Nova (2)", "none (2)", "ﬁn", "FIN (2)"]
    assert store.get("nova").kind == "preset"
    first = store.get("Anna")
    store.delete(first.id)
    with pytest.raises(UnknownVoice):
        store.get("Anna")
    assert store.get("anna (2)").name == "anna (2)"
    long = "x" * MAX_NAME_CHARS
    assert store.add(long, sound()).voice.name == long
    assert len(store.add(long, sound()).voice.name) == MAX_NAME_CHARS
    # A voice whose name is the id of another voice does not replace that voice.
    assert store.add(names and store.stored()[0].id, sound()).voice.name.endswith(" (2)")


def test_concurrent_additions_of_one_name_get_unique_names(tmp_path):
    stores = [opened(tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=store.add, args=("Bob", sound())) for store in stores for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {voice.voice.name for voice in opened(tmp_path).stored()}
    assert names == {"Bob", *(f"Bob ({number})" for number in range(2, 13))}


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "y" * 10_000, "a\x00b", "\x1b[31m", "\ud800"])
def test_bad_names_are_refused_and_leave_no_files(tmp_path, name):
    with pytest.raises(InvalidValue) as error:
        opened(tmp_path).add(name, sound())
    assert error.value.param == "name"
    assert {path.name for path in (tmp_path / "cloned_voices").iterdir()} <= {".lock", ".drafts"}


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/cron.d/x", "a/b", "..", ".", "C:\\x", "~", "$(id)", "🎙 ü"])
def test_name_is_never_a_path(tmp_path, name):
    folder = tmp_path / "data"
    before = {path.name for path in tmp_path.iterdir()}
    added = opened(folder).add(name, sound())
    assert added.voice.name == name
    assert opened(folder).get(name).id == added.id
    assert {path.name for path in tmp_path.iterdir()} - before == {"data"}
    assert {path.name for path in (folder / "cloned_voices").iterdir()} == {added.id, ".lock", ".drafts"}


@given(name=st.text(max_size=120))
@settings(max_examples=200, deadline=None)
def test_cleaning_a_name_twice_changes_nothing(name):
    try:
        cleaned = clean_name(name)
    except InvalidValue:
        return
    assert clean_name(cleaned) == cleaned
    assert 0 < len(cleaned) <= MAX_NAME_CHARS
    assert "\n" not in cleaned
    assert name_key(cleaned) == name_key(name_key(cleaned)) or cleaned.casefold() != cleaned
    json.dumps(cleaned).encode()
    cleaned.encode()


@given(values=st.lists(st.integers(-32768, 32767), max_size=50), rate_hz=st.sampled_from([8_000, 24_000, 44_100]))
@settings(max_examples=50, deadline=None)
def test_recordings_are_stored_bit_for_bit(values, rate_hz):
    samples = (np.array(values, np.float32) / 32768).astype(np.float32)
    again, rate = read_wav(wav(samples, rate_hz))
    assert np.array_equal(again, samples)
    assert rate == rate_hz


def test_changes_reach_other_stores_and_unknown_ids_are_errors(tmp_path):
    here, there = opened(tmp_path), opened(tmp_path)
    added = here.add("Anna", sound())
    there.refresh()
    assert there.get("Anna") == added.voice
    here.change(added.id, name="Berta", description="Other.", transcript="Other words.")
    there.refresh()
    assert there.get("Berta").description == "Other."
    assert there.get(added.id).digest != added.voice.digest
    assert there.reference(there.get("Berta")).transcript == "Other words."
    with pytest.raises(UnknownVoice):
        there.get("Anna")
    with pytest.raises(UnknownVoice):
        there.reference(added.voice)  # the digest of this voice is outdated
    here.delete(added.id)
    there.refresh()
    for gone in (lambda: there.find(added.id), lambda: here.delete(added.id), lambda: here.change(added.id, name="C")):
        with pytest.raises(NotFound):
            gone()
    assert there.stored() == []


def test_refresh_without_changes_reads_nothing(tmp_path, monkeypatch):
    store = opened(tmp_path)
    store.add("Anna", sound())
    old = time.time() - 60
    os.utime(tmp_path / "cloned_voices", (old, old))
    os.utime(tmp_path / "voice_references", (old, old))
    os.utime(tmp_path / "cloned_voices" / ".drafts", (old, old))
    store.refresh()
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("the folder was listed"))
    store.refresh()
    assert store.get("Anna")


def test_voice_may_be_renamed_to_its_own_name(tmp_path):
    store = opened(tmp_path)
    added = store.add("Anna", sound())
    assert store.change(added.id, name="ANNA").voice.name == "ANNA"
    other = store.add("Berta", sound())
    assert store.change(other.id, name="anna").voice.name == "anna (2)"


def test_codes_are_stored_per_recording_and_encoder(tmp_path):
    store = opened(tmp_path)
    voice = store.add("Anna", sound()).voice
    codes = np.arange(96, dtype=np.int16).reshape(32, 3)
    assert store.codes(voice, "mimi", "a") is None
    store.keep_codes(voice, "mimi", "a", codes)
    again = opened(tmp_path)
    assert np.array_equal(again.codes(again.get("Anna"), "mimi", "a"), codes)
    assert again.codes(voice, "mimi", "b") is None
    assert again.codes(voice, "dac", "a") is None
    other = store.change(voice.id, transcript="Other.").voice
    assert store.codes(other, "mimi", "a") is None
    assert not list((tmp_path / "cloned_voices").glob("*/codes*"))
    store.keep_codes(other, "mimi", "a", codes)
    (file,) = (tmp_path / "cloned_voices").glob("*/codes*")
    for damage in (b"", b"\x93NUMPY garbage", file.read_bytes()[:-10]):
        file.write_bytes(damage)
        assert store.codes(other, "mimi", "a") is None
    for objects in (codes.astype(object), np.array([[RunsCode(tmp_path / "ran")]], dtype=object)):
        np.save(file, objects, allow_pickle=True)
        assert store.codes(other, "mimi", "a") is None
    assert not (tmp_path / "ran").exists()


def test_preset_voices_may_get_and_change_recordings(tmp_path):
    store = opened(tmp_path)
    plain = store.get("onyx")
    assert not plain.recorded
    store.set_reference("onyx", sound(1))
    first = store.get("onyx")
    assert (first.recorded, first.kind, first.name) == (True, "preset", "Onyx")
    store.keep_codes(first, "mimi", "a", np.zeros((2, 2), np.int16))
    store.set_reference("onyx", sound(2, rate_hz=44_100), origin="file")
    second = opened(tmp_path).get("onyx")
    assert len({plain.digest, first.digest, second.digest}) == 3
    assert opened(tmp_path).reference(second).rate_hz == 44_100
    folder = tmp_path / "voice_references" / "onyx"
    assert len(list(folder.iterdir())) == 2
    assert opened(tmp_path).recording_of("onyx").origin == "file"
    assert store.stored() == []
    with pytest.raises(NotFound):
        store.delete("onyx")
    with pytest.raises(KeyError):
        store.set_reference("nobody", sound())
    assert [voice.id for voice in opened(tmp_path).all()] == list(PROFILES)


def test_consent_is_stored_with_the_voice(tmp_path):
    store = opened(tmp_path)
    added = store.add("Anna", sound(), consent=Consent("I agree.", "cons_1", sound(5)))
    assert added.consent == {"text": "I agree.", "id": "cons_1", "file": "consent.wav"}
    samples, _ = read_wav(opened(tmp_path).consent_recording(added.id))
    assert np.array_equal(pcm.to_int16(samples), pcm.to_int16(sound(5).samples))
    assert store.consent_recording(store.add("B", sound()).id) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "voice.json").write_bytes(b"{"),
        lambda folder: (folder / "voice.json").write_bytes(b"[" * 100_000),
        lambda folder: (folder / "voice.json").write_text("{}"),
        lambda folder: (folder / "voice.json").unlink(),
        lambda folder: (folder / "reference.wav").unlink(),
        lambda folder: (folder / "reference.wav").write_bytes(b"RIFF"),
        lambda folder: (folder / "voice.json").write_text(
            (folder / "voice.json").read_text().replace('"reference.wav"', '"../../secret.wav"')
        ),
        lambda folder: (folder / "voice.json").write_text(
            (folder / "voice.json").read_text().replace('"format": 1', '"format": 2')
        ),
        lambda folder: (folder / "voice.json").write_text(
            (folder / "voice.json").read_text().replace('"name": "Anna"', '"name": 5')
        ),
    ],
)
def test_damaged_folders_are_reported_and_return_after_repair(tmp_path, damage, caplog):
    store = opened(tmp_path)
    good, bad = store.add("Good", sound()), store.add("Anna", sound())
    folder = tmp_path / "cloned_voices" / bad.id
    shutil.copytree(folder, tmp_path / "copy")
    damage(folder)
    again = opened(tmp_path)
    assert [voice.id for voice in again.stored()] == [good.id]
    assert list(again.problems) == [f"cloned_voices/{bad.id}"]
    assert bad.id in caplog.text
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    again.refresh()
    assert again.problems == {}
    assert again.get("Anna").id == bad.id


def test_recording_changed_on_disk_is_not_used(tmp_path):
    store = opened(tmp_path)
    voice = store.add("Anna", sound()).voice
    path = tmp_path / "cloned_voices" / voice.id / "reference.wav"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedVoice):
        opened(tmp_path).reference(voice)


def test_voice_removed_by_another_process_is_not_reported_as_damaged(tmp_path):
    store, other = opened(tmp_path), opened(tmp_path)
    voice = store.add("Anna", sound()).voice
    other.refresh()
    other.delete(voice.id)
    with pytest.raises(UnknownVoice, match="just now"):
        store.reference(voice)
    onyx = store.set_reference("onyx", sound()).voice
    for seed in (5, 6):
        other.set_reference("onyx", sound(seed))
    with pytest.raises(UnknownVoice, match="just now"):
        store.reference(onyx)


def test_symlinks_are_not_followed(tmp_path):
    store = opened(tmp_path)
    added = store.add("Anna", sound())
    (tmp_path / "cloned_voices" / added.id).rename(tmp_path / "elsewhere")
    (tmp_path / "cloned_voices" / added.id).symlink_to(tmp_path / "elsewhere")
    assert opened(tmp_path).stored() == []


def test_copied_folder_is_a_separate_voice(tmp_path):
    added = opened(tmp_path).add("Anna", sound())
    shutil.copytree(tmp_path / "cloned_voices" / added.id, tmp_path / "cloned_voices" / "anna-2")
    store = opened(tmp_path)
    assert {voice.id for voice in store.stored()} == {added.id, "anna-2"}
    assert store.get("anna-2").id == "anna-2"


def test_files_of_dead_processes_are_removed_and_files_of_live_ones_kept(tmp_path):
    store = opened(tmp_path)
    added = store.add("Anna", sound())
    folder = tmp_path / "cloned_voices"
    here = os.uname().nodename.replace("-", "_")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [f".new-{here}-{gone.pid}-0a0a0a0a-x", f".new-{here}-{os.getpid()}-0a0a0a0a-x", ".gone-other-1-a-x"]
    busy = [f".new-{here}-{os.getppid()}-0a0a0a0a-x", ".new-other_machine-1-0a0a0a0a-x"]
    for name in (*left, *busy):
        (folder / name).mkdir()
        (folder / name / "reference.wav").touch()
    (folder / added.id / left[0]).touch()
    opened(tmp_path)
    assert sorted(hidden(folder)) == sorted(busy)
    old = time.time() - 4000
    os.utime(folder / busy[1], (old, old))
    opened(tmp_path)
    assert hidden(folder) == busy[:1]


def test_full_disk_is_an_error_and_leaves_no_files(tmp_path, monkeypatch):
    store = opened(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotStored, match="No space left"):
        store.add("Anna", sound())
    monkeypatch.undo()
    assert store.stored() == []
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("rate_hz", [4_000, 96_000])
def test_invalid_reference_is_refused(tmp_path, rate_hz):
    with pytest.raises(BadReference):
        opened(tmp_path).add("Anna", sound(rate_hz=rate_hz))
    with pytest.raises(BadReference):
        opened(tmp_path).add("Anna", Reference(np.zeros(0, np.float32), RATE_HZ, ""))


# ---- earlier versions


def legacy(folder: Path, *, transcript: str | None = "Old words.", **info: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "info.json").write_text(json.dumps({"name": "Old Anna", "created_at": 1_700_000_000, **info}))
    with wave.open(str(folder / "reference.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes(np.repeat(np.arange(22_050, dtype=np.int16), 2).tobytes())
    if transcript is not None:
        (folder / "transcript.txt").write_text(transcript)
    return folder


def test_voices_of_earlier_versions_are_migrated(tmp_path):
    legacy(tmp_path / "cloned_voices" / "7_1700000000_anna", description="From before.")
    store = opened(tmp_path)
    (voice,) = store.stored()
    assert (voice.id, voice.voice.name, voice.voice.description) == ("7_1700000000_anna", "Old Anna", "From before.")
    assert (voice.transcript, voice.created_at, voice.origin) == ("Old words.", 1_700_000_000, "migrated")
    assert voice.seconds == pytest.approx(1.0, abs=0.01)
    assert len(store.reference(voice.voice).samples) == voice.samples
    assert opened(tmp_path).stored() == [voice]
    assert (tmp_path / "cloned_voices" / voice.id / "info.json").exists()
    store.delete(voice.id)
    assert opened(tmp_path).stored() == []


def test_unusual_folder_names_of_earlier_versions_get_new_ids(tmp_path):
    legacy(tmp_path / "cloned_voices" / "my voice (é)")
    store = opened(tmp_path)
    store.refresh()
    (voice,) = store.stored()
    assert voice.id.startswith("voice_")
    assert store.get("old anna").id == voice.id


def test_earlier_voice_without_a_transcript_needs_one_before_use(tmp_path):
    folder = legacy(tmp_path / "cloned_voices" / "anna", transcript=None)
    store = opened(tmp_path)
    assert "transcript" in store.problems["cloned_voices/anna"]
    assert store.unconverted() == [folder]
    (folder / "transcript.txt").write_text("Now there are words.")
    store.refresh()
    assert store.find("anna").transcript == "Now there are words."


def test_migration_may_be_interrupted_at_any_step(tmp_path, monkeypatch):
    folder = legacy(tmp_path / "cloned_voices" / "anna")
    real = Path.replace
    for stop in (1, 2):
        calls: list[Path] = []

        def cut(self: Path, target: Path, calls: list[Path] = calls, stop: int = stop) -> Path:
            calls.append(target)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path)
        monkeypatch.undo()
        assert (folder / "info.json").exists()
        assert (folder / "reference.wav").exists()
    assert opened(tmp_path).find("anna").transcript == "Old words."


# ---- kill -9


def churn(folder: Path, min_events: int, kills: int, *, seed: int) -> None:
    """Run and kill a process until `min_events` voices were added or deleted, at least `kills` times."""
    dice = random.Random(seed)
    alive: dict[str, str | None] = {}  # id -> transcript; None if it may be the old or the new one
    events = killed = 0
    while events < min_events or killed < kills:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.voice_churn", str(folder), str(dice.randrange(10**9))],
            cwd=ROOT,
            env=environment(folder),
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        deadline_s = time.monotonic() + dice.uniform(0.0, 0.5)
        while (left_s := deadline_s - time.monotonic()) > 0:
            select.select([child.stdout], [], [], left_s)
            time.sleep(min(0.002, max(0.0, left_s)))
        child.send_signal(signal.SIGKILL)
        doubtful = None
        output, _, _ = child.stdout.read().decode().rpartition("\n")  # the last line may be incomplete
        for line in output.splitlines():
            act, voice_id, *words = line.split(" ", 2)
            if act == "made":
                alive[voice_id] = "Some words."
                events += 1
            elif act == "deleting":
                doubtful = voice_id
                alive.pop(voice_id)
                events += 1
            elif act == "changing":
                alive[voice_id] = None
            else:
                alive[voice_id] = words[0]
        child.wait()
        child.stdout.close()
        killed += 1
        store = opened(folder)
        assert store.problems == {}
        there = {voice.id: voice for voice in store.stored()}
        assert alive.keys() <= there.keys()
        # An unreported voice was completed just before the kill or was about to be deleted.
        extra = there.keys() - alive.keys()
        assert len(extra) <= 1 + (doubtful is not None)
        for voice in there.values():
            reference = store.reference(voice.voice)
            assert voice.voice.digest == voice_digest(samples_digest(reference.samples), reference.transcript)
            if (expected := alive.get(voice.id)) is not None:
                assert reference.transcript == expected
        if (preset := store.recording_of("onyx")) is not None:
            assert len(store.reference(preset.voice).samples) == preset.samples
        assert hidden(folder) == []
        names = [voice.voice.name for voice in there.values()]
        assert len(names) == len(set(names))
        alive.update(dict.fromkeys(extra))
        for voice_id in extra:
            alive[voice_id] = there[voice_id].transcript


@pytest.mark.slow
def test_sigkill_leaves_only_complete_voices(tmp_path):
    churn(tmp_path, 200, 6, seed=1)


@pytest.mark.slow
def test_repeated_sigkill_leaves_only_complete_voices(tmp_path):
    churn(tmp_path, 1_000, 40, seed=2)


def test_wav_files_have_the_exact_size_and_must_be_mono(tmp_path):
    """The check of a folder relies on the length in the WAV header."""
    assert len(wav(np.zeros(10, np.float32), 8_000)) == 44 + 20
    stereo = io.BytesIO()
    with wave.open(stereo, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(b"\0" * 8)
    with pytest.raises(ValueError, match="mono"):
        read_wav(stereo.getvalue())


def test_new_recording_is_stored_although_another_process_removed_the_old_file(tmp_path, monkeypatch):
    store = opened(tmp_path)
    store.set_reference("onyx", sound(1))
    unlink = Path.unlink

    def removed_twice(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=True)  # another server on the same folder has deleted the file a moment earlier
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", removed_twice)
    store.set_reference("onyx", sound(2))
    assert len(list((tmp_path / "voice_references" / "onyx").glob("reference*.wav"))) == 1


# ---- names


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("An\u200dna", "Anna"),  # the name has a zero-width joiner
        ("\u202eannA", "annA"),  # the name has a right-to-left override
        ("An\u200bna\ufeff", "Anna"),
        ("\u2066Anna\u2069", "Anna"),
        ("An\u00adna", "Anna"),  # soft hyphen
        ("\u061cAnna\u200f", "Anna"),
        ("An\u2060na\u3164", "Anna"),  # the name has a word joiner and a Hangul filler
        ("\u2800Anna\u180e", "Anna"),
        ("Re\u0301ne\u034fe", "Rénee"),
        ("سارا", "سارا"),
    ],
)
def test_invisible_characters_are_removed_from_names(tmp_path, name, cleaned):
    assert clean_name(name) == cleaned


@pytest.mark.parametrize("name", ["\u200b", "\u202e\u202c", "\u3164", " \ufeff "])
def test_names_of_invisible_characters_are_empty(name):
    with pytest.raises(InvalidValue, match="empty"):
        clean_name(name)
