"""Cache and login of the library huggingface_hub: the server reads them as the library does, and never writes them.

The library itself is the reference: it fills the caches from a fake hub, and reports the paths that it uses.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from app.engines.csm.files import sources
from app.errors import WeightsUnavailable
from app.settings import Settings
from app.weights import hub
from app.weights.download import fetch
from app.weights.hub import files_for, find
from app.weights.hub_token import HubToken, find_token
from app.weights.located import locate
from tests.support.fake_hub import FakeHub, etag
from tests.unit.test_hub import CSM, EXPECTED_FILES, HURRIED, TOKEN, header, names_in

pytestmark = pytest.mark.unit

REPO = "sesame/csm-1b"
LARGE = "transformers-00001-of-00002.safetensors"
SMALL_SHARD = "transformers-00002-of-00002.safetensors"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    with FakeHub({REPO: CSM}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake
        huggingface_hub.close_session()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up an empty cache of the library."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def fill(server: FakeHub, cache: Path, *names: str, revision: str | None = None) -> Path:
    """Download files with the library. Default: the files that the server needs. Return the snapshot."""
    return Path(
        huggingface_hub.snapshot_download(
            REPO,
            cache_dir=cache,
            endpoint=server.url,
            allow_patterns=list(names or EXPECTED_FILES),
            revision=revision,
            max_workers=1,
        )
    )


def listing(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return mode, time and content of all files in a folder, to show that nothing was written."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            str(path.readlink()) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def fetched(server: FakeHub, models: Path, **options: object) -> tuple[Path, list[str]]:
    """Return the folder of a fetch, and the names of the files that it downloaded."""
    before = len(server.downloads())
    token = find_token(Settings(TTS_DATA_DIR=models))
    folder = fetch(files_for("csm"), models, **({"patience": HURRIED, "token": token} | options))  # type: ignore[arg-type]
    return folder, sorted(request.path.rpartition("/")[2] for request in server.downloads()[before:])


# ---- where the library looks

ORACLE = """
import importlib, json, os, sys
from huggingface_hub import constants
from huggingface_hub.utils import _auth
answers = []
for environment in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(constants)
    answers.append([str(constants.HF_HUB_CACHE), _auth.get_token() or ""])
print(json.dumps(answers))
"""


def test_cache_and_token_of_the_library_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        "home": tmp_path / ".cache" / "huggingface",
        "xdg": tmp_path / "xdg" / "huggingface",
        "hf": tmp_path / "hf",
    }
    for name, place in places.items():
        place.mkdir(parents=True)
        (place / "token").write_text(f"  hf_{name}\r\n")
    (tmp_path / "named").write_text("hf_named\n")
    (tmp_path / "empty").write_text("\n")
    base = {"HOME": str(tmp_path)}
    environments = [
        base | extra
        for extra in (
            {},
            {"XDG_CACHE_HOME": str(tmp_path / "xdg")},
            {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "xdg")},
            {"HF_HOME": "~/hf"},
            {"HF_HOME": "$HOME/hf"},
            {"HF_HOME": str(tmp_path / "nothing")},
            {"HF_HUB_CACHE": str(tmp_path / "a"), "HUGGINGFACE_HUB_CACHE": str(tmp_path / "b")},
            {"HUGGINGFACE_HUB_CACHE": "~/b", "HF_HOME": str(tmp_path / "hf")},
            {"HF_HUB_CACHE": "$HOME/c", "HF_HOME": str(tmp_path / "hf")},
            {"HUGGING_FACE_HUB_TOKEN": " hf_old "},
            {"HF_TOKEN_PATH": "~/named", "HF_HOME": str(tmp_path / "hf")},
            {"HF_TOKEN_PATH": str(tmp_path / "nothing"), "HF_HOME": str(tmp_path / "hf")},
            {"HF_TOKEN_PATH": str(tmp_path / "empty")},
        )
    ]
    asked = subprocess.run(
        [sys.executable, "-c", ORACLE], input=json.dumps(environments), capture_output=True, text=True, check=True
    )
    for environment, expected in zip(environments, json.loads(asked.stdout), strict=True):
        with monkeypatch.context() as patch:
            for name in ("HF_HOME", "XDG_CACHE_HOME"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            assert [str(hub.hub_cache()), hub.login_token()] == expected, environment


def test_empty_variables_are_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    assert hub.hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"
    assert hub.login_token() == ""


# ---- a complete snapshot


@pytest.mark.parametrize("symlinks", [True, False])
def test_complete_snapshot_is_used_in_place(
    server: FakeHub, cache: Path, models: Path, monkeypatch: pytest.MonkeyPatch, symlinks: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not symlinks)
    folder = fill(server, cache)
    assert (folder / LARGE).is_symlink() == symlinks
    before, requests = listing(cache), len(server.requests)
    there = huggingface_hub.snapshot_download(
        REPO, cache_dir=cache, local_files_only=True, allow_patterns=list(EXPECTED_FILES)
    )
    one = huggingface_hub.try_to_load_from_cache(REPO, LARGE, cache_dir=cache)
    assert find(files_for("csm"), models) == fetch(files_for("csm"), models) == Path(there) == Path(str(one)).parent
    assert len(server.requests) == requests
    assert listing(cache) == before
    assert not models.exists()


def test_reference_selects_the_snapshot_and_revision_can_be_pinned(server: FakeHub, cache: Path, models: Path) -> None:
    old = fill(server, cache)
    server.repos[REPO]["config.json"] = b'{"model_type": "csm", "new": true}'
    new = fill(server, cache)
    assert old != new
    assert find(files_for("csm"), models) == new
    pinned = files_for("csm", f"{REPO}@{old.name}")
    there = huggingface_hub.snapshot_download(
        REPO, cache_dir=cache, revision=old.name, local_files_only=True, allow_patterns=list(EXPECTED_FILES)
    )
    assert find(pinned, models) == Path(there) == old
    (cache / "models--sesame--csm-1b" / "refs" / "v1").write_text(old.name)
    assert find(files_for("csm", f"{REPO}@v1"), models) == old
    assert find(files_for("csm", f"{REPO}@v2"), models) is None
    (cache / "models--sesame--csm-1b" / "refs" / "main").write_text("../../elsewhere")
    assert find(files_for("csm"), models) is None


def test_models_folder_is_searched_before_the_cache(server: FakeHub, cache: Path, models: Path) -> None:
    own = fetch(files_for("csm"), models, patience=HURRIED)
    fill(server, cache)
    assert find(files_for("csm"), models) == own


def test_codec_of_the_original_layout_is_requested(cache: Path, tmp_path: Path) -> None:
    folder = cache / "models--sesame--csm-1b" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (cache / "models--sesame--csm-1b" / "refs").mkdir()
    (cache / "models--sesame--csm-1b" / "refs" / "main").write_text("a" * 40)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(header("backbone.layers.0.attn.q_proj.weight"))
    assert [files.source for files in sources(Settings(TTS_DATA_DIR=tmp_path))] == [REPO, "kyutai/mimi"]


def test_shards_of_an_interrupted_download_do_not_hide_the_need_for_a_codec(
    server: FakeHub, cache: Path, tmp_path: Path
) -> None:
    """`hf download` fetches all layouts. The download was interrupted after the layout without a codec was complete."""
    server.repos[REPO]["model.safetensors"] = header("backbone.layers.0.attn.q_proj.weight")
    folder = fill(server, cache, "config.json", "tokenizer.json", "*.index.json", "model.safetensors", LARGE)
    assert find(files_for("csm"), tmp_path) == folder
    assert not hub.has_tensor(folder, "codec_model.")
    fill(server, cache)
    assert hub.has_tensor(folder, "codec_model.")


# ---- a snapshot that can't be used as it is


def damage(snapshot: Path, name: str, how: str) -> None:
    path = snapshot / name
    blob = path.resolve()
    match how:
        case "never downloaded":
            path.unlink()
            blob.unlink()
        case "a link to a missing file":
            blob.unlink()
        case "only partly downloaded":
            blob.rename(blob.with_name(f"{blob.name}.incomplete"))
            path.unlink()
            path.symlink_to(blob.with_name(f"{blob.name}.incomplete"))
        case "shorter than its header says":
            tensor = {"codec_model.0": {"dtype": "U8", "shape": [2_000_000], "data_offsets": [0, 2_000_000]}}
            text = json.dumps(tensor).encode()
            blob.write_bytes(len(text).to_bytes(8, "little") + text + b"0" * 1_000_000)


@pytest.mark.parametrize(
    "fault",
    [
        ("config.json", "never downloaded"),
        (SMALL_SHARD, "never downloaded"),
        (SMALL_SHARD, "a link to a missing file"),
        ("tokenizer.json", "only partly downloaded"),
        (SMALL_SHARD, "only partly downloaded"),
        (SMALL_SHARD, "shorter than its header says"),
    ],
)
def test_only_the_missing_file_is_downloaded(
    server: FakeHub, cache: Path, models: Path, caplog: pytest.LogCaptureFixture, fault: tuple[str, str]
) -> None:
    name, how = fault
    snapshot = fill(server, cache)
    damage(snapshot, name, how)
    before = listing(cache)
    assert find(files_for("csm"), models) is None
    folder, names = fetched(server, models)
    assert names == [name]
    assert folder.is_relative_to(models)
    assert names_in(folder) == EXPECTED_FILES
    assert all((folder / each).read_bytes() == CSM[each] for each in EXPECTED_FILES)
    assert (folder / LARGE).resolve().is_relative_to(cache)
    own_bytes = sum(path.stat().st_size for path in models.rglob("*") if path.is_file() and not path.is_symlink())
    assert own_bytes < len(CSM[name]) + 1000
    assert listing(cache) == before
    warning = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert (
        f"{name} is missing" in warning.getMessage()
        if how == "never downloaded"
        else f"{name} is a" in warning.message or how in warning.getMessage()
    )
    assert str(snapshot) in warning.getMessage()
    requests = len(server.requests)
    assert fetch(files_for("csm"), models) == folder
    assert len(server.requests) == requests


def test_layout_on_the_disk_is_preferred(server: FakeHub, cache: Path, models: Path) -> None:
    """Sesame's own generator stores config.json and model.safetensors, but not the files of transformers."""
    fill(server, cache, "config.json", "model.safetensors")
    folder, names = fetched(server, models)
    assert "tokenizer.json" in names
    assert not {LARGE, SMALL_SHARD, "model.safetensors", "config.json", "ckpt.pt"} & set(names)
    assert (folder / "model.safetensors").resolve().is_relative_to(cache)
    assert find(files_for("csm"), models) == folder


def test_weights_of_an_older_commit_are_not_downloaded_again(server: FakeHub, cache: Path, models: Path) -> None:
    snapshot = fill(server, cache)
    (snapshot / "tokenizer.json").unlink()
    server.repos[REPO]["config.json"] = b'{"model_type": "csm", "new": true}'
    folder, names = fetched(server, models)
    assert names == ["config.json"]  # the blob of tokenizer.json is still in the cache
    assert (folder / "tokenizer.json").read_bytes() == CSM["tokenizer.json"]


def test_cleared_cache_causes_a_download(server: FakeHub, cache: Path, models: Path) -> None:
    (fill(server, cache) / "config.json").unlink()
    folder, _ = fetched(server, models)
    (cache / "models--sesame--csm-1b" / "blobs" / etag(LARGE, CSM[LARGE])).unlink()
    assert find(files_for("csm"), models) is None
    assert fetched(server, models) == (folder, [LARGE])
    assert (folder / LARGE).read_bytes() == CSM[LARGE]


def test_files_are_copied_to_a_disk_without_symlinks(
    server: FakeHub, cache: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    (fill(server, cache) / "config.json").unlink()
    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder, names = fetched(server, models)
    assert names == []
    assert names_in(folder) == EXPECTED_FILES
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_unreadable_cache_is_skipped(
    server: FakeHub, cache: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(server, cache)
    reference = cache / "models--sesame--csm-1b" / "refs" / "main"
    reference.unlink()
    reference.mkdir()
    assert find(files_for("csm"), models) is None
    folder, _ = fetched(server, models)
    assert folder.is_relative_to(models)
    assert f"{reference} can't be read" in caplog.text


@pytest.mark.parametrize("reference", [b"\xff\xfe\x00", b"", b"../../..", b"no-such-commit\n"])
def test_reference_without_a_commit_causes_a_download(
    server: FakeHub, cache: Path, models: Path, reference: bytes
) -> None:
    fill(server, cache)
    (cache / "models--sesame--csm-1b" / "refs" / "main").write_bytes(reference)
    assert find(files_for("csm"), models) is None
    folder, _ = fetched(server, models)
    assert folder.is_relative_to(models)


def test_links_that_form_a_loop_are_missing_files(server: FakeHub, cache: Path, models: Path) -> None:
    snapshot = fill(server, cache)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("other.json")
    (snapshot / "other.json").symlink_to("config.json")
    assert find(files_for("csm"), models) is None
    assert hub.find_in_library_cache(files_for("csm")) == (snapshot, ["config.json is a link to a missing file"])
    folder, _ = fetched(server, models)
    assert folder.is_relative_to(models)


def test_partial_snapshot_offline_says_what_is_missing_and_what_to_do(
    server: FakeHub, cache: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server, cache, "config.json", "model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    requests = len(server.requests)
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(files_for("csm"), models)
    assert "tokenizer.json is missing" in caught.value.reason
    assert str(cache) in caught.value.reason
    assert f"hf download {REPO}" in caught.value.remedy
    assert "CSM_MODEL" in caught.value.remedy
    assert len(server.requests) == requests


def test_complete_copy_is_used_in_place_of_the_published_model_only(server: FakeHub, models: Path, cache: Path) -> None:
    copy = "unsloth/csm-1b"
    server.repos[copy] = server.repos[REPO]
    assert locate("csm", "", "", models).weights is None
    folder = fetch(files_for("csm", copy), models, patience=HURRIED)
    found = locate("csm", "", "", models)
    assert (found.weights, found.files[0].source) == (folder, copy)
    for other in ("me/csm-1b", "eustlb/csm-1b", f"{REPO}@v1"):
        assert locate("csm", other, "", models).weights is None
    original = fetch(files_for("csm"), models, patience=HURRIED)
    assert locate("csm", "", "", models).weights == original


# ---- the login


def test_stored_token_is_sent_only_to_the_hub(
    server: FakeHub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("HF_HOME", str(home))
    server.gated.add(REPO)
    server.tokens.add(TOKEN)
    before = listing(home)
    fetched(server, models)
    assert listing(home) == before
    assert {request.token for request in server.requests if "/cdn/" not in request.path} == {TOKEN}
    assert {request.token for request in server.requests if "/cdn/" in request.path} == {""}
    assert TOKEN not in caplog.text


def test_error_names_a_refused_stored_token(
    server: FakeHub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(TOKEN)
    server.gated.add(REPO)
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(files_for("csm"), models, token=find_token(Settings(TTS_DATA_DIR=models)), patience=HURRIED)
    assert "the stored token has no access" in caught.value.reason
    assert TOKEN not in str(caught.value)


def test_token_of_the_settings_has_priority_and_the_stored_token_can_be_disabled(
    server: FakeHub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_stored")
    fetched(server, models, token=HubToken(TOKEN))
    assert {request.token for request in server.requests if "/cdn/" not in request.path} == {TOKEN}
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    server.requests.clear()
    fetched(server, tmp_path / "other")
    assert {request.token for request in server.requests} == {""}


# ---- folders of another user


def found_by_another_user(folder: Path) -> str:
    """Look for the model in `folder` in a child process of a user other than root; return the result or the error."""
    answer, told = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            found = find(files_for("csm", str(folder)), Path("models"))
            assert found is not None
            text = f"{found.name} {hub.has_tensor(found, 'codec_model.')}"
        except WeightsUnavailable as error:
            text = f"{error.reason} {error.remedy}"
        except BaseException as error:  # noqa: BLE001 - the child must end here
            text = repr(error)
        os.write(told, text.encode())
        os._exit(0)
    os.close(told)
    with os.fdopen(answer) as lines:
        text = lines.read()
    os.waitpid(process, 0)
    return text


@pytest.fixture
def weights() -> Iterator[Path]:
    """Yield a local folder with weights that another user can read.

    This user can't reach the temporary folders of pytest.
    """
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        folder = Path(base) / "outer" / "weights"
        folder.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_bytes(b"{}")
        (folder / "model.safetensors").write_bytes(header("codec_model.x"))
        (folder / "adapter.safetensors").write_bytes(header("adapter"))
        yield folder


@pytest.mark.parametrize("locked", ["model.safetensors", ".", ".."])
def test_error_for_a_folder_of_another_user_names_the_remedy(weights: Path, locked: str) -> None:
    assert found_by_another_user(weights) == "weights True"
    (weights / locked).chmod(0)
    try:
        told = found_by_another_user(weights)
    finally:
        weights.parent.chmod(0o755)
        weights.chmod(0o755)
    assert f"CSM_MODEL={weights}" in told
    assert "can't be read" in told
    assert "permission" in told


def test_unreadable_file_that_is_not_needed_is_ignored(weights: Path) -> None:
    (weights / "adapter.safetensors").chmod(0)
    assert found_by_another_user(weights) == "weights True"
