"""The life of the process: bind, load, serve, drain, exit.

The port is bound first, so that /health can say "starting" while the model is loaded and a second server fails at once. The
first SIGTERM (or SIGINT) drains: new requests get 503, running ones up to `drain_timeout_s`. A second one ends them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI

from .app import create_app
from .http_protocol import Limits, bounded
from .logs import setup
from .security import check_bind
from .services import Life, Services
from .settings import ServerSettings, Settings, SettingsError

log = logging.getLogger("baseload.server")
KEEP_ALIVE_S = 75
BACKLOG = 2048


def run(make_services: Callable[[], Awaitable[Services]], settings: Settings) -> None:
    """Serve until a signal comes; returns when everything is put away.

    `make_services` is awaited in the server's event loop once the port is bound; what it computes for long belongs into a
    thread. Raises SettingsError where the address cannot be bound, and whatever `make_services` raises.
    """
    check_bind(settings.server)
    setup(settings.log)
    with bind(settings.server) as listener:
        uvloop.run(serve(make_services, settings, listener))


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket. Raises SettingsError."""
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.") from error


async def serve(make_services: Callable[[], Awaitable[Services]], settings: Settings, listener: socket.socket) -> None:
    """Serve on `listener` until `should_exit`; see `run`."""
    app = create_app(None, settings)
    life: Life = app.state.life
    server = Server(uvicorn_config(app, settings.server), life, settings.server.drain_timeout_s)
    loading = asyncio.create_task(_load(make_services, life, server))
    log.info("listening on http://%s:%s", *_shown(listener))
    try:
        await server.serve(sockets=[listener])
    finally:
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
        if life.services:
            await life.services.close()


async def _load(make_services: Callable[[], Awaitable[Services]], life: Life, server: Server) -> None:
    try:
        life.start(await make_services())
        log.info("ready")
    except BaseException:
        server.should_exit = True
        raise


def _shown(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    return f"[{host}]" if ":" in host else host, port


def uvicorn_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """uvicorn with our protocol, and without what it would believe or say by itself."""
    limits = Limits(body_bytes=settings.max_body_mb * 2**20, connections=settings.max_connections)
    return uvicorn.Config(
        app,
        http=bounded(limits),
        ws="none",
        lifespan="off",
        proxy_headers=False,  # X-Forwarded-For must not make a stranger a loopback peer
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it closes and leaves no signal to be raised again: the exit status is 0."""

    def __init__(self, config: uvicorn.Config, life: Life, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._life = life
        self._drain_timeout_s = drain_timeout_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._life.hurry.set()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining: %d answers are running", self._life.in_flight)
        await self._life.drain(self._drain_timeout_s)
        await super().shutdown(sockets)
