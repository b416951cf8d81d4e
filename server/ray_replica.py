"""The server as a Ray Serve deployment: Ray starts replicas, finds room for them, watches them and spreads requests over them.

Each replica is a whole server without its socket: the same application, over an engine of its own. Their ledger is one, on
PostgreSQL. Ray's processes talk among themselves by Ray's own connections, which our door does not see: who deploys on several
machines has decided that they are one house.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.store import Store, StoreError, default_root
from ..wire.errors import BaseloadError, EgressDenied
from .security import check_bind, read_key
from .settings import Settings, SettingsError

APP = "baseload"
HEALTH_EVERY_S, HEALTH_WITHIN_S = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """What Ray is asked for."""

    replicas: int = 2
    cpus: float = 1.0  # of each replica
    gpus: float = 0.0
    every_node: bool = True  # a proxy on each node; else on the head alone

    def check(self, settings: Settings) -> None:
        """Raises SettingsError, in one line, for what could not work or should not be done."""
        if self.replicas > 1 and not settings.ledger.url.startswith("postgresql"):
            raise SettingsError("Several replicas keep one ledger: set [ledger] url to a PostgreSQL address.")
        check_bind(settings.server)


def deploy(settings: Settings, deployment: Deployment, address: str) -> str:
    """Run the replicas on the cluster at `address` and return, once they answer, the URL. Raises SettingsError."""
    deployment.check(settings)
    serve = _connected(address)
    server = settings.server
    where = "EveryNode" if deployment.every_node else "HeadOnly"
    serve.start(proxy_location=where, http_options={"host": server.host, "port": server.port})
    try:
        serve.run(application(settings, deployment), name=APP, route_prefix="/")
    except RuntimeError as error:
        raise SettingsError(f"Ray could not start the replicas: {str(error).splitlines()[0][:300]}") from error
    return f"http://{server.host}:{server.port}"


def withdraw(address: str) -> None:
    """Take the replicas off the cluster."""
    _connected(address).delete(APP)


def _connected(address: str) -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray import serve  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SettingsError("Ray is not installed: pip install 'baseload[ray]', here and on every node.") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise SettingsError(f"There is no Ray cluster at {address!r}; `ray start --head` begins one.") from error
    return serve


def application(settings: Settings, deployment: Deployment) -> Any:
    """The Serve application: Ray unpacks it on each node."""
    from ray import serve  # pyright: ignore[reportMissingImports]

    options = {"num_cpus": deployment.cpus, "num_gpus": deployment.gpus}
    made = serve.deployment(
        name=APP,
        num_replicas=deployment.replicas,
        ray_actor_options=options,
        max_ongoing_requests=settings.server.max_in_flight,
        health_check_period_s=HEALTH_EVERY_S,
        health_check_timeout_s=HEALTH_WITHIN_S,
        graceful_shutdown_timeout_s=settings.server.drain_timeout_s,
        max_constructor_retry_count=3,
    )(serve.ingress()(Replica))
    # The raylet's environment is not ours: the key goes along.
    return made.bind(settings, read_key(settings.server))


class Replica:
    """One engine and its server, in a Ray actor."""

    async def __init__(self, settings: Settings, key: str = "") -> None:
        """`key`: the server's, as whoever deploys has it."""
        from .build import build_services

        self._settings, self._env = settings, {**os.environ, **({settings.server.api_key_env: key} if key else {})}
        try:
            check_bind(settings.server, self._env)
            self._services = await build_services(settings, files_of(settings))
        except BaseloadError as error:
            raise RuntimeError(error.message) from error  # whose class Ray may not know

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray calls for the application that answers."""
        from .app import create_app

        return create_app(self._services, self._settings, self._env)

    def check_health(self) -> None:
        """What Ray calls now and then: it replaces a replica for which this raises."""
        if not all(engine.stats().alive for engine in self._services.engines().values()):
            raise RuntimeError("the engine is stuck or has died")

    async def __del__(self) -> None:
        """What Ray calls when the replica has drained."""
        if hasattr(self, "_services"):
            await self._services.close()


def files_of(settings: Settings) -> Sequence[tuple[str, Path]]:
    """The models, as they lie in this node's store: what is not there is not fetched from here, `baseload pull` does that."""
    if settings.models.engine == "vllm":
        return [(Path(name).name, Path(name)) for name in settings.models.serve]
    store = Store(Path(settings.models.store).expanduser() if settings.models.store else default_root())
    try:
        return [
            (Path(name).stem if name.endswith(".gguf") else Path(name).name, store.ensure(name, leave=_stay))
            for name in settings.models.serve
        ]
    except EgressDenied as error:
        raise StoreError(error.message) from error


def _stay(host: str, port: int, purpose: str) -> None:
    raise EgressDenied("A model is not in this node's store; run `baseload pull` there.")
