"""Distributes the backbone's layers over several devices, by their size in bytes. This module does not use tensors.

The first device has the first layers, and all parts of the model that are not backbone layers: tables, final norm,
heads, depth decoder and codec. Each later device has only backbone layers: it continues with the layer after the last
layer of the previous device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

from app.errors import EngineUnavailable

DeviceMap = Literal["auto", "balanced", "sequential"]
MARGIN = Fraction(11, 10)  # a device needs this many bytes of free memory for each byte of the model on it


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of the model in memory."""

    fixed_bytes: int  # size of all parts that are not backbone layers; they are on the first device
    layers_bytes: tuple[int, ...]  # size of each backbone layer, with its keys and values for all rows

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + sum(self.layers_bytes)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Free memory of a device. Devices with the same name share their memory."""

    name: str
    free_bytes: int


def plan(device_map: DeviceMap, sizes: Sizes, devices: Sequence[DeviceMemory]) -> tuple[int, ...]:
    """Return the number of layers of each device. Raises EngineUnavailable if the model does not fit.

    auto: all layers are on the first device if the whole model fits there; otherwise the same as balanced.
    balanced: all devices have about the same number of bytes.
    sequential: each device is filled before the next device gets layers.
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
    """Return the number of bytes on each device. counts: the number of layers on each device."""
    found, first = [], 0
    for index, count in enumerate(counts):
        found.append(sum(sizes.layers_bytes[first : first + count]) + (0 if index else sizes.fixed_bytes))
        first += count
    return found


def _balanced(sizes: Sizes, devices: int) -> tuple[int, ...]:
    """Return the number of layers of each device, so that the sum of the squares of the devices' bytes is smallest.

    If several results have the same sum, returns the result with more layers on the earlier devices.
    """
    layers = sizes.layers_bytes

    @cache
    def best(device: int, first: int) -> tuple[int, tuple[int, ...]]:
        """Distribute the layers from `first` to the last layer over the devices from `device` to the last device.

        Returns the smallest possible sum of the squares of the devices' bytes, and for each device the number of its
        layers times -1. Because these numbers are negative, `min` prefers more layers on earlier devices.
        """
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
    """Return the number of layers of each device if each device is filled before the next device gets layers.

    The last device gets all remaining layers, even if they do not fit.
    """
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
    """Raise EngineUnavailable if a device has too little free memory for its layers."""
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
