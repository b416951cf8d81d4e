"""The script for GPUs runs whole without one, and a stage that fails costs no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import baseload

pytest.importorskip("triton", reason="the GPU's benchmark needs Triton (pip install triton)")

from baseload.benchmarks import gpu
from baseload.benchmarks.gpu_models import SPECS, n_weights

ROOT = Path(baseload.__path__[0]).resolve()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages",
    [
        ["machine", "kernels"],
        ["correct", "engine qwen3-0.6b"],
        pytest.param(["engine llama-3.1-8b", "peer llama-3.1-8b"], marks=pytest.mark.long),
    ],
)
def test_every_kind_of_stage_runs_whole(stages: list[str], tmp_path: Path):
    done = run("--smoke", "--out", str(tmp_path), "--only", *stages)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, [stage.get("failed") for stage in found["stages"]]
    assert [stage["stage"] for stage in found["stages"]] == stages and found["smoke"]
    assert all(stage["rows"] for stage in found["stages"])


def test_a_stage_that_hangs_or_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    real = gpu.supervise
    monkeypatch.setattr(gpu, "supervise", lambda name, smoke, limit: real(name, smoke, 0.01 if name == "correct" else limit))
    assert gpu.main(["--smoke", "--only", "correct", "machine", "--out", str(tmp_path)]) == 1
    hung, sound = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert "longer than" in hung["failed"] and sound["rows"] and "failed" not in sound
    assert "FAILED" in capsys.readouterr().out


def test_all_stages_together_stay_below_nine_minutes():
    assert gpu.WHOLE_S <= 540 and sum(limit for *_, limit in gpu.STAGES.values()) <= gpu.WHOLE_S


def test_shapes_are_those_of_the_models():
    billions = {name: n_weights(spec) / 1e9 for name, spec in SPECS.items()}
    assert abs(billions["llama-3.1-8b"] - 7.50) < 0.01, "8.03 with the embedding, of which a step reads a row"
    assert abs(billions["qwen3-0.6b"] - 0.596) < 0.001 and abs(billions["smollm2-135m"] - 0.1345) < 0.0001
