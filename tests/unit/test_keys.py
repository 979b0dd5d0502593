"""API keys: the key file, authorization and rate limits."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import stat

import pytest

from app.errors import Forbidden, RateLimited, Unauthorized
from app.keys import CHECK_FILE_S, SCOPES, BadKeys, Key, KeyFile, KeyRing, weakness

pytestmark = pytest.mark.unit

FIXED = "a-key-of-the-settings"


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def file(tmp_path):
    return KeyFile(tmp_path)


@pytest.fixture
def clock():
    return Clock()


# ---- the file


def test_key_is_random_and_only_its_hash_is_stored(file):
    keys = [file.add(f"caller-{n}", ["speak"]) for n in range(3)]
    assert len(set(keys)) == 3
    assert all(re.fullmatch(r"sk-[\w-]{43}", key) for key in keys)  # 256 bits
    content = file.path.read_text()
    for key in keys:
        assert key not in content
        assert key[3:] not in content
        assert hashlib.sha256(key.encode()).hexdigest() in content
        assert not weakness(key)


def test_file_is_accessible_only_to_its_owner(file):
    old = os.umask(0)
    try:
        file.add("one", ["speak"])
        file.add("two", ["speak"])
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert {path.name for path in file.path.parent.iterdir()} == {"keys.json", ".lock"}


def test_added_keys_are_read_back(file):
    file.add("plain", ["speak"])
    file.add("whole", ["admin", "speak", "clone", "speak"], per_minute=60, concurrent=4)
    plain, whole = file.read()
    assert (plain.name, plain.scopes, plain.per_minute, plain.concurrent) == ("plain", ("speak",), None, None)
    assert (whole.name, whole.scopes, whole.per_minute, whole.concurrent) == ("whole", SCOPES, 60, 4)
    assert file.remove("plain") == 1
    assert file.read() == (whole,)
    assert file.remove("whole") == 0
    assert file.read() == ()


@pytest.mark.parametrize(
    ("name", "scopes", "limits"),
    [
        ("", ["speak"], {}),
        ("a b", ["speak"], {}),
        ("a\nb", ["speak"], {}),
        ("a\n", ["speak"], {}),
        ("-a", ["speak"], {}),
        ("ä", ["speak"], {}),
        ("env:1", ["speak"], {}),
        ("a" * 65, ["speak"], {}),
        ("a", [], {}),
        ("a", ["fly"], {}),
        ("a", ["speak"], {"per_minute": 0}),
        ("a", ["speak"], {"concurrent": 0}),
        ("taken", ["speak"], {}),
    ],
)
def test_invalid_key_does_not_change_the_file(file, name, scopes, limits):
    file.add("taken", ["speak"])
    before = file.path.read_bytes()
    with pytest.raises(BadKeys):
        file.add(name, scopes, **limits)
    assert file.path.read_bytes() == before
    with pytest.raises(BadKeys, match="no key"):
        file.remove("nobody")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2, "keys": []}',
        b'{"format": 1, "keys": [{"name": "a"}]}',
        b'{"format": 1, "keys": [], "more": 1}',
        json.dumps(
            {"format": 1, "keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["speak"], "per_minut": 5}]}
        ).encode(),
        json.dumps({"format": 1, "keys": [{"name": "a", "sha256": "sk-abc", "scopes": ["speak"]}]}).encode(),
        json.dumps(
            {"format": 1, "keys": [{"name": n, "sha256": "0" * 64, "scopes": ["speak"]} for n in "ab"]}
        ).encode(),
        json.dumps(
            {"format": 1, "keys": [{"name": "a", "sha256": d * 64, "scopes": ["speak"]} for d in "01"]}
        ).encode(),
    ],
)
def test_invalid_file_is_refused_and_not_overwritten(file, content):
    file.path.parent.mkdir()
    file.path.write_bytes(content)
    for use in (file.read, lambda: KeyRing((), file), lambda: file.add("b", ["speak"]), lambda: file.remove("a")):
        with pytest.raises(BadKeys):
            use()
    assert file.path.read_bytes() == content


def add_some(folder, who):
    for n in range(10):
        KeyFile(folder).add(f"{who}-{n}", ["speak"])


def test_concurrent_additions_are_all_stored(tmp_path):
    spawn = multiprocessing.get_context("fork")
    children = [spawn.Process(target=add_some, args=(tmp_path, who)) for who in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
        assert child.exitcode == 0
    assert len(KeyFile(tmp_path).read()) == 30


# ---- authorization


@pytest.mark.parametrize(
    "key",
    ["", "short", "0123456789abcde", "a" * 40, "abcababcabcababcabcab", "with a space in it", "schlüssel-geheim-1"],
)
def test_weak_keys_are_refused(key):
    assert weakness(key)
    with pytest.raises(BadKeys, match="TTS_API_KEYS: key 2 is too weak") as caught:
        KeyRing([FIXED, key])
    assert not key or key not in str(caught.value)


def test_without_keys_no_key_is_needed(file):
    assert not KeyRing((), file).needed
    assert KeyRing([FIXED], file).needed


def test_keys_from_settings_have_every_scope():
    ring = KeyRing([FIXED, "another-key-of-them", FIXED])
    assert [key.name for key in ring.keys] == ["env:1", "env:2"]
    for scope in SCOPES:
        ring.admit(ring.find(FIXED), scope).close()


@pytest.mark.parametrize(
    "secret", ["", "x", FIXED[:-1], FIXED + "x", FIXED.upper(), "\udcff", hashlib.sha256(FIXED.encode()).hexdigest()]
)
def test_invalid_key_is_refused(secret):
    with pytest.raises(Unauthorized):
        KeyRing([FIXED]).find(secret)


def test_key_is_limited_to_its_scopes(file):
    secret = file.add("reader", ["speak"])
    ring = KeyRing((), file)
    key = ring.find(secret)
    ring.admit(key, "speak")
    for scope in ("clone", "admin"):
        with pytest.raises(Forbidden, match=f"'reader' lacks the scope `{scope}`"):
            ring.admit(key, scope)


# ---- changes of the file


def test_file_change_is_applied_within_a_second(file, clock):
    ring = KeyRing((), file, clock=clock)
    assert not ring.needed
    one = file.add("one", ["speak"])
    assert not ring.needed  # the file is not read for every request
    clock.now_s += CHECK_FILE_S
    assert ring.needed
    assert ring.find(one).name == "one"
    two = file.add("two", ["speak"])
    file.remove("one")
    clock.now_s += CHECK_FILE_S
    assert ring.find(two).name == "two"
    with pytest.raises(Unauthorized):
        ring.find(one)


def test_server_that_had_keys_keeps_requiring_keys(file, clock):
    one = file.add("one", ["speak"])
    ring = KeyRing((), file, clock=clock)
    file.remove("one")
    clock.now_s += CHECK_FILE_S
    assert ring.needed
    file.path.unlink()
    clock.now_s += CHECK_FILE_S
    assert ring.needed
    with pytest.raises(Unauthorized):
        ring.find(one)
    assert not KeyRing((), file).needed  # only a restart makes a key unnecessary


def test_broken_file_keeps_the_old_keys_and_is_logged_once(file, clock, caplog):
    one = file.add("one", ["speak"])
    ring = KeyRing((), file, clock=clock)
    file.path.write_text("{")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now_s += CHECK_FILE_S
            assert ring.find(one).name == "one"
    assert len(caplog.records) == 1
    assert "keys.json" in caplog.text
    file.path.unlink()
    two = file.add("two", ["speak"])
    clock.now_s += CHECK_FILE_S
    assert ring.find(two).name == "two"


def test_world_writable_file_is_logged(file, caplog):
    file.add("one", ["speak"])
    file.path.chmod(0o666)
    KeyRing((), file)
    assert "chmod 600" in caplog.text


# ---- rate limits


def ring_with(file, clock, **limits):
    secret = file.add("busy", ["speak", "clone"], **limits)
    ring = KeyRing((), file, clock=clock)
    return ring, ring.find(secret)


def test_rate_limit_allows_a_burst_then_refills(file, clock):
    ring, key = ring_with(file, clock, per_minute=30)
    left = [ring.admit(key, "speak").remaining for _ in range(30)]
    assert left == list(range(29, -1, -1))
    with pytest.raises(RateLimited, match="30 requests per minute") as caught:
        ring.admit(key, "speak")
    error = caught.value
    assert (error.reason, error.limit, error.retry_after_s, error.reset_s) == ("rate", 30, 2, 60.0)
    clock.now_s += 1.9
    with pytest.raises(RateLimited) as caught:
        ring.admit(key, "clone")  # all scopes share one limit
    assert caught.value.retry_after_s == 1
    clock.now_s += 0.2
    passed = ring.admit(key, "speak")
    assert passed.remaining == 0
    assert passed.reset_s == pytest.approx(59.9)
    clock.now_s += 3600
    assert ring.admit(key, "speak").remaining == 29  # the burst is limited


def test_retry_after_is_long_enough(file, clock):
    ring, key = ring_with(file, clock, per_minute=7)
    refused = 0
    for _ in range(50):
        try:
            ring.admit(key, "speak")
        except RateLimited as error:
            refused += 1
            clock.now_s += error.retry_after_s
            ring.admit(key, "speak")
    assert refused > 20


def test_concurrent_requests_are_limited(file, clock):
    ring, key = ring_with(file, clock, concurrent=2, per_minute=100)
    one, two = ring.admit(key, "speak"), ring.admit(key, "speak")
    with pytest.raises(RateLimited, match="2 requests running") as caught:
        ring.admit(key, "speak")
    assert (caught.value.reason, caught.value.limit, caught.value.retry_after_s) == ("concurrency", None, 1)
    one.close()
    one.close()  # a second `close` of the same request has no effect
    three = ring.admit(key, "speak")
    assert three.remaining == 97  # refused requests do not count
    with pytest.raises(RateLimited):
        ring.admit(key, "speak")
    two.close()
    three.close()


def test_limits_survive_a_change_of_the_file(file, clock):
    ring, key = ring_with(file, clock, per_minute=1, concurrent=1)
    passed = ring.admit(key, "speak")
    file.add("other", ["speak"])
    clock.now_s += CHECK_FILE_S
    again = next(each for each in ring.keys if each.name == "busy")
    with pytest.raises(RateLimited, match="1 requests running"):
        ring.admit(again, "speak")
    passed.close()
    with pytest.raises(RateLimited, match="per minute"):
        ring.admit(again, "speak")


def test_callers_do_not_share_limits(file, clock):
    ring, key = ring_with(file, clock, per_minute=1)
    other = Key("other", "0" * 64, ("speak",), per_minute=1)
    ring.admit(key, "speak")
    ring.admit(other, "speak")
    with pytest.raises(RateLimited):
        ring.admit(key, "speak")
