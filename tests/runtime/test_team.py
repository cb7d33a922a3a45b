"""Teams from files: who stands where, and every mistake with its file, line and key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.errors import ConfigError, NoRoute, UnknownName, UserError
from aiflow_agents.models.confidence import Calibration
from aiflow_agents.models.protocol import Sampling
from aiflow_agents.net.cost import named_shape
from aiflow_agents.runtime.team import Team

NETWORK = """\
name: flat
home: phone
nodes:
  phone: {tier: device, flops_rate: 1e9, bandwidth_Bps: 1e9}
  tablet: {tier: device, flops_rate: 1e9, bandwidth_Bps: 1e9}
  tower: {tier: edge, flops_rate: 1e10, bandwidth_Bps: 1e10}
links:
  - {a: phone, b: tower, up_bps: 1e6, down_bps: 1e6, latency_s: 0.01}
  - {a: tablet, b: tower, up_bps: 1e6, down_bps: 1e6, latency_s: 0.01}
"""
TEAM = """\
description: Three at home.
network: flat
members:
  ann: {model: alder, tier: device}
  bob:
    model: birch
    tier: device
    role: critic
    prompt: Find the mistake.
    sampling: {temperature: 0.5, top_p: 0.9}
    max_tokens: 7
  tim: {model: alder, tier: edge, role: server, costs_as: qwen3-8b}
  zoe: {model: birch, tier: device}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a team, its network and the models alder and birch, which are two that are shipped."""
    root = catalog.library()
    assert root is not None
    shipped = sorted((root / "agents" / "models").iterdir())
    for folder in ("agents/models", "topologies/networks"):
        (tmp_path / folder).mkdir(parents=True)
    for name, folder in zip(("alder", "birch"), shipped, strict=False):
        (tmp_path / "agents/models" / name).symlink_to(folder)
    (tmp_path / "topologies/networks/flat.yaml").write_text(NETWORK)
    (tmp_path / "agents/home.yaml").write_text(TEAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    return tmp_path


def test_a_team_is_read_with_all_that_its_members_are(place: Path) -> None:
    team = Team.load("home")
    assert (team.name, team.home, team.network.name, [agent.name for agent in team], len(team)) == ("home", "phone", "flat", ["ann", "bob", "tim", "zoe"], 4)
    ann, bob, tim = team["ann"], team["bob"], team["tim"]
    assert (ann.role, ann.prompt, ann.sampling, ann.max_tokens, ann.home) == ("member", None, Sampling(0.0, 1.0), 32, "phone")
    assert (bob.role, bob.prompt, bob.sampling, bob.max_tokens) == ("critic", "Find the mistake.", Sampling(0.5, 0.9), 7)
    assert ann.fingerprint == tim.fingerprint != bob.fingerprint and ann.info.name != bob.info.name
    assert Path(ann.folder) == place / "agents/models/alder"
    assert tim.shape is not None and tim.shape.block_params == named_shape("qwen3-8b").block_params and ann.shape is None
    assert str(team).startswith("team home at phone on flat: ann (")


def test_members_take_the_nodes_of_their_tier_in_turn(place: Path) -> None:
    assert [agent.node for agent in Team.load("home")] == ["phone", "tablet", "tower", "phone"]
    change(place, "{model: alder, tier: device}", "{model: alder, tier: device, node: tower}")
    assert [agent.node for agent in Team.load("home")] == ["tower", "phone", "tower", "tablet"]


def test_another_network_may_be_given(place: Path) -> None:
    team = Team.load("home", network="metro-5g")
    assert team.network.name == "metro-5g" and {agent.node for agent in team} <= set(team.network.nodes)


def test_a_team_by_path_finds_what_it_names_beside_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(place, "network: flat", "network: ../topologies/networks/flat.yaml", "{model: alder, tier: device}", "{model: ./models/alder, tier: device}")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    monkeypatch.setenv("AIFLOW_PATH", str(place))
    assert Path(Team.load("../agents/home.yaml")["ann"].folder) == place / "agents/models/alder"


def test_a_team_is_a_collection_by_name_and_role(place: Path) -> None:
    team = Team.load("home")
    assert team.role("server") is team["tim"] and team.role("member") is team["ann"] and team.role("judge") is None
    assert [agent.name for agent in team.only("tim", "ann")] == ["tim", "ann"]
    with pytest.raises(UnknownName, match="no member of team 'home' named 'tom'; did you mean tim"):
        team["tom"]
    with pytest.raises(UnknownName):
        team.only("ann", "tom")


def test_calibrating_gives_another_team(place: Path) -> None:
    team = Team.load("home")
    sure = team.calibrated({"ann": Calibration(2.0, 1.0)})
    assert (sure["ann"].calibration, sure["bob"].calibration, team["ann"].calibration) == (Calibration(2.0, 1.0), Calibration(), Calibration())
    assert sure.calibrated({})["ann"].calibration == Calibration()  # what is not known again is forgotten


# --- mistakes ---


def change(place: Path, *pairs: str, file: str = "agents/home.yaml") -> Path:
    text = (place / file).read_text()
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (place / file).write_text(text)
    return place / file


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "words"),
    [
        ("model: birch\n", "model: brich\n", 6, "members.bob.model", "no model named 'brich'; did you mean birch"),
        ("model: birch\n", "model: ./nowhere\n", 6, "members.bob.model", "there is no model at ./nowhere"),
        ("model: birch\n    ", "", 5, "members.bob.model", "this key is missing; expected a model's name or folder"),
        ("tier: edge, ", "", 12, "members.tim.tier", "this key is missing; expected 'device', 'edge' or 'cloud'"),
        ("role: critic", "rule: critic", 8, "members.bob.rule", "unknown key; did you mean 'role'?"),
        ("tier: edge", "tier: fog", 12, "members.tim.tier", "expected 'device', 'edge' or 'cloud', found 'fog'"),
        ("tier: edge", "tier: cloud", 12, "members.tim.tier", "network 'flat' has no node of the tier 'cloud'"),
        ("tier: edge", "tier: edge, node: towel", 12, "members.tim.node", "no node of network 'flat' named 'towel'; did you mean tower"),
        ("costs_as: qwen3-8b", "costs_as: qwen3-8c", 12, "members.tim.costs_as", "no shape named 'qwen3-8c'; did you mean qwen3-8b"),
        ("max_tokens: 7", "max_tokens: 0", 11, "members.bob.max_tokens", "expected greater than 0"),
        ("temperature: 0.5", "temperature: -1", 10, "members.bob.sampling.temperature", "greater than or equal to 0"),
        ("top_p: 0.9", "top_p: 1.5", 10, "members.bob.sampling.top_p", "less than or equal to 1"),
        ("network: flat", "network: flad", 2, "network", "no network named 'flad'; did you mean flat"),
        ("{model: alder, tier: device}", "{model: alder, tier: device", 5, None, "not valid YAML"),
        ("  zoe:", "  ann:", 13, None, "the key 'ann' stands twice, first in line 4"),
    ],
)
def test_a_mistake_has_its_file_line_key_and_remedy(place: Path, old: str, new: str, line: int, key: str | None, words: str) -> None:
    file = change(place, old, new)
    with pytest.raises(ConfigError) as caught:
        Team.load("home")
    error = caught.value
    assert str(error).startswith(f"{file}:{line}: {f'{key}: ' if key else ''}") and words in str(error) and "\n" not in str(error)
    assert (Path(str(error.file)), error.line, error.key) == (file, line, key)


def test_a_team_without_members_is_none(place: Path) -> None:
    (place / "agents/empty.yaml").write_text("network: flat\nmembers: {}\n")
    with pytest.raises(ConfigError, match="empty.yaml:2: members: .*at least 1"):
        Team.load("empty")


def test_a_model_folder_without_weights_is_found_before_anything_runs(place: Path) -> None:
    folder = place / "agents/models/bare"
    folder.mkdir()
    for part in (place / "agents/models/alder").iterdir():
        if part.suffix != ".safetensors":
            os.link(part, folder / part.name)
    file = change(place, "model: birch\n", "model: bare\n")
    with pytest.raises(ConfigError) as caught:
        Team.load("home")
    assert str(caught.value).startswith(f"{file}:6: members.bob.model: model folder {folder} has no weights (*.safetensors)") and "\n" not in str(caught.value)


def test_a_network_without_a_route_is_found_before_anything_runs(place: Path) -> None:
    network = change(place, "  - {a: tablet, b: tower, up_bps: 1e6, down_bps: 1e6, latency_s: 0.01}\n", "", file="topologies/networks/flat.yaml")
    with pytest.raises(NoRoute) as caught:
        Team.load("home")
    assert str(caught.value) == f"no route from 'phone' to 'tablet' in network 'flat' ({network}); join them with an entry under `links`"


def test_a_mistake_in_the_network_is_the_networks(place: Path) -> None:
    network = change(place, "home: phone", "home: phon", file="topologies/networks/flat.yaml")
    with pytest.raises(ConfigError, match="no node named 'phon'; did you mean phone") as caught:
        Team.load("home")
    assert (Path(str(caught.value.file)), caught.value.line, caught.value.key) == (network, 2, "home")


def test_unknown_teams_and_networks_offer_the_nearest(place: Path) -> None:
    with pytest.raises(UnknownName, match="no team named 'hom'; did you mean home"):
        Team.load("hom")
    with pytest.raises(UnknownName, match="no network named 'metro'; did you mean metro-5g"):
        Team.load("home", network="metro")
    with pytest.raises(UserError):
        Team.load("./agents")


@pytest.mark.parametrize("team", [entry.name for entry in catalog.entries("team")])
@pytest.mark.parametrize("network", [None, *(entry.name for entry in catalog.entries("network"))])
def test_shipped_teams_stand_on_shipped_networks(team: str, network: Any) -> None:
    if (team, network) == ("partial-views", "metro-5g"):  # its cameras are nodes by name, one of which is only at home
        with pytest.raises(ConfigError, match="pi"):
            Team.load(team, network=network)
        return
    loaded = Team.load(team, network=network)
    for agent in loaded:
        assert agent.info.max_context > 0 and "logprobs" in agent.info.capabilities
        assert loaded.network.route(loaded.home, agent.node) or agent.node == loaded.home


MIXED = """\
network: flat
members:
  ann: {model: alder, tier: device}
  bob: {backend: transformers, model: birch, tier: device}
  tim: {backend: http, model: gpt, tier: edge, costs_as: qwen3-8b, http: {url: "http://127.0.0.1:9/v1", logprobs: true}}
"""


def test_one_team_mixes_engines(place: Path) -> None:
    (place / "agents/mixed.yaml").write_text(MIXED)
    team = Team.load("mixed")
    assert [agent.info.engine for agent in team] == ["family", "transformers", "http"]
    assert team["bob"].info.shape == Team.load("home")["bob"].info.shape
    assert team["tim"].shape is not None and team["tim"].shape.layers == named_shape("qwen3-8b").layers
    assert team["tim"].info.capabilities == {"logprobs"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{backend: http, model: gpt, tier: edge, costs_as: qwen3-8b}", "the backend http needs http: {url: ...}"),
        ("{backend: http, model: gpt, tier: edge, http: {url: 'http://h/v1'}}", "name a shape with costs_as"),
        ("{backend: http, model: gpt, tier: edge, costs_as: qwen3-8b, http: {url: 'h/v1'}}", "expected http"),
        ("{model: alder, tier: edge, http: {url: 'http://h/v1'}}", "http is not for the backend family"),
        ("{backend: http, model: gpt, tier: edge, costs_as: qwen3-8b, http: {url: 'http://h/v1'}, exit: 1}", "the backend http has none"),
        ("{backend: transformers, model: alder, tier: edge, exit: 1}", "members.tim.exit"),
        ("{backend: vllm, model: alder, tier: edge, keep: 0.5}", "keep chooses a size of a decomposed model; the backend vllm has none"),
        ("{backend: vllm, model: alder, tier: edge, vllm: {max_model_length: 64}}", "members.tim.vllm.max_model_length: unknown key; did you mean 'max_model_len'?"),
        ("{backend: vllm, model: alder, tier: edge, vllm: {gpu_memory_utilization: 1.5}}", "less than or equal to 1"),
        ("{backend: transformers, model: alder, tier: edge, vllm: {max_model_len: 64}}", "vllm is not for the backend transformers"),
        ("{model: alder, tier: edge, dtype: float16}", "dtype is for the backends transformers and vllm, not family"),
        ("{backend: mlx, model: alder, tier: edge}", "no backend named 'mlx'; known: family, http, transformers, vllm; packages bring others"),
    ],
)
def test_what_does_not_belong_to_a_backend_is_said_with_its_line(place: Path, line: str, said: str) -> None:
    (place / "agents/mixed.yaml").write_text(f"network: flat\nmembers:\n  tim: {line}\n")
    with pytest.raises(ConfigError, match=r"mixed.yaml:3: ") as error:
        Team.load("mixed")
    assert said in str(error.value)


def test_where_vllm_is_missing_the_team_says_so_with_the_remedy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "agents/fast.yaml").write_text("network: flat\nmembers:\n  tim: {backend: vllm, model: alder, tier: edge}\n")
    monkeypatch.setattr("aiflow_agents.models.vllm.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fast.yaml:3: members.tim.model: the backend vllm needs vLLM, which is not installed: pip install 'aiflow-agents\[vllm\]'"):
        Team.load("fast")


def test_a_member_on_vllm_is_what_its_file_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow_agents.models.backends import behind

    line = "{backend: vllm, model: alder, tier: edge, dtype: bfloat16, vllm: {max_model_len: 64, enforce_eager: false}}"
    (place / "agents/fast.yaml").write_text(f"network: flat\nmembers:\n  tim: {line}\n  ann: {{model: alder, tier: device}}\n")
    monkeypatch.setattr("aiflow_agents.models.vllm.find_spec", lambda name: object())
    tim, ann = Team.load("fast")
    assert (tim.info.engine, tim.info.dtype, tim.info.max_context, tim.info.capabilities) == ("vllm", "bfloat16", 64, {"logprobs"})
    assert behind(tim.folder).options == {"max_model_len": 64, "enforce_eager": False}
    assert tim.fingerprint != ann.fingerprint and tim.info.weights_hash == ann.info.weights_hash
