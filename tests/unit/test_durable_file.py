"""Durable files: a failed or interrupted write leaves the old content, and the permissions are those of the call."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.durable_file import replace_file, write_file

pytestmark = pytest.mark.unit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys.json"
    replace_file(found, b"old")
    return found


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let the operating system refuse files of more than 100 bytes (EFBIG), as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def names(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()]


@pytest.mark.parametrize("temporary", [None, "mine.part"])
def test_new_content_replaces_the_old_and_leaves_no_other_file(path: Path, temporary: str | None) -> None:
    replace_file(path, b"new", temporary=path.with_name(temporary) if temporary else None)
    assert path.read_bytes() == b"new"
    assert names(path) == ["keys.json"]


def test_full_disk_keeps_the_old_content_and_leaves_no_other_file(path: Path, full_disk: None) -> None:
    with pytest.raises(OSError, match="File too large"):
        replace_file(path, bytes(1000))
    assert path.read_bytes() == b"old"
    assert names(path) == ["keys.json"]


def killed_before_the_rename(path: Path, temporary: Path) -> None:
    """Replace the file in a process that ends where it would rename the complete new file."""
    child = os.fork()
    if not child:
        Path.replace = lambda *_: os._exit(9)  # type: ignore[method-assign, assignment, misc]
        try:
            replace_file(path, b"lost", temporary=temporary)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_crash_before_the_rename_keeps_the_old_content(path: Path) -> None:
    temporary = path.with_name("mine.part")
    killed_before_the_rename(path, temporary)
    assert path.read_bytes() == b"old"
    assert temporary.read_bytes() == b"lost"
    replace_file(path, b"new", temporary=temporary)  # the file that stayed is no obstacle
    assert path.read_bytes() == b"new"
    assert names(path) == ["keys.json"]


def test_content_is_on_the_disk_before_the_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for owner, name in ((os, "fsync"), (Path, "replace")):
        real = getattr(owner, name)

        def record(*args: object, name: str = name, real: object = real) -> object:
            calls.append(name)
            return real(*args)  # type: ignore[operator]

        monkeypatch.setattr(owner, name, record)
    replace_file(path, b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the second one is of the folder


def test_permissions_of_the_new_file_are_those_of_the_call(path: Path) -> None:
    path.chmod(0o644)
    before = os.umask(0o022)
    try:
        replace_file(path, b"secret")
        assert path.stat().st_mode & 0o777 == 0o600
        replace_file(path, b"sound", mode=0o666)
        assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_file_that_exists_is_not_overwritten_by_write_file(path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_folder_that_cannot_be_synced_does_not_undo_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse_folders(path: Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "no reading of folders", str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse_folders)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
