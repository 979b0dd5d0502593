"""Reads the sampling parameters that a model recommends in its generation_config.json."""

from __future__ import annotations

import logging
import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from app.errors import WeightsUnavailable
from app.types import Sampling
from app.weights import hub

if TYPE_CHECKING:
    from pathlib import Path

    from app.weights.adapter import Adapter
    from app.weights.located import Located

log = logging.getLogger(__name__)

FILE = "generation_config.json"
NO_SAMPLING = Sampling()
# Name of a sampling parameter -> its name in the file, its smallest value and its largest value.
_KEYS: dict[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0.0, 2.0),
    "top_k": ("top_k", 0, 2048),
    "top_p": ("top_p", 1e-6, 1.0),
    "cfg_scale": ("guidance_scale", 1.0, 10.0),
}


def own_sampling(located: Located, published: hub.ModelFiles, defaults: Sampling) -> Sampling:
    """Return the sampling parameters that a model sets. A parameter that equals its value in `defaults` is None.

    If an adapter is merged into the model and its folder contains a generation_config.json, the adapter's file is read;
    otherwise the model's file is read. published: the published model. Its file is not read, because its authors
    recommend the values of `defaults` and not the values in the file.
    """
    folders: list[Path | None] = [located.adapter]
    if located.files[-1].source.partition("@")[0] != published.source:
        folders.append(located.weights)
    for folder in folders:
        if folder is not None and (folder / FILE).is_file():
            found = read_sampling(folder, cfg_scale=defaults.cfg_scale is not None)
            differs = {
                each.name: value
                for each in fields(Sampling)
                if (value := getattr(found, each.name)) not in (None, getattr(defaults, each.name))
            }
            if differs:
                log.info("%s sets the default sampling parameters of the model: %s", folder / FILE, differs)
            return Sampling(**differs)
    return NO_SAMPLING


def read_sampling(folder: Path, *, cfg_scale: bool) -> Sampling:
    """Read the sampling parameters in `folder`/generation_config.json. Logs and ignores invalid values.

    cfg_scale: whether the model has classifier-free guidance.
    """
    try:
        raw = hub.read_json(folder / FILE)
    except WeightsUnavailable as error:
        log.warning("the sampling parameters of the model are ignored: %s", error.reason)
        return NO_SAMPLING
    values: dict[str, Any] = {}
    for name, (key, low, high) in _KEYS.items():
        value = raw.get(key)
        if value is None or (name == "cfg_scale" and not cfg_scale):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high or (name == "top_k" and value != int(value)):
            log.warning("%s of %s is ignored: %r is not between %g and %g", key, folder / FILE, value, low, high)
            continue
        values[name] = int(value) if name == "top_k" else float(value)
    if raw.get("do_sample") is False:
        values["temperature"] = 0.0
    return Sampling(**values)


def with_defaults(sampling: Sampling, defaults: Sampling) -> Sampling:
    """Return `sampling` with the value of `defaults` in place of each missing value. If `defaults` has no values, it is
    the same object.
    """
    if defaults == NO_SAMPLING:
        return sampling
    missing = {each.name: getattr(defaults, each.name) for each in fields(Sampling)}
    return replace(sampling, **{name: value for name, value in missing.items() if getattr(sampling, name) is None})


def variant_of(adapter: Adapter | None, sampling: Sampling) -> str:
    """Return the part of a fingerprint for the merged adapter and for the sampling parameters that the model sets."""
    parts = [] if adapter is None else [f"adapter {adapter.digest}"]
    if sampling != NO_SAMPLING:
        parts.append(str(sampling))
    return "".join(f" {part}" for part in parts)
