"""The card of a trained model: what it is, how it was made, and how good it is on questions that no training ever saw."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow_agents.config import dump_yaml
from aiflow_agents.errors import UserError
from aiflow_agents.models.confidence import told
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.export import number_bytes, sizes
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.family.rank import Keep, spend
from aiflow_agents.models.protocol import Model, Reply, Request, Turn
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training import recall
from aiflow_agents.training.heard import answers, meaning, replies, room
from aiflow_agents.training.inquiry import interview
from aiflow_agents.training.readme import decomposed_readme, grown_readme, readme
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.sources import skills_of

if TYPE_CHECKING:
    from aiflow_agents.training.grow import Fit, Grower

SEED = 2026
COUNT = 300  # questions a skill; some skills have few more in the test split
Right = dict[str, tuple[int, int]]  # skill -> (right, asked)
Memo = dict[tuple[str, int, tuple[Question, ...]], list[tuple[str, float]]]


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
    exit: int | None = None,
) -> Right:
    """How many of the `exam` questions a model answers right, greedily, at one exit (None: the last), by skill: (right, asked).

    With `heard`, each question is followed by these answers, speaker -> one answer for each question of the exam.
    """
    questions = exam(skills, count_per_skill, split, seed)
    if heard:
        turns = [tuple(Turn("user", said[i], name) for name, said in sorted(heard.items())) for i in range(len(questions))]
        asked = [Request((Turn("user", q.text), *more), room(q.skill), exit=exit) for q, more in zip(questions, turns, strict=True)]
        said = [reply.text.strip() if isinstance(reply, Reply) else "" for reply in model.generate(asked)]
    else:
        said = answers(model, questions, exit=exit)
    return _marked(questions, said)


def _marked(questions: Sequence[Question], said: Sequence[str]) -> Right:
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
    exits = {e: measure(model, skills, count_per_skill, "test", seed, exit=e) for e in sorted(recipe.exits)}
    for e, right in exits.items():
        note(f"{recipe.name}: {_total(right)[0]:,} of {_total(right)[1]:,} test questions right at exit {e}")
    alone = exits[max(exits)] if exits else measure(model, skills, count_per_skill, "test", seed)
    if not exits:
        note(f"{recipe.name}: {_total(alone)[0]:,} of {_total(alone)[1]:,} test questions right, alone")
    heard, more = None, _atlas(model, recipe, peers or work, work, exam(skills, count_per_skill, "test", seed), note)
    names = sorted({name for phase in recipe.phases if phase.kind == "hear" for name in phase.peers} - {recipe.name})
    folders = {name: peer_folder(name, peers or work, work) for name in names}
    if names and all(folders.values()):
        memo = {} if memo is None else memo
        questions = exam(skills, count_per_skill, "test", seed)
        said: dict[str, list[str]] = {}
        for name, where in folders.items():
            peer = FamilyModel.load(where or "")
            key = (peer.info.weights_hash, seed, tuple(questions))
            found = memo[key] if key in memo else memo.setdefault(key, replies(peer, questions))
            said[name] = [told(text, p) for text, p in _meant(peer, skills, seed, found)] if recipe.hears_confidence else [text for text, _ in found]
        heard = measure(model, skills, count_per_skill, "test", seed, said)
        note(f"{recipe.name}: {_total(heard)[0]:,} of {_total(heard)[1]:,} right when it hears {', '.join(names)}")
    return write_card(folder, recipe, seen(work / recipe.name), alone, heard, exits, more, seed=seed, command=command)


def _meant(peer: Model, skills: Sequence[str], seed: int, found: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Answers with their probabilities, calibrated on dev questions."""
    questions = exam(skills, COUNT // 3, "dev", seed)
    meant = meaning(replies(peer, questions), questions)
    return [(text, meant(p)) for text, p in found]


def _atlas(
    model: Model, recipe: Recipe, peers: Path, work: Path, questions: Sequence[Question], note: Callable[[str], None]
) -> dict[str, Any]:
    """For a card: what a model recalls of the atlas, and how many questions it answers right when it may ask its peers."""
    found: dict[str, Any] = {}
    if recipe.shard:
        found["recall"] = recall.measure(model, recipe.shard)
        held, learned = (sum(row[key] for row in found["recall"].values()) for key in ("held", "as_learned"))
        note(f"{recipe.name}: {learned:,} of {held:,} facts said as they were learned")
    names = sorted({name for phase in recipe.phases if phase.kind == "ask" for name in phase.peers})
    folders = {name: peer_folder(name, peers, work) for name in names}
    if names and all(folders.values()):
        said = interview(model, {name: FamilyModel.load(where or "") for name, where in folders.items()}, questions)
        right = _marked(questions, said)
        found["asking"] = {"peers": names, **_scores(right)}
        note(f"{recipe.name}: {_total(right)[0]:,} of {_total(right)[1]:,} right when it may ask {', '.join(names)}")
    return found


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
    """Where a peer is as it was after its phase `answer`, in `peers` or in `work`; or else the finished model of that name in `peers`; or None."""
    places = (peers / name / "answer", work / name / "answer", peers / name)
    return next((folder for folder in places if (folder / "model.safetensors").is_file()), None)


def write_card(
    folder: Path,
    recipe: Recipe,
    state: Mapping[str, Any],
    results: Right,
    heard: Right | None = None,
    exits: Mapping[int, Right] | None = None,
    more: Mapping[str, Any] | None = None,
    *,
    split: str = "test",
    seed: int = SEED,
    command: str = "",
) -> dict[str, Any]:
    """Write README.md (a Hugging Face model card), card.json with the same numbers, and recipe.yaml. Returns what card.json holds.

    `state` is what `seen` gives; `more` else was measured; `command` trains the model again (default: the recipe and its peers, with no options).
    """
    made = list(dict.fromkeys([recipe.name, *(peer for phase in recipe.phases for peer in phase.peers)]))
    measured: dict[str, Any] = {"split": split, "seed": seed, "decoding": "greedy", "alone": _scores(results)}
    if exits:
        measured["exits"] = exit_scores(folder, exits)
    if heard is not None:
        measured["heard"] = {"peers": sorted(set(made) - {recipe.name}), **_scores(heard)}
    measured |= more or {}
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
    (folder / "README.md").write_text(readme(folder, recipe, card), encoding="utf-8")
    return card


def grown_card(
    folder: Path, grower: Grower, before: Mapping[int, Fit], *, count_per_skill: int = COUNT, seed: int = SEED, command: str = "",
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Write README.md and card.json of a family that was grown and exported; `before` are its fits before. Returns what card.json holds.

    A family whose base had skills is asked test questions at every exit.
    """
    after, made, last = grower.measure(), grower.made_of, grower.exits[-1]
    measured: dict[str, Any] = {"held": {"before": _fits(before), "after": _fits(after)}}
    if skills := list(made.get("skills", {})):
        model, exits = FamilyModel.load(folder), {}
        for e in grower.exits:
            exits[e] = measure(model, skills, count_per_skill, "test", seed, exit=e)
            note(f"{folder.name}: {_total(exits[e])[0]:,} of {_total(exits[e])[1]:,} test questions right at exit {e}")
        measured |= {"split": "test", "seed": seed, "decoding": "greedy", "alone": _scores(exits[last]), "exits": exit_scores(folder, exits)}
    early = ", ".join(map(str, grower.exits[:-1]))
    card = {
        "schema": 1,
        "name": folder.name,
        "description": f"{grower.base.name} grown into a family: exit{'s' if len(grower.exits) > 2 else ''} {early} beside its own, {last}.",
        "base": {"name": grower.base.name, "weights_hash": made["base"]},
        "grown": {"on": "questions" if skills else "text", **{key: value for key, value in made.items() if key not in ("base", "seed")}},
        "parameters": parameters(folder),
        "weight_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "seed": made["seed"],
        "tokens_seen": grower.state["total_tokens"],
        "seconds": grower.state["seconds"],
        "packages": _packages(),
        "command": command,
        "measured": measured,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(grown_readme(folder, card), encoding="utf-8")
    return card


def decomposed_card(
    folder: Path, base: Path, about: Mapping[str, Any], keeps: Sequence[float], *, count_per_skill: int = COUNT, seed: int = SEED, command: str = "",
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Write README.md and card.json of a decomposed model; `about` is its section `rank`. Returns what card.json holds.

    Where its skills are known it is asked test questions whole and with each of `keeps`, a share spread by spectra, at every exit.
    """
    skills, rows = list(skills_of(folder)), []
    for keep in (1.0, *keeps) if skills else ():
        at: Keep = 1.0 if keep == 1 else spend(folder, keep)
        model, shape = FamilyModel.load(folder, keep=at), model_info(folder, keep=at).shape
        right = {e: measure(model, skills, count_per_skill, "test", seed, exit=e) for e in DecoderConfig.read(folder).exits}
        note(f"{folder.name}: at {keep:g} " + ", ".join(f"{_total(r)[0]:,} of {_total(r)[1]:,} right at exit {e}" for e, r in right.items()))
        rows.append({"keep": keep, "block_params": shape.block_params, "exits": {str(e): _scores(r) for e, r in right.items()}})
    card = {
        "schema": 1,
        "name": folder.name,
        "description": f"{base.name} in every size: its linear layers as nested low-rank factors.",
        "base": {"name": base.name, "weights_hash": model_info(base).weights_hash},
        "rank": dict(about),
        "weight_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "packages": _packages(),
        "command": command,
        "measured": {"split": "test", "seed": seed, "decoding": "greedy", "sizes": rows},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(decomposed_readme(folder, card), encoding="utf-8")
    return card


def exit_scores(folder: Path, exits: Mapping[int, Right]) -> dict[str, dict[str, Any]]:
    """For a card: exit -> what it costs (`sizes`) and how good it is (`overall`, `skills`)."""
    costs = {row.pop("exit"): row for row in sizes(folder, number_bytes(folder))}
    return {str(e): {**costs[e], **_scores(right)} for e, right in exits.items()}


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


def _fits(fits: Mapping[int, Fit]) -> dict[str, dict[str, float]]:
    return {str(e): {key: round(value, 4) for key, value in fit._asdict().items()} for e, fit in fits.items()}


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
