"""CSM's model gives the codes of transformers' CsmForConditionalGeneration in float32, with many shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.csm.loading import load_model
from app.engines.csm.model import CsmModel
from app.runtime.sampling import SamplingParams
from tests.support import csm_oracle
from tests.support.generation import generate

pytestmark = pytest.mark.unit

FRAMES = 16
CPU = torch.device("cpu")

SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "one key head, wide heads, deep": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "intermediate_size": 80,
        "depth": {"backbone_hidden_size": 48, "num_hidden_layers": 1, "num_key_value_heads": 4},
    },
    "depth decoder wider than the backbone": {
        "hidden_size": 32,
        "num_key_value_heads": 4,
        "depth": {"backbone_hidden_size": 32, "hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5},
    },
    "few codebooks, no codes to mask": {
        "num_codebooks": 3,
        "vocab_size": 64,
        "codebook_pad_token_id": 63,
        "depth": {"num_codebooks": 3, "vocab_size": 64},
        "codec": {"num_quantizers": 3},
    },
    "more codebooks than usual, many masked codes": {
        "num_codebooks": 40,
        "vocab_size": 150,
        "codebook_pad_token_id": 149,
        "depth": {"num_codebooks": 40, "vocab_size": 150, "max_position_embeddings": 41},
        "codec": {"num_quantizers": 40, "codebook_size": 128},
    },
    "plain RoPE, another theta": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1234.0},
        "depth": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    },
    "biases": {"attention_bias": True, "mlp_bias": True, "depth": {"attention_bias": True, "mlp_bias": True}},
    "untied tables": {"tie_codebooks_embeddings": False},
    "another epsilon": {"rms_norm_eps": 1e-2, "depth": {"rms_norm_eps": 3e-2}},
}


def load(folder: Path) -> CsmModel:
    return load_model(folder, device=CPU, dtype=torch.float32)[0]


def codes_of(model: CsmModel, ids: torch.Tensor, seed: int | None = None, **options: Any) -> torch.Tensor:
    params = options.pop("params", SamplingParams(0.0 if seed is None else 0.9))
    max_frames = options.pop("max_frames", FRAMES)
    frames = generate(
        model,
        model.embed_text(ids),
        max_frames=max_frames,
        params=params,
        seed=seed or 0,
        reference_noise=seed is not None,
        **options,
    )
    return torch.stack(list(frames))


def as_inputs(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, CsmModel]:
    reference = csm_oracle.csm(csm_oracle.csm_config(**SHAPES[request.param]), seed=3)
    folder = csm_oracle.save(reference, tmp_path_factory.mktemp("csm"))
    return reference, load(folder)


def test_greedy_codes_are_equal(pair: tuple[Any, CsmModel]) -> None:
    reference, model = pair
    ids = torch.randint(4, 300, (19,), generator=torch.Generator().manual_seed(1))
    expected = csm_oracle.generate(reference, as_inputs(ids), FRAMES)
    assert len(expected) == FRAMES
    assert torch.equal(codes_of(model, ids), expected)


@pytest.mark.parametrize("seed", [0, 11])
def test_seeded_codes_are_equal(pair: tuple[Any, CsmModel], seed: int) -> None:
    reference, model = pair
    ids = torch.randint(4, 300, (9,), generator=torch.Generator().manual_seed(2))
    expected = csm_oracle.generate(reference, as_inputs(ids), FRAMES, seed=seed)
    assert torch.equal(codes_of(model, ids, seed), expected)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, CsmModel]:
    reference = csm_oracle.csm(csm_oracle.csm_config(), seed=5)
    return reference, load(csm_oracle.save(reference, tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.6, "top_k": 5},
        {"temperature": 1.3, "top_k": 0},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 1000, "top_p": 0.5},
    ],
)
def test_codes_are_equal_for_other_sampling_params(base: tuple[Any, CsmModel], params: dict[str, Any]) -> None:
    reference, model = base
    ids = torch.arange(5, 25)
    expected = csm_oracle.generate(reference, as_inputs(ids), 20, seed=4, **params)
    assert torch.equal(codes_of(model, ids, 4, params=SamplingParams(**params), max_frames=20), expected)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prompt_may_be_read_in_chunks(base: tuple[Any, CsmModel], chunk: int) -> None:
    _, model = base
    ids = torch.arange(5, 55)
    assert torch.equal(codes_of(model, ids, 9, chunk=chunk), codes_of(model, ids, 9))


def test_codes_beyond_the_codec_are_never_drawn(base: tuple[Any, CsmModel]) -> None:
    _, model = base
    assert model.config.audio_vocab > model.config.codebook_size
    codes = codes_of(model, torch.arange(5, 25), 1, params=SamplingParams(50.0, 0), max_frames=60)  # nearly uniform
    assert int(codes.max()) == model.config.codebook_size - 1


def test_speech_ends_where_the_reference_ends(tmp_path: Path) -> None:
    shape = {"num_codebooks": 2, "depth": {"num_codebooks": 2}, "codec": {"num_quantizers": 2}}
    reference = csm_oracle.csm(csm_oracle.csm_config(**shape), seed=8)
    ids = torch.arange(5, 25)
    reference.config.codebook_eos_token_id = 66  # this code is not in the codec, so it is never drawn
    endless = csm_oracle.generate(reference, as_inputs(ids), 30, seed=2)
    tried: set[int] = set()
    lengths = []
    for frame in endless.tolist():
        if frame[0] in tried:
            continue
        tried.add(frame[0])
        reference.config.codebook_eos_token_id = frame[0]  # with two codebooks, the first code decides the end
        model = load(csm_oracle.save(reference, tmp_path / str(frame[0])))
        expected = csm_oracle.generate(reference, as_inputs(ids), 30, seed=2)
        lengths.append(len(expected))
        assert torch.equal(codes_of(model, ids, 2, max_frames=30), expected)
        if len(tried) == 4:
            break
    assert len(set(lengths)) > 2
