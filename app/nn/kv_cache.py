"""Static KV caches: the keys and values of all rows, at fixed addresses. This module does not depend on any model.

The methods named `..._attention` return an attention function for one call of a Stack (types in attention.py). In
self-attention, this function writes the keys and values of new tokens into the cache, and then the new tokens attend to
the cache. Letters in shapes: n or B rows, G key heads, R query heads for each key head, S the number of cache positions
or of new tokens, L positions that attention reads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from app.nn.attention import (
    CachedAttention,
    DecodeAttention,
    PrefillAttention,
    TurnedAttention,
    grouped_attention,
)
from app.nn.kernels.sets import Kernels
from app.nn.native.library import Library
from app.nn.native.modules import NativeAttention, StagedNativeAttention
from app.nn.rope import apply_rotary
from app.nn.transformer import StackConfig, Stage


class KVCache:
    """The KV cache of self-attention: k and v, each (layers, rows, G, S, d). Rows may be at different positions."""

    def __init__(
        self,
        config: StackConfig,
        *,
        rows: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        batched: bool | None = None,
        library: Library | None = None,
    ) -> None:
        """Allocate the cache.

        batched: True = `decode_attention` computes all rows in one masked product; False = `decode_attention` computes
        one row after another. None = False on a CPU, and True on other devices. library: the native kernels that
        compute attention; they need the dtype float32. None = PyTorch computes attention.
        """
        self._library = library
        shape = (config.layers, rows, config.kv_heads, positions, config.head_dim)
        self._batched = device.type != "cpu" if batched is None else batched
        # A masked product reads all positions, so all positions must contain finite numbers. If rows are computed one
        # after another, only written positions are read, so this code does not initialise the memory. The system
        # allocates memory at the first write, which saves 64 MiB for each unused row of CSM.
        allocate = torch.zeros if self._batched else torch.empty
        self.k = allocate(shape, device=device, dtype=dtype)
        self.v = allocate(shape, device=device, dtype=dtype)
        self._groups = config.kv_heads
        self._scale = config.score_scale

    @property
    def positions(self) -> int:
        """The number of tokens whose keys and values fit into one row."""
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def prefill_attention(self, row: int, start: int, count: int) -> PrefillAttention | NativeAttention:
        """Return a causal attention function for `count` new tokens of one row.

        The tokens are at positions start..start+count-1.
        """
        end = start + count
        if self._library is not None:
            return self._native([row] * count, range(start, end), self._library)
        mask = torch.ones(count, end, dtype=torch.bool, device=self.k.device).tril(start)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.k[layer, row, :, start:end] = k.transpose(0, 1)
            self.v[layer, row, :, start:end] = v.transpose(0, 1)
            heads, size = q.shape[1:]
            share = heads // self._groups
            keys = self.k[layer, row, :, None, :end].expand(-1, share, -1, -1)  # (G, R, L, d)
            values = self.v[layer, row, :, None, :end].expand(-1, share, -1, -1)
            queries = q.view(count, self._groups, share, size).permute(1, 2, 0, 3)  # (G, R, S, d)
            attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self._scale)
            return attended.permute(2, 0, 1, 3).reshape(count, heads * size)

        return attend

    def decode_attention(self, rows: Sequence[int], positions: Sequence[int]) -> PrefillAttention | NativeAttention:
        """Return an attention function for one new token in each of `rows`.

        positions: the position of each of these tokens.
        """
        if self._library is not None:
            return self._native(rows, positions, self._library)
        return self._batched_decode(rows, positions) if self._batched else self._row_by_row_decode(rows, positions)

    def _native(self, rows: Sequence[int], positions: Sequence[int], library: Library) -> NativeAttention:
        return NativeAttention(library, self.k, self.v, scale=self._scale, rows=rows, positions=positions)

    def _batched_decode(self, rows: Sequence[int], positions: Sequence[int]) -> PrefillAttention:
        device = self.k.device
        row_index, at = torch.tensor(rows, device=device), torch.tensor(positions, device=device)
        longest = max(positions) + 1
        hidden = (torch.arange(longest, device=device)[None, :] > at[:, None])[:, None, None]  # (n, 1, 1, L)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.k[layer, row_index, :, at] = k
            self.v[layer, row_index, :, at] = v
            count, heads, size = q.shape
            queries = q.view(count, self._groups, heads // self._groups, size)  # (n, G, R, d)
            keys, values = self.k[layer, :, :, :longest][row_index], self.v[layer, :, :, :longest][row_index]
            return grouped_attention(queries, keys, values, hidden, self._scale).reshape(count, heads * size)

        return attend

    def _row_by_row_decode(self, rows: Sequence[int], positions: Sequence[int]) -> PrefillAttention:
        """Return an attention function that computes one row after another.

        Reads the keys in place and without padding. So the result of a row does not depend on other rows.
        """

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            _, heads, size = q.shape
            queries = q.view(-1, 1, self._groups, heads // self._groups, size)  # (n, 1, G, R, d)
            attended = []
            for i, (row, at) in enumerate(zip(rows, positions, strict=True)):
                keys, values = self.k[layer, row, :, : at + 1], self.v[layer, row, :, : at + 1]  # (G, L, d)
                keys[:, at] = k[i]
                values[:, at] = v[i]
                attended.append(
                    functional.scaled_dot_product_attention(queries[i], keys[None], values[None], scale=self._scale)
                )
            return (torch.cat(attended) if len(attended) > 1 else attended[0]).reshape(-1, heads * size)

        return attend

    def static_decode_attention(self, positions: Tensor, length: int, kernels: Kernels) -> DecodeAttention:
        """Return an attention function for one new token of each of the first n rows. A CUDA graph can capture it.

        positions (n,) on the device: the position of each row's token; all are below `length`. length: number of
        positions that attention reads. All shapes are fixed, and no value is copied to the host.
        """
        count = len(positions)

        def attend(layer: int, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            keys, values = self.k[layer, :count], self.v[layer, :count]
            return kernels.step_attention(heads, cos, sin, keys, values, positions, length, self._scale)

        return attend

    def copy_row(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` positions of row `source` to row `target`."""
        for cached in (self.k, self.v):
            cached[:, target, :, :count] = cached[:, source, :, :count]

    def zero_row(self, row: int) -> None:
        """Zero a row that contains NaN or Inf.

        A masked product multiplies the values of hidden positions by 0. Because 0 * NaN is NaN, a NaN in the row would
        change the next utterance in this row.
        """
        self.k[:, row] = 0
        self.v[:, row] = 0

    def export_prefix(self, row: int, count: int) -> tuple[Tensor, ...]:
        """Return copies of the keys and values of the row's first `count` positions: k, v (layers, G, count, d)."""
        return self.k[:, row, :, :count].clone(), self.v[:, row, :, :count].clone()

    def import_prefix(self, row: int, prefix: tuple[Tensor, ...]) -> None:
        """Write keys and values from `export_prefix` to the row's first positions."""
        k, v = prefix
        count = k.shape[2]
        self.k[:, row, :, :count] = k
        self.v[:, row, :, :count] = v


class SplitKVCache:
    """One KVCache for each stage of a Stack, on the device of the stage. Has the interface of a KVCache."""

    def __init__(
        self,
        config: StackConfig,
        stages: Sequence[Stage],
        *,
        rows: int,
        positions: int,
        dtype: torch.dtype,
        batched: bool | None = None,
        library: Library | None = None,
    ) -> None:
        self.parts = [
            KVCache(
                replace(config, layers=stage.layers),
                rows=rows,
                positions=positions,
                device=stage.device,
                dtype=dtype,
                batched=batched,
                library=library,
            )
            for stage in stages
        ]
        # For each layer: (index in `parts`, index of the layer inside this part)
        self._layers = [(part, layer) for part, stage in enumerate(stages) for layer in range(stage.layers)]

    def prefill_attention(self, row: int, start: int, count: int) -> PrefillAttention | NativeAttention:
        return self._by_layer([part.prefill_attention(row, start, count) for part in self.parts])

    def decode_attention(self, rows: Sequence[int], positions: Sequence[int]) -> PrefillAttention | NativeAttention:
        return self._by_layer([part.decode_attention(rows, positions) for part in self.parts])

    def copy_row(self, source: int, target: int, count: int) -> None:
        for part in self.parts:
            part.copy_row(source, target, count)

    def zero_row(self, row: int) -> None:
        for part in self.parts:
            part.zero_row(row)

    def _by_layer(self, attends: Sequence[PrefillAttention | NativeAttention]) -> PrefillAttention | NativeAttention:
        native = [attend for attend in attends if isinstance(attend, NativeAttention)]
        if native:
            return StagedNativeAttention(native, self._layers)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            part, inner_layer = self._layers[layer]
            return attends[part](inner_layer, q, k, v)

        return attend

    def export_prefix(self, row: int, count: int) -> tuple[Tensor, ...]:
        """Return copies of the row's first `count` positions: k and v of the first stage, k and v of the next, etc."""
        return tuple(tensor for part in self.parts for tensor in part.export_prefix(row, count))

    def import_prefix(self, row: int, prefix: tuple[Tensor, ...]) -> None:
        for index, part in enumerate(self.parts):
            part.import_prefix(row, prefix[2 * index : 2 * index + 2])


class DepthKVCache:
    """The KV cache of a depth decoder: k and v, each (layers, rows, G, S, d). All rows are at the same position."""

    def __init__(
        self,
        config: StackConfig,
        *,
        rows: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        library: Library | None = None,
    ) -> None:
        """Allocate the cache. library: see KVCache."""
        self._library = library
        self._native: dict[tuple[int, int, int], NativeAttention] = {}
        shape = (config.layers, rows, config.kv_heads, positions, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self._groups = config.kv_heads
        self._scale = config.score_scale
        self._views: dict[tuple[int, int, int], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        self._positions = torch.arange(positions, device=device)[:, None].repeat(1, rows)  # (S, rows)

    def _view(self, rows: int, start: int, count: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return four views of the cache for each layer.

        The first two views are the keys and values of the new tokens (B, G, S, d). The last two views are all keys and
        values that attention reads (B, G, L, d). Every frame needs the same views. This method keeps the
        views, because creating the views takes as long as the attention.
        """
        found = self._views.get((rows, start, count))
        if found is None:
            end = start + count
            found = [
                (k[:rows, :, start:end], v[:rows, :, start:end], k[:rows, :, :end], v[:rows, :, :end])
                for k, v in zip(self.k, self.v, strict=True)
            ]
            self._views[rows, start, count] = found
        return found

    def attention(self, rows: int, start: int, count: int) -> PrefillAttention | NativeAttention:
        """Return a causal attention function for `count` new tokens of each of the first `rows` rows.

        The tokens are at positions start..start+count-1, in the order (row, position).
        """
        if self._library is not None:
            return self._native_attention(rows, start, count, self._library)
        views = self._view(rows, start, count)
        if count == 1:
            return self._decode_attention(rows, views)
        hidden = torch.ones(count, start + count, dtype=torch.bool, device=self.k.device).triu(start + 1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads, size = q.shape[1:]
            new_keys, new_values, keys, values = views[layer]
            new_keys.copy_(k.view(rows, count, self._groups, size).transpose(1, 2))
            new_values.copy_(v.view(rows, count, self._groups, size).transpose(1, 2))
            converted = q.to(keys.dtype).view(rows, count, self._groups, heads // self._groups, size)
            queries = converted.permute(0, 2, 3, 1, 4)  # (B, G, R, S, d)
            attended = grouped_attention(queries, keys[:, :, None], values[:, :, None], hidden, self._scale)
            return attended.permute(0, 3, 1, 2, 4).reshape(rows * count, heads * size).to(q.dtype)

        return attend

    def _native_attention(self, rows: int, start: int, count: int, library: Library) -> NativeAttention:
        found = self._native.get((rows, start, count))
        if found is None:
            where = [row for row in range(rows) for _ in range(count)]
            at = [*range(start, start + count)] * rows
            found = self._native[rows, start, count] = NativeAttention(
                library, self.k, self.v, scale=self._scale, rows=where, positions=at
            )
        return found

    def static_decode_attention(self, rows: int, position: int, kernels: Kernels) -> DecodeAttention:
        """Return an attention function for one new token of each of the first `rows` rows. All are at `position`.

        A CUDA graph can capture this function.
        """
        groups = self._groups
        fused = self._decode_attention(rows, self._view(rows, position, 1), fused=True)
        positions = self._positions[position, :rows]

        def attend(layer: int, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            if kernels.name == "torch":  # all rows attend to the same positions, so the fused attention needs no mask
                rotated = apply_rotary(heads[:, :-groups], cos, sin)
                return fused(layer, rotated[:, :-groups], rotated[:, -groups:], heads[:, -groups:])
            cos, sin = cos.expand(rows, -1, -1), sin.expand(rows, -1, -1)
            keys, values = self.k[layer, :rows], self.v[layer, :rows]
            return kernels.step_attention(heads, cos, sin, keys, values, positions, position + 1, self._scale)

        return attend

    def _decode_attention(
        self, rows: int, views: list[tuple[Tensor, Tensor, Tensor, Tensor]], *, fused: bool | None = None
    ) -> PrefillAttention:
        """Return an attention function for one new token of each row.

        fused: True = use the fused attention of torch; False = use separate products. None = True on a CPU only.
        """
        if fused is None:
            fused = self.k.device.type == "cpu"  # on a CPU, this takes half the time of separate products

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads, size = q.shape[1:]
            new_keys, new_values, keys, values = views[layer]
            new_keys.copy_(k[:, :, None])
            new_values.copy_(v[:, :, None])
            queries = q.to(keys.dtype).view(rows, self._groups, heads // self._groups, size)  # (B, G, R, d)
            attended = (
                functional.scaled_dot_product_attention(queries, keys, values, scale=self._scale)
                if fused
                else grouped_attention(queries, keys, values, None, self._scale)
            )
            return attended.reshape(rows, heads * size).to(q.dtype)

        return attend


class CrossKVCache:
    """The KV cache of cross-attention. Each row attends to a sequence of S tokens, for example its text.

    If `batched`, the keys and values of all rows are in two static tensors (layers, rows, G, S, d). Otherwise each row
    has two tensors (layers, G, S, d), where S is the length of the row's sequence.
    """

    def __init__(
        self,
        config: StackConfig,
        *,
        rows: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        batched: bool | None = None,
    ) -> None:
        """Allocate the cache. batched: see KVCache."""
        cross = config.cross
        if cross is None:
            raise ValueError("a stack without cross-attention needs no CrossKVCache")
        self._batched = device.type != "cpu" if batched is None else batched
        self._groups = cross.kv_heads
        self._scale = cross.head_dim**-0.5 if config.scale is None else config.scale
        self._shape = (config.layers, cross.kv_heads, positions, cross.head_dim)
        self._placement = {"device": device, "dtype": dtype}
        layers, groups, _, size = self._shape
        static = (layers, rows, groups, positions if self._batched else 0, size)
        self._k = torch.zeros(static, device=device, dtype=dtype)
        self._v = torch.zeros(static, device=device, dtype=dtype)
        self._rows = [(self._k[:, row], self._v[:, row]) for row in range(rows)]
        self._lengths = [0] * rows

    def begin_row(self, row: int, length: int) -> None:
        """Prepare a row for a sequence of `length` tokens. Then the caller fills each layer with `write`."""
        self._lengths[row] = length
        if not self._batched:
            layers, groups, _, size = self._shape
            k, v = torch.empty(2, layers, groups, length, size, **self._placement)  # type: ignore[call-overload]
            self._rows[row] = (k, v)

    def write(self, layer: int, row: int, k: Tensor, v: Tensor) -> None:
        """Write the keys and values (S, G, d) of one layer into the row."""
        for cached, new in zip(self._rows[row], (k, v), strict=True):
            cached[layer, :, : len(new)] = new.transpose(0, 1)

    def move_row(self, source: int, target: int) -> None:
        """Move the sequence of row `source` to the free row `target`."""
        length = self._lengths[source]
        self.begin_row(target, length)
        for new, old in zip(self._rows[target], self._rows[source], strict=True):
            new[:, :, :length] = old[:, :, :length]
        self.release_row(source)

    def release_row(self, row: int) -> None:
        """Remove the row's sequence. If the cache is not `batched`, free the memory of the sequence, too."""
        self._lengths[row] = 0
        if not self._batched:
            self._rows[row] = (self._k[:, row], self._v[:, row])

    def length(self, row: int) -> int:
        """Return the length of the row's sequence in tokens; 0 = the row has no sequence."""
        return self._lengths[row]

    def zero_row(self, row: int) -> None:
        """Zero a row that contains NaN or Inf; see KVCache.zero_row."""
        for cached in self._rows[row]:
            cached.zero_()

    @property
    def nbytes(self) -> int:
        """The size of the static tensors of all rows in bytes."""
        return self._k.nbytes + self._v.nbytes

    def static_decode_attention(self, ends: Tensor, length: int, kernels: Kernels) -> TurnedAttention:
        """Return an attention function for one token of each of the first n rows. A CUDA graph can capture it.

        ends (n,) int64 on the device: the last position of each row's sequence. length: number of positions that
        attention reads.
        """
        count = len(ends)

        def attend(layer: int, q: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
            k, v = self._k[layer, :count], self._v[layer, :count]
            return kernels.decode_attention(q, k, v, ends, length, self._scale, turn)

        return attend

    def decode_attention(self, rows: Sequence[int]) -> CachedAttention:
        """Return an attention function for one token in each of `rows`. A token attends to the sequence of its row."""
        return self._batched_decode(rows) if self._batched else self._row_by_row_decode(rows)

    def _batched_decode(self, rows: Sequence[int]) -> CachedAttention:
        device = self._k.device
        row_index = torch.tensor(rows, device=device)
        lengths = torch.tensor([self._lengths[row] for row in rows], device=device)
        longest = max(self._lengths[row] for row in rows)
        hidden = (torch.arange(longest, device=device) >= lengths[:, None])[:, None, None]  # (n, 1, 1, L)

        def attend(layer: int, q: Tensor) -> Tensor:
            count, heads, size = q.shape
            queries = q.view(count, self._groups, heads // self._groups, size)  # (n, G, R, d)
            keys, values = self._k[layer, :, :, :longest][row_index], self._v[layer, :, :, :longest][row_index]
            return grouped_attention(queries, keys, values, hidden, self._scale).reshape(count, heads * size)

        return attend

    def _row_by_row_decode(self, rows: Sequence[int]) -> CachedAttention:
        cached = [self._rows[row] for row in rows]

        def attend(layer: int, q: Tensor) -> Tensor:
            # This attention is computed in float32 for every dtype of the cache. For one query, the fused attention of
            # torch takes three times as long in bfloat16 as in float32.
            _, heads, size = q.shape
            queries = q.float().view(-1, self._groups, heads // self._groups, size)  # (n, G, R, d)
            attended = [
                grouped_attention(query, k[layer].float(), v[layer].float(), None, self._scale)
                for query, (k, v) in zip(queries, cached, strict=True)
            ]
            return torch.stack(attended).view(-1, heads * size).to(q.dtype)

        return attend

    def prefill_attention(self, row: int) -> CachedAttention:
        """Return an attention function for any number of tokens of one row. All attend to the row's sequence."""
        length = self._lengths[row]
        k, v = self._rows[row]

        def attend(layer: int, q: Tensor) -> Tensor:
            count, heads, size = q.shape
            share = heads // self._groups
            keys = k[layer, :, None, :length].expand(-1, share, -1, -1)  # (G, R, L, d)
            values = v[layer, :, None, :length].expand(-1, share, -1, -1)
            queries = q.view(count, self._groups, share, size).permute(1, 2, 0, 3)  # (G, R, M, d)
            attended = functional.scaled_dot_product_attention(queries, keys, values, scale=self._scale)
            return attended.permute(2, 0, 1, 3).reshape(count, heads * size)

        return attend
