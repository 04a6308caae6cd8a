"""A saved memory, which several saved tensors may be views of: here, on its way to disk, there, or read back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from holdall.errors import BadInput
from holdall.parts.paging import Arena, Span

_LINE = 64  # bytes: where memories begin, whatever is in them


class Probe:
    """Says whether a tensor was changed in place since; holds none of its memory."""

    def __init__(self, x: Tensor):
        self._counter = x.detach()
        self._counter.data = torch.empty(0, dtype=x.dtype)  # the numbers go, the counter of versions stays
        self._version = x._version

    def changed(self) -> bool:
        return self._counter._version != self._version


def extent(x: Tensor) -> tuple[int, int]:
    """[low, high) of the bytes of its storage that x looks at."""
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else -1
    begin = int(x.storage_offset())
    return begin * x.itemsize, int(begin + last + 1) * x.itemsize


def region(x: Tensor) -> tuple[int, int]:
    """What is stored of x's storage: all of it where x is most of it, so that its other views find themselves there."""
    low, high = extent(x)
    size = x.untyped_storage().nbytes()
    return (0, size) if 2 * (high - low) >= size else (low // _LINE * _LINE, high)


class Entry:
    """Bytes [low, high) of one storage at one version. users: saved tensors that look at it."""

    def __init__(self, x: Tensor, owner: StorageWeakRef, low: int, high: int):
        self.owner, self.low, self.high = owner, low, high
        self.place: Any
        self.users = self.seen = 0
        self.task = -1  # the backward pass that had it last
        self.final: Any = None  # gives its place back
        self.goes, self.index = False, 0  # to disk; its number in the pass that it is of
        self.span: Span | None = None
        self._strong: Any = x.untyped_storage()
        self._probe, self._changed = Probe(x), False
        self._future: Future[int] | None = None
        self._back: tuple[np.ndarray, Future[int]] | None = None
        self._lent: weakref.ref[np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        return self.high - self.low

    @property
    def here(self) -> bool:
        """Whether its own memory is held by it: kept, or not written yet."""
        return self._strong is not None

    @property
    def coming(self) -> bool:
        return self._back is not None

    @property
    def pending(self) -> bool:
        return self._strong is not None and self._future is not None

    def covers(self, low: int, high: int) -> bool:
        return self.low <= low and high <= self.high

    def write(
        self, arena: Arena, done: Callable[[int, BaseException | None], None]
    ) -> tuple[Span, Future[int]]:
        """Begin to write it. done: bytes that were written, and what went wrong; in another thread."""
        memory = torch.empty(0, dtype=torch.uint8).set_(self._strong, self.low, (self.nbytes,), (1,))
        span = arena.place(self.nbytes)
        try:
            future = self._future = arena.write(span, memory)
        except BaseException:
            arena.free(span)
            raise
        self.span = span
        this = weakref.ref(self)

        def written(f: Future[int]) -> None:
            fault = None if f.cancelled() else f.exception()
            entry = this()
            if entry is not None and not f.cancelled() and fault is None:
                entry._left()
            done(0 if f.cancelled() or fault else f.result(), fault)

        future.add_done_callback(written)
        return span, future

    def _left(self) -> None:
        self._changed = self._probe.changed()  # what is on disk may be of before or after
        self._strong = None

    def stay(self, arena: Arena) -> bool:
        """It is wanted soon: not written, if that has not begun."""
        if self._future is None or not self._future.cancel():
            return False
        assert self.span is not None
        arena.free(self.span)
        self._future = self.span = None
        return True

    def wait(self) -> None:
        if self._future is not None and not self._future.cancelled():
            self._future.exception()

    def alive(self) -> Any:
        """Its storage, if it is held here or anybody still has it; None where it can only be read."""
        storage = self._strong
        if storage is None and not self._probe.changed():
            storage = torch.UntypedStorage._new_with_weak_ptr(self.owner.cdata)
        if (storage is not None and self._probe.changed()) or self._changed:
            raise BadInput(
                "saved tensor",
                "one that was changed in place before it was written",
                "operations in place only before what needs the old numbers, as in plain torch",
            )
        return storage

    def lent(self) -> np.ndarray | None:
        """What was read, if somebody still looks at it."""
        if self._back is not None:
            return self._back[0]
        return self._lent() if self._lent is not None else None

    def fetch(self, arena: Arena, held: np.ndarray) -> Future[int]:
        """Begin to read it."""
        assert self.span is not None
        future = arena.read(self.span, held)
        self._back = held, future
        return future

    def given(self) -> tuple[np.ndarray, bool]:
        """What was read, and whether that had to be waited for. After its last user it is let go."""
        if self._back is None:
            held = self._lent() if self._lent is not None else None
            assert held is not None
            return held, False
        held, future = self._back
        late = not future.done()
        try:
            future.result()
        except BaseException:
            self._back = None  # another try reads again
            raise
        self._lent = weakref.ref(held)
        return held, late

    def used(self) -> None:
        """One more of its users has it; after all of them nothing read is held (it may be read again)."""
        self.seen += 1
        if self.seen >= self.users:
            self.seen, self._back = 0, None


class Handle:
    """What autograd keeps in place of a tensor."""

    __slots__ = ("dtype", "entry", "offset", "scope", "shape", "stride")

    def __init__(self, x: Tensor, entry: Entry, scope: Any):
        self.entry, self.shape, self.stride, self.dtype, self.scope = (
            entry,
            x.shape,
            x.stride(),
            x.dtype,
            scope,
        )
        self.offset = x.storage_offset()
        entry.users += 1

    def __del__(self) -> None:
        self.entry.users -= 1

    def over(self, storage: Any, low: int = 0) -> Tensor:
        """The tensor over a storage which begins at byte `low` of its own."""
        offset = self.offset - low // self.dtype.itemsize
        return torch.empty(0, dtype=self.dtype).set_(storage, offset, self.shape, self.stride)


class Kept:
    """A tensor that stays as it is (small, a parameter, an input): only its version is watched, as autograd does."""

    __slots__ = ("tensor", "version")

    def __init__(self, x: Tensor):
        # a graph must not hold its own outputs
        self.tensor = x if x.is_leaf else x.detach()
        self.version = x._version

    def again(self) -> Tensor:
        if self.tensor._version != self.version:
            raise BadInput(
                "saved tensor",
                f"one that was changed in place (version {self.tensor._version}, saved {self.version})",
                "no changes between forward and backward",
            )
        return self.tensor
