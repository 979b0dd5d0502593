"""The first-day check: good speech passes, random weights fail with an explanation, and each planted fault is named."""

from __future__ import annotations

import itertools
import json
import re
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soxr

from app import first_day
from app.engines.espeak import Library
from app.first_day import SENTENCES, Finding, Report, Take, VoiceReport
from app.first_day_page import page
from app.text.normalizer import Normalizer
from app.types import Reference
from app.voices.store import VoiceStore
from app.wiring import core_services
from tests.integration.test_cli import cli
from tests.support import samples
from tests.support.live import settings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from app.types import Samples

pytestmark = pytest.mark.integration


def checked(
    folder: Path, *arguments: str, limit_s: float = 60, **variables: str
) -> tuple[subprocess.CompletedProcess[bytes], Any, str]:
    """Run the command; return the finished process, report.json and report.html."""
    done = cli(folder, "check", "--out", "out", *arguments, limit_s=limit_s, **variables)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    report = json.loads((folder / "out" / "report.json").read_text())
    return done, report, (folder / "out" / "report.html").read_text()


def test_offline_voice_passes(tmp_path: Path) -> None:
    done, report, html = checked(tmp_path, "--engine", "espeak", "--voices", "alloy, onyx,alloy", "--sentences", "3")
    assert done.returncode == 0, done.stdout
    assert b"The check found no problem." in done.stdout
    assert (report["ok"], report["findings"], report["engine"]) == (True, [], "espeak")
    assert [voice["id"] for voice in report["voices"]] == ["alloy", "onyx"]
    takes = [take for voice in report["voices"] for take in voice["takes"]]
    assert [take["words"] for take in takes] == ["ok"] * 6
    assert {take["words_found"] for take in takes} == {1.0}
    for take in takes:
        with wave.open(str(tmp_path / "out" / take["file"])) as file:
            assert file.getnframes() / file.getframerate() == pytest.approx(take["seconds"], abs=0.01)
        assert f'src="{take["file"]}"' in html
        assert -23 < take["loudness_lufs"] < -17
        assert take["true_peak_dbtp"] < -0.5
        assert take["speed"] > 0
        assert take["first_audio_s"] > 0
    assert report["peak_memory_bytes"]["process"] > 30e6
    assert not re.findall(r"https?://|<script|@import|url\(", html)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_offline_voices_pass_with_all_sentences(tmp_path: Path) -> None:
    done, report, _ = checked(tmp_path, "--engine", "espeak", limit_s=500)
    assert done.returncode == 0, done.stdout
    assert len(report["voices"]) == 13
    assert {len(voice["takes"]) for voice in report["voices"]} == {len(SENTENCES)} == {20}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["csm", "dia"])
def test_random_weights_fail_with_an_explanation(tmp_path: Path, engine: str, request: pytest.FixtureRequest) -> None:
    variables = {f"{engine.upper()}_MODEL": str(request.getfixturevalue(f"tiny_{engine}")), "TTS_CASTING": "off"}
    done, report, html = checked(
        tmp_path, "--engine", engine, "--voices", "alloy", "--sentences", "2", TTS_DTYPE="float32", **variables
    )
    assert done.returncode == 1
    output = " ".join(done.stdout.decode().split())
    assert "The check found problems." in output
    assert "The words of the text were not found in the speech: 2 of 2 takes." in output
    assert "the weights are damaged" in output
    assert "The voice has no recording" in output
    assert not report["ok"]
    assert {take["words"] for take in report["voices"][0]["takes"]} == {"bad"}
    assert report["guard"]
    assert "The check found problems." in html


def test_words_are_not_checked_without_the_extra(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "pocketsphinx").mkdir(parents=True)
    (hidden / "pocketsphinx" / "__init__.py").touch()  # a pocketsphinx package without its model
    path = f"{hidden}:{first_day.__file__.removesuffix('/app/first_day.py')}"
    done, report, _ = checked(tmp_path, "--engine", "espeak", "--voices", "alloy", "--sentences", "1", PYTHONPATH=path)
    assert done.returncode == 0
    assert report["ok"]
    assert b"The words of 1 takes were not checked. The `words` extra is not installed." in done.stdout


def test_damaged_voice_gives_a_note_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "data" / "cloned_voices" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "cloned_voices" / "mine" / "voice.json").write_text("not JSON")
    done, report, _ = checked(tmp_path, "--engine", "espeak", "--voices", "alloy", "--sentences", "1")
    assert done.returncode == 0
    (finding,) = report["findings"]
    assert finding["severity"] == "note"
    assert finding["text"].startswith("cloned_voices/mine is not used")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--voices", "unknown-voice"), "alloy"),
        (("--engine", "nonsense"), "TTS_ENGINE"),
        (("--out", "file/report"), "written"),
        (("--engine", "csm"), "HF_HUB_OFFLINE"),
        # the name is checked before the weights are loaded
        (("--engine", "csm", "--voices", "unknown-voice"), "alloy"),
        (("--engine", "csm", "--out", "file/report"), "written"),
    ],
)
def test_invalid_calls_end_with_a_message(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    (tmp_path / "file").touch()
    done = cli(tmp_path, "check", *arguments, COLUMNS="400", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert word in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("more", ["", ",alloy"])
def test_cloned_voice_is_refused_by_an_engine_that_does_not_clone(tmp_path: Path, more: str) -> None:
    store = VoiceStore(tmp_path / "data" / "cloned_voices", tmp_path / "data" / "voice_references")
    voice = store.add("Ann", Reference(samples.speech(), samples.RATE_HZ, samples.TEXT))
    data = {"TTS_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "400"}
    done = cli(tmp_path, "check", "--engine", "espeak", "--voices", voice.id + more, **data)
    assert done.returncode == 1
    assert "the espeak engine can't clone voices" in done.stderr.decode()
    assert b"weights" not in done.stdout + done.stderr


# ---- planted faults


def half(samples: Samples, number: int) -> Samples:
    return samples[: len(samples) // 2]


def pause(samples: Samples, number: int) -> Samples:
    middle = len(samples) // 2
    return np.concatenate((samples[:middle], np.zeros(22_050 * 2, np.float32), samples[middle:]))


def other_voice(samples: Samples, number: int) -> Samples:
    return soxr.resample(samples, 22_050, 12_000) if number % 2 else samples


def one_half(samples: Samples, number: int) -> Samples:
    return half(samples, number) if number == 1 else samples


@pytest.mark.parametrize(
    ("plant", "fault", "severity"),
    [
        (half, "words", "problem"),
        (pause, "silence", "problem"),
        (other_voice, "voice", "problem"),
        (one_half, "words", "note"),
    ],
)
async def test_report_names_the_planted_fault(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Samples, int], Samples],
    fault: str,
    severity: str,
) -> None:
    """The fault is planted in the audio that the engine returns.

    If only one take of many is bad, the report contains a note.
    """
    synthesize = Library.synthesize_words
    calls = itertools.count()

    def faulty(self: Library, *arguments: Any, **options: Any) -> tuple[Samples, list[tuple[int, int | None]]]:
        samples, places = synthesize(self, *arguments, **options)
        return plant(samples, next(calls)), places

    monkeypatch.setattr(Library, "synthesize_words", faulty)
    chosen = settings(tmp_path)
    services = core_services(chosen)
    count = 12 if severity == "note" else 4
    async with services.manager:
        await services.manager.settled()
        report = await first_day.run(
            services,
            chosen,
            [services.voices.get("alloy")],
            tmp_path,
            normalizer=Normalizer(),
            sentences=SENTENCES[2 : 2 + count],
        )
    found = {finding.severity for finding in report.findings if first_day._FAULTS[fault][0] in finding.text}
    assert found == {severity}
    assert report.ok == (severity == "note")
    html = page(report)
    assert all(text in html for take in report.voices[0].takes for text in take.faults.values() if "'" not in text)


# ---- findings


def report_of(*takes: Take) -> Report:
    report = Report("csm", "cpu", "float32")
    report.voices = [VoiceReport("alloy", "Alloy", recorded=True, pace=15.0, takes=list(takes))]
    first_day._judge(report.voices[0], enhanced=True)
    first_day._summarise(report)
    report.findings = first_day._findings(report, {})
    return report


def take_of(number: int, **values: Any) -> Take:
    return Take(number, "A sentence.", **({"seconds": 2.0, "speed": 2.0, "words": "ok", "pace": 15.0} | values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pace": 5.5}, "too slow: 5.5 characters"),
        ({"pace": 31.0}, "too fast: 31 characters"),
        ({"longest_silence_s": 1.8}, "silence of 1.8 s"),
        ({"loudness_lufs": -25.0}, "loudness is -25 LUFS"),
        ({"true_peak_dbtp": 0.2}, "true peak is 0.2 dBTP"),
        ({"voice_distance": 3.5}, "The pitch or the brightness differs"),
        ({"words": "bad", "words_reason": "missing_words", "doubtful_words": ["river"]}, "Words are missing: river."),
        ({"words": "bad", "words_reason": "no_answer"}, "The words of the text were not found."),
        ({"error": "The engine left out a part of the text."}, "left out a part"),
    ],
)
def test_each_fault_is_a_problem_if_all_takes_have_it(values: dict[str, Any], words: str) -> None:
    report = report_of(take_of(1, **values))
    assert [finding.severity for finding in report.findings] == ["problem"]
    assert words in report.findings[0].text
    assert report.findings[0].advice
    rare = report_of(*(take_of(number) for number in range(2, 20)), take_of(1, **values))
    assert [finding.severity for finding in rare.findings] == ["note"]
    assert rare.ok


def test_good_takes_give_no_faults() -> None:
    take = take_of(1, longest_silence_s=1.0, loudness_lufs=-19.0, true_peak_dbtp=-1.1, voice_distance=2.0)
    assert report_of(take).findings == []


def test_slow_generation_and_other_languages_are_notes() -> None:
    report = report_of(take_of(1, speed=0.25, words="unchecked", words_reason="language"))
    assert report.ok
    assert "0.25 seconds of audio in one second" in report.findings[0].text
    assert "English only" in report.findings[1].text
    assert "The check found no problem." in page(report)


def test_names_of_voices_are_escaped_on_the_page() -> None:
    report = report_of(take_of(1))
    report.voices[0].name = "<b>Me</b>"
    report.findings = [Finding("note", "<i>text</i>", "advice")]
    assert "<b>" not in page(report)
    assert "<i>" not in page(report)
    assert "&lt;i&gt;text&lt;/i&gt;" in page(report)


def test_silence_and_true_peak_are_measured() -> None:
    t = np.arange(24_000) / 24_000
    tone = (0.5 * np.sin(2 * np.pi * 220 * t)).astype(np.float32)
    gap = np.concatenate((tone, np.zeros(12_000, np.float32), tone))
    assert first_day.longest_silence_s(gap, 24_000) == pytest.approx(0.5, abs=0.03)
    assert first_day.longest_silence_s(tone, 24_000) == 0.0
    # no sample lies on a peak of the sine
    between = (0.9 * np.sin(2 * np.pi * 6_000 * t + np.pi / 4)).astype(np.float32)
    assert 20 * np.log10(np.abs(between).max()) == pytest.approx(-3.9, abs=0.1)
    assert first_day.true_peak_dbtp(between, 24_000) == pytest.approx(-0.9, abs=0.2)
