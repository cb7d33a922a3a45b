"""What is left of a model when it is cut: ways to decompose side by side, each as it comes and after the same tuning, over sizes.

Accuracy is that of greedy answers to test questions. A greedy answer is right if and only if the right token is the likeliest at every position of
the right answer, so one pass over questions with answers gives it together with the perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.evals.statistics import holm, iut, mcnemar_exact, paired_permutation, tango, wilson
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.rank import Keep, kept, linears, ranks, spend
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.card import exam
from aiflow_agents.training.corpus import Batch, collate, example
from aiflow_agents.training.decompose import METHODS, Method, decompose, save
from aiflow_agents.training.moments import load, measure
from aiflow_agents.training.nested import Progress, Tuner, Tuning
from aiflow_agents.training.recipe import load_recipe
from aiflow_agents.training.sources import source_of, up_to

ROWS = 128  # questions at once
CLAIMS: tuple[tuple[Method, tuple[Method, ...]], ...] = (("whitened", ("svd", "asvd")), ("fisher", ("whitened",)))  # who is to beat all of whom
BUDGETED = ("whitened", "fisher")  # whose spectra are those of what layers put out, so that a budget can be spread by them


class Score(NamedTuple):
    """Of one model on the questions, in their order. `nll` is the mean over the tokens of a right answer, its end included, in nats."""

    right: np.ndarray  # [questions] bool
    nll: np.ndarray  # [questions]
    tokens: np.ndarray  # [questions] tokens of the right answer

    @property
    def perplexity(self) -> float:
        """Over all answer tokens together."""
        return math.exp(float((self.nll * self.tokens).sum() / self.tokens.sum()))


def score(decoder: Decoder, questions: Sequence[Question]) -> Score:
    """Ask a decoder of our own tokenizer. See the module for why no text is generated."""
    examples = [example(question) for question in questions]
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    right, nll, tokens = np.zeros(len(order), bool), np.zeros(len(order)), np.zeros(len(order), int)
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        batch: Batch = collate([examples[i] for i in places])
        counts = batch.targets >= 0
        said = decoder.logits(batch.ids).log_softmax(-1)  # [rows, positions, vocab]
        surprise = -said.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0] * counts
        right[places] = ((said.argmax(-1) == batch.targets) | ~counts).all(1).numpy()
        nll[places], tokens[places] = (surprise.sum(1) / counts.sum(1)).numpy(), counts.sum(1).numpy()
    return Score(right, nll, tokens)


def bench_rank(
    folder: Path,
    work: Path,
    *,
    methods: Sequence[Method] = METHODS,
    how: Tuning,
    measured_tokens: int = 100_000,
    per_skill: int = 200,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, Progress], None] = lambda name, _: None,
) -> dict[str, Any]:
    """Decompose a model of ours by every method, cut it to each of `how.keeps`, all layers alike and by budget, before and after tuning.

    `work` gets the decomposed models as `<method>` and `<method>-tuned`, and checkpoints. Returns `model, questions, tuning, original, rows, claims`
    for JSON: a row for every cut, and for every claim of CLAIMS a row a size with p-values, also over all its sizes by Holm.
    """
    skills = load_recipe(folder / "recipe.yaml").skills
    questions = exam([name for name, share in skills.items() if share], per_skill)
    original = score(Decoder.load(folder), questions)
    note(f"{len(questions):,} test questions; {folder.name} itself: {_line(original)}")
    source = source_of(folder, None, how.seed)
    model = load(folder)
    note(f"measuring its layers on {measured_tokens:,} tokens")
    moments = measure(model, up_to(source, measured_tokens), how.seed)
    rows: list[dict[str, Any]] = []
    scores: dict[tuple[str, bool, bool, float], Score] = {}
    for method in methods:
        found = decompose(model, moments, method)
        for tuned in (False, True) if how.tokens else (False,):
            name = f"{method}-tuned" if tuned else method
            about = {"method": method, "data": source.name, "measured_tokens": measured_tokens, "tuning": asdict(how) if tuned else None}
            if tuned:
                made_of = f"{model_info(folder).weights_hash} {method} {measured_tokens} {source.name}"
                tuner = Tuner(model, found, source, how, work / "checkpoints" / f"{method}.safetensors", made_of)
                found = tuner.run(lambda at, name=name: progress(name, at))  # type: ignore[misc]
                tuner.save()
            save(folder, work / name, found, about)
            for budget, keep in product((False, True), (1.0, *how.keeps)):
                if budget and (keep == 1 or method not in BUDGETED):
                    continue
                row, one = _cut(work / name, questions, keep, budget)
                rows.append({"method": method, "tuned": tuned, "budget": budget, **row})
                scores[method, tuned, budget, keep] = one
                note(f"{name} at {keep:g}{' by budget' if budget else ''}: {_line(one)}")
    whole = {"right": int(original.right.sum()), "n": len(questions), "accuracy": float(original.right.mean()), "perplexity": original.perplexity}
    return {"model": folder.name, "questions": len(questions), "tuning": asdict(how), "original": whole, "rows": rows, "claims": _claims(scores, how)}


def _cut(folder: Path, questions: Sequence[Question], keep: float, budget: bool) -> tuple[dict[str, Any], Score]:
    layers = linears(folder)
    at: Keep = spend(folder, keep) if budget else keep
    one, shape = score(Decoder.load(folder, keep=at), questions), model_info(folder, keep=at).shape
    right = int(one.right.sum())
    return {
        "keep": keep,
        "kept": round(kept(layers, ranks(folder, at)), 4),
        "block_params": shape.block_params,
        "flops_per_token": 2.0 * (shape.block_params + shape.head_params),
        "right": right,
        "n": len(questions),
        "accuracy": right / len(questions),
        "ci95": list(wilson(right, len(questions))),
        "perplexity": one.perplexity,
    }, one


def _claims(scores: Mapping[tuple[str, bool, bool, float], Score], how: Tuning) -> list[dict[str, Any]]:
    """Paired tests: one method against others at equal size. The claim is that it beats all of them, so the largest p counts; Holm over the sizes."""
    found = []
    for (method, rivals), tuned in product(CLAIMS, (False, True)):
        rows: list[dict[str, Any]] = []
        for keep in how.keeps:
            mine, others = scores.get((method, tuned, False, keep)), [scores.get((rival, tuned, False, keep)) for rival in rivals]
            if mine is None or None in others:
                continue
            against = {rival: _paired(mine, other, how.seed) for rival, other in zip(rivals, others, strict=True) if other}
            rows.append({"method": method, "tuned": tuned, "keep": keep, "against": against,
                         **{f"p_{what}": iut([pair[f"p_{what}"] for pair in against.values()]) for what in ("accuracy", "perplexity")}})  # fmt: skip
        for what in ("accuracy", "perplexity"):
            for row, p in zip(rows, holm([row[f"p_{what}"] for row in rows]).tolist(), strict=True):
                row[f"p_{what}_holm"] = p
        found += rows
    return found


def _paired(mine: Score, other: Score, seed: int) -> dict[str, Any]:
    wins, losses, n = int((mine.right & ~other.right).sum()), int((~mine.right & other.right).sum()), len(mine.right)
    return {
        "wins": wins,
        "losses": losses,
        "delta": (wins - losses) / n,
        "ci95": list(tango(wins, losses, n)),
        "p_accuracy": mcnemar_exact(wins, losses),
        "nll_delta": float((mine.nll - other.nll).mean()),
        "p_perplexity": paired_permutation(mine.nll, other.nll, seed),
    }


def _line(one: Score) -> str:
    return f"{one.right.mean():.1%} right, perplexity {one.perplexity:.3f}"
