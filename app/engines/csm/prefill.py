"""Chunked prefill of CSM's rows: the model reads prompts and lines in chunks into the KV cache of a row.

If the prefix cache contains the voice prompts, the prompts' keys and values are copied from the prefix cache. The
prefix cache also keeps the state of rows whose answer goes on with another utterance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from app.engines.csm.prompt import Segment
from app.engines.csm.rows import KeptRow
from app.runtime.cuda_graphs import upload
from app.runtime.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from app.engines.csm.limits import Limits
    from app.engines.csm.model import CsmModel
    from app.engines.csm.rows import CsmRow, Part
    from app.nn.kv_cache import KVCache, SplitKVCache
    from app.nn.mimi.model import MimiStream
    from app.types import AnswerPart


class Prefill:
    """Reads prompts and lines into the rows' KV cache. Owns the prefix cache."""

    def __init__(
        self,
        model: CsmModel,
        cache: KVCache | SplitKVCache,
        inputs: Tensor,
        limits: Limits,
        *,
        fingerprint: str,
        chunk: int,
        prefix_bytes: int,
        context_lines: int | None,
    ) -> None:
        """Create an empty prefix cache.

        inputs (rows, D): the tensor into which `read_chunk` writes the input of a row's first step. chunk: the number
        of positions that one call of `read_chunk` reads. context_lines: see CsmRunner.
        """
        self._model, self._cache, self._next, self._limits = model, cache, inputs, limits
        self._fingerprint = fingerprint
        self._chunk = chunk
        self._context_lines = context_lines
        # key in `prefixes` -> the state that a row had at the end of its utterance
        self._kept: dict[bytes, KeptRow] = {}
        self.prefixes = PrefixCache(prefix_bytes, on_evict=self._forget)

    def keep(self, row: int, state: CsmRow, stream: MimiStream) -> None:
        """Keep the state of a row whose last line has ended, for the next utterance of its answer.

        The state from which the row began is kept, too, because another take of the utterance may follow.
        """
        self._free_ended()
        assert state.part is not None and state.end_parts is not None  # noqa: S101, PT018 - the caller checks
        cached = self._cache.export_prefix(row, state.position)
        part = state.part
        for old, kept in list(self._kept.items()):
            heard = kept.part.index == part.index - 1 and kept.part.take == part.after
            if kept.part.answer == part.answer and kept.part.index < part.index and not heard:
                self._remove(old)
        key = _row_key(part.answer, part.index, part.take)
        self._remove(key)
        self._kept[key] = KeptRow(
            state.segments,
            state.voices,
            state.spoken,
            state.position,
            state.draws,
            state.decoded,
            state.end_parts,
            state.adapter_key,
            cached,
            stream,
            part,
        )
        self.prefixes.put(key, (*cached, *stream.tensors))
        # the cache did not keep the state, because the state is larger than the whole cache
        if self.prefixes.get(key) is None:
            self._remove(key)

    def find(self, part: AnswerPart) -> KeptRow | None:
        """Return the kept state from which the utterance `part` can continue; None = no such state is kept."""
        key = _row_key(part.answer, part.index - 1, part.after)
        return self._kept.get(key) if self.prefixes.get(key) is not None else None

    def _free_ended(self) -> None:
        """Free the states of answers that have ended, so that they do not evict voice prompts."""
        for key in [key for key, kept in self._kept.items() if kept.part.over.is_set()]:
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        self.prefixes.pop(key)
        self._forget(key)

    def _forget(self, key: bytes) -> None:
        self._kept.pop(key, None)

    def begin(self, row: int, state: CsmRow) -> None:
        """Set the row's unread input: the prompt and the first line. Copy cached voice prompts to the KV cache.

        If the row continues from a kept state, the input is the end of the previous utterance and the first line of the
        new utterance.
        """
        if state.kept is not None:
            self._cache.import_prefix(row, state.kept.keys_and_values)
            self._begin_line(state, state.kept.parts)
            return
        self._free_ended()
        voices = state.voice_segments
        cached = self.prefixes.get(self._key(state)) if voices else None
        segments = state.segments
        if cached is not None:
            self._cache.import_prefix(row, cached)
            state.position = cached[0].shape[2]
            segments = state.segments[state.voices :]
        state.unread = self._embed([*self._parts(segments), state.lines[0]])
        state.line_start = state.base

    def read_chunk(self, row: int, state: CsmRow) -> bool:
        """Read one chunk of the row's unread input.

        Returns True if only one position is still unread. The row's first step reads this position.
        """
        unread = state.unread
        assert unread is not None  # noqa: S101 - the callers check this
        length = state.voice_positions
        count = min(self._chunk, len(unread) - 1)
        # End a chunk where the voice prompts end. So the chunks after the voice prompts are the same whether the prefix
        # cache contains the voice prompts or not.
        if state.position < length:
            count = min(count, length - state.position)
        if count:
            self._model.read(unread[:count], self._cache, row, state.position, state.adapter)
            before, state.position = state.position, state.position + count
            unread = unread[count:]
            if before < length <= state.position:
                self.prefixes.put(self._key(state), self._cache.export_prefix(row, length))
        state.unread = unread
        if len(unread) > 1:
            return False
        state.unread = None
        self._next[row] = unread[0]
        return True

    def begin_next_line(self, state: CsmRow, unread_frames: list[Tensor], *, failed: bool = False) -> None:
        """End the row's current line, and set the row's unread input for the next line.

        unread_frames: frames of the ended line that are not in the KV cache yet. failed: the ended line broke a rule of
        the output guard. Then the next line overwrites the ended line in the KV cache, so that the model does not
        continue the failure.
        """
        end = self.end_line(state, unread_frames, failed=failed)
        state.line += 1
        self._begin_line(state, end)

    def end_line(self, state: CsmRow, unread_frames: list[Tensor], *, failed: bool = False) -> list[Part]:
        """End the row's current line, and return its last inputs, which are not in the KV cache.

        The parameters are those of `begin_next_line`. The result is empty if the line has failed.
        """
        if state.line_frames and not failed:
            codes = torch.stack(state.line_frames).T.numpy().astype(np.int16)
            state.spoken.append(Segment(state.lines[state.line], codes))
        state.line_frames = []
        if failed:
            state.position = state.line_start
            return []
        return [*(frame[None] for frame in unread_frames), self._eos()]

    def _begin_line(self, state: CsmRow, end: list[Part]) -> None:
        """Set the row's unread input for its current line.

        end: the last inputs of the previous line, which `end_line` has returned. The model reads them before the
        current line.
        """
        following = state.lines[state.line]
        most = self._limits.max_positions - len(following) - self._limits.line_limit(state, state.line)
        parts: list[Part] = [*end, following]
        count = len(state.spoken)
        kept = state.spoken[max(0, count - (count if self._context_lines is None else self._context_lines)) :]
        full = state.position + sum(map(len, parts[:-1])) > most
        if full or len(kept) < count:
            # Set the row back to the position after the prompt, and let it read again as many of the newest lines as
            # fit.
            if self._context_lines is None:
                kept = kept[-1:]
            while kept and state.base + sum(segment.length for segment in kept) > most:
                kept = kept[1:]
            state.position = state.base
            parts = [*self._parts(kept), following]
            state.spoken = list(kept)
        state.unread = self._embed(parts)
        state.line_start = state.position + len(state.unread) - len(following)

    def _embed(self, parts: Sequence[Part]) -> Tensor:
        """Return the embeddings (S, D) of all parts, in order. Does not wait for queued work of the device."""
        model, embedded = self._model, []
        for part in parts:
            if isinstance(part, tuple):
                embedded.append(model.embed_text(upload(torch.tensor(part), model.device)))
            else:
                embedded.append(model.embed_frames(upload(torch.as_tensor(part).long(), model.device)))
        return torch.cat(embedded)

    def _parts(self, segments: Sequence[Segment]) -> list[Part]:
        return [part for segment in segments for part in (segment.ids, segment.codes.T.astype(np.int64), self._eos())]

    def _eos(self) -> np.ndarray:
        c = self._model.config
        return np.full((1, c.codebooks), c.eos_code, np.int64)

    def _key(self, state: CsmRow) -> bytes:
        """Return the key under which the prefix cache keeps the row's voice prompts."""
        parts = (self._fingerprint.encode(), state.adapter_key.encode(), *(s.digest for s in state.voice_segments))
        return hashlib.sha256(b"".join(parts)).digest()


def _row_key(answer: str, index: int, take: int) -> bytes:
    """Return the prefix cache's key of the state that a row has after a take.

    answer: the id of the answer. index: the index of the utterance in the answer. take: the index of the take.
    """
    return f"{answer} {index} {take}".encode()
