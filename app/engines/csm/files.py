"""Returns the files that CSM needs with the current settings. This module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import WeightsUnavailable
from app.types import TextPacking
from app.weights import hub

if TYPE_CHECKING:
    from app.settings import Settings

MAX_TEXT_CHARS = 300  # characters of one line: about 20 s of speech, longer than most sentences
MAX_SPEAKERS = 10
TEXT = TextPacking(max_chars=MAX_TEXT_CHARS, continues=True, max_speakers=MAX_SPEAKERS, utf8_bytes=True)


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
