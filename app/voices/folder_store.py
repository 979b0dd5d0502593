"""Crash-safe records on disk. Each record is one folder. Any number of processes can share the records.

A new record is written to a folder with a temporary name, synced to disk, and then renamed. A deleted record is first
renamed to a temporary name, and then its files are removed. A new version of a single file is also written under a
temporary name and then renamed. So readers always see a record in its old state or in its new state, even if a process
is killed at any point. A folder whose name begins with a dot is never a record.

The caller passes the function `read`, which converts a folder to a record.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from app.durable_file import replace_file, sync_folder, write_file
from app.errors import Busy, NotStored

log = logging.getLogger(__name__)

R = TypeVar("R")

# If a folder changed less than this time ago, the next `refresh` scans it again, because a second change may have the
# same modification time as the first change.
SETTLED_NS = 2_000_000_000
ABANDONED_S = 3600.0  # temporary files that another machine wrote are deleted after this time
LOCK_WAIT_S = 10.0
_NEW, _REMOVED = ".new-", ".gone-"
_THIS_RUN = secrets.token_hex(4)  # distinguishes this process from an earlier process with the same process id
_Signature = tuple[int, int, int]


class Damaged(Exception):
    """A folder can't be read as a record. The message gives the reason."""


class FolderStore(Generic[R]):
    """The records in the folder `folder`. Thread-safe; reading `records` never blocks.

    marker: name of the file that describes a record. The record is read again when this file changes.
    read: function that converts the folder of a record to the record. Raises Damaged, OSError.
    keep: function that returns whether the folder with the given name is a record.
    missing: the text in `problems` for a folder in which a file is missing; "" = a standard text that names the marker.
    """

    def __init__(
        self,
        folder: Path,
        marker: str,
        read: Callable[[Path], R],
        keep: Callable[[str], bool] = lambda name: not name.startswith("."),
        *,
        missing: str = "",
    ) -> None:
        self.folder = folder
        self._marker = marker
        self._read = read
        self._keep = keep
        self._missing = missing or f"A file is missing: {marker}, or a file that {marker} names."
        self._lock = threading.RLock()
        self._records: Mapping[str, R] = {}
        self._problems: Mapping[str, str] = {}
        self._signatures: dict[str, _Signature] = {}  # state of each marker file when its record was read
        self._changed_ns = -1  # the folder's modification time at the last scan

    @property
    def records(self) -> Mapping[str, R]:
        """The records that the last scan found: folder name -> record."""
        return self._records

    @property
    def problems(self) -> Mapping[str, str]:
        """The folders that the last scan could not read as records: folder name -> reason."""
        return self._problems

    def refresh(self, *, full: bool = False) -> bool:
        """Scan the folder and return whether `records` or `problems` changed.

        If the modification time of the folder is unchanged and no folder has a problem, this method does not scan, and
        needs only one stat call. full: True = scan in any case. Raises OSError if the folder can't be read.
        """
        with self._lock:
            changed_ns = self.folder.stat().st_mtime_ns
            if changed_ns == self._changed_ns and not full and not self._problems:
                return False
            settled = abs(time.time_ns() - changed_ns) > SETTLED_NS
            records, problems, signatures = dict(self._records), dict[str, str](), dict[str, _Signature]()
            for name in self._names():
                try:
                    signature = _signature(self.folder / name / self._marker)
                    if signature != self._signatures.get(name) or name not in records:
                        records[name] = self._read(self.folder / name)
                        # Read the state again, because `read` may have created the marker file.
                        signature = _signature(self.folder / name / self._marker)
                    if signature is not None:
                        signatures[name] = signature
                except FileNotFoundError:  # the folder was removed during the scan, or is incomplete
                    if (self.folder / name).is_dir():
                        problems[name] = self._missing
                except (Damaged, OSError) as problem:
                    problems[name] = str(problem)
            for name, reason in problems.items():
                if self._problems.get(name) != reason:
                    log.warning("The folder %s is ignored, because it can't be read: %s", self.folder / name, reason)
            found = {name: records[name] for name in records if name in signatures and name not in problems}
            changed = found != self._records or problems != self._problems
            self._records, self._problems, self._signatures = found, problems, signatures
            self._changed_ns = changed_ns if settled else -1
            return changed

    def create(self, name: str, files: Mapping[str, bytes]) -> None:
        """Store a new record.

        Raises FileExistsError if the name is taken, and NotStored if the disk reports an error.
        """
        if (self.folder / name).exists():
            raise FileExistsError(name)
        temporary = self.folder / f"{_NEW}{_writer()}-{secrets.token_hex(8)}"
        try:
            temporary.mkdir(mode=0o700, parents=True)
            for file, data in files.items():
                write_file(temporary / file, data, mode=0o666)
            sync_folder(temporary)
            temporary.rename(self.folder / name)
            sync_folder(self.folder)
        except OSError as error:
            raise _not_stored(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.refresh(full=True)

    def replace_file(self, name: str, file: str, data: bytes) -> None:
        """Replace one file of a record atomically.

        Raises FileNotFoundError if the record does not exist, and NotStored if the disk reports another error.
        """
        self.replace_file_silently(name, file, data)
        with contextlib.suppress(OSError):
            os.utime(self.folder)  # the new modification time makes other processes scan the folder
        self.refresh(full=True)

    def replace_file_silently(self, name: str, file: str, data: bytes) -> None:
        """Replace one file of a record atomically, without a new scan of the folder.

        Use this method for files that `read` does not read. Raises FileNotFoundError if the record does not exist, and
        NotStored if the disk reports another error.
        """
        path = self.folder / name / file
        temporary = path.with_name(f"{_NEW}{_writer()}-{secrets.token_hex(8)}")
        try:
            replace_file(path, data, mode=0o666, temporary=temporary)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _not_stored(error) from error

    def remove(self, name: str) -> bool:
        """Remove a record. Returns False if the record does not exist. Raises NotStored."""
        removed = self.folder / f"{_REMOVED}{_writer()}-{secrets.token_hex(8)}"
        try:
            (self.folder / name).rename(removed)
            sync_folder(self.folder)
        except FileNotFoundError:
            self.refresh(full=True)
            return False
        except OSError as error:
            reason = error.strerror or error
            raise NotStored(f"The data could not be deleted from this server's disk: {reason}.") from error
        shutil.rmtree(removed, ignore_errors=True)
        self.refresh(full=True)
        return True

    def remove_leftovers(self) -> None:
        """Remove the temporary files and folders of killed processes. Called when the server starts."""
        for name in self._entries():
            path = self.folder / name
            if name.startswith(_REMOVED) or (name.startswith(_NEW) and _is_abandoned(path)):
                shutil.rmtree(path, ignore_errors=True)
                log.info("The temporary folder %s, which an earlier process left, was removed.", path)
            elif self._keep(name) and path.is_dir() and not path.is_symlink():
                for left in path.glob(f"{_NEW}*"):
                    if _is_abandoned(left):
                        left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder inside `with`. Other threads and processes that call this method wait.

        On a file system without locks, only threads of the same process wait. Raises Busy if another process holds the
        lock for LOCK_WAIT_S, and NotStored if the lock file can't be opened.
        """
        with self._lock, self._lock_file() as file:
            deadline_s = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline_s:
                        raise Busy("Another server process is storing voices. Try again.") from error
                    time.sleep(0.005)
                except OSError as error:
                    log.warning(
                        "The folder %s can't be locked (%s). Parallel requests may store two voices with one name.",
                        file,
                        error,
                    )
                    break
            yield

    def _lock_file(self) -> BinaryIO:
        try:
            return (self.folder / ".lock").open("ab")
        except OSError as error:
            raise _not_stored(error) from error

    def _entries(self) -> list[str]:
        try:
            return sorted(path.name for path in self.folder.iterdir())
        except FileNotFoundError:
            return []

    def _names(self) -> Iterator[str]:
        for name in self._entries():
            path = self.folder / name
            if self._keep(name) and path.is_dir() and not path.is_symlink():
                yield name


def _not_stored(error: OSError) -> NotStored:
    return NotStored(f"The data could not be stored on this server's disk: {error.strerror or error}.")


def _signature(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _writer() -> str:
    """Return the part of a temporary file name that identifies this process: machine, pid and a random text."""
    machine = socket.gethostname().replace("-", "_").replace("/", "_")
    return f"{machine}-{os.getpid()}-{_THIS_RUN}"


def _is_abandoned(path: Path) -> bool:
    """Return whether the process that wrote a temporary file or folder has ended.

    If another machine wrote the file or folder, return whether it is older than ABANDONED_S.
    """
    _, machine, process, run, _ = [*path.name.rsplit("-", 4), *[""] * 5][:5]
    if machine == _writer().split("-")[0] and process.isdecimal():
        return run != _THIS_RUN if int(process) == os.getpid() else not is_alive(int(process))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def is_alive(process: int) -> bool:
    """Return whether a process with this pid exists on this machine, under any user."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
