"""The load cache: the second start reads the converted weights of the first; damage and full disks only cost time."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.engines.csm import loading as csm_loading
from app.engines.csm.loading import load_from, load_model
from app.engines.csm.model import CsmModel
from app.engines.registry import BuildContext
from app.settings import Settings
from app.weights import load_cache
from app.weights.load_cache import LoadCache
from tests.support.random_csm import fabricate_csm

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def source(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "source"))


@pytest.fixture
def kept(tmp_path: Path) -> LoadCache:
    return LoadCache(tmp_path / "models/cache", "some/model", min_bytes=0)


def load(source: Path, cache: LoadCache | None, dtype: torch.dtype = BF16) -> CsmModel:
    return load_model(source, device=CPU, dtype=dtype, cache=cache)[0]


def files(cache: LoadCache) -> list[Path]:
    return sorted(cache.folder.iterdir()) if cache.folder.exists() else []


def only(cache: LoadCache) -> Path:
    [path] = files(cache)
    return path


def same(one: CsmModel, other: CsmModel) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets an entry for each model that is loaded from its source."""
    counts: list[str] = []
    real = CsmModel.load

    def counted(self: CsmModel, weights: object) -> None:
        counts.append("source")
        real(self, weights)

    monkeypatch.setattr(CsmModel, "load", counted)
    return counts


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_second_start_reads_the_same_weights(tmp_path: Path, kept: LoadCache, loads: list[str], layout: str) -> None:
    source = fabricate_csm(tmp_path / "source", layout_name=layout)
    first = load(source, kept)
    second = load(source, kept)
    assert loads == ["source"]
    assert same(first, second)
    read = load_file(only(kept))  # the cache is an ordinary safetensors file
    assert read.keys() == dict(first.named_parameters()).keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in first.named_parameters())


def test_weights_of_a_pytorch_file_are_kept(tmp_path: Path, kept: LoadCache, loads: list[str]) -> None:
    source = fabricate_csm(tmp_path / "source", layout_name="original")
    torch.save(load_file(source / "model.safetensors"), source / "ckpt.pt")
    (source / "model.safetensors").unlink()
    assert same(load(source, kept), load(source, kept))
    assert loads == ["source"]


def test_weights_are_kept_only_if_it_saves_time(source: Path, tmp_path: Path, kept: LoadCache) -> None:
    load(source, LoadCache(kept.folder, "small"))  # the weights are much smaller than MIN_BYTES
    load(source, kept, torch.float32)
    load(fabricate_csm(tmp_path / "half", dtype=BF16), kept)
    load(source, None)
    assert files(kept) == []


@pytest.mark.parametrize("change", ["weights", "mtime", "config", "layout"])
def test_changed_source_is_loaded_again(
    source: Path, kept: LoadCache, loads: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    load(source, kept)
    before = only(kept)
    if change == "weights":
        fabricate_csm(source, seed=1)
    elif change == "mtime":
        os.utime(source / "model.safetensors", ns=(1, 1))
    elif change == "config":
        raw = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(raw | {"rms_norm_eps": 1e-3}))
    else:
        monkeypatch.setattr(load_cache, "_LAYOUT", 99)
    model = load(source, kept)
    assert loads == ["source", "source"]
    assert only(kept) != before  # the cached file of the old source is removed
    assert same(model, load(source, None))


def test_cached_files_of_other_sources_stay(source: Path, tmp_path: Path, kept: LoadCache) -> None:
    other = LoadCache(kept.folder, "other/model", min_bytes=0)
    load(fabricate_csm(tmp_path / "other", seed=5), other)
    first = only(other)
    other_file, cut, fresh, stale = (
        kept.folder / name for name in ("mine.safetensors", "cut.safetensors", ".a.partial", ".b.partial")
    )
    shutil.copy(source / "model.safetensors", other_file)
    cut.write_bytes(b"abc")
    for path in (fresh, stale):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200,) * 2)
    load(source, kept)
    assert {first, other_file, cut, fresh} < set(files(kept))
    assert stale not in files(kept)
    assert len(files(kept)) == 5


def flip(path: Path, where: int) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)


def change_header(path: Path) -> None:
    """Change a shape in the header of a valid file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    shape = header["text_table"]["shape"]
    header["text_table"]["shape"] = shape[::-1]
    encoded = json.dumps(header).encode().ljust(length)
    path.write_bytes(data[:8] + encoded + data[8 + length :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nothing like it, but long enough"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes((10**9).to_bytes(8, "little") + path.read_bytes()[8:]),
        lambda path: flip(path, -1),
        lambda path: flip(path, -100_000),
        lambda path: flip(path, 9),
        lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
        change_header,
    ],
)
def test_damaged_file_is_ignored_and_written_again(
    source: Path, kept: LoadCache, loads: list[str], caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    intact = load(source, kept)
    path = only(kept)
    good = path.read_bytes()
    damage(path)  # type: ignore[operator]
    assert same(load(source, kept), intact)
    assert "written again" in caplog.text
    assert only(kept).read_bytes() == good
    assert same(load(source, kept), intact)
    assert len(loads) == 2


def refuse(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("where", "number"), [("open", errno.ENOSPC), ("replace", errno.EROFS), ("mkdir", errno.EACCES)]
)
def test_disk_failure_only_costs_time(  # noqa: PLR0917 - fixtures
    source: Path,
    kept: LoadCache,
    loads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    number: int,
) -> None:
    real = Path.open
    if where == "open":

        def disk_full(self: Path, mode: str = "r", *rest: object, **more: object) -> object:
            file = real(self, mode, *rest, **more)  # type: ignore[call-overload]
            if "x" in mode:
                file.close()
                raise OSError(number, os.strerror(number))
            return file

        monkeypatch.setattr(Path, "open", disk_full)
    else:
        monkeypatch.setattr(Path, where, refuse(number))
    assert same(load(source, kept), load(source, None))
    assert os.strerror(number) in caplog.text
    assert files(kept) == []  # no partial file is left
    assert len(loads) == 2


def test_full_disk_is_checked_before_writing(
    source: Path, kept: LoadCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(load_cache.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    load(source, kept)
    assert files(kept) == []
    assert "1.00 GB of free space" in caplog.text


def test_file_may_be_removed_while_it_is_read(
    source: Path, kept: LoadCache, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test removes it as another server with newer weights does."""
    intact = load(source, kept)
    monkeypatch.setattr(load_cache, "_fill", refuse(errno.ENOENT))
    assert same(load(source, kept), intact)
    assert len(loads) == 2


def test_server_keeps_weights_in_the_models_folder(
    source: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(csm_loading, "LoadCache", partial(LoadCache, min_bytes=0))
    settings = Settings(CSM_MODEL=str(source), TTS_DATA_DIR=str(tmp_path), TTS_MAX_ROWS=1, _env_file=None)
    threads = torch.get_num_threads()
    fingerprints = []
    for _ in range(2):
        runner = load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
        fingerprints.append(runner.fingerprint)
    torch.set_num_threads(threads)
    assert loads == ["source"]
    assert fingerprints[0] == fingerprints[1]
    assert len(list((tmp_path / "models/cache").iterdir())) == 1
    assert "wrote" in caplog.text
