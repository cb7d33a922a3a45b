"""Models of one's own: objects in a team made in Python, and backends that installed packages bring."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.models.protocol import ModelInfo, Reply, Request, Turn
from aiflow_agents.runtime.hosts import Lent, open_hosts
from aiflow_agents.runtime.placement import seated, unseat
from aiflow_agents.runtime.run import ask
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology


class Echo:
    """Says what it was asked, in capitals or not."""

    def __init__(self, name: str = "echo", *, loud: bool = False):
        self.info = ModelInfo.of(name, costs_as="qwen3-0.6b", version=str(loud), capabilities={"logprobs"})
        self.loud = loud

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        said = [request.messages[-1].content for request in requests]
        return [Reply(text.upper() if self.loud else text, (), (-0.5,), len(text), len(text)) for text in said]


def test_objects_and_folders_talk_in_one_team(models: list[Path]) -> None:
    team = Team.of({"ann": Echo(loud=True), "bob": {"model": Echo(), "tier": "cloud", "role": "server", "max_tokens": 5}, "cat": models[0]}, name="mixed")
    assert [(a.name, a.node, a.role, a.max_tokens) for a in team] == [("ann", "phone", "member", 32), ("bob", "cloud", "server", 5), ("cat", team["cat"].node, "member", 32)]
    assert team.network.nodes[team["cat"].node].tier == "device" and team["cat"].node != "phone"  # the devices in turn
    assert sorted(team.objects) == sorted({team["ann"].folder, team["bob"].folder}) and team.only("cat").objects == {}
    assert team.objects == seated(team).objects and {unseat(agent.folder)[1] for agent in seated(team.only("ann", "bob"))} == set(team.objects)
    result = ask(team, load_topology("single", {"member": "ann"}), "how?")
    assert result.answer == "HOW?" and result.usage.tokens_in == 4 and result.confidence == pytest.approx(0.6065, abs=1e-4)
    assert asyncio.run(team.run(load_topology("debate", {"rounds": 1}), "hm")).usage.calls == 6


def test_two_objects_are_told_apart_by_what_they_say_of_themselves() -> None:
    team = Team.of({"one": Echo(), "two": Echo(loud=True), "six": Echo()})
    assert team["one"].folder == team["six"].folder != team["two"].folder and len(team.objects) == 2
    assert ModelInfo.of("a", costs_as="qwen3-0.6b") != ModelInfo.of("a", costs_as="qwen3-0.6b", version="2")


@pytest.mark.parametrize("members, said", [
    ({}, "a team has at least one member"),
    ({"ann": object()}, "member 'ann', model: this gives object; a model has `info`, a ModelInfo, and a method `generate"),
    ({"ann": {"model": Echo(), "teir": "edge"}}, "member 'ann': no key of a member named 'teir'; did you mean tier?"),
    ({"ann": {"model": Echo(), "tier": "moon"}}, "member 'ann', tier: expected 'device', 'edge' or 'cloud'"),
    ({"ann": {"model": Echo(), "node": "moon"}}, "member 'ann', node: no node of network 'home-wifi' named 'moon'"),
    ({"ann": {"model": Echo(), "exit": 1}}, "member 'ann': a model that is an object takes none of backend, exit"),
    ({"ann": {"model": Echo(), "backend": "http"}}, "member 'ann': "),
    ({"ann": "nobody"}, "member 'ann', model: no model named 'nobody'"),
    ({"ann": {"tier": "edge"}}, "member 'ann', model: Field required"),
])  # fmt: skip
def test_mistakes_in_a_team_made_in_python_are_one_line(members: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Team.of(members)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gives, found", [
    (lambda requests: [], "gave 0  for 1 requests"),
    (lambda requests: ["text"], "gave 1 str for 1 requests"),
    (lambda requests: "text", "gave str for 1 requests"),
])  # fmt: skip
def test_a_model_that_gives_something_else_is_named(gives: Any, found: str) -> None:
    odd = Echo("odd")
    odd.generate = gives  # type: ignore[method-assign]
    with pytest.raises(UserError, match=found):
        ask(Team.of({"ann": odd}), load_topology("single"), "how?")


def test_hosts_of_others_do_not_have_an_object() -> None:
    team = Team.of({"ann": Echo()})
    with pytest.raises(UserError, match="is an object in Python, which these hosts do not have"):
        ask(team, load_topology("single"), "how?", hosts=open_hosts("inline"))
    assert ask(team, load_topology("single"), "how?", hosts=open_hosts("inline", models=team.objects)).answer == "how?"


def test_what_cannot_travel_is_refused_by_name() -> None:
    locked = Echo("locked")
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    Lent({"key": locked})
    with pytest.raises(UserError, match="the model locked cannot be sent to hosts in Ray .*; use the runtime 'inline'"):
        Lent({"key": locked}, away=True)


def test_hosts_in_ray_are_opened_with_what_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow_agents.runtime import ray_hosts

    monkeypatch.setattr(ray_hosts, "RayHosts", lambda **options: options["load"])
    team = Team.of({"ann": Echo(loud=True)})
    assert open_hosts("ray", models=team.objects)(team["ann"].folder) is team["ann"].model and open_hosts("ray") is None  # type: ignore[operator]


def test_objects_of_a_class_that_no_other_process_could_import_answer_there(tmp_path: Path) -> None:
    """Ray's own pickle, which carries what actors are made with, takes the class along: a test's module is found by path alone."""
    from ray import cloudpickle

    def answer(load: Lent, keys: list[str], asked: list[Request]) -> list[str]:
        return [load(key).generate(asked)[0].text for key in keys]  # type: ignore[union-attr]

    team, asked = Team.of({"ann": Echo(loud=True), "bob": Echo()}), [Request((Turn("user", "how?"),))]
    packed = cloudpickle.dumps((answer, Lent(team.objects, away=True), [agent.folder for agent in team], asked))
    code = "import sys; from ray import cloudpickle; do, *given = cloudpickle.loads(sys.stdin.buffer.read()); print(do(*given))"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], input=packed, cwd=tmp_path, env=env, capture_output=True)
    assert ran.stdout.decode().strip() == "['HOW?', 'how?']", ran.stderr.decode()


# --- installed backends ---

PACKAGE = """
from aiflow_agents.models.protocol import ModelInfo, Reply

class Backwards:
    def __init__(self, model, end=""):
        self.info, self.end = ModelInfo.of(model, costs_as="qwen3-0.6b", engine="backwards"), end
    def generate(self, requests):
        return [Reply(request.messages[-1].content[::-1] + self.end, (), None, 1, 1) for request in requests]

def broken(model):
    raise RuntimeError("no licence")

def nothing(model):
    return model
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `flip`, as pip would leave it, and a team file's folder."""
    site = tmp_path / "site"
    (site / "flip-1.0.dist-info").mkdir(parents=True)
    (site / "flip-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: flip\nVersion: 1.0\n")
    points = "backwards = aiflow_flip_test:Backwards\nbroken = aiflow_flip_test:broken\nnothing = aiflow_flip_test:nothing\nlost = aiflow_flip_test:lost\n"
    (site / "flip-1.0.dist-info" / "entry_points.txt").write_text(f"[aiflow_agents.backends]\n{points}")
    (site / "aiflow_flip_test.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "aiflow_flip_test", raising=False)
    return tmp_path


def _team(folder: Path, line: str) -> Team:
    (folder / "team.yaml").write_text(f"network: home-wifi\nmembers:\n  ann: {line}\n")
    return Team.load(folder / "team.yaml")


def test_a_backend_of_an_installed_package_answers_by_its_name(installed: Path) -> None:
    team = _team(installed, "{backend: backwards, model: eno, tier: edge, options: {end: '!'}}")
    assert (team["ann"].info.name, team["ann"].info.engine, team.objects) == ("eno", "backwards", {})
    assert ask(team, load_topology("single"), "how?").answer == "?woh!"  # loaded from text alone, as any host does
    assert ask(Team.of({"ann": {"model": "two", "backend": "backwards"}}), load_topology("single"), "how?").answer == "?woh"


@pytest.mark.parametrize("line, said", [
    ("{backend: backward, model: eno, tier: edge}", "no backend named 'backward'; did you mean backwards"),
    ("{backend: 'aiflow_flip_test:Backwards', model: eno, tier: edge}", "no backend named 'aiflow_flip_test:Backwards'"),  # never from a path in a file
    ("{backend: backwards, model: eno, tier: edge, exit: 1}", "the backend backwards has none"),
    ("{backend: backwards, model: eno, tier: edge, options: {start: 1}}", r"the backend 'backwards' \(aiflow_flip_test:Backwards\) cannot make a model of 'eno': TypeError"),
    ("{backend: broken, model: eno, tier: edge}", "cannot make a model of 'eno': RuntimeError: no licence"),
    ("{backend: lost, model: eno, tier: edge}", "cannot make a model of 'eno': AttributeError"),
    ("{backend: nothing, model: eno, tier: edge}", "gives str; a model has `info`"),
    ("{model: tally, tier: edge, options: {end: 1}}", "options are for backends of other packages, not for family"),
])  # fmt: skip
def test_mistakes_around_installed_backends_name_file_and_line(installed: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"team\.yaml:3: .*" + said) as caught:
        _team(installed, line)
    assert "\n" not in str(caught.value)
