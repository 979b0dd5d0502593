"""Dia at the published size: the codes of transformers in both layouts, and a dialogue over HTTP.

Takes minutes, 14 GB of disk and 10 GB of memory.
"""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from app.engines.dia.loading import load_runner
from app.types import Sampling, SpokenLine, Utterance, Voice
from tests.support import dia_oracle as oracle
from tests.support.ears import decode
from tests.support.live import serving, wait_until
from tests.support.random_dia import fabricate_dia

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("full_size"), pytest.mark.timeout(1800)]

CPU = torch.device("cpu")
FRAMES = 3
TEXT = "[S1] Hello there. [S2] Hi!"
SEED = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Weights of the full size, which are removed after the tests: two layouts have 13 GB."""
    made = {
        name: fabricate_dia(tmp_path_factory.mktemp(name), size="full", layout_name=name)
        for name in ("transformers", "nari")
    }
    yield made
    for folder in made.values():
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[int | None, np.ndarray]:
    """Return the greedy (None) and seeded codes (T, C) of transformers.

    The model of transformers is freed before the other models are loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class = oracle.transformers().DiaForConditionalGeneration
        reference = model_class.from_pretrained(folders["transformers"], dtype=torch.float32)
    read = TEXT.encode().replace(b"[S1]", b"\1").replace(b"[S2]", b"\2")
    found = {seed: oracle.generate(reference.eval(), [read], FRAMES, seed=seed)[0].numpy() for seed in (None, SEED)}
    del reference
    gc.collect()
    return found


@pytest.mark.parametrize("layout", ["transformers", "nari"])
def test_codes_are_equal_in_both_layouts(
    folders: dict[str, Path], expected: dict[int | None, np.ndarray], layout: str
) -> None:
    runner = load_runner(
        folders[layout], folders[layout] / "dac", device=CPU, dtype=torch.float32, max_rows=1, guards=None, exact=True,
        reference_noise=True,
    )  # fmt: skip
    line = SpokenLine(TEXT, 0, Voice("v", "v", "none"))
    for seed, expected_codes in expected.items():
        sampling = Sampling(temperature=0.0) if seed is None else Sampling()
        runner.admit(0, Utterance((line,), sampling, seed or 0, FRAMES / runner.codec.frame_hz))
        while not runner.prefill(0):
            pass
        codes = []
        while not (result := runner.step([0])).ended[0]:
            assert result.silent is not None
            if not result.silent[0]:
                codes.append(result.codes[0])
                runner.decode([0], result.codes)
        runner.release(0)
        assert np.array_equal(np.stack(codes), expected_codes)
    del runner
    gc.collect()


def test_dialogue_over_http(folders: dict[str, Path], tmp_path: Path) -> None:
    variables = {"TTS_ENGINE": "dia", "DIA_MODEL": str(folders["transformers"]), "TTS_FALLBACK_ENGINE": ""}
    with serving(tmp_path / "data", wait=False, **variables) as url:
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, 300)
        turns = [
            {"speaker": 0, "voice": "alloy", "text": "Hello there."},
            {"speaker": 1, "voice": "onyx", "text": "Hi!"},
        ]
        body = {"turns": turns, "response_format": "wav", "cache": False, "max_audio_length_ms": 400}
        answer = httpx.post(f"{url}/v1/audio/dialogue", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    audio = decode(answer.content, "wav")
    assert audio.seconds == pytest.approx(0.4, abs=0.05)
    assert audio.loudness_dbfs > -60
