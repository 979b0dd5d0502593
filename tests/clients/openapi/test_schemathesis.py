"""schemathesis over /openapi.json with all its checks; `make openapi` gives it its environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.live import ROOT, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.openapi, pytest.mark.timeout(400)]

PROGRAM = ROOT / ".clients" / "schemathesis" / "bin" / "schemathesis"
KEY = "sk-for-the-schema-tests"
SEED = 1


def judged(url: str, *options: str, known: dict[str, Sequence[str]] | None = None, folder: Path) -> str:
    """Run schemathesis against the server and return its report. Fails with the report if it finds errors."""
    assert PROGRAM.exists(), "`make openapi` makes its environment"
    ids = {"voice_id": (), "consent_id": (), **(known or {})}
    environment = {**os.environ, **{f"KNOWN_{name.upper()}": " ".join(values) for name, values in ids.items()}}
    done = subprocess.run(
        [
            str(PROGRAM),
            *("run", f"{url}/openapi.json"),
            *("--phases", "examples,coverage,fuzzing", "--mode", "all", "--seed", str(SEED)),
            *("--generation-database", "none", "--no-color", "--continue-on-failure"),
            *("--exclude-checks", "positive_data_acceptance", "--request-timeout", "30"),
            *options,
        ],
        cwd=folder,
        env={**environment, "SCHEMATHESIS_HOOKS": "tests.clients.openapi.hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    return done.stdout


def test_server_without_keys_passes_schemathesis(tmp_path: Path) -> None:
    # An unload waits for the sentences of the jobs that the fuzzer has created, but not as long as the fuzzer waits.
    with (
        serving(tmp_path / "data", TTS_LOAD_WAIT_S=10) as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as http,
    ):
        text = "This is how I sound when I talk for a while. " * 4
        sample = http.post("/audio/speech", json={"input": text, "response_format": "flac"}).content
        voices = [
            http.post(
                "/voice-cloning/clone",
                data={"name": f"Voice {number}", "transcript": text},
                files={"audio_file": sample},
            )
            for number in range(6)
        ]
        consents = [
            http.post("/audio/voice_consents", data={"name": "Ada", "language": "en"}, files={"recording": sample})
            for _ in range(4)
        ]
        known = {
            "voice_id": [answer.raise_for_status().json()["voice"]["id"] for answer in voices],
            "consent_id": [answer.raise_for_status().json()["id"] for answer in consents],
        }
        report = judged(url, "--max-examples", "8", known=known, folder=tmp_path)
    assert "passed" in report


def test_server_with_keys_passes_schemathesis(tmp_path: Path) -> None:
    """Without a key, protected routes return the described 401. With a key, all responses match the schema."""
    with serving(tmp_path / "data", TTS_API_KEYS=KEY) as url:
        for given in ((), ("--header", f"Authorization: Bearer {KEY}")):
            report = judged(
                url,
                *("--max-examples", "2", "--phases", "examples,fuzzing", *given),
                *("--exclude-path-regex", "^/v1/(audio/speech/|voice-cloning/clone-from)"),
                folder=tmp_path,
            )
            assert "passed" in report
