"""A row with a LoRA adapter gives the codes of the merged model, alone and among rows with other adapters."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engines.csm.loading import load_runner
from app.engines.csm.runner import CsmRunner
from app.engines.shared.adapters import MAX_RANK
from app.errors import UnknownModel, WeightsUnavailable
from app.nn.low_rank import AdaptedLinear
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling, Utterance
from tests.parity.test_csm_runner import inputs
from tests.support import csm_oracle
from tests.support.csm_requests import alone, prompt, speech
from tests.support.driver import Driver
from tests.support.random_adapter import save_and_merge
from tests.support.random_csm import fabricate_csm

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
FRAMES = 12
TEXT = "A row with an adapter."
MLP, ATTENTION = "(gate|up|down)_proj", "(q|k|v|o)_proj"


def layers(parts: str, stacks: str = "(backbone_model|depth_decoder)") -> str:
    return rf".*{stacks}.*\.({parts})"


ADAPTERS: dict[str, dict[str, Any]] = {
    "all layers": {"r": 8, "lora_alpha": 16, "target_modules": layers(f"{ATTENTION}|{MLP}")},
    "rank 1": {"r": 1, "lora_alpha": 1, "target_modules": layers("q_proj|down_proj")},
    "rank above the width": {"r": 80, "lora_alpha": 8, "target_modules": layers("v_proj|gate_proj")},
    "rsLoRA": {"r": 5, "lora_alpha": 3, "use_rslora": True, "target_modules": layers(f"{ATTENTION}|{MLP}")},
    "depth decoder alone": {"r": 6, "lora_alpha": 12, "target_modules": layers("k_proj|up_proj", "depth_decoder")},
    "backbone alone": {"r": 6, "lora_alpha": 12, "target_modules": layers("o_proj|up_proj", "backbone_model")},
    "projection": {"r": 4, "lora_alpha": 9, "target_modules": r".*inputs_embeds_projector"},
    "first head": {"r": 4, "lora_alpha": 9, "target_modules": r"lm_head"},
    "heads": {
        "r": 3, "lora_alpha": 8, "target_modules": layers("v_proj"), "target_parameters": ["codebooks_head.weight"],
    },
    "rank and alpha patterns": {
        "r": 3, "lora_alpha": 8, "target_modules": layers("v_proj|q_proj|up_proj"),
        "rank_pattern": {"q_proj": 7, r"backbone_model\.layers\.0\.mlp\.up_proj": 2},
        "alpha_pattern": {"depth_decoder.model.layers.1.self_attn.v_proj": 33, "q_proj": 1},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    folder: Path
    codes: np.ndarray  # greedy codes (T, K) of PEFT's merged model in transformers


def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return csm_oracle.transformers().CsmForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_csm(tmp_path_factory.mktemp("csm"), seed=1)


@pytest.fixture(scope="module")
def processed(base: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CsmProcessor, EncodecFeatureExtractor, PreTrainedTokenizerFast

        processor = CsmProcessor(
            EncodecFeatureExtractor.from_pretrained(base),
            PreTrainedTokenizerFast.from_pretrained(base),
            chat_template=(base / "chat_template.jinja").read_text(),
        )
    return inputs(processor, [(0, TEXT, None)])


@pytest.fixture(scope="module")
def trained(
    base: Path, processed: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Trained]:
    found = {}
    for number, (name, config) in enumerate(ADAPTERS.items()):
        folder = tmp_path_factory.mktemp("adapter")
        merged = save_and_merge(reference(base), folder, seed=number, **config)
        found[name] = Trained(folder, csm_oracle.generate(merged, processed, FRAMES).numpy())
    return found


@pytest.fixture(scope="module")
def plain(base: Path, processed: dict[str, torch.Tensor]) -> np.ndarray:
    return csm_oracle.generate(reference(base), processed, FRAMES).numpy()


def load(base: Path, **options: Any) -> CsmRunner:
    given = {"dtype": torch.float32, "max_rows": 12, "guards": None, **options}
    return load_runner(base, None, device=CPU, **given)


def add(runner: CsmRunner, folder: Path) -> str:
    prepared = runner.adapters.prepare(folder)
    assert runner.adapters.add(prepared) > 0
    return prepared.key


@pytest.fixture(scope="module", params=["eager", "captured"])
def runner(request: pytest.FixtureRequest, base: Path) -> CsmRunner:
    if request.param == "eager":
        return load(base)
    return load(base, capture=GraphCapture(CPU), adapter_slots=len(ADAPTERS), adapter_rank=80)


def utterance(key: str, seed: int = 0, frames: int = FRAMES, temperature: float = 0.0) -> Utterance:
    return replace(speech(TEXT, seed, frames, sampling=Sampling(temperature=temperature)), adapter=key)


def together(runner: CsmRunner, keys: Sequence[str], **options: Any) -> list[np.ndarray]:
    driver = Driver(runner)
    for row, key in enumerate(keys):
        driver.start(row, utterance(key, **options))
    driver.finish()
    return [driver.frames(row) for row in range(len(keys))]


@pytest.mark.slow
def test_each_row_gives_the_codes_of_its_merged_model(
    runner: CsmRunner, trained: dict[str, Trained], plain: np.ndarray
) -> None:
    keys = {name: add(runner, each.folder) for name, each in trained.items()}
    try:
        for name, each in trained.items():
            assert not np.array_equal(each.codes, plain), name
            assert np.array_equal(alone(runner, utterance(keys[name])), each.codes), name
        rows = together(runner, ["", *keys.values(), ""])
        for codes, expected in zip(rows, [plain, *(each.codes for each in trained.values()), plain], strict=True):
            assert np.array_equal(codes, expected)
    finally:
        for key in keys.values():
            runner.adapters.remove(key)
    assert np.array_equal(alone(runner, utterance("")), plain)


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_row_equals_the_model_merged_at_load(name: str, base: Path, trained: dict[str, Trained]) -> None:
    merged = load(base, adapter_dir=trained[name].folder)
    row = load(base)
    key = add(row, trained[name].folder)
    voiced = speech("With a recording.", 3, FRAMES, prompt=prompt(row))
    assert np.array_equal(alone(merged, voiced), alone(row, replace(voiced, adapter=key)))


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"quantize": "int8", "dtype": torch.bfloat16}])
def test_codes_of_a_row_do_not_depend_on_other_rows(
    options: dict[str, Any], base: Path, trained: dict[str, Trained]
) -> None:
    runner = load(base, **options)
    keys = [add(runner, each.folder) for each in trained.values()]
    order = ["", *keys, keys[0]]
    expected = [alone(runner, utterance(key, temperature=1.0)) for key in order]
    assert len({codes.tobytes() for codes in expected}) == len(keys) + 1
    for found, codes in zip(together(runner, order, temperature=1.0), expected, strict=True):
        assert np.array_equal(found, codes)


def test_model_is_unchanged_without_adapters(base: Path, trained: dict[str, Trained], plain: np.ndarray) -> None:
    runner = load(base)
    assert not any(isinstance(part, AdaptedLinear) for part in runner.model.modules())
    key = add(runner, trained["all layers"].folder)
    assert any(isinstance(part, AdaptedLinear) for part in runner.model.modules())
    runner.adapters.remove(key)
    assert not any(isinstance(part, AdaptedLinear) for part in runner.model.modules())
    assert np.array_equal(alone(runner, utterance("")), plain)


def test_removed_adapter_serves_its_rows_to_their_end(runner: CsmRunner, trained: dict[str, Trained]) -> None:
    first, second = (add(runner, trained[name].folder) for name in ("all layers", "rsLoRA"))
    driver = Driver(runner)
    driver.start(0, utterance(first))
    for _ in range(3):
        driver.iterate(frozenset())
    runner.adapters.remove(first)
    third = add(runner, trained["depth decoder alone"].folder)  # must not get the slot that the row still uses
    driver.start(1, utterance(third))
    with pytest.raises(UnknownModel, match="was removed"):
        runner.admit(2, utterance(first))
    driver.finish()
    assert np.array_equal(driver.frames(0), trained["all layers"].codes)
    assert np.array_equal(driver.frames(1), trained["depth decoder alone"].codes)
    assert add(runner, trained["all layers"].folder) == first
    assert np.array_equal(alone(runner, utterance(first)), trained["all layers"].codes)
    for key in (first, second, third):
        runner.adapters.remove(key)


def test_slot_of_a_removed_adapter_is_free_after_its_last_row(base: Path, trained: dict[str, Trained]) -> None:
    runner = load(base, capture=GraphCapture(CPU), adapter_slots=1, adapter_rank=80)
    first = add(runner, trained["all layers"].folder)
    driver = Driver(runner)
    for row in range(2):
        driver.start(row, utterance(first))
    for _ in range(3):
        driver.iterate()
    runner.adapters.remove(first)
    driver.stop(1)
    with pytest.raises(WeightsUnavailable, match="memory for 1 adapters"):
        add(runner, trained["rsLoRA"].folder)
    driver.finish()
    second = add(runner, trained["rsLoRA"].folder)
    assert np.array_equal(alone(runner, utterance(second)), trained["rsLoRA"].codes)


def test_prefix_cache_is_keyed_by_the_adapter(base: Path, trained: dict[str, Trained]) -> None:
    runner = load(base)
    key = add(runner, trained["all layers"].folder)
    voiced = speech("With a recording.", 3, FRAMES, prompt=prompt(runner))
    fresh = load(base)
    add(fresh, trained["all layers"].folder)
    expected = alone(fresh, replace(voiced, adapter=key))
    assert not np.array_equal(alone(runner, voiced), expected)
    for _ in range(2):  # the second time, the keys and values come from the prefix cache
        assert np.array_equal(alone(runner, replace(voiced, adapter=key)), expected)
    assert len(runner._prefill.prefixes) == 2


def test_zero_adapter_of_the_codec_is_ignored(base: Path, trained: dict[str, Trained], tmp_path: Path) -> None:
    """The training of CSM does not reach the codec, so B of the codec stays zero in the adapters of Unsloth."""
    folder = shutil.copytree(trained["all layers"].folder, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    at = "base_model.model.codec_model.encoder_transformer.layers.0.self_attn.q_proj"
    tensors = load_file(file) | {f"{at}.lora_A.weight": torch.ones(8, 32), f"{at}.lora_B.weight": torch.zeros(32, 8)}
    save_file(tensors, file)
    runner = load(base)
    assert np.array_equal(alone(runner, utterance(add(runner, folder))), trained["all layers"].codes)
    tensors[f"{at}.lora_B.weight"][0, 0] = 1.0
    save_file(tensors, file)
    with pytest.raises(WeightsUnavailable, match="changes the codec") as refused:
        runner.adapters.prepare(folder)
    assert "CSM_MODEL=" in refused.value.remedy


MERGED_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("DoRA", {"use_dora": True, "target_modules": layers("q_proj")}),
    "text table": ("an embedding", {"target_modules": ["embed_text_tokens"]}),
    "audio table": ("an embedding", {"target_modules": ["embed_audio_tokens"]}),
    "modules_to_save": (
        "modules_to_save",
        {"target_modules": layers("v_proj"), "modules_to_save": ["lm_head"]},
    ),
    "saved table": (
        "modules_to_save",
        {"target_modules": layers("v_proj"), "modules_to_save": ["embed_text_tokens"]},
    ),
    "tokens": (
        "trainable_token_indices",
        {"target_modules": layers("v_proj"), "trainable_token_indices": {"embed_text_tokens": [5, 17]}},
    ),
    "codec": ("the codec", {"target_modules": r"codec_model.*\.q_proj"}),
}


@pytest.mark.parametrize("name", list(MERGED_ONLY))
def test_adapter_part_that_needs_a_merge_is_refused_by_name(name: str, base: Path, tmp_path: Path) -> None:
    what, config = MERGED_ONLY[name]
    save_and_merge(reference(base), tmp_path, r=3, lora_alpha=8, **config)
    runner = load(base)
    with pytest.raises(WeightsUnavailable, match=what) as refused:
        runner.adapters.prepare(tmp_path)
    assert f"CSM_MODEL={tmp_path}" in refused.value.remedy


def damage(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = next(name for name in tensors if name.endswith("backbone_model.layers.1.self_attn.q_proj.lora_B.weight"))
    match how:
        case "NaN":
            tensors[name][3, 0] = torch.nan
        case "infinite":
            tensors[name.replace("lora_B", "lora_A")][0, 3] = -torch.inf
        case "another width":
            tensors[name] = torch.cat([tensors[name]] * 2)
        case "another model":
            tensors = {each.replace("backbone_model", "model.decoder"): value for each, value in tensors.items()}
        case "half":
            del tensors[name]
        case "rank":
            rows, rank = MAX_RANK + 1, tensors[name].shape[0]
            tensors[name] = torch.ones(rank, rows)
            tensors[name.replace("lora_B", "lora_A")] = torch.ones(rows, 64)
        case "nothing":
            tensors = {"base_model.model.x.original_module.weight": torch.ones(2)}
        case "many":
            tensors |= {f"{name.removesuffix('.weight')}.a{i}.weight": torch.ones(1, 1) for i in range(6000)}
    return tensors


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("NaN", "NaN or infinite values"),
        ("infinite", "NaN or infinite values"),
        ("another width", "another base"),
        ("another model", "tensors that CSM does not have"),
        ("half", "A or B of LoRA is missing"),
        ("rank", "rank 257.*limit is 256"),
        ("nothing", "changes nothing"),
        ("many", "6036 tensors.*limit|several adapters"),
    ],
)
def test_broken_adapter_is_refused_and_the_model_is_unchanged(  # noqa: PLR0917 - fixtures
    how: str, message: str, base: Path, trained: dict[str, Trained], tmp_path: Path, plain: np.ndarray
) -> None:
    folder = shutil.copytree(trained["all layers"].folder, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file({name: each.contiguous() for name, each in damage(load_file(file), how).items()}, file)
    if how == "rank":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 1}))
    runner = load(base)
    with pytest.raises(WeightsUnavailable, match=message):
        runner.adapters.prepare(folder)
    assert np.array_equal(alone(runner, utterance("")), plain)


def test_truncated_file_is_refused(base: Path, trained: dict[str, Trained], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["all layers"].folder, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    runner = load(base)
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(WeightsUnavailable, match=r"truncated|can't be read"):
            runner.adapters.prepare(folder)


def test_slots_of_captured_steps_are_limited(base: Path, trained: dict[str, Trained]) -> None:
    runner = load(base, capture=GraphCapture(CPU), adapter_slots=1, adapter_rank=8)
    key = add(runner, trained["all layers"].folder)
    with pytest.raises(WeightsUnavailable, match="memory for 1 adapters") as refused:
        add(runner, trained["rsLoRA"].folder)
    assert "TTS_ADAPTER_SLOTS" in refused.value.remedy
    with pytest.raises(WeightsUnavailable, match=r"rank 80.*limit is 8"):
        runner.adapters.prepare(trained["rank above the width"].folder)
    assert np.array_equal(alone(runner, utterance(key)), trained["all layers"].codes)
