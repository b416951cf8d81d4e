"""The program of the child process in which a model's chat template runs; template_process.py starts it.

A template comes out of a model file, so it may be hostile. minijinja gives it fuel and no way to Python's internals, but
cannot stop everything: a list that contains itself overflows the C stack, and lists joined to themselves sixty times loop
without burning fuel. So it also gets a process of its own, with little memory and a timer that counts CPU seconds.

It reads requests from stdin and writes one answer for each to stdout, both JSON behind a 4-byte big-endian length. The
first, {"sources": {name: template}, "cpu_s", "memory_bytes"}, has no answer; each later one {"template": name, "context":
{...}} is answered by {"text": ...} or {"error": message, "kind": "syntax" | "raised" | "limit" | "failed"}.
"""

import json
import re
import resource
import signal
import struct
import sys
from datetime import datetime
from typing import Any

import minijinja

SOURCE_LIMIT = 1 << 20  # characters; the largest public template has 40,000
FUEL_BASE = 500_000  # a thousand short messages through a public template need 70,000
FUEL_PER_CHARACTER = 4  # of the context: long conversations are honest work
OUTPUT_PER_CHARACTER = 8
# transformers marks what the assistant said with a block of its own; to render, it is a scope.
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class TooLong(Exception):
    """The template's source is."""


class Raised(Exception):
    """The template called raise_exception: it does not take such a conversation."""


def raise_exception(message: object = "") -> None:
    """Templates refuse a conversation with it."""
    raise Raised(str(message))


CLOCK: dict[str, float | None] = {"now": None}  # seconds since the epoch; None: the machine's own time


def strftime_now(form: str) -> str:
    """The local time, as templates ask for it: the present one, or the one that an earlier answer is made again at."""
    now = CLOCK["now"]
    return (datetime.now() if now is None else datetime.fromtimestamp(now)).strftime(form[:256])


def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Plain JSON, without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment(sources: dict[str, str]) -> minijinja.Environment:
    """An environment that reads templates as transformers' does; each is compiled at its first use."""
    env = minijinja.Environment(
        loader=lambda name: _prepare(sources[name]) if name in sources else None,
        trim_blocks=True,
        lstrip_blocks=True,
        debug=False,
    )
    env.add_filter("tojson", tojson)
    env.add_global("raise_exception", raise_exception)
    env.add_global("strftime_now", strftime_now)
    env.auto_escape_callback = lambda name: False
    return env


def _prepare(source: str) -> str:
    if len(source) > SOURCE_LIMIT:
        raise TooLong(f"its source has {len(source)} characters, at most {SOURCE_LIMIT} are taken")
    return GENERATION.sub(lambda m: f"{{%{m[1]} {'endwith' if m[2] else 'with'} {m[3]}%}}", source)


def render(env: minijinja.Environment, name: str, context: dict[str, Any], size: int) -> dict[str, str]:
    """Render template `name` over `context`, which came as `size` characters."""
    env.fuel = FUEL_BASE + FUEL_PER_CHARACTER * size
    try:
        text = env.render_template(name, **context)
    except Raised as e:
        return {"kind": "raised", "error": str(e)}
    except TooLong as e:
        return {"kind": "limit", "error": str(e)}
    except minijinja.TemplateError as e:
        kind = "syntax" if e.kind == "SyntaxError" else "limit" if "fuel" in e.message else "failed"
        return {"kind": kind, "error": e.message}
    except Exception as e:  # whatever a filter of ours meets in a hostile value
        return {"kind": "failed", "error": f"{type(e).__name__}: {e}"}
    if len(text) > FUEL_BASE + OUTPUT_PER_CHARACTER * size:
        return {"kind": "limit", "error": "the text is too long"}
    return {"text": text}


def _limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(what, (value, value))


def _read() -> tuple[Any, int] | None:
    head = sys.stdin.buffer.read(4)
    if len(head) < 4:
        return None  # the parent has gone, or has closed us
    (size,) = struct.unpack(">I", head)
    return json.loads(sys.stdin.buffer.read(size)), size


def _write(answer: dict[str, str]) -> None:
    body = json.dumps(answer).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(body)) + body)
    sys.stdout.buffer.flush()


def main() -> None:
    """Serve until stdin ends. The kernel ends a process whose rendering takes more CPU time or memory than allowed."""
    first = _read()
    if first is None:
        return
    setup, _ = first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _limit(resource.RLIMIT_AS, setup["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    env = environment(setup["sources"])
    while (message := _read()) is not None:
        request, size = message
        CLOCK["now"] = request["now"]
        signal.setitimer(signal.ITIMER_PROF, setup["cpu_s"])
        answer = render(env, request["template"], request["context"], size)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answer)


if __name__ == "__main__":
    main()
