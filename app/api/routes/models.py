"""The lists of models: `/models` in OpenAI's format, and `/audio/models` in the format of Open WebUI."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app.api.errors import problems
from app.api.responses import OUTPUT_RATE_HZ, AudioModelList, Model, ModelList, ModelVoice, NamedModel
from app.api.routes.voices import listed
from app.errors import UnknownModel
from app.generator.resolving import MODEL_ALIASES, find_model

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.manager import EngineManager
    from app.types import EngineInfo, Voice
    from app.voices.store import VoiceStore

# The `created` time of every model: March 2025, when CSM-1B was published. Clients only check that this time is a
# number.
CREATED = 1_742_000_000


def router(manager: EngineManager, voices: VoiceStore, gate: Gate, max_input_chars: int) -> APIRouter:
    """Create the routes that list models."""
    routes = APIRouter(tags=["models"], route_class=gate.route(None))

    def known() -> list[str]:
        return [*manager.model_ids, *MODEL_ALIASES]

    def model(model_id: str, shown: list[Voice]) -> Model:
        return _model(model_id, manager, shown, max_input_chars)

    @routes.get("/models", response_model=ModelList)
    async def list_models(caller: Request) -> ModelList | JSONResponse:
        """List every model id that a speech request can use."""
        if "xi-api-key" in caller.headers and "authorization" not in caller.headers:  # a client of ElevenLabs
            return JSONResponse([{"model_id": name, "name": name, "can_do_text_to_speech": True} for name in known()])
        shown = await listed(voices, gate, caller)
        return ModelList(object="list", data=[model(model_id, shown) for model_id in known()])

    @routes.get("/models/{model_id:path}", responses=problems(404))
    async def retrieve_model(model_id: str, caller: Request) -> Model:
        """Get one model."""
        try:
            found = find_model(model_id, manager)
        except UnknownModel as error:
            raise UnknownModel(
                f"The model '{model_id[:80]}' does not exist. GET /v1/models lists the models.", param="model"
            ) from error
        usual = found if found in manager.model_ids else MODEL_ALIASES[0]
        return model(usual, await listed(voices, gate, caller)).model_copy(update={"id": model_id})

    @routes.get("/audio/models")
    async def list_audio_models(caller: Request) -> AudioModelList:
        """List the models of `/models` in the format that Open WebUI and other clients read."""
        shown = await listed(voices, gate, caller)
        data = [model(model_id, shown) for model_id in known()]
        named = [
            NamedModel(id=each.id, name=each.id, description=each.description, max_input_length=each.max_input_length)
            for each in data
        ]
        return AudioModelList(object="list", models=named, data=data)

    return routes


def _model(model_id: str, manager: EngineManager, voices: list[Voice], max_input_chars: int) -> Model:
    """Return the entry of one model in a list of models, with the state of the model."""
    status = manager.status()
    requested = model_id == manager.requested.model_id
    replaced = requested and status.running is not None and status.running != status.requested
    state: Literal["ready", "loading", "missing_weights", "failed"]
    if status.running is not None and not replaced and status.state != "unhealthy":
        state = "ready"
    elif status.state == "starting":
        state = "loading"
    elif status.missing_weights and (requested or status.running is None):
        state = "missing_weights"
    else:
        state = "failed"
    detail = "" if state == "ready" else status.reason
    if replaced and status.running is not None:
        detail = f"{status.running.model_id} runs instead. {status.reason}"
    alias = model_id in MODEL_ALIASES
    info = manager.current.info if state == "ready" and manager.current is not None else None
    return Model(
        id=model_id,
        object="model",
        created=CREATED,
        owned_by="tts-server",
        task="text-to-speech",
        sample_rate=OUTPUT_RATE_HZ,
        voices=[ModelVoice(name=voice.id, language=voice.language) for voice in voices],
        status=state,
        detail=detail,
        parameters=list(info.capabilities.names) if info else None,
        max_speakers=info.text.max_speakers if info else None,
        clones=info.can_clone if info else None,
        sounds=sorted(info.text.sounds) if info else None,
        languages=list(info.languages) if info and not alias else None,
        defaults=_defaults(info) if info else None,
        alias=alias,
        description=_description(model_id, manager, alias=alias),
        max_input_length=max_input_chars,
    )


def _description(model_id: str, manager: EngineManager, *, alias: bool) -> str:
    """Return the description of a model in words."""
    if alias:
        return f"OpenAI's name for the model {manager.model_ids[-1]} of this server"
    status = manager.status()
    known = {spec.model_id: spec.description for spec in (status.requested, status.running) if spec is not None}
    return known.get(model_id) or f"The model of the engine {model_id}"


def _defaults(info: EngineInfo) -> dict[str, float]:
    """Return the sampling parameters of a request that sets none of them."""
    found = {each.name: getattr(info.defaults, each.name) for each in fields(info.defaults)}
    return {name: value for name, value in found.items() if value is not None}
