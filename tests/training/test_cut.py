"""A model cut at a layer, and a codec taught across the cut."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from aiflow_agents import catalog
from aiflow_agents.models.family.family import Family
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training.cut import Cut, cache_samples, sample, texts
from aiflow_agents.training.refine import refined
from aiflow_agents.wire.codecs import Sample, fit
from aiflow_agents.wire.codecs.predictive import Predictive, Walk

SKILLS = {"add": 1.0, "sort": 1.0}


@pytest.fixture(scope="module")
def willow() -> Family:
    return Family.load(catalog.find("model", "willow").path)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(islice(stream(SKILLS, "train", 1), 40))


def test_both_halves_make_the_whole(willow: Family, questions: list[Question]) -> None:
    (batch,) = texts(questions, rows=40)
    for layer, exits in ((0, (None,)), (1, (3, 7)), (3, (7,))):
        cut = Cut(willow, layer, exits)
        for turn, exit in enumerate(exits):
            torch.testing.assert_close(cut.above(cut.below(batch.ids), turn), willow.logits(batch.ids, exit=exit), rtol=0, atol=1e-4)


def test_texts_ask_where_an_answer_is_to_come(questions: list[Question]) -> None:
    from aiflow_agents.training.tokenizer import ASSISTANT, EOS, encode

    found = {}
    for batch in texts(questions, rows=7):
        for row in range(len(batch.ids)):
            places = batch.answers[row].nonzero()[:, 0]
            assert batch.ids[row, places[0]] == ASSISTANT and batch.present[row].sum() == places[-1] + 1
            found[tuple(batch.ids[row, : places[0]].tolist()[2:])] = batch.targets[row, places].tolist()
    assert found == {tuple(encode(q.text)): [*encode(q.answer), EOS] for q in questions}


def test_gradients_say_what_the_output_minds(willow: Family, questions: list[Question]) -> None:
    """Moving the states a little costs, in nats, half of what the second moment of the gradients says. Asked of an exit that is not too sure."""
    cut = Cut(willow, 1, (1,))
    (batch,) = texts(questions, rows=40)
    found = sample(cut, questions, noise=0, draws=80)
    assert found.gradients is not None and found.lengths is not None and found.gradients.shape == (80, *found.states.shape)
    states = cut.below(batch.ids)
    exact = cut.above(states)[batch.answers].log_softmax(-1)
    move = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)) * states.std() * 0.01
    said = cut.above(states + move)[batch.answers].log_softmax(-1)
    cost = float((exact.exp() * (exact - said)).sum())
    moved, per_text = move[batch.present].numpy(), np.split(np.arange(len(found.states)), found.lengths.cumsum()[:-1])
    expected = np.mean([sum((one[rows] * moved[rows]).sum() ** 2 for rows in per_text) / 2 for one in found.gradients])
    assert expected == pytest.approx(cost, rel=0.3)


def test_a_sample_is_what_the_model_has(willow: Family, questions: list[Question]) -> None:
    cut = Cut(willow, 1, (3, 7))
    one = sample(cut, questions)
    assert one.lengths is not None and one.token_ids is not None and one.gradients is not None
    last = one.lengths[-1]
    ids = torch.from_numpy(one.token_ids[-last:])[None]
    np.testing.assert_allclose(one.states[-last:], willow.hidden(ids, layer=1)[0].numpy(), atol=1e-4)
    caches = cache_samples(willow, questions, 2)
    assert sorted(caches) == ["key.0", "key.1", "value.0", "value.1"] and caches["key.1"].states.shape == (len(one.states), 64)


def test_a_taught_codec_sends_less_for_the_same(willow: Family, questions: list[Question]) -> None:
    cut = Cut(willow, 1)
    samples = {"hidden.1": sample(cut, list(islice(stream(SKILLS, "train", 2), 200)))}
    start = fit("predict:step=0.6,boundary=5", samples)
    taught = refined(cut, start, samples, SKILLS, value=20.0, hidden=16, steps=(60, 30))
    assert taught.spec == start.spec and taught.fingerprint != start.fingerprint
    coding = taught.codings["hidden.1"]
    assert isinstance(coding, Predictive) and coding.predictor.out.shape == (16, 128)
    assert cost(coding, samples["hidden.1"]) < 0.97 * cost(start.codings["hidden.1"], samples["hidden.1"])


def cost(coding: object, sample: Sample) -> float:
    assert isinstance(coding, Predictive)
    y, ids, present = sample.padded("predict")
    walk = Walk(coding, ids)
    symbols = np.stack([walk.send((y[:, t] - coding.mean) / coding.scale) for t in range(y.shape[1])], 1)
    return coding.contexts.cost(symbols[present], walk.contexts[present])


