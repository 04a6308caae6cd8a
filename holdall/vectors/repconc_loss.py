"""Contrastive loss over a batch: which documents a query may be told apart from, and what it costs not to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_OUT = -10_000.0  # the score of what is masked


def scores(queries: Tensor, documents: Tensor, metric: str) -> Tensor:
    """[Q, B], higher is nearer: minus the squared distance without the query's size for l2, the product for others."""
    found = queries @ documents.T
    return 2 * found - documents.square().sum(-1) if metric == "l2" else found


def masked(rows: Tensor, own: Tensor, relevant: Tensor) -> Tensor:
    """bool [Q, B]: what is no negative of a query. rows [B]: which document each column is. own [Q]: the column of each
    query's own document. relevant bool [Q, B]: which columns answer it.

    Other documents that answer the query, and the second and later columns of the same document, of which its own
    column is never one.
    """
    same = rows[:, None] == rows  # [B, B]
    later = same.tril(-1).any(-1)  # an earlier column is the same document
    out = relevant | later | (rows == rows[own][:, None])
    return out.scatter(1, own[:, None], False)


def contrastive(
    found: Tensor, own: Tensor, out: Tensor, most: int | None, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of each query's own column among scores [Q, B] without those that are `out`.

    most: negatives of each query that count, those that score highest now; None: all.
    """
    found = (found / temperature).masked_fill(out, _OUT)
    mine = found.gather(1, own[:, None])
    if most is None or most >= found.shape[1] - 1:
        return functional.cross_entropy(found, own)
    others = found.scatter(1, own[:, None], 2 * _OUT).topk(most, 1).values
    both = torch.cat([mine, others], 1)
    return functional.cross_entropy(both, torch.zeros_like(own))
