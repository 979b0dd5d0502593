"""The lists of models: `/models` in OpenAI's format, and `/audio/models` in the format of Open WebUI."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import JSONResponse

from app.api.errors import problems
from app.api.responses import OUTPUT_RATE_HZ, AudioModelList, Model, ModelList, ModelStatus, ModelVoice, NamedModel
from app.api.routes.voices import listed
from app.engines.manager import describe
from app.errors import NotSupported, UnknownModel
from app.generator.resolving import MODEL_ALIASES, find_model, split_adapter

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.adapters import Adapter, AdapterRegistry
    from app.engines.model_manager import ModelManager
    from app.types import EngineInfo, Voice
    from app.voices.store import VoiceStore

# The `created` time of every model: March 2025, when CSM-1B was published. Clients only check that this time is a
# number.
CREATED = 1_742_000_000


class ModelIdConvertor(PathConvertor):
    """The id of a model in a path. An id may contain slashes, but it does not end with an action such as `/load`."""

    regex = ".*(?<!/load)(?<!/unload)(?<!/weights)(?<!/weights/cancel)"


register_url_convertor("model", ModelIdConvertor())


def router(
    manager: ModelManager, voices: VoiceStore, adapters: AdapterRegistry, gate: Gate, max_input_chars: int
) -> APIRouter:
    """Create the routes that list models."""
    routes = APIRouter(tags=["models"], route_class=gate.route(None))
    admin = APIRouter(tags=["models"], route_class=gate.route("admin"))

    def known(caller: Request) -> list[str]:
        shown = adapters.all() if gate.shows_cloned(caller) else ()
        adapted = [f"{each.model}:{each.name}" for each in shown if each.model in manager.model_ids]
        return [*manager.model_ids, *adapted, *MODEL_ALIASES]

    def model(model_id: str, shown: list[Voice]) -> Model:
        base, name = split_adapter(model_id, adapters)
        found = _model(base, manager, shown, max_input_chars)
        adapter = adapters.find(name) if name else None
        return found if adapter is None else _with_adapter(found, adapter, model_id)

    @routes.get("/models", response_model=ModelList)
    async def list_models(caller: Request) -> ModelList | JSONResponse:
        """List every model id that a speech request can use."""
        if "xi-api-key" in caller.headers and "authorization" not in caller.headers:  # a client of ElevenLabs
            names = known(caller)
            return JSONResponse([{"model_id": name, "name": name, "can_do_text_to_speech": True} for name in names])
        shown = await listed(voices, gate, caller)
        return ModelList(object="list", data=[model(model_id, shown) for model_id in known(caller)])

    @routes.get("/models/{model_id:model}", responses=problems(404))
    async def retrieve_model(model_id: str, caller: Request) -> Model:
        """Get one model."""
        try:
            found = find_model(model_id, manager, adapters)
        except UnknownModel as error:
            raise UnknownModel(
                f"The model '{model_id[:80]}' does not exist. GET /v1/models lists the models.", param="model"
            ) from error
        usual = found if found in manager.model_ids else MODEL_ALIASES[0]
        if name := split_adapter(model_id, adapters)[1]:
            usual = f"{usual}:{name}"
        return model(usual, await listed(voices, gate, caller)).model_copy(update={"id": model_id})

    @routes.get("/audio/models")
    async def list_audio_models(caller: Request) -> AudioModelList:
        """List the models of `/models` in the format that Open WebUI and other clients read."""
        shown = await listed(voices, gate, caller)
        data = [model(model_id, shown) for model_id in known(caller)]
        named = [
            NamedModel(id=each.id, name=each.id, description=each.description, max_input_length=each.max_input_length)
            for each in data
        ]
        return AudioModelList(object="list", models=named, data=data)

    @admin.post("/models/{model_id:path}/load", responses=problems(404, 503))
    async def load_model(model_id: str, caller: Request) -> Model:
        """Load a model into memory, and get its entry in the list. If an earlier load has failed, the load is repeated.

        With the id of a LoRA adapter, load the adapter and the model that the adapter changes.
        """
        base, name = split_adapter(model_id, adapters)
        found = served(base, manager)
        await manager.load_model(found)
        if (adapter := adapters.find(name) if name else None) is not None and adapter.model == found:
            await adapters.load_at_start()
            found = f"{found}:{name}"
        return model(found, await listed(voices, gate, caller))

    @admin.post("/models/{model_id:path}/unload", responses=problems(400, 404, 429))
    async def unload_model(model_id: str, caller: Request) -> Model:
        """Unload a model when all its running answers have ended. Return the model's entry in the list of models."""
        base, name = split_adapter(model_id, adapters)
        if name:
            raise NotSupported(
                f"{model_id[:80]!r} is a LoRA adapter, which is unloaded with its model. Unload "
                f"`{served(base, manager)}`, or remove the adapter with DELETE /v1/audio/adapters/{name}.",
                param="model",
            )
        found = served(model_id, manager)
        await manager.unload_model(found)
        return model(found, await listed(voices, gate, caller))

    routes.routes.extend(admin.routes)
    return routes


def served(model_id: str, manager: ModelManager) -> str:
    """Return the id of the model with this name. Raises UnknownModel if this process does not serve the model."""
    found = find_model(model_id, manager) or manager.requested.model_id
    if found not in manager.model_ids:
        raise UnknownModel(
            f"The model `{found}` is not served here. GET /v1/models lists the models of this server.",
            param="model",
        )
    return found


def model_state(manager: ModelManager, model_id: str) -> tuple[ModelStatus, str]:
    """Return two values: the state of a model; the reason why the model is not ready, or "" if it is ready."""
    own = manager.of(model_id)
    status = own.status()
    requested = model_id == own.requested.model_id
    replaced = requested and status.running is not None and status.running != status.requested
    if status.running is not None and not replaced and status.state != "unhealthy":
        return "ready", ""
    detail = status.reason
    if replaced and status.running is not None:
        detail = f"{status.running.model_id} runs instead. {status.reason}"
    if status.state == "unloaded":
        return "unloaded", "The next request for this model loads it."
    if status.state == "starting":
        return "loading", describe(status)
    missing = status.missing_weights and (requested or status.running is None)
    return "missing_weights" if missing else "failed", detail


def _model(model_id: str, manager: ModelManager, voices: list[Voice], max_input_chars: int) -> Model:
    """Return the entry of one model in a list of models, with the state of the model."""
    own = manager.of(model_id)
    state, detail = model_state(manager, model_id)
    alias = model_id in MODEL_ALIASES
    loaded = own.current if state == "ready" else None
    info = None if loaded is None else loaded.info
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
        loaded=loaded is not None,
        bytes=None if loaded is None else own.loaded_bytes,
        parameters=list(info.capabilities.names) if info else None,
        default_voice=manager.default_voice(model_id),
        max_speakers=info.text.max_speakers if info else None,
        clones=info.can_clone if info else None,
        sounds=sorted(info.text.sounds) if info else None,
        languages=list(info.languages) if info and not alias else None,
        defaults=_defaults(info) if info else None,
        alias=alias,
        description=_description(model_id, manager, alias=alias),
        max_input_length=max_input_chars,
    )


def _with_adapter(base: Model, adapter: Adapter, model_id: str) -> Model:
    """Return the entry of a model with a LoRA adapter. base: the entry of the model without the adapter."""
    changes: dict[str, object] = {
        "id": model_id,
        "adapter_of": base.id,
        "default_voice": adapter.name,
        "description": f"{base.description}, with the LoRA adapter {adapter.name}",
    }
    if base.status == "ready" and adapter.status != "ready":
        changes |= {"status": adapter.status, "detail": adapter.error or "The adapter is being loaded."}
    return base.model_copy(update=changes)


def _description(model_id: str, manager: ModelManager, *, alias: bool) -> str:
    """Return the description of a model in words."""
    if alias:
        return f"OpenAI's name for the model {manager.default.model_ids[-1]} of this server"
    status = manager.of(model_id).status()
    known = {spec.model_id: spec.description for spec in (status.requested, status.running) if spec is not None}
    return known.get(model_id) or f"The model of the engine {model_id}"


def _defaults(info: EngineInfo) -> dict[str, float]:
    """Return the sampling parameters of a request that sets none of them."""
    found = {each.name: getattr(info.defaults, each.name) for each in fields(info.defaults)}
    return {name: value for name, value in found.items() if value is not None}
