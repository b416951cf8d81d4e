#!/usr/bin/env python3
"""A program that stands in for `vllm serve`: its command line, its health, its numbers and its OpenAI API; no model.

It counts words back, four requests at a time, one word every 20 ms, and starts a process of its own in a session of its own, as
vLLM does. `$STAND_IN` is a folder: `pids` gets both ids, `env` what they were given; `refuse` there ends it at once, and
`brief` after it was asked once for its health.
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

place = Path(os.environ["STAND_IN"])
words = sys.argv[sys.argv.index("--model") :]
told = {words[n]: words[n + 1] for n in range(len(words) - 1) if words[n].startswith("--")}
seats = threading.Semaphore(4)


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, body: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def allowed(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self.reply(401, '{"error": "Unauthorized"}')
        return False

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200, "", "text/plain")
            if (place / "brief").exists():
                os._exit(3)
        elif self.path == "/metrics":
            help = "# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n"
            self.reply(200, f'{help}vllm:num_requests_running{{engine="0"}} 2.0\n# HELP http_requests X.\nhttp_requests 1\n')
        elif self.path == "/v1/models" and self.allowed():
            self.reply(200, json.dumps({"data": [{"id": told["--served-model-name"], "max_model_len": 2048}]}))
        elif self.path != "/v1/models":
            self.reply(404, "{}")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.allowed():
            return
        n = asked.get("max_tokens") or 8
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        with seats:
            for word in range(n):
                time.sleep(0.02)
                said = {"text": f"{word} "} if "prompt" in asked else {"delta": {"content": f"{word} "}}
                self.say({"choices": [{"index": 0, **said, "finish_reason": None if word + 1 < n else "length"}]})
        self.say({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": n}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def say(self, chunk: object) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())


if (place / "refuse").exists():
    print("(APIServer pid=1) ERROR 11-25 12:00:00 [core.py:1] ValueError: there is no such model", flush=True)
    sys.exit(1)
core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
(place / "pids").write_text(f"{os.getpid()} {core.pid}")
(place / "env").write_text(json.dumps(dict(os.environ) | {"ARGV": " ".join(words)}))
print("(APIServer pid=1) WARNING 11-25 12:00:00 [api_server.py:1] it stands in", flush=True)
ThreadingHTTPServer((told["--host"], int(told["--port"])), Api).serve_forever()
