"""The example engine of docs/engines.md: it is taken from the page, installed as a plug-in, and speaks."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from app.audio.decode import decode
from app.types import Reference
from app.voices.store import VoiceStore
from tests.support.live import ROOT, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

RATE_HZ = 24_000
FRAME_S = 0.08
PAGE = (ROOT / "docs/engines.md").read_text(encoding="utf-8")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the page's module and its entry point in a folder on sys.path, as pip does."""
    (module,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (entry,) = re.findall(r'^hum = "([\w:]+)"$', PAGE, re.MULTILINE)
    packages = tmp_path / "packages"
    metadata = packages / "hum-1.0.dist-info"
    metadata.mkdir(parents=True)
    (packages / "hum.py").write_text(module, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hum\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[tts_server.engines]\nhum = {entry}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(packages)
    yield
    sys.modules.pop("hum", None)


def pitch_hz(samples: np.ndarray) -> float:
    """Return the frequency of the strongest tone in samples (N,)."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE_HZ / len(samples))


def speak(url: str, text: str, voice: str = "alloy") -> np.ndarray:
    body = {"input": text, "voice": voice, "response_format": "wav", "normalize": False}
    response = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return decode(response.content, RATE_HZ, max_seconds=60.0).samples


@pytest.mark.usefixtures("installed")
def test_the_example_engine_speaks_and_is_listed(tmp_path: Path) -> None:
    with serving(tmp_path / "data", TTS_ENGINE="hum") as url:
        samples = speak(url, "Mmm mmm mmm mmm mmm.")
        assert len(samples) / RATE_HZ == pytest.approx(20 * FRAME_S, abs=FRAME_S)
        assert np.abs(samples).max() > 0.05
        assert pitch_hz(samples) == pytest.approx(220, abs=2)
        listed = {each["id"]: each for each in httpx.get(f"{url}/v1/models").json()["data"]}
        assert listed["hum"]["status"] == "ready"
        assert listed["hum"]["parameters"] == []
        assert listed["hum"]["clones"] is True
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["engine"], health["model"]) == ("ok", "hum", "hum")
        refused = httpx.post(f"{url}/v1/audio/speech", json={"input": "Mmm.", "temperature": 0.5})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")


@pytest.mark.usefixtures("installed")
def test_a_plugin_reads_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUM_PITCH_HZ", "330")
    with serving(tmp_path / "data", TTS_ENGINE="hum") as url:
        assert pitch_hz(speak(url, "Mmm mmm mmm mmm mmm.")) == pytest.approx(330, abs=2)


@pytest.mark.usefixtures("installed")
def test_a_plugin_clones_a_voice_with_its_own_codec(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tone = np.float32(0.2 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE_HZ) / RATE_HZ))
    store = VoiceStore(data / "cloned_voices", data / "voice_references")
    voice = store.add("Anna", Reference(tone, RATE_HZ, "Mmm.")).voice
    with serving(data, TTS_ENGINE="hum") as url:
        assert pitch_hz(speak(url, "Mmm mmm mmm mmm mmm.", voice.id)) == pytest.approx(440, abs=2)
    assert len(list(data.rglob("codes-hum-*.npy"))) == 1  # the codes are kept under the plug-in's codec name
