"""The Engine protocol: the interface between the generator and the API on one side and all engines on the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from app.types import AudioChunk, EngineInfo, Load, Reference, Utterance, VoicePrompt


class Engine(Protocol):
    """Something that speaks. Used from one event loop; `async with` frees its threads and memory."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def load(self) -> Load: ...

    @property
    def healthy(self) -> bool:
        """False once it cannot speak without a restart of the server."""

    def speak(self, utterance: Utterance) -> AsyncGenerator[AudioChunk]:
        """Audio of one utterance while it is generated. `aclose()` cancels it within one frame.

        Raises Busy before the first chunk or never; EngineError at any point.
        """

    async def encode_reference(self, reference: Reference) -> VoicePrompt:
        """Turn a reference recording into this engine's prompt. Raises NotSupported, BadReference."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
