"""Is what several tiers decode together exactly what the last one says alone?

    greedy   prompts through draft-verify and split, over networks, without and with faults; text beside the last tier's own
    sampled  the same few prompts with many seeds: chi-square of every token behind every context against the last tier's exact distribution,
             and of what deliberately wrong rules of acceptance make of the same drafts, which the same test has to reject
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow_agents.bench.drafting import TIE
from aiflow_agents.bench.family import questions_for
from aiflow_agents.errors import UserError
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.models.protocol import Request, Sampling, Turn, common
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import Message

if TYPE_CHECKING:
    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.models.family.verify import Rule

TIERS = ("device", "edge", "cloud")
ENOUGH = 5.0  # of a token so many have to be expected; what is rarer in a context is counted together
PART = 4096  # requests in one batch
DRAFTED, ODDS, RUN = 2, 16, 4  # tokens of a draft, from how many each is drawn, tokens of a whole run
Seen = dict[tuple[int, ...], "Counter[int]"]  # by context (prompt and answer so far), how often each token came next

WRONG: dict[str, Rule] = {
    "half the probability is enough": lambda uniform, p, q: p >= q / 2,
    "every draft stays": lambda uniform, p, q: True,
}


def family_team(model: str | Path, network: str, max_tokens: int) -> Team:
    """The first, a middle and the last exit of a family, on a device, the edge and the cloud. Raises UserError for one of fewer than three exits."""
    from aiflow_agents.models.family.config import DecoderConfig

    exits = DecoderConfig.read(model).exits
    if len(exits) < 3:
        raise UserError(f"{Path(model).name} has {len(exits)} exit(s); three tiers need three: `aiflow family grow` adds exits")
    chosen = exits[0], exits[len(exits) // 2], exits[-1]
    members = {tier: {"model": str(model), "tier": tier, "exit": e, "max_tokens": max_tokens} for tier, e in zip(TIERS, chosen, strict=True)}
    return Team.of(members, network=network)


ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "draft-verify, three tiers": ("draft-verify", {}),
    "draft-verify, two tiers": ("draft-verify", {"members": ("device", "cloud")}),
    "split": ("split", {"codec": "float32"}),
}


def bench_greedy(
    model: str | Path, networks: Sequence[str], *, prompts: int = 200, faults: Sequence[Sequence[str]] = (), max_tokens: int = 64, seed: int = 0,
    watch: Watcher | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row `network, faults, arm, prompts, identical, ties, failed, different` for every arm on every network, first without faults.

    `faults`: plans, each a list of texts (`net.faults`). `ties`: the first difference is one between two logits within 1e-4. `failed` counts tasks
    without an answer by the reason, as when the last tier is gone; `different` lists questions whose text is another one.
    """
    from aiflow_agents.models.family.model import FamilyModel

    watch, hosts, memory = watch or Silence(), InlineHosts(), Memory()
    asked = [question.text for question in questions_for(Path(model), prompts, seed)]
    rows = []
    judge = FamilyModel.load(model)
    expected: list[str] = []
    watch.stage("greedy", len(networks) * (1 + len(faults)) * len(ARMS) * prompts + prompts)
    for network in networks:
        for plan in ((), *faults):
            team = family_team(model, network, max_tokens)
            if not expected:
                expected = [text or "" for text, _ in _said(team, "single", {"member": "cloud"}, asked, hosts, memory, watch)]
            team = team.with_faults(*plan)
            for arm, (name, parameters) in ARMS.items():
                found = _said(team, name, parameters, asked, hosts, memory, watch)
                failed = Counter(error for text, error in found if text is None)
                ties, different = 0, []
                for question, whole, (text, _) in zip(asked, expected, found, strict=True):
                    if text is not None and text != whole:
                        tied = _tied(judge, team["cloud"].exit, question, whole, text)
                        ties += tied
                        different += [] if tied else [question]
                same = prompts - ties - len(different) - failed.total()
                about = {"network": network, "faults": list(plan), "arm": arm, "prompts": prompts}
                rows.append(about | {"identical": same, "ties": ties, "failed": dict(failed), "different": different})
    return rows


def _said(
    team: Team, topology: str, parameters: dict[str, Any], asked: Sequence[str], hosts: InlineHosts, memory: Memory, watch: Watcher
) -> list[tuple[str | None, str]]:
    """(text, "") of each question, or (None, why there is none)."""
    found: dict[str, tuple[str | None, str]] = {}

    def done(result: Any) -> None:
        found[result.job.task.id] = (result.text, "") if result.error is None else (None, result.error)
        watch.advance(1)

    built = load_topology(topology, parameters)
    built.check(team)
    run_jobs([Job(topology, built, Task(str(i), text), team) for i, text in enumerate(asked)], hosts, memory, done)
    return [found[str(i)] for i in range(len(asked))]


def _tied(model: FamilyModel, exit: int | None, question: str, whole: str, text: str) -> bool:
    """Whether two answers part at two logits within 1e-4."""
    import torch

    one, other = ([*model.chat.ids(answer), *sorted(model.engine.eos_ids)[:1]] for answer in (whole, text))
    at = common(one, other)
    prompt = model.chat.prompt((Turn("user", question),))
    top = model.engine.decoder.logits(torch.tensor([[*prompt, *one[:at]]]), exit=exit)[0, -1].topk(2).values
    return float(top[0] - top[1]) <= TIE


# -- at a temperature --------------------------------------------------------------------------------------------------------


Place = tuple[str, tuple[int, ...]]  # a question, and the tokens with which its answer begins


def bench_sampled(
    model: str | Path, network: str, *, tokens: int = 100_000, runs: int = 400, places: int = 8, temperature: float = 2.0, seed: int = 0,
    watch: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Draws at the same few places with many seeds, until `tokens` tokens stand in contexts that came often enough to be tested.

    A place is a test question and a part of the last exit's own answer, where the first exit's distribution is another one than anywhere else: there
    a wrong rule shows. Returns `temperature, places, acceptance_rate`, and as `calls`, `wrong` (by the rule) and `runs` (by the number of tiers) what
    the test found: `tokens, contexts, cells, chi2, df, p`. In `calls` the first exit drafts two tokens and the last one checks them, as calls of the
    model in batches; in `runs` the questions where the first tokens differ most go through the whole of draft-verify, `runs` times each, for four
    tokens.
    """
    from aiflow_agents.models.family.model import FamilyModel

    watch, loaded = watch or Silence(), FamilyModel.load(model)
    device, cloud = (family_team(model, network, 1)[tier].exit for tier in (TIERS[0], TIERS[-1]))
    exact = _Exact(loaded, cloud, temperature)
    pool = [question.text for question in questions_for(Path(model), 16 * places, seed)]
    chosen = _places(loaded, pool, exact, device)[:places]
    heads = [(*loaded.chat.prompt((Turn("user", question),)), *begin) for question, begin in chosen]
    seen: Seen = {}
    wrong: dict[str, Seen] = {rule: {} for rule in WRONG}
    kept = checked = start = 0
    watch.stage("sampled", tokens)
    while (have := exact.test(seen)["tokens"]) < tokens:
        turns = [i % len(chosen) for i in range(start, start + PART)]
        drafts = [_request(chosen[turn], device, DRAFTED, temperature, seed, "draft", start + i) for i, turn in enumerate(turns)]
        made = _good(loaded.generate([replace(request, odds=ODDS) for request in drafts]))
        checks = [
            replace(_request(chosen[turn], cloud, DRAFTED + 1, temperature, seed, "check", start + i), check=one.token_ids, odds_told=one.next or b"")
            for i, (turn, one) in enumerate(zip(turns, made, strict=True))
        ]
        settled = _good(loaded.generate(checks))
        kept, checked, start = kept + sum(r.kept for r in settled), checked + sum(len(r.token_ids) for r in made), start + PART
        at = [heads[turn] for turn in turns]
        _count(seen, zip(at, [reply.token_ids for reply in settled], strict=True))
        for why, rule in WRONG.items():
            _count(wrong[why], zip(at, _by_rule(loaded, at, checks, cloud, rule), strict=True))
        watch.advance(min(exact.test(seen)["tokens"], tokens) - min(have, tokens))
    found = {"temperature": temperature, "places": [(question, loaded.chat.text(begin)) for question, begin in chosen]}
    found |= {"acceptance_rate": kept / checked, "calls": exact.test(seen), "wrong": {why: exact.test(counts) for why, counts in wrong.items()}}
    begun = [question for question, begin in _places(loaded, pool, exact, device, first=True)][:places]
    return found | {"runs": {str(n): exact.test(_runs(loaded, model, network, begun, runs, n, temperature, seed, watch)) for n in (2, 3)}}


def _places(model: FamilyModel, asked: Sequence[str], exact: _Exact, other: int | None, *, first: bool = False) -> list[Place]:
    """In the answer to each question the place at which another exit's distribution differs most, or the `first` place; the question where it differs
    most comes first. How much is half the sum of all differences."""
    import torch

    answers = _good(model.generate([Request((Turn("user", text),), 64, exit=exact.exit) for text in asked]))
    found: list[tuple[float, Place]] = []
    for text, answer in zip(asked, answers, strict=True):
        prompt = model.chat.prompt((Turn("user", text),))
        ids = torch.tensor([[*prompt, *(() if first else answer.token_ids[:-1])]])
        logits = [model.engine.decoder.logits(ids, exit=one)[0, len(prompt) - 1 :].double() for one in (exact.exit, other)]
        p, q = (torch.softmax(one / exact.temperature, -1) for one in logits)
        away = (p - q).abs().sum(-1) / 2
        found.append((float(away.max()), (text, answer.token_ids[: int(away.argmax())])))
    return [place for _, place in sorted(found, key=lambda one: -one[0])]


def _request(place: Place, exit: int | None, tokens: int, temperature: float, *luck: object) -> Request:
    """So many tokens more at this place."""
    from aiflow_agents.runtime.scene import stable_hash

    question, begin = place
    return Request((Turn("user", question),), len(begin) + tokens, Sampling(temperature), stable_hash(*luck), exit=exit, begin=begin)


def _good(replies: Sequence[Any]) -> list[Any]:
    """Raises UserError where a call was refused."""
    for reply in replies:
        if not hasattr(reply, "token_ids"):
            raise UserError(f"a call of the bench was refused: {reply.message}")
    return list(replies)


def _by_rule(model: FamilyModel, heads: Sequence[tuple[int, ...]], checks: Sequence[Request], exit: int | None, rule: Rule) -> list[tuple[int, ...]]:
    """What would be said of the same drafts, with the same luck, by another rule of acceptance."""
    from aiflow_agents.models.family.verify import Claim, verify
    from aiflow_agents.wire.odds import decode

    claims = [
        Claim(head, request.check or (), DRAFTED + 1, temperature=request.sampling.temperature, seed=request.seed, odds=decode(request.odds_told))
        for head, request in zip(heads, checks, strict=True)
    ]
    return [verdict.token_ids for verdict in verify(model.engine.decoder, claims, model.engine.eos_ids, exit, rule)]


def _runs(
    model: FamilyModel, folder: str | Path, network: str, asked: Sequence[str], runs: int, tiers: int, temperature: float, seed: int, watch: Watcher
) -> Seen:
    """What whole runs of draft-verify say, with so many tiers, each with another seed."""
    team = family_team(folder, network, RUN)
    team = replace(team, agents={agent.name: replace(agent, sampling=Sampling(temperature)) for agent in team})
    topology = load_topology("draft-verify", {"members": TIERS if tiers == 3 else (TIERS[0], TIERS[-1]), "odds": ODDS})
    seen: Seen = {}

    def done(result: Any) -> None:
        if result.error is not None:
            raise UserError(f"a run of the bench failed: {result.error}")
        watch.advance(1)

    def tell(question: str, tokens: tuple[int, ...]) -> None:
        _count(seen, [(tuple(model.chat.prompt((Turn("user", question),))), tokens)])

    watch.stage(f"runs of {tiers} tiers", runs * len(asked))
    jobs = [Job("x", _Told(topology, tell), Task(text, text), team, repeat=i) for i in range(runs) for text in asked]
    run_jobs(jobs, InlineHosts(), Memory(), done, seed=seed)
    return seen


class _Told:
    """A topology whose answers are told as tokens, with the one that ended them."""

    def __init__(self, topology: Any, tell: Callable[[str, tuple[int, ...]], None]):
        self._topology, self._tell = topology, tell

    async def run(self, task: Task, team: Team) -> Message:
        message: Message = await self._topology.run(task, team)
        self._tell(task.question, message.tokens)
        return message


def _count(seen: Seen, said: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Every token of these answers, behind its own context."""
    for head, tokens in said:
        for i, token in enumerate(tokens):
            seen.setdefault((*head, *tokens[:i]), Counter())[token] += 1


class _Exact:
    """The distribution that an exit draws from at a temperature, as whole passes give it, and what was seen beside it."""

    def __init__(self, model: FamilyModel, exit: int | None, temperature: float):
        self.model, self.exit, self.temperature = model, exit, temperature
        self._known: dict[tuple[int, ...], Any] = {}

    def test(self, seen: Seen) -> dict[str, Any]:
        """Pearson's chi-square over all contexts that came often enough for two cells: within each, how often it came is given.

        A draw behind a context depends on nothing before, so the contexts' statistics and degrees of freedom add up.
        """
        import numpy as np
        from scipy import stats

        chi2 = df = total = contexts = cells = 0.0
        for context, counts in seen.items():
            n = counts.total()
            if n < 2 * ENOUGH:
                continue
            p = self.of(context)
            often = np.flatnonzero(p * n >= ENOUGH)
            expected = p[often] * n
            found = np.array([counts[int(token)] for token in often], dtype=float)
            rest = n - expected.sum()
            if rest >= ENOUGH or len(often) == 0:
                expected, found = np.append(expected, rest), np.append(found, n - found.sum())
            else:  # too few are expected besides: they are counted with the rarest
                expected[expected.argmin()] += rest
                found[p[often].argmin()] += n - found.sum()
            if len(expected) < 2:
                continue
            chi2, df, total = chi2 + float(((found - expected) ** 2 / expected).sum()), df + len(expected) - 1, total + n
            contexts, cells = contexts + 1, cells + len(expected)
        p_value = float(stats.chi2.sf(chi2, df)) if df else 1.0
        return {"tokens": int(total), "contexts": int(contexts), "cells": int(cells), "chi2": chi2, "df": int(df), "p": p_value}

    def of(self, context: tuple[int, ...]) -> Any:
        """[vocab]."""
        import torch

        if context not in self._known:
            logits = self.model.engine.decoder.logits(torch.tensor([context]), exit=self.exit)[0, -1]
            self._known[context] = torch.softmax(logits.double() / self.temperature, -1).numpy()
        return self._known[context]
