"""Attention over packed entries: one softmax over what is held in full and all tiers, from codes as they are held."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from holdall.kv.packed_kernels import mix, mix_full, naive_mix, naive_scores, scores, soften
from holdall.parts.bits import bits_of
from holdall.parts.rows import by_rows
from holdall.parts.tiles import COLUMNS

if TYPE_CHECKING:
    from holdall.kv.affine import ByChannel, ByToken
    from holdall.kv.tiers import Tier

__all__ = ["attend", "key_scores", "mixed_values", "naive_mix", "naive_scores"]

_WORTH = 200_000  # numbers that are worth handing heads to another thread


def attend(
    keys: Tensor, values: Tensor, tiers: tuple[Tier, ...], queries: Tensor, more: Tensor | None, scale: float | None,
    heated: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """One softmax over entries in full [B, H, F, D] and packed tiers: [B, H, G, E], like the queries [B, H, G, D].

    more [B, H, G, F + tiers]: added to the scores, of the entries in full first, then tier by tier. heated: also the
    attention that each entry in full gets, [B, H, F].
    """
    (b, h, g, d), f = queries.shape, keys.shape[2]
    scale = d**-0.5 if scale is None else scale
    asked = (queries.float() * scale).reshape(b * h, g, d).contiguous().numpy()
    total = f + sum(t.count for t in tiers)
    weights = np.empty((b * h, g, -(-total // COLUMNS) * COLUMNS), np.float32)
    extra = np.empty((b * h, 0, 0), np.float32) if more is None else more.flatten(0, 1).contiguous().numpy()
    place = f
    for tier in tiers:
        _score(tier.keys, asked, weights, place)
        place += tier.count
    held, brain = bits_of(keys)
    by_rows(soften, b * h, weights.size * 4 / _WORTH, asked, held, brain, extra, total, weights)
    out = np.empty((b * h, g, values.shape[3]), np.float32)
    heat = np.empty((b * h, f if heated else 0), np.float32)
    held, brain = bits_of(values)
    by_rows(mix_full, b * h, out.size * f / _WORTH, held, brain, weights, out, heat)
    place = f
    for tier in tiers:
        _mixed(tier.values, weights, place, out)
        place += tier.count
    got = torch.from_numpy(out).view(b, h, g, -1).to(queries.dtype)
    return got, torch.from_numpy(heat).view(b, h, f) if heated else None


def _score(slices: tuple[ByChannel, ...], asked: np.ndarray, out: np.ndarray, place: int) -> None:
    channel = 0
    for keys in slices:
        work = keys.count * keys.channels * asked.shape[0] * asked.shape[1] / _WORTH
        by_rows(scores, len(asked), work, *keys.arrays, asked, channel, out, place, channel > 0)
        channel += keys.channels


def _mixed(slices: tuple[ByToken, ...], weights: np.ndarray, place: int, out: np.ndarray) -> None:
    channel = 0
    for values in slices:
        codes, *params = values.arrays
        work = values.count * values.channels * out.shape[0] * out.shape[1] / _WORTH
        by_rows(mix, len(out), work, codes, values.bits, weights, place, *params, out, channel)
        channel += values.channels


def key_scores(slices: tuple[ByChannel, ...], queries: Tensor) -> Tensor:
    """Products of queries [B, H, G, D] with packed keys, [B, H, G, N] float32."""
    b, h, g, _ = queries.shape
    out = np.empty((b * h, g, slices[0].count), np.float32)
    _score(slices, queries.float().flatten(0, 1).contiguous().numpy(), out, 0)
    return torch.from_numpy(out).view(b, h, g, -1)


def mixed_values(slices: tuple[ByToken, ...], weights: Tensor) -> Tensor:
    """Packed values weighted by weights [B, H, G, N], [B, H, G, E] float32."""
    b, h, g, _ = weights.shape
    out = np.zeros((b * h, g, sum(v.channels for v in slices)), np.float32)
    _mixed(slices, weights.flatten(0, 1).contiguous().numpy(), 0, out)
    return torch.from_numpy(out).view(b, h, g, -1)
