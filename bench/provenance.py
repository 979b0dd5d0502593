"""Measures how surely the watermark is found: `python -m bench.provenance --speech DIR`. Needs the extra `watermark`.

DIR has a `manifest.jsonl`, see `bench/ear.py`. Each recording of a person gets a watermark. Then the recording is
changed, for example encoded as mp3, and the detector of the server examines it. The last line is one JSON object. It
has, for each change, the share of the marked recordings in which the watermark is found, and the lowest score of the
marked recordings. The entries `false: ...` have these figures for files without a watermark. `--every N` takes each Nth
recording.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
import soxr

from app.audio import g711, pcm, watermark
from app.audio.decode import decode
from app.audio.detection import WatermarkDetector
from app.audio.stretch import StreamStretcher
from app.audio.threads import ThreadLimit
from app.voices.vad import SpeechFinder
from app.voices.voice_file import wav

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

    from app.types import Samples

RATE_HZ = 24_000
MAX_SECONDS = 60.0
PROCESSES = 2
Change = Callable[["Samples"], "Samples"]


def coded(samples: Samples, container: str, codec: str, bit_rate: int) -> Samples:
    """Encode samples at `bit_rate` bits per second, and decode them again."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = cast("AudioStream", output.add_stream(codec, rate=RATE_HZ, layout="mono", bit_rate=bit_rate))
        frame = av.AudioFrame.from_ndarray(samples[None, :].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE_HZ
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=RATE_HZ)
        fifo = av.AudioFifo()
        for each in resampler.resample(frame):
            fifo.write(each)
        while (part := fifo.read(stream.codec_context.frame_size or 1_024, partial=True)) is not None:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return decode(file.getvalue(), RATE_HZ, max_seconds=2 * MAX_SECONDS).samples


def stretched(samples: Samples, tempo: float) -> Samples:
    """Change the tempo, and keep the pitch."""
    stage = StreamStretcher(RATE_HZ, tempo)
    return np.concatenate((stage.push(samples), stage.flush()))


def played(samples: Samples, speed: float) -> Samples:
    """Change the speed and the pitch together. speed: above 1 = faster and higher."""
    return np.asarray(soxr.resample(samples, RATE_HZ * speed, RATE_HZ), np.float32)


def through_rate(samples: Samples, rate_hz: int) -> Samples:
    return np.asarray(soxr.resample(soxr.resample(samples, RATE_HZ, rate_hz), rate_hz, RATE_HZ), np.float32)


def telephone(samples: Samples) -> Samples:
    """Send the samples through G.711 at 8 kHz."""
    sent = np.frombuffer(g711.encode(pcm.to_bytes(soxr.resample(samples, RATE_HZ, 8_000)), "ulaw"), np.uint8)
    inverted = ~sent
    magnitude = ((((inverted & 15).astype(np.int32) << 3) + 132) << ((inverted >> 4) & 7)) - 132
    linear = np.where(inverted & 128, -magnitude, magnitude) / 32_768
    return np.asarray(soxr.resample(linear.astype(np.float32), 8_000, RATE_HZ), np.float32)


def noisy(samples: Samples, snr_db: float) -> Samples:
    noise = np.random.default_rng(1).standard_normal(len(samples)) * np.sqrt(np.mean(samples**2)) / 10 ** (snr_db / 20)
    return np.asarray(samples + noise, np.float32)


CHANGES: dict[str, Change] = {
    "none": lambda samples: samples,
    "mp3 64 kbit/s": partial(coded, container="mp3", codec="libmp3lame", bit_rate=64_000),
    "opus 24 kbit/s": partial(coded, container="ogg", codec="libopus", bit_rate=24_000),
    "aac 48 kbit/s": partial(coded, container="adts", codec="aac", bit_rate=48_000),
    "tempo 1.05": partial(stretched, tempo=1.05),
    "tempo 0.95": partial(stretched, tempo=0.95),
    "speed and pitch 1.05": partial(played, speed=1.05),
    "speed and pitch 0.95": partial(played, speed=0.95),
    "speed and pitch 1.03, mp3 64 kbit/s": lambda samples: coded(played(samples, 1.03), "mp3", "libmp3lame", 64_000),
    "8 kHz": partial(through_rate, rate_hz=8_000),
    "telephone (G.711)": telephone,
    "noise at 30 dB": partial(noisy, snr_db=30),
    "noise at 20 dB": partial(noisy, snr_db=20),
    "noise at 10 dB": partial(noisy, snr_db=10),
    "3 s of it": lambda samples: samples[: 3 * RATE_HZ],
}
UNMARKED = ("none", "mp3 64 kbit/s", "speed and pitch 1.05")  # changes that are made to files without a watermark


def examined(entry: tuple[Path, bool]) -> dict[str, tuple[bool, float]]:
    """Return for each change whether the detector finds a watermark, and the detector's score. entry: a file, and
    whether it has speech.
    """
    path, is_speech = entry
    detector = WatermarkDetector(ThreadLimit(1), SpeechFinder().contains_speech)
    plain = decode(path.read_bytes(), RATE_HZ, max_seconds=MAX_SECONDS).samples
    results: dict[str, tuple[bool, float]] = {}

    def look(name: str, samples: Samples) -> None:
        found = asyncio.run(detector.detect(wav(samples, RATE_HZ)))
        results[name] = bool(found.watermarked), found.score or 0.0

    for name in UNMARKED if is_speech else ("none",):
        look(f"false: {name}", CHANGES[name](plain))
    if is_speech:
        marker = watermark.StreamMarker(RATE_HZ, watermark.load())
        marked = np.concatenate((marker.push(plain), marker.flush()))
        for name, change in CHANGES.items():
            look(name, change(marked))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="a folder with manifest.jsonl")
    parser.add_argument("--every", type=int, default=1, help="take each Nth recording")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    options = parser.parse_args()
    lines = (options.speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = [json.loads(line) for line in lines if line.strip()][:: options.every]
    entries = [(options.speech / each["file"], each["kind"] == "speech") for each in manifest]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        results = list(pool.imap_unordered(examined, entries))
    table: dict[str, dict[str, float]] = {}
    for name in [*CHANGES, *(f"false: {name}" for name in UNMARKED)]:
        found = [result[name] for result in results if name in result]
        if found:
            scores = [score for is_found, score in found if is_found]
            table[name] = {
                "files": len(found),
                "found": round(len(scores) / len(found), 4),
                "lowest_score": round(min(scores, default=0.0), 3),
            }
            print(f"{name}: {len(scores)} of {len(found)}, lowest score {table[name]['lowest_score']}")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
