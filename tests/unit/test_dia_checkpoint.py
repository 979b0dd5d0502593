"""What is no Dia checkpoint, and what would load and be wrong, is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.dia.checkpoint import weights_of
from app.engines.dia.config import parse_config, read_config
from app.errors import WeightsUnavailable
from app.weights.tensors import Checkpoint, open_checkpoints
from tests.support.random_dia import SHAPES, dia_config, dia_config_v01, fabricate_dia

pytestmark = pytest.mark.unit

TINY = SHAPES["tiny"]


def open_all(folder: Path, source: str = "") -> Checkpoint:
    return weights_of(open_checkpoints(folder), read_config(folder), source)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("first"), layout_name="nari", release="v0.1")


@pytest.fixture(scope="module")
def nari(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("nari"), layout_name="nari")


def mixed(out: Path, weights: Path, config: dict[str, Any], file: str = "") -> Path:
    """The weights of one folder under another config.json, maybe by another name."""
    [path] = [*weights.glob("*.safetensors"), *weights.glob("*.pth")]
    (out / (file or path.name)).write_bytes(path.read_bytes())
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_the_releases_are_told_apart(first: Path, second: Path, nari: Path) -> None:
    assert [read_config(folder).release for folder in (first, second, nari)] == ["v0.1", "0626", "0626"]
    for folder in (first, second, nari):
        open_all(folder)
    one, other = read_config(first), read_config(second)
    assert one.decoder.cross is not None
    assert one.decoder.cross.rotated
    assert (one.delays, one.eos, one.max_frames) == (other.delays, other.eos, other.max_frames)


def test_published_numbers() -> None:
    """dia.md's count of parameters, from the config alone."""
    from app.engines.dia.checkpoint import expected_shapes, nari_shapes

    for raw in (dia_config(SHAPES["full"]), dia_config(SHAPES["full"], "new"), dia_config_v01(SHAPES["full"])):
        config = parse_config(raw)
        for shapes in (expected_shapes(config), nari_shapes(config)):
            assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_611_160_576


@pytest.mark.parametrize("file", ["model.safetensors", "anything.safetensors"])
def test_a_converted_first_release_is_refused(tmp_path: Path, second: Path, file: str) -> None:
    """Tensors in the transformers layout under the config.json of v0.1."""
    with pytest.raises(WeightsUnavailable, match=r"RoPE in cross-attention") as caught:
        open_all(mixed(tmp_path, second, dia_config_v01(TINY), file))
    assert "nari-labs/Dia-1.6B-0626" in caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [{"version": "0.1"}, {"_name_or_path": "nari-labs/Dia-1.6B"}, {"_name_or_path": "/x/dia-v0_1.pth"}],
)
def test_a_conversion_that_says_so_is_refused(tmp_path: Path, second: Path, change: dict[str, str]) -> None:
    with pytest.raises(WeightsUnavailable, match=r"v0\.1 in the transformers layout"):
        open_all(mixed(tmp_path, second, dia_config(TINY) | change))


def test_a_conversion_is_known_by_its_name(tmp_path: Path, second: Path) -> None:
    folder = mixed(tmp_path, second, dia_config(TINY), "dia-v0_1_bf16.safetensors")
    with pytest.raises(WeightsUnavailable, match="dia-v0_1_bf16"):
        open_all(folder)
    with pytest.raises(WeightsUnavailable, match="repository"):
        open_all(second, "nari-labs/Dia-1.6B")
    open_all(second, "nari-labs/Dia-1.6B@main".replace("1.6B", "1.6B-0626"))
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    open_all(mixed(allowed, second, dia_config(TINY) | {"_name_or_path": "nari-labs/Dia-1.6B-0626"}))


def test_the_other_releases_config_is_refused(tmp_path: Path, first: Path, nari: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with pytest.raises(WeightsUnavailable, match=r"weights of Dia-1\.6B v0\.1, but its config\.json is that of 0626"):
        open_all(mixed(one, first, dia_config(TINY)))
    with pytest.raises(WeightsUnavailable, match=r"weights of Dia-1\.6B 0626, but its config\.json is that of v0\.1"):
        open_all(mixed(other, nari, dia_config_v01(TINY)))


def test_keys_of_both_releases(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(dia_config(TINY) | dia_config_v01(TINY)))
    with pytest.raises(WeightsUnavailable, match="both Dia"):
        read_config(tmp_path)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.__setitem__(name, torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("logits_dense.weight"), "1 missing: logits_dense.weight"),
        (put("model.decoder.layers.9.pre_sa_norm.weight", 96), "1 unexpected: model.decoder.layers.9"),
        (put("model.encoder.norm.weight", 65), r"model.encoder.norm.weight is \[65\], not \[64\]"),
    ],
)
def test_strict(tmp_path: Path, second: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str) -> None:
    state = load_file(second / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((second / "config.json").read_bytes())
    with pytest.raises(WeightsUnavailable, match=message):
        open_all(tmp_path)


def test_strict_in_naris_layout(tmp_path: Path, nari: Path) -> None:
    state = torch.load(nari / "dia-v1.pth")
    state["decoder.layers.0.self_attention.q_proj.weight"] = torch.zeros(96, 128)  # as a plain linear would have it
    del state["decoder.embeddings.8.weight"]
    torch.save(state, tmp_path / "dia-v1.pth")
    (tmp_path / "config.json").write_bytes((nari / "config.json").read_bytes())
    with pytest.raises(WeightsUnavailable, match=r"decoder\.embeddings\.8\.weight.*not \[96, 4, 32\]"):
        open_all(tmp_path)


def test_not_a_dia_checkpoint(tmp_path: Path, second: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no config"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsUnavailable, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "csm"}')
    with pytest.raises(WeightsUnavailable, match="not of a Dia model"):
        read_config(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((second / "config.json").read_bytes())
    with pytest.raises(WeightsUnavailable, match="contains no Dia weights"):
        open_all(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("decoder_config", "hidden_act", "relu"),
        ("decoder_config", "num_channels", 8),
        ("decoder_config", "cross_hidden_size", 65),
        ("decoder_config", "rope_scaling", {"rope_type": "yarn"}),
        ("encoder_config", "num_key_value_heads", 3),
        ("", "delay_pattern", [1, 8, 9, 10, 11, 12, 13, 14, 15]),
        ("", "eos_token_id", 1027),
    ],
)
def test_configs_that_are_not_understood(tmp_path: Path, part: str, key: str, value: object) -> None:
    raw = dia_config(TINY)
    (raw[part] if part else raw)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightsUnavailable, match="can't be read as a Dia config"):
        read_config(tmp_path)


def test_rope_as_a_bare_number() -> None:
    raw = dia_config(TINY)
    raw["decoder_config"]["rope_scaling"] = 1.0
    assert parse_config(raw) == parse_config(dia_config(TINY, "new"))
