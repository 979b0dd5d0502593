"""What every driver shares: a line of JSON in is a job, a line of JSON out is what the client made of it.

A driver runs in its client's own environment, knows nothing of the server's code and stays up from job to job, since
some of these clients take seconds to import. What a client prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Job = dict[str, Any]
Result = dict[str, Any]


def serve(jobs: dict[str, Callable[[Job], Awaitable[Result]]]) -> None:
    """Run jobs by name until stdin ends. If a job raises, its result is `failure` of the exception."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    async def loop() -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            try:
                result = await jobs[job["do"]](job)
            except Exception as error:  # noqa: BLE001 - the test checks what the client raises
                result = failure(error)
            answers.write(json.dumps(result) + "\n")
            answers.flush()

    asyncio.run(loop())


def failure(error: BaseException) -> Result:
    """Describe an exception as the client shows it: its classes, and its data of the response."""
    known = {name: getattr(error, name, None) for name in ("status_code", "code", "param", "request_id")}
    classes = [kind.__name__ for kind in type(error).__mro__[:-2]]
    return {"error": {"classes": classes, "message": str(error), **known}}


def sound(data: bytes, **more: Any) -> Result:
    return {"audio": base64.b64encode(data).decode(), **more}
