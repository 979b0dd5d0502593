"""The LoRA adapters of this server: their names, their files, and their state in the running engine.

An adapter comes from the setting TTS_ADAPTERS, from a folder in `TTS_DATA_DIR/models/adapters`, or from a request. A
request that adds an adapter creates such a folder, so that the server loads the adapter again at the next start. The
folder contains `adapter.json` (the source, model, speaker and voice of the adapter) and uploaded files. A thread reads
and converts the files, so the rows that speak do not wait. This module does not depend on HTTP or on a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, runtime_checkable

from app.errors import (
    BadAdapter,
    InvalidValue,
    NotFound,
    NotReady,
    NotStored,
    NotSupported,
    UnknownModel,
    WeightsUnavailable,
)
from app.types import Voice
from app.weights import hub
from app.weights.download import Cancelled
from app.weights.download import fetch as fetch_files
from app.weights.hub_token import find_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.engines.manager import ModelUse
    from app.engines.model_manager import ModelManager
    from app.engines.protocol import Engine
    from app.settings import Settings
    from app.weights.download import Progress

log = logging.getLogger(__name__)

FOLDER, FACTS = "adapters", "adapter.json"
MAX_ADAPTERS = 128
MAX_CONFIG_BYTES = 1 << 20
MAX_SPEAKER = 999
RETRY_AFTER_S = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Status = Literal["loading", "ready", "failed"]


class Prepared(Protocol):
    """An adapter whose files were read and checked, and whose matrices were converted for one model."""

    @property
    def key(self) -> str:
        """A digest of the adapter's files. Adapters with the same files have the same key."""

    @property
    def rank(self) -> int:
        """The largest rank of the adapter's matrices."""

    @property
    def base(self) -> str:
        """The base model that the adapter's config names; "" = the config names none."""


@runtime_checkable
class RowAdapters(Protocol):
    """The adapters that are loaded into one running engine. Thread-safe."""

    def prepare(self, folder: Path) -> Any:
        """Read and convert the adapter in a folder. Blocks. Returns a Prepared. Raises WeightsUnavailable."""

    def add(self, adapter: Any) -> int:
        """Load a prepared adapter. Returns how many bytes of memory it takes. Raises WeightsUnavailable."""

    def remove(self, key: str) -> None:
        """Remove an adapter. Rows that already speak with the adapter end normally."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The two files of an uploaded adapter."""

    weights: BinaryIO
    config: BinaryIO


@dataclass(slots=True)
class Adapter:
    """One adapter of the server. voice: the id of the recorded voice with which it speaks; "" = none."""

    name: str
    source: str  # a hub id or a folder; "" = the files are in the folder of the adapter
    model: str  # id of the model that the adapter changes; "" = no model of this process can use adapters
    speaker: int = 0
    voice: str = ""
    configured: bool = False  # whether the adapter comes from TTS_ADAPTERS
    status: Status = "loading"
    key: str = ""  # a digest of the adapter's files, see Prepared.key
    base: str = ""
    rank: int | None = None
    bytes: int = 0  # size of the adapter's matrices in memory
    error: str = ""

    def as_voice(self, recording: Voice | None) -> Voice:
        """Return this adapter as a Voice. recording: the recorded voice that `voice` names; None = there is none."""
        facts = f"adapter {self.name} {self.speaker} {recording.digest if recording else ''}"
        return Voice(
            id=self.name,
            name=self.name,
            kind="adapter",
            language=recording.language if recording else "en",
            description=f"LoRA adapter, speaker {self.speaker}",
            digest=hashlib.sha256(facts.encode()).hexdigest(),
            speaker=self.speaker,
            level_lufs=recording.level_lufs if recording else None,
            recorded=recording is not None,
            adapter=self.key,
            reference_id=recording.id if recording else "",
        )


def check_name(name: str) -> None:
    """Raise InvalidValue unless `name` can be the name of an adapter."""
    if not _NAME.fullmatch(name):
        raise InvalidValue(
            f"{name[:80]!r} can't be the name of an adapter. Use 1 to 64 letters, digits, '.', '_' or '-', and begin "
            "with a letter or a digit.",
            param="name",
        )


def folders_of(settings: Settings) -> list[Path]:
    """Return the folders of the adapters in `TTS_DATA_DIR/models/adapters`, sorted by name."""
    root = settings.data_dir / "models" / FOLDER
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
    except OSError:
        return []


def expected_count(settings: Settings) -> int:
    """Return the number of adapters that this server loads at the start."""
    return len(settings.adapters) + len(folders_of(settings))


class AdapterRegistry:
    """All adapters of the server. Use it from one event loop.

    The server loads the adapters of a model each time after the model's engine was loaded. `add` and `remove` change
    the list of adapters while the server runs.
    """

    def __init__(
        self,
        settings: Settings,
        manager: ModelManager,
        find_voice: Callable[[str], Voice | None],
    ) -> None:
        """Read the names of all adapters. Raises ValueError if TTS_ADAPTERS is not valid.

        find_voice: a function that returns the voice with this id or name, or None if there is no such voice.
        """
        self._settings = settings
        self._manager = manager
        self._loaded_into: dict[str, weakref.ref[Engine]] = {}  # id of a model -> the engine with its loaded adapters
        self._find_voice = find_voice
        self._changing = asyncio.Lock()
        self._adapters: dict[str, Adapter] = {}  # name in lower case -> adapter
        for given, source in settings.adapters:
            named, _, name = given.rpartition(":")
            if not _NAME.fullmatch(name):
                raise ValueError(f"TTS_ADAPTERS: {name!r} can't be the name of an adapter.")
            try:
                model = self._model(named)
            except InvalidValue as error:
                raise ValueError(f"TTS_ADAPTERS: {error.message}") from error
            if name.casefold() in self._adapters:
                raise ValueError(f"TTS_ADAPTERS names two adapters {name!r}. Give each adapter another name.")
            self._adapters[name.casefold()] = Adapter(name, source, model, settings.csm_speakers[0], configured=True)
        for folder in folders_of(settings):
            if folder.name.casefold() in self._adapters:
                log.warning("The adapter folder %s is ignored: another adapter has this name", folder.name)
                continue
            self._adapters[folder.name.casefold()] = self._stored(folder)

    # ---- lookup

    def all(self) -> list[Adapter]:
        """Return all adapters: first the adapters of TTS_ADAPTERS, then the adapters that requests have added."""
        return list(self._adapters.values())

    def find(self, name: str) -> Adapter | None:
        """Return the adapter with this name; None = there is none. The case of letters does not matter."""
        return self._adapters.get(name.casefold())

    def _model(self, name: str) -> str:
        """Return the id of the model that an adapter changes; "" = no model of this server can use adapters.

        name: the name of the model in the request or the settings; "" = the first model that can use adapters. Raises
        InvalidValue if the named model can't use adapters, but another model of this server can.
        """
        models = self._manager.models_with_adapters
        found = self._manager.find_model(name) if name else None
        if name and models and found not in models:
            raise InvalidValue(
                f"There is no model {name[:80]!r} with adapters here. Use one of: {', '.join(models)}.", param="model"
            )
        return found or next(iter(models), "")

    async def ready(self, name: str, use: ModelUse, *, param: str) -> Adapter:
        """Return the adapter with this name, after it was loaded into the engine of `use`.

        param: the request field that names the adapter, for error messages. If the engine was unloaded and loaded
        again, waits until its adapters are loaded. Raises UnknownModel, NotReady, NotSupported.
        """
        found = self.find(name)
        if found is None:
            raise UnknownModel(f"There is no adapter {name[:80]!r}. See GET /v1/models.", param=param)
        if found.model and found.model not in self._manager.models_with_adapters:
            raise NotSupported(f"The adapter {found.name!r} can't be used. {_not_served(found.model)}", param=param)
        row_adapters = _row_adapters(use.engine)
        if row_adapters is None or use.manager is not self._manager.of(found.model):
            message = f"The {use.info.id} engine can't speak with the adapter {found.name!r}."
            if use.is_fallback or not found.model:
                raise NotReady(f"{message} GET /health says why the configured engine does not run.", param=param)
            raise NotSupported(f"{message} Send `model: {found.model}:{found.name}`.", param=param)
        if not self._is_loaded_into(found.model, use.engine):
            await self._load_into(found.model, use.engine)
        if found.status != "ready":
            message = f"The adapter {found.name!r} is not ready. {found.error or 'It is being loaded.'}"
            raise NotReady(message, retry_after_s=RETRY_AFTER_S, param=param)
        return found

    def voices(self) -> dict[str, Voice]:
        """Return the voices of all adapters. The keys are the names of the adapters in lower case."""
        return {key: self.voice_of(adapter) for key, adapter in self._adapters.items()}

    def voice_of(self, adapter: Adapter) -> Voice:
        """Return the voice of an adapter."""
        recording = self._find_voice(adapter.voice) if adapter.voice else None
        return adapter.as_voice(recording if recording is not None and recording.recorded else None)

    # ---- changes

    async def load_at_start(self) -> None:
        """Load the adapters of each model that is already loaded."""
        for model in self._manager.models_with_adapters:
            if (engine := self._manager.of(model).current) is not None:
                await self._load_into(model, engine)

    def _is_loaded_into(self, model: str, engine: Engine) -> bool:
        loaded = self._loaded_into.get(model)
        return loaded is not None and loaded() is engine

    async def _load_into(self, model: str, engine: Engine) -> None:
        """Load all adapters of a model into its new engine. If an adapter can't be loaded, its status is `failed`."""
        row_adapters = _row_adapters(engine)
        async with self._changing:
            if self._is_loaded_into(model, engine) or row_adapters is None:
                return
            own = [adapter for adapter in self._adapters.values() if adapter.model == model]
            for adapter in own:
                adapter.status, adapter.error = "loading", ""
            for adapter in own:
                try:
                    await self._load(adapter, self._root / adapter.name, row_adapters)
                except BadAdapter as error:
                    adapter.status, adapter.error = "failed", error.message
                    log.warning("The adapter %s can't be used: %s", adapter.name, error.message)
            self._loaded_into[model] = weakref.ref(engine)

    async def add(
        self,
        name: str,
        *,
        model: str = "",
        source: str = "",
        upload: Upload | None = None,
        speaker: int | None = None,
        voice: str = "",
    ) -> Adapter:
        """Add an adapter and load it. Raises InvalidValue, BadAdapter, NotReady, NotSupported, NotStored.

        model: the name of the model that the adapter changes; "" = the first model that can use adapters. If the
        adapter can't be loaded, its files are removed, and the running model is unchanged.
        """
        check_name(name)
        async with self._changing:
            self._check_new(name, voice)
            if not source and upload is None:
                raise InvalidValue(
                    "Send `source` (a Hugging Face id), or the files `adapter` and `config`.", param="source"
                )
            if source:
                check_source(source)
        model_id = self._model(model)
        # While `use` exists, the model is not unloaded.
        use = await self._manager.use(model_id or None)
        row_adapters = _row_adapters(use.engine)
        if row_adapters is None:
            raise NotSupported("The running engine can't use adapters. Set TTS_ENGINE=csm or TTS_ENGINE=dia.")
        await self._load_into(model_id, use.engine)
        async with self._changing:
            self._check_new(name, voice)
            speaker = self._settings.csm_speakers[0] if speaker is None else speaker
            adapter = Adapter(name, source, model_id, speaker, voice)
            folder = self._root / f".new-{secrets.token_hex(8)}"
            final = self._root / name
            try:
                await asyncio.to_thread(_write, folder, adapter, upload)
                await self._load(adapter, folder, row_adapters)
                try:
                    await asyncio.to_thread(os.replace, folder, final)
                except OSError:
                    self._unload(adapter, row_adapters)
                    raise
            except OSError as error:
                raise NotStored(
                    f"The adapter could not be stored ({type(error).__name__}: {error.strerror})."
                ) from error
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            self._adapters[name.casefold()] = adapter
            log.info("the adapter %s is ready: rank %d, %d bytes", name, adapter.rank or 0, adapter.bytes)
            return adapter

    async def remove(self, name: str) -> Adapter:
        """Remove an adapter and its folder.

        Requests that already speak with the adapter end normally. Raises NotFound, NotSupported.
        """
        async with self._changing:
            found = self.find(name)
            if found is None:
                raise NotFound(
                    f"There is no adapter {name[:80]!r}. GET /v1/audio/adapters lists the adapters.", param="name"
                )
            if found.configured:
                raise NotSupported(
                    f"The adapter {found.name!r} comes from TTS_ADAPTERS. Remove it there, and restart the server.",
                    param="name",
                )
            del self._adapters[found.name.casefold()]
            loaded = self._loaded_into.get(found.model)
            row_adapters = _row_adapters(None if loaded is None else loaded())
            if found.status == "ready" and row_adapters is not None:
                self._unload(found, row_adapters)
            await asyncio.to_thread(shutil.rmtree, self._root / found.name, ignore_errors=True)
            log.info("the adapter %s was removed", found.name)
            return found

    # ---- helpers

    @property
    def _root(self) -> Path:
        root = self._settings.folder("models") / FOLDER
        root.mkdir(exist_ok=True)
        return root

    def _stored(self, folder: Path) -> Adapter:
        """Return the adapter that a folder in `models/adapters` describes. Does not load the adapter."""
        adapter = Adapter(folder.name, "", self._model(""), self._settings.csm_speakers[0])
        try:
            facts = hub.read_json(folder / FACTS) if (folder / FACTS).exists() else {}
            # If this process does not serve the model of the adapter, the adapter is listed with the status `failed`.
            adapter.model = str(facts.get("model") or adapter.model)
            if adapter.model and adapter.model not in self._manager.models_with_adapters:
                adapter.status, adapter.error = "failed", _not_served(adapter.model)
            adapter.source = str(facts.get("source") or "")
            adapter.voice = str(facts.get("voice") or "")
            speaker = facts.get("speaker")
            if isinstance(speaker, int) and 0 <= speaker <= MAX_SPEAKER:
                adapter.speaker = speaker
        except WeightsUnavailable as error:
            adapter.status, adapter.error = "failed", f"{FACTS} can't be read."
            log.warning("The adapter %s can't be used: %s", folder.name, error.reason)
        return adapter

    def _check_new(self, name: str, voice: str) -> None:
        """Raise InvalidValue if the name is taken, if the voice has no recording, or if MAX_ADAPTERS is reached."""
        if self.find(name) is not None:
            raise InvalidValue(
                f"There is an adapter {name!r} already. Send another `name`, or remove the adapter first.", param="name"
            )
        if self._find_voice(name) is not None:
            raise InvalidValue(f"There is a voice {name!r} already. Send another `name`.", param="name")
        if len(self._adapters) >= MAX_ADAPTERS:
            raise InvalidValue(
                f"This server already has the maximum of {MAX_ADAPTERS} adapters. Remove an adapter first.",
                param="name",
            )
        if voice:
            found = self._find_voice(voice)
            if found is None or not found.recorded:
                raise InvalidValue(
                    f"There is no voice {voice[:80]!r} with a recording. GET /v1/audio/voices lists the voices.",
                    param="voice",
                )

    def _unload(self, adapter: Adapter, row_adapters: RowAdapters) -> None:
        """Remove an adapter from the engine, unless another adapter has the same files."""
        others = (
            each
            for each in self._adapters.values()
            if each is not adapter and each.status == "ready" and each.model == adapter.model
        )
        if all(each.key != adapter.key for each in others):
            row_adapters.remove(adapter.key)

    async def _load(self, adapter: Adapter, folder: Path, row_adapters: RowAdapters) -> None:
        """Fetch, read and load an adapter. Raises BadAdapter.

        folder: the folder with the files of the adapter, used if the adapter has no `source`.
        """
        where = folder
        try:
            if adapter.source:
                where = await asyncio.to_thread(self._fetch, adapter.source)
            await asyncio.to_thread(_check_files, where, self._settings.max_adapter_bytes)
            prepared = await asyncio.to_thread(row_adapters.prepare, where)
            size = await asyncio.to_thread(row_adapters.add, prepared)
        except WeightsUnavailable as error:
            name = adapter.source or adapter.name
            # The error must not show a path of this machine to the caller.
            message = f"{error.reason.rstrip('.')}. {error.remedy}".strip()
            if not adapter.source:  # the remedy may contain SETTING=path with a path that the caller can't use
                message = message.replace(f"={where}", "=<its repository or folder>")
            message = message.replace(str(where), name)
            raise BadAdapter(message, param="source" if adapter.source else "adapter") from error
        adapter.key, adapter.rank, adapter.base, adapter.bytes = prepared.key, prepared.rank, prepared.base, size
        adapter.status, adapter.error = "ready", ""

    def _fetch(self, source: str) -> Path:
        def check_size(progress: Progress) -> None:
            if progress.total_bytes > self._settings.max_adapter_bytes:
                raise WeightsUnavailable(
                    f"The files of {source} have {progress.total_bytes} bytes, and the limit is "
                    f"{self._settings.max_adapter_bytes} (TTS_MAX_ADAPTER_BYTES).",
                    remedy="Set TTS_MAX_ADAPTER_BYTES to a larger number, or serve the adapter merged into its base.",
                )

        models = self._settings.folder("models")
        try:
            return fetch_files(
                hub.files_for("adapter", source), models, token=find_token(self._settings), on_progress=check_size
            )
        except Cancelled as error:
            raise WeightsUnavailable(str(error)) from error


def _not_served(model: str) -> str:
    return f"This server does not serve its model, {model}. Add the model to TTS_MODELS."


def _row_adapters(engine: Engine | None) -> RowAdapters | None:
    """Return the property `adapters` of an engine; None = the engine has no such property or can't use adapters."""
    found = getattr(engine, "adapters", None)
    return found if isinstance(found, RowAdapters) else None


def check_source(source: str) -> None:
    """Raise InvalidValue unless `source` is the id of a repository.

    A request must not name a folder: otherwise callers could find out which folders this machine has.
    """
    repo = "/".join(source.partition("@")[0].split("/")[:2])
    if not hub.is_hub_id(repo) or ".." in source or Path(source).exists():
        raise InvalidValue(
            "`source` must be a Hugging Face id: org/name, org/name@revision or org/name/folder. Upload an adapter of "
            "your own as the files `adapter` and `config`. The operator can name a folder in TTS_ADAPTERS.",
            param="source",
        )


def _check_files(folder: Path, max_bytes: int) -> None:
    """Raise WeightsUnavailable if a file of an adapter is missing or too large. Does not read the files."""
    if not (folder / hub.ADAPTER_WEIGHTS).is_file() or not (folder / hub.ADAPTER_CONFIG).is_file():
        hub.refuse_unreadable(hub.files_for("adapter", str(folder)), folder, adapter=True, weights=False)
        raise WeightsUnavailable(f"{folder} contains no {hub.ADAPTER_CONFIG}.", remedy="Save the adapter again.")
    for name, most in ((hub.ADAPTER_WEIGHTS, max_bytes), (hub.ADAPTER_CONFIG, MAX_CONFIG_BYTES)):
        if (size := (folder / name).stat().st_size) > most:
            raise WeightsUnavailable(f"{name} of {folder} has {size} bytes, and the limit is {most}.")


def _write(folder: Path, adapter: Adapter, upload: Upload | None) -> None:
    """Create the folder of an adapter, with `adapter.json` and the uploaded files."""
    folder.mkdir(parents=True)
    facts: Mapping[str, object] = {
        "source": adapter.source,
        "model": adapter.model,
        "speaker": adapter.speaker,
        "voice": adapter.voice,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2))
    if upload is not None:
        for file, name in ((upload.weights, hub.ADAPTER_WEIGHTS), (upload.config, hub.ADAPTER_CONFIG)):
            with (folder / name).open("wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
