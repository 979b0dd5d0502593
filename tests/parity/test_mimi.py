"""Mimi equals transformers' MimiModel: full decoding, streaming and encoding, at several shapes, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.nn.mimi.checkpoint import codec
from app.nn.mimi.config import MimiConfig, read_mimi_config_file
from app.nn.mimi.model import MimiDecoder, MimiEncoder
from app.weights.tensors import Checkpoint, open_checkpoints
from tests.support import csm_oracle

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
FRAMES = 160  # 160 frames give 320 latents, so the attention window of 250 has moved
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "two residual layers, shortcuts, few groups, shared keys, short window": {
        "num_residual_layers": 2,
        "use_conv_shortcut": True,
        "upsample_groups": 8,
        "num_key_value_heads": 2,
        "sliding_window": 40,
        "hidden_size": 48,
        "dilation_growth_rate": 3,
    },
    "no quantiser projection, one group": {
        "vector_quantization_hidden_dimension": 32,
        "codebook_dim": 32,
        "upsample_groups": 1,
        "num_semantic_quantizers": 2,
    },
    "other kernels": {
        "kernel_size": 5,
        "last_kernel_size": 5,
        "residual_kernel_size": 5,
        "upsampling_ratios": [3, 2, 2],
    },
}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, MimiConfig, Checkpoint]:
    reference = csm_oracle.mimi(csm_oracle.mimi_config(**SHAPES[request.param]), seed=2)
    folder = csm_oracle.save(reference, tmp_path_factory.mktemp("mimi"))
    config = read_mimi_config_file(folder)
    return reference, config, codec(open_checkpoints(folder), config)


def decoder(config: MimiConfig, weights: Checkpoint, rows: int) -> MimiDecoder:
    mimi_decoder = MimiDecoder(config, rows=rows, device=CPU)
    mimi_decoder.load(weights)
    return mimi_decoder


def some_codes(config: MimiConfig, rows: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(6)
    return torch.randint(0, config.codebook_size, (rows, config.codebooks, FRAMES), generator=random)


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest error as a share of the signal's RMS."""
    return float((ours - theirs).abs().max() / theirs.std())


@torch.no_grad()
def test_decoded_audio_equals_transformers(pair: tuple[Any, MimiConfig, Checkpoint]) -> None:
    reference, config, weights = pair
    codes = some_codes(config, 2)
    expected = reference.decode(codes).audio_values[:, 0]
    assert worst(decoder(config, weights, 2).decode([0, 1], codes), expected) < 3e-5


@torch.no_grad()
@pytest.mark.parametrize("piece", [1, 3])
def test_streamed_audio_equals_transformers(pair: tuple[Any, MimiConfig, Checkpoint], piece: int) -> None:
    reference, config, weights = pair
    codes = some_codes(config, 1)
    expected = reference.decode(codes).audio_values[:, 0]
    stream = decoder(config, weights, 1)
    sound = torch.cat([stream.decode([0], part) for part in codes.split(piece, dim=2)], dim=1)
    assert sound.shape == expected.shape
    assert worst(sound, expected) < 3e-5


@torch.no_grad()
def test_rows_stream_independently(pair: tuple[Any, MimiConfig, Checkpoint]) -> None:
    """Rows pause and are reset in any order. Each row gives the same audio as alone."""
    reference, config, weights = pair
    codes = some_codes(config, 3)
    expected = reference.decode(codes).audio_values[:, 0]
    stream = decoder(config, weights, 4)
    places = [3, 0, 2]
    stream.decode([0, 1, 2, 3], some_codes(config, 4)[:, :, :9])  # gives the rows an earlier state
    for row in places:
        stream.reset(row)
    random = torch.Generator().manual_seed(1)
    done, parts = [0, 0, 0], [[], [], []]
    again = True
    while min(done) < FRAMES:
        going = [i for i in range(3) if done[i] < FRAMES and torch.rand((), generator=random) < 0.7]
        if not going:
            continue
        size = min(int(torch.randint(1, 5, (), generator=random)), *(FRAMES - done[i] for i in going))
        chunks = stream.decode(
            [places[i] for i in going], torch.stack([codes[i, :, done[i] : done[i] + size] for i in going])
        )
        for i, sound in zip(going, chunks, strict=True):
            parts[i].append(sound)
            done[i] += size
        if again and done[1] > 20:
            again = False  # one row restarts while the other rows continue
            stream.reset(places[1])
            done[1], parts[1] = 0, []
    assert worst(torch.stack([torch.cat(part) for part in parts]), expected) < 3e-5


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 1, 17])
def test_encoded_codes_are_equal(pair: tuple[Any, MimiConfig, Checkpoint], extra: int) -> None:
    reference, config, weights = pair
    encoder = MimiEncoder(config)
    encoder.load(weights)
    samples = torch.randn(config.frame_samples * 150 + extra, generator=torch.Generator().manual_seed(5)) * 0.3
    expected = reference.encode(samples[None, None]).audio_codes[0]
    found = encoder(samples)
    assert found.shape == expected.shape
    # if two codes are equally near, a float error decides between them
    assert float((found == expected).float().mean()) > 0.999


def test_moshi_file_gives_the_same_codec(pair: tuple[Any, MimiConfig, Checkpoint], tmp_path: Path) -> None:
    """moshi's file has other tensor names, joins q, k and v, and interleaves the pairs of RoPE."""
    _, config, weights = pair
    if config.conv_shortcut or config.kv_heads != config.heads or config.quantizer_dim == config.width:
        pytest.skip("moshi has no such codec")
    from safetensors.torch import save_file

    theirs: dict[str, torch.Tensor] = {}
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for name in weights:
        tensor = weights.read(name).clone()
        at, _, part = name.partition(".self_attn.")
        if part in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            if part[0] != "v":
                tensor = tensor.view(config.heads, 2, -1, config.width).transpose(1, 2).reshape(tensor.shape)
            joined.setdefault(at, {})[part[0]] = tensor
            continue
        theirs[_moshi_name(name)] = tensor
    for at, parts in joined.items():
        key = at.replace("_transformer.", "_transformer.transformer.") + ".self_attn.in_proj_weight"
        theirs[key] = torch.cat([parts[part] for part in "qkv"])
    save_file(theirs, tmp_path / "tokenizer-checkpoint.safetensors")
    found = codec(open_checkpoints(tmp_path), config)
    for name in layout_names(weights):
        assert torch.equal(found.read(name), weights.read(name)), name


def layout_names(weights: Checkpoint) -> list[str]:
    return [name for name in weights if not name.endswith("initialized")]


def _moshi_name(name: str) -> str:
    import re

    for pattern, replacement in (
        (r"^(encoder|decoder)_transformer\.", r"\1_transformer.transformer."),
        (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
        (r"\.input_layernorm\.", ".norm1."),
        (r"\.post_attention_layernorm\.", ".norm2."),
        (r"\.mlp\.fc1\.", ".linear1."),
        (r"\.mlp\.fc2\.", ".linear2."),
        (r"\.self_attn_layer_scale\.", ".layer_scale_1."),
        (r"\.mlp_layer_scale\.", ".layer_scale_2."),
        (r"^downsample\.conv\.", "downsample.conv.conv.conv."),
        (r"^upsample\.conv\.", "upsample.convtr.convtr.convtr."),
        (r"^quantizer\.semantic_residual_vector_quantizer\.", "quantizer.rvq_first."),
        (r"^quantizer\.acoustic_residual_vector_quantizer\.", "quantizer.rvq_rest."),
        (r"\.layers\.(\d+)\.codebook\.initialized$", r".vq.layers.\1._codebook._initialized"),
        (r"\.layers\.(\d+)\.codebook\.embed_sum$", r".vq.layers.\1._codebook.embedding_sum"),
        (r"\.layers\.(\d+)\.codebook\.", r".vq.layers.\1._codebook."),
    ):
        name = re.sub(pattern, replacement, name)
    if match := re.match(r"^(encoder|decoder)\.layers\.(\d+)\.(.*)$", name):
        side, index, rest = match.groups()
        upsampling = side == "decoder" and rest.startswith("conv.") and int(index) % 3 == 2
        rest = re.sub(r"^(block\.\d+\.)?conv\.", r"\1" + ("convtr.convtr." if upsampling else "conv.conv."), rest)
        name = f"{side}.model.{index}.{rest}"
    return name
