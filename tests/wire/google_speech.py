"""What Google's clients send and get, for tests."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from baseload.wire.chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from baseload.wire.google_generate import (
    StreamParser,
    StreamRenderer,
    parse_request,
)

USER = [{"role": "user", "parts": [{"text": "hi"}]}]
ADD = {"name": "add", "parameters": {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}}}
TOOLS = [{"functionDeclarations": [ADD]}]
PNG = b64encode(b"\x89PNG").decode()
THINKING: dict[str, Any] = {"thinkingConfig": {"includeThoughts": True}}


def asked(model: str = "m", **fields: Any) -> ChatRequest:
    return parse_request({"contents": USER, **fields}, model, True)


def configured(**config: Any) -> ChatRequest:
    return asked(generationConfig=config)


def turns(*contents: Any) -> tuple[Message, ...]:
    return asked(contents=list(contents)).messages


def rendered(events: Sequence[Event], request: ChatRequest | None = None) -> list[dict[str, Any]]:
    """The chunks of a stream, the fast way where there is one, as a client reads them."""
    renderer, chunks = StreamRenderer(request or configured(**THINKING), "r1", 1, "m"), list[dict[str, Any]]()
    for event in events:
        plain = renderer.plain(event)
        if plain is None:
            chunks += [json.loads(json.dumps(chunk)) for chunk in renderer.events(event)]
        else:
            assert plain.startswith(b"data: ") and plain.endswith(b"\n\n") and plain.count(b"\n") == 2
            chunks.append(json.loads(plain.removeprefix(b"data: ")))
    return chunks


def read(chunks: Sequence[Mapping[str, Any]], n: int = 1) -> list[Event]:
    parser = StreamParser(n)
    return [event for chunk in chunks for event in parser.feed(json.dumps(chunk))] + parser.close()


def parts(chunks: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]


def meaning(events: Sequence[Event]) -> tuple[Any, ...]:
    """What a stream says, however it is cut."""
    said: dict[int, list[Any]] = {}
    for e in events:
        if isinstance(e, TextDelta | ReasoningDelta | ToolCallDelta):
            text, thought, signatures, calls = said.setdefault(e.index, [[""], [""], [], {}])
            if isinstance(e, TextDelta):
                text[0] += e.text
            elif isinstance(e, ReasoningDelta):
                thought[0] += e.text
                signatures += [e.signature] if e.signature else []
            else:
                call = calls.setdefault(e.call, ["", "", ""])
                call[0], call[1], call[2] = call[0] or e.id, call[1] or e.name, call[2] + e.arguments
    for _, _, _, calls in said.values():
        for call in calls.values():
            call[2] = json.loads(call[2] or "{}")
    ends = sorted((e for e in events if isinstance(e, Finish | Failure)), key=repr)
    return {i: v for i, v in said.items() if v != [[""], [""], [], {}]}, ends, [e for e in events if isinstance(e, Usage)][-1:]
