"""Default values. The expected values are written in the tests or come from the published definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engines.csm.config import parse_config as parse_csm
from app.engines.csm.model import CsmModel
from app.engines.dia.config import parse_config as parse_dia
from app.nn.dac.config import DacConfig, parse_dac_config
from app.nn.kv_cache import KVCache
from app.nn.mimi.config import MimiConfig, read_mimi_config
from app.nn.rope import Rope
from app.nn.transformer import StackConfig
from app.settings import Settings
from app.types import PromptLimits, Scheduling, TextPacking
from tests.support.random_csm import csm_config

pytestmark = pytest.mark.unit

SETTINGS: dict[str, Any] = {
    "engine": "csm",
    "models": (),
    "load_wait_s": 120.0,
    "idle_unload_s": 0.0,
    "fallback_engine": "espeak",
    "csm_model": "sesame/csm-1b",
    "csm_base": "",
    "csm_tokenizer": "",
    "adapters": (),
    "adapter_slots": 0,
    "adapter_rank": 32,
    "max_adapter_bytes": 512 << 20,
    "csm_speakers": (0, 1),
    "csm_codec": "kyutai/mimi",
    "dia_model": "nari-labs/Dia-1.6B-0626",
    "dia_base": "",
    "dia_codec": "descript/dac_44khz",
    "hf_token": None,
    "device": "auto",
    "devices": (),
    "csm_device_map": None,
    "csm_context_lines": 2,
    "dtype": "auto",
    "codec_dtype": "auto",
    "quantize": "none",
    "cuda_graphs": True,
    "kernels": "auto",
    "compile": False,
    "tf32": False,
    "gpu_memory_fraction": 0.9,
    "steps_per_check": 8,
    "host": "0.0.0.0",
    "port": 8000,
    "tls_cert": None,
    "tls_key": None,
    "data_dir": Path("data"),
    "api_keys": (),
    "wyoming": "",
    "wyoming_zeroconf": "",
    "cors_origins": (),
    "allowed_hosts": (),
    "studio_llm_origins": (),
    "root_path": "",
    "trusted_proxies": ("127.0.0.1", "::1"),
    "voice_lists": "open",
    "max_input_chars": 1_000_000,
    "max_body_bytes": 16 << 20,
    "max_upload_bytes": 64 << 20,
    "read_timeout_s": 30.0,
    "keep_alive_s": 75,
    "max_rows": "auto",
    "max_queue": 64,
    "casting": "auto",
    "casting_wait_s": 5.0,
    "memory_tokens": 600,
    "memory_ttl_s": 3600.0,
    "memory_keep": False,
    "audio_queue_s": 10.0,
    "reader_timeout_s": 60.0,
    "cache_bytes": 1 << 30,
    "jobs_max_chars": 20_000_000,
    "jobs_keep_days": 0.0,
    "shutdown_grace_s": 120,
    "replicas": "1",
    "enhance": True,
    "watermark": "model",
    "c2pa_cert": None,
    "c2pa_key": None,
    "verify": "auto",
    "youtube": "auto",
    "asr": "auto",
    "asr_model": "openai/whisper-base.en",
    "asr_download": True,
    "log_level": "INFO",
    "log_texts": False,
    "dev_mode": False,
}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_has_its_documented_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)
    assert getattr(Settings(_env_file=None), name) == SETTINGS[name]


def test_plug_in_engine_gets_the_documented_limits() -> None:
    assert TextPacking() == TextPacking(
        max_chars=400,
        max_passage_chars=0,
        continues=False,
        independent=False,
        max_speakers=1,
        utf8_bytes=False,
        sounds=frozenset(),
    )
    assert PromptLimits() == PromptLimits(
        codec="none", codec_fingerprint="", max_prompt_s=None, max_context_s=None, examples=""
    )
    assert Scheduling() == Scheduling(continuation=False, background=False, index=0, playback=None)


def test_missing_keys_of_dia_have_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    published = transformers.DiaConfig().to_dict()
    assert parse_dia({"encoder_config": {}, "decoder_config": {}}) == parse_dia(published)


def test_missing_keys_of_mimi_have_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    assert MimiConfig() == read_mimi_config(transformers.MimiConfig().to_dict())


def test_codec_without_a_config_is_descript_dac_44khz() -> None:
    published = {
        "model_type": "dac",
        "sampling_rate": 44_100,
        "encoder_hidden_size": 64,
        "downsampling_ratios": [2, 4, 8, 8],
        "decoder_hidden_size": 1536,
        "upsampling_ratios": [8, 8, 4, 2],
        "n_codebooks": 9,
        "codebook_size": 1024,
        "codebook_dim": 8,
        "hidden_size": 1024,
        "hop_length": 512,
    }
    assert DacConfig() == parse_dac_config(published) == parse_dac_config({})
    changed = parse_dac_config(published | {"codebook_dim": 4, "hidden_size": 512, "n_codebooks": 3})
    assert (changed.codebook_dim, changed.latent_width, changed.codebooks) == (4, 512, 3)


def test_cpu_computes_the_depth_decoder_in_float32() -> None:
    raw = csm_config("tiny")
    for device, dtype in ((torch.device("cpu"), torch.float32), (torch.device("meta"), torch.bfloat16)):
        model = CsmModel(parse_csm(raw), device=device, dtype=torch.bfloat16)
        cache = model.depth_kv_cache(1)
        assert cache.k.dtype == cache.v.dtype == dtype


@pytest.mark.parametrize(("device", "batched"), [("cpu", False), ("meta", True)])
def test_only_a_cpu_decodes_row_by_row(device: str, batched: bool) -> None:
    config = StackConfig(layers=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, eps=1e-5, rope=Rope(100.0))
    cache = KVCache(config, rows=2, positions=4, device=torch.device(device), dtype=torch.float32)
    assert cache._batched is batched
