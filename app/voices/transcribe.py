"""Speech recognition for recordings without a transcript.

The library transformers (extra `asr`) runs a Whisper model. The weights are read from disk. Missing weights are
downloaded when a recording first needs them, if TTS_ASR_DOWNLOAD allows it.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import soxr

from app.errors import WeightsUnavailable

if TYPE_CHECKING:
    from app.types import Samples

log = logging.getLogger(__name__)

RATE_HZ = 16_000
MAX_TOKENS = 400  # largest number of tokens for 30 s of audio; 30 s of fast English have about 150
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # a Whisper model needs one of these files
RETRY_S = 60.0  # after a failed download, no new download starts for this time, so that requests do not wait
HOW_TO_INSTALL = (
    "The container image and `make install` have it. Elsewhere install it with: pip install 'transformers==5.23.0'"
)
_MIN_MATCHED = 0.6  # at least this share of the recognised words must also be in the transcript


class FetchProgress(Protocol):
    """The progress of a download."""

    @property
    def done_bytes(self) -> int: ...

    @property
    def total_bytes(self) -> int: ...


OnProgress = Callable[[FetchProgress], None]
# A function that downloads the weights and returns their folder. The function raises WeightsUnavailable. The second
# parameter is a function that returns whether the download must stop.
Fetch = Callable[[OnProgress, Callable[[], bool]], Path]


@dataclass(frozen=True, slots=True)
class RecogniserState:
    """The state of the speech recogniser, for /health."""

    state: Literal["ready", "not_downloaded", "downloading", "unavailable", "off"]
    reason: str = ""  # why the recogniser is not ready
    done_bytes: int = 0  # bytes of a running download that have arrived
    total_bytes: int = 0


class Transcriber(Protocol):
    """A speech recogniser. Thread-safe; its calls block."""

    def missing(self) -> str:
        """Return the reason why the recogniser can't be used, for an error message; "" if it can be used.

        A recogniser that must be downloaded first counts as usable.
        """

    @property
    def is_here(self) -> bool:
        """Whether the recogniser can be used without a download."""

    def prepare(self, on_progress: OnProgress | None = None) -> str:
        """Download the recogniser if it is not on the disk. After that, return the result of `missing`."""

    def state(self) -> RecogniserState:
        """Return the state of the recogniser."""

    def close(self) -> None:
        """Stop a running download."""

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        """Transcribe mono samples (N,), at most 30 s. language: BCP 47. Raises OSError, RuntimeError, ValueError."""


@dataclass(frozen=True, slots=True)
class NoTranscriber:
    """Replaces the speech recogniser if speech recognition is turned off. This class recognises no words."""

    is_here: bool = field(default=False, init=False)

    def missing(self) -> str:
        return "Speech recognition is turned off on this server (TTS_ASR=off)."

    def prepare(self, on_progress: OnProgress | None = None) -> str:
        return self.missing()

    def state(self) -> RecogniserState:
        return RecogniserState("off", self.missing())

    def close(self) -> None:
        pass

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        raise RuntimeError("speech recognition is turned off")


class WhisperTranscriber:
    """Transcribes recordings with a Whisper model.

    model: the name of the model, for messages. find: returns the folder with the complete weights; None = they are not
    on the disk. fetch: downloads the weights; None = they may not be downloaded.

    Each call of `transcribe` loads the weights (0.3 GB) and then frees the memory, because calls are rare.
    """

    def __init__(self, model: str, find: Callable[[], Path | None], fetch: Fetch | None = None) -> None:
        self._model = model
        self._find = find
        self._fetch = fetch
        self._lock = threading.Lock()
        self._progress: FetchProgress | None = None  # progress of the running download
        self._closed = threading.Event()
        self._failure = ""  # why the last download failed
        self._failed_s = -RETRY_S  # time of the last failure, on the monotonic clock

    def missing(self) -> str:
        if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
            return f"The speech recogniser is not installed on this server. {HOW_TO_INSTALL}."
        if self.is_here:
            return ""
        absent = f"The weights of the speech recogniser {self._model} are not on this server"
        if self._fetch is None:
            return f"{absent} (TTS_ASR_MODEL), and TTS_ASR_DOWNLOAD does not allow the server to download them."
        if self._failure and time.monotonic() - self._failed_s < RETRY_S:
            return f"{absent}, and the download failed: {self._failure}"
        return ""

    @property
    def is_here(self) -> bool:
        return self._folder() is not None

    def _folder(self) -> Path | None:
        folder = self._find()
        return folder if folder and any((folder / name).is_file() for name in _PROCESSORS) else None

    def state(self) -> RecogniserState:
        progress = self._progress
        if progress is not None:
            return RecogniserState("downloading", "", progress.done_bytes, progress.total_bytes)
        if reason := self.missing():
            return RecogniserState("unavailable", reason)
        if self.is_here:
            return RecogniserState("ready")
        return RecogniserState("not_downloaded", f"{self._model} is downloaded when a recording first needs it.")

    def prepare(self, on_progress: OnProgress | None = None) -> str:
        with self._lock:
            try:
                if not self.missing():
                    self._fetched(on_progress)
            except OSError as error:
                log.info("The speech recogniser can't be used: %s", error)
        return self.missing()

    def close(self) -> None:
        self._closed.set()

    def _fetched(self, on_progress: OnProgress | None = None) -> Path:
        """Return the folder of the weights. Download them if they are not on the disk. Raises OSError."""
        if (folder := self._folder()) is not None:
            return folder
        if self._fetch is None or (reason := self.missing()):
            raise OSError(self.missing() or reason)

        def show(progress: FetchProgress) -> None:
            self._progress = progress
            if on_progress is not None:
                on_progress(progress)

        log.info("The speech recogniser %s is downloaded now, because a recording has no transcript.", self._model)
        try:
            folder = self._fetch(show, self._closed.is_set)
        except WeightsUnavailable as error:
            self._failure = f"{error.reason}. {error.remedy}".strip()
            self._failed_s = time.monotonic()
            log.warning("The speech recogniser could not be downloaded: %s", self._failure)
            raise OSError(self._failure) from error
        finally:
            self._progress = None
        log.info("The speech recogniser was downloaded to %s", folder)
        return folder

    def transcribe(self, samples: Samples, rate_hz: int, language: str) -> str:
        with self._lock:
            source = self._fetched()
            import torch  # noqa: PLC0415 - only needed when the recogniser is used
            import transformers  # noqa: PLC0415

            library: Any = transformers  # Any: type checkers can't see the lazy exports of transformers
            processor = library.AutoProcessor.from_pretrained(source, local_files_only=True)
            model = library.AutoModelForSpeechSeq2Seq.from_pretrained(source, local_files_only=True).eval()
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
    words before this match. If n recognised words follow the last matching word, the part ends n words after this
    match.
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
