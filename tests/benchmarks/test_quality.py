"""The quality guard: what the native step's roundings may cost, and the arithmetic that says so."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from baseload.benchmarks import quality
from baseload.kernels.cpu import library as native
from baseload.runtime.models.model_file import load_model

VECTORS = [isa for isa in native.instruction_sets() if isa != "portable"] or ["portable"]  # it takes minutes


def test_a_score_is_perplexity_divergence_and_agreement():
    exact = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 3  # logits are no probabilities yet
    score = quality.Score("x")
    score.add(np.array([0, 2], np.int32), exact, found)
    score.add(np.array([0, 2], np.int32), exact, exact)
    assert score.perplexity == pytest.approx((0.25 * 0.8 * 0.5 * 0.8) ** -0.25, rel=1e-6)
    assert score.divergence == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-5)
    assert (score.agreed, score.tokens) == (3, 4)
    first, second = quality.rows([quality.Score("float32", 4, 4.0), score])
    assert first["ratio"] == 1 and second["ratio"] == pytest.approx(score.perplexity / math.e)


def test_the_text_is_there_and_fixed():
    found = quality.text()
    assert len(found) == quality.CHARACTERS and found == quality.text()
    assert isinstance(quality.is_known(found), bool) and not quality.is_known(found + ".")


@pytest.mark.slow
def test_perplexity_stays_within_a_hundredth(smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """4096 tokens; the whole text's figures stand in docs/benchmarks.md."""
    given = [word for isa in VECTORS for word in ("--isa", isa)]
    assert quality.main([str(smollm2), "--tokens", "4096", "--json", str(tmp_path / "q.json"), *given]) == 0
    assert "perplexity" in capsys.readouterr().out
    found = json.loads((tmp_path / "q.json").read_text())
    assert found["digest"] == load_model(smollm2).digest
    exact, *ours = found["rows"]
    assert exact["tokens"] == 4096 - 8 and exact["ratio"] == 1 and exact["agreement"] == 1
    assert [row["name"] for row in ours] == VECTORS
    for row in ours:
        assert abs(row["ratio"] - 1) < 0.01, row
        assert row["mean_kl_nats"] < 0.01 and row["agreement"] > 0.95, row
