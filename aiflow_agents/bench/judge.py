"""The judge on trial: worlds in which it is known who is better, and thousands of runs in each.

`verdict.judge` is on trial with its own functions: p-values, the intersection-union test, Holm, the wording and the intervals are computed by what
it calls, on whole arrays of runs. From each world some runs are also written out task by task and given to `verdict.judge` itself, and every
number must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from aiflow_agents.bench import clustered
from aiflow_agents.bench.worlds import Runs, World, shown_exactly
from aiflow_agents.evals import statistics, verdict
from aiflow_agents.evals.trial import chosen

ALPHA, LEVEL = 0.05, 0.95
SURE = 0.001  # a rate of errors above ALPHA is believed below this p
FLOOR, NEAR = 0.93, 0.01  # coverage: at least, in each world; and how far the mean over worlds may be from LEVEL
WRITTEN_OUT = 5  # runs of each world that `verdict.judge` itself gets
BEST = 0.6  # accuracy of the best member
CLUSTERED = 10  # runs of clustered questions are slow too
SHARE = 4  # intervals of the captured share are slow: of so many runs, one has it


class Judged(NamedTuple):
    """What the judge says of many runs. `p_holm`, `says` [runs, topologies], `rivals_say` [runs, rivals]; the chosen ones [runs]."""

    member: np.ndarray
    team: np.ndarray
    p_holm: np.ndarray
    says: np.ndarray
    interval: tuple[np.ndarray, np.ndarray]  # of the team's gain over the best member
    rivals_p: np.ndarray
    rivals_say: np.ndarray


@dataclass(frozen=True)
class Criterion:
    """One thing that must hold. `found` says where it came nearest to failing."""

    name: str
    wanted: str
    found: str
    passed: bool


def worlds(
    tasks: Sequence[int] = (100, 400, 1600, 6400), discordances: Sequence[float] = (0.05, 0.2, 0.4), topologies: Sequence[int] = (1, 3, 9)
) -> list[World]:
    """Worlds in which some topology is no better than the best member, in the ways in which a judge is most easily fooled.

    `level`: all members and topologies are equally good. `near`: two members are a little worse than the best, so dev often takes one of them for it.
    `far`: they are much worse, so that only one test stands in the way of `beats`. `one works`: as `far`, and the first topology is truly better.
    The number of topologies varies in the two that are hardest, for it is only there that it matters.
    """
    found = []
    for n in tasks:
        for d in discordances:
            for count in topologies:
                for name, gap, gain in (("level", 0.0, 0.0), ("near", 0.02, 0.0), ("far", 0.2, 0.0), ("one works", 0.2, min(0.6 * d, 0.1))):
                    if count == 3 or name == "far" or (name == "one works" and count > 1):
                        found.append(World(name, n, d, (BEST, BEST - gap, BEST - gap), (gain, *[0.0] * (count - 1))))
    return found


def power_worlds() -> list[World]:
    """Worlds whose every outcome can be enumerated: one member and one topology; two members (intersection-union); two topologies (Holm)."""
    alone = [
        World("one member, one topology", n, d, (BEST,), (gain,), rivals=0)
        for n, d, gain in ((50, 0.4, 0.2), (100, 0.2, 0.1), (100, 0.05, 0.05), (400, 0.2, 0.05), (400, 0.4, 0.1), (1600, 0.05, 0.015),
                           (1600, 0.2, 0.03))
    ]
    return [
        *alone,
        *(World("two members", 20, 0.4, (BEST, second), (gain,), rivals=0) for second in (0.6, 0.5, 0.3) for gain in (0.2, 0.4)),
        *(World("two topologies", 20, 0.4, (BEST,), (0.4, second), rivals=0) for second in (0.4, 0.2, 0.0)),
    ]


def judged(dev: Runs, test: Runs, rng: np.random.Generator) -> tuple[Judged, np.ndarray, np.ndarray]:
    """Choose on `dev` and judge on `test`, all runs at once; also the rivals' counts, see `Runs.against_rivals`."""
    world, every = test.world, np.arange(len(test.n))
    member, team = (chosen(scores, np.arange(scores.shape[1])) for scores in dev.scores)  # costs in order: of equals the first
    wins, losses = test.counts
    p = verdict.against_members(statistics.mcnemar_exact(wins, losses), (wins - losses) / world.tasks, member)
    p_holm, index = statistics.holm(p), (every[:, None], np.arange(p.shape[1]), member[:, None])
    says = verdict.outcome((wins[index] - losses[index]) / world.tasks, p_holm, ALPHA)
    interval = statistics.tango(wins[every, team, member], losses[every, team, member], world.tasks)
    both, only = test.against_rivals(team, rng)
    won = test.right[every, team].sum(axis=1)[:, None] - both.sum(axis=2)
    lost = only.sum(axis=2)
    rivals_p = statistics.holm(statistics.mcnemar_exact(won, lost))
    rivals_say = verdict.outcome((won - lost) / world.tasks, rivals_p, ALPHA)
    return Judged(member, team, p_holm, says, interval, rivals_p, rivals_say), both, only


def try_world(world: World, runs: int, seed: int) -> dict[str, Any]:
    """One world: how often the judge is wrong in it, and how often its intervals hold the truth.

    `false_beats` counts runs in which a topology that is not better than every member is called so, whichever it is; `false_beats_team` only the one
    chosen on dev; `false_beats_rival` runs in which that one is said to beat a rival that is as good; `false_loses` runs in which a topology at
    least as good as the chosen member is said to lose. `covered`: shares of intervals that hold the truth.
    """
    rng = _dice(world, runs, seed)
    dev, test = Runs.draw(world, world.dev, runs, rng), Runs.draw(world, world.tasks, runs, rng)
    found, both, only = judged(dev, test, rng)
    truth = world.accuracies[found.team] - np.array(world.members)[found.member]
    beats = (found.says == 1) & ~world.better
    loses = (found.says == -1) & (world.accuracies >= np.array(world.members)[found.member][:, None] - 1e-12)
    rival = (found.rivals_say == 1) & (world.accuracies[found.team] <= world.rival @ world.shares + 1e-12)[:, None]
    shares = {name: float(hit.mean()) for name, hit in
              (("false_beats", beats.any(axis=1)), ("false_beats_team", beats[np.arange(runs), found.team]), ("false_beats_rival", rival.any(axis=1)),
               ("false_loses", loses.any(axis=1)))}  # fmt: skip
    right = test.right[np.arange(runs), found.team].sum(axis=1)
    covered: dict[str, float | None] = {
        "difference": _covers(found.interval, truth),
        "accuracy": _covers(statistics.wilson(right, world.tasks), world.accuracies[found.team]),
    }
    if len(world.gains) == 3 and runs >= SHARE:
        covered["capture"] = _capture(world, test, found, runs // SHARE)
    compared = [_same_as_the_judge(world, test, found, run, both[run], only[run], rng) for run in range(min(WRITTEN_OUT, runs))]
    return {
        "world": world.name, "tasks": world.tasks, "discordance": world.discordance, "topologies": len(world.gains), "runs": runs, **shares,
        "covered": covered, "written_out": len(compared), "same": all(compared),
    }  # fmt: skip


def _dice(world: World, runs: int, seed: int) -> np.random.Generator:
    """Other chance in every world, the same whichever worlds were tried before."""
    shares = (*world.members, world.discordance, *(1 + gain for gain in world.gains))
    return np.random.default_rng((seed, runs, world.tasks, *(round(1000 * share) for share in shares)))


def _covers(interval: tuple[np.ndarray, np.ndarray], truth: np.ndarray) -> float:
    return float(((interval[0] <= truth) & (truth <= interval[1])).mean())


def _capture(world: World, test: Runs, found: Judged, runs: int) -> float | None:
    """How often the interval of the captured share holds the true one, where it is given, in the first `runs` runs."""
    own, n = test.right[np.arange(runs), found.team[:runs]], test.n[:runs]  # [runs, classes]
    best = world.patterns.T[found.member[:runs]]
    oracle = world.patterns.any(axis=1)
    lost, won = ((n - own) * best).sum(axis=1), (own * (oracle - best)).sum(axis=1)
    missed, extra = ((n - own) * (oracle - best)).sum(axis=1), own @ ~oracle
    true = ((world.right[found.team[:runs]] - best) @ world.shares) / ((oracle - best) @ world.shares)
    given = (won + missed) / world.tasks >= statistics.HEADROOM - 1e-12
    return _covers(statistics.captured(*(count[given] for count in (lost, won, missed, extra))), true[given]) if given.any() else None


def _same_as_the_judge(world: World, test: Runs, found: Judged, run: int, both: np.ndarray, only: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether `verdict.judge`, given the run task by task, says what `judged` did, to the last bits."""
    team = int(found.team[run])
    scores = test.written_out(run, team, both, only, rng)
    kinds = {arm: arm.split("-")[0] for arm in scores}
    rows = verdict.judge(scores, kinds, best_member=f"member-{found.member[run]}", best_topology=f"topology-{team}", oracle=None, alpha=ALPHA)
    ours = [(f"topology-{t}", verdict.MEMBERS, found.p_holm[run, t], found.says[run, t]) for t in range(len(world.gains))]
    ours += [(f"topology-{team}", f"rival-{r}", found.rivals_p[run, r], found.rivals_say[run, r]) for r in range(world.rivals)]
    same = len(rows) == len(ours) and all(
        (row.arm, row.against, row.says) == (arm, against, verdict.SAYS[int(says)]) and abs(row.p_holm - p) < 1e-12
        for row, (arm, against, p, says) in zip(rows, ours, strict=True)
    )
    interval = next(row.ci95 for row in rows if row.arm == f"topology-{team}" and row.against == verdict.MEMBERS)
    return same and interval is not None and bool(np.allclose(interval, [end[run] for end in found.interval], rtol=0, atol=1e-12))


def try_graded(world: World, runs: int, seed: int, repeats: int = 2) -> dict[str, Any]:
    """A world of graded scores, judged run by run by `verdict.judge`: each task is answered `repeats` times and what counts is the mean.

    A task of a class is answered right with 0.15 plus 0.7 of what `world` says, so answers to one task differ, and gains are 0.7 of its.
    Returns what `try_world` does, of topologies against the members.
    """
    rng = _dice(world, runs, seed)
    dev, test = Runs.draw(world, world.dev, runs, rng), Runs.draw(world, world.tasks, runs, rng)
    member, team = (chosen(scores, np.arange(scores.shape[1])) for scores in dev.scores)
    chances = {f"member-{m}": world.patterns[:, m] for m in range(len(world.members))} | {f"topology-{t}": row for t, row in enumerate(world.right)}
    kinds, beats, loses, covers = {arm: arm.split("-")[0] for arm in chances}, 0, 0, 0
    true = {arm: 0.7 * float(chance @ world.shares) for arm, chance in chances.items()}
    for run in range(runs):
        of_task = np.repeat(np.arange(len(world.shares)), test.n[run])
        scores = {arm: (rng.random((repeats, world.tasks)) < (0.15 + 0.7 * chance)[of_task]).mean(axis=0) for arm, chance in chances.items()}
        best = f"member-{member[run]}"
        rows = verdict.judge(scores, kinds, best_member=best, best_topology=f"topology-{team[run]}", oracle=None, alpha=ALPHA, seed=run)
        beats += any(row.says == "beats" and not world.better[int(row.arm.split("-")[1])] for row in rows)
        loses += any(row.says == "loses" and true[row.arm] >= true[best] - 1e-12 for row in rows)
        ours = next(row for row in rows if row.arm == f"topology-{team[run]}")
        covers += ours.ci95 is not None and ours.ci95[0] <= true[ours.arm] - true[best] <= ours.ci95[1]
    return {
        "world": f"{world.name}, graded", "tasks": world.tasks, "discordance": world.discordance, "topologies": len(world.gains), "runs": runs,
        "false_beats": beats / runs, "false_beats_rival": 0.0, "false_loses": loses / runs, "covered": {"graded difference": covers / runs},
        "written_out": 0, "same": True,
    }  # fmt: skip


def try_power(world: World, runs: int, seed: int) -> dict[str, Any]:
    """How often the first topology is said to beat every member, beside the exact probability of it."""
    rng = _dice(world, runs, seed)
    dev, test = Runs.draw(world, world.dev, runs, rng), Runs.draw(world, world.tasks, runs, rng)
    found, _, _ = judged(dev, test, rng)
    rate, exact = float((found.says[:, 0] == 1).mean()), shown_exactly(world, ALPHA)
    error = float(np.sqrt(max(exact * (1 - exact), 1e-12) / runs))
    return {"world": world.name, "tasks": world.tasks, "discordance": world.discordance, "members": list(world.members), "gains": list(world.gains),
            "runs": runs, "power": rate, "exact": exact, "standard_errors": (rate - exact) / error}  # fmt: skip


def try_pvalues(seed: int) -> dict[str, float | None]:
    """The largest difference from the same p-values by scipy and statsmodels; None for what statsmodels would have to say where it is not there."""
    from scipy.stats import permutation_test

    rng = np.random.default_rng(seed)
    small = np.array([(b, c) for b in range(21) for c in range(21) if b + c])
    large = rng.integers(0, 3000, size=(40, 2))
    pairs = np.concatenate([small, large + 1])
    ours = statistics.mcnemar_exact(pairs[:, 0], pairs[:, 1]).tolist()
    found: dict[str, float | None] = {}
    found["mcnemar: scipy"] = max(abs(p - binomtest(int(b), int(b + c)).pvalue) for p, (b, c) in zip(ours, pairs, strict=True))
    differences = [rng.integers(-4, 5, size=k) / 4 for k in (3, 6, 9, 12)]
    found["permutation: scipy"] = max(
        abs(statistics.paired_permutation(d, np.zeros(len(d)), seed) - float(permutation_test(
            (d, np.zeros(len(d))), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=2**13).pvalue))
        for d in differences if d.any())  # fmt: skip
    families = [rng.random(k) ** 3 for k in (1, 2, 3, 5, 9, 20)]
    try:
        from statsmodels.stats.contingency_tables import mcnemar
        from statsmodels.stats.multitest import multipletests
        from statsmodels.stats.proportion import proportion_confint
    except ImportError:
        return found | dict.fromkeys(("mcnemar: statsmodels", "holm: statsmodels", "wilson: statsmodels"))
    found["mcnemar: statsmodels"] = max(abs(p - mcnemar([[0, b], [c, 0]], exact=True).pvalue) for p, (b, c) in zip(ours, pairs, strict=True))
    found["holm: statsmodels"] = max(float(np.abs(statistics.holm(p) - multipletests(p, method="holm")[1]).max()) for p in families)
    right = rng.integers(0, 1001, size=200)
    found["wilson: statsmodels"] = float(np.abs(np.array(statistics.wilson(right, 1000)) - proportion_confint(right, 1000, method="wilson")).max())
    return {name: float(value) for name, value in found.items() if value is not None}


def bench_judge(runs: int = 20_000, seed: int = 0, tried: Sequence[World] | None = None, watch: Any = None) -> dict[str, Any]:
    """The whole trial. `runs` in each world; `watch` (see `runner.Watcher`) is told of each. Returns `worlds, power, pvalues, criteria, passed`."""
    grid, exact = list(worlds() if tried is None else tried), power_worlds()
    together = clustered.worlds() if tried is None else []
    graded = [world for world in grid if world.name == "far" and len(world.gains) == 1 and world.tasks <= 400 and world.discordance >= 0.2]
    pvalues = try_pvalues(seed)
    cells, powers = [], []
    if watch is not None:
        watch.stage(f"worlds of {runs:,} runs", len(grid) + len(graded) + len(together) + len(exact))
    for world in grid:
        cells.append(try_world(world, runs, seed))
        if watch is not None:
            watch.advance(1)
    for world in graded if runs >= SHARE else ():
        cells.append(try_graded(world, runs // SHARE, seed))
        if watch is not None:
            watch.advance(1)
    for world in together if runs >= CLUSTERED else ():
        cells.append(clustered.try_clustered(world, runs // CLUSTERED, seed))
        if watch is not None:
            watch.advance(1)
    for world in exact:
        powers.append(try_power(world, runs, seed))
        if watch is not None:
            watch.advance(1)
    criteria = weigh(cells, powers, pvalues)
    return {"runs": runs, "seed": seed, "worlds": cells, "power": powers, "pvalues": pvalues, "criteria": [vars(one) for one in criteria],
            "passed": all(one.passed for one in criteria)}  # fmt: skip


def weigh(cells: Sequence[dict[str, Any]], powers: Sequence[dict[str, Any]], pvalues: dict[str, float | None]) -> list[Criterion]:
    """What must hold, and whether it does."""
    found = []
    names = {"false_beats": "false `beats`, any topology", "false_beats_rival": "false `beats` over a rival", "false_loses": "false `loses`"}
    for kind, said in names.items():
        worst = max(cells, key=lambda cell: cell[kind])
        passed = all(binomtest(round(c[kind] * c["runs"]), c["runs"], ALPHA, alternative="greater").pvalue >= SURE for c in cells)
        found.append(Criterion(said, f"not above {ALPHA:.0%} in any world (p < {SURE} says it is)",
                               f"at most {worst[kind]:.2%}, in {_where(worst)}", passed))  # fmt: skip
    for kind in ("difference", "accuracy", "capture", "graded difference", "clustered difference", "clustered accuracy"):
        given = [(cell["covered"][kind], cell) for cell in cells if cell["covered"].get(kind) is not None]
        if not given:
            continue
        mean, (least, where) = float(np.mean([share for share, _ in given])), min(given, key=lambda pair: pair[0])
        passed = abs(mean - LEVEL) <= NEAR and least >= FLOOR
        found.append(Criterion(f"95 % interval of the {kind}", f"covers {LEVEL:.0%} ± {NEAR:.0%} on average, {FLOOR:.0%} or more in each world",
                               f"{mean:.2%} on average over {len(given)} worlds, at least {least:.2%}, in {_where(where)}", passed))  # fmt: skip
    if powers:
        far = max(powers, key=lambda row: abs(row["standard_errors"]))
        found.append(Criterion("power", "within 3 standard errors of exact enumeration",
                               f"at most {abs(far['standard_errors']):.2f} over {len(powers)} worlds, in {far['world']}, {far['tasks']} tasks",
                               abs(far["standard_errors"]) <= 3))  # fmt: skip
    known = {name: value for name, value in pvalues.items() if value is not None}
    missing = "" if len(known) == len(pvalues) else "; statsmodels is not installed, so it was not asked"
    apart = max(known.values())
    found.append(Criterion("p-values", "those of scipy and statsmodels to 1e-9", f"at most {apart:.1e} apart{missing}", apart <= 1e-9))
    total = sum(cell["written_out"] for cell in cells)
    found.append(Criterion("the same judge", "verdict.judge says the same of runs written out task by task", f"{total:,} runs compared",
                           all(cell["same"] for cell in cells)))  # fmt: skip
    return found


def _where(cell: dict[str, Any]) -> str:
    return f"`{cell['world']}`, {cell['tasks']:,} tasks, {cell['discordance']:.0%} discordant, {cell['topologies']} topologies"
