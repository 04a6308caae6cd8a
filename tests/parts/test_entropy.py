"""Entropy coded codes: exact, as small as constriction has them and near the floor; forged streams are refused."""

import numpy as np
import pytest

from holdall.errors import CorruptArtefact
from holdall.parts import entropy

constriction = pytest.importorskip("constriction")


def _drawn(bits, count, spread=0.15, seed=0):
    rng = np.random.default_rng([bits, count, seed])
    top = (1 << bits) - 1
    return np.clip(np.rint((rng.normal(size=count) * spread + 0.5) * top), 0, top).astype(np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(
    "count", [0, 1, 2, 3, 5, 63, 1000, entropy.CHUNK - 1, entropy.CHUNK, 2 * entropy.CHUNK + 5]
)
def test_codes_come_back(bits, count):
    codes = _drawn(bits, count)
    for coded in (True, False):
        stream = entropy.pack_codes(codes, bits, coded=coded)
        np.testing.assert_array_equal(entropy.unpack_codes(stream, count, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_size_is_that_of_constriction_and_near_the_floor(bits):
    codes = _drawn(bits, 300_000, 0.12)
    size = entropy.pack_codes(codes, bits).nbytes
    share = np.bincount(codes, minlength=1 << bits) / codes.size
    model = constriction.stream.model.Categorical(share.astype(np.float32), perfect=False)
    truth = constriction.stream.stack.AnsCoder()
    truth.encode_reverse(codes.astype(np.int32), model)
    assert size <= 1.003 * 4 * len(truth.get_compressed()) + 2 * (1 << bits)
    assert size >= entropy.shannon(codes, bits) * codes.size / 8


def test_even_codes_keep_their_width_and_one_byte():
    codes = np.random.default_rng(0).integers(0, 16, 10_000).astype(np.uint8)
    assert entropy.pack_codes(codes, 4).nbytes == 5_001


def test_one_symbol_costs_next_to_nothing():
    assert entropy.pack_codes(np.full(100_000, 7, np.uint8), 4).nbytes < 60


@pytest.mark.parametrize("count", [1, 40, 5000])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_shares_add_up_and_leave_nobody_out(count, bits):
    codes = _drawn(bits, count, 0.05)
    shares = entropy.frequencies(codes, bits)
    assert shares.sum() == 1 << entropy.PRECISION
    np.testing.assert_array_equal(shares > 0, np.bincount(codes, minlength=1 << bits) > 0)


def test_every_cut_and_many_flips_are_refused_or_decode_to_codes():
    codes = _drawn(4, 3000)
    stream = entropy.pack_codes(codes, 4)
    assert stream[0] != 0
    rng = np.random.default_rng(0)
    for cut in range(0, stream.size, 7):
        with pytest.raises(CorruptArtefact):
            entropy.unpack_codes(stream[:cut], codes.size, 4)
    seen = 0
    for _ in range(300):
        bad = stream.copy()
        bad[rng.integers(bad.size)] ^= np.uint8(1 << rng.integers(8))
        try:
            assert entropy.unpack_codes(bad, codes.size, 4).max() < 16
        except CorruptArtefact:
            seen += 1
    assert seen > 290  # the final states tell nearly always


def test_a_small_forgery_cannot_ask_for_much_memory():
    stream = entropy.pack_codes(np.full(1000, 7, np.uint8), 4)
    with pytest.raises(CorruptArtefact):
        entropy.unpack_codes(stream, 1 << 36, 4)


def test_threads_change_nothing(monkeypatch):
    import torch

    codes = _drawn(4, 9 * entropy.CHUNK + 11)
    stream = entropy.pack_codes(codes, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    np.testing.assert_array_equal(entropy.unpack_codes(stream, codes.size, 4), codes)
