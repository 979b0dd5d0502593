"""The load cache stores the parameters of a loaded model on disk, so that the next start is faster.

Without this cache, each start of a bfloat16 model reads float32 weights, which are twice as large as bfloat16 weights,
and converts and joins the tensors. The cache stores the result as one safetensors file. The name of the file is a
digest of the names, sizes and times of the weights files, of the config and of the dtype. A read checks the CRC-32 of
each tensor. So a read detects a truncated or damaged file, and the model is then loaded without the cache and written
again. That is why a write does not wait until the bytes are on disk. Errors of the cache are logged and do not stop a
start. This module does not depend on any model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

MIN_BYTES = 64 << 20  # models with fewer bytes are not cached, because they load as fast from their source
SPARE_BYTES = 1 << 30  # disk space that must stay free for other programs
_LAYOUT = 1  # increase this number if a new version of the code changes the layout of parameters
_BLOCK_BYTES = 8 << 20  # size of a block in bytes; a block fits into the CPU's cache
_READERS = 4
_STALE_S = 3600  # partial files older than this number of seconds are removed, because no process writes them any more
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.pt", "*.pth")


class _Unusable(Exception):
    """The cached file can't be used. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class LoadCache:
    """A folder of cached models. For each source, only the newest entry is kept.

    source: a name for the origin of the weights that is the same at each start, for example a hub id.
    """

    folder: Path
    source: str
    min_bytes: int = MIN_BYTES

    def entry(self, model_dir: Path, config: object, dtype: torch.dtype) -> Entry:
        """Return the cache entry for the model in `model_dir` with `config` and `dtype`."""
        hashed = hashlib.sha256(f"{_LAYOUT} {dtype} {config!r}".encode())
        for path in sorted({path for pattern in _WEIGHTS for path in model_dir.glob(pattern) if path.is_file()}):
            status = path.stat()
            hashed.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        return Entry(self, hashed.hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in the cache. The file of the entry may not exist yet."""

    cache: LoadCache
    key: str

    @property
    def path(self) -> Path:
        return self.cache.folder / f"{self.key}.safetensors"

    def fill(self, module: nn.Module) -> bool:
        """Read all parameters of `module` from the file. Returns True if the read was successful.

        If the file is missing or invalid, returns False. Then the parameters have undefined values.
        """
        start = time.perf_counter()
        try:
            total = self._read(module)
        except FileNotFoundError:
            return False
        except (_Unusable, OSError) as error:
            log.warning("the load cache can't use the file %s, so the file will be written again: %s", self.path, error)
            return False
        log.info("read %.2f GB from %s in %.1f s", total / 1e9, self.path, time.perf_counter() - start)
        return True

    def keep(self, module: nn.Module) -> None:
        """Write all parameters of `module` to the file, and remove all other entries of the same source.

        Does not write a module smaller than `min_bytes`. If the write fails, logs a warning and raises no error.
        """
        total = sum(tensor.nbytes for tensor in module.parameters())
        if total < self.cache.min_bytes:
            return
        start = time.perf_counter()
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            self._remove_old()
            free = shutil.disk_usage(self.cache.folder).free
            if free < total + SPARE_BYTES:
                log.warning(
                    "the load cache does not write %.2f GB: %s has %.2f GB of free space, but %.2f GB must stay free",
                    total / 1e9, self.cache.folder, free / 1e9, SPARE_BYTES / 1e9,
                )  # fmt: skip
                return
            self._write(module)
        except OSError as error:
            log.warning("the load cache can't write %s, so the next start will not be faster: %s", self.path, error)
            return
        log.info("wrote %.2f GB to %s in %.1f s", total / 1e9, self.path, time.perf_counter() - start)

    def _read(self, module: nn.Module) -> int:
        expected, length = _described(self.key, module)
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(size, _MAX_HEADER_BYTES):
                raise _Unusable("the file has no header")
            try:
                header = json.loads(file.read(header_bytes))
                header["__metadata__"].pop("source")
                sums: dict[str, int] = json.loads(header["__metadata__"].pop("crc32"))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise _Unusable(f"the header of the file can't be read ({error!r})") from error
        if header != expected or sums.keys() != expected.keys() - {"__metadata__"}:
            raise _Unusable("the file contains another model")
        if size != 8 + header_bytes + length:
            raise _Unusable(f"the file has {size} bytes, not {8 + header_bytes + length}")

        def read(name: str, tensor: Tensor) -> None:
            found = _fill(self.path, 8 + header_bytes + header[name]["data_offsets"][0], tensor)
            if found != sums[name]:
                raise _Unusable(f"the checksum of {name} is wrong")

        with ThreadPoolExecutor(_READERS, thread_name_prefix="load-cache") as readers:
            for done in [readers.submit(read, name, tensor) for name, tensor in module.named_parameters()]:
                done.result()
        return length

    def _write(self, module: nn.Module) -> None:
        header, _ = _described(self.key, module)
        sums = {}
        for name, tensor in module.named_parameters():
            crc = 0
            for block in _blocks(tensor):
                crc = zlib.crc32(_bytes(block), crc)
            sums[name] = crc
        header["__metadata__"] |= {"source": self.cache.source, "crc32": json.dumps(sums)}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        partial = self.path.with_name(f".{self.key}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as file:
                file.write(len(encoded).to_bytes(8, "little") + encoded)
                for tensor in module.parameters():
                    for block in _blocks(tensor):
                        file.write(_bytes(block))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _remove_old(self) -> None:
        """Remove all other entries of this entry's source, and all partial files older than _STALE_S."""
        for path in self.cache.folder.glob("*.safetensors"):
            if path != self.path and _source(path) == self.cache.source:
                path.unlink(missing_ok=True)
        for path in self.cache.folder.glob(".*.partial"):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


def _described(key: str, module: nn.Module) -> tuple[dict[str, Any], int]:
    """Return the header that a file for `module` has, and the size in bytes of the data after the header.

    The source and the checksums, which a file also has in its header, are not in the returned header.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "key": key}}
    offset = 0
    for name, tensor in module.named_parameters():
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    return header, offset


def _source(path: Path) -> str | None:
    """Return the source of a cached file, or None if `path` is not a file of the load cache."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                return None
            metadata = json.loads(file.read(length))["__metadata__"]
            return str(metadata["source"]) if "key" in metadata else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Split a tensor into flat blocks of _BLOCK_BYTES."""
    flat = tensor.detach().view(-1)
    step = _BLOCK_BYTES // flat.element_size()
    for start in range(0, len(flat), step):
        yield flat[start : start + step]


def _bytes(block: Tensor) -> memoryview:
    """Return the bytes of a block: a view if the block is on the CPU, or else a copy."""
    return block.cpu().view(torch.uint8).numpy().data


def _fill(path: Path, offset: int, tensor: Tensor) -> int:
    """Read the values of `tensor` from the file, and return the CRC-32 of the bytes.

    offset: the position of the values in the file. If the tensor is on the CPU, the values are read directly into the
    tensor's memory.
    """
    crc = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        for block in _blocks(tensor):
            here = block if block.device.type == "cpu" else torch.empty_like(block, device="cpu")
            view = _bytes(here)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise _Unusable("the file is truncated")
                done += count
            crc = zlib.crc32(view, crc)
            if here is not block:
                block.copy_(here)
    return crc
