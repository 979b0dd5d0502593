"""The offline voice at the pace of a model: SPEED times as fast as speech, all rows together.

eSpeak NG alone is done with a minute of speech before anybody else has come, so rows and queues would never be full.
An engine from outside, entered as plug-ins are: servers of these tests find it in `plugin/`.
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
