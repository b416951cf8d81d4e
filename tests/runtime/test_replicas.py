"""Placement: a head stays where it is, nobody gets more than a share, and who is not open gets nothing."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from baseload.runtime.replicas import FEW, LEAST_BYTES, SLACK, Seat, choose, head_of, limit
from baseload.wire.chat import ChatRequest, Message, Text, ToolSpec

NAMES = st.lists(st.text("abcdefgh0123456789.:", min_size=1, max_size=12), min_size=1, max_size=12, unique=True)
HEADS = st.binary(min_size=LEAST_BYTES, max_size=1024)
LOADS = st.integers(0, 400)


@st.composite
def seats(draw) -> list[Seat]:
    return [Seat(name, draw(LOADS), draw(st.booleans())) for name in draw(NAMES)]


@given(seats(), st.binary(max_size=1024))
def test_only_an_open_replica_is_chosen_and_one_always_is(found: list[Seat], head: bytes):
    chosen = choose(found, head)
    able = {seat.name for seat in found if seat.is_open}
    assert (chosen in able) if able else chosen is None


@given(seats(), HEADS)
def test_nobody_gets_more_than_his_share(found: list[Seat], head: bytes):
    able = [seat for seat in found if seat.is_open]
    if able:
        load = {seat.name: seat.load for seat in able}[choose(found, head) or ""] + 1
        mean = (sum(seat.load for seat in able) + 1) / len(able)
        assert load <= max(FEW, SLACK * mean + 1)
        assert load <= limit(able)


@given(NAMES, HEADS, st.integers(0, 50))
def test_a_head_stays_where_it_is_while_loads_are_even(names: list[str], head: bytes, load: int):
    even = [Seat(name, load) for name in names]
    home = choose(even, head)
    assert {choose(list(reversed(even)), head), choose(even, head), choose([Seat(n, 0) for n in names], head)} == {home}


@given(NAMES, HEADS, st.data())
def test_a_replica_that_goes_moves_only_its_own_heads(names: list[str], head: bytes, data: st.DataObject):
    gone = data.draw(st.sampled_from(names))
    before = choose([Seat(name, 0) for name in names], head)
    after = choose([Seat(name, 0, name != gone) for name in names], head)
    assert after == before or before == gone


@given(NAMES, HEADS, st.integers(1, 200))
def test_one_head_alone_fills_all_replicas_evenly(names: list[str], head: bytes, n: int):
    loads = Counter(dict.fromkeys(names, 0))
    for _ in range(n):
        chosen = choose([Seat(name, loads[name]) for name in names], head)
        assert chosen is not None
        loads[chosen] += 1
    assert max(loads.values()) <= max(FEW, SLACK * n / len(names) + 1)


@given(seats(), st.binary(max_size=LEAST_BYTES - 1))
def test_a_short_prompt_goes_to_whoever_has_least_to_do(found: list[Seat], head: bytes):
    if chosen := choose(found, head):
        assert {s.name: s.load for s in found}[chosen] == min(s.load for s in found if s.is_open)


def test_heads_spread_over_the_replicas():
    names = [f"10.0.0.{n}:8000" for n in range(4)]
    counted = Counter(choose([Seat(name, 0) for name in names], n.to_bytes(4, "big") * 100) for n in range(4000))
    assert min(counted[name] for name in names) > 850


def said(*texts: str) -> tuple[Message, ...]:
    roles = ("system", "user", "assistant", "user")
    return tuple(Message(role, (Text(text),)) for role, text in zip(roles, texts, strict=False))


def test_a_conversation_keeps_its_head():
    first = ChatRequest("m", said("Be brief.", "What is a page?"), tools=(ToolSpec("look", "Looks."),))
    later = replace(first, messages=said("Be brief.", "What is a page?", "4 KB.", "And a block?"))
    assert head_of(first) == head_of(later)
    assert head_of(first) != head_of(replace(first, messages=said("Be brief.", "What is a book?")))
    assert head_of(first) != head_of(replace(first, tools=()))


def test_prompts_with_a_long_common_beginning_share_a_head():
    assert head_of(ChatRequest("m", prompt="x" * 2000 + "a")) == head_of(ChatRequest("m", prompt="x" * 2000 + "b"))
    assert head_of(ChatRequest("m", prompt=(1,) * 600 + (2,))) == head_of(ChatRequest("m", prompt=(1,) * 600 + (3,)))
    assert len(head_of(ChatRequest("m", prompt="é" * 5000))) <= 1024
