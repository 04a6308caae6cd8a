"""The one hook: a key tensor that tells its layer who attends to it.

A transformers attention module hands its new keys and values to `Cache.update` and attends to what comes back; the
queries never pass through the cache. So the keys that come back are `Watched`: a tensor like any other, which is
told by torch itself (`__torch_function__`) when a function is called on it. `scaled_dot_product_attention` and the
products of the eager path then run here, with the rotated queries, the scale and the mask in sight. Nothing is
patched or registered, neither in the model nor globally, and the hook is gone when the tensor is.

It also lets heads keep different columns, in whatever form a method keeps them. transformers makes its masks for
all columns that went by; they are gathered here at the columns that each head still has, so padding, sliding windows
and custom masks stay true. As long as nothing was dropped, the very call that was made is passed on, and the result is
the same bit for bit. Afterwards keys and values are stand-ins that have a shape but no memory: they pass through the
model's reshapes at no cost, and attention is computed here on what the entries really hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from holdall.errors import BadInput
from holdall.kv.entries import Entries

Finish = Callable[[Tensor, Tensor | None, float | None], None]

_T = torch.Tensor
_PRODUCTS = {torch.matmul, _T.matmul, _T.__matmul__, torch.bmm, _T.bmm, torch.baddbmm, _T.baddbmm}
_MOVES = {
    _T.__getitem__, _T.expand, _T.reshape, torch.reshape, _T.view, _T.transpose, torch.transpose, _T.permute,
    _T.contiguous, _T.float, _T.to, _T.type, _T.unsqueeze, _T.repeat_interleave, torch.repeat_interleave,
}  # fmt: skip
_SCALES = {_T.mul, _T.__mul__, torch.mul, _T.__rmul__}
_SUMS = {_T.add, _T.__add__, torch.add, _T.__radd__, _T.add_}
_SOFTMAX = {functional.softmax, torch.softmax, _T.softmax}


class Step:
    """One layer's attention in one forward pass: `new` queries over `entries`, the new ones included.

    finish(queries [B, G*H, new, D], mask, scale) is called once the attention has been seen.
    """

    def __init__(self, entries: Entries, new: int, finish: Finish):
        self.entries, self.new, self._finish = entries, new, finish
        self.whole = entries.whole
        self._query: Tensor | None = None
        self._mask: Tensor | None = None
        self._scale: float | None = None

    def given(self) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to, watched."""
        x = self.entries
        if self.whole:
            return _mark(x.keys, Keys, self), x.values
        keys, values = (t.new_empty((*x.shape, t.shape[-1]), device="meta") for t in (x.keys, x.values))
        return _mark(keys, Keys, self), _mark(values, Values, self)

    def done(self, query: Tensor, mask: Tensor | None, scale: float | None) -> None:
        self._query = self._mask = None
        self._finish(query.reshape(self.entries.shape[0], -1, self.new, query.shape[-1]), mask, scale)

    def fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """`scaled_dot_product_attention`, over what each head still has."""
        if self.whole:
            attend = functional.scaled_dot_product_attention
            out = attend(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        else:
            b, h, t = self.entries.shape
            asked = query.reshape(b, h, -1, query.shape[-1])  # [B, H, G*new, D]
            mask = self.gathered(attn_mask)  # [B, H, new, T]
            if mask is not None and self.new > 1:
                groups = asked.shape[2] // self.new
                mask = mask[:, :, None].expand(b, h, groups, self.new, t).reshape(b, h, -1, t)
            out = self.entries.attend(asked, mask, scale)
            out = out.reshape(*query.shape[:-1], out.shape[-1])
        self.done(query, attn_mask, scale)
        return out

    def product(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The eager path's queries times keys."""
        self._query = query = next(a for a in args[-2:] if not isinstance(a, Watched))
        alpha = kwargs.get("alpha")  # of baddbmm
        self.scaled(alpha)
        if self.whole:
            return _mark(func(*_plain(args), **kwargs), Scores, self)
        scores = self._grouped(query) @ self.entries.dense()[0].transpose(2, 3)
        scores = scores.reshape(*query.shape[:-1], scores.shape[-1])
        return _mark(scores if alpha is None else scores * alpha, Scores, self)

    def gathers(self, weights: Tensor) -> Tensor:
        """The eager path's weights times values, where something was dropped."""
        out = self._grouped(weights) @ self.entries.dense()[1]
        return out.reshape(*weights.shape[:-1], out.shape[-1])

    def _grouped(self, rows: Tensor) -> Tensor:
        """[B, H, G*new, ...]: the rows of a head's group one after the other."""
        b, h, _ = self.entries.shape
        return rows.reshape(b, h, -1, rows.shape[-1])

    def scaled(self, factor: Any) -> None:
        if self._scale is None and isinstance(factor, int | float):
            self._scale = float(factor)

    def masked(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The eager path's scores plus mask."""
        self._mask = mask
        if self.whole:
            return scores + mask
        mine = self.gathered(mask)
        assert mine is not None
        return scores + mine.repeat_interleave(scores.shape[1] // mine.shape[1], dim=1)

    def softened(self, scores: Tensor) -> Tensor:
        """The eager path's scores as they are before the softmax."""
        assert self._query is not None
        if self.entries.bias is not None or not self.whole:
            b, h, t = self.entries.shape
            scores = self.entries.weighted(scores.reshape(b, h, -1, t)).reshape(scores.shape)
        self.done(self._query, self._mask, self._scale)
        return scores

    def gathered(self, mask: Tensor | None) -> Tensor | None:
        """The mask over all columns, at the columns that each head has: [B, H, new, T]."""
        if mask is None and self.new == 1:
            return None
        where = self.entries.where()[:, :, None]  # [B, H, 1, T]
        if mask is None:
            at = torch.arange(self.entries.tokens - self.new, self.entries.tokens, device=where.device)
            return where <= at[:, None]
        b, h, _, t = where.shape
        if mask.shape[1] != 1 or mask.shape[-1] != self.entries.tokens:
            wanted = f"[batch, 1, {self.new}, {self.entries.tokens}]: one for all heads, over all tokens"
            raise BadInput("attention mask", f"shape {tuple(mask.shape)}", wanted)
        rows = mask.expand(b, h, self.new, mask.shape[-1])
        return rows.gather(3, where.long().expand(b, h, self.new, t))


class Watched(Tensor):
    """A tensor that tells its `step` what is done with it."""

    step: Step

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Watched)]
        with torch._C.DisableTorchFunctionSubclass():
            if not given:  # inside a list, as for torch.cat: a plain tensor from here on
                return func(*args, **kwargs)
            return given[0].told(func, args, kwargs)

    def told(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What `func` gives, with this tensor among its arguments."""
        return func(*_plain(args), **kwargs)


class Keys(Watched):
    """Keys: followed through reshapes up to the product with the queries."""

    def told(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self.step.fused(*_plain(args), **{k: _plain([v])[0] for k, v in kwargs.items()})
        if func in _PRODUCTS:
            return self.step.product(func, args, kwargs)
        out = func(*args, **kwargs)
        return _mark(out, Keys, self.step) if func in _MOVES else out


class Values(Watched):
    """Stand-ins for values, followed through reshapes up to the product with the weights."""

    def told(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in _PRODUCTS:
            return self.step.gathers(next(a for a in args[-2:] if not isinstance(a, Watched)))
        out = func(*args, **kwargs)
        return _mark(out, Values, self.step) if func in _MOVES else out


class Scores(Watched):
    """Scores of the eager path: followed through scaling, capping and masking up to the softmax."""

    def told(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in _SOFTMAX:
            return func(self.step.softened(_plain([self])[0]), *args[1:], **kwargs)
        other = next((a for a in args if a is not self), None)
        if func in _SUMS and isinstance(other, Tensor):
            return _mark(self.step.masked(_plain([self])[0], other), Scores, self.step)
        if func in _SCALES:
            self.step.scaled(other)
        out = func(*args, **kwargs)
        return _mark(out, Scores, self.step) if isinstance(out, Tensor) and out.is_floating_point() else out


def _mark(tensor: Tensor, kind: type[Watched], step: Step) -> Watched:
    marked = tensor.as_subclass(kind)
    marked.step = step
    return marked


def _plain(values: Sequence[Any]) -> list[Any]:
    return [v.as_subclass(Tensor) if isinstance(v, Watched) else v for v in values]
