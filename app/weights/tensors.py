"""Reads checkpoints from disk in blocks. This module does not depend on any model.

This module does not memory-map safetensors files, because the pages of a mapped file of 6 GB would count as resident
memory while the tensors are copied.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from app.errors import WeightsUnavailable
from app.weights.hub import ADAPTER_WEIGHTS, indexed_shards, shard_sets, weight_map
from app.weights.kinds import CONVERT, may_hold_a_model, unusable_files

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
AGAIN = "Download or save the file again."
BLOCK_BYTES = 32 << 20  # size of a block in bytes; a copy needs extra memory for one block

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# Matches the name of a layer's weight. An unexpected weight of a layer is an error, because the model would ignore the
# weight and compute wrong results.
_LAYER_WEIGHT = re.compile(r"\.(?:layers|block|blocks)\.\d{1,4}\.[\w.]{0,200}(?:weight|bias)$")
_OTHER_FORMS = {  # a part of a tensor's name -> what the checkpoint contains
    ".lora_": "a LoRA adapter that is not merged",
    ".base_layer.": "a LoRA adapter that is not merged",
    ".absmax": "weights in the 4-bit format of bitsandbytes",
    ".quant_state": "weights in the 4-bit format of bitsandbytes",
    ".SCB": "weights in the 8-bit format of bitsandbytes",
    ".qweight": "weights in the format of GPTQ or AWQ",
    ".qzeros": "weights in the format of GPTQ or AWQ",
    ".weight_packed": "weights in the format of compressed-tensors",
    ".weight_scale": "weights in an 8-bit format",
    ".scales": "weights in the quantised format of MLX",
}

Shape = tuple[int, ...]

log = logging.getLogger(__name__)


class Stored(Protocol):
    """One tensor of a checkpoint. The values are read from the file only when they are needed."""

    @property
    def shape(self) -> Shape: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Read rows start..stop-1 of the first dimension."""


@dataclass(frozen=True, slots=True)
class InFile:
    """A row-major tensor in a safetensors file. Its values begin `offset` bytes after the start of the file."""

    path: Path
    dtype: torch.dtype
    shape: Shape
    offset: int

    def rows(self, start: int, stop: int) -> Tensor:
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(self.offset + start * row_bytes)
            data = bytearray((stop - start) * row_bytes)
            if file.readinto(data) != len(data):
                raise WeightsUnavailable(f"{self.path} is truncated.", remedy=AGAIN)
        if not data:
            return torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).view(stop - start, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor that is computed from stored tensors, because the file splits, reorders or joins the model's tensors."""

    shape: Shape
    make: Callable[[], Tensor]

    def rows(self, start: int, stop: int) -> Tensor:
        return self.make()[start:stop]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A tensor of a memory-mapped PyTorch file."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop]


class Checkpoint:
    """The named tensors of one model in one or more files. A tensor is read only when it is needed."""

    def __init__(self, tensors: Mapping[str, Stored], origin: str) -> None:
        self.tensors = dict(tensors)
        self.origin = origin

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def part(self, prefix: str) -> Checkpoint:
        """Return the tensors whose names begin with `prefix`, with the prefix removed from the names."""
        inside = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
        return Checkpoint(inside, f"{self.origin} ({prefix}*)")

    def without(self, prefix: str) -> Checkpoint:
        """Return the tensors whose names do not begin with `prefix`."""
        rest = {name: value for name, value in self.tensors.items() if not name.startswith(prefix)}
        return Checkpoint(rest, self.origin)

    def unwrapped(self) -> Checkpoint:
        """Return the tensors without the prefixes that torch.compile and DistributedDataParallel add to all names."""
        found = self.tensors
        for prefix in ("_orig_mod.", "module.", "_orig_mod."):
            if found and all(name.startswith(prefix) for name in found):
                found = {name.removeprefix(prefix): value for name, value in found.items()}
        return Checkpoint(found, self.origin)

    def width(self) -> float:
        """Return the average number of bytes of one stored value. The values of Derived tensors are not counted."""
        plain = [stored for stored in self.tensors.values() if isinstance(stored, InFile | Mapped)]
        numbers = sum(math.prod(stored.shape) for stored in plain)
        return sum(math.prod(stored.shape) * stored.dtype.itemsize for stored in plain) / max(1, numbers)

    def read(self, name: str) -> Tensor:
        """Read the whole tensor in its stored dtype."""
        stored = self.tensors[name]
        if not stored.shape:
            return _scalar(stored)
        return stored.rows(0, stored.shape[0])

    def blocks(self, name: str, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of the first row, block) for blocks of `rows` rows; None = blocks of about BLOCK_BYTES."""
        stored = self.tensors[name]
        if rows is None:
            rows = max(1, BLOCK_BYTES // (4 * max(1, math.prod(stored.shape[1:]))))
        for start in range(0, stored.shape[0], rows):
            yield start, stored.rows(start, min(start + rows, stored.shape[0]))

    def copy_to(self, target: Tensor, name: str) -> None:
        """Copy the tensor to `target` block by block. `target` has the same shape, and any dtype and device."""
        if isinstance(self.tensors[name], Derived):
            target.copy_(self.read(name))
            return
        for start, block in self.blocks(name):
            target[start : start + len(block)].copy_(block)

    def check(self, expected: Mapping[str, Shape], ignore: Callable[[str], bool] = lambda name: False) -> None:
        """Check that the checkpoint contains exactly the expected tensors and shapes.

        Raises WeightsUnavailable with the names of the wrong tensors for each difference, with two exceptions. An
        unexpected tensor is ignored if `ignore` returns True for its name. If the only differences are unexpected
        tensors that are not weights of a layer, such as buffers, this method only logs a warning.
        """
        _refuse_other_forms(self)
        missing = [name for name in expected if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in expected and not ignore(name)]
        wrong = [
            f"{name} is {list(self.tensors[name].shape)}, not {list(shape)}"
            for name, shape in expected.items()
            if name in self.tensors and tuple(self.tensors[name].shape) != tuple(shape)
        ]
        if unexpected and not (missing or wrong or any(map(_LAYER_WEIGHT.search, unexpected))):
            log.warning("%s has %d tensors that are not used: %s", self.origin, len(unexpected), some_names(unexpected))
            return
        faults = [
            f"{len(names)} {what}: {some_names(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            if names
        ]
        if faults:
            raise WeightsUnavailable(
                f"The weights in {self.origin} do not match their config.json. Tensors: " + "; ".join(faults) + ".",
                remedy="Download the model again, or check that config.json and weights belong to the same model.",
            )


def _refuse_other_forms(checkpoint: Checkpoint) -> None:
    """Raise WeightsUnavailable if the tensors are quantised or contain a LoRA adapter that is not merged."""
    for sign, what in _OTHER_FORMS.items():
        if (name := next((name for name in checkpoint if sign in name), None)) is not None:
            raise WeightsUnavailable(
                f"{checkpoint.origin} contains {what}, which this server can't read (tensor {name}).",
                remedy="Use the same model in 16 or 32 bits, saved with save_pretrained after merge_and_unload.",
            )


def _scalar(stored: Stored) -> Tensor:
    if isinstance(stored, InFile):
        return InFile(stored.path, stored.dtype, (1,), stored.offset).rows(0, 1)[0]
    raise TypeError("a scalar can be read only from a safetensors file")


def some_names(names: list[str], limit: int = 8) -> str:
    """Return the first `limit` names as a text for a message. The text also says how many names are left out."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more


def index_file(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, InFile]:
    """Read the header of a safetensors file, and return its tensors by name.

    Raises WeightsUnavailable if the file is not valid, or if its header is larger than `max_header_bytes`.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise WeightsUnavailable(f"{path} is not a safetensors file, or the file is truncated.", remedy=AGAIN)
            if length > max_header_bytes:
                raise WeightsUnavailable(
                    f"The header of {path} has {length} bytes, and the limit is {max_header_bytes}.", remedy=AGAIN
                )
            header = json.loads(file.read(length))
        return {
            name: _located(path, name, entry, 8 + length, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsUnavailable(f"{path} can't be read: {error}.", remedy=AGAIN) from error


def _located(path: Path, name: str, entry: Mapping[str, Any], data: int, size: int) -> InFile:
    """Return one tensor of a safetensors file as an InFile. Does not read the values of the tensor.

    entry: the tensor's entry in the header. data: the position in the file at which the values of all tensors begin.
    size: the size of the file in bytes.

    Raises WeightsUnavailable if the type is unknown, the file is too short, or the entry contradicts itself.
    """
    start, stop = map(int, entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        raise WeightsUnavailable(f"{path}: tensor {name} has the unknown type {entry['dtype']}.")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
    if data + stop > size:
        raise WeightsUnavailable(f"{path} is truncated: the file has {size} bytes.", remedy=AGAIN)
    if start < 0 or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != stop - start:
        raise WeightsUnavailable(f"{path} is broken: tensor {name} does not have the size in the header.", remedy=AGAIN)
    return InFile(path, dtype, shape, data + start)


def _open_pickle(path: Path) -> Checkpoint:
    """Open a state dict that PyTorch has saved. No code in the file runs.

    The file is memory-mapped. Otherwise PyTorch would read the whole file into memory.
    """
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        tensors = {str(name): Mapped(value) for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch raises errors of many types for a broken file
        raise WeightsUnavailable(
            f"{path} can't be read as a file of tensors only: {str(error).splitlines()[0]}.", remedy=CONVERT
        ) from error
    return Checkpoint(tensors, str(path))


def open_checkpoints(folder: Path, preferred: str | None = None) -> list[Checkpoint]:
    """Open all complete checkpoints in a folder. The result begins with the checkpoint that is most likely the model.

    A folder may contain a model in two layouts, and file names do not show the layout. So the caller must choose a
    checkpoint by the names of the tensors in it. preferred: the index file or weights file that config.json names.
    Raises WeightsUnavailable if the folder contains no complete checkpoint.
    """
    names = [preferred] if preferred else []
    names += sorted(path.name for path in folder.glob("*.safetensors.index.json"))
    names += ["model.safetensors", *sorted(path.name for path in folder.glob("*.safetensors"))]
    names = [name for name in names if name != ADAPTER_WEIGHTS]
    found: list[Checkpoint] = []
    absent: list[str] = []
    sharded: set[str] = set()
    sets = {shard: each for each in shard_sets(names) for shard in each[0]}
    for name in dict.fromkeys(names):
        path = folder / name
        if not path.is_file():
            if name == preferred:
                absent.append(name)
            continue
        if name.endswith(".index.json"):
            shards = sorted(indexed_shards(path))
            lacking = [shard for shard in shards if not (folder / shard).is_file()]
            if lacking:
                absent += lacking
                sharded.update(set(shards) - set(lacking))
                continue
            sharded.update(shards)
            found.append(_joined(folder, shards, path, weight_map(path)))
        elif name not in sharded:
            shards, lacking = sets.get(name, ([name], []))
            sharded.update(shards)
            if lacking:
                absent += lacking
            else:
                found.append(_joined(folder, shards, path))
    if not found:
        found = [_open_pickle(path) for path in sorted(folder.glob("*.pt*")) if may_hold_a_model(path.name)]
    if not found:
        if (unusable := unusable_files(folder)) is not None:
            raise unusable
        what = f"lacks {some_names(absent)}" if absent else "contains no .safetensors file"
        raise WeightsUnavailable(f"{folder} {what}.", remedy="Download the model again.")
    return found


def _joined(folder: Path, files: Iterable[str], origin: Path, shard_of: Mapping[str, str] | None = None) -> Checkpoint:
    """Join the tensors of several files. shard_of: name of a tensor -> the file that the index names for it.

    Raises WeightsUnavailable if several files have a tensor of the same name, and the index names none of these files.
    """
    tensors: dict[str, InFile] = {}
    twice: dict[str, set[str]] = {}
    shard_of = shard_of or {}
    for file in files:
        for name, stored in index_file(folder / file).items():
            if name in tensors:
                twice.setdefault(name, {tensors[name].path.name}).add(file)
            if name not in tensors or shard_of.get(name) == file:
                tensors[name] = stored
    unclear = [name for name, has in twice.items() if shard_of.get(name) not in has]
    if unclear:
        raise WeightsUnavailable(
            f"Several files of {origin} contain the same tensors, and no index says which file is right: "
            f"{some_names(unclear)}.",
            remedy="Remove files that an earlier save has left, or save the model again.",
        )
    return Checkpoint(tensors, str(origin))


def digest_of(tensors: Iterable[Tensor], of: str) -> str:
    """Return a digest of a text (`of`) and of 16 values of each tensor, as 16 hexadecimal digits."""
    hashed = hashlib.sha256(of.encode())
    for tensor in tensors:
        flat = tensor.detach().flatten()
        hashed.update(flat[:: max(1, flat.numel() // 16)][:16].float().cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]
