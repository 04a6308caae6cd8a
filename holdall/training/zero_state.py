"""States of slices, with their places in whole vectors: from one number of workers and stage to any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdall.errors import BadInput
from holdall.parts import partition
from holdall.training.zero_buckets import FROZEN, Bucket, Vector

if TYPE_CHECKING:
    from holdall.training.zero_session import Sharded
    from holdall.training.zero_slices import Slices

FORMAT = 1


def shard(session: Sharded) -> dict[str, Any]:
    """What this worker has, as views: copy it before the next step, or let a checkpointer do that."""
    slices, wire = session.slices, session.wire
    told = []
    for v in slices.vectors:
        pieces = [_piece(slices, b) for b in slices.buckets if b.vector is v]
        told.append(
            {
                "group": v.group,
                "dtype": v.dtype,
                "names": list(v.names),
                "shapes": [list(s) for s in v.shapes],
            }
            | {"pieces": [p for p in pieces if p["start"] < p["stop"]]}
        )
    options = [{k: o for k, o in g.items() if k != "params"} for g in session.user.param_groups]
    return {
        "format": FORMAT,
        "workers": wire.size,
        "rank": wire.rank,
        "steps": session.steps,
        "scale": session.scale,
        "vectors": told,
        "options": options,
    }


def _piece(slices: Slices, b: Bucket) -> dict[str, Any]:
    start, stop = b.owned(slices.wire.rank, slices.stage == 0)
    held = b.shard if b.slice is None else b.slice.detach()
    assert held is not None
    state = slices.inner.state.get(b.slice, {})
    return {
        "start": start,
        "stop": stop,
        "weights": held[: stop - start],
        "states": {k: s[: stop - start] for k, s in state.items() if _of_numbers(s)},
        "others": {k: s for k, s in state.items() if not _of_numbers(s)},
    }


def _of_numbers(value: Any) -> bool:
    """Whether a part of a state has something for each number, as moments have and counts of steps do not."""
    return isinstance(value, Tensor) and value.dim() > 0


@torch.no_grad()
def load(session: Sharded, shards: Sequence[Mapping[str, Any]]) -> None:
    """All is compared before anything changes."""
    slices = session.slices
    if not shards or any(s.get("format") != FORMAT for s in shards):
        raise BadInput("shards", f"{len(shards)} of another kind", "what state_dict() of all workers gave")
    found = [(b, _found(slices, b, shards)) for b in slices.buckets]
    lacks = torch.tensor([float(any(pieces is None for _, pieces in found))])
    if slices.wire.sum(lacks).item():  # on any worker: then none changes
        had = sorted({int(s["rank"]) for s in shards})
        raise BadInput("shards", f"those of ranks {had}", f"those of all {shards[0]['workers']} ranks")
    for group, saved in zip(session.user.param_groups, shards[0]["options"], strict=True):
        group.update(saved)
    for b, pieces in found:
        assert pieces is not None
        start, stop = b.owned(slices.wire.rank, slices.stage == 0)
        state: dict[str, Any] = {}
        target = b.shard if b.slice is None else b.slice.data
        assert target is not None and b.shard is not None
        for move in partition.moves([(p["start"], p["stop"]) for p in pieces], [(start, stop)]):
            piece, into = pieces[move.source], slice(move.start - start, move.stop - start)
            part = slice(move.start - piece["start"], move.stop - piece["start"])
            target[into] = piece["weights"][part]
            for k, s in piece["states"].items():
                state.setdefault(k, target.new_zeros(target.shape, dtype=s.dtype))[into] = s[part]
            state.update({k: s.clone() if isinstance(s, Tensor) else s for k, s in piece["others"].items()})
        if b.slice is not None:
            slices.inner.state[b.slice] = state
            if b.slice.dtype != b.shard.dtype:
                b.shard.copy_(b.slice)
    session.steps, session.scale = int(shards[0]["steps"]), float(shards[0]["scale"])
    slices.spread()


def _found(slices: Slices, b: Bucket, shards: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """All saved pieces of the bucket's vector, None where some are missing; BadInput where it was another vector."""
    v, wanted = b.vector, b.owned(slices.wire.rank, slices.stage == 0)
    pieces: list[Mapping[str, Any]] = []
    for s in shards:
        same = [o for o in s["vectors"] if o["group"] == v.group and o["dtype"] == v.dtype]
        if not same:
            if v.group == FROZEN:  # stages 0 to 2 do not cut these, and the module has them
                continue
            types = ", ".join(sorted({o["dtype"] for o in s["vectors"]}))
            raise BadInput(
                "shards", f"{types} in {len(s['options'])} groups", f"{v.dtype} of group {v.group}"
            )
        pieces += same[0]["pieces"]
        _compare(v, same[0])
    if not pieces and v.group == FROZEN:
        held = b.shard
        return [{"start": wanted[0], "stop": wanted[1], "weights": held, "states": {}, "others": {}}]
    try:
        partition.moves([(p["start"], p["stop"]) for p in pieces], [wanted])
    except BadInput:
        return None
    return pieces


def _compare(v: Vector, saved: Mapping[str, Any]) -> None:
    mine = dict(zip(v.names, map(tuple, v.shapes), strict=True))
    theirs = dict(zip(saved["names"], map(tuple, saved["shapes"]), strict=True))
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise BadInput(f"parameter {name}", f"{theirs.get(name)} in the shards", f"{mine.get(name)}")
    if list(mine) != list(theirs):
        raise BadInput("parameters", "another order in the shards", "the same module")


def merged(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All shards of a run as whole tensors by parameter: {"model": {name: tensor}, "states": {name: {key: value}}}."""
    model: dict[str, Tensor] = {}
    states: dict[str, dict[str, Any]] = {}
    for i, v in enumerate(shards[0]["vectors"]):
        pieces = [p for s in shards for p in s["vectors"][i]["pieces"]]
        begins = partition.offsets([prod(shape) for shape in v["shapes"]])
        spans = [(p["start"], p["stop"]) for p in pieces]
        for name, shape, span in zip(v["names"], v["shapes"], pairwise(begins), strict=True):
            for move in partition.moves(spans, [span]):
                piece = pieces[move.source]
                part = slice(move.start - piece["start"], move.stop - piece["start"])
                into = slice(move.start - span[0], move.stop - span[0])
                own = states.setdefault(name, {})
                for place, key, whole in [
                    (model, name, piece["weights"]),
                    *((own, k, s) for k, s in piece["states"].items()),
                ]:
                    if key not in place:
                        place[key] = whole.new_empty(prod(shape)).view(shape)
                    place[key].view(-1)[into] = whole[part]
                own.update(piece["others"])
    return {"model": model, "states": states, "options": shards[0]["options"]}


@torch.no_grad()
def take_over(slices: Slices, optimizer: Any) -> None:
    """States that the user's optimizer already has, into slices; it gives them up meanwhile."""
    for b in slices.trained:
        owners = [p for p in b.pieces if optimizer.state.get(b.vector.params[p.tensor])]
        state: dict[str, Any] = {}
        start, stop = b.owned(slices.wire.rank, slices.stage == 0)
        assert b.slice is not None
        for piece in owners:
            own = optimizer.state[b.vector.params[piece.tensor]]
            whole = b.span[0] + piece.at  # where in the vector the piece lies
            first, last = max(whole, start), min(whole + piece.stop - piece.start, stop)
            for k, s in own.items():
                if not _of_numbers(s):
                    state[k] = s.clone() if isinstance(s, Tensor) else s
                elif first < last:
                    part = s.reshape(-1)[piece.start + first - whole : piece.start + last - whole]
                    room = state.setdefault(k, b.slice.new_zeros(b.slice.shape, dtype=s.dtype))
                    room[first - start : last - start] = part
                else:
                    state.setdefault(k, b.slice.new_zeros(b.slice.shape, dtype=s.dtype))
        if state:
            slices.inner.state[b.slice] = state
    optimizer.state.clear()


@torch.no_grad()
def give_back(session: Sharded) -> None:
    """Whole parameters into the module; states into the user's optimizer, unless a budget has no room for them."""
    slices = session.slices
    whole = sum(b.padded * (b.vector.like.element_size() + slices.inner.each) for b in slices.trained)
    room = session.limit is None or whole <= session.limit
    for held in slices.rooms:
        held.leave()
    for b in slices.buckets:
        if room and b.slice is not None:
            for key, s in slices.inner.state.pop(b.slice, {}).items():
                _put(slices, session.user, b, key, s)
    if slices.stage < 3:
        if session.stale:
            slices.spread()
        for v in slices.vectors:
            for p in v.params:  # memory of their own again
                p.data = p.data.clone()


def _put(slices: Slices, optimizer: Any, b: Bucket, key: str, value: Any) -> None:
    """One state of a bucket's owners to each parameter's own."""
    if not _of_numbers(value):
        for piece in b.pieces:
            optimizer.state[b.vector.params[piece.tensor]].setdefault(
                key, value.clone() if isinstance(value, Tensor) else value
            )
        return
    if slices.stage == 0:
        whole = value
    else:
        whole = value.new_empty(b.padded)
        slices.wire.gather(value, list(whole.split(b.each))).wait()
    for piece in b.pieces:
        p = b.vector.params[piece.tensor]
        state = optimizer.state[p]
        if key not in state:
            state[key] = torch.zeros_like(p, dtype=value.dtype)
        state[key].view(-1)[piece.start : piece.stop] = whole[piece.at :][: piece.stop - piece.start]
