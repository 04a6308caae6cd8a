"""Operators that keep FP8 for their backward: linear layers with one scale, everything between them by sixteens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from holdall.training.coat_saved import Kept, maxima, narrow, one_scale, shelf, whole

E5M2 = torch.float8_e5m2
_CHEAP = (F.silu, F.gelu, F.mish, F.layer_norm, F.rms_norm)  # they would keep what goes in


def coarse(x: Tensor, kind: torch.dtype) -> Tensor:
    """x as FP8 with one scale has it."""
    flat = x.detach().reshape(-1)
    scale = one_scale(maxima(flat), kind)
    return (narrow(flat, scale, kind).float() * scale).to(x.dtype).view(x.shape)


class Linear(torch.autograd.Function):
    """y = x W^T + b. Keeps x in E4M3; gradients of y are rounded to E5M2 where `slopes`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, kept: Kept | None, flow: bool, slopes: bool
    ) -> Tensor:
        ctx.slopes, ctx.flow, ctx.kind, ctx.like = slopes, flow, x.dtype, kept and kept.like()
        ctx.save_for_backward(w, *(kept.parts() if kept else ()))
        if flow:
            x = x if kept is None else kept.whole()
            w = coarse(w, torch.float8_e4m3fn)
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (w, *kept), g = ctx.saved_tensors, gradients[0]
        if ctx.slopes:
            g = coarse(g, E5M2)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            used = coarse(w, torch.float8_e4m3fn) if ctx.flow else w
            dx = (g @ used.to(g.dtype)).to(ctx.kind)
        rows = g.reshape(-1, g.shape[-1])
        if ctx.needs_input_grad[1]:
            x = ctx.like(*kept).whole().to(g.dtype)
            dw = (rows.T @ x.reshape(-1, x.shape[-1])).to(w.dtype)
        if ctx.needs_input_grad[2]:
            db = rows.sum(0, dtype=torch.float32).to(w.dtype)
        return dx, dw, db, None, None, None


class Again(torch.autograd.Function):
    """Any cheap operator: keeps its inputs in FP8 by sixteens, and is done again from these in backward."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], kept: list[Kept], flow: bool, n: int, *given: Tensor
    ) -> Tensor:
        ctx.run, ctx.like = run, [k.like() for k in kept]
        kind = given[0].device.type
        on = torch.is_autocast_enabled(kind)
        ctx.autocast = kind, torch.get_autocast_dtype(kind), on
        ctx.save_for_backward(*given[n:], *(t for k in kept for t in k.parts()))
        return run(*([k.whole() for k in kept] if flow else given[:n]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        kind, dtype, on = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype, on):
            many = len(ctx.saved_tensors) - 2 * len(ctx.like)
            weights, kept = ctx.saved_tensors[:many], ctx.saved_tensors[many:]
            pairs = zip(ctx.like, kept[::2], kept[1::2], strict=True)
            inputs = [like(*pair).whole().requires_grad_() for like, *pair in pairs]
            y = ctx.run(*inputs)
            wanted = [*inputs, *weights]
            needed = [t for t, need in zip(wanted, ctx.needs_input_grad[4:], strict=True) if need]
            found = iter(torch.autograd.grad(y, needed, gradients[0], allow_unused=True))
        return None, None, None, None, *(next(found) if need else None for need in ctx.needs_input_grad[4:])


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, *, flow: bool, slopes: bool) -> Tensor:
    """As torch's, within a block."""
    here = shelf()
    if here is None or not _needed(x, w, b):
        return F.linear(x, w, b)
    kept = here.keep(x, together=True) if w.requires_grad or flow else None
    y: Tensor = Linear.apply(x, w, b, kept, flow, slopes)
    return y


def again(run: Callable[..., Tensor], inputs: list[Tensor], weights: list[Tensor], flow: bool) -> Tensor:
    """run(*inputs), which may use weights; its output's maxima are told to who comes next."""
    here = shelf()
    if here is None or not _needed(*inputs, *weights):
        return run(*inputs)
    kept = [here.keep(x, together=False) for x in inputs]
    y: Tensor = Again.apply(run, kept, flow, len(inputs), *inputs, *weights)
    here.tell(y)
    return y


def _needed(*given: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)


class Operators(TorchFunctionMode):
    """Within it torch's linear layers, norms, activations and attention are those above, whoever calls them."""

    def __init__(self, flow: bool, slopes: bool):
        super().__init__()
        self.flow, self.slopes = flow, slopes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.linear:
            return linear(*args, **named, flow=self.flow, slopes=self.slopes)
        if func in _CHEAP and args and not named.get("inplace") and args[1:] != (True,):
            rest = args[1:]  # what is kept to be done again holds no input
            weights = [t for t in (*rest, *named.values()) if isinstance(t, Tensor)]
            return again(lambda x: func(x, *rest, **named), [args[0]], weights, self.flow)
        if func is F.scaled_dot_product_attention:
            return self._attention(args, named)
        if func is F.multi_head_attention_forward:
            with whole():
                return func(*args, **named)
        return func(*args, **named)

    def _attention(self, args: Any, named: Any) -> Tensor:
        """Done again from what was kept: with kept sums of exact scores, scores that were rounded would not add up."""
        given = [*args, *(named[n] for n in ("query", "key", "value") if n in named)]
        (q, k, v), rest = given[:3], given[3:]
        named = {n: x for n, x in named.items() if n not in ("query", "key", "value")}
        drops = named.get("dropout_p", rest[1] if len(rest) > 1 else 0.0)
        learnt = any(isinstance(t, Tensor) and t.requires_grad for t in (*rest, *named.values()))
        if drops or learnt:  # it would drop others the second time
            with whole():
                return F.scaled_dot_product_attention(q, k, v, *rest, **named)
        return again(lambda *x: F.scaled_dot_product_attention(*x, *rest, **named), [q, k, v], [], self.flow)
