"""Prices by hand, and published parameter counts."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.protocol import Shape
from aiflow_agents.net.cost import ShapeNumbers, energy_j, named_shape, price_call, shape_names
from aiflow_agents.net.network import Node

NODE = Node("n", "edge", flops_rate=1e12, bandwidth_Bps=1e11, overhead_s=0.001, power_w=50)


def test_a_long_prompt_is_bound_by_compute_and_decoding_by_memory():
    """1 GB of weights read in 10 ms; 2e11 FLOPs in 200 ms; 9 steps of 10 ms (3 ms of compute)."""
    cost = price_call(NODE, prefill_flops=2e11, decode_flops=9 * 3e9, weight_bytes=1e9, steps=9)
    assert cost.prefill_s == pytest.approx(0.001 + 0.2)
    assert cost.decode_s == pytest.approx(9 * (0.001 + 0.01))
    assert cost.seconds == pytest.approx(0.3)
    assert cost.energy_j == pytest.approx(50 * 0.3)


def test_a_short_prompt_waits_for_the_weights_and_a_small_model_for_the_overhead():
    assert price_call(NODE, prefill_flops=1e6, decode_flops=0, weight_bytes=1e9, steps=0).prefill_s == pytest.approx(0.011)
    small = price_call(NODE, prefill_flops=1e6, decode_flops=1e6, weight_bytes=3e6, steps=10)
    assert small.seconds == pytest.approx(11 * (0.001 + 3e6 / 1e11))


def test_one_token_needs_no_decoding_step():
    assert price_call(NODE, prefill_flops=1, decode_flops=0, weight_bytes=1, steps=0).decode_s == 0


def test_the_prompts_pass_may_read_less_and_the_cache_is_read_on_top():
    cost = price_call(NODE, prefill_flops=0, decode_flops=0, weight_bytes=1e9, steps=2, prefill_bytes=5e8, cache_bytes=1e8)
    assert cost.prefill_s == pytest.approx(0.006) and cost.decode_s == pytest.approx(2 * 0.011 + 0.001)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="negative"):
        price_call(NODE, prefill_flops=-1, decode_flops=0, weight_bytes=1, steps=0)


def test_energy_of_a_cancelled_call():
    assert energy_j(NODE, 0.5) == 25


def test_a_slot_is_billed_its_share_of_the_power():
    shared = Node("n", "cloud", flops_rate=1e12, bandwidth_Bps=1e11, power_w=50, slots=4)
    assert energy_j(shared, 0.5) == 6.25


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_longer_call_never_costs_less(tokens_in, tokens_out):
    shape = Shape(**dataclasses.asdict(named_shape("qwen3-0.6b")))

    def price(i, o):
        prefill, decode = shape.flops(i, o)
        return price_call(NODE, prefill_flops=prefill, decode_flops=decode, weight_bytes=shape.weight_bytes, steps=o - 1).seconds

    assert price(tokens_in, tokens_out) <= min(price(tokens_in + 1, tokens_out), price(tokens_in, tokens_out + 1))


# --- shapes ---


def test_shape_numbers_have_the_fields_of_shape():
    assert [f.name for f in dataclasses.fields(ShapeNumbers)] == [f.name for f in dataclasses.fields(Shape)]


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [  # counted from the tensors of the published safetensors files
        ("qwen3-0.6b", 596_049_920, True),
        ("qwen3-1.7b", 1_720_574_976, True),
        ("qwen3-4b", 4_022_468_096, True),
        ("qwen3-8b", 8_190_735_360, False),
        ("qwen3-14b", 14_768_307_200, False),
        ("qwen3-32b", 32_762_123_264, False),
        ("llama-3.2-1b", 1_235_814_400, True),
        ("llama-3.2-3b", 3_212_749_824, True),
        ("llama-3-8b", 8_030_261_248, False),
        ("llama-3-70b", 70_553_706_496, False),
    ],
)
def test_parameters_are_exactly_those_published(name, parameters, tied):
    shape = named_shape(name)
    embedding = 0 if tied else shape.head_params  # tied: the head is the embedding
    assert shape.block_params + shape.head_params + embedding == parameters


def test_an_unknown_shape_offers_the_nearest():
    with pytest.raises(UnknownName, match="qwen3-8b"):
        named_shape("qwen3-8")
    assert named_shape("Qwen3-8B") == named_shape("qwen3-8b")
    assert named_shape("qwen3-8b@4").dtype_bytes == 0.5 and named_shape("qwen3-8b@4").block_params == named_shape("qwen3-8b@16").block_params
    with pytest.raises(UserError, match="qwen3-8b@7: '7' bits a weight; expected 2 to 8, 16 or 32, such as qwen3-8b@4"):
        named_shape("qwen3-8b@7")
    assert all(named_shape(name).heads % named_shape(name).kv_heads == 0 for name in shape_names())


def test_a_call_costs_something_whatever_it_asks_for():
    served = dataclasses.replace(NODE, call_s=0.25)
    for steps in (0, 3):
        asked = {"prefill_flops": 1e9, "decode_flops": steps * 1e9, "weight_bytes": 1e9, "steps": steps}
        assert price_call(served, **asked).seconds == pytest.approx(price_call(NODE, **asked).seconds + 0.25)
