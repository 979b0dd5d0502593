"""The bodies of answers that are JSON, as /openapi.json describes them; tests hold what the routes send against them.

Nothing here runs while a request is answered: a voice's folder from elsewhere may hold more than is said here, and must
not turn a list into an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

UnixTime = Annotated[int, Field(description="Seconds since 1970.", examples=[1_742_000_000])]
Seconds = Annotated[float, Field(ge=0)]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Shape):
    message: Annotated[str, Field(description="What is wrong and what to do, for people.")]
    type: Literal["invalid_request_error", "requests", "server_error"]
    param: Annotated[str | None, Field(description="The field at fault, inside lists as `turns.3.text`.")]
    code: Annotated[str | None, Field(description="What is wrong, for programs.")]


class ErrorEnvelope(Shape):
    """OpenAI's error body."""

    error: ErrorDetail


# ---- models, voices, formats


class ModelVoice(Shape):
    name: str
    language: str


class Model(Shape):
    """OpenAI's model, and what a speaker of it wants to know."""

    id: str
    object: Literal["model"]
    created: UnixTime
    owned_by: str
    task: Literal["text-to-speech"]
    sample_rate: Annotated[int, Field(description="Hz, where a request does not say another.")]
    voices: list[ModelVoice]
    status: Literal["ready", "loading", "missing_weights", "failed"]
    detail: Annotated[str, Field(description="Why it is not ready.")]
    parameters: Annotated[list[str] | None, Field(description="Which of our fields it takes; null: not ready.")]
    max_speakers: Annotated[int | None, Field(description="How many speakers it speaks in one go.")]
    clones: Annotated[bool | None, Field(description="Whether it speaks with recorded voices.")]


class ModelList(Shape):
    object: Literal["list"]
    data: list[Model]


class NamedModel(Shape):
    id: str
    name: str


class AudioModelList(Shape):
    object: Literal["list"]
    models: list[NamedModel]
    data: list[Model]


class ListedVoice(Shape):
    id: str
    name: str
    object: Literal["audio.voice"]
    type: Literal["preset", "cloned", "offline"]
    language: str
    description: str


class VoiceList(Shape):
    """One list under both names that clients read; with `legacy=true` plain ids."""

    object: Literal["list"]
    voices: list[ListedVoice] | list[str]
    data: list[ListedVoice] | list[str]


class CompatibleVoice(Shape):
    voice_id: str
    name: str
    preview_url: str | None
    description: str
    languages: list[str]
    cloned: bool


class CompatibleVoices(Shape):
    voices: list[CompatibleVoice]


class ResponseFormats(Shape):
    response_formats: list[str]


class StreamFormats(Shape):
    stream_formats: list[str]


# ---- voices of one's own


class QualityCheck(Shape):
    id: str
    level: Literal["good", "warning", "bad"]
    value: float | None
    message: str


class Quality(Shape):
    """How good a recording is; empty for voices that were never measured."""

    level: Literal["good", "warning", "bad"] | None = None
    checks: list[QualityCheck] = []


class VoiceConsent(Shape):
    text: str
    id: str


class ClonedVoice(Shape):
    id: str
    name: str
    object: Literal["audio.voice"]
    created_at: UnixTime
    speaker_id: int
    description: str
    language: str
    audio_duration: Seconds
    sample_count: int
    transcript: str
    quality: Quality
    consent: VoiceConsent | None
    origin: str


class Cloned(Shape):
    status: Literal["success"]
    message: str
    voice: ClonedVoice


class ClonedVoices(Shape):
    voices: list[ClonedVoice]
    problems: Annotated[dict[str, str], Field(description="Folders that should be voices but are not, and why.")]


class DeletedClone(Shape):
    status: Literal["success"]
    message: str
    id: str


class Window(Shape):
    start: Seconds
    end: Seconds


class Draft(Shape):
    draft_id: str
    transcript: str
    audio_duration: Seconds
    window: Annotated[Window, Field(description="The stretch of the recording that will be used.")]
    quality: Quality


class CustomVoice(Shape):
    """OpenAI's custom voice."""

    object: Literal["audio.voice"]
    id: str
    name: str
    created_at: UnixTime
    type: Literal["audio_sample"]


class DeletedVoice(Shape):
    object: Literal["audio.voice.deleted"]
    id: str
    deleted: bool


class Consent(Shape):
    """OpenAI's voice consent."""

    object: Literal["audio.voice_consent"]
    id: str
    name: str
    language: str
    created_at: UnixTime


class ConsentPage(Shape):
    object: Literal["list"]
    data: list[Consent]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedConsent(Shape):
    id: str
    object: Literal["audio.voice_consent"]
    deleted: bool


class ForgottenConversation(Shape):
    id: str
    object: Literal["audio.conversation"]
    deleted: Annotated[bool, Field(description="Whether there was anything to forget.")]


class Detection(Shape):
    watermarked: Annotated[bool, Field(description="Whether the file carries the mark.")]
    score: Annotated[float, Field(description="How sure that is, 0 to 1; 0.5 and more is a mark.")]
    seconds: Annotated[float, Field(description="How much of the file was looked through: at most the first 300 s.")]


# ---- the server


class Count(Shape):
    active: int
    limit: int


class Queue(Shape):
    waiting: int
    limit: int


class Device(Shape):
    device: str
    status: Literal["ok", "unhealthy"]
    reason: str
    rows: Count


class Download(Shape):
    source: str
    file: str
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    eta_s: float | None


class PresetVoiceMaker(Shape):
    state: str
    cast: int
    voices: int
    voice: str | None
    failed: dict[str, str]


class Marking(Shape):
    marked: str
    reason: str | None


class YouTubeState(Shape):
    on: bool
    reason: str | None


class Limits(Shape):
    input_chars: int
    dialogue_turns: int


class MemoryUse(Shape):
    device: str
    used_bytes: int
    total_bytes: int


class Health(Shape):
    """How the server is, and why."""

    model_config = ConfigDict(extra="allow")

    status: Literal["starting", "ok", "degraded", "unhealthy"]
    engine: str | None
    model: str | None
    requested_engine: str
    reason: str
    remedy: str
    device: str | None
    dtype: str | None
    devices: list[Device]
    rows: Count | None
    queue: Queue | None
    watermark: Marking
    youtube: YouTubeState
    memory: list[MemoryUse]
    setup: Annotated[dict[str, str | int | float | bool | None] | None, Field(description="How the engine runs here.")]
    download: Download | None
    casting: PresetVoiceMaker
    version: str
    uptime_s: Seconds
    limits: Limits
    key_needed: bool


class Ready(Shape):
    ready: Literal[True]
    engine: str


class Version(Shape):
    name: Literal["tts-server"]
    version: str
    python: str


class Debug(Shape):
    """All that helps to find a fault, and no secret."""

    model_config = ConfigDict(extra="allow")

    version: str
    python: str
    platform: str
    packages: dict[str, str | None]
    health: dict[str, Any]
    engine: dict[str, Any] | None
    settings: dict[str, Any]
    threads: list[str]
