"""Which layers of the backbone go to which device: arithmetic on measured bytes. No tensors here.

The first device is home: it holds all that is no layer of the backbone (tables, final norm, heads, depth decoder,
codec) besides the first layers; the others hold layers only, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

from app.errors import EngineUnavailable

DeviceMap = Literal["auto", "balanced", "sequential"]
MARGIN = Fraction(11, 10)  # what is asked of a device: a tenth more than is known to be put there


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes in memory: of what stays at home, and of each backbone layer with its keys and values for all rows."""

    home_bytes: int
    layers_bytes: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        return self.home_bytes + sum(self.layers_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """A device. Two of one name share their memory."""

    name: str
    free_bytes: int


def plan(how: DeviceMap, sizes: Sizes, rooms: Sequence[Room]) -> tuple[int, ...]:
    """How many layers each device takes, home first. Raises EngineUnavailable where they do not fit.

    auto: all at home if that fits, else balanced. balanced: bytes per device as equal as contiguous layers allow.
    sequential: each device is filled before the next one is used.
    """
    if how == "sequential":
        counts = _fill_up(sizes, rooms)
    elif how == "auto" and sizes.total_bytes * MARGIN <= rooms[0].free_bytes:
        counts = (len(sizes.layers_bytes), *[0] * (len(rooms) - 1))
    else:
        counts = _even_out(sizes, len(rooms))
    _check(how, sizes, rooms, counts)
    return counts


def loads(sizes: Sizes, counts: Sequence[int]) -> list[int]:
    """Bytes on each device."""
    found, first = [], 0
    for index, count in enumerate(counts):
        found.append(sum(sizes.layers_bytes[first : first + count]) + (0 if index else sizes.home_bytes))
        first += count
    return found


def _even_out(sizes: Sizes, devices: int) -> tuple[int, ...]:
    """The cuts with the least sum of squared loads. Of equals, more layers on earlier devices."""
    layers = sizes.layers_bytes

    @cache
    def best(device: int, first: int) -> tuple[int, tuple[int, ...]]:
        """(sum of squares, minus each count) for layers `first`.. on devices `device`.. ."""
        load = 0 if device else sizes.home_bytes
        if device == devices - 1:
            return (load + sum(layers[first:])) ** 2, (first - len(layers),)
        found = []
        for end in range(first, len(layers) + 1):
            squares, rest = best(device + 1, end)
            found.append((load**2 + squares, (first - end, *rest)))
            load += layers[end] if end < len(layers) else 0
        return min(found)

    return tuple(-count for count in best(0, 0)[1])


def _fill_up(sizes: Sizes, rooms: Sequence[Room]) -> tuple[int, ...]:
    left = {room.name: room.free_bytes / MARGIN for room in rooms}
    left[rooms[0].name] -= sizes.home_bytes
    counts = [0] * len(rooms)
    device = 0
    for size in sizes.layers_bytes:
        while device < len(rooms) - 1 and size > left[rooms[device].name]:
            device += 1
        left[rooms[device].name] -= size
        counts[device] += 1
    return tuple(counts)


def _check(how: DeviceMap, sizes: Sizes, rooms: Sequence[Room], counts: Sequence[int]) -> None:
    needed: dict[str, int] = {}
    for room, load in zip(rooms, loads(sizes, counts), strict=True):
        needed[room.name] = needed.get(room.name, 0) + load
    free = {room.name: room.free_bytes for room in rooms}
    short = [
        f"{name} would need {float(need * MARGIN) / 1e9:.2f} GB and has {free[name] / 1e9:.2f} GB free"
        for name, need in needed.items()
        if need * MARGIN > free[name]
    ]
    if short:
        other = "" if how == "sequential" else ", or CSM_DEVICE_MAP=sequential where they are unequal"
        raise EngineUnavailable(
            f"CSM does not fit into the devices of TTS_DEVICES: {'; '.join(short)}.",
            remedy=f"Give it more or larger devices, a smaller TTS_MAX_ROWS{other}.",
        )
