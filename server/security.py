"""Who may ask: Host and Origin against web pages in the user's browser, a key against everybody else.

A page that rebinds its name to 127.0.0.1 still sends its own name as `Host`; one that posts across sites sends its `Origin`.
Addresses in forwarding headers are never believed.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from ..wire.errors import BadRequest, BaseloadError, Forbidden, Unauthorized
from .callers import Caller
from .console.page import PATHS
from .replies import error_reply
from .services import Life
from .settings import ServerSettings, SettingsError
from .shapes import shape_of

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
OPEN_PATHS = frozenset({"/health", "/ready"}) | PATHS  # signs of life, and the console's page, which holds no data
KEY_HEADERS = (b"x-api-key", b"x-goog-api-key")  # how Anthropic's and Google's clients send a key
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
_ONE_REQUEST = re.compile(r"/v1/requests/[^/]+")  # whose it is, the route asks
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9._-]{1,253}))(?::\d{1,5})?", re.ASCII)


def read_key(settings: ServerSettings, env: Mapping[str, str] | None = None) -> str:
    """The key that clients must send; empty: none is asked for."""
    return (os.environ if env is None else env).get(settings.api_key_env, "").strip()


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def check_bind(settings: ServerSettings, env: Mapping[str, str] | None = None) -> None:
    """Raises SettingsError, in one line, where the address is open to others and no key is asked for."""
    if not is_loopback(settings.host) and not settings.require_keys and not read_key(settings, env):
        raise SettingsError(
            f"Refusing to listen on {settings.host!r} without a key: anybody who reaches it could use it. "
            f"Set {settings.api_key_env}, or [server] require_keys with keys from 'baseload keys create', or bind 127.0.0.1."
        )


def host_name(value: str) -> str | None:
    """The name in a `Host` header, lower-case and without port or brackets; None if it is malformed."""
    match = _HOST.fullmatch(value.strip().lower())
    return match and (match["v6"] or match["name"])


class Guard:
    """ASGI middleware: refuses a request before anything reads it, and tells the routes who asks."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, key: str, life: Life) -> None:
        self.app = app
        self.key = key.encode()
        self._life, self._required = life, settings.require_keys
        self._owner = Caller(settings.api_key_env)
        named = {name.lower() for name in settings.allowed_hosts}
        self.hosts = LOOPBACK_NAMES | named | ({settings.host.lower()} - WILDCARDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self._check_origin(scope)
                scope.setdefault("state", {})["caller"] = await self._caller(scope)
        except BaseloadError as error:
            await error_reply(error, shape=shape_of(scope["path"], scope["headers"]))(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check_origin(self, scope: Scope) -> None:
        """Raises BadRequest and Forbidden."""
        host = self._host(scope)
        for origin in headers(scope, b"origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise Forbidden("This Origin is not allowed.", code="origin_not_allowed")

    async def _caller(self, scope: Scope) -> Caller:
        """Who asks. Raises Unauthorized, Forbidden, RateLimited, and Unavailable while keys can't be told yet."""
        path, given = scope["path"], presented(scope)
        if path in OPEN_PATHS:
            return Caller()
        if self.key and given and hmac.compare_digest(given, self.key):
            return self._owner
        ring = self._life.services.keyring if self._life.services else None
        if ring and given and (found := await ring.find(given.decode("latin-1"))):
            return self._admitted(found, scope)
        virtual = self._required or (ring is not None and await ring.any())
        if is_admin(path) and not virtual and (not self.key or scope["method"] in ("GET", "HEAD")):
            if not from_loopback(scope):
                raise Forbidden("Only this machine, or a key, may read this.")
            return Caller()
        if not virtual and not self.key:
            return Caller()
        if given and self._life.services is None:
            self._life.require()  # whose key that is will be known when the ledger is open
        raise Unauthorized("Send your key as 'Authorization: Bearer <key>'.")

    def _admitted(self, found: Caller, scope: Scope) -> Caller:
        path = scope["path"]
        if is_admin(path) and not found.scopes.admin and not _ONE_REQUEST.fullmatch(path):
            raise Forbidden("This needs a key with the scope 'admin'.", code="admin_only")
        if found.rates and scope["method"] == "POST":
            found.rates.admit()
        return found

    def _host(self, scope: Scope) -> str:
        given = headers(scope, b"host")
        if len(given) != 1:
            raise BadRequest("Send exactly one Host header.", code="invalid_host")
        name = host_name(given[0])
        # The address that this connection came in at is ours whatever was bound; a rebound page's name never equals it.
        local = scope.get("server") or ("",)
        if name is None or (name not in self.hosts and name != local[0]):
            raise Forbidden("This Host is not allowed. Add it to [server] allowed_hosts.", code="host_not_allowed")
        return given[0].strip().lower()


def presented(scope: Scope) -> bytes:
    """The one key that a request bears; empty where it has none, or two that differ (Claude Code sends its key twice)."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    keys = {value.strip() for name, value in scope["headers"] if name in KEY_HEADERS}
    for value in given:
        scheme, _, key = value.partition(b" ")
        keys.add(key.strip() if scheme.lower() == b"bearer" else b"")
    return keys.pop() if len(keys) == 1 and len(given) < 2 else b""


def is_admin(path: str) -> bool:
    """Whether `path` tells of other clients' requests."""
    return path in ("/metrics", "/v1/replicas") or path.startswith(("/v1/requests/", "/console/data/"))


def from_loopback(scope: Scope) -> bool:
    """Whether the peer is this machine; a proxy on it, which speaks for others, is not."""
    client: Any = scope.get("client")
    return bool(client) and is_loopback(client[0]) and not any(name in FORWARDED for name, _ in scope["headers"])


def headers(scope: Scope, name: bytes) -> list[str]:
    """The values of one header, as they came."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
