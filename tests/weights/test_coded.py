"""Coded matrices: every width, grid and odd size; what is on disk comes back, and what is forged does not."""

import numpy as np
import pytest

from holdall.errors import BadInput, CorruptArtefact
from holdall.packed import Packed
from holdall.weights import Coded
from holdall.weights.coded import LEVELS, WIDTHS
from holdall.weights.coded_bytes import held_bytes

SIZES = [(1, 1, 0), (3, 63, 0), (5, 64, 64), (17, 130, 64), (33, 96, 32), (16, 31, 7), (2, 576, 48)]


def draw(rows, columns, bits, level, group=0, seed=0):
    """A matrix on such grids, and the floats it stands for, computed one at a time."""
    rng = np.random.default_rng([rows, columns, bits, seed])
    codes = rng.integers(0, 1 << bits, (rows, columns))
    each = group or columns
    shape = (rows, -(-columns // each))
    scale = (rng.random(shape) * 0.1 + 0.01).astype(np.float16)
    low = rng.normal(size=shape).astype(np.float16)
    zero = rng.integers(0, 1 << bits, shape)
    table = rng.normal(size=1 << bits).astype(np.float16)
    more = {"low": {"low": low}, "zero": {"zero": zero}, "middle": {}, "table": {"table": table}}[level]
    truth = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            q, g = int(codes[i, j]), j // each
            step = float(scale[i, g])
            if level == "table":
                truth[i, j] = step * float(table[q])
            elif level == "low":
                truth[i, j] = step * q + float(low[i, g])
            else:
                truth[i, j] = step * (q - (int(zero[i, g]) if level == "zero" else 2 ** (bits - 1)))
    return Coded.of(codes, bits, scale=scale, group=group, **more), truth


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "columns", "group"), SIZES)
def test_codes_stand_for_what_their_grid_says(rows, columns, group, bits, level):
    coded, truth = draw(rows, columns, bits, level, group)
    np.testing.assert_allclose(coded.dense(), truth, rtol=1e-6, atol=1e-6)
    which = np.array([rows - 1, 0, rows // 2, 0])
    np.testing.assert_array_equal(coded.rows(which), coded.dense()[which])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("entropy", [True, False])
def test_the_disk_gives_it_back(bits, level, entropy):
    for rows, columns, group in SIZES:
        coded, _ = draw(rows, columns, bits, level, group)
        raw = Packed(coded.sections("w", coded=entropy), {"room": "weights", "method": {}}).to_bytes()
        back = Coded.of_sections(Packed.from_bytes(raw).arrays, "w")
        assert back.shape == coded.shape and back.bands[0].level == level and back.nbytes == coded.nbytes
        np.testing.assert_array_equal(back.dense(), coded.dense())


def test_rows_of_several_widths_are_one_matrix():
    rng = np.random.default_rng(0)
    order = rng.permutation(50)
    wide, narrow = draw(13, 70, 8, "middle", 35)[0], draw(37, 70, 4, "zero", 35)[0]
    coded = Coded.mixed([(order[:13], wide), (order[13:], narrow)])
    dense = np.zeros((50, 70), np.float32)
    dense[order[:13]], dense[order[13:]] = wide.dense(), narrow.dense()
    np.testing.assert_array_equal(coded.dense(), dense)
    assert coded.bits == (13 * 8 + 37 * 4) / 50
    back = Coded.of_sections(coded.sections("w"), "w")
    np.testing.assert_array_equal(back.dense(), dense)
    ids = rng.integers(0, 50, 9)
    np.testing.assert_array_equal(back.rows(ids), dense[ids])


def test_bytes_are_those_of_the_arrays_and_foretold():
    for bits in WIDTHS:
        coded, _ = draw(64, 256, bits, "low", 64)
        assert coded.nbytes == 64 * 256 * bits // 8 + 4 * 64 * 4 + 4 * 64  # codes, grids, places
        assert held_bytes(coded.sections("w")["w"]) == coded.nbytes
    mixed = Coded.mixed(
        [(np.arange(3), draw(3, 40, 5, "table")[0]), (np.arange(3, 20), draw(17, 40, 2, "low", 9)[0])]
    )
    assert held_bytes(mixed.sections("w")["w"]) == mixed.nbytes


def test_bell_shaped_codes_take_less_than_their_width():
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.normal(size=(256, 512)) * 2 + 8), 0, 15).astype(np.uint8)
    size = Coded.of(codes, 4, scale=np.ones((256, 1))).sections("w")["w"].nbytes
    assert size < 0.79 * codes.size / 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: Coded.of(c, 7, scale=np.ones(1)),
        lambda c: Coded.of(c, 2, scale=np.ones(1)),
        lambda c: Coded.of(c, 4),
        lambda c: Coded.of(c, 4, scale=np.ones(1), low=np.zeros(1), table=np.zeros(16)),
        lambda c: Coded.of(c, 4, table=np.zeros(15)),
        lambda c: Coded.of(c, 4, scale=np.full(1, np.nan)),
        lambda c: Coded.of(c, 4, scale=np.full(1, 1e6)),
        lambda c: Coded.of(c.astype(float), 4, scale=np.ones(1)),
        lambda c: Coded.of(c[:0], 4, scale=np.ones(1)),
        lambda c: Coded.of(-c, 4, scale=np.ones(1)),
        lambda c: Coded.mixed([(np.arange(4), Coded.of(c, 4, scale=np.ones(1)))] * 2),
        lambda c: Coded.mixed([(np.arange(1, 5), Coded.of(c, 4, scale=np.ones(1)))]),
        lambda c: Coded.mixed([]),
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(BadInput):
        wrong(np.arange(12).reshape(4, 3))


def test_torn_and_forged_bytes_are_refused_or_decode():
    rng = np.random.default_rng(0)
    mixed = Coded.mixed(
        [(np.arange(5), draw(5, 60, 8, "table", 20)[0]), (np.arange(5, 40), draw(35, 60, 3, "low", 20)[0])]
    )
    raw = mixed.sections("w")["w"]
    for cut in range(raw.size):
        with pytest.raises(CorruptArtefact):
            Coded.of_sections({"w": raw[:cut]}, "w")
    refused = 0
    for _ in range(400):
        bad = raw.copy()
        bad[rng.integers(min(bad.size, 200))] = rng.integers(256)
        try:
            assert Coded.of_sections({"w": bad}, "w").dense().shape == mixed.shape
        except CorruptArtefact:
            refused += 1
    assert refused > 100
    for arrays in ({}, {"w": raw.astype(np.int32)}, {"w": raw.reshape(1, -1)}):
        with pytest.raises(CorruptArtefact):
            Coded.of_sections(arrays, "w")
