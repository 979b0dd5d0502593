"""Client secrets: their content, their signature, their time limit, and the file with the key that signs them."""

from __future__ import annotations

import base64
import logging
import random
import string
import zlib
from pathlib import Path
from typing import Any

import pytest

from app.api.client_secrets import FILE, MAX_CHARS, PREFIX, ClientSecrets
from app.errors import Unauthorized
from app.keys import Key

pytestmark = pytest.mark.unit

KEY = Key("browser", "0" * 64, ("speak", "clone"))
SESSIONS: list[dict[str, Any]] = [
    {},
    {"type": "realtime", "audio": {"output": {"voice": "nova"}}},
    {"instructions": "Sag es fr\u00f6hlich. \u8bf7 \U0001f600 \ud800"},
    {"speed": 1.5, "tools": [], "metadata": None},
]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("key", [KEY, None])
def test_every_process_with_the_data_folder_reads_a_secret(
    tmp_path: Path, session: dict[str, Any], key: Key | None
) -> None:
    clock = Clock()
    value, expires_at = ClientSecrets(tmp_path, clock).create(key, session, 60)
    assert value.startswith(PREFIX)
    assert expires_at == clock.now_s + 60
    found = ClientSecrets(tmp_path, clock).find(value)
    assert found is not None
    assert (found.expires_at, found.session) == (expires_at, session)
    assert (found.key and found.key.sha256) == (key and key.sha256)


def test_secret_expires_at_its_time(tmp_path: Path) -> None:
    clock = Clock()
    known = ClientSecrets(tmp_path, clock)
    values = [known.create(KEY, {}, 60)[0], known.create(KEY, {"instructions": _noise(9000)}, 60)[0]]
    clock.now_s += 60
    assert all(known.find(value) for value in values)
    clock.now_s += 0.001
    for value in values:
        with pytest.raises(Unauthorized):
            known.find(value)


def test_two_secrets_are_different(tmp_path: Path) -> None:
    known = ClientSecrets(tmp_path, Clock())
    assert len({known.create(KEY, {}, 60)[0] for _ in range(50)}) == 50


ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


def test_every_changed_character_makes_a_secret_invalid(tmp_path: Path) -> None:
    known = ClientSecrets(tmp_path, Clock())
    for _ in range(8):  # base64 leaves 0, 2 or 4 bits of the last character unused, according to the length
        value, _ = known.create(KEY, {"type": "realtime"}, 60)
        for at in range(len(PREFIX), len(value)):
            following = ALPHABET[(ALPHABET.find(value[at]) + 1) % 64]
            assert known.find(value[:at] + following + value[at + 1 :]) is None


@pytest.mark.parametrize(
    "text", ["", "ek_", "ek_.", "ek_a.b", "ek_\u00e4.\u00e4", "ek_" + "." * 50, "sk-1", "ek_" + "A" * 90_000]
)
def test_other_texts_are_not_accepted_as_secrets(tmp_path: Path, text: str) -> None:
    assert ClientSecrets(tmp_path).find(text) is None


def test_secret_of_another_server_is_invalid(tmp_path: Path) -> None:
    value, _ = ClientSecrets(tmp_path / "a").create(KEY, {}, 60)
    assert ClientSecrets(tmp_path / "b").find(value) is None


def test_content_without_a_signature_is_invalid(tmp_path: Path) -> None:
    content = base64.urlsafe_b64encode(zlib.compress(b'[9e9, null, {}, ""]')).decode().rstrip("=")
    assert ClientSecrets(tmp_path).find(f"{PREFIX}{content}.") is None
    assert ClientSecrets(tmp_path).find(f"{PREFIX}{content}.{'A' * 43}") is None


def test_secret_with_long_settings_is_short(tmp_path: Path) -> None:
    known = ClientSecrets(tmp_path, Clock())
    session = {"instructions": _noise(20_000)}
    value, _ = known.create(KEY, session, 60)
    assert len(value) < MAX_CHARS
    found = known.find(value)
    assert found is not None
    assert found.session == session
    assert ClientSecrets(tmp_path, Clock()).find(value) is None


def test_only_the_user_of_the_server_reads_the_key(tmp_path: Path) -> None:
    ClientSecrets(tmp_path).create(None, {}, 60)
    [file] = (tmp_path / "keys").iterdir()
    assert file.name == FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["short", "folder"])
def test_secret_works_in_its_process_if_the_key_cant_be_stored(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys" / FILE
    path.parent.mkdir()
    if damage == "short":
        path.write_bytes(b"short")
    else:
        path.mkdir()
    known = ClientSecrets(tmp_path)
    with caplog.at_level(logging.WARNING):
        value, _ = known.create(None, {}, 60)
    assert "one process only" in caplog.text
    assert known.find(value)
    assert ClientSecrets(tmp_path).find(value) is None


def _noise(length: int) -> str:
    """Return a text that can't be compressed to less than half its size."""
    return "".join(random.Random(0).choices(string.ascii_letters, k=length))
