"""Verifying drafts: greedy, what `Decoder.logits` says token by token; at a temperature, exactly the distribution of the exit that checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.engine import Engine
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.family.resume import hidden_states
from aiflow_agents.models.family.verify import Claim, invert, spread, target, verify
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Top, Turn
from aiflow_agents.wire import odds
from aiflow_agents.wire.payload import Logits
from tests.conftest import make_family

VOCAB = 64
some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def decoder(family: tuple[Path, Any]) -> Decoder:
    return Decoder.load(family[0], torch.float32)


def says(decoder: Decoder, known: list[int], tokens: int, exit: int | None, ends: frozenset[int] = frozenset(), room: int = 99) -> list[int]:
    """The argmax chain, one whole pass a token."""
    said: list[int] = []
    while len(said) < min(tokens, room) and not (said and said[-1] in ends):
        said.append(int(decoder.logits(torch.tensor([[*known, *said]]), exit=exit)[0, -1].argmax()))
    return said


@some
@given(
    known=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
    right=st.integers(0, 6),  # so many tokens as this exit says them, and then others
    wrong=st.lists(st.integers(0, VOCAB - 1), max_size=3),
    room=st.integers(1, 9),
    exit=st.sampled_from([1, 3, 5, None]),
    ends=st.frozensets(st.integers(0, VOCAB - 1), max_size=8),
)
def test_greedy_it_says_what_the_exit_says_token_by_token(decoder: Any, known: Any, right: int, wrong: Any, room: int, exit: Any, ends: Any) -> None:
    draft = (*says(decoder, known, right, exit), *wrong)
    (found,) = verify(decoder, [Claim(tuple(known), draft, room)], ends, exit)
    alone = says(decoder, known, len(draft) + 1, exit, ends, room)
    agreed = next((i for i, (a, b) in enumerate(zip(alone, draft, strict=False)) if a != b), min(len(alone), len(draft)))
    assert list(found.token_ids) == alone[: agreed + 1] and found.kept == agreed
    ended = found.token_ids[-1] in ends
    assert found.finish == ("stop" if ended else "length" if len(found.token_ids) == room else "checked")
    whole = torch.log_softmax(decoder.logits(torch.tensor([[*known, *found.token_ids]]), exit=exit)[0], -1)
    expected = [float(whole[len(known) - 1 + i, token]) for i, token in enumerate(found.token_ids)]
    assert found.logprobs == pytest.approx(expected, abs=1e-4)


@some
@given(
    known=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10),
    draft=st.lists(st.integers(0, VOCAB - 1), max_size=5),
    right=st.integers(0, 4),
    fed=st.booleans(),  # whether its drafter has fed the last token
    place=st.sampled_from([(1, 3), (1, 5), (3, 5), (3, None)]),
)
def test_from_hidden_states_it_says_what_it_says_from_tokens(decoder: Any, known: Any, draft: Any, right: int, fed: bool, place: Any) -> None:
    layer, exit = place
    tokens = (*says(decoder, known, right, exit), *draft)
    read = (*known, *tokens) if fed or not tokens else (*known, *tokens[:-1])
    ((hidden, _),) = hidden_states(decoder, [read], layer)
    claims = [Claim(tuple(known), tokens, 20, layer, hidden), Claim(tuple(known), tokens, 20)]
    by_states, by_tokens = (verify(decoder, [claim], frozenset({2}), exit)[0] for claim in claims)
    if len(read) == len(known) + len(tokens):
        assert by_states.token_ids == by_tokens.token_ids and by_states.kept == by_tokens.kept
    else:  # behind a token that nobody has fed nothing is said
        assert by_states.token_ids == by_tokens.token_ids[: len(tokens)] and by_states.kept == by_tokens.kept
    assert by_states.logprobs == pytest.approx(by_tokens.logprobs[: len(by_states.logprobs)], abs=1e-4)


def test_a_row_does_not_feel_its_company(decoder: Decoder) -> None:
    draw = np.random.default_rng(1)
    claims = []
    for i in range(70):  # more than are read at once, of all lengths, some from states
        known, tokens = (tuple(draw.integers(0, VOCAB, n).tolist()) for n in (draw.integers(1, 40), draw.integers(0, 9)))
        hidden = hidden_states(decoder, [(*known, *tokens)], 3)[0][0] if i % 3 == 0 else None
        warm = {"temperature": 1.5, "odds": flat(len(tokens)), "seed": i} if i % 2 else {}
        claims.append(Claim(known, tokens, 12, 3 if hidden is not None else 0, hidden, **warm))
    together = verify(decoder, claims, frozenset({2}), 5)
    for claim, found in zip(claims[::2] + claims[1:20:2], together[::2] + together[1:20:2], strict=True):
        (alone,) = verify(decoder, [claim], frozenset({2}), 5)
        assert (alone.token_ids, alone.kept, alone.finish) == (found.token_ids, found.kept, found.finish)
        assert alone.logprobs == pytest.approx(found.logprobs, abs=1e-5)


def flat(tokens: int) -> Logits:
    """Odds of tokens that were drawn from all with one probability."""
    return Logits(np.full((tokens, VOCAB), -np.log(VOCAB), np.float32), np.tile(np.arange(VOCAB), (tokens, 1)), VOCAB)


# --- at a temperature ---

PROMPT, HEAT, SEEDS = (5, 9, 40), 2.0, 1200


def drafts(decoder: Decoder, k: int = 5) -> list[Claim]:
    """Two tokens drawn by exit 1 from its k likeliest, by the engine, once for every seed; and the claims for the deepest exit."""
    engine = Engine(decoder, (), stable=False)
    made = engine.generate([PROMPT] * SEEDS, max_tokens=[2] * SEEDS, temperature=[HEAT] * SEEDS, seeds=list(range(SEEDS)), odds=[k] * SEEDS, exit=1)
    told = [Logits(one.odds[0].numpy(), one.odds[1].numpy(), VOCAB) for one in made]  # type: ignore[index]
    return [Claim(PROMPT, one.token_ids, 9, temperature=HEAT, seed=10**6 + i, odds=q) for i, (one, q) in enumerate(zip(made, told, strict=True))]


def p_value(said: list[tuple[int, ...]], p: Any) -> float:
    """Chi-square of the first tokens against their distribution; what is expected less than five times is counted together."""
    seen, expected = np.bincount([tokens[0] for tokens in said], minlength=VOCAB), p * len(said)
    often = expected >= 5
    cells = [np.append(counts[often], counts[~often].sum()) for counts in (seen, expected)]
    kept = cells[1] > 0
    return float(stats.chisquare(cells[0][kept], cells[1][kept]).pvalue)


def at(decoder: Decoder, *begin: int) -> Any:
    """The exact distribution of the deepest exit behind the prompt and these tokens, in numpy."""
    logits = decoder.logits(torch.tensor([[*PROMPT, *begin]]), exit=5)[0, -1].double().numpy() / HEAT
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


WRONG = {
    "half the probability is enough": lambda uniform, p, q: p >= q / 2,
    "all stay": lambda uniform, p, q: True,
    "none stays": lambda uniform, p, q: False,
}


def test_what_is_said_at_a_temperature_has_the_distribution_of_who_checks(decoder: Decoder) -> None:
    claims, p = drafts(decoder), at(decoder)
    found = verify(decoder, claims, frozenset(), 5)
    said = [one.token_ids for one in found]
    assert p_value(said, p) > 0.001
    likely = int(np.bincount([tokens[0] for tokens in said]).argmax())
    behind = [one.token_ids[1:] for one in found if one.token_ids[0] == likely and len(one.token_ids) > 1]  # the second token, drafted or this exit's own
    assert len(behind) > 50 and p_value(behind, at(decoder, likely)) > 0.001
    kept = np.mean([one.kept > 0 for one in found])
    q = spread(claims[0].odds, VOCAB)[0]  # type: ignore[arg-type]
    assert kept == pytest.approx(np.minimum(p, q).sum(), abs=4 * (0.25 / SEEDS) ** 0.5)  # as many stay as can
    drawn = [claim.tokens for claim in claims]
    assert p_value(drawn, p) < 1e-6 < 0.001 < p_value(drawn, q)  # and its drafter would have said something else
    for why, rule in WRONG.items():
        assert p_value([one.token_ids for one in verify(decoder, claims, frozenset(), 5, rule)], p) < 1e-3, why


def test_who_checks_for_a_further_one_draws_from_what_it_tells(decoder: Decoder) -> None:
    claims = [Claim(c.known, c.tokens, c.room, temperature=HEAT, seed=c.seed, odds=c.odds, tell=4) for c in drafts(decoder)]
    found = verify(decoder, claims, frozenset(), 5)
    values, indices = found[0].odds  # type: ignore[misc]
    told = spread(Logits(values.numpy(), indices.numpy(), VOCAB), VOCAB)[0]
    exact = at(decoder)
    best = np.argsort(-exact)[:4]
    assert sorted(np.flatnonzero(told)) == sorted(best)
    np.testing.assert_allclose(told[best], exact[best] / exact[best].sum(), rtol=2e-3)
    assert p_value([one.token_ids for one in found], told) > 0.001 > p_value([one.token_ids for one in found], exact)
    assert all(len(one.odds[0]) == len(one.token_ids) for one in found)  # type: ignore[index]


def test_the_target_is_what_the_engine_draws_from(decoder: Decoder) -> None:
    logits = decoder.logits(torch.tensor([PROMPT]), exit=5)[0, -1:]
    np.testing.assert_allclose(target(logits, HEAT)[0], at(decoder), rtol=1e-4)
    nucleus, p = target(logits, HEAT, 0.5)[0], at(decoder)
    order = np.argsort(-p)
    many = int((p[order].cumsum() < 0.5).sum()) + 1
    np.testing.assert_allclose(nucleus[order], np.where(np.arange(VOCAB) < many, p[order] / p[order[:many]].sum(), 0), rtol=1e-4)
    mass = np.array([0.0, 3.0, 0.0, 1.0])
    assert [invert(mass, u) for u in (0.0, 0.74, 0.76, 0.9999999)] == [1, 1, 3, 3]


def test_an_engine_with_odds_draws_from_just_what_it_tells(decoder: Decoder) -> None:
    """Against numpy: the k largest log-probabilities as float16 has them, and the share of each token that was drawn."""
    engine, n = Engine(decoder, (2,), stable=False), 1200
    made = engine.generate([PROMPT] * n, max_tokens=[3] * n, temperature=[HEAT] * n, seeds=list(range(n)), odds=[6] * (n - 1) + [0], exit=1)
    assert made[-1].odds is None
    logits = decoder.logits(torch.tensor([PROMPT]), exit=1)[0, -1].numpy() / np.float32(HEAT)
    logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    best = np.argsort(-logprobs, kind="stable")[:6]
    for one in made[:50]:
        assert one.odds is not None and len(one.odds[0]) == len(one.odds[1]) == len(one.token_ids)
        assert one.odds[1][0].tolist() == best.tolist()
        np.testing.assert_allclose(one.odds[0][0].numpy(), logprobs[best].astype(np.float16), atol=2e-3)
        assert one.odds[0].half().float().equal(one.odds[0])
        assert all(token in row for token, row in zip(one.token_ids, one.odds[1].tolist(), strict=True))
        frame = odds.encode(Logits(one.odds[0].numpy(), one.odds[1].numpy(), VOCAB))
        assert np.array_equal(odds.decode(frame).values, one.odds[0].numpy())  # nothing is lost on the wire
    q = spread(Logits(made[0].odds[0].numpy(), made[0].odds[1].numpy(), VOCAB), VOCAB)[0]  # type: ignore[index]
    assert p_value([one.token_ids for one in made[:-1]], q) > 0.001


def test_whether_a_token_is_drafted_does_not_depend_on_which_was_drawn(decoder: Decoder) -> None:
    """Else what is drafted has not the odds that are told: a gate looks at the likeliest token, not at the drawn one."""
    engine, n = Engine(decoder, (), stable=False), 400
    p = torch.softmax(decoder.logits(torch.tensor([PROMPT]), exit=1)[0, -1], -1)
    gate = float(p.max()) - 1e-3
    made = engine.generate(
        [PROMPT] * n, max_tokens=[1] * n, temperature=[3.0] * n, seeds=list(range(n)), gates=[gate] * n, odds=[8] * n, exit=1
    )  # fmt: skip
    assert all(len(one.token_ids) == 1 for one in made) and len({one.token_ids for one in made}) > 3
    above = engine.generate([PROMPT] * n, max_tokens=[1] * n, temperature=[3.0] * n, seeds=list(range(n)), gates=[gate + 2e-3] * n, odds=[8] * n, exit=1)
    assert not any(one.token_ids for one in above)


# --- as a model's call ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FamilyModel:
    return FamilyModel.load(make_family(tmp_path_factory.mktemp("agents") / "models" / "bud", layers=6, exits=(1, 3, 5)))


def ask(**more: Any) -> Request:
    return Request((Turn("user", "12+5="),), 10, exit=5, **more)


def test_one_call_tells_what_stays_and_what_it_took(model: FamilyModel) -> None:
    (alone,) = model.generate([ask()])
    assert isinstance(alone, Reply) and len(alone.token_ids) == 10
    draft = (*alone.token_ids[2:5], 1, 1)
    (found,) = model.generate([ask(begin=alone.token_ids[:2], check=draft)])
    assert isinstance(found, Reply) and found.token_ids == alone.token_ids[2:6] and found.kept == 3 and found.finish == "checked"
    assert found.text == model.chat.text(alone.token_ids[:6]) and found.work is not None
    ((share, positions, context, heads, _),) = found.work
    assert (share, positions, context, heads) == (1.0, found.tokens_in + 7, 0, 6)
    (none,) = model.generate([ask(check=())])
    assert isinstance(none, Reply) and none.token_ids == alone.token_ids[:1] and none.kept == 0
    (whole,) = model.generate([ask(check=alone.token_ids)])
    assert isinstance(whole, Reply) and whole.token_ids == alone.token_ids and whole.finish == "length"
    (over,) = model.generate([ask(begin=alone.token_ids, check=(4,))])
    assert isinstance(over, Reply) and over.token_ids == () and over.finish == "length" and over.work == ()


def test_a_stop_string_ends_a_checked_answer_as_it_ends_a_spoken_one(model: FamilyModel) -> None:
    (alone,) = model.generate([ask()])
    assert isinstance(alone, Reply)
    stop = alone.text[4:6]
    (spoken,) = model.generate([ask(stop=(stop,))])
    (found,) = model.generate([ask(stop=(stop,), check=alone.token_ids)])
    assert isinstance(spoken, Reply) and isinstance(found, Reply) and stop not in spoken.text
    assert (found.text, found.token_ids, found.finish) == (spoken.text, spoken.token_ids, "stop") and found.kept == len(spoken.token_ids)


def test_what_cannot_be_checked_is_refused_by_name_and_alone(model: FamilyModel) -> None:
    warm = Sampling(1.0)
    frame = odds.encode(Logits(np.zeros((2, 3), np.float32), np.zeros((2, 3), int) + [1, 2, 3], model.info.shape.vocab))
    other = odds.encode(Logits(np.zeros((1, 3), np.float32), np.zeros((1, 3), int) + [1, 2, 3], 999))
    requests = [ask(check=(1, 2), sampling=warm), ask(check=(1,), sampling=warm, odds_told=frame), ask(check=(1,), sampling=warm, odds_told=other),
                ask(check=(1,), sampling=warm, odds_told=b"nonsense"), ask(check=(1, 2), sampling=warm, odds_told=frame), ask()]  # fmt: skip
    found = model.generate(requests)
    for reply, why in zip(found[:4], ("brings the odds", "odds of 2 tokens", "out of 999", "frame"), strict=True):
        assert isinstance(reply, CallError) and reply.kind == "refused" and why in reply.message
    assert all(isinstance(reply, Reply) for reply in found[4:])


def test_odds_come_back_with_what_is_said(model: FamilyModel) -> None:
    warm = Sampling(1.2)
    (draft,) = model.generate([Request((Turn("user", "12+5="),), 4, warm, 3, exit=1, odds=5)])
    assert isinstance(draft, Reply) and draft.next is not None and odds.count(draft.next) == 4
    (found,) = model.generate([ask(check=draft.token_ids, odds_told=draft.next, sampling=warm, odds=5, seed=9)])
    assert isinstance(found, Reply) and found.next is not None and odds.count(found.next) == len(found.token_ids)
    (without,) = model.generate([ask(check=draft.token_ids, odds_told=draft.next, sampling=warm, seed=9)])
    assert isinstance(without, Reply) and without.next is None
    (gated,) = model.generate([Request((Turn("user", "12+5="),), 4, warm, 3, exit=1, odds=5, top=Top(1, 0.9999))])
    assert isinstance(gated, Reply) and not gated.token_ids

