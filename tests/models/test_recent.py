from __future__ import annotations

import random
from unittest.mock import Mock

import pytest

from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.family.recent import Recent
from aiflow_agents.models.protocol import GREEDY, Reply, Request, Sampling, Top, Turn, Want

ASKED = ("12+34=", "abc>", "7*8=")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.conftest import make_family

    return FamilyModel.load(make_family(tmp_path_factory.mktemp("models") / "fern", seed=5, layers=4, exits=(1, 3)))


def test_says_what_the_model_says_whatever_was_asked_before(model):
    """Drafts and checks in any order, of drafts that are right, wrong, or cut: against the engine, which reads everything anew."""
    recent, draw = Recent(model, sessions=3), random.Random(0)
    for _ in range(60):
        turns, exit = (Turn("user", draw.choice(ASKED)),), draw.choice((1, 3))
        whole = model.generate([Request(turns, 20, exit=draw.choice((1, 3)))])[0].token_ids
        begin = whole[: draw.randrange(len(whole))]
        if draw.random() < 0.5:
            request = Request(turns, len(begin) + draw.randint(1, 6), begin=begin, exit=exit)
        else:
            drafted = [draw.choice((token, 5)) for token in whole[len(begin) :][: draw.randint(0, 5)]]
            request = Request(turns, 20, begin=begin, check=tuple(drafted), exit=exit)
        one, other = recent.generate([request])[0], model.generate([request])[0]
        assert (one.text, one.token_ids, one.finish, one.kept, one.work, one.tokens_in) == (
            other.text, other.token_ids, other.finish, other.kept, other.work, other.tokens_in,
        )  # fmt: skip
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert recent.kept > 200


def test_reads_only_what_is_new(model):
    recent, turns = Recent(model), (Turn("user", ASKED[0]),)
    first = recent.generate([Request(turns, 4, exit=3)])[0]
    assert isinstance(first, Reply) and recent.kept == 0
    prompt = recent.read
    recent.generate([Request(turns, 8, begin=first.token_ids, exit=3)])
    assert recent.kept == prompt + 3 and recent.read == prompt + 1  # the last token of a draft was never fed
    recent.generate([Request(turns, 8, exit=1)])
    assert recent.read == 2 * prompt + 1  # another exit sits elsewhere


def test_who_reads_along_hears_what_the_model_tells(model):
    recent = Recent(model)
    for text in ASKED:
        request = Request((Turn("user", text),), 6, exit=3)
        heard = [Mock(), Mock()]
        for one, told in zip((recent, model), heard, strict=True):
            one.exchange([request], {}, told)
        assert heard[0].call_args_list == heard[1].call_args_list != []
    assert recent.read > 0


def test_a_new_question_is_read_whoever_asked_it_before(model):
    recent = Recent(model)
    for _ in range(2):
        recent.generate([Request((Turn("user", ASKED[0]),), 4, exit=3)])
    assert recent.kept == 0


def test_keeps_so_many_sequences(model):
    recent, said = Recent(model, sessions=2), {}
    for text in ASKED:
        said[text] = recent.generate([Request((Turn("user", text),), 4, exit=3)])[0].token_ids
    for text, there in ((ASKED[2], True), (ASKED[0], False)):
        before = recent.kept
        recent.generate([Request((Turn("user", text),), 8, begin=said[text], exit=3)])
        assert (recent.kept - before > 3) is there  # of another question no more than how every prompt begins


@pytest.mark.parametrize("how", [{"sampling": Sampling(1.0)}, {"stop": ("7",)}, {"want": Want(1)}, {"top": Top(2)}])
def test_what_is_more_than_tokens_goes_to_the_model(model, how):
    recent, request = Recent(model), Request((Turn("user", ASKED[0]),), 4, **({"sampling": GREEDY} | how))
    assert recent.exchange([request], {})[0] == model.exchange([request], {})[0] and recent.read == 0


def test_a_batch_goes_to_the_model(model):
    requests = [Request((Turn("user", text),), 4) for text in ASKED]
    recent = Recent(model)
    assert recent.generate(requests) == model.generate(requests) and recent.read == 0
