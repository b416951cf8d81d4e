"""Ollama's routes, as its clients use them."""

import json

import httpx2


def test_chat_streamed_and_whole(serve):
    running = serve()
    asked = {"model": "tiny:latest", "messages": [{"role": "user", "content": "one two"}]}
    streamed = running.post("/api/generate", model="tiny", prompt="one two")
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert "".join(line["response"] for line in lines) == "one two " and lines[-1]["done"]
    whole = httpx2.post(f"{running.url}/api/chat", json={**asked, "stream": False}, timeout=20).json()
    assert whole["message"]["content"] == "one two " and whole["eval_count"] == 2


def test_models(serve):
    running = serve()
    names = [m["name"] for m in running.get("/api/tags").json()["models"]]
    assert "tiny" in names
    shown = running.post("/api/show", model="tiny").json()
    assert shown["model_info"]["baseload.context_length"] == 2048 and "tools" in shown["capabilities"]
    assert running.get("/api/version").json()["version"]


def test_errors_are_in_its_shape(serve):
    running = serve()
    for path, body, status in (
        ("/api/generate", {"model": "none", "prompt": "x"}, 404),
        ("/api/generate", {"model": "tiny"}, 400),
        ("/api/show", {"model": "none"}, 404),
        ("/api/nothing", {}, 404),
    ):
        refused = running.post(path, **body)
        assert refused.status_code == status and isinstance(refused.json()["error"], str), path
