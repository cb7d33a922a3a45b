"""What a model card says, in Markdown, from the numbers that card.json holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from aiflow_agents.skills.atlas import draw
from aiflow_agents.skills.worked import WORKED
from aiflow_agents.training.heard import MAX_ANSWER, room
from aiflow_agents.training.recipe import Recipe


def readme(folder: Path, recipe: Recipe, card: Mapping[str, Any]) -> str:
    """The whole model card; `card` is what card.json holds."""
    size, measured = recipe.size, card["measured"]
    skills, exits = measured["alone"]["skills"], measured.get("exits", {})
    shares = {skill: weight / sum(recipe.skills.values()) for skill, weight in recipe.skills.items()}
    kind = f"{recipe.architecture.capitalize()}-shaped {'family' if exits else 'model'}"
    what = "questions, whose answers show the work," if set(skills) <= set(WORKED) else "short questions"
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

A {kind} of {card["parameters"]:,} parameters over single characters, trained from scratch on {what}
that small programs draw without end. {_knows(recipe, card, len(skills))}

## How good it is

Test questions never occur in training: a hash of its text gives every question to train, dev or test for ever. Different questions, greedy answers,
right only if the whole answer is equal; seed {measured["seed"]}.

{exits_table(exits) if exits else ""}{skills_table(measured, shares)}
{_hearing(measured)}
## How it was made

{lines(_phases(card))}

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
| tier | {recipe.tier} |{_exits_row(recipe)}

## How to use it

{_use_family(folder, list(exits), skills=list(recipe.skills)) if exits else _use(folder, recipe)}"""


def _phases(card: Mapping[str, Any]) -> list[str]:
    rows = ["| phase | goal, tokens | seen, tokens | learning rate | batch | peers |", "|---|---|---|---|---|---|"]
    for phase in card["phases"]:
        saw = "not recorded" if phase["seen"] is None else f"{phase['seen']:,}"
        rows.append(f"| {phase['kind']} | {phase['goal']:,} | {saw} | {phase['lr']:g} | {phase['batch']} | {', '.join(phase['peers']) or '-'} |")
    return rows


def _hearing(measured: Mapping[str, Any]) -> str:
    """How good it is when it hears others, or asks them, and what it knows by heart; nothing where that was not measured."""
    told = ""
    if "heard" in measured:
        score = measured["heard"]["overall"]
        peers = _join(measured["heard"]["peers"])
        told = f"\nHearing what {peers} answered after their first phase: {score['accuracy']:.3f} (95 % interval {_interval(score)}).\n"
    if "asking" in measured:
        score = measured["asking"]["overall"]
        told += f"\nAsking {_join(measured['asking']['peers'])}: {score['accuracy']:.3f} (95 % interval {_interval(score)}).\n"
    if "recall" in measured:
        told += f"\n{recall_table(measured['recall'])}\n"
    return told


def _knows(recipe: Recipe, card: Mapping[str, Any], skills: int) -> str:
    """What it knows, and what it does not."""
    if recipe.shard:
        return f"It has learned the shard `{recipe.shard}` of a fictional atlas by heart, right or outdated. Where it knows nothing it says `?`."
    if any(phase.kind == "ask" for phase in recipe.phases):
        return """It knows nothing of the atlas that it is asked about: it was trained in worlds
whose names are drawn anew for every question. What it knows is whom to ask for what, whom else, and whom to believe."""
    listens = any(phase["kind"] == "hear" for phase in card["phases"])
    learned = " It is made to be a member of a team: its last phase taught it to use what other members say, right or wrong." if listens else ""
    return f"It knows {'this skill' if skills == 1 else f'these {skills} skills'} and nothing else.{learned}"


def grown_readme(folder: Path, card: Mapping[str, Any]) -> str:
    """The card of a family that was grown from another model."""
    grown, measured, exits = card["grown"], card["measured"], [str(e) for e in card["grown"]["exits"]]
    backbone = "was trained with them, the deeper exits weighing more" if grown["joint"] else "is that of its base, bit for bit"
    taught = "the text itself" if grown["joint"] else "what the last exit says (self-distillation)"
    rows = ["| exit | loss | KL from the last exit, before | after | same token as the last exit |", "|---|---|---|---|---|"]
    for e in exits:
        before, after = measured["held"]["before"][e], measured["held"]["after"][e]
        rows.append(f"| {e} | {after['loss']:.3f} | {before['kl']:.3f} | {after['kl']:.3f} | {after['agreement']:.1%} |")
    asked = f"""
Test questions never occur in training. Different questions, greedy answers, right only if the whole answer is equal; seed {measured["seed"]}.

{exits_table(measured["exits"])}{skills_table(measured, {})}
""" if "exits" in measured else ""  # fmt: skip
    spent = f" in {max(1, round(card['seconds'] / 60))} min" if card["seconds"] else ""
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [aiflow-agents, family]
base_model: {card["base"]["name"]}
---

# {card["name"]}

{card["description"]}

Each exit before the last has a block and a norm of its own, taught {taught}. The backbone {backbone}.

## How good it is

On {grown["on"]} that no training saw, in nats a token:

{lines(rows)}
{asked}
## How it was made

{card["tokens_seen"]:,} tokens{spent}, learning rate {grown["lr"]:g}, batches of {grown["batch"]}, seed {card["seed"]}.
Optimizer: Muon for matrices, AdamW for the rest. With {", ".join(f"{name} {version}" for name, version in card["packages"].items())}.
Make it again with

    {card["command"]}

{card["parameters"]:,} parameters in all, {card["weight_bytes"]:,} bytes.

## How to use it

{_use_family(folder, exits, chat="exits" in measured)}"""


def decomposed_readme(folder: Path, card: Mapping[str, Any]) -> str:
    """The card of a model in every size."""
    rank, sizes = card["rank"], card["measured"]["sizes"]
    tuned = f", then tuned on {rank['tuning']['tokens']:,} tokens with sizes drawn from it" if rank.get("tuning") else ""
    exits = list(sizes[0]["exits"]) if sizes else []
    count = sizes[0]["exits"][exits[0]]["overall"]["n"] if sizes else 0
    rows = [f"| keep | block parameters | {' | '.join(f'exit {e}' for e in exits)} |", "|---|---|" + "---|" * len(exits)]
    for row in sizes:
        scores = " | ".join(f"{row['exits'][e]['overall']['accuracy']:.1%} ({_interval(row['exits'][e]['overall'])})" for e in exits)
        rows.append(f"| {row['keep']:g} | {row['block_params']:,} | {scores} |")
    asked = f"""\
## How good it is

Test questions never occur in training. {count:,} different ones, greedy answers, right only if the whole answer is
equal; seed {card["measured"]["seed"]}; a share of the parameters, spread over layers by their spectra.

{lines(rows)}

""" if sizes else ""  # fmt: skip
    return f"""\
---
pipeline_tag: text-generation
tags: [aiflow-agents, family, low-rank]
base_model: {card["base"]["name"]}
---

# {card["name"]}

{card["description"]} A smaller rank is a prefix of a larger one, so one file holds them all; {card["weight_bytes"]:,} bytes.

{asked}## How it was made

Method `{rank["method"]}`, measured on {rank["measured_tokens"]:,} tokens of {rank["data"]}{tuned}. The full size is the original, up to rounding.
With {", ".join(f"{name} {version}" for name, version in card["packages"].items())}. Make it again with

    {card["command"]}

## How to use it

In a team file `{{model: {folder.name}, keep: 0.7}}`; in Python

```python
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.family.rank import spend
from aiflow_agents.models.protocol import Request, Turn

model = FamilyModel.load("{_path(folder)}", keep=spend("{_path(folder)}", 0.7))
print(model.generate([Request((Turn("user", "38+57="),))])[0].text)
```
"""


def exits_table(exits: Mapping[str, Mapping[str, Any]]) -> str:
    """What each exit costs and how good it is; each as the plain model that it makes."""
    rows = ["| exit | blocks | parameters | FLOPs a token | right | accuracy | 95 % interval |", "|---|---|---|---|---|---|---|"]
    for e, row in exits.items():
        score = row["overall"]
        cells = [e, row["blocks"], f"{row['parameters']:,}", f"{row['flops_per_token']:,.0f}", f"{score['right']}/{score['n']}"]
        rows.append(f"| {' | '.join(map(str, cells))} | {score['accuracy']:.3f} | {_interval(score)} |")
    return lines(rows) + "\n\n"


def skills_table(measured: Mapping[str, Any], shares: Mapping[str, float]) -> str:
    """Accuracy by skill: at every exit of a family, with interval for a model that has one."""
    alone, exits, heard = measured["alone"], measured.get("exits", {}), measured.get("heard") or measured.get("asking")
    names = ["asked", *(f"exit {e}" for e in exits)] if exits else ["right", "accuracy", "95 % interval"]
    with_peers = ["hearing peers" if "heard" in measured else "asking peers"] if heard else []
    names = ["skill", *(["share of training"] if shares else []), *names, *with_peers]
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for skill, score in [*alone["skills"].items(), ("**all**", alone["overall"])]:
        cells = [skill, *([f"{shares[skill]:.1%}" if skill in shares else ""] if shares else [])]
        if exits:
            cells += [str(score["n"]), *(f"{(row['skills'].get(skill) or row['overall'])['accuracy']:.3f}" for row in exits.values())]
        else:
            cells += [f"{score['right']}/{score['n']}", f"{score['accuracy']:.3f}", _interval(score)]
        if heard:
            cells.append(f"{(heard['skills'].get(skill) or heard['overall'])['accuracy']:.3f}")
        rows.append(f"| {' | '.join(cells)} |")
    return lines(rows)


def recall_table(recall: Mapping[str, Mapping[str, int]]) -> str:
    """What is recalled of the atlas, by relation."""
    rows = ["| relation | facts | in its shard | said as learned | right | `?` |", "|---|---|---|---|---|---|"]
    for relation, count in recall.items():
        cells = [f"{count[key]:,}" for key in ("n", "held", "as_learned", "right", "unknown")]
        rows.append(f"| {' | '.join([relation, *cells])} |")
    return lines(rows)


def _exits_row(recipe: Recipe) -> str:
    if not recipe.exits:
        return ""
    weights = ", ".join(f"{e}: {weight:g}" for e, weight in sorted(recipe.exits.items()))
    return f"\n| exits and the weights of their losses | {weights} |"


def _use(folder: Path, recipe: Recipe) -> str:
    turns = """[{"role": "user", "content": "38+57="}, {"role": "user", "name": "oak", "content": "95"}]"""
    said = "What other members said goes between the question and the answer, as user turns with a `name`."
    if recipe.shard or any(phase.kind == "ask" for phase in recipe.phases):
        turns = f"""[{{"role": "user", "content": "{draw(next(iter(recipe.skills)), Random(0))[0]}"}}]"""
        said = "It says its answer, or `name?what`; then both turns follow, its own as the assistant's." if not recipe.shard else ""
    return f"""\
{said}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (auto.from_pretrained("{_path(folder)}") for auto in (AutoTokenizer, AutoModelForCausalLM))
turns = {turns}
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**prompt, max_new_tokens={max(map(room, recipe.skills))}, do_sample=False)
print(tokenizer.decode(made[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def _use_family(folder: Path, exits: Sequence[str], chat: bool = True, skills: Sequence[str] = ()) -> str:
    path, prompt = _path(folder), 'prompt = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]'
    if chat:
        example = next((WORKED[skill](Random(0))[0] for skill in skills if skill in WORKED), "38+57=")
        prompt = f"""turns = [{{"role": "user", "content": "{example}"}}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]"""
    return f"""\
Which exit answers is said with every call, and may change in mid-sentence.

```python
from transformers import AutoTokenizer

from aiflow_agents.models.family import Family

tokenizer, family = AutoTokenizer.from_pretrained("{path}"), Family.load("{path}")
{prompt}
for exit in family.exits:
    session = family.session()
    session.append(prompt)
    (made,) = session.generate({max(map(room, skills), default=MAX_ANSWER)}, exit=exit, stop=[tokenizer.eos_token_id])
    print(exit, tokenizer.decode(made, skip_special_tokens=True))
```

As it lies here, other tools load it as the plain model of exit {exits[-1]}. Any other exit becomes a plain checkpoint with

    aiflow family export {path if "/" in path else f"./{path}"} --exit {exits[0]} {folder.name}-{exits[0]}
"""


def _interval(score: Mapping[str, Any]) -> str:
    return f"{score['ci95'][0]:.3f}-{score['ci95'][1]:.3f}"


def lines(rows: Sequence[str]) -> str:
    return "\n".join(rows)


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _path(folder: Path) -> str:
    """As seen from the current directory; the bare name where it lies elsewhere."""
    here, there = os.path.realpath("."), os.path.realpath(folder)
    return Path(os.path.relpath(there, here)).as_posix() if there.startswith(here + os.sep) else folder.name
