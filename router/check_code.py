"""Checks that run something: the answer's own Python, or a command of the owner's with the answer as its input."""

import re
import secrets
import sys
from collections.abc import Mapping

from . import sandbox
from .check_types import Answer, Check

TIMEOUT_S, MAX_TIMEOUT_S = 10.0, 30.0
_FENCED = re.compile(r"^[ ]{0,3}(```+|~~~+)[ ]*([^\s`]*)[^\n]*\n(.*?)^[ ]{0,3}\1[ ]*$", re.MULTILINE | re.DOTALL)
_ENDS_ITSELF = re.compile(r"\b(?:exit|_exit|SystemExit|main)\b")  # unittest.main() and the like

# Each check returns why the answer fails, or "".


def python(check: Check, answer: Answer) -> str:
    """The answer's code, with the check's `tests` after it, is one program that ends well.

    A line on stderr between the two shows that the answer's part has come to its end: code that calls sys.exit(0) has passed
    no test. (Code that sets out to deceive can find that line: this judges honest mistakes, the sandbox holds the rest.)
    """
    tests, marks = check.get("tests", ""), [f"reached {secrets.token_hex(8)}" for _ in range(2)]
    reached = [f"__import__('sys').stderr.write({mark + chr(10)!r})" for mark in marks]
    program = "\n\n".join([code_of(answer.text), reached[0], *([tests, reached[1]] if tests else [])])
    ran = _run([sys.executable, "-I", "answer.py"], {"answer.py": program + "\n"}, b"", check)
    if isinstance(ran, str):
        return ran
    said = ran.stderr.decode("utf-8", "replace")
    if fault := _fault("the code", ran, said):
        return fault
    if marks[0] not in said:
        return "the code ended the program before the tests began"
    if tests and marks[1] not in said and not _ENDS_ITSELF.search(tests):
        return "the code ended the program in the middle of the tests"
    return ""


def command(check: Check, answer: Answer) -> str:
    """The command, with the answer on stdin and in ./answer.txt, ends well."""
    ran = _run(check["argv"], {"answer.txt": answer.text}, answer.text.encode("utf-8", "replace"), check)
    return ran if isinstance(ran, str) else _fault(check["argv"][0], ran, (ran.stderr or ran.stdout).decode("utf-8", "replace"))


def code_of(text: str) -> str:
    """The Python in the answer's fences; of fences that name no language if none says Python; all of it without fences."""
    blocks = [(language.lower(), body) for _, language, body in _FENCED.findall(text)]
    chosen = [body for language, body in blocks if language in ("python", "py", "python3")]
    chosen = chosen or [body for language, body in blocks if not language]
    return "\n".join(chosen) if chosen else text


def _run(argv: list[str], files: Mapping[str, str], stdin: bytes, check: Check) -> "sandbox.Ran | str":
    limits = sandbox.Limits(seconds=check.get("timeout_s", TIMEOUT_S))
    try:
        return sandbox.run(argv, files, stdin, limits)
    except sandbox.SandboxUnavailable as error:
        return f"nothing was run, as this machine has no sandbox for it ({error})"


def _fault(what: str, ran: sandbox.Ran, said: str) -> str:
    """Why a run failed, in its own last words, or ""."""
    if ran.timed_out:
        return f"{what} had not ended after {ran.seconds:.0f} s"
    if ran.code == 0:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("reached ")]
    return f"{what} ended with status {ran.code}: {' | '.join(lines[-3:])[-220:]}"
