"""The sound of a stretch of a YouTube video, fetched by yt-dlp in a process that can be killed.

The address given is only read for the video's id; what yt-dlp gets is made here. The child (`youtube_child.py`) may
reach Google's hosts at public addresses and nothing else, writes into one folder that is gone whatever happens, and is
killed at the time limit. What it has fetched is decoded in yet another process. Knows no HTTP and stores nothing.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from app.audio.sandbox import Limits, decode_in_sandbox
from app.errors import BadReference, Busy, InvalidValue, NotSupported, Unfetchable
from app.voices.folder_store import is_alive
from app.voices.voice_file import wav

log = logging.getLogger(__name__)

RATE_HZ = 44_100  # as cloning takes it
MIN_SECTION_S, MAX_SECTION_S = 1.0, 600.0  # the most that cloning looks through
DEFAULT_SECTION_S = 60.0
HOW_TO_INSTALL = "Install it with: pip install 'tts-server[youtube]'"

_CHILD = Path(__file__).with_name("youtube_child.py")
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")
_FOLDER_PREFIX = "tts-youtube-"
_LINE_BYTES = 1 << 16
_HOSTS = frozenset(
    prefix + host
    for host in ("youtube.com", "youtube-nocookie.com", "music.youtube.com")
    for prefix in ("", "www.", "m.")
) | {"youtu.be", "www.youtu.be"}
_BEGAN = time.time()
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
    """What may be fetched and reached. extractors: yt-dlp's. reach: host names with all below them.

    addresses: allowed beside public ones. canonical: only the id of the address given is used.
    """

    extractors: tuple[str, ...] = ("youtube",)
    reach: tuple[str, ...] = (
        "youtube.com",
        "youtu.be",
        "youtube-nocookie.com",
        "googlevideo.com",
        "googleapis.com",
        "google.com",
        "ytimg.com",
        "ggpht.com",
    )
    addresses: tuple[str, ...] = ()
    canonical: bool = True


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """max_bytes: on disk. max_length_s: of the whole video. wall_s: from the start to the last byte."""

    max_bytes: int = 128 << 20
    max_length_s: float = 4 * 3600.0
    wall_s: float = 120.0
    cpu_s: int = 60
    socket_timeout_s: float = 15.0
    chunk_bytes: int = 4 << 20
    at_once: int = 2
    waiting: int = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """stage: "looking", "fetching" or "decoding". total_bytes: of what is to be fetched, where known."""

    stage: str
    fetched_bytes: int = 0
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A WAV file (mono, 16 bit, RATE_HZ) of the stretch asked for, and what the video is called."""

    wav: bytes
    seconds: float
    title: str
    video: str = field(default="")


class YouTube:
    """Fetches stretches of videos, a few at the same time. Used from one event loop."""

    def __init__(self, *, enabled: bool = True, rules: Rules | None = None, limits: FetchLimits | None = None) -> None:
        self._rules = rules or Rules()
        self._limits = limits or FetchLimits()
        self._room = asyncio.Semaphore(self._limits.at_once)
        self._under_way = 0
        self.off = (
            "Cloning from YouTube is turned off on this server (TTS_YOUTUBE)."
            if not enabled
            else f"Cloning from YouTube is not installed. {HOW_TO_INSTALL}"
            if importlib.util.find_spec("yt_dlp") is None
            else None
        )
        if self.off is None:
            _sweep()

    async def fetch(
        self,
        url: str,
        start_s: float = 0.0,
        duration_s: float = DEFAULT_SECTION_S,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Fetched:
        """Raises NotSupported where it is off, InvalidValue, Unfetchable (see its kinds above), Busy.

        Cancelling it kills the child and leaves nothing behind.
        """
        if self.off is not None:
            raise NotSupported(self.off)
        video = watch_url(url) if self._rules.canonical else url
        _check_section(start_s, duration_s)
        if self._under_way >= self._limits.at_once + self._limits.waiting:
            raise Busy("Too many videos are being fetched. Try again.", retry_after_s=10)
        self._under_way += 1
        try:
            async with self._room:
                return await self._fetch(video, start_s, duration_s, on_progress or (lambda _: None))
        finally:
            self._under_way -= 1

    async def _fetch(
        self, url: str, start_s: float, duration_s: float, on_progress: Callable[[Progress], None]
    ) -> Fetched:
        folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
        try:
            told = await self._child(url, start_s, duration_s, folder, on_progress)
            on_progress(Progress("decoding", told["bytes"], told["bytes"]))
            cutting = asyncio.ensure_future(
                asyncio.to_thread(self._cut, _inside(folder, told["path"]), start_s, duration_s)
            )
            try:
                data, seconds = await asyncio.shield(cutting)
            except asyncio.CancelledError:
                await asyncio.wait([cutting])  # it reads from the folder
                raise
            return Fetched(data, seconds, str(told.get("title") or ""), url)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _child(
        self, url: str, start_s: float, duration_s: float, folder: Path, on_progress: Callable[[Progress], None]
    ) -> dict[str, Any]:
        limits = self._limits
        order = {
            "url": url,
            "start_s": start_s,
            "duration_s": duration_s,
            "folder": str(folder),
            "extractors": self._rules.extractors,
            "reach": self._rules.reach,
            "addresses": self._rules.addresses,
            "max_bytes": limits.max_bytes,
            "max_length_s": limits.max_length_s,
            "cpu_s": limits.cpu_s,
            "socket_timeout_s": limits.socket_timeout_s,
            "chunk_bytes": limits.chunk_bytes,
        }
        with tempfile.TemporaryFile() as complaints:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_CHILD),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=complaints,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,  # a group of its own, which is killed with all that it has started
                limit=_LINE_BYTES,
            )
            try:
                async with asyncio.timeout(limits.wall_s):
                    last = await self._listen(child, order, on_progress)
                    await child.wait()
            except TimeoutError:
                raise FetchTimedOut(
                    f"YouTube did not deliver within {limits.wall_s:g} s. Try again, or ask for an earlier stretch.",
                    param="youtube_url",
                ) from None
            finally:
                await _kill(child)
            if last is None:
                complaints.seek(0)
                words = complaints.read()[-500:].decode("utf-8", "replace").strip()
                log.warning("fetching a video ended with status %s: %s", child.returncode, words)
                raise FetchFailed("The video could not be fetched; the server's log says why.", param="youtube_url")
        if last["event"] == "done":
            return last
        log.info("a video was not fetched: %s: %s", last.get("kind"), last.get("words"))
        raise problem(str(last.get("kind")), str(last.get("words")), last.get("warnings") or [], limits)

    @staticmethod
    async def _listen(
        child: asyncio.subprocess.Process, order: dict[str, Any], on_progress: Callable[[Progress], None]
    ) -> dict[str, Any] | None:
        """The child's last word, or None if it ended without."""
        assert child.stdin is not None  # noqa: S101 - both are pipes
        assert child.stdout is not None  # noqa: S101
        child.stdin.write(json.dumps(order).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await child.stdin.drain()
        while line := await child.stdout.readline():
            told = json.loads(line)
            if told["event"] != "progress":
                return dict(told)
            on_progress(Progress(told["stage"], told["bytes"], told["total"]))
        return None

    def _cut(self, path: Path, start_s: float, duration_s: float) -> tuple[bytes, float]:
        """Blocks. Raises OutsideVideo."""
        limits = Limits(input_bytes=self._limits.max_bytes + (1 << 20), cpu_s=60, wall_s=60.0)
        try:
            heard = decode_in_sandbox(
                path, RATE_HZ, max_seconds=duration_s, what="youtube_url", limits=limits, start_s=start_s
            )
        except BadReference as error:
            if start_s > 0:
                raise OutsideVideo(
                    f"There is no sound at {start_s:g} s of the video. Ask for an earlier `start_time`.",
                    param="start_time",
                ) from error
            raise FetchFailed(f"The video's sound can't be read: {error.message}", param="youtube_url") from error
        return wav(heard.samples, RATE_HZ), heard.seconds


def watch_url(url: str) -> str:
    """The plain address of the one video that `url` is of. Raises NotYouTube, IsPlaylist."""
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
            "`youtube_url` is of a playlist. Send the address of one video.",
            param="youtube_url",
        )
    if found is None or not _ID.fullmatch(found):
        raise _not_youtube()
    return f"https://www.youtube.com/watch?v={found}"


def problem(kind: str, words: str, warnings: list[str], limits: FetchLimits) -> Unfetchable:
    """What went wrong in the child as an error that says what to do.

    Reasons that only YouTube's own page states are recognised by its English words, which is all that yt-dlp passes on.
    An unknown reason is quoted.
    """
    known: dict[str, tuple[type[Unfetchable], str]] = {
        "playlist": (IsPlaylist, "`youtube_url` is of several videos. Send the address of one."),
        "live": (LiveVideo, "The video is a live stream or has not begun. Wait until it is a recording."),
        "too_long": (
            VideoTooLong,
            f"The video is too long ({words}); at most {limits.max_length_s / 3600:g} hours are taken. Cut it, or "
            "upload the stretch as a file.",
        ),
        "too_large": (
            VideoTooLarge,
            f"The sound up to that stretch is larger than {limits.max_bytes >> 20} MiB. Ask for an earlier one.",
        ),
        "start": (OutsideVideo, f"`start_time` is behind the video's end ({words})."),
        "geo": (NotInCountry, "The video is not shown in this server's country. Upload the stretch as a file."),
        "refused": (FetchBlocked, "The video leads to a place that this server does not fetch from."),
    }
    kind = kind if kind in known else next((name for name, signs in _SIGNS if _says(words, signs)), "")
    told: dict[str, tuple[type[Unfetchable], str]] = {
        **known,
        "private": (PrivateVideo, "The video is private or for members only. Make it public or unlisted."),
        "age": (AgeRestricted, "The video is age-restricted, so YouTube wants a login. Upload the stretch as a file."),
        "bot": (FetchBlocked, "YouTube refuses this server for now (too many requests). Upload the stretch as a file."),
        "removed": (VideoRemoved, "The video is not available: it was removed, or never was. Check the address."),
        "timeout": (FetchTimedOut, "YouTube did not answer in time. Try again."),
    }
    if kind in ("", "format") and any("JavaScript runtime" in warning for warning in warnings):
        return RuntimeMissing(
            "This server has no JavaScript runtime, which YouTube's videos need. "
            "On the server: pip install 'yt-dlp[default,deno]'.",
            param="youtube_url",
        )
    if kind in told:
        error, message = told[kind]
        return error(message, param="start_time" if kind == "start" else "youtube_url")
    said = re.sub(r"\s+", " ", words.removeprefix("ERROR: "))[:200]
    return FetchFailed(f"The video could not be fetched: {said}", param="youtube_url")


# In order: a private video also says "sign in", a removed one "unavailable".
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("private", ("private video", "members-only", "members only", "join this channel", "video is private")),
    ("age", ("confirm your age", "age-restricted", "age restricted", "inappropriate for some users")),
    ("bot", ("not a bot", "rate-limited", "too many requests", "captcha", "http error 429", "http error 403")),
    ("live", ("live event", "premieres in", "live stream recording is not available", "will begin")),
    ("geo", ("in your country", "geo restrict")),
    ("timeout", ("timed out", "timeout")),
    ("format", ("requested format is not available", "no video formats found", "only images are available")),
    ("removed", ("removed", "unavailable", "not available", "no longer", "terminated", "does not exist", "incomplete")),
)


def _says(words: str, signs: tuple[str, ...]) -> bool:
    lower = words.lower().replace("’", "'")
    return any(sign in lower for sign in signs)


def _check_section(start_s: float, duration_s: float) -> None:
    """Raises InvalidValue; also for what is no number."""
    if not start_s >= 0 or start_s == float("inf"):
        raise InvalidValue("`start_time` is in seconds from the video's beginning, 0 or more.", param="start_time")
    if not MIN_SECTION_S <= duration_s <= MAX_SECTION_S:
        raise InvalidValue(
            f"`duration` is in seconds, {MIN_SECTION_S:g} to {MAX_SECTION_S:g}; 10 to 60 of one speaker are good.",
            param="duration",
        )


def _not_youtube() -> NotYouTube:
    return NotYouTube(
        "`youtube_url` is not the https address of a video on YouTube, such as https://www.youtube.com/watch?v=... or "
        "https://youtu.be/...",
        param="youtube_url",
    )


def _inside(folder: Path, path: str) -> Path:
    """The file that the child names, if it lies in its folder. Raises FetchFailed."""
    found = Path(path)
    if found.is_symlink() or found.resolve().parent != folder.resolve() or not found.is_file():
        raise FetchFailed("The video could not be fetched.", param="youtube_url")
    return found


def _environment(folder: Path) -> dict[str, str]:
    """No tokens, keys or proxies; all that is written goes into the folder."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder), "DENO_DIR": str(folder)}


async def _kill(child: asyncio.subprocess.Process) -> None:
    """The child and all that it has started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    waiting = asyncio.ensure_future(child.wait())
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        await asyncio.wait([waiting])
        raise


def _sweep() -> None:
    """Remove what processes that are no more have left: both they and their child were killed at once."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if not owner.isdecimal() or (int(owner) != os.getpid() and is_alive(int(owner))):
                continue
            if int(owner) == os.getpid() and folder.stat().st_mtime > _BEGAN:
                continue  # ours; an older one is of a container's earlier life, with the same number
            shutil.rmtree(folder, ignore_errors=True)
