"""One layer of the cache: its entries, and what is remembered of a prompt until the method has judged it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries, chosen
from holdall.kv.hook import Step


@dataclass
class Memory:
    """What a method may look at, kept between the chunks of a prompt and dropped when it has been judged."""

    queries: Tensor | None  # [B, G*H, W, D]
    columns: Tensor | None  # [B, W], -1: no query
    shown: Tensor | None  # [B, tokens], what the latest query may look at; None: everything
    scale: float | None


class LayerState:
    """Entries of one layer, with what the hook has seen of the prompt that is being read."""

    def __init__(self, layer: int):
        self.layer = layer
        self.entries: Entries | None = None
        self.memory: Memory | None = None
        self.step: Step | None = None
        self.due = False  # the prompt is complete and waits for all layers to be judged together
        self.spent: tuple[int, int] | None = None  # the last budget in bytes, and of how many

    def append(self, keys: Tensor, values: Tensor) -> Entries:
        """Hold newer keys and values, [B, H, T, D]."""
        if self.step is not None:
            self.step = None
            wanted = 'an implementation that Holdall can follow: attn_implementation="sdpa" or "eager"'
            raise BadInput("attention", f"layer {self.layer} attended out of sight", wanted)
        keys, values = keys.detach(), values.detach()
        if self.entries is None:
            self.entries = Entries(keys=keys, values=values, layer=self.layer)
        else:
            self.entries = self.entries.append(keys, values)
        return self.entries

    def remember(self, query: Tensor, mask: Tensor | None, scale: float | None, method: KVSelector) -> None:
        """Note the real queries of [B, G*H, new, D] that the method asks for, and what the latest one may see."""
        assert self.entries is not None
        b, new, tokens = query.shape[0], query.shape[2], self.entries.tokens
        columns = torch.arange(tokens - new, tokens, device=query.device).expand(b, new)
        shown = None
        if mask is not None:
            seen = _seen(mask).expand(b, new, tokens)
            real = seen.diagonal(tokens - new, 1, 2)  # [B, new]: padding does not see itself
            columns = columns.masked_fill(~real, -1)
            latest = columns.argmax(1)  # [B]
            shown = seen[torch.arange(b, device=seen.device), latest].clone()  # [B, tokens]
            self._find_reach(seen, real, columns, shown)
        queries, at = self._asked(query.detach(), columns, *method.asks(tokens))
        self.memory = Memory(queries, at, shown, scale)

    def _find_reach(self, seen: Tensor, real: Tensor, columns: Tensor, shown: Tensor) -> None:
        """A sliding window shows in the mask: the latest query no longer sees what the first one saw."""
        earliest = seen[torch.arange(len(real), device=real.device), real.int().argmax(1)]  # [B, tokens]
        start = shown.int().argmax(1)  # [B] the first column that the latest query sees
        slid = real.any(1) & (earliest.int().argmax(1) < start)
        if slid.any():
            assert self.entries is not None
            reach = int((columns.amax(1) - start)[slid].max())
            self.entries = self.entries.but(reach=reach)

    def _asked(
        self, query: Tensor, columns: Tensor, last: int, share: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """The queries that a method asks for, of all chunks so far, and their columns."""
        if not last and not share:
            return None, None
        before = self.memory
        if before is not None and before.queries is not None and before.columns is not None:
            query = torch.cat([before.queries, query], dim=2)
            columns = torch.cat([before.columns, columns], dim=1)
        kept, columns = chosen(columns, last, share)
        if kept.shape[1] == query.shape[2]:  # all of them
            return query, columns
        at = kept[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        return query.gather(2, at), columns

    @torch.no_grad()
    def follow(
        self,
        query: Tensor,
        mask: Tensor | None,
        scale: float | None,
        method: KVSelector,
        budget: Budget | None,
    ) -> None:
        """Let the method judge generated tokens too."""
        x = self.entries
        assert x is not None
        b, new, tokens = query.shape[0], query.shape[2], x.tokens
        columns = torch.arange(tokens - new, tokens, device=query.device).expand(b, new)
        valid = None
        if mask is not None:
            valid = _seen(mask)[:, -1:].expand(b, x.shape[1], tokens).gather(2, x.where().long())
        x = x.but(queries=query.detach(), query_positions=columns, valid=valid, scale=scale)
        self.entries = method.settle(x, budget).held()

    def judged(self) -> Entries:
        """The entries with everything that a method may look at."""
        assert self.entries is not None
        memory, x = self.memory, self.entries
        if memory is None:
            return x
        valid = None
        if memory.shown is not None:
            tokens = memory.shown.shape[1]
            valid = memory.shown[:, None].expand(-1, x.shape[1], tokens).gather(2, x.where().long())
        return x.but(queries=memory.queries, query_positions=memory.columns, valid=valid, scale=memory.scale)

    @torch.no_grad()
    def compress(self, method: KVSelector, budget: Budget | None) -> None:
        """Keep what the method chooses within the budget, and free the rest."""
        x = self.judged().within_reach()
        x = x if method.tiered else x.plain()
        self.entries = method.select(x, budget).held()
        self.memory, self.due = None, False
        self.spent = None if budget is None or budget.bytes is None else (budget.bytes, x.original)

    def copy(self) -> LayerState:
        """The same; tensors are shared, because nothing here ever writes into one."""
        other = LayerState(self.layer)
        other.entries, other.due, other.spent = self.entries, self.due, self.spent
        other.memory = None if self.memory is None else dataclasses.replace(self.memory)
        return other

    def rows(self, change: Any) -> None:
        """`change` applied to the batch axis of everything held."""
        if self.entries is not None:
            self.entries = self.entries.rows(change)
        if self.memory is not None:
            held = {k: change(v) for k, v in vars(self.memory).items() if isinstance(v, Tensor)}
            self.memory = dataclasses.replace(self.memory, **held)

    def drop_last(self, tokens: int) -> None:
        """Forget the latest tokens, which every head still has."""
        assert self.entries is not None
        x = self.entries
        where = None if x.positions is None else x.positions[:, :, :-tokens].clone()
        keys, values = x.keys[:, :, :-tokens].clone(), x.values[:, :, :-tokens].clone()
        self.entries = x.but(keys=keys, values=values, positions=where, seen=x.tokens - tokens)


def _seen(mask: Tensor) -> Tensor:
    """[B, new, tokens]: where a query may look, from transformers' boolean or additive mask."""
    flat = mask[:, 0]
    return flat if flat.dtype == torch.bool else flat > torch.finfo(flat.dtype).min / 2
