"""What peers really answered: the raw material of the second phase, and the measure of how good a model is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import GREEDY, Model, Reply, Request, Sampling, Turn
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training.corpus import Heard

MAX_ANSWER = 16  # tokens; the longest right answer of any skill has eleven


def answers(
    model: Model, questions: Sequence[Question], *, sampling: Sampling = GREEDY, seed: int = 0, exit: int | None = None
) -> list[str]:
    """What a model says to each question, asked alone, at one exit (None: the last). A failed call counts as an empty answer."""
    requests = [Request((Turn("user", q.text),), MAX_ANSWER, sampling, seed + i, exit=exit) for i, q in enumerate(questions)]
    return [reply.text.strip() if isinstance(reply, Reply) else "" for reply in model.generate(requests)]


def collect(
    peers: Mapping[str, Model], skills: Mapping[str, float], count: int, seed: int, note: Callable[[str], None] = lambda _: None
) -> list[Heard]:
    """Ask every peer the same `count` training questions. Half are answered greedily, half sampled at temperature 1, as errors vary then."""
    questions = list(islice(stream(skills, "train", seed), count))
    return collect_answers(peers, questions, count // 2, seed, note)


def collect_answers(
    peers: Mapping[str, Model], questions: Sequence[Question], greedy: int | None = None, seed: int = 0, note: Callable[[str], None] = lambda _: None
) -> list[Heard]:
    """Ask every peer these questions: the first `greedy` of them (None: all) greedily, the rest at temperature 1."""
    said: dict[str, list[str]] = {}
    for name, model in peers.items():
        said[name] = answers(model, questions[:greedy])
        if greedy is not None:
            said[name] += answers(model, questions[greedy:], sampling=Sampling(1.0), seed=seed)
        right = sum(a == q.answer for a, q in zip(said[name], questions, strict=True))
        note(f"{name} answered {len(questions):,} questions, {right / len(questions):.1%} right")
    return [Heard(question, {name: said[name][i] for name in peers}) for i, question in enumerate(questions)]


def save_pool(pool: Sequence[Heard], path: Path) -> None:
    """One JSON line a question. The file is there only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(json.dumps([*item.question, item.answers]) + "\n" for item in pool), encoding="utf-8")
    part.replace(path)


def load_pool(path: Path, peers: Sequence[str]) -> list[Heard]:
    """Read a pool back; `UserError` if it cannot be read, is empty or lacks one of the peers."""
    try:
        pool = [Heard(Question(*row[:3]), row[3]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]
        missing = sorted({peer for item in pool for peer in peers if peer not in item.answers}) if pool else list(peers)
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"pool {path} cannot be read ({error}); remove it, and it is made again") from None
    if missing:
        raise UserError(f"{path} holds no answers of {', '.join(missing)}")
    return [Heard(item.question, {name: item.answers[name] for name in peers}) for item in pool]
