"""Hidden states between members: they travel in real bytes, stay with the hosts, are made again when lost, and are refused where they mean nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.models.protocol import Parcel, Want
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from tests.conftest import exits_team, make_shrub, run_in_order

QUESTIONS = [f"{a}+{b}=" for a, b in ((11, 12), (35, 7), (8, 90), (41, 41), (5, 66))]
ALWAYS, NEVER = (1.01, 1.01), (0.0, 0.0)


@pytest.fixture(scope="session")
def willow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shrub(tmp_path_factory.mktemp("agents") / "models" / "shrub", ends=range(2, 40))


@pytest.fixture
def team(willow: Path, tmp_path: Path) -> Team:
    return exits_team(willow, tmp_path, max_tokens=6)


def run(team: Team, topology: Any, hosts: Any = None, memory: Memory | None = None, traced: bool = False, **options: Any) -> list[Any]:
    jobs = [Job("x", topology, Task(q, q), team, traced=traced) for q in QUESTIONS]
    return run_in_order(jobs, hosts, memory, **options)


def decomposed(folder: Path, out: Path) -> Path:
    """The same model with its blocks' weights as nested factors."""
    from safetensors.torch import load_file

    from aiflow_agents.models.family.export import write

    tensors: dict[str, Any] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            u, s, v = tensor.svd()
            tensors |= {name.replace("weight", key): value.contiguous() for key, value in (("b", u * s), ("a", v.T), ("spectrum", s**2))}
        else:
            tensors[name] = tensor
    write(out, json.loads((folder / "config.json").read_text()) | {"rank": {"method": "svd"}}, tensors, beside=folder)
    return out


def test_a_member_of_a_smaller_size_costs_less_and_is_another_model(willow: Path, tmp_path: Path) -> None:
    model = decomposed(willow, tmp_path / "shrub-ranks")
    lines = [f"  {name}: {{model: {model}, tier: device, max_tokens: 6{more}}}" for name, more in
             (("whole", ""), ("half", ", keep: 0.5"), ("early", ", exit: 3, keep: 0.5"))]  # fmt: skip
    (tmp_path / "team.yaml").write_text("members:\n" + "\n".join(lines) + "\n")
    team = Team.load(tmp_path / "team.yaml")
    found = {agent.name: run(team, load_topology("single", {"member": agent.name})) for agent in team}
    cost = {name: sum(result.usage.flops for result in results) for name, results in found.items()}
    assert cost["early"] < cost["half"] < cost["whole"]
    assert len({agent.info.weights_hash for agent in team}) == 2
    assert answers(found["half"]) != answers(found["whole"])
    (tmp_path / "team.yaml").write_text(f"members:\n  one: {{model: {willow}, tier: device, keep: 0.5}}\n")
    with pytest.raises(ConfigError, match=r"team.yaml:2.*keep.*whole weights"):
        Team.load(tmp_path / "team.yaml")


def cascade(thresholds: tuple[float, float] = ALWAYS, **parameters: Any) -> Any:
    return load_topology("exit-cascade", {"thresholds": thresholds, **parameters})


def answers(results: list[Any]) -> list[str]:
    return [result.answer for result in results]


@pytest.mark.parametrize("lower", [False, True])
def test_going_on_says_what_starting_again_says_for_fewer_flops(team: Team, lower: bool) -> None:
    """In float32 nothing is lost on the way, so the last exit's answer must come out; and each exit's own, where the cascade stops there."""
    text, hidden = run(team, cascade(send="text")), run(team, cascade(codec="float32", lower=lower))
    assert answers(hidden) == answers(text) == answers(run(team, load_topology("single", {"member": "trunk"})))
    assert sum(r.usage.flops for r in hidden) < sum(r.usage.flops for r in text)
    assert sum(r.usage.wire_bytes for r in hidden) > sum(r.usage.wire_bytes for r in text)
    assert answers(run(team, cascade(NEVER))) == answers(run(team, load_topology("single", {"member": "leaf"})))
    assert answers(run(team, cascade((1.01, 0.0), codec="float32", lower=lower))) == answers(run(team, load_topology("single", {"member": "bough"})))


def test_nothing_is_recomputed_that_a_lower_cache_brings(team: Team) -> None:
    """The device reads the prompt in two blocks, of which one is its own; with the cache of the layers below, cloud work never includes those."""
    with_cache, with_tokens = (run(team, cascade(codec="float32", lower=lower)) for lower in (True, False))
    assert sum(r.usage.flops for r in with_cache) < sum(r.usage.flops for r in with_tokens)


def test_every_byte_is_on_the_bill(team: Team) -> None:
    """A message with hidden states weighs its text frame and the coded payload, on every link that it crosses."""
    parcels: list[Parcel] = []

    class Watched(InlineHosts):
        def generate(self, batches: Any) -> Any:
            found = super().generate(batches)
            parcels.extend(reply.parcel for replies in found.values() for reply in replies if reply.parcel)
            assert all(len(self._parcels[parcel.digest]) == parcel.nbytes for parcel in parcels)
            return found

    results = run(team, cascade(codec="float16"), Watched(), traced=True)
    moved = [span for result in results for span in result.spans if span.kind == "move" and span.nbytes > 300]
    sizes = sorted(parcel.nbytes for parcel in parcels)
    assert len(sizes) == 2 * len(QUESTIONS) and all(size >= 32 * 2 * 7 for size in sizes)  # two bytes a number, and more
    for span, size in zip(sorted(moved, key=lambda span: span.nbytes), sizes, strict=True):
        assert size < span.nbytes < size + 60


def test_remembered_answers_need_no_payload_and_a_lost_one_is_made_again(team: Team, tmp_path: Path) -> None:
    fresh = run(team, cascade((1.01, 0.0)))
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        assert answers(run(team, cascade((1.01, 0.0)), memory=memory)) == answers(fresh)
        first = memory.executed
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:  # another process: nobody holds a payload any more
        assert answers(run(team, cascade((1.01, 0.0)), memory=memory)) == answers(fresh) and memory.executed == 0
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:  # and now one goes further than the first did
        further = run(team, cascade(ALWAYS), memory=memory)
        assert answers(further) == answers(run(team, cascade(ALWAYS))) and first > memory.executed > 0


def test_a_relay_answers_what_it_was_never_told_in_words(team: Team) -> None:
    relay = load_topology("feature-relay", {"codec": "float32"})
    results, whole = run(team, relay, traced=True), run(team, load_topology("single", {"member": "trunk"}))
    assert answers(results) == answers(whole)
    for result, alone in zip(results, whole, strict=True):
        moves = [span for span in result.spans if span.kind == "move" and span.message != "hello"]
        assert [(span.who, span.text) for span in moves if span.to != "phone"] == [("leaf", "")]  # the question stays; what moves has no words
        assert result.usage.flops == pytest.approx(alone.usage.flops, rel=0.02)  # nothing is run twice; norms are counted with the last block
    for placebo in ("zeros", "noise"):
        control = run(team, load_topology("feature-relay", {"codec": "float32", "placebo": placebo}))
        assert all(a != b for a, b in zip(answers(control), answers(results), strict=True))
        assert [r.usage.wire_bytes for r in control] == pytest.approx([r.usage.wire_bytes for r in results], abs=12)  # but for the answer's length
    other = load_topology("feature-relay", {"codec": "float32", "placebo": "other", "others": [QUESTIONS[1]]})
    assert set(answers(run(team, other))) == {answers(results)[1]}


def test_hidden_states_of_other_weights_are_refused(team: Team, willow: Path, tmp_path: Path) -> None:
    """A fine-tune has the same configuration and other weights: what it means by a hidden state is not what we mean."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "tuned"
    shutil.copytree(willow, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    file = tmp_path / "mixed.yaml"
    file.write_text((tmp_path / "team.yaml").read_text().replace(f"bough: {{model: {willow}", f"bough: {{model: {other}"))
    mixed = Team.load(file)
    with pytest.raises(UserError, match="different exits of one family"):
        cascade().check(mixed)

    class Careless(type(load_topology("single"))):  # type: ignore[misc]
        async def run(self, task: Task, team: Team) -> Any:
            said = await team["leaf"].ask(task.question, want=Want(1))
            return await team["bough"].ask(task.question, resume=said.as_("hidden"))

    found: list[Any] = []
    run_jobs([Job("x", Careless(), Task("q", QUESTIONS[0]), mixed)], InlineHosts(), Memory(), found.append)
    assert "bough cannot go on from hidden states of leaf: the weights differ" in found[0].error
    text = run(mixed, cascade(send="text", otherwise="text"))
    assert answers(run(mixed, cascade(otherwise="text"))) == answers(text)  # from leaf to bough goes text, and from bough to trunk too


def test_who_meets_says_so_once_a_session(team: Team) -> None:
    sessions: dict[str, Any] = {}
    first, again = (run(team, cascade(), traced=True, sessions=sessions) for _ in range(2))
    hellos = [[span for span in result.spans if span.message == "hello"] for result in first]
    ways = sorted((span.node, span.to) for spans in hellos for span in spans)
    assert ways == [("cloud", "edge"), ("edge", "cloud"), ("edge", "phone"), ("phone", "edge")]
    for one, other, spans in zip(first, again, hellos, strict=True):
        links = {("phone", "edge"): 1, ("edge", "cloud"): 1} | {("edge", "phone"): 1, ("cloud", "edge"): 1}
        assert one.usage.wire_bytes - other.usage.wire_bytes == sum(span.nbytes * links[span.node, span.to] for span in spans)
        states = [span for span in one.spans if span.kind == "move" and span.nbytes > 300]
        for said in states:  # nothing but text before they have met
            assert all(span.end_s <= said.start_s for span in spans if {span.node, span.to} == {said.node, said.to})
    for results in (again, run(team, cascade(send="text"), traced=True)):
        assert not any(span.message == "hello" for result in results for span in result.spans)


Fitted = Callable[[float], Path]


@pytest.fixture
def fitted(willow: Path, tmp_path: Path) -> Fitted:
    """The same family with codecs of its own: one that predicts from tokens, one that does not, and one for keys and values."""
    from aiflow_agents.models.family.family import Family
    from aiflow_agents.skills.splits import stream
    from aiflow_agents.training.cut import Cut, cache_samples, sample
    from aiflow_agents.wire.calibration import save
    from aiflow_agents.wire.codecs import fit

    family, questions = Family.load(willow), list(islice(stream({"add": 1.0}, "train", 0), 60))
    states = {f"hidden.{layer}": sample(Cut(family, layer), questions) for layer in (1, 3)}

    def make(step: float) -> Path:
        folder = tmp_path / f"fitted {step}" / "shrub"
        shutil.copytree(willow, folder)
        (folder / "codecs").mkdir()
        save(fit(f"predict:step={step}", states), folder / "codecs" / "predict.safetensors")
        save(fit("klt:step=0.02+range", states), folder / "codecs" / "klt.safetensors")
        save(fit("int8+range", cache_samples(family, questions, 3)), folder / "codecs" / "lower.safetensors")
        return folder

    return make


def placed(team: Team, **folders: Path) -> Team:
    """The team with these folders for some of its members."""
    from dataclasses import replace

    from aiflow_agents.models.family.info import model_info

    new = {name: replace(team[name], folder=str(folder), info=model_info(folder)) for name, folder in folders.items()}
    return replace(team, agents={**team.agents, **new})


class Packed(InlineHosts):
    """Keeps every parcel that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Parcel] = []

    def generate(self, batches: Any) -> Any:
        found = super().generate(batches)
        self.made += [reply.parcel for replies in found.values() for reply in replies if reply.parcel]
        return found


@pytest.mark.parametrize("lower", [False, True])
def test_a_family_sends_by_its_own_codecs_unless_told_otherwise(team: Team, fitted: Fitted, lower: bool) -> None:
    folder = fitted(0.02)
    own = placed(team, leaf=folder, bough=folder, trunk=folder)
    by_own, by_name, plain = Packed(), Packed(), Packed()
    results, raw = run(own, cascade(lower=lower), by_own), run(team, cascade(lower=lower), plain)
    assert {parcel.want.codec for parcel in by_own.made} == {"predict"} and {parcel.want.codec for parcel in plain.made} == {"float16"}
    assert sum(parcel.nbytes for parcel in by_own.made) < 0.7 * sum(parcel.nbytes for parcel in plain.made)
    assert sum(r.usage.wire_bytes for r in results) < sum(r.usage.wire_bytes for r in raw)
    assert sum(a == b for a, b in zip(answers(results), answers(raw), strict=True)) >= 4  # fine steps
    run(own, cascade(lower=lower, codec="float16"), by_name)
    assert sorted(by_name.made) == sorted(plain.made)  # to the last byte


def test_a_relay_never_sends_tokens(team: Team, fitted: Fitted) -> None:
    folder, hosts = fitted(0.02), Packed()
    own = placed(team, leaf=folder, bough=folder, trunk=folder)
    assert own["leaf"].codec(1) == "predict" and own["leaf"].codec(2) == "float16" == team["leaf"].codec(1)
    assert len(answers(run(own, load_topology("feature-relay"), hosts))) == len(QUESTIONS)
    assert {parcel.want.codec for parcel in hosts.made} == {"klt"}


def test_what_was_fitted_on_other_weights_is_not_used(fitted: Fitted, tmp_path: Path) -> None:
    from aiflow_agents.models.family.courier import Courier
    from aiflow_agents.models.family.info import model_info, weights_hash
    from aiflow_agents.wire import calibration

    folder = fitted(0.02)
    own, file = model_info(folder), folder / "codecs" / "predict.safetensors"
    for weights, names in ((own.weights_hash, ["klt", "lower", "predict"]), ("another", ["klt", "lower"])):
        calibration.save(calibration.load(file), file, weights)
        info = model_info(folder)
        assert [codec.name for codec in info.codecs] == names and info.weights_hash == own.weights_hash
    assert Courier(folder, info.codecs).codec("klt").fingerprint.hex() == info.codecs[0].fingerprint
    with pytest.raises(UserError, match="no codec of model 'shrub' named 'predict'"):
        Courier(folder, info.codecs).codec("predict")
    file.write_bytes(b"of another time")
    assert weights_hash(folder) == own.weights_hash  # so that it can be calibrated anew
    with pytest.raises(UserError, match="cannot be read"):
        model_info(folder)


def test_states_coded_with_another_calibration_are_not_read(team: Team, fitted: Fitted) -> None:
    """Same weights, same name of the codec, other numbers in it."""
    mixed = placed(team, leaf=fitted(0.02), bough=fitted(0.03))

    async def pattern(task: Task, people: Team) -> Any:
        said = await people["leaf"].ask(task.question, want=Want(1, "predict"))
        return await people["bough"].ask(task.question, resume=said.as_("hidden"))

    found: list[Any] = []
    run_jobs([Job("x", type("Pattern", (), {"run": staticmethod(pattern)})(), Task("q", QUESTIONS[0]), mixed)], InlineHosts(), Memory(), found.append)
    assert "codec predict is not the same on both sides" in found[0].error


def test_text_alone_cannot_be_resumed_and_only_what_was_kept_can_travel(team: Team) -> None:
    async def without(task: Task, people: Team) -> Any:
        return (await people["leaf"].ask(task.question)).as_("hidden")

    async def as_text(task: Task, people: Team) -> Any:
        return await people["bough"].ask(task.question, resume=await people["leaf"].ask(task.question, want=Want(1)))

    for pattern, says in ((without, "has no hidden states"), (as_text, "brings no hidden states")):
        found: list[Any] = []
        topology = type("Pattern", (), {"run": staticmethod(pattern)})()
        run_jobs([Job("x", topology, Task("q", QUESTIONS[0]), team)], InlineHosts(), Memory(), found.append)
        assert says in found[0].error


@pytest.mark.ray
def test_under_ray_payloads_go_from_host_to_host_and_never_through_the_driver(
    team: Team, ray_hosts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even small ones, and these are: what the driver's process reads has none of their bytes, and none of them is an object of its own."""
    import ray
    from ray._private.serialization import SerializationContext

    read: list[bytes] = []
    deserialize = SerializationContext.deserialize_objects

    def watched(self: Any, serialized: Any, *others: Any, **options: Any) -> Any:
        read.extend(bytes(data) for data, *_ in serialized if data is not None)
        return deserialize(self, serialized, *others, **options)

    monkeypatch.setattr(SerializationContext, "deserialize_objects", watched)
    here, own = InlineHosts(), ray.put(b"").owner_address()
    inline = run(team, cascade(codec="float32", lower=True), here)
    over_ray = run(team, cascade(codec="float32", lower=True), ray_hosts)
    assert [(r.answer, r.confidence, r.usage) for r in over_ray] == [(r.answer, r.confidence, r.usage) for r in inline]  # to the last bit
    assert ray_hosts._bundles.keys() == here._parcels.keys() and all(digest.encode() in b"".join(read) for digest in here._parcels)
    assert not any(coded[:64] in data for coded in here._parcels.values() for data in read)
    assert not any(bundle.owner_address() == own for bundle in ray_hosts._bundles.values())


def under_a_real_clock(team: Team, topology: Any, hosts: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with Live(team, hosts) as now:
            await now.warm()
            return await asyncio.gather(*(now.ask(topology, question) for question in (*QUESTIONS, QUESTIONS[0])))

    return asyncio.run(main())


def test_under_a_real_clock_payloads_are_forgotten_when_their_tasks_are_over(team: Team) -> None:
    hosts = InlineHosts()
    results = under_a_real_clock(team, cascade(ALWAYS), hosts)
    simulated = run(team, cascade(ALWAYS))
    assert answers(results[:-1]) == answers(simulated) and results[-1].answer == results[0].answer
    assert [r.usage.calls for r in results[:-1]] == [r.usage.calls for r in simulated] and max(r.usage.calls for r in results) == 3
    assert not hosts._parcels and not hosts._origins._calls and not hosts._origins._made


@pytest.mark.ray
def test_under_ray_and_a_real_clock_too(team: Team, ray_hosts: Any) -> None:
    before = len(ray_hosts._bundles)
    results = under_a_real_clock(team, cascade(ALWAYS), ray_hosts)
    assert answers(results[:-1]) == answers(run(team, cascade(ALWAYS))) and len(ray_hosts._bundles) == before
    assert [host.busy for host in ray_hosts._hosts()] == [0, 0]


@pytest.mark.ray
def test_under_ray_a_payload_that_died_with_its_host_is_made_again(team: Team, ray_hosts: Any) -> None:
    """Forgotten by the driver, or gone with every process that held one: only the calls are left that made them."""
    memory, whole = Memory(), answers(run(team, cascade(ALWAYS)))
    run(team, cascade((1.01, 0.0)), ray_hosts, memory)
    ray_hosts._bundles.clear()
    assert answers(run(team, cascade(ALWAYS), ray_hosts, memory)) == whole

    memory, restarts = Memory(), ray_hosts.restarts
    run(team, cascade((1.01, 0.0)), ray_hosts, memory)
    before = dict(ray_hosts._bundles)
    for process in ray_hosts.processes():
        os.kill(process, signal.SIGKILL)
    assert answers(run(team, cascade(ALWAYS), ray_hosts, memory)) == whole
    assert ray_hosts.restarts > restarts and any(ray_hosts._bundles[digest] != bundle for digest, bundle in before.items())
