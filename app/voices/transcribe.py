"""Speech recognition for recordings without a transcript: Whisper through transformers (the extra `asr`).

Weights are read from disk, and downloaded only if downloads are allowed.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import soxr

if TYPE_CHECKING:
    from app.types import Samples

log = logging.getLogger(__name__)

RATE_HZ = 16_000
MAX_TOKENS = 400  # of 30 s: fast speech has about 150 in English
_SURE = 0.6  # share of the recognised words that must be found in the given ones


class Transcriber(Protocol):
    """Turns speech into words. Any thread; blocks."""

    def missing(self) -> str:
        """Why it can't be used now, in words; "" if it can."""

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        """The words of up to 30 s. Raises OSError, RuntimeError, ValueError."""


@dataclass(frozen=True, slots=True)
class NoTranscriber:
    """Speech recognition is turned off."""

    def missing(self) -> str:
        return "This server has no speech recogniser (TTS_ASR=off)."

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        raise RuntimeError("there is no recogniser")


class WhisperTranscriber:
    """A Whisper checkpoint: a folder, or a hub id that lies in `models` or may be downloaded to it.

    Its weights (0.3 GB) are loaded for each use and freed after it: a clone is rare, memory is not.
    """

    def __init__(self, model: str, models: Path, *, download: bool = False, token: str = "") -> None:
        self._model = model
        self._models = models
        self._download = download
        self._token = token
        self._lock = threading.Lock()

    def missing(self) -> str:
        if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
            return "This server has no speech recogniser (pip install 'tts-server[asr]')."
        if not self._download and not self._is_here():
            return f"This server has no weights of its speech recogniser {self._model} (TTS_ASR_MODEL)."
        return ""

    def _is_here(self) -> bool:
        if Path(self._model).is_dir():
            return True
        snapshots = self._models / f"models--{self._model.replace('/', '--')}" / "snapshots"
        return any(snapshots.glob("*/config.json"))

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        with self._lock:
            import torch  # noqa: PLC0415 - not where the recogniser is not used
            import transformers  # noqa: PLC0415

            load: Any = transformers  # what it exports is made on first use, and known to no type checker
            found: dict[str, Any] = {"cache_dir": self._models, "local_files_only": not self._download}
            if self._token:
                found["token"] = self._token
            processor = load.AutoProcessor.from_pretrained(self._model, **found)
            model = load.AutoModelForSpeechSeq2Seq.from_pretrained(self._model, **found).eval()
            heard = soxr.resample(np.asarray(samples, np.float32), rate_hz, RATE_HZ)
            inputs = processor(heard, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True)
            most = int(getattr(model.config, "max_target_positions", MAX_TOKENS + 48)) - 8
            options: dict[str, Any] = {"max_new_tokens": min(MAX_TOKENS, most)}
            if getattr(model.generation_config, "is_multilingual", False):
                options |= {"language": language.split("-", maxsplit=1)[0].lower(), "task": "transcribe"}
            with torch.inference_mode():
                ids = model.generate(**inputs, **options)
            return str(processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


_WORD = re.compile(r"\w+(?:['’\-]\w+)*", re.UNICODE)


def cut_to(given: str, heard: str) -> str:
    """The part of `given` (exact, of a longer recording) that a recogniser heard as `heard`; "" where it is not sure.

    Words are compared without case and punctuation; the part begins and ends at the words that match, and as many
    further as the recogniser heard there.
    """
    words = list(_WORD.finditer(given))
    wanted = [_plain(match.group()) for match in _WORD.finditer(heard)]
    have = [_plain(match.group()) for match in words]
    if not wanted or not have:
        return ""
    matcher = difflib.SequenceMatcher(None, have, wanted, autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    # Stray matches far from the rest are of other sentences: what counts lies within about the heard length.
    anchor = max(blocks, key=lambda block: block.size, default=None)
    if anchor is None:
        return ""
    low, high = anchor.a - anchor.b - len(wanted) // 4 - 2, anchor.a + len(wanted) - anchor.b + len(wanted) // 4 + 2
    blocks = [block for block in blocks if low <= block.a and block.a + block.size <= high]
    if sum(block.size for block in blocks) < _SURE * len(wanted):
        return ""
    first = max(0, blocks[0].a - blocks[0].b)
    last = min(len(words), blocks[-1].a + blocks[-1].size + (len(wanted) - blocks[-1].b - blocks[-1].size))
    end = words[last].start() if last < len(words) else len(given)
    return given[words[first].start() : end].rstrip(" \n\t([{\"“‘'-–—")


def _plain(word: str) -> str:
    return word.casefold().replace("’", "'").replace("-", "")
