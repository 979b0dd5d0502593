"""The data types that every package shares: requests, voices, utterances, audio, engine descriptions.

They hold data and simple arithmetic. numpy is imported for type checking only, so that `app.api` works without it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]  # (N,) mono, nominally in [-1, 1]
    Codes = NDArray[np.int16]  # (K, T) codec tokens, one column per frame

AudioFormat = str  # a key of app.audio.formats.AUDIO_FORMATS

Codec = str  # an audio codec's name: "mimi", "dac" or a plug-in's own; it becomes part of file names
NO_CODEC: Codec = "none"  # the engine has no codec: it cannot clone a voice
VoiceKind = Literal["preset", "cloned", "offline", "none"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine draws codes. None = the engine's default."""

    temperature: float | None = None  # 0 = greedy
    top_k: int | None = None  # keep the k most likely codes
    top_p: float | None = None  # keep the most likely codes up to this probability mass
    cfg_scale: float | None = None  # scale of classifier-free guidance


@dataclass(frozen=True, slots=True)
class Line:
    """One speaker's text as the caller wrote it."""

    text: str
    voice: str  # voice id
    speaker: int | None = None  # the speaker number for the engine; None = derived from the voices


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """One validated request, independent of the engine. One line is speech, several lines are a dialogue.

    The cache key is computed from the field names: a renamed field makes every cached answer unreachable.
    """

    model: str
    lines: tuple[Line, ...]
    format: AudioFormat = "mp3"
    speed: float = 1.0  # 0.25 to 4; the pitch stays
    sample_rate_hz: int = 24_000  # of the encoded answer, 8000 to 48000
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None  # None = derived from the content
    instructions: str | None = None
    language: str | None = None  # BCP 47; None = the voice's language
    max_audio_ms: int | None = None  # hard limit on the answer's length
    normalize: bool = True  # write numbers, dates and symbols as words
    enhance: bool | None = None  # even out the loudness; None = the server's setting
    use_cache: bool = True
    context: tuple[Turn, ...] = ()  # earlier turns of the conversation, oldest first
    conversation: str | None = None  # the key of a remembered conversation
    parallel: bool = False  # generate sentences in parallel, even where the engine could continue in place

    def digest(self, *context: str) -> str:
        """sha256 (hex) of everything that changes the answer's bytes. context: engine fingerprint, voice digests.

        `model` is left out: it has aliases, and the engine fingerprint identifies the engine.
        """
        return self._hash(("model", "use_cache"), context)

    def content_seed(self, *context: str) -> int:
        """A seed (31 bits) that depends on words, voices and sampling, and not on the audio format."""
        left_out = (
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
        return int(self._hash(left_out, context)[:8], 16) >> 1

    def _hash(self, left_out: tuple[str, ...], context: tuple[str, ...]) -> str:
        values = _fields_of(self)  # asdict would copy every sample, which takes longer than the rest of this method
        values["lines"] = [_fields_of(line) for line in self.lines]
        values["sampling"] = _fields_of(self.sampling)
        values["context"] = [(turn.speaker, turn.text, turn.digest) for turn in self.context]
        if not self.parallel:  # keeps the keys of requests from before this field existed
            del values["parallel"]
        kept = {name: value for name, value in values.items() if name not in left_out}
        canonical = json.dumps([kept, context], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _fields_of(record: SpeechRequest | Line | Sampling) -> dict[str, object]:
    """A dataclass's fields by name, without copying the values."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


def conversation_key(owner: str, conversation_id: str) -> str:
    """The key (hex) of an owner's conversation. owner: identifies the caller; empty where all callers are one."""
    return hashlib.sha256(f"{len(owner)} {owner} {conversation_id}".encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice that a request can name."""

    id: str
    name: str
    kind: VoiceKind
    language: str = "en"
    description: str = ""
    digest: str = ""  # part of the key of everything derived from this voice: prompts, cached answers
    speaker: int = 0  # the speaker number for models with speaker numbers, where the voice has no recording
    level_lufs: float | None = None  # loudness of its recording, which models imitate; None = the engine's loudness
    recorded: bool = False  # it has a reference recording


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference recording: it shows an engine how a voice sounds."""

    samples: Samples  # (N,) float32 mono
    rate_hz: int
    transcript: str  # its exact words

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class UploadedTurn:
    """An earlier turn of a conversation as the caller sent it: the audio file is not decoded yet."""

    speaker: int
    text: str
    audio: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier turn of a conversation, decoded."""

    speaker: int
    text: str
    digest: str  # sha256 (hex) of the samples
    reference: Reference = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """A reference recording as codec tokens."""

    voice_digest: str
    codec: Codec
    codes: Codes  # (K, T) int16. Mimi: K=32 at 12.5 Hz; DAC: K=9 at 86.13 Hz
    transcript: str


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """A line for an engine."""

    text: str  # plain words, already normalised
    speaker: int
    voice: Voice
    prompt: VoicePrompt | None = None


@dataclass(frozen=True, slots=True)
class ContextTurn:
    """An earlier turn of a conversation as codec tokens."""

    speaker: int
    text: str
    codes: Codes  # (K, T) int16


class PlaybackClock(Protocol):
    """What the engine reads of a listener's playback. `app.runtime.playback.Playback` implements it."""

    @property
    def current_index(self) -> int:
        """The index of the utterance that is being sent to the listener."""

    @property
    def underrun(self) -> bool:
        """Whether the listener had to wait: this answer cannot be generated as fast as it is played."""

    def buffered_s(self, now_s: float) -> float:
        """Seconds of the engine's audio that were sent and not played yet. Below 0 the listener waits."""

    def time_left_s(self, now_s: float) -> float:
        """Seconds until the listener has played all that was sent."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """When an utterance is served, relative to others. It does not change the audio."""

    continuation: bool = False  # a later part of an answer that is already playing; it is never refused
    background: bool = False  # advances only while no foreground request does, and is preempted when its row is needed
    index: int = 0  # position in its answer, from 0
    playback: PlaybackClock | None = field(default=None, compare=False, repr=False)  # None = no listener is waiting


@dataclass(frozen=True, slots=True)
class Utterance:
    """One job for an engine: what is spoken, and when it is served."""

    lines: tuple[SpokenLine, ...]
    sampling: Sampling
    seed: int
    max_seconds: float  # the engine stops after this much audio
    language: str | None = None
    context: tuple[ContextTurn, ...] = ()  # earlier turns, oldest first
    optional_turns: int = 0  # the engine may drop this many turns from the start of `context` if they do not fit
    scheduling: Scheduling = field(default_factory=Scheduling)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A part of an utterance's audio. Chunks do not overlap: each holds new samples only."""

    samples: Samples  # (N,) float32 mono in [-1, 1]
    rate_hz: int
    start: int  # index of samples[0] in its utterance
    codes: Codes | None = None  # (K, T) int16, from engines with a codec

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The optional request fields that an engine supports. The API lists them as a model's `parameters`."""

    temperature: bool = False
    top_k: bool = False
    top_p: bool = False
    cfg_scale: bool = False
    language: bool = False
    instructions: bool = False
    context: bool = False  # earlier turns; also `conversation_id` and `speaker_id`
    parallel: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the supported fields, sorted."""
        return tuple(sorted(each.name for each in fields(self) if getattr(self, each.name)))

    def supports(self, name: str) -> bool:
        """Whether the engine supports this request field."""
        return ("context" if name in ("conversation_id", "speaker_id") else name) in self.names


@dataclass(frozen=True, slots=True)
class TextPacking:
    """How much text an engine takes in one utterance."""

    max_chars: int = 400  # the longest piece of text; longer text is split
    max_passage_chars: int = 0  # several lines, of several speakers, up to this length together; 0 = one line
    continues: bool = False  # takes any number of sentences and speaks them one after another in the same row
    independent: bool = False  # an answer's utterances do not depend on each other: free rows may speak them at once
    max_speakers: int = 1  # in one utterance
    utf8_bytes: bool = False  # the two length limits count UTF-8 bytes, not characters
    sounds: frozenset[str] = frozenset()  # non-verbal sounds it makes for words in parentheses: "laughs"


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """Which recordings an engine can follow, and how long they may be."""

    codec: Codec = NO_CODEC  # the codec of voice prompts; NO_CODEC = it cannot clone a voice
    codec_fingerprint: str = ""  # changes whenever the same recording would have other codes
    max_prompt_s: float | None = None  # of all voices in one utterance together
    max_context_s: float | None = None  # of a conversation's earlier turns together
    examples: str = ""  # folder of the recordings that came with the model


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is and can do. The generator and the API read it; they never compare engine names."""

    # Identity
    id: str
    name: str  # for people
    fingerprint: str  # changes whenever the same request would sound different: weights, version
    # Audio
    rate_hz: int
    frame_s: float  # length of one codec frame; usage is counted in frames
    level_lufs: float = -20.0  # loudness of voices without a recording; loudness control starts there
    # Requests
    languages: tuple[str, ...] = ("en",)  # BCP 47
    capabilities: Capabilities = field(default_factory=Capabilities)
    text: TextPacking = field(default_factory=TextPacking)
    prompts: PromptLimits = field(default_factory=PromptLimits)
    # Where and how it runs, for /health and the metrics
    device: str = "cpu"  # several devices are joined with commas
    dtype: str = "float32"
    setup: tuple[tuple[str, str | int | float | bool | None], ...] = ()  # names and plain values

    @property
    def can_clone(self) -> bool:
        """Whether it can speak with the voice of a recording."""
        return self.prompts.codec != NO_CODEC


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, for /health, the metrics and load balancers."""

    active_rows: int  # rows that speak
    max_rows: int
    queued: int  # requests that wait for a row
    max_queue: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device that an engine runs on."""

    device: str
    failure: str  # why it is no longer used; "" = it is in use
    load: Load
