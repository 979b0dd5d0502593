"""A row of Dia with a LoRA adapter gives the codes of the merged model, alone and among rows with other adapters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines.dia.runner import DiaRunner
from app.errors import WeightsUnavailable
from app.nn.low_rank import AdaptedLinear
from app.runtime.cuda_graphs import GraphCapture
from app.types import Sampling, Utterance
from tests.support import dia_oracle
from tests.support.dia_requests import FRAME_S, alone, make, prompt, speech
from tests.support.driver import Driver
from tests.support.random_adapter import save_and_merge
from tests.support.random_dia import fabricate_dia

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
FRAMES = 12
TEXT = "[S1] Hello there, how are you?"
GREEDY = Sampling(temperature=0.0)
RECORDED = prompt(20)

ADAPTERS: dict[str, dict[str, Any]] = {
    "all linear layers": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
    "encoder alone": {"r": 3, "lora_alpha": 9, "target_modules": r".*encoder\.layers.*\.(q|v|gate_up)_proj"},
    "cross-attention alone": {"r": 3, "lora_alpha": 9, "target_modules": r".*cross_attention\.\w_proj"},
    "decoder, rsLoRA": {
        "r": 5, "lora_alpha": 3, "use_rslora": True,
        "target_modules": r".*\.decoder\..*(self_attention\.(k|o)_proj|mlp\.\w+_proj)",
    },
    "head, patterns": {
        "r": 2, "lora_alpha": 9, "target_modules": ["logits_dense", "down_proj"],
        "rank_pattern": {"down_proj": 20}, "alpha_pattern": {"logits_dense": 1},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """folder: the adapter. codes: the greedy codes (T, C) of PEFT's merged model, without and with a recording."""

    folder: Path
    codes: tuple[np.ndarray, np.ndarray]


def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dia_oracle.transformers().DiaForConditionalGeneration.from_pretrained(folder).eval()


def codes_of(model: Any) -> tuple[np.ndarray, np.ndarray]:
    text = [TEXT.replace("[S1]", "\x01").encode()]
    recording = torch.from_numpy(RECORDED.codes.T.astype(np.int64))
    found = [dia_oracle.generate(model, text, FRAMES, prompts=given)[0].numpy() for given in (None, [recording])]
    return found[0], found[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_dia(tmp_path_factory.mktemp("dia"), seed=1)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    found = {}
    for number, (name, config) in enumerate(ADAPTERS.items()):
        folder = tmp_path_factory.mktemp("adapter")
        merged = save_and_merge(reference(base), folder, seed=number, scale=0.06, **config)
        found[name] = Trained(folder, codes_of(merged))
    return found


@pytest.fixture(scope="module")
def plain(base: Path) -> tuple[np.ndarray, np.ndarray]:
    return codes_of(reference(base))


def load(base: Path, **options: Any) -> DiaRunner:
    # With `chunk=1`, other rows are read and stepped between any two layers of a text.
    return make(base, **{"exact": True, "max_rows": 12, "chunk": 1, **options})


@pytest.fixture(scope="module", params=["eager", "captured"])
def runner(request: pytest.FixtureRequest, base: Path) -> DiaRunner:
    if request.param == "eager":
        return load(base)
    return load(base, capture=GraphCapture(CPU), burst=4, adapter_slots=len(ADAPTERS), adapter_rank=20)


def add(runner: DiaRunner, folder: Path) -> str:
    prepared = runner.adapters.prepare(folder)
    assert runner.adapters.add(prepared) > 0
    return prepared.key


def utterance(key: str, *, recorded: bool = False, temperature: float = 0.0) -> Utterance:
    sampling = Sampling(temperature=temperature)
    spoken = speech(TEXT, 0, FRAMES, sampling=sampling, **({"prompt": RECORDED} if recorded else {}))
    return replace(spoken, adapter=key, max_seconds=FRAMES * FRAME_S)


def together(runner: DiaRunner, utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """Speak utterances in one batch. A new row begins after each step, while the texts of others are being read."""
    driver = Driver(runner)
    for row, each in enumerate(utterances):
        driver.start(row, each)
        driver.iterate()
    driver.finish()
    return [driver.frames(row) for row in range(len(utterances))]


@pytest.mark.slow
def test_each_row_gives_the_codes_of_its_merged_model(
    runner: DiaRunner, trained: dict[str, Trained], plain: tuple[np.ndarray, np.ndarray]
) -> None:
    keys = {name: add(runner, each.folder) for name, each in trained.items()}
    try:
        for name, each in trained.items():
            for recorded in (False, True):
                assert not np.array_equal(each.codes[recorded], plain[recorded]), name
                assert np.array_equal(alone(runner, utterance(keys[name], recorded=recorded)), each.codes[recorded])
        order = [(key, recorded) for recorded in (False, True) for key in ("", *keys.values())]
        rows = together(runner, [utterance(key, recorded=recorded) for key, recorded in order])
        expected = [
            each[recorded] for recorded in (False, True) for each in (plain, *(t.codes for t in trained.values()))
        ]
        for codes, each in zip(rows, expected, strict=True):
            assert np.array_equal(codes, each)
    finally:
        for key in keys.values():
            runner.adapters.remove(key)
    assert np.array_equal(alone(runner, utterance("")), plain[0])


def test_slot_of_a_removed_adapter_serves_another(runner: DiaRunner, trained: dict[str, Trained]) -> None:
    for name in ("encoder alone", "decoder, rsLoRA", "all linear layers"):  # each gets the first slot
        key = add(runner, trained[name].folder)
        assert np.array_equal(alone(runner, utterance(key)), trained[name].codes[0])
        runner.adapters.remove(key)


def test_slot_of_a_removed_adapter_is_free_after_its_last_row(base: Path, trained: dict[str, Trained]) -> None:
    runner = load(base, capture=GraphCapture(CPU), burst=4, adapter_slots=1, adapter_rank=8)
    first = add(runner, trained["all linear layers"].folder)
    driver = Driver(runner)
    for row in range(2):
        driver.start(row, utterance(first))
    for _ in range(3):
        driver.iterate()
    runner.adapters.remove(first)
    driver.stop(1)
    with pytest.raises(WeightsUnavailable, match="memory for 1 adapters"):
        add(runner, trained["decoder, rsLoRA"].folder)
    driver.finish()
    second = add(runner, trained["decoder, rsLoRA"].folder)
    assert np.array_equal(alone(runner, utterance(second)), trained["decoder, rsLoRA"].codes[0])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"quantize": "int8", "dtype": torch.bfloat16}])
def test_codes_of_a_row_do_not_depend_on_other_rows(
    options: dict[str, Any], base: Path, trained: dict[str, Trained]
) -> None:
    runner = load(base, **options)
    keys = [add(runner, each.folder) for each in trained.values()]
    spoken = [utterance(key, temperature=1.0) for key in ("", *keys, keys[0])]
    expected = [alone(runner, each) for each in spoken]
    assert len({codes.tobytes() for codes in expected}) == len(keys) + 1
    for found, codes in zip(together(runner, spoken), expected, strict=True):
        assert np.array_equal(found, codes)


def test_model_is_unchanged_without_adapters(base: Path, trained: dict[str, Trained]) -> None:
    runner = load(base)
    key = add(runner, trained["all linear layers"].folder)
    assert sum(isinstance(part, AdaptedLinear) for part in runner.model.modules()) > 10
    runner.adapters.remove(key)
    assert not any(isinstance(part, AdaptedLinear) for part in runner.model.modules())


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("DoRA", {"use_dora": True, "target_modules": ["down_proj"]}),
        ("an embedding", {"target_modules": ["embedding"]}),
        ("modules_to_save", {"target_modules": ["q_proj"], "modules_to_save": ["logits_dense"]}),
    ],
)
def test_adapter_part_that_needs_a_merge_is_refused_by_name(
    words: str, config: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    save_and_merge(reference(base), tmp_path, r=3, lora_alpha=8, **config)
    with pytest.raises(WeightsUnavailable, match=words) as refused:
        load(base).adapters.prepare(tmp_path)
    assert f"DIA_MODEL={tmp_path}" in refused.value.remedy
