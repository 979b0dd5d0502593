"""Forced alignment: find when each word of a known English text is spoken, and how well the audio fits the word.

A Viterbi search with the acoustic model of the `words` extra passes through the words in their order. Between two words
there may be silence, or audio that is no word of the text (called "other"). A word may be missing. "Other" audio and
missing words have fixed costs. So the Viterbi search finds a path for every recording, and the path shows which words
are missing and where "other" audio is.

`align` computes in the calling thread. `align` takes about 12 ms of CPU time per second of speech, and holds the GIL
for most of this time. `Aligner` runs `align` in a helper process with a deadline. So an alignment does not delay the
event loop, and a crash or a hang affects one call only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.audio import pcm
from app.audio.acoustic_model import (
    FRAME_S,
    RATE_HZ,
    SILENCE,
    STATES,
    AcousticModel,
    cepstra,
    features,
    find_model,
    load_model,
    log_likelihoods,
)
from app.audio.helper_process import HelperProcess
from app.audio.pronunciation import Pronouncer
from app.audio.resample import StreamResampler
from app.audio.warping import warp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from app.audio.pronunciation import Phonemes
    from app.types import Samples

    Floats = NDArray[np.float32]

log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "app.audio.alignment")
_NICE = 5  # niceness of the helper process: speech generation and HTTP answers have a higher priority

MAX_SECONDS = 120.0
_MIN_SECONDS = 0.1

# Costs in nats. The score of a frame is the log-likelihood of its state, minus the log-likelihood of the phoneme that
# fits the frame best.
_OTHER_PER_FRAME = 5.0  # the cost of a frame that belongs to no word of the text
_OTHER_ENTRY = 20.0
_SILENCE_ENTRY = 2.0
_MISSING = 40.0  # the cost of a word of the text that is not spoken
_WORST_FRAME = 20.0  # the largest cost of one frame
_LONGEST_STATE_S = 0.4  # the longest time that speech stays in one of the three states of a phoneme
_NEVER = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class AlignedWord:
    """A word of the text, with its time in the recording and its score."""

    word: str
    start_s: float
    end_s: float
    score: float  # mean score of the frames of the word: about 0 for clear speech, about -5 for audio without speech
    missing: bool = False  # True = the word is not spoken; then start_s equals end_s


@dataclass(frozen=True, slots=True)
class Alignment:
    """The result of an alignment: when each word of a text is spoken in a recording."""

    words: tuple[AlignedWord, ...]  # one for each word of the text, in order
    seconds: float  # length of the recording
    # Start and end in seconds of each part that is neither silence nor a word of the text.
    other: tuple[tuple[float, float], ...]
    # Score (in nats) of the best path that may end anywhere in the text, minus the score of the best path through the
    # whole text. About 0 to 10 if the recording contains the end of the text.
    cut_off: float
    phonemes: int  # sum of the numbers of phonemes in the shortest pronunciation of each word

    @property
    def score(self) -> float:
        """Return the mean score of the spoken words, weighted by their duration; -inf if no word is spoken."""
        spoken = [(word.score, word.end_s - word.start_s) for word in self.words if word.end_s > word.start_s]
        total = sum(seconds for _, seconds in spoken)
        return sum(score * seconds for score, seconds in spoken) / total if total > 0 else -np.inf

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(at for at, word in enumerate(self.words) if word.missing)

    @property
    def other_s(self) -> float:
        return sum(end - start for start, end in self.other)


def is_available() -> bool:
    """Return whether the `words` extra is installed."""
    return find_model() is not None


def align(
    samples: Samples,
    rate_hz: int,
    words: Sequence[str],
    ipa: Sequence[Sequence[str]] | None = None,
    *,
    part: bool = False,
) -> Alignment | None:
    """Align the words of an English text with samples (N,).

    words: the words as they are spoken, for example "forty" and "two" for 42. A word without letters and digits gets
    no time: its start equals its end. ipa: more pronunciations of each word in IPA; may be empty. part: True = the
    recording may contain only a part of the text. With part=True, missing words at the start and at the end of the text
    have no cost.

    Returns None if there is no word to align, if the recording is shorter than 0.1 s or longer than MAX_SECONDS, or if
    the `words` extra is not installed.
    """
    folder = find_model()
    seconds = len(samples) / rate_hz
    if folder is None or not _MIN_SECONDS <= seconds <= MAX_SECONDS:
        return None
    pronouncer = _pronouncer(folder)
    found = [pronouncer.pronunciations(word, ipa[at] if ipa else ()) for at, word in enumerate(words)]
    spoken = [at for at, variants in enumerate(found) if variants]
    if not spoken:
        return None
    model = load_model(folder)
    cepstrum = cepstra(_at_model_rate(samples, rate_hz))
    graph = _Graph(model, [found[at] for at in spoken])
    path = graph.search(cepstrum - cepstrum.mean(axis=0), part=part)
    return _report(words, spoken, path, seconds, graph.phonemes)


@functools.cache
def _pronouncer(folder: Path) -> Pronouncer:
    return Pronouncer(folder / "cmudict-en-us.dict")


def _at_model_rate(samples: Samples, rate_hz: int) -> Samples:
    resampler = StreamResampler(rate_hz, RATE_HZ)
    return np.concatenate((resampler.push(pcm.clip(samples)), resampler.flush()))


@dataclass(frozen=True, slots=True)
class _Path:
    """The best path through the states of a `_Graph`."""

    word: NDArray[np.int32]  # (T,) the word of each frame; -1 = silence, -2 = other
    score: Floats  # (T,) the score of each frame
    missing: frozenset[int]
    cut_off: float


class _Graph:
    """The states that a Viterbi search can pass through for one text.

    There are states for the pronunciations of each word, and states for silence and "other" audio before, between and
    after the words. Boundary b is before word b, and the last boundary is after the last word. The states of one
    pronunciation have consecutive indices.
    """

    def __init__(self, model: AcousticModel, words: Sequence[Sequence[Phonemes]]) -> None:
        self._model = model
        ids = {name: number for number, name in enumerate(model.phonemes)}
        silence = ids[SILENCE]
        senones: list[NDArray[np.int32]] = []
        phonemes: list[int] = []
        word_of: list[int] = []
        entries: list[tuple[int, int]] = []  # pairs: a state, and a boundary from which a path can enter it
        # For each boundary: the last states of the pronunciations and silences that can end there.
        exits: list[list[int]] = [[] for _ in range(len(words) + 1)]
        for at, variants in enumerate(words):
            before = ids[words[at - 1][0][-1]] if at else silence
            behind = ids[words[at + 1][0][0]] if at + 1 < len(words) else silence
            for variant in variants:
                entries.append((STATES * len(phonemes), at))
                numbers = [before, *(ids[name] for name in variant), behind]
                for place in range(1, len(numbers) - 1):
                    first, last = place == 1, place == len(numbers) - 2
                    position = 3 if first and last else 1 if first else 2 if last else 0
                    senones.append(model.senones(numbers[place], numbers[place - 1], numbers[place + 1], position))
                    phonemes.append(numbers[place])
                    word_of.append(at)
                exits[at + 1].append(STATES * len(phonemes) - 1)
        for boundary in range(len(words) + 1):
            entries.append((STATES * len(phonemes), boundary))
            senones.append(model.base_senones[silence])
            phonemes.append(silence)
            word_of.append(-1)
            exits[boundary].append(STATES * len(phonemes) - 1)
        self.phonemes = sum(min(map(len, variants)) for variants in words)
        self._phones = np.array(phonemes)
        self._senones = np.array(senones)
        self._boundaries = boundaries = len(words) + 1
        # The states from this index on are the states `other`, one for each boundary.
        self._inner = inner = STATES * len(phonemes)
        # The index of a state that no path reaches. It fills the unused places in `_exits`.
        self._nowhere = inner + boundaries
        self._word_of = np.concatenate((np.repeat(word_of, STATES), np.full(boundaries, -2))).astype(np.int32)
        entries += [(inner + boundary, boundary) for boundary in range(boundaries)]
        self._entry_state, self._entry_boundary = np.array(entries).T
        cost = np.zeros(len(entries), np.float32)
        cost[-2 * boundaries : -boundaries] = _SILENCE_ENTRY
        cost[-boundaries:] = _OTHER_ENTRY
        self._entry_cost = cost
        width = max(map(len, exits)) + 1
        self._exits = np.full((boundaries, width), self._nowhere)
        for boundary, states in enumerate(exits):
            self._exits[boundary, : len(states) + 1] = [*states, inner + boundary]

    def search(self, cepstrum: Floats, *, part: bool = False) -> _Path:
        """Find the best path for normalised cepstra (T, 13) with the Viterbi algorithm.

        part: True = the path may begin and end at any word.
        """
        scores, column = self._frame_scores(features(cepstrum))
        stay, leave = self._transitions()
        frames, boundaries, states = len(cepstrum), self._boundaries, self._nowhere + 1
        entry_state, entry_boundary = self._entry_state, self._entry_boundary
        moved = np.zeros((frames, states), bool)
        # (frame, boundary) -> the state before the boundary on the best path.
        came_from = np.zeros((frames + 1, boundaries), np.int32)
        # True = the best path to the boundary skips the word directly in front of this boundary.
        skipped = np.zeros((frames + 1, boundaries), bool)
        every = np.arange(boundaries)
        ramp = np.float32(_MISSING) * every.astype(np.float32)
        score = np.full(states, _NEVER)
        at_boundary = np.zeros_like(ramp) if part else -ramp
        skipped[0, 1:] = True
        step = np.full(states, _NEVER)
        for frame in range(frames):
            np.add(score[:-1], leave[:-1], out=step[1:])
            ends = score + leave
            if frame:
                ends = ends[self._exits]
                best = ends.argmax(axis=1)
                came_from[frame] = self._exits[every, best]
                direct = ends[every, best]
                at_boundary = np.maximum.accumulate(direct + ramp) - ramp
                skipped[frame] = at_boundary > direct + 1e-3
            step[entry_state] = at_boundary[entry_boundary] - self._entry_cost
            score += stay
            np.greater(step, score, out=moved[frame])
            np.maximum(step, score, out=score)
            score += scores[frame][column]
        ends = (score + leave)[self._exits]
        best = ends.argmax(axis=1)
        came_from[frames] = self._exits[every, best]
        direct = ends[every, best]
        if part:
            ramp = np.zeros_like(ramp)
        at_boundary = np.maximum.accumulate(direct + ramp) - ramp
        skipped[frames] = at_boundary > direct + 1e-3
        cut_off = float(score[: self._inner].max() - at_boundary[-1])
        path, missing = self._trace(moved, came_from, skipped)
        word = self._word_of[path]
        word[_is_stretched(path) & (word >= 0)] = -2
        return _Path(word, scores[np.arange(frames), column[path]], missing, cut_off)

    def _frame_scores(self, streams: Sequence[Floats]) -> tuple[Floats, NDArray[np.intp]]:
        """Return the scores (T, C) of all frames, and for each state the index of its column in the scores.

        A state has two senones: one for its phoneme in context, and one without context. The better score counts,
        because a speaker may pause or join words, which changes the context.
        """
        model = self._model
        base = model.base_senones[self._phones]
        pairs, column = np.unique(np.stack((self._senones.ravel(), base.ravel()), axis=1), axis=0, return_inverse=True)
        all_base = np.unique(model.base_senones)
        senones = np.union1d(pairs, all_base).astype(np.int32)
        likelihoods = log_likelihoods(model, streams, senones)
        best = likelihoods[:, np.searchsorted(senones, all_base)].max(axis=1, keepdims=True)
        places = np.searchsorted(senones, pairs)
        scores = np.full((len(best), len(pairs) + 2), -_OTHER_PER_FRAME, np.float32)
        scores[:, -1] = _NEVER
        np.maximum(likelihoods[:, places[:, 0]], likelihoods[:, places[:, 1]], out=scores[:, :-2])
        scores[:, :-2] -= best
        np.maximum(scores[:, :-2], -_WORST_FRAME, out=scores[:, :-2])
        other = np.full(self._boundaries, len(pairs))
        return scores, np.concatenate((column.ravel(), other, [len(pairs) + 1]))

    def _transitions(self) -> tuple[Floats, Floats]:
        """Return the log-probabilities (states,) to stay in a state, and to leave it."""
        model, boundaries = self._model, self._boundaries
        stay = np.concatenate((model.stay[self._phones].ravel(), np.zeros(boundaries), [_NEVER]))
        leave = np.concatenate((model.leave[self._phones].ravel(), np.zeros(boundaries), [_NEVER]))
        return stay.astype(np.float32), leave.astype(np.float32)

    def _trace(
        self, moved: NDArray[np.bool_], came_from: NDArray[np.int32], skipped: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], frozenset[int]]:
        """Follow the best path from its end to its start. Returns the state of each frame, and the indices of the
        missing words.
        """
        entered_from = np.full(self._nowhere + 1, -1)
        entered_from[self._entry_state] = self._entry_boundary
        path = np.zeros(len(moved), np.int32)
        missing = set()
        frame, boundary = len(moved), self._boundaries - 1
        while True:
            while boundary > 0 and skipped[frame, boundary]:
                boundary -= 1
                missing.add(boundary)
            if frame == 0:
                return path, frozenset(missing)
            state = came_from[frame, boundary]
            while frame:
                frame -= 1
                path[frame] = state
                if moved[frame, state]:
                    if entered_from[state] >= 0:
                        break
                    state -= 1
            boundary = entered_from[state]


def _is_stretched(path: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return for each frame (T,) whether the path has been in the same state for more than _LONGEST_STATE_S. Such a
    frame is often noise: for example, noise after a final S sounds like a longer S.
    """
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    lengths = np.diff(starts, append=len(path))
    place = np.arange(len(path)) - np.repeat(starts, lengths)
    stretched: NDArray[np.bool_] = place >= round(_LONGEST_STATE_S / FRAME_S)
    return stretched


def _report(words: Sequence[str], spoken: Sequence[int], path: _Path, seconds: float, phonemes: int) -> Alignment:
    edges = np.flatnonzero(np.diff(path.word, prepend=-3, append=-3))
    times: dict[int, tuple[float, float, float]] = {}
    other = []
    for first, last in itertools.pairwise(edges.tolist()):
        number = int(path.word[first])
        start_s, end_s = round(first * FRAME_S, 2), round(min(last * FRAME_S, seconds), 2)
        if number == -2:
            other.append((start_s, end_s))
        elif number >= 0:
            at = spoken[number]
            # "Other" audio inside the word divides it into two parts: the start of the first part counts.
            start_s = times[at][0] if at in times else start_s
            times[at] = (start_s, end_s, float(path.score[path.word == number].mean()))
    missing = {spoken[word] for word in path.missing}
    aligned = []
    last_s = 0.0
    for at, word in enumerate(words):
        start_s, end_s, score = times.get(at, (last_s, last_s, -_WORST_FRAME if at in missing else 0.0))
        aligned.append(AlignedWord(word, start_s, end_s, score, at in missing))
        last_s = end_s
    return Alignment(tuple(aligned), seconds, tuple(other), path.cut_off, phonemes)


# ---- run `align` in a helper process


class Aligner(HelperProcess):
    """Runs `align` in a helper process. Thread-safe. The method `align` blocks, so call it in a thread.

    The first call starts the helper process, which takes 0.4 s and 70 MB. The helper process ends with the server. The
    helper process runs one call at a time. A call takes about 1 % of the duration of the recording.
    """

    def __init__(
        self, pronounce: Callable[[str], Iterable[str]] | None = None, *, command: Sequence[str] = _COMMAND
    ) -> None:
        """pronounce: a function that returns the IPA pronunciations of a word. The function is called for each word of
        a text.
        """
        super().__init__(command, end_s=0.0)
        self._pronounce = pronounce
        self._closed = threading.Event()
        atexit.register(self.close)

    def close(self) -> None:
        """End the helper process and never start it again. Running and later calls of `align` return None."""
        self._closed.set()
        while not self._lock.acquire(timeout=0.05):
            if (process := self._process) is not None:
                process.kill()
        try:
            self._end()
        finally:
            self._lock.release()

    def align(
        self,
        samples: Samples,
        rate_hz: int,
        words: Sequence[str],
        *,
        ipa: Sequence[Sequence[str]] | None = None,
        part: bool = False,
        deadline_s: float | None = None,
    ) -> Alignment | None:
        """Call the function `align` in the helper process. Returns None if no alignment is found, if the call takes
        longer than deadline_s, or if the call fails.

        ipa: pronunciations of each word, in addition to the results of `pronounce`; None = no more pronunciations.
        deadline_s: in seconds; None = 10 s plus the length of the recording.
        """
        if not is_available():
            return None
        limit_s = deadline_s if deadline_s is not None else 10.0 + len(samples) / rate_hz
        known = [(*(ipa[at] if ipa else ()), *self._pronounced(word)) for at, word in enumerate(words)]
        order = {"rate_hz": rate_hz, "words": list(words), "ipa": known, "part": part, "bytes": [2 * len(samples)]}
        answer = self._call(order, pcm.to_bytes(samples), limit_s)
        return None if answer is None else _from_json(answer)

    def warp(
        self,
        samples: Samples,
        rate_hz: int,
        reference: Samples,
        reference_rate_hz: int,
        times: Sequence[float],
        *,
        deadline_s: float,
    ) -> list[float] | None:
        """Call `warping.warp` in the helper process. Returns None if `warp` does, if the call fails, or if it takes
        longer than deadline_s seconds.
        """
        order = {
            "rate_hz": rate_hz,
            "reference_rate_hz": reference_rate_hz,
            "times": list(times),
            "bytes": [2 * len(samples), 2 * len(reference)],
        }
        answer: list[float] | None = self._call(order, pcm.to_bytes(samples) + pcm.to_bytes(reference), deadline_s)
        return answer

    def _pronounced(self, word: str) -> tuple[str, ...]:
        return tuple(self._pronounce(word)) if self._pronounce else ()

    def _call(self, order: dict[str, Any], sound: bytes, limit_s: float) -> Any:
        """Send one job, as JSON and audio, to the helper process, and return its answer; None if it gives no valid
        answer within limit_s.
        """
        until = time.monotonic() + limit_s
        if not self._lock.acquire(timeout=limit_s):
            log.warning("Speech is not aligned with its text: the alignment process was busy for %.1f s", limit_s)
            return None
        try:
            head = json.dumps(order).encode() + b"\n"
            for _ in range(2):  # try twice, because the helper process may have ended since the last call
                if self._closed.is_set():
                    return None
                try:
                    return self._exchange(head, sound, until)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    if self._closed.is_set():
                        return None
                    log.warning(
                        "The alignment process gave no valid answer, so it is stopped: %r",
                        error,
                    )
                    self._end()
                    if isinstance(error, TimeoutError):
                        return None
        finally:
            self._lock.release()
        return None

    def _exchange(self, order: bytes, sound: bytes, until: float) -> Any:
        line = self._running()
        line.settimeout(max(0.01, until - time.monotonic()))
        line.sendall(order + sound)
        reply = bytearray()
        while not reply.endswith(b"\n"):
            line.settimeout(max(0.01, until - time.monotonic()))
            part = line.recv(1 << 16)
            if not part:
                raise ConnectionResetError("the helper process closed the connection")
            reply += part
        return json.loads(reply)


def _from_json(answer: dict[str, Any]) -> Alignment:
    words = tuple(AlignedWord(*word) for word in answer["words"])
    other = tuple((start, end) for start, end in answer["other"])
    return Alignment(words, answer["seconds"], other, answer["cut_off"], answer["phonemes"])


def _serve(line: socket.socket) -> None:
    """Run the jobs that the server sends, until the server closes the connection."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    # Ignore Ctrl+C: the server still finishes its answers, and needs this process for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with line, line.makefile("rb") as orders:
        while text := orders.readline():
            order = json.loads(text)
            sounds = [pcm.from_bytes(orders.read(size)) for size in order["bytes"]]
            answer: object
            if "times" in order:
                answer = warp(sounds[0], order["rate_hz"], sounds[1], order["reference_rate_hz"], order["times"])
            else:
                found = align(sounds[0], order["rate_hz"], order["words"], order["ipa"], part=order["part"])
                answer = None if found is None else {**asdict(found), "words": [astuple(word) for word in found.words]}
            line.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
