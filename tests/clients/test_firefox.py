"""The studio in Debian's Firefox: speak, stop, a dialogue, and a new voice from a file."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.clients.conftest import Client, driver
from tests.support import samples
from tests.support.live import wait_until
from tests.support.studio import LONG, SHORT, serving_clones

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def silent_speakers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A sound server that plays to nowhere, in real time. Without an audio device Firefox does not start to play."""
    if shutil.which("pulseaudio") is None:
        pytest.skip("PulseAudio is not installed: apt install pulseaudio")
    folder = tmp_path_factory.mktemp("pulse")
    socket = folder / "native"
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
    modules = ["module-null-sink", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, *(f"--load={each}" for each in modules)], env=environment, stderr=log)
        try:
            wait_until(socket.exists)
            yield f"unix:{socket}"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory, silent_speakers: str) -> Iterator[Client]:
    found = shutil.which("firefox-esr") or shutil.which("firefox")
    if found is None:
        pytest.skip("Firefox is not installed: apt install firefox-esr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIREFOX", found)
        patch.setenv("PULSE_SERVER", silent_speakers)
        with driver("firefox", "node", tmp_path_factory.mktemp("firefox")) as client:
            yield client


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_clones(tmp_path_factory.mktemp("learning")) as url:
        yield url


def test_spoken_text_is_the_audio_of_the_api(firefox: Client, server: str) -> None:
    take = firefox.ask("speak", server, text=SHORT)
    assert take.get("errors") == [], take
    audio = base64.b64decode(take["audio"])
    assert audio == httpx.post(f"{server}/v1/audio/speech", json={**take["body"], "response_format": "pcm"}).content
    assert take["at_s"] == pytest.approx(len(audio) / 48_000, abs=1e-3)  # it was played to its end


def test_stopped_speech_is_kept_as_it_was_heard(firefox: Client, server: str) -> None:
    take = firefox.ask("stop", server, text=LONG)
    assert take.get("errors") == [], take
    assert take["partial"] == "stopped"
    assert 0.5 < len(base64.b64decode(take["audio"])) / 48_000 < 120


def test_dialogue_is_spoken(firefox: Client, server: str) -> None:
    take = firefox.ask("dialogue", server)
    assert take.get("errors") == [], take
    assert len(base64.b64decode(take["audio"])) / 48_000 > 3


def test_voice_is_made_from_a_file_and_speaks(firefox: Client, learning: str, tmp_path: Path) -> None:
    file = tmp_path / "ann.mp3"
    file.write_bytes(samples.file(samples.speech(), "mp3"))
    made = firefox.ask("clone", learning, file=str(file), words=samples.TEXT, name="Ann")
    assert made.get("errors") == [], made
    [voice] = httpx.get(f"{learning}/v1/voice-cloning/voices").json()["voices"]
    assert (voice["id"], voice["name"], voice["transcript"]) == (made["voice"], "Ann", samples.TEXT)
