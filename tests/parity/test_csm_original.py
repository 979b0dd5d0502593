"""CSM in the original layout gives the codes of torchtune's Llama 3.2 blocks, which the original implementation uses.

`make oracle` installs torchtune 0.6.1 without dependencies, in a folder beside the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.csm.loading import load_model
from app.runtime.sampling import SamplingParams
from tests.support.generation import generate
from tests.support.random_csm import csm_config, fabricate_csm

ROOT = Path(__file__).parents[2]
TORCHTUNE = ROOT / ".oracle"
FRAMES = 12

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not (TORCHTUNE / "torchtune").is_dir(), reason="`make oracle` installs torchtune"),
]


def shape(**changes: Any) -> dict[str, Any]:
    """Return changes to the config of the tiny checkpoint. depth: changes to its depth decoder."""
    depth = changes.pop("depth", {})
    backbone = {"backbone_hidden_size": changes["hidden_size"]} if "hidden_size" in changes else {}
    return changes | {"depth_decoder_config": csm_config("tiny")["depth_decoder_config"] | backbone | depth}


SHAPES = {
    "tiny": shape(),
    "grouped heads, deep": shape(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        depth={"num_hidden_layers": 1, "num_key_value_heads": 1},
    ),
    "few codebooks, wide depth decoder": shape(
        num_codebooks=5, depth={
            "num_codebooks": 5, "hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 16,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 7])
def test_codes_are_equal_to_those_of_torchtune(name: str, seed: int | None, tmp_path: Path) -> None:
    checkpoint = fabricate_csm(tmp_path / "csm", layout_name="original", seed=len(name), changes=SHAPES[name])
    ids = torch.randint(4, 300, (23,), generator=torch.Generator().manual_seed(len(name)))
    np.save(tmp_path / "ids.npy", ids.numpy())
    draw = "greedy" if seed is None else str(seed)
    subprocess.run(
        [
            sys.executable, "-W", "ignore", str(ROOT / "tests/support/torchtune_csm.py"), str(TORCHTUNE),
            str(checkpoint), str(tmp_path / "ids.npy"), draw, str(FRAMES), str(tmp_path / "codes.npy"),
        ],
        check=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    expected = torch.from_numpy(np.load(tmp_path / "codes.npy"))

    model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)[0]
    frames = generate(
        model,
        model.embed_text(ids),
        max_frames=FRAMES,
        params=SamplingParams(0.0) if seed is None else SamplingParams(0.9, 50),
        seed=seed or 0,
        reference_noise=seed is not None,
    )
    assert len(set(expected.flatten().tolist())) > 10
    assert torch.equal(torch.stack(list(frames)), expected)
