"""The sounds of a job's sentences: one file of raw samples for each take of a sentence.

A file is written under a temporary name, synced and renamed, so a file with its final name is complete.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from app.durable_file import replace_file
from app.errors import NotStored
from app.jobs.state import SentenceState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SAMPLE_BYTES = 2
_FOLDER = "sentences"
_PARTIAL = ".part"


def sound_path(folder: Path, sentence: SentenceState) -> Path:
    """Return the path of a sentence's sound: signed 16-bit little-endian mono samples at the sample rate of the job.

    folder: the folder of the job.
    """
    return folder / _FOLDER / f"{sentence.index:06}-{sentence.take}.pcm"


def prepare(folder: Path) -> None:
    """Create the folder of the sounds, and remove files whose writing was interrupted. Raises OSError."""
    (folder / _FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder / _FOLDER).glob(f"*{_PARTIAL}"):
        path.unlink(missing_ok=True)
    for path in folder.glob(".result*"):  # a result whose writing was interrupted
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".signing*"):  # a copy whose signing was interrupted
        path.unlink(missing_ok=True)


def keep(folder: Path, sentence: SentenceState, samples: bytes, holder: str) -> None:
    """Store the sound of a sentence in a file that survives a crash. Raises NotStored."""
    path = sound_path(folder, sentence)
    partial = path.with_name(f"{path.name}.{holder}{_PARTIAL}")
    try:
        replace_file(path, samples, mode=0o666, temporary=partial)
    except OSError as error:
        raise NotStored(f"The sound of a sentence can't be stored: {error.strerror or error}.") from error


def remove_older_takes(folder: Path, sentence: SentenceState) -> None:
    """Remove the sounds of earlier takes of a sentence."""
    path = sound_path(folder, sentence)
    for other in path.parent.glob(f"{sentence.index:06}-*.pcm") if sentence.take else ():
        if other != path:
            other.unlink(missing_ok=True)


def lost(folder: Path, sentences: Iterable[SentenceState]) -> list[int]:
    """Return the indexes of the spoken sentences whose sound file is missing or has a wrong size."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder / _FOLDER)}
    return [
        sentence.index
        for sentence in sentences
        if sentence.status == "done"
        and sizes.get(sound_path(folder, sentence).name) != (sentence.samples or 0) * SAMPLE_BYTES
    ]


def remove(folder: Path) -> None:
    """Remove all files of a job."""
    shutil.rmtree(folder, ignore_errors=True)
