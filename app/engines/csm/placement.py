"""Placement of the backbone's layers on devices, computed from measured bytes. Does not use tensors.

The first device holds everything that is not a backbone layer (tables, final norm, heads, depth decoder, codec), and
the first layers. The other devices hold only layers, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

from app.errors import EngineUnavailable

DeviceMap = Literal["auto", "balanced", "sequential"]
MARGIN = Fraction(11, 10)  # a device must have 10 % more free memory than its part of the model needs


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the model in memory."""

    fixed_bytes: int  # everything that stays on the first device
    layers_bytes: tuple[int, ...]  # each backbone layer, with its keys and values of all rows

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + sum(self.layers_bytes)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Free memory of a device. Devices with the same name share their memory."""

    name: str
    free_bytes: int


def plan(device_map: DeviceMap, sizes: Sizes, devices: Sequence[DeviceMemory]) -> tuple[int, ...]:
    """Compute how many layers each device gets, the first device first. Raises EngineUnavailable if they do not fit.

    auto: all layers on the first device if they fit there, else as balanced.
    balanced: the bytes per device are as equal as consecutive layers allow.
    sequential: each device is filled before the next one is used.
    """
    if device_map == "sequential":
        counts = _sequential(sizes, devices)
    elif device_map == "auto" and sizes.total_bytes * MARGIN <= devices[0].free_bytes:
        counts = (len(sizes.layers_bytes), *[0] * (len(devices) - 1))
    else:
        counts = _balanced(sizes, len(devices))
    _check(device_map, sizes, devices, counts)
    return counts


def bytes_per_device(sizes: Sizes, counts: Sequence[int]) -> list[int]:
    """Bytes on each device, given the number of layers on each."""
    found, first = [], 0
    for index, count in enumerate(counts):
        found.append(sum(sizes.layers_bytes[first : first + count]) + (0 if index else sizes.fixed_bytes))
        first += count
    return found


def _balanced(sizes: Sizes, devices: int) -> tuple[int, ...]:
    """The split with the smallest sum of squared bytes; among equals, the one with more layers on earlier devices."""
    layers = sizes.layers_bytes

    @cache
    def best(device: int, first: int) -> tuple[int, tuple[int, ...]]:
        """(sum of squares, negated layer counts) for the layers from `first` on, on the devices from `device` on."""
        load = 0 if device else sizes.fixed_bytes
        if device == devices - 1:
            return (load + sum(layers[first:])) ** 2, (first - len(layers),)
        found = []
        for end in range(first, len(layers) + 1):
            squares, rest = best(device + 1, end)
            found.append((load**2 + squares, (first - end, *rest)))
            load += layers[end] if end < len(layers) else 0
        return min(found)

    return tuple(-count for count in best(0, 0)[1])


def _sequential(sizes: Sizes, devices: Sequence[DeviceMemory]) -> tuple[int, ...]:
    """Fill each device before the next one. The last device gets the rest, even if it does not fit."""
    left = {device.name: device.free_bytes / MARGIN for device in devices}
    left[devices[0].name] -= sizes.fixed_bytes
    counts = [0] * len(devices)
    index = 0
    for size in sizes.layers_bytes:
        while index < len(devices) - 1 and size > left[devices[index].name]:
            index += 1
        left[devices[index].name] -= size
        counts[index] += 1
    return tuple(counts)


def _check(device_map: DeviceMap, sizes: Sizes, devices: Sequence[DeviceMemory], counts: Sequence[int]) -> None:
    """Check that every device has enough free memory. Raises EngineUnavailable."""
    needed: dict[str, int] = {}
    for device, load in zip(devices, bytes_per_device(sizes, counts), strict=True):
        needed[device.name] = needed.get(device.name, 0) + load
    free = {device.name: device.free_bytes for device in devices}
    short = [
        f"{name} would need {float(need * MARGIN) / 1e9:.2f} GB and has {free[name] / 1e9:.2f} GB free"
        for name, need in needed.items()
        if need * MARGIN > free[name]
    ]
    if short:
        other = "" if device_map == "sequential" else ", or set CSM_DEVICE_MAP=sequential if the devices differ in size"
        raise EngineUnavailable(
            f"CSM does not fit on the devices of TTS_DEVICES: {'; '.join(short)}.",
            remedy=f"Name more or larger devices in TTS_DEVICES, set a smaller TTS_MAX_ROWS{other}.",
        )
