"""A process between us and a child, which sees to it that nothing of the child outlives us, however we end.

`python -I -S child_guard.py GRACE_S COMMAND...`: run the command; when its standard input closes, or whoever started it is
gone, send SIGTERM, wait GRACE_S seconds, and kill what is left: the child, and all processes that it started, in whatever
group. The exit status is the child's (128 + n for signal n). A program of its own, of the standard library alone; nobody
imports it.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LOOK_S = 1.0  # how often the parent is looked for: a fork of it may hold our standard input open


def prctl(option: int, value: int) -> None:
    """Where there is none (not Linux), the closed input alone must do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Our children; as we are the reaper of all below us, each of theirs becomes ours in turn."""
    me = os.getpid()
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    return []


def sweep() -> None:
    """Kill and reap until there is nobody left."""
    for _ in range(1000):
        for pid in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def main(grace_s: float, command: list[str]) -> int:
    """Run the command to its end, or ours."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # who wants the end closes the input
    parent = os.getppid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def become() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=become)
    ended = os.pidfd_open(child.pid)
    while not select.select([0, ended], [], [], LOOK_S)[0] and os.getppid() == parent:
        pass
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
        child.kill()
    status = child.wait()
    sweep()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
