"""Runs the programs of a Triton kernel at the same time, in Triton's interpreter.

The interpreter runs one program after the other, so a program that waits for another program would wait forever. Here
each program of a kernel has a thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from triton.runtime import interpreter

_PAUSE_S = 0.0005  # the longest pause before an atomic operation
_LATE_S = 0.005  # the pause before a store that comes late
_LATE = 0.1  # the share of stores that come late


def run_programs_in_threads(monkeypatch: pytest.MonkeyPatch, kernel: Any, programs: Sequence[int], count: int) -> None:
    """From now on, each launch of `kernel` runs the programs with these numbers, each in a thread.

    count: the number of programs of the launch, which may be larger than the number of programs that run. Before each
    atomic operation and before some stores, a thread pauses, so the threads run in another order each time.
    """
    place = threading.local()
    builder = interpreter.InterpreterBuilder
    add, store = builder.create_atomic_rmw, builder.create_masked_store

    def paused(*args: Any) -> Any:
        time.sleep(random.random() * _PAUSE_S)
        return add(*args)

    def late(*args: Any) -> Any:
        if random.random() < _LATE:
            time.sleep(_LATE_S)
        return store(*args)

    # each thread has its own program number
    monkeypatch.setattr(
        builder,
        "grid_idx",
        property(lambda _: place.index, lambda _, index: setattr(place, "index", index)),
        raising=False,
    )
    monkeypatch.setattr(builder, "create_atomic_rmw", paused)
    monkeypatch.setattr(builder, "create_masked_store", late)

    def run(*args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        function = kernel.rewrite()

        def programs_at_once(bound: dict[str, Any]) -> tuple[int]:
            """Run all programs. Returns an empty grid, so that the interpreter itself runs no program."""

            def program(number: int) -> None:
                interpreter.interpreter_builder.set_grid_idx(number, 0, 0)
                function(**bound)

            interpreter.interpreter_builder.set_grid_dim(count, 1, 1)
            with ThreadPoolExecutor(len(programs)) as pool:
                for ended in [pool.submit(program, number) for number in programs]:
                    ended.result()
            return (0,)

        interpreter.GridExecutor(function, kernel.arg_names, programs_at_once, kernel.pre_run_hooks)(*args, **options)

    monkeypatch.setattr(kernel, "run", run)
