"""Who answers for whom: the servers behind a model's name, and an operator's word that one of them shall get nothing new."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire.errors import NotFound
from ..wire.fields import bad, read
from .bodies import read_object
from .replies import json_reply
from .services import Pool

routes = APIRouter()


@routes.get("/v1/replicas")
async def replicas(request: Request) -> Response:
    """All replicas of all models."""
    pools = request.app.state.life.require().pools
    return json_reply({"object": "list", "data": [_told(pool, one) for pool in pools for one in pool.replicas.values()]})


@routes.post("/v1/replicas")
async def drain(request: Request) -> Response:
    """`name` of a replica, as the list has it, with `drain`: true gives it nothing new, false takes it back.

    What it is answering it brings to its end.
    """
    body = await read_object(request)
    name, model, closed = read(body, "name", str), read(body, "model", str), read(body, "drain", bool)
    if not name or closed is None:
        raise bad("name" if not name else "drain", "must be given")
    pools = request.app.state.life.require().pools
    found = [pool for pool in pools if name in pool.replicas and model in (None, pool.models[0].id)]
    if not found:
        raise NotFound("There is no such replica.", param="name")
    for pool in found:
        pool.drain(name, closed=closed)
    return json_reply({"object": "list", "data": [_told(pool, pool.replicas[name]) for pool in found]})


def _told(pool: Pool, one: Any) -> dict[str, Any]:
    state = "draining" if one.is_closed and one.state == "up" else one.state
    counts = {"in_flight": one.in_flight, "answered": one.answered, "failed": one.failed, "downs": one.downs}
    return {"object": "replica", "model": pool.models[0].id, "name": one.name, "state": state, **counts}
