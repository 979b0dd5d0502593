"""Checks of generated audio: real decoders, loudness meters, and a recogniser for a fixed set of sentences."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import soxr
from pocketsphinx import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

PCM_RATE_HZ = 24_000
RECOGNISER_RATE_HZ = 16_000

# The recogniser distinguishes them reliably. Several pairs differ in one or two words.
SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "please call me back tomorrow morning",
    "please call me back tomorrow evening",
    "the train leaves from platform nine",
    "i would like a cup of tea with milk",
    "i would like a cup of coffee with sugar",
    "the weather will be cold and windy today",
    "open the window and let in some air",
    "my brother lives in a small village",
    "the library closes at eight this evening",
    "we walked along the river after dinner",
    "the children are playing in the garden",
    "he forgot his umbrella on the bus",
    "turn left at the second traffic light",
    "the museum has a collection of old maps",
    "they painted the kitchen bright yellow",
    "a red bird sang in the tall tree",
    "can you help me carry these boxes",
    "the soup needs a little more salt",
    "our flight was delayed by three hours",
    "she wrote a long letter to her friend",
    "music was playing in the next room",
)


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """Decoded audio: samples (N,) float32 mono, the sample rate, and the number of streams in the container."""

    samples: NDArray[np.float32]
    rate_hz: int
    streams: int = 1

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate_hz

    @property
    def loudness_dbfs(self) -> float:
        return float(20 * np.log10(np.sqrt(np.mean(np.square(self.samples))) + 1e-9))

    def longest_silence_s(self, threshold: float = 10 ** (-50 / 20)) -> float:
        return self._longest_silence(threshold)[1] / 100

    def halves(self) -> tuple[DecodedAudio, DecodedAudio]:
        """Cut the audio in the middle of its longest silence."""
        end, windows = self._longest_silence()
        middle = (2 * end - windows) * (self.rate_hz // 100) // 2
        return replace(self, samples=self.samples[:middle]), replace(self, samples=self.samples[middle:])

    def _longest_silence(self, threshold: float = 10 ** (-50 / 20)) -> tuple[int, int]:
        """Return the end and the length of the longest silence, in windows of 10 ms."""
        window = self.rate_hz // 100
        whole = self.samples[: len(self.samples) // window * window].reshape(-1, window)
        longest = end = run = 0
        for number, quiet in enumerate(np.sqrt(np.mean(np.square(whole), axis=1)) < threshold, start=1):
            run = run + 1 if quiet else 0
            if run > longest:
                longest, end = run, number
        return end, longest


def decode(data: bytes, audio_format: str, rate_hz: int = PCM_RATE_HZ) -> DecodedAudio:
    """Decode a whole response body with FFmpeg; raw PCM needs no decoder."""
    if audio_format == "pcm":
        return DecodedAudio(np.frombuffer(data, "<i2").astype(np.float32) / 32768, rate_hz)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
        parts = [out.to_ndarray()[0] for frame in container.decode(stream) for out in resampler.resample(frame)]
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
        return DecodedAudio(np.concatenate(parts), stream.rate, len(container.streams))


def loudness_lufs(samples: NDArray[np.float32], rate_hz: int) -> float:
    """Return the integrated loudness by FFmpeg's ebur128. Audio shorter than 400 ms is padded with silence."""
    tenth = rate_hz // 10
    samples = np.pad(samples, (0, max(0, 5 * tenth - len(samples)) + tenth)).astype(np.float32)
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate_hz, format="flt", layout="mono", time_base=Fraction(1, rate_hz))
    meter, sink = graph.add("ebur128", "metadata=1"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    loudness = -np.inf
    for start in range(0, len(samples) - tenth + 1, tenth):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + tenth], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        source.push(frame)
        with contextlib.suppress(av.error.BlockingIOError):
            while True:
                loudness = float(sink.pull().metadata["lavfi.r128.I"])
    return loudness


def true_peak_dbtp(samples: NDArray[np.float32], rate_hz: int) -> float:
    """Return the true peak in dBTP: the largest sample after eightfold oversampling."""
    return float(20 * np.log10(np.abs(soxr.resample(samples, rate_hz, 8 * rate_hz, quality="VHQ")).max()))


class Recogniser:
    """Recognises which of `sentences` were spoken; "" if none was spoken completely."""

    def __init__(self, sentences: Iterable[str] = SENTENCES) -> None:
        choices = " | ".join(sentences)
        self._decoder = Decoder(lm=None, loglevel="FATAL")
        self._decoder.add_jsgf_string("one", f"#JSGF V1.0;\ngrammar one;\npublic <said> = {choices} ;")
        self._decoder.add_jsgf_string("many", f"#JSGF V1.0;\ngrammar many;\npublic <said> = ( {choices} )+ ;")

    def recognise(self, audio: DecodedAudio, *, several: bool = False) -> str:
        samples = soxr.resample(audio.samples, audio.rate_hz, RECOGNISER_RATE_HZ)
        samples = samples / max(1e-6, float(np.abs(samples).max())) * 0.7
        quiet = np.zeros(RECOGNISER_RATE_HZ // 10, np.float32)
        pcm = (np.concatenate([quiet, samples, quiet]) * 32767).astype("<i2").tobytes()
        self._decoder.activate_search("many" if several else "one")
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""
