"""What somebody thinks of an answer: it goes into the books beside the checks' verdicts, and the router learns from it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..ledger.outcomes import PEOPLE
from ..wire.errors import Forbidden, NotFound, Unavailable
from ..wire.fields import bad, number, read
from .bodies import read_object
from .callers import caller
from .replies import json_reply

routes = APIRouter()
MAX_COMMENT = 4000  # characters


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
    comment, source = read(body, "comment", str, ""), read(body, "source", str, "feedback")
    if len(comment) > MAX_COMMENT:
        raise bad("comment", f"must have at most {MAX_COMMENT} characters")
    if source not in PEOPLE:
        raise bad("source", f"must be one of {', '.join(PEOPLE)}")
    ledger = request.app.state.life.require().ledger
    if ledger is None:
        raise Unavailable("There are no books to write it into.", code="no_ledger", retry_after=60)
    who = caller(request)
    if source != "feedback" and not who.scopes.admin:
        raise Forbidden("Reviews and audits need a key with the scope 'admin'.", param="source", code="admin_only")
    owner = who.key_id
    if who.scopes.admin:  # whose it is, is no matter
        await asyncio.to_thread(ledger.flush)
        owner = (await asyncio.to_thread(ledger.request, name) or {}).get("key_id")
    said = {"accepted": accepted, "score": score, "comment": comment, "source": source, "key_id": owner}
    if not await asyncio.to_thread(ledger.feedback, name, **said):
        raise NotFound("There is no answered request of this id.", param="request_id")
    if source == "audit":
        await asyncio.to_thread(request.app.state.life.require().audited)
    return json_reply({"object": "feedback", "request_id": name})
