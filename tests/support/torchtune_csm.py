"""Second oracle for CSM: frames of a checkpoint in the original layout, computed by torchtune's Llama 3.2 blocks.

    python tests/support/torchtune_csm.py TORCHTUNE_FOLDER CHECKPOINT IDS.npy SEED|greedy FRAMES OUT.npy

Runs in its own process, because torchtune 0.6.1 needs an old torchao. It has no KV cache: every step computes the whole
sequence again with torchtune's plain causal attention. Does not import `app`.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np


class _Absent(types.ModuleType):
    """Replaces modules that torchtune imports only for training. Each attribute exists, but can't be used."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main(*arguments: str) -> None:
    site, checkpoint, ids_file, seed, frames, out = arguments
    for name in (
        "datasets", "datasets.distributed", "omegaconf", "tiktoken", "tiktoken.load", "sentencepiece", "PIL",
        "PIL.Image", "blobfile", "kagglehub",
    ):  # fmt: skip
        sys.modules[name] = _Absent(name)
    sys.path.insert(0, site)
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torchtune.models.llama3_2 import llama3_2

    raw = json.loads((Path(checkpoint) / "config.json").read_text())
    weights = load_file(Path(checkpoint) / "model.safetensors")
    codebooks, vocab, codes = raw["num_codebooks"], raw["vocab_size"], raw["codec_config"]["codebook_size"]

    def stack(config: dict[str, object], prefix: str) -> nn.Module:
        model = llama3_2(
            vocab_size=8,
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            embed_dim=config["hidden_size"],
            max_seq_len=2048,
            intermediate_dim=config["intermediate_size"],
            norm_eps=config["rms_norm_eps"],
            rope_base=500_000,
            scale_factor=32,
        )
        model.tok_embeddings = nn.Identity()
        model.output = nn.Identity()
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        model.load_state_dict(own, strict=True)
        return model.eval()

    backbone, depth = stack(raw, "backbone."), stack(raw["depth_decoder_config"], "decoder.")
    offsets = torch.arange(codebooks) * vocab

    def draw(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[codes:] = -torch.inf  # codes that have no audio are never drawn
        if seed == "greedy":
            return logits.argmax()
        scores = logits / 0.9
        scores[scores < scores.topk(50).values[-1]] = -torch.inf
        noise = torch.empty(1, vocab).exponential_(1)[0]
        return (scores.softmax(-1) / noise).argmax()

    if seed != "greedy":
        torch.manual_seed(int(seed))
    generated = []
    with torch.inference_mode():
        x = weights["text_embeddings.weight"][torch.from_numpy(np.load(ids_file))]  # (S, D)
        for _ in range(int(frames)):
            h = backbone(x[None])[0, -1]
            frame = [draw(weights["codebook0_head.weight"] @ h)]
            steps = [h]
            for k in range(1, codebooks):
                steps.append(weights["audio_embeddings.weight"][frame[-1] + offsets[k - 1]])
                y = depth((torch.stack(steps) @ weights["projection.weight"].T)[None])[0, -1]
                frame.append(draw(y @ weights["audio_head"][k - 1]))
            generated.append(torch.stack(frame))
            x = torch.cat((x, weights["audio_embeddings.weight"][generated[-1] + offsets].sum(0)[None]))
    np.save(out, torch.stack(generated).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
