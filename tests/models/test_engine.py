from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from aiflow_agents.models.family import engine as engine_module
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.engine import Engine, draw, uniforms

ENDS = (2, 3)


class World:
    """One model, and requests of all kinds with the answers they get in one big batch."""

    def __init__(self, folder, longest, seed):
        pick = random.Random(seed)
        self.engine = Engine(Decoder.load(folder), ENDS)
        n = 48
        self.prompts = [[pick.randrange(4, 64) for _ in range(pick.randrange(1, longest))] for _ in range(n)]
        self.max_tokens = [pick.choice([1, 6, 24, 40, 70]) for _ in range(n)]
        self.heat = [pick.choice([0.0, 0.0, 0.8, 1.5]) for _ in range(n)]
        self.top_p = [pick.choice([1.0, 0.7]) for _ in range(n)]
        self.seeds = [pick.randrange(2**64) for _ in range(n)]
        self.together = self.ask(range(n))

    def ask(self, which, engine=None):
        def of(column):
            return [column[i] for i in which]

        return (engine or self.engine).generate(
            of(self.prompts), max_tokens=of(self.max_tokens), temperature=of(self.heat), top_p=of(self.top_p), seeds=of(self.seeds)
        )


@pytest.fixture(scope="module")
def worlds(make_checkpoint):
    shapes = [
        ("llama", 50, {}),
        ("qwen3", 240, {"head_dim": 16, "num_key_value_heads": 1, "intermediate_size": 100, "vocab_size": 67, "max_position_embeddings": 512}),
        ("qwen2", 150, {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 60, "max_position_embeddings": 512}),
        ("llama", 50, {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}),
    ]
    return [World(make_checkpoint(kind, i, **shape)[0], longest, i) for i, (kind, longest, shape) in enumerate(shapes)]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(worlds, data):
    world = worlds[data.draw(st.integers(0, len(worlds) - 1))]
    size = data.draw(st.sampled_from([1, 1, 2, 5, 15, 16, 17, 30]))
    which = data.draw(st.lists(st.integers(0, len(world.prompts) - 1), min_size=size, max_size=size))
    assert world.ask(which) == [world.together[i] for i in which]  # tokens, and log-probabilities to the last bit


def test_nor_on_how_a_batch_is_cut(worlds, monkeypatch):
    for world in worlds[:2]:
        monkeypatch.setattr(engine_module, "MAX_ROWS", 20)
        monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 200)
        assert world.ask(range(48)) == world.together


def test_without_padding_answers_stay_the_same_up_to_rounding(worlds):
    for world in worlds:
        fast = Engine(world.engine.decoder, ENDS, stable=False)
        for i in range(0, 48, 8):
            alone, steady = world.ask([i], fast)[0], world.together[i]
            same = next((k for k, (a, b) in enumerate(zip(alone.token_ids, steady.token_ids, strict=False)) if a != b), len(alone.token_ids))
            assert same > 0 and alone.logprobs[:same] == pytest.approx(steady.logprobs[:same], abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_greedy_answers_and_logprobs_are_those_of_transformers(kind, make_checkpoint):
    folder, model = make_checkpoint(kind, 5, **({"head_dim": 16} if kind == "qwen3" else {}))
    pick = random.Random(7)
    prompts = [[pick.randrange(4, 64) for _ in range(pick.randrange(3, 40))] for _ in range(20)]
    answers = Engine(Decoder.load(folder), ENDS).generate(prompts, max_tokens=[20] * 20)
    assert {answer.finish for answer in answers} == {"stop", "length"}, "the case must exercise both ends"
    for prompt, answer in list(zip(prompts, answers, strict=True))[:8]:
        with torch.no_grad():
            made = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                                  max_new_tokens=20, eos_token_id=list(ENDS), pad_token_id=0)[0]  # fmt: skip
            scores = torch.log_softmax(model(made[None]).logits[0, len(prompt) - 1 : -1], -1)
        assert list(answer.token_ids) == made[len(prompt) :].tolist()
        expected = scores.gather(1, made[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=0, atol=1e-4)
        assert answer.finish == ("stop" if answer.token_ids[-1] in ENDS else "length")


def test_a_long_prompt_goes_in_pieces(make_checkpoint):
    folder, model = make_checkpoint("llama", max_position_embeddings=2048)
    prompt = [4 + i * i % 53 for i in range(1100)]
    assert len(prompt) > 2 * engine_module.PIECE
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1).max()
    for stable in (True, False):
        answer = Engine(Decoder.load(folder), (), stable=stable).generate([prompt], max_tokens=[1])[0]
        assert answer.logprobs[0] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("lengths", [(40, 1), (40, 9), (9, 30)])
def test_the_flops_that_are_billed_are_those_that_are_run(lengths, make_checkpoint):
    """torch counts products itself; those of attention are run over whole squares, half of which a mask leaves out."""
    folder, _ = make_checkpoint("qwen3", hidden_size=256, intermediate_size=700, num_hidden_layers=3)
    decoder, (prompt, answer) = Decoder.load(folder), lengths
    with FlopCounterMode(display=False) as counter:
        (made,) = Engine(decoder, [], stable=False).generate([[5] * prompt], max_tokens=[answer])
    assert len(made.token_ids) == answer
    run = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    squares = 2 * 2 * prompt**2 * decoder.config.heads * decoder.config.head_dim * 3
    assert sum(decoder.config.shape().flops(prompt, answer)) == pytest.approx(sum(run.values()) - squares / 2, rel=0.005)


def test_samples_of_one_prompt_share_its_prefill_and_differ(worlds, monkeypatch):
    engine, prompt = worlds[0].engine, worlds[0].prompts[0]
    seen = []
    embed = Decoder.embed
    monkeypatch.setattr(Decoder, "embed", lambda self, tokens: (seen.append(tuple(tokens.shape)), embed(self, tokens))[1])
    answers = engine.generate([prompt] * 20, max_tokens=[6] * 20, temperature=[1.5] * 20, seeds=list(range(20)))
    assert seen[0][0] == 1, "one prompt, one row"
    assert len({answer.token_ids for answer in answers}) > 10
    monkeypatch.undo()
    again = engine.generate([prompt], max_tokens=[6], temperature=[1.5], seeds=[13])
    assert again[0] == answers[13]


def test_finished_rows_leave(worlds, monkeypatch):
    engine, widths = worlds[0].engine, []
    embed = Decoder.embed
    monkeypatch.setattr(Decoder, "embed", lambda self, tokens: (widths.append(len(tokens)), embed(self, tokens))[1])
    prompts = [[5, 6, 7 + i % 40] for i in range(48)]
    Engine(engine.decoder, ()).generate(prompts, max_tokens=[2] * 28 + [6] * 20)
    assert widths[-1] == 20 and widths[-1] < widths[-5]


def test_ends_of_a_row(worlds):
    engine = Engine(worlds[0].engine.decoder, (), stable=True)
    prompt, limit = worlds[0].prompts[0], engine.decoder.config.max_context
    whole = engine.generate([prompt], max_tokens=[8])[0]
    assert whole.finish == "length" and len(whole.token_ids) == len(whole.logprobs) == 8
    stopped = engine.generate([prompt, prompt], max_tokens=[8, 8], stops=[lambda tokens: len(tokens) == 3, None])
    assert stopped[0].token_ids == whole.token_ids[:3] and stopped[0].finish == "stop" and stopped[1] == whole
    nothing = engine.generate([prompt, prompt], max_tokens=[0, 8])
    assert nothing[0].token_ids == () and nothing[1] == whole
    full = engine.generate([[5] * (limit - 3)], max_tokens=[50])[0]
    assert len(full.token_ids) == 3 and full.finish == "length", "the context ends"
    for bad in ([], [5] * limit):
        with pytest.raises(ValueError, match="prompt 0 has"):
            engine.generate([bad], max_tokens=[1])
    assert engine.generate([], max_tokens=[]) == []


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 12) * 2
    uniform = uniforms([11], 40_000).T
    drawn = torch.bincount(draw(logits.expand(len(uniform), -1), uniform), minlength=12) / len(uniform)
    p = logits.softmax(-1)[0]
    assert (drawn - p).abs().max() < 4 * (p * (1 - p) / len(uniform)).max().sqrt()


@pytest.mark.parametrize("top_p", [0.0, 0.05, 0.5, 0.9])
def test_the_nucleus_is_that_of_transformers(top_p):
    from transformers import TopPLogitsWarper

    torch.manual_seed(1)
    logits = torch.randn(1, 12) * 2
    uniform = torch.linspace(0, 1 - 1e-9, 5_000, dtype=torch.float64)[:, None]
    drawn = draw(logits.expand(len(uniform), -1), uniform, torch.full((len(uniform), 1), top_p, dtype=torch.float64))
    warped = TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits).softmax(-1)[0]
    assert set(drawn.tolist()) == set(torch.nonzero(warped)[:, 0].tolist())
    torch.testing.assert_close(torch.bincount(drawn, minlength=12) / len(uniform), warped, rtol=0, atol=2e-3)


def test_uniforms_depend_on_seed_and_position_only():
    some = uniforms([0, 1, 2**64 - 1, -1], 2_000)
    assert some.min() >= 0 and some.max() < 1 and abs(some.mean() - 0.5) < 0.02
    assert torch.equal(some[2], some[3]) and len(some[:3].unique()) == 6_000
    assert torch.equal(uniforms([1], 5)[0], some[1, :5])
