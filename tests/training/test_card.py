"""The card of a family: its numbers are those that transformers finds with the exports, and what it says to type works."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aiflow_agents.cli.main import main
from aiflow_agents.models.family.export import export_branch
from aiflow_agents.skills.splits import Question, balanced
from aiflow_agents.training import card as module
from aiflow_agents.training import corpus, sources
from aiflow_agents.training.card import card_for, grown_card, wilson
from aiflow_agents.training.grow import Grower
from aiflow_agents.training.recipe import load_recipe
from aiflow_agents.training.sources import skill_source, skills_of, text_source
from tests.conftest import make_family, make_model, transformers_says

EXITS = (0, 1, 2)


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Question], dict[int, list[str]]]:
    """A random family; questions whose right answers are what one exit or another says; and what transformers says with the export of each exit."""
    root = tmp_path_factory.mktemp("exam")
    folder = make_family(root / "fam")
    drawn = balanced(["add", "sort"], "test", 36, 1)
    said = {e: transformers_says(export_branch(folder, e, root / str(e)), [question.text for question in drawn]) for e in EXITS}
    whose = [0, 1, 1, 2, 2, 2]
    return folder, [question._replace(answer=said[whose[i % 6]][i]) for i, question in enumerate(drawn)], said


@pytest.fixture
def asked(exam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "exam", lambda *_: exam[1])


def right(questions: list[Question], said: list[str], skill: str | None = None) -> int:
    return sum(q.answer == a for q, a in zip(questions, said, strict=True) if skill in (None, q.skill))


def test_the_numbers_are_an_independent_count(exam: Any, asked: None, tmp_path: Path) -> None:
    folder, questions, said = exam
    card = card_for(folder, load_recipe(folder / "recipe.yaml"), tmp_path)
    measured = json.loads((folder / "card.json").read_text())["measured"]
    assert measured == card["measured"] and list(measured["exits"]) == ["0", "1", "2"]
    counts = [right(questions, said[e]) for e in EXITS]
    assert len(set(counts)) == 3 and all(count > 3 for count in counts)
    for e, count in zip(EXITS, counts, strict=True):
        found = measured["exits"][str(e)]
        assert found["overall"]["right"] == count and found["overall"]["n"] == 36
        assert found["overall"]["ci95"] == pytest.approx(wilson(count, 36), abs=1e-4)
        assert {skill: score["right"] for skill, score in found["skills"].items()} == {s: right(questions, said[e], s) for s in ("add", "sort")}
        plain = load_file(export_branch(folder, e, tmp_path / f"plain{e}") / "model.safetensors")
        assert found["parameters"] == sum(tensor.numel() for tensor in plain.values()) and found["blocks"] == e + 1
        assert found["weight_bytes"] == 4 * found["parameters"]
        matrices = [tensor for name, tensor in plain.items() if tensor.ndim == 2]
        assert found["flops_per_token"] == pytest.approx(2 * sum(tensor.numel() for tensor in matrices), rel=0.02)  # and the norms
    assert measured["alone"] == {key: measured["exits"]["2"][key] for key in ("overall", "skills")}
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (folder / "README.md").read_text().splitlines() if line.startswith("|")]
    assert [row[4] for row in table if row[0] in ("0", "1", "2")] == [f"{count}/36" for count in counts]
    assert next(row for row in table if row[0] == "add") == ["add", "75.0%", "18", *(f"{right(questions, said[e], 'add') / 18:.3f}" for e in EXITS)]
    assert next(row for row in table if row[0] == "**all**")[3:] == [f"{count / 36:.3f}" for count in counts]


def test_what_the_card_says_to_type_works(exam: Any, asked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder, _, _ = exam
    monkeypatch.chdir(folder.parent)
    card_for(folder, load_recipe(folder / "recipe.yaml"), tmp_path)
    text = (folder / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder.parent, env=_environment())
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    for line, e in zip(told, EXITS, strict=True):
        (said,) = transformers_says(export_branch(folder, e, tmp_path / str(e)), ["38+57="])
        assert line.strip() == f"{e} {said}".strip()
    (command,) = re.findall(r"^    (aiflow family export .*)$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fam").symlink_to(folder)
    assert main(shlex.split(command)[1:]) == 0
    assert transformers_says(tmp_path / "fam-0", ["38+57="])[0] in told[0]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}


def test_a_model_of_one_exit_has_the_card_it_had(exam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model alone: no exits in its card, and a table with intervals."""
    folder, questions, said = exam
    monkeypatch.setattr(module, "exam", lambda *_: questions)
    plain = export_branch(folder, 1, tmp_path / "plain")
    recipe = load_recipe(folder / "recipe.yaml")
    card = card_for(plain, recipe.model_copy(update={"exits": {}}), tmp_path)
    count = right(questions, said[1])
    assert card["measured"]["alone"]["overall"]["right"] == count and "exits" not in card["measured"]
    text = (plain / "README.md").read_text()
    assert f"| **all** |  | {count}/36 | {count / 36:.3f} |" in text and "Family" not in text


def test_a_grown_family_has_a_card(exam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """On questions and on a text; its numbers are those of the exports again."""
    monkeypatch.setattr(sources, "HELD_QUESTIONS", 32)
    base = make_model(tmp_path / "bee", layers=3)
    (base / "recipe.yaml").write_text((exam[0] / "recipe.yaml").read_text().replace("exits: {0: 1, 1: 2, 2: 3}\n", ""))
    text = tmp_path / "text.txt"
    text.write_text("38+57=95 " * 200)
    assert corpus.CHUNK == 64
    for source in (skill_source(skills_of(base), 0, 16), text_source(text, base, 0, 16, 32)):
        grower, out = Grower(base, [0, 1], source, tmp_path / "work", tokens=1, lr=0.02), tmp_path / f"out-{'text' in source.made_of}"
        before = grower.measure()
        monkeypatch.setattr(sources, "PIECES", 16)
        grower.run()
        grower.export(out)
        drawn = balanced(["add", "sort"], "test", 8, 2)
        told = {e: transformers_says(export_branch(out, e, tmp_path / f"{out.name}-{e}"), [q.text for q in drawn]) for e in EXITS}
        questions = [question._replace(answer=told[i % 3][i]) for i, question in enumerate(drawn)]
        monkeypatch.setattr(module, "exam", lambda *_, questions=questions: questions)
        card = grown_card(out, grower, before, command="aiflow family grow bee --exits 0,1")
        readme = (out / "README.md").read_text()
        held = card["measured"]["held"]
        assert json.loads((out / "card.json").read_text()) == card and held["before"]["0"]["kl"] == round(before[0].kl, 4) != held["after"]["0"]["kl"]
        assert "    aiflow family grow bee --exits 0,1\n" in readme and f"| {held['before']['0']['kl']:.3f} | {held['after']['0']['kl']:.3f} |" in readme
        if "text" in source.made_of:
            assert "exits" not in card["measured"] and "On text that no training saw" in readme
        else:
            assert [card["measured"]["exits"][str(e)]["overall"]["right"] for e in EXITS] == [right(questions, told[e]) for e in EXITS]
            assert "**all**" in readme and "On questions that no training saw" in readme
        assert load_recipe(out / "recipe.yaml").skills == {"add": 3, "sort": 1}
