"""Creates runners of both models with random weights in memory, without checkpoint files."""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from app.engines.csm import loading as csm_loading
from app.engines.csm.adapters import places_of
from app.engines.csm.config import parse_config as parse_csm_config
from app.engines.csm.model import CsmModel
from app.engines.csm.prompt import TextEncoder
from app.engines.csm.runner import CsmRunner
from app.engines.dia import loading as dia_loading
from app.engines.dia.adapters import places_of as dia_places_of
from app.engines.dia.config import parse_config as parse_dia_config
from app.engines.dia.model import DiaModel
from app.engines.dia.runner import DiaRunner
from app.engines.shared.adapters import PreparedAdapter
from app.engines.shared.quantization import Quantize
from app.nn.dac.config import parse_dac_config
from app.nn.dac.model import DacDecoder, DacEncoder
from app.nn.kernels.sets import TORCH, Kernels
from app.nn.low_rank import Part
from app.nn.mimi.config import read_mimi_config
from app.nn.mimi.model import MimiDecoder, MimiEncoder
from app.nn.transformer import StackConfig
from app.runtime.cuda_graphs import GraphCapture
from tests.support.random_csm import csm_config, write_tokenizer
from tests.support.random_dia import SHAPES, dac_config, dia_config


def device_name(device: torch.device) -> str:
    """Return the product name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) << 10


def fill(module: torch.nn.Module) -> None:
    """Fill all parameters with random numbers. A matrix is divided by the square root of the number of its inputs."""
    block = torch.empty(1 << 22).normal_(generator=torch.Generator().manual_seed(0))
    on_device: dict[tuple[torch.device, torch.dtype, float], torch.Tensor] = {}
    with torch.no_grad():
        for tensor in module.parameters():
            flat = tensor.data.view(-1)
            scale = 1 / math.sqrt(max(1, tensor[0].numel())) if tensor.ndim > 1 else 1.0
            key = (tensor.device, tensor.dtype, scale)
            if key not in on_device:
                on_device[key] = (block * scale).to(tensor.device, tensor.dtype)
            scaled = on_device[key]
            for start in range(0, len(flat), len(scaled)):
                part = flat[start : start + len(scaled)]
                part.copy_(scaled[: len(part)])


def csm_runner(
    size: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int,
    quantize: Quantize = "none",
    native: bool = True,
    record: bool = False,
    kernels: Sequence[Kernels] = (TORCH,),
) -> tuple[CsmRunner, GraphCapture | None]:
    """Create a runner of CSM that never generates EOS.

    The second result is the graph capture; None without `record`. native: use the native kernels for quantized weights.
    """
    raw = csm_config(size)
    config = parse_csm_config(raw)
    model = CsmModel(config, device=device, dtype=dtype)
    fill(model)
    codec = read_mimi_config(raw["codec_config"])
    decoder = MimiDecoder(codec, rows=rows, codebooks=config.codebooks, device=device)
    with device:
        encoder = MimiEncoder(codec)
    fill(decoder)
    fill(encoder)
    csm_loading.adapt(model, quantize, native=native)
    capture = GraphCapture(device) if record else None
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), raw)
        text = TextEncoder(Path(folder), config)
    runner = CsmRunner(
        model, text, encoder, decoder, max_rows=rows, quantized=quantize != "none", capture=capture, kernels=kernels
    )
    return runner, capture


def add_random_adapters(runner: CsmRunner | DiaRunner, count: int) -> list[int]:
    """Add random LoRA adapters of rank 8 to 16 on all layers of both transformers of the model. Returns their slots."""
    model, slots = runner.model, []
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(*shape, generator=random)).to(model.device)

    for number in range(count):
        rank = 8 + number % 9
        parts = {}
        places = places_of(model) if isinstance(model, CsmModel) else dia_places_of(model)
        for name, place in places.items():
            if ".blocks." in name:
                inputs = inputs_of(getattr(model.config, name.partition(".")[0]), name)
                parts[name] = [
                    Part(i, numbers(rank, inputs), numbers(rank, outputs)) for i, outputs in enumerate(place.outputs)
                ]
        runner.adapters.add(PreparedAdapter(str(number), rank, "", parts))
        slots.append(runner.adapters.acquire(str(number)))
    return slots


def inputs_of(config: StackConfig, name: str) -> int:
    """Return the number of inputs of a linear layer in a block, such as `backbone.blocks.0.qkv`."""
    widths = {"out": config.heads * config.head_dim, "down": config.ffn}
    if (cross := config.cross) is not None:
        widths |= {"cross_kv": cross.width, "cross_out": cross.heads * cross.head_dim}
    return widths.get(name.rpartition(".")[2], config.width)


def dia_runner(
    size: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int,
    quantize: Quantize = "none",
    record: bool = False,
    kernels: Sequence[Kernels] = (TORCH,),
    burst: int = 8,
) -> tuple[DiaRunner, GraphCapture | None]:
    """Create a runner of Dia that never generates EOS.

    The second result is the graph capture; None without `record`.
    """
    config = parse_dia_config(dia_config(SHAPES[size]))
    model = DiaModel(config, device=device, dtype=dtype)
    fill(model)
    model.get_parameter("head.weight")[config.eos] = 0  # EOS is never the best code, so speech does not end
    model.compute_unconditional()
    codec = parse_dac_config(dac_config(size))
    decoder = DacDecoder(codec, rows=rows, codebooks=config.channels, device=device)
    with device:
        encoder = DacEncoder(codec)
    fill(decoder)
    fill(encoder)
    dia_loading.adapt(model, quantize)
    capture = GraphCapture(device) if record else None
    runner = DiaRunner(
        model,
        encoder,
        decoder,
        max_rows=rows,
        exact=True,
        quantized=quantize != "none",
        capture=capture,
        kernels=kernels,
        burst=burst,
    )
    return runner, capture
