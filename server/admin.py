"""Health, numbers, and what became of a request."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire.errors import BadRequest, NotFound
from .callers import caller
from .metrics import CONTENT_TYPE
from .pool_metrics import merged
from .replies import json_reply, retry_header
from .services import Life, Pool

routes = APIRouter()
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@routes.get("/health")
async def health(request: Request) -> Response:
    """200 while the server can answer or will when it has drained; 503 with the reason otherwise."""
    life: Life = request.app.state.life
    if life.services is None:
        return _not("starting")
    if not all(engine.stats().alive for engine in life.services.engines().values()):
        return _not("the engine is stuck or has died")
    listed = [_replicas(pool) for pool in life.services.pools]
    return json_reply({"status": "ok"} | ({"replicas": listed} if listed else {}))


def _replicas(pool: Pool) -> dict[str, Any]:
    """How many are up; their addresses are not for everybody: /v1/replicas has them."""
    found = pool.replicas.values()
    return {"model": pool.models[0].id, "up": sum(one.seat.is_open for one in found), "of": len(found)}


@routes.get("/ready")
async def ready(request: Request) -> Response:
    """200 when new requests are taken."""
    life: Life = request.app.state.life
    if life.phase != "ready":
        return _not(life.phase)
    services = life.services
    if services and services.pools and not services.engines() and not any(pool.is_up for pool in services.pools):
        return _not("no replica is up")
    return await health(request)


def _not(reason: str) -> Response:
    return json_reply({"status": "unavailable", "reason": reason}, 503, retry_header(2))


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    services = request.app.state.life.services
    more = [await source() for source in (services.more_metrics if services else ())]
    page = await asyncio.to_thread(request.app.state.metrics.page)  # what is reserved stands on the disk
    return Response(merged(page, more), media_type=CONTENT_TYPE)


@routes.get("/v1/requests/{request_id:path}")
async def one_request(request: Request, request_id: str) -> Response:
    """A request as the ledger knows it: decision, attempts, outcomes, cost."""
    life: Life = request.app.state.life
    if not _ID.fullmatch(request_id):
        raise BadRequest("This is not a request's id.", param="id")
    ledger = life.require().ledger
    found: dict[str, Any] | None = await asyncio.to_thread(_look_up, ledger, request_id) if ledger else None
    if found is None or not caller(request).sees(found.get("key_id")):
        raise NotFound("There is no such request in the ledger.")
    # The database's column names are of a subclass of str.
    return Response(orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")


def _look_up(ledger: Any, request_id: str) -> dict[str, Any] | None:
    ledger.flush()  # a request that has just been answered may still be on its way to the disk
    return ledger.request(request_id)
