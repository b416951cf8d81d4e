"""Engines in environments of their own: made whole or not at all, from wheels, with no more than the plan says."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from baseload.runtime import engine_install
from baseload.runtime.engine_install import install, is_installed, python_of
from baseload.runtime.transfer import StoreError
from baseload.wire.errors import EgressDenied

PLAN = """
[{kind}]
first = ["first==1"]
bare = ["engine==1"]
skip = ["heavy"]
more = ["more"]
"""


def wheel(folder: Path, name: str, *needs: str) -> None:
    """An empty package."""
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n" + "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{name}-1.dist-info/METADATA", head)
        archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes everything from, and a plan that asks for some of them."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "tiny.toml").write_text(PLAN.format(kind="cpu") + PLAN.format(kind="cuda"))
    monkeypatch.setattr(engine_install, "CONFIGS", tmp_path / "engines")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    wheel(folder, "first")
    wheel(folder, "engine", "light", "heavy", 'other ; extra == "all"', 'winter ; sys_platform == "win32"')
    wheel(folder, "more")
    return folder


def test_an_engine_is_installed_once_and_whole(index: Path, tmp_path: Path):
    said: list[str] = []
    with pytest.raises(StoreError, match="pip could not install"):
        install(tmp_path, "tiny", say=said.append)  # what it needs is not there
    assert not is_installed(tmp_path, "tiny")
    wheel(index, "light")
    python = install(tmp_path, "tiny", say=said.append)
    assert python == python_of(tmp_path, "tiny") and is_installed(tmp_path, "tiny")
    listed = subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    assert {line.partition("==")[0] for line in listed.split()} == {"first", "engine", "light", "more"}
    told = len(said)
    assert install(tmp_path, "tiny", say=said.append) == python and len(said) == told, "once is enough"


def test_where_the_index_may_not_be_asked_nothing_is_made(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_install, "index_hosts", lambda: [("pypi.org", 443)])

    def leave(host: str, port: int, purpose: str) -> None:
        raise EgressDenied(f"No connection to {host}: {purpose}.")

    with pytest.raises(EgressDenied, match=r"pypi\.org: pull engine tiny"):
        install(tmp_path, "tiny", leave)
    assert not python_of(tmp_path, "tiny").exists()


def test_the_shipped_plans_can_be_read():
    assert engine_install.engines() == ["vllm"]
