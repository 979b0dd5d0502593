"""Measures the errors of quantized weights: in single matrix products, and in the logits of CSM with random weights.

    python -m bench.quantization [--size full] [--frames 4]

Prints a table. The depth decoder gets the same codes in all cases (teacher forcing), so an error does not change later
inputs. The KL divergence is computed from logits that are scaled to a standard deviation of 3.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn import functional

from app.engines.csm.config import parse_config
from app.engines.csm.loading import adapt
from app.engines.csm.model import CsmModel
from app.engines.shared.quantization import Quantize
from app.nn.linear import Fp8Weight, Int8Linear, Linear
from app.nn.native.library import load
from app.nn.native.modules import NativeLinear
from bench.runners import fill
from tests.support.random_csm import csm_config

CPU = torch.device("cpu")


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def products() -> None:
    """Print the relative errors of a product with a 1024 x 1024 matrix.

    The errors are measured for plain activations, and for activations with three channels that are 100 times as large.
    """
    linear = Linear(1024, 1024, bias=False, device=CPU, dtype=torch.float32)
    linear.weight.data = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)) / 32
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    large = x.clone()
    large[:, [5, 100, 900]] *= 100
    print("| product of 1024 x 1024 | plain activations | three channels x 100 |\n|---|---|---|")
    with TemporaryDirectory() as folder:
        library = load(Path(folder), 1)
        layers: dict[str, Callable[[Tensor], Tensor]] = {
            "int8, PyTorch's kernel": Int8Linear(linear),
            "int8, native": NativeLinear(library, linear),
            "int4, native": NativeLinear(library, linear, bits=4),
            "fp8, weights only": partial(functional.linear, weight=Fp8Weight.of(linear.weight.data).rounded(x.dtype)),
        }
        for name, layer in layers.items():
            print(f"| {name} | {error(layer(x), linear(x)):.2%} | {error(layer(large), linear(large)):.2%} |")


def forced(codes: Tensor, found: list[Tensor], codebook: int, logits: Tensor) -> Tensor:
    """Add the logits to `found`, and return the given codes of the codebook instead of sampled codes."""
    found.append(logits.float())
    return codes[:, codebook]


def logits_of(model: CsmModel, frames: int) -> Tensor:
    """Return the logits (frames, codebooks, codes) of the model for random inputs and random codes."""
    c, random = model.config, torch.Generator().manual_seed(2)
    cache, depth, seen = model.kv_cache(1), model.depth_kv_cache(1), []
    ids = torch.randint(c.text_vocab, (24,), generator=random)
    h = model.read(model.embed_text(ids), cache, 0, 0)[-1:]
    for frame in range(frames):
        codes = torch.randint(c.codebook_size, (1, c.codebooks), generator=random)
        found: list[Tensor] = []

        model.frame(h, depth, partial(forced, codes, found))
        seen.append(torch.cat(found))
        h = model.advance(model.embed_frames(codes), cache, [0], [len(ids) + frame])
    return torch.stack(seen)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--frames", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    products()
    config = parse_config(csm_config(args.size))
    exact = Tensor()
    print("\n| logits of CSM | relative error | KL divergence | equal best codes |\n|---|---|---|---|")
    cases: list[tuple[str, torch.dtype, Quantize, bool]] = [
        ("float32", torch.float32, "none", True),
        ("bfloat16", torch.bfloat16, "none", True),
        ("int8, PyTorch's kernel", torch.bfloat16, "int8", False),
        ("int8, native", torch.bfloat16, "int8", True),
        ("int4, native", torch.bfloat16, "int4", True),
        ("bfloat16, depth decoder in fp8", torch.bfloat16, "fp8", True),
    ]
    for name, dtype, quantize, native in cases:
        model = CsmModel(config, device=CPU, dtype=dtype)
        fill(model)
        adapt(model, quantize, native=native)
        found = logits_of(model, args.frames)
        if name == "float32":
            exact = found
            continue
        scale = 3 / exact.std()
        p, q = (torch.log_softmax(values * scale, dim=-1) for values in (exact, found))
        kl = float((p.exp() * (p - q)).sum(dim=-1).mean())
        same = float((exact.argmax(dim=-1) == found.argmax(dim=-1)).float().mean())
        print(f"| {name} | {error(found, exact):.2%} | {kl:.4f} | {same:.0%} |", flush=True)


if __name__ == "__main__":
    main()
