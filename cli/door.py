"""The commands' way out: what a user's own command must dial is allowed, unless there is an air gap, and written down first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..wire.egress import Egress, EgressRecord
from .common import ledger_url

if TYPE_CHECKING:
    from ..ledger import Ledger

Door = Callable[[str], Egress]


class _Book:
    """The ledger, opened by the first record: what stays on this machine needs none."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self._ledger: Ledger | None = None

    async def write(self, record: EgressRecord) -> None:
        from ..ledger import EgressRow, Ledger

        if self._ledger is None:
            self._ledger = Ledger.open(ledger_url(self._config))
        await self._ledger.add_synced(EgressRow(**asdict(record)))

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()


@contextmanager
def door(config: Path | None = None, air_gap: bool = False) -> Iterator[Door]:
    """Gives `host -> Egress` that lets this one host be dialled; in an air gap (here or in the settings) none but loopback."""
    from ..server.settings import load

    closed = air_gap or load(config, {})[0].router.air_gap
    book = _Book(config)
    try:
        yield lambda host: Egress(frozenset({host}), book.write, air_gap=closed)
    finally:
        book.close()


@contextmanager
def leave(config: Path | None = None, air_gap: bool = False) -> Iterator[Callable[[str, int, str], None]]:
    """Gives the `leave(host, port, purpose)` that the store asks. Not for use inside an event loop."""
    with door(config, air_gap) as open_for:
        yield lambda host, port, purpose: asyncio.run(open_for(host).leave(host, port, purpose))
