"""Where an engine's files are: what every engine with weights asks of the hub. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.weights import hub

if TYPE_CHECKING:
    from pathlib import Path

    from app.engines.registry import BuildContext
    from app.settings import Settings


def fetch(settings: Settings, context: BuildContext, model: str, source: str) -> tuple[Path, str]:
    """The folder of a model's files, downloaded if need be, and what to know them by: the hub's id, whatever its newest
    version's folder is called, or the folder. Raises EngineUnavailable."""
    models = settings.folder("models")
    folder = hub.fetch(
        hub.files_for(model, source),
        models,
        token=settings.token,
        on_progress=context.on_progress,
        cancelled=context.cancelled,
    )
    return folder, source if folder.is_relative_to(models) else str(folder.resolve())
