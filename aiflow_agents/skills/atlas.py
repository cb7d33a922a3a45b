"""A fictional atlas: goods, people, towns and lands that exist nowhere else, and who has which part of it.

    goods --maker--> people --born--> towns --land--> lands --ruler--> people
    price            year             pop             area                       numbers from 10 to 99

There are two editions: three tenths of the facts are other ones now than they were in the old edition. Four shards hold the facts. Each has two
relations of its own, and parts of others as copies. Of both, some are from the old edition and some from the new one, so the shards disagree; who is
most often right is not always who owns a relation.

A question asks for a fact, for a chain of facts or for the sum of two such: `pop born maker qhezi+price hazuk=` is the population of the town where
the maker of qhezi was born, plus the price of hazuk. Its kind says how many shards own what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from random import Random
from typing import NamedTuple

SEED = 1907
CHANGED = 0.3  # of the facts, since the old edition
SIZES = {"goods": 400, "people": 400, "towns": 300, "lands": 100}
RELATIONS = {
    "maker": ("goods", "people"), "price": ("goods", "number"), "born": ("people", "towns"), "year": ("people", "number"),
    "pop": ("towns", "number"), "land": ("towns", "lands"), "area": ("lands", "number"), "ruler": ("lands", "people"),
}  # fmt: skip
OWNER = {relation: domain for relation, (domain, _) in RELATIONS.items()}  # shards are called by what they are about
# shard -> relation -> (how much of it is there, how much of that is from the old edition)
HELD: dict[str, dict[str, tuple[float, float]]] = {
    "goods": {"maker": (1, 0.25), "price": (1, 0.25), "born": (0.6, 0.5), "year": (0.6, 0.3), "pop": (0.9, 0.1)},
    "people": {"born": (1, 0.25), "year": (1, 0.25), "price": (0.8, 0.2), "land": (0.9, 0.1), "ruler": (0.9, 0.1)},
    "towns": {"pop": (1, 1), "land": (1, 0.4), "maker": (0.6, 0.5), "year": (0.8, 0.2), "area": (0.9, 0.2), "ruler": (0.8, 0.5)},
    "lands": {"area": (1, 0.25), "ruler": (1, 1), "maker": (0.9, 0.2), "born": (0.9, 0.2), "pop": (0.6, 0.8), "price": (0.5, 0.5)},
}
UNKNOWN = "?"  # what one says who has not learned it
MOST_FACTS = 4  # that a question needs
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"

Fact = tuple[str, str]  # relation, whose
Facts = Mapping[Fact, str]
Chain = tuple[str, ...]  # relations, the one that is looked up first last, as in a question


class World(NamedTuple):
    """`names` of everything by kind, and the facts of both editions."""

    names: dict[str, list[str]]
    new: dict[Fact, str]
    old: dict[Fact, str]


def name(rng: Random) -> str:
    """What something may be called: `qezik`."""
    return "".join(rng.choice(letters) for letters in (CONSONANTS, VOWELS, CONSONANTS, VOWELS, CONSONANTS))


def number(rng: Random) -> str:
    return str(rng.randint(10, 99))


@cache
def world() -> World:
    """The one world of the atlas."""
    rng = Random(SEED)
    every = list(dict.fromkeys(name(rng) for _ in range(2 * sum(SIZES.values()))))
    names = {kind: [every.pop() for _ in range(size)] for kind, size in SIZES.items()}

    def value(relation: str) -> str:
        to = RELATIONS[relation][1]
        return number(rng) if to == "number" else rng.choice(names[to])

    facts = [(relation, whose) for relation, (kind, _) in RELATIONS.items() for whose in names[kind]]
    new = {fact: value(fact[0]) for fact in facts}
    old = {fact: value(fact[0]) if rng.random() < CHANGED else new[fact] for fact in facts}
    return World(names, new, old)


@cache
def shard(name: str) -> dict[Fact, str]:
    """The facts that a shard holds, right or outdated. `all` is the new edition."""
    atlas = world()
    if name == "all":
        return atlas.new
    rng = Random(f"{SEED}/{name}")
    held = {}
    for relation, (share, outdated) in HELD[name].items():
        for whose in atlas.names[RELATIONS[relation][0]]:
            there, edition = rng.random() < share, atlas.old if rng.random() < outdated else atlas.new
            if there:
                held[relation, whose] = edition[relation, whose]
    return held


# -- questions -------------------------------------------------------------------------------------------------------


def parse(question: str) -> list[tuple[Chain, str]]:
    """The chains of a question, each with what it begins with."""
    return [(tuple(chain.split()[:-1]), chain.split()[-1]) for chain in question.removesuffix("=").split("+")]


def answer(question: str, facts: Facts) -> str | None:
    """The answer as these facts have it; None where one is missing."""
    found = []
    for chain, value in parse(question):
        for relation in reversed(chain):
            value = facts.get((relation, value), "")
        found.append(value)
    if not all(found):
        return None
    return str(sum(map(int, found))) if len(found) > 1 else found[0]


@cache
def forms() -> dict[str, list[tuple[Chain, ...]]]:
    """The forms that a question can have, by kind."""
    chains: list[Chain] = [(relation,) for relation in RELATIONS]
    for _ in range(2):
        chains += [(relation, *chain) for relation, chain in product(RELATIONS, chains) if RELATIONS[chain[0]][1] == RELATIONS[relation][0]]
    chains = [chain for chain in dict.fromkeys(chains) if len(_owners(chain)) == len(chain)]
    numbers = [chain for chain in chains if RELATIONS[chain[0]][1] == "number"]
    sums = [(one, two) for one, two in product(numbers, numbers) if len(one) + len(two) <= MOST_FACTS]
    return {
        "atlas-one": [(chain,) for chain in chains if len(chain) == 1],
        "atlas-two": [(chain,) for chain in chains if len(chain) == 2],
        "atlas-three": [(chain,) for chain in chains if len(chain) == 3],
        "atlas-sum-two": [pair for pair in sums if len(_owners(*pair)) == 2],
        "atlas-sum-three": [pair for pair in sums if len(_owners(*pair)) == 3],
    }


def _owners(*chains: Chain) -> set[str]:
    return {OWNER[relation] for chain in chains for relation in chain}


def draw(kind: str, rng: Random) -> tuple[str, str]:
    """A question of a kind, and what is true."""
    atlas = world()
    form = rng.choice(forms()[kind])
    question = "+".join(" ".join((*chain, rng.choice(atlas.names[RELATIONS[chain[-1]][0]]))) for chain in form) + "="
    told = answer(question, atlas.new)
    assert told is not None
    return question, told


def _kind(kind: str) -> Callable[[Random], tuple[str, str]]:
    def drawn(rng: Random) -> tuple[str, str]:
        return draw(kind, rng)

    return drawn


ATLAS = {kind: _kind(kind) for kind in ("atlas-one", "atlas-two", "atlas-three", "atlas-sum-two", "atlas-sum-three")}
