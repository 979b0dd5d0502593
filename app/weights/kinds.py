"""Recognises model files that this server can't read, and returns errors that name a remedy.

This module reads only file names and config.json, never the content of other files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.errors import WeightsUnavailable

_FORMATS = {  # the end of a file's name -> what the file contains
    ".gguf": "GGUF weights, the format of llama.cpp",
    ".ggml": "GGML weights, the format of llama.cpp",
    ".onnx": "ONNX weights",
    ".npz": "MLX weights",
    ".mlmodel": "Core ML weights",
    ".mlpackage": "Core ML weights",
    ".tflite": "TensorFlow Lite weights",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".nemo": "NeMo weights",
    ".engine": "a TensorRT engine",
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Files that a Trainer of transformers saves to resume a training. These files contain no model.
_TRAINING = re.compile(r"(optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth|bin)|training_args\.bin")
_CHECKPOINT = re.compile(r"(?P<folder>(?:[^/]+/)*[^/]+)/(adapter_model|model)(-\d{5}-of-\d{5})?\.safetensors")
_METHODS = {"bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "hqq": "HQQ", "mlx": "MLX"}

CONVERT = (
    "If you trust this file, load it with PyTorch and save the model with "
    "save_pretrained(..., safe_serialization=True)."
)


def may_hold_a_model(name: str) -> bool:
    """Whether a file with this name may be a PyTorch file with a model.

    For example, ckpt.pt may contain a model, but optimizer.pt contains the state of a training.

    The server opens such a file with `weights_only`, which builds only tensors and runs no code.
    """
    return name.endswith((".pt", ".pth")) and not _TRAINING.fullmatch(name)


def unusable(
    where: str, names: Iterable[str], config: Mapping[str, Any] | None = None, *, setting: str = "", example: str = ""
) -> WeightsUnavailable | None:
    """Return an error that says why the server can't read a model's weights; None = no reason was found.

    where: the repository or folder, used in the message. names: the paths of the files in `where`. config: the content
    of config.json. setting: the environment variable that names the model. example: a repository that the server can
    read.
    """
    files = [name for name in sorted(names) if not _TRAINING.fullmatch(name.rsplit("/", 1)[-1])]
    top = [name for name in files if "/" not in name]
    instead = f"Set {setting or 'the model'} to the same model with .safetensors weights"
    instead += f", for example {example}." if example else "."
    if config and (method := quantisation(config)):
        return WeightsUnavailable(
            f"{where} contains weights that are quantised with {method}, which this server can't read.",
            remedy=f"{instead[:-1]}; on a CPU, TTS_QUANTIZE=int8 makes the weights smaller.",
        )
    if "adapter_config.json" in top and (pickle := next((x for x in top if x.endswith(_PICKLES)), "")):
        return WeightsUnavailable(
            f"{where} contains a LoRA adapter as a pickle ({pickle}). Opening a pickle may run code.",
            remedy=CONVERT,
        )
    for end, what in _FORMATS.items():
        if any(name.endswith(end) for name in files):
            return WeightsUnavailable(f"{where} contains {what}, which this server can't read.", remedy=instead)
    if folders := sorted({match["folder"] for name in files if (match := _CHECKPOINT.fullmatch(name))}, key=_natural):
        return WeightsUnavailable(
            f"{where} contains no weights, but its folders do: {', '.join(folders[:8])}.",
            remedy=f"Name one of these folders, for example {setting and setting + '='}{where}/{folders[-1]}.",
        )
    if pickles := [name for name in top if name.endswith(_PICKLES)]:
        return WeightsUnavailable(
            f"{where} contains its weights only as a pickle ({', '.join(pickles[:3])}). Opening a pickle may run code.",
            remedy=CONVERT,
        )
    return None


def unusable_files(folder: Path, *, setting: str = "", example: str = "") -> WeightsUnavailable | None:
    """Return an error that says why the server can't read the weights in a folder; None = no reason was found."""
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file()]
    return unusable(str(folder), names, read_config(folder), setting=setting, example=example)


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the content of `folder`/config.json; None = the file can't be read."""
    try:
        raw = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def quantisation(config: Mapping[str, Any]) -> str:
    """Return the name of the method with which the weights are quantised; "" = the weights are not quantised."""
    described = config.get("quantization_config") or config.get("compression_config")
    if isinstance(described, Mapping):
        method = str(described.get("quant_method") or "an unknown method").lower()
        bits = next((n for n in (4, 8) if described.get(f"load_in_{n}bit") or described.get(f"_load_in_{n}bit")), None)
        bits = bits or described.get("bits")
        return _METHODS.get(method, method) + (f" ({bits} bits)" if bits else "")
    described = config.get("quantization")  # the key of MLX
    if isinstance(described, Mapping) and "bits" in described:
        return f"MLX ({described['bits']} bits)"
    return ""


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts checkpoint-1000 after checkpoint-500."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
