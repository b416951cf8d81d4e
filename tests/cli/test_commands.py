"""The commands that need no server: what they print, and how they fail."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from baseload.ledger import AttemptRow, Ledger, OutcomeRow, RequestRow


def main(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "baseload.cli.main", *words], capture_output=True, text=True, timeout=60)


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


# ------------------------------------------------------------------------------------------------- the command line itself


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["rm"], 2),
        (["rm", "nobody"], 1),
        (["--nonsense"], 2),
        (["ledger", "report", "--since", "yesterday"], 2),
        (["ledger", "report", "--db", "/nowhere/x.db"], 1),
        (["doctor", "--model", "/nowhere/x.gguf"], 1),
        (["config", "show", "--config", "/nowhere.toml"], 1),
    ],
)
def test_exit_codes(words: list[str], status: int):
    done = main(*words)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("baseload: ")
        assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_traceback():
    command = f"{sys.executable} -m baseload.cli.main config show --json | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


# ------------------------------------------------------------------------------------------------- models


def test_pull_list_and_remove(cli: Any, gguf: Path, home: Path):
    assert "not pulled" in cli("models").stdout
    pulled = cli("pull", f"file:{gguf}")
    assert (pulled.exit_code, pulled.stdout.split()[0]) == (0, "tiny:")
    listed = cli("models")
    assert next(row for row in rows(listed.stdout) if row[0] == "tiny")[1:3] == ["1.0", "kB"]
    found = json.loads(cli("models", "--json").stdout)
    assert [m["name"] for m in found["stored"]] == ["tiny"]
    assert "smollm2-135m-instruct" in [m["name"] for m in found["available"]]
    assert cli("models", "--verify").exit_code == 0
    assert cli("rm", "tiny").stdout == "removed tiny\n"
    assert cli("rm", "tiny").exit_code == 1
    assert json.loads(cli("models", "--json").stdout)["stored"] == []


def test_verify_finds_a_changed_model(cli: Any, gguf: Path, home: Path):
    cli("pull", f"file:{gguf}", "--name", "mine")
    (home / "models" / "mine" / "model.gguf").write_bytes(b"changed")
    done = cli("models", "--verify")
    assert done.exit_code == 1
    assert "has changed since it was pulled" in done.stderr


def test_pull_json_and_a_wrong_sha256(cli: Any, gguf: Path):
    done = cli("pull", f"file:{gguf}", "--sha256", "0" * 64)
    assert done.exit_code == 1 and "is not what it should be" in done.stderr
    assert json.loads(cli("pull", f"file:{gguf}", "--json").stdout)["bytes"] == 1004


@pytest.mark.parametrize("source", ["pypi:tinymodel==1.0", "hf:owner/repo/x.gguf"])
def test_an_air_gap_pulls_nothing_from_outside(cli: Any, home: Path, source: str, monkeypatch: pytest.MonkeyPatch):
    def no(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was dialled")

    monkeypatch.setattr(socket, "create_connection", no)
    done = cli("pull", source, "--air-gap")
    assert done.exit_code == 1
    assert "air gap" in done.stderr.lower().replace("-", " ")
    assert json.loads(cli("models", "--json").stdout)["stored"] == []


def test_an_air_gap_set_in_the_settings_holds_for_pull(cli: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_AIR_GAP", "1")
    assert cli("pull", "hf:owner/repo/x.gguf").exit_code == 1


def test_what_a_pull_dials_is_in_the_ledger_first(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.2:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid:9/simple")
    done = cli("pull", "pypi:tinymodel==1.0")
    assert done.exit_code == 1 and "pip could not download tinymodel==1.0" in done.stderr
    with sqlite3.connect(home / "ledger.db") as connection:
        found = connection.execute("SELECT host, port, purpose, allowed FROM egress").fetchall()
    assert found == [("index.invalid", 9, "pull pypi:tinymodel==1.0", 1)]


# ------------------------------------------------------------------------------------------------- ledger


@pytest.fixture
def book(home: Path) -> Path:
    """A ledger with one request of an hour ago and one of last week."""
    now = time.time()
    ledger = Ledger.open(f"sqlite:///{home}/ledger.db")
    for id, ts in (("new", now - 3600), ("old", now - 7 * 86400)):
        ledger.add(RequestRow(id=id, ts=ts, protocol="openai_chat", model_asked="auto", route="local", status="done"))
        attempt = AttemptRow(f"a-{id}", id, 0, "local", "m", ts, 0.25, 1.5, 100, 20, 64, "stop", True)
        ledger.add(attempt)
        ledger.add(OutcomeRow(id, attempt.id, "non_empty", True))
    ledger.close()
    return home / "ledger.db"


def test_ledger_report(cli: Any, book: Path):
    done = cli("ledger", "report")
    table = rows(done.stdout)
    assert table[0][:4] == ["ROUTE", "MODEL", "REQUESTS", "TRIES"]
    assert table[1] == ["local", "auto", "2", "2", "2", "200", "40", "128", "0.250", "s", "1.500", "s", "unpriced", "0%"]
    assert table[2][:2] == ["total", "2"]
    assert rows(cli("ledger", "report", "--since", "24h").stdout)[1][2] == "1"
    assert rows(cli("ledger", "report", "--since", "2w", "--db", str(book)).stdout)[1][2] == "2"


def test_ledger_report_as_json(cli: Any, book: Path):
    found = json.loads(cli("ledger", "report", "--json", "--db", f"sqlite:///{book}").stdout)
    assert (found["total"]["requests"], found["lines"][0]["cached_tokens"], found["total"]["retail_usd"]) == (2, 128, None)


def test_ledger_show(cli: Any, book: Path):
    found = json.loads(cli("ledger", "show", "new").stdout)
    assert (found["id"], found["attempts"][0]["model"], found["outcomes"][0]["check"]) == ("new", "m", "non_empty")
    assert "knows no request" in cli("ledger", "show", "nobody").stderr


def test_a_damaged_ledger_is_one_line(cli: Any, home: Path):
    home.mkdir()
    (home / "ledger.db").write_bytes(b"not a database" * 500)
    done = cli("ledger", "report")
    assert done.exit_code == 1 and "cannot be used" in done.stderr


# ------------------------------------------------------------------------------------------------- config and doctor


def test_config_show_says_where_a_value_comes_from(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "baseload.toml").write_text("[server]\nport = 9000\n[engine]\nmax_batch = 8\n")
    monkeypatch.setenv("BASELOAD_PORT", "9001")
    lines = {row[0]: row[1:] for row in rows(cli("config", "show", "--origin").stdout)}
    assert lines["server.port"][:3] == ["9001", "env", "BASELOAD_PORT"]
    assert lines["engine.max_batch"][:2] == ["8", "file"]
    assert lines["server.host"] == ['"127.0.0.1"', "default"]
    assert json.loads(cli("config", "show", "--json").stdout)["server.port"] == 9001
    found = json.loads(cli("config", "show", "--json", "--origin").stdout)
    assert found["server.port"] == {"value": 9001, "origin": "env BASELOAD_PORT"}


def test_config_show_of_a_wrong_file(cli: Any, tmp_path: Path):
    (tmp_path / "wrong.toml").write_text("[server]\nprot = 9000\n")
    done = cli("config", "show", "--config", str(tmp_path / "wrong.toml"))
    assert done.exit_code == 1
    assert "prot" in done.stderr and "port" in done.stderr


def test_doctor_looks_at_everything(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_PORT", "0")
    done = cli("doctor")
    assert done.exit_code == 0, done.stderr
    assert [row[0] for row in rows(done.stdout)[1:]] == ["python", "packages", "settings", "store", "ledger", "port"]
    assert not (home / "ledger.db").exists()  # it looks, and changes nothing


def test_doctor_finds_a_taken_port_and_a_damaged_ledger(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    (home / "ledger.db").write_bytes(b"not a database" * 500)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("BASELOAD_PORT", str(taken.getsockname()[1]))
        found = json.loads(cli("doctor", "--json").stdout)
        done = cli("doctor")
    assert {check["check"] for check in found if not check["ok"]} == {"ledger", "port"}
    assert done.exit_code == 1
    assert "2 of 6 checks failed: ledger, port" in done.stderr


def test_doctor_reads_a_model_file(cli: Any, smollm2: Path, tmp_path: Path):
    sound = cli("doctor", "--model", str(smollm2))
    assert sound.exit_code == 0 and len(sound.stdout.splitlines()) == 1
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2.read_bytes()[:1_000_000])
    broken = cli("doctor", "--model", str(cut))
    assert broken.exit_code == 1 and len(broken.stderr.splitlines()) == 1


def test_doctor_of_a_model_loads_no_torch(smollm2: Path):
    code = f"""
import sys
from baseload.cli.main import main
try:
    main(["doctor", "--model", {str(smollm2)!r}])
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_bench_hands_its_words_on(cli: Any, monkeypatch: pytest.MonkeyPatch):
    import baseload.benchmarks.serving as serving

    seen: list[Any] = []
    monkeypatch.setattr(serving, "main", lambda argv: seen.append(argv))
    assert cli("bench", "serving", "--url", "http://x", "--model", "m").exit_code == 0
    assert seen == [["--url", "http://x", "--model", "m"]]


def test_an_engine_is_known_by_name_and_not_fetched_in_an_air_gap(cli, monkeypatch):
    assert "no engine 'nothing' to install; there are: vllm." in cli("pull", "--engine", "nothing").stderr
    monkeypatch.setattr("baseload.runtime.engine_install.index_hosts", lambda: [("pypi.org", 443)])
    denied = cli("pull", "--engine", "vllm", "--air-gap")
    assert denied.exit_code == 1 and "air gap" in denied.stderr
    assert cli("pull").exit_code == 2
