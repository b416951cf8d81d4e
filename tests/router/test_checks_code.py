"""Checks that run the answer, or a command on it."""

import time
from typing import Any

import pytest

from baseload.router import check_code, sandbox
from baseload.router.checks import CHECKS_S, Answer, Verdict, run

here = pytest.mark.skipif(bool(sandbox.available()), reason=f"no sandbox here: {sandbox.available()}")


def judged(check: dict[str, Any], text: str) -> Verdict:
    (found,) = run([check], Answer(text, "stop"))
    return found


DOUBLE = (
    "Here it is:\n\n```python\ndef double(x):\n    return 2 * x\n```\n\nIt doubles. Output of `double(2)`:\n\n```\n4\n```\n"
)


@here
@pytest.mark.parametrize(
    ("text", "tests", "fault"),
    [
        (DOUBLE, "assert double(2) == 4", ""),
        (DOUBLE, "assert double(2) == 5", "AssertionError"),
        (DOUBLE, "", ""),
        ("def double(x): return 2 * x", "assert double(2) == 4", ""),
        ("```\nx = 1\n```", "assert x == 1", ""),
        ("~~~py\nx = 1\n~~~", "assert x == 1", ""),
        ("```bash\npip install it\n```\n```Python\nx = 1\n```\n```python\ny = x\n```", "assert y == 1", ""),
        ("from __future__ import annotations\nx: Nothing = 1", "assert x == 1", ""),
        ("import unittest", "class T(unittest.TestCase):\n    def test(self): assert True\nunittest.main()", ""),
        ("import unittest", "class T(unittest.TestCase):\n    def test(self): assert 0\nunittest.main()", "FAILED"),
        ("def double(x) return", "", "SyntaxError"),
        ("Sorry, I can't do that.", "", "SyntaxError"),
        ("", "assert double(2) == 4", "NameError"),
        ("import sys\nsys.exit(0)", "assert False", "before the tests began"),
        ("import os\nos._exit(0)", "assert False", "before the tests began"),
        ("import sys\ndef double(x): sys.exit(0)", "assert double(2) == 4", "in the middle of the tests"),
        ("import sys\nsys.exit('no')", "", "status 1: no"),
        ("while True: pass", "", "had not ended after"),
        ("x = 'a' * (10 << 30)", "", "MemoryError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 22))", "", "OSError"),
        ("open('/etc/passwd')", "", "FileNotFoundError"),
        ("x = input()", "", "EOFError"),
        ("x = '\ud800'", "", ""),
        ("x = 1\n\0", "", "SyntaxError"),
    ],
)
def test_python(text: str, tests: str, fault: str):
    found = judged({"type": "python", "timeout_s": 2} | ({"tests": tests} if tests else {}), text)
    assert found.passed is not bool(fault) and fault in found.evidence, found


@here
@pytest.mark.parametrize(
    ("argv", "passes", "evidence"),
    [
        (["grep", "-q", "Rome"], True, ""),
        (["grep", "-q", "Rome", "answer.txt"], True, ""),
        (["grep", "-q", "Genoa"], False, "grep ended with status 1: "),
        (["sh", "-c", "echo too long; exit 9"], False, "sh ended with status 9: too long"),
        (["nobody"], False, "nobody ended with status 127: nobody: No such file or directory"),
        (["sleep", "20"], False, "sleep had not ended after"),
    ],
)
def test_command(argv: list[str], passes: bool, evidence: str):
    found = judged({"type": "command", "argv": argv, "timeout_s": 1}, "To Rome, then.")
    assert found.passed is passes and found.evidence.startswith(evidence), found


@here
def test_a_programs_time_is_its_own():
    """A slow program makes no quick check late, neither of its own answer nor of the next one."""
    slow = {"type": "command", "argv": ["sleep", str(CHECKS_S + 0.3)]}
    until = time.monotonic() + CHECKS_S
    for _ in range(2):
        assert [v.passed for v in run([slow, {"type": "regex", "pattern": "x"}], Answer("x", "stop"), until)] == [True, True]


def test_without_a_sandbox_nothing_is_run(monkeypatch: pytest.MonkeyPatch):
    def unavailable(*args: Any) -> Any:
        raise sandbox.SandboxUnavailable("user namespace: Operation not permitted")

    monkeypatch.setattr(check_code.sandbox, "run", unavailable)
    for check in ({"type": "python"}, {"type": "command", "argv": ["true"]}):
        found = judged(check, "x = 1")
        assert not found.passed and "nothing was run" in found.evidence and "user namespace" in found.evidence
