"""Counts the kernels that a captured step launches on a GPU. Needs no GPU, no Triton and no weights.

    python -m bench.launches [--rows 1,8] [--size full]

The step runs on tensors of the "meta" device, which have shapes but no values. Each operation of torch that is not a
view or an allocation counts as one launch, so the numbers of torch are a lower limit: a few operations, for example
`topk`, launch several kernels. The launches of the Triton kernels are exact: the real launch functions run, with a
substitute for Triton that only counts. A CSM frame has 1 backbone step, 32 steps of the depth decoder, 32 draws and one
frame of the codec. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.engines.csm.config import parse_config as parse_csm_config
from app.engines.csm.cuda_graph import BucketKey as CsmKey
from app.engines.csm.cuda_graph import CsmCudaGraph
from app.engines.csm.model import CsmModel
from app.engines.dia.config import parse_config as parse_dia_config
from app.engines.dia.cuda_graph import BucketKey as DiaKey
from app.engines.dia.cuda_graph import DiaCudaGraph
from app.engines.dia.delay import DelayPattern
from app.engines.dia.model import DiaModel
from app.nn.kernels import sets
from app.nn.kernels.sets import Kernels
from app.nn.mimi.config import read_mimi_config
from app.nn.mimi.model import MimiDecoder
from tests.support.random_csm import csm_config
from tests.support.random_dia import SHAPES, dia_config, dia_config_v01

META = torch.device("meta")
# the modules of app.nn.kernels that import Triton
_MODULES = (
    "triton_launch",
    "triton_kernels",
    "triton_state",
    "triton_state_kernels",
    "persistent_launch",
    "persistent_kernel",
)
_LAUNCHERS = tuple(f"app.nn.kernels.{name}" for name in _MODULES)
_ALLOCATIONS = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "scalar_tensor"))
# operations that always consist of several kernels
_SEVERAL = {"isfinite": 4, "masked_fill": 2}


class LaunchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the launches of torch's operations by name. On meta tensors, no operation launches a kernel itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        inputs = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        is_view = all(_storage(leaf) in inputs for leaf in outputs)
        if name not in _ALLOCATIONS and (func._schema.is_mutable or not is_view):
            self.counts[name] += _SEVERAL.get(name, 1)
        return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Launched:
    """Stands for a Triton kernel: a launch is only counted."""

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self._name, self._counts = name, counts

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*_: object, **__: object) -> None:
            self._counts[f"triton {self._name}"] += 1

        return launch


def _jit(counts: Counter[str], function: Any = None, **_: object) -> Any:
    """Stand for `triton.jit`, which decorates a function with options or without them."""
    return partial(_jit, counts) if function is None else _Launched(function.__name__, counts)


@contextlib.contextmanager
def counted_kernels(counts: Counter[str]) -> Iterator[Callable[[], tuple[Kernels, ...]]]:
    """Yield a function that returns the kernel sets of torch and Triton. Triton's launches are added to `counts`."""
    # Torch imports this module at some operations on meta tensors. It must not find the substitute for Triton.
    importlib.import_module("torch._dynamo")
    package = sys.modules["app.nn.kernels"]
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name in _LAUNCHERS or _is_triton(name)}
    attributes = {name: package.__dict__.pop(name) for name in _MODULES if name in vars(package)}
    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit = partial(_jit, counts)  # type: ignore[attr-defined]
    triton.next_power_of_2 = lambda number: 1 << (number - 1).bit_length()  # type: ignore[attr-defined]
    triton.language = language  # type: ignore[attr-defined]
    language.constexpr = lambda value: value  # type: ignore[attr-defined]
    sys.modules |= {"triton": triton, "triton.language": language}
    try:
        yield lambda: (
            sets.TORCH,
            fused := sets.fused_kernels(),
            replace(fused, name="triton-linear"),
            replace(fused, name="persistent"),
        )
    finally:
        for name in [name for name in sys.modules if name in _LAUNCHERS or _is_triton(name)]:
            del sys.modules[name]
        for name in _MODULES:
            package.__dict__.pop(name, None)
        sys.modules |= ours
        for name, module in attributes.items():
            setattr(package, name, module)


def _is_triton(name: str) -> bool:
    return name.partition(".")[0] == "triton"


def csm_step(size: str, rows: int) -> tuple[Callable[[Kernels], None], Callable[[Kernels], None]]:
    """Return two functions: one computes a frame of CSM on meta tensors, and one only the codec's part of it."""
    raw = csm_config(size)
    model = CsmModel(parse_csm_config(raw), device=META, dtype=torch.bfloat16)
    decoder = MimiDecoder(read_mimi_config(raw["codec_config"]), rows=rows, device=META)
    inputs = torch.zeros(rows, model.config.backbone.width, device=META, dtype=model.dtype)
    cache = model.kv_cache(rows, batched=True, scratch=1)
    graph = CsmCudaGraph(model, decoder, cache, model.depth_kv_cache(rows), inputs)
    codes = torch.zeros(rows, model.config.codebooks, dtype=torch.int64, device=META)
    active = torch.ones(rows, dtype=torch.bool, device=META)
    key = CsmKey(min(512, model.config.max_positions), fast_path=True)

    def codec(kernels: Kernels) -> None:
        decoder.frame(codes, active, kernels)

    return lambda kernels: graph.advance(rows, key, kernels), codec


def dia_step(size: str, rows: int, release: str = "0626") -> Callable[[Kernels], None]:
    """Return a function that computes a step of Dia on meta tensors. release: "0626" or "v0.1"."""
    config = parse_dia_config((dia_config if release == "0626" else dia_config_v01)(SHAPES[size]))
    model = DiaModel(config, device=META, dtype=torch.bfloat16)
    cache = model.cache(rows, batched=True, scratch=1)
    graph = DiaCudaGraph(model, cache, DelayPattern(config, rows, META), rows=rows, burst=2)
    key = DiaKey(min(512, config.max_positions), min(256, config.max_text), fast_path=True)
    return lambda kernels: graph.advance(rows, key, kernels)


def launches(step: Callable[[Kernels], None]) -> dict[str, Counter[str]]:
    """Return a mapping: name of a kernel set -> the number of launches of `step` with this set, by operation."""
    found: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    with counted_kernels(counts) as sets, torch.inference_mode():
        for kernels in sets():
            step(kernels)  # creates views that the model keeps for later steps
            counts.clear()
            with LaunchCounter() as counter:
                step(kernels)
            found[kernels.name] = counter.counts + counts
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1", help="numbers of rows, separated by commas")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    args = parser.parse_args()
    result: dict[str, dict[str, int]] = {}
    for rows in map(int, args.rows.split(",")):
        frame, codec = csm_step(args.size, rows)
        dia, dia_v01 = (dia_step(args.size, rows, release) for release in ("0626", "v0.1"))
        for name, step in (("csm", frame), ("csm, only the codec", codec), ("dia", dia), ("dia v0.1", dia_v01)):
            for kernels, counts in launches(step).items():
                result.setdefault(f"{name}, {rows} rows", {})[kernels] = counts.total()
                print(f"{name}, {rows} rows, {kernels}: {counts.total()}", dict(counts.most_common()), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
