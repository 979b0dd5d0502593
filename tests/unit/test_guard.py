"""The rules of the output guard, alone and in the Runner of a small random model with planted faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from app.audio import pcm
from app.audio.guard import (
    LATE_SILENCE_S,
    LEAD_IN_S,
    LONG_SILENCE_S,
    OVER_SILENCE_S,
    REPEATED_S,
    SLOW_CHARS_PER_S,
    LineGuard,
    Rule,
    pace_of,
    speech_length,
)
from app.engines.csm.limits import Guards
from app.engines.csm.loading import load_runner
from app.engines.csm.runner import CsmRunner
from app.types import Sampling, SpokenLine, Utterance, Voice

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

FRAME_S, RATE_HZ = 0.08, 24_000
FRAME = round(FRAME_S * RATE_HZ)
RANDOM = np.random.default_rng(0)
FIRST_STATE = RANDOM.bit_generator.state
PACE = 14.0


@pytest.fixture(autouse=True)
def _same_noise() -> None:
    """Give each test the same noise, in any order of the tests."""
    RANDOM.bit_generator.state = FIRST_STATE


def noise(seconds: float, dbfs: float) -> np.ndarray:
    return RANDOM.normal(0, pcm.amplitude(dbfs), round(seconds * RATE_HZ)).astype(np.float32)


def syllables(seconds: float, *, floor_dbfs: float = -70.0) -> np.ndarray:
    """Return noise in the rhythm of speech: four bursts per second with changing spectra, and short gaps at the noise
    floor."""
    parts = []
    for _ in range(round(seconds * 4)):
        burst = np.convolve(noise(0.18, -18.0), RANDOM.normal(0, 1, 12) / 3, "same").astype(np.float32)
        parts += [burst, np.zeros(round(0.07 * RATE_HZ), np.float32)]
    out = np.concatenate(parts)
    return out + noise(len(out) / RATE_HZ, floor_dbfs)


def until_rule(guard: LineGuard, audio: np.ndarray, *, same_from_s: float = np.inf) -> tuple[Rule | None, float]:
    """Feed frames until a rule ends the line; return (rule, seconds).

    At the end of the audio the line ends by itself.
    """
    codes = RANDOM.integers(0, 2048, 32)
    for index in range(len(audio) // FRAME):
        if index * FRAME_S < same_from_s:
            codes = RANDOM.integers(0, 2048, 32)
        if (rule := guard.check_frame(codes)) is not None:
            return rule, (index + 1) * FRAME_S
        guard.add_samples(audio[index * FRAME : (index + 1) * FRAME])
    return guard.end(), len(audio) / RATE_HZ


def guard_of(spoken_s: float, *, pace: float | None = PACE) -> LineGuard:
    """Return the guard of a line whose text takes spoken_s at the pace PACE."""
    return LineGuard(spoken_s * PACE, FRAME_S, RATE_HZ, pace=pace)


@pytest.mark.parametrize("pace", [PACE, None])
@pytest.mark.parametrize("tempo", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("floor_dbfs", [-90.0, -60.0, -40.0])
def test_speech_with_pauses_passes(pace: float | None, tempo: float, floor_dbfs: float) -> None:
    talk = np.concatenate(
        [
            noise(0.3, floor_dbfs),
            syllables(4 / tempo, floor_dbfs=floor_dbfs),
            noise(1.2, floor_dbfs),
            syllables(4 / tempo, floor_dbfs=floor_dbfs),
            noise(0.5, floor_dbfs),
        ]
    )
    assert until_rule(guard_of(8.0, pace=pace), talk)[0] is None


@pytest.mark.parametrize(
    ("floor_dbfs", "pace"), [(-120.0, PACE), (-60.0, PACE), (-45.0, PACE), (-38.0, PACE), (-60.0, None)]
)
def test_pause_after_the_text_ends_the_line(floor_dbfs: float, pace: float | None) -> None:
    """The tail is as loud as the noise floor of the line, which may be far above any fixed limit."""
    line = np.concatenate([syllables(6, floor_dbfs=floor_dbfs), noise(30, floor_dbfs)])
    length = 6.0 * (pace or SLOW_CHARS_PER_S)  # if the pace is unknown, the slowest speaker has 6 s
    rule, seconds = until_rule(LineGuard(length, FRAME_S, RATE_HZ, pace=pace), line)
    assert rule == "silence"
    assert 6 + OVER_SILENCE_S - 0.3 <= seconds <= 6 + LATE_SILENCE_S + 1.0


def test_pause_within_the_text_may_last_longer() -> None:
    rule, seconds = until_rule(guard_of(600.0), np.concatenate([syllables(3), noise(10, -70.0)]))
    assert rule == "silence"
    assert seconds == pytest.approx(3 + LONG_SILENCE_S, abs=0.4)


def test_clicks_and_peaks_do_not_hide_a_silent_tail() -> None:
    tail = noise(30, -60.0)
    tail[:: RATE_HZ // 2] = 0.5  # one click each 0.5 s
    rule, seconds = until_rule(guard_of(6.0), np.concatenate([syllables(6, floor_dbfs=-60.0), tail]))
    assert (rule, seconds < 12) == ("silence", True)


def test_silence_before_the_first_word_is_not_a_silent_tail() -> None:
    late = np.concatenate([noise(2.5, -60.0), syllables(0.5)])
    assert until_rule(LineGuard(3, FRAME_S, RATE_HZ, pace=PACE), late)[0] is None


def test_line_without_speech_is_ended() -> None:
    rule, seconds = until_rule(guard_of(6.0), noise(30, -60.0))
    assert rule == "lead_in"
    assert seconds == pytest.approx(LEAD_IN_S, abs=0.2)


def test_repeated_codes_end_the_line() -> None:
    rule, seconds = until_rule(guard_of(60.0), syllables(10), same_from_s=2.0)
    assert rule == "repeat"
    assert seconds == pytest.approx(2.0 + REPEATED_S, abs=0.2)


def test_repeated_last_second_ends_the_line() -> None:
    line = syllables(6)
    # the noise makes the codes and the samples of each repetition differ
    again = np.tile(line[-RATE_HZ:], 10) + noise(10, -50.0)
    rule, seconds = until_rule(guard_of(6.0), np.concatenate([line, again]))
    assert rule == "repeat"
    assert seconds < 6 + 3.5


def test_babble_after_the_text_ends_the_line() -> None:
    rule, seconds = until_rule(guard_of(3.0), syllables(60))
    assert rule == "babble"
    assert seconds < 12


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3])
def test_line_that_is_too_short_for_its_text_is_reported(share: float) -> None:
    assert until_rule(guard_of(8.0), syllables(8 * share))[0] == "too_short"


def test_silent_tail_does_not_make_a_short_line_long_enough() -> None:
    assert until_rule(guard_of(10.0), np.concatenate([syllables(2), noise(2.5, -70.0)]))[0] == "too_short"


def test_unknown_pace_allows_the_fastest_speaker() -> None:
    assert until_rule(LineGuard(160, FRAME_S, RATE_HZ), syllables(160 / 25))[0] is None
    assert until_rule(LineGuard(160, FRAME_S, RATE_HZ), syllables(160 / 40))[0] == "too_short"


def test_result_does_not_depend_on_how_the_codec_groups_frames() -> None:
    line = np.concatenate([syllables(5), noise(20, -70.0)])
    for group in (1, 3, 4):
        guard, waiting = guard_of(5.0), []
        for index in range(len(line) // FRAME):
            if (rule := guard.check_frame(RANDOM.integers(0, 2048, 32))) is not None:
                break
            waiting.append(line[index * FRAME : (index + 1) * FRAME])
            if len(waiting) == group:
                guard.add_samples(np.concatenate(waiting))
                waiting = []
        assert rule == "silence"
        assert index * FRAME_S == pytest.approx(5 + 2.0, abs=1.0)


def test_wide_characters_take_longer_to_speak() -> None:
    assert speech_length("hello") == 5
    assert speech_length("你好") == 6
    assert speech_length("你好, you") == 11


def test_pace_of_a_recording_is_computed() -> None:
    assert pace_of("x" * 140, 10.0) == 14.0
    assert pace_of("x" * 140, 2.0) is None  # no person speaks so fast, so the transcript must be wrong
    assert pace_of("x" * 20, 10.0) is None
    assert pace_of("hi", 1.0) is None


def speak(runner: CsmRunner, *texts: str, most: int = 400, temperature: float = 0.9) -> list[np.ndarray]:
    """Yield the frames (K,) of one utterance step by step, as the loop does."""
    voice = Voice("v", "v", "preset")
    lines = tuple(SpokenLine(text, 0, voice) for text in texts)
    runner.admit(0, Utterance(lines, Sampling(temperature=temperature), 1, most * FRAME_S))
    while not runner.prefill(0):
        pass
    frames = []
    while True:
        result = runner.step([0])
        if result.ended[0]:
            break
        if result.silent is None or not result.silent[0]:
            runner.decode([0], result.codes)
            frames.append(result.codes[0])
    runner.release(0)
    return frames


def make(folder: Path, rules: list[Rule], guards: Guards = Guards()) -> CsmRunner:  # noqa: B008 - immutable
    return load_runner(
        folder,
        None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_rows=1,
        guards=guards,
        on_guard=rules.append,
    )


def test_line_that_never_ends_is_capped_and_counted(tiny_csm: Path) -> None:
    rules: list[Rule] = []
    guards = Guards(frames_per_token=1, slack_frames=10)
    runner = make(tiny_csm, rules, guards)
    frames = speak(runner, "ab")
    assert len(frames) == guards.limit(len(runner._text(0, "ab")))
    assert rules == ["frame_cap"]


def test_end_of_speech_in_the_first_frames_is_suppressed_and_counted(tiny_csm: Path) -> None:
    rules: list[Rule] = []
    runner = make(tiny_csm, rules)
    inner = runner.model.frame

    def ends_at_once(h: torch.Tensor, cache: object, pick: object, adapters: object) -> torch.Tensor:
        def eager(codebook: int, logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            logits[:, runner.config.eos_code] = 1e4  # the model predicts EOS
            return pick(codebook, logits)  # type: ignore[no-any-return, operator]

        return inner(h, cache, eager, adapters)  # type: ignore[arg-type]

    runner.model.frame = ends_at_once  # type: ignore[assignment, method-assign]
    frames = speak(runner, "Hello.")
    assert len(frames) == Guards().min_frames
    assert rules[: Guards().min_frames] == ["early_end"] * Guards().min_frames
    assert all(frame[0] != runner.config.eos_code for frame in frames)


def test_model_that_repeats_codes_continues_with_the_next_line(tiny_csm: Path) -> None:
    rules: list[Rule] = []
    runner = make(tiny_csm, rules)
    runner.model.frame = lambda h, *_: torch.full((len(h), runner.config.codebooks), 5)  # type: ignore[method-assign]
    frames = speak(runner, "A first line that is stuck.", "And a second one.")
    assert rules == ["repeat", "repeat"]
    assert len(frames) == pytest.approx(2 * REPEATED_S / FRAME_S, abs=4)


def test_line_that_broke_a_rule_is_not_in_the_context_of_the_next_line(tiny_csm: Path) -> None:
    """The greedy codes of a line after a failed line equal the codes of the same line alone."""
    alone = speak(make(tiny_csm, []), "And a second one.", most=60, temperature=0.0)
    rules: list[Rule] = []
    runner = make(tiny_csm, rules)
    inner, stuck = runner.model.frame, 20

    def fails_at_first(h: torch.Tensor, cache: object, pick: object, adapters: object) -> torch.Tensor:
        nonlocal stuck
        stuck -= 1
        frame = inner(h, cache, pick, adapters)  # type: ignore[arg-type]
        return torch.full_like(frame, 5) if stuck > 0 and "repeat" not in rules else frame

    runner.model.frame = fails_at_first  # type: ignore[assignment, method-assign]
    frames = speak(runner, "A first line that is stuck.", "And a second one.", most=90, temperature=0.0)
    failed = next(index for index, frame in enumerate(frames) if not (frame == 5).all())
    assert "repeat" in rules
    compared = min(len(alone), len(frames) - failed)
    assert compared > 20
    np.testing.assert_array_equal(frames[failed : failed + compared], alone[:compared])


def test_line_is_not_ended_without_guards(tiny_csm: Path) -> None:
    rules: list[Rule] = []
    runner = load_runner(
        tiny_csm, None, device=torch.device("cpu"), dtype=torch.float32, max_rows=1, guards=None, on_guard=rules.append
    )
    runner.model.frame = lambda h, *_: torch.full((len(h), runner.config.codebooks), 5)  # type: ignore[method-assign]
    assert len(speak(runner, "Stuck.", most=60)) == 60
    assert rules == []
