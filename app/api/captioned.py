"""Streams of responses with captions: a caption file, a caption file with its audio, and Kokoro's captioned speech."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from app.api.streaming import Headers, Stream, once, speech_stream
from app.text.captions import MEDIA_TYPES, caption_file, words_of

if TYPE_CHECKING:
    from app.generator.speech import Answer
    from app.metrics import Metrics
    from app.text.captions import CaptionFormat, Highlight
    from app.types import TimedSentence

# Kokoro-FastAPI sends its lines as application/json, but many programs expect only one JSON value in such a response.
LINES_MEDIA_TYPE = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class CaptionOptions:
    """The format of the captions, and the values of the request from which the captions are made."""

    kind: CaptionFormat
    highlight: Highlight
    texts: tuple[str, ...]  # the texts of the caller, one for each turn
    speakers: tuple[str, ...]  # the names of the speakers; empty = the captions show no names
    language: str  # BCP 47 tag

    async def file_of(self, answer: Answer) -> bytes:
        """Return the content of the caption file of an answer whose stream has ended."""
        times = await answer.timestamps()
        content = await asyncio.to_thread(
            caption_file,
            times,
            self.kind,
            texts=self.texts,
            speakers=self.speakers,
            language=self.language,
            highlight=self.highlight,
        )
        return content.encode()


@dataclass(frozen=True, slots=True)
class Captioned:
    """An answer with the options of its captions."""

    answer: Answer
    options: CaptionOptions


@contextlib.asynccontextmanager
async def captions_stream(
    prepare: Callable[[], Awaitable[Captioned]], metrics: Metrics, audio_format: str, *, with_audio: bool
) -> AsyncIterator[Stream]:
    """Open the stream of a caption file.

    audio_format: the audio format of the request. with_audio: True = the response is multipart/form-data: its first
    part is the audio, and its second part is the caption file. False = the audio is generated too, and the cache keeps
    it for the next request, but only the caption file is sent.
    """
    async with _speech(prepare, metrics, f"speech.{audio_format}") as (captioned, speech):
        if with_audio:
            boundary = secrets.token_hex(16)
            headers = _changed(
                speech.headers,
                ("content-type", f"multipart/form-data; boundary={boundary}"),
                without=("content-length", "content-disposition"),
            )
            parts = _parts(captioned, speech.body, boundary, f"speech.{audio_format}")
            yield Stream(headers, parts, speech.completed)
            return
        async with contextlib.aclosing(speech.body) as body:
            async for _ in body:
                pass
        content = await captioned.options.file_of(captioned.answer)
        headers = _changed(
            speech.headers,
            ("content-type", MEDIA_TYPES[captioned.options.kind]),
            ("content-disposition", f'inline; filename="speech.{captioned.options.kind}"'),
            ("content-length", str(len(content))),
            ("x-tts-verified", captioned.answer.verified),
        )
        yield Stream(headers, once(content), speech.completed)


@contextlib.asynccontextmanager
async def captioned_speech_stream(
    prepare: Callable[[], Awaitable[Answer]],
    metrics: Metrics,
    audio_format: str,
    *,
    lines: bool,
    timestamps: bool,
    chunk: ChunkContent | None = None,
) -> AsyncIterator[Stream]:
    """Open the stream of Kokoro's captioned speech.

    lines: True = send a line of JSON for each chunk of audio; False = send one JSON object. timestamps: whether to add
    the times of the words. chunk: a function that returns the content of each JSON object; None = use the
    content that Kokoro-FastAPI sends.
    """
    chunk = chunk or _kokoro_chunk
    held: list[Answer] = []

    async def answer() -> Answer:
        held.append(await prepare())
        return held[0]

    async with speech_stream(answer, metrics, f"speech.{audio_format}", sse=False, progress=False) as speech:
        headers = _changed(speech.headers, ("content-type", LINES_MEDIA_TYPE), without=("content-length",))
        if lines:
            body = _chunk_lines(held[0], speech.body, chunk, timestamps=timestamps)
            yield Stream(headers, body, speech.completed)
            return
        async with contextlib.aclosing(speech.body) as body:
            audio = b"".join([data async for data in body])
        sentences = (await held[0].timestamps()).sentences if timestamps else None
        content = _json(chunk(held[0], audio, sentences, last=True))
        if chunk is not _kokoro_chunk:
            headers = _changed(headers, ("content-type", "application/json"))
        yield Stream([*headers, ("content-length", str(len(content)))], once(content), speech.completed)


@contextlib.asynccontextmanager
async def _speech(
    prepare: Callable[[], Awaitable[Captioned]], metrics: Metrics, filename: str
) -> AsyncIterator[tuple[Captioned, Stream]]:
    """Open the stream of the audio of a captioned answer."""
    held: list[Captioned] = []

    async def answer() -> Answer:
        held.append(await prepare())
        return held[0].answer

    async with speech_stream(answer, metrics, filename, sse=False, progress=False) as speech:
        yield held[0], speech


def _changed(headers: Headers, *changed: tuple[str, str], without: tuple[str, ...] = ()) -> Headers:
    """Return a copy of `headers`: add or replace the headers in `changed`, and leave out the headers in `without`."""
    names = {name for name, _ in changed} | set(without)
    return [*(header for header in headers if header[0] not in names), *changed]


async def _parts(
    captioned: Captioned, audio: AsyncGenerator[bytes], boundary: str, audio_name: str
) -> AsyncGenerator[bytes]:
    """Yield the audio and then the captions as two parts of multipart/form-data."""

    def head(field: str, filename: str, media_type: str) -> bytes:
        disposition = f'Content-Disposition: form-data; name="{field}"; filename="{filename}"'
        return f"--{boundary}\r\n{disposition}\r\nContent-Type: {media_type}\r\n\r\n".encode()

    yield head("audio", audio_name, captioned.answer.media_type)
    async with contextlib.aclosing(audio):
        async for data in audio:
            yield data
    kind = captioned.options.kind
    yield b"\r\n" + head("captions", f"speech.{kind}", MEDIA_TYPES[kind])
    yield await captioned.options.file_of(captioned.answer)
    yield f"\r\n--{boundary}--\r\n".encode()


async def _chunk_lines(
    answer: Answer, audio: AsyncGenerator[bytes], chunk: ChunkContent, *, timestamps: bool
) -> AsyncGenerator[bytes]:
    """Yield a line of JSON for each chunk of audio, with the words whose times were found after the previous line.

    Each chunk is held back until the next chunk arrives, so that the last line has both audio and the last words.
    """
    sent = 0
    held: bytes | None = None

    def line(data: bytes, *, last: bool = False) -> bytes:
        nonlocal sent
        new = answer.timed[sent:]
        sent += len(new)
        return _json(chunk(answer, data, new if timestamps else None, last=last)) + b"\n"

    async with contextlib.aclosing(audio):
        async for data in audio:
            if held is not None:
                yield line(held)
            held = data
    if timestamps:
        await answer.timestamps()
    yield line(held or b"", last=True)


class ChunkContent(Protocol):
    """Returns the JSON object of a chunk of audio, with the sentences whose times were found after the previous chunk.

    sentences: None = the client wants no times. last: whether it is the last chunk.
    """

    def __call__(
        self, answer: Answer, audio: bytes, sentences: Sequence[TimedSentence] | None, *, last: bool
    ) -> dict[str, Any]: ...


def _kokoro_chunk(
    answer: Answer, audio: bytes, sentences: Sequence[TimedSentence] | None, *, last: bool
) -> dict[str, Any]:
    """Return the JSON object of a chunk, with the fields that Kokoro-FastAPI sends."""
    words = None if sentences is None else _words(sentences)
    return {"audio": base64.b64encode(audio).decode(), "audio_format": answer.media_type, "timestamps": words}


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _words(sentences: Sequence[TimedSentence]) -> list[dict[str, Any]]:
    """Return each word of the sentences with its times in seconds. The field names are those of Kokoro-FastAPI."""
    return [
        {"word": word.word, "start_time": round(word.start_s, 3), "end_time": round(word.end_s, 3)}
        for sentence in sentences
        for word in words_of(sentence)
    ]
