"""`/models` as OpenAI lists them, and `/audio/models` as Open WebUI asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from app.api.routes.voices import fresh
from app.errors import UnknownModel
from app.generator.resolving import MODEL_ALIASES

if TYPE_CHECKING:
    from app.engines.manager import EngineManager
    from app.voices.store import VoiceStore

CREATED = 1_742_000_000  # March 2025, when CSM-1B was published; clients only want a number
OUTPUT_RATE_HZ = 24_000


def router(host: EngineManager, voices: VoiceStore) -> APIRouter:
    routes = APIRouter(tags=["models"])

    def entry(model_id: str) -> dict[str, Any]:
        status = host.status()
        requested = model_id == host.requested.model_id
        stands_in = requested and status.running is not None and status.running != status.requested
        ready = status.running is not None and not stands_in and status.state != "unhealthy"
        state = (
            "ready"
            if ready
            else "loading"
            if status.state == "starting"
            else "missing_weights"
            if status.missing_weights and (requested or status.running is None)
            else "failed"
        )
        info = host.current.info if ready and host.current is not None else None
        detail = status.reason
        if stands_in and status.running is not None:
            detail = f"{status.running.model_id} answers in its place. {status.reason}"
        return {
            "id": model_id,
            "object": "model",
            "created": CREATED,
            "owned_by": "tts-server",
            "task": "text-to-speech",
            "sample_rate": OUTPUT_RATE_HZ,
            "voices": [{"name": voice.id, "language": voice.language} for voice in voices.all()],
            "status": state,
            "detail": "" if ready else detail,
            "parameters": list(info.capabilities.names) if info else None,
            "max_speakers": info.text.max_speakers if info else None,
            "clones": info.can_clone if info else None,
        }

    def known() -> list[str]:
        return [*host.model_ids, *MODEL_ALIASES]

    @routes.get("/models")
    async def list_models() -> dict[str, Any]:
        """Every id that a speech request may name."""
        await fresh(voices)
        return {"object": "list", "data": [entry(model_id) for model_id in known()]}

    @routes.get("/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        if model_id not in known():
            raise UnknownModel(f"The model '{model_id[:80]}' does not exist", param="model")
        await fresh(voices)
        return entry(model_id)

    @routes.get("/audio/models")
    async def list_audio_models() -> dict[str, Any]:
        """The same models in the shapes that Open WebUI and others read."""
        await fresh(voices)
        data = [entry(model_id) for model_id in known()]
        return {"object": "list", "models": [{"id": item["id"], "name": item["id"]} for item in data], "data": data}

    return routes
