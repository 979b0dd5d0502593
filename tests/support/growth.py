"""Measures how the cost of a computation grows with the size of its input. The result does not depend on the speed of
the machine.

`order` is the exponent of the growth: 1 for linear, 2 for quadratic. It compares CPU times of one thread, so other
threads and processes do not count. It uses the shortest of several runs, because interruptions only add time.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LINEAR = 1.6  # the largest exponent that passes as linear, with room for noise; a quadratic growth shows 2.0
ROUNDS = 12  # a growth above the limit is measured up to this number of times, so that one slow moment does not decide
LEAST_S = 20e-6  # shorter times are replaced by this time: the clock of a virtual machine can skip a few microseconds


def cpu_s(work: Callable[[], object], runs: int = 1) -> float:
    """Return the smallest CPU time of this thread in several runs, at least LEAST_S."""
    least = math.inf
    for _ in range(runs):
        began_s = time.thread_time()
        work()
        least = min(least, time.thread_time() - began_s)
    return max(least, LEAST_S)


def calls(work: Callable[[], object]) -> int:
    """Return the number of Python and C function calls of this thread: a cost that does not depend on the machine."""
    count = 0

    def called(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def order(small: Callable[[], object], large: Callable[[], object], ratio: float, limit: float) -> float:
    """Return the exponent of the growth from `small` to `large`, whose input is `ratio` times as long.

    If the exponent is above `limit`, the function measures again, up to ROUNDS times in total, and keeps the shortest
    time of each size.
    """
    small_s = large_s = found = math.inf
    for _ in range(ROUNDS):
        # Each text is measured two times, because the first run also fills caches.
        small_s, large_s = min(small_s, cpu_s(small, 2)), min(large_s, cpu_s(large))
        found = math.log(large_s / small_s) / math.log(ratio)
        if found <= limit:
            break
    return found
