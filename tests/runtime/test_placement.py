"""Members' models on the Ray nodes of their tiers: found by label or resource, moved when a raylet dies, and the answers are what they were."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import Reply, Request, Turn
from aiflow_agents.runtime.placement import NOWHERE, Seat, anywhere, check, ground, seated, unseat

PHONE, EDGE = Seat("phone", "device"), Seat("edge", "edge")


def node(cpus: float = 1, gpus: float = 0, alive: bool = True, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Labels": labels or {}, "Resources": {"CPU": cpus, "GPU": gpus, **resources}}


def test_a_seat_is_found_by_its_own_label_then_by_its_tier_then_by_resource() -> None:
    tier, own = node(4, labels={"aiflow.tier": "device"}), node(2, labels={"aiflow.node": "phone", "aiflow.tier": "device"})
    custom = node(8, **{"aiflow.tier.device": 1})
    cases = [
        ([tier, own, custom], {"label_selector": {"aiflow.node": "phone"}}, 2),
        ([tier, custom, node(labels={"aiflow.tier": "edge"})], {"label_selector": {"aiflow.tier": "device"}}, 4),
        ([custom, node()], {"resources": {"aiflow.tier.device": 0.001}}, 8),
    ]
    for nodes, options, cpus in cases:
        found = ground(PHONE, nodes)
        assert found is not None and (found.options, found.cpus) == (options, cpus)
    assert ground(PHONE, [node(), node(labels={"aiflow.tier": "device"}, alive=False), node(labels={"aiflow.tier": "edge"})]) is None
    assert ground(NOWHERE, [node(3), node(5, alive=False)]) == anywhere([node(3)]) and anywhere([node(3)]).cpus == 3


def test_gpus_are_shared_out() -> None:
    found = ground(EDGE, [node(16, 2, labels={"aiflow.tier": "edge"}), node(16, 2, labels={"aiflow.tier": "edge"}), node(16, 8)])
    assert found is not None
    assert [found.hosts(share) for share in (0.0, 1.0, 0.5, 2.0, 0.3)] == [32, 4, 8, 2, 13]
    assert anywhere([node(0)]).hosts() == 1


def test_a_seated_team_says_where_and_remains_itself(stage: Any) -> None:
    team = stage.team(ann="phone", tim="tower")
    placed = seated(team)
    assert [unseat(agent.folder) for agent in placed] == [(Seat(a.node, team.network.node(a.node).tier), a.folder) for a in team]
    assert [agent.fingerprint for agent in placed] == [agent.fingerprint for agent in team]
    assert unseat("/a/folder") == (NOWHERE, "/a/folder") and unseat('{"kind": "http"}') == (NOWHERE, '{"kind": "http"}')
    tiers = {team.network.node(agent.node).tier for agent in team}
    check([placed, team], [node(labels={"aiflow.tier": tier}) for tier in tiers])
    with pytest.raises(UserError, match="no Ray node is of the tier '.*', where ann computes .at phone.: start one with `ray start --labels aiflow.tier="):
        check([placed], [node()])


# --- three raylets on this machine ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and a raylet of one core for each tier."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000})
    made.raylets = {tier: raylet(made, tier) for tier in ("device", "edge", "cloud")}
    yield made
    made.shutdown()


def raylet(cluster: Any, tier: str) -> Any:
    return cluster.add_node(num_cpus=1, labels={"aiflow.tier": tier}, object_store_memory=100_000_000)


def loader() -> Any:
    """A model that answers with the tier of the Ray node that it is on; asked with a folder, it says there who waits, until it may go on.

    Made in here so that it travels by value.
    """

    class Where:
        def generate(self, requests: Any) -> list[Any]:
            import os
            import time
            from pathlib import Path

            import ray

            from aiflow_agents.models.protocol import Reply

            here = ray.get_runtime_context().get_node_labels()
            for request in requests:
                if (where := request.messages[0].content).startswith("/"):
                    (Path(where) / str(os.getpid())).touch()
                    while not (Path(where) / "go").exists():
                        time.sleep(0.01)
            return [Reply(here.get("aiflow.tier", "?"), (), None, 1, 1) for _ in requests]

    return lambda key: Where()


def on(seat: Seat) -> str:
    return json.dumps({"at": seat, "key": "model"})


def ask(content: str = "") -> list[Request]:
    return [Request((Turn("user", content),))]


@pytest.mark.ray
def test_calls_go_to_their_tiers_and_elsewhere_when_a_raylet_dies(cluster: Any, tmp_path: Path) -> None:
    from threading import Thread

    from aiflow_agents.runtime.ray_hosts import RayHosts

    said: list[str] = []
    with closing(RayHosts(address=cluster.address, load=loader(), note=said.append)) as hosts:
        seats = [PHONE, Seat("tablet", "device"), EDGE, Seat("cloud", "cloud")]

        def tiers() -> list[str]:
            found = hosts.generate({on(seat): ask() for seat in seats})
            return [reply.text for seat in seats for reply in found[on(seat)] if isinstance(reply, Reply)]

        assert tiers() == ["device", "device", "edge", "cloud"] and said == []
        names = {actor["name"] for actor in hosts._ray.util.list_named_actors(all_namespaces=True)}
        assert names == {"aiflow device 0", "aiflow edge 0", "aiflow cloud 0"}

        def waiting(count: int) -> None:
            while len(list(tmp_path.iterdir())) < count:
                time.sleep(0.01)

        def kill() -> None:
            waiting(1)
            cluster.remove_node(cluster.raylets["edge"], allow_graceful=False)
            waiting(2)
            (tmp_path / "go").touch()

        killer = Thread(target=kill)
        killer.start()
        (reply,) = hosts.generate({on(EDGE): ask(str(tmp_path))})[on(EDGE)]
        killer.join()
        assert isinstance(reply, Reply) and reply.text in ("device", "cloud")  # it went on elsewhere
        assert len(said) == 1 and said[0].endswith("its work goes on elsewhere")
        cluster.raylets["edge"] = raylet(cluster, "edge")
        for _ in range(100):  # until its new host runs
            if tiers()[2] == "edge":
                break
            time.sleep(0.1)
        assert tiers() == ["device", "device", "edge", "cloud"]


@pytest.mark.ray
def test_an_evaluation_on_a_cluster_is_that_of_one_process(cluster: Any, tmp_path: Path) -> None:
    from aiflow_agents import evaluate

    how: dict[str, Any] = dict(suite="exits", topologies=["exit-cascade", "feature-relay"], limit=6, seed=3)
    alone = evaluate(**how, path=tmp_path / "alone")
    spread = evaluate(**how, path=tmp_path / "spread", runtime="ray", ray_address=cluster.address, place="spread")
    assert _told(spread) == _told(alone)


def _told(report: Any) -> tuple[Any, list[str]]:
    return report.summary | {"run_id": ""}, sorted((report.folder / "samples.jsonl").read_text().splitlines())


def test_a_place_is_for_ray() -> None:
    from aiflow_agents import evaluate

    with pytest.raises(UserError, match="place 'spread' is for a Ray cluster"):
        evaluate("exits", place="spread")
    with pytest.raises(UserError, match="no place named 'everywhere'"):
        evaluate("exits", place="everywhere")

