"""Writes the report of `first_day.py` as one web page: findings, tables, plots, and a player for each take.

The page contains its style and its plots (SVG). The page has no script and loads only the audio files in the same
folder. So the page works offline, and the folder can be sent to other people.
"""

from __future__ import annotations

from html import escape
from math import inf, isinf
from typing import TYPE_CHECKING

from app.first_day import (
    MAX_LEVEL_ERROR_LU,
    MAX_SILENCE_S,
    MAX_VOICE_DISTANCE,
    PACE_BAND,
    Finding,
    Report,
    Take,
    VoiceReport,
)
from app.voices.enhancement import TARGET_LUFS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --dim: #5b6475; --page: #fff; --card: #f4f6f9; --line: #d6dbe4;
  --good: #1b7a43; --bad: #b3261e; --mark: #3461c1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --dim: #a3acbd; --page: #12151b; --card: #1c212b;
  --line: #343c4b; --good: #6cd296; --bad: #ff8a80; --mark: #8ab0ff; } }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.dim { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.verdict { font-size: 1.2rem; font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; padding: 0; }
.facts div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.facts dt { color: var(--dim); font-size: .85rem; } .facts dd { margin: 0; font-weight: 600; }
.findings { list-style: none; padding: 0; }
.findings li { background: var(--card); border-left: .3rem solid var(--mark); border-radius: .3rem;
  padding: .6rem .9rem; margin: .6rem 0; }
.findings li.problem { border-color: var(--bad); }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .75rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; margin: .75rem 0; }
figure { margin: 0; } figcaption { color: var(--dim); font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .4rem .6rem; border-top: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
audio { width: 13rem; height: 2.2rem; } svg { display: block; width: 100%; height: auto; }
.axis { stroke: var(--line); } .band { fill: var(--mark); opacity: .14; } .dot { fill: var(--mark); }
.dot.out { fill: var(--bad); } .wave { fill: var(--mark); } .wave.out { fill: var(--bad); }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
"""
_WIDTH, _HEIGHT, _LEFT = 300, 110, 34
_COLUMNS = ("", "sentence", "audio", "words", "s", "pace", "silence", "LUFS", "dBTP", "distance", "speed")


def page(report: Report) -> str:
    """Return the content of report.html."""
    verdict = (
        '<p class="verdict good">The check found no problem.</p>'
        if report.ok
        else '<p class="verdict bad">The check found problems. The first list shows the problems and what to do.</p>'
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>First-day check: {escape(report.engine)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>First-day check: {escape(report.engine)}</h1>",
        f'<p class="dim">tts-server {escape(report.version)}, {escape(report.created_at)}, {escape(report.device)}, '
        f"{escape(report.dtype)}</p>",
        verdict,
        _findings(report.findings),
        _facts(report),
        "<h2>Voices</h2>",
        *(_voice(voice) for voice in report.voices),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _findings(findings: Sequence[Finding]) -> str:
    rows = [
        f'<li class="{escape(each.severity)}"><strong>{escape(each.voice or "All voices")} ({escape(each.severity)}):'
        f'</strong> {escape(each.text)}<br><span class="dim">What to do: {escape(each.advice)}</span></li>'
        for each in findings
    ]
    return f'<ul class="findings">{"".join(rows)}</ul>' if rows else ""


def _facts(report: Report) -> str:
    takes = [take for voice in report.voices for take in voice.takes]
    checked = [take for take in takes if take.words != "unchecked"]
    guard = ", ".join(f"{rule} {count}" for rule, count in report.guard.items()) or "none"
    facts = {
        "takes": f"{len(takes)} ({sum(not take.faults for take in takes)} without a fault)",
        "takes with all words": f"{sum(take.words == 'ok' for take in checked)} of {len(checked)} checked",
        "seconds of audio a second": _number(report.speed),
        "first audio (median)": _number(report.first_audio_s, " s"),
        "actions of the output guard": guard,
    }
    facts |= {
        f"peak memory ({name})": f"{count / 1e9:.2f} GB" for name, count in sorted(report.peak_memory_bytes.items())
    }
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _voice(voice: VoiceReport) -> str:
    bad = sum(bool(take.faults) for take in voice.takes)
    state = f'<span class="bad">{bad} of {len(voice.takes)} takes have a fault</span>' if bad else (
        f'<span class="good">{len(voice.takes)} takes without a fault</span>'
    )  # fmt: skip
    recording = "with its own recording" if voice.recorded else "without a recording"
    level = (TARGET_LUFS - MAX_LEVEL_ERROR_LU, TARGET_LUFS + MAX_LEVEL_ERROR_LU)
    pace = ((voice.pace or 0.0) * PACE_BAND[0], (voice.pace or 0.0) * PACE_BAND[1])
    takes = voice.takes
    plots = (
        _plot("pace in characters a second", takes, lambda take: take.pace, good=pace, fault="pace"),
        _plot("loudness in LUFS", takes, lambda take: take.loudness_lufs, good=level, fault="level"),
        _plot("longest silence in s", takes, _silence, good=(0.0, MAX_SILENCE_S), fault="silence"),
        _plot(
            "distance from the voice",
            takes,
            lambda take: take.voice_distance,
            good=(0.0, MAX_VOICE_DISTANCE),
            fault="voice",
        ),
        _plot("share of words found", takes, lambda take: take.words_found, good=(0.9, 1.0), fault="words"),
        _plot("seconds of audio a second", takes, lambda take: take.speed, good=(1.0, inf), fault="speed"),
    )
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(_take(take) for take in voice.takes)
    return (
        f'<details{" open" if bad else ""}><summary>{escape(voice.name)} <span class="dim">({escape(voice.id)}, '
        f"{recording}, {_number(voice.pace)} characters a second)</span> {state}</summary>"
        f'<div class="plots">{"".join(plots)}</div>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _silence(take: Take) -> float | None:
    return take.longest_silence_s if take.file else None


def _take(take: Take) -> str:
    faults = "".join(f'<br><span class="bad">{escape(text)}</span>' for text in take.faults.values())
    guard = ", ".join(f"{rule} {count}" for rule, count in take.guard.items())
    acted = f'<br><span class="dim">output guard: {escape(guard)}</span>' if guard else ""
    player = (
        f'<audio controls preload="none" src="{escape(take.file)}" aria-label="sentence {take.number}"></audio>'
        + _wave(take)
        if take.file
        else "no audio"
    )
    words = {"ok": "ok", "bad": '<span class="bad">bad</span>'}.get(take.words, "not checked")
    if take.words_found is not None:
        words += f" ({take.words_found:.0%})"
    if take.word_score is not None:
        words += f'<br><span class="dim">score {take.word_score:g}</span>'
    if take.doubtful_words:
        words += f'<br><span class="dim">doubtful: {escape(", ".join(take.doubtful_words))}</span>'
    numbers = (
        take.seconds,
        take.pace,
        take.longest_silence_s,
        take.loudness_lufs,
        take.true_peak_dbtp,
        take.voice_distance,
        take.speed,
    )
    cells = "".join(f'<td class="number">{_number(value)}</td>' for value in numbers)
    return (
        f'<tr><td class="number">{take.number}</td><td>{escape(take.text)}{faults}{acted}</td><td>{player}</td>'
        f"<td>{words}</td>{cells}</tr>"
    )


def _wave(take: Take) -> str:
    """Draw the peaks of a take over time."""
    step = 240 / max(1, len(take.wave))
    bars = "".join(
        f'<rect x="{at * step:.1f}" y="{15 - 0.15 * peak:.1f}" width="{0.8 * step:.1f}" '
        f'height="{max(0.5, 0.3 * peak):.1f}"/>'
        for at, peak in enumerate(take.wave)
    )
    kind = "wave out" if take.faults else "wave"
    label = f"waveform, {take.seconds:g} s"
    return f'<svg viewBox="0 0 240 30" role="img" aria-label="{label}"><g class="{kind}">{bars}</g></svg>'


def _plot(
    title: str, takes: Sequence[Take], value: Callable[[Take], float | None], *, good: tuple[float, float], fault: str
) -> str:
    """Draw one dot for each take. good: the range of good values. fault: takes with this fault are red."""
    values = [(take, number) for take in takes if (number := value(take)) is not None]
    if not values:
        return ""
    numbers = [number for _, number in values]
    low, high = good
    least, most = min(low, *numbers), max(low if isinf(high) else high, *numbers)
    margin = 0.08 * ((most - least) or 1.0)
    least, most = least - margin, most + margin

    def y(number: float) -> float:
        return 5 + (_HEIGHT - 10) * (most - number) / (most - least)

    top = 5.0 if isinf(high) else y(high)
    band = f'<rect class="band" x="{_LEFT}" y="{top:.1f}" width="{_WIDTH - _LEFT}" height="{y(low) - top:.1f}"/>'
    step = (_WIDTH - _LEFT) / (len(takes) + 1)
    dots = "".join(
        f'<circle class="{"dot out" if fault in take.faults else "dot"}" cx="{_LEFT + step * (at + 1):.1f}" '
        f'cy="{y(number):.1f}" r="3.5"><title>sentence {take.number}: {number:g}</title></circle>'
        for at, (take, number) in enumerate(values)
    )
    marks = [number for number in good if not isinf(number)]
    apart = (most - least) / 6  # the smallest distance at which labels do not overlap
    for number in (min(numbers), max(numbers)):
        marks += [number] if all(abs(number - mark) > apart for mark in marks) else []
    labels = "".join(
        f'<text x="{_LEFT - 4}" y="{y(number) + 4:.1f}" text-anchor="end">{number:.3g}</text>' for number in marks
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, {min(numbers):g} to {max(numbers):g}">{band}'
        f'<line class="axis" x1="{_LEFT}" y1="5" x2="{_LEFT}" y2="{_HEIGHT - 5}"/>{labels}{dots}</svg></figure>'
    )


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g}{unit}"
