"""The plan of a GPU's memory: rows, graphs and values of /health for cards of 6 to 141 GB, and `app.cli plan`.

The sizes of the models come from tensors of the meta device, so no memory and no GPU is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from app import cli
from app.engines.csm import loading as csm_loading
from app.engines.csm.config import PUBLISHED as CSM
from app.engines.csm.config import parse_config as parse_csm
from app.engines.csm.cuda_graph import CsmCudaGraph
from app.engines.csm.model import CsmModel
from app.engines.csm.runner import PREFIX_BYTES
from app.engines.dia import loading as dia_loading
from app.engines.dia.config import PUBLISHED as DIA
from app.engines.dia.config import parse_config as parse_dia
from app.engines.dia.cuda_graph import DiaCudaGraph
from app.engines.dia.delay import DelayPattern
from app.engines.dia.model import DiaModel
from app.engines.registry import BuildContext, specs
from app.nn.dac.config import DacConfig, parse_dac_config
from app.nn.dac.model import DacDecoder, DacEncoder
from app.nn.mimi.config import MimiConfig, read_mimi_config
from app.nn.mimi.model import MimiDecoder, MimiEncoder
from app.runtime import device as devices
from app.runtime import memory
from app.runtime.device import CONTEXT_BYTES, LEAST_SCRATCH_BYTES, SCRATCH_BYTES, plan_memory, plan_rows
from tests.support.random_csm import csm_config
from tests.support.random_dia import SHAPES, dac_config, dia_config
from tests.support.recordable import META
from tests.unit.test_csm_placement import settings_for, simulate_cards

pytestmark = pytest.mark.unit

GIB = 1 << 30
ROWS = 8
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def tensors_of(*parts: Any) -> Iterable[Tensor]:
    """Yield all tensors of modules and of other objects, also inside lists, tuples and dicts, each once."""
    seen: set[int] = set()
    left = list(parts)
    while left:
        part = left.pop()
        if id(part) in seen or part is None or isinstance(part, (str, int, float, bool, torch.dtype, torch.device)):
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            if part._base is None:
                yield part
        elif isinstance(part, torch.nn.Module):
            left += [*part.parameters(), *part.buffers(), *vars(part).values()]
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, (list, tuple)):
            left += part
        elif type(part).__module__.startswith("app."):
            left += [getattr(part, name) for name in getattr(part, "__slots__", ())] + list(
                vars(part).values() if hasattr(part, "__dict__") else []
            )


def csm_tensors(dtype: torch.dtype) -> list[Tensor]:
    """Return all tensors of the full-size CSM with ROWS rows: weights, codec, caches and the state of the CUDA
    graphs."""
    raw = csm_config("full")
    model = CsmModel(parse_csm(raw), device=META, dtype=dtype)
    codec = read_mimi_config(raw["codec_config"])
    decoder = MimiDecoder(codec, rows=ROWS, codebooks=32, device=META)
    with META:
        encoder = MimiEncoder(codec)
    cache, depth = model.kv_cache(ROWS, batched=True, scratch=1), model.depth_kv_cache(ROWS)
    inputs = torch.zeros(ROWS, model.config.backbone.width, device=META, dtype=dtype)
    graph = CsmCudaGraph(model, decoder, cache, depth, inputs)
    return list(tensors_of(model, decoder, encoder, cache, depth, graph))


def dia_tensors(dtype: torch.dtype) -> list[Tensor]:
    """Return all tensors of the full-size Dia with ROWS rows."""
    config, codec = parse_dia(dia_config(SHAPES["full"])), parse_dac_config(dac_config("full"))
    model = DiaModel(config, device=META, dtype=dtype)
    decoder = DacDecoder(codec, rows=ROWS, codebooks=9, device=META)
    with META:
        encoder = DacEncoder(codec)
    cache, delay = model.cache(ROWS, batched=True, scratch=1), DelayPattern(config, ROWS, META)
    graph = DiaCudaGraph(model, cache, delay, rows=ROWS, burst=8)
    return list(tensors_of(model, decoder, encoder, cache, delay, graph))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_planned_bytes_equal_the_bytes_of_the_real_tensors(dtype: torch.dtype) -> None:
    """Less than 2 % of the bytes of a row are not in the plan: counters, depth cache and buffers for results."""
    for needed, tensors, extra in (
        (csm_loading.published_bytes(dtype), csm_tensors(dtype), PREFIX_BYTES),
        (dia_loading.published_bytes(dtype), dia_tensors(dtype), 0),
    ):
        planned, real = needed(ROWS), sum(tensor.nbytes for tensor in tensors) + extra
        row = needed(1) - needed(0)
        assert needed(ROWS) - needed(0) == ROWS * row
        assert 0 <= real - planned < 0.02 * ROWS * row


def test_published_shapes_equal_the_published_configurations() -> None:
    published = parse_csm(csm_config("full"))
    assert (CSM.codebooks, CSM.audio_vocab, CSM.text_vocab) == (published.codebooks, published.audio_vocab, 128_256)
    for ours, theirs in ((CSM.backbone, published.backbone), (CSM.depth, published.depth)):
        assert (ours.layers, ours.width, ours.ffn, ours.kv_heads) == (
            theirs.layers, theirs.width, theirs.ffn, theirs.kv_heads
        )  # fmt: skip
    assert read_mimi_config(csm_config("full")["codec_config"]) == MimiConfig()
    assert parse_dac_config(dac_config("full")) == DacConfig()
    assert parse_dia(dia_config(SHAPES["full"])) == DIA


# Memory of the card in GB -> rows in bfloat16 of CSM and of Dia.
TABLE = {
    4: (0, 0),
    5: (0, 0),
    6: (1, 1),
    7: (4, 2),
    8: (16, 4),
    12: (64, 16),
    16: (64, 16),
    24: (64, 32),
    48: (64, 64),
    80: (64, 64),
    141: (64, 64),
}


@pytest.mark.parametrize("size", TABLE)
def test_number_of_rows_is_planned_for_each_card(size: int) -> None:
    free = size * GIB - CONTEXT_BYTES
    for needed, rows in zip((csm_loading.published_bytes, dia_loading.published_bytes), TABLE[size], strict=True):
        bytes_of = needed(torch.bfloat16)
        spare = csm_loading.SPARE_BYTES if needed is csm_loading.published_bytes else 0
        plan = plan_memory([free], 0.9, bytes_of, most=64, spare_bytes=spare)
        assert plan.rows == rows
        assert plan.buckets == tuple(2**i for i in range(rows.bit_length()))
        if not rows:
            assert bytes_of(1) - spare > int(free * 0.9) - LEAST_SCRATCH_BYTES
            continue
        assert plan.used_bytes == bytes_of(rows) - plan.saved_bytes <= plan.usable_bytes
        assert plan.saved_bytes <= (spare if rows == 1 else 0)
        small = rows == 1 and bytes_of(1) > int(free * 0.9) - SCRATCH_BYTES
        assert plan.usable_bytes == int(free * 0.9) - (LEAST_SCRATCH_BYTES if small else SCRATCH_BYTES)
        assert rows == 64 or bytes_of(2 * rows) > int(free * 0.9) - SCRATCH_BYTES


def test_small_card_has_a_smaller_prefix_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card of 6 GB, CSM reduces its cache of voices by the bytes that one row needs."""
    free = 6 * GIB - CONTEXT_BYTES
    spec = specs()["csm"]
    assert spec.spare_bytes == csm_loading.SPARE_BYTES < PREFIX_BYTES
    loaded = simulate_cards(monkeypatch, tmp_path, (free / GIB,))
    monkeypatch.setattr(csm_loading, "choose_device", lambda _: torch.device("cuda", 0))
    settings = settings_for(tmp_path, tmp_path, TTS_MAX_ROWS="auto", TTS_DTYPE="bfloat16")
    csm_loading.load_from(settings, BuildContext(lambda _: None, lambda: False), guards=None)
    saved = plan_memory(
        [free], 0.9, csm_loading.published_bytes(torch.bfloat16), most=64, spare_bytes=spec.spare_bytes
    ).saved_bytes
    assert 0 < saved < spec.spare_bytes
    assert (loaded["max_rows"], loaded["prefix_bytes"]) == (1, PREFIX_BYTES - saved)
    assert dict(loaded["notes"])["planned_rows"] == 1


def test_start_uses_the_plan_and_health_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    bytes_of = csm_loading.published_bytes(torch.bfloat16)
    for size in (6, 8, 12, 24, 80):
        free = size * GIB - CONTEXT_BYTES
        monkeypatch.setattr(devices, "free_bytes", lambda _, free=free: free)
        spare = csm_loading.SPARE_BYTES
        plan = plan_rows([card], 0.9, bytes_of, most=64, spare_bytes=spare)
        assert plan == plan_memory([free], 0.9, bytes_of, most=64, spare_bytes=spare)
        facts = dict(plan.facts)
        assert facts["planned_rows"] == plan.rows
        assert facts["model_bytes"] + plan.rows * facts["row_bytes"] <= facts["usable_bytes"] < facts["free_bytes"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *arguments])


@pytest.mark.parametrize(
    ("memory", "engine", "dtype", "rows"),
    [
        ("12GB", "csm", "bfloat16", [64]),
        ("12GB,6GB", "csm", "bfloat16", [64, 1]),
        ("8 gib, 24", "dia", "float16", [4, 32]),
        ("16GB", "csm", "float32", [32]),
        ("4GB", "dia", "bfloat16", [0]),
        ("7.5G", "csm", "bfloat16", [8]),
    ],
)
def test_command_prints_the_plan_as_json(memory: str, engine: str, dtype: str, rows: list[int]) -> None:
    result = run("--memory", memory, "--engine", engine, "--dtype", dtype, "--json")
    assert result.exit_code == 0
    plans = json.loads(result.stdout)["plans"]
    assert [plan["rows"] for plan in plans] == [plan["planned_rows"] for plan in plans] == rows
    assert [plan["fits"] for plan in plans] == [count > 0 for count in rows]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "plenty"), "is not a size of memory"),
        (("--memory", "0GB"), "is not a size of memory"),
        (("--memory", "-8GB"), "is not a size of memory"),
        (("--memory", "8MB"), "is not a size of memory"),
        (("--engine", "espeak"), "no model to plan for. Use one of: csm, dia"),
        (("--dtype", "int4"), "Unknown dtype"),
    ],
)
def test_command_refuses_unknown_values(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


def test_documentation_shows_the_table_of_the_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    plans = json.loads(run("--json").stdout)["plans"]
    sizes = list(dict.fromkeys(plan["memory"] for plan in plans))
    for size in sizes:
        cells = [str(plan["rows"]) for plan in plans if plan["memory"] == size]
        row = re.escape(f"| {size.removesuffix('GB')} GB | {' | '.join(cells)} |")
        assert re.search(row, page), row


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 << 30),
        ({"memory.max": "max\n"}, 8 << 30),
        ({"memory.max": "4000", "memory.current": "1000", "memory.stat": "anon 900\ninactive_file 100\n"}, 3100),
        ({"memory.max": "4000", "memory.current": "3900", "memory.stat": "inactive_file 3000\n"}, 3100),
        ({"memory.max": "4000", "memory.current": "4000", "memory.stat": "anon 4000\n"}, 0),
        ({"memory.max": str(64 << 30), "memory.current": "0", "memory.stat": ""}, 8 << 30),
        ({"memory.max": "4000"}, 8 << 30),
    ],
    ids=["no container", "no limit", "limit", "cached files are free", "full", "a larger limit", "not reported"],
)
def test_available_memory_respects_the_limit_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == expected
