"""The application: guard, routes, and errors in their protocol's shape."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..wire.errors import BadRequest, BaseloadError, MethodNotAllowed, NotFound
from . import admin, anthropic, embeddings, feedback, google, ollama, openai, openapi, replicas, responses, tokens
from .console.routes import Console
from .console.routes import routes as console_routes
from .logs import RequestLog
from .metrics import Metrics
from .replies import error_reply
from .security import Guard, read_key
from .services import Life, Services
from .settings import Settings
from .shapes import Shape, shape_of


def create_app(services: Services | None, settings: Settings, env: Mapping[str, str] | None = None) -> FastAPI:
    """The ASGI application. Without `services` it answers 503 until `app.state.life.start(services)`."""
    app = FastAPI(title="Baseload", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    key = read_key(settings.server, env)
    life = Life(services, settings.server.max_in_flight)
    app.state.life = life
    app.state.metrics = Metrics(life)
    app.state.responses = responses.Shelf()
    app.state.default_model = settings.server.default_model
    app.state.console = Console(settings)
    app.include_router(openai.routes)
    app.include_router(anthropic.routes)
    app.include_router(responses.routes)
    app.include_router(embeddings.routes)
    app.include_router(tokens.routes)
    app.include_router(ollama.routes)
    app.include_router(google.routes)
    app.include_router(feedback.routes)
    app.include_router(admin.routes)
    app.include_router(console_routes)
    app.include_router(replicas.routes)
    app.include_router(openapi.routes)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(BaseloadError, _ours)
    # The last one added is the outermost.
    app.add_middleware(Guard, settings=settings.server, key=key, life=life)
    app.add_middleware(RequestLog, metrics=app.state.metrics)
    return app


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, BaseloadError)
    return error_reply(error, shape=_shape(request))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return error_reply(NotFound("There is no such path."), shape=_shape(request))
        case 405:
            allow = {"allow": (error.headers or {}).get("Allow", "")}
            return error_reply(MethodNotAllowed(f"{request.method} is not allowed here."), allow, _shape(request))
        case _:
            return error_reply(BadRequest("The request could not be read."), shape=_shape(request))


def _shape(request: Request) -> Shape:
    return shape_of(request.url.path, request.scope["headers"])
