"""`GET /keys` lists the API keys. `GET /usage` returns the usage of each key per day and model."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from pydantic import BeforeValidator

from app.api.errors import problems
from app.api.responses import KeyEntry, KeyList, UsageList, UsageRow
from app.errors import InvalidValue

if TYPE_CHECKING:
    from app.api.auth import Gate
    from app.usage import UsageStore

DEFAULT_DAYS = 30  # how many days an answer covers if the request has no `from`


def _iso(value: object) -> object:
    """Refuse texts that are not YYYY-MM-DD, because pydantic would read a number as a Unix time. Raises ValueError."""
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError("a day is YYYY-MM-DD")
    return value


Day = Annotated[date, BeforeValidator(_iso)]


def router(usage: UsageStore, gate: Gate) -> APIRouter:
    """Create the routes for API keys and usage."""
    routes = APIRouter(tags=["system"], route_class=gate.route("admin"))

    @routes.get("/keys")
    async def list_keys() -> KeyList:
        """List the names, scopes and limits of the API keys. The keys themselves are not stored."""
        return KeyList(data=[KeyEntry.of(key) for key in gate.all_keys()])

    @routes.get("/usage", operation_id="get_usage", responses=problems(400, 507))
    async def get_usage(
        first: Annotated[
            Day | None, Query(alias="from", description="The first day (UTC). Default: 29 days before `to`.")
        ] = None,
        last: Annotated[Day | None, Query(alias="to", description="The last day (UTC). Default: today.")] = None,
    ) -> UsageList:
        """Get the requests, characters and seconds of audio per day, API key and model. The texts are not stored."""
        last = last or datetime.now(UTC).date()
        first = first or date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS + 1))
        if first > last:
            raise InvalidValue("`from` must not be after `to`.", param="from")
        rows = await asyncio.to_thread(usage.read, first, last)
        return UsageList(
            data=[
                UsageRow(
                    day=row.day,
                    key=row.key or None,
                    model=row.model,
                    requests=row.requests,
                    characters=row.characters,
                    seconds=round(row.seconds, 3),
                )
                for row in rows
            ]
        )

    return routes
