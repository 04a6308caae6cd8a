"""How many rows and pixels a 1x1 convolution takes at once: tried out, or told by the cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from holdall.weights.chw_program import as_ops, run
from holdall.weights.sparse_rows import pieces
from holdall.weights.spmm_cost import best, machine
from holdall.weights.spmm_lanes import vectors

_WASTE = 1.3  # how many more multiply-adds rows may cost that share non-zeros which only some of them have


@dataclass(frozen=True)
class Choice:
    nr: int
    vectors: int


def rows_at_once(weight: np.ndarray) -> list[int]:
    """NR of 1, 2 and 4 that add few multiply-adds: all of them for dense rows and for rows pruned in blocks."""
    nonzeros = np.count_nonzero(weight)
    found = [1]
    for nr in (2, 4):
        whole = len(weight) // nr * nr
        shared = (weight[:whole].reshape(-1, nr, weight.shape[1]) != 0).any(1).sum() * nr
        if whole and shared <= _WASTE * nonzeros:
            found.append(nr)
    return found


def by_cost(plan: Any, arena: np.ndarray) -> list[Choice]:
    """The least by the cost model, among strips that fit the nearest cache."""
    told, chosen = machine(), []
    for i, (weight, bias) in plan.rows.items():
        pixels = plan.ops[i]["pixels"]
        costs = {}
        for nr in rows_at_once(weight):
            many = told.strip(weight.shape[1], nr)
            parts = pieces(weight, bias, nr)
            costs[Choice(nr, many)] = sum(told.seconds(rows, pixels, many) for rows in parts)
        chosen.append(min(costs, key=costs.__getitem__))
    return chosen


def by_time(plan: Any, arena: np.ndarray) -> list[Choice]:
    """The fastest a row of all, each tried in its place on some numbers."""
    arena[:] = np.random.default_rng(0).normal(size=len(arena))
    chosen = []
    for i, (weight, bias) in plan.rows.items():
        taken: dict[Choice, float] = {}
        for nr in rows_at_once(weight):
            rows = pieces(weight, bias, nr)[0]  # the rest is the same for all
            for many in vectors(nr):
                taken[Choice(nr, many)] = _seconds(plan.ops[i], rows, many, arena)
        chosen.append(min(taken, key=taken.__getitem__))
    return chosen


def _seconds(op: dict[str, Any], rows: Any, many: int, arena: np.ndarray) -> float:
    """Of a row."""
    more = {"nr": rows.nr, "vectors": many, "first": rows.first, "outputs": rows.shape[0]}
    ops, steps = as_ops([{**op, **more}]), rows.steps(op["x_stride"])
    taken = best(lambda: run(ops, arena, arena, rows.stream, steps, rows.counts, 0, 1, 1, 0, 1), 3e-4, 3)
    return taken / rows.shape[0]
