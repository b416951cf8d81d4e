"""Texts are kept of each try, and each try is made again from what was kept of it; what comes out otherwise is placed."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from baseload.harness.recorded import cases
from baseload.ledger.ledger import Ledger
from baseload.ledger.texts import kept
from baseload.router.replay import replay
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Extras, Failure, Finish, Receipt, TextDelta, Usage
from baseload.wire.errors import BadRequest, NotFound

from .conftest import Script
from .routed import OBJECT, ask, router_of, run

CHECKED = Extras(checks=(OBJECT,))
PAPER = Receipt("m", "t", "k", "s", 7)


def said(text: str, ids: tuple[int, ...], digest: str = "d", paper: Receipt = PAPER) -> list[Event]:
    """An answer as the local model gives one."""
    whole = replace(paper, tokens=(ids,), tokens_digest=digest)
    return [
        Usage(4, 0, receipt=paper),
        TextDelta(text, tokens=len(ids)),
        Usage(4, len(ids), device_seconds=0.1, receipt=whole),
        Finish("stop"),
    ]


async def record(ledger: Ledger, request: ChatRequest, local: list[Any], away: list[Any] | None = None, **policy: Any) -> None:
    router, home, supplier = router_of(ledger, **policy)
    home.answers, supplier.answers = local, away or []
    await run(router, request)
    ledger.flush()


async def test_every_try_is_kept_with_what_it_was_asked(ledger: Ledger):
    ledger.keep_text = True
    await record(ledger, ask("a list", extras=CHECKED), [said("no", (1, 2)), said("nor", (3,))], ["{}"], repairs=1)
    first, repair, bought = (ledger.request("req_1") or {})["attempts"]
    texts = kept(ledger.engine, ["req_1", first["id"], repair["id"], bought["id"]])
    assert (texts["req_1"].asked or {})["messages"][1]["content"] == [{"type": "text", "text": "a list"}]
    assert texts[first["id"]].asked is None
    assert texts[first["id"]].answers == [{"text": "no", "reason": "stop", "calls": [], "tokens": [1, 2]}]
    told = (texts[repair["id"]].asked or {})["messages"]
    assert told[-2]["content"][0]["text"] == "no" and "was not accepted" in told[-1]["content"][0]["text"]
    assert (texts[bought["id"]].answers or [])[0] == {"text": "{}", "reason": "stop", "calls": [], "tokens": None}
    assert (first["seed"], first["tokens_digest"], bought["seed"]) == (7, "d", None)
    found = cases(ledger.engine, "req_1", None, {})
    assert [case.attempt["n"] for case in found] == [0, 1] and found[0].recorded == [[1, 2]]
    assert found[1].asked.messages[-1].text == told[-1]["content"][0]["text"]
    again = Script(ModelInfo("small", 1000), [said("nor", (3,))])
    assert (await replay(found[1].attempt, found[1].asked, found[1].recorded, again)).verdict == "same"
    assert again.asked[0].sampling.seed == 7 and len(again.asked[0].messages) == 4


async def test_no_word_is_kept_unless_it_is_wanted(ledger: Ledger, tmp_path: Path):
    await record(ledger, ask("Rumpelstiltskin", extras=CHECKED), [said("no", (1,))], ["{}"])
    assert b"Rumpelstiltskin" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(BadRequest, match="was not kept"):
        cases(ledger.engine, "req_1", None, {})


async def test_what_cannot_be_made_again_is_said_to_be_so(ledger: Ledger):
    with pytest.raises(NotFound):
        cases(ledger.engine, "req_9", None, {})
    await record(ledger, replace(ask(), model="acme/gpt-4o-mini"), [], ["hello"])
    with pytest.raises(BadRequest, match="made by acme"):
        cases(ledger.engine, "req_1", None, {})


ATTEMPT = {"id": "a", "seed": 7, "prompt_tokens": 4, "tokens_digest": "d", "started_ts": 5.0}
ATTEMPT |= {f"{name}_digest": getattr(PAPER, name) for name in ("model", "template", "kernels", "settings")}


@pytest.mark.parametrize(
    ("now", "recorded", "expected"),
    [
        (said("x", (1, 2, 3)), [[1, 2, 3]], {"verdict": "same", "tokens": 3}),
        (said("x", (1, 5, 3), "e"), [[1, 2, 3]], {"verdict": "different", "choice": 0, "at": 1, "then": 2, "now": 5}),
        (said("x", (1, 2), "e"), [[1, 2, 3]], {"verdict": "different", "at": 2, "then": 3, "now": None}),
        (said("x", (1, 2), "e"), None, {"verdict": "different", "at": None}),
        (said("x", (1, 2), "e"), [[1, 2]], {"verdict": "different", "why": "the prompt's tokens are others"}),
        (
            [Usage(5, 0, receipt=PAPER), *said("x", (1,), "e")[1:2], Usage(5, 1, receipt=PAPER)],
            None,
            {"why": "not what was asked"},
        ),
        (said("x", (1,), paper=replace(PAPER, kernels="z")), None, {"verdict": "refused", "changed": {"kernels": ("k", "z")}}),
        ([Failure("it is full")], None, {"verdict": "different", "why": "it fails now: it is full"}),
        ([], None, {"verdict": "different", "why": "no answer"}),
    ],
)
async def test_what_comes_out_is_compared(now: list[Event], recorded: Any, expected: dict[str, Any]):
    backend = Script(ModelInfo("small", 1000), [now])
    found = asdict(await replay(ATTEMPT, ask(), recorded, backend))
    assert all(value in found["why"] if name == "why" else found[name] == value for name, value in expected.items()), found
    assert backend.closed == 1
