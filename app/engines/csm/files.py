"""Finds the files that CSM needs with the current settings. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import WeightsUnavailable
from app.nn.mimi.config import KNOWN_NAMES
from app.types import TextPacking
from app.weights import hub
from app.weights.kinds import read_config
from app.weights.located import Located, locate

if TYPE_CHECKING:
    from app.settings import Settings

MAX_TEXT_CHARS = 300  # largest number of characters in a line (about 20 s of speech); most sentences are shorter
MAX_SPEAKERS = 10
TEXT = TextPacking(max_chars=MAX_TEXT_CHARS, continues=True, max_speakers=MAX_SPEAKERS, utf8_bytes=True)
TOKENIZER = "tokenizer.json"
_CODEC_NAMES = tuple(f"codec_model.{name}" for name in KNOWN_NAMES)


@dataclass(frozen=True, slots=True)
class CsmFolders:
    """Where the files of CSM are. A folder is None if its files are not on disk, or if CSM does not need the folder."""

    files: tuple[hub.ModelFiles, ...]  # all files that the model needs
    model: Located
    tokenizer: Path | None = None
    codec: Path | None = None  # None = the weights contain the codec


def locate_csm(settings: Settings) -> CsmFolders:
    """Find the model, its adapter, its tokenizer and its codec. Raises WeightsUnavailable.

    While the weights are not on disk, it is unknown whether CSM also needs the files of a separate tokenizer or codec.
    So call this function again after a download.
    """
    models = settings.folder("models")
    model = locate("csm", settings.csm_model, settings.csm_base, models)
    if model.weights is None:
        return CsmFolders(model.files, model)
    files = model.files
    tokenizer = next((folder for folder in (model.adapter, model.weights) if folder and _has_tokenizer(folder)), None)
    if tokenizer is None or settings.csm_tokenizer.strip():
        tokenizer_files = _tokenizer_files(settings, model.weights, models)
        tokenizer = hub.find(tokenizer_files, models)
        files += (tokenizer_files,)
    codec = None
    if not hub.has_tensor(model.weights, _CODEC_NAMES):
        codec_files = hub.files_for("mimi", settings.csm_codec)
        codec = hub.find(codec_files, models)
        files += (codec_files,)
    return CsmFolders(files, model, tokenizer, codec)


def sources(settings: Settings) -> list[hub.ModelFiles]:
    """Return the files that CSM needs. After a download, a second call may return more files."""
    try:
        return list(locate_csm(settings).files)
    except WeightsUnavailable:  # an invalid setting or a broken file: the download or the start reports the error
        return [hub.files_for("csm", settings.csm_model)]


def _has_tokenizer(folder: Path) -> bool:
    return (folder / TOKENIZER).is_file()


def _tokenizer_files(settings: Settings, weights: Path, models: Path) -> hub.ModelFiles:
    """Return the source of the tokenizer for weights without a tokenizer.

    If CSM_TOKENIZER is set, returns CSM_TOKENIZER. Otherwise returns the first of these models whose tokenizer is on
    disk: the model that config.json names as its origin, the published model, and the copies of the published model. If
    none of these tokenizers is on disk, returns the origin if the origin is a hub id, otherwise the published model.
    """
    if named := settings.csm_tokenizer.strip():
        path = Path(named).expanduser()
        return hub.files_for("tokenizer", str(path.parent) if path.name == TOKENIZER and path.is_file() else named)
    published = hub.files_for("tokenizer")
    origin = str((read_config(weights) or {}).get("_name_or_path") or "")
    copies = [origin, published.source, *published.mirrors]
    for copy in copies:
        try:
            files = hub.files_for("tokenizer", copy)
            folder = hub.find(files, models)
        except WeightsUnavailable:  # `copy` may name a folder that exists only where the model was trained
            continue
        if folder is not None and _has_tokenizer(folder):
            return files
    return hub.files_for("tokenizer", origin) if hub.is_hub_id(origin) else published
