"""Where models compute: in this process or in Ray's, the same comes out; a host that dies is replaced and its calls are made again."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.errors import AIFlowError, UnknownName, UserError
from aiflow_agents.models.protocol import Request, Turn
from aiflow_agents.runtime.hosts import InlineHosts, open_hosts


def ask(*contents: str, **options: Any) -> list[Request]:
    return [Request((Turn("user", content),), **options) for content in contents]


def texts(answers: Sequence[Any]) -> list[str]:
    return [answer.text for answer in answers]


def loader() -> Callable[[str], Any]:
    """Loads real model folders, and models that show what happens to them. Made in here so that it travels to another process by value."""

    class Puppet:
        def __init__(self, name: str):
            self.act, _, self.where = name.partition(":")

        def generate(self, requests: Sequence[Any]) -> list[Any]:
            import os
            import time
            from pathlib import Path

            from aiflow_agents.models.protocol import Reply

            if self.act == "fails":
                raise ZeroDivisionError("by zero")
            if self.act == "dies":
                os._exit(1)
            if self.act == "waits":  # says which process waits, until it may go on
                (Path(self.where) / str(os.getpid())).touch()
                while not (Path(self.where) / "go").exists():
                    time.sleep(0.01)
            note = {"sizes": len(requests), "pids": os.getpid()}.get(self.act, "")
            return [Reply(f"{request.messages[0].content}{note}", (), None, 1, 1) for request in requests]

    def load(folder: str) -> Any:
        from aiflow_agents.runtime.hosts import load_model

        return load_model(folder) if folder.startswith(("/", "{")) else Puppet(folder)

    return load


# --- in this process ---


def test_a_model_is_loaded_once_when_it_is_first_asked() -> None:
    loaded: list[str] = []

    def load(folder: str) -> Any:
        loaded.append(folder)
        return loader()(folder)

    hosts = InlineHosts(load)
    assert loaded == []
    answers = hosts.generate({"sizes": ask("a", "b"), "echo": ask("c")})
    assert {name: texts(part) for name, part in answers.items()} == {"sizes": ["a2", "b2"], "echo": ["c"]}
    hosts.generate({"echo": ask("d")})
    assert loaded == ["sizes", "echo"]
    hosts.close()
    assert texts(hosts.generate({"echo": ask("e")})["echo"]) == ["e"] and loaded == ["sizes", "echo", "echo"]


def test_an_unknown_runtime_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no runtime named 'inlined'; did you mean inline"):
        open_hosts("inlined")


def test_a_model_folder_gets_one_torch_thread() -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        hosts = open_hosts("inline")
        (answer,) = hosts.generate({shipped()[0]: ask("12+34=", max_tokens=4)})[shipped()[0]]
        assert torch.get_num_threads() == 1 and answer.tokens_out > 0
    finally:
        torch.set_num_threads(threads)


def shipped() -> list[str]:
    """Two real model folders."""
    root = catalog.library()
    assert root is not None
    return [str(folder) for folder in sorted((root / "agents" / "models").iterdir())[:2]]


# --- in Ray ---


@pytest.fixture(scope="module")
def hosts() -> Iterator[Any]:
    """Two hosts in a Ray of their own, which takes long to start: one for all."""
    import ray

    from aiflow_agents.runtime.ray_hosts import RayHosts

    assert not ray.is_initialized()
    listener = logging.Handler(logging.WARNING)
    said: list[str] = []
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ray").addHandler(listener)
    started = RayHosts(count=2, load=loader())
    logging.getLogger("ray").removeHandler(listener)
    assert said == []  # what Ray says as it starts would stand among the user's lines
    yield started
    started.close()
    assert not ray.is_initialized()


@pytest.mark.ray
def test_both_runtimes_give_identical_results(stage: Any, hosts: Any) -> None:
    """Real models, greedy and sampled, in batches of several sizes, cut into pieces."""
    from dataclasses import replace

    from aiflow_agents.models.family.info import model_info
    from aiflow_agents.topology.load import load_topology

    team = stage.team(ann="phone", tim="tower")
    agents = zip(team, shipped(), strict=True)
    team = replace(team, agents={agent.name: replace(agent, folder=folder, info=model_info(folder), max_tokens=8) for agent, folder in agents})
    questions = [f"{i}+{7 * i}=" for i in range(70)]
    jobs = [
        *stage.jobs(load_topology("debate"), team, questions, arm="debate", traced=True),
        *stage.jobs(load_topology("self-consistency", {"samples": 2, "member": "tim"}), team, questions[:9], arm="sc"),
    ]
    inline, spread = (stage.run_jobs(jobs, hosts=where, seed=3) for where in (InlineHosts(), hosts))
    assert all(result.error is None for result in inline) and len({result.answer for result in inline}) > 10
    outcomes = [[(r.answer, r.text, r.confidence, r.usage, r.spans) for r in results] for results in (inline, spread)]
    assert outcomes[0] == outcomes[1]


def test_a_model_that_streams_is_heard_by_who_asks_for_it_and_others_are_asked_as_ever() -> None:
    hosts, heard, folder = InlineHosts(loader()), [], shipped()[0]
    requests = [*ask("12+34=", "7*8=", max_tokens=8), *ask("12+34=", max_tokens=8)]
    plain = hosts.generate({folder: requests, "echo": ask("a")})
    told = hosts.generate({folder: requests, "echo": ask("a")}, told=lambda *what: heard.append(what))
    assert told == plain and {model for model, *_ in heard} == {folder}
    for i, answer in enumerate(plain[folder]):
        said = [(at, ids, text) for _, row, at, ids, text in heard if row == i]
        assert answer.finish == "stop" and said == [(at, (token,), "") for at, token in enumerate(answer.token_ids[:-1])]
    assert [at for _, _, at, *_ in heard] == sorted(at for _, _, at, *_ in heard)  # step by step, all rows of a step together


@pytest.mark.ray
def test_a_model_streams_in_ray_as_here(hosts: Any) -> None:
    """Every row its own tokens in their order, from pieces on both hosts; and through a team under the real clock."""
    import asyncio

    from aiflow_agents.runtime.live import Live
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.topology.load import load_topology

    folder, heard = shipped()[0], [[], []]
    requests = ask(*(f"{i}+{7 * i}=" for i in range(70)), max_tokens=8)
    answers = [where.generate({folder: requests}, told=lambda *what, log=log: log.append(what)) for where, log in zip((InlineHosts(), hosts), heard, strict=True)]
    assert answers[0] == answers[1] and sorted(heard[0]) == sorted(heard[1]) and len(heard[0]) > 140
    for i in range(70):
        assert [what for what in heard[1] if what[1] == i] == [what for what in heard[0] if what[1] == i]

    async def ask_team() -> Any:
        async with Live(Team.of({"one": folder}, max_tokens=8), hosts) as live:
            return await live.ask(load_topology("stream"), "12+34=", reader=portions.append)

    portions: list[Any] = []
    result = asyncio.run(ask_team())
    assert result.error is None and len(portions) == result.usage.tokens_out > 2 and tuple(portions) == result.delivery.portions


@pytest.mark.ray
def test_an_endpoint_is_heard_through_ray_as_here(hosts: Any) -> None:
    from aiflow_agents.models.backends import Behind
    from tests.models.test_events import CHUNKED, pieces
    from tests.models.test_http import SHAPE, Server

    server = Server(lambda n, body: (200, CHUNKED, pieces(*body["messages"][0]["content"])))
    key = Behind(kind="http", model="gpt", options={"url": server.url}, shape=asdict(SHAPE)).key
    questions, heard = [f"{i}+{7 * i}=" for i in range(40)], [[], []]
    try:
        for where, log in zip((InlineHosts(), hosts), heard, strict=True):
            answers = where.generate({key: ask(*questions)}, told=lambda *what, log=log: log.append(what))[key]
            assert texts(answers) == questions
    finally:
        server.close()
    for i, text in enumerate(questions):
        for log in heard:
            assert [(at, said) for _, row, at, _, said in log if row == i] == list(enumerate(text))


@pytest.mark.ray
def test_a_batch_is_shared_out_and_comes_back_in_order(hosts: Any) -> None:
    for count, sizes in ((5, {5: 5}), (40, {32: 32, 8: 8}), (100, {50: 100}), (600, {256: 512, 88: 88})):
        contents = [f"{i}." for i in range(count)]
        answers = texts(hosts.generate({"sizes": ask(*contents)})["sizes"])
        assert [answer.partition(".")[0] + "." for answer in answers] == contents
        assert Counter(int(answer.partition(".")[2]) for answer in answers) == sizes
    assert {int(text) for text in texts(hosts.generate({"pids": ask(*[""] * 2000)})["pids"])} == set(hosts.processes())
    assert os.getpid() not in hosts.processes()


@pytest.mark.ray
def test_only_hosts_without_work_share_a_batch(hosts: Any) -> None:
    hosts.processes()  # they run
    there = hosts._hosts()
    for busy, sizes in ((there[:1], {100: 100}), (there, {100: 100}), ([], {50: 100})):
        for host in busy:
            host.busy += 1
        found = texts(hosts.generate({"sizes": ask(*["."] * 100)})["sizes"])
        for host in busy:
            host.busy -= 1
        assert Counter(int(text[1:]) for text in found) == sizes


@pytest.mark.ray
def test_what_a_host_raises_comes_through(hosts: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        hosts.generate({"fails": ask("a")})
    with pytest.raises(UserError) as caught:
        hosts.generate({str(tmp_path): ask("a")})
    assert type(caught.value) is UserError and str(caught.value).startswith(f"model folder {tmp_path} has no config.json") and "\n" not in str(caught.value)


@pytest.mark.ray
def test_a_host_that_is_killed_in_the_middle_is_replaced_and_its_calls_made_again(hosts: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        while len(waiting := list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        killed.append(int(waiting[0].name))
        os.kill(killed[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    before, restarts = hosts.processes(), hosts.restarts
    killer = Thread(target=kill)
    killer.start()
    contents = [f"{i}" for i in range(130)]
    answers = hosts.generate({f"waits:{tmp_path}": ask(*contents), "echo": ask(*contents[:3])})
    killer.join()
    assert texts(answers[f"waits:{tmp_path}"]) == contents and texts(answers["echo"]) == contents[:3]
    assert hosts.restarts == restarts + 1 and killed[0] in before
    after = hosts.processes()
    assert len(set(after)) == 2 and killed[0] not in after and len(set(before) & set(after)) == 1


@pytest.mark.ray
def test_calls_that_kill_every_host_are_given_up(hosts: Any) -> None:
    with pytest.raises(AIFlowError, match="three hosts died over the same 1 calls to dies"):
        hosts.generate({"dies": ask("a")})
    assert texts(hosts.generate({"echo": ask("b")})["echo"]) == ["b"]


@pytest.mark.ray
def test_ctrl_c_is_noticed_while_ray_works(hosts: Any, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
        begun.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    begun: list[float] = []
    Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        hosts.generate({f"waits:{tmp_path}": ask("a")})
    assert time.monotonic() - begun[0] < 5
    (tmp_path / "go").touch()
    assert texts(hosts.generate({"echo": ask("b")})["echo"]) == ["b"]


@pytest.mark.ray
def test_a_ray_that_was_running_before_is_left_running(hosts: Any) -> None:
    import ray

    from aiflow_agents.runtime.ray_hosts import RayHosts

    RayHosts(count=1).close()
    assert ray.is_initialized() and texts(hosts.generate({"echo": ask("b")})["echo"]) == ["b"]
