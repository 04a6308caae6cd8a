"""Coded grids as GGUF blocks: codes to the bit, numbers to the bit, by the gguf package's own decoder."""

from __future__ import annotations

import numpy as np
import pytest

from holdall.weights.coded import Coded
from holdall.weights.gguf_grids import fitted
from holdall.weights.rtn import rounded

gguf = pytest.importorskip("gguf")


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def drawn(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def grid(level: str, bits: int, group: int, rows: int = 19, columns: int = 96) -> Coded:
    draw = np.random.default_rng(bits)
    codes = draw.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    codes[0, :2] = 0, (1 << bits) - 1
    groups = -(-columns // (group or columns))
    scale = draw.normal(size=(rows, groups))
    second = {"low": {"low": draw.normal(size=(rows, groups))}, "middle": {}}
    zero = {"zero": draw.integers(0, 1 << bits, (rows, groups)).astype(np.float32)}
    return Coded.of(codes, bits, scale=scale, group=group, **second.get(level, zero))


@pytest.mark.parametrize(
    ("level", "bits", "kind"),
    [
        ("low", 1, "Q4_1"), ("low", 4, "Q4_1"), ("low", 5, "Q5_1"), ("low", 6, None),
        ("middle", 2, "Q4_0"), ("middle", 4, "Q4_0"), ("middle", 5, "Q5_0"), ("middle", 8, "Q8_0"),
        ("zero", 3, "Q4_0"), ("zero", 4, "Q5_0"), ("zero", 6, "Q8_0"), ("zero", 8, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("group", [32, 64, 0])
def test_a_grid_is_the_same_numbers_in_the_smallest_type_that_has_it(
    level: str, bits: int, kind: str | None, group: int
) -> None:
    coded = grid(level, bits, group)
    found = fitted(coded)
    if kind is None:
        assert found is None
        return
    assert found is not None and found[0] == kind
    assert np.array_equal(decoded(*found), coded.dense())


def test_codes_and_steps_are_those_of_the_matrix_byte_for_byte() -> None:
    """Q4_1 and Q8_0 taken apart by hand, so that no decoder can hide a difference."""
    coded = rounded(drawn(5, 64), 4, 32)
    found = fitted(coded)
    assert found is not None and found[0] == "Q4_1"
    block = found[1].reshape(5, 2, 20)
    scale, low = coded.bands[0].grids()
    assert low is not None and block[..., :2].tobytes() == scale.tobytes()
    assert block[..., 2:4].tobytes() == low.tobytes()
    codes = coded.bands[0].codes().reshape(5, 2, 32)
    assert np.array_equal(block[..., 4:] & 15, codes[..., :16])
    assert np.array_equal(block[..., 4:] >> 4, codes[..., 16:])
    eight = grid("middle", 8, 32)
    found = fitted(eight)
    assert found is not None
    held = found[1].reshape(19, 3, 34)[..., 2:].view(np.int8).reshape(19, 96)
    assert np.array_equal(held.astype(int) + 128, eight.bands[0].codes())


def test_rows_of_several_widths_share_the_type_that_holds_all() -> None:
    wide, narrow = grid("middle", 5, 0, rows=7), grid("middle", 3, 0, rows=4)
    rows = np.random.default_rng(3).permutation(11)
    both = Coded.mixed([(rows[:7], wide), (rows[7:], narrow)])
    found = fitted(both)
    assert found is not None and found[0] == "Q5_0" and np.array_equal(decoded(*found), both.dense())
    order = np.random.default_rng(4).permutation(11)
    moved = fitted(both, order)
    assert moved is not None and np.array_equal(decoded(*moved), both.dense()[order])
    minima = Coded.mixed([(rows[:7], grid("low", 4, 0, rows=7)), (rows[7:], narrow)])
    found = fitted(minima)
    assert found is not None and found[0] == "Q4_1" and np.array_equal(decoded(*found), minima.dense())


@pytest.mark.parametrize(
    "coded",
    [
        rounded(drawn(4, 48), 4, 16),
        rounded(drawn(4, 50), 4, 0),
        Coded.of(np.ones((4, 64), np.uint8), 2, table=np.arange(4), group=32),
        Coded.of(np.ones((4, 64), np.uint8), 2, scale=np.ones(4), zero=np.full(4, 0.5), group=32),
    ],
    ids=["groups of 16", "columns", "palette", "zero points between numbers"],
)
def test_other_grids_are_not_forced_into_blocks(coded: Coded) -> None:
    assert fitted(coded) is None
