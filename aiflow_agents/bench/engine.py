"""Our engine beside transformers' `generate`: same weights, dtype, prompts and ends, one thread, by turns.

A token counts up to and with the end token, on both sides; what `generate` computes for rows that have ended does not count.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiflow_agents.models.family.chat import Chat
from aiflow_agents.models.family.info import end_ids
from aiflow_agents.models.protocol import Turn, common

TIE = 1e-4  # two engines may differ where the two best logits are this close
LONE_PROMPTS = 16  # one by one is slow, so batch 1 runs over this many prompts

Side = Callable[[list[list[int]]], list[list[int]]]  # prompts as token ids -> answers as token ids, cut after the end token


def bench_engine(
    model_path: str | Path,
    prompts: list[str],
    *,
    batch_sizes: Sequence[int] = (1, 64),
    dtype: str = "float32",
    max_tokens: int = 32,
    repeats: int = 3,
    memory: bool = True,
) -> dict[str, Any]:
    """Measure both sides over `prompts` (user turns), greedy, in batches of each size.

    Returns `model, dtype, max_tokens, batches: [{batch, prompts, tokens, ours_tokens_per_s, transformers_tokens_per_s, ratio, ratios, identical,
    ties, different, ours_peak_mib, transformers_peak_mib}]`: medians over `repeats` rounds, in each of which both sides run once; `ratio` is the
    median of the rounds' ratios. `ties` counts answers whose first difference lies between two logits within 1e-4; `different` lists all others.
    Peak memory is the resident size of a fresh process that does only this, libraries included.
    """
    import torch

    chat, ends = Chat(model_path), end_ids(model_path)
    ids = [chat.prompt((Turn("user", prompt),)) for prompt in prompts]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        theirs = _transformers_side(model_path, ends, dtype, max_tokens)
        batches = []
        for size in batch_sizes:
            some = ids if size > 1 else ids[:LONE_PROMPTS]
            ours = _our_side(model_path, ends, dtype, max_tokens, stable=size > 1)
            row = _measure(_in_batches(ours, size), _in_batches(theirs, size), some, repeats)
            answers = row.pop("answers")
            row = {"batch": size, "prompts": len(some), **row, **_compare(model_path, dtype, some, *answers)}
            for side in ("ours", "transformers") if memory else ():
                row[f"{side}_peak_mib"] = _peak_mib(side, str(model_path), ends, dtype, max_tokens, size, some)
            batches.append(row)
    finally:
        torch.set_num_threads(threads)
    return {"model": Path(model_path).resolve().name, "dtype": dtype, "max_tokens": max_tokens, "batches": batches}


def _measure(ours: Side, theirs: Side, prompts: list[list[int]], repeats: int) -> dict[str, Any]:
    answers = ours(prompts), theirs(prompts)  # the warm-up, and the answers to compare
    tokens = [sum(map(len, side)) for side in answers]
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for side, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run(prompts)
            seconds[side].append(time.perf_counter() - start)
    rates = [[tokens[side] / s for s in seconds[side]] for side in (0, 1)]
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    return {
        "tokens": tokens[0],
        "ours_tokens_per_s": statistics.median(rates[0]),
        "transformers_tokens_per_s": statistics.median(rates[1]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "answers": answers,
    }


def _compare(path: str | Path, dtype: str, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]) -> dict[str, Any]:
    """Identical answers, answers that part at a tie, and the rest with the gap between the two logits at the parting."""
    import torch

    from aiflow_agents.models.family.decoder import Decoder

    identical, ties, different = 0, 0, []
    decoder = None
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        if a == b:
            identical += 1
            continue
        decoder = decoder or Decoder.load(path, getattr(torch, dtype))
        at = common(a, b)
        top = decoder.logits(torch.tensor([prompt + a[:at]]))[0, -1].topk(2).values
        gap = float(top[0] - top[1])
        if gap <= TIE:
            ties += 1
        else:
            different.append({"prompt": prompt, "ours": a, "transformers": b, "at": at, "gap": gap})
    return {"identical": identical, "ties": ties, "different": different}


def _our_side(path: str | Path, ends: tuple[int, ...], dtype: str, max_tokens: int, stable: bool) -> Side:
    import torch

    from aiflow_agents.models.family.decoder import Decoder
    from aiflow_agents.models.family.engine import Engine

    engine = Engine(Decoder.load(path, getattr(torch, dtype)), ends, stable=stable)
    return lambda prompts: [list(made.token_ids) for made in engine.generate(prompts, max_tokens=[max_tokens] * len(prompts))]


def _transformers_side(path: str | Path, ends: tuple[int, ...], dtype: str, max_tokens: int) -> Side:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    pad = ends[0] if ends else 0

    def run(prompts: list[list[int]]) -> list[list[int]]:
        length = max(map(len, prompts))
        ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        how: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_tokens, "eos_token_id": list(ends) or None, "pad_token_id": pad}
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=mask, **how)[:, length:].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in made]

    return run


def _in_batches(side: Side, size: int) -> Side:
    return lambda prompts: [answer for i in range(0, len(prompts), size) for answer in side(prompts[i : i + size])]


def _peak_mib(*job: Any) -> float:
    """Run `_memory_job` in a process of its own."""
    program = "from aiflow_agents.bench.engine import _memory_job; _memory_job()"
    run = subprocess.run([sys.executable, "-c", program], input=json.dumps(job), capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def _memory_job() -> None:
    """One side over some prompts, as described on stdin; writes the process's peak resident size in MiB to stdout."""
    import resource

    import torch

    torch.set_num_threads(1)
    side, path, ends, dtype, max_tokens, size, prompts = json.load(sys.stdin)
    ends = tuple(ends)
    run = _our_side(path, ends, dtype, max_tokens, size > 1) if side == "ours" else _transformers_side(path, ends, dtype, max_tokens)
    _in_batches(run, size)(prompts)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss remembers the parent's size from before exec; VmHWM does not
        peak_kib = next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    else:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    sys.stdout.write(f"{peak_kib / 1024:.1f}\n")
