"""A machine's time, shared by those who run on it at once: an engine that we cannot look into has no better measure.

While n requests run, each is charged 1/n of the seconds that pass, so that all shares together are the time in which anything
ran. Waiting in the engine's own queue counts as running: from outside the two look the same.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WallShare:
    """The integral of dt / n, of which a request's share is the growth while it runs. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running, self._sum, self._seen = 0, 0.0, clock()
        self.busy_s = 0.0  # in which at least one ran

    @contextmanager
    def use(self) -> Iterator[Callable[[], float]]:
        """One request runs; gives its share so far, in seconds."""
        start = self._tick(+1)
        try:
            yield lambda: self._tick(0) - start
        finally:
            self._tick(-1)

    def _tick(self, change: int) -> float:
        now = self._clock()
        if self._running:
            self._sum += (now - self._seen) / self._running
            self.busy_s += now - self._seen
        self._seen, self._running = now, self._running + change
        return self._sum
