"""Every kernel compiles for an H100, and fits it, on a machine that has none."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import baseload

SHARED = 227 * 1024  # bytes that a block may have on compute capability 9.0


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path):
    package = Path(baseload.__path__[0]).resolve()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = [sys.executable, str(Path(__file__).with_name("compile_all.py"))]
    done = subprocess.run(
        script, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    used = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines() if "bytes shared" in line}
    assert used and max(used.values()) <= SHARED
    kernels = {
        line.split("def ")[1].split("(")[0]
        for file in (package / "kernels" / "triton").glob("*.py")
        for line in _entries(file.read_text())
    }
    assert kernels <= set(used), f"not compiled here: {kernels - set(used)}"


def _entries(source: str) -> list[str]:
    """The `def` lines of kernels that a file launches, which are those it calls with a grid."""
    lines = source.splitlines()
    jitted = [after for before, after in itertools.pairwise(lines) if before.startswith("@triton.jit")]
    return [line for line in jitted if f"    {line.split('def ')[1].split('(')[0]}[" in source]
