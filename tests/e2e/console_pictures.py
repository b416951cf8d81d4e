"""Takes the pictures in docs/: `python tests/e2e/console_pictures.py docs` (with chromium, playwright and the small model).

The day behind the present is made up, so that there is something to see; the present is the real engine at work. With the name
of a hardware profile as a second word its answers have a cost.
"""

import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from baseload.ledger import budgets, keys
from baseload.ledger.ledger import Ledger
from baseload.ledger.rows import AttemptRow, OutcomeRow, RequestRow
from baseload.runtime.store import default_root

HOUR = 3600.0
PEOPLE = {"support-bot": 9, "ci-runner": 5, "mail-triage": 4, "notebooks": 2, "on-call": 1}
CONFIG = f"""[models]
serve = ["smollm2-135m-instruct"]
store = "{default_root()}"
[router]
ladder = ["openai/gpt-4o-mini"]
[engine]
watchdog_s = 120.0
"""
KEY = "of-the-pictures"
HEADERS = {"authorization": f"Bearer {KEY}"}  # where there are keys, this machine needs one too
PROMPTS = ("Tell me a story about a lighthouse.", "What is a heat pump?", "Write a letter to the landlord.", "Explain tides.")


def a_day(url: str) -> None:
    """Some 2,600 requests, more by day than by night; a tenth too hard for the local model, and some nobody could do."""
    ledger, rng, now = Ledger.open(url), random.Random(7), time.time()
    ids = {name: keys.create(ledger.engine, name)[0].id for name in PEOPLE}
    for n in range(24 * 12):
        ts = now - 24 * HOUR + n * 300
        busy = 9 + 7 * math.sin((ts % 86_400) / 86_400 * 2 * math.pi - 2.1) + rng.uniform(-2, 2)
        for i in range(max(1, round(busy))):
            one_request(ledger, rng, f"req_{n:03}{i:02}", ts + i * 290 / max(1, busy), ids)
    budgets.put(ledger.engine, "all", "", "total", 8)
    budgets.put(ledger.engine, "key", ids["ci-runner"], "day", 0.25)
    budgets.put(ledger.engine, "job", "mail-triage", "total", 10)
    spent: list[tuple[float, dict[str, Any]]] = [
        (0.61, {}),
        (0.17, {"key_id": ids["ci-runner"]}),
        (2.4, {"job": "mail-triage"}),
    ]
    for amount, more in spent:
        held = budgets.reserve(ledger.engine, "req_0", amount, **more)
        if isinstance(held, str):
            budgets.settle(ledger.engine, held, amount)
    ledger.close()


def one_request(ledger: Ledger, rng: random.Random, name: str, ts: float, ids: dict[str, str]) -> None:
    who = rng.choices(list(PEOPLE), list(PEOPLE.values()))[0]
    hard, lost = rng.random() < 0.12, rng.random() < 0.01
    tokens, said, took = rng.randrange(150, 2400), rng.randrange(20, 400), rng.uniform(0.5, 3)
    gap = rng.uniform(0.02, 0.2)
    notes = [{"by": "predictor", "why": "the local model will do", "numbers": {"gap": gap, "threshold": 0.24}}]
    rungs = [{"name": place, "allowed": True, "gate": "", "reason": ""} for place in ("local", "openai/gpt-4o-mini")]
    decision: dict[str, Any] = {
        "asked": "auto",
        "mode": "auto",
        "rungs": rungs,
        "checks": ["schema"],
        "buffered": True,
        "notes": notes,
    }
    route, status = ("openai/gpt-4o-mini", "done") if hard else ("local", "failed" if lost else "done")
    job = who if who == "mail-triage" else None
    end = ts + took * (2.2 if hard else 1)
    ledger.add(RequestRow(name, ts, "openai_chat", "auto", route, decision, status, True, end, ids[who], job=job))
    own: dict[str, Any] = {
        "device_seconds": took * 0.4,
        "internal_usd": took * 0.4 * 0.147 / 3600,
        "energy_joules": took * 0.4 * 250,
    }
    row = AttemptRow(
        f"{name}a", name, 0, "local", "smollm2-135m-instruct", ts, 0.08, took, tokens, said, tokens // 2,
        "stop", not hard and not lost, **own,
    )  # fmt: skip
    ledger.add(row)
    ledger.add(OutcomeRow(name, row.id, "schema", not hard and not lost, evidence="" if not hard else "no such field", ts=end))
    if hard:
        price = (tokens * 0.15 + said * 0.6) / 1e6
        ledger.add(
            AttemptRow(
                f"{name}b",
                name,
                1,
                "openai",
                "gpt-4o-mini",
                ts + took,
                0.4,
                took,
                tokens,
                said,
                0,
                "stop",
                True,
                price,
                energy_joules=0.0,
            )
        )


def keep_asking(url: str, over: threading.Event, seed: int) -> None:
    rng = random.Random(seed)
    while not over.is_set():
        body = {
            "model": "local",
            "max_tokens": rng.randrange(10, 50),
            "messages": [{"role": "user", "content": rng.choice(PROMPTS)}],
        }
        head = HEADERS | {"content-type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), head)).read()
        time.sleep(rng.uniform(1, 4))


def is_ready(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/ready").status == 200
    except urllib.error.HTTPError:
        return False


def picture(url: str, out: Path, watched_s: float) -> None:
    """Both pictures of the same minute, light and dark."""
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        pages = {}
        for scheme in ("light", "dark"):
            pages[scheme] = browser.new_page(
                color_scheme=scheme, viewport={"width": 1280, "height": 2040}, extra_http_headers=HEADERS
            )
            pages[scheme].goto(f"{url}/console")
        time.sleep(watched_s)
        for scheme, page in pages.items():
            path = out / f"console-{scheme}.png"
            page.screenshot(path=path)
            Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        browser.close()


def main(out: Path, hardware: str = "", watched_s: float = 30.0) -> None:
    profile = f'[hardware]\nprofile = "{hardware}"\n' if hardware else ""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "config.toml").write_text(CONFIG + profile)
        a_day(f"sqlite:///{home}/ledger.db")
        command = [sys.executable, "-m", "baseload.cli.main", "serve", "--port", "0"]
        with (Path(home) / "log").open("wb") as log:
            server = subprocess.Popen(
                command, cwd=home, env=os.environ | {"BASELOAD_HOME": home, "BASELOAD_API_KEY": KEY}, stdout=log, stderr=log
            )
        try:
            while not (found := re.search(r"listening on (http://[\d.]+:\d+)", (Path(home) / "log").read_text())):
                assert server.poll() is None, (Path(home) / "log").read_text()
                time.sleep(0.2)
            while not is_ready(found[1]):
                time.sleep(0.2)
            over = threading.Event()
            for seed in range(3):
                threading.Thread(target=keep_asking, args=(found[1], over, seed), daemon=True).start()
            picture(found[1], out, watched_s)
            over.set()
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
