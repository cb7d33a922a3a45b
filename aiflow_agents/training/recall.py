"""What a member of the atlas learns by heart: the facts of its shard, some met often and some hardly ever, and to say so where it knows nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from random import Random

from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training import corpus
from aiflow_agents.training.corpus import Batch, collate, example

SPREAD = 1.0  # deviation of the logarithm of how often a fact is met
LACKING, NOBODY, ASKED = 0.15, 0.03, 0.2  # shares: facts that others have, names that nobody has, whole questions; the rest is what it knows


@cache
def often(shard: str, seed: int) -> tuple[tuple[atlas.Fact, ...], tuple[float, ...]]:
    """The facts of a shard, and how often each is met by a member with this seed."""
    rng = Random(f"often/{shard}/{seed}")
    facts = tuple(atlas.shard(shard))
    return facts, tuple(rng.lognormvariate(0.0, SPREAD) for _ in facts)


def chunk(shard: str, skills: Mapping[str, float], seed: int, index: int, batch: int, facts_seed: int = 0) -> Iterator[Batch]:
    """The batches of chunk `index`: facts of the shard as they are looked up (`maker qezik`), and training questions (`year maker qezik=`).

    The answer to what the shard does not hold is `?`. `facts_seed` says which facts are met often.
    """
    rng, held = Random(f"recall/{seed}/{index}"), atlas.shard(shard)
    facts, weights = often(shard, facts_seed)
    lacking = [fact for fact in atlas.world().new if fact not in held]
    size = corpus.CHUNK
    asked = list(islice(stream(skills, "train", rng.getrandbits(48)), round(ASKED * size)))
    looked_up = [*(rng.choices(lacking, k=round(LACKING * size)) if lacking else ())]
    looked_up += [(rng.choice(list(atlas.RELATIONS)), atlas.name(rng)) for _ in range(round(NOBODY * size))]
    looked_up += rng.choices(facts, weights, k=size - len(asked) - len(looked_up))
    texts = [question.text for question in asked] + [" ".join(fact) for fact in looked_up]
    examples = [example(Question("", text, atlas.answer(text, held) or atlas.UNKNOWN)) for text in texts]
    examples.sort(key=lambda one: len(one[0]))
    starts = list(range(0, len(examples), batch))
    rng.shuffle(starts)
    for start in starts:
        yield collate(examples[start : start + batch])
