"""Runners and requests for tests of Dia with random weights.

The module needs only torch, numpy and the readers of checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from app.engines.dia.loading import load_runner
from app.engines.dia.runner import DiaRunner
from app.types import Sampling, SpokenLine, Utterance, Voice, VoicePrompt
from tests.support.driver import Driver

CPU = torch.device("cpu")
VOICE, OTHER = Voice("v", "v", "cloned"), Voice("w", "w", "cloned")
FRAME_S = 512 / 44_100


def make(folder: Path, **options: object) -> DiaRunner:
    values = {"device": CPU, "dtype": torch.float32, "max_rows": 6, "guards": None, "chunk": 16} | options
    return load_runner(folder, folder / "dac", **values)


def prompt(frames: int = 20, seed: int = 1, text: str = "What the voice once said.") -> VoicePrompt:
    codes = np.random.default_rng(seed).integers(0, 1024, (9, frames)).astype(np.int16)
    return VoicePrompt(f"voice{seed}", "dac", codes, text)


def speech(text: str, seed: int = 1, frames: int = 12, **options: object) -> Utterance:
    voice = options.pop("prompt", None)
    sampling = options.pop("sampling", Sampling())
    return Utterance((SpokenLine(text, 0, VOICE, voice),), sampling, seed, frames * FRAME_S)


def alone(runner: DiaRunner, utterance: Utterance, row: int = 0) -> np.ndarray:
    driver = Driver(runner)
    driver.start(row, utterance)
    driver.finish()
    return driver.frames(row)
