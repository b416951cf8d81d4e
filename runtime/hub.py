"""`hf:` sources: files of a Hugging Face repository, downloaded so that a later try goes on where this one broke off.

huggingface_hub finds the files, the token and the connection. Its own download starts again from nothing in a new process
and follows redirects unasked, so the bytes are fetched here: every host is asked leave for, redirects' too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

from ..wire.errors import BaseloadError
from .pypi import hosts
from .transfer import Leave, Progress, StoreError, digest, is_wanted, need_space, size_now

REDIRECTS = 5


@dataclass(frozen=True)
class _File:
    """A file as the hub describes it. `key` names it and its content, for another try."""

    name: str
    size: int
    sha256: str | None  # large files only
    key: str


def fetch_hub(repo: str, file: str, revision: str, into: Path, leave: Leave | None, progress: Progress) -> None:
    """Put `file` of `repo` (or, without one, its only GGUF file or its safetensors folder) at `into`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    ask = partial(_ask, leave, f"pull hf:{repo}")
    try:
        ask(endpoint)
        commit, files = _describe(repo, revision, endpoint)
        wanted = [files[file]] if file in files else _choose(repo, file, files)
        parts = into.with_name("parts")
        parts.mkdir(exist_ok=True)
        need_space(parts, sum(f.size - size_now(parts / f.key) for f in wanted))
        done, total = 0, sum(f.size for f in wanted)
        for f in wanted:
            _fetch_file(f, parts / f.key, f"{endpoint}/{repo}/resolve/{commit}/{f.name}", ask, _shifted(progress, done, total))
            done += f.size
        _settle({Path(f.name).name: parts / f.key for f in wanted}, into, is_folder=not wanted[0].name.endswith(".gguf"))
        shutil.rmtree(parts)
    except BaseloadError:
        raise
    except Exception as error:  # of huggingface_hub and its HTTP client, or of the disk, which alone have an errno
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StoreError(f"hf:{repo} cannot be downloaded: {_why(error, endpoint)}") from error


def _ask(leave: Leave | None, purpose: str, url: str) -> None:
    for host, port in hosts([url]) if leave else ():
        leave(host, port, purpose)  # type: ignore[misc]


def _shifted(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    return lambda n: progress(done + n, total)


def _describe(repo: str, revision: str, endpoint: str) -> tuple[str, dict[str, _File]]:
    """The commit that `revision` is now, and the files in it."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
    found = {}
    for f in info.siblings or ():
        sha256 = f.lfs.sha256 if f.lfs else None
        key = f"{Path(f.rfilename).name}.{sha256 or f.blob_id}"
        found[f.rfilename] = _File(f.rfilename, f.size or 0, sha256, key)
    return info.sha or revision, found


def _choose(repo: str, file: str, files: dict[str, _File]) -> list[_File]:
    """The one GGUF file of a repository, or else its safetensors folder."""
    if file:
        raise StoreError(f"hf:{repo} has no file {file}.")
    ggufs = [f for f in files.values() if f.name.endswith(".gguf")]
    if len(ggufs) > 1:
        raise StoreError(f"hf:{repo} has several models; name one, as in hf:{repo}/{ggufs[0].name}")
    wanted = [f for f in files.values() if "/" not in f.name and is_wanted(f.name)]
    if not ggufs and not any(f.name.endswith(".safetensors") for f in wanted):
        raise StoreError(f"hf:{repo} has neither a .gguf nor .safetensors files.")
    return ggufs or wanted


def _fetch_file(file: _File, part: Path, url: str, ask: Callable[[str], None], progress: Callable[[int], None]) -> None:
    """Download until it is all there, as long as each try brings something; then compare it with its description."""
    while (begun := size_now(part)) < file.size:
        try:
            _stream(url, part, begun, ask, progress)
        except Exception:
            if size_now(part) <= begun:
                raise
        else:
            break
    part.touch()  # an empty file is a file
    if part.stat().st_size != file.size or (file.sha256 and digest(part) != file.sha256):
        part.unlink()
        raise StoreError(f"{file.name} did not arrive as the hub describes it; it was removed, pull again.")


def _stream(url: str, part: Path, begin: int, ask: Callable[[str], None], progress: Callable[[int], None]) -> None:
    """Append what `url` has from byte `begin` on. The token goes to the hub alone, not to where it sends us."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = {**build_hf_headers(), "accept-encoding": "identity", "range": f"bytes={begin}-"}
    for _ in range(REDIRECTS):
        with get_session().stream("GET", url, headers=headers, follow_redirects=False, timeout=60) as response:
            if not response.has_redirect_location:
                hf_raise_for_status(response)
                with part.open("ab") as writer:
                    if response.status_code != 206:  # the whole file again
                        writer.truncate(0)
                    _append(response.iter_raw(), writer, progress)
                return
            target = urljoin(url, response.headers["location"])
        if hosts([target]) != hosts([url]):
            ask(target)
            headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        url = target
    raise StoreError("The hub sends us from one place to the next without end.")


def _append(blocks: Iterable[bytes], writer: IO[bytes], progress: Callable[[int], None]) -> None:
    for block in blocks:
        writer.write(block)
        progress(writer.tell())
    writer.flush()
    os.fsync(writer.fileno())


def _settle(got: dict[str, Path], into: Path, is_folder: bool) -> None:
    if not is_folder:
        next(iter(got.values())).replace(into)
        return
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    for name, part in got.items():
        part.replace(into / name)


def _why(error: Exception, endpoint: str) -> str:
    kind = type(error).__name__
    if "Gated" in kind:
        return "its owner asks you to accept terms on the site first, then set HF_TOKEN."
    if "NotFound" in kind:
        return "there is no such repository or revision (or it is private: set HF_TOKEN)."
    if any(word in kind for word in ("Offline", "Connect", "Timeout")):
        return f"{endpoint} cannot be reached. On a machine without network, copy the file here and use file:PATH."
    return (str(error).strip().split("\n", 1)[0] or kind)[:200]
