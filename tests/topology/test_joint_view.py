"""Four cameras and an edge: what travels, what it costs, and that no picture leaves its camera."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import PrivacyError, UserError
from aiflow_agents.evals.rehearsal import rehearse_one
from aiflow_agents.evals.suite import Suite, load_suites
from aiflow_agents.models.protocol import Want
from aiflow_agents.runtime.inputs import at_cameras
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.ray_hosts import RayHosts
from aiflow_agents.runtime.run import Job, Result
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology
from tests.conftest import run_in_order

CAMERAS = ("tablet", "laptop", "pi", "jetson")
SUITE = "scenes: [all, most, at]\ncameras: [tablet, laptop, pi, jetson]\n"


@pytest.fixture(scope="module")
def mole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that sees."""
    import torch

    from aiflow_agents.training.recipe import Recipe
    from aiflow_agents.training.sight import SightTrainer

    recipe = {
        "name": "mole", "description": "Hardly sees.", "architecture": "qwen3", "tier": "edge", "seed": 3, "skills": {"all": 1.0},
        "size": {"width": 32, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64}, "vision": {"layer": 2},
        "phases": [{"kind": "answer", "tokens": 10}],
    }  # fmt: skip
    trainer = SightTrainer(Recipe.model_validate(recipe), tmp_path_factory.mktemp("mole"))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    trainer.export(trainer.folder / "mole")
    return trainer.folder / "mole"


@pytest.fixture(scope="module")
def team(mole: Path) -> Team:
    members = [f"  {node}: {{model: {mole}, tier: device, node: {node}, role: camera, max_tokens: 3}}" for node in CAMERAS]
    (mole.parent / "team.yaml").write_text("\n".join(["members:", *members, f"  hub: {{model: {mole}, tier: edge, role: edge, max_tokens: 3}}", ""]))
    return Team.load(mole.parent / "team.yaml")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """Two scenes, three questions each."""
    folder = tmp_path_factory.mktemp("room")
    (folder / "eval.yaml").write_text(f"team: partial-views\n{SUITE}tasks: {{dev: 3, test: 6}}\n")
    (suite,) = load_suites(str(folder / "eval.yaml"))
    assert isinstance(suite, Suite)
    return suite.tasks("test", 1)


def run(team: Team, topology: Any, tasks: list[Task], hosts: Any = None, memory: Memory | None = None) -> list[Result]:
    return run_in_order([Job("x", topology, task, team, traced=True) for task in tasks], hosts, memory, fails=True)


def joint(**parameters: Any) -> Any:
    return load_topology("joint-view", {"codec": "float32", **parameters})


def test_a_suite_puts_pictures_at_its_cameras(tasks: list[Task]) -> None:
    assert [set(task.inputs) for task in tasks] == [set(CAMERAS)] * 6
    assert [task.tags for task in tasks] == [("all",), ("most",), ("at",)] * 2
    digests = [[message.picture.digest for message in task.inputs.values()] for task in tasks]  # type: ignore[union-attr]
    assert digests[0] == digests[2] != digests[3] and len(set(digests[0])) == 4


@pytest.mark.parametrize("change", ["cameras: [tablet]\nscenes: [all]", "scenes: [hue]\ncameras: [a, b, c, d]", "skills: [add]\ncameras: [a, b, c, d]"])
def test_a_suite_says_what_is_wrong(tmp_path: Path, change: str) -> None:
    (tmp_path / "eval.yaml").write_text(f"team: partial-views\n{change}\n")
    with pytest.raises(UserError, match=r"eval.yaml"):
        load_suites(str(tmp_path / "eval.yaml"))


def test_the_joint_answer_is_that_of_the_model_with_all_pictures(team: Team, mole: Path, tasks: list[Task]) -> None:
    """By the model itself, without a runtime; and features are made once a scene, whatever is asked."""
    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.models.protocol import Request, Turn

    model, memory = FamilyModel.load(mole), Memory()
    results = run(team, joint(), tasks, memory=memory)
    assert memory.executed == 2 * 4 + 6
    for task, result in zip(tasks, results, strict=True):
        looks, packed = model.exchange([Request((), 0, want=Want(2, "float32"), picture=message.picture) for message in task.inputs.values()], {})  # type: ignore[arg-type]
        parcels = tuple(look.parcel for look in looks)  # type: ignore[union-attr]
        (reply,), _ = model.exchange([Request((Turn("user", task.question),), 3, features=parcels)], packed)  # type: ignore[arg-type]
        assert result.error is None and result.text == reply.text  # type: ignore[union-attr]


def test_what_travels_is_features_and_costs_their_bytes(team: Team, tasks: list[Task]) -> None:
    (result,) = run(team, joint(codec="float16"), tasks[:1])
    moves = [span for span in result.spans if span.kind == "move" and span.message != "hello"]
    sent = [span for span in moves if span.who in CAMERAS]
    assert sorted(span.who for span in sent) == sorted(CAMERAS) and {span.to for span in sent} == {"edge"}
    assert all(9 * 32 * 2 < span.nbytes < 9 * 32 * 2 + 60 and span.text == "" for span in sent)
    assert {span.to for span in moves if span.who == "user"} == {"edge"}  # no camera hears the question
    assert 4 * 9 * 32 * 2 < result.usage.wire_bytes


def test_placebos_say_nothing_and_weigh_the_same(team: Team, tasks: list[Task]) -> None:
    whole = run(team, joint(), tasks)
    for placebo in ("zeros", "noise"):
        control = run(team, joint(placebo=placebo), tasks)
        assert [r.usage.wire_bytes for r in control] == pytest.approx([r.usage.wire_bytes for r in whole], abs=12)
        assert [r.text for r in control] != [r.text for r in whole]
    nothing = run(team, joint(placebo="nothing"), tasks)
    assert [r.text for r in nothing] == [r.text for r in run(team, load_topology("single", {"member": "hub"}), tasks)]

    class Dev:
        tasks: list[Task] = []

    Dev.tasks = tasks[3:4]
    other = joint(placebo="other").fit(Dev())
    swapped = [Task(task.id, task.question, inputs=tasks[3].inputs) for task in tasks[:3]]
    assert [r.text for r in run(team, other, tasks[:3])] == [r.text for r in run(team, joint(), swapped)]
    assert "dev split" in (run(team, joint(placebo="other"), tasks[:1])[0].error or "")


def test_captions_are_made_once_a_scene_and_read_before_each_question(team: Team, mole: Path, tasks: list[Task]) -> None:
    """By the model itself, without a runtime; the agreed question is not sent, and cameras never hear the real one."""
    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.models.protocol import Reply, Request, Turn

    model, memory = FamilyModel.load(mole), Memory()
    results = run(team, joint(send="captions", letters=2), tasks, memory=memory)
    assert memory.executed == 2 * 4 + 6
    names = [agent.name for agent in team if agent.role == "camera"]
    for task, result in zip(tasks, results, strict=True):
        looks = [Request((Turn("user", "see2?"),), 18, picture=message.picture) for message in task.inputs.values()]
        said = [Turn("user", reply.text, name) for reply, name in zip(model.generate(looks), names, strict=True) if isinstance(reply, Reply)]
        (reply,) = model.generate([Request((*said, Turn("user", task.question)), 3)])
        assert isinstance(reply, Reply) and (result.error, result.text) == (None, reply.text.strip())
        moves = [span for span in result.spans if span.kind == "move"]
        assert sorted(span.who for span in moves if span.who in CAMERAS) == sorted(CAMERAS)
        assert all(span.nbytes < 18 + 40 and span.to == "edge" for span in moves if span.who in CAMERAS)
        assert {span.to for span in moves if span.who == "user"} == {"edge"}

    class Dev:
        tasks: list[Task] = []

    Dev.tasks = tasks[3:4]
    other = joint(send="captions", letters=2, placebo="other").fit(Dev())
    swapped = [Task(task.id, task.question, inputs=tasks[3].inputs) for task in tasks[:3]]
    assert [r.text for r in run(team, other, tasks[:3])] == [r.text for r in run(team, joint(send="captions", letters=2), swapped)]


def test_text_mode_sends_answers_alone(team: Team, tasks: list[Task]) -> None:
    (result,) = run(team, joint(send="text"), tasks[:1])
    sent = [span for span in result.spans if span.kind == "move" and span.who in CAMERAS]
    assert len(sent) == 4 and all(span.nbytes < 60 for span in sent) and {span.to for span in sent} == {"phone"}


class Leak(Topology):
    """Sends on what it must not: the picture itself, tokens or the whole text of who has seen it."""

    what: str

    async def run(self, task: Task, team: Team) -> Any:
        camera, hub = team["pi"], team["hub"]
        if self.what == "picture":
            return await task.inputs["pi"].to(team.home)
        if self.what == "looks":
            return camera if task.inputs["pi"].picture else hub
        if self.what == "sees":
            return await hub.ask(task.question, sees=task.inputs["pi"])
        said = await camera.ask(task.question, want=Want(2))
        if self.what == "features":
            return await hub.ask(task.question, features=[said.as_("hidden")])
        if self.what == "heard":
            return await hub.ask(task.question, heard=[said])
        again = await camera.ask(task.question, heard=[said])
        return await again.to(team.home)


@pytest.mark.parametrize(("released", "what", "error"), [
    (("answer", "features"), "picture", "PrivacyError"), (("picture",), "looks", "NotHere"), (("answer", "features"), "sees", "UnmetNeed"),
    (("answer",), "features", "PrivacyError"),
    (("features",), "features", None), (("features",), "heard", "PrivacyError"), ((), "again", "PrivacyError"), (("answer",), "again", None),
])  # fmt: skip
def test_what_is_not_released_does_not_leave_its_node(team: Team, tasks: list[Task], released: tuple[str, ...], what: str, error: str | None) -> None:
    import numpy as np

    views = np.stack([message.picture.pixels for message in tasks[0].inputs.values()])  # type: ignore[union-attr]
    task = Task("t", "all?", inputs=at_cameras(views, CAMERAS, released))
    (result,) = run(team, Leak(what=what), [task])
    assert (result.error or "None").split(":")[0] == (error or "None") and "\n" not in (result.error or "")
    sent = [span for span in result.spans if span.kind == "move" and span.who in ("camera", "pi") and span.message != "hello"]
    assert bool(sent) == (error is None)
    if error == "PrivacyError":
        with pytest.raises(PrivacyError, match="stays at pi"):  # and it is said before a run begins
            rehearse_one(Leak(what=what), team, task)


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHosts]:
    hosts = RayHosts(1)
    yield hosts
    hosts.close()


@pytest.mark.ray
def test_ray_says_the_same_and_memory_knows_pictures(team: Team, tasks: list[Task], ray: RayHosts, tmp_path: Path) -> None:
    inline = run(team, joint(), tasks)
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        assert [(r.answer, r.confidence, r.usage) for r in run(team, joint(), tasks, ray, memory)] == [(r.answer, r.confidence, r.usage) for r in inline]
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:  # another process: the features are remembered, and made again where a new question needs them
        assert [r.answer for r in run(team, joint(), tasks, memory=memory)] == [r.answer for r in inline] and memory.executed == 0
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        asked = [Task("new", "gold?", inputs=tasks[0].inputs)]
        assert [r.text for r in run(team, joint(), asked, memory=memory)] == [r.text for r in run(team, joint(), asked)] and memory.executed == 1
