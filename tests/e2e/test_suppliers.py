"""The same job over four suppliers, each with a protocol of its own: what changes is one line of the configuration."""

from collections.abc import Iterator
from typing import Any

import pytest

from .stand_in import ANSWER_TOKENS, KEY, KINDS, PROMPT_TOKENS, Reply, StandIn, stand_in

pytestmark = pytest.mark.slow

ANSWER = '{"capital": "Paris"}'
SCHEMA = {"type": "object", "required": ["capital"], "properties": {"capital": {"type": "string"}}}
ASK = {
    "model": "auto",
    "temperature": 0,
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "Write a poem about the sea."}],
    "baseload": {"checks": [{"type": "json_schema", "schema": SCHEMA}]},
}


@pytest.fixture(scope="module")
def supplier() -> Iterator[StandIn]:
    with stand_in(lambda asked: Reply(ANSWER)) as one:
        yield one


@pytest.mark.parametrize("chosen", KINDS)
def test_the_same_job_over_each(start: Any, supplier: StandIn, chosen: str):
    allowed = ", ".join(f'"{kind}"' for kind in KINDS)
    router = f'[router]\nallowed_suppliers = [{allowed}]\nladder = ["{chosen}/big"]\n'
    server = start(config=router + "".join(supplier.section(kind, kind) for kind in KINDS), env={"STAND_IN_KEY": KEY})
    try:
        status, answer, headers = server.call("/v1/chat/completions", ASK)
        assert (status, headers["x-baseload-route"]) == (200, f"{chosen}/big"), answer
        assert answer["choices"][0]["message"]["content"] == ANSWER
        usage = answer["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (PROMPT_TOKENS, ANSWER_TOKENS)
    finally:
        server.stop()
