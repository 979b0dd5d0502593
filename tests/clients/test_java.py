"""A real JDK. Its HTTP client offers an upgrade to HTTP/2 with each first request to plain http.

LangChain4j, Spring AI and other Java programs use this client.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.clients.conftest import HERE, driver_environment

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed (apt install default-jdk-headless)"),
]


@pytest.mark.parametrize("way", ["default", "streamed", "http1.1"])
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/audio/speech/stream"])
def test_java_gets_speech(server: str, path: str, way: str) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "Hello from Java, où ça?", "response_format": "wav"}
    command = ["java", str(HERE / "java" / "Client.java"), server + path, json.dumps(body), way]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env=driver_environment(), errors="replace"
    )
    assert done.returncode == 0, done.stderr
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 2
    for status, size, first, version in answers:
        assert (status, first, version) == ("200", b"RIFF".hex(), "HTTP_1_1")
        assert int(size) > 40_000


def test_java_reads_an_error_message(server: str) -> None:
    command = ["java", str(HERE / "java" / "Client.java"), f"{server}/v1/audio/speech", '{"input": ""}', "default"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=driver_environment())
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["400", "400"]
