"""`aiflow compare` from the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiflow_agents.cli.main import main


def write(folder: Path, scores: list[int]) -> str:
    folder.mkdir()
    chosen = {"arm": "vote", "chosen_on": "dev"}
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps({"arms": {"vote": {}}, "best_topology": chosen, "best_member": chosen}))
    usage = {"wire_bytes": 10, "flops": 2.0, "latency_s": 0.5, "energy_j": 1}
    lines = [{"arm": "vote", "task_id": str(i), "question": f"q{i}", "repeat": 0, "score": s, "usage": usage} for i, s in enumerate(scores)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_table_and_a_sentence_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / "a", [0, 1] * 100), write(tmp_path / "b", [1, 1] * 100)]
    assert main(["compare", *runs]) == 0
    out = capsys.readouterr().out
    assert "vote of a" in out and "vote of b: " not in out and "500" in out and "is real (p < 0.001): vote of b is better." in out
    assert main(["compare", *runs, "--json", "--margin", "0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["margin"], found["tasks"], found["comparisons"][0]["delta"]) == (0.1, 200, 0.5)


def test_one_run_is_a_mistake_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write(tmp_path / "a", [1])]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("aiflow: compare at least two runs") and len(captured.err.splitlines()) == 1
