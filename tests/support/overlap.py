"""Counts how many threads run a function at the same time: the test of a lock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_STAY_S = 0.05  # each thread stays inside for this time, so that the other threads can arrive


class Overlap:
    """Wraps a function. calls: the number of its calls; most: the largest number of threads inside it at the same
    time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._inside = 0
        self.calls = 0
        self.most = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.calls += 1
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            time.sleep(_STAY_S)
            return self._function(*args, **kwargs)
        finally:
            with self._lock:
                self._inside -= 1


def in_threads(work: Callable[[], Any], count: int = 4) -> list[Any]:
    """Run `work` in `count` threads that start together, and return the results. Raises the first error."""
    start = threading.Barrier(count)
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        start.wait()
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
