"""`aiflow bench`: what it prints, and when it says that something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiflow_agents.bench import engine
from aiflow_agents.cli.main import main


def test_the_engine_beside_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["bench", "engine", "tally", "--prompts", "6", "--batch", "4", "--repeats", "1", "--no-memory", "--display", "none"]
    assert main([*wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["models"][0]["batches"]
    assert found["models"][0]["model"] == "tally" and row["batch"] == 4 and row["prompts"] == 6 and row["identical"] + row["ties"] == 6
    assert "torch" in found["machine"]
    assert main(wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["model", "batch"] and lines[3].split()[:2] == ["tally", "4"] and "6/6" in lines[3]


def test_another_text_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = engine._our_side

    def wrong(*args: Any, **options: Any) -> Any:
        run = real(*args, **options)
        return lambda prompts: [answer[::-1] for answer in run(prompts)]

    monkeypatch.setattr(engine, "_our_side", wrong)
    assert main(["bench", "engine", "tally", "--prompts", "4", "--batch", "4", "--repeats", "1", "--no-memory", "--display", "none"]) == 1
    assert "4/4" not in capsys.readouterr().out


def test_what_an_evaluation_adds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "overhead", "controls-copies", "--limit", "2", "--runtime", "inline", "--repeats", "1", "--display", "none"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("controls-copies, 2 test tasks, median of 1; ") and "\ninline       1 " in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine", "taly"], "no model named 'taly'; did you mean tally?"),
        (["engine", "--suite", "controls"], "'controls' is a group of suites: take one of controls-copies"),
        (["engine", "--batch", "0"], "Invalid value for '--batch'"),
        (["overhead", "specialist"], "no suite named 'specialist'; did you mean specialists?"),
        (["overhead", "--runtime", "rays"], "'rays' is not one of"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1
