"""Client secrets of the Realtime API: keys that a browser may know, because they are valid for a short time.

The text of a secret contains its content: the digest of the API key that created it, the settings of its sessions, and
the time at which it expires. A signature protects this content from changes. All processes with the same data folder
accept the secret, also after a restart. If the settings are too long for a header, the text of the secret is random.
Only the process that created such a secret knows its content and accepts it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.durable_file import write_file
from app.errors import Unauthorized
from app.keys import FOLDER, Key
from app.lru import LRU

log = logging.getLogger(__name__)

PREFIX = "ek_"
FILE = "client_secrets.key"  # name of the file with the signing key, in the folder of the API keys
MAX_CHARS = 4096  # the longest text of a secret that contains its content
MAX_HELD = 10_000  # the largest number of secrets with long settings that a process remembers
MAX_CONTENT_BYTES = 1 << 20  # the largest size of the content of a secret, after decompression
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secret:
    """The content of a client secret."""

    expires_at: float  # Unix time in seconds
    # The API key that created the secret; only its name and its digest are used. None = the server had no keys.
    key: Key | None
    session: dict[str, Any]


class ClientSecrets:
    """Creates and checks client secrets. Use it from one event loop."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = data_dir / FOLDER / FILE
        self._clock = clock
        self._signing_key = b""
        self._held: LRU[str, Secret] = LRU(MAX_HELD)

    def create(self, key: Key | None, session: dict[str, Any], seconds: int) -> tuple[str, float]:
        """Create a secret. Returns its text, and the time at which it expires."""
        expires_at = self._clock() + seconds
        owner = None if key is None else [key.name, key.sha256]
        content = json.dumps([expires_at, owner, session, secrets.token_hex(8)], separators=(",", ":"))
        packed = zlib.compress(content.encode("utf-8", "surrogatepass"), 9)
        value = self._signed(packed)
        if len(value) > MAX_CHARS:
            value = PREFIX + secrets.token_urlsafe(32)
            self._held.put(_digest(value), Secret(expires_at, key, session))
        return value, expires_at

    def find(self, value: str) -> Secret | None:
        """Return the content of a secret; None if the text is not a secret.

        Raises Unauthorized if the secret has expired.
        """
        if not value.startswith(PREFIX):
            return None
        found = self._held.get(_digest(value)) or self._read(value)
        if found is not None and self._clock() > found.expires_at:
            raise Unauthorized("The client secret has expired. Create another one.")
        return found

    def _read(self, value: str) -> Secret | None:
        """Return the content of a secret; None if the text has no valid signature."""
        content, dot, _ = value.removeprefix(PREFIX).partition(".")
        if not dot or len(value) > MAX_CHARS:
            return None
        with contextlib.suppress(ValueError):
            packed = _bytes(content)
            # The texts are compared and not the decoded bytes, because several base64 texts stand for the same bytes.
            if not hmac.compare_digest(self._signed(packed).encode(), value.encode()):
                return None
            unpacked = zlib.decompressobj().decompress(packed, MAX_CONTENT_BYTES)
            expires_at, owner, session, _ = json.loads(unpacked.decode("utf-8", "surrogatepass"))
            key = None if owner is None else Key(owner[0], owner[1], ("speak",))
            return Secret(expires_at, key, session)
        return None

    def _signed(self, content: bytes) -> str:
        """Sign the content, and return the client secret: the text with the content and its signature."""
        if not self._signing_key:
            self._signing_key = _read_or_create(self._path)
        signature = hmac.new(self._signing_key, content, hashlib.sha256).digest()
        return f"{PREFIX}{_text(content)}.{_text(signature)}"


def _read_or_create(path: Path) -> bytes:
    """Return the key that signs secrets. If the file with the key does not exist, create it.

    If the file can't be used, return a new key that only this process knows.
    """
    key = secrets.token_bytes(_KEY_BYTES)
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            try:
                write_file(draft, key)
                with contextlib.suppress(FileExistsError):  # another process has created the file
                    os.link(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        if len(found := path.read_bytes()) == _KEY_BYTES:
            return found
        log.warning(
            "%s is damaged. Delete it and restart the server. Until then, client secrets are valid in one process only",
            path,
        )
    except OSError as error:
        log.warning("%s can't be used, so client secrets are valid in one process only: %s", path, error)
    return key


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    """Return the bytes that `_text` has encoded as base64. Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()
