"""Requests to a model that sees: its own node's picture, or the features of others, into features, or an answer, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiflow_agents.models.family.engine import Row
from aiflow_agents.models.family.resume import Start
from aiflow_agents.models.family.vision import Eyes, Seen
from aiflow_agents.models.protocol import CallError, Reply, Request

if TYPE_CHECKING:
    from torch import Tensor

    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.wire.picture import Picture


def see(
    model: FamilyModel, eyes: Eyes, requests: Sequence[Request], parcels: Mapping[str, bytes], packed: dict[str, bytes]
) -> list[Reply | CallError]:
    """Answer each request; what it wants of features goes to `packed`. Every picture is looked at once, and equal requests are computed once."""
    refused = {i: error for i, request in enumerate(requests) if (error := _refusal(model, eyes, request))}
    going = [request for i, request in enumerate(requests) if i not in refused]
    pictures = list(dict.fromkeys(request.picture for request in going if request.picture is not None))
    looked = dict(zip(pictures, eyes.look(pictures), strict=True))
    told = {parcel: _told(model, eyes, parcels, parcel) for request in going for parcel in request.features}
    asked: dict[Any, tuple[Request, Seen]] = {}
    replies: dict[Any, Reply | CallError] = {}
    for request in going:
        key = _key(request)
        if key in asked or key in replies:
            continue
        prompt = model._prompt(request) if request.max_tokens else []
        features = {request.picture.camera: looked[request.picture]} if request.picture else {}
        for parcel in request.features:
            found = told[parcel]
            if isinstance(found, CallError) or found[0] in features:
                replies[key] = found if isinstance(found, CallError) else _refuse(model, f"camera {found[0]} has spoken twice")
                break
            features[found[0]] = found[1]
        else:
            if isinstance(prompt, CallError):
                replies[key] = prompt
                continue
            room = min(request.max_tokens, model.info.max_context - len(prompt) - eyes.config.cameras * eyes.config.patches)
            heat = max(request.sampling.temperature, 0.0)
            asked[key] = request, Seen(features, Row(0, tuple(prompt), room, heat, request.sampling.top_p, request.seed, model._stopper(request)))
    made = eyes.answer([seen for _, seen in asked.values()])
    for (key, (request, seen)), one in zip(asked.items(), made, strict=True):
        reply, count = model._reply(list(seen.row.prompt), request, one), len(seen.features) * eyes.config.patches
        work = eyes.work(int(request.picture is not None), count, len(seen.row.prompt), len(one.token_ids))
        replies[key] = replace(reply, tokens_in=reply.tokens_in + count, work=work, parcel=_parcel(model, eyes, request, looked, packed))
    return [refused[i] if i in refused else replies[_key(request)] for i, request in enumerate(requests)]


def _key(request: Request) -> Request:
    """What decides an answer."""
    return request if request.sampling.temperature > 0 else replace(request, seed=0)


def _refuse(model: FamilyModel, why: str) -> CallError:
    return CallError("refused", f"{model.info.name}: {why}")


def _refusal(model: FamilyModel, eyes: Eyes, request: Request) -> CallError | None:
    v, want, picture = eyes.config, request.want, request.picture
    if request.parcel or request.begin or request.top or want is not None and (want.steps or want.lower):
        return _refuse(model, "a model that sees goes on from features alone: no drafts, no latent steps, no lower caches")
    if want is not None and (want.layer != v.layer or picture is None):
        return _refuse(model, f"features are of a picture at its own node, the input of layer {v.layer}, not of layer {want.layer}")
    if picture is not None and (picture.pixels.shape != (v.size, v.size, v.channels) or picture.camera >= v.cameras):
        given = f"a picture of {list(picture.pixels.shape)} from camera {picture.camera}"
        return _refuse(model, f"{given}; it takes {v.size} x {v.size} from {v.cameras} cameras")
    return None


def _told(model: FamilyModel, eyes: Eyes, parcels: Mapping[str, bytes], parcel: Any) -> tuple[int, Tensor] | CallError:
    """The camera and its features that a parcel brings."""
    start, patches = model.courier.unpack(parcels[parcel.digest], parcel), eyes.config.patches
    if start.layer != eyes.config.layer or len(start.hidden) != patches or start.first % patches or start.first // patches >= eyes.config.cameras:
        return _refuse(model, f"{len(start.hidden)} hidden states at layer {start.layer} are no features of a picture")
    return start.first // patches, start.hidden


def _parcel(model: FamilyModel, eyes: Eyes, request: Request, looked: Mapping[Picture, Tensor], packed: dict[str, bytes]) -> Any:
    if request.want is None or request.picture is None:
        return None
    first = request.picture.camera * eyes.config.patches
    return model._pack(Start(eyes.config.layer, looked[request.picture], eyes.config.patches, (), first=first), request.want, packed)
