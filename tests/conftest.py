"""Fixtures shared by all rooms: the real models, pulled once into the ordinary store."""

from pathlib import Path

import pytest

from baseload.runtime.store import Store, default_root


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (98 MB)."""
    return Store(default_root()).ensure("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma-3-270M, the base model, as a GGUF file (253 MB); its licence allows tests, not redistribution."""
    return Store(default_root()).ensure("gemma3-270m")
