"""What host memory holds: fp32 weights, both moments and gradients of this owner's slices, and the update of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdall.optional import lazy
from holdall.parts.partition import Span, buckets, offsets, padded, pieces

torch = lazy("torch", extra="training")


class Tile(NamedTuple):
    """Elements of the whole vector that lie at `at` of this owner's."""

    start: int
    stop: int
    at: int


@dataclass(frozen=True)
class Cut:
    """A vector of tensors in buckets, each shared by the owners in equal slices; `mine` are this owner's."""

    sizes: list[int]
    buckets: list[Span]
    mine: list[Tile]
    owners: int
    owner: int

    @classmethod
    def of(cls, sizes: Sequence[int], capacity: int, owners: int = 1, owner: int = 0) -> Cut:
        count = offsets(sizes)[-1]
        spans = buckets(count, max(min(capacity, padded(count, owners)), owners), owners)
        mine, at = [], 0
        for start, stop in spans:
            each = padded(stop - start, owners) // owners
            a = min(start + owner * each, stop)
            b = min(a + each, stop)
            mine.append(Tile(a, b, at))
            at += b - a
        return cls(list(sizes), spans, mine, owners, owner)

    @property
    def count(self) -> int:
        return offsets(self.sizes)[-1]

    @property
    def own(self) -> int:
        return self.mine[-1].at + self.mine[-1].stop - self.mine[-1].start if self.mine else 0

    def tiles(self, size: int) -> Iterator[Tile]:
        for start, stop, at in self.mine:
            for a in range(start, stop, size):
                yield Tile(a, min(a + size, stop), at + a - start)


class Host:
    """fp32 weights and moments [own], and `sets` of gradients in their own format."""

    def __init__(self, cut: Cut, kind: Any, sets: int, pinned: bool):
        self.cut = cut

        def made(dtype: Any) -> Any:
            return torch.zeros(cut.own, dtype=dtype, pin_memory=pinned)

        self.p, self.m, self.v = (made(torch.float32) for _ in range(3))
        self.grads = [made(kind) for _ in range(sets)]
        self.t = [0] * len(cut.sizes)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.p, self.m, self.v, *self.grads))

    def take(self, params: Sequence[Any], states: Sequence[dict[str, Any]]) -> None:
        """From whole tensors: what this owner has of them."""
        self.t = [int(s["step"]) if "step" in s else 0 for s in states]
        for start, stop, at in self.cut.mine:
            for n, a, b, where in pieces(self.cut.sizes, (start, stop)):
                here = slice(at + where, at + where + b - a)
                self.p[here] = params[n].detach().reshape(-1)[a:b].float()
                for mine, key in ((self.m, "exp_avg"), (self.v, "exp_avg_sq")):
                    if key in states[n]:
                        mine[here] = states[n][key].reshape(-1)[a:b].float()

    def squares(self, which: int, factor: float) -> float:
        """The sum of squares of this owner's gradients; not finite where one is not."""
        from holdall.training.adam_kernel import squares

        return squares(self.grads[which], factor)

    def update(
        self,
        tile: Tile,
        which: int,
        hypers: Sequence[Any],
        factor: float,
        out: Any,
        pool: Executor | None,
        shares: int,
    ) -> None:
        """AdamW on a tile, its weights into `out` in the device's format. hypers: None for tensors that stay."""
        from holdall.training.adam_kernel import adamw, tail_of

        grads = self.grads[which]
        for n, a, b, where in pieces(self.cut.sizes, (tile.start, tile.stop)):
            here, there = slice(tile.at + where, tile.at + where + b - a), slice(where, where + b - a)
            if hypers[n] is None:
                out[there].copy_(self.p[here])
                continue
            tail = tail_of(self.cut.sizes[n], a, b)
            adamw(
                self.p[here], self.m[here], self.v[here], grads[here], hypers[n], out[there], factor, tail,
                pool if b - a > 1 << 18 else None, shares,
            )  # fmt: skip
