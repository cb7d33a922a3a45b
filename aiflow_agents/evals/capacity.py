"""Information Capacity of members: how likely each one holds the right answers, for the FLOPs of a token. The formula is in `evals.measures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aiflow_agents.evals.measures import capacity, capacity_bias
from aiflow_agents.models.protocol import Pass, Reply, Request, Turn
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.handover import Call, Handover
from aiflow_agents.runtime.hosts import Hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team


def capacities(team: Team, tasks: Sequence[Task], hosts: Hosts, memory: Memory) -> dict[str, dict[str, Any]]:
    """member -> `text_bits` and `nll_bits` a token, `flops` a token, `bias`, and the capacity itself, `value`.

    The text is the expected answer of every task, read behind its question. A member whose model cannot say how likely a given text is has no entry.
    """
    found = {agent.name: row for agent in team if (row := _measure(agent, tasks, hosts, memory))}
    series: dict[str, list[str]] = {}  # sizes of one family
    for name in found:
        series.setdefault(team[name].info.weights_hash, []).append(name)
    largest = max(series.values(), key=len, default=[])
    bias = capacity_bias([(found[name]["text_bits"] - found[name]["nll_bits"], found[name]["flops"]) for name in largest])
    for row in found.values():
        row |= {"bias": bias, "value": capacity(row["text_bits"], row["nll_bits"], row["flops"], bias)}
    return {name: {key: float(f"{value:.4g}") for key, value in row.items()} for name, row in found.items()}


def _measure(agent: Agent, tasks: Sequence[Task], hosts: Hosts, memory: Memory) -> dict[str, float] | None:
    """Means over all tokens of all answers. FLOPs are those of one more position behind what was read, as in decoding."""
    if "score" not in agent.info.capabilities:
        return None
    told = [Turn("system", agent.prompt)] if agent.prompt else []
    asked = [
        Request((*told, Turn("user", task.question)), 0, exit=agent.exit, keep=agent.keep, score=task.expected) for task in tasks if task.expected
    ]
    replies = Handover(hosts, memory).answers([Call(agent.folder, agent.fingerprint, request) for request in asked])
    shape, tokens, bits, nats, flops = agent.shape or agent.info.shape, 0, 0, 0.0, 0.0
    for request, reply in zip(asked, replies, strict=True):
        if not isinstance(reply, Reply) or reply.logprobs is None or reply.text != request.score or len(reply.logprobs) != len(reply.token_ids):
            continue  # it did not fit into the context, or was not scored but answered
        made = len(reply.logprobs)
        tokens, bits, nats = tokens + made, bits + 8 * len(reply.text.encode()), nats - math.fsum(reply.logprobs)
        flops += sum(shape.pass_flops(Pass(1.0, 1, reply.tokens_in - made + t, 1)) for t in range(made))
    return {"text_bits": bits / tokens, "nll_bits": nats / math.log(2) / tokens, "flops": flops / tokens} if tokens else None
