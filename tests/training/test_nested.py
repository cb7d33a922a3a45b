"""Tuning of nested factors: what it must leave alone, what it must better, and that it can be interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aiflow_agents.errors import UserError
from aiflow_agents.training.corpus import Batch
from aiflow_agents.training.decompose import Factors, decompose
from aiflow_agents.training.moments import Exits, layers, load, measure
from aiflow_agents.training.nested import Tuner, Tuning, sizes, tune
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.sources import skill_source, up_to
from aiflow_agents.training.trainer import Trainer

SOURCE = skill_source({"add": 1.0, "sort": 1.0}, 1, batch=16)
HOW = Tuning(tokens=4000, keeps=(0.5, 0.2), lr=3e-3)


@pytest.fixture(scope="module")
def start(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Factors]]:
    """A model that knows a little, and its factors."""
    from aiflow_agents.training import corpus

    patch = pytest.MonkeyPatch()
    patch.setattr(corpus, "CHUNK", 64)
    path = tmp_path_factory.mktemp("model")
    trainer = Trainer(tiny, path / "work")
    trainer.run(until=1)
    trainer.export(path / "out")
    model = load(path / "out")
    found = decompose(model, measure(model, up_to(SOURCE, 2000)), "svd")
    patch.undo()
    return path / "out", found


def kl(model: Exits, found: dict[str, Factors], keep: float) -> float:
    """Distance to the original's predictions on other questions, cut alike everywhere."""
    tuner = Tuner(model, found, SOURCE, HOW)
    total = 0.0
    batches = list(up_to(SOURCE, 2000, start=99))
    with torch.no_grad():
        for batch in batches:
            (whole,), (cut,) = ([logits.log_softmax(-1) for logits in tuner.logits(batch, at)] for at in (None, tuner.ranks[keep][0]))
            total += float(torch.nn.functional.kl_div(cut, whole, log_target=True, reduction="batchmean"))
    return total / len(batches)


def test_small_sizes_come_nearer_and_the_full_size_stays(start: Any, small: None) -> None:
    folder, found = start
    model = load(folder)
    tuned = tune(model, found, SOURCE, HOW)
    for name, layer in layers(model).items():
        assert not torch.equal(tuned[name].b, found[name].b) or not torch.equal(tuned[name].a, found[name].a)
        torch.testing.assert_close(tuned[name].b @ tuned[name].a, layer.weight, rtol=0, atol=1e-4)
        assert torch.equal(tuned[name].spectrum, found[name].spectrum) and tuned[name].a.is_contiguous() and tuned[name].b.is_contiguous()
    assert kl(model, tuned, 0.2) < 0.9 * kl(model, found, 0.2)
    assert tune(model, found, SOURCE, Tuning(0)) == found


def test_an_interrupted_tuning_ends_as_if_it_had_not_been(start: Any, small: None, tmp_path: Path) -> None:
    folder, found = start
    model, checkpoint = load(folder), tmp_path / "part" / "tuning.safetensors"
    whole = tune(model, found, SOURCE, HOW)

    class Enough(Exception): ...

    seen: list[int] = []

    def stop(at: Any) -> None:
        seen.append(at.tokens)
        if len(seen) == 3:
            raise Enough

    with pytest.raises(Enough):
        tune(model, found, SOURCE, HOW, checkpoint=checkpoint, about="one", progress=stop, checkpoint_s=0.0)
    read: list[int] = []

    def counted(index: int) -> Iterator[Batch]:
        read.append(index)
        yield from SOURCE.chunk(index)

    again = tune(model, found, SOURCE._replace(chunk=counted), HOW, checkpoint=checkpoint, about="one")
    assert read[0] == 2, "two chunks were saved, the third was lost"
    for name in whole:
        assert torch.equal(whole[name].b, again[name].b) and torch.equal(whole[name].a, again[name].a)
    for about, how in (("two", HOW), ("one", Tuning(4000, (0.5, 0.2), lr=1e-3))):
        with pytest.raises(UserError, match="is that of another tuning; remove it to begin anew"):
            tune(model, found, SOURCE, how, checkpoint=checkpoint, about=about)
    checkpoint.write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        tune(model, found, SOURCE, HOW, checkpoint=checkpoint, about="one")


def test_sizes_are_sorted_and_checked() -> None:
    assert sizes([0.4, 1.0, 0.9, 0.4]) == (0.9, 0.4)
    for wrong in ([0.0], [1.2], [1.0]):
        with pytest.raises(UserError):
            sizes(wrong)
