"""A request's body, read under the limits: JSON, not compressed, an object."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ..wire import json_body
from ..wire.errors import BadRequest, UnsupportedMedia
from .streaming import ClientGone

OFF_LOOP_BYTES = 262_144  # parsing more than this would hold up every other stream


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body. Raises UnsupportedMedia, BadRequest, ClientGone; Unavailable while the server is not ready.

    How large it may be and how long it may take is http_protocol's to say.
    """
    request.app.state.life.require()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMedia("Send JSON, with 'Content-Type: application/json'.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not accepted.")
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise ClientGone from error
    body = json_body.loads(raw) if len(raw) <= OFF_LOOP_BYTES else await asyncio.to_thread(json_body.loads, raw)
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body
