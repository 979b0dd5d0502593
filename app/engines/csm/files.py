"""The files that CSM needs, chosen from the settings. Does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import WeightsUnavailable
from app.weights import hub

if TYPE_CHECKING:
    from app.settings import Settings


def sources(settings: Settings) -> list[hub.ModelFiles]:
    """The model; also the Mimi codec, once the model is on disk and contains no codec."""
    model = hub.files_for("csm", settings.csm_model)
    try:
        folder = hub.find(model, settings.folder("models"))
    except WeightsUnavailable:  # the setting names no folder and no hub id; loading or downloading reports it
        return [model]
    if folder is None or hub.has_tensor(folder, "codec_model."):
        return [model]
    return [model, hub.files_for("mimi", settings.csm_codec)]
