"""Compile the C++ of this folder into libbaseload_cpu.so: `python -m baseload.kernels.cpu.compile`.

The compiler is clang out of the PyPI wheel `ziglang`, so that a machine without a compiler builds the same code as any other.
Nothing is linked, not even a C++ runtime (zig would first compile one, for minutes): the few libc and pthread functions that
the code calls are found in the Python process that loads the library. So: no exceptions, no RTTI, no static with a guard.

Standard library only: build_backend.py runs this file where the project is not installed.
"""

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = "libbaseload_cpu.so"
REBUILD = "python -m baseload.kernels.cpu.compile"  # needs `ziglang`, which the extra [dev] installs

# Contraction into fused multiply-adds is off, for then a sum is the same whatever the compiler unrolls; where the code wants
# an FMA it says so.
FLAGS = (
    *("-O3", "-std=c++20", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-sanitize=all"),
    *("-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
)
LINK = {
    "Linux": ("-shared", "-nostdlib", "-Wl,--allow-shlib-undefined", "-Wl,-z,undefs"),
    "Darwin": ("-shared", "-nostdlib", "-Wl,-undefined,dynamic_lookup"),
}
BASELINE = {"x86_64": "x86_64_v2"}  # any other machine: the least that its architecture has
VECTORS = "x86_64_v4+avx512vnni+avx512bf16-prefer_256_bit"
ISA = {  # isa_<name>.cpp: the machine it is for, and the -mcpu that it is compiled with
    "amx": ("x86_64", VECTORS + "+amx_tile+amx_int8+amx_bf16"),
    "avx512": ("x86_64", VECTORS),
    "avx2": ("x86_64", "x86_64_v3"),
}
SMOKE = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).bl_sources_hash; f.restype = ctypes.c_char_p; print(f().decode())"


class CompileError(Exception):
    """The library could not be made; the message holds what the compiler said."""


def sources_hash(folder: Path = HERE) -> str:
    """16 hex digits that change with any C++ source (names and contents) and with the way they are compiled."""
    recipe = repr((FLAGS, sorted(LINK.items()), sorted(BASELINE.items()), sorted(ISA.items())))
    whole = hashlib.sha256(recipe.encode())
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".inc", ".h")):
        content = path.read_bytes()
        whole.update(f"{path.name} {len(content)}\n".encode() + content)
    return whole.hexdigest()[:16]


def is_current(folder: Path = HERE) -> bool:
    """Whether the library was compiled from the sources that lie beside it. Reads it, does not load it."""
    library = folder / LIBRARY
    return library.is_file() and sources_hash(folder).encode() in library.read_bytes()


def compile_library(folder: Path = HERE) -> Path:
    """Compile every .cpp of `folder` that is for this machine, link, try the result, put it in its place: the library's path.

    A library that is there already stays until the new one has proved that it loads. Raises CompileError.
    """
    version = sources_hash(folder)
    machine = machine_name()
    sources = [(path, mcpu) for path in sorted(folder.glob("*.cpp")) if (mcpu := _mcpu(path, machine))]
    if not sources:
        raise CompileError(f"there is no C++ source in {folder}")
    try:
        with tempfile.TemporaryDirectory(prefix="baseload-") as place, ThreadPoolExecutor(os.cpu_count()) as pool:
            work = Path(place)
            define = f'-DBASELOAD_SOURCES_HASH="{version}"'
            options = [(*FLAGS, define, f"-mcpu={mcpu}", "-c", str(path)) for path, mcpu in sources]
            objects = [str(work / f"{path.stem}.o") for path, _ in sources]
            list(pool.map(lambda option, target: _zig(work, "c++", *option, "-o", target), options, objects))
            _zig(work, "cc", *LINK.get(platform.system(), LINK["Linux"]), *objects, "-o", str(work / LIBRARY))
            return _put(work / LIBRARY, folder / LIBRARY, version)
    except OSError as error:
        raise CompileError(str(error)) from error


def machine_name() -> str:
    """This machine's architecture: "x86_64", "aarch64", or what the system calls another."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _mcpu(path: Path, machine: str) -> str | None:
    """The -mcpu for a source; None if it is for another machine."""
    wanted, mcpu = ISA.get(path.stem.removeprefix("isa_"), (machine, BASELINE.get(machine, "baseline")))
    return mcpu if wanted == machine else None


def _zig(work: Path, *arguments: str) -> None:
    # A cache of its own: the user's home may be absent or read-only, and nothing is compiled twice anyway.
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(work / "cache"), "ZIG_LOCAL_CACHE_DIR": str(work / "cache")}
    command = [sys.executable, "-m", "ziglang", *arguments]
    done = subprocess.run(command, cwd=work, env=os.environ | cache, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise CompileError((done.stderr + done.stdout).strip() or f"{' '.join(command[2:4])} ended with {done.returncode}")


def _put(made: Path, target: Path, version: str) -> Path:
    """Load `made` in a process of its own (a symbol that no one defines ends it), then rename it to `target`."""
    done = subprocess.run([sys.executable, "-c", SMOKE, str(made)], capture_output=True, text=True, errors="replace")
    if done.stdout.strip() != version:
        raise CompileError(f"the new library does not load: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_bytes(made.read_bytes())
        beside.chmod(0o755)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def main() -> int:
    """Compile if need be and say so in one line; 1 where that fails."""
    if is_current():
        print(f"{LIBRARY} is up to date")
        return 0
    start = time.perf_counter()
    try:
        path = compile_library()
    except CompileError as error:
        print(f"{error}\n{LIBRARY} could not be compiled", file=sys.stderr)
        return 1
    print(f"compiled {path} in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
