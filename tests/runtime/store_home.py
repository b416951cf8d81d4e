"""A model file of noise, and a store to pull it into."""

import hashlib
import os
from pathlib import Path

import pytest

from baseload.runtime.store import Store

BODY = os.urandom(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny-Model.gguf"
    path.write_bytes(BODY)
    return path


def rest(store: Store, name: str) -> list[str]:
    """What lies in a model's folder, but for the lock."""
    return sorted(p.name for p in (store.root / "models" / name).iterdir() if p.name != ".lock")
