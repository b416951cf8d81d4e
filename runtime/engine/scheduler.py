"""Who computes how much in this step. One rule: everybody's computed tokens catch up with all their tokens.

There is no prefill and no decode mode. Who misses one token (a decode) goes first, then who misses more, in the order of
arrival, until the step's token budget is spent. When pages run out, the newest sequence gives its pages back and starts again
later; the oldest always gets on, so nobody starves.
"""

from collections import deque

from .config import EngineConfig
from .kv_cache import KvCache
from .request import Sequence

Plan = list[tuple[Sequence, int]]  # (sequence, tokens to compute now)


class Scheduler:
    """The queue and the running sequences, both in the order of arrival."""

    def __init__(self, config: EngineConfig, cache: KvCache) -> None:
        self._config, self._cache = config, cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def schedule(self) -> Plan:
        """Choose this step's work and give it its pages."""
        budget = self._config.token_budget
        plan: dict[Sequence, int] = {}
        pushed_out: set[Sequence] = set()
        for sequence in sorted(self.running, key=lambda s: s.missing > 1):  # stable: else in the order of arrival
            n = min(sequence.missing, budget)
            while n and sequence not in pushed_out and not self._cache.extend(sequence, n):
                victim = self._preempt_newest()
                pushed_out.add(victim)
                budget += plan.pop(victim, 0)
            if n and sequence not in pushed_out:
                plan[sequence] = n
                budget -= n
        while budget and not pushed_out and len(self.running) < self._config.max_batch and self._admit():
            sequence = self.running[-1]
            plan[sequence] = n = min(sequence.missing, budget)
            self._cache.extend(sequence, n)
            budget -= n
        return list(plan.items())

    def computed(self, plan: Plan) -> None:
        """The step has been run: count its tokens and share the pages that it filled."""
        for sequence, n in plan:
            sequence.computed += n
            self._cache.share(sequence)

    def remove(self, sequence: Sequence) -> None:
        """The sequence has ended, wherever it was."""
        self._cache.release(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _admit(self) -> bool:
        """Let the first in the queue in, if there is room for all that it has to compute: what starts should not be pushed
        out at once."""
        if not self.waiting:
            return False
        sequence = self.waiting[0]
        self._cache.begin(sequence)
        if self._cache.missing_pages(sequence, sequence.missing) > self._cache.n_available:
            self._cache.release(sequence)
            return False
        self.running.append(self.waiting.popleft())
        if not sequence.was_scheduled:
            sequence.was_scheduled, sequence.cached_tokens = True, sequence.computed
        return True

    def _preempt_newest(self) -> Sequence:
        victim = self.running.pop()
        self._cache.release(victim)
        self.waiting.appendleft(victim)
        self.preemptions += 1
        return victim
