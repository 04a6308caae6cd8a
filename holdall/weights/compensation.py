"""Error compensation (GPTQ): columns are rounded one by one, and what each got wrong is made good by those to come.

An error E of a matrix [O, I] whose inputs have the second moments H costs tr(E H E^T). With U the upper Cholesky
factor of the inverse of the damped H, rounding column j by e spoils outputs by (e / U[j, j])^2, once the columns behind
it have moved by -e U[j, k] / U[j, j]. Rows are independent: each may have a grid of its own, and any group of rows may
be rounded alone. Columns go in panels, between which one matrix product carries the errors on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from holdall.errors import BadInput
from holdall.optional import lazy
from holdall.parts.rows import by_rows

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_PANEL = 64
_WORTH = 4_000_000  # multiplications that are worth another thread


@dataclass(frozen=True)
class Grid:
    """What a code q of row o stands for in columns of group g: low[o, g] + step[o, g] * q, for q from 0 to `top`.

    step, low: float32 [O, G], steps above 0; group: columns of a group, of which the last may be shorter.
    """

    step: np.ndarray
    low: np.ndarray
    top: int
    group: int

    def of_rows(self, which: np.ndarray) -> Grid:
        return Grid(self.step[which], self.low[which], self.top, self.group)

    def nearest(self, w: np.ndarray) -> np.ndarray:
        """uint8 codes of w [O, I], each rounded by itself."""
        step, low = self._wide(w.shape[1])
        return np.clip(np.rint((w - low) / step), 0, self.top).astype(np.uint8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """float32 [O, I]."""
        step, low = self._wide(codes.shape[1])
        return low + step * codes.astype(np.float32)

    def _wide(self, columns: int) -> tuple[np.ndarray, np.ndarray]:
        owner = np.arange(columns) // self.group
        return self.step[:, owner], self.low[:, owner]


def factor(gram: torch.Tensor, damp: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of `gram` with `damp` of its mean diagonal added, float32 [I, I].

    Where a matrix of little data is not positive in double precision, the damping grows until it is.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not bool(torch.isfinite(gram).all()):
        raise BadInput("second moments", f"{tuple(gram.shape)}", "a square matrix of finite numbers")
    wide = gram.double()
    mean = float(wide.diagonal().mean()) or 1.0
    one = torch.eye(len(gram), dtype=torch.float64)
    for more in range(12):
        lower, fault = torch.linalg.cholesky_ex(wide + max(damp, 1e-6) * 10.0**more * mean * one)
        if int(fault) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, fault = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(fault) == 0:
                return upper.float().contiguous()
    raise BadInput("second moments", "no damping makes them positive", "those of real inputs")


def compensated(w: np.ndarray, grid: Grid, upper: torch.Tensor | None, thrift: float = 0.0) -> np.ndarray:
    """uint8 codes [O, I] of float32 w on `grid`; upper: as `factor` gives it, None to round each weight by itself.

    thrift: of a step, how much nearer to the smaller code is rounded to it: fewer bits where codes are entropy coded.
    """
    if upper is None:
        return grid.nearest(w)
    n = w.shape[1]
    if upper.shape != (n, n):
        raise BadInput("second moments", tuple(upper.shape), f"those of {n} columns")
    codes, work = np.zeros(w.shape, np.uint8), torch.from_numpy(w.astype(np.float32))
    owner = (np.arange(n) // grid.group).astype(np.int64)
    step, low = (np.ascontiguousarray(a, np.float32) for a in (grid.step, grid.low))
    for start in range(0, n, _PANEL):
        here = slice(start, min(start + _PANEL, n))
        block = upper[here, here].contiguous().numpy()
        panel, errors = work[:, here].contiguous().numpy(), np.zeros((len(w), here.stop - start), np.float32)
        found = np.zeros(errors.shape, np.uint8)
        load = errors.size * _PANEL / 2 / _WORTH
        by_rows(_panel, len(w), load, panel, block, step, low, owner[here], grid.top, thrift, found, errors)
        codes[:, here] = found
        if here.stop < n:
            work[:, here.stop :] -= torch.from_numpy(errors) @ upper[here, here.stop :]
    return codes


@njit(nogil=True, cache=True, fastmath=True)
def _panel(w, upper, step, low, owner, top, thrift, codes, errors, first, last):  # type: ignore[no-untyped-def]
    """Rows [first, last) of one panel [O, P]. errors: of each column, over U[j, j]."""
    columns = w.shape[1]
    for r in range(first, last):
        for j in range(columns):
            s, start = step[r, owner[j]], low[r, owner[j]]
            v = w[r, j] / s
            q = np.rint(max(abs(v) - np.float32(thrift), np.float32(0)) * np.sign(v) - start / s)
            q = min(max(q, np.float32(0)), np.float32(top))
            codes[r, j] = np.uint8(q)
            e = (w[r, j] - (start + s * q)) / upper[j, j]
            errors[r, j] = e
            for k in range(j + 1, columns):
                w[r, k] -= e * upper[j, k]


def naive_compensated(w: np.ndarray, grid: Grid, upper: np.ndarray) -> np.ndarray:
    """`compensated` one number at a time, in double precision."""
    work, codes = w.astype(np.float64).copy(), np.zeros(w.shape, np.uint8)
    for r in range(len(w)):
        for j in range(w.shape[1]):
            s, start = float(grid.step[r, j // grid.group]), float(grid.low[r, j // grid.group])
            q = min(max(np.rint((work[r, j] - start) / s), 0), grid.top)
            codes[r, j] = q
            work[r, j + 1 :] -= (work[r, j] - (start + s * q)) / float(upper[j, j]) * upper[j, j + 1 :]
    return codes


def output_error(e: np.ndarray, gram: torch.Tensor | None) -> np.ndarray:
    """[O], what an error [O, I] does to each output: e H e^T; without H, its squares."""
    if gram is None:
        return np.asarray(np.square(e).sum(1), np.float64)
    wide = torch.from_numpy(np.ascontiguousarray(e, np.float32))
    return ((wide @ gram) * wide).sum(1).double().numpy()
