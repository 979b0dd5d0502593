"""Every published layout of CSM and Dia is either loaded correctly, or refused with a reason and a remedy.

The weights are random, in the file names and with the tensor names of real repositories.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.csm import config as csm_reader
from app.engines.csm.loading import build as build_csm
from app.engines.csm.loading import load_from as load_csm
from app.engines.csm.model import CsmModel
from app.engines.dia import config as dia_reader
from app.engines.dia.loading import load_from as load_dia
from app.engines.dia.model import DiaModel
from app.engines.registry import BuildContext
from app.errors import WeightsUnavailable
from app.settings import Settings
from app.types import Sampling
from app.weights import adapter as adapters
from app.weights.load_cache import LoadCache
from tests.support import csm_oracle, dia_oracle
from tests.support.fake_hub import FakeHub
from tests.support.pickles import RunsCode
from tests.support.random_adapter import save_and_merge
from tests.support.random_csm import csm_config, fabricate_csm
from tests.support.random_dia import fabricate_dac

pytestmark = pytest.mark.unit

TABLES = ("backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
CONTEXT = BuildContext(lambda _: None, lambda: False)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model like sesame/csm-1b: two shards, an index, a tokenizer."""
    return fabricate_csm(tmp_path_factory.mktemp("published"), sharded=True)


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same model in one file, like unsloth/csm-1b."""
    return fabricate_csm(tmp_path_factory.mktemp("one_file"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same model in the original layout, with the codec in `mimi`."""
    return fabricate_csm(tmp_path_factory.mktemp("original"), layout_name="original")


@pytest.fixture(scope="module")
def lora(one_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a random adapter of this model, and the model with this adapter merged by PEFT."""
    folder = tmp_path_factory.mktemp("lora")
    base = csm_oracle.transformers().CsmForConditionalGeneration.from_pretrained(one_file, dtype=torch.float32)
    merged = save_and_merge(base, folder / "adapter", **LORA)
    csm_oracle.save(merged, folder / "merged")
    copy_tokenizer(one_file, folder / "merged")
    return folder / "adapter", folder / "merged"


@pytest.fixture
def start_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, dict[str, bytes]]], FakeHub]]:
    """Starts a hub with these repositories, and lets the server use it."""
    with ExitStack() as stack:

        def start(repos: dict[str, dict[str, bytes]]) -> FakeHub:
            hub = stack.enter_context(FakeHub(repos))
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            return hub

        yield start


@pytest.fixture(autouse=True)
def _no_other_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no_cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER:
        shutil.copy(source / name, target / name)


def copy(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in without:
            shutil.copy(path, target / path.name)
    return target


def change_json(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text()) if path.exists() else {}
    raw |= changes
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def settings_of(tmp_path: Path, **values: Any) -> Settings:
    options = {"TTS_DEVICE": "cpu", "TTS_DTYPE": "float32", "TTS_MAX_ROWS": 1, "TTS_DATA_DIR": tmp_path / "data"}
    return Settings(_env_file=None, **(options | {name: str(value) for name, value in values.items()}))


def digest(module: torch.nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        hashed.update(name.encode() + tensor.detach().numpy().tobytes())
    return hashed.hexdigest()


def load(tmp_path: Path, model: object, **values: Any) -> tuple[Any, ...]:
    """Load the model with these settings; return the digests of the model and the codec, and the token ids of a
    text."""
    runner = load_csm(settings_of(tmp_path, CSM_MODEL=model, **values), CONTEXT, guards=None)
    return digest(runner.model), digest(runner._decoder), runner._text(1, "Hello there.")


def refusal(tmp_path: Path, model: object, **values: Any) -> str:
    """Return the error message of a start with these settings."""
    with pytest.raises(WeightsUnavailable) as caught:
        load_csm(settings_of(tmp_path, CSM_MODEL=model, **values), CONTEXT, guards=None)
    assert caught.value.remedy
    assert len(caught.value.reason) < 700
    return f"{caught.value.reason} {caught.value.remedy}"


@pytest.fixture(scope="module")
def base(one_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return load(tmp_path_factory.mktemp("base"), one_file)


# ---- rows 1 to 3, 6, 7: whole models


def test_published_layouts_are_loaded(published: Path, one_file: Path, base: tuple[Any, ...], tmp_path: Path) -> None:
    assert load(tmp_path, published) == base
    for number, kept in enumerate(TABLES):
        folder = copy(one_file, tmp_path / str(number))
        lost = TABLES[1 - number]
        change_tensors(folder, lambda tensors, lost=lost: {n: t for n, t in tensors.items() if n != lost})
        assert kept in load_file(folder / "model.safetensors")
        assert load(tmp_path, folder) == base


def test_missing_shard_is_named(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path / "model")
    shard = max(folder.glob("*.safetensors"))
    shard.unlink()
    words = refusal(tmp_path, folder)
    assert shard.name in words
    assert "lacks 1 of the files" in words


@pytest.mark.parametrize(
    ("index", "where"), [("missing", "local"), ("broken", "local"), ("numbers", "local"), ("missing", "hub")]
)
def test_shards_without_a_readable_index_are_loaded(  # noqa: PLR0917 - fixtures
    index: str, where: str, published: Path, base: tuple[Any, ...], tmp_path: Path, start_hub: Callable[..., FakeHub]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    names = {path.name: path.name.replace("transformers-", "model-") for path in folder.glob("*.safetensors*")}
    for old, new in names.items():
        (folder / old).rename(folder / new.replace("transformers.", "model."))
    file = folder / "model.safetensors.index.json"
    broken = {"broken": '{"weight_map": ', "numbers": '{"weight_map": {"a": 3}}'}
    file.unlink() if index == "missing" else file.write_text(broken[index])
    shards = sorted(folder.glob("model-*"))
    if where == "local":
        assert load(tmp_path, folder) == base
        shards[0].unlink()
        words = refusal(tmp_path, folder)
    else:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        lost = {name: data for name, data in files.items() if name != shards[0].name}
        start_hub({"me/model": files, "me/lost": lost})
        assert load(tmp_path, "me/model") == base
        words = refusal(tmp_path, "me/lost")
    assert shards[0].name in words


def test_index_says_which_shard_has_a_tensor(published: Path, base: tuple[Any, ...], tmp_path: Path) -> None:
    folder = copy(published, tmp_path / "model")
    index = next(folder.glob("*.index.json"))
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    mapped = json.loads(index.read_text())["weight_map"]
    name = next(name for name, shard in mapped.items() if shard == shards[0] and name.endswith("q_proj.weight"))
    change_json(index, weight_map=mapped | {"model.layer_that_is_not_there.weight": shards[0]})
    other = load_file(folder / shards[1])
    save_file(other | {name: load_file(folder / shards[0])[name] + 1}, folder / shards[1])
    assert load(tmp_path, folder) == base
    del mapped[name]
    change_json(index, weight_map=mapped)
    words = refusal(tmp_path, folder)
    assert name in words
    assert "the same tensors" in words


def test_shards_that_another_save_has_left_are_ignored(
    published: Path, one_file: Path, base: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = copy(one_file, tmp_path / "model")
    shutil.copy(max(published.glob("*.safetensors")), folder / "model-00002-of-00003.safetensors")
    assert load(tmp_path, folder) == base


def test_half_of_a_shard_is_reported(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path / "model")
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:5000])
    words = refusal(tmp_path, folder)
    assert shard.name in words
    assert "truncated" in words


def test_merged_fine_tune_is_loaded(lora: tuple[Path, Path], base: tuple[Any, ...], tmp_path: Path) -> None:
    merged = load(tmp_path, lora[1])
    assert merged[0] != base[0]
    half = copy(lora[1], tmp_path / "half")
    change_tensors(half, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    assert load(tmp_path, half)[2] == base[2]


@pytest.mark.parametrize("named", ["setting", "file", "origin", "published"])
def test_full_model_without_tokenizer_is_loaded(
    named: str, one_file: Path, base: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(one_file, tmp_path / "model", without=TOKENIZER)
    if named == "setting":
        assert load(tmp_path, folder, CSM_TOKENIZER=one_file) == base
    elif named == "file":
        assert load(tmp_path, folder, CSM_TOKENIZER=one_file / "tokenizer.json") == base
    else:
        repo = "me/base" if named == "origin" else "sesame/csm-1b"
        change_json(folder / "config.json", _name_or_path="me/base" if named == "origin" else "/content/my-run")
        with FakeHub({repo: {name: (one_file / name).read_bytes() for name in TOKENIZER}}) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            assert load(tmp_path, folder) == base
            assert {request.path.rsplit("/", 1)[-1] for request in hub.downloads()} == set(TOKENIZER)


def test_missing_tokenizer_is_reported_with_its_setting(one_file: Path, tmp_path: Path) -> None:
    assert "CSM_TOKENIZER" in refusal(tmp_path, copy(one_file, tmp_path / "model", without=TOKENIZER))


def test_tokenizer_of_another_model_is_refused(one_file: Path, tmp_path: Path) -> None:
    folder = copy(one_file, tmp_path / "other")
    raw = json.loads((folder / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        raw["model"]["vocab"][token["content"]] = token["id"] = token["id"] + 900
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert "does not belong to this model" in refusal(tmp_path, one_file, CSM_TOKENIZER=folder)


def test_original_layout_without_tokenizer_is_loaded(
    original: Path, one_file: Path, base: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = copy(original, tmp_path / "model", without=TOKENIZER)
    assert load(tmp_path, folder, CSM_TOKENIZER=one_file, CSM_CODEC=original / "mimi") == base
    torch.save(load_file(folder / "model.safetensors"), folder / "ckpt.pt")
    (folder / "model.safetensors").unlink()
    assert load(tmp_path, folder, CSM_TOKENIZER=one_file, CSM_CODEC=original / "mimi") == base


# ---- rows 4, 5, 8: adapters and folders of a training


@pytest.mark.parametrize("named", ["folder", "relative folder", "setting", "hub", "4-bit copy"])
def test_adapter_without_its_base_model_is_loaded(
    named: str, lora: tuple[Path, Path], one_file: Path, tmp_path: Path, start_hub: Callable[..., FakeHub]
) -> None:
    folder = copy(lora[0], tmp_path / "adapter")
    values: dict[str, Any] = {}
    where = str(one_file)
    if named == "relative folder":
        shutil.copytree(one_file, folder / "base")
        where = "base"
    elif named == "setting":
        where, values = "/content/csm-1b", {"CSM_BASE": one_file}
    elif named != "folder":
        where = "unsloth/csm-1b" if named == "hub" else "unsloth/csm-1b-unsloth-bnb-4bit"
    change_json(folder / "adapter_config.json", base_model_name_or_path=where)
    start_hub({"unsloth/csm-1b": {path.name: path.read_bytes() for path in one_file.iterdir() if path.is_file()}})
    found, base = load(tmp_path, folder, **values), load(tmp_path, one_file)
    assert found[0] == merged_digest(lora, one_file, tmp_path)
    assert found[0] != base[0]
    assert found[1] != base[1]  # the list of names in PEFT also selects projections of the codec
    assert found[2] == base[2]


def merged_digest(lora: tuple[Path, Path], one_file: Path, tmp_path: Path) -> str:
    """Return the digest of the model with the adapter. `test_adapters.py` compares its codes with the merged model."""
    return str(load(tmp_path / "expected", lora[0], CSM_BASE=one_file)[0])


def test_adapter_of_a_repository_is_loaded(
    lora: tuple[Path, Path], one_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line: CSM_MODEL=me/voice names the adapter. Only the adapter and its base model are downloaded."""
    files = {path.name: path.read_bytes() for path in lora[0].iterdir() if path.is_file()}
    config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "unsloth/csm-1b"}
    files["adapter_config.json"] = json.dumps(config).encode()
    repo = {path.name: path.read_bytes() for path in one_file.iterdir() if path.is_file()}
    extra = {"training_args.bin": b"x", "README.md": b"x"}
    with FakeHub({"me/voice": files | extra, "unsloth/csm-1b": repo}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = load(tmp_path, "me/voice")
        assert not hub.downloads("training_args.bin")
        requests = len(hub.requests)
        assert load(tmp_path, "me/voice") == found
        assert len(hub.requests) == requests  # a second start sends no requests to the hub
    assert found[0] == merged_digest(lora, one_file, tmp_path)


def test_adapter_in_the_folder_of_its_base_model_is_loaded(
    lora: tuple[Path, Path], one_file: Path, base: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = copy(lora[0], copy(one_file, tmp_path / "both"))
    found = load(tmp_path, folder)
    assert found[0] == merged_digest(lora, one_file, tmp_path)
    assert found[0] != base[0]


def test_merged_adapter_equals_the_saved_merged_model(lora: tuple[Path, Path], one_file: Path, tmp_path: Path) -> None:
    merged = load_csm(settings_of(tmp_path, CSM_MODEL=lora[1]), CONTEXT, guards=None).model
    ours = load_csm(settings_of(tmp_path, CSM_MODEL=lora[0], CSM_BASE=one_file), CONTEXT, guards=None).model
    for (name, one), (_, other) in zip(merged.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), name


@pytest.mark.parametrize("kind", ["model, local", "adapter, local", "model, hub", "adapter, hub"])
def test_folder_of_a_training_run_is_loaded(
    kind: str, lora: tuple[Path, Path], one_file: Path, tmp_path: Path, start_hub: Callable[..., FakeHub]
) -> None:
    kind, where = kind.split(", ")
    run = tmp_path / "run"
    step = copy(one_file if kind == "model" else lora[0], run / "checkpoint-500", without=TOKENIZER)
    copy(step, run / "checkpoint-1000")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (step / name).write_bytes(b"not a tensor")
    (step / "trainer_state.json").write_text("{}")
    expected = load(tmp_path, one_file)[0] if kind == "model" else merged_digest(lora, one_file, tmp_path)
    options = {"CSM_TOKENIZER": one_file} | ({"CSM_BASE": one_file} if kind == "adapter" else {})
    if where == "local":
        assert load(tmp_path, step, **options)[0] == expected
        assert f"{run}/checkpoint-1000" in refusal(tmp_path, run, **options)
        return
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    hub = start_hub({"me/run": files})
    assert load(tmp_path, "me/run/checkpoint-500", **options)[0] == expected
    assert not hub.downloads("optimizer.pt")
    assert "CSM_MODEL=me/run/checkpoint-1000" in refusal(tmp_path, "me/run", **options)
    told = refusal(tmp_path, "me/run/checkpoint-7", **options)
    assert "me/run contains no weights, but its folders do: checkpoint-500, checkpoint-1000." in told
    assert "CSM_MODEL=me/run/checkpoint-1000." in told
    assert "does not exist" in refusal(tmp_path, "me/other/checkpoint-7", **options)


# ---- rows 9, 10: tensors that differ


IN_MEMORY = (
    ("encoder.", "encoder.encoder_seanet."), ("decoder.", "decoder.decoder_seanet."),
    ("encoder_transformer.", "encoder.encoder_transformer."), ("decoder_transformer.", "decoder.decoder_transformer."),
    ("downsample.", "encoder.downsample."), ("upsample.", "decoder.upsample."),
)  # fmt: skip


def renamed_codec(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of the codec to the module names of transformers 5."""
    found = {}
    for name, tensor in tensors.items():
        new = name
        for old, other in IN_MEMORY:
            if name.startswith(f"codec_model.{old}"):
                new = f"codec_model.{other}{name.removeprefix(f'codec_model.{old}')}"
        found[new] = tensor
    return found


def test_codec_with_module_names_of_transformers_is_loaded(
    one_file: Path, base: tuple[Any, ...], tmp_path: Path
) -> None:
    assert load(tmp_path, change_tensors(copy(one_file, tmp_path / "model"), renamed_codec)) == base


@pytest.mark.parametrize("prefix", ["codec_model.autoencoder.", "codec_model.model.encodec."])
def test_codec_with_unknown_tensor_names_is_replaced(
    prefix: str, one_file: Path, original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = change_tensors(
        copy(one_file, tmp_path / "model"),
        lambda tensors: {name.replace("codec_model.", prefix): tensor for name, tensor in tensors.items()},
    )
    assert load(tmp_path, folder, CSM_CODEC=original / "mimi") == load(tmp_path, one_file)
    assert "CSM_CODEC" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "backbone_model.rotary_emb.original_inv_freq",
        "codec_model.decoder.layers.0.padding_total",
        "codec_model.quantizer.some_buffer",
        "backbone_model.layers.0.self_attn.rotary_emb.cos_cached",
        "loss_function.weight",
        "position_ids",
    ],
)
def test_extra_buffers_are_only_logged(
    name: str, one_file: Path, base: tuple[Any, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = change_tensors(copy(one_file, tmp_path / "model"), lambda tensors: tensors | {name: torch.ones(3)})
    assert load(tmp_path, folder) == base
    assert name.removeprefix("codec_model.") in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "backbone_model.layers.2.mlp.up_proj.weight",  # config.json declares two layers
        "backbone_model.layers.0.self_attn.q_norm.weight",
        "depth_decoder.model.layers.0.self_attn.q_proj.bias",
    ],
)
def test_extra_weights_of_a_layer_are_refused(name: str, one_file: Path, tmp_path: Path) -> None:
    folder = change_tensors(copy(one_file, tmp_path / "model"), lambda tensors: tensors | {name: torch.ones(3)})
    assert name in refusal(tmp_path, folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(prefix: str, one_file: Path, base: tuple[Any, ...], tmp_path: Path) -> None:
    """torch.compile and DistributedDataParallel save a model with such prefixes.

    The codec comes from CSM_CODEC or also has the prefix.
    """
    folder = change_tensors(
        copy(one_file, tmp_path / "model"), lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}
    )
    assert load(tmp_path, folder, CSM_CODEC=one_file)[0] == base[0]


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_random_tied_table_is_replaced(
    scale: float, one_file: Path, base: tuple[Any, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(1)
        noise = torch.randn(tensors[TABLES[1]].shape, generator=random) * scale
        return tensors | {TABLES[0]: noise, TABLES[1]: tensors[TABLES[1]].clone()}

    folder = change_tensors(copy(one_file, tmp_path / "model"), spoil)
    assert load(tmp_path, folder) == base
    assert "random" in caplog.text
    change_json(folder / "config.json", tie_codebooks_embeddings=False)
    assert load(tmp_path, folder)[0] != base[0]  # the tables may differ


def test_tied_tables_that_differ_a_little_are_kept(
    one_file: Path, base: tuple[Any, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = change_tensors(
        copy(one_file, tmp_path / "model"), lambda tensors: tensors | {TABLES[0]: tensors[TABLES[1]] * 1.01}
    )
    assert load(tmp_path, folder)[0] != base[0]
    assert "random" not in caplog.text


# ---- row 11: what can't be read


def config_with(**changes: Any) -> bytes:
    return json.dumps(csm_config("tiny") | changes).encode()


UNREADABLE: dict[str, tuple[dict[str, bytes], str]] = {
    "GGUF": ({"csm-1b-q4_k.gguf": b"GGUF", "README.md": b""}, "GGUF"),
    "GGUF with a config": ({"csm.Q8_0.gguf": b"GGUF", "config.json": config_with()}, "GGUF"),
    "bitsandbytes": (
        {"config.json": config_with(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})},
        "bitsandbytes (4 bits)",
    ),
    "GPTQ": ({"config.json": config_with(quantization_config={"quant_method": "gptq", "bits": 4})}, "GPTQ (4 bits)"),
    "AWQ": ({"config.json": config_with(quantization_config={"quant_method": "awq", "bits": 4})}, "AWQ"),
    "MLX": ({"config.json": config_with(quantization={"group_size": 64, "bits": 8})}, "MLX (8 bits)"),
    "MLX arrays": ({"config.json": config_with(), "weights.npz": b"PK"}, "MLX"),
    "ONNX": ({"config.json": config_with(), "onnx/model.onnx": b"x"}, "ONNX"),
    "pytorch_model.bin": ({"config.json": config_with(), "pytorch_model.bin": b"\x80"}, "pickle"),
    "sharded .bin": ({"config.json": config_with(), "pytorch_model-00001-of-00002.bin": b"\x80"}, "pickle"),
    "Lightning": ({"config.json": config_with(), "epoch=3.ckpt": b"\x80"}, "pickle"),
    "adapter as a pickle": ({"adapter_config.json": b"{}", "adapter_model.bin": b"\x80"}, "adapter as a pickle"),
    "training state only": ({"config.json": config_with(), "optimizer.pt": b"\x80"}, "weights"),
    "nothing": ({"README.md": b""}, "config.json"),
}


@pytest.mark.parametrize("where", ["local", "hub"])
@pytest.mark.parametrize("name", list(UNREADABLE))
def test_other_formats_are_refused_with_an_explanation(
    name: str, where: str, one_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, words = UNREADABLE[name]
    if name in ("bitsandbytes", "GPTQ", "AWQ", "MLX"):
        files = files | {"model.safetensors": (one_file / "model.safetensors").read_bytes()}
    if where == "local":
        for path, data in files.items():
            (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "model" / path).write_bytes(data)
        assert words in refusal(tmp_path, tmp_path / "model", CSM_TOKENIZER=one_file)
        return
    with FakeHub({"me/model": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert words in refusal(tmp_path, "me/model", CSM_TOKENIZER=one_file)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("backbone_model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("backbone_model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("backbone_model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("backbone_model.layers.0.mlp.up_proj.qweight", "GPTQ"),
        ("backbone_model.layers.0.mlp.up_proj.lora_A.default.weight", "not merged"),
    ],
)
def test_quantised_tensors_are_refused(tensor: str, words: str, one_file: Path, tmp_path: Path) -> None:
    folder = change_tensors(copy(one_file, tmp_path / "model"), lambda tensors: tensors | {tensor: torch.ones(3)})
    assert words in refusal(tmp_path, folder)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("ckpt.pt", "can't be read as a file of tensors only"),
        ("model.pth", "can't be read as a file of tensors only"),
        ("pytorch_model.bin", "only as a pickle"),
        ("adapter_model.bin", "adapter as a pickle"),
        ("optimizer.pt", "lacks files"),
    ],
)
def test_pickle_runs_no_code(file: str, words: str, one_file: Path, tmp_path: Path) -> None:
    folder = copy(one_file, tmp_path / "model", without=("model.safetensors",))
    if file.startswith("adapter"):
        (folder / "adapter_config.json").write_text("{}")
    torch.save({"a": torch.ones(3), "b": RunsCode(tmp_path / "ran")}, folder / file)
    assert words in refusal(tmp_path, folder, CSM_CODEC=one_file)
    assert not (tmp_path / "ran").exists()


# ---- adapters that can't be merged


def spoilt(lora: Path, target: Path, change: Callable[[Path], None]) -> Path:
    change(copy(lora, target))
    return target


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "adapter_config.json", **values)


def set_tensor(name: str, *shape: int, value: float = 1.0) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file) | {name: torch.full(shape, value)}, file)

    return change


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def lie(folder: Path) -> None:
    """Write a file whose header announces a tensor of many gigabytes."""
    head = json.dumps({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 4]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)


def two_adapters(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    named = {}
    for adapter in ("one", "two"):
        for part in ("lora_A", "lora_B"):
            named |= {
                name.replace(f".{part}.", f".{part}.{adapter}."): tensor.clone()
                for name, tensor in tensors.items()
                if f".{part}." in name
            }
    save_file(named, file)


def same_tensor(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".lora_A." in name)
    save_file(tensors | {name.removeprefix("base_model.model."): tensors[name].clone()}, file)


def large_header(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"notes": "x" * (2 << 20)})


PATH = "base_model.model.backbone_model.layers.0.self_attn."
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut, "truncated"),
    "truncated header": (cut_header, "truncated"),
    "lying header": (lie, "broken"),
    "empty file": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"") and None, "truncated"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "config is no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{") and None, "can't be read"),
    "config is a list": (lambda folder: (folder / "adapter_config.json").write_text("[]") and None, "JSON object"),
    "IA3": (set_config(peft_type="IA3"), "IA3"),
    "LoHa": (set_config(peft_type="LOHA"), "LOHA"),
    "PiSSA": (set_config(init_lora_weights="pissa_niter_4"), "pissa"),
    "OLoRA": (set_config(init_lora_weights="olora"), "olora"),
    "aLoRA": (set_config(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"),
    "layer replication": (set_config(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "another rank": (set_config(r=3), "rank"),
    "rank 0": (set_config(r=0), "rank"),
    "a module that is not there": (set_tensor(f"{PATH}z_proj.weight", 3), "self_attn.z_proj.weight"),
    "a layer that is not there": (
        set_tensor("base_model.model.backbone_model.layers.9.mlp.up_proj.weight", 3), "layers.9.mlp.up_proj.weight",
    ),
    "a codec that is not there": (set_tensor("base_model.model.codec_model.other.weight", 3), "codec_model.other"),
    "another base": (set_tensor(f"{PATH}q_proj.lora_A.weight", 4, 63), "trained on another base"),
    "another width of a saved module": (set_tensor("base_model.model.lm_head.weight", 9, 9), "another base"),
    "half of a pair": (set_tensor("base_model.model.lm_head.lora_A.weight", 4, 64), "A or B of LoRA is missing"),
    "two adapters": (two_adapters, "several adapters"),
    "the same tensor twice": (same_tensor, "are the same tensor"),
    "large header": (large_header, "the limit is 2097152"),
    "many patterns": (set_config(rank_pattern={f"a{i}": 1 for i in range(1001)}), "1001 patterns"),
    "NaN": (set_tensor(f"{PATH}q_proj.lora_A.weight", 4, 64, value=torch.nan), "NaN or infinite values"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SPOILT))
def test_adapter_that_does_not_fit_is_refused_with_an_explanation(
    name: str, lora: tuple[Path, Path], one_file: Path, tmp_path: Path
) -> None:
    change, words = SPOILT[name]
    folder = spoilt(lora[0], tmp_path / "adapter", change)
    assert words in refusal(tmp_path, folder, CSM_BASE=one_file)


@pytest.mark.parametrize(
    ("where", "words"),
    [("/content/csm", "CSM_BASE"), (None, "does not name its base"), ("./runs/base", "CSM_BASE"), ("csm", "CSM_BASE")],
)
def test_missing_base_model_is_reported(where: str | None, words: str, lora: tuple[Path, Path], tmp_path: Path) -> None:
    folder = copy(lora[0], tmp_path / "adapter")
    change_json(folder / "adapter_config.json", base_model_name_or_path=where)
    assert words in refusal(tmp_path, folder)


# ---- load cache


def test_load_cache_has_an_entry_for_base_and_adapter(
    lora: tuple[Path, Path], one_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engines.csm.loading.LoadCache", partial(LoadCache, min_bytes=0))
    values = {"TTS_DTYPE": "bfloat16"}
    both = copy(one_file, tmp_path / "both")

    def loaded() -> str:
        runner = load_csm(settings_of(tmp_path, CSM_MODEL=both, **values), CONTEXT, guards=None)
        return str(runner.fingerprint)

    def entries() -> set[str]:
        return {path.name for path in (tmp_path / "data" / "models" / "cache").iterdir()}

    plain, first = loaded(), entries()
    copy(lora[0], both)
    merged, second = loaded(), entries()
    assert merged != plain
    assert first.isdisjoint(second)
    assert loaded() == merged  # the weights come from the load cache
    change_json(both / "adapter_config.json", lora_alpha=9)  # the same weights, merged with another scale
    assert loaded() != merged
    assert second.isdisjoint(entries())


# ---- generation_config.json


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({"temperature": 0.7, "top_k": 30}, Sampling(0.7, 30, 1.0)),
        ({"top_p": 0.8}, Sampling(0.9, 50, 0.8)),
        ({"do_sample": False}, Sampling(0.0, 50, 1.0)),
        ({"temperature": "hot", "top_k": -4, "top_p": 7}, Sampling(0.9, 50, 1.0)),
        ({"top_k": 25.0, "temperature": 1}, Sampling(1.0, 25, 1.0)),
        ({"top_k": True, "temperature": float("nan")}, Sampling(0.9, 50, 1.0)),
        ({}, Sampling(0.9, 50, 1.0)),
        (None, Sampling(0.9, 50, 1.0)),
    ],
)
def test_model_has_its_own_sampling_defaults(
    file: dict[str, Any] | None, expected: Sampling, one_file: Path, tmp_path: Path
) -> None:
    folder = copy(one_file, tmp_path / "model", without=("generation_config.json",))
    if file is not None:
        (folder / "generation_config.json").write_text(json.dumps(file))
    plain = build_csm(settings_of(tmp_path, CSM_MODEL=one_file), CONTEXT).info
    info = build_csm(settings_of(tmp_path, CSM_MODEL=folder), CONTEXT).info
    assert info.defaults == expected
    assert (info.fingerprint == plain.fingerprint) is (expected == plain.defaults)


def test_defaults_beside_an_adapter_are_used_first(lora: tuple[Path, Path], one_file: Path, tmp_path: Path) -> None:
    folder = copy(lora[0], tmp_path / "adapter")
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    info = build_csm(settings_of(tmp_path, CSM_MODEL=folder, CSM_BASE=one_file), CONTEXT).info
    assert info.defaults == Sampling(0.5, 50, 1.0)


# ---- row 12: Dia


@pytest.fixture(scope="module")
def dia(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Write Dia in both layouts, and an adapter."""
    folder = tmp_path_factory.mktemp("dia")
    reference = dia_oracle.model(seed=1)
    dia_oracle.save(reference, folder / "transformers")
    dia_oracle.as_nari(folder / "transformers", folder / "nari")
    save_and_merge(reference, folder / "adapter", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    return folder / "transformers", folder / "nari", folder / "adapter"


@pytest.fixture(scope="module")
def dac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dac(tmp_path_factory.mktemp("dac"), size="tiny")


def load_dia_model(tmp_path: Path, model: object, dac: Path, **values: Any) -> str:
    settings = settings_of(tmp_path, DIA_MODEL=model, DIA_CODEC=dac, **values)
    return digest(load_dia(settings, CONTEXT, guards=None).model)


def test_dia_is_loaded_in_both_layouts_with_an_adapter(dia: tuple[Path, Path, Path], dac: Path, tmp_path: Path) -> None:
    whole, nari, adapter = dia
    base = load_dia_model(tmp_path, whole, dac)
    assert load_dia_model(tmp_path, nari, dac) == base
    copied = copy(adapter, tmp_path / "adapter")
    change_json(copied / "adapter_config.json", base_model_name_or_path=str(whole))
    merged = load_dia_model(tmp_path, copied, dac)
    assert merged != base
    assert load_dia_model(tmp_path, adapter, dac, DIA_BASE=nari) == merged
    assert load_dia_model(tmp_path, copy(adapter, copy(whole, tmp_path / "both")), dac) == merged


@pytest.mark.parametrize("name", ["GGUF", "pytorch_model.bin", "ONNX", "adapter as a pickle"])
def test_other_formats_of_dia_are_refused_with_an_explanation(
    name: str, dia: tuple[Path, Path, Path], dac: Path, tmp_path: Path
) -> None:
    files, words = UNREADABLE[name]
    folder = tmp_path / "model"
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    if (folder / "config.json").exists():
        shutil.copy(dia[0] / "config.json", folder / "config.json")
    with pytest.raises(WeightsUnavailable) as caught:
        load_dia_model(tmp_path, folder, dac)
    assert words in caught.value.reason
    assert caught.value.remedy


def test_adapter_of_csm_is_refused_for_dia(
    lora: tuple[Path, Path], dia: tuple[Path, Path, Path], dac: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsUnavailable, match="that Dia does not have"):
        load_dia_model(tmp_path, lora[0], dac, DIA_BASE=dia[0])


def test_adapter_of_dia_is_refused_for_csm(dia: tuple[Path, Path, Path], one_file: Path, tmp_path: Path) -> None:
    assert "that CSM does not have" in refusal(tmp_path, dia[2], CSM_BASE=one_file)


def test_adapters_are_read_without_peft() -> None:
    assert "import peft" not in Path(adapters.__file__).read_text()


def test_merge_is_logged(
    lora: tuple[Path, Path], one_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    load(tmp_path, lora[0], CSM_BASE=one_file)
    assert "merged the adapter" in caplog.text


def test_shape_of_a_model_is_known_without_the_compiler(
    tiny_csm: Path, tiny_dia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some operations on the device "meta" import torch._dynamo, which would take 2 s of CPU time at every start."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # an import raises ModuleNotFoundError
    meta = torch.device("meta")
    csm = CsmModel(csm_reader.read_config(tiny_csm), device=meta, dtype=torch.float32)
    dia = DiaModel(dia_reader.read_config(tiny_dia), device=meta, dtype=torch.float32)
    assert csm.offsets.is_meta
    assert dia.offsets.is_meta
