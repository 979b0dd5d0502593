"""Builds a CSM engine from the settings: chooses files, devices and dtype, and loads and packs the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from app.audio.guard import Rule
from app.engines.batched import BatchedEngine
from app.engines.csm.adapters import places_of
from app.engines.csm.checkpoint import CODEC, checkpoint_name, language_model, tied_tables
from app.engines.csm.config import PUBLISHED, CsmConfig, read_config
from app.engines.csm.files import TEXT, locate_csm
from app.engines.csm.limits import Guards
from app.engines.csm.model import CsmModel
from app.engines.csm.placement import MARGIN, DeviceMap, DeviceMemory, Sizes, bytes_per_device, plan
from app.engines.csm.prompt import TextEncoder
from app.engines.csm.runner import DEFAULTS, PREFIX_BYTES, CsmRunner
from app.engines.registry import BareEngine
from app.engines.shared.adapters import bases_of, reserved_bytes
from app.engines.shared.generation_config import NO_SAMPLING, own_sampling, variant_of, with_defaults
from app.engines.shared.half_precision import check_range, load_in_range
from app.engines.shared.loading import (
    REFERENCE_NOISE,
    adapter_slots,
    batched_engine,
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
from app.engines.shared.quantization import (
    Quantize,
    Quantized,
    check_fp8,
    choose_quantization,
    quantized_bytes,
    round_to_fp8,
)
from app.errors import EngineUnavailable, WeightsUnavailable
from app.nn.kernels.sets import TORCH, Kernels
from app.nn.kv_cache import KVCache
from app.nn.linear import Linear, replace_linears
from app.nn.mimi import checkpoint as mimi_layout
from app.nn.mimi.config import MimiConfig, read_mimi_config_file
from app.nn.mimi.model import MimiDecoder, MimiEncoder
from app.nn.transformer import Stage
from app.runtime.cuda_graphs import GraphCapture, Setup
from app.runtime.device import (
    MemoryPlan,
    choose_device,
    choose_devices,
    choose_dtype,
    plan_rows,
    usable_bytes,
)
from app.types import Capabilities, EngineInfo, PromptLimits, Sampling
from app.weights import hub
from app.weights.adapter import Adapter, open_adapter
from app.weights.load_cache import LoadCache
from app.weights.tensors import Checkpoint, digest_of, open_checkpoints

if TYPE_CHECKING:
    from app.engines.registry import BuildContext
    from app.settings import Settings
    from app.weights.located import Located

log = logging.getLogger(__name__)

KNOWN_SPEAKERS = (0, 1)  # the speaker numbers of the published model
_ENGINE_SAMPLING = Sampling(DEFAULTS.temperature, DEFAULTS.top_k, DEFAULTS.top_p)

ROWS_CPU, ROWS_GPU = 8, 64  # the KV cache of a row takes 64 MiB in bfloat16
SPARE_BYTES = 384 << 20  # by how many bytes the prefix cache can be made smaller on a small GPU
BARE_FRAMES = 1125  # 90 s, the default limit of Sesame's own generator
PROMPT_SHARE = 0.4  # largest share of the context for the audio of voice recordings
PRODUCTION = Guards()
CONTEXT_SHARE = 0.75  # largest share of the context for the audio of earlier turns


def load_model(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    other_codec: MimiConfig | None = None,
    stages: Sequence[Stage] = (),
    cache: LoadCache | None = None,
    adapter: Adapter | None = None,
) -> tuple[CsmModel, Checkpoint | None]:
    """Load the language model in `folder`. Returns the model and the tensors of its codec.

    The second result is None if the checkpoint contains no codec that the server can use. other_codec: the config of
    the codec that is used then. stages: the device of each part of the backbone's layers; () = all layers are on
    `device`. cache: see `load_weights`. adapter: a LoRA adapter that is merged into the weights. Raises
    WeightsUnavailable.
    """
    config = read_config(folder)
    weights, codec = language_model(open_checkpoints(folder, config.weights_index), config)
    if adapter is not None:
        weights = adapter.merge(weights, tied=tied_tables(weights))
        adapter.check_merged("CSM", except_for=CODEC)
    if codec is None and other_codec is not None:
        size = min(config.audio_vocab, config.depth_vocab, other_codec.codebook_size)
        config = replace(config, codebook_size=size)
    model = CsmModel(config, device=device, dtype=dtype, stages=stages)
    model.base, model.tied = weights, bool(tied_tables(weights))
    load_weights(model, model.load, weights, folder=folder, config=config, dtype=dtype, cache=cache, adapter=adapter)
    return model.eval(), codec


def adapt(
    model: CsmModel, quantize: Quantize = "none", folder: Path | None = None, *, native: bool = True
) -> Quantized | None:
    """Convert the loaded weights to the fastest form for the model's device.

    Returns how the weights are quantized; None = they are not quantized. folder: where compiled kernels are stored;
    None = the cache folder of the user. native: whether the native kernels may be used. Raises EngineUnavailable.

    "fp8" rounds only the depth decoder, whose weights a frame reads 31 times. Its heads stay as they are, because the
    errors of logits matter most.
    """
    config = model.config
    if quantize == "fp8":
        round_to_fp8(model.depth)
        return Quantized("fp8 depth decoder")
    quantization = choose_quantization(quantize, model.devices, (config.backbone, config.depth), folder, native=native)
    if quantization is not None:
        for stack in (model.backbone, model.depth):
            quantization.quantize_stack(stack, attention=True)
        replace_linears(model, quantization.quantize_output)
        model.widen()  # the quantized layers read and return float32, so bfloat16 would need conversions
        model.library = quantization.library
    else:
        pack_bfloat16(model)
    place_weights(model.device)
    return quantization


def load_codec(
    config: CsmConfig,
    own: Checkpoint | None,
    folder: Path | None,
    *,
    device: torch.device,
    max_rows: int,
    adapter: Adapter | None = None,
) -> tuple[MimiEncoder, MimiDecoder]:
    """Load the codec from the model's checkpoint. If the checkpoint contains no codec, load the codec in `folder`.

    own: the codec's tensors in the model's checkpoint; None = the checkpoint contains no codec. adapter: a LoRA adapter
    that is merged into the codec. Raises WeightsUnavailable.
    """
    if own is not None:
        shape = config.codec or MimiConfig()
        weights = mimi_layout.codec([own], shape)
    elif folder is not None:
        shape = read_mimi_config_file(folder)
        weights = mimi_layout.codec(open_checkpoints(folder), shape)
    else:
        raise WeightsUnavailable(
            "These CSM weights contain no codec.", remedy="Set CSM_CODEC to a Mimi codec (kyutai/mimi)."
        )
    check_codec_size(
        (shape.codebooks, shape.codebook_size),
        (config.codebooks, config.codebook_size),
    )
    if adapter is not None:
        weights = adapter.merge(weights, CODEC)
        adapter.check_merged("CSM")
    decoder = MimiDecoder(shape, rows=max_rows, codebooks=config.codebooks, device=device)
    decoder.load(weights)
    with device:
        encoder = MimiEncoder(shape)
    encoder.load(weights)
    return encoder.eval(), decoder.eval()


def load_runner(
    model_dir: Path,
    codec_dir: Path | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_rows: int,
    quantize: Quantize = "none",
    guards: Guards | None = PRODUCTION,
    on_guard: Callable[[Rule], None] = lambda _: None,
    reference_noise: bool = False,
    chunk: int | None = None,
    prefix_bytes: int = PREFIX_BYTES,
    context_lines: int | None = None,
    stages: Sequence[Stage] = (),
    cache: LoadCache | None = None,
    capture: GraphCapture | None = None,
    kernels: Sequence[Kernels] = (TORCH,),
    notes: Setup = (),
    needs_range: bool = False,
    tokenizer_dir: Path | None = None,
    adapter_dir: Path | None = None,
    sampling: Sampling = NO_SAMPLING,
    adapter_slots: int = 0,
    adapter_rank: int = 0,
    adapter_bases: frozenset[str] = frozenset(),
    kernels_folder: Path | None = None,
    native: bool = True,
) -> CsmRunner:
    """Load CSM from `model_dir`, in either published layout.

    codec_dir: the folder of the codec, used if the weights contain no codec; None = the weights contain the codec.
    quantize: "int8" or "int4" = quantized weights and 8-bit activations, for CPUs. "fp8" = 8-bit weights of the depth
    decoder, for GPUs. kernels_folder, native: see `adapt`.
    needs_range: True = raise HalfPrecisionOverflow if values overflow in float16. tokenizer_dir: the folder of the
    tokenizer; None = `model_dir`. adapter_dir: a LoRA adapter that is merged into the weights. sampling: the sampling
    parameters that the model sets, which are a part of the fingerprint. `CsmRunner` and `load_model` describe the other
    options. Raises WeightsUnavailable, EngineUnavailable.
    """
    other = read_mimi_config_file(codec_dir) if codec_dir is not None else None
    adapter = None if adapter_dir is None else open_adapter(adapter_dir, checkpoint_name)
    model, own = load_model(
        model_dir, device=device, dtype=dtype, other_codec=other, stages=stages, cache=cache, adapter=adapter
    )
    check_range(model, dtype, partial(_sample_logits, model), required=needs_range)
    encoder, decoder = load_codec(model.config, own, codec_dir, device=device, max_rows=max_rows, adapter=adapter)
    weights = (*model.parameters(), *decoder.parameters())
    digest = digest_of(weights, f"{model.config} {model.dtype} {decoder.config}")
    quantization = adapt(model, quantize, kernels_folder, native=native)
    kind = "none" if quantization is None else quantization.name
    fingerprint = f"csm {digest} {kind}" + variant_of(adapter, sampling)
    if quantization is not None:
        notes = (*notes, *quantization.facts)

    def build(capture: GraphCapture | None, notes: Setup) -> CsmRunner:
        return CsmRunner(
            model,
            TextEncoder(tokenizer_dir or model_dir, model.config),
            encoder,
            decoder,
            max_rows=max_rows,
            guards=guards,
            on_guard=on_guard,
            reference_noise=reference_noise,
            quantized=quantization is not None,
            fingerprint=fingerprint,
            codec_fingerprint=codec_fingerprint(encoder, encoder.config, model.config.codebooks),
            chunk=chunk,
            prefix_bytes=prefix_bytes,
            context_lines=context_lines,
            examples=model_dir / "prompts",
            capture=capture,
            kernels=kernels,
            notes=notes,
            adapter_slots=adapter_slots,
            adapter_rank=adapter_rank,
            adapter_bases=adapter_bases,
        )

    return with_or_without_graphs(build, capture, notes, devices=len(model.devices))


def _sample_logits(model: CsmModel) -> Tensor:
    """Run the model on 48 tokens of text and 16 frames with random ids, and return all logits of the next frame."""
    c, generator = model.config, torch.Generator().manual_seed(0)
    ids = torch.randint(c.text_vocab, (48,), generator=generator)
    codes = torch.randint(c.codebook_size, (16, c.codebooks), generator=generator)
    x = torch.cat((model.embed_text(ids.to(model.device)), model.embed_frames(codes.to(model.device))))
    cache = model.kv_cache(1)
    h = model.read(x, cache, 0, 0)[-1:]
    seen = [model.head(h)]

    def pick(codebook: int, logits: Tensor) -> Tensor:
        del codebook
        seen.append(logits)
        return logits.argmax(dim=-1)

    model.frame(h, model.depth_kv_cache(1), pick)
    return torch.cat([logits.float() for logits in seen])


def load_from(
    settings: Settings, context: BuildContext, *, guards: Guards | None, reference_noise: bool = False
) -> CsmRunner:
    """Load the runner for these settings. Download the weights if they are not on disk. Raises EngineUnavailable."""

    def load(settings: Settings, notes: Setup) -> CsmRunner:
        return _load(settings, context, notes, guards=guards, reference_noise=reference_noise)

    return load_in_range(load, settings)


def _load(
    settings: Settings, context: BuildContext, notes: Setup, *, guards: Guards | None, reference_noise: bool
) -> CsmRunner:
    """Load the runner. notes: additional values for /health. Raises HalfPrecisionOverflow, EngineUnavailable."""
    folders, source = fetch(settings, context, locate_csm)
    folder, codec = folders.model.weights, folders.codec
    assert folder is not None  # noqa: S101 - `fetch` has downloaded the folder
    names = settings.devices
    if settings.csm_device_map and not names and settings.device == "auto":
        names = ("auto",)  # "auto" = all GPUs
    devices = choose_devices(names) or (choose_device(settings.device),)
    split = settings.csm_device_map if len(devices) > 1 else None
    if split is None:
        devices = devices[:1]
    if settings.csm_device_map and split is None:
        log.info("CSM_DEVICE_MAP=%s has no effect: there is only one device, %s", settings.csm_device_map, devices[0])
    device = devices[0]
    dtype = choose_dtype(settings.dtype, device)
    fp8 = settings.quantize == "fp8"
    if fp8:
        check_fp8(device, dtype, kernels=settings.kernels != "torch" and settings.cuda_graphs and not settings.compile)
    config = read_config(folder)
    shape = read_mimi_config_file(codec) if codec else config.codec or MimiConfig()

    slots = adapter_slots(settings, device)
    shape_only = CsmModel(config, device=torch.device("meta"), dtype=dtype)
    reserved = reserved_bytes(places_of(shape_only), dtype, slots, settings.adapter_rank)

    def sizes(rows: int) -> Sizes:
        measured = measure(config, shape, dtype=dtype, max_rows=rows, quantize=settings.quantize)
        return replace(measured, fixed_bytes=measured.fixed_bytes + reserved)

    rows, fraction = settings.rows(ROWS_CPU), settings.gpu_memory_fraction
    auto_rows = device.type == "cuda" and settings.max_rows == "auto"
    planned: Setup = ()
    prefix_bytes = PREFIX_BYTES
    if auto_rows:
        needed = bytes_by_rows(config, shape, dtype, settings.quantize)
        memory = _plan_on(
            devices, split, fraction, lambda rows: reserved + (int(needed(rows) * MARGIN) if split else needed(rows))
        )
        rows, planned = memory.rows, memory.facts
        prefix_bytes -= memory.saved_bytes
    stages: tuple[Stage, ...] = ()
    while split is not None:
        try:
            stages = split_layers(split, sizes(rows), devices, fraction)
            break
        except EngineUnavailable:  # the devices have enough memory in total, but no distribution of the layers fits
            if not auto_rows or rows == 1:
                raise
            rows //= 2
            planned = replace(memory, rows=rows).facts
    with loading_on(devices, settings):
        capture, kernels, captured = graph_capture(
            settings,
            device,
            dtype,
            impossible=REFERENCE_NOISE if reference_noise else "",
            other_devices=[stage.device for stage in stages[1:]],
            config=config,
            fp8=fp8,
            depth=True,
        )
        return load_runner(
            folder,
            codec,
            device=device,
            dtype=dtype,
            max_rows=rows,
            quantize=settings.quantize,
            guards=guards,
            on_guard=context.on_guard,
            reference_noise=reference_noise,
            context_lines=settings.csm_context_lines,
            prefix_bytes=prefix_bytes,
            stages=stages,
            cache=LoadCache(settings.folder("models") / "cache", source),
            capture=capture,
            kernels=kernels,
            notes=(*planned, *notes, *captured),
            needs_range=settings.dtype == "auto",
            tokenizer_dir=folders.tokenizer,
            adapter_dir=folders.model.adapter,
            sampling=sampling_of(folders.model),
            adapter_slots=slots,
            adapter_rank=settings.adapter_rank,
            adapter_bases=bases_of(folders.model, "csm"),
            kernels_folder=settings.folder("models") / "cache" / "kernels",
            native=settings.kernels != "torch",
        )


def bytes_by_rows(
    config: CsmConfig, codec: MimiConfig, dtype: torch.dtype, quantize: Quantize = "none"
) -> Callable[[int], int]:
    """Return a function: number of rows -> bytes of the model, the codec, the prefix cache and these rows."""
    return lambda rows: measure(config, codec, dtype=dtype, max_rows=rows, quantize=quantize).total_bytes + PREFIX_BYTES


def published_bytes(dtype: torch.dtype) -> Callable[[int], int]:
    """Return `bytes_by_rows` of the published model."""
    return bytes_by_rows(PUBLISHED, MimiConfig(), dtype)


def measure(
    config: CsmConfig, codec: MimiConfig, *, dtype: torch.dtype, max_rows: int, quantize: Quantize = "none"
) -> Sizes:
    """Return how many bytes the model, the codec and the rows need.

    Builds the modules on the meta device, which needs no memory for their weights, and counts their bytes.
    """
    meta = torch.device("meta")
    model = CsmModel(config, device=meta, dtype=dtype)
    decoder = MimiDecoder(codec, rows=max_rows, codebooks=config.codebooks, device=meta)
    with meta:
        encoder = MimiEncoder(codec)
    # Keys and values have the dtype in which the model computes.
    cache = KVCache(
        config.backbone,
        rows=max_rows,
        positions=config.max_positions,
        device=meta,
        dtype=dtype if quantize in {"none", "fp8"} else torch.float32,
    )
    cached = (cache.k.nbytes + cache.v.nbytes) // config.backbone.layers  # keys and values of one layer
    layers = tuple(_bytes_of(block, quantize) + cached for block in model.backbone.blocks)
    whole = _bytes_of(model, quantize) + _bytes_of(decoder) + decoder.state_bytes + _bytes_of(encoder)
    if quantize == "fp8":
        # the depth decoder keeps its weights also in `dtype`, for steps with many rows
        linears = [part for part in model.depth.modules() if isinstance(part, Linear)]
        whole += sum(quantized_bytes(linear.weight, quantize) for linear in linears)
    return Sizes(whole - sum(layers) + cached * len(layers), layers)


def _bytes_of(module: nn.Module, quantize: Quantize = "none") -> int:
    total = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if quantize not in {"none", "fp8"}:
        weights = [part.weight for part in module.modules() if isinstance(part, Linear)]
        total -= sum(weight.nbytes - quantized_bytes(weight, quantize) for weight in weights)
    return total


def _plan_on(
    devices: Sequence[torch.device], split: DeviceMap | None, fraction: float, bytes_of: Callable[[int], int]
) -> MemoryPlan:
    """Return the memory plan for these devices, which says how many rows fit.

    split "auto": use only the first device if the model fits there; otherwise use all devices.
    """
    if split == "auto":
        try:
            return plan_rows(devices[:1], fraction, bytes_of, most=ROWS_GPU, spare_bytes=SPARE_BYTES)
        except EngineUnavailable:
            pass
    return plan_rows(devices, fraction, bytes_of, most=ROWS_GPU, spare_bytes=SPARE_BYTES)


def split_layers(
    device_map: DeviceMap, sizes: Sizes, devices: Sequence[torch.device], fraction: float = 1.0
) -> tuple[Stage, ...]:
    """Distribute the backbone's layers over the devices. Returns () if all layers are on the first device.

    fraction: the share of the free memory that the model may use. Raises EngineUnavailable if the model does not fit.
    """
    memory = [DeviceMemory(str(device), usable_bytes(device, fraction)) for device in devices]
    counts = plan(device_map, sizes, memory)
    for device, count, load in zip(devices, counts, bytes_per_device(sizes, counts), strict=True):
        log.info("CSM_DEVICE_MAP=%s: %s gets %d layers, %.2f GB in total", device_map, device, count, load / 1e9)
    used = [Stage(devices[0], counts[0])]
    used += [Stage(device, count) for device, count in zip(devices[1:], counts[1:], strict=True) if count]
    return tuple(used) if len(used) > 1 else ()


def sampling_of(model: Located) -> Sampling:
    """Return the sampling parameters that a model sets. A parameter is None if its value is that of CSM-1B."""
    return own_sampling(model, hub.files_for("csm"), _ENGINE_SAMPLING)


def engine_of(runner: CsmRunner, settings: Settings, sampling: Sampling = NO_SAMPLING) -> BatchedEngine:
    """Return an engine that runs `runner`, with CSM's capabilities and limits.

    sampling: the sampling parameters that the model sets. The engine uses each of them if a request does not set it.
    """
    model, speakers = runner.model, settings.csm_speakers
    info = EngineInfo(
        id="csm",
        name="CSM-1B",
        rate_hz=runner.rate_hz,
        frame_s=1 / runner.codec.frame_hz,
        capabilities=Capabilities(temperature=True, top_k=True, top_p=True, context=True, parallel=True),
        text=replace(TEXT, max_chars=runner.line_chars),
        prompts=PromptLimits(
            codec="mimi",
            codec_fingerprint=runner.codec_fingerprint,
            max_prompt_s=PROMPT_SHARE * runner.config.max_positions / runner.codec.frame_hz,
            max_context_s=CONTEXT_SHARE * runner.config.max_positions / runner.codec.frame_hz,
            examples=str(runner.examples or ""),
        ),
        languages=("en",),
        fingerprint=runner.fingerprint + ("" if speakers == KNOWN_SPEAKERS else f" speakers {speakers}"),
        speakers=speakers,
        defaults=with_defaults(sampling, _ENGINE_SAMPLING),
        device=",".join(map(str, model.devices)),
        dtype=dtype_name(settings.quantize, model.dtype),
        setup=runner.setup,
    )
    return batched_engine(info, runner, settings, runner.encode, model.device)


def build(settings: Settings, context: BuildContext) -> BatchedEngine:
    """Build the CSM-1B engine. Raises EngineUnavailable."""
    runner = load_from(settings, context, guards=PRODUCTION)
    return engine_of(runner, settings, sampling_of(locate_csm(settings).model))


def build_bare(settings: Settings, context: BuildContext, reference_noise: bool) -> BareEngine:
    """Build CSM-1B without text rules and output guards. Raises EngineUnavailable."""
    runner = load_from(settings, context, guards=None, reference_noise=reference_noise)
    engine = engine_of(runner, settings, sampling_of(locate_csm(settings).model))
    return BareEngine(engine, runner.config.codebooks, BARE_FRAMES)
