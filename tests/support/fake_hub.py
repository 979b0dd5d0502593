"""A hub on 127.0.0.1 with the part of the Hugging Face protocol that huggingface_hub 2.4 and this server use.

    with FakeHub({"org/model": {"config.json": b"{}", "model.safetensors": weights}}) as hub:
        ... HF_ENDPOINT=hub.url ...

Files in LFS (weights and audio) are answered with a redirect to another origin (localhost instead of 127.0.0.1), as
the real hub redirects to its CDN. The switches are plain attributes and may be changed while it runs. `requests`
records every request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".pt", ".pth", ".wav", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request that the hub received."""

    method: str
    path: str
    start: int  # first requested byte
    token: str


class FakeHub:
    """Runs a server inside a `with` block. Tests may set all switches at any time."""

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.requests: list[RecordedRequest] = []
        self.gated: set[str] = (
            set()
        )  # repos whose files need one of `tokens`; their lists are public, as on the real hub
        self.private: set[str] = set()  # repos that do not exist without one of `tokens`
        self.tokens: set[str] = set()
        self.unknown_tokens: set[str] = set()  # tokens of no account: every request with one is a 401
        self.status: int | None = None  # status of every response
        self.failures = 0  # number of requests that fail with 503
        self.hang = False  # accept connections, but send no response
        self.stall_after_bytes: int | None = None  # stop sending each file after this number of bytes
        self.cut_after_bytes: list[int] = []  # byte counts after which the next downloads of large files break off
        self.bytes_per_s: float | None = None  # download speed of large files; None = unlimited
        self.ignore_range = False
        self.corrupt = 0  # number of the next downloads of large files that contain a flipped bit
        self.left_out: set[str] = set()  # fields that file lists do not have, as on some mirrors
        self.login_page = False  # every response is an HTML page with status 200
        self._over = threading.Event()
        hub = self

        class Handler(_Handler):
            def __init__(self, *args: object) -> None:
                self.hub = hub
                super().__init__(*args)  # type: ignore[arg-type]

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    def commit(self, repo: str) -> str:
        """Return the commit id of a repo. It changes with the content, as in git."""
        content = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in self.repos[repo].items())
        return hashlib.sha1(json.dumps([repo, content]).encode()).hexdigest()

    def downloads(self, name: str = "") -> list[RecordedRequest]:
        """Return the requests that fetched bytes of a file whose path ends with `name`."""
        return [a for a in self.requests if a.method == "GET" and "/resolve/" in a.path and a.path.endswith(name)]

    def sleep(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise ConnectionAbortedError

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def etag(name: str, data: bytes) -> str:
    if name.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        range_start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        start = 0 if hub.ignore_range else int(range_start)
        hub.requests.append(RecordedRequest(self.command, path, int(range_start), token))
        try:
            if hub.hang:
                hub.sleep(3600)
            elif hub.login_page:
                self._send(200, b"<html>Please log in to this network</html>", {"Content-Type": "text/html"})
            elif hub.status is not None:
                self._send(hub.status, b'{"error": "told to"}')
            elif hub.failures > 0:
                hub.failures -= 1
                self._send(503, b'{"error": "told to"}')
            elif token in hub.unknown_tokens:
                self._send(401, b'{"error": "Invalid credentials in Authorization header"}')
            elif path.startswith("/api/models/"):
                self._describe(path.removeprefix("/api/models/"), token)
            elif path.startswith("/cdn/"):
                repo, _, name = path.removeprefix("/cdn/").partition("//")
                self._bytes(hub.repos[repo][name], start, {"ETag": '"the-cdn-has-its-own"'})
            elif "/resolve/" in path:
                self._resolve(path.strip("/"), start, token)
            else:
                self._send(404, b"{}")
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _refuse(self, status: int, code: str, words: str) -> None:
        self._send(status, json.dumps({"error": words}).encode(), {"X-Error-Code": code, "X-Error-Message": words})

    def _known(self, repo: str, token: str) -> bool:
        if repo in self.hub.repos and (repo not in self.hub.private or token in self.hub.tokens):
            return True
        self._refuse(404 if token in self.hub.tokens else 401, "RepoNotFound", "Repository not found")
        return False

    def _describe(self, path: str, token: str) -> None:
        """Answer /api/models/<org>/<name>[/revision/<revision>] and /tree/<revision>."""
        hub = self.hub
        org, name, *rest = path.split("/")
        repo = f"{org}/{name}"
        if not self._known(repo, token):
            return
        commit = hub.commit(repo)
        if rest and "/".join(rest[1:]) not in ("main", commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        files = []
        for file, data in hub.repos[repo].items():
            key = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            lfs = {"sha256": etag(file, data), "oid": etag(file, data), "size": len(data), "pointerSize": 134}
            files.append({"name": file, "size": len(data), "key": key} | ({"lfs": lfs} if file.endswith(LFS) else {}))
        if rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": f["name"], "size": f["size"], "oid": f["key"]}
                | ({"lfs": f["lfs"]} if "lfs" in f else {})
                for f in files
            ]
            self._send(200, json.dumps(tree).encode())
            return
        siblings = [
            {"rfilename": f["name"], "size": f["size"], "blobId": f["key"]} | ({"lfs": f["lfs"]} if "lfs" in f else {})
            for f in files
        ]
        siblings = [{key: each[key] for key in each.keys() - hub.left_out} for each in siblings]
        answer = {"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}
        answer["gated"] = "manual" if repo in hub.gated else False
        self._send(200, json.dumps(answer).encode())

    def _resolve(self, path: str, start: int, token: str) -> None:
        """Answer /<org>/<name>/resolve/<revision>/<file>."""
        hub = self.hub
        repo, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        if not self._known(repo, token):
            return
        if repo in hub.gated and token not in hub.tokens:
            words = f"Access to model {repo} is restricted."
            self._refuse(403 if token else 401, "GatedRepo", words)
            return
        commit = hub.commit(repo)
        if revision not in ("main", commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        if file not in hub.repos[repo]:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data = hub.repos[repo][file]
        about = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not file.endswith(LFS):
            self._bytes(data, start, about | {"ETag": f'"{etag(file, data)}"'})
            return
        about |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag(file, data)}"'}
        self._send(302, b"", about | {"Location": f"{hub.cdn}/cdn/{repo}//{file}"})

    def _bytes(self, data: bytes, start: int, headers: dict[str, str]) -> None:
        hub = self.hub
        if start and start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        large = self.path.startswith("/cdn/")
        if large and hub.corrupt > 0:
            hub.corrupt -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        body = data[start:]
        self.send_response(206 if start else 200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = hub.cut_after_bytes.pop(0) if large and hub.cut_after_bytes else len(body)
        block = max(1, int(hub.bytes_per_s / 50)) if large and hub.bytes_per_s else 1 << 16
        sent = 0
        while sent < min(cut, len(body)):
            if large and hub.stall_after_bytes is not None and sent >= hub.stall_after_bytes:
                hub.sleep(3600)
            piece = body[sent : min(cut, sent + block)]
            self.wfile.write(piece)
            sent += len(piece)
            if large and hub.bytes_per_s:
                hub.sleep(len(piece) / hub.bytes_per_s)
        if sent < len(body):
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | dict(headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
