"""Returns the files that CSM needs with the current settings. This module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import WeightsUnavailable
from app.weights import hub

if TYPE_CHECKING:
    from app.settings import Settings


def sources(settings: Settings) -> list[hub.ModelFiles]:
    """Return the files of the model. If the model is on disk and contains no codec, add the files of the Mimi codec."""
    model = hub.files_for("csm", settings.csm_model)
    try:
        folder = hub.find(model, settings.folder("models"))
    except WeightsUnavailable:  # the setting is not valid; the download reports this error
        return [model]
    if folder is None or hub.has_tensor(folder, "codec_model."):
        return [model]
    return [model, hub.files_for("mimi", settings.csm_codec)]
