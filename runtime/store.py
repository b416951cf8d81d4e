"""The model store: files pulled once, verified by sha256, found by name.

`ROOT/models/NAME/` holds `model.gguf` (or a folder `model/` of safetensors) and `manifest.json`, which is written last: a
model without it isn't there. Everything else in that folder is the rest of an interrupted pull, and the next one uses it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .catalogue import CatalogueEntry, catalogue
from .sources import fetch, name_of, parse
from .transfer import Leave, Progress, StoreError, digest, need_space

__all__ = ["Store", "StoreError", "StoredModel", "default_root"]

RESERVED = {"auto", "local"}  # names that the router gives a meaning
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def default_root() -> Path:
    """`$BASELOAD_HOME`, or ~/.cache/baseload."""
    return Path(os.environ.get("BASELOAD_HOME") or Path.home() / ".cache" / "baseload")


@dataclass(frozen=True)
class StoredModel:
    """A model in the store: what its manifest says, and where it is."""

    name: str
    path: Path
    source: str
    sha256: str
    bytes: int
    pulled_at: float  # seconds since the epoch
    licence: str = ""


class Store:
    """The models under one root folder. Several processes may use one store: a pull holds a lock on its model."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def list(self) -> list[StoredModel]:
        """The models that are whole, by name."""
        found = [self._read(folder) for folder in sorted(self._models.glob("*/")) if not folder.name.startswith(".")]
        return [model for model in found if model is not None]

    def get(self, name: str) -> StoredModel | None:
        """The stored model of that name."""
        return self._read(self._models / name) if _NAME.fullmatch(name) else None

    def resolve(self, name_or_path: str) -> Path:
        """The file (or safetensors folder) of a stored model, or of a path that exists. Raises StoreError."""
        if model := self.get(name_or_path):
            return model.path
        path = Path(os.path.expanduser(name_or_path))
        if path.is_file() or (path / "config.json").is_file():
            return path
        known = "" if name_or_path not in catalogue() else f": baseload pull {name_or_path}"
        raise StoreError(f"There is no model {name_or_path!r} in the store and no such file{known}")

    def ensure(self, name_or_path: str, *, leave: Leave | None = None, progress: Progress | None = None) -> Path:
        """`resolve`, after a pull if it is a name of the catalogue that is not in the store yet."""
        if self.get(name_or_path) is None and name_or_path in catalogue():
            self.pull(name_or_path, leave=leave, progress=progress)
        return self.resolve(name_or_path)

    def pull(
        self,
        what: str,
        *,
        name: str | None = None,
        sha256: str | None = None,
        leave: Leave | None = None,
        progress: Progress | None = None,
    ) -> StoredModel:
        """Fetch a model by its catalogue name or its source, verify it and put it in place; one already here is kept.

        `leave` is asked before anything dials out (None: nobody to ask). Raises StoreError, in one line, or EgressDenied.
        """
        entry = catalogue().get(what) or _uncatalogued(what, sha256)
        name = name or entry.name
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise StoreError(f"{name!r} cannot be a model's name.")
        folder = self._models / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                return self._keep(folder, entry) or self._pull(folder, entry, leave, progress or _silent)
        except OSError as error:
            raise StoreError(f"The store at {self.root} cannot be written: {error.strerror or error}.") from error

    def _keep(self, folder: Path, entry: CatalogueEntry) -> StoredModel | None:
        model = self._read(folder)
        if model and model.source != entry.source:
            raise StoreError(f"There is another model {folder.name!r}, from {model.source}; remove it or give a --name.")
        if model and entry.sha256 and model.sha256 != entry.sha256:
            raise StoreError(f"The model {folder.name!r} here has another sha256 ({model.sha256}); remove it first.")
        return model

    def _pull(self, folder: Path, entry: CatalogueEntry, leave: Leave | None, progress: Progress) -> StoredModel:
        part = folder / "model.part"
        need_space(folder, entry.bytes - (part.stat().st_size if part.is_file() else 0))
        fetch(parse(entry.source), part, downloads=self.root / "downloads", leave=leave, progress=progress)
        found = digest(part)
        if entry.sha256 and found != entry.sha256:
            shutil.rmtree(part) if part.is_dir() else part.unlink()
            raise StoreError(f"{entry.source} is not what it should be: sha256 is {found}, not {entry.sha256}; it was removed.")
        final = folder / ("model" if part.is_dir() else "model.gguf")
        if part.is_dir():
            shutil.rmtree(final, ignore_errors=True)
            _sync(part)
        part.replace(final)
        _sync(folder)
        size = sum(p.stat().st_size for p in final.iterdir()) if final.is_dir() else final.stat().st_size
        model = StoredModel(folder.name, final, entry.source, found, size, time.time(), entry.licence)
        _write_json(folder / "manifest.json", {**asdict(model), "path": final.name})
        return model

    def remove(self, name: str) -> None:
        """Delete a model, or what an interrupted pull left of it. Raises StoreError if there is nothing."""
        folder = self._models / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            raise StoreError(f"There is no model {name!r} in the store.")
        try:
            (folder / "manifest.json").unlink(missing_ok=True)  # first: half a model must not look like one
            shutil.rmtree(folder)
        except OSError as error:
            raise StoreError(f"{name!r} cannot be removed: {error.strerror or error}.") from error

    def verify(self, name: str) -> StoredModel:
        """Read the whole model again. Raises StoreError if it has changed since it was pulled."""
        model = self.get(name)
        if model is None:
            raise StoreError(f"There is no model {name!r} in the store.")
        try:
            found = digest(model.path)
        except OSError as error:
            raise StoreError(f"{name!r} cannot be read: {error.strerror or error}.") from error
        if found != model.sha256:
            raise StoreError(f"{name!r} has changed since it was pulled: sha256 is {found}, not {model.sha256}.")
        return model

    @property
    def _models(self) -> Path:
        return self.root / "models"

    def _read(self, folder: Path) -> StoredModel | None:
        try:
            said: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
            model = StoredModel(**{**said, "name": folder.name, "path": folder / Path(said["path"]).name})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return model if model.path.exists() else None


def _uncatalogued(source: str, sha256: str | None) -> CatalogueEntry:
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise StoreError("A sha256 is 64 hexadecimal digits.")
    name = re.sub(r"[^a-z0-9._-]+", "-", name_of(parse(source))).strip("-.")
    return CatalogueEntry(name, source, sha256 or "", 0, licence="", description="")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two pulls of one model: the second waits and then finds it there. The lock ends with the process that holds it."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_json(path: Path, value: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as writer:
        json.dump(value, writer, indent=1)
        writer.flush()
        os.fsync(writer.fileno())
    part.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _silent(done: int, total: int | None) -> None:
    pass
