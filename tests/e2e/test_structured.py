"""Schemas of daily life and made-up ones, on the real model: what is taken is kept to."""

import json

from baseload.benchmarks.structured import main


def test_every_answer_is_valid_and_whole(server, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["--url", server.url, "--schemas", "20", "--rounds", "1", "--json", str(report)]) == 0, capsys.readouterr().out
    found = json.loads(report.read_text("utf-8"))
    for kind in ("greedy", "sampled"):
        tally = found[kind]
        assert tally["complete"] == tally["asked"] - tally["refused"] >= 25, tally["examples"]
        assert any("uniqueItems" in reason for reason in tally["reasons"])
    (free, kept), *_ = found["tokens_per_s"]
    assert free > 0 and kept > 0
