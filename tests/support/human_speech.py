"""Recordings of people with their transcripts, for tests. The recordings are not part of the project.

TTS_TEST_SPEECH names a folder with a `manifest.jsonl`. The default is `../shared/data/speech` beside the checkout. One
line of the manifest describes one recording: file, words, speaker, language, kind ("speech" or "negative": a sound
without words), rate, and for many `align`: [word, start s, end s]. `../sesame_prompts` beside that folder holds the six
recordings of the CSM-1B release, each with a transcript in a text file of the same name.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from app.audio import pcm
from app.audio.decode import decode
from app.audio.loudness import integrated_lufs
from app.audio.stretch import StreamStretcher

if TYPE_CHECKING:
    from app.types import Samples

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "speech"
MAX_SECONDS = 120.0
RATE_HZ, LEVEL_LUFS = 24_000, -20.0  # sample rate and loudness of the audio for models, and of preset voices


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording of the folder."""

    path: Path
    words: str
    speaker: str
    language: str
    kind: str  # "speech" or "negative"
    rate_hz: int  # sample rate of the file
    align: tuple[tuple[str, float, float], ...]  # (word, start in s, end in s) of each word; empty if not known

    @property
    def name(self) -> str:
        return self.path.stem

    def samples(self, rate_hz: int | None = None) -> Samples:
        """Return the samples (N,), mono, at rate_hz; None = the file's own rate."""
        return _decoded(self.path, rate_hz or self.rate_hz)

    def spoken(self, tempo: float = 1.0) -> Samples:
        """Return the samples (N,), mono, at RATE_HZ and LEVEL_LUFS, like the output of a model. tempo: above 1 is
        faster, at the same pitch."""
        samples = self.samples(RATE_HZ)
        gain = pcm.amplitude(LEVEL_LUFS - integrated_lufs(samples, RATE_HZ))
        samples = pcm.clip(samples * np.float32(gain))
        stretcher = StreamStretcher(RATE_HZ, tempo)
        return np.concatenate((stretcher.push(samples), stretcher.flush()))


@functools.lru_cache(maxsize=16)
def _decoded(path: Path, rate_hz: int) -> Samples:
    return decode(path.read_bytes(), rate_hz, max_seconds=MAX_SECONDS).samples


def folder() -> Path:
    return Path(os.environ.get("TTS_TEST_SPEECH") or _BESIDE)


def recordings(kind: str = "speech", language: str | None = "en") -> list[Recording]:
    """Return the recordings of one kind and language; None = of all languages.

    Skips the test if the folder is missing.
    """
    manifest = folder() / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip(f"no human speech in {folder()}: set TTS_TEST_SPEECH to a folder with a manifest.jsonl")
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = [_recording(entry) for entry in entries if entry["kind"] == kind]
    return [recording for recording in found if language is None or (recording.language or "en") == language]


def _recording(entry: dict[str, object]) -> Recording:
    words, speaker, language = (str(entry.get(key) or "") for key in ("words", "speaker", "language"))
    align = entry.get("align") or ()
    assert isinstance(align, list | tuple)
    return Recording(
        folder() / str(entry["file"]),
        words,
        speaker,
        language,
        str(entry["kind"]),
        int(str(entry.get("rate") or 24_000)),
        tuple((str(word), float(start), float(end)) for word, start, end in align),
    )


def sesame_prompts() -> list[Recording]:
    """Return the six recordings of the CSM-1B release. Skips the test if their folder is missing."""
    prompts = folder().parent / "sesame_prompts"
    files = sorted(prompts.glob("*.wav"))
    if not files:
        pytest.skip(f"CSM's own recordings are not in {prompts}")
    return [
        Recording(
            file, file.with_suffix(".txt").read_text(encoding="utf-8").strip(), file.stem, "en", "speech", 24_000, ()
        )
        for file in files
    ]
