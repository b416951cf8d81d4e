"""[[replicas]]: models that servers elsewhere serve, as data. One name, several addresses."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from ..wire.backend import ModelInfo
from ..wire.egress import Egress, is_loopback
from ..wire.errors import BaseloadError
from .http_replica import HttpReplica
from .pool import Pool, Replica
from .wall_share import WallShare

FAR_S = 10.0  # between probes of other machines: each call that leaves this one is a row in the egress log
NAME = re.compile(r"[A-Za-z0-9._/:-]{1,128}")


class ReplicaError(BaseloadError):
    """A [[replicas]] table is wrong. One line; never reaches HTTP clients."""

    default_code = "replica_error"


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """A model and the servers that serve it."""

    model: str  # the name that clients ask for
    base_urls: tuple[str, ...]  # up to and with `/v1`
    context_length: int
    served_as: str = ""  # what the servers call it; empty: as clients do
    api_key_env: str = ""  # the environment variable that holds their key
    tools: bool = False
    vision: bool = False
    patience_s: float = 10.0  # how long a request waits where none is up

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts to dial."""
        return tuple(urlsplit(url).hostname or "" for url in self.base_urls)

    def pool(self, egress: Egress, share: WallShare) -> Pool:
        """Its Backend. `share`: of this machine, charged where all servers run on it."""
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        here = all(is_loopback(host) for host in self.hosts)
        every_s = 0.0 if here else FAR_S
        sources = {n: HttpReplica(n, url, self.served_as or self.model, egress, key) for n, url in self._named()}
        found = [Replica(n, source, every_s=every_s) for n, source in sources.items()]
        info = ModelInfo(self.model, self.context_length, tools=self.tools, vision=self.vision)
        return Pool(info, found, patience_s=self.patience_s, share=share if here else None)

    def _named(self) -> list[tuple[str, str]]:
        return [(urlsplit(url).netloc + urlsplit(url).path.rstrip("/").removesuffix("/v1"), url) for url in self.base_urls]


KINDS = {"model": str, "context_length": int, "served_as": str, "api_key_env": str, "tools": bool, "vision": bool}


def parse_replicas(tables: Sequence[Mapping[str, Any]], *, air_gap: bool = False) -> tuple[ReplicaSet, ...]:
    """The sets in the configuration's tables. Raises ReplicaError naming the table and the key."""
    found = tuple(_parse(n, table) for n, table in enumerate(tables, 1))
    for one in found:
        if sum(other.model == one.model for other in found) > 1:
            raise ReplicaError(f"[[replicas]]: {one.model!r} stands in two tables; give one table all of its base_urls")
        away = next((host for host in one.hosts if not is_loopback(host)), None)
        if air_gap and away:
            raise ReplicaError(f"[[replicas]] {one.model}: {away} is another machine, and there is an air gap")
    return found


def _parse(n: int, table: Mapping[str, Any]) -> ReplicaSet:
    where = f"[[replicas]] {table.get('model', n)}"
    known = [f.name for f in fields(ReplicaSet)]
    if unknown := sorted(set(table) - set(known)):
        raise ReplicaError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    for key in ("model", "base_urls", "context_length"):
        if key not in table:
            raise ReplicaError(f"{where}: {key} is missing")
    for key, kind in KINDS.items():
        if key in table and type(table[key]) is not kind:
            raise ReplicaError(f"{where}: {key} must be of type {kind.__name__}")
    if not NAME.fullmatch(table["model"]) or table["context_length"] < 1:
        raise ReplicaError(f"{where}: a model needs a plain name and at least one token of context")
    patience = table.get("patience_s", 10.0)
    if type(patience) not in (int, float) or not 0 <= patience <= 3600:
        raise ReplicaError(f"{where}: patience_s must be 0 to 3600 seconds")
    return ReplicaSet(**{**table, "base_urls": _urls(where, table["base_urls"])})


def _urls(where: str, urls: Any) -> tuple[str, ...]:
    if not isinstance(urls, list | tuple) or not urls or not all(isinstance(url, str) for url in urls):
        raise ReplicaError(f"{where}: base_urls must be a list of addresses")
    for url in urls:
        if (parts := urlsplit(url)).scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ReplicaError(f"{where}: {url[:100]!r} is no http or https address")
    if len({url.rstrip("/") for url in urls}) < len(urls):
        raise ReplicaError(f"{where}: an address stands twice in base_urls")
    return tuple(urls)
