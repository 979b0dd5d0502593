"""Downloads the weights of a model while the server runs, and then loads the model without a restart.

A gated model needs a token; some published models also have copies that need no token. Before a download begins, the
hub checks the token, and the server checks that the disk has enough free space. The fallback engine speaks until the
download has ended. This module does not depend on HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from app.engines.registry import find_spec
from app.errors import (
    Busy,
    Conflict,
    HubRefused,
    HubUnreachable,
    InvalidValue,
    NotReady,
    NotStored,
    NotSupported,
    SpeechError,
    TooLittleDisk,
    WeightsUnavailable,
)
from app.weights import download, hub
from app.weights.download import Cancelled, Patience, Progress, Remote
from app.weights.hub_token import NO_TOKEN, HubToken, find_token, save_token

if TYPE_CHECKING:
    from pathlib import Path

    from app.engines.model_manager import ModelManager
    from app.engines.registry import EngineSpec
    from app.settings import Settings
    from app.weights.hub import ModelFiles

log = logging.getLogger(__name__)

# for how many seconds `_ask` keeps an answer of the hub: first without a fault, then with a fault
KEEP_SIZES_S, KEEP_FAULT_S = 600.0, 10.0
LOAD_AGAIN_S = 1.0  # seconds between two tries to replace a fallback engine that speaks a long answer
NOT_LOADED = "model_not_loaded"
_BRIEF = Patience(answer_s=5.0)  # how long `state` waits for the hub; without an answer, `state` shows no sizes
_RETRY_HUB_S = 30
# If the error WeightsUnavailable has one of these codes, another copy of the model may be readable.
_NO_ACCESS = frozenset({"hub_token_missing", "hub_token_invalid", "hub_licence_not_accepted", "weights_unavailable"})

State = Literal["absent", "partial", "downloading", "complete", "failed"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request to the hub, a download or a load failed. code: a stable name for programs."""

    code: str
    message: str

    @staticmethod
    def of(problem: WeightsUnavailable) -> Fault:
        return Fault(problem.code, _message(problem))


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A repository from which the weights can be downloaded."""

    repository: str
    gated: bool
    licence_url: str
    total_bytes: int | None  # bytes of all files that the model needs from the hub; None = the hub has not answered
    done_bytes: int  # bytes of the needed files that are already on the disk


@dataclass(frozen=True, slots=True)
class Download:
    """A download that runs or has failed."""

    progress: Progress
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class WeightsState:
    """The weights of a model: what is on the disk, and from where the missing files can be downloaded."""

    state: State
    total_bytes: int | None  # None = the hub has not answered
    done_bytes: int
    free_bytes: int  # free bytes on the disk of the folder `models`
    sources: tuple[WeightSource, ...] = ()
    token: HubToken = field(default_factory=HubToken)
    download: Download | None = None
    hub: Fault | None = None  # why the hub did not give the sizes
    setting: str = ""  # the environment variable that names the source; "" = the model has no weights


@dataclass(slots=True)
class _Part:
    """One source of a download, with its size and the bytes that are already on the disk."""

    files: ModelFiles
    total_bytes: int
    done_bytes: int


@dataclass(slots=True)
class _Job:
    """A download, and the load of the model after it.

    The thread of the download writes `parts`, `file` and `rate_bytes_s`; the event loop reads them.
    """

    source: str
    token: HubToken = field(default_factory=HubToken)
    parts: list[_Part] = field(default_factory=list)
    file: str = ""
    rate_bytes_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)  # set when the download has ended
    fault: Fault | None = None
    task: asyncio.Task[None] | None = None

    def progress(self) -> Progress:
        total, done = sum(part.total_bytes for part in self.parts), sum(part.done_bytes for part in self.parts)
        rate = self.rate_bytes_s
        return Progress(self.source, self.file, done, total, rate, (total - done) / rate if rate > 0 else None)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the hub has answered about the sources of a model."""

    missing: tuple[ModelFiles, ...]
    remotes: dict[str, Remote]  # source -> its files
    gated: dict[str, bool]  # source -> whether it needs a token
    fault: Fault | None  # why the hub did not answer
    until_s: float


class WeightDownloads:
    """The downloads of weights that requests have started. Use it from one event loop, inside `async with`."""

    def __init__(
        self,
        settings: Settings,
        manager: ModelManager,
        known: dict[str, EngineSpec],
        on_loaded: Callable[[], Awaitable[None]],
    ) -> None:
        """Create the object; no download runs yet.

        known: all engines by name. on_loaded: called each time after a model was downloaded and loaded.
        """
        self._settings = settings
        self._manager = manager
        self._known = known
        self._on_loaded = on_loaded
        self._jobs: dict[str, _Job] = {}  # model id -> the last download
        self._checking: set[str] = set()  # ids of the models for which `start` is checking a request
        self._sizes: dict[str, _Sizes] = {}
        self._asking = threading.Lock()  # held while `state` asks the hub

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jobs = [job for job in self._jobs.values() if job.task is not None]
        for job in jobs:
            job.stop.set()
        for job in jobs:
            await job.fetched.wait()
            assert job.task is not None  # noqa: S101 - the list above has only jobs with a task
            job.task.cancel()
        await asyncio.gather(*(job.task for job in jobs if job.task is not None), return_exceptions=True)

    # ---- state

    def progress(self) -> Progress | None:
        """Return the progress of a download that a request has started; None = no such download runs."""
        return next((job.progress() for job in self._jobs.values() if self._is_fetching(job)), None)

    async def state(self, model_id: str) -> WeightsState:
        """Return the state of a model's weights.

        If weights are missing and no download runs, asks the hub for the sizes, and waits at most a few seconds.
        """
        return await asyncio.to_thread(self._state, model_id)

    def _state(self, model_id: str) -> WeightsState:
        spec = self._spec(model_id)
        models = self._settings.folder("models")
        token, free = find_token(self._settings), download.free_bytes(models)
        job = self._jobs.get(model_id)
        running = self._running(model_id)
        try:
            files = spec.files(self._settings)
            folders = {each: hub.find(each, models) for each in files}
        except WeightsUnavailable:  # the settings name a folder that does not exist, and a download can't create it
            return WeightsState("failed", None, 0, free, token=token, setting=spec.model_setting)
        missing = tuple(each for each, folder in folders.items() if folder is None)
        there = sum(hub.size_on_disk(each, folder) for each, folder in folders.items() if folder is not None)
        if not missing and running is None:
            own = self._manager.of(model_id).status()
            failed = job is not None and job.fault is not None and own.running != own.requested
            last = Download(job.progress(), job.fault) if failed and job is not None else None
            state: State = "failed" if last else "complete"
            return WeightsState(state, there, there, free, token=token, download=last, setting=spec.model_setting)
        sizes = self._ask(model_id, missing, token, models, wait=running is None)
        sources = self._sources(missing, sizes, models)
        if running is not None:
            return WeightsState(
                "downloading",
                running.total_bytes,
                running.done_bytes,
                free,
                sources,
                token,
                Download(running),
                setting=spec.model_setting,
            )
        largest = max(sources, key=lambda each: each.done_bytes)
        shown = largest if largest.done_bytes else sources[0]
        last = Download(job.progress(), job.fault) if job is not None and job.fault is not None else None
        return WeightsState(
            "failed" if last else "partial" if shown.done_bytes else "absent",
            None if shown.total_bytes is None else shown.total_bytes + there,
            shown.done_bytes + there,
            free,
            sources,
            token,
            last,
            sizes.fault,
            spec.model_setting,
        )

    def _spec(self, model_id: str) -> EngineSpec:
        spec = self._manager.of(model_id).requested
        if spec.model_id != model_id:  # `model_id` is the model of the running fallback engine
            spec = find_spec(model_id, self._known.values()) or spec
        return spec

    def _running(self, model_id: str) -> Progress | None:
        """Return the progress of the running download of a model; None = the model is not being downloaded.

        The download may have been started by a request or by the load of the model.
        """
        job = self._jobs.get(model_id)
        if job is not None and self._is_fetching(job):
            return job.progress()
        return self._manager.of(model_id).status().progress

    @staticmethod
    def _is_fetching(job: _Job) -> bool:
        return job.task is not None and not job.fetched.is_set()

    def _ask(
        self, model_id: str, missing: tuple[ModelFiles, ...], token: HubToken, models: Path, *, wait: bool
    ) -> _Sizes:
        """Return what the hub says about the sources of the missing files.

        wait: False = do not ask the hub, and return the last answer or an empty one. An answer is kept for KEEP_SIZES_S
        seconds, or for KEEP_FAULT_S seconds if it contains a fault.
        """
        known = self._sizes.get(model_id)
        if known is not None and known.missing == missing and (not wait or time.monotonic() < known.until_s):
            return known
        if not wait:
            return _Sizes(missing, {}, {}, None, 0.0)
        with self._asking:
            known = self._sizes.get(model_id)  # another request may have asked the hub meanwhile
            if known is None or known.missing != missing or time.monotonic() >= known.until_s:
                known = self._sizes[model_id] = self._asked(missing, token, models)
        return known

    def _asked(self, missing: tuple[ModelFiles, ...], token: HubToken, models: Path) -> _Sizes:
        remotes: dict[str, Remote] = {}
        gated: dict[str, bool] = {}
        fault: Fault | None = None
        waiting = [copy for each in missing for copy in hub.copies(each)]
        while waiting:
            files = waiting[0]
            try:
                remote = download.look_up(files, models, token=token, patience=_BRIEF)
            except WeightsUnavailable as problem:
                about_hub = problem.code in ("hub_offline", "hub_unreachable")
                is_copy = files not in missing  # a missing copy is no fault: `_sources` leaves it out
                if about_hub or problem.code == "hub_token_invalid" or not is_copy:
                    fault = fault or Fault.of(problem)
                if about_hub:
                    break  # the other sources are on the same hub, which does not answer
                if problem.code == "hub_token_invalid" and token.text:
                    token = NO_TOKEN  # try again without a token: lists of files in public repositories need none
                    continue
                gated[files.source] = True
            else:
                remotes[files.source] = remote
                gated[files.source] = _is_gated(files) if remote.gated is None else remote.gated
            del waiting[0]
        return _Sizes(missing, remotes, gated, fault, time.monotonic() + (KEEP_FAULT_S if fault else KEEP_SIZES_S))

    @staticmethod
    def _sources(missing: tuple[ModelFiles, ...], sizes: _Sizes, models: Path) -> tuple[WeightSource, ...]:
        """Return the repositories from which the missing files can be downloaded.

        The missing files may come from several sources, for example the model and its codec. Returns the repositories
        of the first of these sources that has copies; if no source has copies, returns the repository of the first
        source. The bytes of each repository include the missing files of the other sources.
        """
        if not missing:
            return ()
        main = next((each for each in missing if len(hub.copies(each)) > 1), missing[0])
        others = [each.source for each in missing if each is not main]
        found = []
        for copy in hub.copies(main):
            present = hub.downloaded_bytes(copy, models)
            if copy.source in sizes.gated and copy.source not in sizes.remotes and copy is not main and not present:
                continue  # the hub does not have this copy, or does not show it
            needed = [sizes.remotes.get(source) for source in (copy.source, *others)]
            whole = [remote for remote in needed if remote is not None]
            found.append(
                WeightSource(
                    copy.source,
                    sizes.gated.get(copy.source, _is_gated(copy)),
                    copy.licence_url,
                    sum(remote.total_bytes for remote in whole) if len(whole) == len(needed) else None,
                    sum(remote.local_bytes() for remote in whole) if whole else present,
                )
            )
        return tuple(found)

    # ---- download

    async def start(self, model_id: str, *, source: str = "", token: str = "", save: bool = False) -> None:
        """Begin to download the missing weights of a model. After the download, the model is loaded.

        source: one of the repositories of `state`. "" = the first repository if there is a token, otherwise the first
        one that can be read without a token. token: replaces the server's token. save: save the token in a file of this
        server, after the hub has accepted it. If all weights are on the disk, the model is loaded, and no token is
        saved. Raises InvalidValue, NotSupported, Conflict, HubRefused, HubUnreachable, TooLittleDisk, NotStored.
        """
        job = self._jobs.get(model_id)
        if model_id in self._checking or self._running(model_id) or (job and job.task and not job.task.done()):
            raise Conflict(
                f"A download of the model {model_id} is running, or the model is being loaded. "
                f"GET /v1/models/{model_id}/weights shows its progress, and POST "
                f"/v1/models/{model_id}/weights/cancel stops a download.",
                code="download_running",
            )
        token = token.strip()
        if not re.fullmatch(r"[!-~]*", token):
            raise InvalidValue("`token` contains characters that no token has.", param="token")
        if save and not token:
            raise InvalidValue("`save_token` needs a `token`.", param="token")
        spec = self._spec(model_id)
        self._checking.add(model_id)
        try:
            found = HubToken(token, "request") if token else await asyncio.to_thread(find_token, self._settings)
            parts = await asyncio.to_thread(self._plan, spec, source, found)
            if save and parts:  # without parts to download, the hub has not checked the token
                try:
                    await asyncio.to_thread(save_token, self._settings, token)
                except OSError as error:
                    raise NotStored(
                        f"The token could not be stored ({error.strerror}). Make the folder `hub` in TTS_DATA_DIR "
                        "writable, or send `save_token: false`.",
                        param="save_token",
                    ) from error
        except WeightsUnavailable as problem:
            raise as_speech_error(problem) from problem
        finally:
            self._checking.discard(model_id)
        name = parts[0].files.source if parts else ""
        job = self._jobs[model_id] = _Job(name, found, parts)
        if not parts:
            job.fetched.set()
        self._sizes.pop(model_id, None)
        job.task = asyncio.create_task(self._run(model_id, spec, job), name="weight-download")

    async def cancel(self, model_id: str) -> None:
        """Stop the download of a model. The downloaded bytes stay on the disk. Raises Conflict if no download runs."""
        job = self._jobs.get(model_id)
        if job is None or not self._is_fetching(job):
            raise Conflict(
                f"There is no running download of the model {model_id} that a request has started.", code="no_download"
            )
        job.stop.set()
        await job.fetched.wait()

    def _plan(self, spec: EngineSpec, source: str, token: HubToken) -> list[_Part]:
        """Return the sources to download; [] = nothing is missing.

        Asks the hub whether the files can be read, and checks that the disk has enough free space.
        """
        models = self._settings.folder("models")
        files = spec.files(self._settings)
        if not files:
            raise NotSupported(f"The model {spec.model_id} has no weights to download.", param="model")
        missing = [each for each in files if hub.find(each, models) is None]
        named = [copy.source for each in missing for copy in hub.copies(each)]
        if missing and source and source not in named:
            raise InvalidValue(
                f"{source[:80]!r} is not a source of the model {spec.model_id}. Use one of: {', '.join(named)}.",
                param="source",
            )
        parts = [self._chosen(each, source, token, models) for each in missing]
        if parts:
            needed = sum(part.total_bytes - part.done_bytes for part in parts)
            download.check_space(needed, models, source=parts[0].files.source, setting=spec.model_setting)
        return parts

    @staticmethod
    def _chosen(
        files: ModelFiles, source: str, token: HubToken, models: Path, cancelled: Callable[[], bool] = lambda: False
    ) -> _Part:
        """Choose the copy of these files to download, and return its source and its sizes.

        Raises WeightsUnavailable if no copy can be read.
        """
        candidates = hub.copies(files)
        if named := [copy for copy in candidates if copy.source == source]:
            candidates = (named[0],)
        elif token.text:
            candidates = (files,)
        first: WeightsUnavailable | None = None
        for copy in candidates:
            try:
                remote = download.look_up(copy, models, token=token, check_access=True, cancelled=cancelled)
            except WeightsUnavailable as problem:
                if problem.code not in _NO_ACCESS:
                    raise
                first = first or problem
                continue
            return _Part(copy, remote.total_bytes, remote.local_bytes())
        assert first is not None  # noqa: S101 - there is at least one candidate
        raise first

    async def _run(self, model_id: str, spec: EngineSpec, job: _Job) -> None:
        """Download the weights, and load the model."""
        try:
            if job.parts:
                await asyncio.to_thread(self._fetch, spec, job)
        except Cancelled:
            log.info("the download of %s was cancelled", job.source)
            self._jobs.pop(model_id, None)
            return
        except WeightsUnavailable as problem:
            log.warning("%s could not be downloaded: %s", job.source, problem.reason)
            job.fault = Fault.of(problem)
            return
        except Exception:
            log.exception("the download of the model %s failed", model_id)
            job.fault = Fault("weights_unavailable", "The download failed. The server's log contains the cause.")
            return
        finally:
            job.fetched.set()
            job.token = HubToken()
        await self._load(model_id, job)

    def _fetch(self, spec: EngineSpec, job: _Job) -> None:
        """Download all parts. Then download further files, if the downloaded weights show that these are needed."""
        models = self._settings.folder("models")
        done: set[ModelFiles] = set()
        while waiting := [part for part in job.parts if part.files not in done]:
            for part in waiting:

                def note(progress: Progress, part: _Part = part) -> None:
                    part.total_bytes, part.done_bytes = progress.total_bytes, progress.done_bytes
                    job.file, job.rate_bytes_s = progress.file, progress.rate_bytes_s

                download.fetch(part.files, models, token=job.token, on_progress=note, cancelled=job.stop.is_set)
                done.add(part.files)
            known = {part.files.setting for part in job.parts}
            job.parts += [
                self._chosen(each, "", job.token, models, job.stop.is_set)
                for each in spec.files(self._settings)
                if each.setting not in known and hub.find(each, models) is None
            ]

    async def _load(self, model_id: str, job: _Job) -> None:
        """Load the model as soon as the fallback engine has spoken its last answer."""
        own = self._manager.of(model_id)
        while True:
            try:
                await self._manager.load_model(model_id)
            except Busy:  # the fallback engine speaks a long answer
                await asyncio.sleep(LOAD_AGAIN_S)
                continue
            except NotReady:
                if (await own.settled()).state in (
                    "starting",
                    "unloaded",
                ):  # the load takes longer than TTS_LOAD_WAIT_S
                    await asyncio.sleep(LOAD_AGAIN_S)
                    continue
            break
        status = own.status()
        if status.running == own.requested:
            self._jobs.pop(model_id, None)
            with contextlib.suppress(SpeechError):
                await self._on_loaded()
            return
        job.fault = Fault(NOT_LOADED, f"{status.reason} {status.remedy}".strip())


def _is_gated(files: ModelFiles) -> bool:
    """Whether a source probably needs a token: it does if it is an original repository that has copies."""
    return files.source == files.original and bool(files.mirrors)


def as_speech_error(problem: WeightsUnavailable) -> SpeechError:
    """Return the error that the caller gets if a download can't begin."""
    message = _message(problem)
    match problem.code:
        case "hub_unreachable":
            return HubUnreachable(message, retry_after_s=_RETRY_HUB_S)
        case "hub_offline":
            return Conflict(message, code=problem.code)
        case "not_enough_disk_space":
            return TooLittleDisk(message)
    return HubRefused(message, code=problem.code)


def _message(problem: WeightsUnavailable) -> str:
    return f"{problem.reason.rstrip('.')}. {problem.remedy}".strip()
