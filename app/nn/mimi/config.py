"""Reads the config.json of a Mimi codec. Missing keys get the values of kyutai/mimi."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import WeightsUnavailable
from app.nn.rope import Rope, read_rope

_ROPE = Rope(10_000.0)

# Prefixes of the tensor names of the decoder's first layer, one for each known layout. If no tensor has one of these
# prefixes, the checkpoint has an unknown layout.
KNOWN_NAMES = ("decoder.layers.0.", "decoder.decoder_seanet.layers.0.", "decoder.model.0.")


@dataclass(frozen=True, slots=True)
class MimiConfig:
    """The dimensions of a Mimi codec.

    The encoder and the decoder are causal convolutional networks (SEANet), each with a sliding-window transformer. A
    split residual quantiser connects the encoder and the decoder.
    """

    rate_hz: int = 24_000
    width: int = 512
    filters: int = 64
    residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 6, 5, 4)  # upsampling ratios of the decoder; the encoder uses the reverse order
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    dilation_growth: int = 2
    compress: int = 2
    conv_shortcut: bool = False
    codebook_size: int = 2048
    codebook_dim: int = 256
    codebooks: int = 32
    semantic_codebooks: int = 1
    quantizer_dim: int = 256
    upsample_groups: int = 512
    layers: int = 8
    ffn: int = 2048
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    eps: float = 1e-5
    window: int = 250
    rope: Rope = _ROPE
    attention_bias: bool = False
    activation: str = "gelu"
    latent_stride: int = 2  # number of transformer positions in one frame of codes

    @property
    def hop(self) -> int:
        """The number of audio samples for one position of the transformer."""
        return math.prod(self.ratios)

    @property
    def frame_samples(self) -> int:
        """The number of samples in one frame of codes."""
        return self.hop * self.latent_stride

    @property
    def frame_hz(self) -> float:
        return self.rate_hz / self.frame_samples


def read_mimi_config_file(folder: Path) -> MimiConfig:
    """Read `folder`/config.json. If it does not exist or describes another model, return the values of kyutai/mimi.

    The repositories of moshi have no config.json. Raises WeightsUnavailable if the file can't be read.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
        return read_mimi_config(raw) if raw.get("model_type") == "mimi" else MimiConfig()
    except FileNotFoundError:
        return MimiConfig()
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsUnavailable(f"{path} can't be read as a Mimi config: {error!r}.") from error


def read_mimi_config(raw: Mapping[str, Any]) -> MimiConfig:
    """Convert the content of a config.json to a MimiConfig. Raises ValueError for an unsupported codec."""
    for key, supported in (
        ("audio_channels", 1),
        ("use_causal_conv", True),
        ("pad_mode", "constant"),
        ("trim_right_ratio", 1.0),
    ):
        if raw.get(key, supported) != supported:
            raise ValueError(f"{key}={raw[key]!r} is not supported, only {supported!r}")
    base = MimiConfig()
    width = int(raw.get("hidden_size", base.width))
    heads = int(raw.get("num_attention_heads", base.heads))
    ratios = tuple(int(ratio) for ratio in raw.get("upsampling_ratios") or base.ratios)
    rate_hz = int(raw.get("sampling_rate", base.rate_hz))
    hop = math.prod(ratios)
    # If the config contains no frame rate, assume that a frame has two positions of the transformer.
    frame_hz = float(raw.get("frame_rate") or raw.get("_frame_rate") or rate_hz / (2 * hop))
    return MimiConfig(
        rate_hz=rate_hz,
        width=width,
        filters=int(raw.get("num_filters", base.filters)),
        residual_layers=int(raw.get("num_residual_layers", base.residual_layers)),
        ratios=ratios,
        kernel=int(raw.get("kernel_size", base.kernel)),
        last_kernel=int(raw.get("last_kernel_size", base.last_kernel)),
        residual_kernel=int(raw.get("residual_kernel_size", base.residual_kernel)),
        dilation_growth=int(raw.get("dilation_growth_rate", base.dilation_growth)),
        compress=int(raw.get("compress", base.compress)),
        conv_shortcut=bool(raw.get("use_conv_shortcut", base.conv_shortcut)),
        codebook_size=int(raw.get("codebook_size", base.codebook_size)),
        codebook_dim=int(raw.get("codebook_dim") or width) if "codebook_dim" in raw else base.codebook_dim,
        codebooks=int(raw.get("num_quantizers", base.codebooks)),
        semantic_codebooks=int(raw.get("num_semantic_quantizers", base.semantic_codebooks)),
        quantizer_dim=int(raw.get("vector_quantization_hidden_dimension", base.quantizer_dim)),
        upsample_groups=int(raw.get("upsample_groups", base.upsample_groups)),
        layers=int(raw.get("num_hidden_layers", base.layers)),
        ffn=int(raw.get("intermediate_size", base.ffn)),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads", base.kv_heads)),
        head_dim=int(raw.get("head_dim") or width // heads),
        eps=float(raw.get("norm_eps", base.eps)),
        window=int(raw.get("sliding_window", base.window)),
        rope=read_rope(raw, 10_000.0),
        attention_bias=bool(raw.get("attention_bias", base.attention_bias)),
        activation=_gelu(raw.get("hidden_act", base.activation)),
        latent_stride=int(math.ceil(rate_hz / hop) / frame_hz),
    )


def _gelu(name: str) -> str:
    if name not in ("gelu", "silu", "relu"):
        raise ValueError(f"unknown hidden_act {name!r}")
    return name
