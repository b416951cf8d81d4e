"""Pages: given, shared, taken back; never lost, never two owners."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.runtime.engine.kv_cache import KvCache


def compute(cache: KvCache, sequence, n: int) -> None:
    """As a step does."""
    assert cache.extend(sequence, n)
    cache.advance(sequence, n)


def test_a_prompt_seen_before_is_taken_from_the_tree_but_for_its_last_token(sequence):
    cache, first, second = KvCache(10, 4), sequence(range(1, 9)), sequence(range(1, 9))
    compute(cache, first, 8)
    cache.catch_up(second)
    assert second.computed == second.cached_tokens == 4 and second.pages == first.pages[:1]
    longer = sequence([*range(1, 9), 50])
    cache.catch_up(longer)
    assert longer.computed == 8 and longer.pages == first.pages


def test_only_full_pages_are_shared(sequence):
    cache, first, second = KvCache(10, 4), sequence([1, 2, 3, 4, 5, 6, 7]), sequence([1, 2, 3, 4, 5, 6, 7, 8])
    compute(cache, first, 7)
    cache.catch_up(second)
    assert second.computed == 4
    compute(cache, second, 4)
    assert first.pages[1] != second.pages[1]


def test_pages_are_shared_as_they_fill_and_a_running_prompt_catches_up(sequence):
    """Two arrive at once with one prompt; the second has begun by itself when the first has come further."""
    cache, first, second = KvCache(20, 4), sequence(range(1, 21)), sequence(range(1, 21))
    compute(cache, second, 2)
    compute(cache, first, 16)
    cache.catch_up(second)
    assert second.computed == 16 and second.cached_tokens == 14
    assert second.pages == first.pages[:4] and cache.n_free == 16
    cache.check_integrity([first, second])


def test_two_who_computed_the_same_page_keep_one_copy(sequence):
    cache, first, second = KvCache(10, 4), sequence(range(1, 9)), sequence(range(1, 9))
    assert cache.extend(first, 7) and cache.extend(second, 7)
    cache.advance(first, 7)
    cache.advance(second, 7)
    assert first.pages[0] == second.pages[0] and first.pages[1] != second.pages[1] and cache.n_free == 7
    cache.check_integrity([first, second])


def test_released_prefixes_are_kept_until_their_pages_are_wanted(sequence):
    cache, first = KvCache(4, 4), sequence(range(1, 17))
    compute(cache, first, 15)
    cache.release(first)
    assert (cache.n_free, cache.n_available) == (1, 4)
    other = sequence(range(100, 116))
    compute(cache, other, 8)  # one free page, one evicted: the end of the old prompt, not its beginning
    again = sequence(range(1, 17))
    cache.catch_up(again)
    assert again.computed == 8
    cache.check_integrity([other, again])


def test_a_refused_extension_changes_nothing(sequence):
    cache, one, two = KvCache(3, 4), sequence(range(1, 9)), sequence(range(50, 70))
    compute(cache, one, 7)
    assert not cache.extend(two, 5) and not two.pages and cache.n_available == 1
    assert cache.extend(two, 4)


def test_pages_of_a_broken_sequence_serve_nobody_else(sequence):
    cache, broken, neighbour = KvCache(10, 4), sequence(range(1, 14)), sequence([1, 2, 3, 4, 99])
    compute(cache, broken, 13)
    cache.catch_up(neighbour)
    cache.release(broken, trusted=False)
    again = sequence(range(1, 14))
    cache.catch_up(again)
    assert again.computed == 4, "only what somebody else reads is left"
    cache.check_integrity([neighbour, again])


def test_salts_keep_prefixes_apart(sequence):
    cache, mine, yours = KvCache(10, 4), sequence(range(1, 9), salt="me"), sequence(range(1, 9), salt="you")
    compute(cache, mine, 7)
    cache.catch_up(yours)
    assert yours.computed == 0


def test_integrity_notices_a_lost_page_and_a_wrong_count(sequence):
    cache, one = KvCache(4, 4), sequence(range(1, 9))
    compute(cache, one, 5)
    page = one.pages.pop()
    with pytest.raises(AssertionError, match="page was lost"):
        cache.check_integrity([one])
    one.pages.append(page)
    one.nodes[0].refs += 1
    with pytest.raises(AssertionError, match="reference count"):
        cache.check_integrity([one])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_coming_and_going_keeps_every_page_accounted_for(sequence, data: st.DataObject):
    cache, live = KvCache(data.draw(st.integers(4, 16)), data.draw(st.sampled_from([1, 2, 4]))), []
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(["begin", "compute", "compute", "generate", "end", "break"]))
        chosen = live[data.draw(st.integers(0, len(live) - 1))] if live else None
        if what == "begin" or chosen is None:
            prompt = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=12))
            live.append(sequence(prompt, salt=data.draw(st.sampled_from("ab"))))
            cache.catch_up(live[-1])
        elif what == "compute":
            n = data.draw(st.integers(1, chosen.missing))
            if cache.extend(chosen, n):
                cache.advance(chosen, n)
                chosen.tokens += [1] * (chosen.missing == 0)
        elif what == "generate":
            cache.catch_up(chosen)
        else:
            cache.release(chosen, trusted=what == "end")
            live.remove(chosen)
        cache.check_integrity(live)
    for left in live:
        cache.release(left)
    cache.check_integrity([])
    assert cache.n_available == cache.n_pages
