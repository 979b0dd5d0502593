"""Reads and checks the LoRA adapters of single rows of any model, and puts each adapter into a slot of the model.

`prepare` reads and converts an adapter in any thread. `ModelAdapters.add` puts it into a free slot. The engine's thread
calls `acquire` when a row begins to use the slot, and `release` when the row ends. So the rows that speak never wait,
and a removed adapter keeps its slot until the last row that uses it ends. An `AdapterTarget` describes the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from app.errors import UnknownModel, WeightsUnavailable
from app.nn.linear import QuantizedLinear
from app.nn.low_rank import LowRankAdapters, Part, Place
from app.nn.transformer import Block, Stack
from app.weights import hub
from app.weights.adapter import open_adapter
from app.weights.tensors import some_names

if TYPE_CHECKING:
    from app.weights.located import Located
    from app.weights.tensors import Checkpoint, Shape

MAX_RANK = 256
MAX_TENSORS = 5_000
MAX_SLOTS = 128


class AdaptedModel(Protocol):
    """A model whose rows can use adapters."""

    device: torch.device
    dtype: torch.dtype
    base: Checkpoint | None  # the checkpoint from which the weights were loaded
    adapters: LowRankAdapters | None  # None = rows can't use adapters

    def modules(self) -> Iterator[nn.Module]: ...


# A function that returns a pair for each matrix of a tensor: A (r, inputs) and B transposed (r, outputs). Its
# parameters are the name of the tensor, A and B of the adapter, and the shape of the tensor in the model. It returns
# None if A and B do not fit this shape.
Matrices = Callable[[str, Tensor, Tensor, "Shape"], Sequence[tuple[Tensor, Tensor]] | None]


def one_matrix(name: str, a: Tensor, b: Tensor, shape: Shape) -> list[tuple[Tensor, Tensor]] | None:
    """Return A (r, inputs) and B transposed (r, outputs) of a linear layer; None = A and B do not fit `shape`."""
    del name
    fits = a.ndim == b.ndim == 2 and shape == (b.shape[0], a.shape[1]) and a.shape[0] == b.shape[1]
    return [(a, b.t())] if fits else None


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """What this module needs to know about a model that adapters change."""

    name: str  # the name of the model in messages
    setting: str  # the environment variable that names the weights
    model: AdaptedModel
    places: Mapping[str, Place]
    # Name of a tensor of the checkpoint -> its places: the name of a linear layer, and the number of the weight matrix
    # in this layer. A tensor with several matrices has several places.
    weights: Mapping[str, Sequence[tuple[str, int]]]
    shapes: Mapping[str, Shape]  # name of a tensor of the checkpoint -> its shape
    # Adapters can't change the codec. The names of its tensors begin with one of these texts.
    frozen: tuple[str, ...] = ()
    # name of a tensor of which the model uses only the first outputs -> the number of these outputs
    outputs: Mapping[str, int] = field(default_factory=dict)
    # name of a tensor that adapters can't change -> words for the error message: which tensor, and why
    unusable: Mapping[str, str] = field(default_factory=dict)
    rename: Callable[[str], str] = str  # see open_adapter
    matrices: Matrices = one_matrix

    def merge_remedy(self, folder: Path) -> str:
        """Return a sentence that says how to serve an adapter that can't be used for single rows."""
        return f"Serve it merged: {self.setting}={folder}."


@dataclass(frozen=True, slots=True)
class PreparedAdapter:
    """An adapter that was read and checked. parts: name of a place in the model -> A and B of each weight matrix."""

    key: str  # identifies the adapter in utterances and cache keys: the digest of its files
    rank: int  # the largest rank of the adapter's matrices
    base: str  # the base model that adapter_config.json names; "" = it names none
    parts: Mapping[str, Sequence[Part]] = field(repr=False)


@dataclass(slots=True)
class _Slot:
    number: int
    rows: int = 0  # the number of rows that use the adapter
    removed: bool = False
    bytes: int = 0


class ModelAdapters:
    """The adapters of one model. Thread-safe."""

    def __init__(self, target: AdapterTarget, *, rows_by_tensor: bool = False, slots: int = 0, rank: int = 0) -> None:
        """Create the slots.

        target: the model that adapters change. rows_by_tensor: True = CUDA graphs compute the products of the adapters.
        Then the model has exactly `slots` slots, for adapters whose rank is at most `rank`. False = slots are created
        when they are needed, up to MAX_SLOTS.
        """
        model = target.model
        self._target, self._model = target, model
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._limit = slots if rows_by_tensor else MAX_SLOTS
        self._rank = rank if rows_by_tensor else MAX_RANK
        self._captured = rows_by_tensor
        self.bases: frozenset[str] = frozenset()  # hub ids of the loaded weights in lower case; empty = not known
        # an earlier runner of this model has set `adapters`, and then its graph capture failed
        if model.adapters is not None:
            model.adapters.unwrap()
            model.adapters = None
        if not rows_by_tensor or slots:
            model.adapters = LowRankAdapters(target.places, matrix_dtype(model))
        if rows_by_tensor and slots and model.adapters is not None:
            model.adapters.reserve(slots + 1, rank, model.dtype)

    @property
    def captured(self) -> bool:
        """Whether the captured CUDA graphs compute the products of adapters."""
        return self._captured and self._limit > 0

    def prepare(self, folder: Path) -> PreparedAdapter:
        """Read the adapter in a folder and convert it. Blocks. Raises WeightsUnavailable."""
        prepared = prepare(folder, self._target, rank=self._rank)
        base = hub.unquantised(prepared.base)
        if self.bases and hub.is_hub_id(base) and base.casefold() not in self.bases:
            raise WeightsUnavailable(
                f"The adapter in {folder} was trained on {base}, and this server runs {min(self.bases)}.",
                remedy=f"Serve it merged: {self._target.setting}={folder}.",
            )
        return prepared

    def add(self, adapter: PreparedAdapter) -> int:
        """Put an adapter into a free slot. Returns the size of its matrices in bytes. Raises WeightsUnavailable."""
        low_rank = self._model.adapters
        with self._lock:
            found = self._slots.get(adapter.key)
            # an adapter of another name has the same files, or rows still use this adapter after its removal
            if found is not None:
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
            # `removed` keeps rows away from the slot until its matrices are complete
            found = _Slot(number, removed=True)
            self._slots[adapter.key] = found
        found.bytes = low_rank.set_slot(found.number, adapter.parts)
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()
        with self._lock:
            found.removed = False
        return found.bytes

    def remove(self, key: str) -> None:
        """Remove an adapter. Its memory becomes free when the last row that uses it ends."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                slot.removed = True
                self._clear(key, slot)

    def acquire(self, key: str) -> int:
        """Count a new row that uses an adapter, and return the adapter's slot; 0 for the key "".

        Raises UnknownModel if the adapter was removed.
        """
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
        """Stop counting a row that used this adapter. After the last row of a removed adapter, free the slot."""
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


def prepare(folder: Path, target: AdapterTarget, *, rank: int = MAX_RANK) -> PreparedAdapter:
    """Read the adapter in a folder for this model. rank: the largest allowed rank. Raises WeightsUnavailable."""
    model, remedy = target.model, target.merge_remedy(folder)
    adapter = open_adapter(folder, target.rename)
    if adapter.tensors > MAX_TENSORS:
        raise WeightsUnavailable(
            f"The adapter in {folder} has {adapter.tensors} tensors, and the limit is {MAX_TENSORS}.", remedy=remedy
        )
    found: dict[str, list[Part]] = {}
    largest = 0
    unknown: list[str] = []
    # On a CPU, the matrices stay in float32 here: `LowRankAdapters` converts them later.
    on = torch.float32 if model.device.type == "cpu" else model.dtype
    for name, a, b in adapter.low_rank(target.frozen, model.base, remedy):
        if name not in target.weights:
            unknown.append(name)
            continue
        if name in target.unusable:
            raise WeightsUnavailable(f"The adapter in {folder} changes {target.unusable[name]}.", remedy=remedy)
        shape = target.shapes[name]
        matrices = target.matrices(name, a, b, shape)
        if matrices is None:
            raise WeightsUnavailable(
                f"The adapter in {folder} was trained on another base: {name} is {list(shape)} in the model, "
                f"and the adapter has A {list(a.shape)} and B {list(b.shape)}.",
                remedy="Use an adapter of the model that this server runs, or serve it merged with the settings "
                f"{target.setting} and {target.setting.replace('MODEL', 'BASE')}.",
            )
        for (place, index), (down, all_up) in zip(target.weights[name], matrices, strict=True):
            up = all_up[:, : target.outputs[name]] if name in target.outputs else all_up
            largest = max(largest, len(down))
            if len(down) > rank:
                raise WeightsUnavailable(
                    f"The adapter in {folder} has rank {len(down)} ({name}), and the limit is {rank}.", remedy=remedy
                )
            if not (bool(down.isfinite().all()) and bool(up.isfinite().all())):
                raise WeightsUnavailable(
                    f"The adapter in {folder} contains NaN or infinite values ({name}).",
                    remedy="Train it again, or use an earlier checkpoint.",
                )
            device = target.places[place].device
            part = Part(index, down.to(device, on).contiguous(), up.to(device, on).contiguous())
            found.setdefault(place, []).append(part)
    if unknown:
        raise WeightsUnavailable(
            f"The adapter in {folder} changes {len(unknown)} tensors that {target.name} does not have: "
            f"{some_names(unknown)}.",
            remedy="Use an adapter that was trained on the model that this server runs.",
        )
    if not found:
        raise WeightsUnavailable(f"The adapter in {folder} changes nothing.", remedy="Save the adapter again.")
    return PreparedAdapter(adapter.digest, largest, adapter.base, found)


def matrix_dtype(model: AdaptedModel) -> torch.dtype:
    """Return the dtype of the adapters' matrices on a CPU: bfloat16 for a quantized model, else the model's dtype."""
    quantized = any(isinstance(part, QuantizedLinear) for part in model.modules())
    return torch.bfloat16 if quantized else model.dtype


def places_of_stack(
    name: str, stack: Stack, *, group: str = "", split_gate: bool, cross: tuple[str, str] = ("", "")
) -> dict[str, Place]:
    """Return the linear layers of a transformer that an adapter can change.

    group: see Place. split_gate: whether the checkpoint stores the gate and up weights of an MLP in two tensors. cross:
    two groups for cross-attention: the first for its queries and outputs, the second for its keys and values.
    """
    c, places = stack.config, {}
    query, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    gate_up = (c.ffn, c.ffn) if split_gate else (2 * c.ffn,)
    for layer, block in enumerate(stack.blocks):
        assert isinstance(block, Block)  # noqa: S101 - a Stack contains nothing else
        at, on = f"{name}.blocks.{layer}.", block.attention_norm.device
        places[f"{at}qkv"] = Place(block, "qkv", (query, shared, shared), on, block.attention_norm, c.eps, group)
        places[f"{at}out"] = Place(block, "out", (c.width,), on, group=group)
        places[f"{at}gate_up"] = Place(block, "gate_up", gate_up, on, block.mlp_norm, c.eps, group)
        places[f"{at}down"] = Place(block, "down", (c.width,), on, group=group)
        if (other := c.cross) is not None:
            of_query, of_text = cross
            kv = other.kv_heads * other.head_dim
            places[f"{at}cross_q"] = Place(block, "cross_q", (other.heads * other.head_dim,), on, group=of_query)
            places[f"{at}cross_kv"] = Place(block, "cross_kv", (kv, kv), on, group=of_text)
            places[f"{at}cross_out"] = Place(block, "cross_out", (c.width,), on, group=of_query)
    return places


def weights_of_stack(
    name: str, prefix: str, layers: int, in_layer: Mapping[str, tuple[str, int]]
) -> dict[str, list[tuple[str, int]]]:
    """Return the entries of `AdapterTarget.weights` for one transformer.

    name: the transformer's name in `AdapterTarget.places`. prefix: the beginning of the names of the transformer's
    tensors. in_layer: part of a tensor's name -> (linear layer of a Block, number of the weight matrix in this layer).
    """
    return {
        f"{prefix}layers.{layer}.{part}.weight": [(f"{name}.blocks.{layer}.{linear}", index)]
        for layer in range(layers)
        for part, (linear, index) in in_layer.items()
    }


def bases_of(model: Located, engine: str) -> frozenset[str]:
    """Return the hub ids of the loaded weights in lower case, to compare them with the base of an adapter.

    The published model and its copies have equal weights. So if the published model or a copy is loaded, the result
    contains the ids of all of them. The result is empty if the weights have no hub id of their own: they are in a local
    folder, or an adapter is merged into them. engine: the kind of the files, see `hub.files_for`.
    """
    source = model.files[-1].source.partition("@")[0]
    published = hub.files_for(engine)
    copies = (published.source, *published.mirrors)
    if model.adapter is not None or not hub.is_hub_id(source) or hub.Source.parse(model.files[-1]).folder is not None:
        return frozenset()
    return frozenset(name.casefold() for name in (copies if source in copies else (source,)))


def reserved_bytes(places: Mapping[str, Place], dtype: torch.dtype, slots: int, rank: int) -> int:
    """Return the size of the static tensors of adapters in bytes. slots: the number of adapters; 0 = no tensors."""
    numbers = sum(place.numbers(rank) for place in places.values()) if slots else 0
    return (slots + 1) * numbers * dtype.itemsize
