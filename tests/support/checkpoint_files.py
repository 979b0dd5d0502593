"""Random tensors by name, and safetensors files written tensor by tensor, for any model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from app.weights.tensors import Shape

# One block of numbers is repeated from another offset for each tensor: 1.6 billion draws would take minutes.
_BLOCK = 1 << 22
_SHARD_BYTES = 5 << 30

Make = Callable[[str, Shape], torch.Tensor]


class Draw:
    """Standard normal numbers that depend on a tensor's name and the seed only."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = torch.empty(_BLOCK).normal_(generator=torch.Generator().manual_seed(seed))

    def normal(self, name: str, shape: Shape) -> torch.Tensor:  # float32
        count = math.prod(shape)
        start = int.from_bytes(hashlib.sha256(f"{self._seed} {name}".encode()).digest()[:4], "little") % _BLOCK
        numbers = torch.empty(count)
        done = 0
        while done < count:
            part = self._block[start : start + count - done]
            numbers[done : done + len(part)] = part
            done, start = done + len(part), 0
        return numbers.view(shape)


def write_file(path: Path, tensors: Mapping[str, Shape], make: Make, dtype: torch.dtype) -> None:
    """Write a safetensors file tensor by tensor, so that only one tensor is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, shape in tensors.items():
            tensor = make(name, shape).to(dtype).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def write_shards(out: Path, stem: str, parts: list[dict[str, Shape]], make: Make, dtype: torch.dtype) -> str:
    """Write the files `stem`-0000i-of-0000n.safetensors and their index; return the name of the index."""
    weight_map: dict[str, str] = {}
    for i, part in enumerate(parts, 1):
        file = f"{stem}-{i:05}-of-{len(parts):05}.safetensors"
        write_file(out / file, part, make, dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(math.prod(shape) for part in parts for shape in part.values()) * dtype.itemsize
    index = f"{stem}.safetensors.index.json"
    (out / index).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def shards(tensors: Mapping[str, Shape], itemsize: int) -> Iterator[dict[str, Shape]]:
    """Split the tensors into parts of at most 5 GiB, as published checkpoints do."""
    part: dict[str, Shape] = {}
    size = 0
    for name, shape in tensors.items():
        count = math.prod(shape) * itemsize
        if part and size + count > _SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = shape
        size += count
    yield part


def halves(tensors: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    names = list(tensors)
    middle = len(names) // 2
    return [{name: tensors[name] for name in part} for part in (names[:middle], names[middle:])]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
