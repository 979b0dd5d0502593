"""`say --voice none --codes` gives the codes of transformers, also with a codec of another frame rate."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from app.cli import app
from tests.support import csm_oracle, dia_oracle
from tests.support.random_csm import csm_config, fabricate_csm
from tests.support.random_dia import fabricate_dia

pytestmark = pytest.mark.unit

FRAMES = 20


def codes_of_say(engine: str, folder: Path, out: Path, text: str) -> np.ndarray:
    options = f"--engine {engine} --voice none --no-normalize --temperature 0 --max-frames {FRAMES}".split()
    result = CliRunner().invoke(
        app,
        ["say", *options, "--model", str(folder), "--codes", str(out / "codes.npy"), text, "-o", str(out / "out.wav")],
        env={"TTS_DATA_DIR": str(out / "data"), "TTS_DTYPE": "float32"},
    )
    assert result.exit_code == 0, result.output
    codes: np.ndarray = np.load(out / "codes.npy")
    return codes


def test_csm_codes_are_equal_with_another_frame_rate(tmp_path: Path) -> None:
    raw = csm_config("tiny")
    raw["num_codebooks"] = raw["depth_decoder_config"]["num_codebooks"] = 5
    raw["depth_decoder_config"]["max_position_embeddings"] = 6
    raw["codec_config"] |= {"upsampling_ratios": [8, 5, 4, 2], "frame_rate": 37.5}
    folder = fabricate_csm(tmp_path / "model", changes=raw, seed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = (
            csm_oracle.transformers().CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        )
    text = "Hello there, it's 5 o'clock!"
    ids = torch.tensor([oracle_ids(folder, f"[0]{text}")])
    expected = csm_oracle.generate(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, FRAMES)
    assert np.array_equal(codes_of_say("csm", folder, tmp_path, text), expected.numpy().T)


def oracle_ids(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text).input_ids
    return ids


@pytest.mark.parametrize("text", ["[S1] Hello (laughs). [S2] Well, 5 o'clock!", "no tag, 5 o'clock"])
def test_dia_codes_are_equal_with_another_frame_rate(tmp_path: Path, text: str) -> None:
    folder = fabricate_dia(tmp_path / "model", codec={"downsampling_ratios": [2, 4, 4, 8]}, seed=4)
    encoded = text.encode().replace(b"[S1]", b"\x01").replace(b"[S2]", b"\x02")
    [expected] = dia_oracle.generate(csm_oracle.dia(folder), [encoded], FRAMES)
    assert np.array_equal(codes_of_say("dia", folder, tmp_path, text), expected.numpy().T)
