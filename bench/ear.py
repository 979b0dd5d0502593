"""Measures the server's checks of generated speech. Recordings of people take the place of generated speech.

    python -m bench.ear --speech DIR --tempo 0.8,1.0,1.2
    python -m bench.ear --speech DIR --only guard
    python -m bench.ear --speech DIR --shift-words       # each clip gets the words of another clip

DIR has a `manifest.jsonl`, one object a line: {"file", "words", "speaker", "language", "kind": "speech" | "negative"},
and if known "align": [[word, start s, end s], ...]. Only English clips are used. A negative is a sound without words.

Each part calls the functions that the server calls, and adds no rule or limit. The output has one figure in each line.
The last line is one JSON object with the figures named in KEYS. A share is a number from 0 to 1.

guard: the output guard gets each clip frame by frame. If the speaker has another clip, the guard knows the speaker's
pace from that clip. `false_cuts` = number of complete clips that a rule ends; `false_short` = number of complete clips
that a rule finds too short; `runaway_ended` = share of clips with a tail of 20 s that a rule ends; `runaway_s` = median
seconds from the true end of the speech to the time when a rule ends the clip, for clips whose pace is known. The tails
are digital silence, noise at the clip's noise floor, the clip's room sound, and repetitions of the clip's last second.

verify: `verify_false` = share of complete clips that the check rejects; `verify_caught` = share of faults that the
check finds, for each kind of fault: half of the recording is missing, 3 s of babble or noise follow the recording, the
recording ends 60 ms into the last word; `verify_wrong_text` = share of clips that the check rejects if it gets the
words of another clip; `early_total` = number of copies that end after 20 to 70 % of the clip; `early_caught` = number
of these copies that the guard or the check finds; `best_of` = share of clips for which the server chooses the complete
take and none of three faulty copies; `verify_cpu` = CPU seconds per second of speech.

casting, quality, loudness, watermark: see `bench/ear_parts.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.audio import pcm
from app.audio.alignment import align
from app.audio.decode import decode
from app.audio.guard import pace_of
from app.audio.loudness import integrated_lufs
from app.audio.stretch import StreamStretcher
from app.audio.verification import Verdict, best_take, judge
from app.engines.pronouncing import pronounce
from app.voices.enhancement import TARGET_LUFS
from bench import ear_parts
from tests.support import misbehaving

if TYPE_CHECKING:
    from app.types import Samples

KEYS = (
    "clips",
    "false_cuts",
    "false_short",
    "runaway_ended",
    "runaway_s",
    "early_caught",
    "early_total",
    "verify_false",
    "verify_caught",
    "casting_refused_negatives",
    "casting_accepted",
    "quality_refused",
    "quality_false_music",
    "quality_false_speakers",
    "loudness_within_1lu",
    "watermark_false",
)
RATE_HZ = 24_000
PROCESSES = 2
MAX_SECONDS = 120.0
EARLY_ENDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
CUT_INTO_LAST_WORD_S = 0.06
APPENDED_S = 3.0
NOISE_DB = -6.0  # level of the noise relative to the level of the clip


@dataclass(frozen=True, slots=True)
class Clip:
    """An entry of the manifest, played at one tempo."""

    path: Path
    words: str
    wrong_words: str  # the words of another clip
    other: Path  # a clip of another speaker
    kind: str
    word_ends: tuple[tuple[float, float], ...]  # (start, end) of each word in seconds at tempo 1; empty = unknown
    tempo: float
    seed: int
    speaker: str = ""
    beside: Path | None = None  # the longest other clip of the same speaker
    beside_words: str = ""

    @property
    def samples(self) -> Samples:
        return _at_tempo(_decoded(self.path), self.tempo)

    @property
    def spoken(self) -> Samples:
        """The samples, scaled to the loudness of preset voices."""
        samples = _decoded(self.path)
        gain = pcm.amplitude(TARGET_LUFS - integrated_lufs(samples, RATE_HZ))
        return _at_tempo(pcm.clip(samples * np.float32(gain)), self.tempo)

    @property
    def pace(self) -> float | None:
        """The pace of the speaker at tempo 1, measured in the clip `beside`; None = the speaker has no other clip."""
        if self.beside is None:
            return None
        return pace_of(self.beside_words, len(_decoded(self.beside)) / RATE_HZ)


def read_clips(folder: Path, tempos: Sequence[float], *, shift_words: bool) -> list[Clip]:
    """Read the English clips of a folder. shift_words: give each clip the words of the next clip that has different
    words.
    """
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.strip()]
    entries = [entry for entry in entries if str(entry.get("language") or "en").startswith("en")]
    speech = [entry for entry in entries if entry["kind"] == "speech"]
    if len({entry["words"] for entry in speech}) < 2 or len({entry["speaker"] for entry in speech}) < 2:
        sys.exit(f"{folder} has fewer than two English texts or speakers.")
    clips: list[Clip] = []
    for number, entry in enumerate(entries):
        behind = [*entries[number + 1 :], *entries[:number]]
        following = [each for each in behind if each["kind"] == "speech" and each["words"] != entry.get("words")]
        other = next(each for each in following if each["speaker"] != entry.get("speaker"))
        own = entry["words"] if entry["kind"] == "speech" else following[0]["words"]
        wrong = following[0]["words"] if entry["kind"] == "speech" else following[1]["words"]
        known = () if shift_words else tuple((start, end) for _, start, end in entry.get("align") or ())
        same = [each for each in behind if each["kind"] == "speech" and each.get("speaker") == entry.get("speaker")]
        beside = max(same, key=lambda each: len(each["words"]), default=None) if entry.get("speaker") else None
        clip = Clip(
            path=folder / entry["file"],
            words=wrong if shift_words else own,
            wrong_words=wrong,
            other=folder / other["file"],
            kind=entry["kind"],
            word_ends=known,
            tempo=1.0,
            seed=number,
            speaker=str(entry.get("speaker") or entry["file"]),
            beside=None if beside is None else folder / beside["file"],
            beside_words="" if beside is None else beside["words"],
        )
        clips += [replace(clip, tempo=tempo) for tempo in tempos]
    return clips


def _decoded(path: Path) -> Samples:
    return decode(path.read_bytes(), RATE_HZ, max_seconds=MAX_SECONDS).samples


def _at_tempo(samples: Samples, tempo: float) -> Samples:
    stretcher = StreamStretcher(RATE_HZ, tempo)
    return np.concatenate((stretcher.push(samples), stretcher.flush()))


# ---- guard

TAILS: dict[str, misbehaving.Fault] = {
    "silence": misbehaving.silent_tail,
    "noise": misbehaving.noise_tail,
    "room": misbehaving.room_tail,
    "repeat": misbehaving.repeated_second,
}


def _guard_clip(clip: Clip) -> dict[str, Any]:
    """Play a clip to the output guard, first alone and then with each tail. Return the results by name.

    `rule` is the rule that the clip without a tail breaks; None if it breaks no rule. For each tail, the result has two
    values: whether a rule ends the clip with this tail, and how many seconds after the end of the speech.
    """
    samples, pace = clip.spoken, clip.pace
    end_s = misbehaving.last_sound_s(samples, RATE_HZ)
    rule, at_s = misbehaving.until_rule(samples, clip.words, RATE_HZ, pace=pace, seed=clip.seed)
    result: dict[str, Any] = {
        "name": f"{clip.path.name} at {clip.tempo}",
        "rule": rule,
        "at": f"{at_s:.1f} of {end_s:.1f} s",
        "pace": pace is not None,
        "tempo": clip.tempo,
    }
    for tail, fault in TAILS.items():
        twin = fault(samples, RATE_HZ, np.random.default_rng(clip.seed))
        twin_rule, twin_s = misbehaving.until_rule(twin, clip.words, RATE_HZ, pace=pace, seed=clip.seed)
        sound_s = len(samples) / RATE_HZ if tail == "repeat" else end_s  # the repetition begins at the end of the clip
        result[tail] = (twin_rule not in (None, "too_short"), twin_s - sound_s)
    return result


def guard(clips: Sequence[Clip]) -> dict[str, Any]:
    """Measure the output guard with complete clips, and with copies that have a tail of 20 s."""
    speech = [clip for clip in clips if clip.kind == "speech"]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        results = pool.map(_guard_clip, speech, chunksize=4)
    for result in results:
        if result["rule"] is not None:
            print(f"guard: {result['name']}: {result['rule']} at {result['at']}")
        missed = [tail for tail in TAILS if not result[tail][0]]
        if missed:
            print(f"guard: {result['name']}: not ended: {', '.join(missed)}")
    for tempo in sorted({result["tempo"] for result in results}):
        known = [result for result in results if result["pace"] and result["tempo"] == tempo]
        late = ", ".join(f"{tail} {np.median([each[tail][1] for each in known]):.1f}" for tail in TAILS if known)
        print(f"guard: tempo {tempo}, {len(known)} clips with a known pace, seconds after the end: {late}")
    known = [result for result in results if result["pace"]] or results
    return {
        "false_cuts": sum(result["rule"] not in (None, "too_short") for result in results),
        "false_short": sum(result["rule"] == "too_short" for result in results),
        "runaway_ended": {tail: _share([result[tail][0] for result in results]) for tail in TAILS},
        "runaway_s": {tail: round(float(np.median([result[tail][1] for result in known])), 2) for tail in TAILS},
    }


# ---- verify


def _check(samples: Samples, words: str) -> Verdict:
    spoken = words.split()
    return judge(align(samples, RATE_HZ, spoken, [pronounce(word) for word in spoken]), samples, RATE_HZ)


def _level(samples: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) + 1e-9


def faulty_twins(clip: Clip, samples: Samples, ends: Sequence[tuple[float, float]]) -> Iterator[tuple[str, Samples]]:
    """Yield (fault, samples) for each faulty copy of a clip. ends: (start, end) of each word in seconds."""
    draw = np.random.default_rng(clip.seed)
    count = round(APPENDED_S * RATE_HZ)
    yield "half", samples[: len(samples) // 2]
    # Babble is speech of another voice, or the speech of this clip played backwards.
    babble = _at_tempo(_decoded(clip.other), clip.tempo) if clip.seed % 2 else samples[::-1]
    babble = np.resize(babble[len(babble) // 4 :], count)
    yield "babble", np.concatenate((samples, babble * np.float32(_level(samples) / _level(babble))))
    noise = draw.standard_normal(count, np.float32) * np.float32(_level(samples) * 10 ** (NOISE_DB / 20))
    yield "noise", np.concatenate((samples, noise))
    if len(ends) > 1:
        yield "cut_end", samples[: round((ends[-1][0] + CUT_INTO_LAST_WORD_S) * RATE_HZ)]
    if len(ends) > 3:
        start, end = (round(at * RATE_HZ) for at in ends[len(ends) // 2])
        yield "dropped_word", np.concatenate((samples[:start], samples[end:]))


def _early_end_found(clip: Clip, samples: Samples) -> bool:
    """Return whether the output guard or the check of the words finds that the clip ends too early."""
    rule, _ = misbehaving.until_rule(samples, clip.words, RATE_HZ, pace=clip.pace, seed=clip.seed)
    return rule == "too_short" or _check(samples, clip.words).status == "bad"


def _verify_clip(clip: Clip) -> dict[str, Any]:
    """Check a clip and its faulty copies. Return the results by name; `caught` says for each fault whether it was
    found.
    """
    samples = clip.samples
    begun = time.process_time()
    whole = _check(samples, clip.words)
    cpu_s = time.process_time() - begun
    result: dict[str, Any] = {
        "file": clip.path.name,
        "tempo": clip.tempo,
        "kind": clip.kind,
        "bad": whole.status == "bad",
        "reason": whole.reason,
        "cpu_s": cpu_s,
        "seconds": len(samples) / RATE_HZ,
    }
    if clip.kind != "speech":
        return result
    result["wrong_text"] = _check(samples, clip.wrong_words).status == "bad"
    result["early"] = [_early_end_found(clip, samples[: round(share * len(samples))]) for share in EARLY_ENDS]
    ends = [(start / clip.tempo, end / clip.tempo) for start, end in clip.word_ends]
    if not ends and whole.alignment is not None:
        ends = [(word.start_s, word.end_s) for word in whole.alignment.words if not word.missing]
    verdicts = {fault: _check(twin, clip.words) for fault, twin in faulty_twins(clip, samples, ends)}
    result["caught"] = {fault: verdict.status == "bad" for fault, verdict in verdicts.items()}
    draw = np.random.default_rng(clip.seed)
    takes = [verdicts[fault] for fault in draw.permutation(sorted(verdicts))[:3]]
    place = int(draw.integers(len(takes) + 1))
    result["best"] = best_take([*takes[:place], whole, *takes[place:]]) == place
    return result


def _share(values: Sequence[bool]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0


def verify(clips: Sequence[Clip]) -> dict[str, Any]:
    """Measure the check of the words and the choice of the best take."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        results = pool.map(_verify_clip, clips, chunksize=4)
    speech = [result for result in results if result["kind"] == "speech"]
    caught: dict[str, list[bool]] = defaultdict(list)
    for result in speech:
        for fault, found in result["caught"].items():
            caught[fault].append(found)
        name = f"{result['file']} at {result['tempo']}"
        if result["bad"]:
            print(f"false alarm: {name}: {result['reason']}")
        missed = [fault for fault, found in result["caught"].items() if not found and fault != "dropped_word"]
        missed += [f"early {share}" for share, found in zip(EARLY_ENDS, result["early"], strict=True) if not found]
        if missed:
            print(f"missed: {name}: {', '.join(missed)}")
    for tempo in sorted({result["tempo"] for result in speech}):
        at = [result for result in speech if result["tempo"] == tempo]
        print(f"tempo {tempo}: {len(at)} clips, false alarms {_share([result['bad'] for result in at])}")
    early = [found for result in speech for found in result["early"]]
    return {
        "verify_false": _share([result["bad"] for result in speech]),
        "verify_caught": {fault: _share(found) for fault, found in caught.items() if fault != "dropped_word"},
        "verify_dropped_word": _share(caught["dropped_word"]),
        "verify_wrong_text": _share([result["wrong_text"] for result in speech]),
        "verify_negatives": _share([result["bad"] for result in results if result["kind"] != "speech"]),
        "early_caught": sum(early),
        "early_total": len(early),
        "best_of": _share([result["best"] for result in speech]),
        "verify_cpu": round(sum(each["cpu_s"] for each in speech) / sum(each["seconds"] for each in speech), 4),
    }


def as_recorded(part: Callable[[Sequence[ear_parts.Recording]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Turn `part`, which takes recordings, into a function that takes clips, as PARTS requires.

    `part` gets each file only once, at its original tempo.
    """

    def measured(clips: Sequence[Clip]) -> dict[str, Any]:
        files = list({clip.path: clip for clip in clips}.values())
        beside = {
            one.path: next((each.path for each in files if each.speaker == one.speaker and each is not one), one.path)
            for one in files
        }
        return part(
            [
                ear_parts.Recording(each.path, each.words, each.speaker, each.kind == "speech", beside[each.path])
                for each in files
            ]
        )

    return measured


# Name of a part -> function that gets all clips and returns the figures of the part.
PARTS: dict[str, Callable[[Sequence[Clip]], dict[str, Any]]] = {
    "guard": guard,
    "verify": verify,
    "casting": as_recorded(ear_parts.casting),
    "quality": as_recorded(ear_parts.quality),
    "loudness": as_recorded(ear_parts.loudness),
    "watermark": as_recorded(ear_parts.marks),
}


def main() -> None:
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"  # child processes read this variable
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, metavar="DIR", help="folder with a manifest.jsonl")
    parser.add_argument("--tempo", default="1.0", help="tempos, separated by commas")
    parser.add_argument("--shift-words", action="store_true", help="give each clip the words of another clip")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    tempos = [float(tempo) for tempo in arguments.tempo.split(",")]
    clips = read_clips(arguments.speech, tempos, shift_words=arguments.shift_words)
    figures: dict[str, Any] = {"clips": len(clips) // len(tempos)}
    for part in parts:
        figures |= PARTS[part](clips)
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(json.dumps({key: figures[key] for key in KEYS if key in figures}))


if __name__ == "__main__":
    main()
