"""Draws values over time as an SVG: panels one above the other with a common time axis. Needs no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 900, 130, 70, 110, 24, 34
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
MOST_POINTS = 900


@dataclass(frozen=True, slots=True)
class Series:
    """A named series of points (time, value), in the order of time."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    series: Sequence[Series]


def figure(time_name: str, panels: Sequence[Panel]) -> str:
    """Return the content of an SVG file with these panels. time_name: the text below the time axis."""
    times = [at for panel in panels for each in panel.series for at, _ in each.points] or [0.0]
    latest = max(*times, 1e-9)
    height = TOP + len(panels) * (HEIGHT + GAP) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        parts += _panel(panel, TOP + index * (HEIGHT + GAP), latest)
    bottom = TOP + len(panels) * (HEIGHT + GAP) - GAP
    for step in range(7):
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / 6
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{latest * step / 6:.3g}</text>')
    parts.append(f'<text x="{LEFT + (WIDTH - LEFT - RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">')
    parts.append(f"{escape(time_name)}</text></svg>")
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, top: float, latest: float) -> list[str]:
    values = [value for each in panel.series for _, value in each.points] or [0.0]
    highest = max(*values, 0.0) * 1.08 or 1.0
    wide = WIDTH - LEFT - RIGHT

    def place(at: float, value: float) -> tuple[float, float]:
        return LEFT + wide * at / latest, top + HEIGHT * (1 - value / highest)

    parts = [
        f'<text x="{LEFT}" y="{top - 7:.1f}" font-weight="bold">{escape(panel.title)}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{wide}" height="{HEIGHT}" fill="none" stroke="#999"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        _, y = place(0.0, share * highest)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.3g}</text>')
    for number, each in enumerate(panel.series):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(at, value) for at, value in each.points[:: max(1, len(each.points) // MOST_POINTS)]]
        if each.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{top + 14 + 16 * number:.1f}" fill="{colour}">{escape(each.name)}</text>'
        )
    return parts
