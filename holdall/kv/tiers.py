"""Tiers: entries of which some are held as they are and the others in few bits, all in one cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from holdall.kv.affine import ByChannel, ByToken
from holdall.kv.entries import Entries
from holdall.optional import lazy
from holdall.parts.quant import pack, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

GONE = 3  # in the map: a column that is not held any more
_FEW = 128  # queries of a head up to which codes are not unpacked
_NEVER = -1e30  # a score that gets nothing, yet can be computed with


@dataclass(frozen=True, eq=False, kw_only=True)
class Tier:
    """N packed entries of each head, ascending: keys and values, each cut in slices of channels."""

    keys: tuple[ByChannel, ...]
    values: tuple[ByToken, ...]

    @cached_property
    def count(self) -> int:
        return self.keys[0].count

    @cached_property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def tensors(self) -> list[Tensor]:
        return [t for part in (*self.keys, *self.values) for t in part.tensors().values()]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Tier:
        return Tier(
            keys=tuple(k.changed(change) for k in self.keys),
            values=tuple(v.changed(change) for v in self.values),
        )

    def joined(self, other: Tier) -> Tier:
        """With the entries of `other` behind."""
        return Tier(
            keys=tuple(a.joined(b) for a, b in zip(self.keys, other.keys, strict=True)),
            values=tuple(a.joined(b) for a, b in zip(self.values, other.values, strict=True)),
        )

    def sorted(self, order: Tensor) -> Tier:
        """In another order [B, H, N]."""
        return Tier(
            keys=tuple(k.at(order) for k in self.keys), values=tuple(v.at(order) for v in self.values)
        )

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Keys [B, H, N, D] and values [B, H, N, E], float32."""
        return torch.cat([k.numbers() for k in self.keys], 3), torch.cat(
            [v.numbers() for v in self.values], 3
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Tiered(Entries):
    """Entries whose `keys` and `values` are those held in full, the newest at the end; `tiers` hold the others.

    which: the tier of each column from `first` on that was judged, two bits a column and head (0: in full, GONE: not
    held), packed; `judged` are their number, and later columns are all held in full. positions are not used. bias and
    mass, where there are any, stand in the order of the columns, as do `where` and `dense`. heat [B, H, F], the
    attention so far of those in full, is held where a method goes on judging them; got [B, H, F], what they got from
    the latest queries, is then shown to it and forgotten.
    """

    tiers: tuple[Tier, ...] = ()
    which: Tensor | None = None
    judged: int = 0
    heat: Tensor | None = None
    got: Tensor | None = None

    @property
    def full(self) -> int:
        """Entries of a head that are held in full."""
        return self.keys.shape[2]

    @cached_property
    def count(self) -> int:
        return self.full + sum(t.count for t in self.tiers)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        b, h, _ = self.keys.shape[:3]
        return b, h, self.count

    @property
    def whole(self) -> bool:
        return False

    @property
    def nbytes(self) -> int:
        beside = sum(t.numel() * t.element_size() for t in (self.which, self.heat) if t is not None)
        return super().nbytes + sum(t.nbytes for t in self.tiers) + beside

    @property
    def buffered(self) -> int:
        """Newest entries that were not judged yet."""
        return self.tokens - self.first - self.judged

    def packed(self) -> list[Tensor]:
        """Every tensor that is held beside the fields of all entries."""
        return (
            [t for tier in self.tiers for t in tier.tensors()]
            + ([] if self.which is None else [self.which])
            + ([] if self.heat is None else [self.heat])
        )

    def map(self) -> Tensor:
        """The tier of each judged column, GONE included, [B, H, judged] uint8."""
        if self.which is None:
            return torch.zeros(*self.keys.shape[:2], 0, dtype=torch.uint8, device=self.keys.device)
        return unpack(self.which, 2, self.judged)

    def tier_of(self) -> Tensor:
        """The tier of each entry, [B, H, T] uint8."""
        found, (b, h, t) = self.map(), self.shape
        if t < self.tokens - self.first:
            found = found[found != GONE].view(b, h, -1)
        return torch.nn.functional.pad(found, (0, t - found.shape[2]))

    def order(self) -> Tensor:
        """Where each stored entry belongs: those in full, then tier by tier, as places in `where`, [B, H, T]."""
        return self.tier_of().argsort(dim=-1, stable=True)

    def where(self) -> Tensor:
        b, h, t = self.shape
        columns = torch.arange(self.first, self.tokens, dtype=torch.int32, device=self.keys.device)
        if t == len(columns):
            return columns.expand(b, h, t)
        held = torch.nn.functional.pad(self.map() != GONE, (0, self.buffered), value=True)  # [B, H, columns]
        return columns.expand(b, h, -1)[held].view(b, h, t)

    def dense(self) -> tuple[Tensor, Tensor]:
        order = self.order()[..., None]
        stored = [(self.keys, self.values), *(t.numbers() for t in self.tiers)]
        out = []
        for parts in zip(*stored, strict=True):
            flat = torch.cat([p.to(self.keys.dtype) for p in parts], dim=2)
            out.append(torch.empty_like(flat).scatter_(2, order.expand_as(flat), flat))
        return out[0], out[1]

    def plain(self) -> Entries:
        keys, values = self.dense()
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Entries)}
        gone = self.count < self.tokens - self.first
        fields |= {"keys": keys, "values": values, "positions": self.where() if gone else None}
        return Entries(**fields)

    def take(self, kept: Tensor) -> Any:
        return self.plain().take(kept)

    def append(self, keys: Tensor, values: Tensor) -> Self:
        new, more = keys.shape[2], dict[str, Any](got=None)
        for name in ("bias", "mass"):
            if (held := getattr(self, name)) is not None:
                more[name] = torch.nn.functional.pad(held, (0, new))
        if self.heat is not None:
            more["heat"] = torch.nn.functional.pad(self.heat, (0, new))
        return self.but(
            keys=torch.cat([self.keys, keys], dim=2), values=torch.cat([self.values, values], dim=2),
            seen=self.tokens + new, **more,
        )  # fmt: skip

    def held(self) -> Self:
        return self.but(queries=None, query_positions=None, valid=None, got=None)

    def copy(self) -> Self:
        return super().copy().but(tiers=tuple(t.changed(torch.clone) for t in self.tiers))

    def rows(self, change: Any) -> Self:
        return super().rows(change).but(tiers=tuple(t.changed(change) for t in self.tiers))

    def within_reach(self) -> Any:
        """Without entries that no later token can look at: what is left is judged anew."""
        oldest = self.first if self.reach is None else self.tokens - self.reach
        if oldest <= self.first:
            return self
        plain = self.plain()
        dead = int((plain.where() < oldest).sum(-1).min())
        alive = torch.arange(dead, self.count, device=self.keys.device).expand(*self.shape[:2], -1)
        return plain.take(alive) if plain.positions is not None else plain.within_reach()

    def shares(self, queries: Tensor, scale: float | None) -> Tensor:
        """The attention of queries [B, G*H, N, D] that goes to the entries held in full, [B, H, G*N, F] float32."""
        queries = queries.reshape(*self.shape[:2], -1, queries.shape[-1])
        asked = queries.float() * (queries.shape[-1] ** -0.5 if scale is None else scale)
        found = [asked @ self.keys.float().transpose(2, 3)]
        if queries.device.type == "cpu":
            from holdall.kv.packed_attention import key_scores

            found += [key_scores(t.keys, asked) for t in self.tiers]
        else:
            found += [asked @ t.numbers()[0].transpose(2, 3) for t in self.tiers]
        more = torch.cat(found, dim=3)
        if self.valid is not None:
            shown = self.shown().gather(2, self.order())
            more = more.masked_fill(~shown[:, :, None], -torch.inf)
        return more.softmax(-1)[..., : self.full]

    def attend(self, queries: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        if queries.shape[2] > _FEW or queries.device.type != "cpu":
            return super().attend(queries, mask, scale)
        from holdall.kv.packed_attention import attend

        more = mask
        if mask is not None and mask.dtype == torch.bool:
            more = torch.zeros(mask.shape).masked_fill_(~mask, _NEVER)
        if self.bias is not None:
            bias = self.bias[:, :, None].float()
            more = bias if more is None else more + bias
        if more is not None:
            b, h, n, _ = queries.shape
            order = self.order()[:, :, None].expand(b, h, n, self.count)
            more = more.expand(b, h, n, self.count).float().gather(3, order).clamp_(min=_NEVER)
        heated = self.heat is not None
        out, got = attend(self.keys, self.values, self.tiers, queries, more, scale, heated)
        object.__setattr__(self, "got", got)
        return out


def pack_map(tier: Tensor) -> Tensor:
    """The map of columns [B, H, C], in two bits each."""
    return pack(tier.to(torch.uint8), 2)
