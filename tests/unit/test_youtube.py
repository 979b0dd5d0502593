"""The real yt-dlp against a server on this machine: fetched bytes, blocked addresses and cleanup."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.audio.encoders import open_encoder
from app.errors import Busy, InvalidValue, NotSupported, Unfetchable
from app.voices import youtube
from app.voices.voice_file import read_wav
from app.voices.youtube import FetchLimits, Progress, Rules, YouTube, fetch_error, watch_url
from tests.support.live import ROOT, wait_until

pytestmark = pytest.mark.unit

RATE_HZ = 24_000
HERE = "127.0.0.1"
TEST_RULES = Rules(extractors=("generic",), hosts=("localhost",), addresses=(HERE,), canonical=False)


def tones(seconds: int) -> np.ndarray:
    """Return samples with a different tone in each second: 200 Hz, 300 Hz, ..."""
    time_s = np.arange(RATE_HZ) / RATE_HZ
    return np.concatenate([0.2 * np.sin(2 * np.pi * (200 + 100 * n) * time_s) for n in range(seconds)]).astype(
        np.float32
    )


def pitch_hz(samples: np.ndarray, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / rate_hz)[spectrum.argmax()])


def mp3(samples: np.ndarray) -> bytes:
    encoder = open_encoder("mp3", RATE_HZ)
    try:
        return encoder.encode(samples) + encoder.flush()
    finally:
        encoder.close()


PAGE = """<html><head><title>A talk</title><script type="application/ld+json">{"@context": "https://schema.org",
"@type": "VideoObject", "name": "A talk", "duration": "PT%dS", "contentUrl": "%s"}</script></head></html>"""


class Site(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HERE, 0), Handler)
        self.sound = mp3(tones(20))
        self.url = f"http://{HERE}:{self.server_address[1]}"
        self.sent = 0
        self.requested: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def setup(self) -> None:
        # a small send buffer, so that the sent bytes are about the received bytes
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
        super().setup()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # yt-dlp closes the connection when it has enough bytes
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.server
        site.requested.append(self.path)
        name, _, rest = self.path.strip("/").partition("?")
        if name == "sound.mp3":
            self.answer(site.sound, "audio/mpeg")
        elif name.startswith("page-"):
            self.answer((PAGE % (int(name.removeprefix("page-")), f"{site.url}/sound.mp3")).encode(), "text/html")
        elif name == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "endless.mp3":
            self.begin("audio/mpeg", None)
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"10000\r\n" + b"\0" * 65536 + b"\r\n")
        elif name == "slow.mp3":
            self.begin("audio/mpeg", 1_000_000)
            with contextlib.suppress(OSError):
                for _ in range(600):
                    self.wfile.write(b"\0" * 1000)
                    time.sleep(0.1)
        elif name == "text.mp3":
            self.answer(b"This is no sound at all. " * 100, "audio/mpeg")
        else:
            self.send_error(404)

    def begin(self, kind: str, length: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, data: bytes, kind: str) -> None:
        """Send the whole file or the requested range, like the real site."""
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if byte_range:
            first, last = int(byte_range[1]), min(int(byte_range[2] or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
        else:
            self.begin(kind, len(data))
        if self.command == "HEAD":
            return
        for at in range(0, len(data), 8192):
            self.wfile.write(data[at : at + 8192])
            self.server.sent += 8192


@pytest.fixture(scope="module")
def site():
    instance = Site()
    thread = threading.Thread(target=instance.serve_forever, daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    instance.server_close()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Put temporary files into a folder of this test and check that it is empty at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def tube(**limits: Any) -> YouTube:
    return YouTube(rules=TEST_RULES, limits=FetchLimits(**limits))


async def test_requested_section_is_fetched(site):
    progress: list[Progress] = []
    got = await tube().fetch(f"{site.url}/sound.mp3", 5.0, 3.0, progress.append)
    samples, rate_hz = read_wav(got.wav)
    assert len(samples) / rate_hz == pytest.approx(3.0, abs=0.01)
    assert got.seconds == pytest.approx(3.0, abs=0.01)
    for second in range(3):
        middle = samples[round((second + 0.3) * rate_hz) : round((second + 0.7) * rate_hz)]
        assert pitch_hz(middle, rate_hz) == pytest.approx(700 + 100 * second, abs=5)
    stages = [step.stage for step in progress]
    assert (stages[0], stages[-1]) == ("looking", "decoding")
    assert "fetching" in stages


async def test_only_the_needed_bytes_are_fetched(site, monkeypatch):
    monkeypatch.setattr(site, "sound", 30 * site.sound)  # ten minutes of audio, 4.8 MB
    before = site.sent
    got = await tube(chunk_bytes=1 << 18).fetch(f"{site.url}/page-600", 10.0, 5.0)
    assert got.seconds == pytest.approx(5.0, abs=0.01)
    assert got.title == "A talk"
    assert site.sent - before < 0.3 * len(site.sound)


async def test_section_past_the_end_is_shortened(site):
    assert (await tube().fetch(f"{site.url}/sound.mp3", 18.0, 60.0)).seconds == pytest.approx(2.0, abs=0.15)


async def test_section_after_the_end_is_an_error(site):
    with pytest.raises(Unfetchable) as caught:
        await tube().fetch(f"{site.url}/sound.mp3", 100.0, 5.0)
    assert (caught.value.code, caught.value.param) == ("youtube_outside_video", "start_time")
    with pytest.raises(Unfetchable) as caught:
        await tube().fetch(f"{site.url}/page-20", 30.0, 5.0)
    assert caught.value.code == "youtube_outside_video"


@pytest.mark.parametrize(
    ("path", "limits", "code"),
    [
        ("page-7200", {"max_length_s": 3600.0}, "youtube_too_long"),
        ("endless.mp3", {"max_bytes": 1 << 20}, "youtube_too_large"),
        ("sound.mp3", {"max_bytes": 50_000}, "youtube_too_large"),
        ("slow.mp3", {"wall_s": 4.0}, "youtube_timeout"),
        ("text.mp3", {}, "youtube_failed"),
        ("nothing-here", {}, "youtube_failed"),
    ],
)
async def test_limits_and_failures_have_error_codes(site, path, limits, code):
    with pytest.raises(Unfetchable) as caught:
        await tube(**limits).fetch(f"{site.url}/{path}", 0.0, 5.0)
    assert caught.value.code == code, caught.value.message


@pytest.mark.parametrize(
    "where",
    [
        "http://127.0.0.2:{port}/sound.mp3",
        "http://localhost.:{port}/sound.mp3".replace("localhost.", "10.0.0.1"),
        "http://[::1]:{port}/sound.mp3",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433:{port}/sound.mp3",
        "http://example.com/sound.mp3",
        "file:///etc/passwd",
    ],
)
async def test_redirect_to_a_private_address_is_blocked(site, where):
    """The rules of this test allow only 127.0.0.1, and no other address or host name."""
    target = where.format(port=site.server_address[1])
    with pytest.raises(Unfetchable) as caught:
        await tube(wall_s=30.0).fetch(f"{site.url}/to?{target}", 0.0, 5.0)
    assert caught.value.code in ("youtube_blocked", "youtube_failed")
    assert site.requested[-1].startswith("/to?")


async def test_default_rules_block_this_machine(site):
    rules = Rules(extractors=("generic",), hosts=("localhost", HERE), canonical=False)
    before = len(site.requested)
    for host in (HERE, "localhost"):
        with pytest.raises(Unfetchable) as caught:
            await YouTube(rules=rules).fetch(f"http://{host}:{site.server_address[1]}/sound.mp3", 0.0, 5.0)
        assert caught.value.code == "youtube_blocked"
    assert len(site.requested) == before


async def test_cancelling_ends_the_process_and_removes_files(site, places):
    started = asyncio.Event()
    before = set(children_of(os.getpid()))  # the helper process of the decoders continues to run
    fetching = asyncio.create_task(tube().fetch(f"{site.url}/slow.mp3", 0.0, 5.0, lambda _: started.set()))
    await started.wait()
    (folder,) = places.glob("tts-youtube-*")
    wait_for = [int(pid) for pid in children_of(os.getpid()) if pid not in before]
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert not folder.exists()
    assert wait_for
    assert not [pid for pid in wait_for if str(pid) in children_of(os.getpid())]


def children_of(pid: int) -> list[str]:
    return [line for path in Path(f"/proc/{pid}/task").glob("*/children") for line in path.read_text().split()]


def test_killed_server_leaves_no_files(site, places):
    """The child notices that its parent is gone."""
    code = f"""
import asyncio
from app.voices.youtube import Rules, YouTube
rules = Rules(extractors=("generic",), addresses=("{HERE}",), canonical=False)
def told(progress):
    if progress.stage == "fetching":
        print("now", flush=True)
asyncio.run(YouTube(rules=rules).fetch("{site.url}/slow.mp3", 0.0, 5.0, told))
"""
    environment = {**os.environ, "TMPDIR": str(places), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, cwd=ROOT) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"now\n"
        assert list(places.glob("tts-youtube-*/sound.*"))
        server.send_signal(signal.SIGKILL)
    wait_until(lambda: not list(places.iterdir()))


def test_leftovers_of_dead_processes_are_removed(places):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    for name in (f"tts-youtube-{done.pid}-abc", f"tts-youtube-{os.getpid()}-mine", "tts-youtube-x-y"):
        (places / name).mkdir()
    os.utime(places / f"tts-youtube-{os.getpid()}-mine", (youtube._STARTED_AT + 5, youtube._STARTED_AT + 5))
    YouTube()
    assert {path.name for path in places.iterdir()} == {f"tts-youtube-{os.getpid()}-mine", "tts-youtube-x-y"}
    os.utime(places / f"tts-youtube-{os.getpid()}-mine", (1, 1))
    YouTube()
    (places / "tts-youtube-x-y").rmdir()


async def test_too_many_fetches_are_refused(site):
    fetcher = tube(parallel=1, max_waiting=0)
    first = asyncio.create_task(fetcher.fetch(f"{site.url}/slow.mp3", 0.0, 5.0))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await fetcher.fetch(f"{site.url}/sound.mp3", 0.0, 5.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
        "https://youtube.com/watch?v=dQw4w9WgXcQ&list=PL123&index=2",
        "https://m.youtube.com/watch?app=desktop&v=dQw4w9WgXcQ#t=10",
        "https://music.youtube.com/watch?v=dQw4w9WgXcQ",
        "https://youtu.be/dQw4w9WgXcQ?si=abc",
        "https://www.youtube.com/shorts/dQw4w9WgXcQ",
        "https://www.youtube-nocookie.com/embed/dQw4w9WgXcQ",
        " https://WWW.YouTube.com:443/live/dQw4w9WgXcQ ",
    ],
)
def test_all_url_forms_of_a_video_are_accepted(url):
    assert watch_url(url) == "https://www.youtube.com/watch?v=dQw4w9WgXcQ"


@pytest.mark.parametrize(
    "host",
    [
        *("youtube.com", "www.youtube.com", "m.youtube.com"),
        *("youtube-nocookie.com", "www.youtube-nocookie.com", "m.youtube-nocookie.com"),
        *("music.youtube.com", "www.music.youtube.com", "m.music.youtube.com"),
    ],
)
def test_each_host_of_youtube_is_accepted(host):
    assert watch_url(f"https://{host}/watch?v=dQw4w9WgXcQ") == "https://www.youtube.com/watch?v=dQw4w9WgXcQ"


@pytest.mark.parametrize("host", ["youtu.be", "www.youtu.be"])
def test_each_host_of_short_addresses_is_accepted(host):
    assert watch_url(f"https://{host}/dQw4w9WgXcQ") == "https://www.youtube.com/watch?v=dQw4w9WgXcQ"


def test_only_these_hosts_are_accepted_and_reached():
    assert len(youtube._HOSTS) == 11
    assert Rules() == Rules(
        extractors=("youtube",),
        hosts=(
            *("youtube.com", "youtu.be", "youtube-nocookie.com", "googlevideo.com", "googleapis.com", "google.com"),
            *("ytimg.com", "ggpht.com"),
        ),
        addresses=(),
        canonical=True,
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://www.youtube.com/watch?v=dQw4w9WgXcQ",
        "https://www.youtube.com.evil.example/watch?v=dQw4w9WgXcQ",
        "https://evil.example/watch?v=dQw4w9WgXcQ",
        "https://user@www.youtube.com/watch?v=dQw4w9WgXcQ",
        "https://www.youtube.com:8080/watch?v=dQw4w9WgXcQ",
        "https://www.youtube.com:x/watch?v=dQw4w9WgXcQ",
        "https://www.youtube.com/watch?v=../../etc",
        "https://www.youtube.com/watch?v=dQw4w9WgXcQdQw4w9WgXcQ",
        "https://www.youtube.com/@somebody",
        "https://youtu.be/",
        "https://[::1/watch?v=dQw4w9WgXcQ",
        "file:///etc/passwd",
        "ytsearch:cats",
    ],
)
def test_other_urls_are_refused(url):
    with pytest.raises(Unfetchable) as caught:
        watch_url(url)
    assert (caught.value.code, caught.value.param) == ("youtube_url_invalid", "youtube_url")


def test_playlists_are_refused():
    for url in ("https://www.youtube.com/playlist?list=PL1", "https://music.youtube.com/watch?list=PL1"):
        with pytest.raises(Unfetchable) as caught:
            watch_url(url)
        assert caught.value.code == "youtube_playlist"


@pytest.mark.parametrize(("start_s", "duration_s"), [(-1, 10), (float("nan"), 10), (0, 0), (0, 601), (0, float("nan"))])
async def test_invalid_sections_are_refused(start_s, duration_s):
    with pytest.raises(InvalidValue):
        await tube().fetch("https://youtu.be/dQw4w9WgXcQ", start_s, duration_s)


# Error messages of yt-dlp 2026.10.
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("[youtube] abc: Private video. Sign in if you've been granted access to this video", "youtube_private"),
        ("[youtube] abc: Join this channel to get access to members-only content", "youtube_private"),
        ("[youtube] abc: Sign in to confirm your age. This video may be inappropriate", "youtube_age_restricted"),
        ("[youtube] abc: Sign in to confirm you’re not a bot. Use --cookies", "youtube_blocked"),
        ("unable to download video data: HTTP Error 403: Forbidden", "youtube_blocked"),
        ("[youtube] abc: Video unavailable. This video has been removed by the uploader", "youtube_removed"),
        ("[youtube] abc: Video unavailable", "youtube_removed"),
        ("[youtube] abc: Premieres in 3 hours", "youtube_live"),
        ("[youtube] abc: This live event will begin in a few moments.", "youtube_live"),
        ("The uploader has not made this video available in your country", "youtube_country"),
        ("Unable to download webpage: The read operation timed out", "youtube_timeout"),
        ("[youtube] abc: something quite new", "youtube_failed"),
    ],
)
def test_youtube_messages_map_to_error_codes(words, code):
    assert fetch_error("other", words, [], FetchLimits()).code == code


@pytest.mark.parametrize(
    ("sign", "code"),
    [
        *((sign, "youtube_private") for sign in ("private video", "members-only", "members only")),
        *((sign, "youtube_private") for sign in ("join this channel", "video is private")),
        *((sign, "youtube_age_restricted") for sign in ("confirm your age", "age-restricted", "age restricted")),
        ("inappropriate for some users", "youtube_age_restricted"),
        *((sign, "youtube_blocked") for sign in ("not a bot", "rate-limited", "too many requests", "captcha")),
        *((sign, "youtube_blocked") for sign in ("http error 429", "http error 403")),
        *((sign, "youtube_live") for sign in ("live event", "premieres in", "will begin")),
        ("live stream recording is not available", "youtube_live"),
        *((sign, "youtube_country") for sign in ("in your country", "geo restrict")),
        *((sign, "youtube_timeout") for sign in ("timed out", "timeout")),
        *((sign, "youtube_failed") for sign in ("requested format is not available", "no video formats found")),
        ("only images are available", "youtube_failed"),
        *((sign, "youtube_removed") for sign in ("removed", "unavailable", "not available", "no longer")),
        *((sign, "youtube_removed") for sign in ("terminated", "does not exist", "incomplete")),
    ],
)
def test_each_phrase_of_youtube_has_its_error_code(sign, code):
    assert fetch_error("other", f"[youtube] abc: {sign.capitalize()} xyz", [], FetchLimits()).code == code


def test_missing_js_runtime_is_reported():
    warning = "[youtube] No supported JavaScript runtime could be found. Only deno is enabled by default"
    words = "[youtube] abc: Requested format is not available. Use --list-formats"
    assert fetch_error("other", words, [warning], FetchLimits()).code == "youtube_js_runtime_missing"
    assert fetch_error("other", words, [], FetchLimits()).code == "youtube_failed"
    assert fetch_error("other", "[youtube] abc: Private video", [warning], FetchLimits()).code == "youtube_private"


async def test_disabled_or_missing_youtube_support_is_an_error(monkeypatch):
    with pytest.raises(NotSupported, match="TTS_YOUTUBE"):
        await YouTube(enabled=False).fetch("https://youtu.be/dQw4w9WgXcQ")
    monkeypatch.setattr(youtube, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None)))
    with pytest.raises(NotSupported, match="pip install"):
        await YouTube().fetch("https://youtu.be/dQw4w9WgXcQ")


# --- the child's parts ---


@pytest.fixture(scope="module")
def child():
    spec = importlib.util.spec_from_file_location("child", ROOT / "app/voices/youtube_child.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_guard_allows_only_public_addresses(child):
    guard = child.Guard([], ["127.0.0.1"])
    for public in ("8.8.8.8", "2607:f8b0:4004:800::200e", "127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert guard.allows(public), public
    for private in (
        *(
            "127.0.0.2",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1", "ff02::1"),
        *("localhost", ""),
    ):
        assert not guard.allows(private), private


@pytest.mark.parametrize(
    ("info", "total", "expected"),
    [
        ({"container": "webm_dash", "duration": 1000}, 10_000_000, int(35 * 10_000 * 1.15) + (1 << 18)),
        ({"ext": "mp3", "duration": 1000}, 10_000_000, int(35 * 10_000 * 1.15) + (1 << 18)),
        # the index of an MP4 file may be at its end
        ({"container": "mp4", "ext": "mp4", "duration": 1000}, 10_000_000, None),
        ({"container": "webm_dash", "duration": None}, 10_000_000, None),
        ({"container": "webm_dash", "duration": 1000}, None, None),
        ({"container": "webm_dash", "duration": 31}, 10_000_000, None),
    ],
)
def test_needed_bytes_are_estimated(child, info, total, expected):
    assert child.wanted_bytes(info, 30.0, total) == expected


def test_yt_dlp_knows_all_options_of_the_child(child):
    from yt_dlp import YoutubeDL

    order = {"extractors": ["youtube"], "folder": "/tmp", "socket_timeout_s": 1, "chunk_bytes": 1}
    documented = YoutubeDL.__doc__ or ""
    with YoutubeDL(child.Fetch(order).options()) as instance:
        assert list(instance._ies) == ["Youtube"]
    # options of yt-dlp's downloaders
    known = set(re.findall(r"\w+", documented)) | {"file_access_retries", "fragment_retries"}
    assert set(child.Fetch(order).options()) <= known


def test_child_passes_exactly_these_options(child):
    """yt-dlp gets nothing that could read a local file, use a proxy, start a program, log in or write elsewhere."""
    order = {"extractors": ["youtube"], "folder": "/nowhere", "socket_timeout_s": 7, "chunk_bytes": 9}
    fetch = child.Fetch(order)
    options = fetch.options()
    assert options.pop("match_filter") == fetch._check
    assert options.pop("progress_hooks") == [fetch._progress]
    assert options.pop("logger") is fetch.logger
    assert options == {
        "allowed_extractors": ["youtube"],
        "noplaylist": True,
        "playlist_items": "1",
        "format": "bestaudio[protocol^=http]/bestaudio/best[protocol^=http]/best",
        "outtmpl": "/nowhere/sound.%(ext)s",
        "paths": {"temp": "/nowhere"},
        "socket_timeout": 7,
        "retries": 1,
        "extractor_retries": 1,
        "fragment_retries": 1,
        "file_access_retries": 0,
        "concurrent_fragment_downloads": 1,
        "http_chunk_size": 9,
        "hls_prefer_native": True,
        "external_downloader": {"default": "native"},
        "ffmpeg_location": "/nonexistent",
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
        "usenetrc": False,
        "allow_playlist_files": False,
        "writethumbnail": False,
    }


def test_only_these_containers_are_fetched_in_part(child):
    assert {"webm_dash", "m4a_dash", "mp3", "ogg", "opus", "aac", "webm"} == child._STREAMABLE


def test_every_folder_of_a_dead_process_is_removed_in_any_order(tmp_path, monkeypatch):
    """The folder of the running process stays, and the search continues after it."""
    own = tmp_path / f"{youtube._FOLDER_PREFIX}{os.getpid()}-a"
    dead = [tmp_path / f"{youtube._FOLDER_PREFIX}999999{number}-b" for number in range(3)]
    foreign = tmp_path / f"{youtube._FOLDER_PREFIX}x-c"
    for folder in (own, *dead, foreign):
        folder.mkdir()
    monkeypatch.setattr(youtube.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda *_: [own, foreign, *dead])
    youtube._remove_leftovers()
    assert [folder.exists() for folder in (own, foreign, *dead)] == [True, True, False, False, False]
    own.rmdir()
    foreign.rmdir()
