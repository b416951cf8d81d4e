"""Runs one command that nobody vouches for: no network, no files but its own and the system's, bounded time and memory.

    sandbox.run(["python3", "main.py"], {"main.py": "print(1)"}).stdout == b"1\n"

The walls (sandbox_child.py builds them, sandbox_filter.py is one): namespaces for users, network, processes, IPC and mounts;
a root in memory that shows the system's programs and the interpreter read-only and vanishes with the last process; Landlock;
seccomp; rlimits; an environment of four variables. Where the machine lacks one of them nothing is run at all.
"""

import functools
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .sandbox_filter import MACHINES, program

CHILD = Path(__file__).with_name("sandbox_child.py")
SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
)
GRACE_S = 5.0  # for building the walls, and for the watcher to end what is over its time


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may use. `memory_bytes` holds for each process (address space) and for all together (resident)."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    files_bytes: int = 64 << 20  # of everything written; held in memory
    files: int = 4096
    processes: int = 32
    output_bytes: int = 64 << 10  # kept, of stdout and of stderr each; the rest is read and dropped


@dataclass(frozen=True, slots=True)
class Permissions:
    """What the machine's owner lets a request's checks run: Python code of answers; commands, by their argv[0]."""

    code: bool = False
    commands: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. `code` is the exit status, 128 + n for signal n (137: killed, also for time or memory)."""

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float


class SandboxUnavailable(Exception):
    """This machine can't build the sandbox; the text says which wall is missing. Nothing was run."""


@functools.cache
def available() -> str:
    """'' if commands can be sandboxed here, else why not. Tries it out, once."""
    try:
        run(["true"], {})
    except SandboxUnavailable as error:
        return str(error)
    return ""


def run(argv: Sequence[str], files: Mapping[str, str], stdin: bytes = b"", limits: Limits = Limits()) -> Ran:
    """Runs `argv` in a fresh folder that holds `files` (relative path: text). Blocks; call it in a worker thread.

    Raises SandboxUnavailable; ValueError for a path that leaves the folder or an argument that no program can be given.
    """
    if any(Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path for path in files):
        raise ValueError("a file of a sandbox has a relative path without '..'")
    if not argv or any("\0" in word for word in argv):
        raise ValueError("a command has at least a name, and no NUL")
    if sys.platform != "linux" or os.uname().machine not in MACHINES:
        raise SandboxUnavailable(f"only Linux on {' or '.join(MACHINES)} has it")
    with _in_memory(json.dumps(_plan(argv, files, limits)).encode()) as plan, _in_memory(stdin) as given:
        report, report_end = os.pipe()
        try:
            words = [sys.executable, "-I", "-S", str(CHILD), str(plan.fileno()), str(report_end), str(os.getpid())]
            watcher = subprocess.Popen(
                words,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(plan.fileno(), report_end),
                env={},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(report)
            raise
        finally:
            os.close(report_end)
    with watcher, open(report, "rb", buffering=0) as told:
        try:
            return _ended(*_collect(watcher, told, limits), limits)
        finally:
            watcher.kill()  # and the init with it, and all others with that


def _collect(watcher: "subprocess.Popen[bytes]", told: BinaryIO, limits: Limits) -> tuple[bytes, bytes, bytes]:
    """(the watcher's report, stdout, stderr), once nobody can write to them any more."""
    assert watcher.stdout and watcher.stderr
    kept = {told: bytearray(), watcher.stdout: bytearray(), watcher.stderr: bytearray()}
    until = time.monotonic() + limits.seconds + GRACE_S
    with selectors.DefaultSelector() as ready:
        for pipe in kept:
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map():
            if (left := until - time.monotonic()) <= 0:
                watcher.kill()
                break
            for key, _ in ready.select(left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    ready.unregister(key.fileobj)
                    continue
                room = kept[key.fileobj]  # pyright: ignore[reportArgumentType]
                room += piece[: limits.output_bytes - len(room)]
    report, stdout, stderr = (bytes(room) for room in kept.values())
    return report, stdout, stderr


def _ended(report: bytes, stdout: bytes, stderr: bytes, limits: Limits) -> Ran:
    lines = [json.loads(line) for line in report.splitlines()]
    if reason := next((line["unavailable"] for line in lines if "unavailable" in line), None):
        raise SandboxUnavailable(reason)
    if not lines:  # the watcher itself was killed, or could not start
        raise SandboxUnavailable("the watcher ended without a report")
    if lines[0]["killed"] == "memory":
        stderr += f"\nkilled: more than {limits.memory_bytes >> 20} MB of memory\n".encode()
    return Ran(lines[0]["code"], stdout, stderr, lines[0]["killed"] == "time", lines[0]["seconds"])


def _plan(argv: Sequence[str], files: Mapping[str, str], limits: Limits) -> dict[str, Any]:
    """What sandbox_child.py is told."""
    shown, links = _shown()
    seconds = math.ceil(limits.seconds) + 1
    return {
        "argv": list(argv),
        "files_text": dict(files),
        "shown": shown,
        "links": links,
        "filter": program(os.uname().machine).hex(),
        "seconds": limits.seconds,
        "memory": limits.memory_bytes,
        "files_bytes": limits.files_bytes,
        "files": limits.files,
        "env": {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": "/box",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        "rlimits": {
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CPU": seconds,
            "RLIMIT_FSIZE": limits.files_bytes,
            "RLIMIT_NOFILE": 256,
            "RLIMIT_NPROC": limits.processes,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
        },
    }


@functools.cache
def _shown() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """((path in the sandbox, real path) of what is shown there, (path, target) of the links among them)."""
    shown: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    for path in (*SYSTEM, sys.prefix, sys.base_prefix):
        inside = any(path == have or path.startswith(have + "/") for have, _ in shown)
        if path.count("/") == 1 and os.path.islink(path):  # /lib is usr/lib on a merged system
            links.append((path, os.readlink(path)))
        elif path != "/" and os.path.exists(path) and not inside:
            shown.append((path, os.path.realpath(path)))
    return shown, links


def _in_memory(data: bytes) -> BinaryIO:
    """A file that has no name, with `data`, read from its start."""
    file = open(os.memfd_create("sandbox"), "w+b", buffering=0)  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file
