"""Request bodies as the API takes them, parsed once into the inside's own types.

Null is unset. Unknown fields are ignored; `ignored` names the fields that only other routes use.
"""

from __future__ import annotations

import binascii
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from app.api.responses import Range
from app.audio.formats import AUDIO_FORMATS
from app.errors import BadReference, EmptyText, TextTooLong, UnknownVoice
from app.types import Line, Sampling, SpeechRequest, UploadedTurn, conversation_key
from app.voices.presets import DEFAULT_VOICE, NO_VOICE

# Ours, beyond OpenAI's, that an engine may lack: set on an engine without them, they are an error, never ignored.
ENGINE_EXTRAS = ("temperature", "top_k", "top_p", "cfg_scale", "language", "conversation_id")

MAX_CONTEXT_TURNS = 32
MAX_DIALOGUE_TURNS = 200
MAX_SPEAKER = 999
PREVIEW_TEXT = "Hello, this is how I sound. It is good to be here, and I hope you like to listen."


def _not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError(EmptyText.code, "must hold some text to speak")
    return value


NOT_BLANK = r"\S"  # for schemas; the code above says it in words


def _whole(value: object) -> object:
    """JSON has one kind of number: 24000.0 is as whole as 24000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_format(value: object) -> str:
    if isinstance(value, str) and value in AUDIO_FORMATS:
        return value
    names = [repr(name) for name in AUDIO_FORMATS]
    raise PydanticCustomError("literal_error", "Input should be {formats}", {"formats": _either(names)})


def _either(names: list[str]) -> str:
    return " or ".join(([", ".join(names[:-1])] if names[:-1] else []) + names[-1:])


class _FormatName:
    """A key of AUDIO_FORMATS. The table is read at each use, so that a plug-in can add a row."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, __: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_known_format)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: object, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(AUDIO_FORMATS), "type": "string"}


WHOLE = BeforeValidator(_whole)
StreamFormat = Literal["audio", "sse"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[
    str, AfterValidator(_not_blank), WithJsonSchema({"type": "string", "minLength": 1, "pattern": NOT_BLANK})
]
Speaker = Annotated[int, Field(ge=0, le=MAX_SPEAKER), WHOLE]


class VoiceId(BaseModel):
    """A voice by id, as OpenAI's custom voices are given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, StringConstraints(min_length=1)]


class SpokenBody(BaseModel):
    """The fields of every route that speaks: OpenAI's, then ours. A subclass adds what is said and who says it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    UNUSED: ClassVar[frozenset[str]] = frozenset()  # inherited fields that have no effect on this route
    VOICE: ClassVar[str] = "voice"  # what an error about the voice names as its `param`
    _foreign: tuple[str, ...] = PrivateAttr(())  # names in the request that only other routes use, and UNUSED ones

    model: Annotated[str | None, Field(description="A model id or OpenAI alias. Left out: the running engine.")] = None
    voice: Annotated[str | VoiceId | None, Field(description="A voice's id, or {'id': ...}. Left out: alloy.")] = None
    instructions: Annotated[
        str | None, Field(description="How to speak; never spoken. X-TTS-Ignored tells if unused.")
    ] = None
    response_format: Annotated[str, _FormatName] | None = None
    speed: Annotated[Finite | None, Field(ge=0.25, le=4.0, description="Tempo; the pitch stays.")] = None
    stream_format: StreamFormat | None = None
    progress: Annotated[
        bool | None, Field(description="With `stream_format: sse`: `speech.progress` events say what begins when.")
    ] = None

    temperature: Annotated[Finite | None, Field(ge=0.0, le=2.0, description="0 is greedy.")] = None
    top_k: Annotated[
        Annotated[int, Field(ge=1, le=2048), WHOLE] | None, Field(validation_alias=AliasChoices("top_k", "topk"))
    ] = None
    top_p: Annotated[Finite | None, Field(gt=0.0, le=1.0)] = None
    cfg_scale: Annotated[
        Finite | None, Field(ge=1.0, le=10.0, description="Classifier-free guidance, for engines that have it.")
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | Literal["random"] | None,
        Field(description="Left out: derived from the request, so that it sounds the same each time."),
    ] = None
    max_audio_length_ms: Annotated[int, Field(ge=100, le=7_200_000), WHOLE] | None = None
    sample_rate: Annotated[int, Field(ge=8_000, le=48_000), WHOLE] | None = None
    language: Annotated[str | None, StringConstraints(min_length=2, max_length=35, pattern=r"^[A-Za-z0-9_-]+$")] = None
    conversation_id: Annotated[str | None, StringConstraints(min_length=1, max_length=200)] = None
    cache: bool | None = None
    normalize: bool | None = None
    enhance: Annotated[bool | None, Field(description="Even loudness. Left out: as TTS_ENHANCE is set.")] = None
    parallel: Annotated[
        bool | None,
        Field(description="Speak sentences in parallel: faster, but a sentence does not continue the previous one."),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Drop nulls, as one under a field's first name would hide the value under its second. Note foreign names."""
        if not isinstance(data, dict):
            return validate(data)
        given = {name: value for name, value in data.items() if value is not None}
        body = validate(given)
        body._foreign = tuple(sorted(given.keys() & (SPEECH_FIELDS - cls.names())))
        return body

    @classmethod
    def names(cls) -> frozenset[str]:
        """The JSON keys that have an effect on this route, aliases included."""
        return frozenset(
            name
            for field, info in cls.model_fields.items()
            if field not in cls.UNUSED
            for name in (info.validation_alias.choices if isinstance(info.validation_alias, AliasChoices) else (field,))
            if isinstance(name, str)
        )

    @property
    def sse(self) -> bool:
        """Whether the answer is sent as server-sent events."""
        return self.stream_format == "sse"

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields that the caller set and that have no effect on this route with any engine."""
        return (*self._foreign, "progress") if self.progress and not self.sse else self._foreign

    @property
    def extras(self) -> frozenset[str]:
        """Which of ENGINE_EXTRAS the caller set."""
        return frozenset(name for name in ENGINE_EXTRAS if getattr(self, name) is not None)

    def conversation(self, owner: str) -> str | None:
        """The key of the caller's conversation, if there is one."""
        return None if self.conversation_id is None else conversation_key(owner, self.conversation_id)

    @abstractmethod
    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """The request without its context and its conversation's key. Raises TextTooLong, UnknownVoice."""

    def _request(self, lines: Iterable[Line], default_model: str) -> SpeechRequest:
        return SpeechRequest(
            model=default_model if self.model is None else self.model,
            lines=tuple(lines),
            format=self.response_format or "mp3",
            speed=1.0 if self.speed is None else float(self.speed),
            sample_rate_hz=self.sample_rate or 24_000,
            sampling=Sampling(self.temperature, self.top_k, self.top_p, self.cfg_scale),
            seed=self.seed if isinstance(self.seed, int) else None,
            instructions=self.instructions.strip() if self.instructions and self.instructions.strip() else None,
            language=self.language,
            max_audio_ms=self.max_audio_length_ms,
            normalize=self.normalize is not False,
            enhance=self.enhance,
            use_cache=self.cache is not False,
            parallel=self.parallel is True,
        )


class SpeechBody(SpokenBody):
    """`POST /v1/audio/speech`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "tts-1", "input": "Hello there.", "voice": "alloy"}]}
    )

    input: Annotated[Text, Field(description="The text to speak, up to TTS_MAX_INPUT_CHARS characters.")]

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Raises TextTooLong, UnknownVoice."""
        _check_length(self.input, "input", max_input_chars)
        voice = _voice_id(self.voice)
        return self._request([Line(self.input, DEFAULT_VOICE if voice is None else voice)], default_model)


class GenerateBody(SpokenBody):
    """`POST /v1/voice-cloning/generate`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"voice_id": "alloy", "text": "Hello there."}]})

    UNUSED: ClassVar[frozenset[str]] = frozenset({"voice"})
    VOICE: ClassVar[str] = "voice_id"

    voice: Annotated[str | VoiceId | None, Field(description="Has no effect: `voice_id` names the voice.")] = None
    text: Annotated[Text, Field(validation_alias=AliasChoices("text", "input"), description="The text to speak.")]
    voice_id: Annotated[str, Field(min_length=1, description="The voice's id or name.")]

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Raises TextTooLong, UnknownVoice."""
        _check_length(self.text, "text", max_input_chars)
        voice = _voice_id(self.voice_id, "voice_id")
        return self._request([Line(self.text, voice or DEFAULT_VOICE)], default_model)


class PreviewBody(SpokenBody):
    """`POST /v1/voice-cloning/voices/{id}/preview`; the voice is that of the path."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Hello there.", "response_format": "wav"}]})

    UNUSED: ClassVar[frozenset[str]] = frozenset({"voice"})
    VOICE: ClassVar[str] = "id"

    voice: Annotated[str | VoiceId | None, Field(description="Has no effect: the path names the voice.")] = None
    text: Annotated[
        Text, Field(validation_alias=AliasChoices("text", "input"), description="The sentence to hear.")
    ] = PREVIEW_TEXT

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Raises TextTooLong."""
        _check_length(self.text, "text", max_input_chars)
        return self._request([Line(self.text, DEFAULT_VOICE)], default_model)


class ContextTurnBody(BaseModel):
    """Something said before."""

    model_config = ConfigDict(extra="ignore", strict=True)

    speaker: Annotated[Speaker, Field(description="Who said it.")]
    text: Annotated[Text, Field(description="What was said, word for word.")]
    audio: Annotated[
        str,
        Field(
            description="How it was said: a sound file of any common format in base64, with or without `data:...,` "
            "before it; up to 60 s.",
            json_schema_extra={"contentEncoding": "base64"},
        ),
    ]


class ConversationBody(SpokenBody):
    """`POST /v1/audio/conversation`: the next turn, in the light of those before it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "It was lovely, thank you.", "speaker_id": 0},  # a context would be kilobytes
            ]
        }
    )

    text: Annotated[
        Text,
        Field(
            validation_alias=AliasChoices("text", "input"),
            description="The text to speak, up to TTS_MAX_INPUT_CHARS characters. `input` is taken for it too.",
        ),
    ]
    speaker_id: Annotated[Speaker | None, Field(description="Who speaks it; see `context`. Left out: 0.")] = None
    context: Annotated[
        list[ContextTurnBody] | None, Field(max_length=MAX_CONTEXT_TURNS, description="What was said, oldest first.")
    ] = None

    @property
    def extras(self) -> frozenset[str]:
        return super().extras | (frozenset() if self.speaker_id is None else {"speaker_id"})

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """All but the context, which has to be decoded: see `said`. Raises TextTooLong, UnknownVoice.

        A context shows the speaker's voice. Without a context, a request without `voice` uses the default voice.
        """
        _check_length(self.text, "text", max_input_chars)
        for index, turn in enumerate(self.context or []):
            _check_length(turn.text, f"context.{index}.text", max_input_chars)
        voice = _voice_id(self.voice)
        if voice is None:
            voice = NO_VOICE.id if self.context else DEFAULT_VOICE
        return self._request([Line(self.text, voice, self.speaker_id or 0)], default_model)

    def said(self) -> list[UploadedTurn]:
        """The context's sound files as bytes. Blocks for as long as base64 takes: 0.4 s for 64 MiB.

        Raises BadReference.
        """
        return [
            UploadedTurn(turn.speaker, turn.text, _sound_file(turn.audio, f"context.{index}.audio"))
            for index, turn in enumerate(self.context or [])
        ]


class DialogueTurnBody(BaseModel):
    """One line of a dialogue."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: Annotated[Text, Field(description="What to say.")]
    speaker: Annotated[
        Annotated[int, WHOLE] | Annotated[str, StringConstraints(min_length=1, max_length=200)] | None,
        Field(description="A number or name that tells the speakers apart. Left out: each voice is a speaker."),
    ] = None
    voice: Annotated[
        str | VoiceId | None,
        Field(description="A voice's id, or {'id': ...}. Left out: the speaker's last one, the body's `voice`, alloy."),
    ] = None


class DialogueBody(SpokenBody):
    """`POST /v1/audio/dialogue`: several voices in one file."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "turns": [
                        {"speaker": 0, "voice": "nova", "text": "Have you seen my umbrella?"},
                        {"speaker": 1, "voice": "onyx", "text": "You left it on the bus."},
                    ]
                }
            ]
        }
    )

    turns: Annotated[
        list[DialogueTurnBody],
        Field(
            min_length=1,
            max_length=MAX_DIALOGUE_TURNS,
            description="In order; up to TTS_MAX_INPUT_CHARS characters together.",
        ),
    ]

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Raises TextTooLong, UnknownVoice."""
        characters = sum(len(turn.text) for turn in self.turns)
        if characters > max_input_chars:
            raise _too_long("The texts of `turns` have", characters, max_input_chars, "turns")
        given = _voice_id(self.voice)
        default = DEFAULT_VOICE if given is None else given
        lines = []
        voices: dict[str, str] = {}  # each speaker's last one
        numbers: dict[tuple[str | None, str], int] = {}  # in order of appearance; a speaker's other voice is another
        for index, turn in enumerate(self.turns):
            label = None if turn.speaker is None else str(turn.speaker)
            voice = _voice_id(turn.voice, f"turns.{index}.voice")
            if voice is None:
                voice = default if label is None else voices.get(label, default)
            if label is not None:
                voices[label] = voice
            lines.append(Line(turn.text, voice, numbers.setdefault((label, voice), len(numbers))))
        return self._request(lines, default_model)


SPEAKING_BODIES: tuple[type[SpokenBody], ...] = (SpeechBody, ConversationBody, DialogueBody, GenerateBody, PreviewBody)
SPEECH_FIELDS = frozenset(name for body in SPEAKING_BODIES for name in body.names())  # of any route that speaks


def _voice_id(voice: str | VoiceId | None, param: str = "voice") -> str | None:
    """Raises UnknownVoice for the name that means no voice inside."""
    asked = voice.id if isinstance(voice, VoiceId) else voice
    if asked == NO_VOICE.id:
        raise UnknownVoice(
            f"There is no voice {asked!r}. Leave `{param}` out: a conversation with a context needs no voice.",
            param=param,
        )
    return asked


def _check_length(text: str, param: str, max_input_chars: int) -> None:
    if len(text) > max_input_chars:
        raise _too_long(f"`{param}` has", len(text), max_input_chars, param)


_BOUNDS: tuple[Literal["minimum", "exclusiveMinimum", "maximum"], ...] = ("minimum", "exclusiveMinimum", "maximum")


def number_ranges() -> dict[str, Range]:
    """The bounds of a speech request's numbers, named as JSON Schema names them, by field."""
    ranges: dict[str, Range] = {}
    for name, field in SpokenBody.model_json_schema()["properties"].items():
        for kind in field.get("anyOf", []):
            if kind.get("maximum", 2**53) < 2**53:  # JSON readers round larger numbers
                ranges[name] = {key: kind[key] for key in _BOUNDS if key in kind}
    return ranges


def _too_long(what_has: str, characters: int, max_input_chars: int, param: str) -> TextTooLong:
    return TextTooLong(
        f"{what_has} {characters} characters; this server takes at most {max_input_chars}. "
        "Split the text, or raise TTS_MAX_INPUT_CHARS.",
        param=param,
    )


_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _sound_file(encoded: str, param: str) -> bytes:
    """The bytes of base64 as people have it: with a `data:` URL's head, line breaks, URL-safe, with or without padding.

    Raises BadReference.
    """
    if encoded[:5].lower() == "data:":
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadReference(
                f"`{param}` is a data: URL without base64. Send `data:audio/wav;base64,...`.", param=param
            )
    try:
        plain = encoded.encode("ascii").translate(_FROM_URL_SAFE, b"\r\n\t =")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are both
        raise BadReference(
            f"`{param}` is not base64. Send the sound file's bytes in base64, with or without a `data:` URL's head.",
            param=param,
        ) from error
