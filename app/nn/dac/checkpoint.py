"""Converts both published layouts of a DAC checkpoint to the same tensor names, and checks names and shapes.

The model uses the names of descript/dac_44khz (transformers layout). In the layout of descript's release, the names of
modules are numbers. The weight w of a convolution may be stored as a direction v and a length g (weight norm, arXiv
1602.07868): w = g * v / |v|, where the norm is over all dimensions except the first. This module converts such pairs to
w in both layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from app.errors import WeightsUnavailable
from app.nn.dac.config import DILATIONS, RESIDUAL_KERNEL, DacConfig, read_release
from app.weights.tensors import Checkpoint, Derived, Mapped, Shape, Stored, open_checkpoints

UNITS = tuple(f"res_unit{i}" for i in range(1, len(DILATIONS) + 1))
_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def expected_shapes(config: DacConfig) -> dict[str, Shape]:
    """Return a mapping: name of each tensor of the codec in the transformers layout -> shape of the tensor."""
    c = config
    shapes: dict[str, Shape] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def units(name: str, width: int) -> None:
        for unit in UNITS:
            shapes[f"{name}.{unit}.snake1.alpha"] = (1, width, 1)
            conv(f"{name}.{unit}.conv1", width, width, RESIDUAL_KERNEL)
            shapes[f"{name}.{unit}.snake2.alpha"] = (1, width, 1)
            conv(f"{name}.{unit}.conv2", width, width, 1)

    widths = c.encoder_widths
    conv("encoder.conv1", 1, widths[0], 7)
    for i, ratio in enumerate(c.down_ratios):
        units(f"encoder.block.{i}", widths[i])
        shapes[f"encoder.block.{i}.snake1.alpha"] = (1, widths[i], 1)
        conv(f"encoder.block.{i}.conv1", widths[i], widths[i + 1], 2 * ratio)
    shapes["encoder.snake1.alpha"] = (1, widths[-1], 1)
    conv("encoder.conv2", widths[-1], c.latent_width, 3)

    widths = c.decoder_widths
    conv("decoder.conv1", c.latent_width, widths[0], 7)
    for i, ratio in enumerate(c.up_ratios):
        shapes[f"decoder.block.{i}.snake1.alpha"] = (1, widths[i], 1)
        shapes[f"decoder.block.{i}.conv_t1.weight"] = (widths[i], widths[i + 1], 2 * ratio)
        shapes[f"decoder.block.{i}.conv_t1.bias"] = (widths[i + 1],)
        units(f"decoder.block.{i}", widths[i + 1])
    shapes["decoder.snake1.alpha"] = (1, widths[-1], 1)
    conv("decoder.conv2", widths[-1], 1, 7)

    for k in range(c.codebooks):
        name = f"quantizer.quantizers.{k}"
        conv(f"{name}.in_proj", c.latent_width, c.codebook_dim, 1)
        conv(f"{name}.out_proj", c.codebook_dim, c.latent_width, 1)
        shapes[f"{name}.codebook.weight"] = (c.codebook_size, c.codebook_dim)
    return shapes


def release_modules(config: DacConfig) -> dict[str, str]:
    """Return a mapping: name of a module in descript's release -> name of this module in the transformers layout."""
    names: dict[str, str] = {}

    def units(theirs: str, ours: str, first: int) -> None:
        for i, unit in enumerate(UNITS):
            for j, part in enumerate(("snake1", "conv1", "snake2", "conv2")):
                names[f"{theirs}.block.{first + i}.block.{j}"] = f"{ours}.{unit}.{part}"

    names["encoder.block.0"] = "encoder.conv1"
    after = len(UNITS)
    for i in range(len(config.down_ratios)):
        theirs, ours = f"encoder.block.{i + 1}", f"encoder.block.{i}"
        units(theirs, ours, 0)
        names |= {f"{theirs}.block.{after}": f"{ours}.snake1", f"{theirs}.block.{after + 1}": f"{ours}.conv1"}
    end = len(config.down_ratios) + 1
    names |= {f"encoder.block.{end}": "encoder.snake1", f"encoder.block.{end + 1}": "encoder.conv2"}

    names["decoder.model.0"] = "decoder.conv1"
    for i in range(len(config.up_ratios)):
        theirs, ours = f"decoder.model.{i + 1}", f"decoder.block.{i}"
        names |= {f"{theirs}.block.0": f"{ours}.snake1", f"{theirs}.block.1": f"{ours}.conv_t1"}
        units(theirs, ours, 2)
    end = len(config.up_ratios) + 1
    names |= {f"decoder.model.{end}": "decoder.snake1", f"decoder.model.{end + 1}": "decoder.conv2"}

    for k in range(config.codebooks):
        for part in ("in_proj", "out_proj", "codebook"):
            names[f"quantizer.quantizers.{k}.{part}"] = f"quantizer.quantizers.{k}.{part}"
    return names


def open_codec(folder: Path) -> list[Checkpoint]:
    """Open the checkpoints in `folder`. If there are no .safetensors files, open the .pth files of descript's release.

    Raises WeightsUnavailable if the folder contains neither .safetensors nor .pth files, or if a file is broken.
    """
    released = sorted(folder.glob("*.pth"))
    if released and not any(folder.glob("*.safetensors")):
        return [
            Checkpoint({name: Mapped(tensor) for name, tensor in read_release(path)[0].items()}, str(path))
            for path in released
        ]
    return open_checkpoints(folder)


def codec(candidates: list[Checkpoint], config: DacConfig) -> Checkpoint:
    """Check the tensors of a codec, and return them with the names of the transformers layout.

    candidates: checkpoints; the first checkpoint with a DAC codec is used. Raises WeightsUnavailable if there is none,
    or if its tensors do not fit `config`.
    """
    for candidate in candidates:
        folded = _without_norms(candidate)
        if "decoder.conv1.weight" in folded:
            found = folded
        elif "decoder.model.0.weight" in folded:
            found = _from_release(folded, config)
        else:
            continue
        found.check(expected_shapes(config))
        return found
    raise WeightsUnavailable(
        f"{candidates[0].origin} contains no DAC codec: it has neither decoder.conv1.weight (transformers) nor "
        "decoder.model.0.weight_v (descript).",
        remedy="Use descript/dac_44khz, or a folder with its files, as the codec.",
    )


def load_codec(folder: Path, config: DacConfig) -> Checkpoint:
    """Open and check the codec in `folder`. Raises WeightsUnavailable if the codec is missing or broken."""
    return codec(open_codec(folder), config)


def _without_norms(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint in which the weight w replaces each pair of weight norm tensors (g and v)."""
    tensors: dict[str, Stored] = dict(checkpoint.tensors)
    for length_name, direction_name in _NORMS:
        for name in [name for name in tensors if name.endswith(f".{direction_name}")]:
            module = name.removesuffix(direction_name)
            length = tensors.pop(module + length_name, None)
            if length is None:
                continue  # the pair is incomplete, so `check` reports this tensor as unexpected
            direction = tensors.pop(name)
            tensors[f"{module}weight"] = Derived(direction.shape, _folded(length, direction))
    return Checkpoint(tensors, checkpoint.origin)


def _folded(length: Stored, direction: Stored) -> Callable[[], Tensor]:
    """Return a function that computes the weight w from the length g and the direction v (see the module docstring)."""

    def make() -> Tensor:
        v: Tensor = direction.rows(0, direction.shape[0]).double()
        g: Tensor = length.rows(0, length.shape[0]).double()
        norm: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1).view(-1, *[1] * (v.ndim - 1))
        return (v * (g.view(norm.shape) / norm)).to(torch.float32)

    return make


def _from_release(checkpoint: Checkpoint, config: DacConfig) -> Checkpoint:
    modules = release_modules(config)
    renamed: dict[str, Stored] = {}
    for name, stored in checkpoint.tensors.items():
        module, _, last = name.rpartition(".")
        renamed[f"{modules.get(module, module)}.{last}"] = stored
    return Checkpoint(renamed, checkpoint.origin)
