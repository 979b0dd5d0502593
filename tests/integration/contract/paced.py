"""The offline voice with the speed of a model: all rows together generate SPEED seconds of speech per second.

eSpeak NG itself generates a minute of speech so fast that rows and queues would never be full.
It is installed like a plug-in: the servers of these tests find its entry point in `plugin/`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from app.engines import espeak
from app.runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.engines.batched import BatchedEngine
    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.types import Codes, Samples

SPEED = 8.0


def build(settings: Settings, context: BuildContext) -> BatchedEngine:
    engine = espeak.build(settings, context)
    runner: Runner = engine._runner
    decode = runner.decode

    def paced(rows: Sequence[int], codes: Codes) -> list[Samples]:
        samples = decode(rows, codes)
        time.sleep(max(map(len, samples), default=0) / runner.rate_hz / SPEED)
        return samples

    runner.decode = paced  # type: ignore[method-assign]
    return engine
