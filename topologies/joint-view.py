"""Cameras see each a part of a scene, and a picture may not leave its camera: the edge answers from what all of them have made of it.

    camera: picture -> layers 0..k --features--\
    camera: picture -> layers 0..k --features---> edge: layers k.. over all of them and the question --> home

The features know of no question, so one set of them answers any number. So does a caption: all that a camera sees, in text.
"""

from typing import Any, Literal

from pydantic import PositiveInt, PrivateAttr

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import Want
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.skills.captions import PLACES, see
from aiflow_agents.topology.base import Needs, Topology, another
from aiflow_agents.topology.decisions import Decision, weighted
from aiflow_agents.wire.message import Message


class JointView(Topology):
    """`send`: features, the input of `layer` coded by `codec`; captions, with so many `letters` for each place, more than one of them telling what a
    camera is not sure of; or text: each camera says what it thinks the answer is, and `decide` chooses.

    `placebo`: zeros, or noise of the same norm, in place of the features; `other`: those of another scene, one of the dev split, or its captions;
    `nothing`: the edge alone.
    """

    send: Literal["features", "captions", "text"] = "features"
    layer: int = 2
    codec: str = "float16"
    letters: PositiveInt = 1
    decide: Decision = weighted
    placebo: Literal["", "zeros", "noise", "other", "nothing"] = ""
    needs = Needs(members=2, roles=("camera", "edge"), capabilities=frozenset({"vision"}), one_family=True)
    _others: dict[str, Task] = PrivateAttr(default_factory=dict)

    def fit(self, trial: Any) -> "JointView":
        """A placebo's other scenes come from the dev split."""
        fitted = self.model_copy()
        fitted._others = {f"{task.id} {task.question}": task for task in trial.tasks[:50] if task.inputs}
        return fitted

    async def run(self, task: Task, team: Team) -> Message:
        cameras, edge = [agent for agent in team if agent.role == "camera"], team.role("edge")
        if self.send == "text":
            drafts = await gather(camera.ask(task.question) for camera in cameras)
            return await self.decide(drafts, at=team.home)
        if self.placebo == "nothing":
            return await edge.ask(task.question)
        seen = task.inputs
        if self.placebo == "other":
            seen = self._others[another(f"{task.id} {task.question}", tuple(self._others))].inputs
        if any(camera.node not in seen for camera in cameras):
            raise UnmetNeed("topology 'joint-view' needs a picture at every camera's node: `aiflow eval partial-views` has some")
        if self.send == "captions":
            asked = see(self.letters)  # agreed on before: only what they say travels
            said = await gather(camera.ask("", instruct=asked, max_tokens=PLACES * self.letters, sees=seen[camera.node]) for camera in cameras)
            return await edge.ask(task.question, heard=said, last=True)
        want = Want(self.layer, self.codec, placebo=self.placebo if self.placebo in ("zeros", "noise") else "")
        features = await gather(camera.ask("", want=want, max_tokens=0, sees=seen[camera.node]) for camera in cameras)
        return await edge.ask(task.question, features=[message.as_("hidden") for message in features])
