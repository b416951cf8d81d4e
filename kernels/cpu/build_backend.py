"""The PEP 517 backend: setuptools', with the C++ compiled before a wheel is made (see `[build-system]` in pyproject.toml).

pip runs this in an environment of its own that has `ziglang`. Where compiling fails the install goes on without the native
library: it says so once here, and the server says so again when it starts.
"""

import runpy
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any] | None


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel for this platform and any Python 3: the library speaks plain C. For any platform, if there is no library."""
    given = dict(config_settings or {})
    if compile_sources():
        options = given.get("--build-option", [])
        tags = [f"--plat-name={sysconfig.get_platform()}", "--python-tag=py3"]
        given["--build-option"] = tags + ([options] if isinstance(options, str) else list(options))
    return build_meta.build_wheel(wheel_directory, given, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """An editable install, with the library compiled in the checkout."""
    compile_sources()
    return build_meta.build_editable(wheel_directory, dict(config_settings or {}), metadata_directory)


def compile_sources() -> bool:
    """Compile what is not up to date. False, with a warning, where that fails; an install never does."""
    recipe = runpy.run_path(str(Path(__file__).with_name("compile.py")))
    if recipe["is_current"]():
        return True
    try:
        recipe["compile_library"]()
    except recipe["CompileError"] as error:
        print(f"WARNING: Baseload's native CPU library was not compiled; answers will be slow.\n{error}", file=sys.stderr)
        (Path(__file__).parent / recipe["LIBRARY"]).unlink(missing_ok=True)  # older than its sources: no use to anyone
        return False
    return True
