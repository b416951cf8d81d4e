"""Who computes how much in this step. One rule: everybody's computed tokens catch up with all their tokens.

There is no prefill and no decode mode. Who misses one token (a decode) goes first, then who misses more, in the order of
arrival, until the step's token budget is spent. When pages run out, the newest sequence gives its pages back and starts again
later; the oldest always gets on, so nobody starves.
"""

from collections import deque

from .config import EngineConfig
from .kv_cache import KvCache
from .request import Sequence
from .speculative import propose

Plan = list[tuple[Sequence, int]]  # (sequence, tokens to compute now)


class Scheduler:
    """The queue and the running sequences; all of `running` came before all of `waiting`, each in the order of arrival."""

    def __init__(self, config: EngineConfig, cache: KvCache) -> None:
        self._config, self._cache = config, cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def schedule(self) -> Plan:
        """Choose this step's work and give it its pages."""
        budget, plan = self._config.token_budget, {}
        loads = self._config.restored_pages
        pushed_out: set[Sequence] = set()
        for sequence in sorted(self.running, key=_is_behind):  # stable: else in the order of arrival
            if sequence in pushed_out:
                continue
            if sequence.missing > 1:
                self._cache.catch_up(sequence)
                loads -= self._cache.restore(sequence, loads)
                if sequence.restoring:  # it goes on with that in the next step: reading must not hold up all others
                    continue
            n = min(sequence.missing, budget)
            while n and not self._cache.extend(sequence, n):
                victim = self._push_out_newest()
                pushed_out.add(victim)
                budget += plan.pop(victim, 0)
                n = n if victim is not sequence else 0
            if n:
                plan[sequence] = n
                budget -= n
        # Who was pushed out in this step doesn't come back in it, nor does anybody who came later.
        while budget and not pushed_out and self._admit():
            sequence = self.running[-1]
            loads -= self._cache.restore(sequence, loads)
            if sequence.restoring:
                continue
            plan[sequence] = n = min(sequence.missing, budget)
            self._cache.extend(sequence, n)
            budget -= n
        self._guess(plan, budget)
        return list(plan.items())

    def remove(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """The sequence has ended, wherever it was. `trusted`: see KvCache.release."""
        self._cache.release(sequence, trusted=trusted)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _guess(self, plan: dict[Sequence, int], budget: int) -> None:
        """Let sequences that are about to be sampled guess what follows, with the pages and the budget that are left."""
        for sequence, n in plan.items():
            sequence.guessed = []
            most = min(self._config.max_guess, budget, sequence.left - 1)
            if n == sequence.missing and sequence.n_output and most > 0:
                guessed = _guessed(sequence, most, len(plan))
                # Nobody is pushed out for a guess, nor what is cached.
                if self._cache.missing_pages(sequence, n + len(guessed)) <= self._cache.n_free and guessed:
                    self._cache.extend(sequence, n + len(guessed))
                    sequence.guessed = guessed
                    budget -= len(guessed)

    def _push_out_newest(self) -> Sequence:
        victim = self.running.pop()
        self._cache.release(victim)
        victim.preempted = True
        self.waiting.appendleft(victim)
        self.preemptions += 1
        return victim

    def _admit(self) -> bool:
        """Let the first in the queue in, if there is room for all that it has to compute: what starts should not be pushed
        out at once."""
        if not self.waiting or len(self.running) >= self._config.max_batch:
            return False
        sequence = self.waiting[0]
        cached_before = sequence.cached_tokens
        self._cache.catch_up(sequence)
        if self._cache.missing_pages(sequence, sequence.missing) > self._cache.n_available:
            self._cache.release(sequence)
            sequence.cached_tokens = cached_before
            return False
        self.running.append(self.waiting.popleft())
        sequence.restoring = True
        return True


def _is_behind(sequence: Sequence) -> bool:
    return sequence.missing > 1


def _guessed(sequence: Sequence, most: int, n_rows: int) -> list[int]:
    """What a grammar forces is no guess, and always pays."""
    grammar = sequence.request.grammar
    return (grammar.forced(most) if grammar else []) or propose(sequence.guesses, sequence.tokens, most, n_rows)
