"""Malicious requests: headers, lengths, numbers, names and files that no normal client sends.

The server answers each with an error or closes the connection, and continues to serve.
"""

from __future__ import annotations

import io
import json
import socket
import struct
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import av
import httpx
import numpy as np
import pytest

from tests.support import samples
from tests.support.live import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"input": "Hello."}'


@pytest.fixture(autouse=True)
def _goes_on(server: str) -> Iterator[None]:
    yield
    assert httpx.post(f"{server}/v1/audio/speech", json={"input": "Still here."}, timeout=120).status_code == 200
    wait_until(lambda: httpx.get(f"{server}/health").json()["rows"]["active"] == 0)


def raw(server: str, data: bytes, timeout_s: float = 10.0) -> bytes:
    """Return all bytes until the server closes the connection or pauses after a complete response."""
    where = urlsplit(server)
    with socket.create_connection((where.hostname, where.port), timeout=timeout_s) as line:
        received = b""
        try:
            line.sendall(data)
            if b"Connection: close" not in data:  # closing the write side counts as a disconnect
                line.shutdown(socket.SHUT_WR)
            while part := line.recv(65_536):
                received += part
        except TimeoutError:
            raise
        except OSError:  # the server has closed the connection
            pass
        return received


@pytest.mark.parametrize(
    "data",
    [
        GET + b"X-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
        GET + b"".join(b"X-%d: a\r\n" % index for index in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 4096,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 300,  # a TLS client
        b"GET / HTTP/9.9\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n" + BODY,
        POST + b"Content-Length: " + b"9" * 10_000 + b"\r\n\r\n" + BODY,
        POST + b"Content-Length: 19\r\nContent-Length: 5\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 19\r\n\r\n" + BODY,
    ],
    ids=lambda data: ascii(data[-24:]),
)
def test_malformed_http_is_rejected(server: str, data: bytes) -> None:
    """The server answers 4xx or closes the connection, never 5xx. Only a valid request in the data gets a 200."""
    answer = raw(server, data)
    status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 400
    assert 400 <= status < 500 or (status == 200 and data.startswith(GET)), answer[:200]


def test_truncated_body_is_not_spoken(server: str) -> None:
    answer = raw(server, POST + b"Content-Length: 500\r\n\r\n" + BODY)
    assert b" 200 " not in answer[:20]


def test_bytes_after_the_body_are_not_a_second_request(server: str) -> None:
    """Bytes after a body get a 400 or close the connection. These bytes do not change the request before them."""
    answer = raw(server, POST + b"Content-Length: 19\r\n\r\n" + BODY + b"GARBAGE\r\n\r\nConnection: close")
    assert answer.count(b"HTTP/1.1 200") <= 1
    assert b"HTTP/1.1 5" not in answer


@pytest.mark.parametrize("header", ["Content-Type", "Authorization", "X-Request-ID", "Host"])
def test_duplicate_headers_do_not_cause_status_500(server: str, header: str) -> None:
    line = header.encode() + b": application/json\r\n"
    assert int(raw(server, GET + line + line + b"Connection: close\r\n\r\n")[9:12]) < 500


NUMBER = "9" * 10_000


@pytest.mark.parametrize(
    "content",
    [
        f'{{"input": "a", "speed": {NUMBER}}}',
        f'{{"input": "a", "seed": {NUMBER}}}',
        f'{{"input": "a", "seed": -{NUMBER}}}',
        f'{{"input": "a", "speed": 1e{NUMBER}}}',
        f'{{"input": "a", "speed": 0.{"0" * 10_000}1}}',
        f'{{"input": "a", "top_k": 0x{NUMBER}}}',
        '{"input": "a", "speed": NaN}',
        '{"input": "a", "speed": -Infinity}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"input": "a", "voice": ' + "[" * 900 + "]" * 900 + "}",
        '{"input": "a", ' + ", ".join(f'"x{index}": 1' for index in range(30_000)) + ', "speed": "fast"}',
        '{"input": "a", "voice": "' + "x" * 500_000 + '"}',
        '{"input": "a", "voice": "../../../etc/passwd"}',
        '{"input": "a", "voice": "\\u0000"}',
        '{"input": "a", "voice": "\\ud800"}',
        '{"input": "a", "model": "' + "/" * 10_000 + '"}',
        '{"input": "a", "language": "../.."}',
        '{"input": "a", "conversation_id": "' + "../" * 60 + '", "voice": 5}',
    ],
    ids=lambda content: content[:40],
)
def test_hostile_numbers_and_names_are_rejected(server: str, content: str) -> None:
    answer = httpx.post(
        f"{server}/v1/audio/speech", content=content, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code in (400, 404), answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.content) < 20_000, "the answer gives back what was sent"


def test_ten_thousand_digits_are_not_spoken_digit_by_digit(server: str) -> None:
    body = {"input": f"The number {NUMBER} is large.", "response_format": "wav"}
    answer = httpx.post(f"{server}/v1/audio/speech", json=body, timeout=120)
    assert answer.status_code == 200
    assert len(answer.content) < 30 * 48_000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/voices/..%2f..%2fetc%2fpasswd",
        "/v1/voice-cloning/voices/%00",
        "/v1/voice-cloning/voices/%2e%2e/reference",
        "/v1/voice-cloning/voices/..%5c..%5cx/reference",
        "/v1/voice-cloning/voices/" + "a" * 5000,
        "/v1/voice-cloning/voices/%ff%fe/export",
        "/v1/models/..%2f..%2fx",
        "/static/..%2fsettings.py",
        "/static/%2e%2e/api/requests.py",
        "/static//etc/passwd",
        "/static/%00",
    ],
)
def test_path_traversal_is_rejected(server: str, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert int(answer[9:12]) in (400, 404, 405), answer[:200]
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize(
    "name",
    [
        "../../../../tmp/x",
        "a\0b",
        "\u202egpj.exe",
        "x" * 10_000,
        "con",
        ".",
        "..",
        "a/b\\c",
        "\ud7ff\uffff",
        "'\";--",
        "",
    ],
    ids=ascii,
)
def test_hostile_file_and_voice_names_are_harmless(
    server: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A voice gets a harmless name, or the request is refused. The name of the uploaded file is ignored."""
    sample = samples.file(samples.speech(), "mp3")
    form = {"name": name, "transcript": samples.TEXT}
    disposition = name.encode("utf-8", "replace").decode("latin-1").replace('"', "'").replace("\0", "%00")
    answer = httpx.post(
        f"{server}/v1/voice-cloning/clone", data=form, files={"audio_file": (disposition or "x", sample)}, timeout=60
    )
    assert answer.status_code in (200, 400), answer.text[:300]
    if answer.status_code == 200:
        voice = answer.json()["voice"]
        assert len(voice["name"]) <= 200
        assert not set("/\\\0") & set(voice["id"])
        assert httpx.delete(f"{server}/v1/voice-cloning/voices/{voice['id']}").status_code == 200
    else:
        assert answer.json()["error"]["message"]


def test_urls_in_fields_are_not_fetched(server: str) -> None:
    """Only a YouTube import accepts a URL, and uses only the id of the video. tests/unit/test_youtube.py tests
    redirects and host names that lead to this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.wav"
        for path, body in (
            ("/v1/audio/speech", {"input": "a", "voice": address, "model": address, "instructions": address}),
            ("/v1/audio/speech", {"input": f'<audio src="{address}"/> ![x]({address}) <lexicon uri="{address}"/>'}),
            ("/v1/audio/conversation", {"text": "a", "context": [{"speaker": 0, "text": "b", "audio": address}]}),
            ("/v1/voice-cloning/clone-from-youtube", {"youtube_url": address, "name": "x", "url": address}),
            ("/v1/audio/speech/voice-cloning/youtube", {"youtube_url": address, "voice_name": "x"}),
        ):
            answer = httpx.post(f"{server}{path}", json=body, timeout=120)
            assert answer.status_code < 500
        for form in ({"name": address, "transcript": "x"}, {"name": "x", "transcript": "x", "audio_file": address}):
            assert httpx.post(f"{server}/v1/voice-cloning/clone", data=form, timeout=120).status_code == 400
        with pytest.raises(TimeoutError):
            listener.accept()


def bomb(container: str, codec: str, hours: float) -> bytes:
    """Return hours of silence in a file of a few kilobytes."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=8_000 if codec == "flac" else 48_000, layout="mono")
        rate_hz = stream.codec_context.sample_rate
        frame = av.AudioFrame.from_ndarray(np.zeros((1, rate_hz), np.int16), format="s16", layout="mono")
        frame.sample_rate = rate_hz
        for second in range(round(hours * 3600)):
            frame.pts = second * rate_hz
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return file.getvalue()


def lying_wav() -> bytes:
    """Return a WAV header that claims 4 GB, 384 kHz and 8 channels."""
    head = struct.pack("<HHIIHH", 1, 8, 384_000, 384_000 * 16, 16, 16)
    return (
        b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", len(head)) + head + b"data\xff\xff\xff\xff" + bytes(5_000)
    )


@pytest.mark.parametrize(
    "upload",
    [
        # tests/unit/test_decode.py tests such files with hours of audio.
        pytest.param(lambda: bomb("flac", "flac", 0.25), id="a quarter of an hour of FLAC", marks=pytest.mark.slow),
        pytest.param(lambda: bomb("ogg", "libopus", 0.1), id="six minutes of Opus", marks=pytest.mark.slow),
        pytest.param(lying_wav, id="a WAV of 4 GB in 5 kB"),
        pytest.param(lambda: b"PK\x03\x04" + bytes(5_000), id="a zip"),
        pytest.param(lambda: b"#EXTM3U\nhttp://127.0.0.1:9/x.mp3\n", id="a playlist"),
        pytest.param(lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", id="a concat script"),
    ],
)
def test_hostile_files_are_rejected(server: str, upload: object) -> None:
    data = upload()  # type: ignore[operator]
    assert len(data) < 700_000
    for path, field, form in (
        ("/v1/voice-cloning/clone", "audio_file", {"name": "Bomb", "transcript": "Nothing."}),
        ("/v1/audio/watermark/detect", "file", {}),
    ):
        answer = httpx.post(f"{server}{path}", data=form, files={field: ("a.flac", data)}, timeout=60)
        assert answer.status_code in (200, 400, 404), (path, answer.text[:300])
        if path.endswith("clone"):
            assert answer.status_code == 400
            assert json.loads(answer.content)["error"]["message"]
