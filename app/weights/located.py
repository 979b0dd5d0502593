"""Finds the folders of a model and its adapter, and the files that are still missing. This module needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from app.weights import hub


@dataclass(frozen=True, slots=True)
class Located:
    """Where the files of a model are. `weights` is None as long as a file of the weights is missing on the disk."""

    files: tuple[hub.ModelFiles, ...]  # all files that the model needs
    weights: Path | None = None  # the folder with config.json and the weights
    adapter: Path | None = None  # the folder of the LoRA adapter; None = the model has no adapter


def locate(model: str, source: str, base: str, models_dir: Path) -> Located:
    """Find a model, or an adapter and its base model.

    If the published model is not complete on the disk, but one of its copies (`ModelFiles.mirrors`) is complete, the
    result has the files of the copy.

    model: "csm" or "dia". source: the hub id or folder of the model or the adapter. base: the hub id or folder of the
    base; "" = the base that adapter_config.json names. Raises WeightsUnavailable if a source is not valid or can't be
    read.
    """
    files = hub.copy_on_disk(hub.files_for(model, source), models_dir)
    found = Located((files,))
    folder = hub.find(files, models_dir)
    if folder is None:
        return found
    adapter, own_base = hub.adapter_of(files, folder)
    hub.refuse_unreadable(files, folder, adapter=adapter, weights=own_base)
    if not adapter:
        return replace(found, weights=folder)
    found = replace(found, adapter=folder)
    if own_base and not base.strip():
        return replace(found, weights=folder)
    setting = f"{model.upper()}_BASE"
    base_files = replace(
        hub.files_for(model, base or hub.base_source(folder, setting)), setting=setting, adapters=False
    )
    base_files = hub.copy_on_disk(base_files, models_dir)
    return replace(found, files=(files, base_files), weights=hub.find(base_files, models_dir))
