"""Returns the files that Dia needs with the current settings. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.weights import hub

if TYPE_CHECKING:
    from app.settings import Settings

CODEC_FOLDER = "dac"  # a folder with the codec inside the folder of the model


def codec_source(settings: Settings, model_folder: Path) -> str:
    """Return the source of the codec: the value of DIA_CODEC.

    If DIA_CODEC is not set and `model_folder` contains a folder `dac`, return this folder.
    """
    beside = model_folder / CODEC_FOLDER
    unset = settings.dia_codec == type(settings).model_fields["dia_codec"].default
    return str(beside) if unset and beside.is_dir() else settings.dia_codec


def sources(settings: Settings) -> list[hub.ModelFiles]:
    """Return the files of the model and of its DAC codec."""
    codec = codec_source(settings, Path(settings.dia_model).expanduser())
    return [hub.files_for("dia", settings.dia_model), hub.files_for("dac", codec)]
