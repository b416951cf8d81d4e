"""`baseload doctor`: is this machine ready, and is that model file sound?"""

from __future__ import annotations

import platform
import shutil
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from ..wire.errors import BaseloadError
from .common import fail, fail_cleanly, print_json, print_table, size


@fail_cleanly
def doctor(
    model: Annotated[
        Path | None, typer.Option(help="Read this model file whole and say in one line whether it is sound.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML; else ./baseload.toml, else the store's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, or one model file."""
    if model is not None:
        from ..runtime.models.model_file import check_model

        print(check_model(model))
        return
    found = [(name, *_run(check, config)) for name, check in CHECKS.items()]
    if as_json:
        print_json([{"check": name, "ok": ok, "says": says} for name, ok, says in found])
    else:
        print_table(("CHECK", "", "SAYS"), [(name, "ok" if ok else "FAILED", says) for name, ok, says in found])
    if bad := [name for name, ok, _ in found if not ok]:
        fail(f"{len(bad)} of {len(found)} checks failed: {', '.join(bad)}")


def _run(check: Callable[[Path | None], str], config: Path | None) -> tuple[bool, str]:
    try:
        return True, check(config)
    except BaseloadError as error:
        return False, error.message
    except (OSError, RuntimeError) as error:
        return False, str(error).split("\n", 1)[0]


def _python(config: Path | None) -> str:
    return f"{platform.python_version()} on {platform.machine()}"


def _packages(config: Path | None) -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in ("numpy", "tokenizers", "fastapi", "sqlalchemy"))
    except PackageNotFoundError as error:
        raise RuntimeError(f"{error.name} is not installed") from error


def _settings(config: Path | None) -> str:
    from ..server.settings import load

    _, origins = load(config, {})
    changed = [key for key, origin in origins.items() if origin != "default"]
    return f"{len(changed)} of {len(origins)} settings are not the default" + (f": {', '.join(changed)}" if changed else "")


def _store(config: Path | None) -> str:
    from .common import open_store

    store = open_store(config)
    store.root.mkdir(parents=True, exist_ok=True)
    probe = store.root / ".doctor"
    probe.write_bytes(b"")
    probe.unlink()
    models = store.list()
    free = shutil.disk_usage(store.root).free
    return f"{len(models)} models, {size(sum(m.bytes for m in models))} in {store.root}; {size(free)} free"


def _ledger(config: Path | None) -> str:
    from ..ledger.ledger import check
    from .common import ledger_url

    return check(ledger_url(config))


def _port(config: Path | None) -> str:
    from ..server.settings import load

    server = load(config, {})[0].server
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise RuntimeError(
                f"{server.host}:{server.port} cannot be bound: {error.strerror}; is a server running?"
            ) from error
    return f"{server.host}:{server.port} is free"


CHECKS: dict[str, Callable[[Path | None], str]] = {
    "python": _python,
    "packages": _packages,
    "settings": _settings,
    "store": _store,
    "ledger": _ledger,
    "port": _port,
}
