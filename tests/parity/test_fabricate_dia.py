"""Random Dia checkpoints: transformers loads its layout, and nari's layout has the same weights."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.nn.dac.checkpoint import load_codec
from app.nn.dac.config import read_dac_config
from tests.support import csm_oracle
from tests.support.random_dia import DiaShape, dia_shapes, fabricate_dia

pytestmark = pytest.mark.unit

SHAPE = DiaShape()


def drawn(seed: int) -> dict[str, Any]:
    """Draw a small model with a random shape, in which widths that could be confused differ."""
    random = torch.Generator().manual_seed(seed)

    def one_of(*values: int) -> int:
        return values[int(torch.randint(len(values), (), generator=random))]

    channels = one_of(4, 9)
    return {
        "encoder_layers": one_of(1, 2), "encoder_width": one_of(40, 56), "encoder_heads": one_of(2, 3),
        "encoder_head_dim": one_of(16, 24), "encoder_ffn": one_of(72, 88), "decoder_layers": one_of(1, 2),
        "decoder_width": one_of(48, 80), "decoder_heads": 4, "decoder_kv_heads": one_of(1, 2, 4),
        "decoder_head_dim": one_of(16, 20), "decoder_ffn": one_of(104, 120), "cross_heads": one_of(2, 5),
        "cross_head_dim": one_of(12, 32), "delays": (0, *range(8, 7 + channels)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("spelling", ["published", "new"])
def test_transformers_loads_the_checkpoint(published: Path, tmp_path: Path, spelling: Any) -> None:
    """No tensor is missing or unexpected, with one file or several, and with both spellings of config.json."""
    folder = fabricate_dia(tmp_path, spelling=spelling, sharded=True)
    assert len(list(folder.glob("model-0000*-of-00002.safetensors"))) == 2
    model = csm_oracle.dia(folder)
    assert model.config.decoder_config.eos_token_id == 1024
    assert model.config.decoder_config.rope_parameters["rope_theta"] == 10_000
    assert model.generation_config.guidance_scale == 3.0
    stored = load_file(published / "model.safetensors")
    state = model.state_dict()
    assert stored.keys() == state.keys() == dia_shapes(SHAPE).keys()
    assert all(torch.equal(stored[name], state[name]) for name in stored)


@pytest.mark.parametrize("seed", range(3))
def test_transformers_loads_any_shape(tmp_path: Path, seed: int) -> None:
    folder = fabricate_dia(tmp_path, shape=drawn(seed), seed=seed)
    model = csm_oracle.dia(folder)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == dia_shapes(
        DiaShape(**drawn(seed))
    )
    config = read_dac_config(folder / "dac")
    load_codec(folder / "dac", config)
    assert config.codebooks == model.config.decoder_config.num_channels


@pytest.mark.parametrize("release", ["0626", "v0.1"])
def test_nari_layout_has_the_same_weights(published: Path, tmp_path: Path, release: str) -> None:
    """The test converts the tensors back by its own rules, from the shapes of the JAX layers."""
    folder = fabricate_dia(tmp_path, layout_name="nari", release=release)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "dac",
        "dia-v1.pth" if release == "0626" else "dia-v0_1.pth",
    ]
    stored = torch.load(next(folder.glob("*.pth")), weights_only=True)
    found = {name: torch.empty(0) for name in dia_shapes(SHAPE)}
    tables: dict[int, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name.startswith("decoder.embeddings."):
            tables[int(name.split(".")[2])] = tensor
        elif name == "decoder.logits_dense.weight":
            assert tensor.shape == (96, 9, 1028)
            found["logits_dense.weight"] = tensor.reshape(96, -1).t()
        elif tensor.ndim == 1 or name == "encoder.embedding.weight":
            found[f"model.{name}"] = tensor
        else:
            inputs = 2 if ".o_proj." in name else 1
            assert tensor.ndim == 2 if ".wo." in name else tensor.ndim == 3
            ours = name.replace("wi_fused", "gate_up_proj").replace(".wo.", ".down_proj.")
            found[f"model.{ours}"] = tensor.reshape(math.prod(tensor.shape[:inputs]), -1).t()
    found["model.decoder.embeddings.embed.weight"] = torch.cat([tables[channel] for channel in range(9)])
    expected = load_file(published / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_nari_config_has_the_keys_of_its_release(tmp_path: Path) -> None:
    new = json.loads((fabricate_dia(tmp_path / "new", layout_name="nari") / "config.json").read_text())
    assert "encoder_config" in new
    assert "model" not in new
    old = json.loads((fabricate_dia(tmp_path / "old", layout_name="nari", release="v0.1") / "config.json").read_text())
    assert old["model"]["decoder"]["kv_heads"] == 2
    assert old["data"]["delay_pattern"] == [0, 8, 9, 10, 11, 12, 13, 14, 15]
    assert "encoder_config" not in old


def test_v01_can_be_written_as_bfloat16_safetensors(tmp_path: Path) -> None:
    folder = fabricate_dia(tmp_path, layout_name="nari", release="v0.1", safetensors=True, dtype=torch.bfloat16)
    tensors = load_file(folder / "dia-v0_1_bf16.safetensors")
    assert tensors["decoder.logits_dense.weight"].shape == (96, 9, 1028)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_the_codec_is_the_same_in_both_layouts(published: Path, tmp_path: Path) -> None:
    folder = fabricate_dia(tmp_path, layout_name="nari")
    assert [path.suffix for path in (folder / "dac").iterdir()] == [".pth"]
    config = read_dac_config(published / "dac")
    assert config == read_dac_config(folder / "dac")
    ours, theirs = load_codec(published / "dac", config), load_codec(folder / "dac", config)
    for name in ours:
        assert torch.allclose(ours.read(name), theirs.read(name), rtol=1e-6, atol=0), name


def test_seed_determines_the_weights(published: Path, tmp_path: Path) -> None:
    again = load_file(fabricate_dia(tmp_path / "again") / "model.safetensors")
    other = load_file(fabricate_dia(tmp_path / "other", seed=1) / "model.safetensors")
    for name, tensor in load_file(published / "model.safetensors").items():
        assert torch.equal(again[name], tensor)
        assert not torch.equal(other[name], tensor)


def test_v01_in_transformers_layout_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist in transformers' layout"):
        fabricate_dia(tmp_path, release="v0.1")
    command = [sys.executable, "-m", "bench.fabricate", "dia", "--release", "v0.1", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "does not exist in transformers' layout" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_writes_the_same_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.fabricate", "dia", "--layout", "nari", "--seed", "3", str(tmp_path / "out")]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert printed == {"model": "dia", "size": "tiny", "layout": "nari", "out": str(tmp_path / "out")}
    stored = torch.load(tmp_path / "out" / "dia-v1.pth", weights_only=True)
    there = torch.load(fabricate_dia(tmp_path / "here", layout_name="nari", seed=3) / "dia-v1.pth", weights_only=True)
    assert all(torch.equal(stored[name], there[name]) for name in there)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_transformers_generates_speech_that_ends(tmp_path: Path) -> None:
    """transformers turns a text and a prompt into audio, so its processor finds tokenizer, feature extractor and codec.

    With `eos`, each generation ends by itself: after more than one frame and far before the limit.
    """
    folder = fabricate_dia(tmp_path, eos=True)
    model, processor = csm_oracle.dia(folder), csm_oracle.dia_processor(folder)
    prompt = torch.randn(44_100, generator=torch.Generator().manual_seed(0)).numpy() * 0.2
    inputs = processor(text=["[S1] A voice. [S1] The quick fox."], audio=prompt, return_tensors="pt", padding=True)
    begun = processor.get_audio_prompt_len(inputs["decoder_attention_mask"])
    assert begun == 1 + 87  # BOS, then 87 frames, which are one second
    generated = model.generate(**inputs, do_sample=False, guidance_scale=3.0, max_new_tokens=800)
    ends = (generated[0, begun:, 0] == 1024).nonzero()[:, 0]
    assert 20 < int(ends[0]) < 700
    assert len(set(generated[0, begun : begun + int(ends[0]), 1].tolist())) > 10  # the model does not repeat one token
    sound = processor.batch_decode(generated, audio_prompt_len=begun)[0]
    assert 0.02 < float(sound.std()) < 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_full_size_has_the_published_number_of_weights(tmp_path: Path) -> None:
    """The files and the number of weights are as published. The test uses bfloat16 to halve the disk space."""
    folder = fabricate_dia(tmp_path, size="full", dtype=torch.bfloat16)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shapes = dia_shapes(DiaShape(12, 1024, 16, 128, 4096, 18, 2048, 16, 4, 128, 8192, 16, 128))
    assert index["weight_map"].keys() == shapes.keys()
    assert index["metadata"]["total_size"] == 2 * 1_611_160_576
    model = csm_oracle.dia(folder, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_611_160_576
