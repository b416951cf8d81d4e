"""Virtual keys: what a client shows, of which the ledger keeps a hash and a prefix for people."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from .schema import keys

START = "bl-"
_ID_CHARS = 12


@dataclass(frozen=True)
class Key:
    """A key without its secret. `prefix` is how the secret begins, enough to know it by; `scopes` is what it may do."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_ts: float
    revoked_ts: float | None = None


def create(engine: Engine, name: str, scopes: Sequence[str] = ()) -> tuple[Key, str]:
    """A new key and its secret, `bl-<id>-<43 characters>`, which is shown this once and stored nowhere."""
    key_id = secrets.token_hex(_ID_CHARS // 2)
    secret = f"{START}{key_id}-{secrets.token_urlsafe(32)}"
    key = Key(key_id, name, secret[: len(START) + _ID_CHARS + 5], tuple(scopes), time.time())
    with engine.begin() as connection:
        row = {"id": key_id, "name": name, "hash": _hash(secret), "prefix": key.prefix, "scopes": list(scopes)}
        connection.execute(keys.insert().values(**row, created_ts=key.created_ts))
    return key, secret


def find(engine: Engine, secret: str) -> Key | None:
    """The key of that secret; None if it is unknown or revoked. Looked up by the id in it, compared in constant time."""
    with engine.connect() as connection:
        query = select(keys).where(keys.c.id == id_in(secret), keys.c.revoked_ts.is_(None))
        row = connection.execute(query).one_or_none()
    # An unknown id is compared too: how long this takes tells nothing of which ids there are.
    right = matches(row.hash if row else "", secret)
    return _key(row) if row and right else None


def secrets_of(engine: Engine) -> tuple[int, dict[str, tuple[str, Key]]]:
    """How many keys were ever made, and those that hold: id -> (hash, key). For a server that looks them up in memory."""
    with engine.connect() as connection:
        rows = connection.execute(select(keys)).all()
    return len(rows), {row.id: (row.hash, _key(row)) for row in rows if row.revoked_ts is None}


def stamp(engine: Engine) -> tuple[int, int]:
    """(keys made, keys revoked): as neither is ever undone, the same stamp means the same keys."""
    with engine.connect() as connection:
        made, revoked = connection.execute(select(func.count(), func.count(keys.c.revoked_ts)).select_from(keys)).one()
    return made, revoked


def id_in(secret: str) -> str:
    """The id that a secret names; empty where it has none of ours."""
    key_id = secret.removeprefix(START).partition("-")[0] if secret.startswith(START) else ""
    return key_id if key_id.isascii() and key_id.isalnum() else ""


def matches(hashed: str, secret: str) -> bool:
    """Whether `secret` is what was hashed, compared in constant time."""
    return hmac.compare_digest(hashed, _hash(secret))


def listed(engine: Engine) -> list[Key]:
    """All keys, the revoked ones too, oldest first."""
    with engine.connect() as connection:
        return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created_ts, keys.c.id))]


def revoke(engine: Engine, key_id: str) -> bool:
    """End a key; False where there is none of that id that still holds. Its requests stay in the books."""
    ended = keys.update().where(keys.c.id == key_id, keys.c.revoked_ts.is_(None)).values(revoked_ts=time.time())
    with engine.begin() as connection:
        return connection.execute(ended).rowcount == 1


def _hash(secret: str) -> str:
    """A secret of 256 random bits needs no slow hash: there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _key(row: object) -> Key:
    of = row._mapping  # type: ignore[attr-defined]
    return Key(of["id"], of["name"], of["prefix"], tuple(of["scopes"]), of["created_ts"], of["revoked_ts"])
