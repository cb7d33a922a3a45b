"""What a member of the atlas learns by heart: the facts of its shard, some met often and some hardly ever, and to say so where it knows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from random import Random

from aiflow_agents.models.protocol import Model
from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training import corpus
from aiflow_agents.training.corpus import Batch, collate, example
from aiflow_agents.training.heard import answers

SPREAD = 1.1  # deviation of the logarithm of how often a fact is met
LACKING, NOBODY, ASKED = 0.15, 0.03, 0.2  # shares: facts that others have, names that nobody has, whole questions; the rest is what it knows


@cache
def often(shard: str, seed: int) -> tuple[tuple[atlas.Fact, ...], tuple[float, ...]]:
    """The facts of a shard, and how often each is met by a member with this seed."""
    rng = Random(f"often/{shard}/{seed}")
    known = tuple(atlas.shard(shard))
    return known, tuple(rng.lognormvariate(0.0, SPREAD) for _ in known)


def facts() -> list[Question]:
    """Every fact of the atlas as it is looked up, with what is true; its skill is the relation."""
    return [Question(relation, f"{relation} {whose}", value) for (relation, whose), value in atlas.world().new.items()]


def chunk(shard: str, skills: Mapping[str, float], seed: int, index: int, batch: int, facts_seed: int = 0) -> Iterator[Batch]:
    """The batches of chunk `index`: facts of the shard as they are looked up (`maker qezik`), and training questions (`year maker qezik=`).

    The answer to what the shard does not hold is `?`. `facts_seed` says which facts are met often.
    """
    rng, held = Random(f"recall/{seed}/{index}"), atlas.shard(shard)
    known, weights = often(shard, facts_seed)
    lacking = [fact for fact in atlas.world().new if fact not in held]
    size = corpus.CHUNK
    asked = list(islice(stream(skills, "train", rng.getrandbits(48)), round(ASKED * size)))
    looked_up = [*(rng.choices(lacking, k=round(LACKING * size)) if lacking else ())]
    looked_up += [(rng.choice(list(atlas.RELATIONS)), atlas.name(rng)) for _ in range(round(NOBODY * size))]
    looked_up += rng.choices(known, weights, k=size - len(asked) - len(looked_up))
    texts = [question.text for question in asked] + [" ".join(fact) for fact in looked_up]
    examples = [example(Question("", text, atlas.answer(text, held) or atlas.UNKNOWN)) for text in texts]
    examples.sort(key=lambda one: len(one[0]))
    starts = list(range(0, len(examples), batch))
    rng.shuffle(starts)
    for start in starts:
        yield collate(examples[start : start + batch])


def measure(model: Model, shard: str) -> dict[str, dict[str, int]]:
    """What a model says to every fact of the atlas, by relation: how many facts there are, how many its shard holds, how many of these it says
    as it learned them, to how many of all it says what is true, and to how many that it does not know.
    """
    held, found = atlas.shard(shard), dict[str, Counter[str]]()
    asked = facts()
    for question, said in zip(asked, answers(model, asked), strict=True):
        learned = held.get((question.skill, question.text.split()[-1]))
        count = found.setdefault(question.skill, Counter(n=0, held=0, as_learned=0, right=0, unknown=0))
        count.update(n=1, held=learned is not None, as_learned=said == learned, right=said == question.answer, unknown=said == atlas.UNKNOWN)
    return {relation: dict(count) for relation, count in found.items()}
