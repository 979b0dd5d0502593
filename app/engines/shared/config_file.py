"""Reads the config.json of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from app.errors import WeightsUnavailable
from app.weights.kinds import quantisation, unusable_files

Config = TypeVar("Config")


def read_config_file(folder: Path, model: str, parse: Callable[[Mapping[str, Any]], Config]) -> Config:
    """Read `folder`/config.json and convert it with `parse`.

    model: the name of the model in error messages. Raises WeightsUnavailable, which names the missing key or the
    unknown value.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if (unusable := unusable_files(folder)) is not None:
            raise unusable from None
        raise WeightsUnavailable(f"{folder} contains no config.json, so it is not a {model} model.") from None
    except ValueError as error:
        raise WeightsUnavailable(f"{path} is not valid JSON: {error}.") from error
    if isinstance(raw, dict) and (method := quantisation(raw)):
        raise WeightsUnavailable(
            f"{folder} contains {model} weights that are quantised with {method}, which this server can't read.",
            remedy="Use the same model in 16 or 32 bits; on a CPU, TTS_QUANTIZE=int8 makes the model smaller.",
        )
    try:
        return parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsUnavailable(f"{path} can't be read as a {model} config: {error!r}.") from error
