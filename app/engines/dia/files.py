"""The files that Dia needs, chosen from the settings. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.weights import hub

if TYPE_CHECKING:
    from app.settings import Settings

CODEC_FOLDER = "dac"  # beside local weights


def codec_source(settings: Settings, model_folder: Path) -> str:
    """DIA_CODEC; if it is not set, the folder `dac` beside the weights, if it exists."""
    beside = model_folder / CODEC_FOLDER
    unset = settings.dia_codec == type(settings).model_fields["dia_codec"].default
    return str(beside) if unset and beside.is_dir() else settings.dia_codec


def sources(settings: Settings) -> list[hub.ModelFiles]:
    """The model and its DAC codec."""
    codec = codec_source(settings, Path(settings.dia_model).expanduser())
    return [hub.files_for("dia", settings.dia_model), hub.files_for("dac", codec)]
