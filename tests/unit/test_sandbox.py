"""The process that decodes uploads has limited rights, and a failure affects only one upload."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.audio import helper_process, sandbox
from app.audio.sandbox import Limits, decode_in_sandbox
from app.errors import BadReference
from tests.support import samples
from tests.support.live import ROOT, wait_until
from tests.support.overlap import Overlap, in_threads

pytestmark = pytest.mark.unit

RATE_HZ = 24_000


def helper() -> int:
    process = sandbox._helper()._process
    assert process is not None
    return process.pid


def children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture(scope="module")
def short() -> bytes:
    return samples.file(samples.said(samples.WORDS[0]))


@pytest.fixture(scope="module")
def long() -> bytes:
    """Return a file that takes some seconds to decode."""
    return samples.file(np.tile(samples.noise(44_100 * 60, 0.1), 10))


@pytest.fixture(autouse=True)
def _started(short: bytes) -> None:
    decode_in_sandbox(short, RATE_HZ, max_seconds=60)


CHILD = """
import ctypes, os, socket
from app.audio import decoder_process as child
child._leave_the_network()
child._warm()
child._limit({"memory_bytes": 1 << 30, "cpu_s": 9, "output_bytes": 1 << 20})
tries = {
    "socket": lambda: socket.socket(),
    "file": lambda: open("/etc/passwd"),
    "process": lambda: os.fork(),
    "lift": lambda: child.resource.setrlimit(child.resource.RLIMIT_NOFILE, (99, 99)),
    "root": lambda: os.setuid(0) if os.getuid() else None,
    "memory": lambda: bytearray(2 << 30),
}
for name, attempt in tries.items():
    try:
        attempt()
        print(name, "worked")
    except BaseException as error:
        print(name, type(error).__name__)
"""


def test_sandbox_cannot_open_files_start_processes_or_lift_limits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env=helper_process.child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes = dict(line.split() for line in done.stdout.splitlines())
    assert outcomes.pop("memory") == "MemoryError"
    assert "worked" not in outcomes.values(), outcomes
    assert set(outcomes) == {"socket", "file", "process", "lift", "root"}


def test_decoder_crash_fails_only_its_own_upload(short: bytes, long: bytes) -> None:
    """The signal simulates a fault in C code. Other uploads are decoded during and after the crash."""
    before = helper()
    with ThreadPoolExecutor() as threads:
        doomed = threads.submit(decode_in_sandbox, long, 44_100, max_seconds=600)
        wait_until(lambda: children(before))
        (victim,) = children(before)
        other = threads.submit(decode_in_sandbox, short, RATE_HZ, max_seconds=60)
        os.kill(victim, signal.SIGSEGV)
        with pytest.raises(BadReference, match="limits of memory and time"):
            doomed.result(30)
        assert other.result(30).seconds > 1
    assert decode_in_sandbox(short, RATE_HZ, max_seconds=60).seconds > 1
    assert helper() == before


def test_decoder_over_the_time_limit_is_killed(long: bytes) -> None:
    with pytest.raises(BadReference, match="takes too long"):
        decode_in_sandbox(long, 44_100, max_seconds=600, limits=Limits(wall_s=0.05))
    wait_until(lambda: not children(helper()))


def test_decoder_over_the_cpu_limit_is_stopped() -> None:
    hour = samples.file(np.tile(samples.noise(44_100 * 60, 0.1), 30))
    limits = Limits(input_bytes=1 << 30, cpu_s=1, wall_s=300, memory_bytes=8 << 30)
    with pytest.raises(BadReference, match="limits of memory and time"):
        decode_in_sandbox(
            hour, 384_000, max_seconds=1800, limits=limits, time_limit_s=300
        )  # no other limit is reached first
    wait_until(lambda: not children(helper()))


def test_dead_helper_is_restarted(short: bytes) -> None:
    before = helper()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: sandbox._helper()._process is None or sandbox._helper()._process.poll() is not None)
    assert decode_in_sandbox(short, RATE_HZ, max_seconds=60).seconds > 1
    assert helper() != before


def test_concurrent_first_threads_start_one_helper(short: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = sandbox._Helper()
    overlap = Overlap(subprocess.Popen)
    monkeypatch.setattr(sandbox, "_helper", lambda: helper)
    monkeypatch.setattr(helper_process.subprocess, "Popen", overlap)
    try:
        decoded = in_threads(lambda: decode_in_sandbox(short, RATE_HZ, max_seconds=60))
        assert len({each.samples.tobytes() for each in decoded}) == 1
        assert overlap.calls == 1
    finally:
        helper.close()


def test_close_waits_until_the_current_job_is_sent(short: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = sandbox._Helper()
    monkeypatch.setattr(sandbox, "_helper", lambda: helper)
    decode_in_sandbox(short, RATE_HZ, max_seconds=60)
    jobs = helper._socket
    assert jobs is not None
    closing = threading.Thread(target=helper.close)
    with helper._lock:
        closing.start()
        closing.join(0.2)
        assert jobs.fileno() >= 0
    closing.join()
    assert jobs.fileno() == -1


def test_concurrent_decodings_leak_no_files_or_threads(short: bytes) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    with ThreadPoolExecutor(8) as threads:
        decoded = list(threads.map(lambda _: decode_in_sandbox(short, RATE_HZ, max_seconds=60), range(24)))
    assert len({each.samples.tobytes() for each in decoded}) == 1
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before  # noqa: PTH208
    assert not children(helper())
    open_there = os.listdir(f"/proc/{helper()}/fd")  # noqa: PTH208
    assert len(open_there) < 10


def test_helper_ends_with_the_server() -> None:
    """The helper process also ends if the server is killed."""
    script = (
        "import os, time\nfrom app.audio import sandbox\nfrom tests.support import samples\n"
        "sandbox.decode_in_sandbox(samples.file(samples.noise(44_100, 0.1)), 24_000, max_seconds=60)\n"
        "print(sandbox._helper()._process.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        os.kill(pid, 0)
        server.kill()

    def gone() -> bool:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        return True

    wait_until(gone)


@pytest.mark.skipif(os.geteuid() != 0, reason="without root a network of its own is up to the kernel's settings")
def test_helper_has_its_own_network_namespace() -> None:
    mine, its = (Path(f"/proc/{process}/ns/net").readlink() for process in ("self", helper()))
    assert mine != its
