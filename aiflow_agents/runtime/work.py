"""What a call has to compute: its passes, and what of them has been run before, as a member keeps keys and values for the length of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aiflow_agents.models.protocol import Pass, Reply, Request, Shape, common

Tokens = tuple[int, ...]


class Work(NamedTuple):
    """What one call has to compute: what is read first, and the passes that follow."""

    tokens_in: int
    prefill_flops: float
    prefill_bytes: float | None  # None: all weights
    decode_flops: float
    steps: int

    @classmethod
    def of(cls, shape: Shape, reply: Reply, fresh: bool) -> Work:
        """`fresh`: the prompt has to be read, as this member has not read it for this task."""
        if reply.work is None:
            prefill_flops, decode_flops = shape.flops(reply.tokens_in, reply.tokens_out)
            steps = max(reply.tokens_out - 1, 0)
            return cls(reply.tokens_in, prefill_flops, None, decode_flops, steps) if fresh else cls(0, 0.0, 0.0, decode_flops, steps)
        first = [run for run in reply.work if run.share < 1.0 or run.positions > 1]
        single = [run for run in reply.work if run.share == 1.0 and run.positions == 1]
        flops, nbytes = (sum(price(run) for run in first) for price in (shape.pass_flops, shape.pass_bytes))
        return cls(reply.tokens_in, flops, nbytes, sum(map(shape.pass_flops, single)), len(single))

    @classmethod
    def scored(cls, shape: Shape, request: Request, reply: Reply, fresh: bool) -> Work:
        """A given text is read in one pass, behind a prompt that is read with it only if it is `fresh`. Its end is predicted and not read."""
        text = len(reply.token_ids) - request.ended
        context = 0 if fresh else reply.tokens_in - text
        new = reply.tokens_in - context
        run = Pass(1.0, new, context, len(reply.token_ids), min(new, len(reply.token_ids)))
        return cls(new, shape.pass_flops(run), None, 0.0, 0)

    @classmethod
    def going_on(cls, shape: Shape, request: Request, reply: Reply, kept: Sequence[Tokens] | None) -> Work:
        """To read what is new of prompt and answer, and to speak on, a token at a time. `kept`: answers whose keys and values this member has behind
        the prompt; None: not even the prompt's."""
        begin, want = request.begin or reply.begun, request.want
        known = max((common(begin, draft) for draft in kept or ()), default=0)
        context = 0 if kept is None else reply.tokens_in + min(known, len(begin) - 1)  # the last one's output is not kept
        new = reply.tokens_in + len(begin) - context
        if want is not None and request.max_tokens <= len(begin):  # nothing is said: the layers below are all that runs
            run = Pass(want.layer / shape.layers, new, context, 0)
            return cls(new, shape.pass_flops(run), shape.pass_bytes(run), 0.0, 0)
        steps = reply.tokens_out - (reply.finish != "unsure")  # who is unsure has read its own last token to find that out
        decode_flops = sum(shape.pass_flops(Pass(1.0, 1, context + new + t, 1)) for t in range(steps))
        return cls(new, shape.pass_flops(Pass(1.0, new, context, 1, 1)), None, decode_flops, steps)

    @classmethod
    def checking(cls, shape: Shape, request: Request, reply: Reply, kept: Sequence[Tokens] | None) -> Work:
        """One pass over what is new of prompt, answer and draft."""
        (whole,) = reply.work or ()
        tokens = fed(request, reply)
        known = max((common(tokens, draft) for draft in kept or ()), default=0)
        context = 0 if kept is None else min(reply.tokens_in + known, whole.positions - 1)
        run = Pass(whole.share, whole.positions - context, context, whole.heads, whole.heads)
        return cls(run.positions, shape.pass_flops(run), shape.pass_bytes(run), 0.0, 0)


def drafts(request: Request) -> bool:
    """Whether an answer is made in parts, over several calls, of which a member keeps the keys and values."""
    return bool(request.begin or request.begin_text or request.top or request.checks)


def needed(shape: Shape, request: Request, reply: Reply, kept: Sequence[Tokens] | None) -> Work:
    """What this reply takes. `kept`: answers whose keys and values the member has behind this prompt; None: it has not read the prompt."""
    fresh = kept is None
    if request.score:
        work = Work.scored(shape, request, reply, fresh)
    elif request.checks:
        work = Work.checking(shape, request, reply, kept)
    elif drafts(request):
        work = Work.going_on(shape, request, reply, kept)
    else:
        work = Work.of(shape, reply, fresh)
    if not fresh and (request.picture is not None or request.features):  # what was seen and asked is not read again for another sample
        work = work._replace(tokens_in=0, prefill_flops=0.0, prefill_bytes=0.0)
    return work


def fed(request: Request, reply: Reply) -> Tokens:
    """The tokens of the answer whose keys and values a member has after this call."""
    begin = request.begin or reply.begun
    if request.checks:
        positions = reply.work[0].positions - reply.tokens_in if reply.work else 0
        return (begin + (reply.checked if request.check is None else request.check))[:positions]
    return begin + (reply.token_ids if reply.finish == "unsure" else reply.token_ids[:-1])
