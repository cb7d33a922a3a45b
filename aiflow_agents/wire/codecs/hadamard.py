"""`hadamard`: turn first, so that no single channel is large, then integers (QuaRot, arXiv:2404.00456)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiflow_agents.wire.codecs.integer import integers
from aiflow_agents.wire.codecs.quantiser import Quantiser
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.payload import Floats


@dataclass(frozen=True)
class Hadamard:
    """A Hadamard rotation of the centred states, then symmetric integers of so many bits."""

    bits: int = 4

    def fit(self, sample: Sample) -> Quantiser:
        mean, turn = sample.states.mean(0), hadamard(sample.states.shape[1])
        return integers((sample.states - mean) @ turn, self.bits, mean=mean, analysis=turn, synthesis=turn)


def hadamard(width: int) -> Floats:
    """A symmetric orthogonal matrix of Hadamard blocks, one for every binary digit of the width: 96 = 64 + 32."""
    turn, start = np.zeros((width, width), np.float32), 0
    for power in reversed(range(width.bit_length())):
        if size := width & (1 << power):
            block = np.ones((1, 1))
            while len(block) < size:
                block = np.block([[block, block], [block, -block]])
            turn[start : start + size, start : start + size] = block / np.sqrt(size)
            start += size
    return turn
