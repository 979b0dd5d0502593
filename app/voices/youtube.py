"""Fetch the audio of a section of a YouTube video.

Only the video's id is taken from the caller's URL. This module builds a new URL for yt-dlp from the id. yt-dlp runs in
a child process (`youtube_child.py`), which may connect only to Google's hosts at public IP addresses. The child process
writes into one temporary folder and is killed at the time limit. The folder is always removed. The fetched file is
decoded in the sandbox (`app/audio/sandbox.py`). This module does not depend on the HTTP layer and stores nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from app.audio.sandbox import Limits, decode_in_sandbox
from app.audio.threads import in_thread
from app.errors import BadReference, Busy, InvalidValue, NotSupported, Unfetchable
from app.voices.folder_store import is_alive
from app.voices.voice_file import wav

log = logging.getLogger(__name__)

RATE_HZ = 44_100  # the sample rate of app/voices/cloning.py
MIN_SECTION_S, MAX_SECTION_S = 1.0, 600.0  # the longest recording that cloning accepts has 600 s
DEFAULT_SECTION_S = 60.0
HOW_TO_INSTALL = (
    "The container image and `make install` have it. Elsewhere install it with: pip install 'yt-dlp[default,deno]'"
)

_CHILD = Path(__file__).with_name("youtube_child.py")
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")
_FOLDER_PREFIX = "tts-youtube-"
_LINE_BYTES = 1 << 16  # limit for the size of one event from the child process
_HOSTS = frozenset(
    prefix + host
    for host in ("youtube.com", "youtube-nocookie.com", "music.youtube.com")
    for prefix in ("", "www.", "m.")
) | {"youtu.be", "www.youtu.be"}
_STARTED_AT = time.time()  # start of this process, Unix time in seconds
_ID = re.compile(r"[A-Za-z0-9_-]{11}")


class NotYouTube(Unfetchable):
    code = "youtube_url_invalid"


class IsPlaylist(Unfetchable):
    code = "youtube_playlist"


class PrivateVideo(Unfetchable):
    code = "youtube_private"


class AgeRestricted(Unfetchable):
    code = "youtube_age_restricted"


class VideoRemoved(Unfetchable):
    code = "youtube_removed"


class LiveVideo(Unfetchable):
    code = "youtube_live"


class VideoTooLong(Unfetchable):
    code = "youtube_too_long"


class VideoTooLarge(Unfetchable):
    code = "youtube_too_large"


class OutsideVideo(Unfetchable):
    code = "youtube_outside_video"


class NotInCountry(Unfetchable):
    code = "youtube_country"


class RuntimeMissing(Unfetchable):
    code = "youtube_js_runtime_missing"


class FetchBlocked(Unfetchable):
    code = "youtube_blocked"


class FetchTimedOut(Unfetchable):
    code = "youtube_timeout"


class FetchFailed(Unfetchable):
    code = "youtube_failed"


@dataclass(frozen=True, slots=True)
class Rules:
    """Which videos the child process may fetch, and which hosts it may connect to."""

    extractors: tuple[str, ...] = ("youtube",)  # names of the yt-dlp extractors that may be used
    hosts: tuple[str, ...] = (  # host names; their subdomains are allowed too
        "youtube.com",
        "youtu.be",
        "youtube-nocookie.com",
        "googlevideo.com",
        "googleapis.com",
        "google.com",
        "ytimg.com",
        "ggpht.com",
    )
    addresses: tuple[str, ...] = ()  # allowed IP addresses that are not public
    # True = build the URL for yt-dlp from the video's id; False = pass the caller's URL unchanged.
    canonical: bool = True


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits of one download, and of parallel downloads."""

    max_bytes: int = 128 << 20  # largest size of the fetched file
    max_length_s: float = 4 * 3600.0  # largest length of the whole video
    wall_s: float = 120.0  # longest run time of the child process
    cpu_s: int = 60
    socket_timeout_s: float = 15.0
    chunk_bytes: int = 4 << 20  # size of one HTTP range request
    parallel: int = 2  # the largest number of downloads at the same time
    max_waiting: int = 8  # the largest number of requests that may wait for a running download to end


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one download."""

    stage: str  # "looking" (reading the video's metadata), "fetching" or "decoding"
    fetched_bytes: int = 0
    total_bytes: int | None = None  # bytes to fetch for the section; None = unknown


@dataclass(frozen=True, slots=True)
class Fetched:
    """The audio of the requested section."""

    wav: bytes  # a WAV file: mono, 16 bit, RATE_HZ
    seconds: float
    title: str  # title of the video


class YouTube:
    """Fetches sections of videos, at most `FetchLimits.parallel` at the same time. Use it from one event loop only.

    off: the reason why this server can't fetch videos, for the error message; None if it can fetch videos.
    """

    def __init__(self, *, enabled: bool = True, rules: Rules | None = None, limits: FetchLimits | None = None) -> None:
        self._rules = rules or Rules()
        self._limits = limits or FetchLimits()
        self._slots = asyncio.Semaphore(self._limits.parallel)
        self._accepted = 0  # the number of requests that are fetching or waiting
        self.off = (
            "Cloning from YouTube is turned off on this server (TTS_YOUTUBE)."
            if not enabled
            else f"Cloning from YouTube is not installed. {HOW_TO_INSTALL}"
            if importlib.util.find_spec("yt_dlp") is None
            else None
        )
        if self.off is None:
            _remove_leftovers()

    async def fetch(
        self,
        url: str,
        start_s: float = 0.0,
        duration_s: float = DEFAULT_SECTION_S,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Fetched:
        """Fetch `duration_s` seconds of the video at `url`, starting at `start_s`.

        The fetched audio is shorter if the video ends before the section ends. Cancelling the call kills the child
        process and removes its files. Raises NotSupported if fetching is off, InvalidValue for a wrong `start_s` or
        `duration_s`, Busy if too many requests wait, and a subclass of Unfetchable from this module for any other
        failure.
        """
        if self.off is not None:
            raise NotSupported(self.off)
        video = watch_url(url) if self._rules.canonical else url
        _check_section(start_s, duration_s)
        if self._accepted >= self._limits.parallel + self._limits.max_waiting:
            raise Busy("This server is fetching too many videos. Try again.", retry_after_s=10)
        self._accepted += 1
        try:
            async with self._slots:
                return await self._fetch(video, start_s, duration_s, on_progress or (lambda _: None))
        finally:
            self._accepted -= 1

    async def _fetch(
        self, url: str, start_s: float, duration_s: float, on_progress: Callable[[Progress], None]
    ) -> Fetched:
        folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        try:
            result = await self._run_child(url, start_s, duration_s, folder, on_progress)
            on_progress(Progress("decoding", result["bytes"], result["bytes"]))
            path = _checked_path(folder, result["path"])
            data, seconds = await in_thread(self._decode, path, start_s, duration_s)
            return Fetched(data, seconds, str(result.get("title") or ""))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _run_child(
        self, url: str, start_s: float, duration_s: float, folder: Path, on_progress: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """Run the child process and return its "done" event. Raises Unfetchable."""
        limits = self._limits
        job = {
            "url": url,
            "start_s": start_s,
            "duration_s": duration_s,
            "folder": str(folder),
            "extractors": self._rules.extractors,
            "hosts": self._rules.hosts,
            "addresses": self._rules.addresses,
            "max_bytes": limits.max_bytes,
            "max_length_s": limits.max_length_s,
            "cpu_s": limits.cpu_s,
            "socket_timeout_s": limits.socket_timeout_s,
            "chunk_bytes": limits.chunk_bytes,
        }
        with tempfile.TemporaryFile() as stderr:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_CHILD),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,  # a new process group, so that `_kill` also ends the child's own children
                limit=_LINE_BYTES,
            )
            try:
                async with asyncio.timeout(limits.wall_s):
                    last = await self._read_events(child, job, on_progress)
                    await child.wait()
            except TimeoutError:
                raise FetchTimedOut(
                    f"Fetching the video took more than {limits.wall_s:g} s. Try again, or choose an earlier section.",
                    param="youtube_url",
                ) from None
            finally:
                await _kill(child)
            if last is None:
                stderr.seek(0)
                output = stderr.read()[-500:].decode("utf-8", "replace").strip()
                log.warning(
                    "The process that fetches a video ended without a result, with status %s: %s",
                    child.returncode,
                    output,
                )
                raise FetchFailed(
                    "The video could not be fetched. The server's log has the reason.", param="youtube_url"
                )
        if last["event"] == "done":
            return last
        log.info("A video could not be fetched: %s: %s", last.get("kind"), last.get("message"))
        raise fetch_error(str(last.get("kind")), str(last.get("message")), last.get("warnings") or [], limits)

    @staticmethod
    async def _read_events(
        child: asyncio.subprocess.Process, job: dict[str, Any], on_progress: Callable[[Progress], None]
    ) -> dict[str, Any] | None:
        """Send the job to the child process and return its "done" or "failed" event.

        Returns None if the child process ends without such an event.
        """
        assert child.stdin is not None  # noqa: S101 - both are pipes
        assert child.stdout is not None  # noqa: S101
        child.stdin.write(json.dumps(job).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await child.stdin.drain()
        while line := await child.stdout.readline():
            event: dict[str, Any] = json.loads(line)
            if event["event"] != "progress":
                return event
            on_progress(Progress(event["stage"], event["bytes"], event["total"]))
        return None

    def _decode(self, path: Path, start_s: float, duration_s: float) -> tuple[bytes, float]:
        """Decode the section from the fetched file -> WAV file, length in seconds. Blocks.

        Raises OutsideVideo if the video has no audio at `start_s`, FetchFailed if the file can't be decoded.
        """
        limits = Limits(input_bytes=self._limits.max_bytes + (1 << 20), cpu_s=60, wall_s=60.0)
        try:
            decoded = decode_in_sandbox(
                path, RATE_HZ, max_seconds=duration_s, what="youtube_url", limits=limits, start_s=start_s
            )
        except BadReference as error:
            if start_s > 0:
                raise OutsideVideo(
                    f"The video has no audio at {start_s:g} s. Send an earlier `start_time`.",
                    param="start_time",
                ) from error
            raise FetchFailed(
                f"The audio of the video can't be decoded: {error.message}", param="youtube_url"
            ) from error
        return wav(decoded.samples, RATE_HZ), decoded.seconds


def watch_url(url: str) -> str:
    """Return the canonical URL of the video that `url` names: "https://www.youtube.com/watch?v=...".

    Raises NotYouTube if `url` is not the https URL of a YouTube video, and IsPlaylist if it names only a playlist.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise _not_youtube() from None
    if parts.scheme != "https" or host not in _HOSTS or port not in (None, 443) or "@" in parts.netloc:
        raise _not_youtube()
    path = [part for part in parts.path.split("/") if part]
    query = parse_qs(parts.query)
    found: str | None = None
    if host.endswith("youtu.be"):
        found = path[0] if len(path) == 1 else None
    elif path == ["watch"]:
        found = query.get("v", [None])[0]
    elif len(path) == 2 and path[0] in ("shorts", "embed", "live", "v"):
        found = path[1]
    if found is None and ("list" in query or path[:1] == ["playlist"]):
        raise IsPlaylist(
            "`youtube_url` is the address of a playlist. Send the address of one video.",
            param="youtube_url",
        )
    if found is None or not _ID.fullmatch(found):
        raise _not_youtube()
    return f"https://www.youtube.com/watch?v={found}"


def fetch_error(kind: str, message: str, warnings: list[str], limits: FetchLimits) -> Unfetchable:
    """Convert a "failed" event of the child process to the error for the caller.

    kind: the reason, if the child process detected it. Other reasons come from YouTube as English text in `message`,
    so this function searches `message` for known phrases. If no phrase is found, the error quotes `message`.
    """
    from_child: dict[str, tuple[type[Unfetchable], str]] = {
        "playlist": (IsPlaylist, "`youtube_url` is the address of several videos. Send the address of one video."),
        "live": (LiveVideo, "The video is a live stream, or it has not started yet. Try again when it has ended."),
        "too_long": (
            VideoTooLong,
            f"The video is too long ({message}). Videos of at most {limits.max_length_s / 3600:g} hours are accepted. "
            "Upload the section as a file.",
        ),
        "too_large": (
            VideoTooLarge,
            f"The audio from the start of the video to the end of the section is larger than "
            f"{limits.max_bytes >> 20} MiB. Choose an earlier section.",
        ),
        "start": (
            OutsideVideo,
            f"`start_time` is after the end of the video ({message}). Send an earlier `start_time`.",
        ),
        "geo": (
            NotInCountry,
            "YouTube does not show the video in the country of this server. Upload the section as a file.",
        ),
        "refused": (
            FetchBlocked,
            "The video is stored on a host that this server does not connect to. Upload the section as a file.",
        ),
    }
    if kind not in from_child:
        kind = next((name for name, phrases in _PHRASES if _contains_any(message, phrases)), "")
    errors: dict[str, tuple[type[Unfetchable], str]] = {
        **from_child,
        "private": (PrivateVideo, "The video is private or for channel members only. Make it public or unlisted."),
        "age": (
            AgeRestricted,
            "The video is age-restricted: YouTube shows it to signed-in users only. Upload the section as a file.",
        ),
        "bot": (
            FetchBlocked,
            "YouTube currently blocks this server, because it sent too many requests. Upload the section as a file.",
        ),
        "removed": (VideoRemoved, "The video was removed or does not exist. Check the address."),
        "timeout": (FetchTimedOut, "YouTube did not answer in time. Try again."),
    }
    if kind in ("", "format") and any("JavaScript runtime" in warning for warning in warnings):
        return RuntimeMissing(
            f"Fetching from YouTube needs a JavaScript runtime, and this server has none. {HOW_TO_INSTALL}.",
            param="youtube_url",
        )
    if kind in errors:
        error, text = errors[kind]
        return error(text, param="start_time" if kind == "start" else "youtube_url")
    quoted = re.sub(r"\s+", " ", message.removeprefix("ERROR: "))[:200]
    return FetchFailed(f"The video could not be fetched: {quoted}", param="youtube_url")


# Kind -> phrases in YouTube's messages. The first match wins, because one message can contain phrases of two kinds.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("private", ("private video", "members-only", "members only", "join this channel", "video is private")),
    ("age", ("confirm your age", "age-restricted", "age restricted", "inappropriate for some users")),
    ("bot", ("not a bot", "rate-limited", "too many requests", "captcha", "http error 429", "http error 403")),
    ("live", ("live event", "premieres in", "live stream recording is not available", "will begin")),
    ("geo", ("in your country", "geo restrict")),
    ("timeout", ("timed out", "timeout")),
    ("format", ("requested format is not available", "no video formats found", "only images are available")),
    ("removed", ("removed", "unavailable", "not available", "no longer", "terminated", "does not exist", "incomplete")),
)


def _contains_any(message: str, phrases: tuple[str, ...]) -> bool:
    lower = message.lower().replace("’", "'")
    return any(phrase in lower for phrase in phrases)


def _check_section(start_s: float, duration_s: float) -> None:
    """Check the start and the length of a section. Raises InvalidValue for values out of range, NaN and infinity."""
    if not start_s >= 0 or start_s == float("inf"):
        raise InvalidValue(
            "`start_time` must be 0 or more, in seconds from the start of the video.", param="start_time"
        )
    if not MIN_SECTION_S <= duration_s <= MAX_SECTION_S:
        raise InvalidValue(
            f"`duration` must be {MIN_SECTION_S:g} to {MAX_SECTION_S:g} seconds. 10 to 60 seconds of one speaker work "
            "best.",
            param="duration",
        )


def _not_youtube() -> NotYouTube:
    return NotYouTube(
        "`youtube_url` is not the address of a YouTube video. Send an https address such as "
        "https://www.youtube.com/watch?v=... or https://youtu.be/...",
        param="youtube_url",
    )


def _checked_path(folder: Path, path: str) -> Path:
    """Return the path that the child reported. Raises FetchFailed unless it is a regular file in `folder`."""
    found = Path(path)
    if found.is_symlink() or found.resolve().parent != folder.resolve() or not found.is_file():
        raise FetchFailed("The video could not be fetched. Upload the section as a file.", param="youtube_url")
    return found


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment variables for the child process.

    The environment variables contain no tokens, keys or proxies. All cache folders are inside `folder`.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    programs = str(Path(sys.executable).parent)  # the folder with the program that the package deno installs
    kept["PATH"] = os.pathsep.join(filter(None, (programs, kept.get("PATH", ""))))
    return {**kept, "HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder), "DENO_DIR": str(folder)}


async def _kill(child: asyncio.subprocess.Process) -> None:
    """Kill the child's process group and wait until the child has ended, even if the caller is cancelled."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    waiting = asyncio.ensure_future(child.wait())
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        await asyncio.wait([waiting])
        raise


def _remove_leftovers() -> None:
    """Remove download folders of processes that no longer run.

    A leftover folder exists only if the server and its child process were killed together. If only one of these two
    processes is killed, the other process removes the folder.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if not owner.isdecimal() or (int(owner) != os.getpid() and is_alive(int(owner))):
                continue
            if int(owner) == os.getpid() and folder.stat().st_mtime > _STARTED_AT:
                continue  # this process uses the folder; an older folder belongs to an earlier process with its pid
            shutil.rmtree(folder, ignore_errors=True)
