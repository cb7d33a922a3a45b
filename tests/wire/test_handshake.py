from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from aiflow_agents.wire.codecs import Sample, fit
from aiflow_agents.wire.handshake import Identity, SpacesDiffer, agree, hello, meet, read_hello

CLOUD = Identity("willow", "ab" * 32, "cd" * 32, "float32", 128, 8)
PHONE = replace(CLOUD, layers=2)
EVERYTHING = {"text", "logits", "hidden", "kv"}


def test_one_family_exchanges_everything_up_to_what_both_hold() -> None:
    for layer in (0, 1, 2):
        assert agree(PHONE, CLOUD, layer).forms == EVERYTHING and agree(PHONE, CLOUD, layer).reasons == ()
    beyond = agree(PHONE, CLOUD, 3)
    assert beyond.forms == {"text", "logits"} and "which hold 2 and 8 layers" in beyond.reasons[0]


@pytest.mark.parametrize(
    ("other", "forms", "said"),
    [
        (replace(CLOUD, weights_hash="ac" * 32), {"text", "logits"}, "the weights differ"),  # another fine-tune: one configuration, other weights
        (replace(CLOUD, tokenizer_hash="ac" * 32), {"text"}, "the tokenizers differ"),
        (replace(CLOUD, dtype="bfloat16"), {"text", "logits"}, "the dtypes differ (float32 and bfloat16)"),
        (replace(CLOUD, width=64), {"text", "logits"}, "the widths differ (128 and 64)"),
        (replace(CLOUD, family="oak"), {"text", "logits"}, "the families differ (willow and oak)"),
    ],
)
def test_spaces_are_never_mixed(other: Identity, forms: set[str], said: str) -> None:
    for mine, theirs in ((CLOUD, other), (other, CLOUD)):
        found = agree(mine, theirs, 1)
        assert found.forms == forms
        with pytest.raises(SpacesDiffer, match="no hidden between these two"):
            found.need("hidden")
        with pytest.raises(SpacesDiffer, match="cannot exchange hidden states"):
            agree(mine, theirs, 1, otherwise="refuse")
    assert said in agree(CLOUD, other, 1).reasons
    agree(CLOUD, other, 1).need("text")


def test_a_hello_says_who_and_which_codecs(make_sample: Callable[..., Sample]) -> None:
    one, other = (fit("int8", {"hidden.0": make_sample(8, seed=seed)}) for seed in (0, 1))
    frame = hello(CLOUD, {"int8": one.fingerprint})
    assert read_hello(frame) == (CLOUD, {"int8": one.fingerprint}) and len(frame) == 134  # three hashes of 32 bytes, once a session
    assert meet(hello(PHONE, {"int8": one.fingerprint}), frame, 1, ["int8"]).forms == EVERYTHING == meet(hello(PHONE), frame, 1, ["float16"]).forms
    for codecs in ({"int8": other.fingerprint}, {}):  # one name, another calibration
        found = meet(hello(PHONE, codecs), frame, 1, ["float16", "int8"])
        assert found.forms == {"text", "logits"} and found.reasons == ("codec int8 is not the same on both sides",)
