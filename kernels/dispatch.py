"""Which implementation runs a model's steps: the native step on a CPU, torch where that cannot. Imports neither."""

import importlib.util
import os
from typing import Literal

from .cpu.library import NativeUnavailable, library
from .cpu.step import unsupported
from .spec import DecoderSpec

Implementation = Literal["native", "torch"]


def choose(spec: DecoderSpec, page_size: int, wanted: str = "auto") -> tuple[Implementation, str]:
    """The implementation for a model, and why it is not the native one ("" where it is). "auto", "native" and "torch" may be
    wanted.

    Raises NativeUnavailable, in one line, where the native step cannot run it and torch may not or is not there.
    """
    if wanted == "torch":
        return "torch", "the settings ask for it"
    reason = _missing(spec, page_size)
    if not reason:
        return "native", ""
    if wanted == "native" or importlib.util.find_spec("torch") is None:
        raise NativeUnavailable(reason)
    return "torch", reason


def _missing(spec: DecoderSpec, page_size: int) -> str:
    try:
        library()
    except NativeUnavailable as error:
        return str(error)
    reason = unsupported(spec, page_size)
    return f"the native step does not run this model: {reason}" if reason else ""


def n_threads(asked: int = 0) -> int:
    """Threads for the native step: `asked`, or one for each core that this process may use."""
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
