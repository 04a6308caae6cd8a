"""Predictions from a sample rank methods and sizes as measuring the whole does, and say what does not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from small_models import tiny

from holdall.weights import Formats, RoundToNearest
from holdall.weights.forecast import Cell, Link, forecast

TRIED = (RoundToNearest(), RoundToNearest(group=16), Formats())
BITS = (2, 3.2, 5.2, 6.2, 9.6)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    x = tiny(layers=6, spread=0.15)
    limits = [int(b * x.elements / 8) for b in BITS]
    return forecast(x, limits, TRIED, measure=True, most=60_000, count=3, length=96)


def test_predictions_rank_as_measured(cells: list[Cell]) -> None:
    both = [c for c in cells if "lost" in c.predicted and "lost" in (c.measured or {})]
    assert len(both) >= 7
    wanted, found = [[(c.measured or {})["lost"] for c in both], [c.predicted["lost"] for c in both]]
    assert spearmanr(wanted, found).statistic > 0.9
    assert float(np.median(np.abs(np.log(np.divide(found, wanted))))) < math.log(2)
    for method in TRIED:  # more bytes, less lost
        mine = [c.predicted["lost"] for c in both if c.method == method]
        assert mine == sorted(mine, reverse=True)


def test_sizes_are_told_as_they_come_out(cells: list[Cell]) -> None:
    for cell in cells:
        told, truth = cell.predicted, cell.measured or {}
        assert ("least_bytes" in told) == ("least_bytes" in truth), (cell.method, cell.limit)
        key = "least_bytes" if "least_bytes" in told else "bytes"
        assert told[key] == pytest.approx(truth[key], rel=0.08)
        if key == "bytes":
            assert truth[key] <= cell.limit and told[key] <= cell.limit and truth["seconds"] > 0
            assert told["perplexity_ratio"] == pytest.approx(math.exp(told["lost"]), rel=1e-6)
        else:
            assert told[key] > cell.limit
    assert any("least_bytes" in c.predicted for c in cells)


def test_the_link_goes_through_its_points() -> None:
    line = Link(((1e-3, 2e-3), (1e-1, 4e-2), (2.0, 1.0)))
    assert line.whole(1e-3) == pytest.approx(2e-3) and line.whole(2.0) == pytest.approx(1.0)
    assert 2e-3 < line.whole(1e-2) < 4e-2
    assert line.whole(1e-4) < 2e-3 and line.whole(5.0) > 1.0
    assert Link().whole(0.3) == 0.3
