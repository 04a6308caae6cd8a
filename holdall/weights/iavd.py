"""Iterative absolute value decomposition: a matrix as a sum of blocks, each a sign matrix times a low-rank one.

A block is (S, A, B): one sign bit a weight and two thin half-precision factors of its magnitudes. Every block
takes off what the ones before it left, so any prefix of them is a whole, coarser matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.optional import lazy
from holdall.weights.fitting import Inputs, choose_signs, refit, resize, rounded, signed

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

_PAPER_RANK = 16
_PASSES = 4  # of subspace iteration; |R| is nearly rank one, so more change the fourth digit
_SPARE = 8  # extra directions that make those passes enough
_ROOM = 0.2  # how much larger the first of several blocks is begun: those after it correct in both directions


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
        bits, a, b = raw[:first], raw[first:second].tobytes(), raw[second:].tobytes()
        return cls(
            bits.reshape(m, -1),
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


def decompose(
    weight: torch.Tensor,
    levels: int,
    rank: int,
    inputs: Inputs,
    *,
    stretch: float = 1.0,
    feedback: float = 0.0,
    fit: bool = False,
    aim: int = 1,
    seed: int = 0,
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Blocks of `weight` [m, n] one after the other, each with the residual that it leaves (do not change it).

    The factors are those of |R| diag(scale); 1 / scale goes into B, and the *rounded* factors are subtracted.
    aim: so many first blocks are chosen together (where feedback is on), each block after them by itself.
    """
    residual = weight.detach().float().clone()
    scale = inputs.scale / inputs.scale.mean().clamp_min(1e-30)
    scale = scale.clamp_min(1e-4)  # a dead column must not make B overflow
    level = 0
    while level < levels:
        together = min(aim, levels) if level == 0 and feedback and inputs.upper is not None else 1
        rest, made = residual, []
        for t in range(together):  # magnitudes, for the signs that the weights have by themselves
            a, b = factors(rest.abs() * scale, rank, seed + level + t)
            grown = stretch if together == 1 else 1 + _ROOM * (together - 1) if t == 0 else 1.0
            made.append(rounded(a * grown, b / scale))
            rest = rest - signed(rest < 0, made[-1])
        strength = feedback / 2 if level == 0 and together == 1 else feedback
        negative = choose_signs(residual, torch.stack([a @ b for a, b in made]), inputs, strength)
        if fit and level == 0:
            made = refit(residual, negative, [b for _, b in made], inputs, stretch if together == 1 else 1.0)
        elif fit:
            made = [rounded(resize(residual, negative[0], made[0], inputs) * stretch, made[0][1])]
        for (a, b), minus in zip(made, negative, strict=True):
            residual = residual - signed(minus, (a, b))
            bits = np.packbits(minus.numpy(), axis=1, bitorder="little")
            yield Block(bits, a.numpy().astype(np.float16), b.numpy().astype(np.float16)), residual
        level += together


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


def plain_svd(weight: torch.Tensor, total_bytes: int, inputs: Inputs) -> torch.Tensor:
    """The ablation: the best low-rank `weight` itself (no signs), scaled alike, in the same bytes."""
    m, n = weight.shape
    rank = min(total_bytes // (2 * (m + n)), m, n)
    if rank < 1:
        return torch.zeros(m, n)
    scale = (inputs.scale / inputs.scale.mean().clamp_min(1e-30)).clamp_min(1e-4)
    a, b = naive_factors(weight.float() * scale, rank)
    return a.half().float() @ (b / scale).half().float()
