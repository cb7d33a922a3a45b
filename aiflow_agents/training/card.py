"""The card of a trained model: what it is, how it was made, and how good it is on questions that no training ever saw."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from aiflow_agents.config import dump_yaml
from aiflow_agents.errors import UserError
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Model, Reply, Request, Turn
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training.heard import MAX_ANSWER, answers
from aiflow_agents.training.recipe import Recipe

SEED = 2026
COUNT = 300  # questions a skill; some skills have few more in the test split
Right = dict[str, tuple[int, int]]  # skill -> (right, asked)
Memo = dict[tuple[str, int, tuple[Question, ...]], list[str]]


def exam(skills: Iterable[str], count_per_skill: int = COUNT, split: str = "test", seed: int = SEED) -> list[Question]:
    """`count_per_skill` different questions of each skill, or all that turn up where a skill has fewer."""
    questions: list[Question] = []
    for skill in skills:
        drawn = islice(stream({skill: 1.0}, split, seed), 10 * count_per_skill)
        questions += list(dict.fromkeys(drawn))[:count_per_skill]
    return questions


def measure(
    model: Model,
    skills: Iterable[str],
    count_per_skill: int = COUNT,
    split: str = "test",
    seed: int = SEED,
    heard: Mapping[str, Sequence[str]] | None = None,
) -> Right:
    """How many of the `exam` questions a model answers right, greedily, by skill: (right, asked).

    With `heard`, each question is followed by these answers, speaker -> one answer for each question of the exam.
    """
    questions = exam(skills, count_per_skill, split, seed)
    if heard:
        turns = [tuple(Turn("user", said[i], name) for name, said in sorted(heard.items())) for i in range(len(questions))]
        asked = [Request((Turn("user", q.text), *more), MAX_ANSWER) for q, more in zip(questions, turns, strict=True)]
        said = [reply.text.strip() if isinstance(reply, Reply) else "" for reply in model.generate(asked)]
    else:
        said = answers(model, questions)
    found: Right = {}
    for question, answer in zip(questions, said, strict=True):
        right, of = found.get(question.skill, (0, 0))
        found[question.skill] = right + (answer == question.answer), of + 1
    return found


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, 1927)."""
    z, p = 1.959964, right / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


def card_for(
    folder: Path,
    recipe: Recipe,
    work: Path,
    *,
    peers: Path | None = None,
    count_per_skill: int = COUNT,
    seed: int = SEED,
    command: str = "",
    memo: Memo | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure an exported model, alone and hearing its peers, and write its card.

    What was seen in training comes from `work/<name>/`; peers are heard where `<peers or work>/<peer>/answer` is there. `memo` keeps what peers
    answered, for the cards of others who hear the same ones. Returns what card.json holds.
    """
    model, skills = FamilyModel.load(folder), list(recipe.skills)
    alone = measure(model, skills, count_per_skill, "test", seed)
    note(f"{recipe.name}: {_total(alone)[0]:,} of {_total(alone)[1]:,} test questions right, alone")
    heard = None
    names = sorted({name for phase in recipe.phases for name in phase.peers} - {recipe.name})
    folders = {name: peer_folder(name, peers or work, work) for name in names}
    if names and all(folders.values()):
        memo = {} if memo is None else memo
        questions = exam(skills, count_per_skill, "test", seed)
        said: dict[str, list[str]] = {}
        for name, where in folders.items():
            peer = FamilyModel.load(where or "")
            key = (peer.info.weights_hash, seed, tuple(questions))
            said[name] = memo[key] if key in memo else memo.setdefault(key, answers(peer, questions))
        heard = measure(model, skills, count_per_skill, "test", seed, said)
        note(f"{recipe.name}: {_total(heard)[0]:,} of {_total(heard)[1]:,} right when it hears {', '.join(names)}")
    return write_card(folder, recipe, seen(work / recipe.name), alone, heard, seed=seed, command=command)


def seen(folder: Path) -> dict[str, Any]:
    """What a training folder tells of the tokens seen: `total_tokens`, `seconds`, and `after`, phase number -> tokens seen by its end."""
    try:
        state = json.loads((folder / "checkpoint" / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    try:
        after = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        after = {}
    if state["chunk"] == 0:
        after[str(state["phase"])] = state["total_tokens"]
    return {"total_tokens": state["total_tokens"], "seconds": state["seconds"], "after": after}


def peer_folder(name: str, peers: Path, work: Path) -> Path | None:
    """Where the state of a peer after its phase `answer` is, or None. Looks in `peers` first, then in `work`."""
    return next((folder for folder in (peers / name / "answer", work / name / "answer") if (folder / "model.safetensors").is_file()), None)


def write_card(
    folder: Path,
    recipe: Recipe,
    state: Mapping[str, Any],
    results: Right,
    heard: Right | None = None,
    *,
    split: str = "test",
    seed: int = SEED,
    command: str = "",
) -> dict[str, Any]:
    """Write README.md (a Hugging Face model card), card.json with the same numbers, and recipe.yaml. Returns what card.json holds.

    `state` is what `seen` gives; `command` trains the model again (default: the recipe and its peers, with no options).
    """
    made = list(dict.fromkeys([recipe.name, *(peer for phase in recipe.phases for peer in phase.peers)]))
    measured: dict[str, Any] = {"split": split, "seed": seed, "decoding": "greedy", "alone": _scores(results)}
    if heard is not None:
        measured["heard"] = {"peers": sorted(set(made) - {recipe.name}), **_scores(heard)}
    card = {
        "schema": 1,
        "name": recipe.name,
        "description": recipe.description,
        "tier": recipe.tier,
        "architecture": recipe.architecture,
        "size": recipe.size.model_dump(),
        "parameters": parameters(folder),
        "weight_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "seed": recipe.seed,
        "phases": _phases(recipe, state),
        "tokens_seen": state.get("total_tokens"),
        "seconds": state.get("seconds"),
        "packages": _packages(),
        "command": command or f"aiflow train {' '.join(made)}",
        "measured": measured,
    }
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(folder, recipe, card), encoding="utf-8")
    return card


def parameters(folder: Path) -> int:
    """Numbers in the weight files; a tied head is stored, and counted, once. `UserError` where there are no weights."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"model folder {folder} has no weights (*.safetensors)")
    count = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
    return count


# --- numbers ---


def _total(results: Right) -> tuple[int, int]:
    return sum(right for right, _ in results.values()), sum(of for _, of in results.values())


def _score(right: int, of: int) -> dict[str, Any]:
    low, high = wilson(right, of)
    return {"right": right, "n": of, "accuracy": round(right / of, 4), "ci95": [round(low, 4), round(high, 4)]}


def _scores(results: Right) -> dict[str, Any]:
    return {"overall": _score(*_total(results)), "skills": {skill: _score(*pair) for skill, pair in results.items()}}


def _phases(recipe: Recipe, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Goal and tokens really seen of each phase; a phase ends with a whole chunk. `seen` is None where the training folder does not tell."""
    after = {int(phase): tokens for phase, tokens in state.get("after", {}).items()} | {0: 0}
    found = []
    for i, phase in enumerate(recipe.phases):
        tokens = after[i + 1] - after[i] if i in after and i + 1 in after else None
        found.append({"kind": phase.kind, "goal": phase.tokens, "seen": tokens, "lr": phase.lr, "batch": phase.batch, "peers": list(phase.peers)})
    return found


def _packages() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "safetensors")}}


# --- words ---


def _readme(folder: Path, recipe: Recipe, card: Mapping[str, Any]) -> str:
    size, measured = recipe.size, card["measured"]
    skills, total = measured["alone"]["skills"], measured["alone"]["overall"]
    shares = {skill: weight / sum(recipe.skills.values()) for skill, weight in recipe.skills.items()}
    with_heard = "heard" in measured
    head = "| skill | share of training | right | accuracy | 95 % interval |" + (" hearing peers |" if with_heard else "")
    rows = [head, "|---|---|---|---|---|" + ("---|" if with_heard else "")]
    for skill, score in [*skills.items(), ("**all**", total)]:
        share = f"{shares[skill]:.1%}" if skill in shares else ""
        row = f"| {skill} | {share} | {score['right']}/{score['n']} | {score['accuracy']:.3f} | {_interval(score)} |"
        if with_heard:
            row += f" {(measured['heard']['skills'].get(skill) or measured['heard']['overall'])['accuracy']:.3f} |"
        rows.append(row)
    phases = ["| phase | goal, tokens | seen, tokens | learning rate | batch | hears |", "|---|---|---|---|---|---|"]
    for phase in card["phases"]:
        saw = "not recorded" if phase["seen"] is None else f"{phase['seen']:,}"
        phases.append(f"| {phase['kind']} | {phase['goal']:,} | {saw} | {phase['lr']:g} | {phase['batch']} | {', '.join(phase['peers']) or '-'} |")
    listens = any(phase["kind"] == "hear" for phase in card["phases"])
    learned = " It is made to be a member of a team: its last phase taught it to use what other members say, right or wrong." if listens else ""
    hearing = ""
    if with_heard:
        score = measured["heard"]["overall"]
        peers = _join(measured["heard"]["peers"])
        hearing = f"\nHearing what {peers} answered after their first phase: {score['accuracy']:.3f} (95 % interval {_interval(score)}).\n"
    spent = f" in {max(1, round(card['seconds'] / 60))} min" if card["seconds"] else ""
    saw = f"{card['tokens_seen']:,} tokens seen{spent}" if card["tokens_seen"] is not None else "tokens seen: not recorded"
    return f"""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [aiflow-agents, from-scratch, {recipe.architecture}]
---

# {recipe.name}

{recipe.description}

A {recipe.architecture.capitalize()}-shaped model of {card["parameters"]:,} parameters over single characters, trained from scratch on short questions
that small programs draw without end. It knows {"this skill" if len(skills) == 1 else f"these {len(skills)} skills"} and nothing else.{learned}

## How good it is

Test questions never occur in training: a hash of its text gives every question to train, dev or test for ever. Different questions, greedy answers,
right only if the whole answer is equal; seed {measured["seed"]}.

{_lines(rows)}
{hearing}
## How it was made

{_lines(phases)}

Seed {recipe.seed}; {saw} (prompts included; the loss is taken on answers alone). Optimizer: Muon for matrices, AdamW for embeddings and norms.
With {", ".join(f"{name} {version}" for name, version in card["packages"].items())}. Everything is in `recipe.yaml`; make it again with

    {card["command"]}

## Shape

| | |
|---|---|
| architecture | {recipe.architecture}, tied embeddings, {recipe.max_length} positions |
| width, layers | {size.width}, {size.layers} |
| heads, key/value heads, size of each | {size.heads}, {size.kv_heads}, {size.head_dim} |
| inner width | {size.mlp} |
| parameters | {card["parameters"]:,} (bfloat16, {card["weight_bytes"]:,} bytes) |
| tier | {recipe.tier} |

## How to use it

What other members said goes between the question and the answer, as user turns with a `name`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (auto.from_pretrained("{_path(folder)}") for auto in (AutoTokenizer, AutoModelForCausalLM))
turns = [{{"role": "user", "content": "38+57="}}, {{"role": "user", "name": "oak", "content": "95"}}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**prompt, max_new_tokens={MAX_ANSWER}, do_sample=False)
print(tokenizer.decode(made[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def _interval(score: Mapping[str, Any]) -> str:
    return f"{score['ci95'][0]:.3f}-{score['ci95'][1]:.3f}"


def _lines(rows: Sequence[str]) -> str:
    return "\n".join(rows)


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _path(folder: Path) -> str:
    """As seen from the current directory; the bare name where it lies elsewhere."""
    here, there = os.path.realpath("."), os.path.realpath(folder)
    return Path(os.path.relpath(there, here)).as_posix() if there.startswith(here + os.sep) else folder.name
