"""The rivals: what the same compute gives without talking."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aiflow_agents.evals.rivals import MOST_SAMPLES, RIVALS, RandomPick, SampledVote, SelfTalk, members_vote, rivals, self_consistency
from aiflow_agents.topology.load import load_topology


class Trial:
    """Costs and accuracies by rule: `right(samples, temperature)`; sample i costs `price(i)` FLOPs, and twice that in tokens. One greedy answer costs 1."""

    best_member = "ann"

    def __init__(self, team: Any, right: Any = lambda n, t: 0.5, price: Any = lambda i: 10.0, others: tuple[float, float] = (0.9, 35.0)):
        self.team, self.right, self.price, self.others = team, right, price, others

    def accuracy(self, topology: Any) -> tuple[float, float]:
        if topology.name() == "self-consistency":
            return self.right(topology.samples, topology.temperature), sum(self.price(i) for i in range(topology.samples))
        return (self.right(1, 0), 1.0) if topology.name() == "single" else self.others

    def tokens(self, topology: Any) -> tuple[float, float]:
        right, flops = self.accuracy(topology)
        return right, 2 * flops


@pytest.fixture
def team(stage: Any) -> Any:
    return stage.team(ann="phone", bob="phone", tim="tower")


@pytest.mark.parametrize(("budget", "samples"), [(35, 4), (40, 4), (40.1, 5), (5, 1), (0, 1), (10_000, MOST_SAMPLES)])
def test_as_many_samples_as_the_budget_allows_rounded_up(team: Any, budget: float, samples: int) -> None:
    rival: Any = self_consistency(Trial(team, lambda n, t: 0.5 + n / 1000 if t else 0.4), budget, 1)
    assert (rival.name(), rival.member, rival.samples) == ("self-consistency", "ann", samples)
    rival = self_consistency(Trial(team, lambda n, t: 0.5 + n / 1000 if t else 0.4), 2 * budget, 2)
    assert rival.samples == samples


def test_it_gets_its_budget_where_later_samples_are_shorter(team: Any) -> None:
    made = Trial(team, lambda n, t: 0.5 + n / 1000 if t else 0.4, lambda i: 10.0 if i < 2 else 4.0)
    rival: Any = self_consistency(made, 40, 1)
    assert made.accuracy(rival)[1] >= 40 and rival.samples == 7


def test_the_temperature_is_the_best_on_dev(team: Any) -> None:
    rival: Any = self_consistency(Trial(team, lambda n, t: 0.9 if t == 0.5 else 0.6), 35, 1)
    assert rival.temperature == 0.5


def test_where_greedy_is_better_on_dev_it_is_the_rival(team: Any) -> None:
    rival: Any = self_consistency(Trial(team, lambda n, t: 0.7 if n == 1 and t == 0 else 0.6), 35, 1)
    assert (rival.name(), rival.member) == ("single", "ann")


@pytest.mark.parametrize(
    ("best", "missing"),
    [(("debate", {}), set()), (("majority", {}), {"vote"}), (("weighted", {}), {"vote@weighted"}),
     (("weighted", {"decide": "most-confident"}), {"vote@most-confident"})],
)  # fmt: skip
def test_all_rivals_but_the_one_that_is_the_team_itself(team: Any, best: Any, missing: set[str]) -> None:
    assert set(rivals(Trial(team), load_topology(*best), 0)) == {*RIVALS} - missing - {"monolith", "oracle"}


class Votes(Trial):
    """`right(decision, samples, temperature)`; a greedy answer costs 1 each, sample i of one member `price(i)`; the topology judged costs `budget`."""

    def __init__(self, team: Any, budget: float, right: Any, price: Any = lambda i: 1.0):
        super().__init__(team, right, price)
        self.budget = budget

    def accuracy(self, topology: Any) -> tuple[float, float]:
        if topology.name() in ("majority", "weighted"):
            return self.right(topology.name(), 0, 0), len(self.team)
        if topology.name() == "sampled-vote":
            return self.right(topology.decide.__name__, topology.samples, topology.temperature), len(self.team) * sum(map(self.price, range(topology.samples)))
        return 0.9, self.budget


@pytest.mark.parametrize(("budget", "samples"), [(12, 4), (12.1, 5), (30, 10), (10_000, MOST_SAMPLES)])
def test_every_member_votes_as_often_as_the_budget_allows_rounded_up(team: Any, budget: float, samples: int) -> None:
    rival: Any = members_vote(Votes(team, budget, lambda decide, n, t: t if t < 1 else 0), load_topology("debate"))
    assert (type(rival), rival.samples, rival.temperature) == (SampledVote, samples, 0.7)
    made = Votes(team, budget, lambda decide, n, t: t if t < 1 else 0, lambda i: 1.0 if i < 2 else 0.4)
    assert made.accuracy(longer := members_vote(made, load_topology("debate")))[1] >= budget or longer.samples == MOST_SAMPLES  # type: ignore[attr-defined]


@pytest.mark.parametrize("best", [("majority", False), ("weighted", False), ("majority", True), ("weighted", True)])
def test_the_best_vote_on_dev_is_the_rival(team: Any, best: tuple[str, bool]) -> None:
    """Greedy or sampled, by majority or weighted."""
    rival: Any = members_vote(Votes(team, 30, lambda decide, n, t: 0.8 if (decide, n > 0) == best and t in (0, 0.3) else 0.6), load_topology("debate"))
    decide, sampled = best
    assert (rival.decide.__name__, rival.samples, rival.temperature) == (decide, 10, 0.3) if sampled else rival.name() == decide


def test_nothing_is_sampled_where_one_answer_each_costs_as_much_and_a_vote_is_not_its_own_rival(team: Any) -> None:
    cheap = Votes(team, 3, lambda decide, n, t: 1.0 if n else 0.7 if decide == "weighted" else 0.6)
    assert members_vote(cheap, load_topology("debate")).name() == "weighted"
    assert members_vote(cheap, load_topology("weighted")).name() == "majority"


def test_all_samples_of_all_members_are_one_vote(stage: Any, team: Any) -> None:
    """Ann and Bob mostly say one thing, Tim always another, and is surer."""
    mostly = {name: lambda request: ("this" if request.seed % 4 else str(request.seed), 0.5) for name in ("ann", "bob")}
    stage.say |= mostly | {"tim": lambda request: ("that", 0.95)}
    votes = [stage.run(SampledVote(samples=8, temperature=0.7, decide=decide), team)[0] for decide in ("majority", "weighted")]
    assert [vote.answer for vote in votes] == ["this", "that"] and {vote.usage.calls for vote in votes} == {24}
    asked = Counter((request.sampling.temperature, len(request.messages)) for request in stage.asked)
    assert asked == {(0.7, 1): 48} and len({request.seed for request in stage.asked}) == 24  # nobody hears anybody; each draw is another one


def test_flops_and_tokens_are_budgets_of_their_own(team: Any) -> None:
    made = Trial(team, lambda n, t: 0.5 + n / 1000 if t else 0.4)
    made.tokens = lambda topology: (0, 100.0) if topology.name() == "debate" else (0, made.accuracy(topology)[1])  # type: ignore[method-assign]
    arms: Any = rivals(made, load_topology("debate"), 0)
    assert (arms["self-consistency@flops"].samples, arms["self-consistency@tokens"].samples) == (4, 10)


def test_a_member_without_confidence_cannot_vote_by_it_and_one_cannot_vote_alone(stage: Any, team: Any) -> None:
    from dataclasses import replace

    ann = team["ann"]
    dumb = replace(team, agents={"ann": replace(ann, info=replace(ann.info, capabilities=frozenset())), "bob": team["bob"]})
    assert not {"vote@weighted", "vote@most-confident"} & set(rivals(Trial(dumb), load_topology("debate"), 0))
    assert not any(name.startswith("vote") for name in rivals(Trial(team.only("ann")), load_topology("single"), 0))


def test_a_random_pick_depends_on_seed_and_task_alone(stage: Any, team: Any) -> None:
    questions = [f"q{i}" for i in range(300)]
    answers = [[r.answer for r in stage.run(RandomPick(seed=seed), team, questions, seed=9 + seed)] for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]
    shares = Counter(answer.partition(":")[0] for answer in answers[0])
    assert set(shares) == {"ann", "bob", "tim"} and min(shares.values()) > 60
    assert all(r.usage.calls == 1 for r in stage.run(RandomPick(), team, questions[:5]))


def test_self_talk_hears_itself(stage: Any, team: Any) -> None:
    heard = lambda request: f"{len(request.messages)}" if len(request.messages) == 1 else request.messages[-1].content + "!"  # noqa: E731
    stage.say["ann"] = heard
    result = stage.run(SelfTalk(member="ann", rounds=2), team)[0]
    assert (result.answer, result.usage.calls) == ("1!!", 3)
    assert {turn.name for request in stage.asked for turn in request.messages[1:]} == {"ann"}
