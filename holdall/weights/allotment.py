"""Who gets how many bits: rows of all matrices in one list, by what they mean to the loss.

`widths_of` is MixLLM's way: the most salient rows of the whole model get the wider width. A step for each row is the
other (`stepping`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from holdall.errors import BadInput

ARMS = ("global", "layer", "random", "magnitude")


def widths_of(
    scores: Mapping[str, Mapping[int, np.ndarray]],
    widths: Sequence[int],
    shares: Sequence[float],
    *,
    by: str = "global",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each row's width, by matrix name. scores: by name, by width, [O]: what the row costs at that width.

    widths: the widest first; shares: of all rows, that get each width but the last. From the widest to the narrowest,
    those not yet assigned that would cost the most at the next width. by: "global", or the arms to compare with:
    "layer" takes the share within each matrix, "random" and "magnitude" (scores are then sizes) say themselves.
    """
    if (
        len(shares) != len(widths) - 1
        or list(widths) != sorted(set(widths), reverse=True)
        or min(shares, default=0) < 0
    ):
        raise BadInput(
            "widths", f"{widths} with shares {shares}", "falling widths and a share for each but the last"
        )
    found = {name: np.full(len(next(iter(s.values()))), widths[-1]) for name, s in scores.items()}
    free = {name: np.ones(len(w), bool) for name, w in found.items()}
    draw = np.random.default_rng(seed)
    for wide, narrow, share in zip(widths, widths[1:], shares, strict=False):
        now = {n: _ranked(s[narrow], by, draw) for n, s in scores.items()}
        lists = [[n] for n in now] if by == "layer" or not now else [list(now)]
        for names in lists:
            flat = np.concatenate([np.where(free[n], now[n], -np.inf) for n in names])
            count = min(round(share * flat.size), int(np.isfinite(flat).sum()))
            chosen = np.zeros(flat.size, bool)
            chosen[np.argsort(-flat, kind="stable")[:count]] = True
            for n, part in zip(
                names, np.split(chosen, np.cumsum([len(now[n]) for n in names])[:-1]), strict=True
            ):
                found[n][part], free[n][part] = wide, False
    return found


def _ranked(scores: np.ndarray, by: str, draw: np.random.Generator) -> np.ndarray:
    return draw.random(len(scores)) if by == "random" else np.asarray(scores, np.float64)


def spent(codes: np.ndarray) -> float:
    """Bits that entropy coded codes take, all with one histogram."""
    counts = np.bincount(codes.reshape(-1))
    counts = counts[counts > 0]
    return float((counts * np.log2(codes.size / counts)).sum())
