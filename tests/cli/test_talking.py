"""The commands that speak with a server, against a stand-in."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from baseload.cli.ps import digest


def test_ask_prints_the_answer(cli: Any, server: Any):
    done = cli("ask", "What", "is", "it?", "--url", server.url, "--model", "local", "--system", "Be brief.")
    assert (done.exit_code, done.stdout) == (0, "Paris.\n")
    body = server.asked[0]
    assert (body["model"], body["stream"]) == ("local", True)
    roles = [(m["role"], m["content"]) for m in body["messages"]]
    assert roles == [("system", "Be brief."), ("user", "What is it?")]


def test_what_is_piped_in_comes_after_the_question(cli: Any, server: Any):
    assert cli("ask", "Sum this up:", "--url", server.url, input="a long text\n").exit_code == 0
    assert server.asked[0]["messages"][-1]["content"] == "Sum this up:\n\na long text"
    cli("ask", "--url", server.url, input="only piped")
    assert server.asked[1]["messages"][-1]["content"] == "only piped"
    assert cli("ask", "--url", server.url).exit_code == 2


def test_options_reach_the_server(cli: Any, server: Any):
    cli("ask", "Hi", "--url", server.url, "--max-tokens", "7", "--temperature", "0")
    body = server.asked[0]
    assert (body.get("max_tokens") or body.get("max_completion_tokens"), body["temperature"]) == (7, 0)
    cli("ask", "Hi", "--url", server.url)
    assert "temperature" not in server.asked[1]  # the model's own default stands
    assert cli("ask", "Hi", "--max-tokens", "0").exit_code == 2


def test_the_key_comes_from_the_environment(cli: Any, server: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_API_KEY", "sk-local")
    cli("ask", "Hi", "--url", server.url)
    assert server.headers_seen[0]["authorization"] == "Bearer sk-local"
    monkeypatch.delenv("BASELOAD_API_KEY")
    cli("ask", "Hi", "--url", server.url)
    assert "authorization" not in server.headers_seen[1]


@pytest.mark.parametrize(("how", "says"), [("error", "The server is starting."), ("stream", "The engine has died.")])
def test_a_failed_answer_is_one_line(cli: Any, server: Any, how: str, says: str):
    server.broken = how
    done = cli("ask", "Hi", "--url", server.url)
    assert done.exit_code == 1
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [["ask", "Hi"], ["ps"]])
def test_no_server_is_one_line_with_a_hint(cli: Any, command: list[str]):
    done = cli(*command, "--url", "http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9" in done.stderr and "baseload serve" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://[::1", "file:///etc/passwd"])
def test_what_is_no_address(cli: Any, url: str):
    done = cli("ask", "Hi", "--url", url)
    assert done.exit_code == 1 and "is not an address" in done.stderr


@pytest.mark.parametrize("tail", ["/", "/v1", "/v1/"])
def test_the_address_of_an_sdk_does_too(cli: Any, server: Any, tail: str):
    assert cli("ask", "Hi", "--url", server.url + tail).stdout == "Paris.\n"


def test_another_machine_is_dialled_only_outside_an_air_gap(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch):
    done = cli("ask", "Hi", "--url", "http://baseload.invalid:8787")
    assert done.exit_code == 1 and "No server can be reached" in done.stderr
    assert rows_of(home) == [("baseload.invalid", 8787, 1)]
    monkeypatch.setenv("BASELOAD_AIR_GAP", "1")
    done = cli("ask", "Hi", "--url", "http://baseload.invalid:8787")
    assert done.exit_code == 1 and "air gap" in done.stderr
    assert rows_of(home) == [("baseload.invalid", 8787, 1), ("baseload.invalid", 8787, 0)]


def rows_of(home: Path) -> list[Any]:
    with sqlite3.connect(home / "ledger.db") as connection:
        return connection.execute("SELECT host, port, allowed FROM egress ORDER BY ts").fetchall()


def test_chat_remembers_and_forgets(cli: Any, server: Any):
    done = cli("chat", "--url", server.url, "--system", "Be brief.", input="one\ntwo\n/reset\nthree\n/what\n\n/exit\nnever\n")
    assert done.exit_code == 0
    assert done.stdout.count("Paris.") == 3
    texts = [[m["content"] for m in body["messages"]] for body in server.asked]
    assert texts == [["Be brief.", "one"], ["Be brief.", "one", "Paris.", "two"], ["Be brief.", "three"]]


def test_chat_ends_with_the_input(cli: Any, server: Any):
    assert cli("chat", "--url", server.url, input="one\n").exit_code == 0
    assert len(server.asked) == 1


def test_chat_goes_on_after_a_failure(cli: Any, server: Any):
    server.broken = "stream"
    done = cli("chat", "--url", server.url, input="one\ntwo\n")
    assert done.exit_code == 0 and done.stdout.count("The engine has died.") == 2
    assert [len(body["messages"]) for body in server.asked] == [1, 1]  # what failed is not part of the conversation


METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{model_name="m"} 1234.0
vllm:generation_tokens_total{model_name="n"} 1.0
"""


def test_ps(cli: Any, server: Any):
    models = {"data": [{"id": "smollm2", "max_model_len": 8192, "owned_by": "baseload"}, {"id": "auto"}]}
    server.pages = {"/health": '{"status": "ok"}', "/v1/models": json.dumps(models), "/metrics": METRICS}
    shown = cli("ps", "--url", server.url).stdout
    assert f"{server.url}: ok" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["smollm2", "8192", "baseload"] in lines and ["auto", "-", "-"] in lines
    assert ["running", "3"] in lines and ["generated", "tokens", "1,235"] in lines
    found = json.loads(cli("ps", "--url", server.url, "--json").stdout)
    assert found["numbers"] == {"running": 3, "generated_tokens": 1235}


def test_ps_of_something_that_is_not_ours(cli: Any, server: Any):
    server.pages = {"/health": "<html>", "/v1/models": "[]", "/metrics": "no metrics {{{"}
    assert cli("ps", "--url", server.url).exit_code == 0
    assert digest("x{") == {}
