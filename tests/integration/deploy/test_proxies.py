"""WebSockets through real HAProxy and nginx with the configurations of docs/proxies.md and deploy/k8s."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from websockets.sync.client import connect

from tests.integration.contract.fleets import answers, configuration, haproxy
from tests.integration.test_realtime import calling
from tests.support.live import LONG, ROOT, free_port, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

DOCS = (ROOT / "docs" / "proxies.md").read_text()
SILENCE_S = 1  # the timeouts of HAProxy for silence, except that of WebSockets


@contextlib.contextmanager
def running(command: list[str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until(lambda: process.poll() is not None or answers(ready))
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(20)


def example(kind: str) -> str:
    (text,) = re.findall(rf"```{kind}\n(.*?)```", DOCS, re.DOTALL)
    assert isinstance(text, str)
    return text


@contextlib.contextmanager
def haproxy_of_the_docs(folder: Path, servers: list[str]) -> Iterator[str]:
    port = free_port()
    text = re.sub(r"bind :443 .*", f"bind 127.0.0.1:{port}", example("haproxy"))
    text = text.replace("127.0.0.1:8000", servers[0].removeprefix("http://"))
    text = text.replace("timeout server 600s", f"timeout server {SILENCE_S}s")
    file = folder / "haproxy.cfg"
    file.write_text(f"defaults\n mode http\n timeout connect 5s\n timeout client {SILENCE_S}s\n{text}")
    with running([haproxy(), "-db", "-f", str(file)], folder / "log", f"http://127.0.0.1:{port}/tts/ready"):
        yield f"http://127.0.0.1:{port}/tts"


@contextlib.contextmanager
def haproxy_of_the_replicas(folder: Path, servers: list[str]) -> Iterator[str]:
    port = free_port()
    text = configuration(port, servers)
    text, found = re.subn(r"timeout (client|server) 10m", rf"timeout \1 {SILENCE_S}s", text)
    assert found == 2
    file = folder / "haproxy.cfg"
    file.write_text(text)
    with running([haproxy(), "-db", "-f", str(file)], folder / "log", f"http://127.0.0.1:{port}/ready"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def nginx_of_the_docs(folder: Path, servers: list[str]) -> Iterator[str]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    text = example("nginx").replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    text = text.replace("http://127.0.0.1:8000/;", f"{servers[0]}/;")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    command = [binary, "-e", "stderr", "-p", str(folder), "-c", str(file)]
    with running(command, folder / "log", f"http://127.0.0.1:{port}/tts/ready"):
        yield f"http://127.0.0.1:{port}/tts"


PROXIES = {"haproxy": haproxy_of_the_docs, "replicas": haproxy_of_the_replicas, "nginx": nginx_of_the_docs}


@pytest.mark.parametrize("proxy", PROXIES)
def test_text_is_spoken_while_it_is_written(server: str, tmp_path: Path, proxy: str) -> None:
    """The proxy buffers nothing: the audio of the first sentence arrives before the text ends."""
    with PROXIES[proxy](tmp_path, [server]) as url, calling(url) as caller:
        caller.send("input_text_buffer.append", text="The first sentence is complete. And ")
        caller.until("response.output_audio.delta")
        caller.send("input_text_buffer.append", text="the second one follows.")
        caller.send("input_text_buffer.commit")
        assert caller.until("response.done")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("proxy", PROXIES)
def test_silent_socket_stays_open(server: str, tmp_path: Path, proxy: str) -> None:
    with PROXIES[proxy](tmp_path, [server]) as url, calling(url) as caller:
        assert caller.speak("Before the pause.")[-1]["response"]["status"] == "completed"
        time.sleep(2.5 * SILENCE_S)
        assert caller.speak("After the pause.")[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("proxy", PROXIES)
def test_sockets_of_elevenlabs_work_and_refusals_are_passed_on(server: str, tmp_path: Path, proxy: str) -> None:
    with PROXIES[proxy](tmp_path, [server]) as url:
        address = f"ws{url[4:]}/v1/text-to-speech"
        with connect(f"{address}/alloy/stream-input?output_format=pcm_24000") as socket:
            for text in ("Hello ", "there. ", ""):
                socket.send(json.dumps({"text": text}))
            messages = [json.loads(message) for message in socket]
        assert messages[-1]["isFinal"] is True
        assert any(message["audio"] for message in messages)
        assert httpx.get(f"{url}/v1/realtime").status_code == 404
        with pytest.raises(Exception, match="400"), connect(f"{address}/nobody/stream-input"):
            pass


def test_sockets_are_spread_and_stay_with_their_copy(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        copies = [stack.enter_context(serving(tmp_path / name, TTS_OUTBOX_S=0.5)) for name in ("one", "two")]
        url = stack.enter_context(haproxy_of_the_replicas(tmp_path, copies))
        callers = [stack.enter_context(calling(url, max_queue=1)) for _ in range(4)]
        for caller in callers:
            caller.create(LONG)
            caller.until("response.output_audio.delta")
        for copy in copies:
            wait_until(lambda copy=copy: httpx.get(f"{copy}/health").json()["rows"]["active"] == 2)
        for caller in callers:
            caller.send("response.cancel")
            assert caller.until("response.done")[-1]["response"]["status"] == "cancelled"
            assert caller.speak("Still with the same copy.")[-1]["response"]["status"] == "completed"
