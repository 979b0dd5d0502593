"""Full disks, read-only disks and damaged files: speech still works, and failed writes are reported."""

from __future__ import annotations

import contextlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support import samples
from tests.support.ears import decode
from tests.support.live import Process, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

ROOM_BYTES = 4 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Create a file system of 4 MB, and return its folder."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a file system can't be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def sample() -> bytes:
    return samples.file(samples.speech(), "mp3")


def clone(http: httpx.Client, sample: bytes, name: str) -> httpx.Response:
    data = {"name": name, "transcript": samples.TEXT}
    return http.post("/v1/voice-cloning/clone", data=data, files={"audio_file": ("a.mp3", sample)})


def speak(http: httpx.Client, text: str) -> httpx.Response:
    return http.post("/v1/audio/speech", json={"input": text, "response_format": "wav"})


def voices(http: httpx.Client) -> list[str]:
    return [voice["name"] for voice in http.get("/v1/voice-cloning/voices").json()["voices"]]


@pytest.mark.slow
def test_held_answer_larger_than_the_free_disk_space_names_the_disk(small_disk: Path, tmp_path: Path) -> None:
    body = {"input": "The library closes at eight this evening. " * 60, "response_format": "wav", "verify": True}
    with (
        Process(tmp_path / "data", TMPDIR=str(small_disk)) as process,
        httpx.Client(base_url=process.url, timeout=60) as http,
    ):
        process.wait()
        refused = http.post("/v1/audio/speech", json=body)
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "storage_error"
        assert "No space left on device" in refused.json()["error"]["message"]
        assert http.get("/health").json()["rows"]["active"] == 0
        assert speak(http, body["input"]).status_code == 200


@pytest.mark.slow
def test_server_speaks_with_a_full_disk(small_disk: Path, sample: bytes) -> None:
    with Process(small_disk) as process, httpx.Client(base_url=process.url, timeout=60) as http:
        process.wait()
        assert clone(http, sample, "Anna").status_code == 200
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

        for index in range(3):  # the full answers are sent, but not stored in the cache
            for _ in range(2):
                answer = speak(http, f"Answer number {index} is too much for the disk.")
                assert answer.status_code == 200
                assert answer.headers["x-cache"] == "miss"
                assert decode(answer.content, "wav").seconds > 1
        # Equal requests at the same time share one generation, although no file has its first samples.
        with ThreadPoolExecutor(6) as threads:
            shared = list(threads.map(lambda _: speak(http, "Six people ask for these words. " * 20), range(6)))
        assert {answer.status_code for answer in shared} == {200}
        assert {answer.headers["x-cache"] for answer in shared} <= {"miss", "shared"}
        assert max(decode(answer.content, "wav").seconds for answer in shared) > 20
        assert len({round(decode(answer.content, "wav").seconds, 1) for answer in shared}) == 1

        refused = clone(http, sample, "Berta")
        assert refused.status_code == 507
        assert refused.headers["x-should-retry"] == "false"
        assert refused.json()["error"]["code"] == "storage_error"
        assert "space" in refused.json()["error"]["message"].lower()
        assert voices(http) == ["Anna"]
        assert http.get("/health").json()["status"] == "ok"
        assert not [path for path in small_disk.rglob("*") if path.name.startswith(".new-") or path.suffix == ".tmp"]

        ballast.unlink()  # gives the disk free space again
        assert clone(http, sample, "Berta").status_code == 200
        assert speak(http, "There is room again.").headers["x-cache"] == "miss"
        assert speak(http, "There is room again.").headers["x-cache"] == "hit"
        assert sorted(voices(http)) == ["Anna", "Berta"]


def test_server_speaks_with_a_read_only_disk(small_disk: Path, sample: bytes, tmp_path: Path) -> None:
    with serving(small_disk) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert clone(http, sample, "Anna").status_code == 200
        assert speak(http, "Kept before.").status_code == 200
        done = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("it can't be remounted while it is in use")
        assert speak(http, "Kept before.").headers["x-cache"] == "hit"
        assert speak(http, "Not kept.").status_code == 200
        assert clone(http, sample, "Berta").status_code == 507
        gone = http.delete(f"/v1/voice-cloning/voices/{http.get('/v1/voice-cloning/voices').json()['voices'][0]['id']}")
        assert gone.status_code == 507
        assert voices(http) == ["Anna"]
        assert http.get("/health").json()["status"] == "ok"


def test_unusable_data_folder_ends_the_process_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with Process(tmp_path, TTS_DATA_DIR=str(tmp_path / "file" / "data")) as process:
        assert process.child.wait(30) == 2
    assert "can't be used" in process.console()
    assert "Traceback" not in process.console()


@pytest.mark.slow
def test_damaged_voices_and_cache_entries_are_skipped(tmp_path: Path, sample: bytes) -> None:
    """One voice folder and one cache entry are damaged.

    The server starts, and serves the undamaged voices and cache entries.
    """
    with serving(tmp_path) as url, httpx.Client(base_url=url, timeout=60) as http:
        for name in ("Anna", "Berta", "Carla"):
            assert clone(http, sample, name).status_code == 200
        whole = decode(speak(http, "Kept once.").content, "wav")
    folders = sorted((tmp_path / "cloned_voices").glob("voice_*"))
    (folders[0] / "voice.json").write_bytes(b"\x00{" * 100)
    for file in folders[1].glob("*.wav"):
        file.write_bytes(b"RIFF" + bytes(100))
    for kept in (tmp_path / "audio_cache").glob("??/*"):
        data = bytearray(kept.read_bytes())
        data[len(data) // 2] ^= 1
        kept.write_bytes(data)
    with serving(tmp_path) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert len(voices(http)) in (1, 2)  # a recording is read only when a request needs it
        assert http.get("/health").json()["status"] == "ok"
        again = speak(http, "Kept once.")
        assert again.headers["x-cache"] == "miss"
        assert decode(again.content, "wav").seconds == pytest.approx(whole.seconds, abs=0.1)
        assert speak(http, "Kept once.").headers["x-cache"] == "hit"
        assert clone(http, sample, "Dora").status_code == 200


def test_dictionary_is_unchanged_after_a_write_to_a_full_disk(small_disk: Path) -> None:
    small = {"entries": [{"word": "SQL", "say": "sequel"}]}
    large = {"entries": [{"word": f"word{number}" + "x" * 180, "say": "y" * 200} for number in range(1_000)]}
    with serving(small_disk) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.put("/v1/audio/lexicon", json=small).status_code == 200
        with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        refused = http.put("/v1/audio/lexicon", json=large)
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "storage_error"
        assert [entry["word"] for entry in http.get("/v1/audio/lexicon").json()["entries"]] == ["SQL"]
        assert (small_disk / "lexicons" / "lexicon.tsv").read_text() == "SQL\tsequel\n"
        assert sorted(path.name for path in (small_disk / "lexicons").iterdir()) == [".lock", "lexicon.tsv"]
        assert speak(http, "SQL is spoken.").status_code == 200
    with serving(small_disk) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert len(http.get("/v1/audio/lexicon").json()["entries"]) == 1
