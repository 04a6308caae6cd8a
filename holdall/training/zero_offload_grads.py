"""Gradients on their way: into buckets as they come, to their owners, and to host memory while backward goes on."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from holdall.optional import lazy
from holdall.parts.partition import padded, pieces
from holdall.training.zero_offload_host import Host
from holdall.training.zero_offload_link import Device, link_to

if TYPE_CHECKING:
    from holdall.training.zero_offload import ZeROOffload

torch = lazy("torch", extra="training")


class Gradients:
    """came: tensors that had a gradient since the last step. inside: whether a backward pass is going on."""

    def __init__(self, recipe: ZeROOffload, host: Host, device: Device, weights: Any, wire: Any):
        self._recipe, self._host, self._device, self._wire = recipe, host, device, wire
        self._cut, self._kind, self._where = host.cut, weights.dtype, weights.device
        self._parts = [pieces(self._cut.sizes, span) for span in self._cut.buckets]
        self._members = [{part.tensor for part in parts} for parts in self._parts]
        self._open: dict[int, tuple[Any, set[int]]] = {}  # buckets that are being filled, and who is missing
        self._copies: list[Future[None]] = []
        self.link = link_to(self._where, recipe.link)
        self.came: set[int] = set()
        self.micro, self.into, self.inside = 0, 0, False
        self.told = {"buckets": 0, "buckets_in_backward": 0}

    def arrived(self, n: int, p: Any) -> None:
        """It moves to the buckets that it lies in; those that are full are on their way at once."""
        nbytes, flat = p.grad.nbytes, p.grad.reshape(-1)
        self._device.take(nbytes, "a gradient")
        p.grad = None
        self.came.add(n)
        for b, members in enumerate(self._members):
            if n not in members:
                continue
            if b not in self._open:
                self._open[b] = self._fresh(b), set(members)
            vector, missing = self._open[b]
            for part in self._parts[b]:
                if part.tensor == n:
                    vector[part.at : part.at + part.stop - part.start] = flat[part.start : part.stop]
            missing.discard(n)
            if not missing:
                self._off(b)
        self._device.give(nbytes)

    def done(self) -> None:
        """The end of one backward pass: buckets that wait for tensors without a gradient are sent as they are."""
        for b in range(len(self._cut.buckets)):
            if b not in self._open and not self._members[b] & self.came:
                self._open[b] = self._fresh(b), set()
            if b in self._open:
                self._off(b)
        while self._copies:
            self._copies.pop(0).result()
        self.micro += 1

    def next(self) -> set[int]:
        """Start the next step: who had a gradient in this one."""
        came, self.came, self.micro = self.came, set(), 0
        return came

    def drop(self) -> None:
        """Forget a step that failed, and give its bytes back."""
        for copy in self._copies:
            if not copy.cancel():
                copy.exception()
        held = sum(vector.nbytes for vector, _ in self._open.values())
        self._copies.clear()
        self._open.clear()
        self._device.give(held)
        self.inside = False
        self.next()

    def _fresh(self, b: int) -> Any:
        """An empty bucket; there are two at most, so that who computes faster than the link waits for it."""
        start, stop = self._cut.buckets[b]
        size = padded(stop - start, self._cut.owners)
        while len(self._copies) + len(self._open) > 1 and self._copies:
            self._copies.pop(0).result()
        self._device.take(size * self._kind.itemsize, "a bucket of gradients")
        return torch.zeros(size, dtype=self._kind, device=self._where)

    def _off(self, b: int) -> None:
        """To its owners, then this owner's slice to host memory; then its bytes are free."""
        vector, _ = self._open.pop(b)
        nbytes = vector.nbytes
        if self._wire is not None:
            vector = self._wire.scatter(vector, torch.empty_like(vector)).wait()
        tile = self._cut.mine[b]
        size = tile.stop - tile.start
        target = self._host.grads[self.into][tile.at : tile.at + size]
        self.told["buckets"] += 1
        self.told["buckets_in_backward"] += self.inside and self._recipe.overlap
        give = _Once(self._device, nbytes)
        copy = self.link.copy(target, vector[:size], self.micro > 0, give)
        copy.add_done_callback(lambda _: give())
        self._copies.append(copy)
        if not self._recipe.overlap:
            self._copies.pop().result()


class _Once:
    """Gives bytes back, once, however a copy ends."""

    def __init__(self, device: Device, nbytes: int):
        self._device, self._nbytes = device, nbytes

    def __call__(self) -> None:
        nbytes, self._nbytes = self._nbytes, 0
        self._device.give(nbytes)
