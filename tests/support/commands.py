"""Run commands of `app.cli` quickly: a process that has imported the command line forks for each of them.

A new interpreter needs more than a second of CPU time for its imports. A command in the forked process has its own
folder, environment and standard streams, as in a shell. One test runs the real `python -m app.cli`.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROOT = Path(__file__).resolve().parents[2]


def run_command(
    arguments: tuple[str, ...], folder: Path, env: Mapping[str, str], *, stdin: bytes = b"", limit_s: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run `app.cli` with these arguments to its end, in `folder`. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as streams:
        (Path(streams) / "in").write_bytes(stdin)
        order = {
            "arguments": arguments,
            "folder": str(folder),
            "env": dict(env),
            "streams": streams,
            "limit_s": limit_s,
        }
        process = _server()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        out, err = ((Path(streams) / name).read_bytes() for name in ("out", "err"))
    if answer["code"] is None:
        raise subprocess.TimeoutExpired(list(arguments), limit_s, out, err)
    return subprocess.CompletedProcess(["app.cli", *arguments], answer["code"], out, err)


@cache
def _server() -> subprocess.Popen[bytes]:
    """Start the process that forks. It ends with the test process, because its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.commands"],
        cwd=_ROOT,
        env={**os.environ, "COLUMNS": "400"},  # the width of tables is read when the command line is imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def end() -> None:
        if process.stdin is not None:
            process.stdin.close()
        process.wait(10)

    atexit.register(end)
    return process


def _serve() -> None:
    import app.cli  # noqa: F401 - the children have it

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(order)
        print(json.dumps({"code": _wait(child, order["limit_s"])}), flush=True)


def _wait(child: int, limit_s: float) -> int | None:
    """Return the exit code of the child as subprocess does; None if it was ended because of the limit."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(order: dict[str, Any]) -> None:
    """Run the command in this process. Does not return."""
    streams = Path(order["streams"])
    modes = {"in": os.O_RDONLY, "out": os.O_WRONLY | os.O_CREAT, "err": os.O_WRONLY | os.O_CREAT}
    for number, (name, mode) in enumerate(modes.items()):
        os.dup2(os.open(streams / name, mode, 0o600), number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - as in a new interpreter
        for number, mode in enumerate(("r", "w", "w"))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:0] = order["env"].get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(order["folder"])
    sys.argv = ["app.cli", *order["arguments"]]
    code = 1
    try:
        from app.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
