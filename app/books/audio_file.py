"""Write one audio file with tags, chapters and a cover. The samples pass through, so the memory stays flat.

FFmpeg writes the chapters of M4B (`chpl` and a text track) and of MP3 (the ID3 frames CHAP and CTOC). This module
writes the chapters of FLAC and Ogg Opus as comments. A WAV file of more than 4 GB is an RF64 file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import numpy as np

from app.audio import pcm
from app.audio.formats import AUDIO_FORMATS, CodecRecipe
from app.audio.resample import StreamResampler

if TYPE_CHECKING:
    from pathlib import Path

    from av import AudioCodecContext
    from av.container import OutputContainer
    from numpy.typing import NDArray

    from app.types import Samples

_MS = Fraction(1, 1000)


@dataclass(frozen=True, slots=True)
class ChapterMark:
    """A chapter of an audio file. Times in seconds from the start of the file."""

    title: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Container:
    """How a kind of audio file is written."""

    recipe: str  # key of AUDIO_FORMATS: the codec and its options
    format: str  # FFmpeg's name of the container
    options: Mapping[str, str]
    comments: bool = False  # whether chapters and cover are comments (Vorbis comments)
    cover: bool = True


_CONTAINERS: Mapping[str, _Container] = {
    "mp3": _Container("mp3", "mp3", {"id3v2_version": "3", "write_xing": "1"}),
    "m4b": _Container("m4a", "mp4", {"brand": "M4B ", "movflags": "+faststart"}),
    "m4a": _Container("m4a", "mp4", {"brand": "M4A ", "movflags": "+faststart"}),
    "flac": _Container("flac", "flac", {}, comments=True),
    "opus": _Container("opus", "ogg", {}, comments=True),
    "wav": _Container("wav", "wav", {"rf64": "auto"}, cover=False),
}


class AudioFile:
    """An audio file that is being written. Use it with `with`: an exception leaves an incomplete file behind."""

    def __init__(
        self,
        path: Path,
        kind: str,
        rate_hz: int,
        *,
        tags: Mapping[str, str],
        chapters: Sequence[ChapterMark] = (),
        cover: bytes | None = None,
    ) -> None:
        """kind: mp3, m4b, m4a, flac, opus or wav. rate_hz: of the samples. tags: FFmpeg's names, for example title."""
        container = _CONTAINERS[kind]
        self._container: OutputContainer = av.open(
            str(path), "w", format=container.format, options={"fflags": "+bitexact", **container.options}
        )
        recipe = AUDIO_FORMATS[container.recipe].recipe
        codec, sample_format, bit_rate, options, codec_rate_hz = "pcm_s16le", "s16", None, {}, rate_hz
        if isinstance(recipe, CodecRecipe):
            codec, sample_format, options = recipe.codec, recipe.sample_format, dict(recipe.codec_options)
            codec_rate_hz = recipe.codec_rate_hz(rate_hz)
            bit_rate = recipe.bit_rate(codec_rate_hz)
        stream = self._container.add_stream(
            codec, rate=codec_rate_hz, layout="mono", options={"flags": "+bitexact", **options}
        )
        self._codec = cast("AudioCodecContext", stream.codec_context)
        self._codec.format = sample_format
        self._codec.time_base = self._time_base = Fraction(1, codec_rate_hz)
        if bit_rate is not None:
            self._codec.bit_rate = bit_rate
        self._rate_hz = codec_rate_hz
        self._resampler = StreamResampler(rate_hz, codec_rate_hz)
        self._pending = np.zeros(0, np.float32)
        self._position = 0
        written = dict(tags)
        if container.comments:
            written.update(_chapter_comments(chapters))
        elif chapters:
            self._container.set_chapters(
                [
                    {
                        "id": number,
                        "start": round(chapter.start_s * 1000),
                        "end": round(chapter.end_s * 1000),
                        "time_base": _MS,
                        "metadata": {"title": chapter.title},
                    }
                    for number, chapter in enumerate(chapters)
                ]
            )
        self._container.metadata.update(written)
        self._container.start_encoding()
        self._frame_samples = self._codec.frame_size or 4096

    def write(self, samples: Samples) -> None:
        """Encode mono samples (N,)."""
        self._pending = np.concatenate((self._pending, self._resampler.push(pcm.clip(samples))))
        whole = len(self._pending) - len(self._pending) % self._frame_samples
        self._feed(self._pending[:whole])
        self._pending = self._pending[whole:].copy()

    def finish(self) -> None:
        """Encode the remaining samples and complete the file."""
        self._feed(np.concatenate((self._pending, self._resampler.flush())))
        for packet in self._codec.encode(None):
            self._container.mux(packet)
        self._container.close()

    def close(self) -> None:
        self._container.close()

    def _feed(self, samples: Samples) -> None:
        converted: NDArray[np.float32] | NDArray[np.int16]
        sample_format = self._codec.format.name
        converted = pcm.to_int16(samples) if sample_format == "s16" else pcm.clip(samples)
        for start in range(0, len(converted), self._frame_samples):
            block = converted[None, start : start + self._frame_samples]
            frame = av.AudioFrame.from_ndarray(block, format=sample_format, layout="mono")
            frame.sample_rate = self._rate_hz
            frame.time_base = self._time_base
            frame.pts = self._position
            self._position += block.shape[1]
            for packet in self._codec.encode(frame):
                self._container.mux(packet)


def _chapter_comments(chapters: Sequence[ChapterMark]) -> dict[str, str]:
    comments = {}
    for number, chapter in enumerate(chapters):
        ms = round(chapter.start_s * 1000)
        comments[f"CHAPTER{number:03}"] = (
            f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"
        )
        comments[f"CHAPTER{number:03}NAME"] = chapter.title
    return comments
