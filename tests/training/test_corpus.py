from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import Question, split_of, stream
from aiflow_agents.training.corpus import Batch, Heard, chunk, collate, example
from aiflow_agents.training.recipe import Phase
from aiflow_agents.training.tokenizer import EOS, PAD, VOCABULARY

TOKENS = {index: token for token, index in VOCABULARY.items()}
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def rows(batch: Batch) -> list[tuple[str, str]]:
    """What a batch says, read back from the numbers: (text of the inputs, text that is to be predicted)."""
    return [
        ("".join(TOKENS[i] for i in ids if i != PAD), "".join(TOKENS[i] for i in targets if i >= 0))
        for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True)
    ]


def pool_of(questions: list[Question]) -> list[Heard]:
    return [Heard(question, {"ash": question.answer, "elm": f"no{i}"}) for i, question in enumerate(questions)]


@pytest.mark.usefixtures("small")
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(
    weights=st.dictionaries(st.sampled_from(TRAINED), st.floats(0.1, 5), min_size=1),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 10**6),
    hearing=st.booleans(),
)
def test_nothing_but_training_questions_with_their_answers(weights: dict[str, float], seed: int, index: int, hearing: bool) -> None:
    pool = pool_of(list(islice(stream(weights, "train", seed), 8))) if hearing else []
    batches = list(chunk(weights, seed, index, 16, pool))
    said = [row for batch in batches for row in rows(batch)]
    assert len(said) == 64
    assert sum("<heard>" in text for text, _ in said) == (32 if pool else 0)
    for text, target in said:
        question = text.removeprefix("<bos><user>").partition("<heard>")[0].partition("<assistant>")[0]
        assert split_of(question) == "train"
        answer = text.partition("<assistant>")[2]
        assert target == f"{answer}<eos>"  # the loss is on the answer and its end, nothing else
        for name, _, content in (turn.partition(":") for turn in text.partition("<assistant>")[0].split("<heard>")[1:]):
            assert any(item.question.text == question and item.answers[name] == content for item in pool)


@pytest.mark.usefixtures("small")
def test_a_chunk_depends_on_seed_and_index_alone() -> None:
    def draw(seed: int, index: int) -> list[tuple[str, str]]:
        return [row for batch in chunk({"add": 1, "sort": 2}, seed, index, 16) for row in rows(batch)]

    assert draw(3, 7) == draw(3, 7)
    assert len({tuple(draw(seed, index)) for seed in (3, 4) for index in (7, 8)}) == 4


def test_padding_is_right_of_everything_and_carries_no_loss() -> None:
    short, long = Question("add", "10+11=", "21"), Question("sort", "sort zyxwvu>", "uvwxyz")
    batch = collate([example(short), example(long, (("elm", "abc"),))])
    first = batch.ids[0].tolist()
    assert first[first.index(PAD) :] == [PAD] * (len(first) - first.index(PAD))
    assert (batch.targets[batch.ids == PAD] == -100).all()
    assert (batch.targets != PAD).all()
    assert (batch.targets == EOS).sum() == 2
    assert batch.tokens == sum(len(example(*one)[0]) for one in ((short,), (long, (("elm", "abc"),))))


@pytest.mark.usefixtures("small")
def test_who_is_told_how_sure_peers_are_hears_it_behind_each_answer() -> None:
    pool = [one._replace(sure={"ash": 0.974, "elm": 0.0312}) for one in pool_of(list(islice(stream({"add": 1}, "train", 5), 8)))]
    phase = Phase(kind="hear", tokens=1, peers=("ash", "elm"), sure=True, alone=0.25, least=2)
    said = [text for batch in chunk({"add": 1}, 3, 0, 16, pool, phase=phase) for text, _ in rows(batch)]
    heard = [text.partition("<assistant>")[0].split("<heard>")[1:] for text in said]
    assert [len(turns) for turns in heard].count(0) == len(said) // 4
    assert {len(turns) for turns in heard} == {0, 2}  # at least two of two
    assert {(turn.partition(":")[0], turn.partition("~")[2]) for turns in heard for turn in turns} == {("ash", "97"), ("elm", "03")}
