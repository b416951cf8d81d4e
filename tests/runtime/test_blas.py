"""Matrix products on one thread while a block runs, however the blocks overlap."""

import threading

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from baseload.runtime.blas import one_thread


def threads() -> set[int]:
    assert (np.ones((2, 2)) @ np.ones((2, 2))).sum() == 8  # a library that was never used may not be loaded
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_what_was_is_restored_by_the_last_block_to_end():
    with threadpool_limits(2, "blas"):
        before = threads()
        first, second = one_thread(), one_thread()
        first.__enter__()
        second.__enter__()
        assert threads() == {1}
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == before
        with one_thread():
            assert threads() == {1}
        assert threads() == before


def test_many_at_once_leave_it_as_it_was():
    before = threads()

    def work() -> None:
        for _ in range(200):
            with one_thread():
                pass

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert threads() == before
