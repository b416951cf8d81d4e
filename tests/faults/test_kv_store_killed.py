"""kill -9 at any moment: what the store's file holds afterwards is right or not there, and the next process goes on with it."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from baseload.runtime.engine.kv_store import KvStore

PAGE, N_SLOTS = 200_000, 24
IDENTITY = b"i" * 32
KILLS = 8


def page(number: int) -> np.ndarray:
    """The one page that belongs under `key(number)`."""
    return np.random.default_rng(number).integers(0, 256, PAGE, np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def open_store(root: Path, pages: np.ndarray) -> KvStore:
    store = KvStore(root, 4096 + N_SLOTS * (PAGE + 88), pages, lambda: IDENTITY)
    store.start()
    assert store.flush(20)
    return store


def write_for_ever(root: Path, first: int) -> None:
    """More pages than the file holds, so that slots are written over too."""
    pages = np.zeros((1, PAGE), np.uint8)
    store = open_store(root, pages)
    number = first
    while True:
        pages[0] = page(number)
        store.keep(key(number), 0, 0, lambda: True)
        assert store.flush(20)
        print(number, flush=True)
        number += 1


def test_killed_at_any_moment(tmp_path: Path):
    rng, first = random.Random(6), 0
    for _ in range(KILLS):
        command = [sys.executable, __file__, str(tmp_path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline().strip() == str(first)
            time.sleep(rng.random() * 0.2)
            writer.send_signal(signal.SIGKILL)
            written = [first, *map(int, writer.stdout.read().split())]
        pages = np.zeros((1, PAGE), np.uint8)
        store = open_store(tmp_path, pages)
        assert store.stats().enabled, "the lock went with the process"
        found = []
        for number in range(written[-1] + 2):
            if store.has(key(number)) and store.load(key(number), 0):
                found.append(number)
                assert (pages[0] == page(number)).all()
        assert set(written[-(N_SLOTS - 1) :]) <= set(found), "what was written is there"
        assert store.stats().corrupt <= 1, "at most the one that it was writing"
        store.close()
        first = written[-1] + 2


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
