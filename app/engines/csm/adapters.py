"""LoRA adapters of CSM that act on single rows: reads an adapter, checks it, and puts it into a slot of the model.

`prepare` reads and converts an adapter in any thread. `CsmAdapters.add` puts it into a free slot, and the engine's
thread takes the slot in `acquire` and returns it in `release`. So the rows that speak never wait, and a removed adapter
keeps its slot until the last row that uses it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.engines.csm import checkpoint
from app.engines.csm.checkpoint import CODEC, checkpoint_name, expected_shapes
from app.errors import UnknownModel, WeightsUnavailable
from app.nn.low_rank import LowRankAdapters, Part, Place
from app.nn.transformer import Block, Stack
from app.weights import hub
from app.weights.adapter import open_adapter
from app.weights.tensors import some_names

if TYPE_CHECKING:
    from app.engines.csm.config import CsmConfig
    from app.engines.csm.model import CsmModel

MAX_RANK = 256
MAX_TENSORS = 5_000
MAX_SLOTS = 128


@dataclass(frozen=True, slots=True)
class PreparedAdapter:
    """An adapter that is read and checked. parts: name of a place in the model -> A and B of each weight matrix."""

    key: str  # identifies the adapter in utterances and cache keys: the digest of its files
    rank: int  # the largest rank
    base: str  # the base model that adapter_config.json names; "" = it names none
    parts: Mapping[str, Sequence[Part]] = field(repr=False)


@dataclass(slots=True)
class _Slot:
    number: int
    rows: int = 0  # the number of rows that use the adapter
    removed: bool = False
    bytes: int = 0


class CsmAdapters:
    """The adapters of one model. Thread-safe."""

    def __init__(self, model: CsmModel, *, rows_by_tensor: bool = False, slots: int = 0, rank: int = 0) -> None:
        """Create the slots.

        rows_by_tensor: True = a CUDA graph computes the products. Then the model has exactly `slots` slots, for
        adapters up to `rank`. Otherwise slots are created as needed, up to MAX_SLOTS.
        """
        self._model = model
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._limit = slots if rows_by_tensor else MAX_SLOTS
        self._rank = rank if rows_by_tensor else MAX_RANK
        self._captured = rows_by_tensor
        self.bases: frozenset[str] = frozenset()  # hub ids of the loaded weights in lower case; empty = not known
        if model.adapters is not None:  # an earlier runner of this model, whose CUDA graphs could not be captured
            model.adapters.unwrap()
            model.adapters = None
        if not rows_by_tensor or slots:
            model.adapters = LowRankAdapters(places_of(model))
        if rows_by_tensor and slots and model.adapters is not None:
            model.adapters.reserve(slots + 1, rank, model.dtype)

    @property
    def captured(self) -> bool:
        """Whether the steps with CUDA graphs compute the products of adapters."""
        return self._captured and self._limit > 0

    def prepare(self, folder: Path) -> PreparedAdapter:
        """Read the adapter in a folder and convert it. Blocks. Raises WeightsUnavailable."""
        prepared = prepare(folder, self._model, rank=self._rank)
        base = hub.unquantised(prepared.base)
        if self.bases and hub.is_hub_id(base) and base.casefold() not in self.bases:
            raise WeightsUnavailable(
                f"The adapter in {folder} was trained on {base}, and this server runs {min(self.bases)}.",
                remedy=f"Serve it merged: CSM_MODEL={folder}.",
            )
        return prepared

    def add(self, adapter: PreparedAdapter) -> int:
        """Put an adapter into a free slot. Returns the bytes of its matrices. Raises WeightsUnavailable."""
        low_rank = self._model.adapters
        with self._lock:
            found = self._slots.get(adapter.key)
            if found is not None:  # another name has the same files, or rows still use the removed adapter
                found.removed = False
                return found.bytes
            used = {slot.number for slot in self._slots.values()}
            number = next((number for number in range(1, self._limit + 1) if number not in used), 0)
            if number == 0 or low_rank is None:
                raise WeightsUnavailable(
                    f"This server has memory for {self._limit} adapters, and all of it is in use.",
                    remedy="Remove an adapter, or set TTS_ADAPTER_SLOTS to a larger number and restart the server."
                    if self._captured
                    else "Remove an adapter.",
                )
            found = _Slot(number, removed=True)  # no row can acquire the slot before its matrices are complete
            self._slots[adapter.key] = found
        found.bytes = low_rank.set_slot(found.number, adapter.parts)
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()
        with self._lock:
            found.removed = False
        return found.bytes

    def remove(self, key: str) -> None:
        """Remove an adapter. Its memory is free when the last row that uses it ends."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                slot.removed = True
                self._clear(key, slot)

    def acquire(self, key: str) -> int:
        """Return the slot of an adapter for a new row; 0 for the key "". Raises UnknownModel."""
        if not key:
            return 0
        with self._lock:
            slot = self._slots.get(key)
            if slot is None or slot.removed:
                raise UnknownModel(
                    "The adapter of this request was removed. Send another `model` or `voice`.", param="model"
                )
            slot.rows += 1
            return slot.number

    def release(self, key: str) -> None:
        """Return the slot of a row that has ended."""
        if not key:
            return
        with self._lock:
            slot = self._slots[key]
            slot.rows -= 1
            self._clear(key, slot)

    def _clear(self, key: str, slot: _Slot) -> None:
        if slot.removed and not slot.rows:
            del self._slots[key]
            if self._model.adapters is not None:
                self._model.adapters.clear_slot(slot.number)


def prepare(folder: Path, model: CsmModel, *, rank: int = MAX_RANK) -> PreparedAdapter:
    """Read the adapter in a folder for this model. rank: the largest rank. Raises WeightsUnavailable."""
    config = model.config
    adapter = open_adapter(folder, checkpoint_name)
    if adapter.tensors > MAX_TENSORS:
        raise WeightsUnavailable(
            f"The adapter in {folder} has {adapter.tensors} tensors, and the limit is {MAX_TENSORS}.",
            remedy=f"Serve it merged: CSM_MODEL={folder}.",
        )
    shapes = expected_shapes(config)
    places, where = places_of(model), _weights_of(config)
    found: dict[str, list[Part]] = {}
    largest = 0
    unknown: list[str] = []
    on = torch.float32 if model.device.type == "cpu" else model.dtype
    for name, a, b in adapter.low_rank(CODEC, model.base, f"Serve it merged: CSM_MODEL={folder}."):
        if name not in where:
            unknown.append(name)
            continue
        if name == checkpoint.PROJECTION and not model.tied:
            raise WeightsUnavailable(
                f"The adapter in {folder} changes the projection, and this model has two different audio tables.",
                remedy=f"Serve it merged: CSM_MODEL={folder}.",
            )
        matrices = _matrices(name, a, b, shapes[name])
        if matrices is None:
            raise WeightsUnavailable(
                f"The adapter in {folder} was trained on another base: {name} is {list(shapes[name])} in the model, "
                f"and the adapter has A {list(a.shape)} and B {list(b.shape)}.",
                remedy="Use an adapter of the model that this server runs, or serve it merged: CSM_MODEL, CSM_BASE.",
            )
        for (place, index), (down, all_up) in zip(where[name], matrices, strict=True):
            up = all_up[:, : config.codebook_size] if name in (checkpoint.HEAD, checkpoint.HEADS) else all_up
            largest = max(largest, len(down))
            if len(down) > rank:
                raise WeightsUnavailable(
                    f"The adapter in {folder} has rank {len(down)} ({name}), and the limit is {rank}.",
                    remedy=f"Serve it merged: CSM_MODEL={folder}.",
                )
            if not (bool(down.isfinite().all()) and bool(up.isfinite().all())):
                raise WeightsUnavailable(
                    f"The adapter in {folder} contains NaN or infinite values ({name}).",
                    remedy="Train it again, or use an earlier checkpoint.",
                )
            device = places[place].device
            part = Part(index, down.to(device, on).contiguous(), up.to(device, on).contiguous())
            found.setdefault(place, []).append(part)
    if unknown:
        raise WeightsUnavailable(
            f"The adapter in {folder} changes {len(unknown)} tensors that CSM does not have: {some_names(unknown)}.",
            remedy="Use an adapter that was trained on the model that this server runs.",
        )
    if not found:
        raise WeightsUnavailable(f"The adapter in {folder} changes nothing.", remedy="Save the adapter again.")
    return PreparedAdapter(adapter.digest, largest, adapter.base, found)


def places_of(model: CsmModel) -> dict[str, Place]:
    """Return all linear layers of the model that an adapter can change, by the name of the module."""
    c = model.config
    places = {
        "projection": Place(model, "projection", (c.depth.width,), model.device),
        "head": Place(model, "head", (c.codebook_size,), model.device),
    }
    places |= {
        f"heads.{i}": Place(model.heads, str(i), (c.codebook_size,), model.device) for i in range(c.codebooks - 1)
    }
    for name, stack in (("backbone", model.backbone), ("depth", model.depth)):
        places |= _places_of_stack(name, stack)
    return places


def _places_of_stack(name: str, stack: Stack) -> dict[str, Place]:
    c, places = stack.config, {}
    query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for layer, block in enumerate(stack.blocks):
        assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
        at = f"{name}.blocks.{layer}."
        on = block.attention_norm.device
        places[f"{at}qkv"] = Place(block, "qkv", (query, shared, shared), on, block.attention_norm, c.eps)
        places[f"{at}out"] = Place(block, "out", (c.width,), on)
        places[f"{at}gate_up"] = Place(block, "gate_up", (c.ffn, c.ffn), on, block.mlp_norm, c.eps)
        places[f"{at}down"] = Place(block, "down", (c.width,), on)
    return places


_IN_LAYER = {  # part of a tensor's name -> (linear layer of a Block, number of the weight matrix in this layer)
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.o_proj": ("out", 0),
    "mlp.gate_proj": ("gate_up", 0),
    "mlp.up_proj": ("gate_up", 1),
    "mlp.down_proj": ("down", 0),
}


def _weights_of(config: CsmConfig) -> dict[str, list[tuple[str, int]]]:
    """Return a mapping: name of a tensor of the checkpoint -> the places of its matrices.

    A place is the name of a linear layer, and the number of the weight matrix in this layer. The tensor of the depth
    decoder's heads has one matrix for each head; all other tensors have one matrix.
    """
    found = {
        checkpoint.PROJECTION: [("projection", 0)],
        checkpoint.HEAD: [("head", 0)],
        checkpoint.HEADS: [(f"heads.{i}", 0) for i in range(config.codebooks - 1)],
    }
    for name, prefix, stack in (
        ("backbone", checkpoint.BACKBONE, config.backbone),
        ("depth", checkpoint.DEPTH, config.depth),
    ):
        for layer in range(stack.layers):
            for part, (linear, index) in _IN_LAYER.items():
                found[f"{prefix}layers.{layer}.{part}.weight"] = [(f"{name}.blocks.{layer}.{linear}", index)]
    return found


def _matrices(name: str, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]] | None:
    """Return A (r, inputs) and B transposed (r, outputs) of each matrix of a tensor; None = the shapes do not fit.

    shape: the shape of the tensor in the model. The tensor of the heads is (heads, inputs, outputs), and PEFT's option
    `target_parameters` adapts it with A (heads * r, ...) and B (..., r * heads), in one of two orientations.
    """
    if name != checkpoint.HEADS:
        fits = a.ndim == b.ndim == 2 and shape == (b.shape[0], a.shape[1]) and a.shape[0] == b.shape[1]
        return [(a, b.t())] if fits else None
    heads, inputs, outputs = shape
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % heads:
        return None
    a, b = a.view(heads, -1, a.shape[1]), b.view(b.shape[0], -1, heads)
    if (b.shape[0], a.shape[2]) == (inputs, outputs):
        return [(b[:, :, i].t(), a[i]) for i in range(heads)]
    if (a.shape[2], b.shape[0]) == (inputs, outputs):
        return [(a[i], b[:, :, i].t()) for i in range(heads)]
    return None
