"""Request bodies as the API takes them, parsed once into the inside's own types.

Unknown fields are ignored, null is unset.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.errors import EmptyText, TextTooLong
from app.types import AudioFormat, Line, Sampling, SpeechRequest
from app.voices.presets import DEFAULT_VOICE

# Ours, beyond OpenAI's, that an engine may lack: set on an engine without them, they are an error, never ignored.
ENGINE_EXTRAS = ("temperature", "top_k", "top_p", "cfg_scale", "language", "conversation_id")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class VoiceId(BaseModel):
    """A voice by id, as OpenAI's custom voices are given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, StringConstraints(min_length=1)]


class SpeechBody(BaseModel):
    """`POST /v1/audio/speech`: OpenAI's fields, then ours."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={"examples": [{"model": "tts-1", "input": "Hello there.", "voice": "alloy"}]},
    )

    input: Annotated[str, Field(description="The text to speak, up to TTS_MAX_INPUT_CHARS characters.")]
    model: Annotated[str | None, Field(description="A model id or OpenAI alias. Left out: the running engine.")] = None
    voice: Annotated[str | VoiceId | None, Field(description="A voice's id, or {'id': ...}. Left out: alloy.")] = None
    instructions: Annotated[
        str | None, Field(description="How to speak; never spoken. X-TTS-Ignored tells if unused.")
    ] = None
    response_format: AudioFormat | None = None
    speed: Annotated[Finite | None, Field(ge=0.25, le=4.0, description="Tempo; the pitch stays.")] = None
    stream_format: Literal["audio", "sse"] | None = None

    temperature: Annotated[Finite | None, Field(ge=0.0, le=2.0, description="0 is greedy.")] = None
    top_k: Annotated[int | None, Field(ge=1, le=2048, validation_alias=AliasChoices("top_k", "topk"))] = None
    top_p: Annotated[Finite | None, Field(gt=0.0, le=1.0)] = None
    cfg_scale: Annotated[Finite | None, Field(ge=1.0, le=10.0, description="Classifier-free guidance (Dia).")] = None
    seed: Annotated[
        Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | Literal["random"] | None,
        Field(description="Left out: derived from the request, so that it sounds the same each time."),
    ] = None
    max_audio_length_ms: Annotated[int | None, Field(ge=100, le=7_200_000)] = None
    sample_rate: Annotated[int | None, Field(ge=8_000, le=48_000)] = None
    language: Annotated[str | None, StringConstraints(min_length=2, max_length=35, pattern=r"^[A-Za-z0-9_-]+$")] = None
    conversation_id: Annotated[str | None, StringConstraints(min_length=1, max_length=200)] = None
    cache: bool | None = None
    normalize: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: object) -> object:
        """Else a null under one name of a field would hide what stands under its other."""
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    @field_validator("input")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise PydanticCustomError(EmptyText.code, "must hold some text to speak")
        return value

    @property
    def extras(self) -> frozenset[str]:
        """Which of ENGINE_EXTRAS the caller set."""
        return frozenset(name for name in ENGINE_EXTRAS if getattr(self, name) is not None)

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Raises TextTooLong."""
        if len(self.input) > max_input_chars:
            raise TextTooLong(
                f"`input` has {len(self.input)} characters; this server takes at most {max_input_chars}. "
                "Split the text, or raise TTS_MAX_INPUT_CHARS.",
                param="input",
            )
        voice = self.voice.id if isinstance(self.voice, VoiceId) else self.voice
        return SpeechRequest(
            model=default_model if self.model is None else self.model,
            lines=(Line(self.input, DEFAULT_VOICE if voice is None else voice),),
            format=self.response_format or "mp3",
            speed=1.0 if self.speed is None else float(self.speed),
            sample_rate_hz=self.sample_rate or 24_000,
            sampling=Sampling(self.temperature, self.top_k, self.top_p, self.cfg_scale),
            seed=self.seed if isinstance(self.seed, int) else None,
            instructions=self.instructions.strip() if self.instructions and self.instructions.strip() else None,
            language=self.language,
            max_audio_ms=self.max_audio_length_ms,
            normalize=self.normalize is not False,
            use_cache=self.cache is not False,
        )
