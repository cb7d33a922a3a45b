"""What a verdict may say: error rates, monotonicity, and sentences that are true."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from aiflow_agents.evals.statistics import holm, mde
from aiflow_agents.evals.verdict import judge, points, quantity, sentence


def draw(accuracies: dict[str, float], n: int, seed: int) -> dict[str, np.ndarray]:
    """Independent right/wrong scores, over a shared difficulty that makes arms agree about as often as real ones do."""
    rng = np.random.default_rng(seed)
    shared, coin = rng.random(n), rng.random((len(accuracies), n)) < 0.7
    return {arm: np.where(coin[i], shared, rng.random(n)) < accuracy for i, (arm, accuracy) in enumerate(accuracies.items())}


KINDS = {"a": "member", "b": "member", "c": "member", "debate": "topology", "star": "topology", "zeros": "placebo",
         "oracle": "rival", "self-consistency@flops": "rival", "vote": "rival"}


def kinds(scores) -> dict[str, str]:
    return {arm: KINDS[arm] for arm in scores}


def row(verdicts, arm, against="members"):
    return next(v for v in verdicts if (v.arm, v.against) == (arm, against))


def judged(scores, **options):
    return judge(scores, kinds(scores), **{"best_member": "a", "best_topology": "debate", "oracle": None, **options})


def test_rows_counts_and_intervals():
    scores = draw({"a": 0.6, "b": 0.4, "debate": 0.8, "star": 0.5, "zeros": 0.5, "self-consistency@flops": 0.62, "vote": 0.5}, 800, seed=1)
    scores["oracle"] = scores["a"] | scores["b"]
    verdicts = judged(scores, oracle="oracle")
    assert [(v.arm, v.against) for v in verdicts] == [("debate", "members"), ("star", "members"), ("zeros", "members"),
                                                      ("debate", "self-consistency@flops"), ("debate", "vote")]
    debate = row(verdicts, "debate")
    wins, losses = int((scores["debate"] & ~scores["a"]).sum()), int((scores["a"] & ~scores["debate"]).sum())
    assert (debate.wins, debate.losses, debate.ties) == (wins, losses, 800 - wins - losses)
    assert debate.delta == pytest.approx((wins - losses) / 800) and debate.ci95[0] < debate.delta < debate.ci95[1]
    assert debate.says == "beats" and row(verdicts, "star").says == "loses"
    assert debate.capture is not None and row(verdicts, "debate", "vote").capture is None
    assert row(verdicts, "zeros").p == row(verdicts, "zeros").p_holm, "placebos are a family of their own"


def test_p_is_the_largest_of_the_members_and_holm_runs_over_topologies():
    scores = draw({"a": 0.5, "b": 0.55, "debate": 0.62, "star": 0.64}, 700, seed=5)
    verdicts = judged(scores)

    def exact(arm, member):
        b, c = int((scores[arm] & ~scores[member]).sum()), int((scores[member] & ~scores[arm]).sum())
        return binomtest(b, b + c).pvalue

    debate, star = row(verdicts, "debate"), row(verdicts, "star")
    assert debate.p == pytest.approx(max(exact("debate", "a"), exact("debate", "b")))
    assert star.p == pytest.approx(max(exact("star", "a"), exact("star", "b")))
    assert sorted([debate.p_holm, star.p_holm]) == pytest.approx(sorted([2 * min(debate.p, star.p), max(debate.p, star.p)]))


def test_rivals_are_corrected_among_themselves_and_mde_is_at_the_level_used():
    scores = draw({"a": 0.5, "debate": 0.62, "star": 0.6, "vote": 0.58, "self-consistency@flops": 0.6}, 700, seed=5)
    verdicts = judged(scores)
    rivals = [v for v in verdicts if v.against != "members"]
    assert [v.p_holm for v in rivals] == holm([v.p for v in rivals]).tolist() != [v.p for v in rivals]
    debate = row(verdicts, "debate")
    assert debate.mde == pytest.approx(mde(700, (debate.wins + debate.losses) / 700, 0.05 / 2))


def test_a_member_that_dev_did_not_choose_can_forbid_beats():
    scores = draw({"a": 0.5, "b": 0.9, "debate": 0.7}, 1000, seed=0)
    debate = row(judged(scores), "debate")
    assert debate.delta > 0 and debate.p == 1.0 and debate.says == "not shown"


def test_loses_is_against_the_member_chosen_on_dev():
    scores = draw({"a": 0.7, "b": 0.2, "debate": 0.5}, 1000, seed=0)
    assert row(judged(scores), "debate").says == "loses"
    assert row(judged(scores, best_member="b"), "debate").says == "not shown"


@pytest.mark.parametrize("graded", [False, True])
def test_identical_arms_never_beat(graded):
    one = np.random.default_rng(0).random(200) if graded else np.random.default_rng(0).random(200) < 0.5
    verdicts = judged({"a": one, "b": one, "debate": one, "vote": one})
    assert all(v.says == "not shown" and v.delta == 0 and v.p == 1 for v in verdicts)


def test_equal_arms_rarely_beat():
    equal = dict.fromkeys(["a", "debate", "star", "vote"], 0.6)
    fooled = [any(v.says == "beats" for v in judged(draw(equal, 150, seed))) for seed in range(150)]
    assert np.mean(fooled) <= 0.05


def test_equal_graded_arms_rarely_beat():
    fooled = 0
    for seed in range(150):
        a, debate = np.random.default_rng(seed).random((2, 60)).round(2)
        fooled += row(judged({"a": a, "debate": debate}), "debate").says == "beats"
    assert fooled / 150 <= 0.05


@given(st.integers(0, 10**6), st.floats(0.2, 0.9), st.floats(0.2, 0.9), st.booleans())
@settings(max_examples=15, deadline=None)
def test_swapping_two_arms_flips_the_sign(seed, first, second, graded):
    x, y = draw({"a": first, "debate": second}, 120, seed).values()
    if graded:
        x, y = (x * 0.5 + np.linspace(0, 0.5, 120)), (y * 0.5 + np.linspace(0, 0.5, 120))
    here, there = row(judged({"a": x, "debate": y}), "debate"), row(judged({"a": y, "debate": x}), "debate")
    assert here.delta == -there.delta and here.p == there.p and (here.wins, here.losses) == (there.losses, there.wins)
    assert {here.says, there.says} in ({"beats", "loses"}, {"not shown"})


@given(st.integers(0, 10**6), st.floats(0.3, 0.9))
@settings(max_examples=15, deadline=None)
def test_another_member_can_only_raise_p(seed, accuracy):
    scores = draw({"a": 0.5, "b": 0.4, "debate": 0.65, "star": 0.45}, 200, seed)
    more = scores | draw({"c": accuracy}, 200, seed + 1)
    for arm in ("debate", "star"):
        assert row(judged(more), arm).p >= row(judged(scores), arm).p


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_says_follows_p_holm_and_the_sign(seed):
    for v in judged(draw({"a": 0.5, "b": 0.5, "debate": 0.6, "star": 0.42, "vote": 0.55}, 250, seed)):
        assert v.says == ("not shown" if v.p_holm > 0.05 else "beats" if v.delta > 0 else "loses")
        assert v.p_holm >= v.p


def test_graded_scores_are_seen_as_graded():
    rng = np.random.default_rng(0)
    a = rng.random(400)
    verdicts = judged({"a": a, "debate": a + rng.normal(0.05, 0.1, 400), "star": a - 0.5})
    debate, star = row(verdicts, "debate"), row(verdicts, "star")
    assert debate.says == "beats" and debate.ci95[0] < 0.05 < debate.ci95[1] and 0 < debate.mde < 0.05
    assert star.says == "loses" and star.mde is None, "differences that never vary carry no estimate of the spread"


def test_too_few_tasks_can_show_nothing():
    scores = {"a": np.zeros(4), "debate": np.ones(4)}
    verdict = row(judged(scores), "debate")
    assert verdict.says == "not shown" and verdict.mde is None


def test_no_topology_no_rival_rows():
    scores = draw({"a": 0.5, "zeros": 0.5, "vote": 0.9}, 100, 0)
    assert [v.arm for v in judged(scores, best_topology=None)] == ["zeros"]


@pytest.mark.parametrize(("scores", "options"), [
    ({"a": [1, 0], "debate": [1, 0, 1]}, {}),
    ({"a": [1, 0], "debate": [1, float("nan")]}, {}),
    ({"a": [], "debate": []}, {}),
    ({"a": [1, 0], "debate": [1, 0]}, {"best_member": "b"}),
    ({"a": [1, 0], "debate": [1, 0]}, {"best_member": "debate"}),
    ({"a": [1, 0], "debate": [1, 0]}, {"oracle": "oracle"}),
])
def test_scores_that_do_not_fit_are_refused(scores, options):
    with pytest.raises(ValueError):
        judged({arm: np.array(values, dtype=float) for arm, values in scores.items()}, **options)


def summary(delta=0.173, says="beats", p_holm=1e-9, mde=0.034, ci95=(0.151, 0.195), **changes):
    cost = {"kind": "member", "n_failed": 0, "wire_bytes": 123.4, "latency_s": {"p50": 0.0453, "p95": 0.1}, "energy_j": 0.3}
    verdict = {"arm": "debate", "against": "members", "delta": delta, "ci95": ci95, "p_holm": p_holm, "mde": mde, "says": says}
    arms = {"a": {**cost, "accuracy": 0.64, "wire_bytes": 0}, "debate": {**cost, "accuracy": 0.64 + delta}}
    return {"n_tasks": 1400, "split": "test", "arms": arms,
            "best_member": {"arm": "a", "chosen_on": "dev"}, "best_topology": {"arm": "debate", "chosen_on": "dev"}, "verdicts": [verdict], **changes}


def test_sentences():
    assert sentence(summary()) == (
        "The team (debate) answers 81.3 % of 1,400 unseen questions; its best member, a, answers 64.0 %. "
        "The difference of 17.3 points (95 % interval 15.1 to 19.5) is real: it beats every member (p < 0.001). "
        "Per question it cost 123 bytes on the wire, 45.3 ms at the median and 300 mJ; "
        "the best member: 0 bytes on the wire, 45.3 ms at the median and 300 mJ.")
    unclear = summary(0.012, "not shown", 0.21, 0.034, (-0.01, 0.034))
    assert "of 1.2 points (95 % interval -1.0 to 3.4) is not shown (p = 0.21; this many questions could have shown 3.4 points)." in sentence(unclear)
    assert "is not shown against every member (p = 1.00;" in sentence(summary(says="not shown", p_holm=1.0))
    assert "so few questions could have shown nothing" in sentence(summary(says="not shown", p_holm=1.0, mde=None))
    worse = sentence(summary(-0.04, "loses", 0.0123, 0.02, (-0.06, -0.02)))
    assert "-4.0 points (95 % interval -6.0 to -2.0) is real: the team is worse than its best member (p = 0.012)" in worse
    alone = sentence(summary(best_topology=None, verdicts=[]))
    assert alone.startswith("No topology was run. The best member, a, answers 64.0 % of 1,400 unseen questions.")
    assert sentence(summary(best_topology={"arm": None, "chosen_on": "dev"}, verdicts=[])) == alone
    assert "questions of the dev split" in sentence(summary(split="dev"))
    assert "of 1,400 unseen questions in 200 clusters;" in sentence(summary(n_clusters=200))
    assert sentence(summary(best_member=None)).startswith("No member")


def test_failures_are_said():
    failing = summary()
    failing["arms"]["debate"]["n_failed"] = 12
    assert "of 1,400 unseen questions (12 failed and count as wrong); its best member" in sentence(failing)


def test_a_verdict_survives_json():
    scores = draw({"a": 0.6, "debate": 0.8}, 300, 0)
    assert json.loads(json.dumps(dataclasses.asdict(judged(scores)[0])))["says"] == "beats"


def test_numbers_for_people():
    assert [points(x) for x in (0.173, -0.04, -0.0001, 0.0)] == ["17.3", "-4.0", "0.0", "0.0"]
    expected = {(0.0453, "s"): "45.3 ms", (1.2e9, "FLOP"): "1.2 GFLOP", (999.99, "B"): "1 kB", (123_456, "B"): "123 kB", (0, "J"): "0 J",
                (None, "s"): "-", (0.25, "tokens"): "0.25 tokens", (-2e-6, "J"): "-2 µJ"}
    assert {given: quantity(*given) for given in expected} == expected


@pytest.mark.parametrize("graded", [False, True])
def test_clustered_tasks_count_as_their_clusters(graded):
    """Every question of a scene is answered alike, so seven of them are worth no more than one."""
    few = draw({"a": 0.55, "b": 0.4, "debate": 0.68, "vote": 0.5}, 120, seed=4)
    few["oracle"] = few["a"] | few["b"]
    few = {arm: values * (0.5 if graded else 1.0) for arm, values in few.items()}
    many, cluster = {arm: np.repeat(values, 7) for arm, values in few.items()}, np.repeat(np.arange(120), 7)
    one, naive, apart = (row(judged(scores, oracle="oracle", cluster=of), "debate")
                         for scores, of in ((many, cluster), (many, None), (few, None)))
    assert one.delta == apart.delta == naive.delta and one.p == pytest.approx(apart.p, rel=0.3 if graded else 1e-9) and naive.p < one.p / 100
    width = {name: found.ci95[1] - found.ci95[0] for name, found in (("one", one), ("naive", naive), ("apart", apart))}
    assert width["one"] == pytest.approx(width["apart"], rel=0.06) and width["naive"] < 0.45 * width["one"]
    assert one.mde > 2 * naive.mde and one.capture[0] == pytest.approx(apart.capture[0]) and one.wins == 7 * apart.wins
    assert one.capture[1][1] - one.capture[1][0] > 2 * (naive.capture[1][1] - naive.capture[1][0])
