"""Only wire/egress.py opens outside connections: every import of the package is read."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("wire", "kernels", "runtime", "ledger", "router", "harness", "server", "cli")
NETWORK = {
    "socket",
    "aiohttp",
    "httpx",
    "httpx2",
    "requests",
    "websockets",
    "http.client",
    "urllib.request",
    "urllib3",
    "ftplib",
}
# file -> what it may import, and why
MAY = {
    "wire/egress.py": {"aiohttp", "socket"},  # the door
    "wire/client.py": {"aiohttp"},  # its errors and time-outs; sessions come from the door
    "cli/remote.py": {"aiohttp"},  # likewise
    "server/run.py": {"socket"},  # listens; dials nobody
    "server/http_protocol.py": {"socket"},  # options of accepted connections
    "cli/doctor.py": {"socket"},  # asks whether a port of this machine is free
}
DIALS = {"open_connection", "create_connection", "create_datagram_endpoint", "open_unix_connection", "ClientSession", "urlopen"}


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in NETWORK for module in found if module == name or module.startswith(name + ".")}


def test_no_other_module_knows_the_network():
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        extra = imported(ast.parse(path.read_text("utf-8"))) - MAY.get(name, set())
        assert not extra, f"{name} imports {sorted(extra)}"


def test_no_other_module_dials():
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name == "wire/egress.py":
            continue
        calls = (node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
        used = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls} & DIALS
        assert not used, f"{name} calls {sorted(used)}"
