"""numpy's matrix products on one thread, for as long as a block runs.

OpenBLAS's threads wait for each other by spinning. Where others want the same cores, a prompt's vector was seen to take ten
times as long on two threads as on one; and on an idle machine a single prompt is too small to win much by a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = Lock()
_within: list[Any] = []  # the limits that are to be lifted; as many as there are blocks running


@cache
def _controller() -> ThreadpoolController:
    """Of the libraries that are loaded by now; looking for them takes milliseconds."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Of all the process's products; blocks may run beside each other, and the last to end restores what was."""
    with _lock:
        _within.append(_controller().limit(limits=1, user_api="blas") if not _within else None)
    try:
        yield
    finally:
        with _lock:
            last = len(_within) == 1
            limit = _within[0] if last else None
            if last:
                _within.clear()
            else:
                _within.pop()
            if limit is not None:
                limit.restore_original_limits()
