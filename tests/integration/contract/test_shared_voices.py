"""Copies with a shared voice folder: each copy can use a voice that another copy has cloned."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.integration.contract.fleets import fleet
from tests.support.live import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
WITHIN_S = 2.0
WORDS = "The weather was fine, so they walked along the river."


@pytest.mark.parametrize(
    "mode", [pytest.param("replicas", marks=pytest.mark.fleet), pytest.param("ray", marks=pytest.mark.ray)]
)
def test_voice_cloned_on_one_server_copy_can_be_used_on_all_copies(mode: str, server: str, tmp_path: Path) -> None:
    recording = httpx.post(
        f"{server}/v1/audio/speech", json={"input": WORDS * 2, "response_format": "wav"}, timeout=30
    ).content
    model = tmp_path / "model"
    command = [sys.executable, "-m", "bench.fabricate", "csm", "--size", "tiny", str(model)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    for copy in ("0", "1"):  # the replicas of Ray share one folder without this link
        (tmp_path / copy).mkdir()
        (tmp_path / copy / "cloned_voices").symlink_to(tmp_path / "mounted")
    (tmp_path / "mounted").mkdir()
    with fleet(mode, tmp_path, TTS_ENGINE="csm", CSM_MODEL=str(model), TTS_CASTING="off") as served:
        first, *others = served.members()
        clone_response = httpx.post(
            f"{first}/v1/voice-cloning/clone",
            data={"name": "Anna", "transcript": WORDS * 2},
            files={"audio_file": ("anna.wav", recording)},
            timeout=60,
        )
        made_s = time.monotonic()
        assert clone_response.status_code == 200, clone_response.text
        body = {"input": "Hello.", "voice": "Anna", "max_audio_length_ms": 400, "response_format": "pcm"}
        for url in others:
            while True:
                asked_s = time.monotonic() - made_s  # the limit WITHIN_S does not include the duration of the speech
                answer = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60)
                if answer.status_code == 200 or asked_s > WITHIN_S:
                    break
                assert answer.json()["error"]["code"] == "voice_not_found"
                time.sleep(0.05)
            assert answer.status_code == 200, answer.text
            print(f"{mode}: another copy spoke when asked {asked_s:.2f} s after the cloning")
        for _ in range(6):
            assert httpx.post(served.speech, json={**body, "cache": False}, timeout=60).status_code == 200
