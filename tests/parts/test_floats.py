"""Widening and the exponential: every 16 bits, and all exponents, against the slow truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from holdall.parts.floats import exp, naive_exp, naive_narrow, naive_wide, narrow, wide


@njit(fastmath=True)
def widened(x: Any, brain: bool, out: Any) -> None:
    for i in range(len(x)):
        out[i] = wide(x[i], brain)


@njit(fastmath=True)
def narrowed(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = narrow(x[i])


@njit(fastmath=True)
def powers(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = exp(x[i])


@pytest.mark.parametrize("brain", [True, False])
def test_all_sixteen_bits_widen(brain: bool) -> None:
    bits = np.arange(65536).astype(np.uint16)
    out = np.empty(65536, np.float32)
    widened(bits, brain, out)
    with np.errstate(all="ignore"):
        truth = np.array([naive_wide(int(b), brain) for b in bits], np.float32)
    np.testing.assert_array_equal(out, truth)
    x = np.array([1.5, -2.25e9], np.float32)
    widened(x, brain, out[:2])
    assert out[:2].tolist() == x.tolist()


def test_floats_become_the_nearest_halves() -> None:
    with np.errstate(all="ignore"):
        halves = np.arange(0x7C00).astype(np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2  # ties, exact in float32
    lot = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    x = np.concatenate([halves, between, np.nextafter(between, np.float32(1e9)), lot, lot * 1e-6, lot * 1e4])
    x = np.concatenate([x, -x])
    out = np.empty(len(x), np.uint16)
    narrowed(x, out)
    np.testing.assert_array_equal(out, np.array([naive_narrow(v) for v in x], np.uint16))


def test_the_exponential_is_exact_to_the_last_places() -> None:
    x = np.concatenate([np.linspace(-86.9, 88, 40_001), [0.0, -1e-9, 1e-9]]).astype(np.float32)
    out = np.empty_like(x)
    powers(x, out)
    truth = np.array([naive_exp(float(v)) for v in x])
    np.testing.assert_allclose(out, truth, rtol=2.5e-7)
    powers(np.array([-87.8, -1e30, -np.inf, 0.0], np.float32), out[:4])
    assert out[:4].tolist() == [0, 0, 0, 1]
