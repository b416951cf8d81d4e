"""The rooms put together and taken apart: whatever one of them does, the others are closed, the books last."""

import sqlite3
from pathlib import Path

import pytest

from baseload.ledger.rows import RequestRow
from baseload.router import Router
from baseload.server.build import build_services
from baseload.server.settings import LedgerSettings, Settings
from baseload.wire.errors import BaseloadError

pytestmark = pytest.mark.slow


def settings(book: Path) -> Settings:
    return Settings(ledger=LedgerSettings(url=f"sqlite:///{book}"))


async def test_a_room_that_cannot_be_closed_keeps_no_other_open(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path))

    async def broken(self: object) -> None:
        raise RuntimeError("stuck")

    monkeypatch.setattr(Router, "close", broken)
    services = await build_services(settings(tmp_path / "book.db"), [("tiny", smollm2)])
    [engine] = services.engines().values()
    services.ledger.add(RequestRow("req_1", 1.0, "openai_chat", "auto"))  # pyright: ignore[reportOptionalMemberAccess]

    with pytest.raises(RuntimeError, match="stuck"):
        await services.close()
    with sqlite3.connect(tmp_path / "book.db") as book:
        assert book.execute("SELECT id FROM requests").fetchall() == [("req_1",)]
    assert not engine.stats().alive


async def test_what_cannot_be_built_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path))
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(BaseloadError):
        await build_services(settings(tmp_path / "book.db"), [("no", tmp_path / "no.gguf")])
    (tmp_path / "book.db").rename(tmp_path / "moved.db")
    with sqlite3.connect(tmp_path / "moved.db") as book:
        assert book.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not (tmp_path / "book.db-wal").exists()  # its last connection is closed
