"""What tests of several floors need: models small enough to be made on the spot, and models that say what a test tells them to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two torch threads beside a busy process are slower than one

TWO_NODES = """\
# One slot a node; every number is round, so that a timeline can be worked out by hand.
home: phone
nodes:
  phone: {tier: device, flops_rate: 1000, bandwidth_Bps: 1.0e+6, overhead_s: 0.5, power_w: 2}
  tower: {tier: edge, flops_rate: 4000, bandwidth_Bps: 1.0e+6, overhead_s: 0.25, power_w: 10}
links:
  - {a: phone, b: tower, up_bps: 800, down_bps: 1600, latency_s: 0.125, send: {base_w: 1, j_per_byte: 0.01}, receive: {base_w: 0.5}}
"""


def make_model(folder: Path, *, seed: int = 0, width: int = 32, layers: int = 2, max_length: int = 256) -> Path:
    """A random Qwen3-shaped model in the Hugging Face layout, with our character tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    from aiflow_agents.training import tokenizer

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    heads = width // 16
    config = Qwen3Config(
        vocab_size=len(tokenizer.VOCABULARY), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=16, max_position_embeddings=max_length, tie_word_embeddings=True, initializer_range=0.3,
        eos_token_id=tokenizer.EOS, pad_token_id=tokenizer.PAD, bos_token_id=tokenizer.BOS,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder, max_length)
    return folder


def make_family(folder: Path, *, seed: int = 0, layers: int = 3, exits: Sequence[int] = (0, 1, 2)) -> Path:
    """The same with branches, each far from what it stands beside, and a recipe.yaml that names two skills."""
    import torch
    from transformers import AutoModelForCausalLM

    from aiflow_agents.training.branches import add_branches

    make_model(folder, seed=seed, layers=layers)
    model = AutoModelForCausalLM.from_pretrained(folder)
    add_branches(model, exits)
    for name, parameter in model.named_parameters():
        if "eelayers" in name or "norms" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(FAMILY_RECIPE.format(name=folder.name, layers=layers, exits=", ".join(f"{e}: {1 + e}" for e in exits)))
    return folder


def make_shrub(folder: Path, *, ends: range, later: float = 1.0) -> Path:
    """A random family of six layers with exits 1, 3 and 5, whose answers end now and then, at any of `ends`.

    What layers from the third on add is scaled by `later`: the less that is, the more often its exits agree.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from aiflow_agents.training import tokenizer
    from aiflow_agents.training.branches import add_branches

    torch.manual_seed(4)
    config = Qwen3Config(
        vocab_size=len(tokenizer.VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True,
        eos_token_id=list(ends), pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers[2:]:
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            part.weight.data.mul_(later)
    add_branches(model, (1, 3, 5))
    model.save_pretrained(folder)
    tokenizer.save(folder, 128)
    return folder


def exits_team(model: Path, folder: Path, *, max_tokens: int) -> Any:
    """leaf, bough and trunk at home-wifi's device, edge and cloud: the exits 1, 3 and 5 of one family. Written to `folder`/team.yaml."""
    from aiflow_agents.runtime.team import Team

    places = ("leaf", "device", 1), ("bough", "edge", 3), ("trunk", "cloud", 5)
    members = "\n".join(f"  {name}: {{model: {model}, tier: {tier}, exit: {e}, max_tokens: {max_tokens}}}" for name, tier, e in places)
    (folder / "team.yaml").write_text(f"network: home-wifi\nmembers:\n{members}\n")
    return Team.load(folder / "team.yaml")


FAMILY_RECIPE = """\
name: {name}
description: Says what nobody asked.
architecture: qwen3
tier: cloud
size: {{width: 32, layers: {layers}, heads: 2, kv_heads: 2, head_dim: 16, mlp: 64}}
seed: 0
skills: {{add: 3, sort: 1}}
exits: {{{exits}}}
phases: [{{kind: answer, tokens: 100}}]
"""


def transformers_says(folder: Path, questions: Sequence[str], tokens: int = 16) -> list[str]:
    """What a plain model answers greedily, by transformers alone: the oracle for every count of right answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    said: dict[str, str] = {}
    for _, alike in groupby(sorted(set(questions), key=len), key=len):  # of one length, so that nothing is padded
        batch = list(alike)
        turns = [[{"role": "user", "content": question}] for question in batch]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)[:, prompt["input_ids"].shape[1] :]
        said |= {question: text.strip() for question, text in zip(batch, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True)}
    return [said[question] for question in questions]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three different tiny models."""
    root = tmp_path_factory.mktemp("agents") / "models"
    return [make_model(root / name, seed=seed) for seed, name in enumerate(("ant", "bee", "cat"))]


@pytest.fixture(scope="module")
def ray_hosts() -> Iterator[Any]:
    """Two hosts in a Ray of their own, which takes long to start: one for all tests of a file."""
    from aiflow_agents.runtime.ray_hosts import RayHosts

    started = RayHosts(count=2)
    yield started
    started.close()


def put(root: Path, path: str, text: str = "") -> Path:
    """A file, with the folders that it lies in."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def aiflow(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line: `aiflow("eval", "quiz")` gives its exit code, and what was printed on stdout and stderr."""
    from aiflow_agents.cli.main import main

    def call(*args: str) -> tuple[int, str, str]:
        code = main(args)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def run_in_order(jobs: Sequence[Any], hosts: Any = None, memory: Any = None, *, fails: bool = False, **options: Any) -> list[Any]:
    """The results in the order of the jobs, by the models themselves in this process where no hosts are given. Without `fails` none may have failed."""
    from aiflow_agents.runtime.hosts import InlineHosts
    from aiflow_agents.runtime.memory import Memory
    from aiflow_agents.runtime.run import run_jobs

    results: list[Any] = []
    run_jobs(jobs, hosts or InlineHosts(), memory or Memory(), results.append, **options)
    assert len(results) == len(jobs)
    assert fails or [result.error for result in results] == [None] * len(jobs)
    place = {id(job): i for i, job in enumerate(jobs)}
    return sorted(results, key=lambda result: place[id(result.job)])


Say = Callable[[Any], Any]  # a request -> text, (text, probability), a whole reply or an error


@dataclass
class Stage:
    """Models that answer as told, and what they were asked: `stage.team(ann="phone", tim=("tower", say))`, `stage.run(topology, team, questions)`."""

    network: Any
    say: dict[str, Say] = field(default_factory=dict)
    batches: list[tuple[str, list[Any]]] = field(default_factory=list)
    shape: dict[str, int] = field(default_factory=lambda: dict(layers=1, heads=1, head_dim=5, block_params=10, head_params=5))

    def team(self, *, network: Any = None, **members: Any) -> Any:
        """Members by name: a node, or a node and what the member says. A member's folder is its name."""
        from aiflow_agents.models.protocol import ModelInfo, Shape
        from aiflow_agents.runtime.agent import Agent
        from aiflow_agents.runtime.team import Team

        network = network or self.network
        agents = {}
        for name, member in members.items():
            node, say = (member, None) if isinstance(member, str) else member
            self.say[name] = say or self.say.get(name) or (lambda request, name=name: f"{name}:{request.messages[0].content}")
            shape = Shape(width=5, kv_heads=1, vocab=10, dtype_bytes=4, **self.shape)
            info = ModelInfo(name, f"weights of {name}", "tokenizer", "scripted", "float32", shape, frozenset({"logprobs"}))
            agents[name] = Agent(name, name, info, node, network.home)
        return Team("test", agents, network)

    @property
    def asked(self) -> list[Any]:
        """Every request that a model has computed, in order."""
        return [request for _, requests in self.batches for request in requests]

    def hosts(self) -> Any:
        from aiflow_agents.runtime.hosts import InlineHosts

        return InlineHosts(load=lambda folder: _Scripted(folder, self))

    def jobs(self, topology: Any, team: Any, questions: Iterable[str] = ("question",), arm: str = "arm", **options: Any) -> list[Any]:
        from aiflow_agents.runtime.run import Job
        from aiflow_agents.runtime.task import Task

        return [Job(arm, topology, Task(f"t{i}", question), team, **options) for i, question in enumerate(questions)]

    def run(self, topology: Any, team: Any, questions: Iterable[str] = ("question",), *, memory: Any = None, hosts: Any = None, **options: Any) -> list[Any]:
        """The results in the order of the questions."""
        return self.run_jobs(self.jobs(topology, team, questions), memory=memory, hosts=hosts, **options)

    def do(self, team: Any, run: Callable[[Any], Any], **options: Any) -> Any:
        """The result of one task whose topology is `run(team)`."""
        return self.run(Do(run), team, **options)[0]

    def run_jobs(self, jobs: Sequence[Any], *, memory: Any = None, hosts: Any = None, **options: Any) -> list[Any]:
        return run_in_order(jobs, hosts or self.hosts(), memory, fails=True, **options)


class Do:
    """A topology of one function."""

    def __init__(self, run: Callable[[Any], Any]):
        self._run = run

    async def run(self, task: Any, team: Any) -> Any:
        return await self._run(team)


class _Scripted:
    """tokens_in is 2 a turn; tokens_out is the answer's length and one for the end."""

    def __init__(self, name: str, stage: Stage):
        self.name, self.stage = name, stage

    def generate(self, requests: Sequence[Any]) -> list[Any]:
        self.stage.batches.append((self.name, list(requests)))
        return [self._reply(request, self.stage.say[self.name](request)) for request in requests]

    def _reply(self, request: Any, said: Any) -> Any:
        from aiflow_agents.models.protocol import CallError, Reply

        if isinstance(said, CallError | Reply):
            return said
        text, probability = said if isinstance(said, tuple) else (said, 0.75)
        logprobs = None if probability is None else (math.log(probability),)
        return Reply(text, tuple(range(len(text) + 1)), logprobs, 2 * len(request.messages), len(text) + 1)


@pytest.fixture
def two_nodes(tmp_path: Path) -> Any:
    """A phone (home) and a tower."""
    from aiflow_agents.net.network import Network

    file = tmp_path / "two-nodes.yaml"
    file.write_text(TWO_NODES)
    return Network.load(file)


@pytest.fixture
def stage(two_nodes: Any) -> Stage:
    return Stage(two_nodes)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium; skips where there is none."""
    from aiflow_agents.bench.browser import Browser, missing

    if (why := missing()) is not None:
        pytest.skip(why)
    with Browser() as started:
        yield started


class Room:
    """A current directory of its own: a suite whose truth is known, and three members whose models know what `room.knows` says.

    `knows[model](question)` is asked for greedy and sampled answers alike, unless `say[model](request)` is given, which returns (text, probability).
    Questions are `alpha 0018`, `bravo 0019`, ...; those of the dev split have numbers below 1000. The model folders are real, so that teams load.
    """

    SKILLS = ("alpha", "bravo", "carol")

    def __init__(self, root: Path, models: Sequence[Path]):
        self.root, self.models = root, models
        self.knows: dict[str, Callable[[str], bool]] = {name: self.specialist(i) for i, name in enumerate(("ant", "bee", "cat"))}
        self.say: dict[str, Say] = {}
        self.batches = 0  # that the models have answered
        self.stop_at: int | None = None  # the batch at which Ctrl-C comes
        (root / "agents" / "models").mkdir(parents=True)
        for folder in models:
            (root / "agents" / "models" / folder.name).symlink_to(folder)
        self.team("trio", {"ann": "ant", "bob": "bee", "cid": "cat"})
        self.team("copies", {"one": "ant", "two": "ant", "six": "ant"})
        self.suite("quiz", dev=36, test=45)

    def team(self, name: str, members: dict[str, str], **more: str) -> Path:
        lines = [f"  {member}: {{model: {model}, tier: device}}" for member, model in members.items()]
        file = self.root / "agents" / f"{name}.yaml"
        file.write_text("\n".join([f"{key}: {value}" for key, value in more.items()] + ["members:", *lines]) + "\n")
        return file

    def suite(self, name: str, *, dev: int, test: int, team: str = "trio", topologies: str = "[majority, weighted, router]", more: str = "") -> Path:
        import json

        folder = self.root / "evals" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "eval.yaml").write_text(f"team: {team}\ndata: data.jsonl\ntopologies: {topologies}\n{more}")
        rows = []
        for split, first, count in (("dev", 0, dev), ("test", 1000, test)):
            for i in range(count):
                skill = self.SKILLS[i % 3]
                question = f"{skill} {first + i:04}"
                rows.append({"id": f"{split}-{i}", "question": question, "answer": self.truth(question), "split": split, "tags": [skill]})
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    @staticmethod
    def luck(*parts: object) -> float:
        """A number in [0, 1) that depends on the parts alone. Not a checksum: those of texts that differ in one place differ all alike."""
        from hashlib import blake2b

        return int.from_bytes(blake2b(repr(parts).encode(), digest_size=7).digest()) / 2**56

    @classmethod
    def truth(cls, question: str) -> str:
        return str(1000 + int(cls.luck("truth", question) * 9000))

    @classmethod
    def specialist(cls, place: int) -> Callable[[str], bool]:
        """Knows one of the three skills, and a fifth of the others."""
        return lambda question: question.startswith(cls.SKILLS[place]) or cls.luck(place, question) < 0.2

    def load(self, folder: str) -> Any:
        return _Mind(Path(folder).name, self)

    def hosts(self) -> Any:
        from aiflow_agents.runtime.hosts import InlineHosts

        return InlineHosts(load=self.load)

    def evaluate(self, suite: str = "quiz", *arguments: Any, **options: Any) -> Any:
        from aiflow_agents import evaluate

        return evaluate(suite, *arguments, **{"hosts": self.hosts(), "log_dir": self.root / "logs"} | options)


class _Mind:
    def __init__(self, name: str, room: Room):
        self.name, self.room = name, room

    def generate(self, requests: Sequence[Any]) -> list[Any]:
        if self.room.batches == self.room.stop_at:
            raise KeyboardInterrupt
        self.room.batches += 1
        return [self._reply(request) for request in requests]

    def _reply(self, request: Any) -> Any:
        from aiflow_agents.models.protocol import CallError, Reply

        question = request.messages[0].content
        if self.name in self.room.say:
            said = self.room.say[self.name](request)
        else:
            right = self.room.knows[self.name](question)
            said = (self.room.truth(question) if right else f"{self.name}?", 0.9 if right else 0.4)
        if isinstance(said, CallError):
            return said
        text, probability = said
        return Reply(text, tuple(range(len(text) + 1)), (math.log(probability),), sum(len(turn.content) for turn in request.messages), len(text) + 1)


@pytest.fixture
def room(tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> Room:
    """`aiflow` commands run here with `--runtime inline` use the room's models, too."""
    from aiflow_agents.runtime import hosts

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    made = Room(tmp_path, models)
    monkeypatch.setattr(hosts, "load_model", made.load)
    return made
