"""Low-rank adapters (LoRA) that act on single rows of a batch: y = x W^T + (x A^T) B^T.

Each row of a batch can use its own adapter, or no adapter. An adapter has a slot, which is a number from 1; slot 0
means no adapter. `AdaptedLinear` replaces a linear layer when the first adapter is added, so a model without adapters
does no extra work. `LowRankAdapters` owns the slots and selects the adapters of the next products.

There are three ways to compute (x A^T) B^T:
- row by row, with separate products for each row: for prompts, and for steps on a GPU without CUDA graphs.
- gathered: for steps on a CPU. A and B of all adapters of the batch are in two tables, and two operations compute the
  products of all rows. The result of a row has the same bits in a batch of any size.
- indexed: the slots of the rows are in a tensor on the device, and A and B of all slots are in static tensors that are
  padded to one rank. A CUDA graph can capture these products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.nn.linear import QuantizedLinear
from app.nn.native.library import Library
from app.nn.native.modules import VECTOR, NativeLinear, NativeLowRank
from app.runtime.pages import mark_for_huge_pages

# On a CPU, the products are "gathered" (see the module docstring) if each row has at most this number of tokens.
GATHERED_TOKENS = 2
_KEPT_INDICES = 64  # the largest number of `_Indices` that a Selection keeps for later steps


@dataclass(frozen=True, slots=True)
class Part:
    """A and B of one weight matrix. A linear layer may join several weight matrices, for example q, k and v."""

    index: int  # the index of the weight matrix among the matrices that the linear layer joins
    down: Tensor  # A (r, inputs)
    up: Tensor  # the scaled B, transposed: (r, outputs of this weight matrix)


@dataclass(frozen=True, slots=True)
class Place:
    """A linear layer that an adapter can change.

    outputs: the number of outputs of each weight matrix that the layer joins. norm: the weight of the RMSNorm before
    the layer. A QuantizedLinear computes this norm itself, so the caller does not apply the norm to the input. group:
    the name of the Selection that says which adapters the layer uses.
    """

    parent: nn.Module
    name: str
    outputs: tuple[int, ...]
    device: torch.device
    norm: Tensor | None = None
    eps: float = 0.0
    group: str = ""

    @property
    def linear(self) -> nn.Module:
        return self.parent.get_submodule(self.name)

    def numbers(self, rank: int) -> int:
        """Return how many numbers A and B of one adapter take in static tensors with the rank `rank`."""
        return rank * (len(self.outputs) * _inputs(self) + sum(self.outputs))


class _Matrices:
    """The matrices of one adapter for one linear layer.

    `down` contains the matrices A of all parts, so one product computes x A^T of all parts. `up` contains B in blocks
    of `width` outputs: first the r lines of the first block, then the r lines of the second block, and so on. If
    `width` is None (on a GPU), each part is one block.
    """

    def __init__(self, parts: Sequence[Part], outputs: Sequence[int], width: int | None) -> None:
        self.down = parts[0].down if len(parts) == 1 else torch.cat([part.down for part in parts])
        self.ranks = tuple((part.index, len(part.down)) for part in parts)
        # For each block: the range of its columns in x A^T, the range of its outputs, and B (r, outputs).
        self.blocks: list[tuple[slice, slice, Tensor]] = []
        rank = 0
        for part in parts:
            ranks = slice(rank, rank + len(part.down))
            start, size = sum(outputs[: part.index]), width or outputs[part.index]
            for first in range(0, outputs[part.index], size):
                columns = slice(start + first, start + first + size)
                self.blocks.append((ranks, columns, part.up[:, first : first + size]))
            rank = ranks.stop
        self.up: Tensor | None = None  # the lines of all blocks; None = the blocks are not in one tensor
        if width is not None:
            self.up = torch.cat([up for _, _, up in self.blocks])
            self._use_blocks_of(self.up)
        self.dtype, self.device = self.down.dtype, self.down.device

    def _use_blocks_of(self, up: Tensor) -> None:
        start, blocks = 0, []
        for ranks, columns, block in self.blocks:
            blocks.append((ranks, columns, up[start : start + len(block)]))
            start += len(block)
        self.up, self.blocks = up, blocks

    @property
    def numbers(self) -> int:
        """How many numbers A and B contain in total."""
        return self.down.numel() + sum(up.numel() for _, _, up in self.blocks)

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize

    def move_to(self, memory: _Memory) -> None:
        """Copy the matrices to `memory`, and use the copies."""
        assert self.up is not None  # noqa: S101 - only matrices on a CPU are moved
        self.down = memory.joined([self.down])
        self._use_blocks_of(memory.joined([self.up]))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add (x A^T) B^T of several tokens of one row to y. x (m, inputs) and y (m, outputs) have the same dtype."""
        small = functional.linear(x, self.down.to(x.dtype))
        for ranks, columns, up in self.blocks:
            y[:, columns].addmm_(small[:, ranks], up.to(x.dtype))


class _Memory:
    """A block of memory on huge pages. `joined` places tensors in it, one after another.

    A step reads all matrices of its adapters. For 8 rows of CSM-1B with different adapters, huge pages halve the time
    of these reads.
    """

    def __init__(self, numbers: int, dtype: torch.dtype) -> None:
        self._block = torch.empty(numbers, dtype=dtype)
        self._used = 0
        mark_for_huge_pages(self._block.data_ptr(), self._block.nbytes)

    def reuse(self, numbers: int, dtype: torch.dtype) -> bool:
        """Empty the block, so that `numbers` new numbers can be placed in it. Returns False if the block does not fit.

        The block fits if it has the dtype `dtype` and space for 1 to 4 times `numbers`. The caller must no longer use
        the tensors that are in the block. A reused block saves time: the system clears each page of new memory, which
        takes longer than the copy.
        """
        self._used = 0
        return self._block.dtype == dtype and numbers <= self._block.numel() <= 4 * numbers

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join these tensors along the first axis in the free part of the block, and return the result."""
        lines, count = sum(len(each) for each in tensors), sum(each.numel() for each in tensors)
        copy = self._block[self._used : self._used + count].view(lines, *tensors[0].shape[1:])
        self._used += count
        return torch.cat(list(tensors), out=copy)


@dataclass(frozen=True, slots=True)
class _Indices:
    """Which lines of the tables with A and B the tokens of a batch use.

    Product i is line down[i] of the table with A times token token[i]. Block b of the results is the sum of (product
    small[j]) x (line up[j] of the table with B), for j from starts[b] to starts[b + 1] - 1.
    """

    down: Tensor
    token: Tensor
    up: Tensor
    small: Tensor | None  # None = 0, 1, 2 ...
    starts: Tensor


# The adapters of a batch, in two tuples. The first tuple has for each token the index of its adapter in the second
# tuple (None = no adapter). The second tuple has for each adapter the pairs (index, rank) of its parts.
_Layout = tuple[tuple[int | None, ...], tuple[tuple[tuple[int, int], ...], ...]]


def _indices(layout: _Layout, outputs: Sequence[int], width: int) -> _Indices:
    tokens, adapters = layout
    before = [(0, 0)]  # for each adapter: how many lines of the two tables come before the adapter's own lines
    for ranks in adapters:
        down_lines = sum(rank for _, rank in ranks)
        up_lines = sum(rank * outputs[index] // width for index, rank in ranks)
        before.append((before[-1][0] + down_lines, before[-1][1] + up_lines))
    down: list[int] = []
    token: list[int] = []
    up: list[int] = []
    small: list[int] = []
    starts: list[int] = []
    for at, number in enumerate(tokens):
        first, lines = len(down), {}
        if number is not None:
            start_down, start_up = before[number]
            offset = 0
            for index, rank in adapters[number]:
                lines[index] = first + offset, rank, start_up
                start_up += rank * outputs[index] // width
                offset += rank
            down += range(start_down, start_down + offset)
            token += [at] * offset
        for index, size in enumerate(outputs):
            products, rank, line = lines.get(index, (0, 0, 0))
            for _ in range(size // width):
                starts.append(len(up))
                up += range(line, line + rank)
                small += range(products, products + rank)
                line += rank
    same = small == list(range(len(down)))
    return _Indices(
        torch.tensor(down), torch.tensor(token), torch.tensor(up), None if same else torch.tensor(small),
        torch.tensor(starts),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tables:
    """A and B of all adapters of a batch for one linear layer. Shapes: see _Matrices."""

    down: Tensor
    up: Tensor


class AdaptedLinear(nn.Module):
    """A linear layer and its adapters."""

    def __init__(self, place: Place, selection: Selection, dtype: torch.dtype | None) -> None:
        """dtype: the dtype of the matrices; None = they are not converted."""
        super().__init__()
        self.inner = place.linear
        self._outputs = place.outputs
        self._selection = selection
        self._dtype = dtype
        self._width = math.gcd(*place.outputs) if place.device.type == "cpu" else None
        self._library: Library | None = None  # the native kernels; None = PyTorch computes the products
        if isinstance(self.inner, NativeLinear) and self._width is not None and self._width % VECTOR == 0:
            self._library = self.inner.library if dtype == torch.bfloat16 else None
        # If the layer is a QuantizedLinear that computes an RMSNorm: the weight of this norm * sqrt(inputs). Otherwise
        # None. Such a layer gets x before the norm. So A is multiplied by `self.norm`, and x is divided by the lengths
        # of its tokens.
        self.norm: Tensor | None = None
        self._norm_floor = 0.0 if place.norm is None else len(place.norm) * place.eps
        self._native: NativeLowRank | None = None  # computes the products for `_found` with the native kernels
        if isinstance(self.inner, QuantizedLinear) and place.norm is not None:
            self.norm = place.norm.float() * math.sqrt(len(place.norm))
        self.matrices: dict[int, _Matrices] = {}
        # (slots, the joined matrices of the adapters in these slots); LowRankAdapters sets it.
        self.tables: tuple[tuple[int, ...], _Tables] | None = None
        self._found_for: object = None  # the batch for which `_found` was computed
        self._found: tuple[_Tables, _Indices] | None = None
        # Static tensors: A (slots, parts, R, inputs), and B transposed (slots, R, outputs). Slot 0 has zeros.
        self._down: Tensor | None = None
        self._up: Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether at least one row of the next product uses an adapter."""
        return self._selection.active

    def forward(self, x: Tensor) -> Tensor:
        if not self._selection.active:
            return self.inner(x)  # type: ignore[no-any-return]
        gathered = self._width is not None and len(x) <= GATHERED_TOKENS * len(self._selection.slots)
        # True = the native kernels compute the products and divide x by the lengths of its tokens.
        natively = gathered and self._library is not None
        if natively or self.norm is None or not isinstance(self.inner, QuantizedLinear):
            return self.add(x, self.inner(x))
        lengths = self.inner.lengths(x)
        return self.add(x / lengths, self.inner(x, lengths))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of y and the products of the selected adapters. May change y.

        x: the input of the layer. If the layer computes the norm and PyTorch computes the products, the caller has
        divided x by the lengths of its tokens.
        """
        selection = self._selection
        if selection.index is not None:
            return self._add_indexed(x, y, selection.index)
        slots = selection.slots
        per_row = len(x) // len(slots)
        if self._width is not None and per_row <= GATHERED_TOKENS:
            return self._add_gathered(x, y, per_row)
        found = [(i, each) for i, slot in enumerate(slots) if (each := self.matrices.get(slot)) is not None]
        if not found:
            return y
        # With quantized weights, y is float32 and the matrices are bfloat16. The sum is computed in float32, so that y
        # is not rounded to bfloat16.
        dtype = torch.promote_types(y.dtype, found[0][1].dtype)
        x, total = x.to(dtype), y.to(dtype)
        for i, each in found:
            rows = slice(i * per_row, (i + 1) * per_row)
            each.add(x[rows], total[rows])
        return total.to(y.dtype)

    def _add_gathered(self, x: Tensor, y: Tensor, per_row: int) -> Tensor:
        batch = (self._selection.version, self._selection.slots, per_row)
        # Most steps have the same rows as the previous step, so keep the result for the next step.
        if self._found_for != batch:
            self._found, self._found_for = self._find(per_row), batch
            self._native = None if self._found is None else self._natively(*self._found)
        if self._native is not None:
            return self._native.add(x, y)
        if self._found is None:
            return y
        tables, at = self._found
        # This function of PyTorch computes the gradient of the weights in an embedding bag: the product of a line of
        # the table and the gradient of the line's bag. Here, it multiplies lines of A by tokens, because row t of `x`
        # is passed as the gradient of bag t.
        small: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x.to(tables.down.dtype), tables.down, at.down, at.token, at.token, 0
        )
        if at.small is not None:
            small = small.index_select(0, at.small)
        added: Tensor = torch.ops.aten._embedding_bag(tables.up, at.up, at.starts, False, 0, False, small)[0]
        return y.add_(added.view(len(x), -1))

    def _natively(self, tables: _Tables, at: _Indices) -> NativeLowRank | None:
        """Return an object that computes the adapters' products natively; None = PyTorch computes the products."""
        if self._library is None:
            return None
        floor = self._norm_floor if self.norm is not None else None
        indices = (at.down, at.token, at.up, at.small, at.starts)
        return NativeLowRank(self._library, (tables.down, tables.up.view(-1, self._width or 1)), indices, floor)

    def _find(self, per_row: int) -> tuple[_Tables, _Indices] | None:
        """Return the matrices and the indices of the selected adapters; None = no adapter changes this layer."""
        slots = self._selection.slots
        used = tuple(slot for slot in dict.fromkeys(slots) if slot in self.matrices)
        if not used:
            return None
        if len(used) == 1:
            alone = self.matrices[used[0]]
            assert alone.up is not None  # noqa: S101 - all matrices on a CPU have `up`
            tables = _Tables(alone.down, alone.up)
        else:
            assert self.tables is not None  # noqa: S101 - `LowRankAdapters.select` has joined them
            used, tables = self.tables
        numbers = {slot: number for number, slot in enumerate(used)}
        tokens = tuple(numbers.get(slot) for slot in slots for _ in range(per_row))
        layout = (tokens, tuple(self.matrices[slot].ranks for slot in used))
        return tables, self._selection.indices(layout, self._outputs, self._width or 1)

    def forget_tables(self) -> None:
        """Drop the references to the joined matrices of an earlier batch, so that their memory can be used again."""
        self.tables = self._found = self._found_for = self._native = None

    def _add_indexed(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        assert self._down is not None  # noqa: S101 - `reserve` has created the static tensors
        assert self._up is not None  # noqa: S101
        down, up = self._down.index_select(0, index), self._up.index_select(0, index)
        count, parts, rank, inputs = down.shape
        x = x.to(down.dtype)
        small = torch.bmm(down.view(count, parts * rank, inputs), x[:, :, None]).view(count, parts, 1, rank)
        start, added = 0, []
        for part, outputs in enumerate(self._outputs):
            added.append(torch.bmm(small[:, part], up[:, :, start : start + outputs])[:, 0])
            start += outputs
        return y + torch.cat(added, dim=1).to(y.dtype)

    def reserve(self, slots: int, rank: int, inputs: int, dtype: torch.dtype, device: torch.device) -> None:
        """Create the static tensors for `slots` slots and adapters up to this rank."""
        parts = len(self._outputs)
        self._width = None
        self._down = torch.zeros(slots, parts, rank, inputs, dtype=dtype, device=device)
        self._up = torch.zeros(slots, rank, sum(self._outputs), dtype=dtype, device=device)

    def prepare_slot(self, slot: int, parts: Sequence[Part]) -> _Matrices:
        """Return the matrices of an adapter in the form that `set_slot` needs.

        If `reserve` has created static tensors, this method also copies the matrices into them.
        """
        if self._down is not None and self._up is not None:
            self.clear_slot(slot)
            parts = [self._copied(slot, part, self._down, self._up) for part in parts]
        else:
            parts = [
                Part(part.index, self._converted(part.down, self.norm), self._converted(part.up)) for part in parts
            ]
        return _Matrices(parts, self._outputs, self._width)

    def _converted(self, matrix: Tensor, factor: Tensor | None = None) -> Tensor:
        return (matrix if factor is None else matrix * factor).to(self._dtype or matrix.dtype)

    def set_slot(self, slot: int, matrices: _Matrices) -> None:
        """Put the matrices of an adapter into a slot that no row uses."""
        self.matrices[slot] = matrices

    def _copied(self, slot: int, part: Part, all_down: Tensor, all_up: Tensor) -> Part:
        """Copy a part into the static tensors. Returns the part as views of the static tensors."""
        start = sum(self._outputs[: part.index])
        down = all_down[slot, part.index, : len(part.down)]
        up = all_up[slot, : len(part.up), start : start + self._outputs[part.index]]
        down.copy_(part.down)
        up.copy_(part.up)
        return Part(part.index, down, up)

    def clear_slot(self, slot: int) -> None:
        self.matrices.pop(slot, None)
        if self._down is not None and self._up is not None:
            self._down[slot] = 0
            self._up[slot] = 0


class Selection:
    """The adapters that the next products use. The engine's thread selects them before it calls the model."""

    def __init__(self) -> None:
        self.slots: tuple[int, ...] = ()  # the slot of each row; in a product, all rows have the same number of tokens
        # (rows,) int64 on the device: the slot of each row, for products with one token for each row.
        self.index: Tensor | None = None
        self.active = False
        self.version: tuple[int, ...] = ()  # the version of each selected slot, see `_versions` of LowRankAdapters
        self._indices: dict[tuple[_Layout, tuple[int, ...]], _Indices] = {}

    def select(self, slots: Sequence[int]) -> None:
        self.slots, self.index = tuple(slots), None
        self.active = any(slots)

    def select_index(self, index: Tensor | None) -> None:
        """Select the adapters by `index` (rows,) int64 on the device, the slot of each row; None = no adapters."""
        self.slots, self.index = (), index
        self.active = index is not None

    def indices(self, layout: _Layout, outputs: tuple[int, ...], width: int) -> _Indices:
        """Return the `_Indices` for a layer with these outputs. Layers with equal `outputs` share one object."""
        found = self._indices.get((layout, outputs))
        if found is None:
            if len(self._indices) >= _KEPT_INDICES:
                self._indices.clear()
            found = self._indices[layout, outputs] = _indices(layout, outputs, width)
        return found


def applies_norm(linear: nn.Module) -> bool:
    """Whether a linear layer also computes the RMSNorm that precedes it."""
    return isinstance(linear, QuantizedLinear) or (isinstance(linear, AdaptedLinear) and linear.norm is not None)


class LowRankAdapters:
    """The slots of the adapters of one model.

    Only the engine's thread may call `select`. Any thread may call the other methods.

    A slot may change only while no row uses it, so `set_slot` and `clear_slot` never change the speech of a row.
    """

    def __init__(self, places: Mapping[str, Place], dtype: torch.dtype | None = None) -> None:
        """dtype: the dtype of the matrices on a CPU; None = they are not converted."""
        self.places = dict(places)
        self.selections = {group: Selection() for group in {"", *(place.group for place in places.values())}}
        self.reserved: tuple[int, int] | None = None  # (slots, rank) of the static tensors
        self._dtype = dtype
        self._layers: dict[str, AdaptedLinear] = {}
        self._used: dict[int, set[str]] = {}  # slot -> the names of the places that the adapter changes
        # Slot -> version, a number that changes when the slot gets another adapter. Each slot has its own version, so
        # that the matrices of the other slots need not be joined again when an adapter is added.
        self._versions: dict[int, int] = {}
        self._next_version = itertools.count(1)
        self._joined: tuple[int, ...] = ()  # the versions of the slots whose matrices `_join` has joined
        self._memory: _Memory | None = None  # the joined matrices

    def places_of(self, slot: int) -> set[str]:
        """Return the names of the layers that the adapter in `slot` changes. The result is empty for a free slot."""
        return self._used.get(slot, set())

    @property
    def selection(self) -> Selection:
        """The Selection of all layers whose `Place.group` is ""."""
        return self.selections[""]

    def select(self, slots: Sequence[int], group: str = "") -> None:
        """Select the adapters that the next products of the layers in `group` use. slots: the slot of each row."""
        selection = self.selections[group]
        selection.select(slots)
        if selection.active and self.reserved is None:
            used = tuple(sorted({*slots} - {0}))
            selection.version = tuple(self._versions[slot] for slot in used)
            if len(used) > 1 and self._joined != selection.version:
                self._join(used)
                self._joined = selection.version

    def _join(self, slots: tuple[int, ...]) -> None:
        """Copy the matrices of these adapters into two joined tables for each layer, on huge pages."""
        found: list[tuple[AdaptedLinear, tuple[int, ...], list[_Matrices]]] = []
        # A copy of the list, because another thread may add a layer during the loop.
        for layer in list(self._layers.values()):
            layer.forget_tables()
        for name in dict.fromkeys(name for slot in slots for name in sorted(self._used[slot])):
            layer = self._layers[name]
            used = tuple(slot for slot in slots if slot in layer.matrices)
            if len(used) > 1:
                found.append((layer, used, [layer.matrices[slot] for slot in used]))
        on_cpu = [(layer, used, each) for layer, used, each in found if each[0].up is not None]
        if not on_cpu:
            return
        numbers, dtype = sum(one.numbers for _, _, each in on_cpu for one in each), on_cpu[0][2][0].dtype
        if self._memory is None or not self._memory.reuse(numbers, dtype):
            self._memory = None  # free the old block before the new one is allocated
            self._memory = _Memory(numbers, dtype)
        memory = self._memory
        for layer, used, each in on_cpu:
            down = memory.joined([one.down for one in each])
            layer.tables = used, _Tables(down, memory.joined([one.up for one in each if one.up is not None]))

    def reserve(self, slots: int, rank: int, dtype: torch.dtype) -> None:
        """Create static tensors for all places, so that a CUDA graph can capture the products.

        slots: the number of slots, including slot 0. rank: the largest rank of an adapter.
        """
        self.reserved = slots, rank
        for name, place in self.places.items():
            self._layer(name).reserve(slots, rank, _inputs(place), dtype, place.device)

    def set_slot(self, slot: int, parts: Mapping[str, Sequence[Part]]) -> int:
        """Put an adapter into a free slot. Returns the size of its matrices in bytes."""
        prepared = {name: self._layer(name).prepare_slot(slot, each) for name, each in parts.items()}
        if self.reserved is None:
            _pack(list(prepared.values()))
        for name, matrices in prepared.items():
            self._layer(name).set_slot(slot, matrices)
        self._used[slot] = set(parts)
        self._versions[slot] = next(self._next_version)
        return sum(matrices.bytes for matrices in prepared.values())

    def clear_slot(self, slot: int) -> None:
        """Remove the adapter from a slot. If no adapter is left, put the original linear layers back into the model.

        If `reserve` has created static tensors, two things differ: the slot keeps its memory, which is filled with
        zeros, and the adapted layers stay in the model.
        """
        for name in self._used.pop(slot, ()):
            self._layers[name].clear_slot(slot)
        if not self._used and self.reserved is None:
            self.unwrap()

    def unwrap(self) -> None:
        """Put the original linear layers back into the model."""
        for name, layer in self._layers.items():
            setattr(self.places[name].parent, self.places[name].name, layer.inner)
        self._layers, self._memory = {}, None

    def _layer(self, name: str) -> AdaptedLinear:
        if name not in self._layers:
            place = self.places[name]
            dtype = self._dtype if place.device.type == "cpu" else None
            self._layers[name] = AdaptedLinear(place, self.selections[place.group], dtype)
            setattr(place.parent, place.name, self._layers[name])
        return self._layers[name]


def _pack(matrices: Sequence[_Matrices]) -> None:
    """Move the matrices of an adapter to one block of memory, if they are on a CPU."""
    on_cpu = [each for each in matrices if each.up is not None]
    if not on_cpu:
        return
    memory = _Memory(sum(each.numbers for each in on_cpu), on_cpu[0].dtype)
    for each in on_cpu:
        each.move_to(memory)


def _inputs(place: Place) -> int:
    linear = place.linear.inner if isinstance(place.linear, AdaptedLinear) else place.linear
    if not isinstance(weight := linear.weight, Tensor):
        raise TypeError(f"{type(linear).__name__} has no weight: static tensors need plain linear layers")
    return weight.shape[1]
