"""What `ledger report` says, against sums made by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.ledger import AttemptRow, Ledger, RequestRow


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    yield ledger
    ledger.close()


def request(id: str, route: str, model: str = "auto", ts: float = 100.0) -> RequestRow:
    return RequestRow(id=id, ts=ts, protocol="openai_chat", model_asked=model, route=route, status="done", finished_ts=ts + 1)


def attempt(id: str, request_id: str, backend: str, **more: object) -> AttemptRow:
    given = {"n": 0, "model": "m", "started_ts": 100.0, "prompt_tokens": 10, "completion_tokens": 5, **more}
    return AttemptRow(id=id, request_id=request_id, backend=backend, **given)  # type: ignore[arg-type]


def test_sums_per_route_and_model(book: Ledger):
    rows = [
        request("r1", "local"),
        attempt("a1", "r1", "local", accepted=True, first_token_s=0.1, duration_s=1.0, cached_tokens=4),
        request("r2", "local"),
        attempt("a2", "r2", "local", accepted=True, first_token_s=0.3, duration_s=3.0),
        request("r3", "big"),
        attempt("a3", "r3", "local", first_token_s=9.0, duration_s=9.0),
        attempt("a4", "r3", "supplier", n=1, accepted=True, first_token_s=0.5, duration_s=0.7, retail_usd=0.25),
        request("r4", "", model="nobody"),
    ]
    for row in rows:
        book.add(row)
    book.flush()
    local, refused, big = book.report().lines
    assert (local.route, local.model, local.requests, local.attempts, local.accepted) == ("local", "auto", 2, 2, 2)
    assert (local.prompt_tokens, local.completion_tokens, local.cached_tokens) == (20, 10, 4)
    assert (local.first_token_s, local.duration_s) == (0.2, 2.0)
    assert (local.retail_usd, local.unpriced, local.escalated) == (None, 2, 0.0)
    # the escalated request: the failed try's tokens are paid for too, its times are nobody's answer
    assert (big.attempts, big.accepted, big.prompt_tokens, big.first_token_s) == (2, 1, 20, 0.5)
    assert (big.retail_usd, big.unpriced, big.escalated) == (0.25, 1, 1.0)
    assert (refused.model, refused.requests, refused.attempts, refused.first_token_s) == ("nobody", 1, 0, None)
    total = book.report().total
    assert (total.requests, total.attempts, total.retail_usd, total.escalated) == (4, 4, 0.25, 0.25)


def test_two_tries_at_one_backend_are_no_escalation(book: Ledger):
    for row in (request("r1", "local"), attempt("a1", "r1", "local"), attempt("a2", "r1", "local", n=1, accepted=True)):
        book.add(row)
    book.flush()
    assert book.report().total.escalated == 0.0


def test_since_leaves_out_what_is_older(book: Ledger):
    for i in range(10):
        book.add(request(f"r{i}", "local", ts=float(i)))
        book.add(attempt(f"a{i}", f"r{i}", "local"))
    book.flush()
    assert (book.report(since=7.0).total.requests, book.report(since=7.0).total.prompt_tokens) == (3, 30)


def test_an_empty_ledger_has_an_empty_report(book: Ledger):
    report = book.report()
    assert (report.lines, report.total.requests, report.total.escalated) == ((), 0, 0.0)


tries = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["local", "x", "y"]), st.integers(0, 99), st.none() | st.integers(0, 400)),
    max_size=30,
)


@settings(max_examples=25, deadline=None)
@given(tries=tries)
def test_the_lines_add_up_to_the_total(tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[int, str, int, int | None]]):
    book = Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('book')}/ledger.db")
    for i, (r, backend, tokens, price) in enumerate(tries):
        book.add(request(f"r{r}", f"route{r % 2}", model=f"m{r % 3}"))
        usd = None if price is None else price / 4  # quarters add up exactly
        book.add(attempt(f"a{i}", f"r{r}", backend, prompt_tokens=tokens, retail_usd=usd))
    book.close()
    report = book.report()
    assert sum(line.prompt_tokens for line in report.lines) == report.total.prompt_tokens == sum(t for _, _, t, _ in tries)
    assert sum(line.requests for line in report.lines) == len({r for r, *_ in tries})
    assert sum(line.unpriced for line in report.lines) == sum(p is None for *_, p in tries)
    assert (report.total.retail_usd or 0) == sum(p or 0 for *_, p in tries) / 4
    book.engine.dispose()
