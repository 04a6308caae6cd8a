"""Stage 3: where the parameters of some modules are while these run; else there is no memory behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from holdall.parts import partition
from holdall.training.zero_buckets import Bucket, Live
from holdall.training.zero_wire import Pending, Wire


class Room:
    """The buckets of one run and vector, end to end. Autograd's own views of weights stay valid from forward to
    backward, as the same storage is emptied and filled again."""

    def __init__(self, buckets: list[Bucket], wire: Wire, live: Live):
        self.buckets, self.wire, self.live, self.filled = buckets, wire, live, False
        self.vector, begin = buckets[0].vector, buckets[0].span[0]
        self.pieces = partition.pieces(self.vector.sizes, (begin, buckets[-1].span[1]))
        self.params = [self.vector.params[p.tensor] for p in self.pieces]
        self.trained = buckets[0].trained

    @torch.no_grad()
    def cut(self) -> None:
        """Take the parameters, as the first worker has them; keep this worker's slices, and nothing else."""
        self.whole: Tensor = self.vector.like.new_zeros(sum(b.padded for b in self.buckets))
        self.bytes = self.whole.nbytes
        partition.gather_into(self.whole, self.vector.params, self.pieces)
        for b, part in zip(self.buckets, self.whole.split([b.padded for b in self.buckets]), strict=True):
            self.wire.send_first(part)
            b.full = part
            b.shard = b.parts()[self.wire.rank].clone()
        self.filled = True
        self.live.count(self.bytes)
        self.empty()

    def fill(self) -> list[Pending]:
        """All of it is on its way, from all owners."""
        self.whole.untyped_storage().resize_(self.bytes)
        self.filled = True
        self.live.count(self.bytes)
        try:
            return [self.wire.gather(b.shard, b.parts()) for b in self.buckets if b.shard is not None]
        except BaseException:
            self.empty()
            raise

    def show(self) -> None:
        """Let the modules see what was filled."""
        for p, piece in zip(self.params, self.pieces, strict=True):
            p.data = self.whole[piece.at :][: piece.stop].view(self.vector.shapes[piece.tensor])

    def empty(self) -> None:
        """Give the memory back. Whoever reads a parameter that is not there reads NaN, of its right shape."""
        if not self.filled:
            return
        for p, piece in zip(self.params, self.pieces, strict=True):
            p.data = self.vector.like.new_full((), torch.nan).expand(self.vector.shapes[piece.tensor])
        self.whole.untyped_storage().resize_(0)
        self.filled = False
        self.live.count(-self.bytes)

    def leave(self) -> None:
        """Filled and shown for good, in tensors of their own: files of tensors that share memory would hold it all."""
        for pending in self.fill():
            pending.wait()
        self.show()
        for p in self.params:
            p.data = p.data.clone()
        self.whole.untyped_storage().resize_(0)
        self.live.count(-self.bytes)
