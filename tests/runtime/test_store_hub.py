"""Pulls from Hugging Face, by a stand-in: what breaks off goes on, and nothing is taken that is not as described."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from baseload.runtime.store import Store, StoreError
from baseload.wire.errors import EgressDenied

from .store_home import BODY, SHA, gguf, rest, store

__all__ = ["gguf", "store"]  # fixtures


class HubServer(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    cut_after: ClassVar[int | None] = None  # each connection breaks after so many bytes of a file
    lies: ClassVar[bool] = False  # what is sent is not what was described
    ranges_taken: ClassVar[bool] = True
    away: ClassVar[str] = ""  # files are at that address
    sent: ClassVar[list[tuple[str | None, str | None]]] = []  # Range and Authorization of each request for a file

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/owner/repo/"):
            siblings = [self._described(*item) for item in self.files.items()]
            self._send(json.dumps({"id": "owner/repo", "sha": "c" * 40, "siblings": siblings}).encode())
        elif self.path.startswith("/owner/repo/resolve/") and self.away:
            self.sent.append((self.headers["range"], self.headers["authorization"]))
            self._send(b"", 302, location=f"{self.away}/elsewhere/{name}")
        elif name in self.files:
            self._send_file(self.files[name])
        else:
            self._send(b"", 404, x_error_code="RepoNotFound")

    def _described(self, name: str, body: bytes) -> dict[str, Any]:
        lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 9}
        return {"rfilename": name, "size": len(body), "blobId": "b" * 40, **({"lfs": lfs} if len(body) > 1000 else {})}

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, body: bytes) -> None:
        self.sent.append((self.headers["range"], self.headers["authorization"]))
        begin = int(self.headers["range"].removeprefix("bytes=").split("-")[0]) if self.ranges_taken else 0
        self.send_response(206 if self.ranges_taken else 200)
        self.send_header("content-length", str(len(body) - begin))
        self.send_header("content-range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end = len(body) if self.cut_after is None else min(len(body), begin + self.cut_after)
        self.wfile.write(b"x" * (end - begin) if self.lies else body[begin:end])
        self.close_connection = end < len(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HubServer]]:
    HubServer.files, HubServer.cut_after, HubServer.lies, HubServer.ranges_taken = {"q4.gguf": BODY}, None, False, True
    HubServer.away, HubServer.sent = "", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield HubServer
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub(store: Store, hub: type[HubServer]):
    asked: list[tuple[str, int, str]] = []
    model = store.pull("hf:owner/repo/q4.gguf", sha256=SHA, leave=lambda *call: asked.append(call))
    assert (model.name, model.path.read_bytes() == BODY) == ("q4", True)
    assert [(host, purpose) for host, _, purpose in asked] == [("127.0.0.1", "pull hf:owner/repo")]
    assert rest(store, "q4") == ["manifest.json", "model.gguf"]


def test_the_only_gguf_of_a_repository_needs_no_name(store: Store, hub: type[HubServer]):
    hub.files = {"README.md": b"hello", "q4.gguf": BODY}
    assert store.pull("hf:owner/repo").sha256 == SHA
    hub.files = {"q4.gguf": BODY, "q8.gguf": BODY}
    with pytest.raises(StoreError, match=r"name one, as in hf:owner/repo/q4\.gguf"):
        store.pull("hf:owner/repo", name="other")
    hub.files = {"pytorch_model.bin": b"pickle"}
    with pytest.raises(StoreError, match="neither"):
        store.pull("hf:owner/repo", name="other")


def test_a_safetensors_repository(store: Store, hub: type[HubServer]):
    hub.files = {"config.json": b"{}", "model.safetensors": BODY, "tokenizer.json": b"{}", "evil.py": b"", "x.bin": b""}
    model = store.pull("hf:owner/repo")
    assert sorted(p.name for p in model.path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert store.verify("repo") == model


def test_a_connection_that_breaks_again_and_again_still_brings_the_file(store: Store, hub: type[HubServer]):
    hub.cut_after = 70_000
    seen: list[int] = []
    assert store.pull("hf:owner/repo/q4.gguf", progress=lambda done, total: seen.append(done)).sha256 == SHA
    assert [int((range or "")[6:-1]) for range, _ in hub.sent] == [0, 70_000, 140_000, 210_000, 280_000]
    assert seen == sorted(seen) and seen[-1] == len(BODY)


@pytest.mark.parametrize("ranges_taken", [True, False])
def test_a_later_pull_goes_on_where_the_first_broke_off(store: Store, hub: type[HubServer], ranges_taken: bool):
    hub.files, hub.cut_after = {"q4.gguf": os.urandom(3_000_000)}, 2_000_000

    def unplug(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("hf:owner/repo/q4.gguf", progress=unplug)
    assert store.list() == []
    hub.cut_after, hub.ranges_taken = None, ranges_taken
    assert store.pull("hf:owner/repo/q4.gguf").path.read_bytes() == hub.files["q4.gguf"]
    assert hub.sent[-1][0] not in (None, "bytes=0-")
    assert rest(store, "q4") == ["manifest.json", "model.gguf"]


def test_a_file_that_is_not_as_described_is_removed(store: Store, hub: type[HubServer]):
    hub.lies = True
    with pytest.raises(StoreError, match="did not arrive as the hub describes it"):
        store.pull("hf:owner/repo/q4.gguf")
    hub.lies = False
    assert store.pull("hf:owner/repo/q4.gguf").sha256 == SHA


def test_a_redirect_is_asked_leave_for_and_gets_no_token(store: Store, hub: type[HubServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    here = os.environ["HF_ENDPOINT"]
    hub.away = here.replace("127.0.0.1", "localhost")
    asked: list[str] = []
    assert store.pull("hf:owner/repo/q4.gguf", leave=lambda host, port, why: asked.append(host)).sha256 == SHA
    assert asked == ["127.0.0.1", "localhost"]
    assert [token for _, token in hub.sent] == ["Bearer hf_secret", None]


def test_a_redirect_without_leave_is_not_followed(store: Store, hub: type[HubServer]):
    hub.away = "http://elsewhere.example"

    def only_here(host: str, port: int, purpose: str) -> None:
        if host != "127.0.0.1":
            raise EgressDenied(f"{host} is not on the list.")

    with pytest.raises(EgressDenied, match=r"elsewhere\.example"):
        store.pull("hf:owner/repo/q4.gguf", leave=only_here)


def test_redirects_without_end(store: Store, hub: type[HubServer]):
    hub.files, hub.away = {"q4.gguf": BODY}, os.environ["HF_ENDPOINT"] + "/owner/repo/resolve"
    with pytest.raises(StoreError, match="without end"):
        store.pull("hf:owner/repo/q4.gguf")


def test_what_the_hub_does_not_have(store: Store, hub: type[HubServer]):
    with pytest.raises(StoreError, match=r"has no file none\.gguf"):
        store.pull("hf:owner/repo/none.gguf")
    with pytest.raises(StoreError, match="no such repository or revision"):
        store.pull("hf:nobody/nothing")


def test_a_hub_out_of_reach_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"cannot be reached.*file:PATH") as caught:
        store.pull("hf:owner/repo/q4.gguf")
    assert "\n" not in caught.value.message
