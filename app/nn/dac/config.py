"""The configuration of a DAC codec. Defaults are the values of descript/dac_44khz."""

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
DILATIONS = (1, 3, 9)  # of the three residual units of a block; no config names them


@dataclass(frozen=True, slots=True)
class DacConfig:
    """The shape of a DAC codec: a convolutional encoder and decoder around a residual quantiser whose codebooks are
    looked up in a few dimensions. Every convolution is symmetric: a sample depends on what comes after it."""

    rate_hz: int = 44_100
    encoder_width: int = 64  # channels at full rate
    decoder_width: int = 1536  # channels at frame rate
    latent_width: int = 1024
    down_ratios: tuple[int, ...] = (2, 4, 8, 8)
    up_ratios: tuple[int, ...] = (8, 8, 4, 2)
    codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8

    @property
    def frame_samples(self) -> int:
        return math.prod(self.up_ratios)

    @property
    def frame_hz(self) -> float:
        return self.rate_hz / self.frame_samples

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels before the first block of the decoder and after each."""
        return tuple(self.decoder_width >> i for i in range(len(self.up_ratios) + 1))

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels before the first block of the encoder and after each."""
        return tuple(self.encoder_width << i for i in range(len(self.down_ratios) + 1))


def read_dac_config(folder: Path) -> DacConfig:
    """The config of the codec in `folder`: config.json (transformers), else the metadata of a .pth of descript's
    release, else the published 44.1 kHz numbers. Raises WeightsUnavailable."""
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
    """A file of descript's release, {"state_dict", "metadata"}, or a bare state dict -> (tensors, what its model was
    made with, maybe nothing). Mapped, tensors only: nothing in the file is run. Raises WeightsUnavailable."""
    try:
        read = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        state = read.get("state_dict", read)
        tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
        metadata = read.get("metadata") if state is not read else None
        kwargs = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    except Exception as error:  # torch raises many types for a broken file
        raise WeightsUnavailable(f"{path} can't be read: {error}.", remedy="Download the codec again.") from error
    return tensors, dict(kwargs) if isinstance(kwargs, Mapping) else {}


def parse_dac_config(raw: Mapping[str, Any]) -> DacConfig:
    """config.json of transformers -> DacConfig. Raises ValueError for any other model."""
    if raw.get("model_type", "dac") != "dac":
        raise ValueError(f"model_type={raw['model_type']!r} is not a DAC")
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


def parse_dac_kwargs(raw: Mapping[str, Any]) -> DacConfig:
    """What descript's DAC class is made with (metadata["kwargs"] of a release) -> DacConfig. Raises ValueError."""
    base = DacConfig()
    down = _ratios(raw.get("encoder_rates"), base.down_ratios)
    width = int(raw.get("encoder_dim", base.encoder_width))
    return _checked(
        DacConfig(
            rate_hz=int(raw.get("sample_rate", base.rate_hz)),
            encoder_width=width,
            decoder_width=int(raw.get("decoder_dim", base.decoder_width)),
            latent_width=int(raw.get("latent_dim") or width << len(down)),
            down_ratios=down,
            up_ratios=_ratios(raw.get("decoder_rates"), down[::-1]),
            codebooks=int(raw.get("n_codebooks", base.codebooks)),
            codebook_size=int(raw.get("codebook_size", base.codebook_size)),
            codebook_dim=int(raw.get("codebook_dim", base.codebook_dim)),
        )
    )


def _ratios(raw: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(ratio) for ratio in raw) if raw else default


def _checked(config: DacConfig) -> DacConfig:
    c = config
    if any(ratio < 2 or ratio % 2 for ratio in (*c.down_ratios, *c.up_ratios)):
        # An odd one makes a convolution shorter by a sample per layer than its frames: no 44.1 kHz codec has it.
        raise ValueError(f"ratios {list(c.down_ratios)} and {list(c.up_ratios)} must be even")
    if math.prod(c.down_ratios) != math.prod(c.up_ratios):
        raise ValueError(f"ratios {list(c.down_ratios)} and {list(c.up_ratios)} make frames of different length")
    if c.decoder_width % (1 << len(c.up_ratios)):
        raise ValueError(f"a decoder width of {c.decoder_width} can't be halved {len(c.up_ratios)} times")
    return c
