"""The only door: every connection that leaves this process for another machine is opened here.

Denied by default; loopback is free. Before a call its record is written, durably: if it cannot be written, there is no call.
In an air gap nothing leaves, whatever is on the list. What must dial by itself (pip, huggingface_hub) asks `leave` first.
"""

import ipaddress
import socket
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from .errors import EgressDenied

LOOPBACK_NAMES = frozenset({"localhost", "localhost.", "ip6-localhost"})
request_id: ContextVar[str | None] = ContextVar("egress_request_id", default=None)  # whom the next dial is for
attempt_purpose: ContextVar[str] = ContextVar("egress_purpose", default="supplier")


@dataclass(frozen=True, slots=True)
class EgressRecord:
    """One call, allowed or refused. `ts`: seconds since the epoch."""

    id: str
    ts: float
    host: str
    port: int
    purpose: str
    request_id: str | None
    allowed: bool
    reason: str


Recorder = Callable[[EgressRecord], Awaitable[None]]
Session = aiohttp.ClientSession
Response = aiohttp.ClientResponse
NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)  # what a call through a session may raise


def what_broke(error: BaseException) -> str:
    """A network error in words that a client may read, as the end of a sentence about the other side."""
    if isinstance(error, TimeoutError):
        return "took too long"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "has no valid certificate"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "has a name that does not resolve"
    if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return "cannot be reached"
    return "broke off its answer"


def was_sent(error: BaseException) -> bool:
    """Whether the other side may have got the request before this: it may have worked on it, and ask for that."""
    return not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | ConnectionRefusedError)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, by its name or its number alone; nothing is looked up."""
    if host.lower() in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Egress:
    """The door. `allowed` are host names that may be dialled (suppliers of the configuration, an index for `pull`)."""

    def __init__(self, allowed: frozenset[str], recorder: Recorder, *, air_gap: bool = False) -> None:
        self.air_gap = air_gap
        self._allowed = frozenset(host.lower() for host in allowed)
        self._recorder = recorder

    def verdict(self, host: str) -> str | None:
        """Why `host` may not be dialled; None if it may. Pure."""
        if is_loopback(host):
            return None
        if self.air_gap:
            return "air gap: nothing leaves this machine"
        if host.lower() not in self._allowed:
            return "the host is not on the list of allowed hosts"
        return None

    async def leave(self, host: str, port: int, purpose: str) -> None:
        """Ask for leave to dial `host`. Writes the record; raises EgressDenied, or what the recorder raises."""
        if is_loopback(host):
            return
        reason = self.verdict(host)
        record = EgressRecord(
            uuid.uuid4().hex, time.time(), host, port, purpose, request_id.get(), reason is None, reason or "allowed"
        )
        await self._recorder(record)
        if reason is not None:
            raise EgressDenied(f"No connection to {host}: {reason}.")

    def session(self, *, connect_s: float | None = None, purpose: str = "", **options: Any) -> Session:
        """A session whose every request asks here first: names are resolved, and numbers connected to, only with leave.

        `purpose` is what its records say, if not what the context says. With `connect_s` a dial may take that long, and an
        answer as long as it likes; else `options` say (aiohttp's).
        """
        if connect_s is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        connector = _Connector(self, purpose, limit=0, force_close=False)
        # Compressed answers are not asked for: a few kilobytes could unpack to gigabytes.
        headers = {"accept-encoding": "identity", **options.pop("headers", {})}
        return aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False, headers=headers, **options)


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connector, asking before each request, be its host a name or a number, its connection new or kept open."""

    def __init__(self, door: Egress, purpose: str, **options: Any) -> None:
        super().__init__(resolver=_Resolver(), **options)
        self._door, self._purpose = door, purpose

    async def connect(self, req: Any, traces: Any, timeout: Any) -> aiohttp.connector.Connection:
        """See BaseConnector."""
        url = req.url
        await self._door.leave(url.host or "", url.port or 443, self._purpose or attempt_purpose.get())
        return await super().connect(req, traces, timeout)


class _Resolver(AbstractResolver):
    """The system's resolver, reached only after leave was given."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """See AbstractResolver."""
        if is_loopback(host):
            # No resolver is asked for what went through without leave: it could answer with another machine.
            host, family = "127.0.0.1", socket.AF_INET
        return await aiohttp.ThreadedResolver().resolve(host, port, family)

    async def close(self) -> None:
        """Nothing is held open."""
