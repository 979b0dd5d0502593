"""Writes checkpoints with random weights in the layouts of the published checkpoints, for benchmarks and tests.

    python -m bench.fabricate csm --size tiny|full --layout transformers|original OUT
    python -m bench.fabricate dia --size tiny|full --layout transformers|nari --release 0626|v0.1 [--eos] OUT

The code is in tests/support/random_csm.py and tests/support/random_dia.py. With the layout `original`, the codec of CSM
is written to OUT/mimi. The codec of Dia is written to OUT/dac.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tests.support.random_csm import fabricate_csm
from tests.support.random_dia import fabricate_dia


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models_of = parser.add_subparsers(dest="model", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("out", type=Path)
    common.add_argument("--size", choices=["tiny", "full"], default="tiny")
    common.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    common.add_argument("--seed", type=int, default=0)
    csm = models_of.add_parser("csm", parents=[common])
    csm.add_argument("--layout", choices=["transformers", "original"], default="transformers")
    dia = models_of.add_parser("dia", parents=[common])
    dia.add_argument("--layout", choices=["transformers", "nari"], default="transformers")
    dia.add_argument("--release", choices=["0626", "v0.1"], default="0626")
    dia.add_argument("--eos", action="store_true", help="the model generates EOS within a few hundred frames")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.model == "csm":
        fabricate_csm(args.out, size=args.size, layout_name=args.layout, seed=args.seed, dtype=dtype)
    else:
        try:
            fabricate_dia(
                args.out,
                size=args.size,
                layout_name=args.layout,
                release=args.release,
                seed=args.seed,
                dtype=dtype,
                eos=args.eos,
            )
        except ValueError as error:
            parser.error(str(error))
    print(json.dumps({"model": args.model, "size": args.size, "layout": args.layout, "out": str(args.out)}))


if __name__ == "__main__":
    main()
