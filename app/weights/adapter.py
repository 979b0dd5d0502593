"""Merges a LoRA adapter into the tensors of its base model, as `merge_and_unload` of the library PEFT does.

An adapter is a folder with adapter_config.json and adapter_model.safetensors. adapter_model.safetensors contains two
small matrices A and B for each trained weight W. The merged weight is W + scale * B A. A DoRA adapter also stores a
length for each row; the merge scales each row of the sum to this length. An adapter may also contain whole tensors
(`modules_to_save`, biases) and single rows of an embedding (`trainable_token_indices`). The merge is computed in
float32, block by block, while the model is loaded. This module does not depend on any model, and does not use PEFT.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.errors import WeightsUnavailable
from app.weights.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from app.weights.tensors import Checkpoint, Derived, Shape, Stored, index_file, some_names

log = logging.getLogger(__name__)

MERGE_REMEDY = "Merge the adapter with merge_and_unload of PEFT, save the model, and serve the merged model."

# Options of PEFT that change the meaning of the adapter's tensors. By default, all these options are off.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# Values of init_lora_weights with which PEFT changes the weights of the base before the training.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LORA = re.compile(r"^(?P<module>.+?)\.(?P<part>lora_[A-Za-z_]+|token_adapter\.[a-z_]+)(?P<rest>(\.[^.]+)*)$")
# Limits for the patterns of an adapter: an arbitrary regular expression can take hours for one name. Patterns for names
# of modules need no repeated groups.
_LONGEST_PATTERN, _MOST_REPEATS, _MOST_PATTERNS = 300, 2, 1000
_REPEATED_GROUP = re.compile(r"\)[*+{]")
# Python's interpreter runs no other thread while it parses a header, so a large header would stop all rows that speak.
_MAX_HEADER_BYTES = 2 << 20
_WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)*(base_model\.model\.)?(_orig_mod\.|module\.)*")


@dataclass(slots=True)
class _Update:
    """The changes of an adapter to one tensor of the base."""

    whole: Stored | None = None  # a new tensor that replaces the whole tensor
    own: bool = True  # True = `whole` replaces only this tensor, and a tensor that is tied to it does not change
    a: Stored | None = None  # (r, in) of a linear layer or convolution, (r, rows) of an embedding
    b: Stored | None = None  # (out, r) of a linear layer or convolution, (width, r) of an embedding
    embedding: bool = False
    scale: float = 1.0
    magnitude: Stored | None = None  # DoRA: the length of each row of a weight, or of each column of an embedding
    offset: Stored | None = None  # for a bias: `offset` times `scale` is added to the bias
    rows: Stored | None = None  # new rows that replace the rows `indices`
    indices: tuple[int, ...] = ()


@dataclass(slots=True)
class Adapter:
    """A LoRA adapter. Its tensors are read from the file only when `merge` or `low_rank` needs them."""

    folder: Path
    rank: int  # the rank `r` of adapter_config.json
    digest: str  # digest of the adapter's files
    tensors: int  # the number of tensors in the file
    base: str  # the base model that adapter_config.json names; "" = it names none
    _updates: dict[str, _Update] = field(repr=False)
    _merged: set[str] = field(default_factory=set, repr=False)

    def merge(self, base: Checkpoint, prefix: str = "", tied: Iterable[tuple[str, str]] = ()) -> Checkpoint:
        """Return the tensors of `base` with the changes of the adapter.

        prefix: the adapter puts this text before the names of the tensors of `base`. tied: pairs of names that mean one
        tensor. A change under one name of a pair applies to both names. Raises WeightsUnavailable if the shapes do not
        fit, or if values are NaN or infinite.
        """
        tensors = dict(base.tensors)
        wrong: list[str] = []
        shared = [pair for pair in tied if all(name in tensors for name in pair)]
        for name in base.tensors:
            update = self._updates.get(prefix + name)
            if update is None:
                continue
            self._merged.add(prefix + name)
            own = update.whole is not None and update.own
            names = next((pair for pair in shared if name in pair and not own), (name,))
            if not _is_finite(update):
                raise WeightsUnavailable(
                    f"The adapter in {self.folder} has NaN or infinite values ({prefix}{name}).",
                    remedy="Use an earlier checkpoint of the training.",
                )
            merged = _merged(tensors[name], update)
            if isinstance(merged, str):
                wrong.append(f"{prefix}{name} {merged}")
                continue
            tensors |= dict.fromkeys(names, merged)
        if wrong:
            raise WeightsUnavailable(
                f"The adapter in {self.folder} was trained on another base than {base.origin}: {some_names(wrong)}.",
                remedy="Use the base model that adapter_config.json names.",
            )
        return Checkpoint(tensors, base.origin)

    def low_rank(
        self, frozen: tuple[str, ...], base: Checkpoint | None, remedy: str
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (name of a tensor of the base, A (r, ...), scaled B (..., r)) in float32, to adapt single rows.

        frozen: the adapter must not change a tensor whose name begins with one of these texts. base: the tensors of the
        base; None = the base is not known. Raises WeightsUnavailable with `remedy` if the adapter changes a frozen
        tensor, or changes a tensor in another way than W + B A.

        Two kinds of tensors in the file change nothing and are skipped. First: A and B of a layer that the training
        did not reach, because B is zero there. Second: a whole tensor that is equal to the tensor of the base, because
        PEFT may also save unchanged tensors.
        """
        for name, update in self._updates.items():
            what = _other_change(update)
            if name.startswith(frozen):
                if what == "" and update.b is not None and not _whole(update.b).any():
                    continue
                what = "the codec"
            if not what and update.whole is not None and not _is_equal(update.whole, base, name):
                what = "a whole tensor (modules_to_save or a bias)"
            if what:
                raise WeightsUnavailable(
                    f"The adapter in {self.folder} changes {what} ({name}), which can't differ between the requests of "
                    "one model.",
                    remedy=remedy,
                )
            if update.a is not None and update.b is not None:
                yield name, _whole(update.a), _whole(update.b) * update.scale

    def check_merged(self, model: str, except_for: str | None = None) -> None:
        """Raise WeightsUnavailable if the adapter changes a tensor that was not in the `base` of any call of `merge`.

        except_for: tensors whose names begin with this text are not checked.
        """
        skip = () if except_for is None else (except_for,)
        unknown = [name for name in self._updates if name not in self._merged and not name.startswith(skip)]
        if unknown:
            raise WeightsUnavailable(
                f"The adapter in {self.folder} changes {len(unknown)} tensors that {model} does not have: "
                f"{some_names(unknown)}.",
                remedy=f"Use an adapter that was trained on {model}.",
            )
        if except_for is None:
            log.info("merged the adapter in %s: %d tensors, rank %d", self.folder, len(self._merged), self.rank)


def open_adapter(folder: Path, rename: Callable[[str], str] = lambda name: name) -> Adapter:
    """Read adapter_config.json and the header of the adapter's weights in `folder`.

    rename: converts a tensor's name from the modules of transformers to the name in a checkpoint. Raises
    WeightsUnavailable if the adapter is not a LoRA adapter, or if a file is missing or broken.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    _refuse_other_methods(folder, config)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise WeightsUnavailable(
            f"{folder} contains {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}.",
            remedy="Save the adapter with save_pretrained(..., safe_serialization=True).",
        )
    stored = index_file(weights, _MAX_HEADER_BYTES)
    if not stored:
        raise WeightsUnavailable(f"{weights} contains no tensors.", remedy="Save the adapter again.")
    try:
        updates = _updates_of(stored, config, rename)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise WeightsUnavailable(
            f"The adapter in {folder} can't be read: {error}.", remedy="Save the adapter again."
        ) from error
    hashed = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    base = str(config.get("base_model_name_or_path") or "")
    return Adapter(folder, int(config.get("r") or 0), hashed.hexdigest()[:16], len(stored), base, updates)


def _refuse_other_methods(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise WeightsUnavailable unless the adapter is a LoRA adapter that this server can merge."""
    kind = str(config.get("peft_type") or "LORA").upper()
    used = [name for name in _UNSUPPORTED if config.get(name)]
    start = str(config.get("init_lora_weights", "")).lower()
    if kind != "LORA":
        what = f"is a {kind} adapter"
    elif used:
        what = f"uses {' and '.join(used)}"
    elif start.startswith(_CHANGED_BASE):
        what = f"was trained on a changed base (init_lora_weights={start})"
    else:
        return
    raise WeightsUnavailable(
        f"The adapter in {folder} {what}, and this server merges only LoRA adapters of an unchanged base.",
        remedy=MERGE_REMEDY,
    )


def _updates_of(
    stored: Mapping[str, Stored], config: Mapping[str, Any], rename: Callable[[str], str]
) -> dict[str, _Update]:
    """Return a mapping: name of a tensor of the base -> the adapter's changes to this tensor."""
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(option) or ()
        if len(patterns) > _MOST_PATTERNS:
            raise ValueError(f"{option} contains {len(patterns)} patterns, and the limit is {_MOST_PATTERNS}")
        for pattern in patterns:
            repeats = len(re.findall(r"[*+]", pattern))
            if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or _REPEATED_GROUP.search(pattern):
                raise ValueError(f"{option} contains {pattern[:40]!r}, which is not a simple pattern")
    updates: dict[str, _Update] = {}
    adapters: set[str] = set()
    keys: dict[tuple[str, str], list[str]] = {}  # (name of a tensor of the base, kind of change) -> keys in the file

    def update(module: str, kind: str = "weight") -> _Update:
        return updates.setdefault(rename(f"{module}.{kind}"), _Update())

    ranks: dict[str, tuple[Stored, str]] = {}  # module -> (matrix A, name of the matrix in the file)
    for key, tensor in stored.items():
        name = _WRAPPERS.sub("", key)
        if ".original_module." in name:
            continue  # PEFT also saves a copy of the unchanged tensor of the base; skip it
        if (match := _LORA.match(name)) is None:
            name = re.sub(r"\.modules_to_save(\.[^.]+(?=\.))?", "", name).replace(".base_layer.", ".")
            target = updates.setdefault(rename(name), _Update())
            keys.setdefault((rename(name), ""), []).append(key)
            target.whole, target.own = tensor, ".base_layer." not in key
            continue
        module, part = match["module"].replace(".base_layer", ""), match["part"]
        rest = [each for each in match["rest"].split(".") if each]
        kind = rest.pop() if rest and rest[-1] in ("weight", "bias") else "weight"
        adapters.update(rest)
        keys.setdefault((rename(f"{module}.{kind}"), part), []).append(key)
        scale = _scale(module, config)
        if part == "token_adapter.trainable_tokens_delta":
            target = update(module)
            target.rows, target.indices = tensor, _token_indices(module, config)
        elif part in ("lora_A", "lora_embedding_A") and kind == "weight":
            target = update(module)
            target.a, target.embedding, target.scale = tensor, part != "lora_A", scale
            ranks[module] = tensor, key
        elif part in ("lora_B", "lora_embedding_B") and kind == "weight":
            update(module).b = tensor
        elif part == "lora_B":
            target = update(module, "bias")
            target.offset, target.scale = tensor, scale
        elif part == "lora_magnitude_vector":
            update(module).magnitude = tensor
        elif not part.startswith("token_adapter."):
            raise ValueError(f"the meaning of the adapter's tensor {key} is not known")
    if len(adapters) > 1:
        raise ValueError(f"the file contains several adapters ({', '.join(sorted(adapters))}); save one adapter alone")
    if same := next((each for each in keys.values() if len(each) > 1), None):
        raise ValueError(f"{' and '.join(same)} are the same tensor")
    halves = [name for name, each in updates.items() if (each.a is None) != (each.b is None)]
    if halves:
        raise ValueError(f"A or B of LoRA is missing for {some_names(halves)}")
    for module, (matrix, key) in ranks.items():
        rank = _rank(module, config)
        if rank and matrix.shape[0] % rank:
            raise ValueError(f"{key} has rank {matrix.shape[0]}, but {ADAPTER_CONFIG} says {rank}")
    return updates


def _rank(module: str, config: Mapping[str, Any]) -> int:
    return int(_of_pattern(config.get("rank_pattern"), module, config.get("r") or 0))


def _scale(module: str, config: Mapping[str, Any]) -> float:
    """Return the factor of the product B A for a module: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    rank = _rank(module, config)
    if rank <= 0:
        raise ValueError(f"{ADAPTER_CONFIG} has no rank `r`")
    alpha = float(_of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the name `module`, as PEFT does.

    patterns: pattern -> value. If no pattern matches, returns `default`.
    """
    for pattern, value in (patterns or {}).items():
        if _ending_in(pattern).match(module):
            return value
    return default


@functools.lru_cache(2 * _MOST_PATTERNS)
def _ending_in(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _token_indices(module: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the indices of the rows of an embedding that the adapter replaces."""
    given = config.get("trainable_token_indices") or {}
    if isinstance(given, list):
        return tuple(map(int, given))
    for name, indices in given.items():
        if module == name or module.endswith(f".{name}"):
            return tuple(map(int, indices))
    raise ValueError(f"trainable_token_indices does not name {module}")


# ---- the merged tensors


@dataclass(slots=True)
class _Merged:
    """A tensor of the base with the changes of an adapter. The merge is computed when the tensor is read."""

    base: Stored
    update: _Update
    _read: tuple[Tensor, Tensor] | None = None
    _factors: Tensor | None = None  # for an embedding with DoRA: the factor by which each column is multiplied

    @property
    def shape(self) -> Shape:
        return tuple(self.base.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        update = self.update
        rows = self._sum(start, stop)
        if update.magnitude is not None:
            if update.embedding:
                rows *= self._column_factors()
            else:
                lengths = _whole(update.magnitude).flatten()[start:stop] / rows.flatten(1).norm(dim=1)
                rows *= lengths.view(-1, *[1] * (rows.ndim - 1))
        if update.offset is not None:
            rows += update.scale * _whole(update.offset)[start:stop]
        if update.rows is not None:
            replaced = _whole(update.rows)
            for source, index in enumerate(update.indices):
                if start <= index < stop:
                    rows[index - start] = replaced[source]
        return rows

    def _sum(self, start: int, stop: int) -> Tensor:
        """Return W + scale * B A for these rows."""
        update = self.update
        rows = self.base.rows(start, stop).to(torch.float32, copy=True)
        if update.a is None or update.b is None:
            return rows
        if self._read is None:
            self._read = _whole(update.a), _whole(update.b)
        a, b = self._read
        if update.embedding:
            delta = (a[:, start:stop].T @ b.T) * update.scale
        elif rows.ndim == 3 and a.ndim == 2:  # the tensor is a stack of matrices (PEFT's option `target_parameters`)
            count = self.shape[0]
            a = a.view(count, -1, a.shape[1])[start:stop]
            b = b.view(b.shape[0], -1, count)[..., start:stop]
            form = "ore,eri->eoi" if (b.shape[0], a.shape[-1]) == self.shape[1:] else "ore,eri->eio"
            delta = torch.einsum(form, b, a) * update.scale
        else:
            delta = (b[start:stop].flatten(1) @ a.flatten(1)).view_as(rows) * update.scale
        return rows.add_(delta)

    def _column_factors(self) -> Tensor:
        """Return the factor by which DoRA multiplies each column of an embedding.

        The first call reads the whole embedding.
        """
        if self._factors is None:
            step = max(1, (8 << 20) // max(1, self.shape[1]))
            squares = torch.zeros(self.shape[1], dtype=torch.float64)
            for start in range(0, self.shape[0], step):
                squares += self._sum(start, min(start + step, self.shape[0])).double().square().sum(dim=0)
            assert self.update.magnitude is not None  # noqa: S101 - the only caller has checked it
            self._factors = _whole(self.update.magnitude).flatten() / squares.sqrt().float()
        return self._factors


def _other_change(update: _Update) -> str:
    """Return a description of the change if it is neither W + B A nor a whole tensor; "" = it is one of these two."""
    if update.magnitude is not None:
        return "the length of weights (DoRA)"
    if update.rows is not None:
        return "single rows of an embedding (trainable_token_indices)"
    if update.embedding:
        return "an embedding"
    return "a bias" if update.offset is not None else ""


def _is_equal(whole: Stored, base: Checkpoint | None, name: str) -> bool:
    """Whether a tensor of the adapter is equal to the base's tensor, converted to the dtype of the adapter's tensor."""
    if base is None or name not in base or tuple(base.tensors[name].shape) != tuple(whole.shape):
        return False
    pairs = ((block, whole.rows(start, start + len(block))) for start, block in base.blocks(name))
    return all(torch.equal(ours.to(theirs.dtype), theirs) for ours, theirs in pairs)


def _is_finite(update: _Update) -> bool:
    """Whether no value of an update is NaN or infinite. Reads the values in blocks."""
    stored = (update.whole, update.a, update.b, update.magnitude, update.offset, update.rows)
    return all(
        bool(block.isfinite().all())
        for each in stored
        if each is not None and each.shape
        for _, block in Checkpoint({"": each}, "").blocks("")
    )


def _whole(stored: Stored) -> Tensor:
    return stored.rows(0, stored.shape[0]).float()


def _merged(base: Stored, update: _Update) -> Stored | str:
    """Return the tensor `base` with the changes of `update`, or a description of the fault if the shapes do not fit."""
    shape = tuple(base.shape)
    if update.whole is not None:
        if tuple(update.whole.shape) != shape:
            return f"is {list(shape)} in the base and {list(update.whole.shape)} in the adapter"
        base = update.whole
    if (fault := _fault(shape, update)) is not None:
        return fault
    if update.a is update.offset is update.rows is None:
        return base
    merged = _Merged(base, update)
    # Each read of a Derived tensor computes the whole tensor, so the merge reads it only once, and not in blocks.
    return Derived(shape, lambda: merged.rows(0, shape[0])) if isinstance(base, Derived) else merged


def _fault(shape: Shape, update: _Update) -> str | None:
    """Describe why an update does not fit a tensor of this shape; None = the update fits."""
    if update.a is not None and update.b is not None:
        a, b = tuple(update.a.shape), tuple(update.b.shape)
        if update.embedding:
            fits = shape == (a[1], b[0]) and a[0] == b[1]
        elif len(shape) == 3 and len(a) == 2:
            fits = a[0] == b[1] and a[0] % shape[0] == 0 and shape[1:] in ((b[0], a[1]), (a[1], b[0]))
        else:
            fits = shape == (b[0], *a[1:]) and a[0] == b[1]
        if not fits:
            return f"is {list(shape)} in the base, and the adapter has A {list(a)} and B {list(b)}"
        if update.magnitude is not None:
            length = math.prod(update.magnitude.shape)
            if length != shape[1 if update.embedding else 0]:
                return f"is {list(shape)} in the base, and the adapter has {length} lengths of DoRA"
    if update.offset is not None and tuple(update.offset.shape) != shape:
        return f"is {list(shape)} in the base and {list(update.offset.shape)} in the adapter"
    if update.rows is not None and (
        update.rows.shape[1:] != shape[1:]
        or update.rows.shape[0] != len(update.indices)
        or not all(0 <= index < shape[0] for index in update.indices)
    ):
        return f"is {list(shape)} in the base, and the adapter replaces {len(update.indices)} of its rows"
    return None
