"""A team that is served from an evaluation's run folder answers as it did there, and only where it is the same team."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from aiflow_agents.cli import main as door
from aiflow_agents.errors import UserError
from aiflow_agents.evals.fitted import Fitted
from aiflow_agents.runtime.team import Team
from aiflow_agents.serve.app import Endpoint, make_app
from aiflow_agents.serve.served import Models
from aiflow_agents.serve.settings import Settings
from tests.serve.conftest import chat

TOPOLOGIES = "[weighted, router, cascade, {debate: {rounds: 2}}]"


def say(room: Any, name: str) -> Any:
    """As sure when it is wrong as when it is right, at a third of the questions: what that is worth has to be learned."""

    def one(request: Any) -> tuple[str, float]:
        question = request.messages[-1].content
        right = room.knows[name](question)
        sure = 0.9 if room.luck(name, question, "sure") < 0.33 else 0.4 + 0.5 * right
        return (room.truth(question) if right else f"{name}?"), sure * {"ant": 1.0, "bee": 0.6, "cat": 0.3}[name]

    return one


@pytest.fixture
def run(room: Any) -> Any:
    for name in ("ant", "bee", "cat"):
        room.say[name] = say(room, name)
    room.suite("quiz", dev=60, test=30, topologies=TOPOLOGIES)
    return room.evaluate(runtime="inline")


def ask(room: Any, models: Models, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        app = make_app(Endpoint(models, room.hosts))
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return list(await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies)))

    return asyncio.run(main())


def test_what_is_served_answers_as_it_was_evaluated(room: Any, run: Any) -> None:
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    models = Settings([], fitted=str(run.folder), runtime="inline").located().models()
    assert models.by_name["trio"].topology.name() == run.summary["best_topology"]["arm"].partition("(")[0]
    arms = {"weighted": "weighted", "router": "router", "cascade": "cascade", "debate(rounds=2)": "debate", "ann": "ann"}
    wanted = [sample for sample in samples if sample["arm"] in arms]
    answers = ask(room, models, [chat(sample["question"], f"trio/{arms[sample['arm']]}") for sample in wanted])
    assert len(wanted) == 30 * len(arms)
    unlike = 0
    plain = ask(room, Models.of([Team.load("trio")]), [chat(s["question"], f"trio/{arms[s['arm']]}") for s in wanted if s["arm"] != "router"])
    was = iter(plain)
    for sample, answer in zip(wanted, answers, strict=True):
        [choice] = answer.json()["choices"]
        said = choice["message"]["content"], choice["aiflow"]["confidence"], answer.json()["usage"]["aiflow"]["calls"]
        assert said == (sample["answer"], pytest.approx(sample["confidence"], abs=1e-4), sample["usage"]["calls"]), sample
        if sample["arm"] != "router":
            [other] = next(was).json()["choices"]
            unlike += (other["message"]["content"], other["aiflow"]["confidence"]) != said[:2]
    assert unlike > 60, "without the run they would answer otherwise"
    assert models.by_name["trio/weighted"].fingerprint != Models.of([Team.load("trio")]).by_name["trio/weighted"].fingerprint


def test_a_client_cannot_break_a_router(room: Any, run: Any) -> None:
    models = Settings([], fitted=str(run.folder), runtime="inline").models()
    wrong: list[Any] = [[[1, 2, 3]], [], "x", [[1], [2, 3]], {"a": 1}, [["x"]], 5, [[[1]]]]
    answers = ask(room, models, [chat("alpha 0001", "trio/router", topology={"params": {"weights": weights}}) for weights in wrong])
    assert [answer.status_code for answer in answers] == [400] * len(wrong)
    [gone] = ask(room, models, [chat("alpha 0001", "trio/router", topology={"params": {"members": ["ann", "bob", "dan"]}})])
    assert gone.status_code == 400 and "dan" in gone.json()["error"]["message"]


def test_run_asks_the_team_as_it_was_evaluated(room: Any, run: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("aiflow_agents.runtime.run.open_hosts", lambda *_, **__: room.hosts())
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    for arm, given in (("router", ["--topology", "router"]), (run.summary["best_topology"]["arm"], [])):
        sample = next(s for s in samples if s["arm"] == arm)
        assert door.main(["run", sample["question"], "--fitted", str(run.folder), "--json", *given]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["team"], told["topology"], told["answer"]) == ("trio", arm.partition("(")[0], sample["answer"])
        assert told["confidence"] == pytest.approx(sample["confidence"], abs=1e-4)


def test_another_team_is_refused_and_told_what_differs(room: Any, run: Any, capsys: Any) -> None:
    room.team("duo", {"ann": "ant", "bob": "bee"})
    room.team("other", {"ann": "ant", "bob": "cat", "cid": "cat"})
    room.team("copy", {"ann": "ant", "bob": "bee", "cid": "cat"})
    for team, says in (
        ("duo", "for another team than duo: its members were ann, bob, cid, and here they are ann, bob"),
        ("other", "for another team than other: bob's model was bee and is cat; bob's weights was "),
    ):
        for command in (["serve", team, "--runtime", "inline", "--port", "0"], ["run", "alpha 0001", "--team", team]):
            assert door.main([*command, "--fitted", str(run.folder)]) == 2
            out, err = capsys.readouterr()
            assert out == "" and f"{run.folder} was fitted {says}" in err and len(err.splitlines()) == 1
    assert Fitted.read(run.folder).team(Team.load("copy")).agents["bob"].calibration.slope != 1.0, "what it is called is not what it is"


def test_what_was_not_fitted_there_is_refused(room: Any, run: Any, capsys: Any, tmp_path: Path) -> None:
    fitted = str(run.folder)
    for args, says in (
        (["--topology", "self-consistency"], f"{fitted} has not fitted 'self-consistency'; it has weighted, router, cascade, debate(rounds=2)"),
        (["--topology", "cascade", "-T", "threshold=0.5"], "has not fitted 'cascade(threshold=0.5)'"),
        (["-T", "rounds=1"], "-T sets parameters of a topology, and none is given"),
        (["trio", "duo"], "was fitted for one team, and 2 are to be served: trio, duo"),
    ):
        assert door.main(["serve", *args, "--fitted", fitted, "--runtime", "inline", "--port", "0"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and says in err and len(err.splitlines()) == 1
    assert "trio/self-consistency" not in Settings([], fitted=fitted, runtime="inline").models().by_name
    assert Fitted.read(fitted).topology("majority").name() == "majority", "it has nothing to learn"
    for damage, says in (("{", "is damaged"), (None, "has no fitted.json")):
        file = run.folder / "fitted.json"
        file.unlink() if damage is None else file.write_text(damage)
        with pytest.raises(UserError, match=says):
            Fitted.read(fitted)
    with pytest.raises(UserError, match="is no run folder"):
        Fitted.read(tmp_path)
