"""The exception classes of all errors. Each error message says what is wrong and what to do.

SpeechError
├── RequestError                 the request is wrong; sending it again unchanged fails again
│   ├── UnknownVoice             ├── UnsupportedFormat
│   ├── TextTooLong              ├── UnsupportedParameter
│   ├── EmptyText                ├── BadReference (a recording can't be used)
│   ├── TooManySpeakers          ├── NotSupported (the engine or the server lacks this feature)
│   ├── UnknownModel             ├── BodyTooLarge
│   ├── NotFound                 ├── InvalidValue
│   ├── Unauthorized             ├── Forbidden (the API key lacks the scope)
│   ├── Unfetchable (a URL can't be downloaded; `code` says why)
│   ├── HubRefused (the Hugging Face hub does not give the files of a model; `code` says why)
│   ├── ForeignPage (a web page of another origin sent the request)
│   ├── ForeignHost (a web page sent the request to a name that is not the server's)
│   ├── Conflict (the object is in a state in which this request is not possible)
│   ├── PreconditionFailed (the object has changed since the caller read it)
│   ├── RangeNotSatisfiable (the header Range begins after the end of the file)
│   ├── BadAdapter (a LoRA adapter can't be used)
│   ├── BadBook (the file of a book can't be read; `code` says why)
│   ├── VoiceNotSupported (the engine can't clone voices)
│   └── VoiceNeedsWords  (the words of the voice's recording are unknown)
├── Busy                         the queue is full; try again after `retry_after_s`
│   └── RateLimited              the API key has reached its rate limit
├── NotReady                     the engine is starting, or no engine runs; the message says why
│   ├── VoiceNotReady            the fallback engine runs, and it can't clone voices
│   └── HubUnreachable           the Hugging Face hub does not answer
├── NotStored                    the disk is full or read-only
│   └── TooLittleDisk            the free disk space is too small for the files of a model
├── DamagedVoice                 the files of a voice have changed since they were stored
└── EngineError                  the engine failed
    ├── OutOfMemory              the request needs more memory than the device has
    ├── EngineStopped            the server stops, or the thread of the engine has ended
    ├── NothingSpoken            the engine produced no audio for a text with words
    └── SpeechTooShort           the engine left out a part of the text, with two different seeds

EngineUnavailable is not a SpeechError. EngineUnavailable is raised when an engine is started, and says why the engine
can't run (for example because its weights are missing).

`api/errors.py` maps these classes to HTTP statuses. No code compares the text of messages.
"""

from __future__ import annotations


class SpeechError(Exception):
    """An error with a message for the caller. `param` names the request field that is wrong. `code` names the
    kind of error for programs.
    """

    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(SpeechError):
    """The request is wrong. Sending it again unchanged fails again."""


class EmptyText(RequestError):
    code = "empty_input"


class TextTooLong(RequestError):
    code = "string_too_long"


class UnknownVoice(RequestError):
    code = "voice_not_found"


class UnknownModel(RequestError):
    code = "model_not_found"


class BadAdapter(RequestError):
    """A LoRA adapter can't be used. The message says why."""

    code = "bad_adapter"


class BadBook(RequestError):
    """The file of a book can't be read. `books/book.py` has a subclass with a `code` for each reason."""

    code = "book_not_readable"


class UnsupportedFormat(RequestError):
    code = "unsupported_format"


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class TooManySpeakers(RequestError):
    code = "too_many_speakers"


class BadReference(RequestError):
    code = "bad_reference"


class NotSupported(RequestError):
    code = "not_supported"


class InvalidValue(RequestError):
    code = "invalid_value"


class NotFound(RequestError):
    """No object with the requested id exists."""

    code = "not_found"


class Conflict(RequestError):
    """The object is in a state in which this request is not possible. `code` says why."""

    code = "conflict"

    def __init__(self, message: str, *, param: str | None = None, code: str = "conflict") -> None:
        super().__init__(message, param=param)
        self.code = code


class PreconditionFailed(RequestError):
    """The object has changed since the caller read it, so the header If-Match names an older state."""

    code = "precondition_failed"


class RangeNotSatisfiable(RequestError):
    """The header Range begins after the end of the file."""

    code = "range_not_satisfiable"

    size_bytes = 0  # of the file


class VoiceNotSupported(RequestError):
    code = "voice_not_supported_by_engine"


class VoiceNeedsWords(RequestError):
    """The engine needs the words of the voice's recording, and the server does not know them."""

    code = "voice_needs_words"


class Unfetchable(RequestError):
    """A URL can't be downloaded. `voices/youtube.py` has a subclass with a `code` for each reason."""

    code = "unfetchable"


class HubRefused(RequestError):
    """The Hugging Face hub does not give the files of a model. `code` says why: see WeightsUnavailable."""

    code = "weights_unavailable"

    def __init__(self, message: str, *, param: str | None = None, code: str = "weights_unavailable") -> None:
        super().__init__(message, param=param)
        self.code = code


class BodyTooLarge(RequestError):
    code = "request_too_large"


class Unauthorized(RequestError):
    code = "invalid_api_key"


class Forbidden(RequestError):
    code = "missing_scope"


class ForeignPage(RequestError):
    code = "cross_origin"


class ForeignHost(RequestError):
    code = "host_not_allowed"


class Busy(SpeechError):
    """The queue is full. This error is raised only before the first audio of an answer."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Busy):
    """An API key has reached its rate limit or its limit of running requests."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: int = 1,
        reason: str = "rate",
        limit: int | None = None,
        reset_s: float = 0,
    ) -> None:
        """Create the error.

        reason: `rate` or `concurrency`. limit: the number of requests that the key may make per minute; None for
        `concurrency`. reset_s: seconds until the key may make all its requests per minute again.
        """
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason
        self.limit = limit
        self.reset_s = reset_s


class NotReady(SpeechError):
    """No engine can answer now: the engine is still starting, or no engine can run. The message says why."""

    code = "engine_not_ready"

    def __init__(self, message: str, *, retry_after_s: int = 5, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class VoiceNotReady(NotReady):
    """The voice is cloned, and the fallback engine that runs now can't clone voices."""

    code = "voice_not_supported_by_engine"


class HubUnreachable(NotReady):
    """The Hugging Face hub does not answer."""

    code = "hub_unreachable"


class NotStored(SpeechError):
    code = "storage_error"


class TooLittleDisk(NotStored):
    """The free disk space is too small for the files of a model. Nothing was downloaded."""

    code = "not_enough_disk_space"


class DamagedVoice(SpeechError):
    code = "voice_damaged"


class EngineError(SpeechError):
    code = "engine_error"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class EngineStopped(EngineError):
    code = "engine_stopped"


class NothingSpoken(EngineError):
    code = "nothing_spoken"


class SpeechTooShort(EngineError):
    """In each attempt, the engine ended the speech long before the end of the text."""

    code = "speech_too_short"


class EngineUnavailable(Exception):
    """An engine can't run on this machine now. `reason` says why, and `remedy` says what the operator can do."""

    def __init__(self, reason: str, *, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class TooLittleMemory(EngineUnavailable):
    """The free memory of a device is too small for the engine."""


class WeightsUnavailable(EngineUnavailable):
    """The weights are not on disk and can't be downloaded: no network, no access, an unknown id, or a full disk.

    `code` names the reason for programs: `hub_token_missing`, `hub_token_invalid`, `hub_licence_not_accepted`,
    `hub_offline`, `hub_unreachable`, `not_enough_disk_space`, or `weights_unavailable` for all other reasons.
    """

    def __init__(self, reason: str, *, remedy: str = "", code: str = "weights_unavailable") -> None:
        super().__init__(reason, remedy=remedy)
        self.code = code
