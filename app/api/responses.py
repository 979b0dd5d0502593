"""The JSON bodies of responses as pydantic models, and the OpenAPI descriptions of audio and event streams.

The routes create these models. FastAPI takes their schemas from the return annotations of the routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from app.audio.formats import AUDIO_FORMATS
from app.keys import Scope
from app.text.captions import MEDIA_TYPES

if TYPE_CHECKING:
    from app.engines.adapters import Adapter
    from app.keys import Key
    from app.types import LexiconEntry, Voice
    from app.voices.consents import StoredConsent
    from app.voices.voice_file import StoredVoice

Schema = dict[str, Any]  # a part of an OpenAPI document

OUTPUT_RATE_HZ = 24_000  # the default sample rate of the audio

UnixTime = Annotated[int, Field(description="Seconds since 1970.", examples=[1_742_000_000])]
Seconds = Annotated[float, Field(ge=0)]


class ResponseModel(BaseModel):
    """The base class of all response bodies."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(ResponseModel):
    message: Annotated[str, Field(description="What is wrong and what to do.")]
    type: Literal["invalid_request_error", "requests", "server_error"]
    param: Annotated[str | None, Field(description="The wrong field, for example `seed` or `turns.3.text`.")]
    code: Annotated[str | None, Field(description="A stable name of the error, for programs.")]


class ErrorEnvelope(ResponseModel):
    """The body of an error, as OpenAI sends it."""

    error: ErrorDetail


# ---- models, voices, formats


class ModelVoice(ResponseModel):
    name: str
    language: str


# `unloaded`: the model is not in memory; the next request for the model loads it
ModelStatus = Literal["ready", "loading", "unloaded", "missing_weights", "failed"]


class Model(ResponseModel):
    """OpenAI's model object with further fields about speech."""

    id: str
    object: Literal["model"]
    created: UnixTime
    owned_by: str
    task: Literal["text-to-speech"]
    sample_rate: Annotated[int, Field(description="The default sample rate of the audio, in Hz.")]
    voices: list[ModelVoice]
    status: ModelStatus
    detail: Annotated[str, Field(description="Why the model is not ready; empty if it is ready.")]
    loaded: Annotated[bool, Field(description="Whether the model is in memory.")]
    bytes: Annotated[int | None, Field(description="The memory of the loaded model; null = not loaded, or unknown.")]
    parameters: Annotated[
        list[str] | None, Field(description="The optional request fields that the model supports; null = not ready.")
    ]
    default_voice: Annotated[str, Field(description="The voice of a speech request without `voice`.")]
    max_speakers: Annotated[int | None, Field(description="The maximum number of speakers in one utterance.")]
    clones: Annotated[bool | None, Field(description="Whether the model can speak with cloned voices.")]
    sounds: Annotated[
        list[str] | None, Field(description="The non-verbal sounds that the model can produce, such as `laughs`.")
    ]
    languages: Annotated[
        list[str] | None, Field(description="The languages of the model as BCP 47 tags; null = not ready, or an alias.")
    ]
    defaults: Annotated[
        dict[str, float] | None,
        Field(description="The sampling parameters that a request without these fields gets; null = not ready."),
    ]
    alias: Annotated[bool, Field(description="Whether the id is an OpenAI name of the running model.")]
    adapter_of: Annotated[
        str | None, Field(description="The model that this LoRA adapter changes; null = the entry is not an adapter.")
    ] = None
    description: str
    max_input_length: Annotated[int, Field(description="The maximum length of `input`, in characters.")]


class ModelList(ResponseModel):
    object: Literal["list"]
    data: list[Model]


class NamedModel(ResponseModel):
    id: str
    name: str
    description: str
    max_input_length: int


class AudioModelList(ResponseModel):
    object: Literal["list"]
    models: list[NamedModel]
    data: list[Model]


COLOR_HELP = "The colour of the voice in pages, as `#rrggbb`; empty = none."


class ListedVoice(ResponseModel):
    id: str
    voice_id: Annotated[str, Field(description="The same as `id`, for clients that read this name.")]
    name: str
    object: Literal["audio.voice"]
    type: Annotated[
        Literal["preset", "cloned", "offline", "adapter", "speaker"],
        Field(description="`speaker` = the speaker of a model that was trained with one speaker."),
    ]
    language: str
    description: str
    status: Annotated[VoiceStatus, Field(description="`needs words` = a cloned voice without a transcript.")]
    tags: list[str]
    color: Annotated[str, Field(description=COLOR_HELP)]

    @classmethod
    def of(cls, voice: Voice) -> Self:
        return cls(
            id=voice.id,
            voice_id=voice.id,
            name=voice.name,
            object="audio.voice",
            type="speaker" if voice.kind == "none" else voice.kind,
            language=voice.language,
            description=voice.description,
            status="needs words" if voice.needs_words else "ready",
            tags=list(voice.tags),
            color=voice.color,
        )


class VoiceList(ResponseModel):
    """All voices. Clients read either `voices` or `data`; both have the same content.

    With `legacy=true` the lists have only the ids of the voices.
    """

    object: Literal["list"]
    voices: list[ListedVoice] | list[str]
    data: list[ListedVoice] | list[str]


class ListedAdapter(ResponseModel):
    """A LoRA adapter of the server."""

    name: Annotated[str, Field(description="The name, which is also the id of a voice.")]
    model: Annotated[str, Field(description="The id of the model with this adapter, for the field `model`.")]
    base: Annotated[str | None, Field(description="The base model that the adapter names.")]
    rank: Annotated[int | None, Field(description="The largest rank; null = the adapter is not loaded.")]
    status: Literal["loading", "ready", "failed"]
    bytes: Annotated[int, Field(description="The memory that the adapter takes, in bytes.")]
    error: Annotated[str | None, Field(description="Why the adapter can't be used.")]
    source: Annotated[
        str | None, Field(description="The repository that the request named; null = uploaded, or from TTS_ADAPTERS.")
    ]
    speaker: Annotated[int, Field(description="The speaker number with which the voice of the adapter speaks.")]
    voice: Annotated[str | None, Field(description="The recorded voice that the adapter speaks with.")]

    @classmethod
    def of(cls, adapter: Adapter) -> Self:
        return cls(
            name=adapter.name,
            model=f"{adapter.model}:{adapter.name}",
            base=adapter.base or None,
            rank=adapter.rank,
            status=adapter.status,
            bytes=adapter.bytes,
            error=adapter.error or None,
            source=adapter.source if not adapter.configured and adapter.source else None,
            speaker=adapter.speaker,
            voice=adapter.voice or None,
        )


class AdapterList(ResponseModel):
    object: Literal["list"]
    data: list[ListedAdapter]


class DeletedAdapter(ResponseModel):
    name: str
    object: Literal["audio.adapter.deleted"]
    deleted: bool


class ErrorCode(ResponseModel):
    code: Annotated[str, Field(description="A stable name of the error, for programs.")]
    message: Annotated[str, Field(description="What is wrong and what to do.")]


class WeightBytes(ResponseModel):
    total_bytes: Annotated[int | None, Field(description="null = the hub has not answered.")]
    done_bytes: Annotated[int, Field(description="The bytes on the disk, also of downloads that were stopped.")]


class WeightSource(ResponseModel):
    """A repository from which the weights can be downloaded."""

    repository: str
    gated: Annotated[bool, Field(description="Whether its licence must be accepted, and a token is needed.")]
    licence_url: Annotated[str, Field(description="The page on which the licence is accepted.")]
    bytes: Annotated[int | None, Field(description="The size of the download; null = the hub has not answered.")]
    done_bytes: int
    needs_token: Annotated[bool, Field(description="Whether it is gated, and the server has no usable token.")]


class TokenState(ResponseModel):
    """Whether the server has a token for the Hugging Face hub. The token itself is never shown."""

    present: bool
    origin: Annotated[
        Literal["environment", "file", "login"] | None,
        Field(
            alias="from",
            description="`environment`: HF_TOKEN. `file`: a request has saved it. `login`: `hf auth login`.",
        ),
    ]


class WeightDownload(ResponseModel):
    """A download that runs or has failed."""

    repository: str
    file: str
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    eta_s: Annotated[float | None, Field(description="The estimated seconds until the end; null = not known yet.")]
    error: Annotated[ErrorCode | None, Field(description="Why the download, or the load after it, has failed.")]


class WeightTips(ResponseModel):
    """Commands and settings that a person can copy. With them, the server gets the weights at its next start."""

    shell: str
    env: Annotated[str, Field(description="Lines of the file `.env`.")]
    compose: Annotated[str, Field(description="Lines of a compose file.")]


class ModelWeights(ResponseModel):
    """The weights of a model. The model speaks when `state` is `complete` and `status` is `ready`."""

    object: Literal["model.weights"]
    model: str
    state: Literal["absent", "partial", "downloading", "complete", "failed"]
    status: ModelStatus
    detail: Annotated[str, Field(description="Why the model is not ready; empty if it is ready.")]
    files: WeightBytes
    free_bytes: Annotated[int, Field(description="The free space of the disk that holds the models.")]
    sources: Annotated[
        list[WeightSource], Field(description="The configured source first; empty = there is nothing to download.")
    ]
    token: TokenState
    download: WeightDownload | None
    hub: Annotated[ErrorCode | None, Field(description="Why the hub did not give the sizes.")]
    commands: WeightTips


class DeletedToken(ResponseModel):
    object: Literal["hub_token.deleted"]
    deleted: bool
    token: Annotated[TokenState, Field(description="The token that the server uses now.")]


class CompatibleVoice(ResponseModel):
    voice_id: str
    name: str
    preview_url: str | None
    description: str
    languages: list[str]
    cloned: bool


class CompatibleVoices(ResponseModel):
    voices: list[CompatibleVoice]


class NamedFormat(ResponseModel):
    name: Annotated[str, Field(description="A value of `response_format`.")]
    content_type: str


class NormalizedPiece(ResponseModel):
    """A part of the text that is spoken as one unit, such as a sentence. The positions are indices of characters in
    `input`, from 0.
    """

    text: Annotated[str, Field(description="The part of `input` that is spoken.")]
    spoken: Annotated[str, Field(description="The words that are spoken.")]
    start_char: int
    end_char: Annotated[int, Field(description="Exclusive.")]


class NormalizedWord(ResponseModel):
    """A spoken word and the characters of `input` that it comes from. Several words can come from the same characters:
    `$5` -> "five dollars".
    """

    word: str
    start_char: int
    end_char: Annotated[int, Field(description="Exclusive.")]


class NormalizedText(ResponseModel):
    """The sentences and words that would be spoken for a text. Both lists are empty if nothing would be spoken."""

    pieces: list[NormalizedPiece]
    words: list[NormalizedWord]


class ResponseFormats(ResponseModel):
    response_formats: list[NamedFormat]


class DescribedFormat(ResponseModel):
    format: str
    content_type: str
    description: str


class StreamFormats(ResponseModel):
    """The formats in which speech is sent while it is generated: all values of `response_format`, and SSE."""

    stream_formats: list[DescribedFormat]


# ---- cloned voices, custom voices, consents


class QualityCheck(ResponseModel):
    id: str
    level: Literal["good", "warning", "bad"]
    value: float | None
    message: str


class Quality(ResponseModel):
    """The measured quality of a recording; empty if the quality was not measured."""

    level: Literal["good", "warning", "bad"] | None = None
    checks: list[QualityCheck] = []


class _QualitySchema:
    """Annotates a field with the JSON schema of Quality. The field is not validated."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        return handler(Quality.__pydantic_core_schema__)


# The stored quality of a voice. The JSON schema is the schema of Quality, but the value is not validated: an older or
# newer version of the server may have stored a value that does not match, and the list of voices must not fail then.
StoredQuality = Annotated[dict[str, Any], _QualitySchema]


class VoiceConsent(ResponseModel):
    text: str
    id: str


VoiceStatus = Literal["ready", "needs words"]


class ClonedVoice(ResponseModel):
    id: str
    name: str
    status: Annotated[
        VoiceStatus, Field(description="`needs words` = the words of the recording are unknown: send a `transcript`.")
    ]
    detail: Annotated[str, Field(description="What the voice lacks and how to add it; empty if it is ready.")]
    aliases: Annotated[list[str], Field(description="Earlier ids of the voice, which still work.")]
    object: Literal["audio.voice"]
    created_at: UnixTime
    speaker_id: int
    description: str
    language: str
    audio_duration: Seconds
    sample_count: int
    transcript: str
    quality: StoredQuality
    consent: VoiceConsent | None
    origin: str
    tags: list[str]
    color: Annotated[str, Field(description=COLOR_HELP)]

    @classmethod
    def of(cls, stored: StoredVoice, quality: Mapping[str, Any] | None = None) -> Self:
        """Create the response for a voice. quality: its quality report; None = the stored report."""
        voice, consent = stored.voice, stored.consent
        agreed = None if consent is None else VoiceConsent(text=consent.get("text", ""), id=consent.get("id", ""))
        return cls(
            id=voice.id,
            name=voice.name,
            status="needs words" if voice.needs_words else "ready",
            detail=stored.missing,
            aliases=list(stored.aliases),
            object="audio.voice",
            created_at=int(stored.created_at),
            speaker_id=voice.speaker,
            description=voice.description,
            language=voice.language,
            audio_duration=round(stored.seconds, 3),
            sample_count=stored.sample_count,
            transcript=stored.transcript,
            quality=dict(stored.quality if quality is None else quality),
            consent=agreed,
            origin=stored.origin,
            tags=list(voice.tags),
            color=voice.color,
        )


class Cloned(ResponseModel):
    status: Literal["success"]
    message: str
    voice: ClonedVoice

    @classmethod
    def of(cls, action: str, requested_name: str, stored: StoredVoice) -> Self:
        """Create the response for a new voice. action: what was done, for example "The voice was cloned"."""
        name, requested = stored.voice.name, " ".join(requested_name.split())
        message = f"{action}. Its name is {name!r}."
        if name.casefold() != requested.casefold():
            message = f"{action}. Its name is {name!r}, because another voice has the name {requested!r}."
        message = " ".join(filter(None, (message, stored.missing)))
        return cls(status="success", message=message, voice=ClonedVoice.of(stored))


class RefusedFolder(ResponseModel):
    id: Annotated[str, Field(description="The name of the folder. DELETE and PATCH accept it as the id of a voice.")]
    reason: str


class ClonedVoices(ResponseModel):
    voices: list[ClonedVoice]
    refused: Annotated[list[RefusedFolder], Field(description="The folders below cloned_voices that are not voices.")]
    problems: Annotated[dict[str, str], Field(description="The folders that can't be read as voices -> why.")]


class DeletedClone(ResponseModel):
    status: Literal["success"]
    message: str
    id: str


class Window(ResponseModel):
    start: Seconds
    end: Seconds


class Draft(ResponseModel):
    draft_id: str
    transcript: str
    audio_duration: Seconds
    window: Annotated[Window, Field(description="The part of the recording that will be used.")]
    quality: Quality


class CustomVoice(ResponseModel):
    """A cloned voice in the format of OpenAI's custom voices."""

    object: Literal["audio.voice"]
    id: str
    name: str
    created_at: UnixTime
    type: Literal["audio_sample"]


class DeletedVoice(ResponseModel):
    object: Literal["audio.voice.deleted"]
    id: str
    deleted: bool


class Consent(ResponseModel):
    """A consent in the format of OpenAI's voice consents."""

    object: Literal["audio.voice_consent"]
    id: str
    name: str
    language: str
    created_at: UnixTime

    @classmethod
    def of(cls, consent: StoredConsent) -> Self:
        return cls(
            object="audio.voice_consent",
            id=consent.id,
            name=consent.name,
            language=consent.language,
            created_at=int(consent.created_at),
        )


class ConsentPage(ResponseModel):
    object: Literal["list"]
    data: list[Consent]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedConsent(ResponseModel):
    id: str
    object: Literal["audio.voice_consent"]
    deleted: bool


class ForgottenConversation(ResponseModel):
    id: str
    object: Literal["audio.conversation"]
    deleted: Annotated[bool, Field(description="Whether this conversation was remembered.")]


class FoundMetadata(ResponseModel):
    generator: Annotated[str, Field(description="The program and its version.")]
    model: str
    voices: Annotated[list[str], Field(description="The ids of the voices.")]
    created_at: Annotated[int | None, Field(description="Unix time in seconds; null = not stated.")]
    source_type: Annotated[str, Field(description="IPTC's digital source type.")]


class FoundSignature(ResponseModel):
    state: Annotated[
        Literal["valid", "invalid", "not_checked"],
        Field(
            description="`valid`: the file was not changed since it was signed. Whether the signer is trustworthy is "
            "not checked."
        ),
    ]
    issuer: Annotated[str | None, Field(description="The organisation in the certificate.")]
    signer: Annotated[str | None, Field(description="The common name in the certificate.")]
    generator: Annotated[str | None, Field(description="The program that made the manifest.")]
    synthetic: Annotated[bool, Field(description="Whether the manifest says that an algorithm made the file.")]
    problems: Annotated[list[str], Field(description="Why the state is not `valid`.")]


class Detection(ResponseModel):
    watermarked: Annotated[
        bool | None,
        Field(description="Whether the file carries the watermark; null = the extra `watermark` is not installed."),
    ]
    score: Annotated[
        float | None, Field(description="The detector's confidence, 0 to 1; 0.5 or more means a watermark.")
    ]
    speed: Annotated[
        float | None, Field(description="How much faster than normal the marked audio is played; null = no watermark.")
    ]
    seconds: Annotated[float, Field(description="Seconds of audio that were checked, from the start of the file.")]
    metadata: Annotated[FoundMetadata | None, Field(description="What the file's metadata say; null = nothing.")]
    c2pa: Annotated[FoundSignature | None, Field(description="The C2PA manifest of the file; null = it has none.")]


# ---- the server


class Count(ResponseModel):
    active: int
    limit: int


class Queue(ResponseModel):
    waiting: int
    limit: int


class Device(ResponseModel):
    device: str
    status: Literal["ok", "unhealthy"]
    reason: str
    rows: Count


class Download(ResponseModel):
    source: str
    file: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    eta_s: float | None


class PresetVoiceState(ResponseModel):
    state: str
    cast: int
    voices: int
    voice: str | None
    failed: dict[str, str]
    words_unchecked: Annotated[
        str, Field(description='Why the words of recordings are not checked; "" if they are checked.')
    ]
    problems: Annotated[
        dict[str, str],
        Field(description="Recordings on the disk that are damaged, not used or doubtful: path -> reason."),
    ]


class Marking(ResponseModel):
    marked: str
    reason: str | None


class UsageRow(ResponseModel):
    day: Annotated[str, Field(description="YYYY-MM-DD, UTC.")]
    key: Annotated[str | None, Field(description="The name of the API key; null = without a key.")]
    model: str
    requests: Annotated[int, Field(description="Answers with audio, also those from the cache.")]
    characters: Annotated[int, Field(description="Characters of the texts of these answers.")]
    seconds: Annotated[float, Field(description="Seconds of audio that were sent.")]


class UsageList(ResponseModel):
    data: list[UsageRow]


class Verification(ResponseModel):
    mode: Annotated[Literal["off", "auto", "all"], Field(description="The setting TTS_VERIFY.")]
    reason: Annotated[str | None, Field(description="Why no speech can be checked; null = it can be checked.")]


class Recogniser(ResponseModel):
    state: Literal["ready", "not_downloaded", "downloading", "unavailable", "off"]
    reason: Annotated[str, Field(description="Why the speech recogniser is not ready; empty if it is ready.")]
    done_bytes: Annotated[int, Field(description="The downloaded bytes of a running download.")]
    total_bytes: int


class YouTubeState(ResponseModel):
    on: bool
    reason: str | None


Range = dict[Literal["minimum", "exclusiveMinimum", "maximum"], float]  # bounds, named as in JSON Schema


class JobLimits(ResponseModel):
    """What a new job of `/v1/audio/jobs` accepts."""

    input_chars: int
    file_types: Annotated[list[str], Field(description="The extensions of the files of books, such as `.epub`.")]
    response_formats: list[str]
    captions: list[str]


class Limits(ResponseModel):
    input_chars: int
    dialogue_turns: int
    response_formats: Annotated[list[str], Field(description="Values of `response_format`.")]
    sample_s: Annotated[Range, Field(description="Recordings of this length, in seconds, are used completely.")]
    best_sample_s: Annotated[Range, Field(description="The recommended length of a recording's speech, in seconds.")]
    youtube_s: Annotated[Range, Field(description="Values of `duration`, the length of a video section in seconds.")]
    voice_name_chars: Annotated[int, Field(description="The maximum length of a voice's name.")]
    voice_description_chars: Annotated[int, Field(description="The maximum length of a voice's description.")]
    jobs: Annotated[JobLimits | None, Field(description="null = this server has no jobs.")]
    fields: Annotated[dict[str, Range], Field(description="Bounds of the number fields of a speech request.")]


class MemoryUse(ResponseModel):
    device: str
    used_bytes: int
    total_bytes: int


class ModelState(ResponseModel):
    """The state of one model of this server in the bodies of /health and /debug."""

    id: str
    status: ModelStatus
    detail: Annotated[str, Field(description="Why the model is not ready; empty if it is ready.")]
    bytes: Annotated[int | None, Field(description="The memory of the loaded model; null = not loaded, or unknown.")]


class EngineState(ResponseModel):
    """The state of the server in the bodies of /health and /debug."""

    status: Literal["starting", "ok", "degraded", "unhealthy"]
    engine: str | None
    model: str | None
    requested_engine: str
    models: Annotated[list[ModelState], Field(description="Each model that requests can name.")]
    reason: str
    remedy: str
    device: str | None
    dtype: str | None
    setup: Annotated[
        dict[str, str | int | float | bool | None] | None,
        Field(description="How the engine is set up, for example its kernels."),
    ]
    devices: list[Device]
    rows: Count | None
    queue: Queue | None
    watermark: Marking
    verification: Verification
    youtube: YouTubeState
    recogniser: Annotated[Recogniser, Field(description="The speech recogniser for recordings without a transcript.")]
    memory: list[MemoryUse]
    download: Download | None
    casting: PresetVoiceState
    version: str
    uptime_s: Seconds


class HealthVoice(ResponseModel):
    id: str
    name: str
    speaker_id: int


class KeyOfCaller(ResponseModel):
    """What the API key of a request allows."""

    name: str
    scopes: list[Scope]
    per_minute: Annotated[int | None, Field(description="Requests per minute; null = no limit.")]
    concurrent: Annotated[int | None, Field(description="Requests at the same time; null = no limit.")]

    @classmethod
    def of(cls, key: Key) -> Self:
        return cls(name=key.name, scopes=list(key.scopes), per_minute=key.per_minute, concurrent=key.concurrent)


class KeyEntry(KeyOfCaller):
    created_at: UnixTime | None  # null for a key of TTS_API_KEYS

    @classmethod
    def of(cls, key: Key) -> Self:
        return cls(**KeyOfCaller.of(key).model_dump(), created_at=int(key.created_at) or None)


class KeyList(ResponseModel):
    data: list[KeyEntry]


class Health(EngineState):
    """The body of /health."""

    model_config = ConfigDict(extra="allow")

    tts_engine: Annotated[str, Field(description="The running engine; while none runs, the configured one.")]
    standard_voices: Annotated[list[str], Field(description="The ids of the preset voices.")]
    cloned_voices: list[HealthVoice]
    cloned_voices_count: int
    sample_rate: Annotated[int, Field(description="The default sample rate of the audio, in Hz.")]

    limits: Limits
    default_voice: Annotated[str, Field(description="The voice of a speech request without `voice`.")]
    key_needed: bool
    key: Annotated[KeyOfCaller | None, Field(description="The API key of this request; null without a valid key.")]


class Ready(ResponseModel):
    ready: Literal[True]
    engine: str


class Version(ResponseModel):
    name: Literal["tts-server"]
    version: str
    python: str
    api_version: Annotated[str, Field(description="The same as `version`.")]
    model_version: Annotated[
        str, Field(description="The id of the running model; while none runs, the configured one.")
    ]
    tts_engine: str


class Debug(ResponseModel):
    """The body of /debug: versions, settings without secrets, and the state of the server."""

    model_config = ConfigDict(extra="allow")

    version: str
    python: str
    platform: str
    packages: dict[str, str | None]
    health: dict[str, Any]
    engine: dict[str, Any] | None
    settings: dict[str, Any]
    threads: list[str]


# ---- responses that are not JSON


def text_header(description: str, **schema: Any) -> Schema:
    """Return the OpenAPI description of a header whose value is a text. schema: further keywords, such as `pattern`."""
    return {"description": description, "schema": {"type": "string", **schema}}


def integer_header(description: str) -> Schema:
    """Return the OpenAPI description of a header whose value is an integer of at least 0."""
    return {"description": description, "schema": {"type": "integer", "minimum": 0}}


BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}
REQUEST_ID_HEADER: Schema = {
    **text_header("The id of this request in the log of the server.", pattern="^req_[0-9a-f]{32}$"),
    "required": True,
}
RATE_LIMIT_HEADERS: Mapping[str, Schema] = {
    "x-ratelimit-limit-requests": integer_header("The number of requests per minute that this key may make."),
    "x-ratelimit-remaining-requests": integer_header(
        "The number of requests that this key may still make this minute."
    ),
    "x-ratelimit-reset-requests": text_header("The time until all requests are available again, for example `7.5s`."),
}
_SPEECH_HEADERS: Mapping[str, Schema] = {
    "X-TTS-Engine": text_header("The engine that produced the audio."),
    "X-TTS-Seed": text_header("The seed. Send it as `seed` to get the same audio again.", pattern="^-?[0-9]+$"),
    "X-Cache": text_header(
        "Where the audio comes from: the cache (`hit`), a new generation (`miss`), the generation of an equal request "
        "that is being spoken (`shared`), or a new generation that is not cached (`off`).",
        enum=["hit", "miss", "shared", "off"],
    ),
    "X-Voice-State": text_header("`uncast` = the voice has no recording yet and uses a fixed seed.", enum=["uncast"]),
    "X-TTS-Guard": text_header("The rules of the output guard that the speech broke, for example `repeat,silence`."),
    "X-TTS-Verified": text_header(
        "The result of the check of the speech against its text, as it was known when the headers were sent. Speech "
        "that is sent while it is generated is `unchecked`.",
        enum=["ok", "retried", "uncertain", "unchecked"],
    ),
    "Content-Disposition": text_header("The name of the audio file, such as `speech.mp3`."),
    "X-TTS-Ignored": text_header("The request fields that this engine or this route ignores."),
}
# For the OpenAPI descriptions of responses: the header that names the unknown fields of the request.
IGNORED_HEADER: Schema = {"headers": {"X-TTS-Ignored": _SPEECH_HEADERS["X-TTS-Ignored"]}}


def events_schema(*data: Schema) -> Schema:
    """Return the OpenAPI 3.2 description of a stream of server-sent events. data: the JSON schema of each kind of
    event.

    The stream can also have an error event. The data of the last event is `[DONE]`.
    """
    kinds = [
        {"contentMediaType": "application/json", "contentSchema": {"oneOf": [*data, schema_ref(ErrorEnvelope)]}},
        {"const": "[DONE]"},
    ]
    properties = {"data": {"type": "string", "anyOf": kinds}}
    return {"itemSchema": {"type": "object", "properties": properties, "required": ["data"]}}


def event_schema(kind: str, optional: Sequence[str] = (), **properties: Schema) -> Schema:
    """Return the JSON schema of an event. kind: the value of its field `type`. optional: the fields that can be
    absent.
    """
    return _object(optional, type={"const": kind}, **properties)


def _object(optional: Sequence[str] = (), **properties: Schema) -> Schema:
    """Return the JSON schema of an object. All properties are required, except the properties in `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def schema_ref(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


_COUNT: Schema = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_PLACE = {"start": _SECONDS, "end": _SECONDS, "start_char": _COUNT, "end_char": _COUNT, "turn": _COUNT}
_TIMES: dict[str, Schema] = {
    "words": {
        "type": "array",
        "items": _object(["turn"], word={"type": "string"}, **_PLACE),
        "description": "The parts of the caller's text between white space that are spoken; in scripts without "
        "spaces, the characters. Times are seconds in the decoded file; `start_char` and `end_char` (exclusive) count "
        "the characters of the text.",
    },
    "sentences": {"type": "array", "items": _object(["turn"], text={"type": "string"}, **_PLACE)},
}
_REASON: Schema = {"type": "string", "description": "Why some sentences have no times of words. Absent if all have."}
_TIMED_SPEECH = _object(
    ["reason"],
    audio={"type": "string", "contentEncoding": "base64"},
    audio_format={"type": "string"},
    sample_rate=_COUNT,
    duration=_SECONDS,
    reason=_REASON,
    **_TIMES,
)
_SPEECH_EVENTS = events_schema(
    event_schema("speech.audio.delta", audio={"type": "string", "contentEncoding": "base64"}),
    event_schema(
        "speech.audio.done",
        ["guard", "duration", "reason"],
        usage=_object(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT),
        guard={"type": "array", "items": {"type": "string"}},
        verified={"enum": ["ok", "retried", "uncertain", "unchecked"]},
        duration=_SECONDS,
        reason=_REASON,
    ),
    event_schema("speech.audio.words", (), **_TIMES),
    event_schema(
        "speech.progress",
        text={"type": "string"},
        start_s={"type": "number", "minimum": 0},
        sentence=_COUNT,
        sentences=_COUNT_OR_NULL,
        turn=_COUNT,
    ),
)
CLONING_EVENTS = events_schema(
    event_schema("progress", stage={"type": "string"}, bytes=_COUNT, total=_COUNT_OR_NULL),
    event_schema("done", voice=schema_ref(ClonedVoice)),
)


def speech_response() -> Schema:
    """Return the OpenAPI description of the 200 response of a speech route, with all audio formats."""
    content = {row.media_type: BINARY for row in AUDIO_FORMATS.values()}
    return {
        "description": "The audio as a stream, server-sent events with `stream_format: sse`, or JSON with "
        "`timestamps: true`.",
        "headers": dict(_SPEECH_HEADERS),
        "content": {**content, "text/event-stream": _SPEECH_EVENTS, "application/json": {"schema": _TIMED_SPEECH}},
    }


def encoded_response() -> Schema:
    """Return the OpenAPI description of the 200 response with an encoded file."""
    content = {row.media_type: BINARY for row in AUDIO_FORMATS.values()}
    return {"description": "The encoded file as a stream.", "content": content}


_CAPTION_HEADERS = {
    **_SPEECH_HEADERS,
    "Content-Disposition": text_header("The name of the caption file, such as `speech.srt`."),
}


def captions_response() -> Schema:
    """Return the OpenAPI description of the 200 response with captions."""
    string: Schema = {"type": "string"}
    number: Schema = {"type": "number", "minimum": 0}
    verbose = _object(
        task={"const": "transcribe"},
        language=string,
        duration=number,
        text=string,
        words={"type": "array", "items": _object(word=string, start=number, end=number)},
        segments={
            "type": "array",
            "items": _object(["speaker"], id=_COUNT, start=number, end=number, text=string, speaker=string),
        },
    )
    kinds = {kind: media_type.partition(";")[0] for kind, media_type in MEDIA_TYPES.items()}
    parts = _object(audio={"type": "string", "format": "binary"}, captions={"type": "string"})
    return {
        "description": "The captions as a file. With `return_audio: true`, the audio and the captions as two parts.",
        "headers": _CAPTION_HEADERS,
        "content": {
            **{media_type: {"schema": string} for kind, media_type in kinds.items() if kind != "json"},
            kinds["json"]: {"schema": verbose},
            "multipart/form-data": {"schema": parts},
        },
    }


def captioned_speech_response() -> Schema:
    """Return the OpenAPI description of the 200 response of `/dev/captioned_speech`."""
    number: Schema = {"type": "number", "minimum": 0}
    word = _object(word={"type": "string"}, start_time=number, end_time=number)
    chunk = _object(
        audio={"type": "string", "contentEncoding": "base64"},
        audio_format={"type": "string"},
        timestamps={"type": ["array", "null"], "items": word},
    )
    return {
        "description": "A JSON object, or one JSON object in each line if `stream` is not false.",
        "headers": dict(_SPEECH_HEADERS),
        "content": {"application/json": {"schema": chunk}, "application/x-ndjson": {"itemSchema": chunk}},
    }


class Pronunciation(ResponseModel):
    """An entry of a pronunciation dictionary."""

    word: str
    say: str  # "" = the entry has only `ipa`
    case_sensitive: bool
    ipa: str | None

    @classmethod
    def of(cls, entry: LexiconEntry) -> Pronunciation:
        """Create the response for an entry."""
        return cls(word=entry.word, say=entry.say, case_sensitive=entry.case_sensitive, ipa=entry.ipa)


class Pronunciations(ResponseModel):
    """A pronunciation dictionary."""

    entries: list[Pronunciation]
    problems: Annotated[
        list[str], Field(description="The lines of the file lexicon.tsv that the server can't read, and why.")
    ]


class DeletedPronunciations(ResponseModel):
    """The entries that were removed from a pronunciation dictionary."""

    word: str
    deleted: bool
    entries: list[Pronunciation]
