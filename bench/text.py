"""Measures the throughput of the text front end in megabytes of text per CPU second, for several kinds of text.

    python -m bench.text [--file FILE]

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from app.generator.planning import read_text
from app.text.normalizer import Normalizer
from app.types import TextPacking

PROSE = """It was a bright cold day, and the clocks were striking. She had walked down the road to the sea, and her dog
had followed her. "Why did you come?" he asked. "Because I wanted to," she said; "and because you'd never have asked."
The wind rose, the gulls cried, and the boats in the harbour — all of them old — rocked on the swell. He thought about
what Mr. Brown had told him: that the sea gives, and the sea takes.

"""
FIGURES = """In 1998 the company earned $12.5 million, up 3% from the year before. Dr. Smith joined on March 3, 2004,
and about 40 people worked there. You can read more in **the report**, which isn't long; it's on page 12.

"""
ANSWER = """<think>The user asks about circles. I explain the area.</think>## Area of a circle

The area is $A = \\pi r^2$, where $r$ is the radius【4†source】. For example:

- radius 2 → about 12.57
- radius 3 → about 28.27

> [!NOTE]
> See [the page](https://en.wikipedia.org/wiki/Circle) for a proof.<|im_end|>

"""
KINDS = {"prose": PROSE * 60, "figures": FIGURES * 60, "answer": ANSWER * 60}


def megabytes_per_s(text: str, normalizer: Normalizer, rounds: int = 5) -> float:
    """Return the throughput of the fastest of several rounds, because other processes use the machine too."""
    packing, least_s = TextPacking(), float("inf")
    read_text(text, normalizer, packing, lambda _: "en")
    for _ in range(rounds):
        begun_s = time.thread_time()
        read_text(text, normalizer, packing, lambda _: "en")
        least_s = min(least_s, time.thread_time() - begun_s)
    return len(text.encode()) / least_s / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="also measure this text file")
    args = parser.parse_args()
    kinds = {**KINDS, **({args.file.name: args.file.read_text(encoding="utf-8")} if args.file else {})}
    normalizer = Normalizer()
    normalizer.warm()
    found = {name: round(megabytes_per_s(text, normalizer), 3) for name, text in kinds.items()}
    for name, rate in found.items():
        print(f"{name}: {rate} MB/s")
    print(json.dumps({"mb_per_cpu_s": found}))


if __name__ == "__main__":
    main()
