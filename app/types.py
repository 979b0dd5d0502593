"""The data types that all packages use: requests, voices, utterances, audio chunks and descriptions of engines.

numpy is imported for type checking only, so that `app.api` does not load numpy.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]  # (N,) mono, nominally in [-1, 1]
    Codes = NDArray[np.int16]  # (K, T) codec tokens, one column per frame

AudioFormat = str  # a key of app.audio.formats.AUDIO_FORMATS

Codec = str  # name of an audio codec: "mimi", "dac" or the codec of a plug-in; it is part of file names
NO_CODEC: Codec = "none"  # the codec of an engine that has no codec and cannot clone voices
VoiceKind = Literal["preset", "cloned", "offline", "adapter", "none"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine samples codes from their probabilities. A field that is None gets the default of the engine."""

    temperature: float | None = None  # 0 = always use the most likely code
    top_k: int | None = None  # keep the k most likely codes
    top_p: float | None = None  # keep the most likely codes up to this probability mass
    cfg_scale: float | None = None  # scale of classifier-free guidance


@dataclass(frozen=True, slots=True)
class Line:
    """A text with its speaker, as the caller sent it."""

    text: str
    voice: str  # voice id
    speaker: int | None = None  # the speaker number for the engine; None = derived from the voices of the request


@dataclass(frozen=True, slots=True)
class LexiconEntry:
    """How a word or a phrase is pronounced. `say`, `ipa` or both are set."""

    word: str  # in Unicode NFC, with single spaces
    say: str = ""  # the text that is spoken instead of the word
    case_sensitive: bool = False
    ipa: str | None = None  # the pronunciation in IPA, for engines that accept it


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A validated request that does not depend on the engine. A dialogue has several lines; other requests have one.

    Do not rename fields: their names are part of the cache key, so all cached answers would be lost.
    """

    model: str
    lines: tuple[Line, ...]
    format: AudioFormat = "mp3"
    speed: float = 1.0  # 0.25 to 4; does not change the pitch
    sample_rate_hz: int = 24_000  # sample rate of the encoded answer, 8000 to 48000
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None  # None = derived from the content
    instructions: str | None = None
    language: str | None = None  # BCP 47; None = the voice's language
    max_audio_ms: int | None = None  # the answer ends after this much audio
    normalize: bool = True  # whether numbers, dates and symbols are written as words before they are spoken
    enhance: bool | None = None  # whether all speech gets the same loudness; None = the setting TTS_ENHANCE decides
    use_cache: bool = True
    context: tuple[Turn, ...] = ()  # earlier turns of the conversation, oldest first
    conversation: str | None = None  # the key under which the conversation is remembered
    # Whether sentences are generated in parallel, even if the engine could speak them one after another.
    parallel: bool = False
    verify: bool | None = None  # whether the speech is checked before it is sent; None = the setting TTS_VERIFY decides
    default_speaker: int | None = None  # the speaker number of the lines if the caller sets none
    best_of: int = 1  # how many takes of each utterance are generated; the best one is kept
    lexicon: tuple[LexiconEntry, ...] = ()  # pronunciations for this request
    timestamps: bool = False  # whether the time of each word is computed for `Answer.timestamps`
    # Whether the file states that it is synthetic speech, names the model, the voices and the time, and is signed with
    # C2PA.
    provenance: bool = False
    caller: str = ""  # the digest of the API key, for the counts of usage; "" if the server has no keys
    # Whether this request is a part of a request that was counted already, such as a further sentence of a job.
    counted: bool = False

    def digest(self, *context: str) -> str:
        """Return the cache key: the SHA-256 (hex) of everything that changes the audio of the answer.

        context: further texts to include, such as the engine's fingerprint and the digests of the voices. The following
        fields are not included:

        - the format and the sample rate, because every answer is encoded from the same audio;
        - `model`, because several aliases name the same engine;
        - `verify`, because a checked answer is also valid for a request without a check;
        - `lexicon`, because the caller adds the entries that can change the speech to `context`;
        - `timestamps`, `provenance`, `caller` and `counted`, because these fields do not change the audio.
        """
        left_out = ("model", "use_cache", "verify", "lexicon", "format", "sample_rate_hz", *NO_EFFECT_ON_AUDIO)
        return self._hash(left_out, context)

    def with_short_texts(self) -> SpeechRequest:
        """Return a copy of the request with a digest instead of each long text.

        The cache key and the seed are computed from this copy, so that a long text is hashed only once for both.
        """
        texts = [_short(line.text) for line in self.lines]
        if texts == [line.text for line in self.lines]:
            return self
        lines = (replace(line, text=text) for line, text in zip(self.lines, texts, strict=True))
        return replace(self, lines=tuple(lines))

    def content_seed(self, *context: str) -> int:
        """Return a seed (31 bits) that depends on the text, the voices and the sampling, not on the audio format."""
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
            "verify",
            "best_of",
            "lexicon",
            *NO_EFFECT_ON_AUDIO,
        )
        return int(self._hash(left_out, context)[:8], 16) >> 1

    def _hash(self, left_out: tuple[str, ...], context: tuple[str, ...]) -> str:
        """Return the SHA-256 (hex) of `context` and of all fields that are not in `left_out`."""
        values = _fields_of(self)  # dataclasses.asdict is slow here, because it copies all audio samples
        values["lines"] = [_fields_of(line) for line in self.lines]
        del values["default_speaker"]
        values["sampling"] = _fields_of(self.sampling)
        values["context"] = [(turn.speaker, turn.text, turn.digest) for turn in self.context]
        if not self.parallel:  # leave out a field with its default, so that the keys of older cached answers stay valid
            del values["parallel"]
        if self.best_of == 1:
            del values["best_of"]
        kept = {name: value for name, value in values.items() if name not in left_out}
        return hashlib.sha256(_CANONICAL.encode([kept, context]).encode()).hexdigest()


NO_EFFECT_ON_AUDIO = ("timestamps", "provenance", "caller", "counted")
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=True)
_LONG_TEXT_CHARS = 1_000
_DIGEST = "\0sha256 "


def _short(text: str) -> str:
    """Return a short text unchanged, and the SHA-256 of a long text."""
    if len(text) <= _LONG_TEXT_CHARS and not text.startswith(_DIGEST):
        return text
    return _DIGEST + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _fields_of(record: SpeechRequest | Line | Sampling) -> dict[str, object]:
    """Return the fields of a dataclass by name. The values are not copied."""
    return {name: getattr(record, name) for name in type(record).__slots__}


def conversation_key(owner: str, conversation_id: str) -> str:
    """Return the key (hex) under which a conversation is stored.

    owner: identifies the caller; "" if the server has no API keys.
    """
    return hashlib.sha256(f"{len(owner)} {owner} {conversation_id}".encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice that a request can use."""

    id: str
    name: str
    kind: VoiceKind
    language: str = "en"
    description: str = ""
    digest: str = ""  # changes with the recording; part of the cache keys of prompts and of answers
    speaker: int = 0  # the speaker number for models that need one, if the voice has no recording
    level_lufs: float | None = None  # loudness of the recording; None = level_lufs of the engine
    recorded: bool = False  # whether the voice has a reference recording
    # Whether the words of the recording are unknown, so that engines with `PromptLimits.needs_transcript` can't use
    # this voice.
    needs_words: bool = False
    adapter: str = ""  # the key of the LoRA adapter with which the voice speaks; "" = none
    reference_id: str = ""  # id of the voice whose recording this voice uses; "" = its own recording, if it has one
    tags: tuple[str, ...] = ()  # words by which the owner finds the voice
    color: str = ""  # "#rrggbb", the colour in which pages show the voice; "" = none


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording of a voice, from which an engine clones the voice."""

    samples: Samples  # (N,) float32 mono
    rate_hz: int
    transcript: str  # the exact words of the recording

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class UploadedTurn:
    """An earlier turn of a conversation as the caller has sent it. The audio file is not decoded yet."""

    speaker: int
    text: str
    audio: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier turn of a conversation with its decoded recording."""

    speaker: int
    text: str
    digest: str  # sha256 (hex) of the samples
    reference: Reference = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """The recording of a voice as codec tokens."""

    voice_digest: str
    codec: Codec
    codes: Codes  # (K, T) int16. Mimi: K=32 at 12.5 Hz; DAC: K=9 at 86.13 Hz
    transcript: str


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A spoken word (with its punctuation), and the characters of the caller's text that it comes from."""

    word: str
    start_char: int
    end_char: int  # exclusive


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """A text that an engine speaks, with its voice."""

    text: str  # normalised: numbers and symbols are written as words
    speaker: int
    voice: Voice
    prompt: VoicePrompt | None = None
    # For each word of `text`, the characters of the caller's text from which the word comes. A caller can send several
    # texts, the turns of a dialogue. `turn` is the index of the text to which `start_char` and `end_char` refer.
    words: tuple[SpokenWord, ...] = field(default=(), compare=False, repr=False)
    start_char: int = field(default=0, compare=False)
    end_char: int = field(default=0, compare=False)  # exclusive
    turn: int = field(default=0, compare=False)
    language: str | None = None  # language of the whole text that contains the line; None = not recognised
    ipa: tuple[tuple[int, int, str], ...] = ()  # pronunciations of `text[start:end]`, if the engine accepts IPA


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word of the caller's text (see `app.text.word_spans`), and the time in which it is heard."""

    word: str  # the characters `start_char:end_char` of the caller's text
    start_s: float  # seconds after the start of the audio
    end_s: float
    start_char: int
    end_char: int  # exclusive
    turn: int = 0  # the index of the caller's text in which the characters are counted


@dataclass(frozen=True, slots=True)
class TimedSentence:
    """A sentence of the caller's text, and the time in which it is heard."""

    text: str  # the characters `start_char:end_char` of the caller's text
    start_s: float  # seconds after the start of the audio
    end_s: float
    start_char: int
    end_char: int  # exclusive
    turn: int = 0  # the index of the caller's text in which the characters are counted
    words: tuple[TimedWord, ...] = ()  # empty = the times of the words are not known


@dataclass(frozen=True, slots=True)
class Timestamps:
    """The times at which the sentences and words of an answer are heard."""

    sentences: tuple[TimedSentence, ...]  # in the order of the audio
    duration_s: float  # duration of the audio
    reason: str = ""  # why some sentences have no word times; "" = all sentences have word times

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """The words of all sentences, in the order of the audio."""
        return tuple(word for sentence in self.sentences for word in sentence.words)


@dataclass(frozen=True, slots=True)
class ContextTurn:
    """An earlier turn of a conversation as codec tokens."""

    speaker: int
    text: str
    codes: Codes  # (K, T) int16


class PlaybackClock(Protocol):
    """The state of a listener's playback, for the engine. `app.runtime.playback.Playback` implements it."""

    @property
    def current_index(self) -> int:
        """The index of the utterance that is being sent to the listener."""

    @property
    def underrun(self) -> bool:
        """Whether the listener had to wait for audio, because the answer is generated more slowly than it is played."""

    def buffered_s(self, now_s: float) -> float:
        """Return the seconds of audio that were sent and are not played yet. A negative value means that the listener
        waits.
        """

    def time_left_s(self, now_s: float) -> float:
        """Return the seconds until the listener has played all audio that was sent."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The priority of an utterance. The priority does not change the audio."""

    # Whether the utterance is a later part of a running answer. The queue always accepts such an utterance.
    continuation: bool = False
    # Whether the utterance runs only while no listener of a foreground request needs audio soon. A foreground request
    # can preempt the utterance.
    background: bool = False
    index: int = 0  # position of the utterance in its answer, from 0
    playback: PlaybackClock | None = field(default=None, compare=False, repr=False)  # None = no listener is waiting


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """The place of an utterance in an answer whose text arrives in parts.

    An engine may keep its state at the end of the utterance. With this state, the next utterance continues as if both
    were one utterance. Without the state, the engine uses the last turns in `context`. An utterance can have several
    takes, and each take has its own state.
    """

    answer: str  # id of the answer; all utterances of the answer have the same id
    index: int  # index of the utterance in the answer, from 0
    take: int = 0  # index of the take of the utterance, from 0
    # The listener hears the take with this index of the previous utterance. This utterance continues that take.
    after: int = 0
    # This event is set when the answer has ended or is cancelled.
    over: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    # The engine sets this event before the first audio, if this utterance continues from the kept state of the previous
    # utterance.
    resumed: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One unit of work for an engine: one or more lines that the engine speaks together."""

    lines: tuple[SpokenLine, ...]
    sampling: Sampling
    seed: int
    max_seconds: float  # the engine stops after this much audio
    language: str | None = None
    context: tuple[ContextTurn, ...] = ()  # earlier turns, oldest first
    optional_turns: int = 0  # the engine may leave out up to this many turns at the start of `context` to save space
    adapter: str = ""  # the key of the LoRA adapter that speaks (see app/engines/shared/adapters.py); "" = none
    part: AnswerPart | None = None  # None = no later utterance continues this one
    scheduling: Scheduling = field(default_factory=Scheduling)


@dataclass(frozen=True, slots=True)
class WordMark:
    """A place in the audio of an utterance at which a word begins, as the engine reports it."""

    sample: int  # position in the audio of the utterance, in samples
    line: int  # index of the line in the utterance
    char: int | None  # index of the first character of the word in the text of the line; None = a pause begins here


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A part of the audio of an utterance. Chunks do not overlap."""

    samples: Samples  # (N,) float32 mono in [-1, 1]
    rate_hz: int
    start: int  # position of samples[0] in the audio of the utterance, in samples
    codes: Codes | None = None  # (K, T) int16, from engines with a codec
    rules: tuple[str, ...] = ()  # rules of the output guard (audio/guard.py) that a line broke since the previous chunk
    # Places of words, from engines that report them. A mark may be in any chunk of its utterance.
    marks: tuple[WordMark, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The optional request fields that an engine supports. The API lists the names as a model's `parameters`."""

    temperature: bool = False
    top_k: bool = False
    top_p: bool = False
    cfg_scale: bool = False
    language: bool = False
    instructions: bool = False
    # Earlier turns of a conversation; True also means that `conversation_id` and `speaker_id` are supported.
    context: bool = False
    parallel: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the supported fields, sorted."""
        return tuple(sorted(each.name for each in fields(self) if getattr(self, each.name)))

    def supports(self, name: str) -> bool:
        """Return whether the engine supports this request field."""
        return ("context" if name in ("conversation_id", "speaker_id") else name) in self.names


@dataclass(frozen=True, slots=True)
class TextPacking:
    """How much text an engine can speak in one utterance."""

    max_chars: int = 400  # the longest text of one line, in characters; longer text is split
    max_passage_chars: int = 0  # the longest text of several lines together; 0 = one line only
    continues: bool = False  # whether the engine speaks any number of sentences one after another in the same row
    # Whether utterances do not depend on each other. In this case, free rows may speak them in parallel.
    independent: bool = False
    max_speakers: int = 1  # the largest number of speakers in one utterance
    # The voices' recordings and the speech of one utterance together last at most this many seconds, unless the text is
    # very short; 0 = no limit.
    natural_s: float = 0.0
    chars_per_s: float = 15.0  # characters in one second of speech; used for the limit `natural_s`
    utf8_bytes: bool = False  # whether `max_chars` and `max_passage_chars` count UTF-8 bytes, not characters
    sounds: frozenset[str] = frozenset()  # words in parentheses that become non-verbal sounds, such as "laughs"
    ipa: frozenset[str] = frozenset()  # the IPA symbols that the engine can speak in English; empty = none


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """Which voice prompts an engine accepts, and how long they may be."""

    codec: Codec = NO_CODEC  # the codec of voice prompts; NO_CODEC = no cloning
    # An encoder that gives different codes for the same recording has a different fingerprint.
    codec_fingerprint: str = ""
    max_prompt_s: float | None = None  # limit in seconds for the prompts of all voices of one utterance together
    max_context_s: float | None = None  # limit in seconds for all earlier turns of a conversation together
    examples: str = ""  # the folder of the recordings that come with the model
    needs_transcript: bool = True  # whether the engine can use a recording only with its transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """The properties of an engine. The generator and the API use these properties and never compare engine names."""

    # Identity
    id: str
    name: str  # the display name
    fingerprint: str  # an engine that gives different audio for the same request has a different fingerprint
    # Audio
    rate_hz: int
    frame_s: float  # length of one codec frame; usage is counted in frames
    level_lufs: float = -20.0  # loudness of voices without a recording; the loudness control starts with this value
    # Requests
    languages: tuple[str, ...] = ("en",)  # BCP 47 tags
    capabilities: Capabilities = field(default_factory=Capabilities)
    speakers: tuple[int, ...] = (0, 1)  # the speaker numbers with which the model was trained, best first
    trained: bool = True  # whether the engine is a model that was trained with recordings; False = a program with rules
    # Values for requests without sampling fields; None = the field is not supported.
    defaults: Sampling = field(default_factory=Sampling)
    text: TextPacking = field(default_factory=TextPacking)
    prompts: PromptLimits = field(default_factory=PromptLimits)
    # How the engine runs, for /health and the metrics. In `device`, commas separate several devices.
    device: str = "cpu"
    dtype: str = "float32"
    setup: tuple[tuple[str, str | int | float | bool | None], ...] = ()  # further facts: pairs of name and value

    @property
    def can_clone(self) -> bool:
        """Whether the engine can clone the voice of a recording."""
        return self.prompts.codec != NO_CODEC

    @property
    def only_speaker(self) -> int | None:
        """The speaker number of a model that was trained with one speaker; None = several speakers, or none."""
        return self.speakers[0] if self.capabilities.context and len(self.speakers) == 1 else None

    @property
    def seeded(self) -> bool:
        """Whether the engine generates speech at random, so that another seed gives other audio for the same text."""
        return self.capabilities.temperature


@dataclass(frozen=True, slots=True)
class Load:
    """The load of an engine, for /health, the metrics and load balancers."""

    active_rows: int  # the number of rows that generate speech
    max_rows: int
    queued: int  # the number of requests that wait for a row
    max_queue: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device that an engine runs on."""

    device: str
    failure: str  # why the device is no longer used; "" = it is in use
    load: Load
