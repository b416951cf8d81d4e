"""One model's KV pages in a file, as it lies on disk.

A header, then slots of one size, each a record's header and its page. A slot is written over when its page is the one that
was not wanted for longest. Nothing is believed because it stands there: a record names its page by what the page holds
(kv_cache.page_key) and carries a digest over that name, the page and the `identity` of what computed it, so that one that is
torn, altered, moved from another model's file or cut short is found out when it is read. That is why nothing is ever synced.
"""

import fcntl
import hashlib
import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Buffer = Any  # what os.preadv fills and os.pwritev writes
MAGIC = b"baseload KV v1\r\n"
HEADER_BYTES = 4096
_FILE = struct.Struct("<16s32sQ")  # magic, identity, bytes of a page
_RECORD = struct.Struct("<32sQ32s16s")  # key, stamp, digest of the page, digest of the three before
PAGES, FOLDER = "pages", re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan found: `slots` by key, the one written last at the end; slots to write to; and records that are broken."""

    slots: dict[bytes, int]
    free: list[int]
    stamp: int  # the newest record's
    n_broken: int


def folder_of(root: Path, identity: bytes) -> Path:
    """Where the pages of one identity (32 bytes) lie."""
    return root / identity.hex()[:32]


class PageFile:
    """The file of one identity, held by this process alone. Its methods raise OSError; `open` raises BlockingIOError if another
    process (or another PageFile) holds it."""

    def __init__(self, root: Path, identity: bytes, page_bytes: int, max_bytes: int) -> None:
        self._identity, self.page_bytes = identity, page_bytes
        self.slot_bytes = _RECORD.size + page_bytes
        self.n_slots = (max_bytes - HEADER_BYTES) // self.slot_bytes
        if self.n_slots < 1:
            raise OSError(f"{max_bytes} bytes do not hold one page of {page_bytes}")
        folder = folder_of(root, identity)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(folder / PAGES, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.was_foreign = not self._check_header()
            os.utime(self._fd)  # in use: `trim` goes by this
        except OSError:
            self.close()
            raise

    def scan(self) -> Found:
        """What is there, by the records' headers alone: pages are checked when they are read."""
        size, records, free, n_broken = os.fstat(self._fd).st_size, [], [], 0
        for slot in range(self.n_slots):
            raw = os.pread(self._fd, _RECORD.size, self._at(slot)) if self._at(slot) < size else b""
            key, stamp, is_sound = self._parse(raw)
            if is_sound and self._at(slot + 1) <= size:
                records.append((stamp, key, slot))
            else:
                free.append(slot)
                n_broken += any(raw)
        slots: dict[bytes, int] = {}
        for _, key, slot in sorted(records):
            if (older := slots.pop(key, None)) is not None:
                free.append(older)
            slots[key] = slot
        return Found(slots, sorted(free, reverse=True), max((stamp for stamp, _, _ in records), default=0), n_broken)

    def read(self, slot: int, key: bytes, page: Buffer) -> bool:
        """Fill `page` from `slot`. False, with nonsense in it, if that is not the sound page of this key."""
        raw = bytearray(_RECORD.size)
        n = os.preadv(self._fd, [raw, page], self._at(slot))
        return n == self.slot_bytes and self._sealed(key, self._parse(raw)[1], page) == raw

    def write(self, slot: int, key: bytes, stamp: int, page: Buffer) -> None:
        """Put `page` into `slot`."""
        self._write([self._sealed(key, stamp, page), page], self._at(slot))

    def erase(self, slot: int) -> None:
        """See that the record in `slot` is not found again."""
        self._write([bytes(_RECORD.size)], self._at(slot))

    def close(self) -> None:
        """Let others have the file."""
        os.close(self._fd)

    def _check_header(self) -> bool:
        """False if the file was another's, or none of ours: then it is emptied."""
        ours = _FILE.pack(MAGIC, self._identity, self.page_bytes)
        ours += hashlib.sha256(ours).digest()
        found = os.pread(self._fd, len(ours), 0)
        if found != ours:
            os.ftruncate(self._fd, 0)
            self._write([ours.ljust(HEADER_BYTES, b"\0")], 0)
        elif os.fstat(self._fd).st_size > self._at(self.n_slots):  # the limit was larger
            os.ftruncate(self._fd, self._at(self.n_slots))
        return found in (ours, b"")

    def _at(self, slot: int) -> int:
        return HEADER_BYTES + slot * self.slot_bytes

    def _sealed(self, key: bytes, stamp: int, page: Buffer) -> bytes:
        digest = hashlib.sha256(self._identity + key)
        digest.update(page)
        head = key + stamp.to_bytes(8, "little") + digest.digest()
        return head + self._check(head)

    def _parse(self, raw: bytes | bytearray) -> tuple[bytes, int, bool]:
        """Key, stamp, and whether a record's header is whole."""
        if len(raw) != _RECORD.size:
            return b"", 0, False
        key, stamp, _, check = _RECORD.unpack(raw)
        return key, stamp, check == self._check(raw[: -len(check)])

    def _check(self, head: bytes | bytearray) -> bytes:
        return hashlib.blake2b(head, digest_size=16, key=self._identity).digest()

    def _write(self, parts: Sequence[Buffer], at: int) -> None:
        whole = sum(memoryview(part).nbytes for part in parts)
        if os.pwritev(self._fd, parts, at) != whole:  # the disk is full; the next write would say so
            raise OSError("a write was cut short")


def trim(root: Path, keep: Path, max_bytes: int) -> None:
    """Remove the files of identities other than `keep`'s that were not in use for longest, until the rest is `max_bytes` at
    most: a model that is not served any more, or an earlier version's, must not fill the disk. Those in use stay."""
    files = [f for f in root.glob(f"*/{PAGES}") if FOLDER.fullmatch(f.parent.name) and f.parent != keep and not f.is_symlink()]
    total = 0
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        total += file.stat().st_size
        if total > max_bytes and not _is_held(file):
            file.unlink()
            with suppress(OSError):  # something else is in there
                file.parent.rmdir()


def _is_held(file: Path) -> bool:
    try:
        with file.open("rb+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
