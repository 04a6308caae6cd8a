"""Vector quantisation by importance: a codebook for what is seen less, in which what is seen more counts more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECAY, SMOOTH, REPLACED = 0.8, 1e-5, 10  # the paper's, of 8,192 codes
LARGEST = 8192
_AT_ONCE = 4096  # vectors whose distances to a whole book are held
_SETTLE = 0.8  # share of the rounds after which no code is replaced


@dataclass(frozen=True)
class Split:
    """top [N]: which keep their own numbers. book [K, D] and owner [N]: the others' codes, -1 for those at the top.
    miss: by how much entries miss what they stand for, in the root of the mean square."""

    top: NDArray[Any]
    book: NDArray[Any]
    owner: NDArray[Any]
    miss: float = 0.0

    def take(self, which: Any) -> Split:
        return replace(self, top=self.top[which], owner=self.owner[which])


def split(
    x: NDArray[Any], score: NDArray[Any], *, share: float, codes: int, rounds: int, chunk: int, seed: int
) -> Split:
    """The lowest `share` of vectors x [N, D] by score becomes codes. codes: of the book, 0: by what there is; entries
    that are alike come one after another, and those that nobody has are left out."""
    count = int(share * len(x))
    order = np.argsort(score, kind="stable")
    low = np.sort(order[:count])
    top, owner = np.ones(len(x), bool), np.full(len(x), -1)
    size = min(codes or codes_for(count), LARGEST, count)
    if not size or not x.shape[1]:
        return Split(top, np.zeros((0, x.shape[1]), np.float32), owner)
    top[low] = False
    book = learnt(x[low], score[low], size, rounds=rounds, chunk=chunk, seed=seed)
    book = book[np.unique(nearest(x[low], book))]
    book = book[ordered(book)]
    owner[low] = nearest(x[low], book)
    return Split(top, book, owner, float(np.sqrt(((x[low] - book[owner[low]]) ** 2).mean())))


def nearest(x: NDArray[Any], book: NDArray[Any]) -> NDArray[Any]:
    """int64 [N]: which row of book [K, D] is nearest to each of x [N, D]."""
    lengths, out = (book**2).sum(1) / 2, np.zeros(len(x), np.int64)
    for i in range(0, len(x), _AT_ONCE):
        out[i : i + _AT_ONCE] = (lengths - x[i : i + _AT_ONCE] @ book.T).argmin(1)
    return out


def _missing(x: NDArray[Any], book: NDArray[Any]) -> NDArray[Any]:
    """[N] by how much farther, squared, each would be from its second nearest entry."""
    lengths, out = (book**2).sum(1) / 2, np.zeros(len(x))
    for i in range(0, len(x), _AT_ONCE):
        two = np.partition(lengths - x[i : i + _AT_ONCE] @ book.T, 1, axis=1)
        out[i : i + _AT_ONCE] = 2 * (two[:, 1] - two[:, 0])
    return out


def codes_for(count: int) -> int:
    """A power of two: a book is worth its bytes where each entry serves some sixteen."""
    fair = count / 16
    return 1 << int(np.clip(np.floor(np.log2(max(1.0, fair))), 0, 13)) if count else 0


def learnt(
    x: NDArray[Any], weight: NDArray[Any], codes: int, *, rounds: int, chunk: int, seed: int
) -> NDArray[Any]:
    """float32 [codes, D] by moving averages of weighted counts and sums, over chunks drawn by lot; in each round the
    least used codes become the most important vectors of the chunk."""
    rng = np.random.default_rng(seed)
    x = np.ascontiguousarray(x, np.float32)
    weight = np.asarray(weight, np.float64) + 1e-12
    weight = weight / weight.mean()
    book = x[rng.choice(len(x), codes, replace=False)]
    counts, sums = np.ones(codes), book.astype(np.float64)
    few = max(1, REPLACED * codes // LARGEST) if codes > 1 else 0
    for turn in range(rounds):
        some = rng.choice(len(x), chunk, replace=False) if chunk < len(x) else np.arange(len(x))
        part, heavy = x[some], weight[some]
        at = nearest(part, book)
        mass = np.bincount(at, heavy, codes)
        moved = np.stack([np.bincount(at, heavy * part[:, d], codes) for d in range(x.shape[1])], 1)
        counts = DECAY * counts + (1 - DECAY) * mass
        sums = DECAY * sums + (1 - DECAY) * moved
        steady = (counts + SMOOTH) / (counts.sum() + codes * SMOOTH) * counts.sum()
        book = (sums / steady[:, None]).astype(np.float32)
        if few and turn < _SETTLE * rounds:
            _replaced(book, counts, sums, part, heavy, at, few)
    return book


def _replaced(book: Any, counts: Any, sums: Any, x: Any, weight: Any, at: Any, few: int) -> None:
    """The entries that would be missed least are put where most importance is missed by most, if that is more."""
    worth = np.bincount(at, weight * _missing(x, book), len(book))
    least = np.argsort(worth, kind="stable")[:few]
    missed = weight * ((x - book[at]) ** 2).sum(1)
    best = np.argsort(-missed, kind="stable")[: len(least)]
    least = least[: len(best)]
    better = missed[best] > worth[least]
    least, best = least[better], best[better]
    book[least], counts[least] = x[best], weight[best]
    sums[least] = weight[best, None] * x[best]


def ordered(book: NDArray[Any]) -> NDArray[Any]:
    """Which entries follow which, so that the bits of their numbers mean something: halved along the axis of most
    variance, again and again."""
    out: list[Any] = []

    def walk(some: Any) -> None:
        if len(some) <= 1:
            out.extend(some)
            return
        away = book[some].astype(np.float64)
        away = away - away.mean(0)
        axis = np.linalg.eigh(away.T @ away)[1][:, -1]
        axis = axis * (1 if axis[np.argmax(np.abs(axis))] > 0 else -1)
        order = some[np.argsort(away @ axis, kind="stable")]
        first = 1 << (len(some) - 1).bit_length() - 1  # so that the highest bit is the first cut
        walk(order[:first])
        walk(order[first:])

    walk(np.arange(len(book)))
    return np.array(out, np.int64)
