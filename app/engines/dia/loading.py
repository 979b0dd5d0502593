"""Builds a Dia engine from the settings: chooses files, device and dtype, and loads and packs the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from app.audio.guard import Rule
from app.engines.batched import BatchedEngine
from app.engines.dia.adapters import places_of
from app.engines.dia.checkpoint import weights_of
from app.engines.dia.config import PUBLISHED, DiaConfig, Release, read_config
from app.engines.dia.files import locate_dia
from app.engines.dia.guidance import DEFAULTS
from app.engines.dia.limits import Guards
from app.engines.dia.model import DiaModel
from app.engines.dia.runner import MIN_REFERENCE_S, DiaRunner
from app.engines.dia.script import BYTES_PER_S, MAX_PASSAGE_CHARS, TEXT
from app.engines.registry import BareEngine
from app.engines.shared.adapters import bases_of, reserved_bytes
from app.engines.shared.generation_config import NO_SAMPLING, own_sampling, variant_of, with_defaults
from app.engines.shared.half_precision import check_range, load_in_range
from app.engines.shared.loading import (
    REFERENCE_NOISE,
    adapter_slots,
    batched_engine,
    bytes_of,
    check_codec_size,
    codec_fingerprint,
    dtype_name,
    fetch,
    graph_capture,
    load_weights,
    loading_on,
    pack_bfloat16,
    place_weights,
    with_or_without_graphs,
)
from app.engines.shared.quantization import Quantize, Quantized, choose_quantization
from app.nn.dac.checkpoint import load_codec as load_dac
from app.nn.dac.config import DacConfig, read_dac_config
from app.nn.dac.model import DacDecoder, DacEncoder
from app.nn.dac.precision import BOUND_DB, fastest_decoder
from app.nn.kernels.sets import TORCH, Kernels
from app.runtime.cuda_graphs import GraphCapture, Setup
from app.runtime.device import choose_device, choose_dtype, plan_rows
from app.types import Capabilities, EngineInfo, PromptLimits, Sampling
from app.weights import hub
from app.weights.adapter import Adapter, open_adapter
from app.weights.load_cache import LoadCache
from app.weights.tensors import digest_of, open_checkpoints

if TYPE_CHECKING:
    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.weights.located import Located

log = logging.getLogger(__name__)

# In bfloat16, the keys and values of a row take up to 226 MiB for the audio and up to 144 MiB for the text.
ROWS_CPU, ROWS_GPU = 4, 64
PASSAGE_SLACK_S = 1.0  # additional seconds for the characters that the format of a script may add to its lines
BARE_FRAMES = 3056  # all frames that fit into the published model's context


def load_model(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: str = "",
    cache: LoadCache | None = None,
    adapter: Adapter | None = None,
) -> DiaModel:
    """Load the model in `folder`, of either release and in either layout. Raises WeightsUnavailable.

    source: the hub id or folder of the weights. cache: see `load_weights`. adapter: a LoRA adapter that is merged into
    the weights.
    """
    config = read_config(folder)
    weights = weights_of(open_checkpoints(folder), config, source)
    if adapter is not None:
        weights = adapter.merge(weights)
        adapter.check_merged("Dia")
    model = DiaModel(config, device=device, dtype=dtype)
    model.base = weights
    load_weights(model, model.load, weights, folder=folder, config=config, dtype=dtype, cache=cache, adapter=adapter)
    return model.eval()


def adapt(
    model: DiaModel, quantize: Quantize = "none", folder: Path | None = None, *, native: bool = True
) -> Quantized | None:
    """Convert the loaded weights to the fastest form for the model's device.

    Returns how the weights are quantized; None = they are not quantized. folder: where compiled kernels are stored;
    None = the cache folder of the user. native: whether the native kernels may be used. Raises EngineUnavailable.

    Quantization converts only the MLP weights of the decoder, which are 72 % of the bytes that a step reads. Attention
    weights stay as they are: Dia does not scale attention scores, so the errors of 8-bit weights would be too large.
    """
    quantization = choose_quantization(quantize, (model.device,), (model.config.decoder,), folder, native=native)
    if quantization is not None:
        quantization.quantize_stack(model.decoder, attention=False)
    pack_bfloat16(model)
    place_weights(model.device)
    return quantization


def load_codec(
    config: DiaConfig, folder: Path, *, device: torch.device, max_rows: int
) -> tuple[DacEncoder, DacDecoder]:
    """Load the DAC codec in `folder`, in either published layout. Raises WeightsUnavailable."""
    shape = read_dac_config(folder)
    check_codec_size(
        (shape.codebooks, shape.codebook_size),
        (config.channels, config.codebook_size),
        remedy="Set DIA_CODEC to a DAC codec for 44.1 kHz (descript/dac_44khz).",
    )
    weights = load_dac(folder, shape)
    decoder = DacDecoder(shape, rows=max_rows, codebooks=config.channels, device=device)
    decoder.load(weights)
    with device:
        encoder = DacEncoder(shape)
    encoder.load(weights)
    return encoder.eval(), decoder.eval()


def load_runner(
    model_dir: Path,
    codec_dir: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_rows: int,
    quantize: Quantize = "none",
    guards: Guards | None,
    exact: bool = False,
    on_guard: Callable[[Rule], None] = lambda _: None,
    reference_noise: bool = False,
    chunk: int | None = None,
    source: str = "",
    cache: LoadCache | None = None,
    capture: GraphCapture | None = None,
    kernels: Sequence[Kernels] = (TORCH,),
    burst: int = 1,
    notes: Setup = (),
    needs_range: bool = False,
    codec_dtype: Literal["auto", "float32"] = "float32",
    adapter_dir: Path | None = None,
    sampling: Sampling = NO_SAMPLING,
    adapter_slots: int = 0,
    adapter_rank: int = 0,
    adapter_bases: frozenset[str] = frozenset(),
    kernels_folder: Path | None = None,
    native: bool = True,
) -> DiaRunner:
    """Load Dia from `model_dir` and its codec from `codec_dir`.

    needs_range: True = raise HalfPrecisionOverflow if values overflow in float16. codec_dtype: "auto" = the fastest
    format with a small spectral error (nn/dac/precision.py). adapter_dir: a LoRA adapter that is merged into the
    weights. sampling: the sampling parameters that the model sets, which are a part of the fingerprint. `DiaRunner`,
    `load_model` and `adapt` describe the other options. Raises WeightsUnavailable, EngineUnavailable.
    """
    adapter = None if adapter_dir is None else open_adapter(adapter_dir)
    model = load_model(model_dir, device=device, dtype=dtype, source=source, cache=cache, adapter=adapter)
    check_range(model, dtype, partial(_sample_logits, model), required=needs_range)
    encoder, decoder = load_codec(model.config, codec_dir, device=device, max_rows=max_rows)
    if codec_dtype == "auto":
        decoder, errors = fastest_decoder(decoder)
        notes = (*notes, *_codec_facts(decoder, errors))
    weights = (*model.parameters(), *model.buffers(), *decoder.parameters(), *decoder.buffers())
    digest = digest_of(weights, str((model.config, model.dtype, decoder.config)))
    quantization = adapt(model, quantize, kernels_folder, native=native)
    kind = "none" if quantization is None else quantization.name
    if quantization is not None:
        notes = (*notes, *quantization.facts)

    def build(capture: GraphCapture | None, notes: Setup) -> DiaRunner:
        return DiaRunner(
            model,
            encoder,
            decoder,
            max_rows=max_rows,
            guards=guards,
            exact=exact,
            on_guard=on_guard,
            reference_noise=reference_noise,
            quantized=quantization is not None,
            fingerprint=f"dia {digest} {kind}" + variant_of(adapter, sampling),
            codec_fingerprint=codec_fingerprint(encoder, encoder.config, model.config.channels),
            chunk=chunk,
            capture=capture,
            kernels=kernels,
            burst=burst,
            notes=notes,
            adapter_slots=adapter_slots,
            adapter_rank=adapter_rank,
            adapter_bases=adapter_bases,
        )

    return with_or_without_graphs(build, capture, notes)


def _codec_facts(decoder: DacDecoder, errors: Mapping[torch.dtype, float]) -> Setup:
    """Return the values for /health about the number format of the codec. errors: see fastest_decoder."""
    name = str(decoder.dtype).removeprefix("torch.")
    if decoder.dtype in errors:
        return (("codec_dtype", name), ("codec_error_db", round(errors[decoder.dtype], 1)))
    tried = ", ".join(f"{str(dtype).removeprefix('torch.')} {error:.1f} dB" for dtype, error in errors.items())
    reason = f"The error of the codec's other formats is above {BOUND_DB:.0f} dB: {tried}."
    log.warning("%s The codec decodes in float32, which takes longer.", reason)
    return (("codec_dtype", name), ("codec_reason", reason))


@torch.inference_mode()
def _sample_logits(model: DiaModel) -> Tensor:
    """Run the model on a text of 64 bytes and 33 positions with random ids. Returns the logits of the last position."""
    c, generator = model.config, torch.Generator().manual_seed(0)
    text = torch.randint(32, min(127, c.text_vocab), (min(64, c.max_text),), generator=generator)
    count = min(33, c.max_positions)
    codes = torch.randint(c.codebook_size, (count, c.channels), generator=generator).to(model.device)
    cache = model.cache(1)
    for _ in model.encode_text(text.to(model.device), cache, 0):
        pass
    model.read(codes[:-1], cache, 0, 0)
    return torch.cat(model.advance(codes[-1:], cache, [0], [count - 1]))


def load_from(
    settings: Settings,
    context: BuildContext,
    *,
    guards: Guards | None,
    exact: bool = False,
    reference_noise: bool = False,
) -> DiaRunner:
    """Load the runner for these settings. Download the weights if they are not on disk. Raises EngineUnavailable."""

    def load(settings: Settings, notes: Setup) -> DiaRunner:
        return _load(settings, context, notes, guards=guards, exact=exact, reference_noise=reference_noise)

    return load_in_range(load, settings)


def _load(
    settings: Settings,
    context: BuildContext,
    notes: Setup,
    *,
    guards: Guards | None,
    exact: bool,
    reference_noise: bool,
) -> DiaRunner:
    """Load the runner. notes: additional values for /health. Raises HalfPrecisionOverflow, EngineUnavailable."""
    folders, source = fetch(settings, context, locate_dia)
    folder, codec = folders.model.weights, folders.codec
    assert folder is not None  # noqa: S101 - `fetch` has downloaded the folder
    assert codec is not None  # noqa: S101 - `fetch` has downloaded the codec
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    rows = settings.rows(ROWS_CPU)
    config = read_config(folder)
    slots = adapter_slots(settings, device)
    shape = DiaModel(config, device=torch.device("meta"), dtype=dtype)
    reserved = reserved_bytes(places_of(shape), dtype, slots, settings.adapter_rank)
    planned: Setup = ()
    if device.type == "cuda" and settings.max_rows == "auto":
        needed = bytes_by_rows(config, read_dac_config(codec), dtype)
        memory = plan_rows([device], settings.gpu_memory_fraction, lambda rows: reserved + needed(rows), most=ROWS_GPU)
        rows, planned = memory.rows, memory.facts
    with loading_on((device,), settings):
        impossible = REFERENCE_NOISE if reference_noise else ""
        capture, kernels, captured = graph_capture(settings, device, dtype, impossible=impossible, config=config)
        return load_runner(
            folder,
            codec,
            device=device,
            dtype=dtype,
            max_rows=rows,
            quantize=settings.quantize,
            kernels_folder=settings.folder("models") / "cache" / "kernels",
            native=settings.kernels != "torch",
            guards=guards,
            exact=exact,
            on_guard=context.on_guard,
            reference_noise=reference_noise,
            source=source if folders.model.adapter is None else folders.model.files[-1].source,
            adapter_dir=folders.model.adapter,
            sampling=sampling_of(folders.model),
            cache=LoadCache(settings.folder("models") / "cache", source),
            capture=capture,
            kernels=kernels,
            burst=settings.steps_per_check,
            notes=(*planned, *notes, *captured),
            needs_range=settings.dtype == "auto",
            codec_dtype=settings.codec_dtype if device.type == "cuda" else "float32",
            adapter_slots=slots,
            adapter_rank=settings.adapter_rank,
            adapter_bases=bases_of(folders.model, "dia"),
        )


def bytes_by_rows(config: DiaConfig, codec: DacConfig, dtype: torch.dtype) -> Callable[[int], int]:
    """Return a function: number of rows -> bytes of the model, the codec and these rows."""
    return lambda rows: measure(config, codec, dtype=dtype, max_rows=rows)


def published_bytes(dtype: torch.dtype) -> Callable[[int], int]:
    """Return `bytes_by_rows` of the published model."""
    return bytes_by_rows(PUBLISHED, DacConfig(), dtype)


def measure(config: DiaConfig, codec: DacConfig, *, dtype: torch.dtype, max_rows: int) -> int:
    """Return how many bytes the model, the codec and the rows need.

    Builds the modules on the meta device, which needs no memory for their weights, and counts their bytes.
    """
    meta = torch.device("meta")
    model = DiaModel(config, device=meta, dtype=dtype)
    cache = model.cache(max_rows, batched=True, scratch=1)
    decoder = DacDecoder(codec, rows=max_rows, codebooks=config.channels, device=meta)
    with meta:
        encoder = DacEncoder(codec)
    return bytes_of(model, decoder, encoder) + cache.nbytes + decoder.state_bytes


def _engine_sampling(release: Release) -> Sampling:
    params, scale = DEFAULTS[release].params, DEFAULTS[release].cfg_scale
    return Sampling(params.temperature, params.top_k, params.top_p, scale)


def sampling_of(model: Located) -> Sampling:
    """Return the sampling parameters that a model sets. A parameter is None if its value is its release's default."""
    assert model.weights is not None  # noqa: S101 - the model is on disk
    return own_sampling(model, hub.files_for("dia"), _engine_sampling(read_config(model.weights).release))


def engine_of(runner: DiaRunner, settings: Settings, sampling: Sampling = NO_SAMPLING) -> BatchedEngine:
    """Return an engine that runs `runner`, with Dia's capabilities and limits.

    sampling: the sampling parameters that the model sets. The engine uses each of them if a request does not set it.
    """
    model = runner.model
    info = EngineInfo(
        id="dia",
        name="Dia-1.6B",
        rate_hz=runner.rate_hz,
        frame_s=1 / runner.codec.frame_hz,
        capabilities=Capabilities(temperature=True, top_k=True, top_p=True, cfg_scale=True),
        text=TEXT,
        prompts=PromptLimits(
            codec="dac",
            codec_fingerprint=runner.codec_fingerprint,
            max_prompt_s=max(MIN_REFERENCE_S, runner.max_s - MAX_PASSAGE_CHARS / BYTES_PER_S - PASSAGE_SLACK_S),
        ),
        languages=("en",),
        fingerprint=runner.fingerprint,
        defaults=with_defaults(sampling, _engine_sampling(runner.config.release)),
        device=str(model.device),
        dtype=dtype_name("none" if settings.quantize == "fp8" else settings.quantize, model.dtype),
        setup=runner.setup,
    )
    return batched_engine(info, runner, settings, runner.encode, model.device)


def build(settings: Settings, context: BuildContext) -> BatchedEngine:
    """Build the Dia-1.6B engine. Raises EngineUnavailable."""
    runner = load_from(settings, context, guards=Guards())
    return engine_of(runner, settings, sampling_of(locate_dia(settings).model))


def build_bare(settings: Settings, context: BuildContext, reference_noise: bool) -> BareEngine:
    """Build Dia-1.6B without text rules and output guards. Raises EngineUnavailable."""
    runner = load_from(settings, context, guards=None, exact=True, reference_noise=reference_noise)
    engine = engine_of(runner, settings, sampling_of(locate_dia(settings).model))
    return BareEngine(engine, runner.config.channels, BARE_FRAMES)
