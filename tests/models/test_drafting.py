"""A family that drafts for itself says what its deeper exit says alone, whatever its shallow one guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.cli.main import main
from aiflow_agents.errors import UserError
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.drafting import MOST, speculate
from aiflow_agents.models.family.session import Session
from tests.conftest import make_family


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("agents") / "models" / "bud", layers=6, exits=(1, 3, 5))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder.load(folder, torch.float32)


def opened(decoder: Decoder, prompt: list[int]) -> Session:
    session = Session(decoder)
    session.append(torch.tensor([prompt]))
    return session


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.lists(st.integers(2, 40), min_size=1, max_size=12),
    exits=st.sampled_from([(1, 3), (1, 5), (3, 5), (1, None)]),
    length=st.one_of(st.none(), st.integers(1, 6)),
    tokens=st.integers(1, 14),
    stop=st.lists(st.integers(0, 40), max_size=12),
)
def test_the_tokens_are_those_of_the_deeper_exit(
    decoder: Decoder, prompt: list[int], exits: tuple[int, int | None], length: int | None, tokens: int, stop: list[int]
) -> None:
    draft, exit = exits
    [alone] = opened(decoder, prompt).generate(tokens, exit=exit, stop=stop)
    session = opened(decoder, prompt)
    found = speculate(session, tokens, draft=draft, exit=exit, length=length, stop=stop)
    assert list(found.token_ids) == alone
    assert 0 <= found.accepted <= found.drafted <= found.checks * (length or MOST) and found.checks <= len(alone) <= found.accepted + found.checks
    # and the session goes on as any other that has been fed these tokens
    fed = [*prompt, *alone[: session.positions - len(prompt)]]
    assert torch.allclose(session.logits(exit=3)[0, -1], decoder.logits(torch.tensor([fed]), exit=3)[0, -1], atol=1e-4)


def test_an_exit_that_drafts_what_is_said_saves_passes(decoder: Decoder) -> None:
    """A session whose exit 1 knows what exit 5 will say."""
    prompt = [5, 9, 12]
    [alone] = opened(decoder, prompt).generate(12, exit=5)

    class Oracle(Session):
        def logits(self, *, exit: int | None = None, last: int | None = None) -> torch.Tensor:
            if exit != 1:
                return super().logits(exit=exit, last=last)
            said = torch.zeros(1, 1, decoder.config.vocab)
            said[0, 0, alone[self.positions - len(prompt)]] = 1.0
            return said

    session = Oracle(decoder)
    session.append(torch.tensor([prompt]))
    found = speculate(session, 12, draft=1, exit=5, length=4)
    assert list(found.token_ids) == alone and found.acceptance_rate == 1.0 and found.checks == 3  # 4 + 1, 4 + 1, 1 + 1


def test_what_cannot_draft_is_refused(decoder: Decoder) -> None:
    with pytest.raises(UserError, match="one sequence; this session has 2 rows"):
        speculate(Session(decoder, rows=2), 4, draft=1)
    with pytest.raises(UserError, match="exit 5 cannot draft for exit 3"):
        speculate(opened(decoder, [3]), 4, draft=5, exit=3)
    with pytest.raises(UserError, match="no exit 2"):
        speculate(opened(decoder, [3]), 4, draft=2)


def test_the_bench_measures_both_sides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "drafting", str(folder), "--questions", "14", "--repeats", "1", "--display", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"] + found["ties"] == 14 and found["different"] == [] and (found["draft"], found["exit"]) == (1, 5)
    assert found["ratio"] == found["ratios"][0] > 0 and 0 <= found["acceptance_rate"] <= 1 and found["tokens_a_check"] >= 1
