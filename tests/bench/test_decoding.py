"""The bench of exactness finds nothing wrong where nothing is, and finds what is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiflow_agents.bench import decoding
from aiflow_agents.bench.family import questions_for
from aiflow_agents.cli.main import main
from tests.conftest import make_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("agents") / "models" / "bud", layers=6, exits=(1, 3, 5))


def test_decoding_together_is_exact_and_a_wrong_rule_is_not(
    family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "PART", 480)
    monkeypatch.setattr(decoding, "questions_for", lambda folder, count, seed: questions_for(folder, min(count, 8), seed))
    few = ["bench", "decoding", str(family), "--prompts", "3", "--network", "home-wifi", "--max-tokens", "6", "--display", "none", "--seed", "3"]
    few += ["--tokens", "1600", "--runs", "2", "--fault", "any loss 0.2, any down 0.01 0.5"]
    assert main([*few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["arm"], row["faults"]) for row in found["greedy"]] == [
        (arm, plan) for plan in ([], ["any loss 0.2", "any down 0.01 0.5"]) for arm in decoding.ARMS
    ]
    assert all((row["identical"] + row["ties"], row["failed"], row["different"]) == (3, {}, []) for row in found["greedy"])
    sampled = found["sampled"]
    assert sampled["calls"]["tokens"] >= 1600 and sampled["calls"]["p"] > 0.01 and 0 < sampled["acceptance_rate"] < 1
    assert all(row["p"] > 0.01 for row in sampled["runs"].values())
    assert all(row["p"] < 1e-4 for row in sampled["wrong"].values())


def test_another_text_is_listed_and_is_exit_code_1(family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = decoding._said

    def said(team: Any, topology: str, *rest: Any) -> Any:
        found = real(team, topology, *rest)
        return found if topology == "single" else [("zzz", ""), (None, "MemberFailed: gone"), *found[2:]]

    monkeypatch.setattr(decoding, "_said", said)
    few = ["bench", "decoding", str(family), "--prompts", "3", "--network", "home-wifi", "--max-tokens", "4", "--tokens", "0", "--display", "none"]
    assert main(few) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "1 of 3 identical, 0 part at a tie, 1 otherwise, 1 failed (MemberFailed: gone)" in lines[0] and lines[1].startswith("    another text: ")


def test_the_test_adds_up_what_was_seen_behind_each_context() -> None:
    """Beside scipy, context by context."""
    from collections import Counter

    from scipy import stats

    draw, p = np.random.default_rng(4), {(1,): np.array([0.5, 0.3, 0.2]), (2,): np.array([0.9, 0.06, 0.04])}
    exact = decoding._Exact.__new__(decoding._Exact)
    exact._known = p
    seen = {context: Counter(draw.choice(3, 400, p=probabilities).tolist()) for context, probabilities in p.items()}
    found = exact.test(seen)
    one, other = (stats.chisquare([seen[c][i] for i in range(3)], p[c] * 400).statistic for c in p)
    assert found["chi2"] == pytest.approx(one + other) and (found["df"], found["tokens"], found["contexts"], found["cells"]) == (4, 800, 2, 6)
    assert found["p"] == pytest.approx(stats.chi2.sf(one + other, 4)) and found["p"] > 0.01
    swapped = {context: Counter({2 - token: n for token, n in counts.items()}) for context, counts in seen.items()}
    assert exact.test(swapped)["p"] < 1e-9
    assert exact.test({(1,): Counter({0: 3})})["tokens"] == 0  # too few to say anything
