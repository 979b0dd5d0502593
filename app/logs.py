"""Writes logs as JSON lines to `logs/server.log`, which is rotated by size, and as readable lines to the console.

API keys are never logged: no code logs headers, query strings or secret settings. The server logs the texts of requests
only if TTS_LOG_TEXTS is set. Without this setting, the server logs exceptions during a request without their messages,
because a message may quote the text.
"""

from __future__ import annotations

import logging
import sys
import traceback
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES = 10 << 20
FILES_KEPT = 5


class _LogFile(RotatingFileHandler):
    """The log file. If its disk is full, the console gets one message, and not a traceback for each line."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is that of logging
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            sys.stderr.write(f"The log file can't be written: {error.strerror or error}. Free space on its disk.\n")


def set_up(level: str, folder: Path | None, *, colors: bool, texts: bool = False) -> None:
    """Write all log records, also records of libraries, to the console and to a file in `folder`.

    folder: None = only the console. texts: True = also log the messages of exceptions during requests. Raises OSError
    if the folder is not writable.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        *(() if texts else (_without_messages,)),
        _without_color_message,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
            ],
        )
    )
    handlers: list[logging.Handler] = [console]
    if folder is not None:
        file = _LogFile(folder / "server.log", maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
        file.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=shared,
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(),
                ],
            )
        )
        handlers.append(file)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for chatty in (
        "httpx",
        "httpcore",
        "httpx2",
        "httpcore2",
        "huggingface_hub",
        "filelock",
        "asyncio",
        "watchfiles",
        "python_multipart",
    ):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _without_color_message(_: object, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Remove the copy of the message with colour codes that uvicorn adds to a log record."""
    event.pop("color_message", None)
    return event


def _without_messages(_: object, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Replace the exception in the log record of a request by a traceback without messages."""
    info = event.get("exc_info")
    if not info or "request_id" not in event:
        return event
    error = info if isinstance(info, BaseException) else (info if isinstance(info, tuple) else sys.exc_info())[1]
    del event["exc_info"]
    return event if error is None else {**event, "exception": outline(error)}


def outline(error: BaseException) -> str:
    """Return the traceback of an exception and of its causes, without the messages of the exceptions."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    inside = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    stack = "".join(traceback.format_tb(error.__traceback__))
    own = f"Traceback (most recent call last):\n{stack}{type(error).__qualname__} (message: see TTS_LOG_TEXTS)"
    return "\n\n".join([*([outline(before), "Then:"] if before else []), own, *map(outline, inside)])
