"""The tracks' numbers, on data that was worked out by hand."""

import math

import pytest
import torch
from torch import nn

from holdall.errors import BadInput
from holdall.weights import binary_tracks as tracks


def test_quadratic_means_weigh_what_goes_well():
    assert tracks.quadratic_mean([3, 4]) == pytest.approx(math.sqrt(12.5))
    # two tasks: ratios (.5, 1 -> mean .75) and (1.) -> sqrt((.5625 + 1) / 2)
    runs = {"digits": [(0.4, 0.8), (0.9, 0.9)], "sounds": [(0.6, 0.6)]}
    assert tracks.accuracy_track(runs) == pytest.approx(math.sqrt(0.78125))
    assert tracks.accuracy_track({"a": [(1, 2)], "b": [(0, 2)]}) > tracks.mean([0.25, 0.25])
    with pytest.raises(BadInput):
        tracks.accuracy_track({})


def test_robustness_compares_gaps_float_over_binary():
    assert tracks.gap(0.9, [0.8, 0.7, 0.6, 0.5, 0.4]) == pytest.approx(0.3)
    # gaps .3 and .1 of float, .6 and .1 of binary: ratios .5 and 1
    assert tracks.robustness_track({"noise": (0.3, 0.6), "blur": (0.1, 0.1)}) == pytest.approx(
        math.sqrt(0.625)
    )
    with pytest.raises(BadInput, match="blur"):
        tracks.robustness_track({"blur": (0.1, 0.0)})


def test_training_means_are_squared_after_they_are_taken():
    # times: 1/2 and 1/4 -> mean .375; spreads: 1 and 3 -> mean 2
    given = tracks.training_track([(1, 2), (1, 4)], [(2, 2), (3, 1)])
    assert given == pytest.approx(math.sqrt((0.375**2 + 4) / 2))
    assert tracks.deviation([1, 3]) == 1 and tracks.deviation([5, 5, 5]) == 0
    with pytest.raises(BadInput, match="spread"):
        tracks.training_track([(1, 2)], [(2, 0)])  # accuracies that are all the same
    with pytest.raises(BadInput, match="accuracy"):
        tracks.accuracy_track({"a": [(0.5, 0.0)]})
    assert tracks.inference_track([(8, 1), (4, 1)], [(32, 1)]) == pytest.approx(math.sqrt((36 + 1024) / 2))


def test_complexity_counts_64_products_and_32_bits():
    c = tracks.Complexity(products=1000, binary_products=640, numbers=100, binary_numbers=64)
    assert c.operations == pytest.approx(1000 / 370) and c.storage == pytest.approx(100 / 38)
    whole = tracks.Complexity(64, 64, 32, 32)
    assert (whole.operations, whole.storage) == (64, 32)
    assert tracks.complexity_track([64], [32]) == pytest.approx(math.sqrt((64**2 + 32**2) / 2))


def test_complexity_of_a_module_is_counted_by_running_it():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.Flatten(), nn.Linear(4 * 2 * 2, 10, bias=False),
    )  # fmt: skip
    c = tracks.complexity(net, ["1"], (torch.zeros(5, 1, 4, 4), None))
    assert c.products == 16 * 2 * 9 + 4 * 4 * 18 + 160 and c.binary_products == 4 * 4 * 18
    assert c.numbers == 18 + 72 + 160 and c.binary_numbers == 72
