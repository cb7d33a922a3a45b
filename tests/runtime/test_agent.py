"""What an agent asks of its model, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from aiflow_agents.errors import MemberFailed
from aiflow_agents.models.confidence import Calibration
from aiflow_agents.models.protocol import GREEDY, CallError, Reply, Request, Sampling, Turn
from aiflow_agents.runtime.run import Job
from aiflow_agents.runtime.task import Task
from aiflow_agents.wire.frame import decode_text

WARM = Sampling(0.7)


def test_a_request_holds_the_role_the_question_what_was_heard_and_the_instruction(stage: Any) -> None:
    team = stage.team(ann="phone", tim=("tower", lambda request: " 42 "))
    ann = replace(team["ann"], prompt="be brief", max_tokens=7)

    async def run(team: Any) -> Any:
        said = await team["tim"].ask("6*7=")
        return await ann.ask("6*7=", heard=[said, said.as_("answer")], instruct="answer again")

    assert stage.do(team, run).error is None
    turns = Turn("system", "be brief"), Turn("user", "6*7="), Turn("user", " 42 ", "tim"), Turn("user", "42", "tim"), Turn("user", "answer again")
    assert stage.asked == [Request((Turn("user", "6*7="),)), Request(turns, max_tokens=7)]


def test_who_was_taught_to_hears_how_sure_the_others_are(stage: Any) -> None:
    team = stage.team(ann="phone", tim=("phone", lambda request: ("42", 0.974)), sue=("phone", lambda request: ("41", None)))
    keen = replace(team["ann"], info=replace(team["ann"].info, capabilities=frozenset({"confidence"})))

    async def run(team: Any) -> Any:
        heard = [await team["tim"].ask("q"), await team["sue"].ask("q")]
        await team["ann"].ask("q", heard=heard)
        return await keen.ask("q", heard=heard)

    assert stage.do(team, run).error is None
    assert [[turn.content for turn in request.messages[1:]] for request in stage.asked[2:]] == [["42", "41"], ["42~97", "41"]]


def test_in_a_dialogue_its_own_words_are_its_own_turns(stage: Any) -> None:
    team = stage.team(ann="phone", tim="phone")

    async def run(team: Any) -> Any:
        mine, theirs = await team["ann"].ask("q"), await team["tim"].ask("q")
        await team["ann"].ask("q", heard=[mine, theirs])
        return await team["ann"].ask("q", heard=[mine, theirs], dialogue=True)

    assert stage.do(team, run).error is None
    assert [request.messages[1] for request in stage.asked[2:]] == [Turn("user", "ann:q", "ann"), Turn("assistant", "ann:q")]
    assert {request.messages[2] for request in stage.asked[2:]} == {Turn("user", "tim:q", "tim")}


def test_an_agents_own_sampling_holds_unless_another_is_given(stage: Any) -> None:
    team = stage.team(ann="phone")
    ann = replace(team["ann"], sampling=WARM)

    async def run(team: Any) -> Any:
        await ann.ask("q")
        return await ann.ask("q", sampling=GREEDY)

    stage.do(team, run)
    assert [(request.sampling, request.seed != 0) for request in stage.asked] == [(WARM, True), (GREEDY, False)]


def test_the_answer_is_a_message_at_the_agents_node(stage: Any) -> None:
    team, seen = stage.team(ann="phone", tim=("tower", lambda request: ("  so: 42\n", 0.5))), []

    async def run(team: Any) -> Any:
        draft = await team["ann"].ask("q")
        message = await team["tim"].ask("q", heard=[draft])
        seen.append((draft, message))
        return await message.to("phone")

    result = stage.do(team, run)
    ((draft, message),) = seen
    assert (draft.id, message.id, message.author, message.node, message.heard) == ("ann.1", "tim.2", "tim", "tower", ("ann.1",))
    assert (result.text, result.answer, result.confidence) == ("  so: 42\n", "so: 42", 0.5)
    assert (message.usage.calls, message.usage.tokens_in, message.usage.tokens_out) == (1, 4, 10)


def test_a_question_may_be_a_message_and_its_place_is_paid_for(stage: Any) -> None:
    team = stage.team(ann=("phone", lambda request: "what is love?"), tim="tower")

    async def run(team: Any) -> Any:
        return await team["tim"].ask(await team["ann"].ask("ask tim something"))

    spans: list[Any] = []
    assert stage.do(team, run, listener=spans.append).answer == "tim:what is love?"
    assert [(span.message, span.to) for span in spans if span.kind == "move"] == [("ann.1", "tower"), ("tim.2", "phone")]


def test_a_refused_call_is_the_members_failure(stage: Any) -> None:
    team = stage.team(ann=("phone", lambda request: CallError("too-long", "the prompt has 300 tokens")))
    assert stage.do(team, lambda team: team["ann"].ask("q")).error == "MemberFailed: ann: the prompt has 300 tokens"


# --- confidence ---


def confidence(stage: Any, logprobs: tuple[float, ...] | None, calibration: Calibration | None = None) -> float | None:
    """What comes out at home of an answer given at the tower."""
    team = stage.team(tim=("tower", lambda request: Reply("yes", (1, 2), logprobs, 2, 2)))
    if calibration:
        team = team.calibrated({"tim": calibration})
    return stage.do(team, lambda team: team["tim"].ask("q")).confidence


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_confidence_is_the_product_of_the_answers_probabilities(stage: Any, probabilities: list[float]) -> None:
    product = min(max(float(np.prod(probabilities)), 1e-6), 1 - 1e-6)  # never quite impossible, never quite certain
    assert confidence(stage, tuple(map(math.log, probabilities))) == pytest.approx(product, rel=1e-6)


def test_who_rates_repeats_an_answer_with_how_likely_it_holds_it(stage: Any) -> None:
    team = stage.team(ann=("phone", lambda request: (request.score or "41", 0.25)), tim=("tower", lambda request: (" 42 ", 0.9)))
    can = replace(team["ann"], info=replace(team["ann"].info, capabilities=frozenset({"logprobs", "score"})), calibration=Calibration(2.0, 0.5))

    async def run(team: Any) -> Any:
        said = await team["tim"].ask("q")
        rating = await can.ask("q", rate=said)
        assert rating.heard == (said.id,) and rating.node == "phone" and rating.author == "ann"
        ratings = await can.rate("q", [said, said.as_("answer"), await can.ask("q")])
        assert len(ratings) == 1
        return rating

    result = stage.do(team, run)
    assert (result.error, result.answer, result.confidence) == (None, "42", pytest.approx(Calibration(2.0, 0.5)(0.25)))
    assert [request.score for request in stage.asked] == ["", " 42 ", ""]  # the same again is not asked again
    assert stage.asked[1] == Request((Turn("user", "q"),), 0, score=" 42 ", ended=True)


@pytest.mark.parametrize(("said", "why"), [("42", "tim cannot rate an answer: its model tim does not say"), ("", "ann cannot rate message tim.1, which says nothing")])
def test_what_cannot_be_rated_is_said(stage: Any, said: str, why: str) -> None:
    team = stage.team(ann="phone", tim=("phone", lambda request: said))
    can = replace(team["ann"], info=replace(team["ann"].info, capabilities=frozenset({"logprobs", "score"})))

    async def run(team: Any) -> Any:
        draft = await team["tim"].ask("q")
        return await (team["tim"] if said else can).ask("q", rate=draft)

    assert why in str(stage.do(team, run).error)


def test_without_logprobs_there_is_none(stage: Any) -> None:
    assert confidence(stage, None) is None


def test_a_confidence_is_the_same_before_and_after_it_has_travelled(stage: Any) -> None:
    team, read = stage.team(ann=("phone", lambda request: ("a", 1 / 3))), []

    async def run(team: Any) -> Any:
        message = await team["ann"].ask("q")
        read.append(message.confidence)
        read.append(decode_text(message.encode()).confidence)
        return message

    assert stage.do(team, run).confidence == read[0] == read[1] == float(np.float32(1 / 3))


def test_a_calibrated_team_says_calibrated_confidences(stage: Any) -> None:
    assert confidence(stage, (math.log(0.9),), Calibration(0.5, -0.25)) == pytest.approx(expit(0.5 * logit(0.9) - 0.25), rel=1e-6)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 5), st.floats(-5, 5))
@example(0.0, 1.0, 50.0, -500.0)
def test_calibration_is_a_line_on_the_logit_scale_and_keeps_the_order(p: float, q: float, slope: float, bias: float) -> None:
    calibrate = Calibration(slope, bias)
    inside = min(max(p, 1e-6), 1 - 1e-6)
    assert calibrate(p) == pytest.approx(expit(slope * logit(inside) + bias), rel=1e-9, abs=1e-300)
    assert 0 <= calibrate(p) <= 1 and (calibrate(p) <= calibrate(q) or p > q)


# --- seeds ---


async def ask_warm(team: Any, name: str = "ann", question: str = "q", **options: Any) -> Any:
    return await team[name].ask(question, **{"sampling": WARM} | options)


def seed(stage: Any, team: Any, run: Callable[[Any], Any] = ask_warm, *, task: str = "t0", repeat: int = 0, arm: str = "arm", **options: Any) -> int:
    """The seed with which the last call of a task is made."""

    class Pattern:
        async def run(self, task: Any, team: Any) -> Any:
            return await run(team)

    stage.run_jobs([Job(arm, Pattern(), Task(task, "q"), team, repeat)], **options)
    return stage.asked[-1].seed


def test_a_seed_depends_on_run_task_repeat_agent_sample_and_input(stage: Any) -> None:
    team = stage.team(ann="phone", bob="phone")

    async def having_heard(team: Any, author: str) -> Any:
        return await ask_warm(team, heard=[await team[author].ask("q")])

    seeds = [
        seed(stage, team),
        seed(stage, team, seed=1),
        seed(stage, team, task="t1"),
        seed(stage, team, repeat=1),
        seed(stage, team, lambda team: ask_warm(team, "bob")),
        seed(stage, team, lambda team: ask_warm(team, sample=1)),
        seed(stage, team, lambda team: ask_warm(team, question="q?")),
        seed(stage, team, lambda team: ask_warm(team, instruct="think")),
        seed(stage, team, lambda team: having_heard(team, "ann")),
        seed(stage, team, lambda team: having_heard(team, "bob")),
    ]
    assert len(set(seeds)) == len(seeds) and all(0 < value < 2**63 for value in seeds)


def test_a_seed_does_not_depend_on_arm_time_place_or_company(stage: Any) -> None:
    async def later(team: Any) -> Any:
        await asyncio.sleep(5)
        await team["tim"].ask("something else")
        return await ask_warm(team)

    team = stage.team(ann="phone", tim="tower")
    first = seed(stage, team)
    assert first == seed(stage, team, arm="another arm") == seed(stage, team, later) == seed(stage, stage.team(ann="tower"))
    assert first == seed(stage, team, lambda team: ask_warm(team, sampling=Sampling(1.0, 0.9)))


def test_greedy_calls_have_no_seed(stage: Any) -> None:
    team = stage.team(ann="phone")
    assert {seed(stage, team, lambda team: team["ann"].ask("q"), task=f"t{i}", seed=i) for i in range(3)} == {0}


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("the conversation is empty", "oak: the conversation is empty"),
        ("oak: the conversation is empty", "oak: the conversation is empty"),
        ("oak runs on vLLM, where it cannot draft", "oak runs on vLLM, where it cannot draft"),
        ("oakum: no answer", "oak: oakum: no answer"),
    ],
)
def test_who_failed_is_said_once(reason: str, said: str) -> None:
    error = pickle.loads(pickle.dumps(MemberFailed("oak", reason, "refused")))
    assert (str(error), error.member, error.reason, error.kind) == (said, "oak", reason, "refused")
