from __future__ import annotations

import json

import pytest

from aiflow_agents.bench import engine as bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random model of transformers with a tokenizer of one token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    shape = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2, eos_token_id=[2, 3, 4], pad_token_id=0)).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="a"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("."), behavior="isolated"), decoders.Fuse()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    return path


def test_both_sides_give_the_same_answers(folder):
    prompts = ["hello", "the sum of it", "x", "zebra", "quite a long prompt it is"]
    found = bench.bench_engine(folder, prompts, batch_sizes=(1, 4), max_tokens=6, repeats=1, memory=False)
    assert [row["batch"] for row in found["batches"]] == [1, 4]
    for row in found["batches"]:
        assert row["prompts"] == 5 and 5 <= row["tokens"] <= 30 and row["different"] == [] and row["identical"] + row["ties"] == 5
        assert row["ratio"] == pytest.approx(row["ours_tokens_per_s"] / row["transformers_tokens_per_s"])
    json.dumps(found)


def test_a_difference_is_found_and_measured(folder):
    prompt = [7, 4, 11]
    found = bench._compare(folder, "float32", [prompt, prompt], [[5, 6], [5, 6]], [[5, 6], [5, 9]])
    assert found["identical"] == 1 and found["different"][0]["at"] == 1 and found["different"][0]["gap"] > bench.TIE


def test_memory_is_that_of_a_process_of_its_own(folder):
    ballast = bytearray(400 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])  # touched, so it is resident here; the measured process must not see it
    peak = bench._peak_mib("ours", str(folder), (2,), "float32", 3, 1, [[7, 4], [11]])
    assert 50 < peak < 450 and len(ballast)
