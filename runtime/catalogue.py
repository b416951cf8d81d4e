"""The models that can be pulled by name alone: one TOML file each in configs/models/."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class CatalogueEntry:
    """A model known by name: where it comes from and what it must hash to. `notes`: what its licence asks of a user;
    `sampling`: what its makers recommend, for requests that say nothing."""

    name: str
    source: str
    sha256: str
    bytes: int
    licence: str
    description: str
    notes: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """All entries by name. An unknown or missing key in a file is an error."""
    folder = Path(__file__).parents[1] / "configs" / "models"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.toml")]
    entries = [CatalogueEntry(**tomllib.loads(text)) for text in texts]
    return {entry.name: entry for entry in sorted(entries, key=lambda e: e.name)}
