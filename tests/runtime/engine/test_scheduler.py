"""Who gets on in a step: decodes first, then prompts in the order of arrival, under one budget of tokens."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.kv_cache import KvCache
from baseload.runtime.engine.request import Sequence
from baseload.runtime.engine.scheduler import Scheduler


class Driver:
    """A scheduler with a model that takes no time: whoever has caught up gets one more token."""

    def __init__(self, **config: Any) -> None:
        settings = EngineConfig(**{"n_pages": 100, "page_size": 4, "max_batch": 8, "token_budget": 16, **config})
        self.cache = KvCache(settings.n_pages, settings.page_size)
        self.scheduler = Scheduler(settings, self.cache)

    def step(self) -> list[tuple[Sequence, int]]:
        plan = self.scheduler.schedule()
        for sequence, n in plan:
            self.cache.advance(sequence, n)
            if not sequence.missing:
                sequence.tokens.append(1 + len(sequence.tokens) % 50)
        self.cache.check_integrity(self.scheduler.running)
        return plan

    def add(self, *sequences: Sequence) -> None:
        self.scheduler.waiting.extend(sequences)


def prompts(make: Callable[..., Sequence], *lengths: int) -> list[Sequence]:
    """Prompts that share nothing."""
    return [make([100 + i] + [i] * (n - 1)) for i, n in enumerate(lengths, 1)]


def test_decodes_go_first_and_prompts_share_what_is_left(sequence):
    driver, (a, b, c) = Driver(token_budget=10), prompts(sequence, 4, 12, 9)
    driver.add(a, b, c)
    assert driver.step() == [(a, 4), (b, 6)]
    assert driver.step() == [(a, 1), (b, 6), (c, 3)]
    assert driver.step() == [(a, 1), (b, 1), (c, 6)]
    assert driver.step() == [(a, 1), (b, 1), (c, 1)]


def test_no_more_rows_than_max_batch(sequence):
    driver, made = Driver(max_batch=2, token_budget=100), prompts(sequence, 3, 3, 3)
    driver.add(*made)
    assert [s for s, _ in driver.step()] == made[:2]
    driver.scheduler.remove(made[0])
    assert [s for s, _ in driver.step()] == made[1:]


def test_identical_prompts_that_arrive_at_once_are_computed_once(sequence):
    driver, same = Driver(token_budget=16), [sequence(range(1, 41)) for _ in range(3)]
    driver.add(*same)
    computed = 0
    while any(s.missing > 1 for s in same):
        computed += sum(n for _, n in driver.step())
    assert computed <= 40 + 3 * 4 + 2 * 16, "one whole prompt, each one's last page, and what they began side by side"
    assert same[2].cached_tokens >= 32


def test_when_pages_run_out_the_newest_starts_again_later(sequence):
    driver, (a, b) = Driver(n_pages=4), prompts(sequence, 7, 7)
    driver.add(a, b)
    driver.step()
    for _ in range(2):
        driver.step()  # both grow into a third page, but there are only four
    assert driver.scheduler.running == [a] and list(driver.scheduler.waiting) == [b]
    assert (b.computed, b.n_output, list(b.pages)) == (0, 2, []) and driver.scheduler.preemptions == 1
    driver.scheduler.remove(a)
    driver.step()
    assert driver.scheduler.running == [b] and b.n_output == 3, "it goes on where it was"


def test_who_was_pushed_out_is_next_again(sequence):
    driver, (a, b, c) = Driver(n_pages=4), prompts(sequence, 7, 7, 4)
    driver.add(a, b, c)
    driver.step()
    driver.step()
    driver.step()
    assert list(driver.scheduler.waiting) == [b, c]


def test_nobody_overtakes_the_first_in_the_queue(sequence):
    """A short prompt that would fit waits behind a long one that does not."""
    driver, (a, long, short) = Driver(n_pages=8, token_budget=64), prompts(sequence, 20, 16, 3)
    driver.add(a, long, short)
    assert driver.step() == [(a, 20)]
    assert driver.scheduler.running == [a]
    driver.scheduler.remove(a)
    assert [s for s, _ in driver.step()] == [long, short]


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_removing_gives_everything_back(sequence, state: str):
    driver, (a,) = Driver(), prompts(sequence, 10)
    driver.add(a)
    if state == "running":
        driver.step()
    driver.scheduler.remove(a)
    assert not driver.scheduler.running and not driver.scheduler.waiting
    assert driver.cache.n_available == 100


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_all_get_on_in_order_within_the_budget(sequence, data: st.DataObject):
    budget, size = data.draw(st.integers(2, 40)), data.draw(st.sampled_from([1, 3, 8]))
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    pages = data.draw(st.integers(-(-36 // size) + 1, 60))
    driver = Driver(n_pages=pages, page_size=size, max_batch=data.draw(st.integers(1, budget)), token_budget=budget)
    made = [sequence(data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))) for n in lengths]
    driver.add(*made)
    left, steps = list(made), 0
    while left:
        oldest, before = left[0], left[0].missing if left[0].computed else None
        plan = driver.step()
        assert 0 < sum(n for _, n in plan) <= budget and all(n > 0 for _, n in plan)
        order = [*driver.scheduler.running, *driver.scheduler.waiting]
        assert order == left, "the order of arrival is kept over preemptions"
        assert oldest in dict(plan) or before is None, "the oldest always gets on"
        for done in [s for s in left if s.n_output >= 5]:
            driver.scheduler.remove(done)
            left.remove(done)
        steps += 1
        assert steps <= sum(lengths) + 6 * len(lengths)
