"""Stores on small pages, for tests."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload.runtime.engine import kv_file
from baseload.runtime.engine.kv_cache import page_key, salt_key
from baseload.runtime.engine.kv_file import HEADER_BYTES, folder_of
from baseload.runtime.engine.kv_store import KvStore

PAGE, N_PAGES = 48, 64
MINE, YOURS = b"m" * 32, b"y" * 32
SLOT = PAGE + 88
KEYS = [page_key(salt_key(""), (i,)) for i in range(N_PAGES)]


def size(n_slots: int) -> int:
    """Bytes of a file for so many pages."""
    return HEADER_BYTES + n_slots * SLOT


def new_pool(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (N_PAGES, PAGE), np.uint8)


@contextmanager
def opened(root: Path, pool: np.ndarray, n_slots: int = 32, identity: bytes = MINE, **more: Any) -> Iterator[KvStore]:
    """A store that has opened its file, or has given up."""
    store = KvStore(root, size(n_slots), pool, lambda: identity, **more)
    store.start()
    assert store.flush(20)
    try:
        yield store
    finally:
        store.close()


def keep(store: KvStore, *numbers: int) -> None:
    """Pages `numbers` of the pool, under their own keys, written."""
    for i in numbers:
        store.keep(KEYS[i], i, 0, lambda: True)
    assert store.flush(20)


def get(store: KvStore, i: int) -> bytes | None:
    """What the store has of page `i`; it is read into the pool's last page."""
    found = store.has(KEYS[i]) and store.load(KEYS[i], N_PAGES - 1)
    return store._pages[N_PAGES - 1].tobytes() if found else None


def file_of(root: Path, identity: bytes = MINE) -> Path:
    return folder_of(root, identity) / kv_file.PAGES


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
