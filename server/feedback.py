"""What somebody thinks of an answer: it goes into the books beside the checks' verdicts, and the router learns from it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..ledger.rows import OutcomeRow
from ..wire.errors import NotFound, Unavailable
from ..wire.fields import bad, number, read
from .bodies import read_object
from .replies import json_reply
from .services import Ledger

routes = APIRouter()
MAX_COMMENT = 4000  # characters
SOURCES = ("feedback", "review", "audit")


@routes.post("/v1/feedback")
async def feedback(request: Request) -> Response:
    """`request_id` with `accepted`, a `score` from 0 to 1, or both; perhaps a `comment`, and whose word it is as `source`."""
    body = await read_object(request)
    name = read(body, "request_id", str)
    if not name or len(name) > 128:
        raise bad("request_id", "must be a request's id, as an answer's header x-baseload-request-id has it")
    accepted, score = read(body, "accepted", bool), number(body, "score", None, 0, 1)
    if accepted is None and score is None:
        raise bad("accepted", "must be true or false, unless there is a score")
    comment, source = read(body, "comment", str, ""), read(body, "source", str, SOURCES[0])
    if len(comment) > MAX_COMMENT:
        raise bad("comment", f"must have at most {MAX_COMMENT} characters")
    if source not in SOURCES:
        raise bad("source", f"must be one of {', '.join(SOURCES)}")
    ledger = request.app.state.life.require().ledger
    if ledger is None:
        raise Unavailable("There are no books to write it into.", code="no_ledger", retry_after=60)
    attempt = await asyncio.to_thread(_judged, ledger, name, request.app.state.key_id)
    ledger.add(OutcomeRow(name, attempt, "", accepted, score, "", time.time(), source, comment))
    return json_reply({"object": "feedback", "request_id": name, "attempt_id": attempt})


def _judged(ledger: Ledger, name: str, key_id: str | None) -> str:
    """The attempt that the feedback is about: the accepted one, or else the last. Raises NotFound, for another key's too."""
    ledger.flush()  # an answer can be judged before its own rows are written
    found: dict[str, Any] | None = ledger.request(name)
    if found is None or found.get("key_id") != key_id or not any(a["role"] == "answer" for a in found["attempts"]):
        raise NotFound("There is no answered request of this id.", param="request_id")
    tries = [a for a in found["attempts"] if a["role"] in ("answer", "repair")]
    return next((a["id"] for a in reversed(tries) if a["accepted"]), tries[-1]["id"])
