"""CSM's prompt: segments of text and codes. This module does not use weights.

The text of a segment is `<|begin_of_text|>[speaker]text<|end_of_text|>`. Then the frames of the speech follow, and then
one frame of EOS codes. After the prompt, the model reads the text of a line and generates the frames of this text. The
format is that of generator.py in SesameAILabs/csm.
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
    """Converts a text to token ids. A control token in the text, such as `<|AUDIO|>`, is read as plain text."""

    def __init__(self, folder: Path, config: CsmConfig) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsUnavailable(f"{folder} contains no tokenizer.json.", remedy="Download the model again.")
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
                f"The tokenizer ({size} tokens) does not belong to this model, whose text table has "
                f"{config.text_vocab} rows.",
                remedy="Download the model again.",
            )

    def _special(self, name: str, other: str | None, fallback: int | None) -> int:
        """Return the id of the token `name`, or of the token `other` if the tokenizer does not have `name`.

        If the tokenizer has neither token, returns `fallback`, or raises WeightsUnavailable if `fallback` is None.
        """
        for candidate in (name, other):
            if candidate is not None and (found := self._tokenizer.token_to_id(candidate)) is not None:
                return int(found)
        if fallback is None:
            raise WeightsUnavailable(f"The tokenizer has no {name} token.")
        return fallback

    def __call__(self, speaker: int, text: str) -> list[int]:
        """Return the token ids of a text: the begin token, the speaker and the text, the end token.

        Raises WeightsUnavailable if the tokenizer does not belong to the model.
        """
        ids: list[int] = self._tokenizer.encode(f"[{speaker}]{text}", add_special_tokens=False).ids
        if ids and max(ids) >= self._limit:
            raise WeightsUnavailable(
                "The tokenizer does not belong to this model: it returns token ids that are not in the text table.",
                remedy="Download the model again.",
            )
        return [self._begin, *ids, self._end]


def _named_specials(folder: Path) -> dict[str, str]:
    """Return the texts of bos_token and eos_token that tokenizer_config.json contains."""
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
    """Spoken text in a prompt: the token ids of the text, and the codes (K, T) of its audio."""

    ids: tuple[int, ...]
    codes: Codes

    @property
    def length(self) -> int:
        """The number of positions of the segment: its text, its frames, and the frame of EOS codes."""
        frames: int = self.codes.shape[1]
        return len(self.ids) + frames + 1

    @property
    def digest(self) -> bytes:
        """A digest of the segment. The prefix cache computes its keys from these digests."""
        hashed = hashlib.sha256(repr((self.ids, self.codes.shape)).encode())
        hashed.update(np.ascontiguousarray(self.codes, np.int16).tobytes())
        return hashed.digest()
