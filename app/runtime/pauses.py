"""Sets the thread switch interval and the garbage collection of Python, so that pauses are short."""

from __future__ import annotations

import gc
import sys

# The event loop waits at most this long until the engine's thread releases the GIL. Python's default is 5 ms.
_SWITCH_INTERVAL_S = 0.0005


def shorten_switch_interval() -> None:
    """Set a shorter thread switch interval than Python's default, to shorten the time to first audio."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def freeze_loaded_objects() -> None:
    """Exclude all objects that exist at the time of the call from garbage collection.

    Call this function once, after the engine is loaded.

    Without this call, each full collection would scan half a million objects of torch and FastAPI. A full collection
    occurs about once in 1,000 answers and takes 47 ms (AMD EPYC, Zen 5, November 2026).
    """
    gc.collect()
    gc.freeze()
