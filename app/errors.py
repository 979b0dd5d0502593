"""Every failure as a typed error, with a message that says what to do.

SpeechError
├── RequestError                 the request can't be answered as it is
│   ├── UnknownVoice             ├── UnsupportedFormat
│   ├── TextTooLong              ├── UnsupportedParameter
│   ├── EmptyText                ├── BadReference
│   ├── TooManySpeakers          ├── NotSupported (this engine or this version has no such thing)
│   ├── UnknownModel             ├── BodyTooLarge
│   ├── NotFound                 ├── InvalidValue
│   ├── Unauthorized             ├── Forbidden (the key is right, but may not do this)
│   ├── Unfetchable (what an address leads to can't be had; `code` says why)
│   ├── ForeignPage (a web page of another origin may not ask for this)
│   └── VoiceNotSupported (this engine can't speak with a recorded voice)
├── Busy                         the queue is full; come back in retry_after_s
│   └── RateLimited              there is room, but not for this key
├── NotReady                     the engine is still starting, or there is none; reason in words
│   └── VoiceNotReady            an engine stands in that can't speak with a recorded voice
├── NotStored                    the disk is full, or read-only
├── DamagedVoice                 a voice's files are not what they were when they were stored
└── EngineError                  the engine failed
    ├── OutOfMemory              repeating the request will not help
    ├── EngineStopped            the server is shutting down or the engine's thread is gone
    └── NothingSpoken            the engine made no sound for a text that has words

EngineUnavailable is not a SpeechError: it says at start-up why an engine can't be had (weights missing, no disk).

Raised where the fact is known; mapped to HTTP in one table, `api/errors.py`. No code matches on message text.
"""

from __future__ import annotations


class SpeechError(Exception):
    """A failure with a message for the caller. `param` names the request field at fault, `code` is for machines."""

    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(SpeechError):
    """The request itself is at fault; sending it again unchanged will fail again."""


class EmptyText(RequestError):
    code = "empty_input"


class TextTooLong(RequestError):
    code = "string_too_long"


class UnknownVoice(RequestError):
    code = "voice_not_found"


class UnknownModel(RequestError):
    code = "model_not_found"


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
    """What is asked for by its id is not there."""

    code = "not_found"


class VoiceNotSupported(RequestError):
    code = "voice_not_supported_by_engine"


class Unfetchable(RequestError):
    """What an address leads to can't be had. Each kind of reason is a subclass with a code, where it is found out."""

    code = "unfetchable"


class BodyTooLarge(RequestError):
    code = "request_too_large"


class Unauthorized(RequestError):
    code = "invalid_api_key"


class Forbidden(RequestError):
    code = "missing_scope"


class ForeignPage(RequestError):
    code = "cross_origin"


class Busy(SpeechError):
    """The queue is full. Raised before the first sound or not at all."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Busy):
    """A key has used what it may. reason: `rate` or `concurrency`; limit: requests a minute, all of which are there
    again after reset_s."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: int = 1,
        reason: str = "rate",
        limit: int | None = None,
        reset_s: float = 0,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason
        self.limit = limit
        self.reset_s = reset_s


class NotReady(SpeechError):
    """No engine can answer now: starting (retry_after_s says when to look again) or unavailable for a reason."""

    code = "engine_not_ready"

    def __init__(self, message: str, *, retry_after_s: int = 5, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class VoiceNotReady(NotReady):
    """The engine that could speak with this voice does not run now, another stands in for it."""

    code = "voice_not_supported_by_engine"


class NotStored(SpeechError):
    code = "storage_error"


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


class EngineUnavailable(Exception):
    """An engine can't be had on this machine now. `reason` says what is wrong, `remedy` what a person can do."""

    def __init__(self, reason: str, *, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class WeightsUnavailable(EngineUnavailable):
    """The model's files are neither on disk nor downloadable (no network, gated, unknown, no room)."""
