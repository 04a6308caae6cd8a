"""Gradients on their way to their owners, bucket by bucket."""

from __future__ import annotations

from torch import Tensor, nn

from holdall.training.zero_buckets import Bucket, Live, Vector
from holdall.training.zero_wire import Pending, Wire


class Reduce:
    """Fills buckets with gradients as they come, and reduces full ones from the last to the first, as all workers do,
    while the rest of backward goes on. One reduction is under way at a time, so that buffers do not grow."""

    def __init__(self, vectors: list[Vector], buckets: list[Bucket], stage: int, wire: Wire, live: Live):
        self.vectors, self.stage, self.wire, self.live = vectors, stage, wire, live
        self.trained = [b for b in buckets if b.trained]
        self.at = {p: i for v in vectors for i, p in enumerate(v.params)}
        self.of: dict[nn.Parameter, list[Bucket]] = {p: [] for p in self.at}
        for b in buckets:
            for piece in b.pieces:
                self.of[b.vector.params[piece.tensor]].append(b)
        self.fresh = False  # whether there are gradients that were not reduced
        self._under_way: tuple[Bucket, Pending, list[Tensor]] | None = None
        self._next = len(self.trained) - 1
        self._ready: set[Bucket] = set()

    def take(self, p: nn.Parameter) -> None:
        """A parameter's gradient into its buckets, and free it; buckets that are full are on their way."""
        assert p.grad is not None
        flat, at = p.grad.reshape(-1), self.at[p]
        p.grad = None
        for b in reversed(self.of[p]):
            if b.filling is None:
                b.filling = self.live.lend(b.padded, b.vector.like).zero_()
            piece = b.place[at]
            part, given = b.filling[piece.at :][: piece.stop - piece.start], flat[piece.start : piece.stop]
            if at in b.seen:
                part.add_(given)
                continue
            part.copy_(given)
            b.seen.add(at)
            b.filled += piece.stop - piece.start
            if b.filled == b.count:
                self._ready.add(b)
                self._reduce_what_is_due()

    def _reduce_what_is_due(self) -> None:
        while self._next >= 0 and self.trained[self._next] in self._ready:
            b = self.trained[self._next]
            self._next -= 1
            self._ready.discard(b)
            self._reduce(b)

    def flush(self) -> None:
        """Reduce what no gradient will come for any more; what had none counts as zeros."""
        for i in range(self._next, -1, -1):
            b = self.trained[i]
            if b.filling is None:
                b.filling = self.live.lend(b.padded, b.vector.like).zero_()
            self._reduce(b)
        for b in reversed(self.trained):
            if b.filling is not None:  # gradients came a second time, as with reentrant checkpoints
                self._reduce(b)
        self._next, self.fresh = len(self.trained) - 1, False
        self._ready.clear()

    def _reduce(self, b: Bucket) -> None:
        self.settle()
        vector, b.filling, b.filled = b.filling, None, 0
        assert vector is not None
        b.seen.clear()
        space = self.live.lend(b.padded, vector) if self.wire.size > 1 else vector
        lent = [vector] if space is vector else [vector, space]
        self._under_way = b, self.wire.scatter(vector, space), lent

    def settle(self) -> None:
        """Until the reduction that is under way is done."""
        if self._under_way is None:
            return
        (b, pending, lent), self._under_way = self._under_way, None
        part = pending.wait()
        if self.stage == 0:  # all-reduce: what was reduced goes back to all
            whole = part.new_empty(b.padded)
            self.wire.gather(part, list(whole.split(b.each))).wait()
            part = whole
        for block in lent:
            self.live.back(block)
        if b.grad is not None:
            b.grad += part
        elif b.room is not None:
            b.grad = b.room.copy_(part)
        else:
            b.grad = part

    def complete(self) -> None:
        """Until each slice has the gradient of all workers."""
        if self.stage < 2 and self.fresh:
            for vector in reversed(self.vectors):
                for p in reversed(vector.params):
                    if p.grad is not None:
                        self.take(p)
            self.flush()
        self.settle()

    def forget(self) -> None:
        """Drop what is half reduced."""
        self._under_way, self._next, self.fresh = None, len(self.trained) - 1, False
        self._ready.clear()
        for b in self.trained:
            b.filling, b.filled, b.grad = None, 0, None
            b.seen.clear()
