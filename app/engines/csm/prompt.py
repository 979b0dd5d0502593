"""What CSM reads before it speaks: segments of text and of codes, as token ids. No weights here.

A segment is `<|begin_of_text|>[speaker]text<|end_of_text|>`, and for what was already said its frames of codes and one
frame of EOS codes. The text to be spoken comes last, without frames (SesameAILabs/csm generator.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from app.engines.csm.config import CsmConfig
from app.errors import WeightsUnavailable

if TYPE_CHECKING:
    from app.types import Codes

_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"


class TextEncoder:
    """Text to ids. What looks like a control token in a text is read as the text it is."""

    def __init__(self, folder: Path, config: CsmConfig) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsUnavailable(f"{folder} holds no tokenizer.json.", remedy="Download the model again.")
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        named = _named_specials(folder)
        self._begin = self._special(_BEGIN, named.get("bos_token"), config.bos_id)
        self._end = self._special(_END, named.get("eos_token"), config.eos_id)
        size = self._tokenizer.get_vocab_size()
        self._limit = config.text_vocab
        if max(self._begin, self._end) >= config.text_vocab:
            raise WeightsUnavailable(
                f"The tokenizer ({size} tokens) is not this model's: its text table has {config.text_vocab} rows."
            )

    def _special(self, name: str, other: str | None, fallback: int | None) -> int:
        for candidate in (name, other):
            if candidate is not None and (found := self._tokenizer.token_to_id(candidate)) is not None:
                return int(found)
        if fallback is None:
            raise WeightsUnavailable(f"The tokenizer has no {name} token.")
        return fallback

    def __call__(self, speaker: int, text: str) -> list[int]:
        """The ids of one segment's text, framed by its begin and end tokens."""
        ids: list[int] = self._tokenizer.encode(f"[{speaker}]{text}", add_special_tokens=False).ids
        if ids and max(ids) >= self._limit:
            raise WeightsUnavailable("The tokenizer is not this model's: it gives ids beyond the text table.")
        return [self._begin, *ids, self._end]


def _named_specials(folder: Path) -> dict[str, str]:
    """bos_token and eos_token of tokenizer_config.json, where it is there and says so."""
    try:
        raw = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    found = {}
    for key in ("bos_token", "eos_token"):
        value = raw.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class Segment:
    """Speech in a prompt: the ids of its text, and the codes (K, T) of its audio."""

    ids: tuple[int, ...]
    codes: Codes

    @property
    def length(self) -> int:
        """Positions it takes: text, frames, and the frame of EOS."""
        frames: int = self.codes.shape[1]
        return len(self.ids) + frames + 1

    @property
    def digest(self) -> bytes:
        hashed = hashlib.sha256(repr((self.ids, self.codes.shape)).encode())
        hashed.update(np.ascontiguousarray(self.codes, np.int16).tobytes())
        return hashed.digest()
