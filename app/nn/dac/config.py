"""Reads the config of a DAC codec. Missing keys get the values of descript/dac_44khz."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import WeightsUnavailable

RESIDUAL_KERNEL = 7
DILATIONS = (1, 3, 9)  # dilations of the three residual units of a block; config files do not contain them


@dataclass(frozen=True, slots=True)
class DacConfig:
    """The dimensions of a DAC codec.

    The codec has a convolutional encoder, a convolutional decoder, and a residual quantiser with short code vectors.

    Every convolution is symmetric, so a sample depends on earlier and later frames.
    """

    rate_hz: int = 44_100
    encoder_width: int = 64  # number of channels after the encoder's first convolution
    decoder_width: int = 1536  # number of channels after the decoder's first convolution
    latent_width: int = 1024
    down_ratios: tuple[int, ...] = (2, 4, 8, 8)
    up_ratios: tuple[int, ...] = (8, 8, 4, 2)
    codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8

    @property
    def frame_samples(self) -> int:
        """The number of samples in one frame of codes."""
        return math.prod(self.up_ratios)

    @property
    def frame_hz(self) -> float:
        return self.rate_hz / self.frame_samples

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """The numbers of channels: before the decoder's first block, and after each block of the decoder."""
        return tuple(self.decoder_width >> i for i in range(len(self.up_ratios) + 1))

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """The numbers of channels: before the encoder's first block, and after each block of the encoder."""
        return tuple(self.encoder_width << i for i in range(len(self.down_ratios) + 1))


def read_dac_config(folder: Path) -> DacConfig:
    """Read the config of the codec in `folder`. Raises WeightsUnavailable if the config can't be read.

    Reads config.json (transformers). Without config.json, reads the metadata in a .pth file of descript's release. If
    the folder contains neither of them, returns the values of descript/dac_44khz.
    """
    path = folder / "config.json"
    try:
        if path.is_file():
            return parse_dac_config(json.loads(path.read_text("utf-8")))
        for path in sorted(folder.glob("*.pth")):
            _, metadata = read_release(path)
            if metadata:
                return parse_dac_kwargs(metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsUnavailable(f"{path} can't be read as a DAC config: {error!r}.") from error
    return DacConfig()


def read_release(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Open a .pth file of descript's release. Returns the tensors and the arguments of descript's DAC class.

    If the file contains only a state dict without metadata, the arguments are empty. The tensors are memory-mapped, and
    no code in the file runs. Raises WeightsUnavailable if the file can't be read.
    """
    try:
        read = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        state = read.get("state_dict", read)
        tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
        metadata = read.get("metadata") if state is not read else None
        kwargs = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    except Exception as error:  # torch raises errors of many types for a broken file
        raise WeightsUnavailable(f"{path} can't be read: {error}.", remedy="Download the codec again.") from error
    return tensors, dict(kwargs) if isinstance(kwargs, Mapping) else {}


def parse_dac_config(raw: Mapping[str, Any]) -> DacConfig:
    """Convert the content of a config.json of transformers to a DacConfig. Raises ValueError for an invalid config."""
    if raw.get("model_type", "dac") != "dac":
        raise ValueError(f"model_type={raw['model_type']!r} is not supported, only 'dac'")
    base = DacConfig()
    down = _ratios(raw.get("downsampling_ratios"), base.down_ratios)
    width = int(raw.get("encoder_hidden_size", base.encoder_width))
    return _checked(
        DacConfig(
            rate_hz=int(raw.get("sampling_rate", base.rate_hz)),
            encoder_width=width,
            decoder_width=int(raw.get("decoder_hidden_size", base.decoder_width)),
            latent_width=int(raw.get("hidden_size") or width << len(down)),
            down_ratios=down,
            up_ratios=_ratios(raw.get("upsampling_ratios"), down[::-1]),
            codebooks=int(raw.get("n_codebooks", base.codebooks)),
            codebook_size=int(raw.get("codebook_size", base.codebook_size)),
            codebook_dim=int(raw.get("codebook_dim", base.codebook_dim)),
        )
    )


# Name of an argument of descript's DAC class -> name of the same value in a config.json of transformers.
_KWARGS = {
    "sample_rate": "sampling_rate",
    "encoder_dim": "encoder_hidden_size",
    "encoder_rates": "downsampling_ratios",
    "decoder_dim": "decoder_hidden_size",
    "decoder_rates": "upsampling_ratios",
    "latent_dim": "hidden_size",
    "n_codebooks": "n_codebooks",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
}


def parse_dac_kwargs(raw: Mapping[str, Any]) -> DacConfig:
    """Convert the arguments of descript's DAC class to a DacConfig.

    In a .pth file, these arguments are in metadata["kwargs"].

    Raises ValueError for an invalid config.
    """
    return parse_dac_config({key: raw[name] for name, key in _KWARGS.items() if name in raw})


def _ratios(raw: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(ratio) for ratio in raw) if raw else default


def _checked(config: DacConfig) -> DacConfig:
    c = config
    if any(ratio < 2 or ratio % 2 for ratio in (*c.down_ratios, *c.up_ratios)):
        # If a ratio is odd, the output of a layer is one sample too short. No codec for 44.1 kHz has an odd ratio.
        raise ValueError(f"ratios {list(c.down_ratios)} and {list(c.up_ratios)} must be even")
    if math.prod(c.down_ratios) != math.prod(c.up_ratios):
        raise ValueError(f"ratios {list(c.down_ratios)} and {list(c.up_ratios)} give frames of different lengths")
    if c.decoder_width % (1 << len(c.up_ratios)):
        raise ValueError(f"a decoder width of {c.decoder_width} can't be halved {len(c.up_ratios)} times")
    return c
