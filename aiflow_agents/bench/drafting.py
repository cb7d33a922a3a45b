"""A family that drafts for itself beside the same family without: one sequence at a time, greedy, the same text.

    whole    the engine at one exit, a token at a time
    drafted  exit `draft` speaks ahead, the same exit checks (`models.family.drafting`); keys, values and hidden states are shared
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.models.family.chat import Chat
from aiflow_agents.models.family.info import end_ids
from aiflow_agents.models.protocol import Turn, common
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import balanced
from aiflow_agents.training.sources import skills_of

TIE = 1e-4  # a first difference is a tie where the two best logits lie within this


def bench_drafting(
    model: str | Path,
    *,
    draft: int | None = None,
    exit: int | None = None,
    length: int | None = None,
    questions: int = 140,
    max_tokens: int = 64,
    repeats: int = 5,
    seed: int = 0,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Measure both sides over test questions of the model's skills; `draft` is by default the shallowest exit, `exit` the deepest.

    Returns `model, draft, exit, length, questions, tokens, whole_tokens_per_s, drafted_tokens_per_s, ratio, ratios, acceptance_rate, tokens_a_check,
    identical, ties, different`. Medians over `repeats` rounds in which both sides run by turns, question by question; `ratio` is the median of the
    rounds' ratios. `different` lists the questions where the first difference is none between two logits within 1e-4.
    Raises UserError for a model with one exit.
    """
    import torch

    from aiflow_agents.models.family.decoder import Decoder
    from aiflow_agents.models.family.drafting import Drafted, speculate
    from aiflow_agents.models.family.engine import Engine
    from aiflow_agents.models.family.session import Session

    watch = watch or Silence()
    decoder, chat, ends = Decoder.load(model, torch.float32), Chat(model), end_ids(model)
    exits = decoder.config.exits
    if len(exits) < 2:
        raise UserError(f"{Path(model).name} has one exit, and nothing in it to draft with: `aiflow family grow` adds exits")
    draft, exit = exits[0] if draft is None else draft, exits[-1] if exit is None else exit
    asked = [question.text for question in balanced(list(skills_of(model)) or list(TRAINED), "test", questions, seed)]
    prompts = [chat.prompt((Turn("user", text),)) for text in asked]
    engine = Engine(decoder, ends, stable=False)
    found: list[Drafted] = []

    def whole(prompt: Sequence[int]) -> list[int]:
        return list(engine.generate([prompt], max_tokens=[max_tokens], exit=exit)[0].token_ids)

    def drafted(prompt: Sequence[int]) -> list[int]:
        session = Session(decoder)
        session.append(torch.tensor([prompt]))
        found.append(speculate(session, max_tokens, draft=draft, exit=exit, length=length, stop=ends))
        return list(found[-1].token_ids)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        answers = [[side(prompt) for prompt in prompts] for side in (whole, drafted)]  # the warm-up, and the answers to compare
        said = list(found)
        tokens, seconds = sum(map(len, answers[0])), [[0.0, 0.0] for _ in range(repeats)]
        watch.stage("rounds", repeats)
        for spent in seconds:
            for prompt in prompts:
                for place, side in enumerate((whole, drafted)):
                    spent[place] += _timed(side, prompt)
            watch.advance(1)
    finally:
        torch.set_num_threads(threads)
    about = {"model": Path(model).name, "draft": draft, "exit": exit, "length": length, "questions": len(prompts), "tokens": tokens}
    rates = {f"{name}_tokens_per_s": statistics.median(tokens / one[i] for one in seconds) for i, name in enumerate(("whole", "drafted"))}
    ratios = [one / other for one, other in seconds]
    proposed, checks = sum(one.drafted for one in said), sum(one.checks for one in said)
    drafting = {"acceptance_rate": sum(one.accepted for one in said) / max(proposed, 1), "tokens_a_check": tokens / checks}
    return about | rates | {"ratio": statistics.median(ratios), "ratios": ratios} | drafting | _compare(decoder, exit, asked, prompts, *answers)


def _timed(side: Callable[[Sequence[int]], Any], prompt: Sequence[int]) -> float:
    start = time.perf_counter()
    side(prompt)
    return time.perf_counter() - start


def _compare(decoder: Any, exit: int, asked: list[str], prompts: list[list[int]], whole: list[list[int]], drafted: list[list[int]]) -> dict[str, Any]:
    """How many answers are identical, how many part at a tie, and which ones otherwise."""
    import torch

    ties, different = 0, []
    for text, prompt, one, other in zip(asked, prompts, whole, drafted, strict=True):
        if one != other:
            at = common(one, other)
            top = decoder.logits(torch.tensor([[*prompt, *one[:at]]]), exit=exit)[0, -1].topk(2).values
            if float(top[0] - top[1]) <= TIE:
                ties += 1
            else:
                different.append(text)
    return {"identical": len(asked) - ties - len(different), "ties": ties, "different": different}
