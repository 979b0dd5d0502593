"""Files that are not a Dia checkpoint, or would load as the wrong release, are refused with a clear error."""

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
def v0626(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("v0626"))


@pytest.fixture(scope="module")
def v01(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("v01"), layout_name="nari", release="v0.1")


@pytest.fixture(scope="module")
def nari(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("nari"), layout_name="nari")


def mixed(out: Path, weights: Path, config: dict[str, Any], file: str = "") -> Path:
    """Copy the weights of one folder beside another config.json. file: a new name for the weights."""
    [path] = [*weights.glob("*.safetensors"), *weights.glob("*.pth")]
    (out / (file or path.name)).write_bytes(path.read_bytes())
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_config_distinguishes_the_releases(v01: Path, v0626: Path, nari: Path) -> None:
    assert [read_config(folder).release for folder in (v01, v0626, nari)] == ["v0.1", "0626", "0626"]
    for folder in (v01, v0626, nari):
        open_all(folder)
    one, other = read_config(v01), read_config(v0626)
    assert one.decoder.cross is not None
    assert one.decoder.cross.rotated
    assert (one.delays, one.eos, one.max_frames) == (other.delays, other.eos, other.max_frames)


def test_parameter_count_equals_the_published_one() -> None:
    """The test computes the number from the config of both releases."""
    from app.engines.dia.checkpoint import expected_shapes, nari_shapes

    for raw in (dia_config(SHAPES["full"]), dia_config(SHAPES["full"], "new"), dia_config_v01(SHAPES["full"])):
        config = parse_config(raw)
        for shapes in (expected_shapes(config), nari_shapes(config)):
            assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_611_160_576


@pytest.mark.parametrize("file", ["model.safetensors", "anything.safetensors"])
def test_v01_in_transformers_layout_is_refused(tmp_path: Path, v0626: Path, file: str) -> None:
    """The folder has tensors in the transformers layout beside the config.json of v0.1."""
    with pytest.raises(WeightsUnavailable, match=r"RoPE in cross-attention") as caught:
        open_all(mixed(tmp_path, v0626, dia_config_v01(TINY), file))
    assert "nari-labs/Dia-1.6B-0626" in caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [{"version": "0.1"}, {"_name_or_path": "nari-labs/Dia-1.6B"}, {"_name_or_path": "/x/dia-v0_1.pth"}],
)
def test_conversion_with_v01_in_its_config_is_refused(tmp_path: Path, v0626: Path, change: dict[str, str]) -> None:
    with pytest.raises(WeightsUnavailable, match=r"v0\.1 in the transformers layout"):
        open_all(mixed(tmp_path, v0626, dia_config(TINY) | change))


def test_conversion_is_recognised_by_its_name(tmp_path: Path, v0626: Path) -> None:
    folder = mixed(tmp_path, v0626, dia_config(TINY), "dia-v0_1_bf16.safetensors")
    with pytest.raises(WeightsUnavailable, match="dia-v0_1_bf16"):
        open_all(folder)
    with pytest.raises(WeightsUnavailable, match="repository"):
        open_all(v0626, "nari-labs/Dia-1.6B")
    open_all(v0626, "nari-labs/Dia-1.6B@main".replace("1.6B", "1.6B-0626"))
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    open_all(mixed(allowed, v0626, dia_config(TINY) | {"_name_or_path": "nari-labs/Dia-1.6B-0626"}))


def test_config_of_the_other_release_is_refused(tmp_path: Path, v01: Path, nari: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with pytest.raises(WeightsUnavailable, match=r"weights of Dia-1\.6B v0\.1, but its config\.json belongs to 0626"):
        open_all(mixed(one, v01, dia_config(TINY)))
    with pytest.raises(WeightsUnavailable, match=r"weights of Dia-1\.6B 0626, but its config\.json belongs to v0\.1"):
        open_all(mixed(other, nari, dia_config_v01(TINY)))


def test_config_with_keys_of_both_releases_is_refused(tmp_path: Path) -> None:
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
def test_error_names_wrong_tensors(
    tmp_path: Path, v0626: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    state = load_file(v0626 / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((v0626 / "config.json").read_bytes())
    with pytest.raises(WeightsUnavailable, match=message):
        open_all(tmp_path)


def test_error_names_wrong_tensors_in_the_layout_of_nari(tmp_path: Path, nari: Path) -> None:
    state = torch.load(nari / "dia-v1.pth")
    # this is the shape of an ordinary linear layer
    state["decoder.layers.0.self_attention.q_proj.weight"] = torch.zeros(96, 128)
    del state["decoder.embeddings.8.weight"]
    torch.save(state, tmp_path / "dia-v1.pth")
    (tmp_path / "config.json").write_bytes((nari / "config.json").read_bytes())
    with pytest.raises(WeightsUnavailable, match=r"decoder\.embeddings\.8\.weight.*not \[96, 4, 32\]"):
        open_all(tmp_path)


def test_folder_without_dia_weights_is_refused(tmp_path: Path, v0626: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no config"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsUnavailable, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "csm"}')
    with pytest.raises(WeightsUnavailable, match="not describe a Dia model"):
        read_config(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((v0626 / "config.json").read_bytes())
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
def test_unsupported_config_values_are_refused(tmp_path: Path, part: str, key: str, value: object) -> None:
    raw = dia_config(TINY)
    (raw[part] if part else raw)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightsUnavailable, match="can't be read as a Dia config"):
        read_config(tmp_path)


def test_delay_pattern_of_v01_is_read_or_has_the_published_values() -> None:
    raw = dia_config_v01(TINY)
    published = parse_config(raw)
    raw["data"]["delay_pattern"] = list(range(9))
    assert parse_config(raw).delays == tuple(range(9)) != published.delays
    del raw["data"]["delay_pattern"]
    assert parse_config(raw) == published


def test_rope_scaling_may_be_a_number() -> None:
    raw = dia_config(TINY)
    raw["decoder_config"]["rope_scaling"] = 1.0
    assert parse_config(raw) == parse_config(dia_config(TINY, "new"))
