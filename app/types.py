"""The nouns that every room shares: requests, voices, utterances, audio. No behaviour beyond their own arithmetic.

Floor 0: imports numpy for types only, so that `app.api` can use these without numpy or torch being loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]  # (N,) mono, nominally in [-1, 1]
    Codes = NDArray[np.int16]  # (K, T) codec tokens, one column per frame

AudioFormat = str  # a key of app.audio.formats.FORMATS

LATE_S = 0.25  # of gaps: less can be the network's and the event loop's

Codec = Literal["mimi", "dac", "none"]
VoiceKind = Literal["preset", "cloned", "offline", "none"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How codes are drawn. None = the engine's own default.

    temperature 0 is greedy; top_k in tokens; top_p a probability mass; cfg_scale is classifier-free guidance (Dia).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One speaker's text as the caller wrote it, with the voice id that speaks it.

    speaker: the number an engine tells speakers apart by; None = by their voices.
    """

    text: str
    voice: str
    speaker: int | None = None


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """One validated request, engine-independent. One line is speech, several are a dialogue.

    speed 0.25-4 (pitch kept), sample_rate_hz 8000-48000 of the encoded answer, seed None = derived from the content,
    max_audio_ms = hard limit on the answer's length, language = BCP 47 or None for the voice's own, enhance = whether
    its loudness is evened out, None = as the server is set, context = what was said before, oldest first, conversation
    = the key of one that is remembered, parallel = sentences side by side where the engine could go on in place.
    """

    model: str
    lines: tuple[Line, ...]
    format: AudioFormat = "mp3"
    speed: float = 1.0
    sample_rate_hz: int = 24_000
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    instructions: str | None = None
    language: str | None = None
    max_audio_ms: int | None = None
    normalize: bool = True
    enhance: bool | None = None
    use_cache: bool = True
    context: tuple[Turn, ...] = ()
    conversation: str | None = None
    parallel: bool = False

    def digest(self, *context: str) -> str:
        """sha256 (hex) of everything that changes the bytes, with `context` (engine fingerprint, voice digests).

        Not of `model`: its aliases name one engine, which the context tells.
        """
        return self._hash(("model", "use_cache"), context)

    def content_seed(self, *context: str) -> int:
        """A seed (31 bits), the same for the same words, voices and sampling, in whatever format they are sent."""
        told = (
            "model",
            "use_cache",
            "format",
            "speed",
            "sample_rate_hz",
            "max_audio_ms",
            "seed",
            "enhance",
            "parallel",
        )
        return int(self._hash(told, context)[:8], 16) >> 1

    def _hash(self, leave_out: tuple[str, ...], context: tuple[str, ...]) -> str:
        whole = _named(self)  # asdict would copy every sample, and takes longer than all the rest
        whole["lines"] = [_named(line) for line in self.lines]
        whole["sampling"] = _named(self.sampling)
        whole["context"] = [(turn.speaker, turn.text, turn.digest) for turn in self.context]
        if not self.parallel:  # so that what was asked before there was this field is the same still
            del whole["parallel"]
        told = {name: value for name, value in whole.items() if name not in leave_out}
        canonical = json.dumps([told, context], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _named(record: SpeechRequest | Line | Sampling) -> dict[str, object]:
    """A dataclass's fields by name, as they are."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


def conversation_key(owner: str, conversation_id: str) -> str:
    """The key (hex) of an owner's conversation. owner: what tells callers apart, empty where all are one."""
    return hashlib.sha256(f"{len(owner)} {owner} {conversation_id}".encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice that can be asked for by id. `digest` keys everything derived from it (prompts, cached answers)."""

    id: str
    name: str
    kind: VoiceKind
    language: str = "en"
    description: str = ""
    digest: str = ""
    speaker: int = 0  # what a model with speaker numbers calls it where it has no recording to go by
    level_lufs: float | None = None  # how loud its recording is, which models follow; None = as the engine speaks
    recorded: bool = False  # there is a recording to go by


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording that shows an engine how a voice sounds: samples (N,) float32 mono, its rate and exact words."""

    samples: Samples
    rate_hz: int
    transcript: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class Said:
    """Something said before in a conversation, as the caller sent it: a sound file nobody has looked into yet."""

    speaker: int
    text: str
    audio: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """Something said before in a conversation, decoded. digest = sha256 (hex) of the samples, which stand for them."""

    speaker: int
    text: str
    digest: str
    reference: Reference = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """A reference as codec tokens: codes (K, T) int16. Mimi: K=32 at 12.5 Hz; DAC: K=9 at 86.13 Hz."""

    voice_digest: str
    codec: Codec
    codes: Codes
    transcript: str


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """What an engine speaks: plain words (already normalised), who says them, and the prompt that shows how."""

    text: str
    speaker: int
    voice: Voice
    prompt: VoicePrompt | None = None


@dataclass(frozen=True, slots=True)
class ContextTurn:
    """Something said earlier in a conversation, as the engine should have heard it."""

    speaker: int
    text: str
    codes: Codes


@dataclass(eq=False, slots=True)
class Playback:
    """How far an answer is ahead of a listener who began with its first sound and plays at normal speed.

    Written by who hands the sound on, read by the engine's thread, which may be a chunk behind: plain numbers, no lock.
    tempo: seconds of the engine's sound that are played in a second. present: the number of the utterance that is
    being handed on. Times are of time.monotonic().
    """

    tempo: float = 1.0
    present: int = 0
    gaps_s: float = 0.0
    _handed_s: float = 0.0
    _began_s: float | None = None

    def hand(self, seconds: float, now_s: float) -> None:
        """So much more of the engine's sound has been handed on."""
        if seconds <= 0:
            return
        if self._began_s is None:
            self._began_s = now_s
        elif (ahead_s := self.ahead_s(now_s)) < 0:
            self.gaps_s -= ahead_s / self.tempo
            self._began_s = now_s - self._handed_s / self.tempo  # the listener starts again from here
        self._handed_s += seconds

    @property
    def late(self) -> bool:
        """Whether the listener has run dry: this answer can't be made as fast as it is played."""
        return self.gaps_s > LATE_S

    def left_s(self, now_s: float) -> float:
        """How long the listener can do without more: `ahead_s` as it is played."""
        return self.ahead_s(now_s) / self.tempo

    def ahead_s(self, now_s: float) -> float:
        """Seconds of the engine's sound that the listener has and has not heard; below 0 they wait for more."""
        return 0.0 if self._began_s is None else self._handed_s - self.tempo * (now_s - self._began_s)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One job for an engine. follows: a later part of an answer that is already sounding; it is never refused.
    background: nobody waits for it; it advances only while nobody else does, and gives its row up when that is wanted.
    remembered: so many of the context's turns, the first ones, may be left out, oldest first, where room is short.
    number: its place in its answer, counted from 0. playback: of that answer, None = nobody plays it while it is made.
    """

    lines: tuple[SpokenLine, ...]
    sampling: Sampling
    seed: int
    max_seconds: float
    language: str | None = None
    context: tuple[ContextTurn, ...] = ()
    follows: bool = False
    background: bool = False
    remembered: int = 0
    number: int = 0
    playback: Playback | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A stretch of sound, always delta, never cumulative: samples (N,) float32 mono in [-1, 1]; start = index of
    samples[0] in its utterance; codes (K, T) int16 where the engine speaks through a codec."""

    samples: Samples
    rate_hz: int
    start: int
    codes: Codes | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and can do. The studio and the API ask this instead of asking for an engine's name.

    continues: takes several sentences in one utterance and goes on in place. extras: which of our request extras it
    honours beyond those that the studio fulfils for all. fingerprint changes whenever the same request would sound
    different (weights, version). max_context_s: how much of a conversation it can hear, if "context" is in extras.
    level_lufs: how loud its voices without a recording speak, where loudness starts from.
    max_speakers, max_prompt_s: in one utterance, the latter of its voices' recordings together. max_passage_chars: up
    to here it takes several lines in one utterance, of several speakers; 0 = it does not. apart: an answer's utterances
    may be spoken at the same time, in rows that nobody else wants.
    codec: in whose codes it wants recordings of voices, "none" = it can't learn a voice. codec_fingerprint changes
    whenever the same recording would have other codes. examples: the folder of the recordings that came with a model.
    sounds: what it does, rather than says, where a text has it in parentheses: "laughs". setup: how it runs on its
    device, for /health: names and plain values.
    """

    id: str
    name: str
    rate_hz: int
    frame_s: float
    continues: bool
    extras: frozenset[str]
    languages: tuple[str, ...]
    fingerprint: str
    device: str = "cpu"
    dtype: str = "float32"
    max_speakers: int = 1
    max_text_chars: int = 400
    max_context_s: float | None = None
    level_lufs: float = -20.0
    max_prompt_s: float | None = None
    max_passage_chars: int = 0
    apart: bool = False
    codec: Codec = "none"
    codec_fingerprint: str = ""
    examples: str = ""
    sounds: frozenset[str] = frozenset()
    setup: tuple[tuple[str, str | int | float | bool | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, for /health, metrics and balancers: rows speaking and their limit, requests waiting."""

    active_rows: int
    max_rows: int
    queued: int
    max_queue: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One of the devices that speech is made on. out: why it is no longer used; "" = it is."""

    device: str
    out: str
    load: Load
