"""Runners and requests for tests of CSM with random weights.

The module needs only torch, numpy and the readers of checkpoints.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from app.engines.csm.loading import load_runner
from app.engines.csm.runner import CsmRunner
from app.types import AnswerPart, Sampling, SpokenLine, Utterance, Voice, VoicePrompt
from tests.support.driver import Driver

CPU = torch.device("cpu")
VOICE = Voice("v", "v", "cloned")
FRAME_S = 0.08


def make(folder: Path, **options: object) -> CsmRunner:
    values = {"device": CPU, "dtype": torch.float32, "max_rows": 8, "guards": None, "chunk": 16} | options
    return load_runner(folder, None, **values)


def codes_of(runner: CsmRunner, frames: int, seed: int) -> np.ndarray:
    shape = (runner.config.codebooks, frames)
    return np.random.default_rng(seed).integers(1, runner.config.codebook_size, shape).astype(np.int16)


def prompt(runner: CsmRunner, frames: int = 20, seed: int = 1) -> VoicePrompt:
    return VoicePrompt(f"voice{seed}", "mimi", codes_of(runner, frames, seed), "What the voice once said.")


def speech(text: str, seed: int = 1, frames: int = 12, **options: object) -> Utterance:
    voice = options.pop("prompt", None)
    sampling = options.pop("sampling", Sampling())
    return Utterance((SpokenLine(text, 0, VOICE, voice),), sampling, seed, frames * FRAME_S, **options)


def alone(runner: CsmRunner, utterance: Utterance, row: int = 0) -> np.ndarray:
    driver = Driver(runner)
    driver.start(row, utterance)
    driver.finish()
    return driver.frames(row)


def in_parts(driver: Driver, whole: Utterance, between: Utterance | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Speak each line as an own utterance that goes on after the one before, in another row -> codes, samples.

    between: is spoken in all these rows before each line.
    """
    frames, samples, over = [], [], threading.Event()
    for index, line in enumerate(whole.lines):
        for row in (0, 1) if between is not None else ():
            driver.start(row, between)
            driver.finish()
        part = replace(whole, lines=(line,), part=AnswerPart("an answer", index, over=over))
        driver.start(index % 2, part)
        driver.finish()
        frames.append(driver.frames(index % 2))
        samples.append(driver.samples(index % 2))
    over.set()
    return np.concatenate(frames), np.concatenate(samples)
