"""Results of bench.load and bench.soak for audio and samples with known answers."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from app.audio.encoders import open_encoder
from bench.load import RATE_HZ, Asker, listen, open_loop, spread_ms, summary
from bench.plot import Panel, Series, figure
from bench.soak import Books, Sample, fingerprint, report, slope, sound_of
from bench.wire import Client, Heard

pytestmark = pytest.mark.unit


def pcm_answer(*pieces: tuple[float, float], silent_s: float = 0.0) -> Heard:
    """Return a PCM answer from pieces (arrival time, seconds of audio).

    The first silent_s seconds of the answer are silent.
    """
    seconds = sum(each for _, each in pieces)
    samples = np.full(round(seconds * RATE_HZ), 3000, "<i2")
    samples[: round(silent_s * RATE_HZ)] = 60  # -55 dBFS
    received, arrivals = 0, []
    for when_s, each in pieces:
        received += 2 * round(each * RATE_HZ)
        arrivals.append((when_s, received))
    return Heard(0.0, 200, {}, bytearray(samples.tobytes()), arrivals, whole=True)


def test_silence_does_not_count_as_audible():
    found = listen(pcm_answer((10.1, 0.1), (10.3, 0.5), silent_s=0.2), due_s=10.0)
    assert found.first_s == pytest.approx(0.1)
    assert found.audible_s == pytest.approx(0.3)
    assert np.isinf(listen(pcm_answer((10.1, 0.1), silent_s=0.1), due_s=10.0).audible_s)


def test_playback_resumes_after_an_underrun():
    found = listen(pcm_answer((0.0, 0.5), (0.4, 0.5), (1.5, 0.5), (2.0, 0.5)), due_s=0.0)
    assert found.underruns == 1  # the player waits from 1.0 s to 1.5 s; the audio that arrives at 2.0 s is in time
    assert found.gap_s == pytest.approx(0.5)
    assert not found.at_real_time
    # the buffer of a player covers a delay of 10 ms
    assert listen(pcm_answer((0.0, 0.5), (0.51, 0.5)), due_s=0.0).at_real_time


def test_summary_counts_refused_and_failed_requests():
    answers = [
        listen(pcm_answer((0.05, 1.0)), due_s=0.0),
        listen(Heard(0.0, 429, whole=True), due_s=0.0),
        listen(replace(pcm_answer((0.2, 1.0)), whole=False), due_s=0.0),
    ]
    totals = summary(answers)
    assert (totals["requests"], totals["answered"], totals["refused_429"], totals["failed"]) == (3, 2, 1, 1)
    assert totals["at_real_time"] == pytest.approx(1 / 3, abs=1e-4)
    assert totals["audible_ms"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0, "max": 200.0}
    assert spread_ms([])["p50"] is None


class Waiting(Asker):
    """Records when each request was due and answers only after the test opens the gate."""

    def __init__(self) -> None:
        self.due_s: list[float] = []
        self.gate, self.many = asyncio.Event(), asyncio.Event()

    async def ask(self, due_s, text=""):
        self.due_s.append(due_s)
        if len(self.due_s) == 50:
            self.many.set()
        await self.gate.wait()
        return listen(pcm_answer((due_s, 0.1)), due_s)


async def test_open_loop_does_not_wait_for_answers():
    asker = Waiting()
    running = asyncio.create_task(open_loop(asker, 400.0, 0.25, random.Random(1)))
    await asyncio.wait_for(asker.many.wait(), 10)  # all requests start although no request has an answer yet
    asker.gate.set()
    assert len(await running) == len(asker.due_s)
    gaps = np.diff(asker.due_s)
    assert gaps.min() >= 0
    # times between requests are exponentially distributed, so both values are equal
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.5)


async def test_client_records_arriving_bytes(server):
    client = Client(server)
    body = {"input": "One, two, three.", "response_format": "pcm", "cache": False}
    first = await client.ask("/v1/audio/speech", json.dumps(body).encode())
    assert (first.status, first.whole) == (200, True)
    assert first.headers["x-tts-engine"] == "espeak"
    assert first.pieces[-1][1] == len(first.body) > 20_000
    wrong = await client.ask("/v1/audio/speech", b"{}")
    assert (wrong.status, wrong.whole) == (400, True)
    assert json.loads(bytes(wrong.body))["error"]["code"]
    events = await client.ask("/v1/audio/speech", json.dumps(body | {"stream_format": "sse"}).encode())
    assert len(sound_of(events, events=True)) == pytest.approx(len(first.body), rel=0.02)
    client.close()


def chirps(seed: int, seconds: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * 24_000)) / 24_000
    notes = [np.sin(2 * np.pi * rng.uniform(200, 5000) * at) * (rng.uniform(0, seconds) < at) for _ in range(8)]
    return (sum(notes) / 10).astype(np.float32)


def test_fingerprint_depends_on_the_audio_and_not_on_the_format():
    prints = []
    for seed in (1, 2):
        for audio_format in ("pcm", "wav", "mp3", "opus"):
            encoder = open_encoder(audio_format, 24_000)
            sound = encoder.encode(chirps(seed, 2.0)) + encoder.flush()
            found, seconds = fingerprint(sound, audio_format, 24_000)
            assert seconds == pytest.approx(2.0, abs=0.1)
            prints.append(found)
    likeness = np.stack(prints) @ np.stack(prints).T
    assert likeness[:4, :4].min() > 0.95
    assert likeness[:4, 4:].max() < 0.7


QUIET = Sample(0.0, 200 << 20, 20, 30, 0, 0, 0.0, 0.0)


def looks(minutes: float, mib_per_minute: float) -> list[Sample]:
    return [
        replace(QUIET, at_s=float(at), rss_bytes=int((200 + mib_per_minute * at / 60) * (1 << 20)))
        for at in range(0, round(minutes * 60), 5)
    ]


def judged(samples: list[Sample], idle: Sample, books: Books | None = None, *, strict: bool = True) -> list[str]:
    options = argparse.Namespace(minutes=samples[-1].at_s / 60 + 0.1, load=0.7, strict=strict, plot=None)
    _, problems = report(options, books or Books(), samples, idle, {"capacity_per_s": 10.0})
    return problems


def test_stable_soak_has_no_problems():
    assert judged(looks(20, 0.2), QUIET) == []
    assert slope(looks(20, 0.2)) == pytest.approx(0.2 * (1 << 20), rel=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 1}, "1 rows"),
        ({"queued": 2}, "2 places"),
        ({"threads": 40}, "threads went from 20 to 40"),
        ({"open_files": 60}, "open files went from 30 to 60"),
    ],
)
def test_leaked_resources_are_problems(change, words):
    (problem,) = judged(looks(20, 0.0), replace(QUIET, **change))
    assert words in problem


def test_memory_growth_wrong_audio_and_underruns_are_problems():
    (problem,) = judged(looks(20, 1.5), QUIET)
    assert "resident memory" in problem
    books = Books(wrong=["another sound"], dry=[(3.0, 0.4)])
    assert judged(looks(20, 0.0), QUIET, books) == ["another sound", "1 underruns, the longest 0.40 s"]
    assert judged(looks(20, 0.0), QUIET, books, strict=False) == ["another sound"]


def test_figure_contains_titles_lines_and_dots():
    drawn = figure("minutes", [Panel("a < b", [Series("x", [(0, 1), (1, 2)]), Series("y", [(0.5, 1)], dots=True)])] * 2)
    root = ElementTree.fromstring(drawn)
    name = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.iter(f"{name}text")].count("a < b") == 2
    assert len(list(root.iter(f"{name}polyline"))) == len(list(root.iter(f"{name}circle"))) == 2
    assert ElementTree.fromstring(figure("minutes", [Panel("nothing", [])])) is not None


@pytest.mark.integration
def test_terminated_benchmark_stops_its_server():
    code = """
        import asyncio
        from bench.server import own_server

        async def main():
            async with own_server() as server:
                print(server.pid, flush=True)
                await asyncio.sleep(600)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bench:
        assert bench.stdout is not None
        pid = int(bench.stdout.readline())
        os.kill(pid, 0)  # the server runs
        bench.terminate()
        bench.wait(60)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
