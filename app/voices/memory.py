"""Conversation memory: stores the generated turns of a conversation as context for the next turn.

A stored turn is a text and the codec codes that the model generated for this text. The codes are never decoded and
encoded again, so the quality does not decrease with each turn. The prompt for the next turn is the recording of the
voice, followed by the stored turns. The recording never changes, so the voice does not drift in a long conversation.

The key of a conversation depends on the API key of its caller, so no caller can read the conversation of another
caller. This module does not depend on HTTP or engines.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.lru import LRU
from app.types import ContextTurn

if TYPE_CHECKING:
    from pathlib import Path

    from app.types import Codes

log = logging.getLogger(__name__)

ABANDONED_S = 60.0  # older temporary files are deleted; a younger file may still be in use by another server process
MAX_TURNS = 32  # the largest number of turns that are kept of one conversation
_CHARS_PER_TOKEN = 3  # a low estimate: a Llama 3 token has about 4 characters of English
# Tokens of a turn that are not words: for the speaker, for the beginning and the end of the text, and for the end of
# the audio.
_FRAMING_TOKENS = 6


@dataclass(frozen=True, slots=True)
class RememberedTurn:
    """One generated turn of a conversation."""

    voice: str  # id of the voice that spoke
    text: str
    codes: Codes  # (K, T) int16

    @property
    def tokens(self) -> int:
        """The estimated number of positions that this turn takes in the context of the model."""
        return int(self.codes.shape[1]) + len(self.text) // _CHARS_PER_TOKEN + _FRAMING_TOKENS


@dataclass(frozen=True, slots=True)
class _Conversation:
    fingerprint: str  # identifies the engine that generated the codes
    turns: tuple[RememberedTurn, ...] = ()
    touched_s: float = 0.0  # time of the last turn, Unix time in seconds


class Memory:
    """The remembered conversations. Thread-safe.

    tokens: maximum number of context positions per conversation; a longer one loses its oldest turns. ttl_s: a
    conversation that gets no new turn for this time is deleted. folder: where conversations are stored, so that a
    restart does not lose them; None = conversations are not stored on disk.
    """

    def __init__(
        self, *, tokens: int, ttl_s: float, max_conversations: int = 1_000, folder: Path | None = None
    ) -> None:
        self._tokens = tokens
        self._ttl_s = ttl_s
        self._folder = folder
        self._lock = threading.Lock()
        self._known: LRU[str, _Conversation] = LRU(max_conversations, on_evict=self._remove_file)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_old_files()

    def recall(self, key: str, fingerprint: str, speakers: dict[str, int], max_tokens: int) -> tuple[ContextTurn, ...]:
        """Return the newest turns of a conversation that fit into max_tokens context positions, oldest first.

        fingerprint: identifies the current engine; turns that another engine generated are not returned. speakers:
        voice id -> speaker number, for the voices of the current request; voices that are not in it get unused
        numbers. Blocks while it reads from disk.
        """
        with self._lock:
            found = self._find(key)
            if found is None or found.fingerprint != fingerprint:
                return ()
            turns = _newest(found.turns, min(max_tokens, self._tokens))
        numbers = dict(speakers)
        for turn in turns:
            if turn.voice not in numbers:
                numbers[turn.voice] = next(n for n in range(len(numbers) + 1) if n not in numbers.values())
        return tuple(ContextTurn(numbers[turn.voice], turn.text, turn.codes) for turn in turns)

    def remember(self, key: str, fingerprint: str, turns: Sequence[RememberedTurn]) -> None:
        """Add turns to a conversation. Blocks while it writes to disk. Never raises.

        fingerprint: identifies the engine that generated the turns.
        """
        with self._lock:
            found = self._find(key)
            before = found.turns if found is not None and found.fingerprint == fingerprint else ()
            kept = _Conversation(fingerprint, _newest((*before, *turns), self._tokens), time.time())
            self._known.put(key, kept)
            self._write(key, kept)

    def forget(self, key: str) -> bool:
        """Delete a conversation and its file. Returns False if the conversation does not exist."""
        with self._lock:
            known = self._find(key) is not None
            self._drop(key)
            return known

    # ---- callers of these methods hold the lock

    def _find(self, key: str) -> _Conversation | None:
        found = self._known.get(key) or self._read(key)
        if found is None:
            return None
        if abs(time.time() - found.touched_s) > self._ttl_s:  # `abs`, because the clock may have been set back
            self._drop(key)
            return None
        self._known.put(key, found)
        return found

    def _drop(self, key: str) -> None:
        self._known.pop(key)
        self._remove_file(key)

    def _remove_file(self, key: str) -> None:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self._folder is not None  # noqa: S101 - called only if there is a folder
        return self._folder / f"{key}.npz"

    def _write(self, key: str, conversation: _Conversation) -> None:
        if self._folder is None:
            return
        data = io.BytesIO()
        texts = np.array(
            [conversation.fingerprint, *(text for turn in conversation.turns for text in (turn.voice, turn.text))]
        )
        codes = {f"codes{index}": turn.codes for index, turn in enumerate(conversation.turns)}
        np.savez(data, told=texts, **codes)  # type: ignore[arg-type]  # numpy's stub does not allow these keywords
        temporary = self._path(key).with_suffix(f".{os.getpid()}.new")
        try:
            temporary.write_bytes(data.getvalue())
            temporary.replace(self._path(key))
        except OSError as error:
            log.warning("A conversation could not be stored, so a restart of this server will lose it: %s", error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _read(self, key: str) -> _Conversation | None:
        if self._folder is None:
            return None
        path = self._path(key)
        try:
            touched_s = path.stat().st_mtime
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
                fingerprint, *texts = map(str, data["told"])
                turns = tuple(
                    RememberedTurn(voice, text, data[f"codes{index}"])
                    for index, (voice, text) in enumerate(zip(texts[::2], texts[1::2], strict=True))
                )
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - numpy raises many types for a damaged file
            log.warning("The file %s can't be read, so the conversation starts again without context: %s", path, error)
            return None
        return _Conversation(fingerprint, turns, touched_s)

    def _remove_old_files(self) -> None:
        """Delete the files of expired conversations and abandoned temporary files."""
        assert self._folder is not None  # noqa: S101 - called only if there is a folder
        for path in self._folder.glob("*.n*"):
            with contextlib.suppress(OSError):
                age_s = time.time() - path.stat().st_mtime
                if age_s > (ABANDONED_S if path.suffix == ".new" else self._ttl_s):
                    path.unlink()


def _newest(turns: Sequence[RememberedTurn], tokens: int) -> tuple[RememberedTurn, ...]:
    """Return the newest turns that fit into `tokens` context positions, at most MAX_TURNS, oldest first."""
    kept: list[RememberedTurn] = []
    for turn in reversed(turns[-MAX_TURNS:]):
        tokens -= turn.tokens
        if tokens < 0:
            break
        kept.append(turn)
    return tuple(reversed(kept))
