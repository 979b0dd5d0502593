"""API keys: their names, scopes and rate limits. This module does not depend on HTTP.

The keys in `TTS_API_KEYS` have all scopes. Other keys are in the key file, which `python -m app.cli keys` writes. When
the key file changes, the server reads the file again. Once a server has had a key, this server requires a key until it
stops, even if the key file is deleted.

A generated key is "sk-" and 256 random bits. Only the SHA-256 digest of a key is stored. A slow password hash would
delay every request, and is not needed because 256 random bits can't be guessed. Digests are compared in constant time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from app.durable_file import lock_file, replace_file
from app.errors import Forbidden, RateLimited, Unauthorized

log = logging.getLogger(__name__)

Scope = Literal["speak", "clone", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

FOLDER, FILE = "keys", "keys.json"
MAX_KEYS = 1_000  # the metrics contain the name of each key, so the number is limited
# A key in TTS_API_KEYS has at least MIN_LENGTH characters, and at least MIN_DIFFERENT different characters.
MIN_LENGTH, MIN_DIFFERENT = 16, 6
CHECK_FILE_S = 1.0  # seconds between two checks of the key file; a removed key stays valid until the next check
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_Signature = tuple[int, int, int]


class BadKeys(ValueError):
    """A key or the key file is invalid. The message gives the reason."""


def _distinct(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    """Return the scopes without duplicates, in the order of SCOPES."""
    return tuple(scope for scope in SCOPES if scope in scopes)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the key file stores it."""

    # extra="forbid" makes a misspelt field name an error. Otherwise a limit with a misspelt name would not apply.
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1), AfterValidator(_distinct)]
    per_minute: Annotated[int | None, Field(ge=1, le=1_000_000)] = None  # requests per minute; None = no limit
    concurrent: Annotated[int | None, Field(ge=1, le=100_000)] = None  # requests at the same time; None = no limit
    created_at: float = 0.0  # Unix time in seconds

    def check(self, scope: Scope) -> None:
        """Check that the key has a scope. Raises Forbidden."""
        if scope not in self.scopes:
            raise Forbidden(
                f"The API key {self.name!r} lacks the scope `{scope}`, which this request needs. Its scopes are: "
                f"{', '.join(self.scopes)}. Ask the operator of this server for a key with that scope."
            )


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of the key file."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    format: Literal[1]
    keys: Annotated[tuple[Key, ...], Field(max_length=MAX_KEYS)]


_CONTENT = TypeAdapter(_Content)


def digest(key: str) -> str:
    """Return the SHA-256 digest of a key in hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def weakness(key: str) -> str:
    """Return the reason why a key in TTS_API_KEYS is not acceptable; "" if the key is acceptable."""
    if len(key) < MIN_LENGTH:
        return f"the key has fewer than {MIN_LENGTH} characters"
    if len(set(key)) < MIN_DIFFERENT:
        return f"the key has fewer than {MIN_DIFFERENT} different characters"
    if not re.fullmatch(r"[!-~]+", key):
        return "the key has characters that an HTTP header can't contain: spaces, or characters outside ASCII"
    return ""


class KeyFile:
    """The key file, `TTS_DATA_DIR/keys/keys.json`. All methods block. Only `add` and `remove` take more than 1 ms."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FOLDER / FILE

    def signature(self) -> _Signature | None:
        """Return a value that changes when the key file changes; None if the file does not exist. Raises OSError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> tuple[Key, ...]:
        """Read the keys from the file. Raises BadKeys, OSError (FileNotFoundError if the file does not exist)."""
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                log.warning("every user of this machine can change the API keys in %s: run chmod 600 on it", self.path)
            data = file.read()
        try:
            keys = _CONTENT.validate_json(data).keys
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadKeys(f"{self.path} can't be used: {where + ': ' if where else ''}{first['msg']}.") from None
        for what in ("name", "sha256"):
            if len({getattr(key, what) for key in keys}) < len(keys):
                raise BadKeys(f"{self.path} can't be used: two of its keys have the same {what}.")
        return keys

    def add(
        self, name: str, scopes: Sequence[Scope], *, per_minute: int | None = None, concurrent: int | None = None
    ) -> str:
        """Create a key and return it as plain text. Only the digest of the key is stored. Raises BadKeys, OSError."""
        if not re.fullmatch(_NAME, name):
            raise BadKeys(
                "A key's name has 1 to 64 letters, digits, `.`, `_` or `-`, and begins with a letter or digit."
            )
        secret = f"sk-{secrets.token_urlsafe(32)}"
        key = Key(name, digest(secret), _distinct(tuple(scopes)), per_minute, concurrent, round(time.time()))
        with self._exclusively():
            keys = self._present()
            if any(other.name == name for other in keys):
                raise BadKeys(f"A key {name!r} already exists. Remove it first, or choose another name.")
            self._write((*keys, key))
        return secret

    def remove(self, name: str) -> int:
        """Remove a key and return the number of remaining keys. Raises BadKeys, OSError.

        When no key is left, the file remains. So a server that starts later still requires a key.
        """
        with self._exclusively():
            keys = self._present()
            remaining = tuple(key for key in keys if key.name != name)
            if len(remaining) == len(keys):
                raise BadKeys(f"{self.path} has no key {name!r}. `python -m app.cli keys list` shows its keys.")
            self._write(remaining)
        return len(remaining)

    def _present(self) -> tuple[Key, ...]:
        try:
            return self.read()
        except FileNotFoundError:
            return ()

    def _write(self, keys: tuple[Key, ...]) -> None:
        """Replace the key file atomically. Only the owner of the file can read it. Raises BadKeys, OSError."""
        data = _CONTENT.dump_json(_Content(1, keys), indent=2) + b"\n"
        try:
            _CONTENT.validate_json(data)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise BadKeys(f"{wrong['loc'][-1]}: {wrong['msg']}.") from None
        replace_file(self.path, data)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the lock of the key file, so that two processes do not overwrite each other's changes."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_file(self.path.with_name(".lock")):
            yield


@dataclass(slots=True)
class _Meter:
    """Counts the use of a key: a token bucket of allowed requests, and the number of running requests."""

    tokens: float
    filled_s: float  # the time at which `tokens` was computed
    active: int = 0  # number of running requests


@dataclass(slots=True)
class Pass:
    """An admitted request. Call `close` when the response ends, because until then the request counts as running."""

    key: Key
    remaining: int  # number of requests that the key may make now
    reset_s: float  # seconds until the key may make all its requests per minute again
    _meter: _Meter
    _open: bool = True

    def close(self) -> None:
        """Count the request as ended. Only the first call has an effect."""
        if self._open:
            self._open = False
            self._meter.active -= 1


class KeyRing:
    """Checks keys and counts the use of each key. All calls must come from one event loop."""

    def __init__(
        self,
        fixed: Sequence[str] = (),
        file: KeyFile | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read all keys. Raises BadKeys for a weak key or an invalid file, OSError for an unreadable file.

        fixed: the keys of TTS_API_KEYS, in plain text. These keys have all scopes and the names `env:1`, `env:2` and so
        on.
        """
        for at, key in enumerate(fixed):
            if why := weakness(key):
                raise BadKeys(
                    f"TTS_API_KEYS: key {at + 1} is too weak: {why}. Create a strong key with `openssl rand -hex 32` "
                    "or `python -m app.cli keys add`."
                )
        unique = dict.fromkeys(fixed)
        self._fixed = tuple(Key(f"env:{at}", digest(key), SCOPES) for at, key in enumerate(unique, 1))
        self._file = file
        self._clock = clock
        self._keys = self._fixed
        self._meters: dict[str, _Meter] = {}
        self._closed = bool(self._fixed)
        self._checked_s = clock()
        self._signature: _Signature | None = None  # the signature of the file at the last read
        self._logged_error = ""  # the last reason why the file could not be read
        if file is not None and (signature := file.signature()) is not None:
            self._replace_keys(file.read(), signature)

    @property
    def keys(self) -> tuple[Key, ...]:
        return self._keys

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        self._check_file()
        return self._closed

    def find(self, secret: str) -> Key:
        """Find the key with the text `secret`. Raises Unauthorized if the text is empty or is not a key."""
        self._check_file()
        if not secret:
            raise Unauthorized("No API key was given. Send `Authorization: Bearer <key>` with a key of this server.")
        sought = digest(secret)
        # Every key is compared in constant time, so that the response time reveals nothing about the keys.
        found = [key for key in self._keys if secrets.compare_digest(sought, key.sha256)]
        if not found:
            raise Unauthorized(
                # OpenAI's message begins with these words, and LiteLLM recognises an authentication error by these
                # words.
                "Incorrect API key provided: this server does not have this key. Send "
                "`Authorization: Bearer <key>` with a key from `python -m app.cli keys add` or TTS_API_KEYS."
            )
        return found[0]

    def name_of(self, sha256: str) -> str:
        """Return the name of the key with this digest; "" for the digest "", "removed" for a key that was removed."""
        return next((key.name for key in self._keys if key.sha256 == sha256), "removed") if sha256 else ""

    def present(self, key: Key) -> Key:
        """Return the current entry of a key that was found earlier. Raises Unauthorized if the key was removed."""
        self._check_file()
        for each in self._keys:
            if each.sha256 == key.sha256:
                return each
        raise Unauthorized(f"The API key {key.name!r} was removed from this server. Send another key.")

    def admit(self, key: Key, scope: Scope) -> Pass:
        """Count one request with this key. Raises Forbidden if a scope is missing, or RateLimited."""
        key.check(scope)
        now_s = self._clock()
        capacity = float(key.per_minute or 0)
        meter = self._meters.setdefault(key.sha256, _Meter(capacity, now_s))
        if key.concurrent is not None and meter.active >= key.concurrent:
            raise RateLimited(
                f"The API key {key.name!r} may have {key.concurrent} requests running at the same time. Try again when "
                "one of them has ended.",
                reason="concurrency",
            )
        remaining, reset_s = 0, 0.0
        if key.per_minute is not None:
            meter.tokens = min(capacity, meter.tokens + (now_s - meter.filled_s) * capacity / 60)
            meter.filled_s = now_s
            if meter.tokens < 1:
                wait_s = (1 - meter.tokens) * 60 / capacity
                raise RateLimited(
                    f"The API key {key.name!r} may make {key.per_minute} requests per minute. Try again in "
                    f"{math.ceil(wait_s)} s.",
                    retry_after_s=math.ceil(wait_s),
                    reason="rate",
                    limit=key.per_minute,
                    reset_s=(capacity - meter.tokens) * 60 / capacity,
                )
            meter.tokens -= 1
            remaining, reset_s = int(meter.tokens), (capacity - meter.tokens) * 60 / capacity
        meter.active += 1
        return Pass(key, remaining, reset_s, meter)

    def _check_file(self) -> None:
        """If the key file has changed, read the file again.

        If the file can't be read, this method logs the error, and the earlier keys stay valid. If the file was deleted,
        the keys of the file become invalid, but requests still need a key.
        """
        now_s = self._clock()
        if self._file is None or now_s - self._checked_s < CHECK_FILE_S:
            return
        self._checked_s = now_s
        try:
            signature = self._file.signature()
            if signature == self._signature:
                return
            self._replace_keys(() if signature is None else self._file.read(), signature)
        except (BadKeys, OSError) as error:
            if str(error) != self._logged_error:
                self._logged_error = str(error)
                log.error("The changed key file could not be read, so the earlier keys stay valid: %s", error)
            return
        log.info("read the key file %s again: %d keys are valid", self._file.path, len(self._keys))

    def _replace_keys(self, keys: tuple[Key, ...], signature: _Signature | None) -> None:
        """Replace all keys of the file by `keys`. If a key stays valid, its counts of requests stay too."""
        self._keys = (*self._fixed, *keys)
        self._closed = True
        self._signature, self._logged_error = signature, ""
        known = {key.sha256 for key in self._keys}
        self._meters = {sha256: meter for sha256, meter in self._meters.items() if sha256 in known or meter.active}
