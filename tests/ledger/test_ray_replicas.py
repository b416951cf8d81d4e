"""Two replicas on two nodes of a real Ray, with one ledger on a real PostgreSQL; one node is taken away.

Ray is not among our own tests' packages: run it with an interpreter that has both, and ray[serve].
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx2
import psycopg
import pytest

from baseload.runtime.store import default_root
from baseload.server.ray_replica import Deployment, deploy
from baseload.server.settings import LedgerSettings, ServerSettings, Settings, SettingsError

HAS_RAY = importlib.util.find_spec("ray") is not None
USER = "postgres"


def test_several_replicas_need_one_ledger():
    with pytest.raises(SettingsError, match="PostgreSQL"):
        deploy(Settings(), Deployment(2), "auto")
    wide = Settings(
        server=ServerSettings(host="0.0.0.0", api_key_env="NOBODY_SETS_THIS"), ledger=LedgerSettings("postgresql://x")
    )
    with pytest.raises(SettingsError, match="without a key"):
        deploy(wide, Deployment(2), "auto")


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_it_says_what_to_install():
    with pytest.raises(SettingsError, match="pip install"):
        deploy(Settings(), Deployment(1), "auto")


@pytest.fixture
def url(postgres: str) -> str:
    """An empty ledger's address on PostgreSQL."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(host=postgres, user=USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://{USER}@/{name}?host={postgres}"


def baseload(*words: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "baseload.cli.main", *words], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="no Ray: pip install 'baseload[ray]'")
@pytest.mark.timeout(560)
def test_the_service_goes_on_when_a_node_goes(url: str, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    engine = "[engine]\nthreads = 1\nkv_memory_mb = 64\nwatchdog_s = 120.0\n"
    (tmp_path / "config.toml").write_text(f'[models]\nstore = "{default_root()}"\n[ledger]\nurl = "{url}"\n{engine}')
    for name, value in {"BASELOAD_HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    small = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        second = cluster.add_node(**small)
        where = ("--address", cluster.address)
        said = baseload("deploy", "ray", *where, "--replicas", "2", "--head-only", "--port", str(port), env=dict(os.environ))
        assert said == f"http://127.0.0.1:{port}"
        ray.init(address=cluster.address, log_to_driver=False)
        assert ray.cluster_resources()["CPU"] == 2 and ray.available_resources().get("CPU", 0) == 0, "each node has one"
        with httpx2.Client(base_url=said, timeout=120) as client:
            answered = sum(ask(client) for _ in range(8))
            assert answered == 8
            assert client.get("/v1/models").json()["data"][0]["id"] == "smollm2-135m-instruct"
            cluster.remove_node(second, allow_graceful=False)
            deadline = time.monotonic() + 120
            while not ask(client):
                assert time.monotonic() < deadline
            answered += 1 + sum(ask(client) for _ in range(8))
            assert answered >= 17, "the replica that is left answers all"
        with psycopg.connect(url) as connection:
            deadline = time.monotonic() + 30
            while (n := done_in(connection)) < answered:
                assert time.monotonic() < deadline, f"{n} of {answered} answers stand in the one ledger"
                time.sleep(0.1)
        assert baseload("deploy", "ray", *where, "--down", env=dict(os.environ)) == "The replicas are gone."
    finally:
        ray.shutdown()
        cluster.shutdown()


def done_in(connection: psycopg.Connection) -> int:
    """How many requests the ledger knows as done."""
    row = connection.execute("SELECT count(*) FROM requests WHERE status = 'done'").fetchone()
    connection.rollback()
    return row[0] if row else 0


def ask(client: httpx2.Client) -> bool:
    """Whether one question got an answer."""
    body = {"model": "local", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    try:
        return client.post("/v1/chat/completions", json=body).status_code == 200
    except httpx2.HTTPError:
        return False
