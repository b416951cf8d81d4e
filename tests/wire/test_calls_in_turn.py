"""Calls that a supplier writes at once reach clients whose protocol has one block at a time, each whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire import anthropic_messages, openai_chat, openai_responses
from baseload.wire.calls_in_turn import CallsInTurn
from baseload.wire.chat import Event, Failure, Finish, TextDelta, ToolCallDelta, Usage

ASKED = {"model": "m", "max_tokens": 9}
CALLS = [
    ToolCallDelta(0, "c0", "add"), ToolCallDelta(1, "c1", "look"), ToolCallDelta(0, arguments='{"a": {"b"'),
    ToolCallDelta(1, arguments='{"of": '), ToolCallDelta(0, arguments=": 1}"), ToolCallDelta(1, arguments='"x"}'),
    ToolCallDelta(0, arguments="}"), Usage(3, 9), Finish("tool_calls"),
]  # fmt: skip


def in_turn(events: list[Event]) -> list[Event]:
    turns = CallsInTurn()
    return [one for event in events for one in turns.feed(event)]


def test_two_interleaved_calls_are_two_blocks_of_anthropics():
    request = anthropic_messages.parse_request({**ASKED, "messages": [{"role": "user", "content": "hi"}]})
    content = anthropic_messages.render_response(request, CALLS, "msg_1", 1, "m")["content"]
    assert [(b["name"], b["input"]) for b in content] == [("add", {"a": {"b": 1}}), ("look", {"of": "x"})]


def test_and_two_items_of_responses():
    request = openai_responses.parse_request({"model": "m", "input": "hi"})
    output = openai_responses.render_response(request, CALLS, "resp_1", 1, "m")["output"]
    assert [(i["call_id"], json.loads(i["arguments"])) for i in output] == [("c0", {"a": {"b": 1}}), ("c1", {"of": "x"})]


def test_a_call_that_comes_by_itself_is_not_kept_waiting():
    turns = CallsInTurn()
    pieces = [ToolCallDelta(0, "c0", "add"), ToolCallDelta(0, arguments="{}"), ToolCallDelta(1, "c1", "add", '{"a"')]
    assert [list(turns.feed(piece)) for piece in pieces] == [[piece] for piece in pieces]


@pytest.mark.parametrize("end", [Finish("length"), Failure("gone")])
def test_the_end_always_comes_and_is_the_last(end):
    events = in_turn([ToolCallDelta(0, "c0", "add"), ToolCallDelta(1, "c1", "add"), TextDelta("so"), end])
    assert events[-1] == end
    assert isinstance(end, Failure) or len(events) == 4


@given(st.lists(st.tuples(st.integers(0, 3), st.text('{}"a:1, ', min_size=1, max_size=4)), max_size=20))
def test_nothing_is_lost_and_each_calls_pieces_stand_together(pieces):
    begun: set[int] = set()
    events: list[Event] = []
    for call, text in pieces:
        first = call not in begun
        begun.add(call)
        events.append(ToolCallDelta(call, f"c{call}" if first else None, "add" if first else None, text))
    events.append(Finish("stop"))
    came = in_turn(events)
    assert openai_chat.join_tool_calls([e for e in came if isinstance(e, ToolCallDelta)]) == openai_chat.join_tool_calls(
        [e for e in events if isinstance(e, ToolCallDelta)]
    )
    order = [e.call for e in came if isinstance(e, ToolCallDelta)]
    changes = [b for a, b in zip([None, *order], order, strict=False) if a != b]
    whole = [c for c in begun if _is_whole_early([t for n, t in pieces if n == c])]
    assert whole or len(changes) == len(set(changes))  # but for what comes after a call was whole, which is nothing of a call


def _is_whole_early(texts: list[str]) -> bool:
    """Whether what a call says is a whole object before its last piece."""
    for i in range(1, len(texts)):
        try:
            if isinstance(json.loads("".join(texts[:i])), dict):
                return True
        except ValueError:
            pass
    return False
