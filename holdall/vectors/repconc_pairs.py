"""Which documents answer which queries, and what an index of codes finds: hard negatives and held-out ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdall.errors import BadInput
from holdall.vectors.repconc_loss import scores

_BLOCK = 256  # queries that are scored against all documents at once


class Pairs:
    """(query, document) rows [P, 2]: a query may have several documents."""

    def __init__(self, pairs: Any, queries: int, documents: int):
        found = torch.as_tensor(np.asarray(pairs))
        if found.dim() != 2 or found.shape[1] != 2 or found.is_floating_point() or not len(found):
            raise BadInput("pairs", f"{found.dtype} {tuple(found.shape)}", "whole numbers [P, 2], P >= 1")
        most = torch.tensor([queries, documents])
        if bool((found < 0).any()) or bool((found >= most).any()):
            raise BadInput(
                "pairs", "rows that are not there", f"queries below {queries}, documents below {documents}"
            )
        self.rows, self.documents = found.long().unique(dim=0), documents
        self.keys = self.rows[:, 0] * documents + self.rows[:, 1]  # rising

    def of(self, queries: Tensor) -> Pairs:
        """Those of some queries, numbered as before."""
        some = object.__new__(Pairs)
        keep = torch.isin(self.rows[:, 0], queries)
        some.rows, some.keys, some.documents = self.rows[keep], self.keys[keep], self.documents
        return some

    @property
    def queries(self) -> Tensor:
        return self.rows[:, 0].unique()

    def relevant(self, queries: Tensor, documents: Tensor) -> Tensor:
        """bool [Q, ...]: whether documents [...] or [Q, ...] answer queries [Q]."""
        first = queries.view(-1, *[1] * (max(documents.dim(), 2) - 1)) * self.documents
        asked = first + documents
        at = torch.searchsorted(self.keys, asked).clamp(max=len(self.keys) - 1)
        return self.keys[at] == asked


def found(
    asked: Tensor, values: Tensor, most: int, metric: str, without: tuple[Pairs, Tensor] | None = None
) -> Tensor:
    """int64 [Q, most]: the best of documents' values [N, D] for queries [Q, D]. without: (pairs, the queries' rows),
    whose answers are left out."""
    most, out = min(most, len(values)), []
    for start in range(0, len(asked), _BLOCK):
        told = scores(asked[start : start + _BLOCK], values, metric)
        if without is not None:
            pairs, rows = without[0], without[1][start : start + _BLOCK]
            some = pairs.of(rows).rows
            place = torch.searchsorted(rows, some[:, 0].contiguous()) if len(some) else some[:, 0]
            told[place, some[:, 1]] = -torch.inf
        out.append(told.topk(most, 1).indices)
    return torch.cat(out) if out else torch.zeros((0, most), dtype=torch.long)


def reciprocal(hits: Tensor, pairs: Pairs, queries: Tensor) -> float:
    """Mean reciprocal rank of each query's first answer among what was found [Q, k], 0 where there is none."""
    right = pairs.relevant(queries, hits)
    rank = right.double().argmax(1) + 1
    return float(torch.where(right.any(1), 1 / rank, 0.0).mean()) if len(hits) else 0.0
