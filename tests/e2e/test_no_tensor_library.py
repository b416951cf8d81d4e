"""A CPU answers without torch: the real server, in a process that then looks at what it has loaded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from baseload.runtime.store import default_root

# The server in the main thread; its client in another, which ends both.
SERVE_AND_ASK = """
import json, os, signal, sys, threading, time, urllib.error, urllib.request

base = "http://127.0.0.1:" + sys.argv[1]
found = {}


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def ask():
    try:
        for _ in range(600):
            try:
                call("/ready")
                break
            except OSError:
                time.sleep(0.1)
        chat = {"model": "local", "max_tokens": 8, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        answer = json.loads(call("/v1/chat/completions", chat | {"temperature": 0}))
        found["answer"] = answer["choices"][0]["message"]["content"]
        found["stream"] = call("/v1/chat/completions", chat | {"stream": True, "logprobs": True, "top_logprobs": 3, "seed": 1})
        found["modules"] = sorted(name for name in sys.modules if "." not in name)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


threading.Thread(target=ask).start()
from baseload.cli.main import build

try:
    build("serve")(["serve", "--port", sys.argv[1], "--model", sys.argv[2]])
finally:
    print(json.dumps(found))
"""
UNWANTED = {"torch", "transformers", "jinja2", "sklearn", "scipy", "pandas", "triton", "gguf"}


@pytest.mark.slow
def test_the_first_answer_loads_no_tensor_library(smollm2: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BASELOAD_")}
    paths = os.pathsep.join(str(Path(p).resolve()) for p in clean.get("PYTHONPATH", "").split(os.pathsep) if p)
    (tmp_path / "baseload.toml").write_text(f'[models]\nstore = "{default_root()}"\n[engine]\nkernels = "native"\n')
    done = subprocess.run(
        [sys.executable, "-c", SERVE_AND_ASK, port, str(smollm2)],
        cwd=tmp_path,
        env=clean | {"BASELOAD_HOME": str(tmp_path), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert "Paris" in found.get("answer", ""), done.stderr
    assert "data: [DONE]" in found["stream"] and "logprobs" in found["stream"]
    assert "numpy" in found["modules"] and not UNWANTED & set(found["modules"])
