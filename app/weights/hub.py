"""Determines which files a model needs, and where these files are on disk. download.py downloads missing files.

A source is a local folder, a hub id `org/name` or `org/name@revision`, or a folder of a repository, such as
`org/name/checkpoint-500`. A local folder needs no network, and the server does not change it. Downloaded files are in
`<models_dir>/hub`, in the cache layout of the Hugging Face hub (blobs/<etag>, snapshots/<commit>/<name> -> blob,
refs/<revision>). So other tools can use these files if HF_HUB_CACHE is <models_dir>/hub.

The server also reads the cache of the library huggingface_hub, but never writes to this cache. `hub_cache` returns the
folder of this cache. The functions below read environment variables at each call, but the library reads environment
variables only once, at its import.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from app.errors import WeightsUnavailable
from app.weights.kinds import may_hold_a_model, quantisation, read_config, unusable, unusable_files

HUB_URL = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_INDEX = ".safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_QUANTISED_BASE = re.compile(r"(-unsloth)?-bnb-[48]bit$")


# ---- files that a model needs


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files that one model needs, and the source of these files.

    A repository may contain the same weights in several layouts. A layout is an index file with its shards, or one
    single file. `weights` names one file of each layout: the index file or the single file. If `adapters` is set, the
    source may be a LoRA adapter, which needs no weights and no config.json.
    """

    setting: str  # the environment variable that names the source
    source: str
    weights: tuple[str, ...]  # layouts, the best layout first; () = no weights
    required: tuple[str, ...] = ("config.json",)  # files that are necessary to build the model
    optional: tuple[str, ...] = ()  # patterns of small files that are used if they exist
    mirrors: tuple[str, ...] = ()  # hub ids of copies that need no access request; error messages name these copies
    original: str = ""  # the hub id of the published model; `files_for` sets it
    adapters: bool = False  # the source may be a LoRA adapter
    # Files that the published model and its `mirrors` contain, but that a copy of another author may lack.
    published: tuple[str, ...] = ()

    @property
    def licence_url(self) -> str:
        """The web page on which a user accepts the licence of a gated model."""
        return f"{HUB_URL}/{'/'.join(self.source.partition('@')[0].split('/')[:2])}"

    @property
    def allow_patterns(self) -> tuple[str, ...]:
        """Patterns for the names of all files that the model may need, with the weights in all layouts."""
        shards = tuple(name.replace(_INDEX, "-*-of-*.safetensors") for name in self.weights if name.endswith(_INDEX))
        adapter = (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if self.adapters else ()
        return (*self.required, *self.optional, *self.weights, *shards, *adapter)


_KNOWN: Mapping[str, ModelFiles] = {
    # sesame/csm-1b at c92a71e1 is 19.6 GB, because it contains the same weights three times: as
    # transformers-0000x-of-00002 (7.1 GB with the Mimi codec inside), model.safetensors (6.2 GB, original names, no
    # codec) and ckpt.pt (6.2 GB pickle). Fine-tunes and mirrors save model-0000x-of-0000N or one model.safetensors. The
    # tokenizer.json of sesame/csm-1b replaces the gated tokenizer of Llama. Many fine-tunes have no tokenizer.json.
    # The mirrors store their files in the layout of the transformers library. A mirror can become gated at any time.
    "csm": ModelFiles(
        setting="CSM_MODEL",
        source="sesame/csm-1b",
        weights=("transformers" + _INDEX, "model" + _INDEX, "model.safetensors", "ckpt.pt"),
        published=("tokenizer.json",),
        optional=(
            "tokenizer.json",
            "generation_config.json",
            "preprocessor_config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "prompts/*.wav",
            "prompts/*.txt",
        ),
        mirrors=("unsloth/csm-1b", "eustlb/csm-1b"),
        adapters=True,
    ),
    # A LoRA adapter of CSM, without its base.
    "adapter": ModelFiles(
        setting="TTS_ADAPTERS",
        source="",
        weights=(),
        required=(ADAPTER_CONFIG, ADAPTER_WEIGHTS),
        adapters=True,
    ),
    # The tokenizer of CSM, for fine-tuned models without a tokenizer.
    "tokenizer": ModelFiles(
        setting="CSM_TOKENIZER",
        source="sesame/csm-1b",
        weights=(),
        required=("tokenizer.json",),
        optional=("tokenizer_config.json", "special_tokens_map.json"),
        mirrors=("unsloth/csm-1b", "eustlb/csm-1b"),
    ),
    # kyutai/mimi: one model.safetensors of 385 MB with the tensor names of transformers, CC-BY-4.0, not gated. Only CSM
    # checkpoints without a codec need these files: see `has_tensor`.
    "mimi": ModelFiles(
        setting="CSM_CODEC",
        source="kyutai/mimi",
        weights=("model.safetensors",),
        optional=("preprocessor_config.json",),
    ),
    # nari-labs/Dia-1.6B-0626 contains model-0000x-of-00002 (6.4 GB, transformers names) and dia-v1.pth (6.4 GB, nari's
    # names). Version 0.1 was published as model.safetensors, as dia-v0_1.pth, and in bfloat16 as
    # dia-v0_1_bf16.safetensors. Dia has no tokenizer, because it reads bytes. Apache-2.0, not gated.
    "dia": ModelFiles(
        setting="DIA_MODEL",
        source="nari-labs/Dia-1.6B-0626",
        weights=("model" + _INDEX, "model.safetensors", "dia-v*.safetensors", "dia-v*.pth"),
        optional=("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
        adapters=True,
    ),
    # descript/dac_44khz at c1bc521: config.json, preprocessor_config.json, model.safetensors of 307 MB; not gated.
    "dac": ModelFiles(
        setting="DIA_CODEC",
        source="descript/dac_44khz",
        weights=("model.safetensors",),
        optional=("preprocessor_config.json",),
    ),
    # openai/whisper-base.en: one model.safetensors of 290 MB and the files of its tokenizer; MIT, not gated.
    "whisper": ModelFiles(
        setting="TTS_ASR_MODEL",
        source="openai/whisper-base.en",
        weights=("model.safetensors", "pytorch_model.bin"),
        optional=(
            *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
            *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "normalizer.json"),
            *("added_tokens.json", "special_tokens_map.json"),
        ),
    ),
}


def files_for(model: str, source: str = "") -> ModelFiles:
    """Return the files of `model`, which is a key of _KNOWN. source: empty = the default source."""
    known = _KNOWN[model]
    source = source.strip() or known.source
    known = replace(known, original=known.source)
    if source.partition("@")[0] in (known.source, *known.mirrors):
        return replace(known, source=source, required=(*known.required, *known.published))
    return replace(known, source=source)


def copies(files: ModelFiles) -> tuple[ModelFiles, ...]:
    """Return `files`, and then for each copy in `mirrors`, the same files with this copy as the source.

    If the source of `files` is not the published model, return only `files`.
    """
    if files.source != files.original:
        return (files,)
    return (files, *(replace(files, source=mirror) for mirror in files.mirrors))


def copy_on_disk(files: ModelFiles, models_dir: Path) -> ModelFiles:
    """Return the first of `copies(files)` that is complete on the disk; `files` if none is complete.

    Raises WeightsUnavailable if the source is not valid or can't be read.
    """
    return next((each for each in copies(files) if find(each, models_dir) is not None), files)


def choose_files(files: ModelFiles, sizes: Mapping[str, int], on_disk: Container[str] = ()) -> list[str]:
    """Choose the files that the model needs, and return their names, the smallest file first.

    sizes: the size in bytes of each file in a repository or folder. The result contains one layout of the weights: the
    best layout whose files are all in `on_disk` (names of files that need no download), or else the best layout of all.
    Small files come first, so that a download that the hub does not allow fails before it reaches the weights. If files
    are missing, raises WeightsUnavailable, which names these files.
    """
    folder = _subfolder(files)
    within = {name.removeprefix(folder): size for name, size in sizes.items() if name.startswith(folder)}
    present = {name for name in within if folder + name in on_disk}
    chosen, missing = _select(files, within, present)
    # The repository does not have this folder, so the error names the folders that contain weights.
    if missing and folder and not within:
        root = replace(files, source="/".join(files.source.split("/")[:2]))
        raise unusable(root.source, sizes, setting=files.setting) or missing_error(files, missing)
    if missing:
        raise missing_error(files, missing, within)
    return [folder + name for name in chosen]


def missing_error(files: ModelFiles, missing: list[str], names: Iterable[str] = ()) -> WeightsUnavailable:
    """Return the error for a source that lacks the files `missing`. names: the files that the source has."""
    known = unusable(files.source, names, setting=files.setting, example=(*files.mirrors, files.source)[0])
    if known is not None and (files.weights or files.adapters):
        return known
    return WeightsUnavailable(
        f"{files.source} lacks files that this server needs: {', '.join(missing)}",
        remedy=f"Set {files.setting} to a repository or folder that has these files.",
    )


def _select(files: ModelFiles, sizes: Mapping[str, int], on_disk: Container[str] = ()) -> tuple[list[str], list[str]]:
    """Return the names of the files to use, the smallest file first, and the names of missing files."""
    taken = {name for name in sizes if any(fnmatch(name, pattern) for pattern in (*files.required, *files.optional))}
    missing = [name for name in files.required if name not in taken]
    if files.adapters and ADAPTER_CONFIG in sizes:
        if ADAPTER_WEIGHTS not in sizes:
            missing.append(ADAPTER_WEIGHTS)
        taken.update({ADAPTER_CONFIG, ADAPTER_WEIGHTS} & sizes.keys())
        if not has_base(files, sizes):
            return sorted(taken, key=lambda name: (sizes[name], name)), [
                name for name in missing if name == ADAPTER_WEIGHTS
            ]
    # Use the first layout that has any file, even if other files of the layout are missing: an incomplete layout is an
    # interrupted download.
    layouts = [found for layout in files.weights if (found := _layout_files(layout, sizes))[0]]
    complete = (names for names, lacking in layouts if not lacking and all(name in on_disk for name in names))
    if names := next(complete, None):
        taken.update(names)
    elif layouts:
        # Prefer another layout to an incomplete set of shards without an index: an earlier save may have left this set.
        names, lacking = next((each for each in layouts if each[0][0].endswith(_INDEX) or not each[1]), layouts[0])
        taken.update(names)
        missing += lacking
    elif files.weights:
        missing.append(f"weights ({' or '.join(files.weights)})")
    return sorted(taken, key=lambda name: (sizes[name], name)), missing


def has_base(files: ModelFiles, names: Iterable[str]) -> bool:
    """Whether these names contain config.json and a complete layout of weights. An adapter is not enough."""
    sizes = dict.fromkeys(names, 0)
    if not set(files.required) <= sizes.keys():
        return False
    return any(found and not lacking for found, lacking in (_layout_files(layout, sizes) for layout in files.weights))


def _subfolder(files: ModelFiles) -> str:
    """Return the folder of the model in the repository with a slash at the end; "" = the root of the repository."""
    subfolder = Source.parse(files).subfolder
    return f"{subfolder}/" if subfolder else ""


def _layout_files(layout: str, sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return the names of a layout's existing files and missing files. ([], []) = no file of the layout exists."""
    found = sorted((name for name in sizes if fnmatch(name, layout)), key=lambda name: (sizes[name], name))
    names = found[:1]  # all files that match this pattern contain the same weights, so use the smallest file
    if not layout.endswith(_INDEX):
        return names, []
    sets = shard_sets(name for name in sizes if (match := _SHARD.fullmatch(name)) and match["stem"] + _INDEX == layout)
    # Without the index file, use the shards alone: the index only repeats the names of the shards and tensors.
    if not names:
        return sets[0] if sets else ([], [])
    if not sets:
        return names, [f"the shards of {layout}"]
    names += [shard for shards, _ in sets for shard in shards]
    return names, max(sets, key=lambda each: len(each[0]) + len(each[1]))[1]


def shard_sets(names: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    """Return (shards, missing shards) of each set of shards, such as model-00001-of-00002.safetensors.

    Complete sets come before incomplete sets. Among the complete sets, and among the incomplete sets, the set with the
    fewest shards comes first.
    """
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(names):
        if match := _SHARD.fullmatch(name):
            sets.setdefault((match["stem"], int(match["count"])), {})[int(match["number"])] = name
    found = [
        (
            list(have.values()),
            [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1) if n not in have],
        )
        for (stem, count), have in sorted(sets.items(), key=lambda each: each[0][1])
    ]
    return sorted(found, key=lambda each: bool(each[1]))


# ---- files on disk


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source: a folder, or a hub id with its revision."""

    folder: Path | None = None
    repo: str = ""
    revision: str = "main"
    subfolder: str = ""  # the folder of the model in the repository; "" = the root of the repository

    @staticmethod
    def parse(files: ModelFiles) -> Source:
        value = files.source
        folder = Path(value).expanduser()
        try:
            is_folder, exists = folder.is_dir(), folder.exists()
        except OSError as error:
            raise _unreadable(files, folder) from error
        if is_folder:
            return Source(folder=folder)
        if exists:
            raise WeightsUnavailable(
                f"{files.setting}={value} is a file, but it must be a folder",
                remedy=f"Set {files.setting} to the folder that contains the file.",
            )
        path, _, revision = value.partition("@")
        repo, subfolder = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
        if value.startswith(("/", ".", "~")) or "\\" in value:
            raise WeightsUnavailable(
                f"{files.setting}={value} names a folder that does not exist",
                remedy=f"Correct {files.setting}, or mount the folder that it names.",
            )
        if (
            not _HUB_ID.fullmatch(repo)
            or not _REVISION.fullmatch(revision or "main")
            or (subfolder and not _REVISION.fullmatch(subfolder))
        ):
            raise WeightsUnavailable(
                f"{files.setting}={value} is neither an existing folder nor a hub id (org/name, org/name@revision or "
                "org/name/folder)",
                remedy=f"Correct {files.setting}.",
            )
        return Source(repo=repo, revision=revision or "main", subfolder=subfolder)

    def cache(self, models_dir: Path) -> Path:
        """Return the folder of this repository in the cache that the server writes."""
        return models_dir / "hub" / self._folder_name

    def library_cache(self) -> Path:
        """Return the folder of this repository in the cache of the hub's library. The server only reads this folder."""
        return hub_cache() / self._folder_name

    @property
    def _folder_name(self) -> str:
        return f"models--{self.repo.replace('/', '--')}"

    def snapshot(self, cache: Path) -> Path | None:
        """Return the snapshot folder of this revision in `cache`; None = `cache` does not contain the revision.

        Raises OSError if `cache` can't be read.
        """
        try:
            commit = (
                self.revision
                if COMMIT.fullmatch(self.revision)
                else (cache / "refs" / self.revision).read_text(encoding="utf-8", errors="replace").strip()
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        folder = cache / "snapshots" / commit / self.subfolder
        return folder if re.fullmatch(r"[\w-]+", commit) and folder.is_dir() else None


def _unreadable(files: ModelFiles, path: Path) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"{files.setting}={files.source}: {path} can't be read by the user of this server",
        remedy=f"Give this user permission to read the path, or set {files.setting} to another folder.",
    )


def hub_home() -> Path:
    """Return the folder in which the hub's library stores its data: HF_HOME, or `huggingface` in the user's cache."""
    if home := os.environ.get("HF_HOME"):
        return _expanded(home)
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"


def hub_cache() -> Path:
    """Return the cache folder of the hub's library: HF_HUB_CACHE, or the folder `hub` in `hub_home`."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(named) if named else hub_home() / "hub"


def size_on_disk(files: ModelFiles, folder: Path) -> int:
    """Return the size in bytes of the files in `folder` that the model uses."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(sizes[name] for name in _select(files, sizes, sizes)[0])


def downloaded_bytes(files: ModelFiles, models_dir: Path) -> int:
    """Return how many bytes of a repository are on the disk, including bytes of interrupted downloads.

    files: its source is a repository and not a local folder.
    """
    try:
        return sum(path.stat().st_size for path in (Source.parse(files).cache(models_dir) / "blobs").iterdir())
    except OSError:
        return 0


def login_token() -> str:
    """Return the token that the hub's library sends if HF_TOKEN is not set; "" if there is no token.

    The token is in HUGGING_FACE_HUB_TOKEN, or `hf auth login` has stored it in the file HF_TOKEN_PATH. The default path
    is `token` in `hub_home`. If HF_HUB_DISABLE_IMPLICIT_TOKEN is set, returns "".
    """
    if is_true(os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return ""
    if token := os.environ.get("HUGGING_FACE_HUB_TOKEN", "").strip():
        return token
    named = os.environ.get("HF_TOKEN_PATH")
    try:
        text = (_expanded(named) if named else hub_home() / "token").read_text()
    except (OSError, ValueError):  # the file does not exist, belongs to another user, or is not a text
        return ""
    return text.replace("\r", "").replace("\n", "").strip()


def is_true(value: str | None) -> bool:
    """Whether the hub's library interprets this value of an environment variable as true."""
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111 - Path raises an error if there is no home folder


def find(files: ModelFiles, models_dir: Path) -> Path | None:
    """Return the folder with the model's files, or None if any file is not on disk. Uses no network.

    Searches `models_dir` first, and then the cache of the hub's library. If the source is a local folder, checks only
    that the files in the folder can be read. Raises WeightsUnavailable if the source is not valid or can't be read.
    """
    source = Source.parse(files)
    if source.folder is not None:
        needed = (path for pattern in files.allow_patterns for path in source.folder.glob(pattern))
        for path in (source.folder, *needed):
            if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
                raise _unreadable(files, path)
        return source.folder
    try:
        folder = source.snapshot(source.cache(models_dir))
        if folder is not None and not missing_files(folder, files):
            return folder
    except OSError:  # if the cache can't be read, continue as if it were empty
        pass
    return complete_in_library_cache(files)


def complete_in_library_cache(files: ModelFiles) -> Path | None:
    """Return the snapshot folder in the cache of the hub's library, or None if it is missing or incomplete."""
    folder, defects = find_in_library_cache(files)
    return folder if not defects else None


def find_in_library_cache(files: ModelFiles) -> tuple[Path | None, list[str]]:
    """Return the snapshot folder in the cache of the hub's library, and a list of what is wrong with this folder.

    An empty list = the folder is complete. (None, []) = the cache does not contain the revision. The file
    refs/<revision> names the snapshot.
    """
    source = Source.parse(files)
    cache = source.library_cache()
    try:
        folder = source.snapshot(cache)
        if folder is None:
            return None, []
        sizes: dict[str, int] = {}
        defects: dict[str, str] = {}
        for path in folder.rglob("*"):
            if path.is_dir():
                continue
            name = path.relative_to(folder).as_posix()
            if defect := defect_of(path):
                defects[name] = defect
            else:
                sizes[name] = path.stat().st_size
        missing = _missing(folder, files, sizes)
    except OSError as error:
        return cache, [f"{error.filename or cache} can't be read ({error.strerror})"]
    return folder, [f"{name} {defects.get(name, 'is missing')}" for name in missing]


def defect_of(path: Path) -> str:
    """Return what is wrong with a file in the cache of the hub's library; "" = the file can be used.

    The result is the end of a sentence, for example "is missing". Raises OSError if the folder of the file can't be
    read.
    """
    target = Path(os.path.realpath(path))  # Path.resolve would raise RuntimeError if links form a loop
    if not target.is_file():
        return "is a link to a missing file" if path.is_symlink() else "is missing"
    if target.name.endswith(".incomplete"):
        return "is only partly downloaded"
    if not os.access(target, os.R_OK):
        return "can't be read by this user"
    if path.suffix == ".safetensors" and target.stat().st_size < _safetensors_size(target):
        return "is shorter than its header says"
    return ""


def missing_files(folder: Path, files: ModelFiles) -> list[str]:
    """Return the names of the files that are missing in `folder` for a complete model.

    Checks only names, because a file in the cache gets its name only after the bytes are verified.
    """
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return _missing(folder, files, sizes)


def _missing(folder: Path, files: ModelFiles, sizes: Mapping[str, int]) -> list[str]:
    chosen, missing = _select(files, sizes, sizes)
    for index in (name for name in chosen if name.endswith(_INDEX)):
        missing += sorted(indexed_shards(folder / index) - sizes.keys() - set(missing))
    return missing


def indexed_shards(index: Path) -> set[str]:
    """Return the names of the shards that an index file names."""
    try:
        return set(weight_map(index).values())
    except ValueError:
        return {f"a readable {index.name}"}


def weight_map(index: Path) -> dict[str, str]:
    """Return a mapping: name of a tensor -> the shard that contains it, according to the file `index`.

    Raises ValueError if the file is not a valid index.
    """
    try:
        found = json.loads(index.read_bytes())["weight_map"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} has no weight_map") from error
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise ValueError(f"{index} has no names of files in its weight_map")
    return found


# ---- adapters and their base


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises WeightsUnavailable if this fails."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsUnavailable(f"{path} can't be read: {error}.", remedy="Save or download it again.") from error
    if not isinstance(raw, dict):
        raise WeightsUnavailable(f"{path} is not a JSON object.", remedy="Save or download it again.")
    return raw


def adapter_of(files: ModelFiles, folder: Path) -> tuple[bool, bool]:
    """Return two values: whether `folder` contains a LoRA adapter, and whether it contains a model with weights."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    weights = any(
        (name.endswith(".safetensors") and name != ADAPTER_WEIGHTS) or may_hold_a_model(name) for name in names
    )
    return files.adapters and ADAPTER_CONFIG in names, weights and "config.json" in names


def refuse_unreadable(files: ModelFiles, folder: Path, *, adapter: bool, weights: bool) -> None:
    """Raise WeightsUnavailable if a folder contains nothing that the server can load, or if the weights are quantised.

    adapter, weights: the result of `adapter_of`.
    """
    example = (*files.mirrors, files.source)[0]
    config = read_config(folder)
    missing = [] if weights or adapter else [name for name in ("config.json",) if config is None] + ["weights"]
    if adapter and not (folder / ADAPTER_WEIGHTS).is_file():
        missing = [ADAPTER_WEIGHTS]
    if missing or (config is not None and quantisation(config)):
        raise unusable_files(folder, setting=files.setting, example=example) or missing_error(files, missing)
    if weights:
        _refuse_lacking_shards(folder)


def _refuse_lacking_shards(folder: Path) -> None:
    """Raise WeightsUnavailable if all weights in a folder are incomplete sets of shards."""
    lacking: dict[str, str] = {}  # missing shard -> the end of "the files that ..." in the error
    shards: set[str] = set()
    for index in folder.glob(f"*{_INDEX}"):
        named = indexed_shards(index)
        shards |= named
        lacking |= {shard: f"{index.name} names" for shard in sorted(named) if not (folder / shard).is_file()}
    others = {path.name for path in folder.iterdir()} - shards - {ADAPTER_WEIGHTS}
    for have, absent in shard_sets(others):
        if absent:
            others -= set(have)
            lacking = dict.fromkeys(absent, f"belong to {have[0]}") | lacking
    if lacking and not any(name.endswith(".safetensors") or may_hold_a_model(name) for name in others):
        shard, which = next(iter(lacking.items()))
        raise WeightsUnavailable(
            f"{folder} lacks {list(lacking.values()).count(which)} of the files that {which}, such as {shard}.",
            remedy="Copy or download the missing files.",
        )


def is_hub_id(name: str) -> bool:
    """Whether `name` is the id of a repository, `org/name`, and not a path."""
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith(".")


def unquantised(name: str) -> str:
    """Return the hub id of the 16-bit model of which `name` is a 4-bit or 8-bit copy; `name` if it is no such copy."""
    return _QUANTISED_BASE.sub("", name.rstrip("/"))


def base_source(folder: Path, setting: str) -> str:
    """Return the hub id or folder of the base that adapter_config.json in `folder` names.

    setting: the environment variable with which a user can choose the base; error messages name it. If
    adapter_config.json names a 4-bit or 8-bit copy of a base, returns the base, because the adapter fits both. Raises
    WeightsUnavailable if adapter_config.json can't be read, or if it names no base that can be used.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    name = str(config.get("base_model_name_or_path") or "").strip()
    remedy = f"Set {setting} to the base model of the adapter: a Hugging Face id or a local folder."
    if not name:
        raise WeightsUnavailable(f"The adapter in {folder} does not name its base model.", remedy=remedy)
    for local in (Path(name).expanduser(), folder / name):
        if local.is_dir():
            return str(local)
    name = unquantised(name)
    if not is_hub_id(name):
        raise WeightsUnavailable(
            f"The adapter in {folder} was trained on {name}, which is not a folder on this machine.", remedy=remedy
        )
    revision = str(config.get("revision") or "")
    return f"{name}@{revision}" if revision and _REVISION.fullmatch(revision) else name


def has_tensor(folder: Path, prefix: str | tuple[str, ...]) -> bool:
    """Whether a safetensors file in `folder` has a tensor whose name begins with `prefix`. Reads headers only.

    `has_tensor(folder, "codec_model.")` is True for a CSM checkpoint that contains its Mimi codec. Other CSM
    checkpoints also need the files of "mimi". File names do not show whether a checkpoint contains the codec: the file
    model.safetensors has no codec in the repository of sesame, but has one in mirrors. This function ignores shards of
    an incomplete layout, because they are not loaded.
    """
    unusable: set[str] = set()
    for index in folder.glob(f"*{_INDEX}"):
        shards = indexed_shards(index)
        if not all((folder / shard).is_file() for shard in shards):
            unusable |= shards
    for have, absent in shard_sets({path.name for path in folder.iterdir()} - unusable):
        unusable |= set(have) if absent else set()
    files = (
        path
        for path in folder.glob("*.safetensors")
        if path.is_file() and os.access(path, os.R_OK) and path.name not in unusable
    )
    return any(name.startswith(prefix) for path in files for name in _tensor_names(path))


def _tensor_names(path: Path) -> list[str]:
    return list(_read_header(path)[0])


def _safetensors_size(path: Path) -> int:
    """Return the size in bytes that a safetensors file must have according to its header; 0 = unreadable header."""
    header, length = _read_header(path)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (KeyError, IndexError, TypeError):
        return 0


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and its length in bytes; ({}, 0) = the header can't be read.

    The file begins with the length of the header (8 bytes, little-endian). Then the header follows as JSON.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the limit of the safetensors format
            return {}, 0
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return {}, 0
    return (header, length) if isinstance(header, dict) else ({}, 0)
