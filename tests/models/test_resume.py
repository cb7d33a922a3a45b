"""A batch that goes on from hidden states says what the exit says by itself, and the passes it reports are those that it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UserError
from aiflow_agents.models.family import Family
from aiflow_agents.models.family.engine import Engine
from aiflow_agents.models.family.resume import Start, hidden_states, resume

ENDS, EXITS = (2, 11, 17), (1, 3, 5)
PROMPTS = [[int(t) for t in torch.randint(20, 64, (n,), generator=torch.Generator().manual_seed(n))] for n in (3, 5, 9, 14, 15, 21)]


def start(loaded: Family, prompt: list[int], draft: tuple[int, ...], layer: int, how: str) -> Start:
    said = [*prompt, *draft[:-1]]
    ((hidden, lower),) = hidden_states(loaded.decoder, [said], layer, lower=how == "lower")
    return Start(layer, hidden, len(prompt), draft, tuple(said) if how == "tokens" else None, lower)


def alone(engine: Engine, prompts: list[list[int]], exit: int, room: int) -> Any:
    return engine.generate(prompts, max_tokens=[room] * len(prompts), exit=exit)


@settings(max_examples=40, deadline=None)
@given(
    drafting=st.sampled_from(EXITS), exit=st.sampled_from(EXITS), layer=st.integers(0, 5), how=st.sampled_from(["tokens", "lower"]),
    room=st.integers(1, 9), spoil=st.integers(0, 8), drafted=st.integers(1, 9),
)  # fmt: skip
def test_it_says_what_the_exit_says_by_itself(
    family: tuple[Path, Any], drafting: int, exit: int, layer: int, how: str, room: int, spoil: int, drafted: int
) -> None:
    if layer > exit:
        return
    loaded = Family.load(family[0])
    engine = Engine(loaded.decoder, ENDS)
    expected = alone(engine, PROMPTS, exit, room)
    drafts = [made.token_ids for made in alone(engine, PROMPTS, drafting, drafted)]
    drafts = [draft[:spoil] + ((30,) if spoil < len(draft) else ()) + draft[spoil + 1 :] for draft in drafts]  # one token of it is wrong
    found = resume(engine, [start(loaded, p, d, layer, how) for p, d in zip(PROMPTS, drafts, strict=True)], exit=exit, max_tokens=[room] * 6)
    for one, own, prompt, draft in zip(found, expected, PROMPTS, drafts, strict=True):
        made, work = one.made, one.work
        assert made.token_ids == own.token_ids and made.finish == own.finish
        assert made.logprobs == pytest.approx(own.logprobs, abs=1e-4)
        blocks = len(loaded.decoder.config.path(exit))
        assert work[0].share == (blocks - layer) / blocks and work[0].positions == len(prompt) + len(draft) - 1
        kept = next((i for i, (a, b) in enumerate(zip(draft, own.token_ids, strict=False)) if a != b), min(len(draft), len(own.token_ids)))
        decoded = [run for run in work[1:] if run.share == 1.0 and run.positions == 1]
        if kept == len(own.token_ids):
            assert len(work) == 1  # the draft was right: nothing was decoded, nothing below was run
        else:
            assert any(run.share == layer / blocks for run in work[1:]) == (how == "tokens" and layer > 0)
            assert len(decoded) in (len(own.token_ids) - kept - 1, len(own.token_ids) - kept)  # one more where a draft was cut short


def test_without_tokens_or_cache_a_wrong_draft_cannot_be_mended(family: tuple[Path, Any]) -> None:
    loaded = Family.load(family[0])
    engine = Engine(loaded.decoder, ENDS)
    own = alone(engine, PROMPTS[:1], 5, 6)[0].token_ids
    right = resume(engine, [start(loaded, PROMPTS[0], own, 3, "nothing")], exit=5, max_tokens=[6])
    assert right[0].made.token_ids == own
    with pytest.raises(UserError, match="have not seen what was said"):
        resume(engine, [start(loaded, PROMPTS[0], (own[0] ^ 1, *own[1:]), 3, "nothing")], exit=5, max_tokens=[6])
    with pytest.raises(UserError, match="exit 1 has no input of layer 3"):
        resume(engine, [start(loaded, PROMPTS[0], own, 3, "tokens")], exit=1, max_tokens=[6])


def test_hidden_states_are_those_of_the_family(family: tuple[Path, Any]) -> None:
    loaded = Family.load(family[0])
    for layer in (0, 2, 5):
        for (states, _), prompt in zip(hidden_states(loaded.decoder, PROMPTS, layer), PROMPTS, strict=True):
            alone = loaded.hidden(torch.tensor([prompt]), layer=layer)[0]
            torch.testing.assert_close(states, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@settings(max_examples=25, deadline=None)
@given(how=st.sampled_from(["tokens", "lower"]), spoil=st.integers(0, 6), first=st.sampled_from([(0, 1), (1, 1), (1, 3), (0, 3), (2, 3)]))
def test_three_nodes_in_a_row(family: tuple[Path, Any], how: str, spoil: int, first: tuple[int, int]) -> None:
    """Exit 1 drafts, exit 3 goes on and sends its own states on, exit 5 ends it: it says what exit 5 says by itself."""
    loaded, room = Family.load(family[0]), 7
    engine = Engine(loaded.decoder, ENDS)
    layer, further = first
    drafts = [made.token_ids for made in alone(engine, PROMPTS, 1, room)]
    drafts = [draft[:spoil] + ((30,) if spoil < len(draft) else ()) + draft[spoil + 1 :] for draft in drafts]
    starts = [start(loaded, p, d, layer, how) for p, d in zip(PROMPTS, drafts, strict=True)]
    middle = resume(engine, starts, exit=3, max_tokens=[room] * 6, onward=[further] * 6)
    for one, own in zip(middle, alone(engine, PROMPTS, 3, room), strict=True):
        assert one.made.token_ids == own.token_ids and one.onward is not None and one.onward.layer == further
        assert len(one.onward.hidden) == one.onward.prompt + len(one.onward.draft) - 1
        assert one.made.token_ids[: len(one.onward.draft)] == one.onward.draft
    last = resume(engine, [one.onward for one in middle if one.onward], exit=5, max_tokens=[room] * 6)
    assert [one.made.token_ids for one in last] == [made.token_ids for made in alone(engine, PROMPTS, 5, room)]
