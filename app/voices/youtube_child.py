"""The child process of `youtube.py`: runs yt-dlp for one job. This module imports no other module of the package.

The job is one JSON line on stdin. Events are JSON lines on stdout: "progress", then "done" or "failed". The process may
connect only to the hosts that the job lists, at public IP addresses. `Guard` checks every DNS lookup and every
connection, redirects included. If stdin ends, the parent process has died. In this case the child process removes the
folder of the job and ends.
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

# Extra audio that is fetched after the end of the section, because the bit rate varies within a file.
_SAFETY_S = 5.0
_SAFETY_SHARE = 1.15
_SAFETY_BYTES = 1 << 18
_REPORT_EVERY_S = 0.25
# Containers that have no index at the end, so the first part of a file can be decoded alone.
_STREAMABLE = frozenset({"webm_dash", "m4a_dash", "mp3", "ogg", "opus", "aac", "webm"})


class Refused(OSError):
    """`Guard` refused a connection or a DNS lookup."""


class FetchedEnough(Exception):
    """Raised to stop the download, when the fetched bytes already contain the section."""


class TooLarge(Exception):
    """The file is larger than the job's `max_bytes`."""


class Guard:
    """Restricts the network connections of this process with an audit hook, which no code can remove later.

    hosts: allowed host names; their subdomains are allowed too. addresses: allowed IP addresses that are not public.
    refused: the last host or address that was refused.
    """

    def __init__(self, hosts: list[str], addresses: list[str]) -> None:
        self._hosts = tuple(hosts)
        self._addresses = frozenset(addresses)
        self._getaddrinfo_of_python = socket.getaddrinfo
        self.refused: str | None = None

    def install(self) -> None:
        socket.getaddrinfo = self._getaddrinfo
        sys.addaudithook(self._hook)

    def _getaddrinfo(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
        name = name.rstrip(".").lower()
        if name not in self._addresses and not any(name == h or name.endswith("." + h) for h in self._hosts):
            raise self._refuse(name)
        return self._getaddrinfo_of_python(host, *args, **kwargs)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            return
        address = args[1]
        if not isinstance(address, tuple):  # a Unix socket
            raise self._refuse(str(address))
        if not self.allows(str(address[0])):
            raise self._refuse(str(address[0]))

    def allows(self, host: str) -> bool:
        """Return whether `host` is a public IP address or one of `addresses`; False for a host name.

        If an IPv6 address contains an IPv4 address (mapped, 6to4, Teredo, NAT64), the IPv4 address is checked.
        """
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


class WarningCollector:
    """The logger that is passed to yt-dlp. The logger keeps the warnings, because they explain why a format is
    missing.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None:
        self.warnings.append(message[:500])

    def error(self, message: str) -> None: ...


def send_event(event: str, **fields: Any) -> None:
    """Write one event to stdout."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def wanted_bytes(info: dict[str, Any], end_s: float, total_bytes: int | None) -> int | None:
    """Estimate how many bytes must be fetched from the start of the file to get the audio up to `end_s`.

    Returns None if the whole file must be fetched. info: yt-dlp's metadata of the format.
    """
    kind = info.get("container") or info.get("ext")
    length_s = info.get("duration")
    if kind not in _STREAMABLE or not length_s or not total_bytes:
        return None
    wanted = int(total_bytes * (end_s + _SAFETY_S) / length_s * _SAFETY_SHARE) + _SAFETY_BYTES
    return wanted if wanted < total_bytes else None


class Fetch:
    """The download of one job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._reported_s = 0.0  # monotonic time of the last progress event
        self._info: dict[str, Any] = {}  # yt-dlp's metadata of the format being fetched
        self.logger = WarningCollector()

    def options(self) -> dict[str, Any]:
        """Return the options for yt-dlp's class YoutubeDL."""
        job = self._job
        return {
            "allowed_extractors": job["extractors"],
            "noplaylist": True,
            "playlist_items": "1",
            "format": "bestaudio[protocol^=http]/bestaudio/best[protocol^=http]/best",
            "outtmpl": str(Path(job["folder"]) / "sound.%(ext)s"),
            "paths": {"temp": job["folder"]},
            "match_filter": self._check,
            # This hook limits the size; the option `max_filesize` would skip the file without an error.
            "progress_hooks": [self._progress],
            "socket_timeout": job["socket_timeout_s"],
            "retries": 1,
            "extractor_retries": 1,
            "fragment_retries": 1,
            "file_access_retries": 0,
            "concurrent_fragment_downloads": 1,
            "http_chunk_size": job["chunk_bytes"],
            "hls_prefer_native": True,
            "external_downloader": {"default": "native"},
            "ffmpeg_location": "/nonexistent",  # FFmpeg's connections would bypass the guard
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
            "logger": self.logger,
            "usenetrc": False,
            "allow_playlist_files": False,
            "writethumbnail": False,
        }

    def run(self) -> dict[str, Any]:
        """Fetch the file and return the fields of the "done" event. Raises VideoRejected, TooLarge, yt-dlp's errors."""
        from yt_dlp import YoutubeDL  # noqa: PLC0415 - imported after the guard is installed

        job = self._job
        send_event("progress", stage="looking", bytes=0, total=None)
        with YoutubeDL(self.options()) as downloader:
            try:
                info = downloader.extract_info(job["url"], download=True) or {}
            except FetchedEnough:
                info = self._info
        if info.get("_type") == "playlist":
            raise VideoRejected("playlist", "the address is that of a playlist")
        files = sorted(Path(job["folder"]).glob("sound.*"), key=lambda path: path.stat().st_size)
        if not files or not files[-1].stat().st_size:
            raise VideoRejected("nothing", "yt-dlp fetched no data")
        size = files[-1].stat().st_size
        if size > job["max_bytes"]:
            raise TooLarge
        return {
            "path": str(files[-1]),
            "title": str(info.get("title") or "")[:300],
            "length_s": info.get("duration"),
            "bytes": size,
        }

    def _check(self, info: dict[str, Any], *, incomplete: bool = False) -> str | None:
        """Check the metadata of the video. Raises VideoRejected. yt-dlp calls this method before the download."""
        job = self._job
        if info.get("_type") == "playlist" or (info.get("n_entries") or 1) > 1:
            raise VideoRejected("playlist", "the address is that of a playlist")
        if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
            raise VideoRejected("live", "a live stream")
        length_s = info.get("duration")
        if length_s and length_s > job["max_length_s"]:
            raise VideoRejected("too_long", f"{length_s:.0f} s")
        if length_s and job["start_s"] >= length_s:
            raise VideoRejected("start", f"its length is {length_s:.0f} s")
        return None

    def _progress(self, status: dict[str, Any]) -> None:
        """Report progress, and stop the download if enough bytes are fetched or the file is too large.

        yt-dlp calls this method after each block of data.
        """
        if status.get("status") != "downloading":
            return
        self._info = status.get("info_dict") or {}
        done = int(status.get("downloaded_bytes") or 0)
        total = status.get("total_bytes") or self._info.get("filesize")
        wanted = wanted_bytes(self._info, self._job["start_s"] + self._job["duration_s"], total)
        needed = wanted or total
        if done > self._job["max_bytes"] or (needed and needed > self._job["max_bytes"]):
            raise TooLarge
        if wanted and done >= wanted:
            raise FetchedEnough
        now_s = time.monotonic()
        if now_s - self._reported_s >= _REPORT_EVERY_S:
            self._reported_s = now_s
            send_event("progress", stage="fetching", bytes=done, total=needed)


class VideoRejected(Exception):
    """The video can't be used. kind: the reason, one of the keys in `fetch_error` (youtube.py). message: details."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _limit(max_bytes: int, cpu_s: int) -> None:
    """Limit file size and CPU time of this process, and turn core dumps off."""
    for kind, most in (
        (resource.RLIMIT_FSIZE, max_bytes + (1 << 20)),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _end_with_parent(folder: str) -> None:
    """Wait until stdin ends because the parent process died. After that, remove `folder` and kill this process
    group.
    """
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 1024):
            pass
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # the group includes a JavaScript runtime that yt-dlp may have started


def main() -> None:
    job = json.loads(_first_line())
    threading.Thread(target=_end_with_parent, args=(job["folder"],), daemon=True).start()
    _limit(job["max_bytes"], job["cpu_s"])
    for name in ("curl_cffi", "websockets"):  # curl_cffi would bypass the guard; websockets is not needed
        sys.modules[name] = None  # type: ignore[assignment]
    guard = Guard(job["hosts"], job["addresses"])
    guard.install()
    fetch = Fetch(job)
    try:
        send_event("done", **fetch.run())
    except VideoRejected as error:
        send_event("failed", kind=error.kind, message=str(error), warnings=fetch.logger.warnings)
    except TooLarge:
        send_event("failed", kind="too_large", message="too large", warnings=[])
    except Exception as error:  # noqa: BLE001 - every failure is reported to the parent
        cause = _cause(error)
        kind = "geo" if type(cause).__name__ == "GeoRestrictedError" else "other"
        if isinstance(cause, VideoRejected):
            kind = cause.kind
        elif isinstance(cause, TooLarge):
            kind = "too_large"
        elif guard.refused is not None:
            kind = "refused"
        message = str(getattr(error, "msg", None) or error)
        send_event("failed", kind=kind, message=message[:1000], warnings=fetch.logger.warnings)


def _cause(error: BaseException) -> BaseException:
    """Return the exception inside yt-dlp's DownloadError. Any other error is returned unchanged."""
    inside = getattr(error, "exc_info", None)
    return inside[1] if inside and inside[1] is not None else error


def _first_line() -> bytes:
    """Return the first line of stdin. The line is read byte by byte, so that no byte after the line is read."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(1)
        line += byte
    return line


if __name__ == "__main__":
    main()
