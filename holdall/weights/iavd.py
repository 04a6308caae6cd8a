"""Iterative absolute value decomposition: a matrix as a sum of blocks, each a sign matrix times a low-rank one.

A block is (S, A, B): one sign bit a weight and two thin half-precision factors of its magnitudes. Every block
takes off what the ones before it left, so any prefix of them is a whole, coarser matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_PAPER_RANK = 16
_PASSES = 4  # of subspace iteration; |R| is nearly rank one, so more change the fourth digit
_SPARE = 8  # extra directions that make those passes enough
_HALF_MAX = 60000.0
_PANEL = 64  # columns that error feedback signs one by one between two matrix products


@dataclass(frozen=True)
class Block:
    """signs: [m, ceil(n / 8)] uint8, bit 1 = negative; a: [m, k] and b: [k, n] float16."""

    signs: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def to_bytes(self) -> np.ndarray:
        """Signs, A, B in one uint8 vector."""
        parts = [
            self.signs.reshape(-1),
            *(f.astype("<f2").reshape(-1).view(np.uint8) for f in (self.a, self.b)),
        ]
        return np.concatenate(parts)

    @classmethod
    def from_bytes(cls, raw: np.ndarray, m: int, n: int, k: int) -> Block:
        """The inverse of `to_bytes`; views, not copies, where the alignment allows."""
        first, second = m * -(-n // 8), m * -(-n // 8) + 2 * m * k
        if raw.dtype != np.uint8 or raw.size != block_bytes(m, n, k):
            raise ValueError(f"{raw.size} bytes for a block of {m} x {n}, rank {k}")
        signs, a, b = raw[:first], raw[first:second].tobytes(), raw[second:].tobytes()
        return cls(
            signs.reshape(m, -1),
            np.frombuffer(a, "<f2").reshape(m, k),
            np.frombuffer(b, "<f2").reshape(k, n),
        )

    def dense(self) -> torch.Tensor:
        """S * (A B), [m, n] float32."""
        n = self.b.shape[1]
        sizes = torch.from_numpy(self.a.astype(np.float32)) @ torch.from_numpy(self.b.astype(np.float32))
        bits = np.unpackbits(self.signs, axis=1, bitorder="little")[:, :n].astype(bool)
        return torch.where(torch.from_numpy(bits), -sizes, sizes)


def block_bytes(m: int, n: int, k: int) -> int:
    """Bytes of one block: a bit a weight (rows padded to bytes) and two half-precision factors."""
    return m * -(-n // 8) + 2 * k * (m + n)


def fitting_rank(m: int, n: int, overhead: float) -> int:
    """The largest rank, at most the paper's 16, whose factors take no more than `overhead` of the signs' bits."""
    most = int(overhead * m * n / (16 * (m + n))) if m * n else 1
    return max(1, min(most, _PAPER_RANK, m, n))


@dataclass(frozen=True)
class Inputs:
    """What is known about the inputs of a linear: `scale` [n], its columns' importance, and second moments.

    gram: [n, n], the mean of x x^T, or None when nothing was measured; upper: the upper Cholesky factor of its
    (damped) inverse, which error feedback needs.
    """

    scale: torch.Tensor
    gram: torch.Tensor | None = None
    upper: torch.Tensor | None = None

    @classmethod
    def unknown(cls, n: int) -> Inputs:
        return cls(torch.ones(n))

    @classmethod
    def measured(cls, scale: torch.Tensor, gram: torch.Tensor, damp: float) -> Inputs:
        """Damping adds `damp` times the mean second moment to the diagonal: it keeps the residuals small."""
        size = gram.diagonal().mean()
        ridge = max(damp, 1e-4) * size if size > 0 else torch.ones(())
        damped = gram + ridge * torch.eye(len(gram))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped.double()))
        upper = torch.linalg.cholesky(inverse, upper=True)
        return cls(scale, damped, upper.float().contiguous())

    def energy(self, residual: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each output, [m]."""
        seen = residual * self.scale.square() if self.gram is None else residual @ self.gram
        return (seen * residual).sum(1)


def decompose(
    weight: torch.Tensor,
    levels: int,
    rank: int,
    inputs: Inputs,
    *,
    stretch: float = 1.0,
    feedback: float = 0.0,
    refit: bool = False,
    seed: int = 0,
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Blocks of `weight` [m, n] one after the other, each with the residual that it leaves (do not change it).

    The factors are those of |R| diag(scale); 1 / scale goes into B, and the *rounded* factors are subtracted.
    """
    residual = weight.detach().float().clone()
    scale = inputs.scale / inputs.scale.mean().clamp_min(1e-30)
    scale = scale.clamp_min(1e-4)  # a dead column must not make B overflow
    for level in range(levels):
        a, b = factors(residual.abs() * scale, rank, seed + level)
        a, b = a * stretch, b / scale
        a, b = _rounded(a, b)
        negative = _signs(residual, a @ b, inputs, feedback if level else feedback / 2)
        if refit:
            fitted = (
                _resize(residual, negative, a, b, inputs) if level else _refit(residual, negative, b, inputs)
            )
            a, b = _rounded(fitted * stretch, b)
        sizes = a @ b
        residual = residual - torch.where(negative, -sizes, sizes)
        bits = np.packbits(negative.numpy(), axis=1, bitorder="little")
        yield Block(bits, a.numpy().astype(np.float16), b.numpy().astype(np.float16)), residual


def factors(magnitude: torch.Tensor, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A [m, k] and B [k, n] with A B the best rank-k `magnitude`, by subspace iteration in float32."""
    m, n = magnitude.shape
    width = min(rank + _SPARE, m, n)
    start = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    start[:, 0] = 1.0  # close to the first singular vector of anything positive
    basis = torch.linalg.qr(start).Q
    for _ in range(_PASSES):
        basis = torch.linalg.qr(magnitude.T @ (magnitude @ basis)).Q
    u, sigma, small = torch.linalg.svd(magnitude @ basis, full_matrices=False)
    root = sigma[:rank].sqrt()
    a, b = u[:, :rank] * root, root[:, None] * (basis @ small.T).T[:rank]
    flip = torch.where(b.sum(1) < 0, -1.0, 1.0)  # one of two equal answers, the same on every machine
    return a * flip, b * flip[:, None]


def naive_factors(magnitude: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`factors` by a full singular value decomposition."""
    u, sigma, v = torch.linalg.svd(magnitude.double(), full_matrices=False)
    root = sigma[:rank].sqrt()
    return (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()


def _rounded(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors as half precision will hold them, balanced so that neither overflows."""
    high, low = a.abs().amax(0), b.abs().amax(1)
    balance = torch.where((high > 0) & (low > 0), (low / high.clamp_min(1e-30)).sqrt(), torch.ones(()))
    a, b = a * balance, b / balance.clamp_min(1e-30)[:, None]
    if not (a.abs().amax() < _HALF_MAX and b.abs().amax() < _HALF_MAX):
        raise BadInput("weights", "magnitudes beyond half precision", "finite weights below 1e9")
    return a.half().float(), b.half().float()


def _signs(residual: torch.Tensor, sizes: torch.Tensor, inputs: Inputs, feedback: float) -> torch.Tensor:
    """True where the weight is taken as minus its magnitude; zero counts as positive."""
    if inputs.upper is None or feedback == 0.0:
        return residual < 0
    from holdall.weights.kernels import feedback_panel

    m, n = residual.shape
    out = np.zeros((m, n), np.bool_)
    work, upper = residual.clone(), inputs.upper
    for start in range(0, n, _PANEL):  # what a panel got wrong reaches the columns behind it in one product
        here = slice(start, min(start + _PANEL, n))
        negative, errors = np.zeros((m, here.stop - start), np.bool_), torch.zeros(m, here.stop - start)
        panel, size, factor = (
            t.contiguous().numpy() for t in (work[:, here], sizes[:, here], upper[here, here])
        )
        feedback_panel(panel, size, factor, feedback, negative, errors.numpy())
        out[:, here] = negative
        work[:, here.stop :] -= errors @ upper[here, here.stop :]
    return torch.from_numpy(out)


def _refit(residual: torch.Tensor, negative: torch.Tensor, b: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """A [m, k] that fits each row best, in the outputs' error, to the signs and B at hand."""
    sign = torch.where(negative, -1.0, 1.0)
    parts = sign[None] * b[:, None, :]  # [k, m, n]
    seen = parts @ inputs.gram if inputs.gram is not None else parts * inputs.scale.square()
    normal = torch.einsum("rmn,qmn->mrq", seen, parts)
    target = torch.einsum("rmn,mn->mr", seen, residual)
    size = normal.diagonal(dim1=1, dim2=2).mean(1)
    ridge = (1e-4 * size).clamp_min(1e-20)[:, None, None] * torch.eye(len(b))
    return torch.linalg.solve(normal + ridge, target)


def _resize(
    residual: torch.Tensor, negative: torch.Tensor, a: torch.Tensor, b: torch.Tensor, inputs: Inputs
) -> torch.Tensor:
    """A with each row as long as fits best: from the second block on nearly as good as `_refit`, and k times faster."""
    sizes = a @ b
    taken = torch.where(negative, -sizes, sizes)
    seen = taken @ inputs.gram if inputs.gram is not None else taken * inputs.scale.square()
    length = (seen * residual).sum(1) / (seen * taken).sum(1).clamp_min(1e-30)
    return a * length.clamp(0.0, 4.0)[:, None]


def plain_svd(weight: torch.Tensor, total_bytes: int, inputs: Inputs) -> torch.Tensor:
    """The ablation: the best low-rank `weight` itself (no signs), scaled alike, in the same bytes."""
    m, n = weight.shape
    rank = min(total_bytes // (2 * (m + n)), m, n)
    if rank < 1:
        return torch.zeros(m, n)
    scale = (inputs.scale / inputs.scale.mean().clamp_min(1e-30)).clamp_min(1e-4)
    a, b = naive_factors(weight.float() * scale, rank)
    return a.half().float() @ (b / scale).half().float()
