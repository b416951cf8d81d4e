"""The same job over four suppliers, each with a protocol of its own: what changes is one line of the configuration."""

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
    "baseload": {"checks": [{"type": "json_schema", "schema": SCHEMA}]},
}
DELTA = {"type": "text_delta", "text": ANSWER}
# By the path's ending: (what the stream holds, where a request's header has the key)
SPOKEN: dict[str, tuple[list[dict[str, Any]], str]] = {
    "/chat/completions": (
        [
            {"choices": [{"index": 0, "delta": {"content": ANSWER}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 7}},
        ],
        "authorization",
    ),
    "/responses": (
        [
            {"type": "response.output_text.delta", "delta": ANSWER},
            {
                "type": "response.completed",
                "response": {"status": "completed", "usage": {"input_tokens": 40, "output_tokens": 7}},
            },
        ],
        "authorization",
    ),
    "/v1/messages": (
        [
            {"type": "message_start", "message": {"usage": {"input_tokens": 40}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": DELTA},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
        ],
        "x-api-key",
    ),
    ":streamGenerateContent": (
        [
            {
                "candidates": [{"content": {"role": "model", "parts": [{"text": ANSWER}]}, "finishReason": "STOP"}],
                "usageMetadata": {"promptTokenCount": 40, "candidatesTokenCount": 7},
            }
        ],
        "x-goog-api-key",
    ),
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        path = self.path.partition("?")[0]
        chunks, key = next(spoken for ending, spoken in SPOKEN.items() if path.endswith(ending))
        self.send_response(200 if "sk-stand-in" in (self.headers[key] or "") else 401)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def supplier(name: str, kind: str, url: str) -> str:
    models = 'models = [{id = "big", context_length = 8192}]'
    return f'[suppliers.{name}]\nkind = "{kind}"\nbase_url = "{url}"\napi_key_env = "STAND_IN_KEY"\n{models}\n'


@pytest.mark.parametrize("chosen", ["chat", "responses", "messages", "generate"])
def test_the_same_job_over_each(start: Any, port: int, chosen: str):
    url = f"http://127.0.0.1:{port}"
    suppliers = [
        supplier("chat", "openai_chat", f"{url}/v1"),
        supplier("responses", "openai_responses", f"{url}/v1"),
        supplier("messages", "anthropic_messages", url),
        supplier("generate", "google_generate", url),
    ]
    router = f'[router]\nallowed_suppliers = ["chat", "responses", "messages", "generate"]\nladder = ["{chosen}/big"]\n'
    server = start(config=router + "".join(suppliers), env={"STAND_IN_KEY": "sk-stand-in"})
    try:
        status, answer, headers = server.call("/v1/chat/completions", ASK)
        assert (status, headers["x-baseload-route"]) == (200, f"{chosen}/big"), answer
        assert answer["choices"][0]["message"]["content"] == ANSWER
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (40, 7)
    finally:
        server.stop()
