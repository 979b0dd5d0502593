"""Runs all parts of bench.ear on a small folder, and on the same folder with shifted transcripts, where the checks must
fail."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from bench import ear
from tests.support import samples

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with two sentences by each of two offline voices, and a tone."""
    pytest.importorskip("pocketsphinx")
    place = tmp_path_factory.mktemp("speech")
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(5 * samples.RATE_HZ) / samples.RATE_HZ)
    entries = [("tone.wav", "", "", "negative", tone)]
    for number, words in enumerate(samples.WORDS[:4]):
        speaker = ("gmw/en-US+f2", "gmw/en-US+m3")[number % 2]
        sound = samples.said(words, speaker)
        noise = samples.noise(len(sound), 0.001)  # the guard expects the noise of a room, not digital silence
        entries.append((f"{number}.wav", words, speaker, "speech", sound + noise))
    lines = []
    for file, words, speaker, kind, sound in entries:
        with wave.open(str(place / file), "wb") as out:
            out.setparams((1, 2, samples.RATE_HZ, 0, "NONE", ""))
            out.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
        lines.append(json.dumps({"file": file, "words": words, "speaker": speaker, "language": "en", "kind": kind}))
    (place / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return place


def figures(folder: Path, *options: str) -> dict[str, object]:
    """Return the JSON object in the last line of the command."""
    command = [sys.executable, "-m", "bench.ear", "--speech", str(folder), *options]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr[-2000:])
        raise
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_whole_clips_pass_and_faults_are_found(folder: Path) -> None:
    pytest.importorskip("perth", reason="the watermark extra is not installed")
    found = figures(folder)
    assert tuple(found) == ear.KEYS
    assert found["clips"] == 5
    assert (found["false_cuts"], found["false_short"], found["verify_false"]) == (0, 0, 0.0)
    assert found["runaway_ended"] == dict.fromkeys(ear.TAILS, 1.0)
    assert found["early_total"] == 4 * len(ear.EARLY_ENDS)
    assert isinstance(found["verify_caught"], dict)
    assert found["verify_caught"].keys() == {"half", "babble", "noise", "cut_end"}
    assert (found["casting_refused_negatives"], found["casting_accepted"]) == (1.0, 1.0)
    assert found["watermark_false"] == 0.0


def test_shifted_words_make_the_checks_fail(folder: Path) -> None:
    found = figures(folder, "--shift-words", "--only", "guard,verify,casting")
    assert found["verify_false"] == 1.0
    assert found["casting_accepted"] == 0.0


def test_unknown_part_is_refused(folder: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        figures(folder, "--only", "guard,nothing")
