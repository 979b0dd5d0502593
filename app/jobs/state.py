"""The types of jobs, and the conversion of their requests to JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from app.types import LexiconEntry, Line, Sampling, SpeechRequest

if TYPE_CHECKING:
    from app.books.book import ResultFormat
    from app.books.results import LoudnessTarget
    from app.text.captions import CaptionFormat
    from app.types import TimedWord

JobStatus = Literal["queued", "running", "paused", "completed", "failed", "cancelled"]
SentenceStatus = Literal["pending", "done", "failed"]
ENDED: tuple[JobStatus, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a job is paused or has failed, or why a sentence could not be spoken."""

    code: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Options:
    """How the result of a job is written."""

    response_format: ResultFormat
    captions: tuple[CaptionFormat, ...] = ()  # the formats of the caption files that are written beside the audio
    loudness: LoudnessTarget = None  # None = the sound of the sentences is not changed


@dataclass(frozen=True, slots=True)
class About:
    """The description of a book. The tags of the result contain it."""

    title: str = ""
    author: str = ""
    narrator: str = ""
    language: str | None = None  # BCP 47


@dataclass(frozen=True, slots=True)
class NewChapter:
    """A chapter of a new job. If `voice` is None, the chapter has the voice of the job."""

    title: str
    text: str
    voice: str | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job before it is stored."""

    owner: str  # the digest of the API key that owns the job; "" if the server has no keys
    about: About
    chapters: tuple[NewChapter, ...]
    request: SpeechRequest  # The request fields that all sentences share. From the lines, only the voice is used.
    extras: frozenset[str]  # the request fields that OpenAI's API does not have
    options: Options
    seed: int
    cover: bytes | None = None
    paused: bool = False  # whether the new job is paused until `resume` is sent
    random_seed: bool = False  # whether the caller has asked for a random seed
    name: str = ""  # the name of the job in lists of jobs

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) of the texts and all options that determine the result.

        If the server chooses the seed, the seed is not included.
        """
        content = (
            asdict(self.about),
            [asdict(chapter) for chapter in self.chapters],
            request_to_json(self.request),
            sorted(self.extras),
            asdict(self.options),
            sha256(self.cover or b"").hexdigest(),
            self.name,
        )
        return sha256(json.dumps(content).encode()).hexdigest()

    @property
    def request_digest(self) -> str:
        """The SHA-256 (hex) of all that the caller has sent, to recognise a repeated request."""
        return sha256(json.dumps((self.digest, self.paused, self.random_seed)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a job is spoken."""

    sentences_done: int
    sentences_total: int  # grows until all chapters are split into sentences
    sentences_failed: int
    seconds_done: float
    planned: bool  # whether all chapters are split into sentences
    eta_s: float | None  # seconds until all is spoken; None = not known, or the job does not run


@dataclass(frozen=True, slots=True)
class Job:
    """The state of a job."""

    id: str
    owner: str
    status: JobStatus
    created_at: float  # Unix time in seconds
    updated_at: float
    about: About
    request: SpeechRequest
    extras: frozenset[str]
    options: Options
    seed: int
    progress: Progress
    chapters: int
    characters: int
    revision: int  # grows with each change of the job or of one of its sentences
    problem: Problem | None = None
    engine: str | None = None  # the engine that began the first sentence; None = no sentence is begun yet
    result: str | None = None  # the name of the file of the result
    result_facts: dict[str, Any] = field(default_factory=dict)  # facts about the result, such as its length
    name: str = ""
    labels: tuple[str, ...] = ()
    archived: bool = False


@dataclass(frozen=True, slots=True)
class ChapterState:
    """The state of a chapter."""

    index: int
    title: str
    voice: str | None
    characters: int
    planned: bool
    sentences: int
    sentences_done: int
    sentences_failed: int
    seconds: float  # the length of the spoken sentences of the chapter, with the pauses after them

    @property
    def status(self) -> Literal["pending", "running", "done", "failed"]:
        """The status of the chapter.

        `failed` means that all sentences of the chapter were tried, and at least one of them could not be spoken.
        """
        if self.planned and self.sentences_done == self.sentences:
            return "done"
        if self.planned and self.sentences_done + self.sentences_failed == self.sentences:
            return "failed"
        return "running" if self.sentences_done + self.sentences_failed else "pending"


@dataclass(frozen=True, slots=True)
class PlannedSentence:
    """A sentence of a chapter before it is stored."""

    text: str  # the text in the chapter, not normalised
    voice: str
    language: str | None
    pause_s: float  # seconds of silence after the sentence
    starts_paragraph: bool


@dataclass(frozen=True, slots=True)
class SentenceState:
    """The state of a sentence."""

    index: int  # in the job
    chapter: int
    text: str
    voice: str
    language: str | None
    pause_s: float
    starts_paragraph: bool
    status: SentenceStatus
    # How often the sentence was marked to be spoken again (redo, retry, new voice). It is part of the name of the sound
    # file.
    take: int
    seed: int
    samples: int | None  # None = not spoken yet
    seconds: float | None
    verified: str | None
    words: tuple[TimedWord, ...]
    problem: Problem | None
    changed: int  # the revision of the job after the last change of this sentence


@dataclass(frozen=True, slots=True)
class SpokenTake:
    """Facts about the audio of a spoken sentence. `samples` is the number of samples."""

    samples: int
    rate_hz: int
    verified: str
    words: tuple[TimedWord, ...] = ()


def sentence_seed(job_seed: int, index: int, take: int) -> int:
    """Return the seed (31 bits) of a sentence. The same arguments always give the same seed.

    take: see `SentenceState.take`. Each take of a sentence has a different seed.
    """
    return int.from_bytes(sha256(f"{job_seed} {index} {take}".encode()).digest()[:4]) >> 1


_PLAIN = ("model", "format", "speed", "sample_rate_hz", "seed", "instructions", "language", "normalize", "enhance")
_ALSO_PLAIN = ("verify", "best_of", "default_speaker", "timestamps")


# Control characters, which XML can't represent, and halves of characters (surrogates), which UTF-8 can't represent.
_NO_TEXT = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def storable(text: str) -> str:
    """Replace each character that XML or UTF-8 can't represent by a space. The length of the text does not change."""
    return _NO_TEXT.sub(" ", text)


def request_to_json(request: SpeechRequest) -> str:
    """Return, as JSON, the fields of a request that all sentences of the job share, and the voice of the request."""
    line = request.lines[0]
    values = {name: getattr(request, name) for name in (*_PLAIN, *_ALSO_PLAIN)}
    lexicon = [asdict(entry) for entry in request.lexicon]
    more = {"voice": line.voice, "speaker": line.speaker, "sampling": asdict(request.sampling), "lexicon": lexicon}
    return json.dumps(values | more)


def request_from_json(text: str) -> SpeechRequest:
    """Return the request that `request_to_json` has converted. Its only line has the voice, but no text."""
    values = json.loads(text)
    line = Line("", values.pop("voice"), values.pop("speaker"))
    sampling = Sampling(**values.pop("sampling"))
    lexicon = tuple(LexiconEntry(**entry) for entry in values.pop("lexicon"))
    return SpeechRequest(lines=(line,), sampling=sampling, lexicon=lexicon, use_cache=False, **values)
