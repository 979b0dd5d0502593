"""Measures loudness and watermark with the offline voices: `python -m bench.sound`. Needs the extras espeak, watermark.

Loudness: how far the loudness of complete answers is from the target, for speech at the expected level and at levels
that differ from the expected level by 8 and 15 dB. Watermark: the detector's scores of marked and unmarked speech after
common changes such as mp3, the CPU time, and the change of loudness.
"""

from __future__ import annotations

import io
import json
import time
from typing import TYPE_CHECKING

import av
import numpy as np
import soxr

from app.audio import watermark
from app.audio.decode import decode
from app.audio.encoders import open_encoder
from app.audio.loudness import integrated_lufs
from app.audio.shape import Gain
from app.audio.stretch import StreamStretcher
from app.engines.espeak import TIMBRES, Library
from app.voices.enhancement import TARGET_LUFS, Loudness

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audio.stages import Stage
    from app.types import AudioFormat, Samples

RATE_HZ = 24_000
CHUNK = 1920  # 80 ms, the length of a frame of CSM
TEXTS = {
    "word": "Okay!",
    "sentence": "Hello there, how are you today?",
    "paragraph": "Well, I don't know; perhaps we should ask her first, before anything else happens? We walked along "
    "the river after dinner, and the library closes at eight this evening. Please call me back tomorrow morning.",
}


def through(stage: Stage, samples: Samples) -> Samples:
    parts = [stage.push(samples[at : at + CHUNK]) for at in range(0, len(samples), CHUNK)]
    return np.concatenate([*parts, stage.flush()])


def said(library: Library, voice: str, text: str) -> Samples:
    timbre = TIMBRES[voice]
    samples = library.synthesize(text, f"{timbre.accent}+{timbre.variant}", timbre.pitch)
    resampled: Samples = soxr.resample(Gain(timbre.gain_db).push(samples), library.rate_hz, RATE_HZ)
    return resampled.astype(np.float32)


def mp3_64k(samples: Samples) -> bytes:
    """Encode samples as mp3 with 64 kbit/s, half the bit rate of the server's mp3."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=RATE_HZ, layout="mono", bit_rate=64_000)
        frame = av.AudioFrame.from_ndarray(samples[None, :].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE_HZ
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (part := fifo.read(stream.codec_context.frame_size or 576, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def heard(data: bytes) -> Samples:
    return decode(data, watermark.DETECT_RATE_HZ, max_seconds=600).samples


def coded(samples: Samples, audio_format: AudioFormat) -> Samples:
    encoder = open_encoder(audio_format, RATE_HZ)
    data = encoder.encode(samples) + encoder.flush()
    encoder.close()
    return heard(data)


def evened(samples: Samples, expected_lufs: float) -> Samples:
    stage = Loudness(RATE_HZ)
    stage.expect(expected_lufs)
    return through(stage, samples)


def loudness(library: Library) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, text in TEXTS.items():
        for off_db in (0.0, 8.0, -8.0, 15.0, -15.0):
            errors = []
            for voice in TIMBRES:
                samples = said(library, voice, text) * np.float32(10 ** (off_db / 20))
                errors.append(integrated_lufs(evened(samples, TARGET_LUFS), RATE_HZ) - TARGET_LUFS)
            worst = max(errors, key=abs)
            found[f"{name} {off_db:+.0f} dB"] = {"mean": round(float(np.mean(errors)), 2), "worst": round(worst, 2)}
    return found


def marks(library: Library) -> tuple[dict[str, list[float]], float]:
    """Return the lowest and highest score of all voices for each change of the sound, and the largest loudness change
    in LU.
    """
    perth = watermark.load()
    scores: dict[str, list[float]] = {}
    change = 0.0
    dice = np.random.default_rng(1)
    for voice in TIMBRES:
        plain = said(library, voice, TEXTS["paragraph"])
        marked = through(watermark.StreamMarker(RATE_HZ, perth), plain)
        change = max(change, abs(integrated_lufs(marked, RATE_HZ) - integrated_lufs(plain, RATE_HZ)))
        faster = through(StreamStretcher(RATE_HZ, 1.1), marked)
        noise = dice.standard_normal(len(marked)).astype(np.float32) * np.float32(np.sqrt(np.mean(marked**2)) / 10)
        middle = marked[2 * RATE_HZ : 3 * RATE_HZ]
        at_32k = {"marked": marked, "unmarked": plain, "1 s of it": middle, "noise at 20 dB": marked + noise}
        treated = {n: soxr.resample(s, RATE_HZ, watermark.DETECT_RATE_HZ).astype(np.float32) for n, s in at_32k.items()}
        treated |= {"unmarked, mp3 64k": heard(mp3_64k(plain)), "mp3 64k": heard(mp3_64k(marked))}
        treated |= {"mp3 128k": coded(marked, "mp3"), "opus": coded(marked, "opus")}
        treated |= {"aac": coded(marked, "aac"), "speed 1.1, mp3 64k": heard(mp3_64k(faster))}
        for name, samples in treated.items():
            scores.setdefault(name, []).append(perth.score(samples))
    return {name: [round(min(found), 3), round(max(found), 3)] for name, found in scores.items()}, round(change, 3)


def costs(library: Library) -> dict[str, float]:
    """Return the CPU milliseconds per second of audio: the smallest of five runs with chunks of 80 ms."""
    perth = watermark.load()
    samples = np.concatenate([said(library, voice, TEXTS["paragraph"]) for voice in ("onyx", "nova")])
    at_32k = soxr.resample(samples, RATE_HZ, watermark.DETECT_RATE_HZ).astype(np.float32)
    seconds = len(samples) / RATE_HZ
    found: dict[str, float] = {}
    works: dict[str, Callable[[], object]] = {
        "loudness": lambda: evened(samples, TARGET_LUFS),
        "mark": lambda: through(watermark.StreamMarker(RATE_HZ, perth), samples),
        "detect": lambda: perth.score(at_32k),
    }
    for name, work in works.items():
        spent = []
        for _ in range(5):
            began_s = time.thread_time()
            work()
            spent.append(time.thread_time() - began_s)
        found[name] = round(1000 * min(spent) / seconds, 2)
    return found


def delays() -> dict[str, float]:
    """Return how much audio each stage reads before its first output, and its largest delay, in milliseconds."""
    found: dict[str, float] = {}
    stages: dict[str, Stage] = {
        "loudness": Loudness(RATE_HZ),
        "mark": watermark.StreamMarker(RATE_HZ, watermark.load()),
    }
    for name, stage in stages.items():
        taken = given = 0
        first = behind = 0.0
        while taken < RATE_HZ:
            given += len(stage.push(np.full(24, 0.1, np.float32)))
            taken += 24
            first = first or (taken if given else 0)
            behind = max(behind, taken - given if given else 0)
        found |= {f"{name} first": 1000 * first / RATE_HZ, f"{name} behind": 1000 * behind / RATE_HZ}
    return found


def main() -> None:
    library = Library()
    scores, change_lu = marks(library)
    print(
        json.dumps(
            {
                "loudness_error_lu": loudness(library),
                "watermark_scores_min_max": scores,
                "watermark_loudness_change_lu": change_lu,
                "cpu_ms_per_s": costs(library),
                "delay_ms": delays(),
            }
        )
    )


if __name__ == "__main__":
    main()
