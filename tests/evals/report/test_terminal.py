"""The tables for a terminal."""

from __future__ import annotations

import re

from rich.console import Console

from aiflow_agents.evals.report import show


def test_the_terminal_says_the_same(run, tmp_path):
    summary, _ = run
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        show(summary, Console(file=out, width=160))
    text = (tmp_path / "out").read_text(encoding="utf-8")
    lines = text.splitlines()
    kinds = [match[1] for line in lines if (match := re.match(r"\S+ +(member|rival|topology|placebo) ", line))]
    assert kinds == sorted(kinds, key=["member", "rival", "topology", "placebo"].index) and len(kinds) == len(summary["arms"])
    shown = [float(re.search(r"([\d.]+) %", line)[1]) for line in lines if re.match(r"\S+ +topology ", line)]
    assert shown == sorted(shown, reverse=True)
    assert re.search(r"^debate +beats +members", text, re.MULTILINE) and re.search(r"^debate +\w.* +vote", text, re.MULTILINE)
    assert "The team (debate) answers" in text
