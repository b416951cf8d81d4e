"""The console's paths: who may read them, what they say, under which policy, and that reading never holds up anybody."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from baseload.ledger import budgets, keys
from baseload.ledger.ledger import Ledger
from baseload.ledger.rows import AttemptRow, RequestRow
from baseload.ledger.timeline import Stretch
from baseload.server.console import books as console_books
from baseload.server.console.books import WINDOWS, History
from baseload.server.console.page import POLICY
from baseload.server.services import Services

PAGE = Path(console_books.__file__).parent / "page"
DATA = tuple(f"/console/data/{name}" for name in ("now", "books", "budgets", "requests", "requests/r1"))


@pytest.fixture
def kept(serve: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Ledger]]]:
    """`kept(key=...)` starts a server over a real, empty ledger."""
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")

    def start(**given: Any) -> tuple[Any, Ledger]:
        running = serve(started=False, **given)
        running.app.state.life.start(Services(running.router, ledger, lambda: {"tiny": running.engine}))
        return running, ledger

    yield start
    ledger.close()


def write(ledger: Ledger, name: str, ts: float, *, backend: str = "local", usd: float | None = None, **request: Any) -> None:
    ledger.add(RequestRow(name, ts, "openai_chat", "auto", backend, status="done", finished_ts=ts + 0.5, **request))
    money: dict[str, Any] = {"internal_usd": usd} if backend == "local" else {"retail_usd": usd}
    row = AttemptRow(f"{name}a", name, 0, backend, "m", ts, 0.1, 0.5, 100, 20, finish_reason="stop", accepted=True, **money)
    ledger.add(row)


# ------------------------------------------------------------------------------------------------------- who may read


def test_the_page_is_open_and_its_data_is_for_this_machine_or_the_key(kept):
    running, ledger = kept(key="s3cret")
    write(ledger, "r1", time.time())
    ledger.flush()
    proxied = {"x-forwarded-for": "127.0.0.1"}  # who speaks for others is not this machine
    for path in ("/console", "/console/page/main.js", "/console/page/style.css", "/console/page/icon.svg"):
        assert running.get(path, **proxied).status_code == 200
    for path in DATA:
        assert running.get(path).status_code == 200
        assert running.get(path, **proxied).status_code == 403
        assert running.get(path, **proxied, authorization="Bearer wrong").status_code == 403
        assert running.get(path, **proxied, authorization="Bearer s3cret").status_code == 200
        assert running.get(path, **proxied, cookie="key=s3cret; authorization=Bearer s3cret").status_code == 403
        assert running.get(f"{path}?key=s3cret", **proxied).status_code == 403


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"sec-fetch-site": "cross-site"}, "origin_not_allowed"),
        ({"sec-fetch-site": "same-site"}, "origin_not_allowed"),
    ],
)
def test_other_pages_in_the_users_browser_get_nothing(kept, headers, code):
    running, _ = kept()
    for path in DATA:
        answer = running.get(path, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_nothing_can_be_changed_here(kept):
    running, _ = kept()
    for path in ("/console", *DATA):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert httpx2.request(method, running.url + path, json={}).status_code == 405


# --------------------------------------------------------------------------------------------------------- the page


def test_every_answer_carries_the_policy(kept):
    running, _ = kept()
    for path in ("/console", *(f"/console/page/{file.name}" for file in PAGE.iterdir()), *DATA[:4]):
        answer = running.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "'unsafe" not in POLICY
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} <= set(POLICY.split("; "))


def test_the_page_needs_nothing_but_its_own_files():
    """What the policy forbids is not there to begin with: no other address, no inline script, style or handler, no markup from
    strings; and every file that one of them names exists."""
    for file in PAGE.iterdir():
        text = file.read_text()
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert not re.search(r"\bstyle=|\son\w+=", text)
        assert not re.search(r"setAttribute\(\s*[\"'](style|on)", text)
        for name in re.findall(r"/console/page/([\w.]+)|from \"\./([\w.]+)\"", text):
            assert (PAGE / "".join(name)).is_file(), (file.name, name)
    page = (PAGE / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]*\ssrc=)|<style", page)


@pytest.mark.parametrize("name", ["../routes.py", "..%2froutes.py", "%2e%2e%2fpage.py", "none.js", "main.js%00", ".", "a/b"])
def test_only_the_pages_files_are_served(kept, name):
    answer = kept()[0].get(f"/console/page/{name}")
    assert answer.status_code == 404
    assert "import" not in answer.text


# --------------------------------------------------------------------------------------------------------- the data


def test_the_books_say_what_was_asked_and_what_it_cost(kept):
    running, ledger = kept()
    now = time.time()
    who, _ = keys.create(ledger.engine, "ci <b>runner</b>")
    for n in range(8):
        write(ledger, f"l{n}", now - 60 * n, usd=0.001, key_id=who.id)
    write(ledger, "s1", now - 30, backend="acme", usd=0.012)
    write(ledger, "old", now - 90_000, usd=5.0)
    ledger.flush()
    found = running.get("/console/data/books?window=24h&beside=openai/gpt-4o-mini").json()
    assert (found["pending"], found["cut"]) == (0, False)
    assert found["total"]["requests"] == found["total"]["accepted"] == 9
    assert found["total"]["usd_per_accepted"] == pytest.approx((8 * 0.001 + 0.012) / 9)
    assert found["total"]["paid_usd"] == pytest.approx(0.012)
    assert sum(step["local"] for step in found["steps"]) == 8
    assert sum(step["supplier"] for step in found["steps"]) == 1
    assert {line["name"]: line["requests"] for line in found["places"]} == {"local": 8, "acme": 1}
    assert [(line["name"], line["requests"]) for line in found["users"]] == [("ci <b>runner</b>", 8), ("", 1)]
    assert sum(found["users"][0]["trend"]) == 8 * 120
    beside = found["beside"]
    assert (beside["calls"], beside["local_usd"]) == (8, pytest.approx(0.008))
    # 100 tokens in at $0.15 a million and 20 out at $0.60: what the price list of that model says.
    assert beside["usd"] == pytest.approx(8 * (100 * 0.15 + 20 * 0.60) / 1e6)
    assert running.get("/console/data/books?window=30d").json()["total"]["requests"] == 10


def test_what_is_not_known_is_null_and_never_nothing(kept):
    running, ledger = kept()
    write(ledger, "l", time.time())
    ledger.flush()
    found = running.get("/console/data/books?beside=acme/none-such").json()
    assert found["total"]["usd"] is found["total"]["usd_per_accepted"] is found["total"]["joules_per_accepted"] is None
    assert found["total"]["local_unknown"] == 1
    assert found["total"]["paid_usd"] == 0.0  # known: no supplier was asked
    assert (found["beside"]["usd"], found["beside"]["margin"]) == (None, None)
    assert running.get("/console/data/books").json()["beside"] is None


def test_budgets_requests_and_the_present(kept):
    running, ledger = kept()
    key, _ = keys.create(ledger.engine, "runner")
    budgets.put(ledger.engine, "key", key.id, "total", 2)
    held = budgets.reserve(ledger.engine, "r", 0.5, key_id=key.id)
    assert isinstance(held, str)
    (line,) = running.get("/console/data/budgets").json()["budgets"]
    assert (line["label"], line["limit_usd"], line["held_usd"], line["spent_usd"]) == ("runner", 2.0, 0.5, 0.0)
    for n in range(60):
        write(ledger, f"r{n:02}", 1000.0 + n)
    ledger.flush()
    first = running.get("/console/data/requests").json()["requests"]
    last = first[-1]
    rest = running.get(f"/console/data/requests?before={last['ts']},{last['id']}").json()["requests"]
    assert [line["id"] for line in first + rest] == [f"r{n:02}" for n in reversed(range(60))]
    assert running.get("/console/data/requests?status=failed").json()["requests"] == []
    one = running.get("/console/data/requests/r07").json()
    assert (one["id"], one["attempts"][0]["completion_tokens"]) == ("r07", 20)
    (engine,) = running.get("/console/data/now").json()["engines"]
    assert (engine["name"], engine["running"], engine["waiting"], engine["pages_used"]) == ("tiny", 2, 1, 25)


@pytest.mark.parametrize(
    "path",
    [
        "books?window=1y",
        "books?beside=nothing",
        "books?beside=a/b;drop%20table",
        "requests?status=odd",
        "requests?before=x",
        "requests?before=1e999,r1",
        "requests?before=1,",
        "requests?before=1,%27%20or%201=1",
        "requests/a%27b",
    ],
)
def test_other_questions_are_refused(kept, path):
    answer = kept()[0].get(f"/console/data/{path}")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_without_books_or_before_the_start_it_says_so(serve):
    running = serve(started=False)
    assert running.get("/console").status_code == 200
    assert running.get("/console/data/now").json()["phase"] == "starting"
    assert running.get("/console/data/books").status_code == 503
    running.app.state.life.start(Services(running.router, None, lambda: {"tiny": running.engine}))
    assert running.get("/console/data/books").json()["error"]["code"] == "no_ledger"


# ------------------------------------------------------------------------------------------------ reading holds up nobody


def test_a_slow_question_to_the_books_holds_up_nobody(kept):
    """While the books are being read, answers are made; more who ask wait for their turn, and too many are sent away."""
    running, _ = kept()
    go, begun = threading.Event(), threading.Event()

    def slow(_engine: Any, start: float, end: float) -> Stretch:
        begun.set()
        assert go.wait(30)
        return Stretch(start, end, (), False)

    running.app.state.console.history = History(slow)
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx2.get(f"{running.url}/console/data/books", timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        assert begun.wait(10)
        running.until(lambda: answers.count(429) == 4)
        assert running.post().status_code == 200
        assert running.get("/health").status_code == 200
        assert running.get("/console/data/now").status_code == 200
        assert answers == [429] * 4
    finally:
        go.set()
        for thread in threads:
            thread.join(60)
    assert sorted(answers) == [200] * 16 + [429] * 4


def test_steps_are_read_newest_first_once_and_not_for_long(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(console_books.time, "monotonic", lambda: clock[0])
    read: list[float] = []

    def step(_engine: Any, start: float, end: float) -> Stretch:
        clock[0] += 0.25  # a large ledger
        read.append(start)
        return Stretch(start, end, (), False)

    history, now = History(step), 10_000_000.0
    first = history.window(None, "30d", now)  # type: ignore[arg-type]
    width = WINDOWS["30d"][0] // WINDOWS["30d"][1]
    assert len(read) == 4  # what 0.8 seconds allow, whatever there is
    assert read == [(now // width - n) * width for n in range(4)]
    assert [step is not None for step in first] == [False] * 26 + [True] * 4
    for _ in range(10):
        history.window(None, "30d", now)  # type: ignore[arg-type]
    assert len([start for start in read if start != read[0]]) == 29  # those that are over once each
    again = len(read)
    clock[0] += 700  # feedback may have come since
    history.window(None, "30d", now)  # type: ignore[arg-type]
    assert len(read) == again + 4


def test_steps_are_not_kept_without_end():
    history = History(lambda _engine, start, end: Stretch(start, end, (), False))
    for day in range(100):
        for window in WINDOWS:
            assert None not in history.window(None, window, 1e9 + day * 86_400)  # type: ignore[arg-type]
    assert len(history._kept) <= console_books.KEPT
