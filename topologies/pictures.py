"""Where pictures may leave their cameras: each comes as JPEG, and the edge runs the whole model on what it can still see.

    camera: picture --jpeg--\
    camera: picture --jpeg---> edge: layers 0..k over each, layers k.. over all of them and the question --> home

A room has to say that pictures may leave (`releases: [answer, features, picture]` in its eval.yaml); else they stay, and this raises PrivacyError.
"""

from pydantic import Field

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import Want
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.wire.message import Message, bring


class Pictures(Topology):
    """`picture_bytes`: what its frame may weigh, which decides its quality; 0 sends the pixels as they are. `layer` as in joint-view."""

    picture_bytes: int = Field(default=100, ge=0)
    layer: int = 2
    needs = Needs(members=2, roles=("camera", "edge"), capabilities=frozenset({"vision"}), one_family=True)

    async def run(self, task: Task, team: Team) -> Message:
        cameras, edge = [agent for agent in team if agent.role == "camera"], team.role("edge")
        if any(camera.node not in task.inputs for camera in cameras):
            raise UnmetNeed("topology 'pictures' needs a picture at every camera's node: `aiflow eval open-views` has some")
        seen = [task.inputs[camera.node] for camera in cameras]
        arrived = await bring([picture.jpeg(self.picture_bytes) if self.picture_bytes else picture for picture in seen], edge.node)
        want = Want(self.layer, "float32")  # from the edge to the edge: nothing travels
        features = await gather(edge.ask("", want=want, max_tokens=0, sees=picture) for picture in arrived)
        return await edge.ask(task.question, features=[message.as_("hidden") for message in features])
