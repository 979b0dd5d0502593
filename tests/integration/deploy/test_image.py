"""Builds the image in its own file system and runs the server in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.deploy.image import Image, words
from tests.support.live import ROOT, free_port, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(590),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="needs root, for mounts and chroot, and overlayfs"
    ),
]
FOLDERS = (
    "models",
    "cloned_voices",
    "voice_references",
    "audio_cache",
    "conversations",
    "hub",
    "jobs",
    "books",
    "keys",
    "lexicons",
    "usage",
    "logs",
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    built_image = Image(ROOT, tmp_path_factory.mktemp("image") / "work", "cpu", Path(sys.base_prefix))
    yield built_image
    built_image.close()


def test_image_runs_as_an_unprivileged_user(image: Image) -> None:
    assert image.user == "10001:10001"
    assert image.run("id", "-u").stdout.strip() == "10001"
    assert image.words["EXPOSE"] == image.environment["PORT"] == "8000"


def test_data_folders_belong_to_the_user_and_code_is_read_only(image: Image) -> None:
    for name in FOLDERS:
        stat = (image.root / "app" / name).stat()
        assert (stat.st_uid, stat.st_gid) == (10001, 10001)
    code = image.root / "app/app/main.py"
    assert code.stat().st_uid == 0
    assert image.run("touch", "/app/app/main.py").returncode != 0


def test_image_has_the_server_but_no_development_tools(image: Image) -> None:
    inside = {path.name for path in (image.root / "app").iterdir()}
    assert inside == {"app", "LICENSE", "NOTICE", *FOLDERS}
    assert not list((image.root / "app").rglob("__pycache__"))
    installed = image.run("python", "-c", "import torch, fastapi, espeakng_loader, transformers, yt_dlp, deno")
    assert installed.returncode == 0, installed.stderr
    assert image.run("python", "-c", "import pytest").returncode != 0  # development tools are not in the image


def test_container_becomes_healthy_and_stops(image: Image, tmp_path: Path) -> None:
    port = str(free_port())
    entry = [*words(image.words["ENTRYPOINT"]), *words(image.words["CMD"])]
    environment = {**image.environment, "PORT": port, "HOST": "127.0.0.1", "TTS_ENGINE": "espeak"}
    with (tmp_path / "console").open("wb") as console:
        server = subprocess.Popen(image.command(*entry), env=environment, stdout=console, stderr=console)
        try:

            def ready() -> bool:
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/ready").is_success
                except httpx.TransportError:
                    return False

            wait_until(lambda: ready() or server.poll() is not None, 60)
            assert server.poll() is None, (tmp_path / "console").read_text()
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json={"input": "Inside."}, timeout=60)
            assert answer.status_code == 200
            assert list((image.root / "app/audio_cache").rglob("*"))
            check = words(image.words["HEALTHCHECK"])
            assert image.run(*check, PORT=port).returncode == 0
            assert image.run(*check, PORT=str(free_port())).returncode != 0
            server.send_signal(signal.SIGTERM)  # the signal goes to tini, which forwards it to the server
            assert server.wait(20) in (0, 143)
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    assert "Traceback" not in (tmp_path / "console").read_text()
