"""KV pages that outlive the pool and the process: what was computed once is read back from disk, by KvCache.restore.

The engine's thread reads; a thread of the store's own writes. Writing takes nothing from the engine: a page in the prefix tree
does not change, so the store copies it from the pool when it gets round to it, and then asks whether the page was still in the
tree, which makes the copy good. While the engine computes, on the same cores, the store's thread rests most of the time. There
is no tier in host memory: on a CPU the pool is host memory, and what was read or written lately is in the system's page cache
anyway.

A disk that fails, is full or is slow turns the store off, once and with one warning; the engine then computes.
"""

import functools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .kv_file import PageFile, folder_of, trim

log = logging.getLogger("baseload.kv_store")

MAX_JOBS = 8192  # pages waiting to be written; more are not kept
REST = 9.0  # times as long as it has worked, the thread rests while the engine is busy
SLOW_S, SLOW_READS = 0.05, 8  # so many reads in a row that take longer: computing is no slower, and the steps get on


class PageStore(Protocol):
    """What a KvCache needs of a store. Pages are the pool's numbers, keys are kv_cache.page_key's. Never raises."""

    def has(self, key: bytes) -> bool:
        """Whether `load` is worth a try."""
        ...

    def load(self, key: bytes, page: int) -> bool:
        """Fill `page`, which is nobody's. False: there is nonsense in it."""
        ...

    def keep(self, key: bytes, page: int, depth: int, is_kept: Callable[[], bool]) -> None:
        """Copy `page`, now or later: it may be had as long as `is_kept` says so, and does not change until then. A key that
        the store has becomes the last to go. `depth`: how many pages come before this one."""
        ...

    def discard(self, key: bytes) -> None:
        """Forget that page: it may be what broke a request."""
        ...


@dataclass(frozen=True, slots=True)
class StoreStats:
    """A store in numbers; counters are this process's."""

    enabled: bool = False
    pages: int = 0
    bytes: int = 0
    hits: int = 0  # pages read back
    misses: int = 0  # prompts whose next page was not there
    corrupt: int = 0  # records, or whole files, that were not what they should be
    saved: int = 0
    dropped: int = 0  # pages that were gone before they could be written


class KvStore:
    """The pages of one pool on disk, below `root`.

    `pages` [n_pages, page bytes] uint8 is the pool; `identity` says what computed it, in 32 bytes, and may take its time: the
    store's thread asks it, and until then nothing is found. `start`, then `close`.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int,
        pages: NDArray[np.uint8],
        identity: Callable[[], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._max_bytes, self._pages, self._identity, self._clock = root, max_bytes, pages, identity, clock
        self._file: PageFile | None = None  # None: not open yet, or off
        self._wake = threading.Condition()  # guards all of the following
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # by key, the last to go at the end
        self._free: list[int] = []
        self._unproven: set[bytes] = set()  # of the keys that a scan has found, those whose pages nobody has read yet
        self._queued: set[bytes] = set()  # keys of pages that wait to be written, or are being written
        self._jobs: deque[Callable[[PageFile], None]] = deque()
        self._working = True  # the thread opens the file first
        self._closing = False
        self._is_busy = False  # the engine
        self._hurried = 0  # by callers of `flush`
        self._copy = np.empty(pages.shape[1], np.uint8)  # the thread's
        self._stamp = self._slow = self._hits = self._misses = self._corrupt = self._saved = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="kv-store", daemon=True)

    def start(self) -> None:
        """Open the file and write what comes, in a thread."""
        self._thread.start()

    def has(self, key: bytes) -> bool:
        """See PageStore."""
        with self._wake:
            found = key in self._slots
            self._misses += not found and self._file is not None
        return found

    def load(self, key: bytes, page: int) -> bool:
        """See PageStore."""
        file = self._file
        with self._wake:
            slot = self._slots.get(key)
        if file is None or slot is None:
            return False
        began = self._clock()
        try:
            is_sound = file.read(slot, key, self._pages[page])
        except OSError as error:
            self._turn_off(f"it cannot be read ({error})")
            return False
        self._mind_the_time(self._clock() - began)
        with self._wake:
            self._hits += is_sound
            self._unproven.discard(key)
            if not is_sound and self._slots.get(key) == slot:  # else it was written over meanwhile, which is no fault
                self._corrupt += 1
                self._free.append(self._slots.pop(key))
        return is_sound

    def keep(self, key: bytes, page: int, depth: int, is_kept: Callable[[], bool]) -> None:
        """See PageStore."""
        with self._wake:
            if self._file is not None and depth >= self._file.n_slots:
                return  # it would push out those that it is of no use without
            if key in self._unproven:  # and yet it was computed, because a page before it was broken: this one may be, too
                self._unproven.remove(key)
                self._free.append(self._slots.pop(key))
            if key in self._slots:
                self._slots.move_to_end(key)
            elif self._closing or key in self._queued:
                pass
            elif len(self._jobs) >= MAX_JOBS:
                self._dropped += 1
            else:
                self._queued.add(key)
                self._add(functools.partial(self._save, key, page, is_kept))

    def discard(self, key: bytes) -> None:
        """See PageStore."""
        with self._wake:
            self._queued.discard(key)
            self._unproven.discard(key)
            if (slot := self._slots.pop(key, None)) is not None:
                self._add(functools.partial(self._erase, slot))

    def pace(self, *, is_busy: bool) -> None:
        """The engine says when it begins and when it ends to compute."""
        if is_busy != self._is_busy:
            with self._wake:
                self._is_busy = is_busy
                self._wake.notify_all()

    def stats(self) -> StoreStats:
        """Safe from any thread."""
        with self._wake:
            n, size = len(self._slots), self._file.slot_bytes if self._file else 0
            counts = self._hits, self._misses, self._corrupt, self._saved, self._dropped
            return StoreStats(self._file is not None, n, n * size, *counts)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was to be kept is written; False if that takes longer."""
        with self._wake:
            self._hurried += 1
            self._wake.notify_all()
            try:
                return self._wake.wait_for(lambda: not (self._jobs or self._working), timeout_s)
            finally:
                self._hurried -= 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Let others have the file. What is not written yet, is not."""
        with self._wake:
            self._closing = True
            self._jobs.clear()
            self._wake.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ------------------------------------------------------------------------------------- the store's thread

    def _run(self) -> None:
        file = None
        try:
            file, took = self._open(), 0.0
            while (job := self._next(took)) is not None:
                began = time.monotonic()
                job(file)
                took = time.monotonic() - began
        except BlockingIOError:
            self._turn_off("another process uses it")
        except Exception as error:  # OSError, mostly; whatever it is, the engine goes on without a store
            self._turn_off(str(error))
        finally:
            with self._wake:
                self._file, self._working = None, False
                self._slots.clear()
                self._unproven.clear()
                self._wake.notify_all()
            if file is not None:
                file.close()

    def _open(self) -> PageFile:
        identity = self._identity()
        file = PageFile(self._root, identity, self._pages.shape[1], self._max_bytes)
        trim(self._root, folder_of(self._root, identity), self._max_bytes)
        found = file.scan()
        with self._wake:
            self._slots, self._free, self._stamp = OrderedDict(found.slots), found.free, found.stamp
            self._unproven = set(found.slots)
            self._corrupt += found.n_broken + file.was_foreign
            self._file = file
        log.info("%d KV pages of %d on disk, in %s", len(found.slots), file.n_slots, folder_of(self._root, identity))
        return file

    def _next(self, took: float) -> Callable[[PageFile], None] | None:
        """The next job, after some rest from one that took so many seconds."""
        with self._wake:
            self._working = False
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._is_busy or self._hurried or self._is_over, took * REST)
            self._wake.wait_for(lambda: self._jobs or self._is_over)
            if self._is_over:
                return None
            self._working = True
            return self._jobs.popleft()

    @property
    def _is_over(self) -> bool:
        return self._closing or self._file is None

    def _save(self, key: bytes, page: int, is_kept: Callable[[], bool], file: PageFile) -> None:
        np.copyto(self._copy, self._pages[page])
        with self._wake:
            if key not in self._queued:  # discarded
                return
            if not is_kept() or not (self._free or self._slots):
                self._queued.remove(key)
                self._dropped += 1
                return
            slot = self._free.pop() if self._free else self._evict()
            self._stamp += 1
        file.write(slot, key, self._stamp, self._copy)
        with self._wake:
            if key in self._queued:
                self._queued.remove(key)
                self._slots[key] = slot
                self._saved += 1
            else:
                self._add(functools.partial(self._erase, slot))

    def _evict(self) -> int:
        key, slot = self._slots.popitem(last=False)
        self._unproven.discard(key)
        return slot

    def _erase(self, slot: int, file: PageFile) -> None:
        file.erase(slot)
        with self._wake:
            self._free.append(slot)

    def _add(self, job: Callable[[PageFile], None]) -> None:
        self._jobs.append(job)
        self._wake.notify_all()

    # ------------------------------------------------------------------------------------- when the disk fails

    def _mind_the_time(self, seconds: float) -> None:
        self._slow = self._slow + 1 if seconds > SLOW_S else 0
        if self._slow >= SLOW_READS:
            self._turn_off(f"reading a page takes {seconds * 1000:.0f} ms")

    def _turn_off(self, why: str) -> None:
        with self._wake:
            if self._closing:
                return
            self._closing, self._file = True, None
            self._slots.clear()
            self._unproven.clear()
            self._queued.clear()
            self._jobs.clear()
            self._wake.notify_all()
        log.warning("KV pages are not kept on disk from here on, in %s: %s", self._root, why)


class LentStore:
    """A store, lent to one generation of the engine: when that is `over`, its pages are no longer what it takes them for.
    `lock`: whoever holds it may write to the pool."""

    def __init__(self, store: PageStore, lock: Any, over: Callable[[], bool]) -> None:
        self._store, self._lock, self._over = store, lock, over

    def has(self, key: bytes) -> bool:
        """See PageStore."""
        return self._store.has(key)

    def load(self, key: bytes, page: int) -> bool:
        """See PageStore."""
        with self._lock:
            return not self._over() and self._store.load(key, page)

    def keep(self, key: bytes, page: int, depth: int, is_kept: Callable[[], bool]) -> None:
        """See PageStore."""
        self._store.keep(key, page, depth, lambda: is_kept() and not self._over())

    def discard(self, key: bytes) -> None:
        """See PageStore."""
        self._store.discard(key)
