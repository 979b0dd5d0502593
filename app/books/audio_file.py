"""Write one audio file with tags, chapters and a cover. Samples are encoded as they arrive, so memory stays small.

FFmpeg writes the chapters of M4B (`chpl` and a text track) and of MP3 (the ID3 frames CHAP and CTOC). This module
writes the chapters of FLAC and Ogg Opus as comments. A WAV file of more than 4 GB is an RF64 file. Equal samples,
tags and chapters give files with equal bytes.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Self, cast

import av
import numpy as np
from av.stream import Disposition

from app.audio import pcm
from app.audio.formats import AUDIO_FORMATS, CodecRecipe
from app.audio.resample import StreamResampler
from app.books.cover import picture

if TYPE_CHECKING:
    from pathlib import Path

    from av import AudioCodecContext
    from av.container import OutputContainer
    from av.container.core import Chapter
    from numpy.typing import NDArray

    from app.books.cover import Picture
    from app.types import Samples

_MS = Fraction(1, 1000)
_PCM_FRAME = 4096  # how many samples the encoder gets at once, if the codec has no fixed frame size


@dataclass(frozen=True, slots=True)
class ChapterMark:
    """A chapter of an audio file. The times are in seconds from the start of the file."""

    title: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Container:
    """How a kind of audio file is written."""

    recipe: str  # a key of AUDIO_FORMATS; the entry names the codec and its options
    format: str  # FFmpeg's name of the container
    options: Mapping[str, str]
    has_comments: bool = False  # whether the chapters are written as Vorbis comments
    cover: str = "stream"  # how the cover is written: "stream", "comment", or "" = not at all


CONTAINERS: Mapping[str, _Container] = {
    "mp3": _Container("mp3", "mp3", {"id3v2_version": "3", "write_xing": "1"}),
    "m4b": _Container("m4a", "mp4", {"brand": "M4B ", "movflags": "+faststart"}),
    "m4a": _Container("m4a", "mp4", {"brand": "M4A ", "movflags": "+faststart"}),
    "flac": _Container("flac", "flac", {}, has_comments=True),
    "opus": _Container("opus", "ogg", {}, has_comments=True, cover="comment"),
    "wav": _Container("wav", "wav", {"rf64": "auto"}, cover=""),
}


class AudioFile:
    """An audio file that is being written. If its `with` block ends without `finish`, the file is incomplete."""

    def __init__(
        self,
        path: Path,
        kind: str,
        rate_hz: int,
        *,
        tags: Mapping[str, str],
        chapters: Sequence[ChapterMark] = (),
        cover: bytes | None = None,
        codec_rate_hz: int | None = None,
        bit_rate: int | None = None,
    ) -> None:
        """kind: key of CONTAINERS. rate_hz: the sample rate of the samples that `write` gets.

        tags: FFmpeg's name of a tag -> text. codec_rate_hz: the sample rate of the file. bit_rate: bits per second of
        the file. None = the rate that the server's answers of this kind have.
        """
        container = CONTAINERS[kind]
        self._container: OutputContainer = av.open(
            str(path), "w", format=container.format, options={"fflags": "+bitexact", **container.options}
        )
        recipe = AUDIO_FORMATS[container.recipe].recipe
        codec, sample_format, options = "pcm_s16le", "s16", {}
        codec_rate_hz = codec_rate_hz or rate_hz
        if isinstance(recipe, CodecRecipe):
            codec, sample_format, options = recipe.codec, recipe.sample_format, dict(recipe.codec_options)
            codec_rate_hz = recipe.codec_rate_hz(codec_rate_hz)
            bit_rate = bit_rate or recipe.bit_rate(codec_rate_hz)
        stream = self._container.add_stream(
            codec, rate=codec_rate_hz, layout="mono", options={"flags": "+bitexact", **options}
        )
        self._codec = cast("AudioCodecContext", stream.codec_context)
        self._codec.format = sample_format
        self._codec.time_base = self._time_base = Fraction(1, codec_rate_hz)
        if bit_rate is not None:
            self._codec.bit_rate = bit_rate
        self._sample_format = sample_format
        self._rate_hz = codec_rate_hz
        self._resampler = StreamResampler(rate_hz, codec_rate_hz)
        self._pending: Samples = np.zeros(0, np.float32)
        self._position_samples = 0
        self._container.metadata.update(tags)
        if container.has_comments:
            self._container.metadata.update(_chapter_comments(chapters))
        elif chapters:
            self._container.set_chapters([_chapter(number, each) for number, each in enumerate(chapters)])
        cover_stream = None
        if cover is not None and (found := picture(cover)) is not None:
            if container.cover == "stream":
                cover_stream = self._container.add_mux_stream(found.codec, width=found.width, height=found.height)
                cover_stream.disposition = Disposition.attached_pic
                cover_stream.time_base = Fraction(1, 90_000)
            elif container.cover == "comment":
                self._container.metadata["METADATA_BLOCK_PICTURE"] = _picture_block(cover, found)
        self._container.start_encoding()
        if cover is not None and cover_stream is not None:
            packet = av.Packet(cover)
            packet.stream = cover_stream
            packet.pts = packet.dts = 0
            packet.is_keyframe = True
            self._container.mux(packet)
        self._frame_samples = self._codec.frame_size or _PCM_FRAME

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def write(self, samples: Samples) -> None:
        """Encode mono samples (N,). Samples outside [-1, 1] are clipped."""
        self._pending = np.concatenate((self._pending, self._resampler.push(pcm.clip(samples))))
        whole = len(self._pending) - len(self._pending) % self._frame_samples
        self._feed(self._pending[:whole])
        self._pending = self._pending[whole:].copy()

    def finish(self) -> None:
        """Encode the remaining samples and complete the file. Raises OSError if the disk is full."""
        self._feed(np.concatenate((self._pending, self._resampler.flush())))
        for packet in self._codec.encode(None):
            self._container.mux(packet)
        self._container.close()

    def _feed(self, samples: Samples) -> None:
        """Encode samples (N,) frame by frame. Only the last frame of the file may be shorter than a full frame."""
        converted: NDArray[np.float32] | NDArray[np.int16]
        converted = pcm.to_int16(samples) if self._sample_format == "s16" else pcm.clip(samples)
        for start in range(0, len(converted), self._frame_samples):
            block = converted[None, start : start + self._frame_samples]  # shape (1, n); n is at most _frame_samples
            frame = av.AudioFrame.from_ndarray(block, format=self._sample_format, layout="mono")
            frame.sample_rate = self._rate_hz
            frame.time_base = self._time_base
            frame.pts = self._position_samples
            self._position_samples += block.shape[1]
            for packet in self._codec.encode(frame):
                self._container.mux(packet)


def _chapter(number: int, chapter: ChapterMark) -> Chapter:
    """Return a chapter as PyAV needs it."""
    start_ms, end_ms = round(chapter.start_s * 1000), round(chapter.end_s * 1000)
    return {"id": number, "start": start_ms, "end": end_ms, "time_base": _MS, "metadata": {"title": chapter.title}}


def _chapter_comments(chapters: Sequence[ChapterMark]) -> dict[str, str]:
    """Return chapters as Vorbis comments: CHAPTER000=00:01:02.003 and CHAPTER000NAME."""
    comments = {}
    for number, chapter in enumerate(chapters):
        ms = round(chapter.start_s * 1000)
        clock = f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"
        comments[f"CHAPTER{number:03}"] = clock
        comments[f"CHAPTER{number:03}NAME"] = chapter.title
    return comments


def _picture_block(cover: bytes, found: Picture) -> str:
    """Return a cover as the comment METADATA_BLOCK_PICTURE of Ogg: FLAC's block PICTURE in base64."""
    media_type = found.media_type.encode()
    kind = 3  # front cover
    head = struct.pack(">II", kind, len(media_type)) + media_type + struct.pack(">I", 0)
    head += struct.pack(">IIIII", found.width, found.height, 24, 0, len(cover))
    return base64.b64encode(head + cover).decode("ascii")
