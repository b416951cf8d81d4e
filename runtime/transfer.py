"""Moving bytes into the store: copying that goes on where it broke off, syncing, hashing, and what it all may say."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..wire.errors import BaseloadError

Leave = Callable[[str, int, str], None]
"""`leave(host, port, purpose)` returns if this machine may dial there, having recorded it; raises EgressDenied otherwise."""

Progress = Callable[[int, int | None], None]
"""`progress(bytes so far, bytes in all or None)`; called from another thread too."""

BLOCK = 1 << 20

FOLDER_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")  # no pickles, no code


class StoreError(BaseloadError):
    """A model could not be found, fetched or verified. One line, shown by the CLI."""

    default_code = "store_error"


def copy(path: Path, into: Path, progress: Progress) -> None:
    """Copy, going on where an earlier try broke off if what it left is indeed the file's beginning."""
    total = path.stat().st_size
    with path.open("rb") as reader, into.open("ab") as writer:
        done = writer.tell()
        if done > total or not _same_beginning(reader, into, done):
            writer.truncate(0)
            done = 0
        reader.seek(done)
        need_space(into.parent, total - done)
        pour(reader, writer, progress, done, total)


def _same_beginning(reader: IO[bytes], part: Path, length: int) -> bool:
    with part.open("rb") as begun:
        while begun.tell() < length:
            if begun.read(BLOCK) != reader.read(min(BLOCK, length - reader.tell())):
                return False
    return True


def pour(reader: IO[bytes], writer: IO[bytes], progress: Progress, done: int, total: int) -> int:
    """Write all of `reader`, sync, and return the bytes done so far."""
    while block := reader.read(BLOCK):
        writer.write(block)
        done += len(block)
        progress(done, total)
    writer.flush()
    os.fsync(writer.fileno())
    return done


def need_space(folder: Path, size: int) -> None:
    """Raise StoreError if the disk has no room for `size` bytes more."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise StoreError(f"The disk is too full: {size / 1e6:.0f} MB needed in {folder}, {free / 1e6:.0f} MB free.")


def is_wanted(name: str) -> bool:
    """Whether a file belongs to a safetensors model."""
    return any(fnmatch.fnmatch(name, glob) for glob in FOLDER_FILES)


def digest(path: Path) -> str:
    """sha256 of a file; of a folder, the sha256 over its files' names and sha256, in the order of their names."""
    if path.is_dir():
        lines = [f"{digest(p)}  {p.name}\n" for p in sorted(path.iterdir()) if p.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


@contextmanager
def watched(folder: Path, progress: Progress, total: int | None = None) -> Iterator[None]:
    """Report the growth of `folder` while somebody else writes into it."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            progress(sum(size_now(path) for path in folder.rglob("*")), total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def size_now(path: Path) -> int:
    """Bytes of a file; 0 of what is no file, or not any more."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # just renamed
        return 0
