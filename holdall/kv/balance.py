"""Grids for each token, of keys whose channels were balanced by the queries first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from holdall.kv.codes import by_token, keys_by_token
from holdall.kv.entries import Entries
from holdall.kv.tiers import Tier
from holdall.optional import lazy
from holdall.parts.quant import width

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_GUARD = 100.0  # a balancer is no smaller than its inverse and no larger


@dataclass(frozen=True)
class Balance:
    """What keys and values are divided by, [B, H, D], and what is taken from them before that (None: nothing)."""

    keys: Tensor
    values: Tensor
    less_keys: Tensor | None
    less_values: Tensor | None


def balance(x: Entries, balanced: bool, centred: bool) -> Balance:
    """Of a prompt: keys are divided by 1 / b, with b = sqrt(largest query / largest key) of each channel."""
    less = middle(x, x.keys) if centred else None
    ones = torch.ones_like(x.values[:, :, :1].sum(2), dtype=torch.float32)
    keys = (
        1 / balancer(x, less) if balanced else torch.ones_like(x.keys[:, :, :1].sum(2), dtype=torch.float32)
    )
    return Balance(keys, ones, less, middle(x, x.values) if centred else None)


def balancer(x: Entries, less: Tensor | None = None) -> Tensor:
    """b, by which keys are multiplied and queries divided, [B, H, D]; 1 where there is nothing to see.

    The query heads that share a key/value head have one; less [B, H, D] is taken from the keys first.
    """
    (b, h, _), d = x.shape, x.keys.shape[3]
    if x.queries is None or not x.count or not x.queries.shape[2]:
        return torch.ones(b, h, d, device=x.keys.device)
    queries, padded = x.queries, x.query_columns() < 0
    if bool(padded.any()):
        queries = queries.masked_fill(padded[:, None, :, None], 0)
    asked = queries.abs().reshape(b, h, -1, d).amax(2).float()
    if x.valid is None:  # the largest of |k - z| is at an end
        most, least = x.keys.amax(2).float(), x.keys.amin(2).float()
        held = most.abs().maximum(least.abs()) if less is None else (most - less).maximum(less - least)
    else:
        keys = x.keys.float() if less is None else x.keys.float() - less[:, :, None]
        held = keys.masked_fill(~x.shown()[..., None], 0).abs().amax(2)
    found = (asked / held.clamp(min=1e-30)).sqrt().clamp(1 / _GUARD, _GUARD)
    return torch.where((asked > 0) & (held > 0), found, 1.0)


def middle(x: Entries, of: Tensor) -> Tensor:
    """The mean of each channel of the keys or values `of` x, [B, H, D]."""
    if x.valid is None:
        return of.float().sum(2) / max(1, x.count)
    shown = x.shown()[..., None]
    return of.masked_fill(~shown, 0).float().sum(2) / shown.sum(2).clamp(min=1)


def behind_of(tier: Tier) -> Balance:
    """The balance with which a tier was packed."""
    less = (
        [k.z[:, :, 0] for k in tier.keys if k.z is not None],
        [v.z for v in tier.values if v.z is not None],
    )
    return Balance(
        torch.cat([k.s[:, :, 0] for k in tier.keys], 2), torch.cat([v.s for v in tier.values], 2),
        *(torch.cat(part, 2) if part else None for part in less),
    )  # fmt: skip


def tokenwise(x: Entries, bits: int, how: Balance, sub: int, fit: int) -> Tier:
    """A tier whose tokens have a grid for each `sub` channels (0: all of a head)."""
    keys, values, shown = [], [], x.shown()
    for start, end in slices(x.keys.shape[3], sub):
        s, z = how.keys[..., start:end], how.less_keys
        keys.append(
            keys_by_token(
                x.keys[..., start:end], shown, bits, s, fit, None if z is None else z[..., start:end]
            )
        )
    for start, end in slices(x.values.shape[3], sub):
        s, z = how.values[..., start:end], how.less_values
        z = None if z is None else z[..., start:end]
        values.append(by_token(x.values[..., start:end], shown, bits, s, fit, joined=False, z=z))
    return Tier(keys=tuple(keys), values=tuple(values))


def slices(channels: int, sub: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, channels, sub or channels), channels]))


def tokenwise_bytes(x: Entries, count: int, bits: int, sub: int) -> int:
    """Bytes of so many packed tokens of one head, without what they were divided by."""
    keys = sum((b - a) * width(count, bits) + 4 * count for a, b in slices(x.keys.shape[3], sub))
    return keys + sum(count * (width(b - a, bits) + 4) for a, b in slices(x.values.shape[3], sub))
