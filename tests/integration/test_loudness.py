"""Over HTTP, every voice, request and sentence has the same loudness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import openai
import pytest

from app.engines.espeak import TIMBRES
from app.voices.enhancement import CEILING_DBTP, TARGET_LUFS
from tests.support.ears import decode, loudness_lufs, true_peak_dbtp
from tests.support.live import serving

pytestmark = pytest.mark.integration

TEXT = "Well, I don't know. Perhaps we should ask her first, before anything else happens? The soup needs more salt."


def speak(client: openai.OpenAI, **fields: object) -> bytes:
    voice, fields["response_format"] = str(fields.pop("voice", "onyx")), fields.get("response_format", "pcm")
    return client.audio.speech.create(model="tts-1", voice=voice, input=TEXT, extra_body=fields).content


@pytest.mark.parametrize("voice", ["alloy", "cedar", "fable", "onyx", "sage", "verse"])
def test_voices_are_equally_loud(client: openai.OpenAI, voice: str) -> None:
    decoded = decode(speak(client, voice=voice), "pcm")
    assert loudness_lufs(decoded.samples, 24_000) == pytest.approx(TARGET_LUFS, abs=1.0)
    assert true_peak_dbtp(decoded.samples, 24_000) < CEILING_DBTP + 0.3


@pytest.mark.parametrize(
    "fields", [{"speed": 0.7}, {"speed": 1.6}, {"sample_rate": 48_000}, {"response_format": "mp3"}]
)
def test_loudness_is_the_same_for_every_request_field(client: openai.OpenAI, fields: dict[str, object]) -> None:
    decoded = decode(
        speak(client, **fields), str(fields.get("response_format", "pcm")), int(str(fields.get("sample_rate", 24_000)))
    )
    assert loudness_lufs(decoded.samples, decoded.rate_hz) == pytest.approx(TARGET_LUFS, abs=1.0)


def test_dialogue_of_three_voices_has_the_target_loudness(client: openai.OpenAI, server: str) -> None:
    turns = [
        {"voice": voice, "text": "We walked along the river after dinner."} for voice in ("onyx", "marin", "fable")
    ]
    decoded = decode(
        client.post("/audio/dialogue", body={"turns": turns, "response_format": "pcm"}, cast_to=bytes), "pcm"
    )
    assert loudness_lufs(decoded.samples, 24_000) == pytest.approx(TARGET_LUFS, abs=1.0)


def test_quiet_voice_is_raised_to_the_target_loudness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIMBRES, "onyx", replace(TIMBRES["onyx"], gain_db=-10.0))
    with serving(tmp_path) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        evened, plain = (decode(speak(client, enhance=on), "pcm").samples for on in (True, False))
    assert loudness_lufs(plain, 24_000) < TARGET_LUFS - 8
    assert loudness_lufs(evened, 24_000) == pytest.approx(TARGET_LUFS, abs=1.0)


def test_loudness_normalisation_can_be_turned_off(client: openai.OpenAI, tmp_path: Path) -> None:
    """Cache hits show which settings are equal: the audio of eSpeak NG differs slightly each time."""
    evened, plain = speak(client), speak(client, enhance=False)
    assert evened != plain
    assert speak(client, enhance=True) == evened
    with serving(tmp_path, TTS_ENHANCE="off") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any") as other:
        plain = speak(other)
        assert speak(other, enhance=False) == plain
        assert speak(other, enhance=True) != plain
