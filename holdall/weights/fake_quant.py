"""Fake quantisation: weights on grids of few bits inside a graph, with the gradients of W, s and z. Imported to train.

    q = clamp(round(W / s) + round(z), 0, 2**bits - 1)        W_hat = (q - round(z)) * s

with s, z [O, G] for groups of `group` columns (a last group may be shorter). `naive_fake_quant` is the slow truth:
plain autograd through straight-through rounding. The kernels do the same in one pass forwards and one backwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

_SUMS = {"reassoc", "contract", "nsz"}  # what lets a sum be taken sixteen at a time
LEAST_STEP = 6e-8  # the smallest that half precision holds


def naive_fake_quant(
    w: torch.Tensor, s: torch.Tensor, z: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    wide = torch.arange(w.shape[1]) // group
    step, zero = s[:, wide], _through(z)[:, wide]
    q = torch.clamp(_through(w / step) + zero, 0, (1 << bits) - 1)
    return (q - zero) * step


def _through(x: torch.Tensor) -> torch.Tensor:
    """Rounded; gradients pass as if it were not."""
    return x + (torch.round(x) - x).detach()


class FakeQuant(torch.autograd.Function):
    """apply(w, s, z, bits, group) -> W_hat [O, I], all float32."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, s: torch.Tensor, z: torch.Tensor, bits: int, group: int) -> Any:
        ctx.save_for_backward(w, s, z)
        ctx.bits, ctx.group = bits, group
        out = torch.empty_like(w)
        _forward(w.detach().numpy(), s.detach().numpy(), z.detach().numpy(), bits, group, out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        w, s, z = (t.detach().numpy() for t in ctx.saved_tensors)
        dw, ds, dz = torch.empty(w.shape), torch.empty(s.shape), torch.empty(s.shape)
        given = grad.float().contiguous().numpy()
        _backward(w, s, z, given, ctx.bits, ctx.group, dw.numpy(), ds.numpy(), dz.numpy())
        return dw, ds, dz, None, None


class Dequantise(torch.autograd.Function):
    """apply(codes() -> uint8 [O, I], s, z, group) -> W_hat; only s has a gradient. Codes are asked for when needed."""

    @staticmethod
    def forward(ctx: Any, codes: Any, s: torch.Tensor, z: torch.Tensor, group: int) -> Any:
        ctx.codes, ctx.zero, ctx.group = codes, z, group
        return dequantised(torch.from_numpy(codes()), s, z, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        ds = torch.empty(ctx.zero.shape)
        given = grad.float().contiguous().numpy()
        _step_gradient(ctx.codes(), ctx.zero.numpy(), given, ctx.group, ds.numpy())
        return None, ds, None, None


def dequantised(codes: torch.Tensor, s: torch.Tensor, z: torch.Tensor, group: int) -> torch.Tensor:
    out = torch.empty(codes.shape)
    _dequantise(codes.numpy(), s.detach().numpy(), z.numpy(), group, out.numpy())
    return out


def codes_of(w: torch.Tensor, s: torch.Tensor, z: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The whole numbers q, uint8 [O, I]."""
    out = torch.empty(w.shape, dtype=torch.uint8)
    _codes(w.detach().numpy(), s.detach().numpy(), z.detach().numpy(), bits, group, out.numpy())
    return out


def starts(
    w: torch.Tensor, bits: int, group: int, shrinks: tuple[float, ...] = (1.0,)
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, z) [O, G]: min-max grids, each shrunk by that factor of `shrinks` which rounds its group best.

    A grid always reaches 0, so that z fits between 0 and 2**bits - 1.
    """
    columns = w.shape[1]
    edges = np.arange(0, columns, group)
    values = w.detach().float().contiguous().numpy()
    low = np.minimum(np.minimum.reduceat(values, edges, axis=1), 0)
    high = np.maximum(np.maximum.reduceat(values, edges, axis=1), 0)
    top = (1 << bits) - 1
    best = np.full(low.shape, np.inf, np.float32)
    s, z = np.zeros(low.shape, np.float32), np.zeros(low.shape, np.float32)
    for shrink in shrinks:
        step = np.maximum((high - low) * np.float32(shrink) / top, LEAST_STEP).astype(np.float16)
        zero = np.clip(np.rint(-low * np.float32(shrink) / step), 0, top).astype(np.float32)
        error = np.empty_like(best)
        _errors(values, step.astype(np.float32), zero, bits, group, error)
        better = error < best
        s[better], z[better], best[better] = step[better], zero[better], error[better]
    return torch.from_numpy(s), torch.from_numpy(z)


@njit(nogil=True, cache=True)
def _forward(w, s, z, bits, group, out):  # type: ignore[no-untyped-def]
    top = np.float32((1 << bits) - 1)
    for r in range(w.shape[0]):
        for g in range(s.shape[1]):
            step, zero = s[r, g], np.rint(z[r, g])
            for j in range(g * group, min((g + 1) * group, w.shape[1])):
                q = min(max(np.rint(w[r, j] / step) + zero, np.float32(0)), top)
                out[r, j] = (q - zero) * step


@njit(nogil=True, cache=True)
def _errors(w, s, z, bits, group, out):  # type: ignore[no-untyped-def]
    top = np.float32((1 << bits) - 1)
    for r in range(w.shape[0]):
        for g in range(s.shape[1]):
            step, zero, total = s[r, g], z[r, g], np.float32(0)
            for j in range(g * group, min((g + 1) * group, w.shape[1])):
                q = min(max(np.rint(w[r, j] / step) + zero, np.float32(0)), top)
                total += ((q - zero) * step - w[r, j]) ** 2
            out[r, g] = total


@njit(nogil=True, cache=True)
def _codes(w, s, z, bits, group, out):  # type: ignore[no-untyped-def]
    top = np.float32((1 << bits) - 1)
    for r in range(w.shape[0]):
        for g in range(s.shape[1]):
            step, zero = s[r, g], np.rint(z[r, g])
            for j in range(g * group, min((g + 1) * group, w.shape[1])):
                out[r, j] = np.uint8(min(max(np.rint(w[r, j] / step) + zero, np.float32(0)), top))


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _backward(w, s, z, grad, bits, group, dw, ds, dz):  # type: ignore[no-untyped-def]
    top = np.float32((1 << bits) - 1)
    nothing = np.float32(0)
    for r in range(w.shape[0]):
        for g in range(s.shape[1]):
            step, zero = s[r, g], np.rint(z[r, g])
            of_step, of_zero = nothing, nothing
            for j in range(g * group, min((g + 1) * group, w.shape[1])):
                at = w[r, j] / step
                q = np.rint(at) + zero
                kept = min(max(q, nothing), top)
                given = grad[r, j]
                passed = given if kept == q else nothing
                of_step += given * (kept - zero) - passed * at
                of_zero += given - passed
            for j in range(g * group, min((g + 1) * group, w.shape[1])):  # a loop of its own stays in lanes
                q = np.rint(w[r, j] / step) + zero
                dw[r, j] = grad[r, j] if min(max(q, nothing), top) == q else nothing
            ds[r, g], dz[r, g] = of_step, -of_zero * step


@njit(nogil=True, cache=True)
def _dequantise(codes, s, z, group, out):  # type: ignore[no-untyped-def]
    for r in range(codes.shape[0]):
        for g in range(s.shape[1]):
            step, zero = s[r, g], z[r, g]
            for j in range(g * group, min((g + 1) * group, codes.shape[1])):
                out[r, j] = (np.float32(codes[r, j]) - zero) * step


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _step_gradient(codes, z, grad, group, ds):  # type: ignore[no-untyped-def]
    for r in range(codes.shape[0]):
        for g in range(z.shape[1]):
            zero, total = z[r, g], np.float32(0)
            for j in range(g * group, min((g + 1) * group, codes.shape[1])):
                total += grad[r, j] * (np.float32(codes[r, j]) - zero)
            ds[r, g] = total
