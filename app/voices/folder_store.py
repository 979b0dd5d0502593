"""Folders as records, safe at any moment: one folder each, whole or not there, seen by every process that shares them.

A record is written under a temporary name in the same file system, synced, and renamed; it is removed by renaming it
away first. One of its files is replaced the same way. So a process may be killed between any two of its calls and
others may look at any time: they find a record as it was or as it is. Names that begin with a dot are never records.

Knows files; what a record means is told by the `read` function it is given.
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

from app.errors import Busy, NotStored

log = logging.getLogger(__name__)

R = TypeVar("R")

SETTLED_NS = 2_000_000_000  # a folder that changed more recently may change again within its clock's tick
ABANDONED_S = 3600.0  # a temporary name of another machine that is this old is nobody's any more
LOCK_WAIT_S = 10.0
_NEW, _GONE = ".new-", ".gone-"
_THIS_RUN = secrets.token_hex(4)  # tells this process from an earlier one of the same number, as containers have
_Signature = tuple[int, int, int]


class Damaged(Exception):
    """A folder is no record; the message says why."""


class FolderStore(Generic[R]):
    """The records below `folder`. Thread-safe; `records` may be read at any time without waiting.

    read: a record's folder -> the record. Raises Damaged, OSError. marker: the file that says what the record is; a
    record is read again when it changes. keep: which names are records at all.
    """

    def __init__(
        self,
        folder: Path,
        marker: str,
        read: Callable[[Path], R],
        keep: Callable[[str], bool] = lambda name: not name.startswith("."),
    ) -> None:
        self.folder = folder
        self._marker = marker
        self._read = read
        self._keep = keep
        self._lock = threading.RLock()
        self._records: Mapping[str, R] = {}
        self._problems: Mapping[str, str] = {}
        self._seen: dict[str, _Signature] = {}  # of each record's marker when it was read
        self._changed_ns = -1  # the folder's own time at the last look

    @property
    def records(self) -> Mapping[str, R]:
        """By folder name, as of the last look."""
        return self._records

    @property
    def problems(self) -> Mapping[str, str]:
        """Folders that are no records, and why."""
        return self._problems

    def refresh(self, *, whole: bool = False) -> bool:
        """Look whether anything changed; blocks for one stat if nothing did. Returns whether something had.

        whole: do not trust the folder's time. Raises OSError where the folder can't be read.
        """
        with self._lock:
            changed_ns = self.folder.stat().st_mtime_ns
            if changed_ns == self._changed_ns and not whole and not self._problems:
                return False
            settled = abs(time.time_ns() - changed_ns) > SETTLED_NS
            records, problems, seen = dict(self._records), dict[str, str](), dict[str, _Signature]()
            for name in self._names():
                try:
                    signature = _signature(self.folder / name / self._marker)
                    if signature != self._seen.get(name) or name not in records:
                        records[name] = self._read(self.folder / name)
                        signature = _signature(self.folder / name / self._marker)  # reading may have made it
                    if signature is not None:
                        seen[name] = signature
                except FileNotFoundError:  # removed while we looked, or never whole
                    if (self.folder / name).is_dir():
                        problems[name] = f"A file of it is missing ({self._marker} or what it names)."
                except (Damaged, OSError) as problem:
                    problems[name] = str(problem)
            for name, why in problems.items():
                if self._problems.get(name) != why:
                    log.warning("%s is left out: %s", self.folder / name, why)
            found = {name: records[name] for name in records if name in seen and name not in problems}
            differs = found != self._records or problems != self._problems
            self._records, self._problems, self._seen = found, problems, seen
            self._changed_ns = changed_ns if settled else -1
            return differs

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        """A new record. Raises NotStored; FileExistsError where there is one of that name."""
        if (self.folder / name).exists():
            raise FileExistsError(name)
        temporary = self.folder / f"{_NEW}{_author()}-{secrets.token_hex(8)}"
        try:
            temporary.mkdir(parents=True)
            for file, data in files.items():
                _write(temporary / file, data)
            _sync(temporary)
            temporary.rename(self.folder / name)
            _sync(self.folder)
        except OSError as error:
            raise NotStored(f"It could not be stored: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.refresh(whole=True)

    def replace(self, name: str, file: str, data: bytes) -> None:
        """One file of a record, at once for all who look. Raises NotStored, FileNotFoundError."""
        self.replace_quietly(name, file, data)
        with contextlib.suppress(OSError):
            os.utime(self.folder)  # so that other processes look
        self.refresh(whole=True)

    def replace_quietly(self, name: str, file: str, data: bytes) -> None:
        """As `replace`, for a file that does not change what the record says. Raises NotStored, FileNotFoundError."""
        path = self.folder / name / file
        temporary = path.with_name(f"{_NEW}{_author()}-{secrets.token_hex(8)}")
        try:
            _write(temporary, data)
            temporary.replace(path)
            _sync(path.parent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NotStored(f"It could not be stored: {error.strerror or error}.") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def drop(self, name: str) -> bool:
        """Remove a record; False if there was none. Raises NotStored."""
        gone = self.folder / f"{_GONE}{_author()}-{secrets.token_hex(8)}"
        try:
            (self.folder / name).rename(gone)
            _sync(self.folder)
        except FileNotFoundError:
            self.refresh(whole=True)
            return False
        except OSError as error:
            raise NotStored(f"It could not be removed: {error.strerror or error}.") from error
        shutil.rmtree(gone, ignore_errors=True)
        self.refresh(whole=True)
        return True

    def sweep(self) -> None:
        """At start: remove what processes that are no more left half-written or half-removed."""
        for name in self._entries():
            path = self.folder / name
            if name.startswith(_GONE) or (name.startswith(_NEW) and _is_abandoned(path)):
                shutil.rmtree(path, ignore_errors=True)
                log.info("swept %s", path)
            elif self._keep(name) and path.is_dir() and not path.is_symlink():
                for left in path.glob(f"{_NEW}*"):
                    if _is_abandoned(left):
                        left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold back other threads and processes that would also name a record; where the file system has no locks,
        only threads. Raises Busy, NotStored."""
        with self._lock, self._lock_file() as file:
            deadline_s = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline_s:
                        raise Busy("Another process is storing voices. Try again.") from error
                    time.sleep(0.005)
                except OSError as error:
                    log.warning("%s can't be locked (%s): voices made at the same time may get one name", file, error)
                    break
            yield

    def _lock_file(self) -> BinaryIO:
        try:
            return (self.folder / ".lock").open("ab")
        except OSError as error:
            raise NotStored(f"It could not be stored: {error.strerror or error}.") from error

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


def _signature(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename is on disk only once its folder is; some network file systems refuse to sync folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _author() -> str:
    """Who writes: machine, process and run, as far as they can be part of a name."""
    machine = socket.gethostname().replace("-", "_").replace("/", "_")
    return f"{machine}-{os.getpid()}-{_THIS_RUN}"


def _is_abandoned(path: Path) -> bool:
    """Of a process of this machine that is gone, or so old that nobody writes it any more."""
    _, machine, process, run, _ = [*path.name.rsplit("-", 4), *[""] * 5][:5]
    if machine == _author().split("-")[0] and process.isdecimal():
        return run != _THIS_RUN if int(process) == os.getpid() else not is_alive(int(process))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine, whoever's it is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
