"""The program that builds a sandbox around a command and waits for it. Started by sandbox.py; standard library only.

Two processes of it live while the command runs:

    watcher   opens the namespaces, then waits; kills the init when the time or the memory is spent. When it dies, the init
              dies (PR_SET_PDEATHSIG).
    init      process 1 of the PID namespace: makes the small root, gives up every privilege, starts the command, reaps orphans.
              When it ends, the kernel kills whatever else lives in the namespace: setsid and double forks don't help.

Any step that fails ends everything before the command is started; the report says which.
"""

import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWIPC, NEWUTS = 0x20000, 0x08000000, 0x04000000  # linux/sched.h
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18  # linux/mount.h
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, AT_RECURSIVE = 1, 2, 4, 0x8000
PDEATHSIG, DUMPABLE, SECCOMP, CAPBSET_DROP, NO_NEW_PRIVS = 1, 4, 22, 24, 38  # linux/prctl.h
SYS_PIVOT_ROOT, SYS_CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}[os.uname().machine]
SYS_MOUNT_SETATTR, SYS_LANDLOCK = 442, 444  # the same numbers everywhere; Landlock has three
NOBODY = 65534
EXECUTE, READ, ALL, OF_FILES = 0b1, 0b1100, 0xFFFF, 0b1100_0000_0000_0111  # linux/landlock.h; READ lists folders too
WRITABLE = ("/box", "/tmp", "/dev/shm")
DEVICES = ("null", "zero", "full", "random", "urandom")


def call(what: str, number: int, *args: object) -> int:
    """A system call by its number. Raises OSError that names `what`."""
    found = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if found < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return found


def check(what: str, code: int) -> None:
    """A libc function's return value. Raises OSError that names `what`."""
    if code < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def prctl(what: str, option: int, value: object = 0) -> None:
    check(what, libc.prctl(option, ctypes.c_ulong(value) if isinstance(value, int) else value, 0, 0, 0))


def mount(what: str, source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    check(what, libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode() or None))


# ------------------------------------------------------------------------------------------------------- outside: the watcher


def own_user_namespace() -> None:
    """A user namespace in which only this user exists, under its own number."""
    uid, gid = os.geteuid(), os.getegid()
    check("user namespace", libc.unshare(NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def watch(init: int, plan: dict, begun: float) -> dict:
    """Waits for the init; the report on how it ended. Once waitpid has returned, nobody of the namespace lives any more."""
    killed = ""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        pid, status = os.waitpid(init, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {"code": code if code >= 0 else 128 - code, "killed": killed, "seconds": time.monotonic() - begun}
        if not killed:
            killed = "time" if time.monotonic() - begun > plan["seconds"] else "memory" if memory() > plan["memory"] else ""
            if killed:
                os.kill(init, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, 0.03)


def memory() -> int:
    """Bytes that all processes of the sandbox hold; what a fork shares with its parent counts twice."""
    total = 0
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/status", "rb") as file:
                lines = [line.split() for line in file if line.startswith((b"RssAnon", b"RssShmem"))]
        except OSError:  # ended meanwhile
            continue
        total += sum(int(line[1]) for line in lines) << 10
    return total


# ---------------------------------------------------------------------------------------------------------- inside: the init


def be_init(plan: dict, report: int, watcher_lives: int, made: int) -> None:
    """Process 1: no privilege is left when the command starts. Never returns."""
    prctl("parent's death", PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    make_root(plan)
    if os.geteuid() == 0:  # root's processes are not counted by RLIMIT_NPROC, and its files would be the command's own
        for capability in range(64):
            if libc.prctl(CAPBSET_DROP, capability, 0, 0, 0) < 0:
                break
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        prctl("dumpable", DUMPABLE, 1)  # else /proc/self is not ours
        prctl("parent's death", PDEATHSIG, signal.SIGKILL)  # a change of user has cleared it
    own_user_namespace()  # in which nothing is owned; processes are counted by it
    head, nothing = struct.pack("=II", 0x20080522, 0), bytes(24)  # linux/capability.h: version 3, no capability in any set
    call("capabilities", SYS_CAPSET, head, nothing)
    os.chdir("/box")
    os.umask(0o077)
    for path, text in plan["files_text"].items():
        if "/" in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
    prctl("no new privileges", NO_NEW_PRIVS, 1)
    landlock(plan)
    seccomp(bytes.fromhex(plan["filter"]))
    if os.read(watcher_lives, 1) != b"1":  # it died before its death could be noticed
        os._exit(1)
    os.close(report)
    os.write(made, b"1")
    command = os.fork()
    if command == 0:
        start(plan)
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        pid, status = os.wait()
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def make_root(plan: dict) -> None:
    """A root of its own in memory: the plan's folders, read-only, and what the command may write. Both processes move there.

    It is mounted over this program's own folder, in a mount namespace of its own: nothing has to be made or removed outside.
    """
    mount("private mounts", "none", "/", None, MS_REC | MS_PRIVATE)
    root = os.path.dirname(os.path.abspath(__file__))
    options = f"mode=755,size={plan['files_bytes']},nr_inodes={plan['files']}"
    sources = [(path, os.open(source, os.O_PATH)) for path, source in plan["shown"]]  # before they may be covered
    devices = [(f"/dev/{name}", os.open(f"/dev/{name}", os.O_PATH)) for name in DEVICES]
    mount("root", "tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for path, target in plan["links"]:
        os.symlink(target, root + path)
    for path, fd in sources:
        bind(fd, root + path, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for path, fd in devices:
        bind(fd, root + path, ATTR_RDONLY | ATTR_NOSUID)
    for path in (*WRITABLE, "/proc"):
        os.makedirs(root + path, exist_ok=True)
    for path in WRITABLE:
        os.chmod(root + path, 0o1777)
    # Only who sees a whole /proc may mount another: while the old root is still there.
    mount("proc", "proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid")
    os.chdir(root)
    call("new root", SYS_PIVOT_ROOT, b".", b".")  # the old root lies on top of the new: pivot_root(2)
    check("old root", libc.umount2(b".", 2))
    os.chdir("/")


def bind(fd: int, target: str, attributes: int) -> None:
    """The opened file or folder with all that is mounted below it, at `target`."""
    is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        os.close(os.open(target, os.O_CREAT | os.O_RDONLY))
    mount(f"bind {target}", f"/proc/self/fd/{fd}", target, None, MS_BIND | MS_REC)
    attr = struct.pack("=QQQQ", attributes, 0, 0, 0)  # struct mount_attr
    call(f"read-only {target}", SYS_MOUNT_SETATTR, -100, target.encode(), AT_RECURSIVE, attr, len(attr))
    os.close(fd)


def landlock(plan: dict) -> None:
    """What of the small root may be touched, and how; also (in newer kernels) no TCP, no abstract socket and no signal."""
    version = call("Landlock", SYS_LANDLOCK, 0, 0, 1)
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attr = struct.pack("=QQQ", handled, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = call("Landlock", SYS_LANDLOCK, attr, len(attr), 0)
    rules = [(path, EXECUTE | READ) for path, _ in plan["shown"]] + [("/proc", READ)]
    rules += [(path, ALL) for path in WRITABLE] + [(f"/dev/{name}", ALL & ~EXECUTE) for name in DEVICES]
    for path, rights in rules:
        fd = os.open(path, os.O_PATH)
        rights &= handled if stat.S_ISDIR(os.fstat(fd).st_mode) else handled & OF_FILES
        call(f"Landlock {path}", SYS_LANDLOCK + 1, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
        os.close(fd)
    call("Landlock", SYS_LANDLOCK + 2, ruleset, 0)
    os.close(ruleset)


def seccomp(program: bytes) -> None:
    """The system calls of sandbox_filter.py fail from here on."""

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    check("seccomp", libc.prctl(SECCOMP, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0))


def start(plan: dict) -> None:
    """Becomes the command, under its limits. Never returns."""
    try:
        os.closerange(3, 1 << 20)
        os.setsid()
        for name, value in plan["rlimits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        os.execvpe(plan["argv"][0], plan["argv"], plan["env"])
    except BaseException as error:
        os.write(2, f"{plan['argv'][0]}: {getattr(error, 'strerror', None) or error}\n".encode())
    os._exit(127)


def main() -> None:
    plan_fd, report = int(sys.argv[1]), int(sys.argv[2])
    os.umask(0o022)
    try:
        prctl("parent's death", PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[3]):  # it died before its death could be noticed
            return
        with open(plan_fd, "rb") as file:
            plan = json.load(file)
        if os.geteuid() != 0:
            own_user_namespace()
        check("namespaces", libc.unshare(NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS))
        lives, life = os.pipe()
        ready, made = os.pipe()
        begun = time.monotonic()
        init = os.fork()
        if init == 0:
            os.close(life)
            be_init(plan, report, lives, made)
        for fd in (0, 1, 2, lives, made):
            os.close(fd)
        os.write(life, b"1")
        os.read(ready, 1)  # or the init has ended: before that, /proc is still everybody's
        ended = watch(init, plan, begun)
        os.write(report, json.dumps(ended).encode() + b"\n")
    except BaseException as error:
        os.write(report, json.dumps({"unavailable": str(error) or type(error).__name__}).encode() + b"\n")
        os._exit(1)


if __name__ == "__main__":
    main()
