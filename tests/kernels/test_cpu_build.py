"""The library and its sources: compiled, current, refused where it does not fit, and never in the way of an install."""

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baseload.kernels.cpu import compile as compiler
from baseload.kernels.cpu import library as native
from baseload.kernels.cpu.compile import LIBRARY, REBUILD, CompileError, compile_library, is_current, sources_hash
from baseload.kernels.cpu.library import NativeUnavailable, library

HERE = compiler.HERE
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang comes with [dev]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of kernels/cpu, its library too."""
    return Path(shutil.copytree(HERE, tmp_path / "cpu", ignore=shutil.ignore_patterns("__pycache__")))


def refused(folder: Path) -> str:
    """The one line with which the library of a folder is refused."""
    with pytest.raises(NativeUnavailable) as caught:
        library(folder)
    said = str(caught.value)
    assert "\n" not in said and f"`{REBUILD}`" in said
    return said


def test_a_library_that_fits_its_sources_is_taken(folder: Path):
    assert is_current(folder)
    assert library(folder).bl_isa(0).decode() == native.instruction_sets()[0]


@pytest.mark.parametrize("name", ["gemm.inc", "vec.h", "pool.cpp"])
def test_a_library_older_than_a_source_is_refused(folder: Path, name: str):
    source = folder / name
    source.write_text(source.read_text() + "\n// changed\n")
    assert not is_current(folder)
    assert "older than its sources" in refused(folder)


def test_a_source_more_or_less_or_renamed_counts_too(folder: Path):
    before = sources_hash(folder)
    (folder / "isa_new.cpp").write_text("")
    more = sources_hash(folder)
    (folder / "isa_new.cpp").rename(folder / "isa_newer.cpp")
    assert len({before, more, sources_hash(folder)}) == 3
    (folder / "isa_newer.cpp").unlink()
    (folder / "notes.txt").write_text("no source")
    assert sources_hash(folder) == before


def test_the_way_of_compiling_counts_too(monkeypatch: pytest.MonkeyPatch):
    before = sources_hash()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-ffast-math"))
    assert sources_hash() != before


def test_an_absent_library_is_refused(folder: Path):
    (folder / LIBRARY).unlink()
    assert not is_current(folder)
    assert "not compiled" in refused(folder)


def test_a_library_that_does_not_load_is_refused(folder: Path):
    (folder / LIBRARY).unlink()  # the one that is loaded has the same content, not the same file
    (folder / LIBRARY).write_bytes(b"\x7fELF and then nothing of the kind")
    assert "does not load" in refused(folder)


# --- compiling -----------------------------------------------------------------------------------------------------------


def only(folder: Path, **sources: str) -> None:
    """Leave these C++ sources alone in the folder."""
    for path in folder.glob("*.cpp"):
        path.unlink()
    for name, text in sources.items():
        (folder / f"{name}.cpp").write_text(text)


HASH = 'extern "C" __attribute__((visibility("default"))) const char* bl_sources_hash() { return BASELOAD_SOURCES_HASH; }\n'


@needs_zig
def test_a_small_library_is_compiled_and_put_in_place(folder: Path):
    only(folder, small=HASH)
    assert compile_library(folder) == folder / LIBRARY
    assert is_current(folder)
    assert [path.name for path in folder.iterdir() if LIBRARY in path.name] == [LIBRARY], "nothing is left beside it"


@needs_zig
def test_what_does_not_compile_or_load_leaves_the_old_library(folder: Path):
    before = (folder / LIBRARY).read_bytes()
    only(folder, broken="int f( { return 1; }")
    with pytest.raises(CompileError, match="error"):
        compile_library(folder)
    only(folder, dangling=HASH + 'extern "C" int nobody_has_this(); int (*keep)() = nobody_has_this;')
    with pytest.raises(CompileError, match="does not load"):
        compile_library(folder)
    only(folder)
    with pytest.raises(CompileError, match="no C\\+\\+ source"):
        compile_library(folder)
    assert (folder / LIBRARY).read_bytes() == before


@needs_zig
@pytest.mark.slow
def test_the_whole_is_compiled_by_the_command_of_the_message(folder: Path):
    """As a file by itself, where the package is not installed."""
    (folder / LIBRARY).unlink()
    command = [sys.executable, str(folder / "compile.py")]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=280) for _ in range(2))
    assert first.returncode == 0 and first.stdout.startswith("compiled"), first.stderr
    assert again.returncode == 0 and "up to date" in again.stdout
    assert library(folder).bl_isa(0).decode() == native.instruction_sets()[0]


def test_a_source_for_another_machine_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiler.platform, "machine", lambda: "arm64")
    assert compiler.machine_name() == "aarch64"
    assert compiler._mcpu(Path("isa_avx2.cpp"), "aarch64") is None
    assert compiler._mcpu(Path("isa_portable.cpp"), "aarch64") == "baseline"
    assert compiler._mcpu(Path("isa_amx.cpp"), "x86_64") == compiler.ISA["amx"][1]


# --- an install ----------------------------------------------------------------------------------------------------------


def backend(folder: Path) -> dict[str, Any]:
    """The build backend of a folder, run as pip does: by itself."""
    return runpy.run_path(str(folder / "build_backend.py"))


def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m ziglang` fails at once."""
    (tmp_path / "path" / "ziglang").mkdir(parents=True)
    (tmp_path / "path" / "ziglang" / "__init__.py").write_text("")
    (tmp_path / "path" / "ziglang" / "__main__.py").write_text("import sys\nsys.exit('there is no compiler here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))


def test_an_install_goes_on_without_a_compiler(folder: Path, tmp_path, monkeypatch, capsys):
    no_compiler(tmp_path, monkeypatch)
    (folder / "vec.h").write_text((folder / "vec.h").read_text() + "\n// changed\n")
    assert backend(folder)["compile_sources"]() is False
    said = capsys.readouterr().err
    assert said.startswith("WARNING") and "there is no compiler here" in said
    assert not (folder / LIBRARY).exists(), "a library older than its sources is of no use"


def test_an_install_with_a_current_library_asks_no_compiler(folder: Path, tmp_path, monkeypatch, capsys):
    no_compiler(tmp_path, monkeypatch)
    assert backend(folder)["compile_sources"]() is True
    assert not capsys.readouterr().err


@needs_zig
def test_an_install_goes_on_with_a_broken_source(folder: Path, capsys):
    only(folder, broken="int f( { return 1; }")
    assert backend(folder)["compile_sources"]() is False
    assert "WARNING" in capsys.readouterr().err


def test_a_wheel_with_the_library_is_for_this_platform(folder: Path, tmp_path, monkeypatch):
    """And one without it for any. setuptools' own part is not run here."""
    found = backend(folder)
    seen: list[dict[str, Any]] = []

    class Setuptools:
        @staticmethod
        def build_wheel(directory: str, settings: dict[str, Any], metadata: str | None = None) -> str:
            seen.append(settings)
            return "wheel"

    monkeypatch.setitem(found["build_wheel"].__globals__, "build_meta", Setuptools)
    assert found["build_wheel"](str(tmp_path), {"--build-option": "--quiet"}) == "wheel"
    assert any(option.startswith("--plat-name=") for option in seen[0]["--build-option"])
    assert "--python-tag=py3" in seen[0]["--build-option"] and "--quiet" in seen[0]["--build-option"]
    no_compiler(tmp_path, monkeypatch)
    (folder / LIBRARY).unlink()
    found["build_wheel"](str(tmp_path))
    assert "--build-option" not in seen[1]
