"""Text that came together is passed on as one event, and nothing else is changed."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.chat import Event, Finish, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta, Usage
from baseload.wire.upstream import run_together

INDEX = st.integers(0, 2)
PROBABLE = st.sampled_from([(), (TokenLogprob("a", -0.5, b"a"),)])
TEXTS = st.builds(TextDelta, st.text(max_size=3), INDEX, st.integers(0, 2), PROBABLE)
OTHERS = st.one_of(
    st.builds(ReasoningDelta, st.text(max_size=3), INDEX, st.just(1)),
    st.builds(ToolCallDelta, INDEX, st.none(), st.none(), st.text(max_size=3), INDEX),
    st.builds(Usage, INDEX, INDEX),
    st.builds(Finish, st.just("stop"), INDEX),
)


def letters(events: Sequence[Event]) -> list[tuple[int, str]]:
    """What is said, letter by letter, with whose it is; other events whole, in their places."""
    said: list[tuple[int, str]] = []
    for event in events:
        if isinstance(event, TextDelta) and not event.logprobs:
            said += [(event.index, letter) for letter in event.text]
        else:
            said.append((-1, repr(event)))
    return said


@given(st.lists(st.one_of(TEXTS, TEXTS, OTHERS), max_size=20))
def test_what_is_said_its_order_and_its_count_stay(events: list[Event]):
    together = list(run_together(events))
    assert letters(together) == letters(events)
    assert sum(getattr(e, "tokens", 0) for e in together) == sum(getattr(e, "tokens", 0) for e in events)
    for a, b in pairwise(together):
        both = isinstance(a, TextDelta) and isinstance(b, TextDelta) and not a.logprobs and not b.logprobs
        assert not both or a.index != b.index  # pyright: ignore[reportAttributeAccessIssue]
