"""Downloads model files from the Hugging Face hub. A download reports progress, and can be cancelled and resumed.

hub.py decides which files a model needs. The library huggingface_hub (tested with version 2.4) provides the file list,
URLs, headers, the HTTP session, locks and typed errors. This module downloads and verifies the bytes itself, because
the library's `hf_hub_download` has these limits:
- It writes to a file with a random name and deletes this file on failure, so a killed download starts from zero.
- It reports progress only every 10 MiB, and can be cancelled only at a report.
- It can't resume a download over the xet protocol.
This module sends a plain GET with a Range header and appends the bytes to blobs/<etag>.incomplete. For xet files, the
hub redirects a plain GET to an HTTP download, so xet needs no setting.
This module reads HF_ENDPOINT and HF_HUB_OFFLINE at each call. The library reads these variables only at its import.

If a complete file is in the cache of the hub's library, this module does not download the file, but creates a link to
it in the snapshot in `models_dir`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from app.errors import WeightsUnavailable
from app.weights.hub import (
    COMMIT,
    HUB_URL,
    ModelFiles,
    Source,
    choose_files,
    defect_of,
    find,
    find_in_library_cache,
    hub_cache,
    is_true,
    missing_error,
    missing_files,
)
from app.weights.hub_token import NO_TOKEN

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub import HfFileMetadata
    from huggingface_hub.errors import HfHubHTTPError

    from app.weights.hub_token import HubToken

log = logging.getLogger(__name__)

T = TypeVar("T")

_TICK_S = 0.22  # seconds between two calls of on_progress and cancelled
_RATE_WINDOW_S = 5.0
_BLOCK_BYTES = 1 << 20
# The free disk space that a download needs, divided by the missing bytes. It is above 1, because the disk rounds files
# up to blocks, and other processes may write at the same time.
_HEADROOM = 1.05


class Cancelled(Exception):
    """The caller cancelled the download. The downloaded bytes stay on disk for the next download."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a download. `done_bytes` includes bytes of earlier downloads, but `rate_bytes_s` does not."""

    source: str
    file: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    eta_s: float | None  # estimated seconds until the download ends; None = nothing was received in the last seconds


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts and retries of a download."""

    answer_s: float = 14.0  # limit of the time for all attempts to get the file list, in total
    stall_s: float = 60.0  # an attempt fails if no byte of the file arrives for this time
    # The largest number of failures in a row; if an attempt receives a block (1 MiB), the count starts again at 1.
    retries: int = 4
    backoff_s: float = 1.0  # delay before the first retry; each further retry doubles the delay


_PATIENCE = Patience()


def fetch(
    files: ModelFiles,
    models_dir: Path,
    *,
    token: HubToken = NO_TOKEN,
    on_progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    patience: Patience = _PATIENCE,
) -> Path:
    """Return the folder with the model's files. Download the files that are missing.

    This function blocks until the download ends. It calls `on_progress` and `cancelled` in the caller's thread, and
    sends `token` to the hub. Raises WeightsUnavailable with a reason and a remedy. Raises Cancelled if `cancelled`
    returns True.
    """
    if (folder := find(files, models_dir)) is not None:
        if folder.is_relative_to(hub_cache()) and not folder.is_relative_to(models_dir):
            log.info("%s is used from the Hugging Face cache: %s", files.source, folder)
        return folder
    in_library, defects = find_in_library_cache(files)
    if defects:
        log.warning(
            "%s in the Hugging Face cache is not complete: %s. The server downloads the missing files. Cache: %s",
            files.source,
            "; ".join(defects),
            in_library,
        )
    download = _open(files, models_dir, token, patience, defects)

    def check_cancelled() -> None:
        if cancelled():
            raise Cancelled(f"the download of {files.source} was cancelled")

    def report() -> None:
        check_cancelled()
        on_progress(download.progress())

    try:
        check_cancelled()
        download.plan = _in_background(download.list_files, check_cancelled, limit_s=patience.answer_s)
        download.prepare()
        report()
        _in_background(download.run, report)
    except _TimedOut:
        raise download.unreachable(f"no answer within {patience.answer_s:g} s") from None
    finally:
        download.stop.set()
    on_progress(download.progress())
    folder = download.snapshot / download.source.subfolder
    if missing := missing_files(folder, files):  # the index file may name a shard that the hub does not have
        raise missing_error(files, missing)
    return folder


class Remote:
    """The files of a model on the hub: their size, how many bytes are on the disk, and whether they are gated."""

    def __init__(self, download: _Download) -> None:
        self._download = download
        self.total_bytes = sum(file.size_bytes for file in download.plan.files)

    @property
    def gated(self) -> bool | None:
        """Whether the repository needs a token of an account that has accepted the licence; None = unknown."""
        return self._download.plan.gated

    def local_bytes(self) -> int:
        """Return how many bytes of these files are on the disk, including bytes of interrupted downloads."""
        self._download.count_local()
        return sum(self._download.local_bytes.values())


def look_up(
    files: ModelFiles,
    models_dir: Path,
    *,
    token: HubToken = NO_TOKEN,
    check_access: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    patience: Patience = _PATIENCE,
) -> Remote:
    """Ask the hub for the files that `fetch` would download. Blocks for at most `patience.answer_s` seconds.

    check_access: whether to check, too, that the hub lets this token read the files. The file list of a gated
    repository is public, so the hub sends the list even if the token may not read the files.

    Raises WeightsUnavailable if the hub does not answer or refuses the request. Raises Cancelled if `cancelled` returns
    True.
    """
    download = _open(files, models_dir, token, patience)
    download.check_access = check_access

    def check_cancelled() -> None:
        if cancelled():
            raise Cancelled(f"the download of {files.source} was cancelled")

    try:
        download.plan = _in_background(download.list_files, check_cancelled, limit_s=patience.answer_s)
    except _TimedOut:
        raise download.unreachable(f"no answer within {patience.answer_s:g} s") from None
    finally:
        download.stop.set()
    return Remote(download)


def _open(
    files: ModelFiles, models_dir: Path, token: HubToken, patience: Patience, defects: Sequence[str] = ()
) -> _Download:
    """Return a download that has not begun. defects: what is wrong with the files in the cache of the hub's library.

    Raises WeightsUnavailable in offline mode, and if the token contains characters that no token has.
    """
    _refuse_offline(files, models_dir, defects)
    token = replace(token, text=token.text.strip())
    # Without this check, the HTTP library would raise an error that contains the token.
    if not re.fullmatch(r"[!-~]*", token.text):
        raise WeightsUnavailable(
            f"{token.name} contains characters that no token has",
            remedy="Correct HF_TOKEN, or run `hf auth login`.",
            code="hub_token_invalid",
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    return _Download(files, Source.parse(files), models_dir, endpoint, token, patience)


def check_space(missing_bytes: int, models_dir: Path, *, source: str, setting: str) -> None:
    """Raise WeightsUnavailable if the disk of `models_dir` has too little space for a download of `missing_bytes`.

    source: the source of the model. setting: the environment variable that names the source.
    """
    needed, free = int(missing_bytes * _HEADROOM), free_bytes(models_dir)
    if needed > free:
        raise WeightsUnavailable(
            f"{source} needs {_gigabytes(needed)} of free disk space in {models_dir}, "
            f"and only {_gigabytes(free)} are free",
            remedy=f"Free some space there, put the models on a larger volume, or set {setting} to a local folder.",
            code="not_enough_disk_space",
        )


def free_bytes(models_dir: Path) -> int:
    """Return the number of free bytes on the disk to which the server downloads models.

    Raises OSError if the folder `models_dir` does not exist.
    """
    folder = models_dir / "hub"  # this folder may be a link to another disk
    return shutil.disk_usage(folder if folder.exists() else models_dir).free


def _refuse_offline(files: ModelFiles, models_dir: Path, defects: Sequence[str]) -> None:
    """Raise WeightsUnavailable if an environment variable turns on the offline mode of the hub's library."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if is_true(os.environ.get(name)):
            found = f": {'; '.join(defects)}" if defects else ""
            command = f"hf download {files.source.replace('@', ' --revision ')}"
            raise WeightsUnavailable(
                f"offline mode is set ({name}={os.environ[name]}) and {files.source} is not complete in {models_dir} "
                f"or in the Hugging Face cache {hub_cache()}{found}",
                remedy=f"Unset {name}, or run `{command}` on a machine with a network and copy the Hugging Face "
                f"cache of that machine here, or set {files.setting} to a local folder.",
                code="hub_offline",
            )


def _in_background(work: Callable[[], T], tick: Callable[[], None], *, limit_s: float | None = None) -> T:
    """Run `work` in a new thread and return its result. Call `tick` in the caller's thread until `work` ends.

    If `tick` raises an exception, this function stops waiting and raises the exception. Raises _TimedOut after limit_s.
    The new thread is necessary because Python can't interrupt a DNS lookup or a blocked read. The thread is a daemon
    thread, so that it does not prevent the end of the process.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises this error
            future.set_exception(error)

    threading.Thread(target=run, name="model-download", daemon=True).start()
    deadline_s = time.monotonic() + limit_s if limit_s is not None else float("inf")
    while not wait([future], timeout=min(_TICK_S, max(0.0, deadline_s - time.monotonic()))).done:
        tick()
        if time.monotonic() >= deadline_s:
            raise _TimedOut
    return future.result()


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """A file in the hub's list of files. etag: the name of the blob; a sha256, or git's sha1 if the file is small."""

    name: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Plan:
    commit: str
    files: tuple[_RemoteFile, ...]
    gated: bool | None = None  # whether the repository is gated; None = the hub does not say it


class _TransferFailed(Exception):
    """A transfer failed, but another attempt may succeed."""


class _TimedOut(Exception):
    """The work in the background thread takes longer than its limit."""


class _Stopped(Exception):
    """The caller has stopped the download, so the background thread must end."""


@dataclass(slots=True)
class _Download:
    """The download of one model.

    The background thread runs `list_files` and `run`. The caller's thread calls all other methods. During `run`, the
    background thread writes `local_bytes`, `current` and `fetched_bytes`, and the caller's thread reads them. The
    caller's thread sets `stop` to end the background thread.
    """

    files: ModelFiles
    source: Source
    models_dir: Path
    endpoint: str
    token: HubToken
    patience: Patience = field(default_factory=Patience)
    check_access: bool = False  # whether `list_files` also checks that the token may read the files
    plan: _Plan = _Plan("", ())
    local_bytes: dict[str, int] = field(default_factory=dict)  # file -> number of bytes on disk
    current: str = ""
    fetched_bytes: int = 0  # bytes that this object has received over the network
    stop: threading.Event = field(default_factory=threading.Event)
    # (time, fetched_bytes) at each report of the last _RATE_WINDOW_S seconds.
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def cache(self) -> Path:
        return self.source.cache(self.models_dir)

    @property
    def snapshot(self) -> Path:
        return self.cache / "snapshots" / self.plan.commit

    def part(self, file: _RemoteFile) -> Path:
        return self.cache / "blobs" / f"{file.etag}.incomplete"

    def is_complete(self, file: _RemoteFile) -> bool:
        """Whether the file is downloaded and verified.

        A blob gets its final name only after its bytes are verified. On a disk without symlinks, the blob is moved to
        the snapshot, so only the snapshot file exists.
        """
        return (self.cache / "blobs" / file.etag).exists() or (self.snapshot / file.name).is_file()

    def in_library_cache(self, file: _RemoteFile, commit: str) -> Path | None:
        """Return the path of the complete file in the cache of the hub's library; None = it is not in this cache.

        The name of a blob is its ETag, so this method also finds a blob that the library downloaded for another
        commit. On a disk without symlinks, the library keeps the file in the snapshot and has no blob.
        """
        cache = self.source.library_cache()
        for path in (cache / "blobs" / file.etag, cache / "snapshots" / commit / file.name):
            try:
                if not defect_of(path) and path.stat().st_size == file.size_bytes:
                    return path
            except OSError:
                continue
        return None

    # ---- methods that the caller's thread runs

    def prepare(self) -> None:
        """Create the folders of the download, and count the bytes that are already on the disk.

        Raises WeightsUnavailable if the server can't write to the disk, or if the missing bytes do not fit on it.
        """
        try:
            for folder in (self.cache / "blobs", self.snapshot):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explain_disk(error) from error
        self.count_local()
        missing = sum(file.size_bytes for file in self.plan.files) - sum(self.local_bytes.values())
        check_space(missing, self.models_dir, source=self.files.source, setting=self.files.setting)

    def count_local(self) -> None:
        """Set `local_bytes`: count how many bytes of each file are on the disk."""
        for file in self.plan.files:
            on_disk = self.is_complete(file) or self.in_library_cache(file, self.plan.commit) is not None
            self.local_bytes[file.name] = file.size_bytes if on_disk else min(_size(self.part(file)), file.size_bytes)

    def progress(self) -> Progress:
        now = time.monotonic()
        self.samples.append((now, self.fetched_bytes))
        while now - self.samples[0][0] > _RATE_WINDOW_S:
            self.samples.popleft()
        then, before_bytes = self.samples[0]
        rate = (self.fetched_bytes - before_bytes) / (now - then) if now > then else 0.0
        done = sum(self.local_bytes.values())
        total = sum(file.size_bytes for file in self.plan.files)
        return Progress(
            source=self.files.source,
            file=self.current,
            done_bytes=done,
            total_bytes=total,
            rate_bytes_s=rate,
            eta_s=(total - done) / rate if rate > 0 else None,
        )

    def unreachable(self, why: str) -> WeightsUnavailable:
        shown = re.sub(r"//[^/]*@", "//", self.endpoint)  # remove a user name and password in the URL from the message
        what = f"cannot reach {shown} for {self.files.source}"
        if self.source.subfolder:
            what = f"{self.files.setting}={self.files.source} does not exist as a folder here, and {what}"
        if self.current:
            what = f"the download of {self.files.source} from {shown} broke off at {self.current}"
        return WeightsUnavailable(
            f"{what}: {why}",
            remedy=f"Check the network and HF_ENDPOINT, or set {self.files.setting} to a local folder. "
            "The downloaded bytes are kept.",
            code="hub_unreachable",
        )

    # ---- the background thread

    def list_files(self) -> _Plan:
        """Request the commit and the list of files from the hub.

        After an error that may be temporary, such as a 503, the request is repeated, at most twice.
        """
        from httpx2 import ConnectError  # noqa: PLC0415

        attempt = 0
        while True:
            try:
                return self._request_plan()
            except Exception as error:
                attempt += 1
                # Do not retry a failed connection, so that the server reports a missing network quickly.
                if attempt > 2 or not _is_retryable(error) or isinstance(error, ConnectError):
                    if (explained := self._explain(error)) is None:
                        raise
                    raise explained from error
            if self.stop.wait(self.patience.backoff_s * attempt):
                raise _Stopped

    def _request_plan(self) -> _Plan:
        from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url  # noqa: PLC0415 - slow to import, and not needed without models

        # Without this line, the library would first request a list of coding agents, and would store the list in the
        # user's HF_HOME.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        api = HfApi(endpoint=self.endpoint, token=self.token.text or False)
        info = api.model_info(
            self.source.repo, revision=self.source.revision, files_metadata=True, timeout=self.patience.answer_s
        )
        if not info.sha or not COMMIT.fullmatch(info.sha):
            raise ValueError("no commit in the answer")

        def metadata(name: str) -> HfFileMetadata:
            url = hf_hub_url(self.source.repo, name, revision=info.sha, endpoint=self.endpoint)
            return get_hf_file_metadata(
                url, token=self.token.text or False, timeout=self.patience.answer_s, endpoint=self.endpoint
            )

        siblings = {sibling.rfilename: sibling for sibling in info.siblings or () if _is_safe_name(sibling.rfilename)}
        listed = {
            name: (sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
            for name, sibling in siblings.items()
        }
        in_library = {
            name
            for name, (size, etag) in listed.items()
            if size and etag and self.in_library_cache(_RemoteFile(name, size, etag), info.sha)
        }
        chosen = []
        for name in choose_files(self.files, {name: size or 0 for name, (size, _) in listed.items()}, in_library):
            size, etag = listed[name]
            if size is None or not etag:  # some mirrors list only names, so request the metadata of the file
                head = metadata(name)
                size, etag = head.size, head.etag
            if size is None or not etag or not re.fullmatch(r"[\w.-]+", etag):
                raise ValueError(f"no size or no ETag for {name}")
            chosen.append(_RemoteFile(name, size, etag))
        chosen.sort(key=lambda file: (file.size_bytes, file.name))
        if self.check_access and chosen:
            metadata(chosen[0].name)
        gated = getattr(info, "gated", None)
        return _Plan(info.sha, tuple(chosen), None if gated is None else bool(gated))

    def run(self) -> None:
        """Download all missing files, and then write the commit to refs/<revision>.

        The weights are downloaded last. So a partly downloaded model never looks complete.
        """
        try:
            self._download_all()
        except Exception as error:
            if (explained := self._explain(error)) is None:
                raise
            raise explained from error

    def _download_all(self) -> None:
        for file in self.plan.files:
            self.current = file.name
            blob = self.cache / "blobs" / file.etag
            if not self.is_complete(file) and (present := self.in_library_cache(file, self.plan.commit)) is not None:
                self.local_bytes[file.name] = file.size_bytes
                self._link_to_library(self.snapshot / file.name, present)
                continue
            if not self.is_complete(file):
                with self._lock(file):
                    # Another process may have downloaded the file while this process waited for the lock.
                    if not self.is_complete(file):
                        self._download(file, blob)
            self.local_bytes[file.name] = file.size_bytes
            _link(self.snapshot / file.name, blob)
        if self.source.revision != self.plan.commit:
            _write_ref(self.cache / "refs" / self.source.revision, self.plan.commit)

    def _link_to_library(self, pointer: Path, present: Path) -> None:
        """Create `pointer` as a link to `present`, a file in the cache of the hub's library.

        On a disk without symlinks, copy the file.
        """
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(present.absolute())
        except OSError:
            draft = pointer.with_name(f"{pointer.name}.{os.getpid()}")
            shutil.copyfile(present, draft)
            draft.replace(pointer)

    @contextmanager
    def _lock(self, file: _RemoteFile) -> Iterator[None]:
        """Hold the lock of this blob. huggingface_hub and other servers use the same lock.

        For example, the command `download` may run while a server starts and downloads the same model.
        """
        from filelock import Timeout  # noqa: PLC0415
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # noqa: PLC0415

        path = self.models_dir / "hub" / ".locks" / self.cache.name / f"{file.etag}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as holding:
            while True:
                try:
                    holding.enter_context(WeakFileLock(path, timeout=0.5))
                    break
                except Timeout:
                    self.local_bytes[file.name] = min(_size(self.part(file)), file.size_bytes)
                if self.stop.is_set():
                    raise _Stopped
            yield

    def _download(self, file: _RemoteFile, blob: Path) -> None:
        """Download one file to its blob. After a failure, a new connection continues after the last downloaded byte."""
        failures = 0
        with _PartialFile(self.part(file), file, self.stop) as part:
            part.hash_existing()
            while True:
                before = part.size_bytes
                try:
                    self._transfer(file, part)
                    break
                except Exception as error:
                    failures = 1 if part.size_bytes - before >= _BLOCK_BYTES else failures + 1
                    if failures > self.patience.retries or not _is_retryable(error):
                        raise
                if self.stop.wait(min(self.patience.backoff_s * 2 ** (failures - 1), 30.0)):
                    raise _Stopped
            part.sync()
        self.part(file).replace(blob)

    def _transfer(self, file: _RemoteFile, part: _PartialFile) -> None:
        from httpx2 import Timeout  # noqa: PLC0415
        from huggingface_hub import hf_hub_url  # noqa: PLC0415
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # noqa: PLC0415
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        self.local_bytes[file.name] = part.size_bytes
        if part.size_bytes < file.size_bytes:
            url = hf_hub_url(self.source.repo, file.name, revision=self.plan.commit, endpoint=self.endpoint)
            headers = build_hf_headers(token=self.token.text or False)
            headers["Accept-Encoding"] = "identity"  # some CDNs ignore the Range header if the response is compressed
            if part.size_bytes:
                headers["Range"] = f"bytes={part.size_bytes}-"
            timeout = Timeout(self.patience.stall_s, connect=min(self.patience.answer_s, self.patience.stall_s))
            # The session follows redirects. If a redirect leads to another host (the CDN), the session does not send
            # the token.
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                if response.status_code == 416:
                    part.restart()
                    raise _TransferFailed("the hub refused to resume a partial file")
                hf_raise_for_status(response)
                if part.size_bytes and not _continues_at(response, part.size_bytes):
                    part.restart()
                    if response.status_code == 206:
                        raise _TransferFailed("the hub did not send the requested range of bytes")
                for chunk in response.iter_bytes():
                    part.append(chunk)
                    self.local_bytes[file.name] = min(part.size_bytes, file.size_bytes)
                    self.fetched_bytes += len(chunk)
        if part.size_bytes < file.size_bytes:
            raise _TransferFailed("the connection ended early")
        if not part.is_valid():
            part.restart()
            self.local_bytes[file.name] = 0
            raise _TransferFailed("the bytes do not match the checksum")

    # ---- error messages

    def _explain(self, error: Exception) -> WeightsUnavailable | None:
        """Convert `error` to WeightsUnavailable. Returns None for an unknown kind of error."""
        from httpx2 import HTTPError, InvalidURL  # noqa: PLC0415
        from huggingface_hub import errors  # noqa: PLC0415

        source, setting = self.files.source, self.files.setting
        match error:
            case errors.OfflineModeIsEnabled():
                return WeightsUnavailable(
                    f"offline mode is set and {source} is not complete in {self.models_dir}",
                    remedy=f"Unset HF_HUB_OFFLINE, or set {setting} to a local folder.",
                    code="hub_offline",
                )
            case errors.RevisionNotFoundError():
                return WeightsUnavailable(
                    f"{self.source.repo} has no revision {self.source.revision}", remedy=f"Correct {setting}."
                )
            case errors.HfHubHTTPError():
                return self._explain_http(error)
            case HTTPError() | InvalidURL():
                return self.unreachable(str(error) or type(error).__name__)
            case errors.HFValidationError():
                return WeightsUnavailable(f"{source} is not a valid hub id", remedy=f"Correct {setting}.")
            case _TransferFailed():
                return self.unreachable(str(error))
            case OSError():
                return self._explain_disk(error)
            case ValueError() | TypeError() | KeyError():
                return self.unreachable("the answer does not come from a Hugging Face hub (maybe from a login page)")
        return None

    def _explain_http(self, error: HfHubHTTPError) -> WeightsUnavailable:
        from huggingface_hub.errors import GatedRepoError  # noqa: PLC0415

        source, setting, status = self.files.source, self.files.setting, error.response.status_code
        if status == 404 and self.current:
            return WeightsUnavailable(f"{source} no longer contains {self.current}", remedy="Start the download again.")
        if status == 404 and self.source.subfolder:
            return WeightsUnavailable(
                f"{setting}={source} does not exist: there is no such folder here, and no public repository "
                f"{self.source.repo} on the hub",
                remedy=f"Correct {setting}, or mount the folder that it names.",
            )
        mirrors = [mirror for mirror in self.files.mirrors if mirror != source]
        copy = f" Or use a copy that needs no access request: {setting}={mirrors[0]}" if mirrors else ""
        if status == 401 and self.token.text:
            return WeightsUnavailable(
                f"the hub does not accept {self.token.name}, so {source} was not downloaded",
                remedy=f"Create a token at {HUB_URL}/settings/tokens and "
                + ("send it." if self.token.origin == "request" else "set HF_TOKEN to it, or run `hf auth login`.")
                + copy,
                code="hub_token_invalid",
            )
        if status in (401, 403, 404):
            if isinstance(error, GatedRepoError):
                what = "is gated"
            elif status == 404:
                what = "does not exist"
            else:
                what = "is private, gated or does not exist"
            key = f"{self.token.name} has no access" if self.token.text else "HF_TOKEN is not set"
            fine = " If the token is fine-grained, allow it to read gated repositories." if status == 403 else ""
            give = "and set HF_TOKEN to a token of that account, or run `hf auth login`."
            if self.token.origin == "request":
                give = "with the account of this token, and try again."
            return WeightsUnavailable(
                f"{source} {what}, and {key}",
                remedy=f"Accept the licence at {self.files.licence_url} {give}{fine}{copy}",
                code={401: "hub_token_missing", 403: "hub_licence_not_accepted"}.get(status, "weights_unavailable"),
            )
        return self.unreachable(f"the hub answered with status {status}")

    def _explain_disk(self, error: OSError) -> WeightsUnavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            source, left = (
                self.files.source,
                sum(f.size_bytes for f in self.plan.files) - sum(self.local_bytes.values()),
            )
            return WeightsUnavailable(
                f"the disk with {self.models_dir} is full: {_gigabytes(left)} of {source} are still missing",
                remedy="Free some space and start again (the downloaded bytes are kept), "
                f"or set {self.files.setting} to a local folder.",
                code="not_enough_disk_space",
            )
        return WeightsUnavailable(
            f"cannot write to {self.models_dir}: {error.strerror or error}",
            remedy="Give the server's user permission to write there, or mount another volume.",
        )


class _PartialFile:
    """A partly downloaded file and the checksum of its bytes. Used only in the background thread."""

    def __init__(self, path: Path, file: _RemoteFile, stop: threading.Event) -> None:
        self._path, self._file, self._stop = path, file, stop
        self._out: BinaryIO = path.open("ab")
        self.size_bytes = 0
        self._digest = _digest(file)

    def hash_existing(self) -> None:
        """Add the bytes of an earlier download to the checksum. If there are too many bytes, delete all of them."""
        left = _size(self._path)
        if left > self._file.size_bytes:
            self.restart()
            return
        with self._path.open("rb") as present:
            while left and (block := present.read(min(left, _BLOCK_BYTES))):
                self._check()
                self._digest.update(block)
                self.size_bytes += len(block)
                left -= len(block)

    def __enter__(self) -> _PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def append(self, chunk: bytes) -> None:
        self._check()
        if self.size_bytes + len(chunk) > self._file.size_bytes:
            self.restart()
            raise _TransferFailed("the hub sent more bytes than announced")
        self._out.write(chunk)
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def restart(self) -> None:
        self._out.truncate(0)
        self.size_bytes = 0
        self._digest = _digest(self._file)

    def is_valid(self) -> bool:
        """Whether the bytes have the hub's checksum. If the ETag is not a checksum, compare only the size."""
        if len(self._file.etag) != self._digest.digest_size * 2:
            return self.size_bytes == self._file.size_bytes
        return self._digest.hexdigest() == self._file.etag

    def sync(self) -> None:
        self._out.flush()
        # The bytes must be on disk before the blob gets its final name, because a blob with its final name is not
        # verified again.
        os.fsync(self._out.fileno())

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def _digest(file: _RemoteFile) -> hashlib._Hash:
    """Return a new hash object of the kind that the file's ETag contains.

    The ETag of a small file is git's blob id, a sha1. The ETag of a file in LFS or xet is a sha256.
    """
    if len(file.etag) == 40:
        return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    return hashlib.sha256()


def _is_retryable(error: Exception) -> bool:
    """Whether another attempt may succeed after this error."""
    from httpx2 import TransportError  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (_TransferFailed, TransportError))


def _continues_at(response: Response, start: int) -> bool:
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _is_safe_name(name: str) -> bool:
    """Whether a file name from the network is a relative path that does not leave the target folder."""
    return "\\" not in name and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def _link(pointer: Path, blob: Path) -> None:
    """Create the file `pointer` (snapshots/<commit>/<name>) as a relative symlink to the blob.

    On a disk without symlinks, move the blob to `pointer`.
    """
    if pointer.is_file():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)


def _write_ref(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _gigabytes(count: int) -> str:
    """Format bytes with decimal units: 1 GB = 10^9 bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
