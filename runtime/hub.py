"""`hf:` sources: files of a Hugging Face repository, downloaded so that a later try goes on where this one broke off.

huggingface_hub finds the files, the token and the connection. Its own download starts again from nothing in a new process
and follows redirects unasked, so the bytes are fetched here: every host is asked leave for, redirects' too.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..wire.errors import BaseloadError
from .pypi import hosts
from .transfer import BLOCK, Leave, Progress, StoreError, digest, need_space

FOLDER_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")  # no pickles, no code
REDIRECTS = 5


def is_wanted(name: str) -> bool:
    """Whether a file belongs to a safetensors model."""
    return any(fnmatch.fnmatch(name, glob) for glob in FOLDER_FILES)


def fetch_hub(repo: str, file: str, revision: str, into: Path, leave: Leave | None, progress: Progress) -> None:
    """Put `file` of `repo` (or, without one, its only GGUF file or its safetensors folder) at `into`, verified."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    purpose = f"pull hf:{repo}"
    try:
        _ask(leave, endpoint, purpose)
        commit, sizes = _list(repo, revision, endpoint)
        wanted = [file] if file else _choose(repo, list(sizes))
        if file and file not in sizes:
            raise StoreError(f"hf:{repo} has no file {file}.")
        total = sum(sizes[name][0] for name in wanted)
        is_folder = not file and not wanted[0].endswith(".gguf")
        parts = into.with_name("parts")  # each named by what it must hash to, so that only the same file is gone on with
        parts.mkdir(exist_ok=True)
        done, got = 0, []
        for name in wanted:
            size, sha256, key = sizes[name]
            need_space(parts, size)
            part = parts / key
            url = f"{endpoint}/{repo}/resolve/{commit}/{name}"
            _download(url, part, lambda n, done=done: progress(done + n, total), lambda to: _ask(leave, to, purpose))
            if part.stat().st_size != size or (sha256 and digest(part) != sha256):
                part.unlink()
                raise StoreError(f"hf:{repo}/{name} did not arrive as it is described there; it was removed, pull again.")
            done += size
            got.append((part, Path(name).name))
        _settle(got, into, is_folder)
        shutil.rmtree(parts)
    except (BaseloadError, OSError):
        raise
    except Exception as error:  # huggingface_hub's and its HTTP client's, whichever that is
        raise StoreError(f"hf:{repo} cannot be downloaded: {_why(error, endpoint)}") from error
