"""Logs: each line of the file is one JSON object with the fields of the request, also for log lines of libraries."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest
import structlog

from app import logs

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Restore the root logger after `set_up`, which changes it for the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog_config = structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    closing = {handler: handler.close for handler in handlers}
    for handler in handlers:  # pytest's own handlers are used again after this test
        handler.close = lambda: None  # type: ignore[method-assign]
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        if handler not in handlers:
            handler.close()
    for handler in handlers:
        handler.close = closing[handler]  # type: ignore[method-assign]
        root.addHandler(handler)
    root.setLevel(level)
    for name in list(root.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    structlog.configure(**structlog_config)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "server.log").read_text(encoding="utf-8").splitlines()]


def test_each_line_is_json_with_time_logger_and_level(tmp_path):
    logs.set_up("INFO", tmp_path, colors=False)
    logging.getLogger("uvicorn.error").warning("listening on %s:%d", "::", 8000, extra={"digest": "abc"})
    structlog.get_logger("app.access").info("request", status=200, path="/v1/models")
    foreign, ours = lines(tmp_path)
    assert (foreign["event"], foreign["level"], foreign["logger"]) == (
        "listening on :::8000",
        "warning",
        "uvicorn.error",
    )
    assert foreign["digest"] == "abc"
    assert (ours["event"], ours["level"], ours["logger"]) == ("request", "info", "app.access")
    assert (ours["status"], ours["path"]) == (200, "/v1/models")
    for line in (foreign, ours):
        assert line["timestamp"].endswith("Z")


def test_request_id_is_on_every_line_of_the_request(tmp_path):
    logs.set_up("INFO", tmp_path, colors=False)
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        logging.getLogger("app.generator.speech").info("one")
        structlog.get_logger("x").info("two")
    logging.getLogger("app.generator.speech").info("three")
    assert [line.get("request_id") for line in lines(tmp_path)] == ["req_1", "req_1", None]


def test_exception_is_one_line_with_its_traceback(tmp_path):
    logs.set_up("INFO", tmp_path, colors=False)
    try:
        int("as an example")
    except ValueError:
        logging.getLogger("app").exception("failed")
        structlog.get_logger("app").exception("failed")
    for line in lines(tmp_path):
        assert line["level"] == "error"
        assert "ValueError: invalid literal" in line["exception"]
        assert "Traceback" in line["exception"]


def test_messages_below_the_level_are_not_written(tmp_path):
    logs.set_up("WARNING", tmp_path, colors=False)
    logging.getLogger("app").info("no")
    structlog.get_logger("app").info("no")
    logging.getLogger("app").warning("yes")
    structlog.get_logger("app").warning("yes")
    assert [line["event"] for line in lines(tmp_path)] == ["yes", "yes"]


def test_verbose_libraries_are_logged_only_from_level_warning(tmp_path):
    logs.set_up("DEBUG", tmp_path, colors=False)
    logging.getLogger("httpx").info("GET https://example/?token=secret")
    logging.getLogger("httpx").warning("slow")
    logging.getLogger("app").debug("ours")
    assert [line["event"] for line in lines(tmp_path)] == ["slow", "ours"]
    logs.set_up("ERROR", tmp_path, colors=False)
    logging.getLogger("httpx").warning("not at ERROR")
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize("text", ["line\nbreak", 'quote " and \\', "\ud83d alone", "音", "\x00\x1b[31m"])
def test_any_text_is_logged_on_one_line(tmp_path, text):
    logs.set_up("INFO", tmp_path, colors=False)
    logging.getLogger("app").info("%s", text, extra={"value": {"object": object()}})
    (line,) = lines(tmp_path)
    assert line["event"] == text


def test_file_is_rotated_and_console_gets_the_lines_too(tmp_path, capsys):
    logs.set_up("INFO", tmp_path, colors=False)
    handlers = logging.getLogger().handlers
    rotating = [handler for handler in handlers if isinstance(handler, RotatingFileHandler)]
    assert len(rotating) == 1
    assert (rotating[0].maxBytes, rotating[0].backupCount) == (logs.FILE_BYTES, logs.FILES_KEPT)
    assert len(handlers) == 2
    rotating[0].maxBytes = 300
    for number in range(20):
        logging.getLogger("app").info("number %d", number)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["server.log", *(f"server.log.{n}" for n in range(1, logs.FILES_KEPT + 1))]
    assert "number 19" in capsys.readouterr().err


def test_full_disk_is_one_line_on_the_console(tmp_path, capsys):
    (tmp_path / "server.log").symlink_to("/dev/full")
    logs.set_up("INFO", tmp_path, colors=False)
    for number in range(3):
        logging.getLogger("app.test").info("message %d", number)
    written = capsys.readouterr()
    assert all(f"message {number}" in written.out + written.err for number in range(3))
    assert written.err.count("No space left on device") == 1
    assert "Traceback" not in written.err
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(OSError):  # the last lines can't be written
            handler.close()


def test_repeated_set_up_writes_each_message_once(tmp_path):
    logs.set_up("INFO", tmp_path, colors=False)
    logs.set_up("INFO", tmp_path, colors=False)
    logging.getLogger("app").info("once")
    assert len(lines(tmp_path)) == 1


def test_without_a_folder_only_the_console_is_used(tmp_path, capsys):
    logs.set_up("INFO", None, colors=False)
    logging.getLogger("app").info("hello", extra={"n": 1})
    assert "hello" in capsys.readouterr().err
    assert len(logging.getLogger().handlers) == 1


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        logs.set_up("INFO", tmp_path / "missing", colors=False)


def test_escape_codes_are_not_logged(tmp_path):
    logs.set_up("INFO", tmp_path, colors=False)
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[36mStarted\x1b[0m"})
    (line,) = lines(tmp_path)
    assert "color_message" not in line


PRIVATE = " ".join(["my", "dear", "diary"])  # built from parts, so that a traceback's source line does not contain it


def failing(text: str) -> None:
    try:
        int(text)
    except ValueError as error:
        raise RuntimeError(f"could not speak {text!r}") from error


@pytest.mark.parametrize("texts", [False, True])
def test_exception_messages_of_a_request_are_hidden_by_default(tmp_path, capsys, texts):
    logs.set_up("INFO", tmp_path, colors=False, texts=texts)
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        for log in (structlog.get_logger("app.access"), logging.getLogger("some.library")):
            try:
                failing(PRIVATE)
            except RuntimeError as error:
                log.exception("the request failed")
                log.error("again", exc_info=error)
    for line in lines(tmp_path):
        assert (PRIVATE in line["exception"]) is texts
        for word in ("RuntimeError", "ValueError", "in failing"):
            assert word in line["exception"]
    assert len(lines(tmp_path)) == 4
    console = capsys.readouterr().err
    assert (PRIVATE in console) is texts
    assert console.count("RuntimeError") >= 4


def test_exception_outside_a_request_is_logged_with_its_message(tmp_path):
    logs.set_up("INFO", tmp_path, colors=False)
    try:
        failing("the weights")
    except RuntimeError:
        logging.getLogger("app.engines.manager").exception("the engine failed to start")
    assert "the weights" in lines(tmp_path)[0]["exception"]


def test_outline_names_every_exception_of_a_group():
    group = ExceptionGroup("all of these", [ValueError("1ne"), ExceptionGroup("some", [KeyError("2wo")])])
    outline = logs.outline(group)
    assert [name in outline for name in ("ExceptionGroup", "ValueError", "KeyError")] == [True] * 3
    assert not [word for word in ("all of these", "1ne", "2wo") if word in outline]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"__context__": KeyError()}, True),
        ({"__cause__": KeyError()}, True),
        ({"__context__": KeyError(), "__suppress_context__": True}, False),
    ],
)
def test_outline_names_the_exceptions_that_a_traceback_shows(values, shown):
    error = ValueError()
    for name, value in values.items():
        setattr(error, name, value)
    outline = logs.outline(error)
    assert "ValueError" in outline
    assert ("KeyError" in outline) == shown
