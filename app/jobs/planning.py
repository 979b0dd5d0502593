"""Splits a chapter into the sentences of a job, with the pauses between them.

The generator's planner finds the sentences, so each sentence is short enough for the engine. The planner also writes
numbers and symbols as words, but a job stores the original text of the chapter. So this module takes only the position
of each sentence from the planner, and copies the sentence from the text of the chapter.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from app.errors import EmptyText
from app.generator.take import SENTENCE_GAP_S
from app.jobs.state import PlannedSentence
from app.text.script import Pause

if TYPE_CHECKING:
    from app.generator.speech import SpeechGenerator
    from app.types import SpeechRequest

# Seconds of silence between two sentences. In addition, each sentence has up to 0.2 s of silence at its edges.
LINE_GAP_S = 0.25  # at the end of a line
PARAGRAPH_GAP_S = 0.5
CHAPTER_GAP_S = 1.5
_BLANK_LINE = re.compile(r"\n\s*\n")


async def plan_chapter(generator: SpeechGenerator, request: SpeechRequest) -> list[PlannedSentence]:
    """Return the sentences of a chapter; an empty list if the chapter has nothing that can be spoken.

    request: a request whose only line is the text of the chapter. Raises the errors of `SpeechGenerator.plan`,
    but not EmptyText.
    """
    line = request.lines[0]
    text = line.text
    sentences: list[PlannedSentence] = []
    start = end = 0  # where the last sentence of `sentences` begins and ends in `text`
    extra_s = 0.0  # the total length of the pauses that `text` asks for after this last sentence

    def end_last(next_start: int) -> None:
        nonlocal extra_s
        between = text[end:next_start]
        gap_s = PARAGRAPH_GAP_S if _BLANK_LINE.search(between) else LINE_GAP_S if "\n" in between else SENTENCE_GAP_S
        sentences[-1] = replace(sentences[-1], pause_s=round(gap_s + extra_s, 3))
        extra_s = 0.0

    try:
        async with contextlib.aclosing(generator.plan(request)) as parts:
            async for part in parts:
                if isinstance(part, Pause):
                    extra_s += part.seconds
                    continue
                # If the planner made several sentences from the same characters of the text, the job has one sentence
                # for all of them.
                if sentences and part.start_char < end:
                    end = max(end, part.end_char)
                    sentences[-1] = replace(sentences[-1], text=text[start:end])
                    continue
                if sentences:
                    end_last(part.start_char)
                else:
                    extra_s = 0.0
                sentences.append(
                    PlannedSentence(
                        text[part.start_char : part.end_char],
                        part.voice.id,
                        None if request.language or part.language in (None, "en") else part.language,
                        SENTENCE_GAP_S,
                        not sentences or bool(_BLANK_LINE.search(text[end : part.start_char])),
                    )
                )
                start, end = part.start_char, part.end_char
    except EmptyText:
        return []
    if sentences:
        last = sentences[-1]
        sentences[-1] = replace(last, pause_s=round(CHAPTER_GAP_S + extra_s, 3))
    return sentences
