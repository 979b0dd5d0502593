"""Engine names and how to build them. Plug-ins register through the entry point group ENTRY_POINT_GROUP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from app.errors import EngineUnavailable

if TYPE_CHECKING:
    from app.audio.guard import Rule
    from app.engines.protocol import Engine
    from app.settings import Settings
    from app.weights.hub import Progress

ENTRY_POINT_GROUP = "tts_server.engines"


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a builder may use: where to report a download, when to give up, where to count the output guard."""

    on_progress: Callable[[Progress], None]
    cancelled: Callable[[], bool]
    on_guard: Callable[[Rule], None] = lambda _: None  # the output guard stepped in, by this rule; from any thread


# Blocking; raises EngineUnavailable with a reason and a remedy.
Builder = Callable[["Settings", BuildContext], "Engine"]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """name: value of TTS_ENGINE. model_id: what the API calls it. target: `module:function`, imported when needed.

    on_devices: it runs on TTS_DEVICE, so there can be one for each of several devices. splits: CSM_DEVICE_MAP is its.
    """

    name: str
    model_id: str
    target: str
    on_devices: bool = False
    splits: bool = False

    def builder(self) -> Builder:
        """Imports the engine's module. Raises EngineUnavailable where this version has none."""
        name, _, function = self.target.partition(":")
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise EngineUnavailable(
                f"This version of the server has no {self.name} engine.", remedy="Set TTS_ENGINE to another engine."
            ) from error
        return cast("Builder", getattr(module, function))


BUILT_IN = (
    EngineSpec("csm", "csm-1b", "app.engines.csm.loading:build", on_devices=True, splits=True),
    EngineSpec("dia", "dia-1.6b", "app.engines.dia.loading:build", on_devices=True),
    EngineSpec("espeak", "espeak", "app.engines.espeak:build"),
)


def specs() -> dict[str, EngineSpec]:
    """Every engine that can be named, by name. A plug-in is named by its entry point, which is also its model id."""
    found = {spec.name: spec for spec in BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        name = point.name.lower()  # as settings read TTS_ENGINE
        found.setdefault(name, EngineSpec(name, point.name, point.value))
    return found
