"""A model that sees: pictures into features, each camera by itself, and answers from the features of some cameras together.

    picture  [patches] --layers 0..k-1--> features          travel as `Hidden`; `first` tells the camera's place
    features of all --layers k..--+
    question --layers 0..k-1-------+--layers k..--> answer

Patches of a picture see each other, and so do all features; the question and its answer see the features and themselves. So there are two caches:
that of the lower layers holds the question's own text only. Rows that run together have the same cameras and prompts of one length, there are never
fewer than 16 of them, and columns come in whole steps of 16, so that no row feels what it is run with (see `engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aiflow_agents.models.family.config import VisionConfig
from aiflow_agents.models.family.decoder import Cache, Span, _Reader
from aiflow_agents.models.family.engine import MAX_ROWS, MIN_ROWS, STEP, Engine, Generated, Row, _up, draw, uniforms
from aiflow_agents.models.protocol import Pass
from aiflow_agents.wire.picture import Picture


@dataclass(frozen=True)
class Seen:
    """What a row answers from: `features` by camera, [patches, width] each, and its prompt."""

    features: dict[int, Tensor]
    row: Row


class Eyes:
    """The vision front of a loaded model, and the two ways to run its layers."""

    def __init__(self, config: VisionConfig, engine: Engine, patch: Tensor, bias: Tensor, places: Tensor):
        self.config, self.engine, self.decoder = config, engine, engine.decoder
        # [width, numbers], [width], [cameras, patches, width]
        self.patch, self.bias, self.places = patch, bias, places.view(config.cameras, config.patches, -1)

    @classmethod
    def load(cls, path: str | Path, engine: Engine) -> Eyes:
        """The `vision.*` weights of a model folder. Raises `UserError` for one that is missing or has another shape."""
        c = engine.decoder.config
        assert c.vision is not None
        with ExitStack() as stack:
            take, v = _Reader(path, stack).take, c.vision
            shapes = {"patch.weight": (c.width, v.numbers), "patch.bias": (c.width,), "place_embed.weight": (v.cameras * v.patches, c.width)}
            found = [take(f"vision.{name}", *shape).float() for name, shape in shapes.items()]
        return cls(v, engine, *found)

    @torch.inference_mode()
    def look(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """The features of each picture, [patches, width]: the input of the layer from which all cameras are read together."""
        v, found = self.config, []
        for begin in range(0, len(pictures), MAX_ROWS):
            some = list(pictures[begin : begin + MAX_ROWS])
            filled = some + some[-1:] * (MIN_ROWS - len(some))
            pixels = torch.stack([torch.from_numpy(picture.pixels) for picture in filled]).float().div(127.5).sub(1)
            side = v.size // v.patch
            patches = pixels.unflatten(1, (side, v.patch)).unflatten(3, (side, v.patch)).transpose(2, 3).reshape(len(filled), v.patches, v.numbers)
            hidden = torch.addmm(self.bias, patches.flatten(0, 1), self.patch.t()).view(len(filled), v.patches, -1)
            hidden = (hidden + self.places[[picture.camera for picture in filled]]).to(self.decoder.dtype)
            blocks = range(v.layer)
            cache = Cache.new(self.decoder.config, len(filled), _up(v.patches, STEP), self.decoder.dtype, blocks)
            states = self.decoder.run(hidden, cache, self._span(0, torch.arange(v.patches), v.patches), blocks)
            found += list(states[: len(some)].clone())
        return found

    @torch.inference_mode()
    def answer(self, seen: Sequence[Seen]) -> list[Generated]:
        """Answer each row from its features; a row without any has its prompt alone."""
        groups: dict[tuple[tuple[int, ...], int], list[Seen]] = {}
        for one in seen:
            groups.setdefault((tuple(sorted(one.features)), len(one.row.prompt)), []).append(one)
        for (cameras, _), members in groups.items():
            members = [one for one in members if one.row.room > 0]
            for begin in range(0, len(members), MAX_ROWS):
                self._run(members[begin : begin + MAX_ROWS], cameras)
        return [Generated(tuple(one.row.tokens), tuple(one.row.logprobs), one.row.finish or "length") for one in seen]

    def work(self, pictures: int, features: int, prompt: int, made: int) -> tuple[Pass, ...]:
        """The passes of a call: so many pictures looked at, positions of features, tokens of its prompt and of its answer. The front counts too."""
        v, layers = self.config, self.decoder.config.layers
        block = self.decoder.config.shape().block_params
        passes = [Pass(v.layer / layers + self.patch.numel() / block, v.patches, 0, 0)] * pictures
        if made:
            passes += [Pass(1 - v.layer / layers, features, 0, 0)] if features else []
            passes += [Pass(v.layer / layers, prompt, 0, 0), Pass(1 - v.layer / layers, prompt, features, 1)]
            passes += [Pass(1.0, 1, features + prompt + t, 1) for t in range(made - 1)]
        return tuple(passes)

    def _run(self, members: Sequence[Seen], cameras: tuple[int, ...]) -> None:
        decoder, v, c = self.decoder, self.config, self.decoder.config
        filled = [*members, *[members[-1]] * (MIN_ROWS - len(members))]
        rows, count, length = [one.row for one in filled], len(cameras) * v.patches, len(filled[0].row.prompt)
        room, below, above = max(row.room for row in rows), range(v.layer), range(v.layer, c.layers)
        lower = Cache.new(c, len(rows), _up(length + room, STEP), decoder.dtype, below)
        upper = Cache.new(c, len(rows), _up(count + length + room, STEP), decoder.dtype, above)
        # 1. the features of all cameras, each in its place -> keys and values, which know of no question
        if cameras:
            features = torch.stack([torch.cat([one.features[camera] for camera in cameras]) for one in filled])  # [rows, count, width]
            places = torch.cat([camera * v.patches + torch.arange(v.patches) for camera in cameras])
            decoder.run(features.to(decoder.dtype), upper, self._span(0, places, count), above)
        # 2. the prompt: by itself below, behind the features above
        behind = v.cameras * v.patches  # where text begins, whichever cameras are there
        tokens = torch.tensor([row.prompt for row in rows])
        hidden = decoder.run(decoder.embed(tokens), lower, decoder.prompt_span(0, length, _up(length, STEP)), below)
        own = decoder.prompt_span(0, length, _up(count + length, STEP) - count).mask
        mask = torch.cat((torch.zeros(1, length * c.group, count, dtype=decoder.dtype), own), -1)
        span = Span(count, _up(count + length, STEP), decoder.turns(behind + torch.arange(length))[None, :, None, None], mask)
        last = decoder.run(hidden, upper, span, above)[:, -1]
        # 3. the answer, a token for every row and step
        heat = torch.tensor([row.temperature for row in rows])[:, None]
        nucleus, chance = torch.tensor([row.top_p for row in rows], dtype=torch.float64)[:, None], uniforms([row.seed for row in rows], room)
        going = set(range(len(members)))
        for t in range(room):
            logits = decoder.head(last)
            tokens, logprobs = logits.argmax(-1), torch.log_softmax(logits, -1)
            if bool((heat > 0).any()):
                drawn = draw(logits / torch.where(heat > 0, heat, 1.0), chance[:, t : t + 1], nucleus)
                tokens = torch.where(heat[:, 0] > 0, drawn, tokens)
            going -= {i for i in going if self._over(rows[i], int(tokens[i]), float(logprobs[i, tokens[i]]))}
            if not going:
                return
            hidden = decoder.run(decoder.embed(tokens[:, None]), lower, self._span(length + t, torch.tensor([length + t]), length + t + 1), below)
            at = count + length + t
            last = decoder.run(hidden, upper, self._span(at, torch.tensor([behind + length + t]), at + 1), above)[:, 0]

    def _over(self, row: Row, token: int, logprob: float) -> bool:
        """Book a token; whether it was the row's last."""
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if token in self.engine.eos_ids or (row.stop is not None and row.stop(row.tokens)):
            row.finish = "stop"
        elif len(row.tokens) >= row.room:
            row.finish = "length"
        return bool(row.finish)

    def _span(self, first: int, places: Tensor, end: int) -> Span:
        """Positions that see all columns up to `end`, each other included."""
        mask = torch.zeros(1, len(places) * self.decoder.config.group, _up(end, STEP), dtype=self.decoder.dtype)
        mask[..., end:] = -torch.inf
        return Span(first, _up(end, STEP), self.decoder.turns(places)[None, :, None, None], mask)
