"""A server of one model behind the door, as a pool's replica: vLLM, another Baseload, whatever speaks OpenAI's protocol.

It is one of ours and not a supplier's, so that it is asked with all that a request holds: what a supplier would refuse (top_k,
a grammar, a plain prompt of token ids) goes along under the names that vLLM gave it.
"""

import asyncio
import hmac
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..wire import openai_chat, openai_completions
from ..wire.chat import ChatRequest, Event, Failure
from ..wire.client import Connection, HttpBackend
from ..wire.completions_upstream import COMPLETIONS
from ..wire.egress import NETWORK_ERRORS, Egress, Session
from ..wire.errors import BaseloadError
from .pool import State

PROBE_S = 5.0
_SECRET = secrets.token_bytes(32)
SILENCE_S = 900.0  # a full server's queue is silent for long; whether it lives, the probes say


class HttpReplica:
    """See pool.Source. `served_as`: what the server itself calls the model."""

    def __init__(self, name: str, base_url: str, served_as: str, egress: Egress, api_key: str | None = None) -> None:
        connection = Connection(
            name, base_url, api_key=api_key, purpose="replica", first_byte_s=SILENCE_S, between_bytes_s=SILENCE_S
        )
        self._chat = HttpBackend(connection, (), egress)
        self._plain = HttpBackend(connection, (), egress, COMPLETIONS)
        self._root, self._served_as, self._egress = root_of(base_url), served_as, egress
        self._headers = openai_chat.headers(api_key)
        self._session: Session | None = None
        self._health = "/ready"

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        backend = self._chat if request.prompt is None else self._plain
        asked = salted(as_ours(replace(request, model=self._served_as)))
        async with aclosing(backend.generate(asked)) as events:
            async for event in events:
                yield replace(event, message=self._worded(event.message)) if isinstance(event, Failure) else event

    async def probe(self) -> State | None:
        """See pool.Source. Baseload tells by /ready whether it takes requests; vLLM knows /health alone."""
        try:
            status = await self._status(self._health)
            if status == 404 and self._health == "/ready":
                self._health = "/health"
                status = await self._status(self._health)
        except (TimeoutError, BaseloadError):  # or the door could not write it down: that says nothing of the server
            return None
        except NETWORK_ERRORS:
            return "down"
        return "up" if status == 200 else "unready"

    async def page(self, path: str) -> bytes | None:
        """What stands at a path of the server, outside of its API; None where it cannot be had."""
        try:
            async with asyncio.timeout(PROBE_S), self._opened().get(self._root + path, headers=self._headers) as response:
                return await response.read() if response.status == 200 else None
        except NETWORK_ERRORS:
            return None

    async def disconnect(self) -> None:
        """See pool.Source."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._chat.close()
        await self._plain.close()

    def _worded(self, message: str) -> str:
        """A failure in words for a client, who knows a model and no server's address."""
        return message.replace(f"The supplier {self._chat.connection.name}", "The server").replace("The supplier", "The server")

    async def _status(self, path: str) -> int:
        url = self._root + path
        async with asyncio.timeout(PROBE_S), self._opened().get(url, allow_redirects=False) as response:
            return response.status

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._egress.session(connect_s=PROBE_S, purpose="replica's health")
        return self._session


def root_of(base_url: str) -> str:
    """Where a server's own pages are: before the API's `/v1`."""
    url = urlsplit(base_url)
    return urlunsplit((url.scheme, url.netloc, url.path.rstrip("/").removesuffix("/v1"), "", ""))


def as_ours(request: ChatRequest) -> ChatRequest:
    """The request as one of the protocol that the server speaks, so that it is sent with every field it has."""
    if request.protocol in (openai_chat.PROTOCOL, openai_completions.PROTOCOL) or request.prompt is not None:
        return request
    body = {**openai_chat.render_request(request, request.model), **_extras(request)}
    return replace(request, protocol=openai_chat.PROTOCOL, body=body)


def salted(request: ChatRequest) -> ChatRequest:
    """The request with vLLM's word for whose prefix pages these are. What its client says of that holds where nobody is told
    apart; a digest keyed by this process's secret tells the server no name, and lets no tenant pass for another."""
    if not request.tenant:
        return request
    if request.protocol in (openai_chat.PROTOCOL, openai_completions.PROTOCOL):
        protocol, body = request.protocol, request.body
    else:
        protocol, body = openai_completions.PROTOCOL, COMPLETIONS.request(request, request.model, ())
    salt = hmac.digest(_SECRET, request.tenant.encode(), "sha256").hex()
    return replace(request, protocol=protocol, body={**body, "cache_salt": salt})


def _extras(request: ChatRequest) -> Mapping[str, Any]:
    """What OpenAI's protocol has no field for: https://docs.vllm.ai/en/stable/serving/openai_compatible_server (extra
    parameters)."""
    p = request.sampling
    told: dict[str, Any] = {
        "top_k": p.top_k or None,
        "min_p": p.min_p or None,
        "repetition_penalty": p.repetition_penalty if p.repetition_penalty != 1.0 else None,
        "min_tokens": p.min_tokens or None,
        "stop_token_ids": list(p.stop_token_ids) or None,
        "ignore_eos": p.ignore_eos or None,
    }
    return {name: value for name, value in told.items() if value is not None}
