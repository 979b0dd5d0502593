"""The bodies of requests about jobs, and their conversion to a job."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import UploadFile

from app.api.bodies import is_json
from app.api.requests import NUMBER, Flag, ReportedBody, SpeechBody, Text, VoiceField, id_of_voice, lower_case
from app.books.book import MAX_CHAPTERS, ResultFormat
from app.errors import EmptyText, InvalidValue, TextTooLong
from app.jobs.state import About, NewChapter, NewJob, Options
from app.text.captions import CaptionFormat
from app.text.pronunciations import MAX_ENTRIES
from app.types import Line, SpeechRequest

if TYPE_CHECKING:
    from fastapi import Request

    from app.books.book import Book

MAX_TITLE_CHARS = 500
MAX_INDEX = 2**31 - 1  # the largest index of a chapter or a sentence
MAX_FORM_FIELDS = MAX_CHAPTERS + MAX_ENTRIES + 64  # a form may send each item of a list as a field of its own
TEST_CHARS = 200  # how many characters of the text are used to check the fields of a request


def _listed(value: object) -> object:
    """Convert a text such as "srt,vtt" to a list such as ["srt", "vtt"]. Other values are returned unchanged."""
    if isinstance(value, str):
        return [part.strip().lower() for part in value.split(",") if part.strip()]
    return value


def _parsed(value: object) -> object:
    """Parse the JSON in a form field. A value that is not JSON is returned unchanged."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


Title = Annotated[str, StringConstraints(max_length=MAX_TITLE_CHARS, strip_whitespace=True)]
Format = Annotated[ResultFormat, BeforeValidator(lower_case)]


class JobChapterBody(BaseModel):
    """A chapter of a new job.

    `input` is the text of the chapter. If the request has a file, `index` names a chapter of the file instead.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Annotated[Title | None, Field(description="For the list of chapters; it is not spoken.")] = None
    input: Annotated[Text | None, Field(description="The text of the chapter. Required without a file.")] = None
    index: Annotated[
        int | None,
        Field(
            strict=False, ge=0, description="Only with a file: which of its chapters gets this title or voice, from 0."
        ),
    ] = None
    voice: Annotated[VoiceField, Field(description="The voice of this chapter. Default: the voice of the job.")] = None


class JobBody(SpeechBody):
    """The body of `POST /v1/audio/jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "title": "The Lighthouse",
                    "author": "A. Writer",
                    "voice": "nova",
                    "response_format": "m4b",
                    "chapters": [
                        {"title": "The storm", "input": "It was a dark night. The rain fell."},
                        {"title": "The morning", "input": "The sea was quiet again.", "voice": "onyx"},
                    ],
                }
            ]
        }
    )

    UNUSED_FIELDS: ClassVar[frozenset[str]] = frozenset(
        {
            "stream_format",
            "progress",
            "timestamps",
            "conversation_id",
            "max_audio_length_ms",
            "cache",
            "parallel",
            "provenance",
        }
    )

    input: Annotated[Text | None, Field(description="The text, if there are no chapters and no file.")] = None  # type: ignore[assignment]  # required in the base class
    response_format: Annotated[
        Format | None,
        Field(
            description="The file that the job makes: one audio file with chapters; `zip` = one audio file for each "
            "chapter; `epub` = a book that is read along. Default: mp3."
        ),
    ] = None
    title: Annotated[Title | None, Field(description="The title of the book. Default: from the file.")] = None
    author: Annotated[Title | None, Field(description="The author. Default: from the file.")] = None
    narrator: Annotated[Title | None, Field(description="The narrator, as the tags of the result name it.")] = None
    captions: Annotated[
        Annotated[list[CaptionFormat], BeforeValidator(_listed)] | None,
        Field(description="Find the times of the words, and write captions beside the result, in these formats."),
    ] = None
    loudness: Annotated[
        Annotated[
            Annotated[float, Field(ge=-40, le=-5, allow_inf_nan=False)] | Literal["acx"],
            BeforeValidator(lower_case),
            NUMBER,
        ]
        | None,
        Field(
            description="The loudness of the result in LUFS, such as -18; `acx` = the rules of ACX. Default: as all "
            "speech of this server."
        ),
    ] = None
    chapters: Annotated[
        Annotated[list[JobChapterBody], BeforeValidator(_parsed), Field(min_length=1, max_length=MAX_CHAPTERS)] | None,
        Field(description="The chapters in order. With a file: titles and voices of some of its chapters."),
    ] = None
    paused: Annotated[
        Flag | None, Field(description="Create the job without starting it. `POST .../resume` starts it.")
    ] = None

    @classmethod
    def _unknown_in_lists(cls, set_fields: dict[str, Any]) -> Iterable[str]:
        return ()  # an unknown field of a chapter is an error and is not ignored

    def to_request(self, *, default_model: str, max_input_chars: int) -> SpeechRequest:
        """Return the request that all sentences of the job share. Its only line has no text. Raises UnknownVoice."""
        line = Line("", id_of_voice(self.voice) or self.default_voice, self.speaker_id)
        timed = bool(self.captions) or self.response_format == "epub"
        request = self._request([line], default_model)
        return replace(request, format="pcm", use_cache=False, max_audio_ms=None, parallel=False, timestamps=timed)

    def to_job(self, owner: str, book: Book | None, *, default_model: str, max_chars: int) -> NewJob:
        """Convert the body to a job. book: the content of the file; None = the body has the text.

        Raises InvalidValue, EmptyText, TextTooLong, UnknownVoice.
        """
        request = self.to_request(default_model=default_model, max_input_chars=max_chars)
        chapters = self._chapters() if book is None else self._chapters_of(book)
        characters = sum(len(chapter.text) for chapter in chapters)
        if characters > max_chars:
            raise TextTooLong(
                f"The text has {characters} characters; this server accepts at most {max_chars} for a job "
                "(TTS_JOBS_MAX_CHARS). Divide it into several jobs.",
                param="input",
            )
        about = About(
            self.title or (book.title if book else ""),
            self.author or (book.author if book else ""),
            self.narrator or (book.narrator if book else ""),
            self.language or (book.language if book else None),
        )
        new = NewJob(
            owner,
            about,
            chapters,
            request,
            self.extras,
            Options(self.response_format or "mp3", tuple(self.captions or ()), self.loudness),
            0,
            book.cover if book else None,
            self.paused is True,
        )
        if self.seed == "random":
            return replace(new, seed=secrets.randbits(31), random_seed=True)
        derived = int.from_bytes(sha256(new.digest.encode()).digest()[:4]) >> 1
        return replace(new, seed=derived if request.seed is None else request.seed)

    def _chapters(self) -> tuple[NewChapter, ...]:
        if self.chapters is not None and self.input is not None:
            raise InvalidValue("Send either `input` or `chapters`, not both.", param="chapters")
        if self.chapters is None:
            if self.input is None:
                raise EmptyText("Send the text in `input` or `chapters`, or a file in `file`.", param="input")
            return (NewChapter(self.title or "", self.input),)
        found = []
        for number, chapter in enumerate(self.chapters):
            if chapter.input is None:
                raise EmptyText(f"`chapters.{number}.input` is missing.", param=f"chapters.{number}.input")
            if chapter.index is not None:
                raise InvalidValue(
                    "`index` names a chapter of a file, but the request has no `file`. Leave out `index`.",
                    param=f"chapters.{number}.index",
                )
            voice = id_of_voice(chapter.voice, f"chapters.{number}.voice")
            found.append(NewChapter(chapter.title or "", chapter.input, voice))
        return tuple(found)

    def _chapters_of(self, book: Book) -> tuple[NewChapter, ...]:
        if self.input is not None:
            raise InvalidValue("Send either `input` or a file, not both.", param="input")
        found = [NewChapter(chapter.title, chapter.text, chapter.voice) for chapter in book.chapters]
        for number, change in enumerate(self.chapters or ()):
            param = f"chapters.{number}"
            if change.input is not None:
                raise InvalidValue(
                    "The text of a chapter comes from the file. Leave out `input`.", param=f"{param}.input"
                )
            if change.index is None or change.index >= len(found):
                raise InvalidValue(
                    f"`{param}.index` must be the index of a chapter of the file, which has {len(found)} chapters.",
                    param=f"{param}.index",
                )
            old = found[change.index]
            voice = id_of_voice(change.voice, f"{param}.voice") or old.voice
            title = old.title if change.title is None else change.title
            found[change.index] = replace(old, title=title, voice=voice)
        return tuple(found)


class RedoBody(ReportedBody):
    """The body of `POST /v1/audio/jobs/{id}/sentences/{index}/redo`. All fields are optional."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "She lived in Leicester.", "voice": "nova"}]})

    seed: Annotated[
        int | None, Field(ge=-(2**63), le=2**63 - 1, description="The random seed. Default: another seed.")
    ] = None
    text: Annotated[
        Annotated[Text, StringConstraints(max_length=5_000)] | None,
        Field(description="What is spoken instead. Default: as before."),
    ] = None
    voice: Annotated[VoiceField, Field(description="The id of a voice. Default: as before.")] = None


class ChapterVoiceBody(BaseModel):
    """The new voice of one chapter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    index: Annotated[int, Field(strict=False, ge=0, le=MAX_INDEX)]
    voice: Annotated[str, StringConstraints(min_length=1)]


class JobChangeBody(ReportedBody):
    """The body of `PATCH /v1/audio/jobs/{id}`. A field that is left out keeps its value."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"chapters": [{"index": 1, "voice": "onyx"}]}]})

    title: Title | None = None
    author: Title | None = None
    narrator: Title | None = None
    chapters: Annotated[
        list[ChapterVoiceBody] | None,
        Field(
            max_length=MAX_CHAPTERS,
            description="New voices of chapters. Sentences that are already spoken keep their voice: redo them.",
        ),
    ] = None


async def read_job(request: Request) -> tuple[JobBody, tuple[str, bytes] | None]:
    """Read the body of a new job, which is JSON or a form. Return the body and the uploaded file.

    The file is returned as its name and its bytes; None if the request has no file. Raises RequestValidationError,
    InvalidValue.
    """
    if is_json(request.headers):
        return _validated(await request.json()), None
    async with request.form(max_files=1, max_fields=MAX_FORM_FIELDS) as form:
        content: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
        for name in ("chapters", "lexicon", "captions"):
            if name in content:
                content[name] = _items([text for text in form.getlist(name) if isinstance(text, str)])
        file = form.get("file")
        body = _validated({name: value for name, value in content.items() if not _is_left_out(name, value)})
        if not isinstance(file, UploadFile):
            return body, None
        return body, (file.filename or "", await file.read())


def _items(parts: Sequence[str]) -> object:
    """Return the value of a list field of a form. parts: the whole list in one part, or one part for each item."""
    values = [_parsed(part) for part in parts]
    return values if len(values) > 1 or isinstance(values[0], dict) else values[0]


def _is_left_out(name: str, value: object) -> bool:
    """Return whether a form field has no value. A form can't contain null, so JavaScript sends the text "null"."""
    return value in ("", None) or (value == "null" and name not in ("input", "title", "author", "narrator"))


def _validated(content: Any) -> JobBody:
    """Validate the content of a body, and return the body. Raises RequestValidationError, as FastAPI does itself."""
    try:
        return JobBody.model_validate(content)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults, body=content) from error


@cache
def job_body_schema() -> dict[str, Any]:
    """Return the OpenAPI `requestBody` of a new job. FastAPI can't derive it, because the route reads the body."""
    schema = JobBody.model_json_schema(ref_template="#/components/schemas/{model}")
    chapter = schema.pop("$defs")["JobChapterBody"]
    for option in schema["properties"]["chapters"]["anyOf"]:
        if "items" in option:
            option["items"] = chapter
    file = {"type": "string", "format": "binary", "description": "A book: .txt, .md, .html or .epub, up to 20 MB."}
    form = {**schema, "properties": {"file": file, **schema["properties"]}, "required": ["file"]}
    form.pop("examples", None)
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}},
        }
    }


RESULT_FORMATS: tuple[str, ...] = get_args(ResultFormat)
