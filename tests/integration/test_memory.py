"""`conversation_id`: what was said before follows the voice's own recording, in codes, and never mixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from app.engines import csm
from app.types import Reference
from app.voices.store import VoiceStore
from bench.fabricate import fabricate_csm
from tests.live import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.types import Utterance

pytestmark = pytest.mark.integration

SPEECH = "/v1/audio/speech"
TURNS = 50
BUDGET = 120


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Utterance]:
    """What reaches the runner."""
    taken: list[Utterance] = []
    admit = csm.CsmRunner.admit

    def note(self: csm.CsmRunner, row: int, utterance: Utterance) -> None:
        taken.append(utterance)
        admit(self, row, utterance)

    monkeypatch.setattr(csm.CsmRunner, "admit", note)
    return taken


@pytest.fixture
def tiny(tmp_path: Path, heard: list[Utterance]) -> Iterator[httpx.Client]:
    fabricate_csm(tmp_path / "csm")
    store = VoiceStore(tmp_path / "data/cloned_voices", tmp_path / "data/voice_references")
    tone = (0.1 * np.sin(np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 48_000)))).astype(np.float32)
    store.set_reference("alloy", Reference(tone, 24_000, "Words of the recording."))
    with (
        serving(
            tmp_path / "data",
            TTS_ENGINE="csm",
            CSM_MODEL=str(tmp_path / "csm"),
            TTS_FALLBACK_ENGINE="",
            TTS_DEVICE="cpu",
            TTS_DTYPE="float32",
            TTS_MEMORY_TOKENS=BUDGET,
            TTS_API_KEYS="first,second",
        ) as url,
        httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer first"}) as http,
    ):
        yield http


def say(http: httpx.Client, text: str, **extra: object) -> httpx.Response:
    body = {"input": text, "response_format": "pcm", "max_audio_length_ms": 400, "temperature": 0.9, **extra}
    return http.post(SPEECH, json=body)


def test_turns_follow_the_recording_within_a_budget(tiny: httpx.Client, heard: list[Utterance]) -> None:
    talk = {"conversation_id": "talk", "max_audio_length_ms": None}
    texts = [f"Number {number}." for number in range(4)]
    for text in texts:
        answer = say(tiny, text, **talk)
        assert answer.status_code == 200
        assert answer.headers["x-cache"] == "miss"
    contexts = [[turn.text for turn in utterance.context] for utterance in heard]
    spoken = [" ".join(line.text for line in utterance.lines) for utterance in heard]
    assert contexts[0] == []
    assert contexts[1] == spoken[:1] or not contexts[1]  # a turn longer than the budget is left out whole
    for number, utterance in enumerate(heard):
        frames = sum(turn.codes.shape[1] for turn in utterance.context)
        assert frames <= BUDGET
        assert contexts[number] == spoken[number - len(contexts[number]) : number]
        assert utterance.lines[0].prompt is not None
        assert utterance.lines[0].prompt.transcript == "Words of the recording."
    assert any(contexts)


def test_conversations_and_keys_are_apart(tiny: httpx.Client, heard: list[Utterance]) -> None:
    say(tiny, "One.", conversation_id="a", max_audio_length_ms=None)
    say(tiny, "Two.", conversation_id="b")
    say(tiny, "Three.", conversation_id="a", extra_headers=None)
    tiny.post(
        SPEECH,
        json={"input": "Four.", "conversation_id": "a", "response_format": "pcm", "max_audio_length_ms": 400},
        headers={"Authorization": "Bearer second"},
    )
    say(tiny, "Five.")
    assert [len(utterance.context) for utterance in heard] == [0, 0, 1, 0, 0]
    assert tiny.delete("/v1/audio/conversations/a").json()["deleted"] is True
    assert tiny.delete("/v1/audio/conversations/a").json()["deleted"] is False
    say(tiny, "Six.", conversation_id="a")
    assert heard[-1].context == ()


def test_an_engine_without_context_says_so(server: str) -> None:
    answer = httpx.post(f"{server}{SPEECH}", json={"input": "Hello.", "conversation_id": "a"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "conversation_id"
