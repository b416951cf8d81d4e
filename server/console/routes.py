"""The console's paths: the page, and read-only JSON beside it.

The books are read in one thread of their own, one question after the other: whoever looks, and however many, the ledger is
asked one thing at a time and no answer being made waits for it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from ...ledger import budgets, keys
from ...ledger.recent import recent
from ...ledger.report import request as one_request
from ...router.suppliers.profile import load_profiles
from ...wire.errors import BadRequest, Forbidden, NotFound, RateLimited, Unavailable
from ..build import CONFIGS
from ..settings import Settings
from .books import WINDOWS, History, books
from .now import now
from .page import HEADERS, page_file

routes = APIRouter()
STATUSES = ("", "running", "done", "failed", "cancelled", "interrupted")
WAITING = 16  # questions to the books that may wait for their turn
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BESIDE = re.compile(r"([A-Za-z0-9._-]{1,64})/([A-Za-z0-9._:/-]{1,128})")
T = TypeVar("T")


class Console:
    """What one server's console keeps: the thread that reads the books, and what it has read."""

    def __init__(self, settings: Settings) -> None:
        self.history = History()
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, "console")
        self._asked = 0
        self._beside: tuple[str, str] | None = None
        self._looked = False

    async def ask(self, request: Request, question: Callable[[Engine], T]) -> T:
        """What the ledger says. Raises Unavailable without one or while it cannot be read, RateLimited when too many ask."""
        ledger = request.app.state.life.require().ledger
        if ledger is None:
            raise Unavailable("There are no books to read.", code="no_ledger", retry_after=60)
        if self._asked >= WAITING:
            raise RateLimited("Too many are reading the books. Try again shortly.", retry_after=2)
        self._asked += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question, ledger.engine)
        except SQLAlchemyError as error:
            raise Unavailable("The books cannot be read just now.", code="ledger_unavailable", retry_after=5) from error
        finally:
            self._asked -= 1

    def beside(self) -> tuple[str, str] | None:
        """Whose prices local work is set beside unless somebody says: the first supplier of the ladder. Reads files, once."""
        if not self._looked:
            profiles = load_profiles(CONFIGS / "suppliers", self._settings.suppliers)
            places = (name.partition("/") for name in self._settings.router.ladder)
            found = ((profiles[s].price_provider or s, model) for s, _, model in places if s in profiles and model)
            self._beside, self._looked = next(found, None), True
        return self._beside


def _console(request: Request) -> Console:
    # A page of another origin that sends no Origin still says where it stands; it could read nothing, but make us work.
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("The console's data is for its own page.", code="origin_not_allowed")
    return request.app.state.console


def _reply(body: Any) -> Response:
    # The database's column names are of a subclass of str, its sums perhaps Decimals.
    content = orjson.dumps(body, default=float, option=orjson.OPT_NON_STR_KEYS)
    return Response(content, headers={**HEADERS, "cache-control": "no-store"}, media_type="application/json")


@routes.get("/console")
async def page(request: Request) -> Response:
    """The console's page."""
    return page_file("index.html")


@routes.get("/console/page/{name}")
async def part(request: Request, name: str) -> Response:
    """A file of the console's page."""
    return page_file(name)


@routes.get("/console/data/now")
async def present(request: Request) -> Response:
    """The server and its engines at this moment."""
    _console(request)
    return _reply(now(request.app.state.life))


@routes.get("/console/data/books")
async def window(request: Request) -> Response:
    """What was asked, answered and paid in a window of time: `?window=1h|24h|7d|30d`, and perhaps `&beside=SUPPLIER/MODEL`."""
    console, query = _console(request), request.query_params
    name, given = query.get("window", "24h"), query.get("beside", "")
    if name not in WINDOWS:
        raise BadRequest(f"window is one of {', '.join(WINDOWS)}.", param="window")
    match = _BESIDE.fullmatch(given)
    if given and match is None:
        raise BadRequest("beside is a supplier and a model, as in openai/gpt-4o-mini.", param="beside")

    def read(engine: Engine) -> dict[str, Any]:
        beside = (match[1], match[2]) if match else console.beside()
        names = {key.id: key.name for key in keys.listed(engine)}
        return books(console.history.window(engine, name, time.time()), name, beside, names)

    return _reply(await console.ask(request, read))


@routes.get("/console/data/budgets")
async def limits(request: Request) -> Response:
    """Every budget with what is held and spent of it, and the names of keys."""

    def read(engine: Engine) -> list[dict[str, Any]]:
        names = {key.id: key.name for key in keys.listed(engine)}
        return [asdict(found) | {"label": names.get(found.name, found.name)} for found in budgets.listed(engine)]

    return _reply({"budgets": await _console(request).ask(request, read)})


@routes.get("/console/data/requests")
async def latest(request: Request) -> Response:
    """The latest requests: `?status=failed` for those of one status, `&before=TIME,ID` for older ones."""
    console, query = _console(request), request.query_params
    status, before = query.get("status", ""), query.get("before", "")
    if status not in STATUSES:
        raise BadRequest(f"status is one of {', '.join(STATUSES[1:])}.", param="status")
    ts, _, last = before.partition(",")
    if before and not (re.fullmatch(r"\d{1,12}(\.\d{1,9})?", ts) and _ID.fullmatch(last)):
        raise BadRequest("before is a request's time and its id.", param="before")
    found = await console.ask(request, lambda engine: recent(engine, status, (float(ts), last) if before else None))
    return _reply({"requests": found})


@routes.get("/console/data/requests/{request_id}")
async def one(request: Request, request_id: str) -> Response:
    """One request with its decision, attempts and verdicts."""
    console = _console(request)
    if not _ID.fullmatch(request_id):
        raise BadRequest("This is not a request's id.", param="id")
    found = await console.ask(request, lambda engine: one_request(engine, request_id))
    if found is None:
        raise NotFound("There is no such request in the ledger.")
    return _reply(found)
