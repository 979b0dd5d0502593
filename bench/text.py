"""Measures the throughput of the text front end in megabytes of text per CPU second, for several kinds of text.

    python -m bench.text [--file FILE]
    python -m bench.text --sizes --plot docs/images/text_time.svg     # CPU time of 1 kB to 1 MB, for 12 kinds of text

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
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
GROWING = {
    "prose": PROSE,
    "figures": FIGURES,
    "Markdown": "# Title\n\n- **one** item\n- [two](https://example.com)\n\n> quoted `code`\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n",
    "unclosed fences": "```python\nx = 1\n\nAnd then some words.\n\n~~~\n",
    "combining marks": "e\u0301\u0302\u0303 a\u0308o\u0328 ",
    "nested braces": "{{[(",
    "alternating scripts": "word \u0441\u043b\u043e\u0432\u043e \u8a9e \u03bb\u03cc\u03b3\u03bf\u03c2 ",
    "think tags": "<think>It is a question.</think>Yes. <think>",
    "JSON": '{"name": "Ada", "numbers": [1, 2.5, -3], "more": {"ok": true}}\n',
    "TeX": "Then $\\frac{a_1}{b^2} + \\sqrt{x}$ holds. \\begin{equation}y = 2\\end{equation}\n\n",
    "HTML": "<div class='a'><p>Some <b>bold</b> words &amp; more.</p><!-- no --></div>\n",
    "emoji": "Well done \U0001f389\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f! ",
}
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 460, 70, 170, 20, 50
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")
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


def seconds(text: str, normalizer: Normalizer) -> float:
    """Return the CPU seconds that the front end needs for a text. A text of up to 30,000 characters is measured three
    times, and the shortest time counts.
    """
    times = []
    for _ in range(3 if len(text) <= 30_000 else 1):
        begun_s = time.thread_time()
        read_text(text, normalizer, TextPacking(), lambda _: "en")
        times.append(time.thread_time() - begun_s)
    return min(times)


def plot(found: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return a log-log plot as an SVG. The grey lines show linear time."""
    values = [value for points in found.values() for _, value in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log10(SIZES[0]), math.log10(SIZES[-1])
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(size: float, value: float) -> str:
        x = LEFT + wide * (math.log10(size) - first) / (last - first)
        return f"{x:.1f},{TOP + tall * (high - math.log10(value)) / (high - low):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<clipPath id="area"><rect x="{LEFT}" y="{TOP}" width="{wide}" height="{tall}"/></clipPath>',
        f'<rect x="{LEFT}" y="{TOP}" width="{wide}" height="{tall}" fill="none" stroke="#999"/>',
    ]
    for power in range(low - 3, high + 1):
        ends = f"{place(SIZES[0], 10.0**power)} {place(SIZES[-1], 10.0**power * SIZES[-1] / SIZES[0])}"
        parts.append(f'<polyline points="{ends}" stroke="#ddd" fill="none" clip-path="url(#area)"/>')
        if power >= low:
            level = float(place(SIZES[0], 10.0**power).split(",")[1])
            parts.append(f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for size, name in ((1_000, "1 kB"), (10_000, "10 kB"), (100_000, "100 kB"), (1_000_000, "1 MB")):
        x = place(size, 10.0**low).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>')
    parts.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 12}" text-anchor="middle">size; grey: linear time</text>')
    for number, (name, points) in enumerate(sorted(found.items(), key=lambda each: -each[1][-1][1])):
        colour, dashes = COLOURS[number % len(COLOURS)], "5 3" if number >= len(COLOURS) else "none"
        path = " ".join(place(size, value) for size, value in points)
        line = f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{path}" fill="none" {line}/>')
        y = TOP + 14 + 18 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 10} {y - 4}h22" {line}/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 38}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def measure_sizes(normalizer: Normalizer, target: Path | None) -> None:
    """Print the CPU time of each kind of text at each size. If `target` is given, write a chart of the times to this
    SVG file.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for name, part in GROWING.items():
        size = len(part.encode())
        texts = [(part * -(-wanted // size), wanted) for wanted in SIZES]
        found[name] = [(len(text.encode()), seconds(text, normalizer)) for text, _ in texts]
        (small, short_s), (large, long_s) = found[name][-3], found[name][-1]
        exponent = math.log(long_s / short_s) / math.log(large / small)
        print(f"{name}: {long_s:.2f} s for 1 MB; time grows with size^{exponent:.2f} from 100 kB on", flush=True)
    if target is not None:
        target.write_text(plot(found), encoding="utf-8")
    print(json.dumps({"cpu_s": {name: [[size, round(s, 5)] for size, s in rows] for name, rows in found.items()}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="also measure this text file")
    parser.add_argument("--sizes", action="store_true", help="measure 12 kinds of text from 1 kB to 1 MB instead")
    parser.add_argument("--plot", type=Path, help="with --sizes: write the figure to this SVG file")
    args = parser.parse_args()
    if args.sizes:
        warm = Normalizer()
        warm.warm()
        measure_sizes(warm, args.plot)
        return
    kinds = {**KINDS, **({args.file.name: args.file.read_text(encoding="utf-8")} if args.file else {})}
    normalizer = Normalizer()
    normalizer.warm()
    found = {name: round(megabytes_per_s(text, normalizer), 3) for name, text in kinds.items()}
    for name, rate in found.items():
        print(f"{name}: {rate} MB/s")
    print(json.dumps({"mb_per_cpu_s": found}))


if __name__ == "__main__":
    main()
