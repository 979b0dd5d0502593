"""Checks takes while an answer is generated, and keeps the results of these checks. A take is one generated version of
an utterance.

`TTS_VERIFY` and the request fields `verify` and `best_of` decide which takes are checked:

- `unheard`: only takes of which no audio was sent yet. A bad take is generated once more with another seed.
- `all`: all takes, also those whose audio was already sent. A bad take that was sent is only reported, and the answer
  is not cached.

The word aligner runs in a helper process (`audio/alignment.py`). A thread waits for its results, so the event
loop is never blocked.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Literal

from app.audio.alignment import Aligner, is_available
from app.audio.guard import pace_of, speech_length
from app.audio.verification import Verdict, Verifier, best_take, is_english, is_english_tag
from app.text.nonverbal import without_sounds
from app.text.punctuation import has_words

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from app.generator.job import SpeechJob
    from app.generator.planning import PlannedUtterance
    from app.generator.take import Take
    from app.metrics import Metrics
    from app.text.normalizer import Normalizer
    from app.types import EngineInfo, Samples, SpeechRequest

log = logging.getLogger(__name__)

Setting = Literal["off", "auto", "all"]  # the values of TTS_VERIFY
Scope = Literal["none", "unheard", "all"]
Result = Literal["ok", "retried", "uncertain", "unchecked"]

DEADLINE_S = 10.0  # time limit of one check, in addition to the length of the audio
# Extra time for the thread, so that the deadline of the aligner is reached first and ends its process.
THREAD_SLACK_S = 0.5
# At the end of its audio, an answer waits for the checks of the audio that was sent already, at most for this long.
LATE_CHECKS_S = 3.0
SOUND_S = 3.0  # the longest duration of a non-verbal sound such as (laughs)
UNCHECKED = Verdict("unchecked", "no_answer")


class TakeChecker:
    """Checks takes with one word aligner. The process of the aligner starts at the first check. Use it from one event
    loop.
    """

    def __init__(self, setting: Setting, aligner: Aligner | None = None) -> None:
        """setting: the value of TTS_VERIFY. aligner: is closed by `close`; None = a new aligner."""
        self.setting: Setting = setting
        self._aligner = aligner or Aligner()
        self._verifier = Verifier(self._aligner)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verify")  # the aligner does one check at a time

    @property
    def missing(self) -> str | None:
        """The reason why no speech can be checked; None = speech can be checked."""
        return None if is_available() else "The `words` extra is not installed."

    def scope(self, request: SpeechRequest, info: EngineInfo) -> Scope:
        """Return which takes of a request are checked."""
        if request.verify is True or request.best_of > 1:
            return "all"
        if request.verify is False or self.setting == "off":
            return "none"
        if self.setting == "all":
            return "all"
        return "unheard" if info.seeded else "none"

    async def check(
        self,
        samples: Samples,
        rate_hz: int,
        text: str,
        *,
        language: str | None,
        expected_s: float | None,
        allowed_s: float,
    ) -> Verdict:
        """Check a take (N,). Returns `unchecked` if the aligner fails or takes too long. See `Verifier.check`."""
        deadline_s = DEADLINE_S + len(samples) / rate_hz
        work = partial(
            self._verifier.check,
            samples,
            rate_hz,
            text,
            language=language,
            expected_s=expected_s,
            allowed_s=allowed_s,
            deadline_s=deadline_s,
        )
        try:
            async with asyncio.timeout(deadline_s + THREAD_SLACK_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            log.warning("a take is not checked, because the word aligner gave no answer within %.1f s", deadline_s)
        except Exception:
            log.exception("the check of a take raised an error, so the take is used without a check")
        return UNCHECKED

    async def close(self) -> None:
        """End the helper process and the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._aligner.close)


class AnswerChecks:
    """The checks of one answer. The caller must call `close`."""

    def __init__(self, checker: TakeChecker | None, job: SpeechJob, normalizer: Normalizer, metrics: Metrics) -> None:
        """checker: None = no take is checked."""
        self._checker = checker
        self._job = job
        self._normalizer = normalizer
        self._metrics = metrics
        self.scope: Scope = "none" if checker is None else checker.scope(job.request, job.info)
        self._begun = 0  # number of utterances that have begun
        self._results: list[Result] = []  # results of the utterances
        self._all_judged = True
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def possible(self) -> bool:
        """Whether a check of this request is possible. If the value is False, the result is certainly `unchecked`."""
        checker, language = self._checker, self._job.request.language
        return checker is not None and checker.missing is None and (language is None or is_english_tag(language))

    @property
    def complete(self) -> bool:
        """Whether each utterance so far was checked, or needs no check because of its language."""
        return self._all_judged and 0 < self._begun == len(self._results)

    @property
    def waiting(self) -> bool:
        """Whether checks of audio that was already sent are still running."""
        return any(not task.done() for task in self._tasks)

    def begin(self) -> None:
        """Record that an utterance begins."""
        self._begun += 1

    async def check(self, planned: PlannedUtterance, take: Take, wait_s: float | None = None) -> None:
        """Check a complete take, and set its attribute `verdict`.

        wait_s: how long the caller can wait; None = until the check ends. If the check takes longer, it continues, and
        `finish` waits for it.
        """
        if self.scope == "none" or (self.scope == "unheard" and (take.sent or wait_s == 0)):
            return
        take.checking = self._start(self._check(planned, take))
        if wait_s is None or (wait_s > 0 and not take.sent):
            await asyncio.wait({take.checking}, timeout=wait_s)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    async def _check(self, planned: PlannedUtterance, take: Take) -> None:
        audio, checker, job = take.audio, self._checker, self._job
        if audio is None or checker is None:
            return
        text, sounds = without_sounds(planned.text)
        language = job.language_of(text, planned.lines[0].voice)
        if not job.request.normalize:
            text = self._normalizer.normalize(text, english=is_english(text, language))
        take.verdict = await checker.check(
            audio,
            job.info.rate_hz,
            text,
            language=language,
            expected_s=_expected_s(planned, job.info.frame_s),
            allowed_s=SOUND_S * sounds,
        )

    def record(self, number: int, takes: Sequence[Take], kept: Take) -> None:
        """Record the result of an utterance. number: its index in the answer. takes: all its takes, in order."""
        if kept.checking is None or kept.checking.done():
            self._record(number, takes, kept)
        else:
            self._start(self._record_late(kept.checking, number, takes, kept))

    async def _record_late(self, checking: asyncio.Task[None], number: int, takes: Sequence[Take], kept: Take) -> None:
        await asyncio.wait({checking})
        self._record(number, takes, kept)

    def _record(self, number: int, takes: Sequence[Take], kept: Take) -> None:
        repeated = len(takes) > 1 and self._job.request.best_of == 1
        result = "uncertain" if kept.failures and self.scope == "all" else _result(kept, repeated=repeated)
        self._results.append(result)
        self._metrics.verified(result)
        self._all_judged = self._all_judged and kept.verdict is not None and kept.verdict.reason not in _NOT_JUDGED
        if result not in ("retried", "uncertain"):
            return
        reasons = ", ".join(take.verdict.reason for take in takes if take.verdict and take.bad)
        log.warning(
            "the check of utterance %d (engine %s, seed %d) found %s, so %s",
            number,
            self._job.info.id,
            self._job.seed,
            reasons or "a take that broke a rule of the output guard",
            "a take with another seed is used" if result == "retried" else "the answer is not cached",
        )

    async def finish(self) -> Result:
        """Wait for the checks of audio that was sent, and return the result of the whole answer."""
        if self.waiting:
            await asyncio.wait(self._tasks, timeout=LATE_CHECKS_S)
            # End the checks that still run, because the loop below counts their utterances as `unchecked`.
            await self.close()
        # These utterances have no result, because the length limit has cut them or their check takes too long.
        for _ in range(self._begun - len(self._results)):
            self._results.append("unchecked")
            self._metrics.verified("unchecked")
            self._all_judged = False
        return overall(self._results)

    async def close(self) -> None:
        """Cancel the checks that still run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# A take with one of these reasons was not checked now, but can be checked later.
_NOT_JUDGED = ("not_installed", "no_answer")


def _result(take: Take, *, repeated: bool) -> Result:
    if take.verdict is None or take.verdict.status == "unchecked":
        return "unchecked"
    if take.verdict.status == "bad" or take.failures:
        return "uncertain"
    return "retried" if repeated else "ok"


def overall(results: Sequence[Result]) -> Result:
    """Return the result of an answer: the worst result of its utterances, or `unchecked` if there are no results."""
    order: tuple[Result, ...] = ("uncertain", "unchecked", "retried", "ok")
    return next((result for result in order if result in results), "unchecked")


def is_whole(take: Take, text: str) -> bool:
    """Return whether a take of this text broke no rule of the output guard and is not silent."""
    return not take.failures and not (take.silent and has_words(text))


def whole_takes(takes: Sequence[Take], text: str) -> list[Take]:
    """Return the takes of an utterance that broke no rule of the output guard and are not silent."""
    return [take for take in takes if is_whole(take, text)]


def best_of_takes(takes: Sequence[Take], text: str) -> Take:
    """Return the take of an utterance to keep.

    If a part of the last take was sent, the last take is kept. Otherwise, the best of the takes that `whole_takes`
    returns is kept. If it returns no take, the last take is kept.
    """
    if takes[-1].sent:
        return takes[-1]
    whole = whole_takes(takes, text) or [takes[-1]]
    return whole[best_take([take.verdict or UNCHECKED for take in whole])]


def _expected_s(planned: PlannedUtterance, frame_s: float) -> float | None:
    """Return how long the voices should take for the text, from the pace of their recordings. Returns None if a pace is
    unknown.
    """
    seconds = 0.0
    for line in planned.lines:
        prompt = line.prompt
        pace = None if prompt is None else pace_of(prompt.transcript, prompt.codes.shape[1] * frame_s)
        if pace is None:
            return None
        seconds += speech_length(without_sounds(line.text)[0]) / pace
    return seconds
