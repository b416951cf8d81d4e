"""A supplier is a TOML table: where it is, what its key is called, what it can do. No vendor's name stands in Python."""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...wire.backend import Backend, ModelInfo
from ...wire.chat import EFFORTS
from ...wire.client import Connection
from ...wire.errors import BaseloadError
from ...wire.protocols import PROTOCOLS
from .limits import Limited
from .resilience import Resilient

KINDS = tuple(PROTOCOLS)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it comes before the slash of a model's name on the wire


class SupplierError(BaseloadError):
    """A supplier's table is wrong. One line; never reaches HTTP clients."""

    default_code = "supplier_error"


@dataclass(frozen=True, slots=True)
class SupplierProfile:
    """One supplier. `price_provider`: its name in the price data, if it is another; seconds for the times."""

    name: str
    base_url: str
    kind: str = "openai_chat"
    api_key_env: str = ""  # the environment variable that holds the key; empty: none is needed
    models: tuple[ModelInfo, ...] = ()
    drop_fields: tuple[str, ...] = ()  # request fields that it refuses
    rename_fields: Mapping[str, str] = field(default_factory=dict)  # what the protocol calls a field -> what it calls it
    price_provider: str = ""
    connect_s: float = 10.0
    first_byte_s: float = 60.0
    between_bytes_s: float = 60.0
    max_concurrent: int = 0  # 0: no limit; also below
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    patience_s: float = 10.0  # how long a request may wait for its turn

    @property
    def host(self) -> str:
        """The host to dial."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def not_ready(self) -> str:
        """Why it cannot be called now; empty if it can."""
        if self.api_key_env and not os.environ.get(self.api_key_env):
            return f"the environment variable {self.api_key_env} is not set"
        return ""

    def guarded(self, backend: Backend) -> Backend:
        """`backend` with retries, breakers and this supplier's limits, which a retry keeps to like any other call."""
        limited = Limited(
            backend,
            self.name,
            at_once=self.max_concurrent,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            patience_s=self.patience_s,
        )
        return Resilient(limited, self.name)

    def connection(self) -> Connection:
        """How wire/client.py is to call it."""
        return Connection(
            name=self.name,
            base_url=self.base_url,
            protocol=self.kind,
            api_key=os.environ.get(self.api_key_env) if self.api_key_env else None,
            drop_fields=self.drop_fields,
            rename_fields=self.rename_fields,
            connect_s=self.connect_s,
            first_byte_s=self.first_byte_s,
            between_bytes_s=self.between_bytes_s,
        )


def parse_profile(name: str, table: Mapping[str, Any]) -> SupplierProfile:
    """A profile from its table. Raises SupplierError naming the key."""
    known = {f.name for f in fields(SupplierProfile)} - {"name"}
    if unknown := sorted(set(table) - known):
        raise SupplierError(f"supplier {name}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if not NAME.fullmatch(name):
        raise SupplierError(f"supplier {name!r}: a name has 1 to 64 letters, digits, dots, underscores and dashes")
    models = table.get("models", [])
    if not isinstance(models, list | tuple):
        raise SupplierError(f"supplier {name}: models must be a list of tables")
    values: dict[str, Any] = {**table, "models": tuple(_model(name, m) for m in models)}
    for key in ("base_url", "kind", "api_key_env", "price_provider"):
        if not isinstance(values.get(key, ""), str):
            raise SupplierError(f"supplier {name}: {key} must be a string")
    for key in ("max_concurrent", "requests_per_minute", "tokens_per_minute"):
        if type(values.get(key, 0)) is not int or values.get(key, 0) < 0:
            raise SupplierError(f"supplier {name}: {key} must be a whole number, 0 for no limit")
    for key in ("connect_s", "first_byte_s", "between_bytes_s", "patience_s"):
        if type(values.get(key, 1.0)) not in (int, float) or not 0 < values.get(key, 1.0) < math.inf:
            raise SupplierError(f"supplier {name}: {key} must be a positive number of seconds")
    if values.get("kind", KINDS[0]) not in KINDS:
        raise SupplierError(f"supplier {name}: kind must be one of {', '.join(KINDS)}")
    url = urlsplit(values.get("base_url", ""))
    if url.scheme not in ("http", "https") or not url.hostname or url.username:
        raise SupplierError(f"supplier {name}: base_url must be an http or https address")
    drop = values.get("drop_fields", ())
    if not isinstance(drop, list | tuple) or not all(isinstance(f, str) for f in drop):
        raise SupplierError(f"supplier {name}: drop_fields must be a list of names")
    values["drop_fields"] = tuple(drop)
    rename = values.get("rename_fields", {})
    if not isinstance(rename, dict) or not all(isinstance(theirs, str) and theirs for theirs in rename.values()):
        raise SupplierError(f"supplier {name}: rename_fields must be a table of names")
    return SupplierProfile(name=name, **values)


def _model(supplier: str, table: Any) -> ModelInfo:
    known = {"id", "context_length", "tools", "vision", "efforts"}
    abilities = "tools, vision and efforts"
    if not isinstance(table, dict) or not {"id", "context_length"} <= set(table) <= known:
        raise SupplierError(f"supplier {supplier}: a model has the keys id and context_length, and may have {abilities}")
    for key, kind in {"id": str, "context_length": int, "tools": bool, "vision": bool}.items():
        if key in table and type(table[key]) is not kind:
            raise SupplierError(f"supplier {supplier}: a model's {key} must be of type {kind.__name__}")
    efforts = table.get("efforts", ())
    if not isinstance(efforts, list | tuple) or not set(efforts) <= set(EFFORTS):
        raise SupplierError(f"supplier {supplier}: a model's efforts must be a list of {', '.join(EFFORTS)}")
    if not table["id"] or table["context_length"] < 1:
        raise SupplierError(f"supplier {supplier}: a model needs a name and at least one token of context")
    return ModelInfo(
        id=f"{supplier}/{table['id']}",
        context_length=table["context_length"],
        owned_by=supplier,
        local=False,
        tools=table.get("tools", False),
        vision=table.get("vision", False),
        efforts=tuple(efforts),
    )


def load_profiles(shipped: Path, own: Mapping[str, Mapping[str, Any]]) -> dict[str, SupplierProfile]:
    """The shipped suppliers by name, with the configuration's tables laid over them key by key. Raises SupplierError."""
    tables: dict[str, dict[str, Any]] = {}
    for path in sorted(shipped.glob("*.toml")):
        tables[path.stem] = tomllib.loads(path.read_text("utf-8"))
    for name, table in own.items():
        tables[name] = {**tables.get(name, {}), **table}
    return {name: parse_profile(name, table) for name, table in tables.items()}
