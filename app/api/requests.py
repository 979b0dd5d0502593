"""The JSON bodies of speech requests as pydantic models, and their conversion to SpeechRequest.

A field whose value is null is treated as missing. Numbers and booleans may be strings, because some clients send
strings. `SpokenBody.ignored` lists the fields of a request that have no effect on its route, including unknown fields.
"""

from __future__ import annotations

import binascii
import functools
import math
import re
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote

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
from starlette.responses import Response

from app.api.responses import Range
from app.audio.formats import AUDIO_FORMATS
from app.errors import BadReference, EmptyText, InvalidValue, TextTooLong, UnknownVoice
from app.text.languages import language_tag
from app.text.pronunciations import MAX_ENTRIES, check_distinct, check_entry
from app.types import LexiconEntry, Line, Sampling, SpeechRequest, UploadedTurn, conversation_key
from app.voices.presets import DEFAULT_VOICE, NO_VOICE, UNNAMED_VOICE

# Request fields that OpenAI's API does not have, and that some engines do not support. A request with such a field is
# an error if the running engine does not support the field.
ENGINE_EXTRAS = ("temperature", "top_k", "top_p", "cfg_scale", "language", "conversation_id")

MAX_CONTEXT_TURNS = 32
MAX_DIALOGUE_TURNS = 200
MAX_SPEAKER = 999
PREVIEW_TEXT = "Hello, this is how I sound. It is good to be here, and I hope you like to listen."


def _not_blank(value: str) -> str:
    """Check that a text has at least one character that is not white space."""
    if not value.strip():
        raise PydanticCustomError(EmptyText.code, "must contain text to speak")
    return value


NOT_BLANK = r"\S"  # the rule of _not_blank as a pattern, for JSON schemas


_NUMBER = re.compile(r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,3})?")
_FLAGS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


def _number(value: object) -> object:
    """Convert a string such as "1.0" to a number, because some clients send all values as strings."""
    if isinstance(value, str) and _NUMBER.fullmatch(text := value.strip()):
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    return value


def _flag(value: object) -> object:
    """Convert a string such as "true" to a bool."""
    return _FLAGS.get(value.strip().lower(), value) if isinstance(value, str) else value


def lower_case(value: object) -> object:
    """Convert a string to lower case."""
    return value.strip().lower() if isinstance(value, str) else value


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _voice_or_none(value: object) -> object:
    """Return None for an empty string. Raises PydanticCustomError for a value that can't be a voice."""
    if _is_blank(value):
        return None
    if value is None or isinstance(value, str | VoiceId):
        return value
    if isinstance(value, dict) and value.keys() == {"id"} and isinstance(value["id"], str) and value["id"]:
        return value
    raise PydanticCustomError(
        "string_type",
        "Write the id of a voice as text, or as an object with only the field `id`, such as {example}.",
        {"example": '{"id": "alloy"}'},
    )


def _whole(value: object) -> object:
    """Convert a float such as 24000.0 to an int, because some JSON writers write integers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _rounded(value: object) -> object:
    """Round a float to an int. NaN and infinity are returned unchanged."""
    return round(value) if isinstance(value, float) and math.isfinite(value) else value


def _known_format(value: object) -> str:
    """Return the name of an audio format in lower case. Raises PydanticCustomError for an unknown format."""
    if isinstance(value, str) and (name := value.strip().lower()) in AUDIO_FORMATS:
        return name
    names = [repr(name) for name in AUDIO_FORMATS]
    raise PydanticCustomError("literal_error", "Input should be {formats}", {"formats": _either(names)})


def _either(names: list[str]) -> str:
    return " or ".join(([", ".join(names[:-1])] if names[:-1] else []) + names[-1:])


class FormatName:
    """The type for names of audio formats. AUDIO_FORMATS is read at each use, because a plug-in may add a format."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, __: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_known_format)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: object, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(AUDIO_FORMATS), "type": "string"}


WHOLE = BeforeValidator(lambda value: _whole(_number(value)))
ROUNDED = BeforeValidator(lambda value: _rounded(_number(value)))
StreamFormat = Literal["audio", "sse"]
NUMBER = BeforeValidator(_number)
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[
    str, AfterValidator(_not_blank), WithJsonSchema({"type": "string", "minLength": 1, "pattern": NOT_BLANK})
]
Language = Annotated[
    Annotated[str, StringConstraints(min_length=2, max_length=35, pattern=r"^[A-Za-z0-9_-]+$")] | None,
    BeforeValidator(lambda value: language_tag(value) if isinstance(value, str) else value),
    Field(
        description='The language as a BCP 47 tag ("de", "pt-BR") or by its name ("German", "Deutsch"). Default, '
        'also with "" and "auto": the language of the text, or else of the voice.'
    ),
]
Speaker = Annotated[int, Field(ge=0, le=MAX_SPEAKER), WHOLE]


class VoiceId(BaseModel):
    """A voice as an object with its id. OpenAI's clients send custom voices in this form."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, StringConstraints(min_length=1)]


VoiceField = Annotated[str | VoiceId | None, BeforeValidator(_voice_or_none)]

MAX_IGNORED_NAMES = 20  # the header X-TTS-Ignored lists at most this many unknown fields
_MAX_NAME_CHARS = 64


def _shown_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of fields in a form that an HTTP header can contain. Long names are cut. Only
    MAX_IGNORED_NAMES names are returned; if there are more names, `...` follows them.
    """
    shown = [quote(name[:_MAX_NAME_CHARS], safe="[]$@:!*'()", errors="replace") for name in sorted(names)]
    return (*shown[:MAX_IGNORED_NAMES], "...") if len(shown) > MAX_IGNORED_NAMES else tuple(shown)


class ReportedBody(BaseModel):
    """The base class of bodies that may have unknown fields. The response names these fields in X-TTS-Ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    _ignored: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate the body, and record its unknown fields."""
        body = validate(data)
        if isinstance(data, dict):
            known = set(cls.model_fields)
            for field in cls.model_fields.values():
                if isinstance(field.validation_alias, AliasChoices):
                    known.update(str(name) for name in field.validation_alias.choices)
            body._ignored = _shown_names(
                name for name, value in data.items() if value is not None and name not in known
            )
        return body

    @property
    def ignored_headers(self) -> list[tuple[str, str]]:
        """The header X-TTS-Ignored with the unknown fields of the body; empty if all fields are known."""
        return [("X-TTS-Ignored", ", ".join(self._ignored))] if self._ignored else []

    def name_ignored(self, response: Response) -> None:
        """Name the unknown fields of the body in the header X-TTS-Ignored."""
        response.headers.update(dict(self.ignored_headers))


class LexiconEntryBody(BaseModel):
    """How a word or a phrase is pronounced."""

    model_config = ConfigDict(extra="forbid", strict=True)

    word: Annotated[str, Field(description="A word or phrase. Only whole words of a text match it.")]
    say: Annotated[
        str | None, Field(description="What is spoken instead, as written. Required if `ipa` is missing.")
    ] = None
    case_sensitive: Annotated[Flag | None, Field(description="Whether the case of letters matters.")] = None
    ipa: Annotated[
        str | None, Field(description="The pronunciation in IPA. Engines that do not accept IPA use `say`.")
    ] = None


LexiconEntries = Annotated[list[LexiconEntryBody], Field(max_length=MAX_ENTRIES)]


def lexicon_entries(bodies: Iterable[LexiconEntryBody] | None, param: str) -> tuple[LexiconEntry, ...]:
    """Check the entries of a request. param: the name of the field, for errors. Raises InvalidValue."""
    entries: list[LexiconEntry] = []
    for place, body in enumerate(bodies or ()):
        try:
            entries.append(check_entry(body.word, body.say, case_sensitive=body.case_sensitive is True, ipa=body.ipa))
        except InvalidValue as error:
            error.param = f"{param}.{place}.{error.param}"
            raise
    try:
        check_distinct(entries)
    except InvalidValue as error:
        error.param = f"{param}.{error.param}"
        raise
    return tuple(entries)


class SpokenBody(BaseModel):
    """The fields that all speech routes share. A subclass adds the fields for the text and the speaker."""

    model_config = ConfigDict(extra="ignore", strict=True)

    UNUSED_FIELDS: ClassVar[frozenset[str]] = frozenset()  # inherited fields that have no effect on this route
    VOICE_FIELD: ClassVar[str] = "voice"  # the field that selects the voice: the `param` of errors about the voice
    DEFAULT_FORMAT: ClassVar[str] = "mp3"  # the audio format of a request without `response_format`
    _ignored: tuple[str, ...] = PrivateAttr(())  # fields of the request that have no effect on this route

    model: Annotated[
        str | None,
        Field(description="The id of a model, or an alias such as `tts-1`. Default: the running model."),
    ] = None
    voice: Annotated[
        VoiceField, Field(description="The id of a voice, or {'id': ...}. Default: that of the model.")
    ] = None
    instructions: Annotated[
        str | None, Field(description="How to speak. If the engine ignores this field, X-TTS-Ignored lists it.")
    ] = None
    response_format: Annotated[str, FormatName] | None = None
    speed: Annotated[
        Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False), NUMBER] | None,
        Field(description="The tempo: 2 is twice as fast. The pitch does not change."),
    ] = None
    stream_format: Annotated[StreamFormat | None, BeforeValidator(lower_case)] = None
    progress: Annotated[
        Flag | None,
        Field(description="With `stream_format: sse`: send `speech.progress` events with the start of each sentence."),
    ] = None
    timestamps: Annotated[
        Flag | None,
        Field(
            description="Return JSON with the audio in base64 and the times of its words and sentences. With "
            "`stream_format: sse`: also send `speech.audio.words` events."
        ),
    ] = None

    provenance: Annotated[
        Flag | None,
        Field(
            description="Make a file to keep: its metadata say that it is synthetic speech, by which model, in which "
            "voice and when, in every format but PCM. With TTS_C2PA_CERT, the file is signed, and sent when it is "
            "complete."
        ),
    ] = None

    speaker_id: Annotated[
        Speaker | None,
        Field(
            description="The number of the speaker, for models that were trained with numbered speakers. The voice "
            "`speaker:N` is this speaker without a recording."
        ),
    ] = None
    temperature: Annotated[
        Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False), NUMBER] | None,
        Field(description="The sampling temperature. 0 = always take the most likely token."),
    ] = None
    top_k: Annotated[
        Annotated[int, Field(ge=1, le=2048), WHOLE] | None, Field(validation_alias=AliasChoices("top_k", "topk"))
    ] = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False), NUMBER] | None = None
    cfg_scale: Annotated[
        Annotated[float, Field(ge=1.0, le=10.0, allow_inf_nan=False), NUMBER] | None,
        Field(description="The scale of classifier-free guidance, for engines that support it."),
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | Literal["random"] | None,
        BeforeValidator(lower_case),
        Field(
            description="The random seed. Default: derived from the request, so that the same request gives the same "
            "audio."
        ),
    ] = None
    max_audio_length_ms: Annotated[int, Field(ge=100, le=7_200_000), ROUNDED] | None = None
    sample_rate: Annotated[int, Field(ge=8_000, le=48_000), WHOLE] | None = None
    language: Language = None
    conversation_id: Annotated[str | None, StringConstraints(min_length=1, max_length=200)] = None
    cache: Flag | None = None
    normalize: Flag | None = None
    enhance: Annotated[Flag | None, Field(description="Give all speech the same loudness. Default: TTS_ENHANCE.")] = (
        None
    )
    parallel: Annotated[
        Flag | None,
        Field(description="Generate sentences in parallel: faster, but the intonation starts anew at each sentence."),
    ] = None

    verify: Annotated[
        Flag | None,
        Field(
            description="`true` = send nothing before the whole speech is checked against its text. `false` = no "
            "check. Default: TTS_VERIFY, which never delays the first audio. X-TTS-Verified has the result."
        ),
    ] = None
    best_of: Annotated[
        Annotated[int, Field(ge=1, le=4), WHOLE] | None,
        Field(
            description="Generate each utterance this many times with different seeds, check all takes, and keep the "
            "best. Nothing is sent before that. Default: 1."
        ),
    ] = None

    lexicon: Annotated[
        LexiconEntries | None,
        Field(
            description="How words are pronounced in this request. These entries win over the dictionaries of the "
            "voice and of the server (`GET /v1/audio/lexicon`)."
        ),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Remove nulls, validate the body, and record the fields that have no effect on this route.

        Nulls are removed before the validation. Otherwise a null in `text` would hide a value in the alias `input`. An
        empty model or voice is removed too, because forms send an empty string for a field without a value.
        """
        if not isinstance(data, dict):
            return validate(data)
        set_fields = {
            name: value
            for name, value in data.items()
            if value is not None and not (name in ("model", "voice") and _is_blank(value))
        }
        body = validate(set_fields)
        body._ignored = _shown_names({*(set_fields.keys() - cls.names()), *cls._unknown_in_lists(set_fields)})
        return body

    @classmethod
    def _unknown_in_lists(cls, set_fields: dict[str, Any]) -> Iterable[str]:
        """Return the unknown fields in the objects of `turns` and `context`, such as `turns[].emotion`."""
        for name, turn in (("turns", DialogueTurnBody), ("context", ContextTurnBody)):
            if name in cls.model_fields:
                for item in set_fields.get(name, ()):
                    yield from (
                        f"{name}[].{key}"
                        for key, value in (item.items() if isinstance(item, dict) else ())
                        if value is not None and key not in turn.model_fields
                    )

    @classmethod
    @functools.cache
    def names(cls) -> frozenset[str]:
        """Return the JSON keys, including aliases, that have an effect on this route."""
        return frozenset(
            name
            for field, info in cls.model_fields.items()
            if field not in cls.UNUSED_FIELDS
            for name in (info.validation_alias.choices if isinstance(info.validation_alias, AliasChoices) else (field,))
            if isinstance(name, str)
        )

    @property
    def sse(self) -> bool:
        """Whether the response is a stream of server-sent events."""
        return self.stream_format == "sse"

    @property
    def default_voice(self) -> str:
        """The voice of a body without `voice`.

        It is the voice of the adapter if `model` names one, such as csm-1b:danish. Otherwise it is UNNAMED_VOICE.
        """
        adapter = (self.model or "").rpartition(":")[2] if ":" in (self.model or "") else ""
        return adapter.strip() or UNNAMED_VOICE

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields of this request that have no effect on this route, whichever engine runs."""
        return (*self._ignored, "progress") if self.progress and not self.sse else self._ignored

    @property
    def extras(self) -> frozenset[str]:
        """The fields of ENGINE_EXTRAS that the caller has set, and `speaker_id` if it is set and has an effect."""
        extras = frozenset(name for name in ENGINE_EXTRAS if getattr(self, name) is not None)
        used = self.speaker_id is not None and "speaker_id" in self.names()
        return extras | {"speaker_id"} if used else extras

    def conversation(self, owner: str) -> str | None:
        """Return the key under which the server stores the conversation; None if the body has no `conversation_id`.

        owner: the digest of the caller's API key; "" if the server has no keys.
        """
        return None if self.conversation_id is None else conversation_key(owner, self.conversation_id)

    @abstractmethod
    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest. Raises TextTooLong, UnknownVoice.

        The request does not have the context and the key of the conversation yet. default_model: the model of a body
        without `model`. max_input_chars: the maximum number of characters of the text.
        """

    def _request(self, lines: Iterable[Line], default_model: str) -> SpeechRequest:
        """Create a SpeechRequest from these lines and the fields that all speech routes share."""
        return SpeechRequest(
            model=default_model if self.model is None else self.model,
            lines=tuple(lines),
            format=self.response_format or self.DEFAULT_FORMAT,
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
            verify=self.verify,
            best_of=self.best_of or 1,
            lexicon=lexicon_entries(self.lexicon, "lexicon"),
            timestamps=self.timestamps is True,
            provenance=self.provenance is True,
        )


class SpeechBody(SpokenBody):
    """The body of `POST /v1/audio/speech`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "tts-1", "input": "Hello there.", "voice": "alloy"}]}
    )

    input: Annotated[Text, Field(description="The text to speak, up to TTS_MAX_INPUT_CHARS characters.")]

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest with one line. Raises TextTooLong, UnknownVoice."""
        _check_length(self.input, "input", max_input_chars)
        voice = id_of_voice(self.voice)
        return self._request(
            [Line(self.input, self.default_voice if voice is None else voice, self.speaker_id)], default_model
        )


class NormalizeBody(ReportedBody):
    """The body of `POST /v1/audio/normalize`. The fields mean the same as in a speech request."""

    model_config = ConfigDict(
        extra="ignore", strict=True, json_schema_extra={"examples": [{"input": "It costs $12.50."}]}
    )

    input: Annotated[Text, Field(description="The text, up to TTS_MAX_INPUT_CHARS characters.")]
    language: Language = None
    engine: Annotated[
        str | None, Field(description="The name of an engine or the id of its model. Default: the running engine.")
    ] = None
    voice: Annotated[str | VoiceId | None, Field(description="The id of a voice, or {'id': ...}. Default: alloy.")] = (
        None
    )
    lexicon: LexiconEntries | None = None

    def checked(self, max_input_chars: int) -> tuple[str, str]:
        """Check the text and the voice. Return the text and the id of the voice. Raises TextTooLong, UnknownVoice."""
        _check_length(self.input, "input", max_input_chars)
        return self.input, id_of_voice(self.voice) or DEFAULT_VOICE


class GenerateBody(SpokenBody):
    """The body of `POST /v1/voice-cloning/generate`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"voice_id": "alloy", "text": "Hello there."}]})

    UNUSED_FIELDS: ClassVar[frozenset[str]] = frozenset({"voice"})
    VOICE_FIELD: ClassVar[str] = "voice_id"

    voice: Annotated[VoiceField, Field(description="Has no effect. Use `voice_id`.")] = None
    text: Annotated[Text, Field(validation_alias=AliasChoices("text", "input"), description="The text to speak.")]
    voice_id: Annotated[str, Field(min_length=1, description="The id or the name of the voice.")]

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest with one line. Raises TextTooLong, UnknownVoice."""
        _check_length(self.text, "text", max_input_chars)
        voice = id_of_voice(self.voice_id, "voice_id")
        return self._request([Line(self.text, voice or DEFAULT_VOICE, self.speaker_id)], default_model)


class PreviewBody(SpokenBody):
    """The body of `POST /v1/voice-cloning/voices/{id}/preview`. The URL contains the id of the voice."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Hello there.", "response_format": "wav"}]})

    UNUSED_FIELDS: ClassVar[frozenset[str]] = frozenset({"voice"})
    VOICE_FIELD: ClassVar[str] = "id"

    voice: Annotated[VoiceField, Field(description="Has no effect. The URL contains the id of the voice.")] = None
    text: Annotated[Text, Field(validation_alias=AliasChoices("text", "input"), description="The text to speak.")] = (
        PREVIEW_TEXT
    )

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest with the default voice. Raises TextTooLong."""
        _check_length(self.text, "text", max_input_chars)
        return self._request([Line(self.text, DEFAULT_VOICE, self.speaker_id)], default_model)


class ContextTurnBody(BaseModel):
    """An earlier turn of the conversation, with its recording."""

    model_config = ConfigDict(extra="ignore", strict=True)

    speaker: Annotated[Speaker, Field(description="The number of the speaker.")]
    text: Annotated[Text, Field(description="The exact words of the recording.")]
    audio: Annotated[
        str,
        Field(
            description="The recording: an audio file of any common format in base64, with or without `data:...,` "
            "before it; up to 60 s.",
            json_schema_extra={"contentEncoding": "base64"},
        ),
    ]


class ConversationBody(SpokenBody):
    """The body of `POST /v1/audio/conversation`, which speaks the next turn of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                # The example has no context, because a recording would make the example kilobytes long.
                {"text": "It was lovely, thank you.", "speaker_id": 0}
            ]
        }
    )

    DEFAULT_FORMAT: ClassVar[str] = "wav"

    text: Annotated[
        Text,
        Field(
            validation_alias=AliasChoices("text", "input"),
            description="The text to speak, up to TTS_MAX_INPUT_CHARS characters. `input` is another name for it.",
        ),
    ]
    speaker_id: Annotated[
        Speaker | None, Field(description="The number of the speaker, as in `context`. Default: 0.")
    ] = None
    context: Annotated[
        list[ContextTurnBody] | None,
        Field(max_length=MAX_CONTEXT_TURNS, description="The earlier turns, oldest first."),
    ] = None

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest without the context. `decode_context` returns the context.

        If the body has no `voice`, the recordings in the context define the voice. If the body has no context either,
        the default voice is used. Raises TextTooLong, UnknownVoice.
        """
        _check_length(self.text, "text", max_input_chars)
        for index, turn in enumerate(self.context or []):
            _check_length(turn.text, f"context.{index}.text", max_input_chars)
        voice = id_of_voice(self.voice)
        if voice is None:
            voice = NO_VOICE.id if self.context else self.default_voice
        request = self._request([Line(self.text, voice, self.speaker_id or 0)], default_model)
        return replace(request, default_speaker=0)

    def decode_context(self) -> list[UploadedTurn]:
        """Decode the recordings in `context` from base64. Blocks the thread: 64 MiB take 0.4 s. Raises BadReference."""
        return [
            UploadedTurn(turn.speaker, turn.text, _audio_file(turn.audio, f"context.{index}.audio"))
            for index, turn in enumerate(self.context or [])
        ]


class DialogueTurnBody(BaseModel):
    """One turn of a dialogue."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: Annotated[Text, Field(description="The text to speak.")]
    speaker: Annotated[
        Annotated[int, BeforeValidator(_whole)]
        | Annotated[str, StringConstraints(min_length=1, max_length=200)]
        | None,
        Field(description="A number or name that identifies the speaker. Default: each voice is one speaker."),
    ] = None
    voice: Annotated[
        VoiceField,
        Field(
            description="The id of a voice, or {'id': ...}. Default: the previous voice of this speaker, else the "
            "body's `voice`, else alloy."
        ),
    ] = None


class DialogueBody(SpokenBody):
    """The body of `POST /v1/audio/dialogue`, which speaks several turns with several voices."""

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

    UNUSED_FIELDS: ClassVar[frozenset[str]] = frozenset({"speaker_id"})

    speaker_id: Annotated[Speaker | None, Field(description="Has no effect. Use `turns[].speaker`.")] = None
    turns: Annotated[
        list[DialogueTurnBody],
        Field(
            min_length=1,
            max_length=MAX_DIALOGUE_TURNS,
            description="The turns in order. Together they have up to TTS_MAX_INPUT_CHARS characters.",
        ),
    ]

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest with one line for each turn. Raises TextTooLong, UnknownVoice."""
        characters = sum(len(turn.text) for turn in self.turns)
        if characters > max_input_chars:
            raise too_long("The texts of `turns` have", characters, max_input_chars, "turns")
        body_voice = id_of_voice(self.voice)
        default = self.default_voice if body_voice is None else body_voice
        lines = []
        voices: dict[str, str] = {}  # speaker -> the voice of the speaker's previous turn
        numbers: dict[tuple[str | None, str], int] = {}  # (speaker, voice) -> speaker number
        for index, turn in enumerate(self.turns):
            label = None if turn.speaker is None else str(turn.speaker)
            voice = id_of_voice(turn.voice, f"turns.{index}.voice")
            if voice is None:
                voice = default if label is None else voices.get(label, default)
            if label is not None:
                voices[label] = voice
            lines.append(Line(turn.text, voice, numbers.setdefault((label, voice), len(numbers))))
        return self._request(lines, default_model)


SPEAKING_BODIES: tuple[type[SpokenBody], ...] = (SpeechBody, ConversationBody, DialogueBody, GenerateBody, PreviewBody)


def id_of_voice(voice: str | VoiceId | None, param: str = "voice") -> str | None:
    """Return the id of a voice; None if `voice` is None. Raises UnknownVoice for an id that the server reserves.

    param: the name of the field, for the error.
    """
    voice_id = voice.id if isinstance(voice, VoiceId) else voice
    if voice_id == NO_VOICE.id:
        raise UnknownVoice(
            f"There is no voice {voice_id!r}. Send the id of a voice from GET /v1/audio/voices, or leave `{param}` "
            "out: with `context`, no voice is needed.",
            param=param,
        )
    return voice_id


def _check_length(text: str, param: str, max_input_chars: int) -> None:
    """Check that the text does not have too many characters. Raises TextTooLong. param: the name of the field."""
    if len(text) > max_input_chars:
        raise too_long(f"`{param}` has", len(text), max_input_chars, param)


_BOUNDS: tuple[Literal["minimum", "exclusiveMinimum", "maximum"], ...] = ("minimum", "exclusiveMinimum", "maximum")


def number_ranges() -> dict[str, Range]:
    """Return the bounds of the number fields of a speech request, by field name. The bounds are named as in JSON
    Schema.
    """
    ranges: dict[str, Range] = {}
    for name, field in SpokenBody.model_json_schema()["properties"].items():
        for kind in field.get("anyOf", []):
            if kind.get("maximum", 2**53) < 2**53:  # larger bounds are left out, because JavaScript rounds them
                ranges[name] = {key: kind[key] for key in _BOUNDS if key in kind}
    return ranges


def too_long(what_has: str, characters: int, max_input_chars: int, param: str) -> TextTooLong:
    """Return the error for a text with too many characters. what_has: the first words, such as "The text has"."""
    return TextTooLong(
        f"{what_has} {characters} characters; this server accepts at most {max_input_chars}. Split the text. The "
        "operator of the server can raise the limit (TTS_MAX_INPUT_CHARS).",
        param=param,
    )


_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _audio_file(encoded: str, param: str) -> bytes:
    """Decode a file from base64. Accepts a `data:` URL, line breaks, the URL-safe alphabet and missing padding.

    param: the name of the field, for the error. Raises BadReference.
    """
    if encoded[:5].lower() == "data:":
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadReference(
                f"`{param}` is a `data:` URL without base64. Send `data:audio/wav;base64,...`.", param=param
            )
    try:
        plain = encoded.encode("ascii").translate(_FROM_URL_SAFE, b"\r\n\t =")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as error:  # includes binascii.Error and UnicodeEncodeError
        raise BadReference(
            f"`{param}` is not valid base64. Send the bytes of the audio file in base64, or as a `data:` URL.",
            param=param,
        ) from error
