"""Where the ledger lies: SQLite in a file, or PostgreSQL by URL. Opening brings its schema up to date, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..runtime.store import default_root
from .schema import HEAD, requests
from .writer import LedgerError

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x1ED6E5  # the advisory lock that two servers starting on one PostgreSQL take turns with


def default_url() -> str:
    """The ledger of this machine's store."""
    return f"sqlite:///{default_root() / 'ledger.db'}"


def connect(url: str) -> Engine:
    """An engine for `url` that makes no file and no table by itself.

    Raises LedgerError for a URL that is neither SQLite's, with a file, nor PostgreSQL's.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(f"The ledger's address {url!r} is not a URL such as sqlite:///PATH.") from error
    if parsed.get_backend_name() == "postgresql":
        try:
            return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        except ImportError as error:
            raise LedgerError("A ledger on PostgreSQL needs psycopg: pip install 'baseload[postgres]'.") from error
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise LedgerError("The ledger's address must be sqlite:///PATH or postgresql://HOST/DATABASE.")
    engine = create_engine(parsed)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")  # readers never block the writer

    return engine


def open_for_reading(url: str) -> Engine:
    """An engine for reports on an existing ledger, which a server may be writing. Raises LedgerError, in one line.

    An older ledger is brought up to date first: a report reads the columns of today.
    """
    engine = connect(url)
    path = engine.url.database or ""
    if is_sqlite(engine) and not Path(path).is_file():
        raise LedgerError(f"There is no ledger at {path}.")
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM requests LIMIT 1"))
            current = _version(connection) == HEAD
        if not current:
            prepare(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise unusable(engine, error) from error
    return engine


def check(url: str) -> str:
    """One line on the ledger's state, after reading it whole. Raises LedgerError if it is damaged."""
    engine = connect(url)
    place = where(engine)
    if is_sqlite(engine) and not Path(place).exists():
        return f"{place} will be made at the first start"
    engine = open_for_reading(url)
    with engine.connect() as connection:
        _sound(connection)
        count = connection.execute(select(func.count()).select_from(requests)).scalar_one()
    return f"{place} is sound; {count} requests"


def is_sqlite(engine: Engine) -> bool:
    """Whether the ledger is a file of ours; else it is a PostgreSQL."""
    return engine.dialect.name == "sqlite"


def where(engine: Engine) -> str:
    """The ledger's place for people: the file, or the URL without its password."""
    return engine.url.database or "" if is_sqlite(engine) else engine.url.render_as_string(hide_password=True)


def unusable(engine: Engine, error: Exception) -> LedgerError:
    """What the database said, in one line."""
    reason = str(getattr(error, "orig", None) or error).split("\n", 1)[0]
    return LedgerError(f"The ledger {where(engine)} cannot be used: {reason}")


def prepare(engine: Engine) -> None:
    """Make the tables, or bring older ones up to date, in one transaction. Raises LedgerError for a damaged or newer ledger."""
    if is_sqlite(engine):
        Path(engine.url.database or "").parent.mkdir(parents=True, exist_ok=True)
    with engine.begin() as connection:
        _sound(connection)
        if _version(connection) == HEAD:
            return
    with engine.begin() as connection:
        # Another process may be at the same step: who comes second waits, and finds it done.
        if is_sqlite(engine):
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # else SQLite's driver would commit each DDL statement by itself
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        found = _version(connection)
        if found > HEAD:
            raise LedgerError(f"The ledger {where(engine)} is of a newer Baseload (version {found}, not {HEAD}).")
        if found < HEAD:
            _migrate(connection)


def _version(connection: Connection) -> int:
    """The last step that the ledger has taken; 0: it is empty. A ledger of the time before versions counts as 1."""
    tables = set(inspect(connection).get_table_names())
    marked = 0
    if connection.dialect.name == "sqlite":  # older programs look here, and must refuse what is newer than they are
        marked = connection.execute(text("PRAGMA user_version")).scalar_one()
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return max(int(found or 0), marked)
    return max(marked, int("requests" in tables))


def _migrate(connection: Connection) -> None:
    from alembic import command  # 0.2 s that most starts do without
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    if "alembic_version" not in inspect(connection).get_table_names() and _version(connection):
        command.stamp(config, "1")
    command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"PRAGMA user_version = {HEAD}"))


def _sound(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT 1"))
        return
    if (verdict := connection.execute(text("PRAGMA quick_check(1)")).scalar_one()) != "ok":
        raise LedgerError(f"The ledger {where(connection.engine)} is damaged: {str(verdict).splitlines()[-1]}")
