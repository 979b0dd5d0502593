"""Checks without a GPU whether work could be captured as a CUDA graph.

The work runs on tensors of the "meta" device, which have shapes but no values, and each operation is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
_ASKS_THE_HOST = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal.default")


class OnlyOnTheDevice(TorchDispatchMode):
    """Raises AssertionError if an operation needs a value or a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        assert not any(part in name for part in _ASKS_THE_HOST), f"{name} waits for the device"
        result = func(*args, **kwargs)
        for leaf in [*tree_leaves((args, kwargs)), *tree_leaves(result)]:
            if isinstance(leaf, torch.Tensor):
                assert leaf.device.type == "meta" or leaf.ndim == 0, f"{name} touches a tensor of the host"
        self.count += 1
        return result


def operations(work: Callable[[], None]) -> int:
    """Count the operations of `work`. Raises AssertionError if a CUDA graph could not capture them."""
    with OnlyOnTheDevice() as counter:
        work()
    return counter.count


class OnlyPinnedUploads(TorchFunctionMode):
    """Raises AssertionError if values of the host are copied to the device, except by `upload`.

    On a CUDA device, such a copy waits until the device has finished all queued work. Replace `upload` in the tested
    modules by the method `upload` of this class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.uploads = 0

    def upload(self, values: Tensor, device: torch.device) -> Tensor:
        assert values.device.type == "cpu", "upload copies from the host"
        self.uploads += 1
        return torch.empty_like(values, device=device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            assert torch.device(kwargs.get("device") or "cpu").type == "cpu", f"{func.__name__} waits for the device"
        result = func(*args, **kwargs)
        if func in (Tensor.to, Tensor.cuda, Tensor.copy_) and isinstance(args[0], Tensor):
            source = args[1] if func is Tensor.copy_ else args[0]
            moved = isinstance(source, Tensor) and source.device.type == "cpu" != result.device.type
            assert not moved, f"{func.__name__} waits for the device"
        return result
