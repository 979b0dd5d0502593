"""Speech recognition for recordings without a transcript.

The library transformers (extra `asr`) runs a Whisper model. The weights are read from disk. Missing weights are
downloaded only if TTS_ASR_DOWNLOAD allows it.
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
    from collections.abc import Callable

    from app.types import Samples

log = logging.getLogger(__name__)

RATE_HZ = 16_000
MAX_TOKENS = 400  # for 30 s of audio; 30 s of fast English speech have about 150 tokens
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # a Whisper model needs one of these files
_MIN_MATCHED = 0.6  # at least this share of the recognised words must also be in the transcript


class Transcriber(Protocol):
    """A speech recogniser. Thread-safe; its calls block."""

    def missing(self) -> str:
        """Return the reason why the recogniser can't be used, for an error message; "" if it can be used."""

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        """Transcribe mono samples (N,), at most 30 s. language: BCP 47. Raises OSError, RuntimeError, ValueError."""


@dataclass(frozen=True, slots=True)
class NoTranscriber:
    """Takes the place of a recogniser if speech recognition is turned off. It transcribes nothing."""

    def missing(self) -> str:
        return "Speech recognition is turned off on this server (TTS_ASR=off)."

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        raise RuntimeError("speech recognition is turned off")


class WhisperTranscriber:
    """Transcribes recordings with a Whisper model.

    model: a folder, or the id of a Hugging Face model in the folder `models`. find_cached: returns the folder of this
    model in the cache of the hub's library, which is only read; None = the cache does not have it. download: whether a
    missing model may be downloaded to `models`. token: Hugging Face access token, for gated models.

    Each call of `transcribe` loads the weights (0.3 GB) and then frees the memory, because calls are rare.
    """

    def __init__(
        self,
        model: str,
        models: Path,
        *,
        find_cached: Callable[[], Path | None] = lambda: None,
        download: bool = False,
        token: str = "",
    ) -> None:
        self._model = model
        self._models = models
        self._find_cached = find_cached
        self._download = download
        self._token = token
        self._lock = threading.Lock()

    def missing(self) -> str:
        if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
            return "The speech recogniser is not installed on this server (pip install 'tts-server[asr]')."
        if not self._download and not self._is_here():
            return f"The weights of the speech recogniser {self._model} are not on this server (TTS_ASR_MODEL)."
        return ""

    def _is_here(self) -> bool:
        if Path(self._model).is_dir():
            return True
        snapshots = self._models / f"models--{self._model.replace('/', '--')}" / "snapshots"
        return any(snapshots.glob("*/config.json")) or self._cached() is not None

    def _cached(self) -> Path | None:
        """Return the folder of the model in the cache of the hub's library; None if it is missing or incomplete."""
        folder = None if Path(self._model).is_dir() else self._find_cached()
        return folder if folder and any((folder / name).is_file() for name in _PROCESSORS) else None

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        with self._lock:
            import torch  # noqa: PLC0415 - only needed when the recogniser is used
            import transformers  # noqa: PLC0415

            library: Any = transformers  # Any: type checkers do not see its lazy exports
            options: dict[str, Any] = {"cache_dir": self._models, "local_files_only": not self._download}
            if self._token:
                options["token"] = self._token
            source = self._cached() or self._model
            processor = library.AutoProcessor.from_pretrained(source, **options)
            model = library.AutoModelForSpeechSeq2Seq.from_pretrained(source, **options).eval()
            resampled = soxr.resample(np.asarray(samples, np.float32), rate_hz, RATE_HZ)
            inputs = processor(resampled, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True)
            max_tokens = int(getattr(model.config, "max_target_positions", MAX_TOKENS + 48)) - 8
            generation: dict[str, Any] = {"max_new_tokens": min(MAX_TOKENS, max_tokens)}
            if getattr(model.generation_config, "is_multilingual", False):
                generation |= {"language": language.split("-", maxsplit=1)[0].lower(), "task": "transcribe"}
            with torch.inference_mode():
                ids = model.generate(**inputs, **generation)
            return str(processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


_WORD = re.compile(r"\w+(?:['’\-]\w+)*", re.UNICODE)


def cut_to(transcript: str, recognised: str) -> str:
    """Return the part of an exact transcript that belongs to a section of the recording; "" if too few words match.

    transcript: the words of the whole recording. recognised: the words that a recogniser found in the section. Words
    are compared without case and punctuation. If n recognised words precede the first matching word, the part begins n
    words before this match. If n recognised words follow the last matching word, the part ends n words after it.
    """
    words = list(_WORD.finditer(transcript))
    wanted = [_plain(match.group()) for match in _WORD.finditer(recognised)]
    exact = [_plain(match.group()) for match in words]
    if not wanted or not exact:
        return ""
    matcher = difflib.SequenceMatcher(None, exact, wanted, autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    # Ignore matches that are far from the longest match, because they belong to other sentences.
    anchor = max(blocks, key=lambda block: block.size, default=None)
    if anchor is None:
        return ""
    low, high = anchor.a - anchor.b - len(wanted) // 4 - 2, anchor.a + len(wanted) - anchor.b + len(wanted) // 4 + 2
    blocks = [block for block in blocks if low <= block.a and block.a + block.size <= high]
    if sum(block.size for block in blocks) < _MIN_MATCHED * len(wanted):
        return ""
    first = max(0, blocks[0].a - blocks[0].b)
    last = min(len(words), blocks[-1].a + blocks[-1].size + (len(wanted) - blocks[-1].b - blocks[-1].size))
    end = words[last].start() if last < len(words) else len(transcript)
    return transcript[words[first].start() : end].rstrip(" \n\t([{\"“‘'-–—")


def _plain(word: str) -> str:
    return word.casefold().replace("’", "'").replace("-", "")
