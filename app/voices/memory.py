"""What was said before in a conversation, as codes, so that the next answer goes on in the same manner.

A turn is a text and the codes it was spoken in: nothing is decoded and encoded again, so nothing wears out. Before them
an engine always hears the voice's own recording, which never changes: the voice can't drift, however long people talk.

A conversation is known by a key that its owner's API key is part of: no caller can read another's. Does not depend on
HTTP or on an engine.
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

ABANDONED_S = 60.0  # a half-written file this old was abandoned; a younger one may belong to another replica
MAX_TURNS = 32  # of one conversation
_CHARS_PER_TOKEN = 3  # of English, on the safe side: a Llama 3 token has about four
_FRAMING_TOKENS = 6  # who speaks, begin, end, the frame that ends the sound


@dataclass(frozen=True, slots=True)
class Remembered:
    """One turn: who spoke (a voice's id), what, and its codes (K, T) int16."""

    voice: str
    text: str
    codes: Codes

    @property
    def tokens(self) -> int:
        """About how many positions of a model's context it takes."""
        return int(self.codes.shape[1]) + len(self.text) // _CHARS_PER_TOKEN + _FRAMING_TOKENS


@dataclass(slots=True)
class _Conversation:
    maker: str  # fingerprint of the engine whose codes these are
    turns: tuple[Remembered, ...] = ()
    touched_s: float = 0.0


class Memory:
    """Any thread. `tokens`: how much of a conversation is kept, newest first. `folder`: where it survives restarts."""

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
            self._sweep()

    def recall(self, key: str, maker: str, speakers: dict[str, int], room: int) -> tuple[ContextTurn, ...]:
        """What this conversation has said, oldest first, in at most `room` positions. Blocks where it is on disk.

        speakers: the numbers of the voices that speak now; other voices get other numbers.
        """
        with self._lock:
            found = self._find(key)
            if found is None or found.maker != maker:
                return ()
            turns = _newest(found.turns, min(room, self._tokens))
        numbers = dict(speakers)
        for turn in turns:
            if turn.voice not in numbers:
                numbers[turn.voice] = next(n for n in range(len(numbers) + 1) if n not in numbers.values())
        return tuple(ContextTurn(numbers[turn.voice], turn.text, turn.codes) for turn in turns)

    def remember(self, key: str, maker: str, turns: Sequence[Remembered]) -> None:
        """Add what was just said. Blocks where it is kept on disk; never raises."""
        with self._lock:
            found = self._find(key)
            before = found.turns if found is not None and found.maker == maker else ()
            kept = _Conversation(maker, _newest((*before, *turns), self._tokens), time.time())
            self._known.put(key, kept)
            self._write(key, kept)

    def forget(self, key: str) -> bool:
        """False where there was nothing."""
        with self._lock:
            known = self._find(key) is not None
            self._drop(key)
            return known

    # ---- under the lock

    def _find(self, key: str) -> _Conversation | None:
        found = self._known.get(key) or self._read(key)
        if found is None:
            return None
        if abs(time.time() - found.touched_s) > self._ttl_s:  # the clock may be set back
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
        told = np.array([conversation.maker, *(x for turn in conversation.turns for x in (turn.voice, turn.text))])
        codes = {f"codes{index}": turn.codes for index, turn in enumerate(conversation.turns)}
        np.savez(data, told=told, **codes)  # type: ignore[arg-type]  # numpy's stub wants no keyword of ours
        temporary = self._path(key).with_suffix(f".{os.getpid()}.new")
        try:
            temporary.write_bytes(data.getvalue())
            temporary.replace(self._path(key))
        except OSError as error:
            log.warning("a conversation is not kept: %s", error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _read(self, key: str) -> _Conversation | None:
        if self._folder is None:
            return None
        path = self._path(key)
        try:
            touched_s = path.stat().st_mtime
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
                maker, *words = map(str, data["told"])
                turns = tuple(
                    Remembered(voice, text, data[f"codes{index}"])
                    for index, (voice, text) in enumerate(zip(words[::2], words[1::2], strict=True))
                )
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - a damaged file is a conversation forgotten, whatever numpy raises
            log.warning("%s can't be read; that conversation begins anew: %s", path, error)
            return None
        return _Conversation(maker, turns, touched_s)

    def _sweep(self) -> None:
        assert self._folder is not None  # noqa: S101 - called only if there is a folder
        for path in self._folder.glob("*.n*"):
            with contextlib.suppress(OSError):
                age_s = time.time() - path.stat().st_mtime
                if age_s > (ABANDONED_S if path.suffix == ".new" else self._ttl_s):
                    path.unlink()


def _newest(turns: Sequence[Remembered], tokens: int) -> tuple[Remembered, ...]:
    """The longest end of it that fits."""
    kept: list[Remembered] = []
    for turn in reversed(turns[-MAX_TURNS:]):
        tokens -= turn.tokens
        if tokens < 0:
            break
        kept.append(turn)
    return tuple(reversed(kept))
