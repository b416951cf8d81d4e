"""Ledgers on both databases: a file, and a real PostgreSQL of our own where its programs are installed."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

USER = "postgres"  # the server refuses to be root


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The socket directory of a fresh server, which ends with the tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL programs in /usr/lib/postgresql (Debian: apt-get install postgresql)")
    place = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 bytes
    as_root = os.getuid() == 0
    if as_root:
        shutil.chown(place, USER)

    def run(program: str, *words: str) -> None:
        command = [str(found[-1].with_name(program)), *words]
        if as_root:
            command = ["runuser", "-u", USER, "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=place)

    run("initdb", "-D", f"{place}/data", "-A", "trust", "-U", USER, "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={place} -c max_connections=300"
    run("pg_ctl", "-D", f"{place}/data", "-w", "-l", f"{place}/log", "-o", options, "start")
    yield str(place)
    run("pg_ctl", "-D", f"{place}/data", "-w", "-m", "immediate", "stop")
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger's address."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    place, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    with psycopg.connect(host=place, user=USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://{USER}@/{name}?host={place}"
