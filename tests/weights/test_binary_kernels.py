"""Products of signs by popcount: exactly the whole numbers that they are, at every size, with every kind of border."""

import numpy as np
import pytest
import torch
from llvmlite import binding
from numba import njit

from holdall.weights import binary_kernels as kernels
from holdall.weights.binary_lanes import PANEL, ROWS, tile_rows


def signs(*shape, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int32), shape)


def words(x):
    return kernels.pack_bits(x < 0)


@pytest.mark.parametrize("n", [1, 3, ROWS, ROWS + 1, 63])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (3, 63), (16, 64), (17, 65), (63, 1152)])
def test_products_are_whole_numbers_and_exact(n, outputs, inputs):
    a, w = signs(n, inputs), signs(outputs, inputs, seed=1)
    given = kernels.products(words(a), kernels.panels(words(w)), inputs, outputs)
    assert given.dtype == np.int32 and np.array_equal(given, a @ w.T)
    assert np.array_equal(kernels.naive_products(words(a), words(w), inputs), a @ w.T)


def test_products_on_several_threads_are_the_same():
    a, w = signs(301, 640), signs(77, 640, seed=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        given = kernels.products(words(a), kernels.panels(words(w)), 640, 77)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(given, a @ w.T)


@pytest.mark.parametrize("channels", [1, 63, 64, 130])
def test_packing_takes_zero_for_plus_and_no_number_for_minus(channels):
    x = np.random.default_rng(2).standard_normal((5, channels)).astype(np.float32)
    x[0, 0], x[1, -1], x[2, 0], x[3, 0] = 0.0, -0.0, np.nan, -np.inf
    shift = np.linspace(-0.5, 0.5, channels).astype(np.float32) if channels > 1 else np.zeros(1, np.float32)
    if channels > 1:
        x[4, 1] = -shift[1]  # the sum is exactly zero
    wanted = kernels.pack_bits(~(x + shift >= 0))
    assert np.array_equal(kernels.pack_rows(x, shift), wanted)
    maps = np.ascontiguousarray(x.T[None])  # [1, C, 5]
    assert np.array_equal(kernels.pack_maps(maps, shift)[0], wanted)
    if channels > 1:
        assert wanted[4, 0] >> np.uint64(1) & np.uint64(1) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (19, 17)])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding"), [
    ((1, 1), (1, 1), (1, 1), (0, 0)), ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 5), (2, 3), (2, 1), (4, 2)), ((2, 2), (1, 2), (1, 1), (1, 3)),
])  # fmt: skip
def test_convolutions_take_off_what_padding_added(size, kernel, stride, dilation, padding):
    x, w = signs(2, 70, *size), signs(19, 70, *kernel, seed=1)
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(w).double(), None, stride, padding, dilation
    )
    form = (*size, *kernel, *stride, *dilation, *padding, *wanted.shape[2:])
    flat = w.reshape(19, 70, -1)
    beyond = kernels.outside(flat, form)
    packed = words(flat.swapaxes(1, 2)).reshape(19, -1)
    shift, one = np.zeros(70, np.float32), np.ones(19, np.float32)
    maps = kernels.pack_maps(x.reshape(2, 70, -1).astype(np.float32), shift)
    out = np.full((2, 19, beyond.shape[1]), np.nan, np.float32)
    kernels.maps_out(
        maps, packed, flat[0].size, form, beyond, one, 0 * one, np.ones((1, 1), np.float32), out, 0
    )
    assert np.array_equal(out.reshape(wanted.shape), wanted.numpy())
    if padding != (0, 0):
        assert beyond.any(), "padding with +1 and no correction would do"


def test_scratch_of_other_blocks_does_not_leak():
    """More places than a block holds, and a number of them that no block divides."""
    a, w = signs(2 * 256 + 37, 100), signs(5, 100, seed=1)
    scale = np.linspace(0.5, 2, 5).astype(np.float32)
    shift, factor = np.arange(5, dtype=np.float32), np.linspace(1, 3, len(a)).astype(np.float32)
    given = kernels.rows_out(words(a), kernels.panels(words(w)), 100, scale, shift, factor)
    wanted = (a @ w.T).astype(np.float32) * scale * factor[:, None] + shift
    assert np.array_equal(given, wanted)


def test_bits_are_counted_by_vectors_where_the_processor_can():
    if not binding.get_host_cpu_features().get("avx512vpopcntdq"):
        pytest.skip("this processor cannot")

    @njit(nogil=True)
    def product(a, w, bits, out):
        tile_rows(a, 0, w, 0, bits, out, 0)

    a, w = signs(ROWS, 128), signs(PANEL, 128, seed=1)
    out = np.zeros((ROWS, PANEL), np.int32)
    product(words(a), kernels.panels(words(w)), 128, out)
    assert np.array_equal(out, a @ w.T)
    (text,) = product.inspect_asm().values()
    assert text.count("vpopcntq") >= 2 * ROWS
