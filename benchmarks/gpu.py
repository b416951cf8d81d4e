"""What a GPU gives: `benchmarks/gpu.sh`, or `python -m baseload.benchmarks.gpu [--smoke] [--only STAGE ...] [--out DIR]`.

Each stage is a process with a time limit, so that one that fails or hangs costs its own results only. All of them go into
gpu.json as they come, and a table is printed at the end. `--smoke`: tiny shapes, on a CPU in Triton's interpreter; that proves
that the script runs whole, and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

MODELS = ("llama-3.1-8b", "qwen3-0.6b", "smollm2-135m")
# name: (module of this folder, its function, what else it is told, seconds); 525 s in all
STAGES: dict[str, tuple[str, str, tuple[str, ...], int]] = {
    "machine": ("gpu_kernels", "machine", (), 30),
    "correct": ("gpu_engine", "correct", (), 60),
    "kernels": ("gpu_kernels", "kernels", (), 90),
    "engine smollm2-135m": ("gpu_engine", "engine", ("smollm2-135m",), 60),
    "engine qwen3-0.6b": ("gpu_engine", "engine", ("qwen3-0.6b",), 60),
    "engine llama-3.1-8b": ("gpu_engine", "engine", ("llama-3.1-8b",), 90),
    "peer qwen3-0.6b": ("gpu_peer", "peer", ("qwen3-0.6b",), 60),
    "peer llama-3.1-8b": ("gpu_peer", "peer", ("llama-3.1-8b",), 75),
}
WHOLE_S = 530  # after this, no stage begins


def run_stage(name: str, smoke: bool, out: Path) -> None:
    """A stage in this process; its rows are in `out` as soon as they are there, so that a time limit costs the rest only."""
    module, function, words, _ = STAGES[name]
    measure: Callable[..., Iterable[Row]] = getattr(importlib.import_module(f".{module}", __package__), function)
    rows = []
    for row in measure(*words, smoke=smoke):
        rows.append(row)
        whole = out.with_suffix(".new")
        whole.write_text(json.dumps(rows))
        whole.replace(out)


def supervise(name: str, smoke: bool, limit_s: float) -> Row:
    """A stage in a process of its own: {"stage", "seconds", "rows" or "failed"}."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--stage", name, "--rows", str(out)]
        environment = os.environ | ({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if smoke else {})
        try:
            words = [*command, *(["--smoke"] if smoke else [])]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit_s)
            failed = "" if done.returncode == 0 else (done.stderr.strip() or f"status {done.returncode}")[-2000:]
        except subprocess.TimeoutExpired:
            failed = f"took longer than {limit_s:.0f} s"
        result: Row = {"stage": name, "seconds": round(time.monotonic() - began, 1)}
        if out.is_file():  # rows that were there before a failure
            result["rows"] = json.loads(out.read_text())
        return result | ({"failed": failed} if failed else {})


def table(results: list[Row]) -> str:
    """All rows as text, and in one line each what failed."""
    lines = []
    for result in results:
        lines.append(f"\n{result['stage']} ({result['seconds']} s)")
        for row in result.get("rows", []):
            values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            lines.append("  " + ", ".join(values))
        if "failed" in result:
            lines.append("  FAILED: " + result["failed"].splitlines()[-1])
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Run the stages; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU: measures nothing")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for gpu.json")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.stage:
        run_stage(asked.stage, asked.smoke, asked.rows)
        return 0
    began, results = time.monotonic(), []
    for name in asked.only or STAGES:
        left = WHOLE_S - (time.monotonic() - began)
        limit = 200.0 if asked.smoke else min(STAGES[name][3], left)  # a busy CPU's interpreter is slow
        late = {"stage": name, "seconds": 0, "failed": "no time was left"}
        results.append(supervise(name, asked.smoke, limit) if limit > 0 else late)
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "gpu.json").write_text(json.dumps({"smoke": asked.smoke, "stages": results}, indent=1))
        print(table(results[-1:]), flush=True)
    return int(any("failed" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
