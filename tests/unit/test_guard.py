"""The output guard's rules, by themselves and in the Runner of a small random model that is made to lose its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from app.audio.guard import LATE_SILENCE_S, LONG_SILENCE_S, REPEATED_S, SLOW_CHARS_PER_S, LineGuard, Rule
from app.engines.csm.limits import Guards
from app.engines.csm.loading import load_runner
from app.engines.csm.runner import CsmRunner
from app.types import Sampling, SpokenLine, Utterance, Voice
from tests.support.random_csm import fabricate_csm

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

FRAME_S = 0.08
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(0, 0.1, 1920).astype(np.float32)
SILENCE = np.zeros(1920, np.float32)


def until_rule(
    guard: LineGuard, sounds: list[np.ndarray], *, same_from: int | None = None
) -> tuple[Rule | None, float]:
    """Feed frames until a rule ends the line -> (rule, seconds)."""
    frame = RANDOM.integers(0, 2048, 32)
    for index, sound in enumerate(sounds):
        if same_from is None or index < same_from:
            frame = RANDOM.integers(0, 2048, 32)
        if (rule := guard.check_frame(frame)) is not None:
            return rule, (index + 1) * FRAME_S
        guard.add_samples(sound)
    return None, len(sounds) * FRAME_S


def test_normal_speech_is_not_ended() -> None:
    talk = ([NOISE] * 10 + [SILENCE] * 6) * 10
    assert until_rule(LineGuard(200, FRAME_S), talk)[0] is None


def test_repeated_frame_ends_the_line() -> None:
    rule, seconds = until_rule(LineGuard(1000, FRAME_S), [NOISE] * 100, same_from=20)
    assert rule == "repeat"
    assert seconds == pytest.approx(20 * FRAME_S + REPEATED_S, abs=2 * FRAME_S)


def test_silence_after_the_text_ends_the_line_soon() -> None:
    characters = 44
    said = int(characters / SLOW_CHARS_PER_S / FRAME_S) + 1
    rule, seconds = until_rule(LineGuard(characters, FRAME_S), [NOISE] * said + [SILENCE] * 100)
    assert rule == "silence"
    assert seconds == pytest.approx(said * FRAME_S + LATE_SILENCE_S, abs=3 * FRAME_S)


def test_silence_in_the_middle_may_last_longer() -> None:
    rule, seconds = until_rule(LineGuard(10_000, FRAME_S), [NOISE] * 10 + [SILENCE] * 200)
    assert rule == "silence"
    assert seconds == pytest.approx(10 * FRAME_S + LONG_SILENCE_S, abs=3 * FRAME_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("csm"))


def speak(runner: CsmRunner, *texts: str, most: int = 400, temperature: float = 0.9) -> list[np.ndarray]:
    """The frames (K,) of one utterance, step by step, as the loop would."""
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


def make(folder: Path, rules: list[Rule]) -> CsmRunner:
    return load_runner(
        folder,
        None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_rows=1,
        guards=Guards(),
        on_guard=rules.append,
    )


def test_endless_line_is_capped_and_counted(folder: Path) -> None:
    rules: list[Rule] = []
    runner = make(folder, rules)
    frames = speak(runner, "ab")
    assert len(frames) == Guards().limit(len(runner._text(0, "ab")))
    assert rules == ["frame_cap"]


def test_early_eos_is_suppressed_and_counted(folder: Path) -> None:
    rules: list[Rule] = []
    runner = make(folder, rules)
    inner = runner.model.frame

    def ends_at_once(h: torch.Tensor, cache: object, pick: object) -> torch.Tensor:
        def eager(codebook: int, logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            logits[:, runner.config.eos_code] = 1e4  # the model says: over
            return pick(codebook, logits)  # type: ignore[no-any-return, operator]

        return inner(h, cache, eager)  # type: ignore[arg-type]

    runner.model.frame = ends_at_once  # type: ignore[assignment, method-assign]
    frames = speak(runner, "Hello.")
    assert len(frames) == Guards().min_frames
    assert rules == ["early_end"] * Guards().min_frames
    assert all(frame[0] != runner.config.eos_code for frame in frames)


def test_stuck_model_continues_with_the_next_line(folder: Path) -> None:
    rules: list[Rule] = []
    runner = make(folder, rules)
    runner.model.frame = lambda h, *_: torch.full((len(h), runner.config.codebooks), 5)  # type: ignore[method-assign]
    frames = speak(runner, "A first line that is stuck.", "And a second one.")
    assert rules == ["repeat", "repeat"]
    assert len(frames) == pytest.approx(2 * REPEATED_S / FRAME_S, abs=4)


def test_without_guards_a_stuck_line_is_not_ended(folder: Path) -> None:
    rules: list[Rule] = []
    runner = load_runner(
        folder, None, device=torch.device("cpu"), dtype=torch.float32, max_rows=1, guards=None, on_guard=rules.append
    )
    runner.model.frame = lambda h, *_: torch.full((len(h), runner.config.codebooks), 5)  # type: ignore[method-assign]
    assert len(speak(runner, "Stuck.", most=60)) == 60
    assert rules == []
