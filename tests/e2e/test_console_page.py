"""The console in a real browser, over the real server with the real model and a supplier, after some traffic.

Needs Debian's `chromium` (apt-get install chromium) and the packages playwright and axe-playwright-python.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from baseload.ledger import budgets
from baseload.ledger.ledger import Ledger
from baseload.ledger.rows import AttemptRow, OutcomeRow, RequestRow

from .stand_in import KEY as SUPPLIERS_KEY
from .stand_in import Reply, stand_in

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]

KEY = "the-servers-key"
PROXIED = {"x-forwarded-for": "203.0.113.9"}  # somebody else, by a proxy on this machine
WAIT_MS = 60_000  # a busy machine takes its time
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<svg onload=window.hacked=3>",
    '"><a href="javascript:window.hacked=4">x</a>',
    "</table><iframe srcdoc='<script>parent.hacked = 5</script>'>",
    "{{constructor.constructor('window.hacked=6')()}}",
)


@pytest.fixture(scope="module")
def house(start: Any) -> Iterator[Any]:
    """A server with a key, a supplier, and a few requests of every sort behind it."""
    with stand_in(lambda asked: Reply("The supplier says 42.")) as supplier:
        models = '[{id = "gpt-4o-mini", context_length = 128000, tools = true}]'
        acme = f'[suppliers.acme]\nbase_url = "{supplier.url}/v1"\napi_key_env = "STAND_IN_KEY"\nprice_provider = "openai"\n'
        router = '[router]\nallowed_suppliers = ["acme"]\nladder = ["acme/gpt-4o-mini"]\n'
        env = {"STAND_IN_KEY": SUPPLIERS_KEY, "BASELOAD_API_KEY": KEY}
        server = start(config=f"{router}{acme}models = {models}\n", env=env)
        server.headers["authorization"] = f"Bearer {KEY}"
        budgets.put(_ledger(server).engine, "all", "", "total", 20)
        for n in range(3):
            assert server.chat(f"Count to {n + 3}.")[0] == 200
        assert server.chat(HOSTILE[0], model="acme/gpt-4o-mini")[0] == 200
        must = {"baseload": {"checks": [{"type": "regex", "pattern": "42"}]}}
        assert server.chat("What is six times seven?", model="auto", **must)[0] == 200
        yield server
        server.stop()


def _ledger(server: Any) -> Ledger:
    return Ledger.open(f"sqlite:///{server.home}/ledger.db")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, house: Any) -> Iterator[Callable[..., Any]]:
    """`visit(color_scheme="dark")` opens the console; in the end nothing went wrong in it or was asked elsewhere."""
    contexts: list[Any] = []
    wrong: list[str] = []
    asked: list[str] = []

    def open_page(*expected: str, **given: Any) -> Any:
        def known(text: str) -> bool:
            return any(words in text for words in expected)

        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | given))
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" and not known(said.text) else None)
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{house.url}/console")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
    assert asked
    assert not [url for url in asked if not url.startswith(f"{house.url}/console")]


def ready(page: Any) -> Any:
    """The page once every part of it has been drawn."""
    page.locator("#requests tbody tr").first.wait_for()
    page.locator("#places tbody tr").first.wait_for()
    until(page, "document.querySelector('#now-tiles').textContent.includes('tok/s')")
    return page


def until(page: Any, true: str) -> None:
    """Wait until an expression is true. Playwright's own way evaluates text within the page, which the policy forbids."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(true):
        assert time.monotonic() < deadline, true
        page.wait_for_timeout(50)


def tile(page: Any, name: str) -> str:
    return page.locator(".tile").filter(has=page.locator(f"dt:text-is('{name}')")).locator(".figure").inner_text()


# ------------------------------------------------------------------------------------------------------- what it shows


def test_it_shows_what_was_asked_answered_and_paid(visit, house):
    page = ready(visit())
    _, books, _ = house.call("/console/data/books?window=24h")
    asked = books["total"]["requests"]
    assert asked >= 5
    assert tile(page, "Accepted") == f"{books['total']['accepted']}of {asked}"
    # The stand-in's usage, 40 tokens in and 7 out, twice, at $0.15 and $0.60 a million.
    assert tile(page, "Paid to suppliers") == "$0.0000204"
    places = {row.split("\t")[0]: row.split("\t")[1] for row in page.locator("#places tbody tr").all_inner_texts()}
    assert places == {"local": str(asked - 2), "acme": "2"}
    assert "everybody" in page.locator("#budgets").inner_text()
    assert "$20.00" in page.locator("#budgets").inner_text()
    assert "openai/gpt-4o-mini" in page.locator("#beside").inner_text()
    assert page.locator("#requests tbody tr").count() == asked
    assert "ready" in page.locator("#phase").inner_text()


def test_an_answer_in_the_making_is_seen_in_the_rate_and_the_queue(visit, house):
    page = ready(visit())
    over = threading.Event()

    def keep_busy() -> None:
        while not over.is_set():
            house.chat("Tell me a very long story.", max_tokens=200, ignore_eos=True)

    worker = threading.Thread(target=keep_busy)
    worker.start()
    try:
        until(
            page,
            """() => [...document.querySelectorAll('#now-tiles .tile')].every((tile) => {
                 const name = tile.querySelector('dt').textContent;
                 const value = parseFloat(tile.querySelector('.figure').textContent);
                 return !['Output', 'Running', 'Engine busy'].includes(name) || value > 0; })""",
        )
    finally:
        over.set()
        worker.join()


def test_a_decision_is_explained_in_a_dialog_that_the_keyboard_can_use(visit):
    page = ready(visit())
    row = page.locator("#requests tbody tr").filter(has_text="auto")
    button = row.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    details = page.locator("dialog[open]")
    details.get_by_role("heading", name="Verdicts").wait_for()
    said = details.inner_text()
    for words in ("left the choice to the router", "acme/gpt-4o-mini", "not accepted", "regex: failed", "What left"):
        assert words in said
    page.keyboard.press("Escape")
    details.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.textContent") == "Details"


def test_a_charts_values_can_be_read_by_keyboard_by_pointer_and_in_a_table(visit, house):
    for left in (2, 1, 0):
        try:
            return read_a_chart(ready(visit()), house)
        except AssertionError:  # a step of time may have ended between the page's reading and ours
            if not left:
                raise


def read_a_chart(page: Any, house: Any) -> None:
    shown = [[step[name] for name in ("local", "supplier", "nobody")] for step in house.call("/console/data/books")[1]["steps"]]
    words = ["local {}, suppliers {}, nobody {}".format(*values) for values in shown]
    assert sum(map(sum, shown)) >= 5
    chart = page.locator("#chart-share")
    plot = chart.get_by_role("slider")
    plot.focus()
    page.keyboard.press("End")
    last = plot.get_attribute("aria-valuetext")
    tip = chart.locator(".tip")
    assert tip.is_visible()
    assert words[-1] in last
    assert tip.inner_text().replace("\n", ", ").replace(", local", ": local") == last
    page.keyboard.press("ArrowLeft")
    assert words[-2] in plot.get_attribute("aria-valuetext")
    page.keyboard.press("Home")
    assert plot.get_attribute("aria-valuenow") == "0"
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
    assert words[-1] == ", ".join(tip.inner_text().split("\n")[1:])
    chart.locator("summary").click()
    rows = chart.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[1:] for row in reversed(rows)] == [[str(value) for value in values] for values in shown]


def test_a_window_and_a_status_are_chosen(visit, house):
    page = ready(visit())
    page.get_by_label("1 hour").check()
    until(page, "document.querySelector('#chart-share [role=slider]').getAttribute('aria-valuemax') === '29'")
    page.get_by_label("Status").select_option("failed")
    until(page, "document.querySelector('#requests-note').textContent === 'There are none.'")
    page.get_by_label("Supplier and model").fill("openai/no-such-model")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("No price is known for openai/no-such-model.").wait_for()


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_hangs_over_the_edge(visit, width):
    page = ready(visit(viewport={"width": width, "height": 900}))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_thin = page.evaluate("[...document.querySelectorAll('td, th')].filter((c) => c.offsetHeight > 200).length")
    assert too_thin == 0


# ------------------------------------------------------------------------------------------------------- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, scheme):
    page = ready(visit(color_scheme=scheme))
    for summary in page.locator("details summary").all():
        summary.click()
    assert serious(page) == []
    page.locator("#requests tbody tr").filter(has_text="auto").get_by_role("button").click()
    page.locator("dialog[open]").get_by_role("heading", name="Verdicts").wait_for()
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_keys_form(visit, scheme):
    page = visit("403", color_scheme=scheme, extra_http_headers=PROXIED)
    page.get_by_role("textbox", name="Key").wait_for()
    assert serious(page) == []


def serious(page: Any) -> list[str]:
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 10  # it did look
    bad = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    return [f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}" for rule in bad for node in rule["nodes"]]


# --------------------------------------------------------------------------------------------------------- who may see


def test_the_key_is_asked_for_and_sent_in_a_header_alone(visit):
    page = visit("403", extra_http_headers=PROXIED)
    field = page.get_by_role("textbox", name="Key")
    field.fill("wrong")
    with page.expect_response(lambda answer: answer.url.endswith("/now?") and answer.status == 403):
        page.get_by_role("button", name="Open").click()
    assert page.locator("#content").is_hidden()
    with page.expect_request(lambda request: "/console/data/books" in request.url) as seen:
        field.fill(KEY)
        page.get_by_role("button", name="Open").click()
    assert seen.value.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in seen.value.url
    ready(page)
    assert page.context.cookies() == []
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
    page.reload()
    ready(page)  # this tab still knows it
    page.get_by_role("button", name="Forget the key").click()
    page.get_by_role("textbox", name="Key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


# --------------------------------------------------------------------------------------------- what others wrote is text


def test_what_others_wrote_is_text(visit, house):
    """In every column that a client, a model, a supplier or a job can write; and by the ways that they have."""
    book = _ledger(house)
    now = time.time()
    for n, text in enumerate(HOSTILE):
        name = f"req_hostile{n}"
        notes = [{"by": text, "why": text, "numbers": {text: 1.0}}]
        rungs = [{"name": text, "allowed": False, "gate": text, "reason": text}]
        decision = {"mode": text, "rungs": rungs, "notes": notes, "checks": [text]}
        more: dict[str, Any] = {
            "job": text,
            "task_class": text,
            "data_class": text,
            "key_id": text,
            "error_code": text,
            "session": text,
        }
        book.add(RequestRow(name, now + n, text, text, text, decision, "done", finished_ts=now + n + 1, **more))
        book.add(AttemptRow(f"{name}a", name, 0, text, text, now, finish_reason=text, error=text, accepted=True, role="answer"))
        book.add(OutcomeRow(name, f"{name}a", text, False, evidence=text, comment=text, ts=now))
    book.close()
    real = house.chat(HOSTILE[1])[2]["x-baseload-request-id"]
    assert house.call("/v1/feedback", {"request_id": real, "accepted": True, "comment": HOSTILE[2]})[0] == 200
    house.chat("Hi", model=HOSTILE[0])

    page = ready(visit())
    for n, text in enumerate(HOSTILE):
        page.get_by_role("button", name=f"Details of req_hostile{n}", exact=True).click()
        details = page.locator("dialog[open]")
        details.get_by_role("heading", name="Verdicts").wait_for()
        assert details.inner_text().count(text) >= 10
        page.keyboard.press("Escape")
    page.get_by_role("button", name=f"Details of {real}").click()
    page.locator("dialog[open]").get_by_text(HOSTILE[2]).wait_for()
    page.keyboard.press("Escape")
    until(page, "document.querySelector('#users').textContent.includes('onerror')")
    for place in ("#requests", "#users", "#places"):
        shown = page.locator(place).inner_text()
        assert all(text in shown for text in HOSTILE), place
    assert page.evaluate("window.hacked") is None
    ours = {"DIV", "SPAN", "TABLE", "svg", "BUTTON", "TD"}
    tags = set(page.evaluate("[...document.querySelectorAll('#content *, dialog *')].map((e) => e.tagName)"))
    assert ours <= tags
    assert not tags & {"SCRIPT", "IMG", "A", "IFRAME", "OBJECT", "STYLE", "LINK"}
    attributes = page.evaluate("[...document.querySelectorAll('body *')].flatMap((e) => [...e.attributes].map((a) => a.name))")
    assert not [name for name in attributes if name.startswith("on")]


def test_even_a_script_that_got_in_would_not_run(visit):
    """The policy holds by itself: markup from strings is refused, an inline script is not run, nothing is sent elsewhere."""
    page = visit("Content Security Policy", "Trusted")
    tried = page.evaluate(
        """async () => {
             const out = {};
             try { document.body.innerHTML = '<b>x</b>'; out.markup = 'taken'; } catch (error) { out.markup = error.name; }
             const script = document.createElement('script');
             try { script.textContent = 'window.hacked = 7'; } catch (error) { out.script = error.name; }
             document.body.append(script);
             try { await fetch('http://127.0.0.1:9/'); out.sent = 'yes'; } catch (error) { out.sent = error.name; }
             return out; }"""
    )
    assert tried["markup"] == "TypeError"
    assert tried["sent"] == "TypeError"
    assert page.evaluate("window.hacked") is None
