"""What is known of a linear's inputs, and how the signs and magnitudes of blocks are fitted to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch

    Pair = tuple[torch.Tensor, torch.Tensor]  # A [m, k] and B [k, n]
else:
    torch = lazy("torch", extra="weights")

_HALF_MAX = 60000.0
_FIT_NUMBERS = 1 << 23  # numbers in the air while rows are fitted
_PANEL = 64  # columns that error feedback signs one by one between two matrix products


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


def signed(negative: torch.Tensor, pair: Pair) -> torch.Tensor:
    sizes = pair[0] @ pair[1]
    return torch.where(negative, -sizes, sizes)


def rounded(a: torch.Tensor, b: torch.Tensor) -> Pair:
    """Both factors as half precision will hold them, balanced so that neither overflows."""
    high, low = a.abs().amax(0), b.abs().amax(1)
    balance = torch.where((high > 0) & (low > 0), (low / high.clamp_min(1e-30)).sqrt(), torch.ones(()))
    a, b = a * balance, b / balance.clamp_min(1e-30)[:, None]
    if not (a.abs().amax() < _HALF_MAX and b.abs().amax() < _HALF_MAX):
        raise BadInput("weights", "magnitudes beyond half precision", "finite weights below 1e9")
    return a.half().float(), b.half().float()


def choose_signs(
    residual: torch.Tensor, sizes: torch.Tensor, inputs: Inputs, feedback: float
) -> torch.Tensor:
    """[L, m, n], True where a magnitude is taken with a minus; zero counts as positive."""
    levels, m, n = sizes.shape
    if inputs.upper is None or feedback == 0.0:
        assert levels == 1
        return (residual < 0)[None]
    from holdall.parts.rows import by_rows
    from holdall.weights.kernels import feedback_panel
    from holdall.weights.parts import WORTH

    out = np.zeros((levels, m, n), np.bool_)
    work, upper = residual.clone(), inputs.upper
    for start in range(0, n, _PANEL):  # what a panel got wrong reaches the columns behind it in one product
        here = slice(start, min(start + _PANEL, n))
        negative, errors = (
            np.zeros((levels, m, here.stop - start), np.bool_),
            torch.zeros(m, here.stop - start),
        )
        panel, size, factor = (
            t.contiguous().numpy() for t in (work[:, here], sizes[..., here], upper[here, here])
        )
        load = 4 * negative.size / WORTH
        by_rows(feedback_panel, m, load, panel, size, factor, feedback, negative, errors.numpy())
        out[..., here] = negative
        work[:, here.stop :] -= errors @ upper[here, here.stop :]
    return torch.from_numpy(out)


def refit(
    residual: torch.Tensor,
    negative: torch.Tensor,
    factors_b: list[torch.Tensor],
    inputs: Inputs,
    stretch: float,
) -> list[Pair]:
    """A of all blocks [m, L k] that fit each row best, in the outputs' error, to the signs and B at hand."""
    rank, rows = len(factors_b[0]), []
    step = max(1, _FIT_NUMBERS // (rank * len(factors_b) * residual.shape[1]))
    for start in range(0, len(residual), step):
        here = residual[start : start + step]
        signs = torch.where(negative[:, start : start + step], -1.0, 1.0)
        parts = torch.cat(
            [s * b[:, None, :] for s, b in zip(signs, factors_b, strict=True)]
        )  # [L k, rows, n]
        seen = parts @ inputs.gram if inputs.gram is not None else parts * inputs.scale.square()
        normal = torch.einsum("rmn,qmn->mrq", seen, parts)
        target = torch.einsum("rmn,mn->mr", seen, here)
        size = normal.diagonal(dim1=1, dim2=2).mean(1)
        ridge = (1e-4 * size).clamp_min(1e-20)[:, None, None] * torch.eye(len(parts))
        rows.append(torch.linalg.solve(normal + ridge, target))
    a = torch.cat(rows) * stretch
    return [rounded(a[:, i * rank : (i + 1) * rank], b) for i, b in enumerate(factors_b)]


def resize(residual: torch.Tensor, negative: torch.Tensor, pair: Pair, inputs: Inputs) -> torch.Tensor:
    """A with each row as long as fits best: from the second block on nearly as good as `refit`, and k times faster."""
    taken = signed(negative, pair)
    seen = taken @ inputs.gram if inputs.gram is not None else taken * inputs.scale.square()
    length = (seen * residual).sum(1) / (seen * taken).sum(1).clamp_min(1e-30)
    return pair[0] * length.clamp(0.0, 4.0)[:, None]
