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
_within = 0  # blocks that run
# The most threads that each library was ever seen to have: what is read right after others have set it may be theirs.
_full: dict[str, int] = {}


@cache
def _libraries() -> list[Any]:
    """Those that are loaded by now; looking for them takes milliseconds."""
    return [one for one in ThreadpoolController().lib_controllers if one.user_api == "blas"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Of all the process's products; blocks may run beside each other, and the last to end restores what was."""
    global _within
    with _lock:
        _within += 1
        for one in _libraries() if _within == 1 else ():
            _full[one.filepath] = max(one.num_threads, _full.get(one.filepath, 1))
            one.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            for one in _libraries() if not _within else ():
                one.set_num_threads(_full[one.filepath])
