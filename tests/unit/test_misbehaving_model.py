"""Tests each fault of a speech model with each rule of the guard, on human recordings, and the resulting answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from app.audio.guard import pace_of
from app.engines.batched import BatchedEngine
from app.errors import EngineError
from app.types import Sampling, SpokenLine, Utterance
from tests.support import misbehaving as model
from tests.support.human_speech import RATE_HZ, Recording, recordings
from tests.support.scripted_runner import VOICE, info

if TYPE_CHECKING:
    from app.types import Samples

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Row:
    """The expected result of a fault: at least this share of the clips has one of these outcomes."""

    name: str
    fault: model.Fault | None
    outcomes: tuple[str, ...]  # names of guard rules, or "whole"
    share: float
    late_s: float | None = None  # the median time after the true end
    tempo: float = 1.0


TAIL = ("silence", "repeat", "babble")
TABLE = (
    Row("as it is", None, ("whole",), 1.0),
    Row("slow", None, ("whole",), 1.0, tempo=0.8),
    Row("very slow", None, ("whole",), 0.95, tempo=0.65),
    Row("fast", None, ("whole",), 1.0, tempo=1.2),
    Row("0.2 s late", model.late_beginning(0.2), ("whole",), 1.0),
    Row("2.5 s late", model.late_beginning(2.5), ("whole",), 1.0),
    Row("breath before it", model.late_beginning(1.2, breath=True), ("whole",), 1.0),
    Row("repeated word", model.repeated_word, ("whole",), 0.95),
    Row("noise after it", model.noise_tail, TAIL, 0.95, 3.5),
    Row("room after it", model.room_tail, TAIL, 0.95, 3.5),
    Row("digital silence after it", model.silent_tail, TAIL, 0.95, 2.0),
    Row("last second again", model.repeated_second, TAIL, 0.95, 3.5),
    Row("babble after it", model.babble, ("babble", "repeat", "silence"), 0.95),
    Row("ends at 20 %", model.early_end(0.2), ("too_short",), 0.95),
    Row("ends at 30 %", model.early_end(0.3), ("too_short",), 0.8),
)


@pytest.fixture(scope="module")
def people() -> list[tuple[Recording, float | None]]:
    """Return a third of the clips, each with the pace of another clip of its speaker; without such a clip, the pace is
    None."""
    clips = recordings(language=None)
    found = []
    for clip in clips[::3]:
        others = [other for other in clips if other.speaker == clip.speaker and other.path != clip.path]
        longest = max(others, key=lambda other: len(other.words), default=None)
        pace = None if longest is None else pace_of(longest.words, len(longest.spoken()) / RATE_HZ)
        found.append((clip, pace))
    return found


def outcome(row: Row, clip: Recording, pace: float | None) -> tuple[str, float]:
    samples: Samples = clip.spoken(row.tempo)
    end_s = len(samples) / RATE_HZ if row.fault is model.repeated_second else model.last_sound_s(samples, RATE_HZ)
    if row.fault is not None:
        samples = row.fault(samples, RATE_HZ, np.random.default_rng(1))
    rule, seconds = model.until_rule(samples, clip.words, RATE_HZ, pace=pace)
    return rule or "whole", seconds - end_s


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_guard_reports_each_fault_as_expected(row: Row, people: list[tuple[Recording, float | None]]) -> None:
    found = [outcome(row, clip, pace) for clip, pace in people]
    known = [late_s for (_, late_s), (_, pace) in zip(found, people, strict=True) if pace is not None]
    print(f"{row.name:26} {dict(Counter(name for name, _ in found))}  {np.median(known):.1f} s after the end")
    assert np.mean([name in row.outcomes for name, _ in found]) >= row.share
    if row.late_s is not None:
        assert np.median(known) <= row.late_s


async def spoken(recordings: dict[str, list[Samples]], *texts: str) -> tuple[Samples, list[str]]:
    """Speak one utterance with these lines through the batch loop; return samples (N,) and the rules that its lines
    broke."""
    runner = model.HumanRunner(recordings, RATE_HZ)
    about = info(rate_hz=RATE_HZ, frame_s=model.FRAME_S)
    lines = tuple(SpokenLine(text, 0, VOICE) for text in texts)
    async with BatchedEngine(about, runner, max_queue=4, audio_queue_s=120.0) as engine:
        chunks = [chunk async for chunk in engine.speak(Utterance(lines, Sampling(), 1, 300.0))]
    return np.concatenate([chunk.samples for chunk in chunks]), [rule for chunk in chunks for rule in chunk.rules]


async def test_line_after_a_failed_line_is_complete() -> None:
    first, second = recordings(language=None)[:2]
    endless = model.noise_tail(first.spoken(), RATE_HZ, np.random.default_rng(0))
    samples, rules = await spoken({first.words: [endless], second.words: [second.spoken()]}, first.words, second.words)
    assert rules == ["silence"]
    whole = (len(first.spoken()) + len(second.spoken())) / RATE_HZ
    assert whole <= len(samples) / RATE_HZ + 0.2 <= whole + 5.0
    kept = len(second.spoken()) // (RATE_HZ * 2 // 25) * (RATE_HZ * 2 // 25)
    np.testing.assert_array_equal(samples[-kept:], second.spoken()[:kept])


async def test_short_line_is_reported_with_its_audio() -> None:
    clip = max(recordings(language=None), key=lambda each: len(each.words))
    samples, rules = await spoken({clip.words: [clip.spoken()[: RATE_HZ // 2]]}, clip.words)
    assert rules == ["too_short"]
    assert len(samples) > 0


async def test_nan_samples_fail_only_their_utterance() -> None:
    clip = recordings(language=None)[0]
    broken = model.not_a_number(clip.spoken(), RATE_HZ, np.random.default_rng(0))
    with pytest.raises(EngineError):
        await spoken({clip.words: [broken]}, clip.words)


def test_music_under_the_speech_does_not_cut_it() -> None:
    clip = recordings(language=None)[0]
    samples = model.music_bed(clip.spoken(), RATE_HZ, np.random.default_rng(0))[: len(clip.spoken())]
    assert model.until_rule(samples, clip.words, RATE_HZ)[0] is None
