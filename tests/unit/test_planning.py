"""How much text goes into one utterance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from app.generator.planning import LEAST_NATURAL_CHARS, PlannedUtterance, _natural_chars
from app.types import EngineInfo, SpokenLine, TextPacking, VoicePrompt
from tests.support.scripted_runner import VOICE, info

pytestmark = pytest.mark.unit

DIA = info(
    frame_s=0.1,
    text=TextPacking(max_chars=200, max_passage_chars=240, max_speakers=2, natural_s=20.0, chars_per_s=15.0),
)


def line(chars: int, prompt_s: float) -> SpokenLine:
    codes = np.zeros((9, round(prompt_s / DIA.frame_s)), np.int16)
    return SpokenLine("x" * chars, 0, VOICE, VoicePrompt("digest", "dac", codes, "Words.") if prompt_s else None)


def fits(info: EngineInfo, chars: int, prompt_s: float) -> bool:
    return PlannedUtterance((line(chars // 2, prompt_s),)).fits(
        line(chars - chars // 2, prompt_s), info, one_voice=True
    )


@pytest.mark.parametrize(
    ("prompt_s", "most"),
    [
        (0.0, 240),  # 16 s of text
        (4.0, 240),
        (5.0, 225),  # 20 s in all
        (10.0, 150),
        (18.0, LEAST_NATURAL_CHARS),
    ],
)
def test_recording_and_passage_take_at_most_20_s(prompt_s: float, most: int) -> None:
    assert _natural_chars(240, prompt_s, DIA.text) == most
    assert fits(DIA, most - 2, prompt_s)
    assert not fits(DIA, most + 1, prompt_s)


def test_engine_without_a_duration_limit_gets_full_passages() -> None:
    other = dataclasses.replace(DIA, text=dataclasses.replace(DIA.text, natural_s=0.0))
    assert fits(other, 238, 18.0)
