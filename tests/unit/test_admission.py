"""Admission: the limit of answers that are generated at the same time, their order, and refusals."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from app.engines.admission import ANSWERS_PER_ROW, LEAST_ANSWERS, Admission
from app.errors import Busy
from app.types import Load

pytestmark = pytest.mark.unit


def load(rows: int = 1, *, active: int = 0, queued: int = 0, max_queue: int = 1000) -> Load:
    return Load(active, rows, queued, max_queue)


class Answers:
    """Answers that are admitted and then work until `end`."""

    def __init__(self) -> None:
        self.admission = Admission()
        self.working: list[int] = []
        self._ends: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def begin(self, *numbers: int, at: Load | None = None) -> None:
        for number in numbers:
            self._ends[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._work(number, at or load()))
        await settle()

    async def _work(self, number: int, at: Load) -> None:
        async with self.admission.place(at):
            self.working.append(number)
            try:
                await self._ends[number].wait()
            finally:
                self.working.remove(number)

    async def end(self, *numbers: int) -> None:
        for number in numbers:
            self._ends[number].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("rows", [1, 4, LEAST_ANSWERS // ANSWERS_PER_ROW, 32, 100])
async def test_limit_depends_on_the_rows(rows: int) -> None:
    answers, limit = Answers(), max(LEAST_ANSWERS, ANSWERS_PER_ROW * rows)
    await answers.begin(*range(limit + 10), at=load(rows))
    assert answers.working == list(range(limit))
    assert answers.admission.waiting == 10
    await answers.end(*range(limit + 10))
    assert (answers.working, answers.admission.waiting) == ([], 0)


async def test_answers_are_admitted_in_order() -> None:
    answers = Answers()
    await answers.begin(*range(LEAST_ANSWERS + 3))
    for number in range(3):
        await answers.end(number)
        assert answers.working[-1] == LEAST_ANSWERS + number
        assert len(answers.working) == LEAST_ANSWERS
    await answers.begin(100)  # no answer waits in the queue, but all places are in use
    assert 100 not in answers.working


@pytest.mark.parametrize(
    ("at", "accepted"),
    [
        (load(1, active=1, max_queue=0), 0),
        (load(1, active=0, max_queue=0), 1),
        (load(4, active=4, max_queue=5), 5),
        (load(4, active=1, max_queue=5), 8),
        (load(4, active=4, queued=3, max_queue=5), 2),
        (load(4, active=4, queued=9, max_queue=5), 0),
        (load(4, active=6, max_queue=2), 2),  # the active rows include rows of background work
    ],
)
async def test_further_answers_are_refused(at: Load, accepted: int) -> None:
    answers = Answers()
    await answers.begin(*range(LEAST_ANSWERS + accepted + 3), at=at)
    refused = [number for number, task in answers.tasks.items() if task.done()]
    assert refused == list(range(LEAST_ANSWERS + accepted, LEAST_ANSWERS + accepted + 3))
    for number in refused:
        error = answers.tasks[number].exception()
        assert isinstance(error, Busy)
        assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", 1)
    assert answers.admission.waiting == accepted
    await answers.end(*range(LEAST_ANSWERS + accepted))
    assert (answers.working, answers.admission.waiting) == ([], 0)


@pytest.mark.parametrize("when", ["waiting", "just admitted", "working"])
async def test_cancelled_answer_frees_its_place(when: str) -> None:
    answers = Answers()
    await answers.begin(*range(LEAST_ANSWERS + 2))
    leaver = 0 if when == "working" else LEAST_ANSWERS
    if when == "just admitted":  # in both cases, the waiting task has not run again yet
        await answers.end()
        answers._ends[0].set()
        await asyncio.sleep(0)
    answers.tasks[leaver].cancel()
    await settle()
    with contextlib.suppress(asyncio.CancelledError):
        await answers.tasks[leaver]
    await answers.end(*range(LEAST_ANSWERS))
    await answers.begin(*range(100, 100 + LEAST_ANSWERS + 1))
    assert len(answers.working) == LEAST_ANSWERS
    await answers.end(*range(LEAST_ANSWERS + 2), *range(100, 100 + LEAST_ANSWERS + 1))
    assert (answers.working, answers.admission.waiting) == ([], 0)


async def test_cancelled_answer_is_correct_if_a_place_is_freed_at_the_same_moment() -> None:
    answers = Answers()
    await answers.begin(*range(LEAST_ANSWERS + 2))
    answers.tasks[LEAST_ANSWERS].cancel()
    answers._ends[0].set()
    await settle()
    assert LEAST_ANSWERS + 1 in answers.working
    assert (len(answers.working), answers.admission.waiting) == (LEAST_ANSWERS, 0)
    await answers.end(*range(LEAST_ANSWERS + 2))
    assert answers.working == []
