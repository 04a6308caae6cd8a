"""What a search finds at other settings, measured, so that a share of the nearest can be asked for.

Queries are some of the vectors themselves, each of which does not count for itself, or those that a user gives; what is
true is found by looking at all vectors, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.vectors.metrics import best, distances, nearest, ready

if TYPE_CHECKING:
    from holdall.vectors.numbered import Numbered

K = 10  # neighbours that count
_QUERIES, _SHARE = 200, 40  # vectors that are asked for: at most, and one of so many
_TIES = 8  # more of a block than are wanted: faiss tells neighbours apart by fewer digits
Table = list[list[float]]  # probes, rerank, cost, recall
Blocks = Iterable[tuple[np.ndarray, np.ndarray]]  # (rows [n], vectors [n, D])


def truth(blocks: Blocks, queries: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(distances [Q, k], rows [Q, k]) of the nearest, by looking at all; infinity and -1 behind the last."""
    keys = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for some, raw in blocks:
        x = ready(raw, metric)
        _, places = nearest(queries, x, k + _TIES, metric)
        away = distances(queries, x[places], metric)
        keys, rows = best(np.hstack([keys, away]), np.hstack([rows, some[places]]), k)
    return keys, rows


def measured(
    shelf: Numbered, queries: np.ndarray | None, settings: Iterable[tuple[dict[str, Any], float]]
) -> Table:
    """Of settings (knobs, cost), the cheapest first; those that find no more than a cheaper one are left out.

    queries: as `metrics.ready` has them; None: some of the vectors.
    """
    metric, own = shelf.recipe.metric, None
    if queries is None:
        draw = np.random.default_rng(0)
        count = min(_QUERIES, max(1, shelf.count // _SHARE))
        own = np.sort(draw.permutation(shelf.count)[:count])
        own = own if shelf.there is None else shelf.there.select(own)
        parts = [(rows[hit], raw[hit]) for rows, raw in shelf.alive() if (hit := np.isin(rows, own)).any()]
        own = np.concatenate([rows for rows, _ in parts]).astype(np.int64)
        queries = ready(np.concatenate([raw for _, raw in parts]), metric)
    k = min(K, shelf.count - (own is not None))
    more = k + (own is not None)
    wanted = _without(truth(shelf.alive(), queries, more, metric)[1], own)
    usual, table, most = shelf.recipe, [], 0.0
    for knobs, cost in sorted(settings, key=lambda s: s[1]):
        found = _without(shelf.stored_rows(queries, more, usual.but(**knobs)), own)
        share = float(np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]))
        if share > most + 1e-3:
            table.append([knobs["probes"], knobs.get("rerank", 1.0), cost, share])
            most = share
        if most > 0.999:
            break
    return table


def _without(rows: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """[Q, k] of [Q, k + 1]: without each query's own row, or where it was not found, without the last."""
    if own is None:
        return rows
    mine = rows == own[:, None]
    mine[~mine.any(1), -1] = True
    return rows[~mine].reshape(len(rows), -1)
