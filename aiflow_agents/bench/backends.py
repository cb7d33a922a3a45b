"""One model behind every backend: does it say the same, and how fast?

    family         our decoder, against which the others are held
    transformers   `generate`
    vllm           vLLM in this process
    http           vLLM as a server on loopback, asked as any endpoint is

Greedy, float32. Texts must be the same. Two engines add up in another order, so where the likeliest tokens are within 1e-4 of each other (in
log-probability, by our decoder) either may be said: such a first difference is listed and counted, any other is a fault.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aiflow_agents.errors import AIFlowError
from aiflow_agents.models.family.info import at_exit
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Model, Reply, Request, Turn

TIE = 1e-4
BACKENDS = ("family", "transformers", "vllm", "http")
WARM_UP = 16


def bench_backends(
    folder: Path,
    questions: Sequence[str],
    backends: Sequence[str] = BACKENDS,
    *,
    exit: int | None = None,
    max_tokens: int = 32,
    repeats: int = 3,
    watch: Any = None,
) -> dict[str, Any]:
    """All backends loaded at once, then asked all questions in `repeats` rounds, by turns, in one batch each.

    Returns `model, exit, questions, max_tokens, backends: [{backend, load_s, tokens, tokens_per_s, ratio, ratios, identical, ties, different}]`.
    Rates are medians over rounds, `ratio` the median of the rounds' ratios to family's rate; `ties` and `different` list the answers that part from
    family's, as `question, family, other, at, gap`. Raises `UserError` for a backend that cannot be had, AIFlowError where one refuses a question.
    """
    with ExitStack() as stack:
        models: dict[str, Model] = {}
        loads: dict[str, float] = {}
        for name in dict.fromkeys(("family", *backends)):
            if watch is not None:
                watch.stage(f"{folder.name}: loading {name}", 0)
            start = time.perf_counter()
            models[name] = stack.enter_context(_opened(name, folder, exit, max_tokens))
            loads[name] = time.perf_counter() - start
        family = models["family"]
        assert isinstance(family, FamilyModel)
        local = [Request((Turn("user", question),), max_tokens, exit=exit) for question in questions]
        asked = {name: local if name != "http" else [replace(request, exit=None) for request in local] for name in models}
        answers: dict[str, list[Reply]] = {}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        if watch is not None:
            watch.stage(f"{folder.name}: {len(questions)} questions to each, {repeats} rounds", repeats * len(models))
        for name, model in models.items():
            model.generate(asked[name][:WARM_UP])
        for _ in range(repeats):
            for name, model in models.items():
                start = time.perf_counter()
                replies = model.generate(asked[name])
                seconds[name].append(time.perf_counter() - start)
                answers[name] = [_answered(name, reply) for reply in replies]
                if watch is not None:
                    watch.advance(1)
        rows = []
        for name in models:
            tokens = [sum(reply.tokens_out for reply in answers[one]) for one in (name, "family")]
            ratios = [tokens[0] / mine / (tokens[1] / theirs) for mine, theirs in zip(seconds[name], seconds["family"], strict=True)]
            row = {"backend": name, "load_s": loads[name], "tokens": tokens[0], "tokens_per_s": tokens[0] / statistics.median(seconds[name])}
            row |= {"ratio": statistics.median(ratios), "ratios": ratios}
            rows.append(row | _compared(family, exit, questions, answers["family"], answers[name]))
    return {"model": folder.name, "exit": exit, "questions": len(questions), "max_tokens": max_tokens, "backends": rows}


@contextmanager
def _opened(name: str, folder: Path, exit: int | None, max_tokens: int) -> Iterator[Model]:
    """One backend with this model behind it."""
    from aiflow_agents.models.backends import Behind
    from aiflow_agents.models.family.export import plain

    if name != "http":
        kind: Any = name
        yield Behind(kind=kind, model=str(folder), exit=None if name == "family" else exit).load()
        return
    from aiflow_agents.bench.vllm_server import serving
    from aiflow_agents.models.family.info import model_info

    info = model_info(folder)
    shape = (info if exit is None else at_exit(info, folder, exit)).shape
    with serving(plain(folder, exit), info.name, max_model_len=info.max_context) as url:
        options = {"url": url, "logprobs": True, "at_once": 64, "retries": 0}
        yield Behind(kind="http", model=info.name, options=options, shape=asdict(shape)).load()


def _answered(name: str, reply: Any) -> Reply:
    if not isinstance(reply, Reply):
        raise AIFlowError(f"{name}: {reply.message}")
    return reply


def _compared(family: FamilyModel, exit: int | None, questions: Sequence[str], ours: Sequence[Reply], theirs: Sequence[Reply]) -> dict[str, Any]:
    identical = 0
    ties: list[dict[str, Any]] = []
    different: list[dict[str, Any]] = []
    for question, mine, other in zip(questions, ours, theirs, strict=True):
        if mine.text == other.text:
            identical += 1
            continue
        at, gap = parting(family, exit, question, mine, other.text)
        found = {"question": question, "family": mine.text, "other": other.text, "at": at, "gap": gap}
        (ties if gap <= TIE else different).append(found)
    return {"identical": identical, "ties": ties, "different": different}


def parting(family: FamilyModel, exit: int | None, question: str, mine: Reply, other: str) -> tuple[int, float]:
    """Where another engine's text leaves ours, as a place among our tokens, and by how much our token there is likelier than the one that leads into
    that text. Infinite where no token does."""
    import torch

    text: Callable[[Sequence[int]], str] = family.chat.text
    said, ends = list(mine.token_ids), family.engine.eos_ids

    def leads(tokens: list[int]) -> bool:
        if tokens[-1] in ends:
            return other == text(tokens)
        return other.startswith(text(tokens)) and text(tokens) != text(tokens[:-1])  # what nobody sees leads nowhere

    at = next((i for i in range(len(said)) if not leads(said[: i + 1])), len(said))
    prompt = family.chat.prompt((Turn("user", question),))
    logprobs = torch.log_softmax(family.engine.decoder.logits(torch.tensor([prompt + said[:at]]), exit)[0, -1].float(), -1)
    own = float(logprobs[said[at]]) if at < len(said) else float(logprobs.max())
    order = torch.argsort(logprobs, descending=True).tolist()
    other_token = next((token for token in order if token not in said[at : at + 1] and leads([*said[:at], token])), None)
    return at, float("inf") if other_token is None else abs(own - float(logprobs[other_token]))
