"""`/models/{id}/weights` downloads weights while the server runs. `/hub-token` deletes the saved Hugging Face token."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Response
from pydantic import Field, SecretStr

from app.api.errors import problems
from app.api.requests import ReportedBody
from app.api.responses import (
    IGNORED_HEADER,
    DeletedToken,
    ErrorCode,
    ModelWeights,
    TokenState,
    WeightBytes,
    WeightDownload,
    WeightSource,
    WeightTips,
)
from app.api.routes.models import model_state, served
from app.errors import NotStored
from app.weights.hub_token import delete_token, find_token

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.model_manager import ModelManager
    from app.engines.weight_downloads import Fault, WeightDownloads, WeightsState
    from app.settings import Settings
    from app.weights.hub_token import HubToken

MAX_TOKEN_CHARS = 1_000


class WeightsBody(ReportedBody):
    """The body of a request to download weights: where to get them, and with which token."""

    source: Annotated[
        str | None, Field(description="One of the repositories in `sources`. Default: the first that can be read.")
    ] = None
    token: Annotated[
        SecretStr | None,
        Field(max_length=MAX_TOKEN_CHARS, description="A Hugging Face token. Default: the token of the server."),
    ] = None
    save_token: Annotated[
        bool,
        Field(description="Save the token on the server, readable for the server's user only, for later downloads."),
    ] = False


def router(manager: ModelManager, weights: WeightDownloads, settings: Settings, gate: Gate) -> APIRouter:
    """Create the routes of weights and of the saved token."""
    routes = APIRouter(tags=["models"], route_class=gate.route("admin"))

    def model_of(model_id: str) -> str:
        return served(model_id, manager)

    async def described(model: str) -> ModelWeights:
        found = await weights.state(model)
        status, detail = model_state(manager, model)
        return ModelWeights(
            object="model.weights",
            model=model,
            state=found.state,
            status=status,
            detail=detail,
            files=WeightBytes(total_bytes=found.total_bytes, done_bytes=found.done_bytes),
            free_bytes=found.free_bytes,
            sources=[
                WeightSource(
                    repository=each.repository,
                    gated=each.gated,
                    licence_url=each.licence_url,
                    bytes=each.total_bytes,
                    done_bytes=each.done_bytes,
                    needs_token=each.gated and not _is_usable(found),
                )
                for each in found.sources
            ],
            token=_token_state(found.token),
            download=_download(found),
            hub=_code(found.hub),
            commands=_tips(
                found, settings, default=manager.requested.model_id == model, name=manager.of(model).requested.name
            ),
        )

    @routes.get("/models/{model_id:path}/weights", responses=problems(404))
    async def get_weights(model_id: str) -> ModelWeights:
        """Get the state of a model's weights: what is on the disk, and where the missing files can be downloaded."""
        return await described(model_of(model_id))

    @routes.post(
        "/models/{model_id:path}/weights",
        status_code=202,
        responses={202: IGNORED_HEADER, **problems(400, 404, 409, 503, 507)},
    )
    async def download_weights(model_id: str, response: Response, body: WeightsBody | None = None) -> ModelWeights:
        """Download the missing weights of a model in the background, and load the model after that.

        Before the response is sent, the hub checks the token, and the server checks the free disk space. If an earlier
        download was stopped, the new one continues it.
        """
        model, body = model_of(model_id), body or WeightsBody()
        await weights.start(
            model,
            source=(body.source or "").strip(),
            token=body.token.get_secret_value() if body.token else "",
            save=body.save_token,
        )
        body.name_ignored(response)
        return await described(model)

    @routes.post("/models/{model_id:path}/weights/cancel", responses=problems(404, 409))
    async def cancel_weights(model_id: str) -> ModelWeights:
        """Stop the download of a model's weights. The next download continues with the bytes on the disk."""
        model = model_of(model_id)
        await weights.cancel(model)
        return await described(model)

    @routes.delete("/hub-token", responses=problems(507))
    async def delete_hub_token() -> DeletedToken:
        """Delete the saved Hugging Face token. The response shows which other token the server has, if any."""
        try:
            deleted = await asyncio.to_thread(delete_token, settings)
        except OSError as error:
            raise NotStored(f"The token could not be deleted ({error.strerror}).") from error
        left = await asyncio.to_thread(find_token, settings)
        return DeletedToken(object="hub_token.deleted", deleted=deleted, token=_token_state(left))

    return routes


def _token_state(token: HubToken) -> TokenState:
    return TokenState.model_validate({"present": bool(token.text), "from": token.origin if token.text else None})


def _is_usable(found: WeightsState) -> bool:
    """Whether the server has a token that the hub has not refused."""
    return bool(found.token.text) and (found.hub is None or found.hub.code != "hub_token_invalid")


def _code(fault: Fault | None) -> ErrorCode | None:
    return None if fault is None else ErrorCode(code=fault.code, message=fault.message)


def _download(found: WeightsState) -> WeightDownload | None:
    if found.download is None:
        return None
    progress = found.download.progress
    return WeightDownload(
        repository=progress.source,
        file=progress.file,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        bytes_per_s=progress.rate_bytes_s,
        eta_s=progress.eta_s,
        error=_code(found.download.fault),
    )


def _tips(found: WeightsState, settings: Settings, *, default: bool, name: str) -> WeightTips:
    """Return commands and settings with which the server gets the weights when it is started again.

    default: whether the model is the default model of the server. name: the name of the engine that runs the model.
    """
    variables = {"TTS_ENGINE": name} if default else {}
    open_source = next((each for each in found.sources if not each.gated), None)
    if open_source is not None and open_source is not found.sources[0]:
        variables[found.setting] = open_source.repository
    elif open_source is None and found.sources:
        variables["HF_TOKEN"] = "hf_your_token"  # noqa: S105 # nosec B105
    if settings.data_dir != type(settings).model_fields["data_dir"].default:
        folder = {"TTS_DATA_DIR": str(settings.data_dir)}
    else:
        folder = {}
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in (folder | variables).items())
    lines = [*([f"export {exports}"] if exports else []), ".venv/bin/python -m app.cli serve"]
    compose = [
        "services:",
        "  tts:",
        "    environment:",
        *(f"      {key}: {value}" for key, value in variables.items()),
    ]
    return WeightTips(  # nosec B604
        shell="\n".join(lines),
        env="\n".join(f"{key}={value}" for key, value in variables.items()),
        compose="\n".join(compose if variables else compose[:2]),
    )
