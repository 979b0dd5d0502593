"""A merged LoRA adapter gives the codes of PEFT's `merge_and_unload` and transformers in float32."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.csm.checkpoint import checkpoint_name
from app.engines.csm.loading import load_codec, load_model
from app.engines.dia.checkpoint import weights_of
from app.engines.dia.config import read_config as read_dia_config
from app.engines.dia.model import DiaModel
from app.weights.adapter import open_adapter
from app.weights.tensors import open_checkpoints
from tests.parity.test_csm_model import as_inputs, codes_of
from tests.parity.test_dia_model import generate as generate_dia
from tests.parity.test_mimi import worst
from tests.support import csm_oracle, dia_oracle
from tests.support.random_adapter import save_and_merge

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CSM_FRAMES = 10
DIA_FRAMES = 20  # more than the largest delay of a codebook
UNSLOTH = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BIASES = {"attention_bias": True, "mlp_bias": True, "depth": {"attention_bias": True, "mlp_bias": True}}

ADAPTERS: dict[str, dict[str, Any]] = {
    "the notebook of Unsloth": {"r": 32, "lora_alpha": 32, "target_modules": UNSLOTH},
    "rank 1": {"r": 1, "lora_alpha": 1, "target_modules": UNSLOTH},
    "rank larger than the layer": {"r": 80, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "rsLoRA, all linear layers": {"r": 5, "lora_alpha": 3, "use_rslora": True, "target_modules": "all-linear"},
    "DoRA with heads and projection": {
        "r": 4, "lora_alpha": 8, "use_dora": True,
        "target_modules": ["q_proj", "down_proj", "lm_head", "inputs_embeds_projector"],
    },
    "DoRA with rsLoRA": {"r": 9, "lora_alpha": 2, "use_dora": True, "use_rslora": True, "target_modules": UNSLOTH},
    "a regular expression": {"r": 6, "lora_alpha": 12, "target_modules": r".*depth_decoder.*\.(q|up)_proj"},
    "text table and tied audio table": {
        "r": 4, "lora_alpha": 8, "target_modules": ["embed_text_tokens", "embed_audio_tokens"],
    },
    "tied table of the depth decoder": {
        "r": 3, "lora_alpha": 8, "target_modules": ["depth_decoder.model.embed_tokens", "q_proj"],
    },
    "DoRA of the text table": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["embed_text_tokens"]},
    "modules_to_save": {
        "r": 3, "lora_alpha": 8, "target_modules": ["v_proj"],
        "modules_to_save": ["lm_head", "codebooks_head", "embed_text_tokens"],
    },
    "one table in modules_to_save": {
        "r": 3, "lora_alpha": 8, "target_modules": ["v_proj"], "modules_to_save": ["embed_audio_tokens"],
    },
    "rank and alpha patterns": {
        "r": 3, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj", "up_proj"],
        "rank_pattern": {"q_proj": 7, r"backbone_model\.layers\.0\.mlp\.up_proj": 2},
        "alpha_pattern": {"depth_decoder.model.layers.1.self_attn.v_proj": 33, "q_proj": 1},
    },
    "target_parameters": {
        "r": 3, "lora_alpha": 8, "target_modules": ["v_proj"], "target_parameters": ["codebooks_head.weight"],
    },
    "trainable tokens": {
        "r": 3, "lora_alpha": 8, "target_modules": ["v_proj"],
        "trainable_token_indices": {"embed_text_tokens": [5, 17, 40]},
    },
    "fan_in_fan_out": {"r": 3, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": ["v_proj", "gate_proj"]},
    "convolutions of the codec": {
        "r": 3, "lora_alpha": 8, "target_modules": ["input_proj", "output_proj", "fc1", "fc2", "q_proj"],
    },
    "DoRA of convolutions": {
        "r": 3, "lora_alpha": 8, "use_dora": True, "target_modules": ["input_proj", "output_proj", "fc1", "fc2"],
    },
    "all biases": {"r": 3, "lora_alpha": 8, "bias": "all", "target_modules": ["v_proj", "up_proj"]},
    "biases of LoRA layers": {"r": 3, "lora_alpha": 8, "bias": "lora_only", "target_modules": ["v_proj", "up_proj"]},
    "lora_bias": {"r": 3, "lora_alpha": 8, "lora_bias": True, "target_modules": r".*backbone.*\.(v|up)_proj"},
}  # fmt: skip


def random_config(seed: int, linear: list[str], tables: list[str], saved: list[str]) -> dict[str, Any]:
    """Return a random combination of options. An even seed gives DoRA, and all seeds but 1, 4, 7 ... give rsLoRA.

    linear, tables: modules that can get matrices. saved: modules that can be saved whole.
    """
    pick = random.Random(seed)
    targets = pick.sample(linear, pick.randint(2, len(linear)))
    return {
        "r": pick.randint(1, 12), "lora_alpha": pick.randint(1, 24),
        "use_dora": seed % 2 == 0, "use_rslora": seed % 3 != 1,
        "target_modules": targets + pick.sample(tables, pick.randint(0, len(tables))),
        "rank_pattern": {name: pick.randint(1, 12) for name in pick.sample(targets, 2)},
        "alpha_pattern": {name: pick.randint(1, 24) for name in pick.sample(targets, 2)},
        "modules_to_save": pick.sample(saved, pick.randint(0, len(saved))) or None,
    }  # fmt: skip


def merged_codes(base: Path, adapter: Path, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return the greedy codes of the base model with the adapter, and the codec with the adapter."""
    found = open_adapter(adapter, checkpoint_name)
    model, own = load_model(base, device=CPU, dtype=torch.float32, adapter=found)
    codec = load_codec(model.config, own, None, device=CPU, max_rows=1, adapter=found)
    return codes_of(model, ids, max_frames=CSM_FRAMES), codec


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_csm_with_an_adapter_equals_the_reference(name: str, tmp_path: Path) -> None:
    biases = "bias" in name
    reference = csm_oracle.csm(csm_oracle.csm_config(**BIASES if biases else {}), seed=3)
    base = csm_oracle.save(reference, tmp_path / "base")
    ids = torch.arange(5, 24)
    before = csm_oracle.generate(reference, as_inputs(ids), CSM_FRAMES)
    merged = save_and_merge(reference, tmp_path / "adapter", seed=len(name), **ADAPTERS[name])
    expected = csm_oracle.generate(merged, as_inputs(ids), CSM_FRAMES)
    codes, (encoder, decoder) = merged_codes(base, tmp_path / "adapter", ids)
    assert torch.equal(codes, expected)
    if name != "DoRA of convolutions":  # this adapter changes only the codec
        assert not torch.equal(before, expected)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        spoken = torch.randint(0, 64, (1, 8, 30), generator=generator)
        assert worst(decoder.decode([0], spoken), merged.codec_model.decode(spoken).audio_values[:, 0]) < 1e-4
        samples = torch.randn(24 * 40, generator=generator) * 0.1
        theirs = merged.codec_model.encode(samples[None, None], num_quantizers=8).audio_codes[0]
        assert torch.equal(encoder(samples), theirs)


@pytest.mark.parametrize("seed", range(3))
def test_csm_with_a_random_adapter_equals_the_reference(seed: int, tmp_path: Path) -> None:
    reference = csm_oracle.csm(csm_oracle.csm_config(), seed=seed)
    base = csm_oracle.save(reference, tmp_path / "base")
    config = random_config(seed, UNSLOTH, ["embed_text_tokens", "embed_audio_tokens"], ["lm_head", "codebooks_head"])
    merged = save_and_merge(reference, tmp_path / "adapter", seed=seed, **config)
    ids = torch.arange(5, 24)
    codes, _ = merged_codes(base, tmp_path / "adapter", ids)
    assert torch.equal(codes, csm_oracle.generate(merged, as_inputs(ids), CSM_FRAMES)), config


@pytest.mark.parametrize("spelling", ["named adapter", "raw modules_to_save", "without prefix", "torch.compile"])
def test_other_spellings_of_the_tensors_are_read(spelling: str, tmp_path: Path) -> None:
    reference = csm_oracle.csm(csm_oracle.csm_config(), seed=3)
    base = csm_oracle.save(reference, tmp_path / "base")
    how = {"r": 4, "lora_alpha": 8, "target_modules": UNSLOTH, "modules_to_save": ["lm_head"], "use_dora": True}
    merged = save_and_merge(reference, tmp_path / "adapter", **how)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    start = "base_model.model."
    match spelling:
        case "named adapter":
            for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
                tensors = {name.replace(f".{part}", f".{part}.default"): each for name, each in tensors.items()}
        case "raw modules_to_save":
            head = tensors.pop(f"{start}lm_head.weight")
            tensors[f"{start}lm_head.modules_to_save.default.weight"] = head
            tensors[f"{start}lm_head.original_module.weight"] = torch.zeros_like(head)
        case "without prefix":
            tensors = {name.removeprefix(start): each for name, each in tensors.items()}
        case "torch.compile":
            tensors = {f"_orig_mod.{name}": each for name, each in tensors.items()}
    save_file(tensors, file)
    ids = torch.arange(5, 24)
    codes, _ = merged_codes(base, tmp_path / "adapter", ids)
    assert torch.equal(codes, csm_oracle.generate(merged, as_inputs(ids), CSM_FRAMES))


def test_adapter_fits_to_a_base_with_one_of_the_tied_tables(tmp_path: Path) -> None:
    reference = csm_oracle.csm(csm_oracle.csm_config(), seed=3)
    base = csm_oracle.save(reference, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    names = ("backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight")
    [kept] = [name for name in names if name in tensors]
    tensors[names[1 - names.index(kept)]] = tensors[kept].clone()
    save_file(tensors, base / "model.safetensors")
    merged = save_and_merge(reference, tmp_path / "adapter", r=2, lora_alpha=4, target_modules=["embed_audio_tokens"])
    ids = torch.arange(5, 24)
    codes, _ = merged_codes(base, tmp_path / "adapter", ids)
    assert torch.equal(codes, csm_oracle.generate(merged, as_inputs(ids), CSM_FRAMES))


DIA_ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "all linear layers, rsLoRA": {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": "all-linear"},
    "DoRA with the head": {
        "r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["gate_up_proj", "down_proj", "logits_dense"],
    },
    "encoder alone": {"r": 3, "lora_alpha": 9, "target_modules": r".*encoder\.layers.*\.(q|v)_proj"},
    "cross-attention alone": {"r": 3, "lora_alpha": 9, "target_modules": r".*cross_attention\.\w_proj"},
    "both embeddings": {"r": 3, "lora_alpha": 9, "target_modules": ["embedding", "embed"]},
    "modules_to_save": {
        "r": 3, "lora_alpha": 9, "target_modules": ["q_proj"], "modules_to_save": ["logits_dense", "embedding"],
    },
    "patterns": {
        "r": 3, "lora_alpha": 9, "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"down_proj": 5}, "alpha_pattern": {"decoder.layers.0.self_attention.q_proj": 1},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", ["transformers", "nari"])
@pytest.mark.parametrize("name", list(DIA_ADAPTERS))
def test_dia_with_an_adapter_equals_the_reference(name: str, layout: str, tmp_path: Path) -> None:
    assert_dia_equals_the_reference(tmp_path, layout, len(name), DIA_ADAPTERS[name])


@pytest.mark.parametrize("seed", range(3))
def test_dia_with_a_random_adapter_equals_the_reference(seed: int, tmp_path: Path) -> None:
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    config = random_config(seed, linear, ["embedding", "embed"], ["logits_dense"])
    assert_dia_equals_the_reference(tmp_path, ("nari", "transformers")[seed % 2], seed, config)


def assert_dia_equals_the_reference(folder: Path, layout: str, seed: int, lora: dict[str, Any]) -> None:
    reference = dia_oracle.model(seed=1)
    base = dia_oracle.save(reference, folder / "base")
    if layout == "nari":
        base = dia_oracle.as_nari(base, folder / "nari")
    text = "[S1] Hello there, how are you?"
    merged = save_and_merge(reference, folder / "adapter", scale=0.06, seed=seed, **lora)
    [expected] = dia_oracle.generate(merged, [text.replace("[S1]", "\x01").encode()], DIA_FRAMES)
    config = read_dia_config(base)
    adapter = open_adapter(folder / "adapter")
    model = DiaModel(config, device=CPU, dtype=torch.float32)
    model.load(adapter.merge(weights_of(open_checkpoints(base), config)))
    adapter.check_merged("Dia")
    assert torch.equal(generate_dia(model.eval(), text, DIA_FRAMES), expected), lora


# ---- adapters that can't be merged


def test_bfloat16_adapter_is_merged_in_float32(tmp_path: Path) -> None:
    reference = csm_oracle.csm(csm_oracle.csm_config(), seed=3)
    base = csm_oracle.save(reference, tmp_path / "base")
    save_and_merge(reference, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=UNSLOTH)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    ids = torch.arange(5, 24)
    save_file({name: tensor.float() for name, tensor in half.items()}, file)
    expected, _ = merged_codes(base, tmp_path / "adapter", ids)
    save_file(half, file)
    codes, _ = merged_codes(base, tmp_path / "adapter", ids)
    assert torch.equal(codes, expected)


def test_digest_changes_with_the_config(tmp_path: Path) -> None:
    reference = csm_oracle.csm(csm_oracle.csm_config(), seed=3)
    save_and_merge(reference, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=UNSLOTH)
    first = open_adapter(tmp_path / "adapter").digest
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 9}))
    assert open_adapter(tmp_path / "adapter").digest != first
