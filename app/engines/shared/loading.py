"""Functions that load a model and build its engine, for CSM and Dia."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import nn

from app.engines.adapters import expected_count
from app.engines.batched import BatchedEngine
from app.errors import WeightsUnavailable
from app.nn.kernels.choice import candidates
from app.nn.linear import PackedLinear, replace_linears
from app.runtime.cuda_graphs import GraphCapture, SplitCapture, use_frame_stream
from app.runtime.device import cpu_threads, device_notes, set_math_backends, using
from app.runtime.faults import is_device_lost
from app.runtime.heap import separate_large_blocks
from app.runtime.kernel_times import kernel_times
from app.runtime.pages import use_huge_pages
from app.weights import download, hub
from app.weights.hub_token import find_token
from app.weights.tensors import digest_of

if TYPE_CHECKING:
    from pathlib import Path

    from app.engines.registry import BuildContext
    from app.engines.shared.quantization import Quantize
    from app.nn.kernels.sets import Kernels
    from app.runtime.cuda_graphs import Setup
    from app.runtime.runner import Runner
    from app.settings import Settings
    from app.types import Codes, EngineInfo, Reference
    from app.weights.adapter import Adapter
    from app.weights.load_cache import LoadCache
    from app.weights.located import Located
    from app.weights.tensors import Checkpoint

log = logging.getLogger(__name__)

BuiltRunner = TypeVar("BuiltRunner")


class Folders(Protocol):
    """Where the files of a model are. `files`: the needed files; after a download, more files may be needed."""

    @property
    def files(self) -> tuple[hub.ModelFiles, ...]: ...

    @property
    def model(self) -> Located: ...


Found = TypeVar("Found", bound=Folders)


def fetch(settings: Settings, context: BuildContext, locate: Callable[[Settings], Found]) -> tuple[Found, str]:
    """Download the files that are not on disk. Return the folders of the files, and the name of the model's source.

    The name of the source is the hub id, or the path of a local folder. Raises EngineUnavailable.
    """
    fetched: set[hub.ModelFiles] = set()
    found = locate(settings)
    while missing := [files for files in found.files if files not in fetched]:
        for files in missing:
            download.fetch(
                files,
                settings.folder("models"),
                token=find_token(settings),
                on_progress=context.on_progress,
                cancelled=context.cancelled,
            )
            fetched.add(files)
        found = locate(settings)
    source = hub.Source.parse(found.files[0])
    return found, found.files[0].source if source.folder is None else str(source.folder.resolve())


def load_weights(
    model: nn.Module,
    load: Callable[[Checkpoint], None],
    weights: Checkpoint,
    *,
    folder: Path,
    config: object,
    dtype: torch.dtype,
    cache: LoadCache | None,
    adapter: Adapter | None = None,
) -> None:
    """Fill the parameters of `model` from the load cache, or with `load(weights)` if the cache has no entry.

    After `load`, stores the parameters in the cache. adapter: the adapter that is already merged into `weights`; its
    digest is a part of the entry's key.

    cache: used only for a bfloat16 model with float32 weights. For other models, a read from the cache is not faster
    than a read of the weights.
    """
    entry = None
    if cache is not None and dtype == torch.bfloat16 and weights.width() >= 3:
        entry = cache.entry(folder, config if adapter is None else (config, adapter.digest), dtype)
    if entry is None or not entry.fill(model):
        load(weights)
        if entry is not None:
            entry.keep(model)


def pack_bfloat16(model: nn.Module) -> None:
    """Pack the bfloat16 weights of a model on a CPU, if the CPU has bfloat16 instructions."""
    replace_linears(model, lambda linear: PackedLinear(linear) if PackedLinear.supports(linear) else None)


def place_weights(device: torch.device) -> None:
    """If `device` is the CPU, move the memory of this process, which contains the weights, to huge pages."""
    if device.type == "cpu":
        use_huge_pages()


def check_codec_size(found: tuple[int, int], needed: tuple[int, int], *, remedy: str = "") -> None:
    """Raise WeightsUnavailable if the codec has too few codebooks, or too few codes in each codebook.

    found, needed: (codebooks, codes in each codebook) of the codec and of the model.
    """
    if found[0] < needed[0] or found[1] < needed[1]:
        raise WeightsUnavailable(
            f"The codec has {found[0]} codebooks of {found[1]} codes; the model needs {needed[0]} of {needed[1]}.",
            remedy=remedy,
        )


def codec_fingerprint(encoder: nn.Module, config: object, codebooks: int) -> str:
    """Return a fingerprint of the codes that this encoder computes.

    The server stores the fingerprint together with the codes of a recording. If the fingerprint changes, the server
    encodes the recording again.
    """
    return f"{digest_of((*encoder.parameters(), *encoder.buffers()), str(config))} {codebooks}"


def bytes_of(*modules: nn.Module) -> int:
    """Return the size of all parameters and buffers of these modules in bytes."""
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))


REFERENCE_NOISE = "The noise of the reference implementations is drawn on the host."


def graph_capture(
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    *,
    impossible: str = "",
    other_devices: Sequence[torch.device] = (),
    config: object = None,
    fp8: bool = False,
    depth: bool = False,
) -> tuple[GraphCapture | None, Sequence[Kernels], Setup]:
    """Return the graph capture, the candidate kernels, and the values for /health about both.

    If the engine uses no CUDA graphs, the capture is None and there are no kernels. impossible: the reason why the
    engine can't use CUDA graphs; "" = the engine can use CUDA graphs. other_devices: all devices of the model except
    `device`. config: the configuration of the model, on which the times of the kernels depend. fp8: whether the model
    has weights in fp8. depth: whether the model has a depth decoder.
    """
    if other := [each for each in other_devices if each.type != "cuda"]:
        impossible = f"A part of the model is on {other[0]}, and CUDA graphs need CUDA devices."
    if device.type != "cuda":
        impossible = f"CUDA graphs need a CUDA device, but the model runs on {device.type}."
    elif not settings.cuda_graphs:
        impossible = "TTS_CUDA_GRAPHS=0 turns CUDA graphs off."
    notes = device_notes(device)
    if impossible:
        reason = impossible if device.type == "cuda" else candidates("auto", device, dtype).reason
        return None, (), (*notes, ("recorded_reason", impossible), ("kernels", "torch"), ("kernels_reason", reason))
    found = candidates(
        settings.kernels, device, dtype, compiled=settings.compile, other_devices=other_devices, fp8=fp8, depth=depth
    )
    if found.reason:
        notes = (*notes, ("kernels_reason", found.reason))
    capture = SplitCapture((device, *other_devices)) if other_devices else GraphCapture(device)
    folder = settings.folder("models") / "cache" / "kernels"
    model = f"{config} {dtype} {'fp8 ' if fp8 else ''}TF32: {settings.tf32}"
    capture.kernel_times = kernel_times(folder, (device, *other_devices), model)
    return capture, found.kernels, notes


def with_or_without_graphs(
    build: Callable[[GraphCapture | None, Setup], BuiltRunner],
    capture: GraphCapture | None,
    notes: Setup,
    *,
    devices: int = 1,
) -> BuiltRunner:
    """Return the runner `build(capture, notes)`. notes: values for /health.

    CUDA graphs on several devices and on AMD GPUs were never tested. So if the capture fails on several devices or on
    an AMD GPU, returns a runner without CUDA graphs. In all other cases, raises the error of the capture.
    """
    if capture is None or (devices == 1 and torch.version.hip is None):
        return build(capture, notes)
    try:
        return build(capture, notes)
    except RuntimeError as error:
        if is_device_lost(error):
            raise
        where = f"on {devices} devices" if devices > 1 else "on an AMD GPU"
        reason = f"The CUDA graphs of a model {where} could not be captured: {str(error).partition(chr(10))[0]}"
        log.warning("%s The server runs steps without CUDA graphs, which takes longer.", reason)
    return build(None, (*notes, ("recorded_reason", reason)))


@contextlib.contextmanager
def loading_on(devices: Sequence[torch.device], settings: Settings) -> Iterator[None]:
    """Set up this process for a model on these devices. Inside the context, the first device is the current device."""
    set_math_backends(tf32=settings.tf32)
    if any(device.type == "cpu" for device in devices):
        torch.set_num_threads(cpu_threads())
    with using(devices[0]), separate_large_blocks():
        yield


def dtype_name(quantize: Quantize, dtype: torch.dtype) -> str:
    """Return the name of the weights' dtype for GET /health."""
    return quantize if quantize != "none" else str(dtype).removeprefix("torch.")


def adapter_slots(settings: Settings, device: torch.device) -> int:
    """Return the number of adapters for which CUDA graphs reserve memory; 0 without CUDA graphs."""
    if not settings.cuda_graphs or device.type != "cuda":
        return 0
    return settings.adapter_slots or expected_count(settings)


def batched_engine(
    info: EngineInfo, runner: Runner, settings: Settings, encode: Callable[[Reference], Codes], device: torch.device
) -> BatchedEngine:
    """Return an engine that runs `runner`, with the queue limits of the settings. device: the runner's first device."""
    return BatchedEngine(
        info,
        runner,
        max_queue=settings.max_queue,
        audio_queue_s=settings.audio_queue_s,
        encode=encode,
        initialize_thread=partial(use_frame_stream, device),
    )
