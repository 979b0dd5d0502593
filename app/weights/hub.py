"""Model files: where they are on disk, and how they come from the Hugging Face hub. No tensors, no engines.

A source is a local folder (used as it is, never any network) or a hub id `org/name`, optionally `org/name@revision`.
Downloads lie in `<models_dir>/hub` in the hub's own cache layout (blobs/<etag>, snapshots/<commit>/<name> -> blob,
refs/<revision>), so that other tools can share the folder: HF_HUB_CACHE=<models_dir>/hub. The user's own default cache
is not looked at: models_dir is a volume, and what is in it is all there is.

What the library does and what is done here, with huggingface_hub 2.4 read for it:
- The file list, URLs, headers, the HTTP session, locks and typed errors are the library's.
- The bytes are fetched here. `hf_hub_download` writes to a file of random name and deletes it on failure, so a killed
  download starts from zero; it reports every 10 MiB and can't be cancelled in between; its xet path can't resume.
  A plain GET with Range into blobs/<etag>.incomplete does all three. /resolve/ answers a plain GET for xet files too
  (with a redirect), so xet is not switched off anywhere: it is just not used here.
- HF_ENDPOINT and HF_HUB_OFFLINE are read here at each call; the library reads them once, when it is imported.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from app.errors import WeightsUnavailable

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

_HUB = "https://huggingface.co"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_INDEX = ".safetensors.index.json"

_TICK_S = 0.22  # how often progress is told and `cancelled` asked: at most 5 times a second, at least every 0.5 s
_RATE_WINDOW_S = 5.0
_BLOCK_BYTES = 1 << 20
_HEADROOM = 1.05  # of the missing bytes: the file system's own blocks, and somebody else's log


class Cancelled(Exception):
    """`cancelled()` said yes. What has been downloaded so far is kept and taken up again next time."""


# ------------------------------------------------------------------------------------------------ what a model needs


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What one model needs, and where it comes from.

    setting: the environment variable that names the source. required: files without which the model can't be built.
    optional: patterns of small files taken where they exist. weights: layouts, best first, each named by one file: an
    index brings its shards with it, anything else is a single file. The first that there is is taken, never a second.
    mirrors: hub ids with the same weights and no gate, for advice in messages.
    """

    setting: str
    source: str
    weights: tuple[str, ...]
    required: tuple[str, ...] = ("config.json",)
    optional: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()

    @property
    def licence_url(self) -> str:
        """The page where a gated model's licence is accepted."""
        return f"{_HUB}/{self.source.partition('@')[0]}"

    @property
    def allow_patterns(self) -> tuple[str, ...]:
        """Everything that could be taken (`choose_files` takes one layout of the weights only)."""
        shards = tuple(name.replace(_INDEX, "-*-of-*.safetensors") for name in self.weights if name.endswith(_INDEX))
        return (*self.required, *self.optional, *self.weights, *shards)


_KNOWN: Mapping[str, ModelFiles] = {
    # sesame/csm-1b at c92a71e1 is 19.6 GB: the same weights as transformers-0000x-of-00002 (7.1 GB with the Mimi codec
    # inside), model.safetensors (6.2 GB, original names, no codec) and ckpt.pt (6.2 GB pickle). Fine-tunes and mirrors
    # save model-0000x-of-0000N or one model.safetensors. Its tokenizer.json makes the (gated) Llama one unnecessary.
    # Mirrors: transformers layout; whether a mirror is gated today can only be seen on its page.
    "csm": ModelFiles(
        setting="CSM_MODEL",
        source="sesame/csm-1b",
        weights=("transformers" + _INDEX, "model" + _INDEX, "model.safetensors", "ckpt.pt"),
        required=("config.json", "tokenizer.json"),
        optional=(
            "generation_config.json",
            "preprocessor_config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "prompts/*.wav",
            "prompts/*.txt",
        ),
        mirrors=("unsloth/csm-1b", "eustlb/csm-1b"),
    ),
    # kyutai/mimi: one model.safetensors of 385 MB under transformers' names, CC-BY-4.0, not gated. Needed only for a
    # CSM checkpoint without a codec: ask `has_tensor(folder, "codec_model.")`.
    "mimi": ModelFiles(
        setting="CSM_CODEC",
        source="kyutai/mimi",
        weights=("model.safetensors",),
        optional=("preprocessor_config.json",),
    ),
    # nari-labs/Dia-1.6B-0626 holds model-0000x-of-00002 (6.4 GB, transformers names) and dia-v1.pth (6.4 GB, nari's);
    # the April model is model.safetensors or dia-v0_1.pth, and dia-v0_1_bf16.safetensors in a conversion. Text is
    # bytes: no tokenizer. Apache-2.0, not gated.
    "dia": ModelFiles(
        setting="DIA_MODEL",
        source="nari-labs/Dia-1.6B-0626",
        weights=("model" + _INDEX, "model.safetensors", "dia-v*.safetensors", "dia-v*.pth"),
        optional=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    ),
    # descript/dac_44khz at c1bc521: config.json, preprocessor_config.json, model.safetensors of 307 MB; not gated.
    "dac": ModelFiles(
        setting="DIA_CODEC",
        source="descript/dac_44khz",
        weights=("model.safetensors",),
        optional=("preprocessor_config.json",),
    ),
}


def files_for(model: str, source: str = "") -> ModelFiles:
    """What `model` ("csm", "mimi", "dia", "dac") needs, from `source` or, where that is empty, from its usual place."""
    known = _KNOWN[model]
    return replace(known, source=source.strip()) if source.strip() else known


def choose_files(files: ModelFiles, sizes: Mapping[str, int]) -> list[str]:
    """The names to take out of `sizes` (name -> bytes: a repository's list, or a folder's), smallest first.

    Exactly one layout of the weights is taken. Smallest first, so that a gate or a wrong token shows at the first
    kilobyte and the weights are the last to be there. Raises WeightsUnavailable and names what is missing.
    """
    chosen, missing = _sort_out(files, sizes)
    if missing:
        raise _lacks(files, missing)
    return chosen


def _lacks(files: ModelFiles, missing: list[str]) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"{files.source} lacks files that this server needs: {', '.join(missing)}",
        remedy=f"Set {files.setting} to a repository or folder that has them.",
    )


def _sort_out(files: ModelFiles, sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """(names to take, smallest first; what is missing for a whole model)."""
    taken = {name for name in sizes if any(fnmatch(name, pattern) for pattern in (*files.required, *files.optional))}
    missing = [name for name in files.required if name not in taken]
    # The first layout that has begun decides, whole or not: an index without its shards is half a download.
    for layout in files.weights:
        found = sorted((name for name in sizes if fnmatch(name, layout)), key=lambda name: (sizes[name], name))
        if not found:
            continue
        taken.add(found[0])  # several single files of one pattern are the same weights at different precision
        if layout.endswith(_INDEX):
            shards = [match for name in sizes if (match := _SHARD.fullmatch(name)) and match["stem"] + _INDEX == layout]
            taken.update(match.string for match in shards)
            count = max((int(match["count"]) for match in shards), default=0)
            have = {int(match["number"]) for match in shards}
            stem = layout.removesuffix(_INDEX)
            missing += [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1) if n not in have]
            if not shards:
                missing.append(f"the shards of {layout}")
        break
    else:
        missing.append(f"weights ({' or '.join(files.weights)})")
    return sorted(taken, key=lambda name: (sizes[name], name)), missing


# ------------------------------------------------------------------------------------------------ what is on disk


@dataclass(frozen=True, slots=True)
class _Source:
    """A source taken apart: a folder, or a hub id with its revision."""

    folder: Path | None = None
    repo: str = ""
    revision: str = "main"

    @staticmethod
    def parse(files: ModelFiles) -> _Source:
        value = files.source
        folder = Path(value).expanduser()
        if folder.is_dir():
            return _Source(folder=folder)
        if folder.exists():
            raise WeightsUnavailable(
                f"{files.setting}={value} is a file; a model is a folder",
                remedy=f"Set {files.setting} to the folder around it.",
            )
        repo, _, revision = value.partition("@")
        if value.startswith(("/", ".", "~")) or "\\" in value or repo.count("/") > 1:
            raise WeightsUnavailable(
                f"{files.setting}={value} looks like a folder, and there is no such folder",
                remedy=f"Correct {files.setting}, or mount the folder that it names.",
            )
        if not _HUB_ID.fullmatch(repo) or not _REVISION.fullmatch(revision or "main"):
            raise WeightsUnavailable(
                f"{files.setting}={value} is neither an existing folder nor a hub id (org/name or org/name@revision)",
                remedy=f"Correct {files.setting}.",
            )
        return _Source(repo=repo, revision=revision or "main")

    def cache(self, models_dir: Path) -> Path:
        return models_dir / "hub" / f"models--{self.repo.replace('/', '--')}"


def find(files: ModelFiles, models_dir: Path) -> Path | None:
    """The folder with the model's files if all of them are on disk, else None. Never any network.

    A local folder is returned as it is. Raises WeightsUnavailable where the source can't be one at all.
    """
    source = _Source.parse(files)
    if source.folder is not None:
        return source.folder
    cache = source.cache(models_dir)
    try:
        commit = (
            source.revision
            if _COMMIT.fullmatch(source.revision)
            else (cache / "refs" / source.revision).read_text().strip()
        )
        folder = cache / "snapshots" / commit
        return folder if commit and not _missing_in(folder, files) else None
    except OSError:  # no such reference, or a folder that can't be read: for the caller both mean "not there"
        return None


def _missing_in(folder: Path, files: ModelFiles) -> list[str]:
    """What a folder lacks for a whole model. Names in the cache appear only once their bytes are there and verified."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    chosen, missing = _sort_out(files, sizes)
    for index in (name for name in chosen if name.endswith(_INDEX)):
        missing += sorted(_shards_in(folder / index) - sizes.keys())
    return missing


def _shards_in(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return {f"a readable {index.name}"}


def has_tensor(folder: Path, prefix: str) -> bool:
    """Whether any safetensors file in `folder` holds a tensor whose name begins with `prefix`. Reads headers only.

    `has_tensor(folder, "codec_model.")` tells a CSM checkpoint that brings its own Mimi from one that needs "mimi" as
    well: names decide, since model.safetensors is the original layout at sesame and the transformers layout in mirrors.
    """
    return any(name.startswith(prefix) for path in folder.glob("*.safetensors") for name in _tensor_names(path))


def _tensor_names(path: Path) -> list[str]:
    """Format: 8 bytes little-endian length of the header, then the header as JSON (safetensors' README)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the format's own limit
            return []
        try:
            return list(json.loads(file.read(length)))
        except ValueError:
            return []


# ------------------------------------------------------------------------------------------------ downloads


@dataclass(frozen=True, slots=True)
class Progress:
    """How a download stands. Bytes found on disk count as done, not in the rate; eta_s None: no rate yet."""

    source: str
    file: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what. answer_s: to learn the file list or that there is no network, everything included.
    stall_s: for the next byte. retries: further attempts after one that brought (nearly) nothing, backoff_s apart and
    twice as long each time.
    """

    answer_s: float = 14.0
    stall_s: float = 60.0
    retries: int = 4
    backoff_s: float = 1.0


_PATIENCE = Patience()


def fetch(
    files: ModelFiles,
    models_dir: Path,
    *,
    token: str = "",
    on_progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    patience: Patience = _PATIENCE,
) -> Path:
    """The folder with the model's files, downloaded if they are not all on disk. Blocks: call it in a thread.

    on_progress and cancelled are called in the calling thread. Only `token` is sent, never one that lies around on the
    machine. Raises WeightsUnavailable with a reason and a remedy, and Cancelled.
    """
    if (folder := find(files, models_dir)) is not None:
        return folder
    _refuse_offline(files, models_dir)
    token = token.strip()
    if not re.fullmatch(r"[!-~]*", token):  # the HTTP library would quote it in its error
        raise WeightsUnavailable("HF_TOKEN holds characters that no token has", remedy="Correct HF_TOKEN.")
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    download = _Download(files, _Source.parse(files), models_dir, endpoint, token, patience)

    def watch() -> None:
        if cancelled():
            raise Cancelled(f"the download of {files.source} was cancelled")

    def report() -> None:
        watch()
        on_progress(download.progress())

    try:
        watch()
        download.plan = _in_background(download.ask, watch, limit_s=patience.answer_s)
        download.make_room()
        report()
        _in_background(download.run, report)
    except _NoAnswer:
        raise download.unreachable(f"no answer within {patience.answer_s:g} s") from None
    finally:
        download.stop.set()
    on_progress(download.progress())
    if missing := _missing_in(download.snapshot, files):  # the index names a shard that the repository has not
        raise _lacks(files, missing)
    return download.snapshot


def _refuse_offline(files: ModelFiles, models_dir: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:  # the library's own list
            raise WeightsUnavailable(
                f"offline mode is set ({name}={os.environ[name]}) and {files.source} is not complete in {models_dir}",
                remedy=f"Unset {name}, or set {files.setting} to a local folder.",
            )


def _in_background(work: Callable[[], T], tick: Callable[[], None], *, limit_s: float | None = None) -> T:
    """Runs `work` in a thread of its own and calls `tick` here while it lasts; an exception from `tick` leaves at once.

    A thread, because neither a name look-up nor a blocked read can be interrupted in Python; a daemon, so that one
    stuck there does not keep the process from ending. After limit_s: _NoAnswer.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread, all of it
            future.set_exception(error)

    threading.Thread(target=run, name="model-download", daemon=True).start()
    deadline_s = time.monotonic() + limit_s if limit_s is not None else float("inf")
    while not wait([future], timeout=min(_TICK_S, max(0.0, deadline_s - time.monotonic()))).done:
        tick()
        if time.monotonic() >= deadline_s:
            raise _NoAnswer
    return future.result()


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """A file as the hub describes it. etag names its blob: sha256 of large files, git's sha1 of small ones."""

    name: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Plan:
    commit: str
    files: tuple[_RemoteFile, ...]


class _Broken(Exception):
    """A transfer that ended wrongly and is worth another attempt."""


class _NoAnswer(Exception):
    """The hub did not say in time what it has."""


class _Stopped(Exception):
    """The caller has left; whoever runs in the background leaves too."""


@dataclass(slots=True)
class _Download:
    """One model's download. `ask` and `run` work in the background thread, the rest belongs to the caller's thread.

    The two share `held`, `current` and `fetched_bytes` (written by the background, read by the caller) and `stop`.
    """

    files: ModelFiles
    source: _Source
    models_dir: Path
    endpoint: str
    token: str = field(repr=False)
    patience: Patience = field(default_factory=Patience)
    plan: _Plan = _Plan("", ())
    held: dict[str, int] = field(default_factory=dict)  # file -> bytes on disk
    current: str = ""
    fetched_bytes: int = 0  # over the network, in this run
    stop: threading.Event = field(default_factory=threading.Event)
    samples: deque[tuple[float, int]] = field(default_factory=deque)  # (time, fetched_bytes), the last _RATE_WINDOW_S

    @property
    def cache(self) -> Path:
        return self.source.cache(self.models_dir)

    @property
    def snapshot(self) -> Path:
        return self.cache / "snapshots" / self.plan.commit

    def part(self, file: _RemoteFile) -> Path:
        return self.cache / "blobs" / f"{file.etag}.incomplete"

    def is_here(self, file: _RemoteFile) -> bool:
        """Both names appear only when all bytes are there; the second one alone where links can't be."""
        return (self.cache / "blobs" / file.etag).exists() or (self.snapshot / file.name).is_file()

    # ---- the caller's thread

    def make_room(self) -> None:
        """Makes the folders, takes stock of what is there, and refuses where the rest would not fit."""
        try:
            for folder in (self.cache / "blobs", self.snapshot):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._disk(error) from error
        for file in self.plan.files:
            self.held[file.name] = (
                file.size_bytes if self.is_here(file) else min(_size(self.part(file)), file.size_bytes)
            )
        needed = int((sum(file.size_bytes for file in self.plan.files) - sum(self.held.values())) * _HEADROOM)
        free = shutil.disk_usage(self.cache).free
        if needed > free:
            raise WeightsUnavailable(
                f"{self.files.source} needs {_gigabytes(needed)} of free disk in {self.models_dir}, "
                f"and there are {_gigabytes(free)}",
                remedy="Free some space there, put the models on a larger volume, "
                f"or set {self.files.setting} to a local folder.",
            )

    def progress(self) -> Progress:
        now = time.monotonic()
        self.samples.append((now, self.fetched_bytes))
        while now - self.samples[0][0] > _RATE_WINDOW_S:
            self.samples.popleft()
        then, before_bytes = self.samples[0]
        rate = (self.fetched_bytes - before_bytes) / (now - then) if now > then else 0.0
        done = sum(self.held.values())
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
        shown = re.sub(r"//[^/]*@", "//", self.endpoint)  # a proxy's password stays here
        what = f"cannot reach {shown} for {self.files.source}"
        if self.current:
            what = f"the download of {self.files.source} from {shown} broke off at {self.current}"
        return WeightsUnavailable(
            f"{what}: {why}",
            remedy=f"Check the network and HF_ENDPOINT, or set {self.files.setting} to a local folder. "
            "What has been downloaded is kept.",
        )

    # ---- the background thread

    def ask(self) -> _Plan:
        """The commit and the files to take. Asks twice more if the hub stumbles: a 503 at start-up is no verdict."""
        from httpx2 import ConnectError  # noqa: PLC0415

        attempt = 0
        while True:
            try:
                return self._ask()
            except Exception as error:
                attempt += 1
                # No connection is told at once: without a network the server should say so, not wait.
                if attempt > 2 or not _may_pass(error) or isinstance(error, ConnectError):
                    if (told := self._in_words(error)) is None:
                        raise
                    raise told from error
            if self.stop.wait(self.patience.backoff_s * attempt):
                raise _Stopped

    def _ask(self) -> _Plan:
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url  # noqa: PLC0415 - slow; a server without models starts without it

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        info = api.model_info(
            self.source.repo, revision=self.source.revision, files_metadata=True, timeout=self.patience.answer_s
        )
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or () if _is_tame(sibling.rfilename)}
        chosen = []
        for name in choose_files(self.files, {name: sibling.size or 0 for name, sibling in siblings.items()}):
            sibling = siblings[name]
            etag = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            size = sibling.size
            if size is None or not etag:  # a mirror that lists names only: ask for each file
                url = hf_hub_url(self.source.repo, name, revision=info.sha, endpoint=self.endpoint)
                head = get_hf_file_metadata(
                    url, token=self.token or False, timeout=self.patience.answer_s, endpoint=self.endpoint
                )
                size, etag = head.size, head.etag
            if size is None or not etag or not re.fullmatch(r"[\w.-]+", etag):
                raise ValueError(f"no size or no ETag for {name}")
            chosen.append(_RemoteFile(name, size, etag))
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise ValueError("no commit in the answer")
        return _Plan(info.sha, tuple(sorted(chosen, key=lambda file: (file.size_bytes, file.name))))

    def run(self) -> None:
        """Downloads file after file. Weights come last, the reference after them: half a model never looks whole."""
        try:
            self._run()
        except Exception as error:
            if (told := self._in_words(error)) is None:
                raise
            raise told from error

    def _run(self) -> None:
        for file in self.plan.files:
            self.current = file.name
            blob = self.cache / "blobs" / file.etag
            if not self.is_here(file):
                with self._lock(file):
                    if not self.is_here(file):  # another process may have been at it while this one waited
                        self._download(file, blob)
            self.held[file.name] = file.size_bytes
            _point(self.snapshot / file.name, blob)
        if self.source.revision != self.plan.commit:
            _write(self.cache / "refs" / self.source.revision, self.plan.commit)

    @contextmanager
    def _lock(self, file: _RemoteFile) -> Iterator[None]:
        """The lock that the library takes for the same blob: `tts download` beside a starting server is quite usual."""
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
                    self.held[file.name] = min(_size(self.part(file)), file.size_bytes)
                if self.stop.is_set():
                    raise _Stopped
            yield

    def _download(self, file: _RemoteFile, blob: Path) -> None:
        """One file, over as many connections as it takes, each going on where the last one ended."""
        failures = 0
        with _Part(self.part(file), file, self.stop) as part:
            part.take_stock()
            while True:
                before = part.size_bytes
                try:
                    self._transfer(file, part)
                    break
                except Exception as error:
                    failures = 1 if part.size_bytes - before >= _BLOCK_BYTES else failures + 1
                    if failures > self.patience.retries or not _may_pass(error):
                        raise
                if self.stop.wait(min(self.patience.backoff_s * 2 ** (failures - 1), 30.0)):
                    raise _Stopped
            part.sync()
        self.part(file).replace(blob)

    def _transfer(self, file: _RemoteFile, part: _Part) -> None:
        from httpx2 import Timeout  # noqa: PLC0415
        from huggingface_hub import hf_hub_url  # noqa: PLC0415
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # noqa: PLC0415
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        self.held[file.name] = part.size_bytes
        if part.size_bytes < file.size_bytes:
            url = hf_hub_url(self.source.repo, file.name, revision=self.plan.commit, endpoint=self.endpoint)
            headers = build_hf_headers(token=self.token or False)
            headers["Accept-Encoding"] = "identity"  # some CDNs ignore Range on a compressed answer
            if part.size_bytes:
                headers["Range"] = f"bytes={part.size_bytes}-"
            timeout = Timeout(self.patience.stall_s, connect=min(self.patience.answer_s, self.patience.stall_s))
            # The session follows redirects and takes the token off when one leads to another host (the CDN).
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                if response.status_code == 416:
                    part.restart()
                    raise _Broken("the server refused to go on with a part")
                hf_raise_for_status(response)
                if part.size_bytes and not _goes_on(response, part.size_bytes):
                    part.restart()
                    if response.status_code == 206:
                        raise _Broken("the server sent another part than asked for")
                for chunk in response.iter_bytes():
                    part.append(chunk)
                    self.held[file.name] = min(part.size_bytes, file.size_bytes)
                    self.fetched_bytes += len(chunk)
        if part.size_bytes < file.size_bytes:
            raise _Broken("the connection ended early")
        if not part.is_right():
            part.restart()
            self.held[file.name] = 0
            raise _Broken("the bytes do not match the checksum")

    # ---- what went wrong, for a person

    def _in_words(self, error: Exception) -> WeightsUnavailable | None:
        """`error` as WeightsUnavailable; None where there is nothing to add."""
        from httpx2 import HTTPError, InvalidURL  # noqa: PLC0415
        from huggingface_hub import errors  # noqa: PLC0415

        source, setting = self.files.source, self.files.setting
        match error:
            case errors.OfflineModeIsEnabled():
                return WeightsUnavailable(
                    f"offline mode is set and {source} is not complete in {self.models_dir}",
                    remedy=f"Unset HF_HUB_OFFLINE, or set {setting} to a local folder.",
                )
            case errors.RevisionNotFoundError():
                return WeightsUnavailable(
                    f"{self.source.repo} has no revision {self.source.revision}", remedy=f"Correct {setting}."
                )
            case errors.HfHubHTTPError():
                return self._refused(error)
            case HTTPError() | InvalidURL():
                return self.unreachable(str(error) or type(error).__name__)
            case errors.HFValidationError():
                return WeightsUnavailable(f"{source} is no hub id", remedy=f"Correct {setting}.")
            case _Broken():
                return self.unreachable(str(error))
            case OSError():
                return self._disk(error)
            case ValueError() | TypeError() | KeyError():
                return self.unreachable("what answers there is no Hugging Face hub (a login page?)")
        return None

    def _refused(self, error: HfHubHTTPError) -> WeightsUnavailable:
        from huggingface_hub.errors import GatedRepoError  # noqa: PLC0415

        source, setting, status = self.files.source, self.files.setting, error.response.status_code
        if status == 404 and self.current:
            return WeightsUnavailable(f"{source} has no {self.current} any more", remedy="Start again.")
        if status in (401, 403, 404):
            if isinstance(error, GatedRepoError):
                what = "is gated"
            elif status == 404:
                what = "does not exist"
            else:
                what = "is private, gated or does not exist"
            key = "the given HF_TOKEN has no access" if self.token else "no HF_TOKEN is set"
            mirrors = [mirror for mirror in self.files.mirrors if mirror != source]
            copy = f" Or use a copy without a gate: {setting}={mirrors[0]}" if mirrors else ""
            return WeightsUnavailable(
                f"{source} {what}, and {key}",
                remedy=f"Accept the licence at {self.files.licence_url} and set HF_TOKEN to a token of that account."
                + copy,
            )
        return self.unreachable(f"it answers {status}")

    def _disk(self, error: OSError) -> WeightsUnavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            source, left = self.files.source, sum(f.size_bytes for f in self.plan.files) - sum(self.held.values())
            return WeightsUnavailable(
                f"the disk with {self.models_dir} is full: {_gigabytes(left)} of {source} are still missing",
                remedy="Free some space and start again (what has been downloaded is kept), "
                f"or set {self.files.setting} to a local folder.",
            )
        return WeightsUnavailable(
            f"cannot write to {self.models_dir}: {error.strerror or error}",
            remedy="Give the server's user the right to write there, or mount another volume.",
        )


class _Part:
    """A file being downloaded: its bytes on disk and their running checksum. Used in the background thread only."""

    def __init__(self, path: Path, file: _RemoteFile, stop: threading.Event) -> None:
        self._path, self._file, self._stop = path, file, stop
        self._out: BinaryIO = path.open("ab")
        self.size_bytes = 0
        self._digest = _digest(file)

    def take_stock(self) -> None:
        """Reads what an earlier run left, so that the checksum covers it too."""
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

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def append(self, chunk: bytes) -> None:
        self._check()
        if self.size_bytes + len(chunk) > self._file.size_bytes:
            self.restart()
            raise _Broken("more bytes than announced")
        self._out.write(chunk)
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def restart(self) -> None:
        self._out.truncate(0)
        self.size_bytes = 0
        self._digest = _digest(self._file)

    def is_right(self) -> bool:
        """Whether size and checksum agree with the hub's. Where the ETag is no checksum (a mirror's), the size."""
        if len(self._file.etag) != self._digest.digest_size * 2:
            return self.size_bytes == self._file.size_bytes
        return self._digest.hexdigest() == self._file.etag

    def sync(self) -> None:
        self._out.flush()
        os.fsync(self._out.fileno())  # a blob under its final name is trusted for ever; it must survive a power cut

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def _digest(file: _RemoteFile) -> hashlib._Hash:
    """The checksum that the ETag is: git's blob id for small files, sha256 for those in LFS or xet."""
    if len(file.etag) == 40:
        return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    return hashlib.sha256()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better."""
    from httpx2 import TransportError  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (_Broken, TransportError))


def _goes_on(response: Response, start: int) -> bool:
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _is_tame(name: str) -> bool:
    """Whether a name from the network stays inside the folder that it is put into."""
    return "\\" not in name and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def _point(pointer: Path, blob: Path) -> None:
    """Makes snapshots/<commit>/<name> a relative link to the blob; where links can't be, the blob itself moves."""
    if pointer.is_file():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)


def _write(path: Path, text: str) -> None:
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
    """Bytes as they are sold: 1 GB = 10^9."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
