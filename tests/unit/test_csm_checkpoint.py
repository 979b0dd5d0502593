"""CSM checkpoints in every published layout are read; broken ones are refused with a clear error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.csm.checkpoint import _half_split
from app.engines.csm.config import parse_config, read_config
from app.engines.csm.loading import load_codec, load_model, load_runner
from app.errors import WeightsUnavailable
from app.nn.rope import Rope, apply_rotary, rotary
from app.weights.tensors import Derived, open_checkpoints
from tests.support.random_csm import csm_config, fabricate_csm

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
F32 = torch.float32


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the transformers layout in one file."""
    return fabricate_csm(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("original"), layout_name="original")


def parameters(folder: Path, dtype: torch.dtype = F32) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, device=CPU, dtype=dtype)[0].named_parameters())


def copy(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    return target


def change_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_both_layouts_give_the_same_model(published: Path, original: Path) -> None:
    assert same(parameters(published), parameters(original))
    first, second = (
        load_codec(read_config(folder), own, codec, device=CPU, max_rows=1)
        for folder, own, codec in (
            (published, load_model(published, device=CPU, dtype=F32)[1], None),
            (original, None, original / "mimi"),
        )
    )
    for ours, theirs in zip(first, second, strict=True):
        assert same(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_folder_with_both_layouts_is_read(published: Path, original: Path, tmp_path: Path) -> None:
    """As in sesame/csm-1b, model.safetensors has the original layout, and config.json belongs to the transformers
    shards."""
    folder = fabricate_csm(tmp_path, sharded=True)
    assert len(list(folder.glob("transformers-*.safetensors"))) == 2
    (folder / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes())
    model, codec = load_model(folder, device=CPU, dtype=F32)
    assert codec is not None
    assert same(dict(model.named_parameters()), parameters(published))
    next(folder.glob("transformers-00002*")).unlink()  # one layout is incomplete, so the other one is used
    model, codec = load_model(folder, device=CPU, dtype=F32)
    assert codec is None
    assert same(dict(model.named_parameters()), parameters(published))
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsUnavailable, match="transformers-00002-of-00002"):
        load_model(folder, device=CPU, dtype=F32)


def test_file_name_does_not_matter(original: Path, tmp_path: Path) -> None:
    folder = copy(original, tmp_path)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert same(parameters(folder), parameters(original))


def test_pytorch_file_is_read(original: Path, tmp_path: Path) -> None:
    """The file is like ckpt.pt of the first release."""
    folder = copy(original, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "ckpt.pt")
    (folder / "model.safetensors").unlink()
    assert same(parameters(folder), parameters(original))
    (folder / "ckpt.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsUnavailable, match="can't be read"):
        parameters(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pytorch_file_is_not_read_into_memory(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1000)}, tmp_path / "ckpt.pt")
    (checkpoint,) = open_checkpoints(tmp_path)
    assert f"{tmp_path / 'ckpt.pt'}\n" in Path("/proc/self/maps").read_text()
    assert torch.equal(checkpoint.read("weight"), torch.ones(1000))


@pytest.mark.parametrize(
    "kept", ["backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"]
)
def test_tied_table_may_be_stored_under_one_name(published: Path, tmp_path: Path, kept: str) -> None:
    folder = copy(published, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        if name.endswith(("embed_audio_tokens.weight", "model.embed_tokens.weight")) and name != kept:
            del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    assert same(parameters(folder), parameters(published))
    change_config(folder, tie_codebooks_embeddings=False)
    with pytest.raises(WeightsUnavailable, match=r"1 missing: .*embed"):
        parameters(folder)


def test_error_names_every_wrong_tensor(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["extra.weight"] = torch.zeros(2)
    tensors["backbone_model.norm.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsUnavailable) as caught:
        parameters(folder)
    for part in ("missing: lm_head.weight", "unexpected: extra.weight", "backbone_model.norm.weight is [3], not [64]"):
        assert part in caught.value.reason
    assert caught.value.remedy


def test_error_names_the_missing_codec_tensor(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["codec_model.decoder.layers.0.conv.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsUnavailable, match=r"decoder\.layers\.0\.conv\.weight"):
        load_runner(folder, None, device=CPU, dtype=F32, max_rows=1)


def test_separate_codec_sets_the_codebook_size(original: Path, tmp_path: Path) -> None:
    """If config.json does not describe the codec, the codec's own folder does."""
    folder = copy(original, tmp_path)
    change_config(folder, codec_config=None)
    assert read_config(folder).codebook_size == 67
    runner = load_runner(folder, original / "mimi", device=CPU, dtype=F32, max_rows=1)
    assert runner.config.codebook_size == 64


def test_weights_without_codec_are_refused(original: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no codec"):
        load_runner(original, None, device=CPU, dtype=F32, max_rows=1)


def test_folder_without_csm_weights_is_refused(tmp_path: Path, published: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"config\.json"):
        parameters(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsUnavailable, match="not valid JSON"):
        parameters(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(WeightsUnavailable, match="not describe a CSM model"):
        parameters(tmp_path)
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    with pytest.raises(WeightsUnavailable, match=r"no \.safetensors"):
        parameters(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsUnavailable, match="not a safetensors file"):
        parameters(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes()[:500_000])
    with pytest.raises(WeightsUnavailable, match="truncated"):
        parameters(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsUnavailable, match="no CSM weights"):
        parameters(tmp_path)


def test_bfloat16_weights_are_rounded_once(published: Path) -> None:
    exact, half = parameters(published), parameters(published, torch.bfloat16)
    for name, tensor in half.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name  # includes the table that `load` computes


def test_old_and_new_rope_keys_give_the_same_config() -> None:
    old = csm_config("full")
    new = json.loads(json.dumps(old))
    for part in (new, new["depth_decoder_config"]):
        part["rope_parameters"] = {"rope_theta": part.pop("rope_theta"), **part.pop("rope_scaling")}
    assert parse_config(old) == parse_config(new)
    assert parse_config(old).backbone.rope == Rope(500_000.0, "llama3", 32.0, 0.125, 0.5, 1024)


def test_config_of_the_first_release_is_read() -> None:
    """This config contains names of sizes.

    Its RoPE numbers (8192, 1, 4) mean the same as the later numbers (1024, 1/8, 1/2).
    """
    first = parse_config(
        {
            "backbone_flavor": "llama-1B",
            "decoder_flavor": "llama-100M",
            "text_vocab_size": 128_256,
            "audio_vocab_size": 2051,
            "audio_num_codebooks": 32,
        }
    )
    later = parse_config(csm_config("full"))
    for ours, theirs in ((first.backbone, later.backbone), (first.depth, later.depth)):
        assert (ours.layers, ours.width, ours.heads, ours.kv_heads, ours.head_dim, ours.ffn) == (
            (theirs.layers, theirs.width, theirs.heads, theirs.kv_heads, theirs.head_dim, theirs.ffn)
        )
        assert torch.equal(ours.rope.frequencies(ours.head_dim), theirs.rope.frequencies(theirs.head_dim))
        plain = Rope(500_000.0).frequencies(ours.head_dim)
        assert not torch.equal(ours.rope.frequencies(ours.head_dim), plain)
    assert (first.codebook_size, first.max_positions, first.eos_code) == (2048, 2048, 0)


def test_half_split_rope_equals_interleaved_rope() -> None:
    """RoPE of the original layout pairs elements (2i, 2i + 1); our model pairs (i, i + d/2).

    Attention scores must be equal.
    """
    heads, size, width = 3, 8, 20
    frequencies = Rope(100.0).frequencies(size)
    q, k = torch.randn(2, heads * size, width, generator=torch.Generator().manual_seed(0))
    x, y = torch.randn(2, width, generator=torch.Generator().manual_seed(1))

    def interleaved(vector: torch.Tensor, position: int) -> torch.Tensor:
        pairs = torch.view_as_complex(vector.view(heads, size // 2, 2))
        return torch.view_as_real(pairs * torch.exp(1j * frequencies * position)).flatten(1)

    def half_split(weight: torch.Tensor, vector: torch.Tensor, position: int) -> torch.Tensor:
        stored = Derived(tuple(weight.shape), lambda: weight)
        projected = _half_split(stored, size)() @ vector
        return apply_rotary(projected.view(1, heads, size), *rotary(frequencies, torch.tensor([position])))[0]

    theirs = (interleaved(q @ x, 7) * interleaved(k @ y, 3)).sum(-1)
    ours = (half_split(q, x, 7) * half_split(k, y, 3)).sum(-1)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_error_names_the_tied_table_if_it_is_missing(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    names = ("embed_audio_tokens.weight", "model.embed_tokens.weight")
    save_file({name: part for name, part in tensors.items() if not name.endswith(names)}, folder / "model.safetensors")
    with pytest.raises(WeightsUnavailable, match="missing"):
        parameters(folder)
