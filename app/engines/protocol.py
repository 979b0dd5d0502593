"""The Engine protocol: the interface that every engine implements, and that the generator and the API use."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from app.types import AudioChunk, EngineInfo, Load, Reference, Utterance, VoicePrompt


class Engine(Protocol):
    """Generates speech. Used from one event loop.

    `async with` starts the engine, and frees its threads and memory at the end.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def load(self) -> Load: ...

    @property
    def healthy(self) -> bool:
        """False once the engine can't speak until the server restarts."""

    def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        """Yield the audio of one utterance during its generation. `aclose()` cancels it within one frame.

        Raises Busy only before the first chunk, and EngineError at any time.
        """

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        """Encode a reference recording as a voice prompt of this engine. Raises NotSupported, BadReference."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
