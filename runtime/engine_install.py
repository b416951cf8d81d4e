"""Engines that are not ours, each installed by pip into an environment of its own: their pins are not ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .pypi import index_hosts
from .transfer import Leave, StoreError

CONFIGS = Path(__file__).parents[1] / "configs" / "engines"
DONE = "installed.json"  # stands in an environment that is whole
NEEDS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for name in sys.argv[1:]:
    for need in map(Requirement, requires(name) or ()):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            need.marker = None
            print(need.name, need, sep="\\t")
"""


def engines() -> list[str]:
    """Those that can be installed, by name."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def python_of(root: Path, engine: str) -> Path:
    """Its environment's interpreter, whether it is there or not."""
    return root / "engines" / engine / "bin" / "python"


def is_installed(root: Path, engine: str) -> bool:
    """Whether an environment is there and whole."""
    return (root / "engines" / engine / DONE).is_file()


def install(root: Path, engine: str, leave: Leave | None = None, say: Callable[[str], None] = print) -> Path:
    """Make the environment, or leave it as it is where it is whole and of the same versions; gives its interpreter.

    Raises StoreError, and EgressDenied where the index may not be asked.
    """
    if engine not in engines():
        raise StoreError(f"There is no engine {engine!r} to install; there are: {', '.join(engines())}.")
    plan = tomllib.loads((CONFIGS / f"{engine}.toml").read_text("utf-8"))["cuda" if shutil.which("nvidia-smi") else "cpu"]
    place, python = root / "engines" / engine, python_of(root, engine)
    if is_installed(root, engine) and json.loads((place / DONE).read_text("utf-8")) == plan:
        return python
    for host, port in index_hosts() if leave else ():
        leave(host, port, f"pull engine {engine}")  # pyright: ignore[reportOptionalCall]
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(place)], "an environment could not be made")
    _steps(python, plan, say)
    (place / DONE).write_text(json.dumps(plan), "utf-8")
    return python


def _steps(python: Path, plan: Mapping[str, Any], say: Callable[[str], None]) -> None:
    def pip(*words: str) -> None:
        say(f"installing {' '.join(word for word in words if not word.startswith('-'))[:100]}")
        quiet = ("-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet")
        _run([str(python), *quiet, *words], f"pip could not install {words[-1]}")

    pip(*plan["first"])
    if bare := plan.get("bare", []):
        pip("--no-deps", *bare)
        names = [requirement.partition("==")[0] for requirement in bare]
        listed = _run([str(python), "-c", NEEDS, *names], "the engine's needs could not be read")
        needs = [line.split("\t") for line in listed.splitlines()]
        pip(*(need for name, need in needs if name not in plan.get("skip", [])), *plan.get("more", []), *plan["first"])


def _run(command: Sequence[str], trouble: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or [done.stderr.strip()[-200:]]
        raise StoreError(f"{trouble}: {lines[-1].removeprefix('ERROR: ')[:300]}")
    return done.stdout
