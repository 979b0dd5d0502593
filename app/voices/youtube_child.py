"""yt-dlp in a process of its own, started by `youtube.py` as a plain file: it imports nothing of ours.

An order as one JSON line on stdin; events as JSON lines on stdout. The process reaches nothing but the hosts it was
given, at public addresses: every look-up and every connection goes through a guard, redirects included. When its stdin
ends, its parent is gone: it removes what it has fetched and ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

_SAFETY_S = 5.0  # of sound behind what was asked for: bit rates vary
_SAFETY_SHARE = 1.15
_SAFETY_BYTES = 1 << 18
_TELL_EVERY_S = 0.25
# What can be decoded from its first bytes on, without an index at its end.
_STREAMS = frozenset({"webm_dash", "m4a_dash", "mp3", "ogg", "opus", "aac", "webm"})


class Refused(OSError):
    """The guard: this process may not go there."""


class Enough(Exception):
    """All that was asked for is here."""


class TooLarge(Exception):
    """More bytes than are allowed."""


class Guard:
    """What this process may reach. An audit hook can't be taken away again by what runs later."""

    def __init__(self, hosts: list[str], addresses: list[str]) -> None:
        self._hosts = tuple(hosts)
        self._addresses = frozenset(addresses)  # beside public ones
        self._look_up = socket.getaddrinfo
        self.refused: str | None = None

    def install(self) -> None:
        socket.getaddrinfo = self._getaddrinfo
        sys.addaudithook(self._hook)

    def _getaddrinfo(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
        name = name.rstrip(".").lower()
        if name not in self._addresses and not any(name == h or name.endswith("." + h) for h in self._hosts):
            raise self._refuse(name)
        return self._look_up(host, *args, **kwargs)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            return
        address = args[1]
        if not isinstance(address, tuple):  # a Unix socket
            raise self._refuse(str(address))
        if not self.allows(str(address[0])):
            raise self._refuse(str(address[0]))

    def allows(self, host: str) -> bool:
        """Whether an address is public. IPv4 in IPv6 and the like are looked at as what they lead to."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        if str(address) in self._addresses:
            return True
        if isinstance(address, ipaddress.IPv6Address):
            inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
            if address in ipaddress.ip_network("64:ff9b::/96"):
                inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            if inner is not None:
                return inner.is_global and not inner.is_multicast
        return address.is_global and not address.is_multicast

    def _refuse(self, where: str) -> Refused:
        self.refused = where
        return Refused(f"not allowed to connect to {where}")


class Listener:
    """yt-dlp's logger: keeps its warnings, which say why a format is missing."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None:
        self.warnings.append(message[:500])

    def error(self, message: str) -> None: ...


def tell(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def wanted_bytes(info: dict[str, Any], end_s: float, total_bytes: int | None) -> int | None:
    """How many bytes from the beginning hold the sound up to end_s; None = all of them."""
    kind = info.get("container") or info.get("ext")
    length_s = info.get("duration")
    if kind not in _STREAMS or not length_s or not total_bytes:
        return None
    wanted = int(total_bytes * (end_s + _SAFETY_S) / length_s * _SAFETY_SHARE) + _SAFETY_BYTES
    return wanted if wanted < total_bytes else None


class Fetch:
    """One order."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._told_s = 0.0
        self._info: dict[str, Any] = {}
        self.listener = Listener()

    def options(self) -> dict[str, Any]:
        order = self._order
        return {
            "allowed_extractors": order["extractors"],
            "noplaylist": True,
            "playlist_items": "1",
            "format": "bestaudio[protocol^=http]/bestaudio/best[protocol^=http]/best",
            "outtmpl": str(Path(order["folder"]) / "sound.%(ext)s"),
            "paths": {"temp": order["folder"]},
            "match_filter": self._check,
            "progress_hooks": [self._progress],  # it counts bytes: `max_filesize` would skip the file without a word
            "socket_timeout": order["socket_timeout_s"],
            "retries": 1,
            "extractor_retries": 1,
            "fragment_retries": 1,
            "file_access_retries": 0,
            "concurrent_fragment_downloads": 1,
            "http_chunk_size": order["chunk_bytes"],
            "hls_prefer_native": True,
            "external_downloader": {"default": "native"},
            "ffmpeg_location": "/nonexistent",  # it would connect past the guard
            "fixup": "never",
            "postprocessors": [],
            "cachedir": False,
            "nopart": True,
            "continuedl": False,
            "updatetime": False,
            "overwrites": True,
            "proxy": "",
            "enable_file_urls": False,
            "quiet": True,
            "noprogress": True,
            "no_color": True,
            "logger": self.listener,
            "usenetrc": False,
            "allow_playlist_files": False,
            "writethumbnail": False,
        }

    def run(self) -> dict[str, Any]:
        from yt_dlp import YoutubeDL  # noqa: PLC0415 - after the guard

        order = self._order
        tell("progress", stage="looking", bytes=0, total=None)
        with YoutubeDL(self.options()) as downloader:
            try:
                info = downloader.extract_info(order["url"], download=True) or {}
            except Enough:
                info = self._info
        if info.get("_type") == "playlist":
            raise Problem("playlist", "the address is of a playlist")
        files = sorted(Path(order["folder"]).glob("sound.*"), key=lambda path: path.stat().st_size)
        if not files or not files[-1].stat().st_size:
            raise Problem("nothing", "there was nothing to fetch")
        size = files[-1].stat().st_size
        if size > order["max_bytes"]:
            raise TooLarge
        return {
            "path": str(files[-1]),
            "title": str(info.get("title") or "")[:300],
            "length_s": info.get("duration"),
            "bytes": size,
        }

    def _check(self, info: dict[str, Any], *, incomplete: bool = False) -> str | None:
        """yt-dlp asks before it downloads."""
        order = self._order
        if info.get("_type") == "playlist" or (info.get("n_entries") or 1) > 1:
            raise Problem("playlist", "the address is of a playlist")
        if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
            raise Problem("live", "it is a live stream")
        length_s = info.get("duration")
        if length_s and length_s > order["max_length_s"]:
            raise Problem("too_long", f"it is {length_s:.0f} s long")
        if length_s and order["start_s"] >= length_s:
            raise Problem("start", f"it is {length_s:.0f} s long")
        return None

    def _progress(self, status: dict[str, Any]) -> None:
        if status.get("status") != "downloading":
            return
        self._info = status.get("info_dict") or {}
        done = int(status.get("downloaded_bytes") or 0)
        total = status.get("total_bytes") or self._info.get("filesize")
        wanted = wanted_bytes(self._info, self._order["start_s"] + self._order["duration_s"], total)
        needed = wanted or total
        if done > self._order["max_bytes"] or (needed and needed > self._order["max_bytes"]):
            raise TooLarge
        if wanted and done >= wanted:
            raise Enough
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            tell("progress", stage="fetching", bytes=done, total=needed)


class Problem(Exception):
    """What is wrong with the video, as a short name and in words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


def _limit(max_bytes: int, cpu_s: int) -> None:
    for kind, most in (
        (resource.RLIMIT_FSIZE, max_bytes + (1 << 20)),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _outlive_nobody(folder: str) -> None:
    """Blocks until the parent's end of our stdin closes."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 1024):
            pass
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # the script runtime that yt-dlp may have started too


def main() -> None:
    order = json.loads(_line())
    threading.Thread(target=_outlive_nobody, args=(order["folder"],), daemon=True).start()
    _limit(order["max_bytes"], order["cpu_s"])
    for name in ("curl_cffi", "websockets"):  # they would connect without Python's sockets, or are not needed
        sys.modules[name] = None  # type: ignore[assignment]
    guard = Guard(order["reach"], order["addresses"])
    guard.install()
    fetch = Fetch(order)
    try:
        tell("done", **fetch.run())
    except Problem as problem:
        tell("failed", kind=problem.kind, words=str(problem), warnings=fetch.listener.warnings)
    except TooLarge:
        tell("failed", kind="too_large", words="it is too large", warnings=[])
    except Exception as error:  # noqa: BLE001 - the parent gets any failure in words
        cause = _cause(error)
        kind = "geo" if type(cause).__name__ == "GeoRestrictedError" else "other"
        if isinstance(cause, Problem):
            kind = cause.kind
        elif isinstance(cause, TooLarge):
            kind = "too_large"
        elif guard.refused is not None:
            kind = "refused"
        words = str(getattr(error, "msg", None) or error)
        tell("failed", kind=kind, words=words[:1000], warnings=fetch.listener.warnings, refused=guard.refused)


def _cause(error: BaseException) -> BaseException:
    """Return the exception that yt-dlp has wrapped into its DownloadError."""
    inside = getattr(error, "exc_info", None)
    return inside[1] if inside and inside[1] is not None else error


def _line() -> bytes:
    """The first line of stdin, byte by byte: what is behind it belongs to the watching thread."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(1)
        line += byte
    return line


if __name__ == "__main__":
    main()
