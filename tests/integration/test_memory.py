"""`conversation_id`: the engine gets the voice's recording, then the codes of earlier turns of this conversation."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from app import wiring
from app.audio import pcm
from app.engines.csm import runner as csm_runner
from app.engines.csm.limits import Guards
from app.engines.registry import EngineSpec
from app.generator import take
from app.types import Capabilities, PromptLimits, Reference
from app.voices.store import VoiceStore
from app.voices.voice_features import measure
from tests.support import reading_engine
from tests.support.live import serving
from tests.support.random_csm import fabricate_csm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.types import Utterance

pytestmark = pytest.mark.integration

SPEECH = "/v1/audio/speech"
TURNS = 50
BUDGET = 60
FRAMES = 6  # frames of each line, since a model with random weights never predicts an end


@pytest.fixture
def admitted(monkeypatch: pytest.MonkeyPatch) -> list[Utterance]:
    """Record the utterances that reach the runner."""
    admitted: list[Utterance] = []
    admit = csm_runner.CsmRunner.admit

    def record(self: csm_runner.CsmRunner, row: int, utterance: Utterance) -> None:
        admitted.append(utterance)
        admit(self, row, utterance)

    monkeypatch.setattr(csm_runner.CsmRunner, "admit", record)
    monkeypatch.setattr(Guards, "limit", lambda *_: FRAMES)
    # the frame limit ends each line, which the guard reports as a failure; without failures, the turn is stored
    monkeypatch.setattr(take.Take, "failures", ())
    return admitted


@pytest.fixture
def tiny(tmp_path: Path, admitted: list[Utterance]) -> Iterator[httpx.Client]:
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
            TTS_API_KEYS="the-first-key-01,the-second-key-02",
        ) as url,
        httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer the-first-key-01"}) as http,
    ):
        yield http


def say(http: httpx.Client, text: str, **extra: object) -> httpx.Response:
    return http.post(SPEECH, json={"input": text, "response_format": "pcm", **extra})


@pytest.mark.slow
def test_fifty_turns_keep_the_voice_prompt_and_the_token_budget(tiny: httpx.Client, admitted: list[Utterance]) -> None:
    for number in range(TURNS):
        answer = say(tiny, f"Number {number}.", conversation_id="talk")
        assert answer.status_code == 200
        assert answer.headers["x-cache"] == "off"
    spoken = [" ".join(line.text for line in utterance.lines) for utterance in admitted]
    assert len(spoken) == TURNS
    anchor = admitted[0].lines[0].prompt
    assert anchor is not None
    assert anchor.transcript == "Words of the recording."
    for number, utterance in enumerate(admitted):
        context = [turn.text for turn in utterance.context]
        assert context == spoken[number - len(context) : number]
        assert sum(turn.codes.shape[1] for turn in utterance.context) == FRAMES * len(context)
        assert min(number, 2) <= len(context) <= BUDGET // FRAMES
        prompt = utterance.lines[0].prompt
        assert prompt is not None
        assert np.array_equal(prompt.codes, anchor.codes)
    # Remembered codes are the generated ones, not codes that an encoder computes from the audio.
    assert all(
        np.array_equal(before.codes, after.codes)
        for first, second in pairwise(admitted[10:40])
        for before, after in zip(first.context[1:], second.context[-1 - len(first.context[1:]) : -1], strict=True)
    )


@pytest.mark.slow
def test_voice_does_not_drift_over_fifty_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that produces speech, pitch and brightness are the same in the first and the last turn."""
    spec = EngineSpec("reading", "reading-1", "tests.support.reading_engine:build")
    monkeypatch.setattr(wiring.registry, "specs", lambda: {"reading": spec})
    info = dataclasses.replace(
        reading_engine.ReadingEngine.info,
        capabilities=Capabilities(context=True),
        prompts=PromptLimits(codec="mimi", codec_fingerprint="1", max_context_s=100.0),
    )
    monkeypatch.setattr(reading_engine.ReadingEngine, "info", info)
    library = reading_engine.Library()
    timbre = reading_engine.TIMBRES["echo"]
    words = "The recording that shows how I sound, word for word, as the engine reads it."
    samples = library.synthesize(words, f"{timbre.accent}+{timbre.variant}", timbre.pitch)
    VoiceStore(tmp_path / "cloned_voices", tmp_path / "voice_references").set_reference(
        "alloy", Reference(samples, reading_engine.RATE_HZ, words)
    )
    reading_engine.spoken.clear()
    with (
        serving(tmp_path, TTS_ENGINE="reading", TTS_FALLBACK_ENGINE="") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        body = {"response_format": "pcm", "conversation_id": "talk"}
        turns = [
            http.post(SPEECH, json={"input": "This is what I say in every single turn.", **body}).content
            for _ in range(TURNS)
        ]
    assert [len(utterance.context) > 0 for utterance in reading_engine.spoken] == [False, *[True] * (TURNS - 1)]
    reading_engine.spoken.clear()
    measured = [measure(pcm.from_bytes(turn), 24_000) for turn in turns]
    pitches = np.array([each.pitch_hz for each in measured])
    assert np.ptp(12 * np.log2(pitches)) < 0.3
    assert np.ptp([each.brightness_db for each in measured]) < 0.5


def test_conversations_and_keys_do_not_share_turns(tiny: httpx.Client, admitted: list[Utterance]) -> None:
    say(tiny, "One.", conversation_id="a")
    say(tiny, "Two.", conversation_id="b")
    say(tiny, "Three.", conversation_id="a")
    tiny.post(
        SPEECH,
        json={"input": "Four.", "conversation_id": "a", "response_format": "pcm"},
        headers={"Authorization": "Bearer the-second-key-02"},
    )
    say(tiny, "Five.")
    assert [len(utterance.context) for utterance in admitted] == [0, 0, 1, 0, 0]
    assert tiny.delete("/v1/audio/conversations/a").json()["deleted"] is True
    assert tiny.delete("/v1/audio/conversations/a").json()["deleted"] is False
    say(tiny, "Six.", conversation_id="a")
    assert admitted[-1].context == ()


def test_conversation_is_an_error_for_an_engine_without_context(server: str) -> None:
    answer = httpx.post(f"{server}{SPEECH}", json={"input": "Hello.", "conversation_id": "a"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "conversation_id"
