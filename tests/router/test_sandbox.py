"""What a command in the sandbox can't do, each tried by one that would; and what it can."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from baseload.router import sandbox
from baseload.router.sandbox import Limits, Ran, run

pytestmark = pytest.mark.skipif(bool(sandbox.available()), reason=f"no sandbox here: {sandbox.available()}")


MARK = f"mark-{secrets.token_hex(8)}"  # an argument of all that is run here, by which it is found


def python(code: str, limits: Limits = Limits(), **files: str) -> Ran:
    """Runs the code as a program would be."""
    return run([sys.executable, "-I", "main.py", MARK], {"main.py": code} | files, limits=limits)


def living(word: str = MARK) -> int:
    """How many processes of this machine have the argument `word`."""
    return sum(word in _arguments(pid) for pid in os.listdir("/proc") if pid.isdigit())


def _arguments(pid: str) -> list[str]:
    try:
        return Path("/proc", pid, "cmdline").read_text().split("\0")
    except OSError:
        return []


def attempt(code: str, limits: Limits = Limits()) -> str:
    """What came of the code: its last line on stdout, or the name of the error that it raised."""
    indented = "\n".join("    " + line for line in code.splitlines())
    ran = python(
        f"try:\n{indented}\nexcept BaseException as e:\n    print(type(e).__name__, e)\nelse:\n    print('did it')", limits
    )
    assert not ran.timed_out, ran
    return ran.stdout.decode().strip().rsplit("\n", 1)[-1] or f"code {ran.code}: {ran.stderr.decode()}"


# ------------------------------------------------------------------------------------------------------------ what it can


def test_a_command_gets_its_files_its_input_and_its_arguments():
    ran = run(["sh", "-c", 'cat a/b.txt - && echo "$1" && exit 3', "sh", "arg"], {"a/b.txt": "file "}, b"input ")
    assert (ran.code, ran.stdout, ran.stderr, ran.timed_out) == (3, b"file input arg\n", b"", False)


def test_python_has_its_library_and_this_environments_packages():
    ran = python(
        "import ssl, sqlite3, ctypes, numpy\nopen('out','w').write('x')\nprint(numpy.arange(3).sum(), open('out').read())"
    )
    assert (ran.code, ran.stdout) == (0, b"3 x\n"), ran.stderr


def test_children_and_pipes_work():
    code = "import subprocess, multiprocessing as m\nprint(subprocess.run(['echo', 'hi'], capture_output=True).stdout)\n"
    code += "with m.Pool(2) as pool: print(pool.map(abs, [-1, 2]))"
    ran = python(code)
    assert ran.stdout.decode().split("\n")[:2] == ["b'hi\\n'", "[1, 2]"], ran.stderr


def test_a_command_that_is_not_there_is_said_so():
    ran = run(["no-such-command"], {})
    assert ran.code == 127 and b"no-such-command: No such file" in ran.stderr


def test_a_signal_is_told_as_a_shell_would():
    assert python("import os; os.abort()").code == 128 + 6


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a\0b"])
def test_files_stay_in_the_folder(path: str):
    with pytest.raises(ValueError):
        run(["true"], {path: ""})


# -------------------------------------------------------------------------------------------------------------- the network


def test_no_server_of_this_machine_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        for kind in ("AF_INET, socket.SOCK_STREAM", "AF_INET, socket.SOCK_DGRAM", "AF_INET6, socket.SOCK_STREAM"):
            found = attempt(f"import socket\nsocket.socket(socket.{kind}).connect(('127.0.0.1', {port}))")
            assert found.startswith("OSError"), found
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG"])
def test_no_other_way_out_is_open(family: str):
    found = attempt(f"import socket\nsocket.socket(socket.{family}, socket.SOCK_RAW)")
    assert "[Errno 97]" in found or "[Errno 1]" in found, found


def test_no_unix_socket_outside_is_reached(tmp_path: Path):
    name = "\0" + secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(tmp_path / "s"))
        named.listen()
        abstract.bind(name)
        abstract.listen()
        for address in (str(tmp_path / "s"), name):
            found = attempt(f"import socket\nsocket.socket(socket.AF_UNIX).connect({address!r})")
            assert found.startswith(("FileNotFoundError", "PermissionError", "ConnectionRefusedError")), found
    found = attempt("import socket\na, b = socket.socketpair()\na.send(b'x')\nb.recv(1)")
    assert found == "did it", "its own are its own affair"


# ------------------------------------------------------------------------------------------------------------------- files


def test_no_secret_is_read(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("the treasure")
    secret.chmod(0o644)
    for path in (str(secret), f"/proc/1/root{secret}", f"/proc/self/root{secret}", "/etc/passwd", "/root", "/home", __file__):
        found = attempt(f"import os\nprint(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())")
        assert found.startswith(("FileNotFoundError", "PermissionError")), (path, found)


def test_the_project_and_the_users_folder_are_not_there():
    house = str(Path(sandbox.__file__).parent)
    for path in (house, str(Path.home() / ".ssh"), "/work", "/var", "/sys", "/dev/mem", "/dev/kmsg"):
        found = attempt(f"import os\nos.listdir({path!r})")
        assert found.startswith(("FileNotFoundError", "PermissionError")), (path, found)


def test_a_hard_or_symbolic_link_leads_nowhere(tmp_path: Path):
    (tmp_path / "secret").write_text("the treasure")
    found = attempt(f"import os\nos.symlink({str(tmp_path / 'secret')!r}, 'link')\nprint(open('link').read())")
    assert found.startswith(("FileNotFoundError", "PermissionError")), found


@pytest.mark.parametrize("path", ["/", "/usr", "/usr/lib", "/etc", "/dev", "/proc/sys/kernel", sys.prefix, sys.base_prefix])
def test_nothing_is_written_outside(path: str):
    name = f"{path}/{secrets.token_hex(8)}"
    found = attempt(f"open({name!r}, 'w').write('x')")
    assert found.startswith(("PermissionError", "OSError", "FileNotFoundError")), found
    assert not os.path.exists(name)


def test_the_interpreter_is_not_changed():
    before = os.stat(sys.executable)
    for code in (
        f"open({sys.executable!r}, 'r+b')",
        f"import os\nos.chmod({sys.executable!r}, 0o777)",
        f"import os\nos.utime({sys.executable!r})",
    ):
        assert attempt(code).startswith(("PermissionError", "OSError")), code
    assert os.stat(sys.executable) == before


def test_nothing_stays_of_a_run():
    name = secrets.token_hex(8)
    mounts = Path("/proc/mounts").read_text()
    for folder in ("/box", "/tmp", "/dev/shm"):
        assert attempt(f"open('{folder}/{name}', 'w').write('x')") == "did it"
        assert not Path(folder, name).exists()
        assert attempt(f"open('{folder}/{name}')").startswith("FileNotFoundError"), "and the next run finds nothing"
    assert Path("/proc/mounts").read_text() == mounts


# --------------------------------------------------------------------------------------------------------- what it inherits


def test_no_secret_is_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACME_API_KEY", "sk-treasure")
    ran = python(
        "import os; print(sorted(os.environ)); print(open('/proc/1/environ').read() + open('/proc/self/environ').read())"
    )
    assert b"treasure" not in ran.stdout
    assert b"['HOME', 'LANG', 'PATH', 'PYTHONDONTWRITEBYTECODE']" in ran.stdout


def test_no_open_file_of_the_parent_is_inherited(tmp_path: Path):
    with open(tmp_path / "secret", "w") as file, socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(file.fileno(), True)
        os.set_inheritable(server.fileno(), True)
        ran = python("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])")
    assert ran.stdout == b"[0, 1, 2]\n"


def test_it_has_no_privilege_and_gets_none():
    found = python("print(open('/proc/self/status').read())").stdout.decode()
    assert "CapEff:\t0000000000000000" in found and "CapPrm:\t0000000000000000" in found
    assert "NoNewPrivs:\t1" in found and "Seccomp:\t2" in found
    for call in ("unshare(0x10000000)", "mount(b'none', b'/tmp', b'tmpfs', 0, 0)", "chroot(b'/tmp')", "ptrace(16, 1, 0, 0)"):
        assert attempt(f"import ctypes\nassert ctypes.CDLL(None).{call} == 0") == "AssertionError", call


def test_every_wall_stands_by_itself():
    """What the others would hold as well must be held by each: a hole in one is not a way out."""
    for kind in ("user", "net", "pid", "ipc", "mnt", "uts"):
        outside = os.readlink(f"/proc/self/ns/{kind}")
        assert outside.encode() not in python(f"import os; print(os.readlink('/proc/self/ns/{kind}'))").stdout, kind
    assert attempt("import os\nos.listdir('/')").startswith("PermissionError"), "Landlock: a folder that nobody named"
    interfaces = python("import socket; print(socket.if_nameindex())").stdout.decode()
    assert interfaces in ("", "[(1, 'lo')]\n"), "and no network card"


# --------------------------------------------------------------------------------------------------------- time and memory


def test_a_sleeper_is_ended():
    begun = time.monotonic()
    ran = python("import time; print('begun', flush=True); time.sleep(60)", Limits(seconds=0.5))
    assert ran.timed_out and ran.code == 137 and ran.stdout == b"begun\n"
    assert time.monotonic() - begun < 30


STUBBORN = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
time.sleep(60)
"""
FORKS = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0 and {waits}:
            time.sleep(60)
        made += 1
    except OSError:
        if {waits}:
            print(made)
            break
"""
HOGS = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        x = bytearray(b"x") * (100 << 20)
        time.sleep(30)
time.sleep(30)
"""


def test_whoever_ignores_signals_is_ended_too():
    assert python(STUBBORN, Limits(seconds=0.5)).timed_out


@pytest.mark.timeout(60)
def test_a_fork_bomb_is_bounded():
    assert python(FORKS.format(waits=False), Limits(seconds=1.5, processes=20)).timed_out
    assert living() == 0, "all are gone"
    assert 10 < int(python(FORKS.format(waits=True), Limits(processes=20)).stdout) < 20


def test_a_single_hog_gets_no_more_memory_than_its_limit():
    assert attempt("x = bytearray(10 << 30)", Limits(memory_bytes=256 << 20)).startswith("MemoryError")


@pytest.mark.timeout(60)
def test_many_hogs_together_get_no_more_either():
    ran = python(HOGS, Limits(seconds=30, memory_bytes=300 << 20))
    assert ran.code == 137 and not ran.timed_out and b"killed: more than 300 MB of memory" in ran.stderr


def test_what_is_written_is_bounded_in_all_files_together():
    code = "for i in range(100):\n    open(f'f{i}', 'wb').write(b'x' * (1 << 20))"
    assert "[Errno 28]" in attempt(code, Limits(files_bytes=10 << 20))
    assert "[Errno 28]" in attempt("for i in range(10000):\n    open(f'f{i}', 'w').close()", Limits(files=500))


@pytest.mark.timeout(60)
def test_endless_output_is_cut():
    code = "import sys\nfor _ in range(1024): sys.stdout.write('x' * (1 << 20))\nprint('end', file=sys.stderr)"
    ran = python(code, Limits(seconds=40, output_bytes=1000))
    assert ran.code == 0 and ran.stdout == b"x" * 1000 and ran.stderr == b"end\n"


# ---------------------------------------------------------------------------------------------- who would outlive the command


GRANDCHILD = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3): os.close(fd)
        while True:
            time.sleep(0.05)
            {act}
    os._exit(0)
time.sleep(0.2)
print('done')
"""


def test_a_grandchild_in_its_own_session_dies_with_the_command():
    ran = python(GRANDCHILD.format(act="open('beat', 'a').write('x')"))
    assert ran.stdout == b"done\n" and ran.code == 0
    assert living() == 0


def test_and_so_it_does_when_the_time_is_up():
    ran = python(GRANDCHILD.format(act="pass") + "time.sleep(60)", Limits(seconds=1))
    assert ran.timed_out and living() == 0


def test_it_can_kill_only_its_own():
    found = attempt("import os, signal\nos.kill(-1, signal.SIGKILL)")
    assert found in ("did it", "ProcessLookupError [Errno 3] No such process"), found
    found = attempt(f"import os\nos.kill({os.getpid()}, 9)")
    assert found.startswith(("ProcessLookupError", "PermissionError")), found
    ran = python("import os, time\nfor s in (2, 9, 15): os.kill(1, s)\ntime.sleep(0.3)\nprint('still here')")
    assert ran.stdout == b"still here\n", "nor the process that reaps its orphans"


def test_when_the_caller_is_killed_all_of_it_is():
    """The whole sandbox ends with the process that asked for it, even by kill -9."""
    nap = f"4{secrets.randbelow(10**9)}"
    run_it = f"sandbox.run(['sleep', '{nap}'], {{}}, limits=sandbox.Limits(seconds=50))"
    caller = subprocess.Popen([sys.executable, "-c", f"from baseload.router import sandbox; {run_it}"])
    assert _until(lambda: living(nap) == 1)
    caller.kill()
    caller.wait()
    assert _until(lambda: living(nap) == 0)


def _until(happened: Callable[[], bool]) -> bool:
    for _ in range(200):
        if happened():
            return True
        time.sleep(0.05)
    return False


def test_no_zombie_and_no_open_file_stays():
    run(["true"], {})
    files, children = len(os.listdir("/proc/self/fd")), {child.pid for child in psutil.Process().children()}
    for _ in range(3):
        run(["true"], {})
        run(["sleep", "9"], {}, limits=Limits(seconds=0.2))
    assert len(os.listdir("/proc/self/fd")) == files
    assert not {child.pid for child in psutil.Process().children()} - children  # a zombie would still be one


def test_many_at_once_do_not_meet():
    results: list[Ran] = []
    names = [str(i) for i in range(6)]

    def one(name: str) -> None:
        results.append(
            python(f"import os, time\nopen('/tmp/x', 'a').write('{name}')\ntime.sleep(0.2)\nprint(open('/tmp/x').read())")
        )

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran.stdout.decode().strip() for ran in results) == names
