"""Writes the times of words as a short text, which the cache stores with the audio of an answer, and reads this text.

The times belong to the spoken words of each utterance, and are valid for every format and sample rate of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.generator.word_timing import UNITS_PER_S, Found

if TYPE_CHECKING:
    from app.generator.timeline import TimelineUtterance

_VERSION = 1


def pack_utterance(found: Found) -> str:
    """Write the times of one utterance as JSON.

    A word without a time becomes null. If the times could not be found, the result is "null", so that they are
    searched for again.
    """
    if found.reason:
        return "null"
    rows: list[list[int | None]] = []
    for line in found.words:
        row: list[int | None] = []
        before = 0
        for span in line:
            if span is None:
                row.append(None)
                continue
            start, end = (round(moment * UNITS_PER_S) for moment in span)
            row += (start - before, end - start)
            before = end
        rows.append(row)
    return json.dumps(rows, separators=(",", ":"))


def pack(utterances: Sequence[str]) -> str:
    """Join the results of `pack_utterance` for the utterances of an answer."""
    return f'{{"version":{_VERSION},"utterances":[{",".join(utterances)}]}}'


def unpack(text: str) -> list[Found | None]:
    """Return the times of each utterance from the result of `pack`; None for an utterance without times.

    The list is empty if another version of this module wrote the text. Raises ValueError if the text is not a result of
    `pack`.
    """
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            return []
        return [
            None if rows is None else Found([_unpacked_line(row) for row in rows]) for rows in content["utterances"]
        ]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError("the stored times of words are damaged") from error


def _unpacked_line(row: Sequence[int | None]) -> list[tuple[float, float] | None]:
    line: list[tuple[float, float] | None] = []
    place = moment = 0
    while place < len(row):
        gap = row[place]
        if gap is None:
            line.append(None)
            place += 1
            continue
        start = moment + gap
        moment = start + row[place + 1]  # type: ignore[operator]  # a TypeError means that the text is damaged
        line.append((start / UNITS_PER_S, moment / UNITS_PER_S))
        place += 2
    return line


def fits(found: Found | None, utterance: TimelineUtterance) -> bool:
    """Return whether stored times have as many lines and words as an utterance."""
    if found is None:
        return False
    return not found.words or [*map(len, found.words)] == [len(line.words) for line in utterance.lines]
