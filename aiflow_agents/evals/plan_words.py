"""What a search for a plan has found, in words, in a table, and as a file that other commands take."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from aiflow_agents.evals.plan import QUANTITIES, Forecast, Planned
from aiflow_agents.evals.plans import Plan
from aiflow_agents.evals.verdict import percent, quantity

HEAD = ("plan", "text", "right", "latency", "p95", "first token", "bytes", "energy", "in the cloud")
RELIEFS = 3  # parts of the network that are named


def row(one: Forecast) -> list[str]:
    """One line of the table, cell by cell as in HEAD."""
    right = ("at most " if one.accuracy.at_most else "") + percent(one.accuracy.value)
    times = [quantity(seconds, "s") for seconds in (one.latency_s, one.latency_p95_s, one.first_token_s)]
    rest = [quantity(one.wire_bytes, "B"), quantity(one.energy_j, "J"), quantity(one.cloud_flops, "FLOP")]
    return [one.plan.name, one.plan.mark, right, *times, *rest]


def why(found: Planned) -> list[str]:
    """Why the winner won, in a few sentences: what the next best costs, and what binds."""
    _, unit, words = QUANTITIES[found.quantity]
    best = max(found.forecasts, key=lambda one: (one.accuracy.value, -one.value(found.quantity)))
    if found.winner is None:
        right = f"{percent(best.accuracy.value)} of {best.accuracy.n:,} questions"
        return [f"No plan reaches the floor of {percent(found.floor)}: the best, {best.plan.name}, is right on {right}."]
    won, told = found.winner, []
    low, high = won.accuracy.ci95
    told.append(
        f"{won.plan.name} wins: {quantity(won.value(found.quantity), unit)} of {words}, right on {percent(won.accuracy.value)} of {won.accuracy.n:,} "
        f"questions (95 %: {100 * low:.1f} to {100 * high:.1f}), text {won.plan.mark}."
    )
    if found.floor and low < found.floor:
        told.append(f"Its interval reaches below the floor of {percent(found.floor)}: more --questions would tell more.")
    if won.acceptance is not None:
        told.append(f"Of the tokens that were drafted and checked {percent(won.acceptance)} stay.")
    if other := found.next_best:
        told.append(f"The next best in another way, {other.plan.name}, costs {_against(other, won, found.quantity)}.")
    if below := found.below:
        told.append(
            f"The floor binds: {below.plan.name} would cost {_against(below, won, found.quantity)}, but is right on {percent(below.accuracy.value)}."
        )
    elif found.floor:
        told.append("The floor does not bind: nothing below it is cheaper.")
    told.append(_binds(found, won, unit))
    return told + [f"Left out: {what}." for what in found.left_out]


def _against(one: Forecast, won: Forecast, name: str) -> str:
    unit, mine, own = QUANTITIES[name][1], one.value(name), won.value(name)
    times = f" ({mine / own:.2f}x)" if own and mine != own else ""
    if mine == own:
        times = f" too, and {quantity(one.latency_s, 's')} of latency instead of {quantity(won.latency_s, 's')}"
    return quantity(mine, unit) + times


def _binds(found: Planned, won: Forecast, unit: str) -> str:
    if not found.relief:
        return f"Nothing in the network would lessen its {QUANTITIES[found.quantity][2]} by being twice as good."
    parts = [f"{what} {quantity(saved, unit)}" for what, saved in found.relief[:RELIEFS]]
    return f"What binds is {_part(found.relief[0][0])}: it would save, with {', '.join(parts)}."


def _part(what: str) -> str:
    """Of `half the latency of edge-cloud` the link edge-cloud, of `cloud twice as fast` the node cloud."""
    return f"the link {what.rpartition(' of ')[2]}" if " of " in what else f"the node {what.removesuffix(' twice as fast')}"


def as_json(found: Planned) -> dict[str, Any]:
    """Everything, as plain data. `relief`: what the winner would save by each, in the unit of the quantity."""
    frontier, winner = {one.plan.name for one in found.frontier}, found.winner and found.winner.plan.name
    rows = []
    for one in found.forecasts:
        told = asdict(one)
        told["plan"] = {key: told["plan"][key] for key in ("name", "topology", "parameters", "members", "mark")}
        rows.append(told | {"frontier": one.plan.name in frontier, "wins": one.plan.name == winner})
    return {
        "network": found.network,
        "minimise": found.quantity,
        "floor": found.floor,
        "winner": winner,
        "why": why(found),
        "relief": dict(found.relief),
        "left_out": list(found.left_out),
        "plans": rows,
    }


def options(plan: Plan) -> list[str]:
    """What asks for this plan's topology on a command line."""
    return ["--topology", plan.topology, *(part for key, value in plan.parameters.items() for part in ("-T", f"{key}={value}"))]


def commands(plan: Plan, file: Path, suite: str = "SUITE") -> list[str]:
    """How to ask, to judge and to serve the plan that stands in this file."""
    how = shlex.join(options(plan))
    name = shlex.quote(str(file))
    return [f"aiflow run QUESTION --team {name} {how}", f"aiflow eval {suite} --team {name} {how}", f"aiflow serve {name} {how}"]


def write(found: Planned, network: str, file: Path, max_tokens: int, suite: str = "SUITE") -> list[str]:
    """Write the winner's team file, whole or not at all, with the commands that use it on top; gives these commands. Answers may be as long as those
    that it was chosen by."""
    assert found.winner is not None
    won = found.winner
    says = f"{won.plan.name}: {quantity(won.latency_s, 's')}, {quantity(won.wire_bytes, 'B')}, {quantity(won.energy_j, 'J')} on {found.network}"
    given = commands(won.plan, file, suite)
    members = {name: {**member, "max_tokens": max_tokens} for name, member in won.plan.members.items()}
    team = {"description": says, "network": network, "members": members}
    part = file.with_name(file.name + ".part")
    part.write_text("".join(f"# {line}\n" for line in given) + yaml.safe_dump(team, sort_keys=False, width=150), encoding="utf-8")
    part.replace(file)
    return given
