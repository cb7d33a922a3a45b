"""A model cut in two at the input of a layer: what codecs of hidden states are fitted on and judged by.

    token ids --below--> hidden states [rows, positions, width] --above--> logits [rows, positions, vocab]

Gradients flow through `above`, so one can ask how much the output minds an error in the states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aiflow_agents.models.family.family import Family
from aiflow_agents.models.family.resume import hidden_states
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.corpus import collate, example
from aiflow_agents.training.tokenizer import PAD
from aiflow_agents.wire.codecs import Sample

ROWS = 64  # texts in a batch
NOISE = 0.3  # of the states' deviation, where gradients are taken: a sure model minds no small error, and what a codec leaves is not small


class Cut(NamedTuple):
    """A family at the input of `layer`, gone on from there to one of `exits` (None: the last)."""

    family: Family
    layer: int
    exits: tuple[int | None, ...] = (None,)

    def below(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.family.decoder.over(self.family.decoder.embed(ids), range(self.layer))

    def above(self, hidden: Tensor, turn: int = 0) -> Tensor:
        """At the exit whose turn it is: what is fitted for several exits takes them one after the other."""
        decoder, exit = self.family.decoder, self.exits[turn % len(self.exits)]
        return decoder.head(decoder.over(hidden, self.family.after(self.layer, exit)), exit)


class Texts(NamedTuple):
    """Questions with their right answers, padded on the right. All [rows, positions]."""

    ids: Tensor
    present: Tensor  # no padding
    answers: Tensor  # places that predict a token of the answer: the only ones where such a model was ever told what follows
    targets: Tensor  # the token that follows, where it belongs to the answer


def texts(questions: Sequence[Question], rows: int = ROWS) -> Iterator[Texts]:
    """Batches of texts of similar length, as the model saw them in training: `<bos><user>37*8=<assistant>296`."""
    examples = sorted((example(question) for question in questions), key=lambda one: len(one[0]))
    for start in range(0, len(examples), rows):
        ids, targets, _ = collate(examples[start : start + rows])
        yield Texts(ids, ids != PAD, targets >= 0, targets)


def sample(cut: Cut, questions: Sequence[Question], seed: int = 0, noise: float = NOISE, draws: int = 1) -> Sample:
    """States of these texts at the cut, and gradients of what the model says about their answers, taken where some noise leaves the states."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for turn, batch in enumerate(texts(questions)):
        states = cut.below(batch.ids)
        found = []
        for draw in range(draws):
            near = (states + noise * states[batch.present].std() * torch.randn(states.shape, generator=generator)).requires_grad_(True)
            found.append(drawn_gradients(cut.above(near, turn + draw), near, batch.answers, generator)[batch.present])
        parts.append((states[batch.present], torch.stack(found, 1), batch.ids[batch.present], batch.present.sum(1)))
    states, gradients, ids, lengths = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Sample(states, gradients.swapaxes(0, 1), ids, lengths)


def drawn_gradients(logits: Tensor, states: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """Of the log-probability of tokens that the model itself drew, with random signs: their second moment is the Fisher information of all places."""
    said = logits[places].log_softmax(-1)
    drawn = torch.multinomial(said.detach().exp(), 1, generator=generator)
    signs = torch.randint(0, 2, (len(said),), generator=generator) * 2.0 - 1
    (found,) = torch.autograd.grad((said.gather(1, drawn)[:, 0] * signs).sum(), states)
    return found


def cache_samples(family: Family, questions: Sequence[Question], layers: int) -> dict[str, Sample]:
    """Keys and values of the layers below `layers` over these texts, for codecs of a KVCache: `key.0`, `value.0`, ..."""
    sequences = [example(question)[0][:-1] for question in questions]
    caches = [lower for _, lower in hidden_states(family.decoder, sequences, layers, lower=True) if lower is not None]
    found = {}
    for kind in ("key", "value"):
        for i in range(layers):
            parts = [(one.keys if kind == "key" else one.values)[i, 0].flatten(1) for one in caches]
            found[f"{kind}.{i}"] = Sample(torch.cat(parts).float().numpy())
    return found
