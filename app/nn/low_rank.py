"""Low-rank adapters (LoRA) that act on single rows of a batch: y = x W^T + (x A^T) B^T.

Each row of a batch can use another adapter, or none. An adapter has a slot, which is a number from 1; slot 0 means no
adapter. `AdaptedLinear` replaces a linear layer when the first adapter is added, so a model without adapters does no
extra work. `LowRankAdapters` owns the slots and selects the adapters of the next product.

There are two ways to compute the product of B and A:
- eager: one small product for each row. The result of a row has the same bits in a batch of any size.
- indexed: the slots of the rows are in a tensor on the device, and A and B of all slots are in static tensors that are
  padded to one rank. A CUDA graph can capture this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.nn.linear import Int8Linear
from app.runtime.pages import mark_for_huge_pages


@dataclass(frozen=True, slots=True)
class Part:
    """A and B of one weight matrix. A linear layer may join several weight matrices, for example q, k and v."""

    index: int  # the number of the weight matrix in the linear layer
    down: Tensor  # A (r, inputs)
    up: Tensor  # the scaled B, transposed: (r, outputs of this weight matrix)


@dataclass(frozen=True, slots=True)
class Place:
    """A linear layer that an adapter can change.

    outputs: the number of outputs of each weight matrix that the layer joins. norm: the weight of the RMSNorm before
    the layer; an Int8Linear computes this norm itself, so its input is without the norm.
    """

    parent: nn.Module
    name: str
    outputs: tuple[int, ...]
    device: torch.device
    norm: Tensor | None = None
    eps: float = 0.0

    @property
    def linear(self) -> nn.Module:
        return self.parent.get_submodule(self.name)

    def numbers(self, rank: int) -> int:
        """Return how many numbers A and B of one adapter have in static tensors of this rank."""
        return rank * (len(self.outputs) * _inputs(self) + sum(self.outputs))


_MOST_JOINED_OUTPUTS = 4096  # B of all parts is one matrix if the layer has at most this many outputs


class _Eager:
    """The matrices of one adapter for one linear layer."""

    def __init__(self, parts: Sequence[Part], outputs: Sequence[int]) -> None:
        # One product computes x A^T of all parts.
        self._down = parts[0].down if len(parts) == 1 else torch.cat([part.down for part in parts])
        # Ranks, outputs and B of each part. B is stored as (r, outputs): a product then reads it from start to end.
        self._ups: list[tuple[slice, slice, Tensor]] = []
        rank = 0
        for part in parts:
            start = sum(outputs[: part.index])
            ranks, columns = slice(rank, rank + len(part.down)), slice(start, start + outputs[part.index])
            self._ups.append((ranks, columns, part.up))
            rank = ranks.stop
        self._joined: Tensor | None = None  # B of all parts (outputs, R), with zeros between the parts
        if len(outputs) == 1:
            self._joined = parts[0].up.t()
        elif sum(outputs) <= _MOST_JOINED_OUTPUTS:  # one larger product takes less time than a product for each part
            joined = self._down.new_zeros(rank, sum(outputs))
            for ranks, columns, up in self._ups:
                joined[ranks, columns] = up
            self._ups = [(slice(0, rank), slice(0, sum(outputs)), joined)]
            self._joined = joined.t()
        self.dtype, self.device = self._down.dtype, self._down.device
        self.bytes = self._down.nbytes + sum(up.nbytes for _, _, up in self._ups)

    @property
    def numbers(self) -> int:
        """How many numbers the matrices have."""
        return self._down.numel() + sum(up.numel() for _, _, up in self._ups)

    def move_to(self, memory: Tensor) -> None:
        """Copy the matrices to `memory`, a tensor with `numbers` elements, and use the copies."""

        def moved(matrix: Tensor, start: int) -> Tensor:
            copy = memory[start : start + matrix.numel()].view(matrix.shape)
            return copy.copy_(matrix)

        start = self._down.numel()
        self._down = moved(self._down, 0)
        ups = []
        for ranks, columns, up in self._ups:
            ups.append((ranks, columns, moved(up, start)))
            start += up.numel()
        self._ups = ups
        if self._joined is not None:
            self._joined = ups[0][2].t()

    def add_token(self, x: Tensor, y: Tensor) -> None:
        """Add (x A^T) B^T of one token to y. x (inputs,) and y (outputs,) have the dtype of the matrices."""
        small = torch.mv(self._down, x)
        if self._joined is not None:
            y.addmv_(self._joined, small)
            return
        for ranks, columns, up in self._ups:
            y[columns].addmv_(up.t(), small[ranks])

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add (x A^T) B^T of several tokens to y. x (m, inputs) and y (m, outputs)."""
        small = functional.linear(x, self._down)
        for ranks, columns, up in self._ups:
            y[:, columns].addmm_(small[:, ranks], up)


class AdaptedLinear(nn.Module):
    """A linear layer and its adapters."""

    def __init__(self, place: Place, selection: Selection) -> None:
        super().__init__()
        self.inner = place.linear
        self._outputs = place.outputs
        self._selection = selection
        fused = isinstance(self.inner, Int8Linear) and place.norm is not None
        self.norm = place.norm if fused else None
        self._eps = place.eps
        self._eager: dict[int, _Eager] = {}
        self._found: list[tuple[int, _Eager]] = []  # (row, matrices) of the rows in `_found_for`
        self._found_for: tuple[int, ...] | None = None  # the slots of these rows; None = `_found` is not valid
        # Static tensors: A (slots, parts, R, inputs), and B transposed (slots, R, outputs). Slot 0 has zeros.
        self._down: Tensor | None = None
        self._up: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return self.add(x, y) if self._selection.active else y

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y with the products of the selected adapters. x: the input of the layer. May change y."""
        selection = self._selection
        if selection.index is not None:
            return self._add_indexed(x, y, selection.index)
        if self._found_for != selection.slots:  # most steps have the same rows as the step before
            slots = enumerate(selection.slots)
            self._found = [(i, each) for i, slot in slots if (each := self._eager.get(slot)) is not None]
            self._found_for = selection.slots
        found = self._found
        if not found:
            return y
        dtype, count = found[0][1].dtype, len(selection.slots)
        x, total = self._normed(x).to(dtype), y.to(dtype)
        if len(x) == count:
            tokens, sums = x.unbind(), total.unbind()
            for i, each in found:
                each.add_token(tokens[i], sums[i])
        else:
            per_row = len(x) // count
            for i, each in found:
                rows = slice(i * per_row, (i + 1) * per_row)
                each.add(x[rows], total[rows])
        return total.to(y.dtype)

    def _add_indexed(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        assert self._down is not None  # noqa: S101 - `reserve` has created the static tensors
        assert self._up is not None  # noqa: S101
        down, up = self._down.index_select(0, index), self._up.index_select(0, index)
        count, parts, rank, inputs = down.shape
        x = self._normed(x).to(down.dtype)
        small = torch.bmm(down.view(count, parts * rank, inputs), x[:, :, None]).view(count, parts, 1, rank)
        start, added = 0, []
        for part, outputs in enumerate(self._outputs):
            added.append(torch.bmm(small[:, part], up[:, :, start : start + outputs])[:, 0])
            start += outputs
        return y + torch.cat(added, dim=1).to(y.dtype)

    def _normed(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        return functional.rms_norm(x.float(), (x.shape[1],), self.norm.float(), self._eps)

    def reserve(self, slots: int, rank: int, inputs: int, dtype: torch.dtype, device: torch.device) -> None:
        """Create the static tensors for `slots` slots and adapters up to this rank."""
        parts = len(self._outputs)
        self._down = torch.zeros(slots, parts, rank, inputs, dtype=dtype, device=device)
        self._up = torch.zeros(slots, rank, sum(self._outputs), dtype=dtype, device=device)

    def prepare_slot(self, slot: int, parts: Sequence[Part]) -> _Eager:
        """Return the matrices of an adapter for `set_slot`. Copies them into the static tensors, if there are any."""
        if self._down is not None and self._up is not None:
            self.clear_slot(slot)
            parts = [self._copied(slot, part, self._down, self._up) for part in parts]
        return _Eager(parts, self._outputs)

    def set_slot(self, slot: int, eager: _Eager) -> None:
        """Put the matrices of an adapter into a slot that no row uses."""
        self._eager[slot] = eager
        self._found_for = None

    def _copied(self, slot: int, part: Part, all_down: Tensor, all_up: Tensor) -> Part:
        """Copy a part into the static tensors. Returns the part as views of the static tensors."""
        start = sum(self._outputs[: part.index])
        down = all_down[slot, part.index, : len(part.down)]
        up = all_up[slot, : len(part.up), start : start + self._outputs[part.index]]
        down.copy_(part.down)
        up.copy_(part.up)
        return Part(part.index, down, up)

    def clear_slot(self, slot: int) -> None:
        self._eager.pop(slot, None)
        self._found_for = None
        if self._down is not None and self._up is not None:
            self._down[slot] = 0
            self._up[slot] = 0


class Selection:
    """The adapters of the next products. The engine's thread sets it before it calls the model."""

    def __init__(self) -> None:
        self.slots: tuple[int, ...] = ()  # the slot of each row; a product has the same number of tokens for each row
        self.index: Tensor | None = None  # (rows,) int64: the slots as a tensor on the device, one token for each row
        self.active = False

    def select(self, slots: Sequence[int]) -> None:
        self.slots, self.index = tuple(slots), None
        self.active = any(slots)

    def select_index(self, index: Tensor | None) -> None:
        """Select the adapters by a tensor; None = no adapters."""
        self.slots, self.index = (), index
        self.active = index is not None


def applies_norm(linear: nn.Module) -> bool:
    """Whether a linear layer computes the RMSNorm before it."""
    return isinstance(linear, Int8Linear) or (isinstance(linear, AdaptedLinear) and linear.norm is not None)


class LowRankAdapters:
    """The slots of the adapters of one model. `select` is for the engine's thread; the other methods for any thread.

    A slot may change only while no row uses it, so `set_slot` and `clear_slot` never change the speech of a row.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = dict(places)
        self.selection = Selection()
        self.reserved: tuple[int, int] | None = None  # (slots, rank) of the static tensors
        self._layers: dict[str, AdaptedLinear] = {}
        self._used: dict[int, set[str]] = {}  # slot -> the names of the places that the adapter changes

    def reserve(self, slots: int, rank: int, dtype: torch.dtype) -> None:
        """Create static tensors for all places, so that a CUDA graph can capture the products.

        slots: the number of slots with slot 0. rank: the largest rank of an adapter.
        """
        self.reserved = slots, rank
        for name, place in self.places.items():
            self._layer(name).reserve(slots, rank, _inputs(place), dtype, place.device)

    def set_slot(self, slot: int, parts: Mapping[str, Sequence[Part]]) -> int:
        """Put an adapter into a free slot. Returns the bytes of its matrices."""
        self._used[slot] = set(parts)
        prepared = {name: self._layer(name).prepare_slot(slot, each) for name, each in parts.items()}
        if self.reserved is None:
            _pack(list(prepared.values()))
        for name, eager in prepared.items():
            self._layer(name).set_slot(slot, eager)
        return sum(eager.bytes for eager in prepared.values())

    def clear_slot(self, slot: int) -> None:
        """Free the memory of a slot. After the last adapter, the model is again as without adapters."""
        for name in self._used.pop(slot, ()):
            self._layers[name].clear_slot(slot)
        if not self._used and self.reserved is None:
            self.unwrap()

    def unwrap(self) -> None:
        """Put the original linear layers back into the model."""
        for name, layer in self._layers.items():
            setattr(self.places[name].parent, self.places[name].name, layer.inner)
        self._layers = {}

    def _layer(self, name: str) -> AdaptedLinear:
        if name not in self._layers:
            place = self.places[name]
            self._layers[name] = AdaptedLinear(place, self.selection)
            setattr(place.parent, place.name, self._layers[name])
        return self._layers[name]


def _pack(matrices: Sequence[_Eager]) -> None:
    """Move the matrices of an adapter to one block of memory on huge pages, if they are on a CPU.

    A step reads all matrices. For 8 rows of CSM-1B with different adapters, this halves the time.
    """
    on_cpu = [each for each in matrices if each.device.type == "cpu"]
    if not on_cpu:
        return
    memory = torch.empty(sum(each.numbers for each in on_cpu), dtype=on_cpu[0].dtype)
    mark_for_huge_pages(memory.data_ptr(), memory.nbytes)
    start = 0
    for each in on_cpu:
        each.move_to(memory[start : start + each.numbers])
        start += each.numbers


def _inputs(place: Place) -> int:
    linear = place.linear.inner if isinstance(place.linear, AdaptedLinear) else place.linear
    if not isinstance(weight := linear.weight, Tensor):
        raise TypeError(f"{type(linear).__name__} has no weight: static tensors need plain linear layers")
    return weight.shape[1]
