"""Assembled: one layer of a cache put together from a prefix, contexts that do not know each other, and a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from holdall.errors import BadInput
from holdall.kv.entries import Entries
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_BLOCK = 256  # query rows whose scores stand at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Assembled(Entries):
    """keys, values and positions are the prefix's and, behind it, the query's; the contexts stand beside them.

    context_keys [1, H, C, D], context_values [1, H, C, E]: of all contexts, one after the other, for all rows; they
    are shared between caches and never copied. context_positions [C] int32: their columns, which every context counts
    from the prefix's end; the hook gathers masks at them, so a sliding window stays true. temperature divides the
    scores of the contexts, and power multiplies the logarithm of their sum of exponentials.
    """

    context_keys: Tensor
    context_values: Tensor
    context_positions: Tensor
    temperature: float = 1.0
    power: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        b, h, own = self.keys.shape[:3]
        return b, h, own + self.context_keys.shape[2]

    @property
    def count(self) -> int:
        return self.shape[2]

    @property
    def original(self) -> int:
        rows = (
            self.elements // self.shape[0] * self.keys.element_size()
        )  # the contexts stand once for all rows
        return rows * (self.shape[0] * self.keys.shape[2] + self.context_keys.shape[2])

    @property
    def nbytes(self) -> int:
        beside = (self.context_keys, self.context_values, self.context_positions)
        return super().nbytes + sum(t.numel() * t.element_size() for t in beside)

    def where(self) -> Tensor:
        b, h, _ = self.shape
        assert self.positions is not None
        return torch.cat([self.positions, self.context_positions.expand(b, h, -1)], dim=2)

    def rows(self, change: Any) -> Self:
        own = {
            k: change(v)
            for k, v in vars(self).items()
            if hasattr(v, "index_select") and not k.startswith("context_")
        }
        return self.but(**own)

    def append(self, keys: Tensor, values: Tensor) -> Self:
        rows = keys.shape[0]
        mine = self if self.shape[0] == rows else self.rows(lambda t: t.expand(rows, *t.shape[1:]))
        return super(Assembled, mine).append(keys, values)

    def take(self, kept: Tensor) -> Self:
        raise BadInput("cache", "a method that drops entries", "assembled contexts as they are")

    def dense(self) -> tuple[Tensor, Tensor]:
        b = self.shape[0]
        keys = torch.cat([self.keys, self.context_keys.expand(b, -1, -1, -1)], dim=2)
        return keys, torch.cat([self.values, self.context_values.expand(b, -1, -1, -1)], dim=2)

    def weighted(self, scores: Tensor) -> Tensor:
        """Scores [..., T] whose one softmax is the merge of the contexts' attention with that of the rest.

        Merged by exp(power * LSE) as the contexts' weight, each of them has exp(score / temperature) times
        exp((power - 1) * LSE) of it: a shift of all contexts' scores, other for each query. In fp32.
        """
        own = self.keys.shape[2]
        there = scores[..., own:].float() / self.temperature
        total = there.logsumexp(-1, keepdim=True)
        shift = ((self.power - 1) * total).masked_fill(total.isinf(), 0.0)  # a query that sees no context
        return torch.cat([scores[..., :own].float(), there + shift], dim=-1)

    def attend(self, queries: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        scale = queries.shape[-1] ** -0.5 if scale is None else scale
        blocks = range(0, queries.shape[2], _BLOCK)
        done = [
            self._attend(
                queries[:, :, i : i + _BLOCK], None if mask is None else mask[:, :, i : i + _BLOCK], scale
            )
            for i in blocks
        ]
        return torch.cat(done, dim=2)

    def _attend(self, queries: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        own, asked = self.keys.shape[2], queries.float() * scale
        parts = [asked @ k.float().transpose(2, 3) for k in (self.keys, self.context_keys)]
        scores = torch.cat(parts, dim=-1)  # [B, H, N, T]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = self.weighted(scores).softmax(-1).nan_to_num()  # padding sees nothing at all
        out = weights[..., :own] @ self.values.float() + weights[..., own:] @ self.context_values.float()
        return out.to(queries.dtype)
