"""The list of engines, with the properties that the server needs before it builds an engine.

A plug-in adds an engine with an entry point in the group ENTRY_POINT_GROUP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from app.errors import EngineUnavailable
from app.types import TextPacking

if TYPE_CHECKING:
    from app.audio.guard import Rule
    from app.engines.batched import BatchedEngine
    from app.engines.protocol import Engine
    from app.settings import Settings
    from app.weights.download import Progress
    from app.weights.hub import ModelFiles

ENTRY_POINT_GROUP = "tts_server.engines"


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The functions of the server that a Builder and the built engine call."""

    on_progress: Callable[[Progress], None]  # reports the progress of a download
    cancelled: Callable[[], bool]  # returns True if the build must stop
    on_guard: Callable[[Rule], None] = lambda _: None  # called in any thread for each intervention of the output guard


@dataclass(frozen=True, slots=True)
class BareEngine:
    """An engine without text rules and output guards, to compare the model with other implementations."""

    engine: BatchedEngine
    codebooks: int
    default_frames: int  # the largest number of frames of an utterance if the caller sets no limit


# A function that builds an engine. It blocks, and raises EngineUnavailable with a reason and a remedy.
Builder = Callable[["Settings", BuildContext], "Engine"]
# A function that builds a BareEngine. Last argument: True = draw the same noise as torch.multinomial after
# torch.manual_seed.
BareBuilder = Callable[["Settings", BuildContext, bool], BareEngine]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Describes an engine before the server builds the engine.

    `target`, `bare`, `model_files`, `sizes` and `text` have the form `module:name`. A module is imported only when a
    method needs a value of the module.
    """

    name: str  # the value of TTS_ENGINE that selects the engine
    model_id: str  # the id of the engine's model in the API
    target: str  # the function that builds the engine: a Builder
    on_devices: bool = False  # whether the engine runs on TTS_DEVICE; with TTS_DEVICES, one engine runs on each device
    splits: bool = False  # whether CSM_DEVICE_MAP can split the engine's model among devices
    uses_gpu: bool = True  # whether a Ray replica of this engine reserves a GPU if the cluster has one
    rows_cpu: int = 8  # the number of rows for TTS_MAX_ROWS=auto on a CPU
    rows_gpu: int = 64  # the upper limit of TTS_MAX_ROWS=auto on a GPU
    speakers: str = ""  # the field of Settings that contains the model's speaker numbers; empty = the model has none
    adapters: bool = False  # whether each request can choose its own LoRA adapter
    bare: str = ""  # the function that builds the BareEngine: a BareBuilder; empty = not supported
    model_setting: str = ""  # the environment variable that names the weights; empty = the engine has no weights
    other_names: tuple[str, ...] = ()  # more names of the model, in lower case and without an organisation
    model_files: str = ""  # a function (Settings) -> list[ModelFiles] that does not import torch; empty = no files
    sizes: str = ""  # a function: torch.dtype -> (number of rows -> bytes of the published model); empty = no model
    # By how many bytes the engine can make its caches smaller, so that at least one row fits on a small GPU.
    spare_bytes: int = 0
    text: str = ""  # a TextPacking in a module that does not import torch; empty = the default TextPacking
    description: str = ""  # one sentence about the model, for the lists of models

    def builder(self) -> Builder:
        """Import the engine's module and return its Builder.

        Raises EngineUnavailable if this version of the server does not contain the module.
        """
        name = self.target.partition(":")[0]
        try:
            return cast("Builder", _imported(self.target))
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise EngineUnavailable(
                f"This version of the server has no {self.name} engine.", remedy="Set TTS_ENGINE to another engine."
            ) from error

    def build_bare(self, settings: Settings, context: BuildContext, *, reference_noise: bool) -> BareEngine:
        """Build the engine without text rules and output guards. Call this only if `bare` is set.

        reference_noise: draw the same noise as torch.multinomial after torch.manual_seed. Raises EngineUnavailable.
        """
        return cast("BareBuilder", _imported(self.bare))(settings, context, reference_noise)

    def bytes_by_rows(self, dtype: object) -> Callable[[int], int]:
        """Return a function: number of rows -> how many bytes the published model needs with these rows.

        Call this only if `sizes` is set. dtype: the torch.dtype of the weights.
        """
        return cast("Callable[[object], Callable[[int], int]]", _imported(self.sizes))(dtype)

    def files(self, settings: Settings) -> list[ModelFiles]:
        """Return the model files that the engine needs with these settings.

        The result depends on the files on disk. So after a download, a second call may return more files, for example a
        codec if the downloaded model contains no codec.
        """
        if not self.model_files:
            return []
        return cast("Callable[[Settings], list[ModelFiles]]", _imported(self.model_files))(settings)

    def text_packing(self) -> TextPacking:
        """Return how much text the engine speaks in one utterance. The built engine may have a smaller limit."""
        return cast("TextPacking", _imported(self.text)) if self.text else TextPacking()


def _imported(target: str) -> object:
    """Import a module, and return one of its objects. target: `module:name`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


BUILT_IN = (
    EngineSpec(
        "csm",
        "csm-1b",
        "app.engines.csm.loading:build",
        on_devices=True,
        splits=True,
        speakers="csm_speakers",
        adapters=True,
        bare="app.engines.csm.loading:build_bare",
        model_setting="CSM_MODEL",
        model_files="app.engines.csm.files:sources",
        sizes="app.engines.csm.loading:published_bytes",
        spare_bytes=384 << 20,
        text="app.engines.csm.files:TEXT",
        description="CSM-1B, a conversational speech model by Sesame",
    ),
    EngineSpec(
        "dia",
        "dia-1.6b",
        "app.engines.dia.loading:build",
        on_devices=True,
        rows_cpu=4,
        adapters=True,
        bare="app.engines.dia.loading:build_bare",
        model_setting="DIA_MODEL",
        other_names=("dia-1.6b-0626",),
        model_files="app.engines.dia.files:sources",
        sizes="app.engines.dia.loading:published_bytes",
        text="app.engines.dia.script:TEXT",
        description="Dia-1.6B, a dialogue model by Nari Labs",
    ),
    EngineSpec(
        "espeak",
        "espeak",
        "app.engines.espeak:build",
        uses_gpu=False,
        rows_cpu=32,
        rows_gpu=32,
        description="eSpeak NG, an offline voice without a model",
        text="app.engines.espeak:TEXT",
        other_names=("espeak-ng",),
    ),
)


def find_spec(name: str, known: Iterable[EngineSpec]) -> EngineSpec | None:
    """Return the first engine whose name, model id or one of `other_names` is `name`; None for an unknown name.

    Ignores case, the organisation in the name, and the difference between "_" and "-": `sesame/CSM-1B` and `csm` both
    mean csm-1b.
    """

    def plain(name: str) -> str:
        return name.strip().casefold().rpartition("/")[2].replace("_", "-")

    wanted = plain(name)
    return next((each for each in known if wanted in map(plain, (each.model_id, each.name, *each.other_names))), None)


def specs() -> dict[str, EngineSpec]:
    """Return all engines by name. For a plug-in, the name of its entry point is the engine's name and model id."""
    found = {spec.name: spec for spec in BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        name = point.name.lower()  # the name is in lower case, because the settings convert TTS_ENGINE to lower case
        found.setdefault(name, EngineSpec(name, point.name, point.value))
    return found
