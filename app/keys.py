"""The keys of this server: whose they are, what each may do, how often, and how much at once. Knows no HTTP.

A key is "sk-" and 256 random bits, so what is stored is its plain SHA-256: slow hashes are for secrets that can be
guessed, and would cost every request what they cost a guesser. Comparing digests in constant time tells nothing either.

Keys come from `TTS_API_KEYS`, which may do everything, and from a file that `python -m app.cli keys` writes and that is
read again when it changes. A server that has had keys once stays closed until it ends, whatever happens to the file.
"""

from __future__ import annotations

import contextlib
import fcntl
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

from app.errors import Forbidden, RateLimited, Unauthorized

log = logging.getLogger(__name__)

Scope = Literal["speak", "clone", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

FOLDER, FILE = "keys", "keys.json"
MOST_KEYS = 1_000  # each is a label of the metrics
LEAST_LENGTH, LEAST_DIFFERENT = 16, 6  # of a key somebody made up
LOOK_S = 1.0  # how often the file is looked at, and so how long a removed key still opens
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_Signature = tuple[int, int, int]


class BadKeys(ValueError):
    """The file, or what was to be written into it, is not right; the message says what."""


def _distinct(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    return tuple(scope for scope in SCOPES if scope in scopes)


@dataclass(frozen=True, slots=True)
class Key:
    """One key as it is stored. per_minute, concurrent: None = as many as the server bears. created_at: Unix time, s."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # a misspelt limit is no limit

    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1), AfterValidator(_distinct)]
    per_minute: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    concurrent: Annotated[int | None, Field(ge=1, le=100_000)] = None
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Content:
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    format: Literal[1]
    keys: Annotated[tuple[Key, ...], Field(max_length=MOST_KEYS)]


_CONTENT = TypeAdapter(_Content)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def weakness(key: str) -> str:
    """Return why this key is too weak, in words, or "". For keys that people chose themselves."""
    if len(key) < LEAST_LENGTH:
        return f"it has fewer than {LEAST_LENGTH} characters"
    if len(set(key)) < LEAST_DIFFERENT:
        return f"it is made of fewer than {LEAST_DIFFERENT} different characters"
    if not re.fullmatch(r"[!-~]+", key):
        return "it has characters that a header can't carry: spaces, or others than ASCII"
    return ""


class KeyFile:
    """`TTS_DATA_DIR/keys/keys.json`. Every call blocks, for well under a millisecond but for `add` and `remove`."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FOLDER / FILE

    def signature(self) -> _Signature | None:
        """A value that changes with the file; None if the file does not exist. Raises OSError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> tuple[Key, ...]:
        """Read the keys. Raises BadKeys, OSError (FileNotFoundError if there is no file)."""
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                log.warning("%s can be written by everybody on this machine: chmod 600 it", self.path)
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
        """Create a key and return it. Only its digest is stored. Raises BadKeys, OSError."""
        if not re.fullmatch(_NAME, name):
            raise BadKeys("A name begins with a letter or digit; letters, digits, `.`, `_` and `-` follow, 64 in all.")
        given = f"sk-{secrets.token_urlsafe(32)}"
        key = Key(name, digest(given), _distinct(tuple(scopes)), per_minute, concurrent, round(time.time()))
        with self._exclusively():
            keys = self._present()
            if any(other.name == name for other in keys):
                raise BadKeys(f"There is a key {name!r} already: remove it first, or take another name.")
            self._write((*keys, key))
        return given

    def remove(self, name: str) -> int:
        """How many keys are left; the file stays when none is, so that the server stays closed. Raises BadKeys,
        OSError."""
        with self._exclusively():
            keys = self._present()
            left = tuple(key for key in keys if key.name != name)
            if len(left) == len(keys):
                raise BadKeys(f"There is no key {name!r} in {self.path}.")
            self._write(left)
        return len(left)

    def _present(self) -> tuple[Key, ...]:
        try:
            return self.read()
        except FileNotFoundError:
            return ()

    def _write(self, keys: tuple[Key, ...]) -> None:
        """Whole or not at all, and for the owner only."""
        data = _CONTENT.dump_json(_Content(1, keys), indent=2) + b"\n"
        try:
            _CONTENT.validate_json(data)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise BadKeys(f"{wrong['loc'][-1]}: {wrong['msg']}.") from None
        temporary = self.path.with_name(f".new-{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Two who add at once both get what they asked for."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(self.path.with_name(".lock"), os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass(slots=True)
class _Meter:
    """What a key has used: tokens of a bucket that holds a minute's worth, and requests under way."""

    tokens: float
    filled_s: float
    active: int = 0


@dataclass(slots=True)
class Pass:
    """One request that was let in. `close` it when its answer has ended. remaining, reset_s: of the requests a minute;
    how many are left now, and until all are there again."""

    key: Key
    remaining: int
    reset_s: float
    _meter: _Meter
    _open: bool = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self._meter.active -= 1


class KeyRing:
    """All keys, and what each has used. For one thread: the event loop's.

    fixed: keys from the settings, in clear; they may do everything, and are called `env:1`, `env:2` and so on. Raises
    BadKeys where one is weak or the file is not right, OSError where it can't be read.
    """

    def __init__(
        self,
        fixed: Sequence[str] = (),
        file: KeyFile | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for at, key in enumerate(fixed):
            if why := weakness(key):
                raise BadKeys(
                    f"TTS_API_KEYS: key {at + 1} is too weak: {why}. `openssl rand -hex 32` makes a good one, and so "
                    "does `python -m app.cli keys add`."
                )
        unique = dict.fromkeys(fixed)
        self._fixed = tuple(Key(f"env:{at}", digest(key), SCOPES) for at, key in enumerate(unique, 1))
        self._file = file
        self._clock = clock
        self._keys = self._fixed
        self._meters: dict[str, _Meter] = {}
        self._closed = bool(self._fixed)
        self._looked_s = clock()
        self._seen: _Signature | None = None  # the file as it was taken
        self._told = ""  # why it could not be, the last time
        if file is not None and (seen := file.signature()) is not None:
            self._take(file.read(), seen)

    @property
    def keys(self) -> tuple[Key, ...]:
        return self._keys

    @property
    def needed(self) -> bool:
        """Whether requests need a key."""
        self._look()
        return self._closed

    def find(self, given: str) -> Key:
        """Whose key this is. Raises Unauthorized."""
        self._look()
        if not given:
            raise Unauthorized("No API key was given. Send `Authorization: Bearer <key>` with a key of this server.")
        sought = digest(given)
        # All are compared, in constant time each: how long it takes tells nothing.
        found = [key for key in self._keys if secrets.compare_digest(sought, key.sha256)]
        if not found:
            raise Unauthorized(
                # OpenAI's first words: LiteLLM knows by them that it is the key, not the request, that is wrong.
                "Incorrect API key provided: it is not one of this server's. Send `Authorization: Bearer <key>` with a "
                "key from `python -m app.cli keys add` or TTS_API_KEYS."
            )
        return found[0]

    def admit(self, key: Key, scope: Scope) -> Pass:
        """Let one request of this key in. Raises Forbidden, RateLimited."""
        if scope not in key.scopes:
            raise Forbidden(
                f"The API key {key.name!r} lacks the scope `{scope}`, which this request needs. It has: "
                f"{', '.join(key.scopes)}. Ask the operator of this server for a key with that scope."
            )
        now_s = self._clock()
        most = float(key.per_minute or 0)
        meter = self._meters.setdefault(key.sha256, _Meter(most, now_s))
        if key.concurrent is not None and meter.active >= key.concurrent:
            raise RateLimited(
                f"The API key {key.name!r} may have {key.concurrent} requests under way at once, and has. Send the "
                "next when one of them has ended.",
                reason="concurrency",
            )
        remaining, reset_s = 0, 0.0
        if key.per_minute is not None:
            meter.tokens = min(most, meter.tokens + (now_s - meter.filled_s) * most / 60)
            meter.filled_s = now_s
            if meter.tokens < 1:
                wait_s = (1 - meter.tokens) * 60 / most
                raise RateLimited(
                    f"The API key {key.name!r} may make {key.per_minute} requests a minute. Try again in "
                    f"{math.ceil(wait_s)} s.",
                    retry_after_s=math.ceil(wait_s),
                    reason="rate",
                    limit=key.per_minute,
                    reset_s=(most - meter.tokens) * 60 / most,
                )
            meter.tokens -= 1
            remaining, reset_s = int(meter.tokens), (most - meter.tokens) * 60 / most
        meter.active += 1
        return Pass(key, remaining, reset_s, meter)

    def _look(self) -> None:
        """Read the file again if it has changed. A file that cannot be read is logged and changes nothing. A deleted
        file removes its keys, but requests still need a key."""
        now_s = self._clock()
        if self._file is None or now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        try:
            seen = self._file.signature()
            if seen == self._seen:
                return
            self._take(() if seen is None else self._file.read(), seen)
        except (BadKeys, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                log.error("The key file could not be read, so the keys before it stay in use: %s", error)
            return
        log.info("%s: there are %d keys now", self._file.path, len(self._keys))

    def _take(self, keys: tuple[Key, ...], seen: _Signature | None) -> None:
        self._keys = (*self._fixed, *keys)
        self._closed = True
        self._seen, self._told = seen, ""
        known = {key.sha256 for key in self._keys}
        self._meters = {which: meter for which, meter in self._meters.items() if which in known or meter.active}
