"""What each arm did, beside how often it was right: whom it mended and broke, what its members have in common, how much it talked.

In `summary.json` they are `arms.<name>.measures`, and those of the members together are `measures`. Accuracies are mean scores; an answer is *wrong*
where its score is below 1, and each answer to a task (task and repeat) counts. "The best" is the best member, chosen on dev.

| of an arm | |
|---|---|
| `synergy.strong` | its accuracy minus that of the best; `synergy.weak`: minus the mean of the members (Larson, In Search of Synergy, 2010) |
| `capture` | (its accuracy - the best's) / (the oracle's - the best's); None under 5 points of head-room (see `statistics.capture`) |
| `flips.right_to_wrong` | share of answers that the best has right and it has wrong; `flips.wrong_to_right`: the other way |
| `extraction_failures` | how many answers were given in which no answer was found |
| `co_failure` | share of answers that it and every member have wrong |
| `error_correlation` | phi coefficient (Pearson's r) of its errors with those of the best; None where either never or always errs |
| `error_amplification` | A_e = E / E_best, errors over errors; None where the best makes none |
| `coordination_overhead` | O = (T - T_best) / T_best, T being calls to a model for a question; 0.5 is half as many again |
| `coordination_efficiency` | E_c = accuracy / (T / T_best) |
| `message_density` | c: messages of agents heard, per call to a model; a vote, in which nobody hears anybody, has 0 |
| `redundancy` | R: share of the pairs of replies to one question that are the same; None where there is never more than one |
| `traced` | how many tasks the last two are from: the first ones of the run, whose conversations are kept |

| of the members | |
|---|---|
| `co_failure` | share of answers that all have wrong: who returns some member's answer cannot be right there (arXiv:2606.27288) |
| `error_correlation` | mean phi coefficient over all pairs of members |

A_e, O, E_c, c and R are those of "Towards a Science of Scaling Agent Systems" (arXiv:2512.08296), whose single agent is the best member here, whose
turns are calls here, and whose cosine of embeddings is equality here, as answers are a few characters long.

Members whose models can say how likely a given text is also have `information_capacity` (arXiv:2511.08066):

    (text bits per token - NLL bits per token + b) / log2(FLOPs per token)

It asks how much a model compresses a text for what it computes: 8 bits a byte of UTF-8 against the negative log-likelihood, each for the mean token,
and the FLOPs of one decoded token (attention and head too). Here the text is the expected answer, read behind the question (teacher forcing); the
end of an answer is no text and not counted. It is an efficiency prior for a member, such as an exit of a family. Text that members exchange cannot be
scored so: topologies have none. Nor have suites whose answer is found in a longer text (`extract:`). It depends on the text: compare members within
one suite.

`b` shifts the numerator so that the sizes of one series come out alike, which makes other models comparable to them (the paper takes -24 for its
mixed text at 1,024 tokens, -27 and -18.7 elsewhere). Here it is fitted on the exits of the family in the team that has most (`capacity_bias`), and 0
where no family has two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from aiflow_agents.evals.statistics import HEADROOM

Samples = Sequence[Mapping[str, Any]]  # of one arm: a sample for every task and repeat, in the same order in every arm
Spans = Sequence[Mapping[str, Any]]  # of one task


def measure(samples: Mapping[str, Samples], members: Sequence[str], best: str, traces: Mapping[str, Sequence[Spans]]) -> dict[str, dict[str, Any]]:
    """The measures of every arm in `samples`. `best` is the best member; `traces` holds the spans of an arm's traced tasks."""
    wrong = {arm: np.array([not s["correct"] for s in rows]) for arm, rows in samples.items()}
    accuracy = {arm: float(np.mean([s["score"] for s in rows])) for arm, rows in samples.items()}
    calls = {arm: float(np.mean([s["usage"]["calls"] for s in rows])) for arm, rows in samples.items()}
    oracle = float(np.mean(np.max([[s["score"] for s in samples[member]] for member in members], axis=0)))
    all_wrong = np.all([wrong[member] for member in members], axis=0)
    found = {}
    for arm, rows in samples.items():
        gain, headroom, turns = accuracy[arm] - accuracy[best], oracle - accuracy[best], calls[arm] / calls[best] if calls[best] else 0.0
        found[arm] = {
            "synergy": {"strong": gain, "weak": accuracy[arm] - float(np.mean([accuracy[member] for member in members]))},
            "capture": gain / headroom if headroom >= HEADROOM - 1e-12 else None,
            "flips": {"right_to_wrong": _share(~wrong[best] & wrong[arm]), "wrong_to_right": _share(wrong[best] & ~wrong[arm])},
            "extraction_failures": sum(s["status"] == "ok" and not (s["answer"] or "").strip() for s in rows),
            "co_failure": _share(wrong[arm] & all_wrong),
            "error_correlation": phi(wrong[arm], wrong[best]),
            "error_amplification": _share(wrong[arm]) / _share(wrong[best]) if wrong[best].any() else None,
            "coordination_overhead": turns - 1 if turns else None,  # the oracle calls nobody
            "coordination_efficiency": accuracy[arm] / turns if turns else None,
            **conversation(traces.get(arm, ())),
        }
    return found


def capacity(text_bits: float, nll_bits: float, flops: float, bias: float = 0.0) -> float:
    """Information Capacity of one model; bits and FLOPs are those of the mean token."""
    return (text_bits - nll_bits + bias) / math.log2(flops)


def capacity_bias(series: Sequence[tuple[float, float]]) -> float:
    """The `b` under which the sizes of one series are most nearly alike: (text bits - NLL bits, FLOPs) of each -> minus the intercept of the
    least-squares line of the one over log2 of the other. 0 for fewer than two different sizes."""
    if len({flops for _, flops in series}) < 2:
        return 0.0
    gain, flops = np.array(series).T
    return -float(np.polyfit(np.log2(flops), gain, 1)[1])


def of_members(samples: Mapping[str, Samples], members: Sequence[str]) -> dict[str, float | None]:
    """The measures of the members together."""
    wrong = [np.array([not s["correct"] for s in samples[member]]) for member in members]
    pairs = [r for one, other in combinations(wrong, 2) if (r := phi(one, other)) is not None]
    return {"co_failure": _share(np.all(wrong, axis=0)), "error_correlation": float(np.mean(pairs)) if pairs else None}


def phi(one: np.ndarray, other: np.ndarray) -> float | None:
    """Phi coefficient of two right/wrong vectors, which is Pearson's r; None where one of them never varies. [n], [n] -> number."""
    if one.all() or other.all() or not one.any() or not other.any():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def conversation(tasks: Sequence[Spans]) -> dict[str, Any]:
    """`message_density`, `redundancy` and `traced`, from the spans of some tasks."""
    heard = calls = same = pairs = 0
    for spans in tasks:
        replies = [span for span in spans if span["kind"] == "call"]
        calls += len(replies)
        heard += sum(len(span["heard"]) for span in replies)
        both = [one["text"].strip() == other["text"].strip() for one, other in combinations(replies, 2)]
        same, pairs = same + sum(both), pairs + len(both)
    return {"message_density": heard / calls if calls else None, "redundancy": same / pairs if pairs else None, "traced": len(tasks)}


def read_traces(path: Path) -> dict[str, list[Spans]]:
    """The spans in a `trace.jsonl`: arm -> those of each task. What was run again counts once, a damaged line not at all; no file, no spans."""
    last: dict[tuple[str, str], Spans] = {}
    lines: Iterable[bytes] = path.read_bytes().split(b"\n") if path.is_file() else ()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            last[row["arm"], row["task_id"]] = row["spans"]
    found: dict[str, list[Spans]] = {}
    for arm, task in sorted(last):
        found.setdefault(arm, []).append(last[arm, task])
    return found


def _share(which: np.ndarray) -> float:
    return float(np.mean(which))
