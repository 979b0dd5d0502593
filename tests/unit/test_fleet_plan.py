"""The fleet simulation of bench.fleet, compared with results that can be calculated by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.fleet import FRAME_S, Fleet, Times, copies_for, read_points
from tests.support.live import ROOT

pytestmark = pytest.mark.unit

TIMES = Times(((1, 0.020), (8, 0.022), (32, 0.030)), 0.025)


def run(copies: int = 2, streams: float = 20.0, *, rows: int = 32, queue: int = 8, **more: float):
    options = {"answer_s": 12.0, "for_s": 120.0, "warm_s": 20.0, "kill_at_s": 0.0, "reload_s": 30.0, **more}
    return Fleet(TIMES, copies, rows, queue, seed=1).run(streams=streams, **options)


def test_step_times_are_interpolated_between_measurements():
    assert TIMES.step_s(1) == 0.020
    assert TIMES.step_s(20) == pytest.approx(0.026)
    assert TIMES.real_time_rows() == 32  # 32 is the largest measured number of rows
    assert Times(((1, 0.05), (2, 0.09)), 0.0).real_time_rows() == 1
    assert Times(((1, 0.2),), 0.0).real_time_rows() == 0
    assert read_points(["8:22", "1:20"]) == ((1, 0.020), (8, 0.022))
    with pytest.raises(ValueError, match="once"):
        read_points(["1:20", "1:21"])


def test_idle_copy_sends_first_audio_after_a_prompt_and_a_step():
    result = run(copies=1, streams=0.05, for_s=4000.0)
    assert min(result.first_s) == pytest.approx(0.025 + 0.020)
    assert result.dry == result.refused == result.cut == 0


def test_all_requests_are_spoken_at_moderate_load():
    result = run(streams=20.0)
    # arrivals per second, times the seconds of each utterance
    assert result.spoken == pytest.approx(100 * 20 / 12, rel=0.2)
    assert result.dry == result.refused == 0
    assert 0 < result.busy < 1


def test_overload_is_rejected_and_more_copies_help():
    crowded, roomy = run(copies=1, streams=200.0), run(copies=4, streams=200.0)
    assert crowded.refused > 0
    assert crowded.busy > 0.95
    assert roomy.refused == 0
    assert sum(roomy.first_s) / len(roomy.first_s) < sum(crowded.first_s) / len(crowded.first_s)


def test_slow_steps_cause_underruns():
    slow = Times(((1, 0.06), (2, 0.12)), 0.01)
    result = Fleet(slow, 1, 2, 4, seed=1).run(
        streams=1.5, answer_s=12.0, for_s=300.0, warm_s=20.0, kill_at_s=0.0, reload_s=0.0
    )
    assert result.dry > 0


def test_dead_copy_breaks_only_its_own_streams_and_restarts():
    whole, hurt = run(copies=3, streams=60.0), run(copies=3, streams=60.0, kill_at_s=50.0)
    assert whole.cut == 0
    assert 0 < hurt.cut <= 32
    assert hurt.spoken > 0.9 * whole.spoken
    assert hurt.gave_up == 0  # the queued requests of the copy went to other copies


def test_paused_rows_take_no_time():
    """A listener plays audio in real time, so a fast copy of the server is mostly idle."""
    result = run(copies=1, streams=1.0, answer_s=60.0, for_s=2000.0, warm_s=200.0)
    assert 0.1 < result.busy < 1.2 * 0.020 / FRAME_S


def test_number_of_copies_grows_less_than_the_number_of_streams():
    for_100, for_10_000 = (copies_for(streams, 32, TIMES, 12.0, 0.0) for streams in (100, 10_000))
    assert for_100 < for_10_000 < 100 * for_100


def test_last_line_of_the_output_is_json():
    command = [sys.executable, "-m", "bench.fleet", "--streams", "20", "--for-s", "40", "--step-ms", "1:20", "32:30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["copies"] >= 1
