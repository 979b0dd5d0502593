"""TLS of the server's own port: https and wss, errors at the start, and certificates that change while it runs."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.sync.client import connect

from app.api import tls
from tests.support.live import (
    LONG,
    ROOT,
    Process,
    TlsPair,
    create_certificate,
    environment,
    free_port,
    serving,
    trust,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which creates the certificates, is missing"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TlsPair:
    return create_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pair: TlsPair) -> Iterator[str]:
    """Start a server with TLS; yield its URL."""
    with serving(tmp_path_factory.mktemp("secure"), **pair.variables) as url:
        yield url


def certificate_of(url: str) -> str:
    """Return the certificate that the server presents, as PEM."""
    where = urlsplit(url)
    return ssl.get_server_certificate((where.hostname or "", where.port or 0), timeout=20)


def replace(pair: TlsPair, new: TlsPair) -> None:
    """Replace the files of a pair. Each file changes in one step, as `mv` does it."""
    for old_file, new_file in zip(pair, new, strict=True):
        shutil.copy(new_file, copied := old_file.with_name("copied"))
        copied.replace(old_file)


# ---- requests


def test_speech_over_https_equals_the_speech_over_http(secure: str, server: str, pair: TlsPair) -> None:
    body = {"input": "The same words on both ports.", "response_format": "pcm"}
    over_tls = httpx.post(f"{secure}/v1/audio/speech", json=body, verify=trust(pair.cert), timeout=60)
    assert over_tls.status_code == 200
    assert over_tls.content == httpx.post(f"{server}/v1/audio/speech", json=body, timeout=60).content


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_client_checks_the_certificate(secure: str, pair: TlsPair, host: str) -> None:
    url = secure.replace("127.0.0.1", host)
    assert httpx.get(f"{url}/health", verify=trust(pair.cert)).status_code == 200
    with pytest.raises(httpx.ConnectError, match="self-signed"):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize("path", ["/v1/realtime", "/api/v1/realtime"])
def test_realtime_speaks_over_wss(secure: str, pair: TlsPair, path: str) -> None:
    with connect(secure.replace("https", "wss") + path, ssl=trust(pair.cert)) as connection:
        assert json.loads(connection.recv())["type"] == "session.created"
        connection.send(json.dumps({"type": "input_text_buffer.append", "text": "Hello over TLS."}))
        connection.send(json.dumps({"type": "input_text_buffer.commit"}))
        events = []
        while not events or events[-1] not in ("response.done", "error"):
            events.append(json.loads(connection.recv())["type"])
    assert events[-1] == "response.done"
    assert "response.output_audio.delta" in events


def test_own_page_is_not_foreign_over_tls(secure: str, pair: TlsPair) -> None:
    headers = {"Origin": secure}
    body = {"input": "From the page."}
    with httpx.Client(base_url=secure, verify=trust(pair.cert), headers=headers, timeout=60) as client:
        assert client.post("/v1/audio/speech", json=body).status_code == 200
    url = secure.replace("https", "wss") + "/v1/realtime"
    with connect(url, ssl=trust(pair.cert), additional_headers=headers) as connection:
        assert json.loads(connection.recv())["type"] == "session.created"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 4096,
        b"\x16\x03\x01\xff\xff" + b"a" * 70_000,
        b"SSH-2.0-x\r\n",
        b"",
    ],
    ids=["http", "zeros", "too_long_hello", "ssh", "nothing"],
)
def test_data_that_is_not_tls_closes_only_its_connection(secure: str, pair: TlsPair, data: bytes) -> None:
    where = urlsplit(secure)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as raw:
        raw.settimeout(20)
        received = b""
        try:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(4096):
                received += part
        except ConnectionError:
            pass
    assert b"HTTP/1.1 200" not in received
    assert httpx.get(f"{secure}/health", verify=trust(pair.cert)).status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_versions_of_tls_work(secure: str, pair: TlsPair, version: ssl.TLSVersion) -> None:
    context = trust(pair.cert)
    context.minimum_version = context.maximum_version = version
    assert httpx.get(f"{secure}/health", verify=context).status_code == 200


def test_client_that_stops_reading_keeps_its_row_until_it_disconnects(tmp_path: Path, pair: TlsPair) -> None:
    body = json.dumps({"input": LONG, "response_format": "pcm", "cache": False}).encode()
    with serving(tmp_path, TTS_OUTBOX_S=0.5, **pair.variables) as url, socket.socket() as raw:
        where = urlsplit(url)

        def active() -> int:
            return int(httpx.get(f"{url}/health", verify=trust(pair.cert)).json()["rows"]["active"])

        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        raw.connect((where.hostname, where.port))
        with trust(pair.cert).wrap_socket(raw, server_hostname="localhost") as connection:
            connection.sendall(
                b"POST /v1/audio/speech HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")
            for _ in range(5):
                wait_until(lambda: active() == 1)
        wait_until(lambda: active() == 0)


# ---- errors at the start


def without(path: Path) -> Path:
    path.unlink()
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def encrypted(key: Path) -> Path:
    out = key.with_name("encrypted.pem")
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", out]
    subprocess.run(command, check=True, capture_output=True)
    return out


def damaged(path: Path) -> Path:
    lines = path.read_text().splitlines()
    return written(path, "\n".join([lines[0], *lines[2:]]))


BAD_PAIRS: dict[str, tuple[Any, str]] = {
    "cert_missing": (lambda a, b: (without(a.cert), a.key), "TTS_TLS_CERT=.* can't be read: No such file"),
    "key_missing": (lambda a, b: (a.cert, without(a.key)), "TTS_TLS_KEY=.* can't be read: No such file"),
    "cert_is_a_folder": (lambda a, b: (a.cert.parent, a.key), "TTS_TLS_CERT=.* can't be read: Is a directory"),
    "key_is_a_folder": (lambda a, b: (a.cert, a.key.parent), "TTS_TLS_KEY=.* can't be read: Is a directory"),
    "key_of_another": (lambda a, b: (a.cert, b.key), "TTS_TLS_KEY=.* is not the key of the first certificate"),
    "cert_of_another": (lambda a, b: (b.cert, a.key), "is not the key of the first certificate"),
    "swapped": (lambda a, b: (a.key, a.cert), "TTS_TLS_CERT=.* contains no certificate in PEM format"),
    "cert_twice": (lambda a, b: (a.cert, a.cert), "TTS_TLS_KEY=.* contains no private key in PEM format"),
    "cert_empty": (lambda a, b: (written(a.cert, ""), a.key), "contains no certificate in PEM format"),
    "key_empty": (lambda a, b: (a.cert, written(a.key, "")), "contains no private key in PEM format"),
    "cert_is_text": (lambda a, b: (written(a.cert, "certificate"), a.key), "contains no certificate in PEM format"),
    "cert_damaged": (lambda a, b: (damaged(a.cert), a.key), r"can't be used: \[.*PEM.*\. Create the pair again"),
    "key_damaged": (lambda a, b: (a.cert, damaged(a.key)), r"can't be used: \[.*PEM.*\. Create the pair again"),
    "key_encrypted": (lambda a, b: (a.cert, encrypted(a.key)), "TTS_TLS_KEY=.* has a passphrase"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_unusable_pair_is_a_clear_error(tmp_path: Path, case: str) -> None:
    create, reason = BAD_PAIRS[case]
    cert, key = create(create_certificate(tmp_path, "one"), create_certificate(tmp_path, "two"))
    with pytest.raises(ValueError, match=reason):
        tls.server_context(cert, key)


@pytest.mark.parametrize("case", ["cert_missing", "key_of_another"])
def test_unusable_pair_ends_the_start_with_status_2(tmp_path: Path, case: str) -> None:
    create, reason = BAD_PAIRS[case]
    cert, key = create(create_certificate(tmp_path, "one"), create_certificate(tmp_path, "two"))
    with Process(tmp_path / "data", TTS_TLS_CERT=str(cert), TTS_TLS_KEY=str(key)) as process:
        assert process.child.wait(60) == 2
    assert "TTS_TLS_" in process.console()
    assert reason.rpartition(".* ")[2] in process.console()
    assert "Traceback" not in process.console()


@pytest.mark.parametrize(("variable", "missing"), [("TTS_TLS_CERT", "TTS_TLS_KEY"), ("TTS_TLS_KEY", "TTS_TLS_CERT")])
def test_one_file_of_a_pair_alone_ends_the_start_with_status_2(
    tmp_path: Path, pair: TlsPair, variable: str, missing: str
) -> None:
    with Process(tmp_path, **{variable: pair.variables[variable]}) as process:
        assert process.child.wait(60) == 2
    assert f"{variable} is set without {missing}" in process.console()
    assert "Traceback" not in process.console()


def test_one_file_may_hold_both(tmp_path: Path, pair: TlsPair) -> None:
    both = written(tmp_path / "both.pem", pair.cert.read_text() + pair.key.read_text())
    with serving(tmp_path / "data", TTS_TLS_CERT=both, TTS_TLS_KEY=both) as url:
        assert httpx.get(f"{url}/health", verify=trust(pair.cert)).status_code == 200


# ---- certificates that change


def test_new_certificate_is_used_and_running_streams_continue(tmp_path: Path) -> None:
    used, new = create_certificate(tmp_path, "used"), create_certificate(tmp_path, "new")
    first = used.cert.read_text()
    body = {"input": LONG, "response_format": "pcm", "cache": False}
    with serving(tmp_path / "data", **used.variables) as url:
        assert certificate_of(url).split() == first.split()
        with (
            connect(f"{url.replace('https', 'wss')}/v1/realtime", ssl=trust(used.cert)) as socket_before,
            httpx.stream("POST", f"{url}/v1/audio/speech", json=body, verify=trust(used.cert), timeout=60) as stream,
        ):
            pieces = stream.iter_raw(4096)
            next(pieces)
            replace(used, new)
            assert certificate_of(url).split() == new.cert.read_text().split()
            assert all(next(pieces) for _ in range(20))
            socket_before.send(json.dumps({"type": "response.cancel"}))
            while (event := json.loads(socket_before.recv()))["type"] != "error":
                pass
            assert event["error"]["code"] == "response_cancel_not_active"


@pytest.mark.parametrize("change", ["cert_missing", "key_of_another", "cert_damaged", "key_empty"])
def test_unusable_new_pair_keeps_the_old_one_and_logs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    used, broken = create_certificate(tmp_path, "used"), create_certificate(tmp_path, "broken")
    new, other = create_certificate(tmp_path, "new"), create_certificate(tmp_path, "other")
    first = used.cert.read_text()

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "app.api.tls"]

    with serving(tmp_path / "data", **used.variables) as url, caplog.at_level(logging.INFO, "app.api.tls"):
        cert, key = BAD_PAIRS[change][0](broken, other)
        for source, target in ((cert, used.cert), (key, used.key)):
            if source.exists():
                shutil.copy(source, target)
            else:
                target.unlink()
        for _ in range(3):
            assert certificate_of(url).split() == first.split()
        assert len(lines()) == 1
        assert "the old one stays in use" in lines()[0]
        replace(used, new)
        assert certificate_of(url).split() == new.cert.read_text().split()
        assert len(lines()) == 2


def test_certificate_behind_a_symbolic_link_is_reloaded(tmp_path: Path) -> None:
    """certbot and Kubernetes change a link and leave the files as they are."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        create_certificate(tmp_path / name)
    link = tmp_path / "live"
    link.symlink_to("one")
    pair = TlsPair(link / "server.pem", link / "server-key.pem")
    with serving(tmp_path / "data", **pair.variables) as url:
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(link)
        assert certificate_of(url).split() == (tmp_path / "two" / "server.pem").read_text().split()


# ---- the health check of containers


def healthcheck(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = environment(ROOT, PORT=str(port), **variables)
    command = [sys.executable, "-m", "app.healthcheck"]
    return subprocess.run(command, env=clean, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_healthcheck_works_with_and_without_tls(secure: str, server: str, pair: TlsPair) -> None:
    over_tls, plain = urlsplit(secure).port or 0, urlsplit(server).port or 0
    assert healthcheck(over_tls, **pair.variables).returncode == 0
    assert healthcheck(plain).returncode == 0
    assert healthcheck(plain, TTS_TLS_CERT="").returncode == 0
    for port, variables in ((over_tls, {}), (plain, pair.variables), (free_port(), {})):
        failed = healthcheck(port, **variables)
        assert failed.returncode == 1
        assert "is not healthy" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_process_with_tls_says_https(tmp_path: Path, pair: TlsPair) -> None:
    with Process(tmp_path, **pair.variables) as process:
        process.wait()
        assert f"on {process.url}" in process.console()
        process.child.terminate()
        process.child.wait(60)
    assert "Traceback" not in process.console()
