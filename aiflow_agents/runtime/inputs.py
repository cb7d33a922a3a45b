"""What lies on nodes before anybody is asked: a camera's picture, which stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from aiflow_agents.wire.message import Message
from aiflow_agents.wire.picture import Picture, Private

if TYPE_CHECKING:
    from aiflow_agents.skills.scenes import Pixels

RELEASED: tuple[Literal["answer", "features", "picture"], ...] = ("answer", "features")


def at_cameras(views: Pixels, nodes: Sequence[str], released: tuple[str, ...] = RELEASED) -> dict[str, Message]:
    """The pictures of one scene, [cameras, rows, columns, 3], each at its node, where it stays: only what is released of it travels."""
    found = {}
    for camera, node in enumerate(nodes):
        picture = Picture(views[camera], camera)
        found[node] = Message(f"p{camera}", "camera", node, form="picture", _cargo=picture, _stays=Private(node, released))
    return found
