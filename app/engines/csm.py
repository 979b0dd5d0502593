"""CSM-1B as an engine. The weights are found or downloaded here; the model itself is not in this version yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import EngineUnavailable
from app.models import hub

if TYPE_CHECKING:
    from app.engines.protocol import Engine
    from app.engines.registry import BuildContext
    from app.settings import Settings


def build(settings: Settings, context: BuildContext) -> Engine:
    """Raises EngineUnavailable: WeightsUnavailable while the weights can't be had."""
    folder = hub.fetch(
        hub.files_for("csm", settings.csm_model),
        settings.folder("models"),
        token=settings.token,
        on_progress=context.on_progress,
        cancelled=context.cancelled,
    )
    raise EngineUnavailable(
        f"The weights are in {folder}, but this version of the server can't run CSM-1B yet.",
        remedy="Set TTS_ENGINE=espeak to use the offline voice without this notice.",
    )
