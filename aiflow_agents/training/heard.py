"""What peers really answered: the raw material of the second phase, and the measure of how good a model is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from aiflow_agents.errors import UserError
from aiflow_agents.models.confidence import Calibration, calibrate
from aiflow_agents.models.protocol import GREEDY, Model, Reply, Request, Sampling, Turn
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.skills.worked import WORKED
from aiflow_agents.training.corpus import Heard

MAX_ANSWER, MAX_WORKED = 16, 64  # tokens; the longest right answer of any skill has eleven, with the work shown 55


def room(skill: str) -> int:
    """How many tokens an answer to a question of this skill may have."""
    return MAX_WORKED if skill in WORKED else MAX_ANSWER


def answers(
    model: Model, questions: Sequence[Question], *, sampling: Sampling = GREEDY, seed: int = 0, exit: int | None = None
) -> list[str]:
    """What a model says to each question, asked alone, at one exit (None: the last). A failed call counts as an empty answer."""
    return [text for text, _ in replies(model, questions, sampling=sampling, seed=seed, exit=exit)]


def replies(
    model: Model, questions: Sequence[Question], *, sampling: Sampling = GREEDY, seed: int = 0, exit: int | None = None
) -> list[tuple[str, float]]:
    """The same with the probability of each answer, as the model has it; 0 where the call failed."""
    requests = [Request((Turn("user", q.text),), room(q.skill), sampling, seed + i, exit=exit) for i, q in enumerate(questions)]
    made = model.generate(requests)
    return [(reply.text.strip(), math.exp(math.fsum(reply.logprobs or ()))) if isinstance(reply, Reply) else ("", 0.0) for reply in made]


def meaning(said: Sequence[tuple[str, float]], questions: Sequence[Question]) -> Calibration:
    """What the probabilities of these greedy answers, one to each question, mean."""
    return calibrate([p for _, p in said], [text == q.answer for (text, _), q in zip(said, questions, strict=True)])


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
    sure: dict[str, list[float]] = {}
    for name, model in peers.items():
        found = replies(model, questions[:greedy])
        meant = meaning(found, questions[:greedy])
        if greedy is not None:
            found += replies(model, questions[greedy:], sampling=Sampling(1.0), seed=seed)
        said[name], sure[name] = [text for text, _ in found], [round(meant(p), 4) for _, p in found]
        right = sum(a == q.answer for a, q in zip(said[name], questions, strict=True))
        note(f"{name} answered {len(questions):,} questions, {right / len(questions):.1%} right")
    return [Heard(q, {name: said[name][i] for name in peers}, {name: sure[name][i] for name in peers}) for i, q in enumerate(questions)]


def save_pool(pool: Sequence[Heard], path: Path) -> None:
    """One JSON line a question. The file is there only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(json.dumps([*item.question, item.answers, item.sure]) + "\n" for item in pool), encoding="utf-8")
    part.replace(path)


def load_pool(path: Path, peers: Sequence[str], sure: bool = False) -> list[Heard]:
    """Read a pool back; `UserError` if it cannot be read, is empty or lacks one of the peers."""
    try:
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        pool = [Heard(Question(*row[:3]), row[3], row[4] if len(row) > 4 else {}) for row in rows]
        missing = sorted({peer for item in pool for peer in peers if peer not in item.answers}) if pool else list(peers)
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"pool {path} cannot be read ({error}); remove it, and it is made again") from None
    if missing:
        raise UserError(f"{path} holds no answers of {', '.join(missing)}")
    if sure and any(peer not in item.sure for item in pool for peer in peers):
        raise UserError(f"{path} does not say how sure the peers were; remove it, and it is made again")
    return [
        Heard(item.question, {name: item.answers[name] for name in peers}, {name: item.sure[name] for name in peers if name in item.sure})
        for item in pool
    ]
