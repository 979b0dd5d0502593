"""The Engine protocol: the interface between an engine and the rest of the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from app.types import AudioChunk, EngineInfo, Load, Reference, Utterance, VoicePrompt


class Engine(Protocol):
    """Generates speech. All calls must come from one event loop.

    The start of `async with` starts the engine. The end of `async with` ends the engine's threads and frees the
    engine's memory.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def load(self) -> Load: ...

    @property
    def healthy(self) -> bool:
        """Whether the engine can speak. False = the engine can't speak until the server restarts."""

    def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        """Yield the audio of one utterance in chunks, while the engine generates it.

        `aclose()` cancels the utterance within one frame. May raise Busy before the first chunk, and EngineError at any
        time.
        """

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        """Encode a reference recording as a voice prompt of this engine. Raises NotSupported, BadReference."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
