"""The store gives back what it was given, or nothing: over restarts, beside others, on a failing disk."""

import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.runtime.engine import kv_file, kv_store
from baseload.runtime.engine.kv_file import PageFile, folder_of, trim
from baseload.runtime.engine.kv_store import SLOW_READS, KvStore, LentStore

from .kv_bench import KEYS, MINE, SLOT, YOURS, file_of, get, keep, new_pool, opened, size, warnings


def test_pages_are_there_after_a_restart(tmp_path: Path):
    pool = new_pool()
    with opened(tmp_path, pool) as store:
        keep(store, 1, 2, 3)
        assert store.stats().pages == store.stats().saved == 3 and store.stats().bytes == 3 * SLOT
    with opened(tmp_path, new_pool(1)) as store:
        assert [get(store, i) for i in (1, 2, 3)] == [pool[i].tobytes() for i in (1, 2, 3)]
        assert get(store, 4) is None
        stats = store.stats()
        assert (stats.enabled, stats.pages, stats.hits, stats.misses, stats.corrupt) == (True, 3, 3, 1, 0)


def test_without_a_clean_end_too(tmp_path: Path):
    """What a killed process leaves is a file that nobody closed."""
    pool = new_pool()
    with opened(tmp_path / "a", pool) as store:
        keep(store, 1, 2)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    with opened(tmp_path / "b", new_pool(1)) as store:
        assert get(store, 2) == pool[2].tobytes()


@pytest.mark.parametrize("end", ["idle", "flush"])
def test_a_busy_engine_delays_pages_and_loses_none(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_store, "REST", 1e9)  # after its first page the thread would rest for ever
    with opened(tmp_path, new_pool()) as store:
        store.pace(is_busy=True)
        for i in range(1, 8):
            store.keep(KEYS[i], i, 0, lambda: True)
        wait_for(lambda: store.stats().saved == 1)
        if end == "idle":
            store.pace(is_busy=False)
            wait_for(lambda: store.stats().saved == 7)
        else:
            assert store.flush(20) and store.stats().saved == 7


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_the_page_that_was_not_wanted_for_longest_makes_room(tmp_path: Path):
    with opened(tmp_path, new_pool(), n_slots=3) as store:
        keep(store, 1, 2, 3)
        keep(store, 1)  # it is wanted again
        keep(store, 4)
        assert [store.has(KEYS[i]) for i in (1, 2, 3, 4)] == [True, False, True, True]
        assert file_of(tmp_path).stat().st_size == size(3)


def test_a_prefix_longer_than_the_file_keeps_its_beginning(tmp_path: Path):
    with opened(tmp_path, new_pool(), n_slots=3) as store:
        for i in range(6):
            store.keep(KEYS[i], i, i, lambda: True)
        assert store.flush(20)
        assert [store.has(KEYS[i]) for i in range(6)] == [True, True, True, False, False, False]


def test_a_smaller_limit_cuts_the_file(tmp_path: Path):
    with opened(tmp_path, new_pool(), n_slots=10) as store:
        keep(store, *range(10))
    with opened(tmp_path, new_pool(), n_slots=4) as store:
        assert store.stats().pages == 4 and file_of(tmp_path).stat().st_size == size(4)


def test_a_page_that_has_left_the_tree_is_not_written(tmp_path: Path):
    """Its bytes may be another's by the time they are copied."""
    with opened(tmp_path, new_pool()) as store:
        store.keep(KEYS[1], 1, 0, lambda: False)
        store.flush(20)
        assert not store.has(KEYS[1]) and store.stats().dropped == 1
        keep(store, 1)
        assert store.has(KEYS[1])


def test_nothing_of_an_engine_that_is_over_is_read_or_written(tmp_path: Path):
    over: list[bool] = []
    with opened(tmp_path, new_pool()) as store:
        keep(store, 1)
        lent = LentStore(store, threading.Lock(), lambda: bool(over))
        assert lent.has(KEYS[1]) and lent.load(KEYS[1], 5)
        over.append(True)
        assert not lent.load(KEYS[1], 5)
        lent.keep(KEYS[2], 2, 0, lambda: True)
        assert store.flush(20) and not store.has(KEYS[2])
        lent.discard(KEYS[1])
        assert not store.has(KEYS[1])


def test_what_was_discarded_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not after a restart, and not if it was just being written."""
    at_it, go_on = threading.Event(), threading.Event()
    write = PageFile.write

    def hold(*args: Any) -> None:
        at_it.set()
        assert go_on.wait(20)
        write(*args)

    with opened(tmp_path, new_pool()) as store:
        keep(store, 1)
        store.discard(KEYS[1])
        assert not store.has(KEYS[1])
        monkeypatch.setattr(PageFile, "write", hold)
        store.keep(KEYS[2], 2, 0, lambda: True)
        assert at_it.wait(20)
        store.discard(KEYS[2])
        go_on.set()
        assert store.flush(20) and store.stats().pages == 0
    with opened(tmp_path, new_pool()) as store:
        assert store.stats().pages == store.stats().corrupt == 0


def test_until_it_is_open_nothing_is_found_and_what_comes_waits(tmp_path: Path):
    gate = threading.Event()

    def identity() -> bytes:
        assert gate.wait(20)
        return MINE

    store = KvStore(tmp_path, size(4), new_pool(), identity)
    store.start()
    store.keep(KEYS[1], 1, 0, lambda: True)
    assert not store.has(KEYS[1]) and not store.load(KEYS[1], 2) and not store.stats().enabled
    assert not store.flush(0.01)
    gate.set()
    assert store.flush(20) and store.has(KEYS[1]) and store.stats().enabled
    store.close()
    assert not store.stats().enabled and not store.load(KEYS[1], 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_gives_what_it_was_given_or_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Against a dict: any order of keeping, reading, forgetting and restarting."""
    root, n_slots = tmp_path_factory.mktemp("kv"), data.draw(st.integers(1, 8))
    pool, known = new_pool(), {}
    for _ in range(data.draw(st.integers(1, 4))):
        with opened(root, pool, n_slots) as store:
            for _ in range(data.draw(st.integers(1, 20))):
                i = data.draw(st.integers(0, 11))
                match data.draw(st.sampled_from(["keep", "keep", "get", "get", "forget", "change"])):
                    case "keep":
                        saved = store.stats().saved
                        keep(store, i)
                        if store.stats().saved > saved:
                            known[i] = pool[i].tobytes()
                        assert store.has(KEYS[i])
                    case "get":
                        assert get(store, i) in (known.get(i), None)
                    case "forget":
                        store.discard(KEYS[i])
                        assert known.pop(i, None) is None or get(store, i) is None
                    case _:
                        pool[i] = data.draw(st.integers(0, 255))
                assert store.stats().pages <= n_slots
            assert store.flush(20) and store.stats().corrupt == 0
        assert file_of(root).stat().st_size <= size(n_slots)


# ------------------------------------------------------------------------------------------------ one file, one store


def test_two_stores_never_share_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with opened(tmp_path, new_pool()) as first, opened(tmp_path, new_pool()) as second:
        keep(first, 1)
        keep(second, 2)
        assert first.stats().enabled and not second.stats().enabled
        assert not second.has(KEYS[1]) and not second.has(KEYS[2])
        assert len(warnings(caplog)) == 1 and "another process uses it" in warnings(caplog)[0]
        with opened(tmp_path, new_pool(), identity=YOURS) as third:
            assert third.stats().enabled
    with opened(tmp_path, new_pool()) as again:
        assert again.has(KEYS[1])


def test_files_of_models_that_are_not_served_are_bounded(tmp_path: Path):
    names = [bytes([i]) * 32 for i in range(4)]
    for age, name in enumerate(names):
        with opened(tmp_path, new_pool(), identity=name) as store:
            keep(store, *range(8))
        os.utime(file_of(tmp_path, name), (1000 + age, 1000 + age))
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "pages").write_bytes(b"x" * 100_000)
    with opened(tmp_path, new_pool(), identity=names[0]):
        trim(tmp_path, folder_of(tmp_path, MINE), size(8) * 2)
        left = [file_of(tmp_path, name).exists() for name in names]
    assert left == [True, False, False, True], "the newest, and the one in use"
    assert (tmp_path / "somebody's" / "pages").exists()


# ------------------------------------------------------------------------------------------------ failing disks


def failing(call: str, nth: int, code: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Make the nth `os.<call>` of kv_file fail, and all after it; returns whether it came to that."""
    real, count = getattr(os, call), itertools.count(1)
    failed = []

    def maybe(*args: Any) -> Any:
        if next(count) >= nth:
            failed.append(True)
            raise OSError(code, os.strerror(code))
        return real(*args)

    monkeypatch.setattr(kv_file.os, call, maybe)
    return lambda: bool(failed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "pwritev", "preadv", "pread", "ftruncate", "utime", "fstat"])
def test_a_disk_that_fails_turns_the_store_off_with_one_warning(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """At the first call, at the second, and so on, until there is none to fail."""
    pool = new_pool()
    nth = 0
    for nth in itertools.count(1):
        caplog.clear()
        with monkeypatch.context() as patch:
            did_fail = failing(call, nth, code, patch)
            with opened(tmp_path / str(nth), pool) as store:
                for i in range(4):
                    keep(store, i)
                found = [get(store, i) for i in range(4)]
                is_on = store.stats().enabled
                keep(store, 5)
        assert all(page in (None, pool[i].tobytes()) for i, page in enumerate(found))
        if not did_fail():
            assert is_on and not warnings(caplog) and None not in found
            break
        assert len(warnings(caplog)) == 1 and os.strerror(code) in warnings(caplog)[0]
        assert not is_on or call == "pwritev"  # that of page 5
    assert nth > 1


def test_a_write_that_is_cut_short_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with opened(tmp_path, new_pool()) as store:
        real = os.pwritev
        monkeypatch.setattr(kv_file.os, "pwritev", lambda fd, parts, at: real(fd, [bytes(parts[0])[:20]], at))
        store.keep(KEYS[1], 1, 0, lambda: True)
        store.flush(20)
        assert not store.stats().enabled
    monkeypatch.undo()
    with opened(tmp_path, new_pool()) as store:
        assert not store.has(KEYS[1])


def test_a_root_that_is_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "kv").write_text("")
    with opened(tmp_path / "kv", new_pool()) as store:
        keep(store, 1)
        assert not store.stats().enabled and len(warnings(caplog)) == 1


def test_a_limit_below_one_page(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with opened(tmp_path, new_pool(), n_slots=0) as store:
        assert not store.stats().enabled and "do not hold one page" in warnings(caplog)[0]


def test_a_slow_disk_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """60 ms for a page: it would take less to compute it."""
    now = itertools.count(0, 0.06)
    with opened(tmp_path, new_pool(), clock=lambda: next(now)) as store:
        keep(store, *range(SLOW_READS + 2))
        found = [get(store, i) for i in range(SLOW_READS + 2)]
        assert found[SLOW_READS - 1] is not None and found[SLOW_READS:] == [None, None]
        assert not store.stats().enabled and "60 ms" in warnings(caplog)[0] and len(warnings(caplog)) == 1


def test_one_slow_read_is_forgiven(tmp_path: Path):
    times = itertools.cycle([0, 0.06, 1, 1.001])
    with opened(tmp_path, new_pool(), clock=lambda: next(times)) as store:
        keep(store, *range(20))
        assert all(get(store, i) for i in range(20)) and store.stats().enabled


def test_what_it_is_asked_after_it_was_closed_is_harmless(tmp_path: Path):
    with opened(tmp_path, new_pool()) as store:
        keep(store, 1)
    assert not store.load(KEYS[1], 2)
    assert not store.has(KEYS[1]) and store.stats().pages == 0
    store.discard(KEYS[1])
    store.keep(KEYS[2], 2, 0, lambda: True)
    store.close()
