"""Files that survive a crash: they are synced to disk, and a new version replaces the old one in one step."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create a file and sync it to disk. mode: the permissions of the file, before the umask is applied.

    Raises FileExistsError if the file exists. After any other OSError, an incomplete file can remain.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, temporary: Path | None = None) -> None:
    """Replace a file, or create it. Readers find either the old or the new content, even after a crash.

    mode: see `write_file`. temporary: a path in the same folder that only this writer uses; None = a random hidden
    name. If the process is killed, the temporary file can remain; the next call with the same path removes it. If this
    function raises OSError, the old file is unchanged.
    """
    draft = temporary or path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    draft.unlink(missing_ok=True)
    try:
        write_file(draft, data, mode=mode)
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, so that renames in the folder survive a power failure.

    Errors are ignored, because some network file systems can't sync a folder.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_file(path: Path) -> BinaryIO:
    """Open a file, and wait until no other process or thread holds its lock. `close` releases the lock. Raises OSError.

    Some file systems have no locks. There, this function only opens the file.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb")
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
