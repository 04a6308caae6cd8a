"""Moving entries between tiers, and how many of them a budget allows on the better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from holdall.budget import Budget
from holdall.errors import BadInput
from holdall.kv.base import KVSelector
from holdall.kv.entries import Entries
from holdall.kv.tiers import GONE, Tier, Tiered, pack_map
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


class Make(Protocol):
    """Packs the chosen entries [B, H, N] of tier 1 or 2; `behind` is the tier that they will join."""

    def __call__(self, tier: int, x: Entries, behind: Tier | None) -> Tier: ...


def chosen(x: Entries, kept: Tensor) -> Entries:
    """Keys, values and what is shown of the entries at `kept` [B, H, N], zeros where nothing is shown."""
    at = kept[..., None]
    keys, values = (t.gather(2, at.expand(*kept.shape, t.shape[3])) for t in (x.keys, x.values))
    if x.valid is None:
        return Entries(keys=keys, values=values, queries=x.queries, scale=x.scale)
    shown = x.shown().gather(2, kept)
    keys, values = (t.masked_fill(~shown[..., None], 0) for t in (keys, values))
    return Entries(keys=keys, values=values, valid=shown, queries=x.queries, scale=x.scale)


def places(tier: Tensor, index: int) -> Tensor:
    """Where `tier` [B, H, T] is `index`, ascending; the same number in every head, [B, H, N]."""
    b, h, _ = tier.shape
    return (tier == index).nonzero()[:, 2].view(b, h, -1)


def split(x: Entries, tier: Tensor, make: Make) -> Tiered:
    """Entries in tiers: `tier` [B, H, T] says 0 (in full), 1 or 2 of each; every head has as many of each."""
    finite(x)
    full = places(tier, 0)
    held = chosen(x, full)
    columns, b, h = x.tokens - x.first, *x.shape[:2]
    which = tier
    if x.count < columns:  # something was dropped before
        which = torch.full((b, h, columns), GONE, dtype=tier.dtype, device=tier.device)
        which.scatter_(2, (x.where() - x.first).long(), tier)
    return Tiered(
        keys=held.keys, values=held.values, bias=None if x.bias is None else x.bias.clone(), valid=x.valid,
        tiers=tuple(make(i, chosen(x, places(tier, i)), None) for i in (1, 2)), which=pack_map(which),
        judged=columns, first=x.first, seen=x.tokens, reach=x.reach, layer=x.layer, scale=x.scale,
        query_positions=x.query_positions,
    )  # fmt: skip


def extend(x: Tiered, moves: Tensor, make: Make) -> Tiered:
    """Entries held in full go to the tiers that `moves` [B, H, F] names (0: they stay), behind those already there.

    Where an entry stands before one of its new tier, that tier is sorted anew; its keys must then have one part.
    """
    full = x.but(tiers=(), which=None, judged=0, first=0, seen=x.full, bias=None, valid=in_full(x))
    tier = x.tier_of()
    where = places(tier, 0)  # the places of the entries in full
    tiers = []
    for i, old in enumerate(x.tiers, 1):
        moved = places(moves, i)
        if not moved.shape[2]:
            tiers.append(old)
            continue
        new = old.joined(make(i, chosen(full, moved), old))
        rank = torch.cat([places(tier, i), where.gather(2, moved)], dim=2)
        order = torch.from_numpy(np.argsort(rank.cpu().numpy(), kind="stable")).to(
            rank.device
        )  # merges two runs
        straight = torch.equal(order, torch.arange(order.shape[2], device=order.device).expand_as(order))
        tiers.append(new if straight else new.sorted(order))
    tier = tier.scatter(2, where, moves.to(tier.dtype))
    which = tier
    if x.count < x.tokens - x.first:
        which = torch.nn.functional.pad(x.map(), (0, x.buffered))
        which = which.masked_scatter(which != GONE, tier)
    kept = chosen(full, places(moves, 0))
    return x.but(
        keys=kept.keys, values=kept.values, tiers=tuple(tiers), which=pack_map(which), judged=x.tokens - x.first,
        heat=None if x.heat is None else x.heat.gather(2, places(moves, 0)),
    )  # fmt: skip


def thinned(x: Entries, inner: KVSelector, size: Callable[[int], int], limit: int | None) -> Entries:
    """What another method leaves of `x`, still with all the queries: as many entries as have a size within the limit.

    limit: in bytes; None: what `inner` keeps without one.
    """
    budget = None
    if limit is not None:
        least = inner.least(x)
        more = most(x.count - least, lambda n: size(least + n), limit) or 0
        budget = Budget(bytes=max(inner.smallest(x), (least + more) * inner.each(x)))
    left = inner.select(x, budget)
    return left.but(queries=x.queries, query_positions=x.query_positions, mass=None)


def in_full(x: Tiered) -> Tensor | None:
    """What is shown of the entries held in full, [B, H, F]."""
    return None if x.valid is None else x.shown().gather(2, places(x.tier_of(), 0))


def only_full(x: Tiered) -> Entries:
    """The entries held in full by themselves, with what is shown to the method."""
    return Entries(
        keys=x.keys, values=x.values, positions=where_in_full(x), valid=in_full(x), queries=x.queries,
        query_positions=x.query_positions, scale=x.scale, seen=x.tokens,
    )  # fmt: skip


def movable(x: Tiered, first: int, last: int) -> Tensor:
    """True for the entries in full that may be packed: neither the first of all nor the latest, [B, H, F]."""
    free = torch.zeros(*x.keys.shape[:3], dtype=torch.bool, device=x.keys.device)
    free[:, :, first : max(first, x.full - last)] = True
    return free


def where_in_full(x: Tiered) -> Tensor:
    """The columns of the entries held in full, [B, H, F]."""
    return x.where().gather(2, places(x.tier_of(), 0))


def best(score: Tensor, count: int) -> Tensor:
    """True for the `count` best of each head, the earlier of equals first, [B, H, T]."""
    top = score.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros(score.shape, dtype=torch.bool, device=score.device).scatter_(2, top, True)


def edges(shown: Tensor, first: int, last: int) -> Tensor:
    """True for the first and the last of what is shown, and beyond it where a row has fewer, [B, H, T].

    Every head gets as many, so that tiers are of one size.
    """
    t = shown.shape[2]
    order = torch.arange(t, device=shown.device).expand(shown.shape)
    early = best(torch.where(shown, -order, -order - 2 * t).float(), min(first, t))
    late = torch.where(shown, order, order - 2 * t).masked_fill(early, -4 * t)
    return early | best(late.float(), min(last, t - min(first, t)))


def ranks(score: Tensor, shown: Tensor, first: int, last: int, heavy: int, salient: int) -> Tensor:
    """0 for the first, the latest and the `heavy` best, 1 for the `salient` next best, 2 for the others, [B, H, T]."""
    full = edges(shown, first, last)
    full |= best(score.masked_fill(full, torch.inf), min(score.shape[2], first + last + heavy))
    top = best(score.masked_fill(full, -torch.inf), salient) & ~full
    return torch.where(full, 0, torch.where(top, 1, 2))


def most(count: int, size: Callable[[int], int], limit: int) -> int | None:
    """The largest n up to `count` with size(n) <= limit, where size grows; None if size(0) is too much."""
    if size(0) > limit:
        return None
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle - 1)
    return low


def finite(x: Entries) -> None:
    """Raise BadInput for NaN and infinities in entries that are shown."""
    for name, t in (("keys", x.keys), ("values", x.values)):
        if bool(torch.isfinite(t.float().sum())):
            continue
        odd = ~torch.isfinite(t).all(-1)
        if bool((odd & x.shown()).any()):
            raise BadInput(name, "NaN or infinity", "finite numbers")
