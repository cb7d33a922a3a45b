"""Pictures as JPEG, from cameras that may send them, to an edge that runs the whole model on them: with the shipped model that sees."""

from __future__ import annotations

import numpy as np
import pytest

from aiflow_agents.evals.suite import load_suites
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Request, Turn, Want
from aiflow_agents.runtime.inputs import at_cameras
from aiflow_agents.runtime.run import Job, Result
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from tests.conftest import run_in_order


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """Six questions about one scene, whose pictures may leave."""
    return load_suites("open-views")[0].tasks("test", 1, 6)


def run(tasks: list[Task], budget: int) -> list[Result]:
    team, topology = Team.load("partial-views"), load_topology("pictures", {"picture_bytes": budget})
    return run_in_order([Job("x", topology, task, team, traced=True) for task in tasks], fails=True)


def test_the_answer_is_that_of_the_model_with_what_is_left_of_the_pictures(tasks: list[Task]) -> None:
    hub = Team.load("partial-views")["hub"]
    model = FamilyModel.load(hub.folder)
    for budget in (0, 200):
        for task, result in zip(tasks, run(tasks, budget), strict=True):
            pictures = [message.picture for message in task.inputs.values()]
            seen = [picture.jpeg(budget).picture if budget else picture for picture in pictures if picture]
            looks, packed = model.exchange([Request((), 0, want=Want(2, "float32"), picture=picture) for picture in seen], {})
            parcels = tuple(look.parcel for look in looks)  # type: ignore[union-attr]
            (reply,), _ = model.exchange([Request((Turn("user", task.question),), hub.max_tokens, features=parcels)], packed)  # type: ignore[arg-type]
            assert len(parcels) == 4 and result.error is None and result.text == reply.text  # type: ignore[union-attr]


def test_what_travels_is_within_the_budget(tasks: list[Task]) -> None:
    (result,), (whole,) = run(tasks[:1], 200), run(tasks[:1], 0)
    sent = [span for span in result.spans if span.kind == "move" and span.who == "camera"]
    assert len(sent) == 4 and {span.to for span in sent} == {"edge"} and all(60 < span.nbytes < 200 + 40 for span in sent)
    nbytes = [message.picture.nbytes for message in tasks[0].inputs.values() if message.picture]
    assert whole.usage.wire_bytes > sum(nbytes) > 2 * result.usage.wire_bytes > 2 * sum(span.nbytes for span in sent)


@pytest.mark.parametrize("kinds", [("answer", "features"), ("answer",), ()])
def test_without_a_release_no_picture_leaves(tasks: list[Task], kinds: tuple[str, ...]) -> None:
    views = np.stack([message.picture.pixels for message in tasks[0].inputs.values() if message.picture])
    task = Task("t", "all?", inputs=at_cameras(views, tuple(tasks[0].inputs), kinds))  # type: ignore[arg-type]
    for budget in (0, 200):
        (result,) = run([task], budget)
        assert (result.error or "").startswith("PrivacyError: message p0") and result.usage.wire_bytes == 0
    (result,) = run([Task("t", "all?")], 0)
    assert "open-views" in (result.error or "")


def test_a_room_that_does_not_say_so_keeps_its_pictures() -> None:
    (result,) = run(load_suites("partial-views")[0].tasks("test", 1, 1), 200)
    assert (result.error or "").startswith("PrivacyError")
