"""The JSON bodies of requests for captions. Each body has the fields of a speech route and fields for the captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from app.api.requests import ConversationBody, DialogueBody, Flag, Language, SpeechBody, lower_case

if TYPE_CHECKING:
    from app.types import SpeechRequest

# Kokoro's letter for a language -> BCP 47 tag. `lang_code` can also be the tag or the name of a language.
_KOKORO_LANGUAGES = {
    "a": "en-US",
    "b": "en-GB",
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt-BR",
    "z": "zh",
}


# Fields of a speech request that have no effect on the routes for captions.
NO_EFFECT = frozenset({"stream_format", "progress", "timestamps"})


class CaptionsBody(BaseModel):
    """The fields that the three bodies of `POST /v1/audio/captions` share."""

    captions: Annotated[
        Literal["srt", "vtt", "lrc", "json"] | None,
        BeforeValidator(lower_case),
        Field(description="The format of the captions. Default: srt. json = OpenAI's `verbose_json`."),
    ] = None
    highlight: Annotated[
        Literal["none", "word"] | None,
        BeforeValidator(lower_case),
        Field(description="`word`: vtt and lrc have the time of each word inside the captions. Default: none."),
    ] = None
    return_audio: Annotated[
        Flag | None,
        Field(
            description="`true`: the response is multipart/form-data with the audio and the captions. The metadata of "
            "the audio say that it is synthetic speech."
        ),
    ] = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields of this request that have no effect."""
        no_words = self.highlight == "word" and self.captions not in ("vtt", "lrc")
        names: tuple[str, ...] = self._ignored  # type: ignore[attr-defined]  # of SpokenBody
        no_file = self.provenance and not self.return_audio  # type: ignore[attr-defined]  # of SpokenBody
        without_effect = {"highlight": no_words, "provenance": no_file}
        return (*names, *(name for name, is_so in without_effect.items() if is_so))

    def speakers(self, request: SpeechRequest, name_of: Callable[[str], str]) -> tuple[str, ...]:
        """Return the name of the speaker of each text; empty if the captions show no names.

        name_of: a function that takes the id of a voice and returns the name of the voice.
        """
        return ()


class SpeechCaptionsBody(CaptionsBody, SpeechBody):
    """The body of `POST /v1/audio/captions` for one text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "Hello there.", "captions": "srt"}]})

    UNUSED_FIELDS: ClassVar[frozenset[str]] = SpeechBody.UNUSED_FIELDS | NO_EFFECT


class ConversationCaptionsBody(CaptionsBody, ConversationBody):
    """The body of `POST /v1/audio/captions` for the next turn of a conversation."""

    UNUSED_FIELDS: ClassVar[frozenset[str]] = ConversationBody.UNUSED_FIELDS | NO_EFFECT


class DialogueCaptionsBody(CaptionsBody, DialogueBody):
    """The body of `POST /v1/audio/captions` for a dialogue. The captions name the speakers."""

    UNUSED_FIELDS: ClassVar[frozenset[str]] = DialogueBody.UNUSED_FIELDS | NO_EFFECT

    def speakers(self, request: SpeechRequest, name_of: Callable[[str], str]) -> tuple[str, ...]:
        """Return the name of the speaker of each turn.

        The name is `speaker`, or for example `Speaker 1` if `speaker` is a number. Without `speaker`, it is the name of
        the voice.
        """
        names = []
        for turn, line in zip(self.turns, request.lines, strict=True):
            name = str(turn.speaker).strip()
            if turn.speaker is None:
                name = name_of(line.voice)
            elif name.isdecimal():
                name = f"Speaker {name}"
            names.append(name)
        return tuple(names)


def _kind(data: object) -> str | None:
    """Return the tag of the body class that fits the fields in `data`; None if `data` is not a JSON object."""
    if not isinstance(data, dict):
        return None
    if data.get("turns") is not None:
        return "(dialogue)"
    is_conversation = data.get("context") is not None or ("input" not in data and "text" in data)
    return "(conversation)" if is_conversation else "(speech)"


# The tags of the three bodies are in parentheses. `app.api.errors` leaves such a tag out of the name of a field.
AnyCaptionsBody = Annotated[
    Annotated[SpeechCaptionsBody, Tag("(speech)")]
    | Annotated[ConversationCaptionsBody, Tag("(conversation)")]
    | Annotated[DialogueCaptionsBody, Tag("(dialogue)")],
    Discriminator(_kind),
]


def _kokoro_language(value: object) -> object:
    """Convert Kokoro's letter for a language to a BCP 47 tag. Other values are returned unchanged."""
    return _KOKORO_LANGUAGES.get(value.strip().lower(), value) if isinstance(value, str) else value


class NormalizationOptions(BaseModel):
    """Kokoro's options for how a text is normalised. Of these options, only `normalize` has an effect."""

    model_config = ConfigDict(extra="allow", strict=True)

    normalize: Flag | None = None


class CaptionedSpeechBody(SpeechBody):
    """The body of `POST /dev/captioned_speech`, as Kokoro-FastAPI defines it, with all fields of `/v1/audio/speech`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": "Hello there.", "voice": "af_heart", "stream": False}]}
    )

    UNUSED_FIELDS: ClassVar[frozenset[str]] = SpeechBody.UNUSED_FIELDS | NO_EFFECT

    stream: Annotated[
        Flag | None, Field(description="`true` (default): one line of JSON for each chunk. `false`: one JSON object.")
    ] = None
    return_timestamps: Annotated[Flag | None, Field(description="`false`: `timestamps` is null.")] = None
    lang_code: Annotated[
        Language,
        BeforeValidator(_kokoro_language),
        Field(description="Kokoro's letter for a language (`a`, `b`, `e` ...), a BCP 47 tag, or a name."),
    ] = None
    normalization_options: Annotated[
        NormalizationOptions | None, Field(description="`normalize: false` = do not write numbers as words.")
    ] = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields of this request that have no effect."""
        return self._ignored

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Convert the body to a SpeechRequest. Raises TextTooLong, UnknownVoice."""
        request = super().to_request(default_model=default_model, max_input_chars=max_input_chars)
        if self.lang_code is not None and self.language is None:
            request = replace(request, language=self.lang_code)
        if self.normalization_options is not None and self.normalization_options.normalize is False:
            request = replace(request, normalize=False)
        return replace(request, timestamps=self.return_timestamps is not False)
