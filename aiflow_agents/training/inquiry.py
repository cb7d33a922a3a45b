"""How a coordinator learns to ask: in worlds whose names and numbers are drawn anew, of peers who are right, wrong and silent as the real ones are.

    user: year maker qezik=   it: goods?maker qezik   goods: lomud   it: people?year lomud   people: 36   it: 36

What it can learn from them is whom to ask for what, whom else if that was not enough, and whom to believe; no fact of the atlas is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import torch

from aiflow_agents.models.protocol import Model, Reply, Request, Turn
from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import Question
from aiflow_agents.training import corpus
from aiflow_agents.training.corpus import Batch, Heard
from aiflow_agents.training.tokenizer import ASSISTANT, BOS, EOS, HEARD, PAD, USER, encode

COST = 0.01  # what one more question must be worth, as a share of right answers
USEFUL = 0.1  # how often one must be right to be asked at all
LUCK = 1  # facts that must come right beyond that: who is asked about few cases seems to help in some
RIGHT, SILENT = 1, 0  # what a peer said, as a number; from 2 on: mistakes, equal ones alike
ROUNDS, MAX_TURN = 12, 32  # questions that a coordinator may ask, tokens that a turn may have
STUBBORN = 0.15  # how often a peer has an answer about a name that nobody has

Row = tuple[int, ...]  # what each peer said to one fact


class Said(NamedTuple):
    """One turn of a conversation after the question: the coordinator's own, or what `speaker` answered."""

    speaker: str
    text: str


@dataclass
class Step:
    """Ask peer number `peer` (None: nobody more); what then is next depends on what it says: nothing (0), or the i-th different answer so far.

    `best` is the answer to believe, counted in the same way, where the asking ends; 0 is none.
    """

    peer: int | None = None
    best: int = 0
    after: dict[int, Step] = field(default_factory=dict)


class Peers(NamedTuple):
    """Who can be asked; by relation what they said to each fact, with which of their mistakes name something that is there, and how to ask them."""

    names: tuple[str, ...]
    rows: dict[str, list[tuple[Row, frozenset[int]]]]
    steps: dict[str, Step]


def study(pool: Sequence[Heard], cost: float = COST) -> Peers:
    """What can be known of peers from their answers to all facts: who errs together with whom, and so whom it is best to ask, in which order."""
    names, rows = tuple(sorted(pool[0].answers)), dict[str, list[tuple[Row, frozenset[int]]]]()
    there = {kind: set(called) for kind, called in atlas.world().names.items()}
    for item in pool:
        relation, _ = item.question.text.split()
        said = {atlas.UNKNOWN: SILENT, "": SILENT, item.question.answer: RIGHT}
        row = tuple(said.setdefault(item.answers[name], len(said)) for name in names)
        row = tuple(code - 1 if code > RIGHT else code for code in row)
        known = frozenset(code - 1 for text, code in said.items() if code > RIGHT and text in there.get(atlas.RELATIONS[relation][1], ()))
        rows.setdefault(relation, []).append((row, known))
    return Peers(names, rows, {relation: best_step([row for row, _ in found], cost) for relation, found in rows.items()})


def best_step(rows: Sequence[Row], cost: float = COST) -> Step:
    """The best way of asking about one relation, exactly: all orders in which peers can be asked, given all they may say.

    Who is hardly ever right is not asked: few facts are no proof that such mistakes tell something.
    """
    useful = [peer for peer in range(len(rows[0])) if sum(row[peer] == RIGHT for row in rows) >= USEFUL * len(rows)]
    step, _ = _best([(row, ()) for row in rows], useful, cost)
    return step


def _best(cases: Sequence[tuple[Row, Row]], left: Sequence[int], cost: float) -> tuple[Step, float]:
    """The best step for these cases, alike in what was heard so far, and how many end right, less costs. A case: row, different answers so far."""
    told = len(cases[0][1])
    counts = [sum(seen[i] == RIGHT for _, seen in cases) for i in range(told)]
    stop, worth = Step(best=1 + counts.index(max(counts)) if counts else 0), float(max(counts, default=0))
    step, most = stop, worth + LUCK
    for peer in left if worth < len(cases) * (1 - cost) else ():
        heard: dict[int, list[tuple[Row, Row]]] = {}
        for row, seen in cases:
            code = row[peer]
            fresh = code != SILENT and code not in seen
            label = SILENT if code == SILENT else told + 1 if fresh else 1 + seen.index(code)
            heard.setdefault(label, []).append((row, (*seen, code) if fresh else seen))
        if list(heard) == [SILENT]:
            continue
        then = {label: _best(same, [other for other in left if other != peer], cost) for label, same in heard.items()}
        value = sum(worth for _, worth in then.values()) - cost * len(cases)
        if value > most:
            step, most = Step(peer, 0, {label: next_step for label, (next_step, _) in then.items()}), value
    return step, worth if step is stop else most


# -- conversations ---------------------------------------------------------------------------------------------------


def converse(form: Sequence[atlas.Chain], peers: Peers, me: str, rng: Random) -> tuple[str, list[Said]]:
    """A question of this form about names drawn at random, and the whole conversation up to its answer: `36`, or behind its working `36+41=77`.

    Where somebody said what is right, that is believed, or else what is right most often: so what is worth believing is learned from how it ends.
    """
    starts = [atlas.name(rng) for _ in form]
    question = "+".join(" ".join((*chain, start)) for chain, start in zip(form, starts, strict=True)) + "="
    turns: list[Said] = []
    found: list[str] = []
    for chain, value in zip(form, starts, strict=True):
        real = True
        for relation in reversed(chain):
            value, real = _look_up(relation, value, real, peers, me, rng, turns)
            if value == atlas.UNKNOWN:
                return question, [*turns, Said(me, value)]
        found.append(value)
    working = f"{'+'.join(found)}=" if len(found) > 1 else ""
    return question, [*turns, Said(me, working + (str(sum(map(int, found))) if working else found[0]))]


def _look_up(relation: str, whose: str, real: bool, peers: Peers, me: str, rng: Random, turns: list[Said]) -> tuple[str, bool]:
    """Ask for one fact. Gives what is believed, `?` where nobody said anything, and whether there is such a thing."""
    kind = atlas.RELATIONS[relation][1]
    row, known = rng.choice(peers.rows[relation])
    if not real:
        row = tuple(2 + i if rng.random() < STUBBORN else SILENT for i in range(len(row)))
    values = _different(max(row), lambda: atlas.number(rng) if kind == "number" else atlas.name(rng))
    step, seen = peers.steps[relation], list[int]()
    while step.peer is not None:
        code = row[step.peer]
        said = atlas.UNKNOWN if code == SILENT else values[code - 1]
        name = peers.names[step.peer]
        turns += [Said(me, f"{name}?{relation} {whose}"), Said(name, said)]
        if code != SILENT and code not in seen:
            seen.append(code)
        label = SILENT if code == SILENT else 1 + seen.index(code)
        step = step.after.get(label, Step(best=1 if seen else 0))
    if not seen:
        return atlas.UNKNOWN, False
    code = RIGHT if RIGHT in seen else seen[min(step.best, len(seen)) - 1]
    return values[code - 1], code == RIGHT or code in known


def _different(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def interview(model: Model, peers: Mapping[str, Model], questions: Sequence[Question], rounds: int = ROUNDS) -> list[str]:
    """What a coordinator answers when it may ask these peers, `rounds` times at most. What topology `inquiry` does, without nodes and links."""
    said = [""] * len(questions)
    heard: list[tuple[Turn, ...]] = [()] * len(questions)
    asking = list(range(len(questions)))
    for left in range(rounds, -1, -1):
        replies = model.generate([Request((Turn("user", questions[i].text), *heard[i]), MAX_TURN) for i in asking])
        asked: dict[str, list[tuple[int, str]]] = {}
        for i, reply in zip(asking, replies, strict=True):
            said[i] = reply.text.strip() if isinstance(reply, Reply) else ""
            name, mark, what = said[i].partition("?")
            if mark and name in peers and left:
                asked.setdefault(name, []).append((i, what))
        for name, each in asked.items():
            told = peers[name].generate([Request((Turn("user", what),), MAX_TURN) for _, what in each])
            for (i, _), reply in zip(each, told, strict=True):
                heard[i] += Turn("assistant", said[i]), Turn("user", reply.text if isinstance(reply, Reply) else "", name)
        asking = [i for each in asked.values() for i, _ in each]
    return [answer.rpartition("=")[2] for answer in said]


# -- batches ---------------------------------------------------------------------------------------------------------


def chunk(peers: Peers, me: str, skills: Mapping[str, float], seed: int, index: int, batch: int) -> Iterator[Batch]:
    """The batches of chunk `index`: whole conversations, the loss on every turn of the coordinator's own."""
    rng = Random(f"ask/{seed}/{index}")
    kinds = rng.choices(list(skills), list(skills.values()), k=corpus.CHUNK // 8)
    examples = [conversation(*converse(rng.choice(atlas.forms()[kind]), peers, me, rng), me) for kind in kinds]
    examples.sort(key=lambda one: len(one[0]))
    starts = list(range(0, len(examples), batch))
    rng.shuffle(starts)
    for start in starts:
        yield _collate(examples[start : start + batch])


def conversation(question: str, turns: Sequence[Said], me: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a conversation as the chat template writes it, and from where to where in it the coordinator speaks."""
    ids, spans = [BOS, USER, *encode(question)], []
    for speaker, text in turns:
        if speaker == me:
            ids += [ASSISTANT, *encode(text), EOS]
            spans.append((len(ids) - len(text) - 1, len(ids)))
        else:
            ids += [HEARD, *encode(f"{speaker}:{text}")]
    return ids, spans


def _collate(examples: Sequence[tuple[list[int], list[tuple[int, int]]]]) -> Batch:
    longest = max(len(ids) for ids, _ in examples) - 1
    inputs, targets = torch.full((len(examples), longest), PAD), torch.full((len(examples), longest), -100)
    for row, (ids, spans) in enumerate(examples):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        for start, end in spans:  # what is at a position is predicted from the one before
            targets[row, start - 1 : end - 1] = torch.tensor(ids[start:end])
    return Batch(inputs, targets, sum(len(ids) for ids, _ in examples))
