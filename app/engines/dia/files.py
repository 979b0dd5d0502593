"""Finds the files that Dia needs with the current settings. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import WeightsUnavailable
from app.weights import hub
from app.weights.located import Located, locate

if TYPE_CHECKING:
    from app.settings import Settings

CODEC_FOLDER = "dac"  # a folder inside the model's folder that may contain the codec


def codec_source(settings: Settings, model_folder: Path) -> str:
    """Return the source of the codec: the value of DIA_CODEC.

    If DIA_CODEC is not set and `model_folder` contains a folder `dac`, return this folder.
    """
    beside = model_folder / CODEC_FOLDER
    unset = settings.dia_codec == type(settings).model_fields["dia_codec"].default
    return str(beside) if unset and beside.is_dir() else settings.dia_codec


@dataclass(frozen=True, slots=True)
class DiaFolders:
    """Where the files of Dia are. A folder is None if its files are not on disk."""

    files: tuple[hub.ModelFiles, ...]  # all files that the model needs
    model: Located
    codec: Path | None = None


def locate_dia(settings: Settings) -> DiaFolders:
    """Find the model, its adapter and its codec. Raises WeightsUnavailable."""
    models = settings.folder("models")
    model = locate("dia", settings.dia_model, settings.dia_base, models)
    beside = model.weights or Path(settings.dia_model).expanduser()
    codec = hub.files_for("dac", codec_source(settings, beside))
    return DiaFolders((*model.files, codec), model, hub.find(codec, models))


def sources(settings: Settings) -> list[hub.ModelFiles]:
    """Return the files that Dia needs. After a download, a second call may return more files."""
    try:
        return list(locate_dia(settings).files)
    except WeightsUnavailable:  # an invalid setting or a broken file: the download or the start reports the error
        return [hub.files_for("dia", settings.dia_model)]
