"""The device and the way to it. On a CPU both are played: an account of bytes that refuses more than its budget, and a
thread that copies at a set rate. On CUDA the same calls use streams and pinned memory (not run on a GPU so far)."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from holdall.errors import BudgetError
from holdall.optional import lazy

torch = lazy("torch", extra="training")


class Device:
    """An account of bytes, with the most that it ever held. None: no limit."""

    def __init__(self, limit: int | None):
        self.limit, self.held, self.peak = limit, 0, 0
        self._lock = threading.Lock()
        self._seen: dict[int, list[int]] = {}  # storages that autograd saved: how often, bytes

    def take(self, nbytes: int, what: str) -> None:
        with self._lock:
            if self.limit is not None and self.held + nbytes > self.limit:
                raise BudgetError(self.limit, self.held + nbytes, who="the device", why=what)
            self.held += nbytes
            self.peak = max(self.peak, self.held)

    def give(self, nbytes: int) -> None:
        with self._lock:
            self.held -= nbytes

    def saving(self, own: set[int]) -> Any:
        """A context in which what autograd saves is on the account until it is forgotten; storages in `own` are on it
        already."""

        def pack(x: Any) -> Any:
            storage = x.untyped_storage()
            if storage._cdata in own or (x.is_leaf and x.requires_grad):
                return _Saved(x)
            return self._saved(x, storage)

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.x)

    def _saved(self, x: Any, storage: Any) -> _Saved:
        name, nbytes = storage._cdata, storage.nbytes()
        if name not in self._seen:
            self.take(nbytes, "activations")
            self._seen[name] = [0, nbytes]
        self._seen[name][0] += 1
        saved = _Saved(x)  # keeps the storage alive, so that no other has its name meanwhile
        weakref.finalize(saved, self._forgotten, name)
        return saved

    def _forgotten(self, name: int) -> None:
        self._seen[name][0] -= 1
        if not self._seen[name][0]:
            self.give(self._seen.pop(name)[1])


class _Saved:
    def __init__(self, x: Any):
        self.x = x if x.is_leaf else x.detach()


class Link:
    """One way of the link: copies in order, in a thread of its own. rate: bytes a second; 0: as fast as it goes."""

    def __init__(self, rate: float = 0.0):
        self._rate, self._free_at = rate, 0.0
        self._pool = ThreadPoolExecutor(1, "holdall-link")
        self.nbytes = self.copies = 0
        self.busy = 0.0

    def copy(
        self, target: Any, source: Any, add: bool = False, then: Callable[[], None] | None = None
    ) -> Future[None]:
        """Copy, or add, `source` to `target`, then call `then`; what goes wrong is raised by `result()`."""
        self.nbytes += source.nbytes
        self.copies += 1
        return self._pool.submit(self._moved, target, source, add, then)

    def _moved(self, target: Any, source: Any, add: bool, then: Callable[[], None] | None) -> None:
        start = time.perf_counter()
        with torch.no_grad():
            target.add_(source) if add else target.copy_(source)
        if self._rate:
            self._free_at = max(self._free_at, start) + source.nbytes / self._rate
            time.sleep(max(0.0, self._free_at - time.perf_counter()))
        self.busy += time.perf_counter() - start
        if then is not None:
            then()

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class CudaLink(Link):
    """The same on a stream of its own; host memory is pinned. Not run on a GPU so far."""

    def __init__(self, rate: float = 0.0):
        super().__init__(rate)
        self._stream = torch.cuda.Stream()

    def copy(
        self, target: Any, source: Any, add: bool = False, then: Callable[[], None] | None = None
    ) -> Future[None]:
        ready = torch.cuda.Event()
        ready.record()  # what fills the source was queued before this
        for x in (target, source):
            if x.is_cuda:
                x.record_stream(self._stream)
        self.nbytes += source.nbytes
        self.copies += 1
        return self._pool.submit(self._streamed, ready, target, source, add, then)

    def _streamed(
        self, ready: Any, target: Any, source: Any, add: bool, then: Callable[[], None] | None
    ) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            if add and not target.is_cuda:  # sums are made in host memory
                source = source.to("cpu", non_blocking=False)
            super()._moved(target, source, add, None)
            self._stream.synchronize()
        if then is not None:
            then()


def link_to(device: Any, rate: float) -> Link:
    return CudaLink(rate) if device.type == "cuda" else Link(rate)
