"""What the books say of an answer, put together so that it can be made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from ..ledger.report import request as row_of
from ..ledger.texts import Kept, kept
from ..router.replay import unreplayable
from ..wire import anthropic_messages, google_generate, neutral, ollama, openai_chat, openai_completions, openai_responses
from ..wire.chat import ChatRequest
from ..wire.errors import BadRequest, NotFound
from ..wire.json_body import loads
from .job import Job, prepare


@dataclass(frozen=True)
class Case:
    """One attempt to be made again: its row, what it was asked, and its answers' token ids where they were kept."""

    request_id: str
    attempt: Mapping[str, Any]
    asked: ChatRequest
    recorded: list[list[int]] | None


def cases(books: Engine, request_id: str, given: Path | None, jobs: Mapping[str, Job]) -> list[Case]:
    """The local answers of a request; `given`: its JSON body, where its text was not kept. Raises NotFound and BadRequest."""
    row = row_of(books, request_id)
    if row is None:
        raise NotFound(f"The ledger knows no request {request_id!r}.")
    able = [a for a in row["attempts"] if not unreplayable(a)]
    if not able:
        why = "; ".join(f"try {a['n'] + 1}: {unreplayable(a)}" for a in row["attempts"]) or "nothing was tried"
        raise BadRequest(f"{request_id} has no answer that could be made again: {why}.")
    texts = kept(books, [request_id, *(a["id"] for a in able)])
    own = texts.get(request_id)
    whole = from_body(given, row, jobs) if given else neutral.decode(own.asked) if own and own.asked else None
    found: list[Case] = []
    for attempt in able:
        words = texts.get(attempt["id"])
        asked = neutral.decode(words.asked) if words and words.asked else whole if attempt["n"] == 0 else None
        if asked is not None:
            found.append(Case(request_id, attempt, asked, _ids(words)))
    if not found:
        raise BadRequest(f"The text of {request_id} was not kept: give the JSON body of the request again, with --text FILE.")
    return found


def _ids(words: Kept | None) -> list[list[int]] | None:
    """The answers' token ids, if all were kept."""
    ids = [answer["tokens"] for answer in words.answers or ()] if words else []
    return ids if ids and all(one is not None for one in ids) else None


def from_body(path: Path, row: Mapping[str, Any], jobs: Mapping[str, Job]) -> ChatRequest:
    """A request from the body that its client sent, in the protocol that it came in. Raises BadRequest."""
    try:
        body = loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"{path} holds no JSON object.")
    prompt = int(row["id"].partition(".")[2] or 0)  # of a plain completion with several
    parsers: dict[str, Callable[[Any], ChatRequest]] = {
        anthropic_messages.PROTOCOL: anthropic_messages.parse_request,
        google_generate.PROTOCOL: lambda given: google_generate.parse_request(given, row["model_asked"], stream=False),
        openai_completions.PROTOCOL: lambda given: openai_completions.parse_completion_request(given)[prompt],
        openai_responses.PROTOCOL: openai_responses.parse_request,
        "ollama_chat": ollama.parse_chat,
        "ollama_generate": ollama.parse_generate,
    }
    return prepare(parsers.get(row["protocol"], openai_chat.parse_request)(body), jobs)
