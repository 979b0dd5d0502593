"""`/audio/adapters`: LoRA adapters, which are loaded and removed while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile as Upload

from app.api.bodies import is_json
from app.api.errors import problems
from app.api.requests import ReportedBody, Speaker
from app.api.responses import IGNORED_HEADER, AdapterList, DeletedAdapter, ListedAdapter, Schema
from app.engines.adapters import MAX_SPEAKER
from app.engines.adapters import Upload as AdapterFiles
from app.errors import InvalidValue

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.engines.adapters import AdapterRegistry

ADAPTERS_PATH = "/audio/adapters"
MAX_FORM_FIELDS = 16


class AdapterBody(ReportedBody):
    """The body of a request that loads an adapter from a repository."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "danish", "source": "me/danish-lora"}]})

    name: Annotated[str, Field(description="The name of the new adapter: letters, digits, '.', '_' and '-'.")]
    source: Annotated[
        str, Field(min_length=1, description="A Hugging Face id: org/name, org/name@revision or org/name/folder.")
    ]
    model: Annotated[
        str | None, Field(description="The id of the model that it changes. Default: the first model with adapters.")
    ] = None
    speaker: Annotated[
        Speaker | None, Field(description="The speaker number of its voice. Default: the model's first.")
    ] = None
    voice: Annotated[
        str | None, Field(description="A cloned voice: the adapter speaks with its recording. Default: no recording.")
    ] = None


_STRING: Schema = {"type": "string"}
# FastAPI can't derive the two kinds of bodies, because the route reads the body itself.
_BODY: Schema = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": AdapterBody.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "adapter", "config"],
                    "properties": {
                        "name": _STRING,
                        "adapter": {**_STRING, "format": "binary", "description": "adapter_model.safetensors"},
                        "config": {**_STRING, "format": "binary", "description": "adapter_config.json"},
                        "model": {**_STRING, "description": "The id of the model that the adapter changes."},
                        "speaker": {"type": "integer", "minimum": 0, "maximum": MAX_SPEAKER},
                        "voice": {**_STRING, "description": "A cloned voice, whose recording the adapter uses."},
                    },
                }
            },
        },
    }
}


def router(adapters: AdapterRegistry, gate: Gate) -> APIRouter:
    """Create the routes of LoRA adapters."""
    routes = APIRouter(tags=["adapters"], route_class=gate.route("admin"))

    @routes.get(ADAPTERS_PATH, operation_id="list_adapters")
    async def list_adapters() -> AdapterList:
        """List all LoRA adapters, whether they come from TTS_ADAPTERS, the folder `models/adapters`, or a request."""
        return AdapterList(object="list", data=[ListedAdapter.of(each) for each in adapters.all()])

    @routes.post(
        ADAPTERS_PATH,
        operation_id="add_adapter",
        openapi_extra=_BODY,
        responses={200: IGNORED_HEADER, **problems(400, 408, 413, 429, 503, 507)},
    )
    async def add_adapter(request: Request, response: Response) -> ListedAdapter:
        """Load a LoRA adapter in the format of PEFT, from a repository or from two uploaded files.

        After the response, speech requests can use the adapter as the model `csm-1b:name` or as the voice `name`.
        """
        if is_json(request.headers):
            body = _validated(await request.json())
            body.name_ignored(response)
            added = await adapters.add(
                body.name, model=body.model or "", source=body.source, speaker=body.speaker, voice=body.voice or ""
            )
        else:
            async with request.form(max_files=4, max_fields=MAX_FORM_FIELDS) as form:
                fields = {name: value for name, value in form.items() if isinstance(value, str)}
                added = await adapters.add(
                    _required(fields, "name"),
                    model=fields.get("model", "").strip(),
                    upload=AdapterFiles(_file(form.get("adapter"), "adapter"), _file(form.get("config"), "config")),
                    speaker=_speaker(fields),
                    voice=fields.get("voice", ""),
                )
        return ListedAdapter.of(added)

    @routes.delete(ADAPTERS_PATH + "/{name}", operation_id="remove_adapter", responses=problems(400, 404, 429))
    async def remove_adapter(name: str) -> DeletedAdapter:
        """Remove a LoRA adapter and its files. Requests that already speak with the adapter end normally."""
        removed = await adapters.remove(name)
        return DeletedAdapter(name=removed.name, object="audio.adapter.deleted", deleted=True)

    return routes


def _validated(content: Any) -> AdapterBody:
    """Return the checked JSON body. Raises RequestValidationError, as FastAPI does for all other bodies."""
    try:
        return AdapterBody.model_validate(content)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults, body=content) from error


def _required(fields: dict[str, str], name: str) -> str:
    if not fields.get(name, "").strip():
        raise InvalidValue(f"`{name}` is missing. Send it as a form field.", param=name)
    return fields[name]


def _file(part: Any, name: str) -> Any:
    if not isinstance(part, Upload):
        files = {"adapter": "adapter_model.safetensors", "config": "adapter_config.json"}
        raise InvalidValue(
            f"`{name}` is missing: send {files[name]} as a file, or send JSON with `source`.", param=name
        )
    return part.file


def _speaker(fields: dict[str, str]) -> int | None:
    text = fields.get("speaker", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text[:4]) > MAX_SPEAKER:
        raise InvalidValue(f"`speaker` must be a number from 0 to {MAX_SPEAKER}.", param="speaker")
    return int(text)
