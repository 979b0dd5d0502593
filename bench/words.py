"""Measures the errors of the times of words. The true times come from the offline voice or from labelled recordings.

    python -m bench.words --speech DIR
    python -m bench.words --only aligned,warped,people

The last line is one JSON object. All errors are errors of the start times of words, in milliseconds.

aligned: the aligner finds the words in the speech of the offline voice, through the generator. Words that eSpeak NG
reads together with the previous word have no time of their own and are left out. failed = sentences whose words were
not found.
warped: as `aligned`, but time warping finds the words: it compares the speech with another voice's reading of the text.
speeds: the aligner at the speeds 0.5 and 2. The errors are measured in the answer, after the change of speed.
drift: one text of ten minutes; `first` and `last` have the errors of its first and last 100 words.
people: the aligner finds the words in the English recordings of DIR. The true times are `align` in the manifest.
failed = clips of which the aligner did not find at least half of the words.
people_warped: as `people`, but time warping finds the words, as for languages without an aligner; failed = clips whose
words were not found. other = three numbers for the clips in other languages, whose true times are not known: clips,
clips whose words were found, and words found.
first_audio: milliseconds to the first bytes. Requests without and with `timestamps` alternate.
cpu: CPU seconds of the aligner per second of speech, measured in `people`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from app.audio import pcm
from app.audio.alignment import align
from app.audio.decode import decode
from app.engines.espeak import TIMBRES, Library
from app.engines.pronouncing import pronounce
from app.generator.timeline import Timeline
from app.generator.word_timing import WordTimer
from app.settings import Settings
from app.text.spans import SpannedText
from app.types import Line, SpeechRequest, SpokenLine, Timestamps, Voice
from app.wiring import CoreServices, core_services

VOICES = {"alloy": "en-US", "onyx": "en-US", "fable": "en-GB", "sage": "en-GB"}
SUBJECTS = ("The old captain", "My neighbour", "A young doctor", "Every student", "The tall woman")
VERBS = ("quickly found", "carried", "slowly painted", "never forgot", "bought")
OBJECTS = ("seven heavy boxes", "the broken window", "a small wooden boat", "her brother's letter", "fresh bread")
PLACES = ("near the river.", "before breakfast.", "in the garden, without help.", "last winter.", "at the station.")
PARTS = ("aligned", "warped", "speeds", "drift", "people", "people_warped", "first_audio")


def sentences(count: int) -> list[str]:
    """Return `count` different sentences."""
    return [
        f"{SUBJECTS[at % 5]} {VERBS[at // 5 % 5]} {OBJECTS[(at + at // 5) % 5]} {PLACES[(at + at // 25) % 5]}"
        for at in range(count)
    ]


def summary(errors_s: list[float]) -> dict[str, float]:
    """Return the number of words, and the median, 95th percentile, maximum and bias of the errors in milliseconds."""
    sizes = np.abs(errors_s) * 1000
    return {
        "words": len(sizes),
        "median": round(float(np.median(sizes)), 1),
        "p95": round(float(np.percentile(sizes, 95)), 1),
        "max": round(float(sizes.max()), 1),
        "bias": round(float(np.median(errors_s)) * 1000, 1),
    }


class Speaker:
    """Speaks texts with the offline voice. Compares the times that the voice reports with times found in the audio."""

    def __init__(self, services: CoreServices) -> None:
        self._services = services
        self._library = Library()

    async def times(self, text: str, voice: str, **changes: Any) -> Timestamps:
        """Speak a text and return its times."""
        request = SpeechRequest("tts-1", (Line(text, voice),), format="pcm", timestamps=True, use_cache=False)
        answer = await self._services.generator.answer(replace(request, **changes))
        async for _ in answer.stream:
            pass
        return await answer.timestamps()

    async def errors(self, text: str, voice: str, **changes: Any) -> list[float] | None:
        """Return the error in seconds of each word with a time of its own; None if the words were not found."""
        timer = self._services.word_timer
        timer.use_marks = True
        true = await self.times(text, voice, **changes)
        timer.use_marks = False
        found = await self.times(text, voice, **changes)
        timer.use_marks = True
        if found.reason:
            return None
        timbre = TIMBRES[voice]
        reported = set()
        place = 0
        for sentence in true.sentences:
            _, places = self._library.synthesize_words(sentence.text, timbre.accent, timbre.pitch)
            reported |= {sentence.start_char + char for _, char in places if char is not None}
            place = sentence.end_char
        starts = {word.start_char: word.start_s for word in found.words}
        own = [word for word in true.words if word.start_char in reported and word.start_char <= place]
        return [starts[word.start_char] - word.start_s for word in own if word.start_char in starts]


async def errors_of(speaker: Speaker, texts: list[str], voices: list[str], **changes: Any) -> dict[str, Any]:
    """Speak all texts with all voices, and summarise the errors."""
    all_errors: list[float] = []
    failed = 0
    for voice in voices:
        for text in texts:
            errors = await speaker.errors(text, voice, **changes)
            failed += errors is None
            all_errors += errors or []
    return {"sentences": len(texts) * len(voices), "failed": failed, **summary(all_errors)}


def recordings(folder: Path) -> list[dict[str, Any]]:
    """Return the recordings of speech in the manifest of a folder."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [clip for clip in lines if clip["kind"] == "speech"]


async def people_warped(folder: Path, timer: WordTimer) -> dict[str, Any]:
    """Find the words in recordings of people by time warping, and compare the starts with those of the manifest."""
    timer.use_aligner = False
    errors: list[float] = []
    failed = 0
    counts = {True: 0, False: 0}  # number of clips that are English (True), and of clips that are not (False)
    other = [0, 0]  # number of clips that are not English and whose words were found, and number of these words
    for clip in recordings(folder):
        english = clip["language"].startswith("en")
        counts[english] += 1
        samples = decode((folder / clip["file"]).read_bytes(), 16_000, max_seconds=120.0).samples
        voice = Voice("alloy", "Alloy", "preset", clip["language"])
        words = tuple(SpannedText(clip["words"]).words())
        line = SpokenLine(clip["words"], 0, voice, None, words, 0, len(clip["words"]))
        timeline = Timeline()
        timeline.add((line,), 0, len(samples), [])
        found = await timer.find(timeline[0], pcm.to_bytes(samples), 16_000, 1.0, clip["language"])
        if not found.words:
            failed += english
            continue
        spans = found.words[0]
        if not english:
            other = [other[0] + 1, other[1] + sum(span is not None for span in spans)]
            continue
        known = clip.get("align") or []
        if [word for word, *_ in known] == clip["words"].split():
            pairs = zip(spans, known, strict=True)
            errors += [span[0] - start for span, (_, start, _) in pairs if span is not None]
    timer.use_aligner = True
    return {
        "clips": counts[True],
        "failed": failed,
        "other": (counts[False], *other),
        "within_100_ms": round(float(np.mean(np.abs(errors) < 0.1)), 3),
        **summary(errors),
    }


def people(folder: Path) -> dict[str, Any]:
    """Align recordings of people, and compare the starts with those of the manifest."""
    clips = [clip for clip in recordings(folder) if clip["language"].startswith("en")]
    errors: list[float] = []
    failed = 0
    seconds = cpu_s = 0.0
    for clip in clips:
        sound = decode((folder / clip["file"]).read_bytes(), 16_000, max_seconds=120.0).samples
        words = clip["words"].split()
        began_s = time.process_time()
        found = align(sound, 16_000, words, [pronounce(word) for word in words])
        cpu_s += time.process_time() - began_s
        seconds += len(sound) / 16_000
        if found is None or len(found.missing) > 0.5 * len(words):
            failed += 1
            continue
        known = clip.get("align") or []
        if [word for word, *_ in known] == words:
            errors += [word.start_s - start for word, (_, start, _) in zip(found.words, known, strict=True)]
    return {"clips": len(clips), "failed": failed, "cpu": round(cpu_s / seconds, 4), **summary(errors)}


async def first_audio(services: CoreServices, repeats: int) -> dict[str, float]:
    """Return the median milliseconds to the first bytes, without and with timestamps. The two kinds alternate."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    for number in range(repeats):
        for timestamps in (False, True):
            line = Line(f"This is sentence number {number}. It is followed by another one.", "alloy")
            request = SpeechRequest("tts-1", (line,), format="mp3", timestamps=timestamps, use_cache=False)
            began_s = time.perf_counter()
            answer = await services.generator.answer(request)
            await anext(answer.stream)
            taken[timestamps].append((time.perf_counter() - began_s) * 1000)
            async for _ in answer.stream:
                pass
            if timestamps:
                await answer.timestamps()
    return {"without": round(statistics.median(taken[False]), 2), "with": round(statistics.median(taken[True]), 2)}


async def measure(parts: list[str], count: int, speech: Path | None) -> dict[str, Any]:
    """Run the parts of the benchmark."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        services = core_services(Settings(_env_file=None, TTS_ENGINE="espeak", TTS_DATA_DIR=Path(folder)))
        async with services.manager:
            await services.manager.settled()
            speaker = Speaker(services)
            texts = sentences(count)
            if "aligned" in parts:
                for voice, accent in VOICES.items():
                    found[f"aligned {voice} {accent}"] = await errors_of(speaker, texts, [voice])
            if "speeds" in parts:
                for speed in (0.5, 2.0):
                    found[f"speed {speed}"] = await errors_of(speaker, texts[: count // 2], ["alloy"], speed=speed)
            if "drift" in parts:
                errors = await speaker.errors(" ".join(sentences(240)), "alloy") or [float("nan")]
                found["drift"] = {"first": summary(errors[:100]), "last": summary(errors[-100:])}
            if "first_audio" in parts:
                found["first_audio"] = await first_audio(services, 30)
            if "warped" in parts:
                services.word_timer.use_aligner = False
                found["warped"] = await errors_of(speaker, texts, list(VOICES))
                services.word_timer.use_aligner = True
            if "people_warped" in parts and speech is not None:
                found["people_warped"] = await people_warped(speech, services.word_timer)
        services.word_timer.close()
        await services.take_checker.close()
    helper = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["aligner_cpu_s"] = round(helper.ru_utime + helper.ru_stime, 2)
    if "people" in parts and speech is not None:
        found["people"] = people(speech)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, default=os.environ.get("TTS_TEST_SPEECH"), help="recordings of people")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--sentences", type=int, default=50, help="for each voice")
    options = parser.parse_args()
    speech = None if options.speech is None else Path(options.speech)
    found = asyncio.run(measure(options.only.split(","), options.sentences, speech))
    for name, value in found.items():
        print(f"{name}: {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
