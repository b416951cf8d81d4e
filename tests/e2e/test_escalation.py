"""A local answer that fails its schema goes to a stand-in supplier; in an air gap it cannot, and nothing even tries."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ANSWER = '{"capital": "Paris"}'
SCHEMA = {"type": "object", "required": ["capital"], "properties": {"capital": {"type": "string"}}}
ASK = {
    "model": "auto",
    "temperature": 0,
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "Write a poem about the sea."}],
    "baseload": {"checks": [{"type": "json_schema", "schema": SCHEMA}]},  # a response_format would be kept to
}


class Supplier(ThreadingHTTPServer):
    """Speaks OpenAI's chat protocol and always answers with JSON that fits the schema."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = 0
        self.asked: list[tuple[dict[str, Any], str | None]] = []

    def get_request(self) -> Any:
        found = super().get_request()
        self.connections += 1
        return found


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert isinstance(self.server, Supplier)
        self.server.asked.append((body, self.headers["authorization"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chunks = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ANSWER[:7]}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {"content": ANSWER[7:]}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47}},
        ]
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps({"id": "x", "model": "big", **chunk}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def supplier() -> Iterator[Supplier]:
    with Supplier() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def config(supplier: Supplier) -> str:
    return f"""
[router]
ladder = ["stand-in/big"]
allowed_suppliers = ["stand-in"]
[suppliers.stand-in]
kind = "openai_chat"
base_url = "http://127.0.0.1:{supplier.server_port}/v1"
api_key_env = "STAND_IN_KEY"
models = [{{id = "big", context_length = 8192}}]
"""


KEY = {"STAND_IN_KEY": "sk-stand-in"}


@pytest.fixture(scope="module")
def open_server(start: Any, supplier: Supplier) -> Any:
    return start(config=config(supplier), env=KEY)


@pytest.fixture(scope="module")
def gapped(start: Any, supplier: Supplier) -> Any:
    return start("--air-gap", config=config(supplier), env=KEY)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_schema_is_escalated_with_the_evidence(open_server: Any, supplier: Supplier, stream: bool):
    before = len(supplier.asked)
    status, answer, headers = open_server.call("/v1/chat/completions", ASK | {"stream": stream})
    assert status == 200, answer
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert answer.rstrip().endswith("data: [DONE]")
    else:
        text = answer["choices"][0]["message"]["content"]
        assert (headers["x-baseload-route"], headers["x-baseload-attempts"]) == ("stand-in/big", "2")
    assert text == ANSWER, "not a word of the local model's poem"

    asked, key = supplier.asked[-1]
    assert len(supplier.asked) == before + 1 and key == "Bearer sk-stand-in"
    assert asked["model"] == "big" and "baseload" not in asked
    assert asked["messages"][0] == ASK["messages"][0]
    assert asked["messages"][1]["role"] == "assistant" and "not valid JSON" in asked["messages"][2]["content"]
    # The watch on the server's sockets sees this call, so its silence below means something.
    assert any(f"'127.0.0.1', {supplier.server_port}" in line for line in open_server.reached)

    status, row, _ = open_server.call(f"/v1/requests/{headers['x-baseload-request-id']}")
    assert (status, row["status"], row["route"]) == (200, "done", "stand-in/big")
    local, bought = row["attempts"]
    assert (local["backend"], bool(local["accepted"]), bool(bought["accepted"])) == ("local", False, True)
    assert (bought["backend"], bought["prompt_tokens"], bought["completion_tokens"]) == ("stand-in", 40, 7)
    verdicts = {(o["attempt_id"], o["check"]): bool(o["passed"]) for o in row["outcomes"]}
    assert verdicts[local["id"], "json_schema"] is False and verdicts[bought["id"], "json_schema"] is True


def test_a_request_may_forbid_it_and_local_never_leaves(open_server: Any, supplier: Supplier):
    before = supplier.connections, len(supplier.asked)
    status, answer, _ = open_server.call(
        "/v1/chat/completions", ASK | {"baseload": {**ASK["baseload"], "allow_suppliers": False}}
    )
    assert (status, answer["error"]["type"]) == (403, "permission_error")
    status, answer, _ = open_server.call("/v1/chat/completions", ASK | {"model": "local"})
    assert status == 200 and answer["choices"][0]["message"]["content"] != ANSWER
    assert (supplier.connections, len(supplier.asked)) == before


def test_a_supplier_can_be_asked_by_name(open_server: Any, supplier: Supplier):
    ask = {"model": "stand-in/big", "messages": ASK["messages"]}
    status, answer, headers = open_server.call("/v1/chat/completions", ask)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, ANSWER)
    assert headers["x-baseload-attempts"] == "1"
    assert "stand-in/big" in {model["id"] for model in open_server.call("/v1/models")[1]["data"]}


@pytest.mark.parametrize("stream", [False, True])
def test_in_an_air_gap_it_ends_in_a_clear_error_and_no_connection_was_tried(gapped: Any, supplier: Supplier, stream: bool):
    connections = supplier.connections
    status, answer, headers = gapped.call("/v1/chat/completions", ASK | {"stream": stream})
    if stream and status == 200:  # keep-alives had gone out before the verdict: the error is an event of the stream
        events = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
        assert len(events) == 2 and events[1] == "[DONE]"
        answer = json.loads(events[0])
    else:
        assert status == 403
    error = answer["error"]
    assert (error["type"], error["code"]) == ("permission_error", "escalation_denied")
    assert "air gap" in error["message"] and "json_schema" in error["message"]

    _, row, _ = gapped.call(f"/v1/requests/{headers['x-baseload-request-id']}")
    assert (row["status"], [a["backend"] for a in row["attempts"]]) == ("failed", ["local"])
    rungs = {rung["name"]: rung for rung in row["decision"]["rungs"]}
    assert (rungs["stand-in/big"]["allowed"], rungs["stand-in/big"]["gate"]) == (False, "air_gap")
    assert supplier.connections == connections
    assert gapped.reached == []


def test_in_an_air_gap_a_suppliers_name_is_refused_and_local_work_goes_on(gapped: Any, supplier: Supplier):
    connections = supplier.connections
    status, answer, _ = gapped.call("/v1/chat/completions", {"model": "stand-in/big", "messages": ASK["messages"]})
    assert status == 403 and "air gap" in answer["error"]["message"]
    assert not [model["id"] for model in gapped.call("/v1/models")[1]["data"] if "stand-in" in model["id"]]
    assert "Paris" in gapped.chat("What is the capital of France?")[1]["choices"][0]["message"]["content"]
    assert supplier.connections == connections and gapped.reached == []
