"""CSM at the published size against transformers: the same codes in float32, the same choices in bfloat16 and int8.

Takes minutes, 13 GB of disk and 10 GB of memory.
"""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.engines.csm.loading import adapt, load_model
from app.runtime.sampling import SamplingParams
from tests.support import csm_oracle
from tests.support.generation import generate
from tests.support.random_csm import fabricate_csm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("full_size"), pytest.mark.timeout(1800)]

CPU = torch.device("cpu")
FRAMES = 3
IDS = torch.tensor([128_000, 58, 15, 60, 9906, 1070, 11, 420, 374, 264, 1296, 13, 128_001])
SEED = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Weights of the full size, which are removed after the tests: two layouts have 13 GB."""
    made = {
        name: fabricate_csm(tmp_path_factory.mktemp(name), size="full", layout_name=name)
        for name in ("transformers", "original")
    }
    yield made
    for folder in made.values():
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[int | None, torch.Tensor]:
    """Return the greedy (None) and seeded codes of transformers.

    The model of transformers is freed before the other models are loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model_class = csm_oracle.transformers().CsmForConditionalGeneration
        reference = model_class.from_pretrained(folders["transformers"], dtype=torch.float32)
    inputs = {"input_ids": IDS[None], "attention_mask": torch.ones_like(IDS[None])}
    found = {seed: csm_oracle.generate(reference.eval(), inputs, FRAMES, seed=seed) for seed in (None, SEED)}
    del reference
    gc.collect()
    return found


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_codes_are_equal_in_both_layouts(
    folders: dict[str, Path], expected: dict[int | None, torch.Tensor], layout: str
) -> None:
    model, codec = load_model(folders[layout], device=CPU, dtype=torch.float32)
    assert (codec is not None) == (layout == "transformers")
    prompt = model.embed_text(IDS)
    greedy = generate(model, prompt, max_frames=FRAMES, params=SamplingParams(0.0))
    assert torch.equal(torch.stack(list(greedy)), expected[None])
    seeded = generate(model, prompt, max_frames=FRAMES, params=SamplingParams(0.9, 50), seed=SEED, reference_noise=True)
    assert torch.equal(torch.stack(list(seeded)), expected[SEED])


@pytest.mark.parametrize(("dtype", "quantize", "share"), [(torch.bfloat16, "none", 0.8), (torch.bfloat16, "int8", 0.5)])
def test_bfloat16_and_int8_mostly_choose_the_same_codes(
    folders: dict[str, Path],
    expected: dict[int | None, torch.Tensor],
    dtype: torch.dtype,
    quantize: str,
    share: float,
) -> None:
    """The test counts how often the best code is the same after the reference's codes.

    Random weights have many near ties.
    """
    model, _ = load_model(folders["original"], device=CPU, dtype=dtype)
    adapt(model, quantize)  # type: ignore[arg-type]
    cache, depth = model.kv_cache(1), model.depth_kv_cache(1)
    equal, total = 0, 0
    with torch.inference_mode():
        model.read(model.embed_text(IDS[:-1]), cache, 0, 0)
        x = model.embed_text(IDS[-1:])
        for index, frame in enumerate(expected[None]):

            def forced(codebook: int, logits: torch.Tensor, frame: torch.Tensor = frame) -> torch.Tensor:
                nonlocal equal, total
                equal += int(logits.argmax() == frame[codebook])
                total += 1
                return frame[codebook : codebook + 1]

            model.frame(model.advance(x, cache, [0], [len(IDS) - 1 + index]), depth, forced)
            x = model.embed_frames(frame[None])
    print(f"{dtype} {quantize}: {equal} of {total} best codes are equal")
    assert equal / total >= share
