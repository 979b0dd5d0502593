"""Finds out which files a model needs, and where these files are on disk. download.py downloads missing files.

A source is a local folder, or a hub id `org/name` or `org/name@revision`. A local folder needs no network and is not
changed. Downloaded files are in `<models_dir>/hub`, in the cache layout of the Hugging Face hub (blobs/<etag>,
snapshots/<commit>/<name> -> blob, refs/<revision>). So other tools can use them: set HF_HUB_CACHE=<models_dir>/hub. The
server does not read the default cache in the user's home folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from app.errors import WeightsUnavailable

HUB_URL = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_INDEX = ".safetensors.index.json"


# ---- files that a model needs


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files that one model needs, and the source of these files.

    A repository may contain the same weights in several layouts. A layout is an index file with its shards, or one
    single file. `weights` names one file of each layout: its index file or its single file.
    """

    setting: str  # the environment variable that names the source
    source: str
    weights: tuple[str, ...]  # layouts, best first; only the first layout that exists is used
    required: tuple[str, ...] = ("config.json",)  # files without which the model can't be built
    optional: tuple[str, ...] = ()  # patterns of small files that are used if they exist
    mirrors: tuple[str, ...] = ()  # hub ids with the same weights and no access request; error messages name them

    @property
    def licence_url(self) -> str:
        """The web page on which a user accepts the licence of a gated model."""
        return f"{HUB_URL}/{self.source.partition('@')[0]}"

    @property
    def allow_patterns(self) -> tuple[str, ...]:
        """Patterns of all files that the model may need. They cover all layouts; `choose_files` chooses one layout."""
        shards = tuple(name.replace(_INDEX, "-*-of-*.safetensors") for name in self.weights if name.endswith(_INDEX))
        return (*self.required, *self.optional, *self.weights, *shards)


_KNOWN: Mapping[str, ModelFiles] = {
    # sesame/csm-1b at c92a71e1 is 19.6 GB: the same weights as transformers-0000x-of-00002 (7.1 GB with the Mimi codec
    # inside), model.safetensors (6.2 GB, original names, no codec) and ckpt.pt (6.2 GB pickle). Fine-tunes and mirrors
    # save model-0000x-of-0000N or one model.safetensors. Its tokenizer.json replaces the gated one of Llama.
    # The mirrors store their files in the layout of the transformers library. A mirror can become gated at any time.
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
    # CSM checkpoint without a codec: see `has_tensor`.
    "mimi": ModelFiles(
        setting="CSM_CODEC",
        source="kyutai/mimi",
        weights=("model.safetensors",),
        optional=("preprocessor_config.json",),
    ),
    # nari-labs/Dia-1.6B-0626 contains model-0000x-of-00002 (6.4 GB, transformers names) and dia-v1.pth (6.4 GB, nari's
    # names). v0.1 was published as model.safetensors, dia-v0_1.pth and, converted, dia-v0_1_bf16.safetensors. Dia
    # has no tokenizer, because it reads bytes. Apache-2.0, not gated.
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
    """Return the files of `model`, which is "csm", "mimi", "dia" or "dac". source: empty = the default source."""
    known = _KNOWN[model]
    return replace(known, source=source.strip()) if source.strip() else known


def choose_files(files: ModelFiles, sizes: Mapping[str, int]) -> list[str]:
    """Choose the files that the model needs, and return their names, the smallest file first.

    sizes: the size in bytes of each file in a repository or folder. The result contains the weights in one layout only.
    Small files come first, so that a download without access fails before it fetches weights. Raises
    WeightsUnavailable, which names the missing files.
    """
    chosen, missing = _select(files, sizes)
    if missing:
        raise missing_error(files, missing)
    return chosen


def missing_error(files: ModelFiles, missing: list[str]) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"{files.source} lacks files that this server needs: {', '.join(missing)}",
        remedy=f"Set {files.setting} to a repository or folder that has them.",
    )


def _select(files: ModelFiles, sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return the names to take, smallest first, and the names that a complete model still needs."""
    taken = {name for name in sizes if any(fnmatch(name, pattern) for pattern in (*files.required, *files.optional))}
    missing = [name for name in files.required if name not in taken]
    # Take the first layout with any file, complete or not: an index without its shards is half a download.
    for layout in files.weights:
        found = sorted((name for name in sizes if fnmatch(name, layout)), key=lambda name: (sizes[name], name))
        if not found:
            continue
        taken.add(found[0])  # files that match one pattern have the same weights; the smallest has the lowest precision
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


# ---- files on disk


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source: a folder, or a hub id with its revision."""

    folder: Path | None = None
    repo: str = ""
    revision: str = "main"

    @staticmethod
    def parse(files: ModelFiles) -> Source:
        value = files.source
        folder = Path(value).expanduser()
        if folder.is_dir():
            return Source(folder=folder)
        if folder.exists():
            raise WeightsUnavailable(
                f"{files.setting}={value} is a file, but it must be a folder",
                remedy=f"Set {files.setting} to the folder that contains the file.",
            )
        repo, _, revision = value.partition("@")
        if value.startswith(("/", ".", "~")) or "\\" in value or repo.count("/") > 1:
            raise WeightsUnavailable(
                f"{files.setting}={value} names a folder that does not exist",
                remedy=f"Correct {files.setting}, or mount the folder that it names.",
            )
        if not _HUB_ID.fullmatch(repo) or not _REVISION.fullmatch(revision or "main"):
            raise WeightsUnavailable(
                f"{files.setting}={value} is neither an existing folder nor a hub id (org/name or org/name@revision)",
                remedy=f"Correct {files.setting}.",
            )
        return Source(repo=repo, revision=revision or "main")

    def cache(self, models_dir: Path) -> Path:
        return models_dir / "hub" / f"models--{self.repo.replace('/', '--')}"


def find(files: ModelFiles, models_dir: Path) -> Path | None:
    """Return the folder with the model's files, or None if any file is not on disk. Uses no network.

    If the source is a local folder, returns it without a check of its files. Raises WeightsUnavailable if the source is
    not valid.
    """
    source = Source.parse(files)
    if source.folder is not None:
        return source.folder
    cache = source.cache(models_dir)
    try:
        commit = (
            source.revision
            if COMMIT.fullmatch(source.revision)
            else (cache / "refs" / source.revision).read_text().strip()
        )
        folder = cache / "snapshots" / commit
        return folder if commit and not missing_files(folder, files) else None
    except OSError:  # no such reference, or an unreadable folder: the model is not on disk
        return None


def missing_files(folder: Path, files: ModelFiles) -> list[str]:
    """Return the names of the files that `folder` lacks for a complete model.

    Checks only names, because a file in the cache gets its name after its bytes are verified.
    """
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    chosen, missing = _select(files, sizes)
    for index in (name for name in chosen if name.endswith(_INDEX)):
        missing += sorted(_indexed_shards(folder / index) - sizes.keys())
    return missing


def _indexed_shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return {f"a readable {index.name}"}


def has_tensor(folder: Path, prefix: str) -> bool:
    """Whether a safetensors file in `folder` has a tensor whose name begins with `prefix`. Reads headers only.

    `has_tensor(folder, "codec_model.")` is True for a CSM checkpoint that contains its Mimi codec. Other CSM
    checkpoints also need the files of "mimi". File names do not show this: model.safetensors has the original layout at
    sesame and the transformers layout in mirrors.
    """
    return any(name.startswith(prefix) for path in folder.glob("*.safetensors") for name in _tensor_names(path))


def _tensor_names(path: Path) -> list[str]:
    """Read the names of the tensors from the header of a safetensors file.

    The file begins with the length of the header (8 bytes, little-endian). The header is JSON.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the limit of the safetensors format
            return []
        try:
            return list(json.loads(file.read(length)))
        except ValueError:
            return []
