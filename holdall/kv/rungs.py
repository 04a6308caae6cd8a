"""Rungs: the widths that keys and values may have, from the smallest, and how entries are packed on one."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from holdall.kv.codes import Bands, by_channel, by_token, channel_bytes
from holdall.kv.entries import Entries
from holdall.kv.tiers import Tier
from holdall.optional import lazy
from holdall.parts.quant import width

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

Rung = tuple[tuple[int, int, int, int], int]  # bits of each quarter of a key's channels, and of values
Pair = tuple[Rung, Rung]  # of most tokens, and of the salient

_LADDER: tuple[Rung, ...] = (
    ((2, 1, 1, 1), 1), ((3, 2, 1, 1), 1), ((3, 3, 2, 1), 2), ((4, 3, 3, 2), 2), ((4, 4, 3, 3), 3), ((4, 4, 4, 4), 4),
    ((8, 8, 4, 4), 4), ((8, 8, 8, 8), 8),
)  # fmt: skip


def ladder() -> list[Pair]:
    """Neighbouring rungs, the smallest first."""
    return list(pairwise(_LADDER))


def together(rung: Rung, group: int, count: int) -> int:
    """How many of `count` tokens share a channel's grid: `group`, four times as many where keys have under 3 bits.

    There a grid's 32 bits buy less than the same bytes in codes.
    """
    return (group if sum(rung[0]) >= 12 else 4 * group) or max(1, count)


def bands(rung: Rung, channels: int) -> Bands:
    """The quarters of so many channels, neighbours of one width as one."""
    found: list[tuple[int, int]] = []
    for bits, (a, b) in zip(rung[0], pairwise(channels * i // 4 for i in range(5)), strict=True):
        if found and found[-1][1] == bits:
            found[-1] = (found[-1][0] + b - a, bits)
        elif b > a:
            found.append((b - a, bits))
    return tuple(found)


def rung_bytes(x: Entries, count: int, rung: Rung, group: int, centred: bool) -> int:
    """Bytes that `count` entries of each head take on a rung, codes and parameters, in all heads and rows of `x`."""
    (b, h, _), d, e = x.shape, x.keys.shape[3], x.values.shape[3]
    cuts = bands(rung, d)
    head = channel_bytes(count, d, cuts, together(rung, group, count)) + count * width(e, rung[1])
    head += 2 * e * (2 if centred else 1)
    head += d * _place_type(d).itemsize if len(cuts) > 1 else 0
    return b * (h * head + 4 * count)


def _place_type(channels: int) -> torch.dtype:
    return torch.uint8 if channels <= 256 else torch.int32


def channel_order(x: Entries, queries: Tensor | None, at: Tensor | None, rung: Rung) -> Tensor | None:
    """[B, H, D]: the channels by what an error in them does to scores, most first; None where all are of one width.

    That is the variance of the keys times the mean square of the queries.
    """
    (b, h, _), d = x.shape, x.keys.shape[3]
    if len(bands(rung, d)) < 2:
        return None
    shown = x.shown()[..., None].float()
    count = shown.sum(2).clamp(min=1)
    keys = x.keys.float()
    mean = (keys * shown).sum(2) / count
    weight = ((keys - mean[:, :, None]).square() * shown).sum(2) / count  # [B, H, D]
    if queries is not None:
        asked = queries.float()
        if at is not None:
            asked = asked.masked_fill((at < 0)[:, None, :, None], 0)
        weight = weight * asked.square().reshape(b, h, -1, d).mean(2)
    return weight.argsort(dim=-1, descending=True, stable=True).to(_place_type(d))


def factors(x: Entries, centred: bool) -> tuple[Tensor, Tensor | None]:
    """What values are divided by, [B, H, E], and what is taken from them before (None: nothing)."""
    shown = x.shown()[..., None]
    values = x.values.float().masked_fill(~shown, 0)
    if not x.count:
        zero = values.new_zeros(*values.shape[:2], values.shape[3])
        return zero + 1, zero if centred else None
    if not centred:
        s = values.abs().amax(2).sqrt()
        return torch.where(s > 1e-3, s, 1.0), None
    count = shown.sum(2).clamp(min=1)
    mean = values.sum(2) / count
    s = ((values - mean[:, :, None]).square() * shown).sum(2).div(count).sqrt()
    return torch.where(s > 1e-3, s, 1.0), mean


def packed(
    x: Entries, rung: Rung, group: int, fit: int, order: Tensor | None, s: Tensor | None, z: Tensor | None,
    behind: Tier | None,
) -> Tier:  # fmt: skip
    """Entries on a rung, or in the manner of the tier that they join."""
    shown, d = x.shown(), x.keys.shape[3]
    cuts, bits = bands(rung, d), rung[1]
    if behind is not None:
        keys, values = behind.keys[0], behind.values[0]
        cuts, order, bits, s, z = keys.bands, keys.order, values.bits, values.s, values.z
    assert s is not None
    return Tier(
        keys=(by_channel(x.keys, shown, cuts, together(rung, group, x.count), fit, order),),
        values=(by_token(x.values, shown, bits, s, fit, joined=True, z=z),),
    )
