"""Weights on the device: one vector, renewed tile by tile while host memory updates the next, or a step later."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from holdall.optional import lazy
from holdall.parts.partition import padded, views
from holdall.training.zero_offload_host import Host, Tile
from holdall.training.zero_offload_link import Device, link_to

if TYPE_CHECKING:
    from holdall.training.zero_offload import ZeROOffload

torch = lazy("torch", extra="training")


class Weights:
    """The parameters become views of `vector` until `returned`. pending: an update that is not on the device yet."""

    def __init__(
        self,
        recipe: ZeROOffload,
        host: Host,
        device: Device,
        params: Sequence[Any],
        frozen: Sequence[Any],
        wire: Any,
    ):
        self._recipe, self._host, self._params, self._wire = recipe, host, params, wire
        self._cut, self._was = host.cut, [p.dtype for p in params]
        where, kind = params[0].device, getattr(torch, recipe.weights)
        self.vector = torch.empty(self._cut.count, dtype=kind, device=where)
        device.take(self.vector.nbytes, "weights")
        for p, view in zip(params, views(self.vector, [p.shape for p in params]), strict=True):
            view.copy_(p.detach())
            p.data = view
        self._frozen = [
            (p, p.data) for p in frozen
        ]  # as they were given; on the device in the type of the others
        for p in frozen:
            p.data = p.data.to(kind)
            device.take(p.nbytes, "weights that are not trained")
        late = recipe.delay is not None
        size = max(self._cut.own, 1) if late else min(recipe.tile, max(self._cut.own, 1))
        shape = (1 if late else 2, size)
        self.stage = torch.empty(shape, dtype=kind, pin_memory=where.type == "cuda")
        self.link = link_to(where, recipe.link)
        self._pool = ThreadPoolExecutor(recipe.threads, "holdall-adam") if recipe.threads > 1 else None
        self._late = ThreadPoolExecutor(1, "holdall-update") if late else None
        self.pending: Future[None] | None = None
        self.unsent = False  # host memory is ahead of the device, after a fault
        self.told = {"tiles": 0, "late_updates": 0}

    @property
    def nbytes(self) -> int:
        return int(self.vector.nbytes + sum(p.nbytes for p, _ in self._frozen))

    @property
    def storages(self) -> set[int]:
        """Names of what is on the device anyhow."""
        return {x.untyped_storage()._cdata for x in (self.vector, *(p for p, _ in self._frozen))}

    def apply(self, which: int, hypers: Sequence[Any], factor: float) -> None:
        """Update with a set of gradients, and all weights to the device."""
        self._updated(which, hypers, factor, True)
        self._shared()

    def apply_late(self, which: int, hypers: Sequence[Any], factor: float) -> None:
        """What was updated beside this step goes to the device, and this step's update begins beside the next."""
        assert self._late is not None
        self.land()
        self.pending = self._late.submit(self._updated, which, hypers, factor, False)
        self.told["late_updates"] += 1

    def land(self) -> None:
        if self.pending is not None:
            self.pending.result()
            self.pending = None
            self.send()

    def send(self) -> None:
        """All of this owner's weights as host memory has them."""
        self.unsent = True
        for tile in self._cut.tiles(self._recipe.tile):
            source = self._host.p[tile.at : tile.at + tile.stop - tile.start].to(self.vector.dtype)
            self.told["tiles"] += 1
            self.link.copy(self.vector[tile.start : tile.stop], source).result()
        self.unsent = False
        self._shared()

    def _updated(self, which: int, hypers: Sequence[Any], factor: float, send: bool) -> None:
        sending: list[Future[None]] = []
        faults: list[BaseException] = []

        def waited(most: int) -> None:
            while len(sending) > most:
                fault = sending.pop(0).exception()
                if fault is not None:
                    faults.append(fault)

        for i, tile in enumerate(self._cut.tiles(self._recipe.tile)):
            out = self._staged(i, tile)
            waited(1)  # the copy before the last one had this buffer
            self._host.update(tile, which, hypers, factor, out, self._pool, self._recipe.threads)
            if send:
                self.told["tiles"] += 1
                sending.append(self.link.copy(self.vector[tile.start : tile.stop], out))
                waited(1 if self._recipe.overlap else 0)
        waited(0)
        if faults:
            self.unsent = (
                True  # host memory has the step: the device is given it before the next forward pass
            )
            raise faults[0]

    def _staged(self, i: int, tile: Tile) -> Any:
        size = tile.stop - tile.start
        return self.stage[i % 2, :size] if len(self.stage) > 1 else self.stage[0, tile.at : tile.at + size]

    def _shared(self) -> None:
        """Owners' slices of all buckets, to all."""
        if self._wire is not None:
            for (start, stop), mine in zip(self._cut.buckets, self._cut.mine, strict=True):
                self._gathered(self.vector[start:stop], self.vector[mine.start : mine.stop])

    def _gathered(self, into: Any, part: Any) -> None:
        each = padded(into.numel(), self._cut.owners) // self._cut.owners
        whole, mine = into.new_zeros(each * self._cut.owners), into.new_zeros(each)
        mine[: part.numel()] = part
        self._wire.gather(mine, list(whole.view(self._cut.owners, each))).wait()
        into.copy_(whole[: into.numel()])

    def states(self) -> dict[Any, dict[str, Any]]:
        """As torch's AdamW holds them; with several owners all have to ask."""
        m, v = (views(self._whole(x), [p.shape for p in self._params]) for x in (self._host.m, self._host.v))
        return {
            p: {"step": torch.tensor(float(t)), "exp_avg": m[n].clone(), "exp_avg_sq": v[n].clone()}
            for n, (p, t) in enumerate(zip(self._params, self._host.t, strict=True))
            if t
        }

    def returned(self) -> None:
        """The parameters have memory and types of their own again."""
        whole = views(self._whole(self._host.p), [p.shape for p in self._params])
        for p, full, was in zip(self._params, whole, self._was, strict=True):
            p.data = full.to(self.vector.device, was, copy=True)
        for p, given in self._frozen:
            p.data = given

    def close(self) -> None:
        for pool in (self._pool, self._late):
            if pool is not None:
                pool.shutdown(wait=True)
        self.link.close()

    def _whole(self, vector: Any) -> Any:
        if self._wire is None:
            return vector
        full = torch.empty(self._cut.count)
        for (start, stop), mine in zip(self._cut.buckets, self._cut.mine, strict=True):
            self._gathered(full[start:stop], vector[mine.at : mine.at + mine.stop - mine.start])
        return full
