"""Modules whose weights are read from a shared array whenever they are used, and are gone again afterwards.

A module gets a class of its own, in which `weight` is a property. Linears and embeddings are computed tile by tile; all
others hold one tensor while they run, and read it once more for the backward pass instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch

from holdall.errors import BadInput
from holdall.weights.sharing_map import Segment
from holdall.weights.sharing_store import TILE, Sharing

once = torch.autograd.function.once_differentiable


def attach(module: torch.nn.Module, sharing: Sharing, segments: dict[str, Segment]) -> None:
    """Make these parameters of the module (name -> segment) ones that are read from psi."""
    odd = [k for k in ("max_norm", "scale_grad_by_freq", "sparse") if getattr(module, k, None)]
    if odd:
        raise BadInput(
            type(module).__name__, f"{odd[0]} set", "an embedding without it, where tables are shared"
        )
    module.__dict__.update(_sharing=sharing, _segments=dict(segments), _order=list(module._parameters))
    for name in segments:
        del module._parameters[name]
    cls: Any = type(module)
    module.__class__ = _shared_class(cls, tuple(segments))


def detach(module: torch.nn.Module, own: dict[str, torch.nn.Parameter]) -> None:
    """Give the module its own class and parameters back; tied ones are found in `own` by the tensor's name."""
    sharing, segments = (module.__dict__.pop(k) for k in ("_sharing", "_segments"))
    module.__class__ = type(module).__mro__[1]
    order = module.__dict__.pop("_order")
    for name, segment in segments.items():
        module.register_parameter(
            name, own.setdefault(segment.name, torch.nn.Parameter(_dense(sharing, segment)))
        )
    module._parameters = {name: module._parameters[name] for name in order}


def attached(module: torch.nn.Module) -> bool:
    return "_segments" in module.__dict__


@cache
def _shared_class(cls: type[Any], names: tuple[str, ...]) -> type[Any]:
    body: dict[str, Any] = {name: property(partial(_weight, name=name)) for name in names}
    if cls.forward is torch.nn.Linear.forward and "weight" in names:  # its bias may be shared alone
        body["forward"] = lambda self, x: _Linear.apply(
            x, self._sharing.psi, self.bias, self._sharing, self._segments["weight"]
        )
    elif cls.forward is torch.nn.Embedding.forward:
        body["forward"] = lambda self, ids: _Rows.apply(
            ids, self._sharing.psi, self.padding_idx, self._sharing, self._segments["weight"]
        )
    else:

        def forward(self: Any, *args: Any, **named: Any) -> Any:
            with _read_again(self._sharing):
                return cls.forward(self, *args, **named)

        body["forward"] = forward
    return type(f"Shared{cls.__name__}", (cls,), body)


def _dense(sharing: Sharing, segment: Segment) -> torch.Tensor:
    psi = sharing.psi.dtype  # a module that was given another type has it in psi
    return (
        sharing.read(segment)
        .view(segment.shape)
        .to(getattr(torch, segment.dtype) if psi == torch.float32 else psi)
    )


def _weight(module: Any, name: str) -> torch.Tensor:
    sharing, segment = module._sharing, module._segments[name]
    w = _Read.apply(sharing.psi, sharing, segment)
    if sharing.watched is not None:
        sharing.watched[w.untyped_storage().data_ptr()] = (w, segment)
    return w


class _Stale(RuntimeError):
    def __init__(self) -> None:
        super().__init__("the shared array was changed between the forward and the backward pass")


@contextmanager
def _read_again(sharing: Sharing) -> Iterator[None]:
    """What autograd would keep of the weights is read from psi once more when it is needed."""
    before, sharing.watched = sharing.watched, dict(sharing.watched or {})
    watched, version = sharing.watched, sharing.psi._version

    def pack(t: torch.Tensor) -> Any:
        found = watched.get(t.untyped_storage().data_ptr())
        return (found[1], t.shape, t.stride(), t.storage_offset()) if found else t

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        if sharing.psi._version != version:
            raise _Stale
        segment, shape, stride, offset = kept
        return _dense(sharing, segment).as_strided(shape, stride, offset)

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        watched.clear()
        sharing.watched = before


class _Read(torch.autograd.Function):
    """A whole tensor; its gradient goes to psi at once."""

    @staticmethod
    def forward(ctx: Any, psi: torch.Tensor, sharing: Sharing, segment: Segment) -> torch.Tensor:
        ctx.sharing, ctx.segment = sharing, segment
        return _dense(sharing, segment)

    @staticmethod
    @once
    def backward(ctx: Any, given: torch.Tensor) -> tuple[None, None, None]:
        ctx.sharing.add(ctx.segment, given)
        return None, None, None


class _Linear(torch.autograd.Function):
    """x W^T + b, some rows of W at a time; the rows are read again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Any, psi: Any, bias: Any, sharing: Sharing, segment: Segment) -> torch.Tensor:
        ctx.sharing, ctx.segment, ctx.version = sharing, segment, psi._version
        ctx.save_for_backward(x)
        flat = x.reshape(-1, segment.shape[1])
        out = flat.new_empty(len(flat), segment.shape[0])
        for a, b in _cuts(segment):
            w, part = _tile(sharing, segment, a, b, flat).T, out[:, a:b]
            if bias is None:
                torch.mm(flat, w, out=part)
            else:  # not added afterwards: the sums would be rounded otherwise than those of nn.Linear
                torch.addmm(bias[a:b].to(flat.dtype), flat, w, out=part)
        return out.view(*x.shape[:-1], segment.shape[0])

    @staticmethod
    @once
    def backward(ctx: Any, given: torch.Tensor) -> tuple[Any, ...]:
        (x,), sharing, segment = ctx.saved_tensors, ctx.sharing, ctx.segment
        if sharing.psi._version != ctx.version:
            raise _Stale
        flat, g = x.reshape(-1, segment.shape[1]), given.reshape(-1, segment.shape[0])
        to_x, to_w, to_bias, *_ = ctx.needs_input_grad
        back = torch.zeros_like(flat) if to_x else flat[:0]
        for a, b in _cuts(segment):
            if to_x:
                back.addmm_(g[:, a:b], _tile(sharing, segment, a, b, flat))
            if to_w:
                sharing.add(segment, g[:, a:b].T @ flat, a * segment.shape[1])
        return back.view_as(x) if to_x else None, None, g.sum(0) if to_bias else None, None, None


class _Rows(torch.autograd.Function):
    """Rows of a table, nothing else of it."""

    @staticmethod
    def forward(
        ctx: Any, ids: Any, psi: Any, padding: Any, sharing: Sharing, segment: Segment
    ) -> torch.Tensor:
        ctx.sharing, ctx.segment, ctx.padding = sharing, segment, padding
        ctx.save_for_backward(ids)
        rows = sharing.read_rows(segment, _checked(ids, segment)).view(*ids.shape, segment.shape[1])
        return rows.to(getattr(torch, segment.dtype)) if psi.dtype == torch.float32 else rows

    @staticmethod
    @once
    def backward(ctx: Any, given: torch.Tensor) -> tuple[None, ...]:
        (ids,), segment = ctx.saved_tensors, ctx.segment
        flat, g = ids.reshape(-1), given.reshape(-1, segment.shape[1])
        if ctx.padding is not None:
            flat, g = flat[flat != ctx.padding], g[flat != ctx.padding]
        ctx.sharing.add_rows(segment, flat, g)
        return None, None, None, None, None


def _checked(ids: torch.Tensor, segment: Segment) -> torch.Tensor:
    flat = ids.reshape(-1)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < segment.shape[0]:
        raise IndexError(
            f"{segment.name} has {segment.shape[0]} rows; ids reach from {flat.min()} to {flat.max()}"
        )
    return flat


def _cuts(segment: Segment) -> Iterator[tuple[int, int]]:
    rows = max(1, TILE // segment.shape[1])
    for a in range(0, segment.shape[0], rows):
        yield a, min(a + rows, segment.shape[0])


def _tile(sharing: Sharing, segment: Segment, a: int, b: int, like: torch.Tensor) -> torch.Tensor:
    wide = segment.shape[1]
    return sharing.read(segment, a * wide, (b - a) * wide).view(b - a, wide).to(like.dtype)
