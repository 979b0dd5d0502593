"""Recordings to clone: known sentences of the offline voice, with known defects."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

import av
import numpy as np
import soxr

from app.engines.espeak import Library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Sound = NDArray[np.float32]

RATE_HZ = 44_100
WORDS = (
    "The weather was fine, so they walked along the river and talked.",
    "Nobody knew the way home, but everyone was happy about it.",
    "In the spring they would build a house near the lake.",
    "My brother lives in a small village in the north.",
    "The library closes at eight this evening.",
)
TEXT = " ".join(WORDS[:3])  # about 12 s


@functools.cache
def _library() -> Library:
    return Library()


def silence(seconds: float) -> Sound:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


@functools.lru_cache(maxsize=64)
def said(sentence: str, voice: str = "gmw/en-US+f2", pitch: int = 50) -> Sound:
    spoken = _library().synthesize(sentence, voice, pitch)
    return np.asarray(soxr.resample(spoken, _library().rate_hz, RATE_HZ), np.float32)


def speech(sentences: Sequence[str] = WORDS[:3], gap_s: float = 0.5, voice: str = "gmw/en-US+f2") -> Sound:
    """Return speech at RATE_HZ with 0.25 s of silence before it and a gap after each sentence."""
    parts = [silence(0.25)]
    for sentence in sentences:
        parts += [said(sentence, voice), silence(gap_s)]
    return np.concatenate(parts)


def noise(count: int, level: float, seed: int = 0) -> Sound:
    return np.random.default_rng(seed).normal(0, level, count).astype(np.float32)


def music(count: int) -> Sound:
    """Return a chord with changing volume and RMS 1."""
    t = np.arange(count) / RATE_HZ
    tones = (220, 277.2, 329.6, 440, 659.3, 880)
    chord = sum(np.sin(2 * np.pi * tone * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 0.7 * t + tone)) for tone in tones)
    return np.asarray(chord / np.sqrt(np.mean(np.square(chord))), np.float32)


def rms(samples: Sound) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def file(samples: Sound, kind: str = "wav", rate_hz: int = RATE_HZ, *, codec: str = "", layout: str = "mono") -> bytes:
    """Encode an audio file. samples (N,) or (channels, N); kind: FFmpeg's name of the container."""
    codec = codec or {"wav": "pcm_s16le", "mp3": "libmp3lame", "mp4": "aac", "webm": "libopus", "flac": "flac"}[kind]
    sink = io.BytesIO()
    with av.open(sink, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=48_000 if codec == "libopus" else rate_hz, layout=layout)
        packed = np.ascontiguousarray(np.atleast_2d(samples).T.reshape(1, -1), np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate = rate_hz
        frame.pts = 0
        fifo = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate)
        size = stream.frame_size or 0
        if size:
            fifo = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate, frame_size=size)
        for piece in [*fifo.resample(frame), *fifo.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return sink.getvalue()


def film(samples: Sound) -> bytes:
    """Encode an MP4 video with this audio track."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        pictures = container.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for number in range(round(5 * len(samples) / RATE_HZ)):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number % 255, np.uint8), format="rgb24")
            picture.pts = number
            container.mux(pictures.encode(picture))
        container.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = RATE_HZ
        frame.pts = 0
        fifo = av.AudioResampler(format="fltp", layout="mono", rate=RATE_HZ, frame_size=1024)
        for piece in [*fifo.resample(frame), *fifo.resample(None)]:
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return sink.getvalue()
