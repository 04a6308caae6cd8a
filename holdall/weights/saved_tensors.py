"""What autograd saves of a clustering, held in a hundredth of the bytes until the way back.

Three mechanisms, each of which can be left out. Tensors of less than 64 k numbers are left alone.

marshaling      what is there already is not held twice: the same storage under another view, or what a few casts, views
                and clamps, found by walking back the graph, make of something held. They are done again on the way back
uniquification  16-bit weights have few different values, so maps of them have few different rows: a table of those, and
                one list of 16-bit indices that all maps of a weight share
sharding        learners that hold the same weights keep a part each, and gather it on the way back

Whatever is not held as it was is made again and compared bit by bit before it is let go.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from holdall.weights.replays import ancestors, dense, flattened, same_bits
from holdall.weights.saved_sources import Index, Kept, Piece, Rows, Source, agreed

LEAST, HOPS = 1 << 16, 4


class Saving:
    """How to hold, and how much is: `held` bytes now, `peak` at most. Open (`with`), palettes hold their maps so.

    group: of torch.distributed, whose learners all hold the same weights. hops: how far to walk back. With neither
    marshaling nor uniquification every saved tensor is a copy, as where what is saved is moved away.
    """

    _open: list[Saving] = []  # noqa: RUF012 (the last one counts)

    def __init__(self, *, marshal: bool = True, unique: bool = True, group: Any = None, hops: int = HOPS,
                 least: int = LEAST):  # fmt: skip
        self.marshal, self.unique, self.group, self.hops, self.least = marshal, unique, group, hops, least
        self.held = self.peak = 0

    def __enter__(self) -> Saving:
        self._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.remove(self)

    @contextlib.contextmanager
    def of(self, w: torch.Tensor) -> Iterator[None]:
        """Hold what is saved within, maps of the 16-bit weights w."""
        scope = _Scope(self, w)
        with torch.autograd.graph.saved_tensors_hooks(scope.pack, Kept.tensor):
            yield
        if scope.index is not None:
            scope.index.release()

    def count(self, owner: object, nbytes: int) -> None:
        self.held += nbytes
        self.peak = max(self.peak, self.held)
        weakref.finalize(owner, self._less, nbytes)

    def _less(self, nbytes: int) -> None:
        self.held -= nbytes


def saved(w: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """What is saved within is held as the open `Saving` says, if there is one."""
    return Saving._open[-1].of(w) if Saving._open else contextlib.nullcontext()


class _Scope:
    """The forward pass of one weight: knows what it has put where, and goes when the pass is over."""

    def __init__(self, saving: Saving, w: torch.Tensor):
        self.saving, self.w = saving, w
        self.index: Index | None = None
        self._storages: dict[tuple[int, ...], tuple[StorageWeakRef, Source]] = {}
        self._nodes: dict[Any, tuple[Source, Any]] = {}
        if w.grad_fn is None and saving.marshal:  # somebody else holds it
            self._note(w, Piece(flattened(w), saving, free=True))

    def pack(self, t: torch.Tensor) -> Kept:
        layout = (t.shape, t.stride())
        if t.numel() < self.saving.least or not dense(t):
            return Kept(Piece(t.detach(), self.saving, share=False), layout)
        if self.saving.marshal:
            found = self._same(t) or self._derived(t)
            if found is not None:
                return found
        source = self._stored(t)
        self._note(t, source)
        return Kept(source, layout)

    def _same(self, t: torch.Tensor) -> Kept | None:
        """The same numbers of the same storage."""
        found = self._storages.get(_place(t))
        return None if found is None else Kept(found[1], (t.shape, t.stride()))

    def _derived(self, t: torch.Tensor) -> Kept | None:
        """What few cheap steps make of something held."""
        for node, steps in ancestors(t.grad_fn, self.saving.hops) if t.grad_fn is not None else ():
            found = self._nodes.get(node)
            if found is None and hasattr(node, "variable") and dense(node.variable):  # a leaf
                leaf = node.variable
                found = Piece(flattened(leaf), self.saving, free=True), (leaf.shape, leaf.stride())
            if found is not None:
                kept = Kept(found[0], (t.shape, t.stride()), found[1], steps)
                return kept if same_bits(flattened(kept.tensor()), flattened(t)) else None
        return None

    def _note(self, t: torch.Tensor, source: Source) -> None:
        """The reference keeps the storage's number from being given to another one, and nothing else of it."""
        self._storages[_place(t)] = (StorageWeakRef(t.untyped_storage()), source)
        if t.grad_fn is not None:
            self._nodes[t.grad_fn] = (source, (t.shape, t.stride()))

    def _stored(self, t: torch.Tensor) -> Source:
        numbers, saving = flattened(t), self.saving
        columns, rest = divmod(t.numel(), self.w.numel())
        if saving.unique and not rest and columns * t.dtype.itemsize > 2 and self.w.dtype.itemsize == 2:
            if self.index is None:
                self.index = Index(self.w, saving)
            table = numbers.view(-1, columns)[self.index.first]
            if same_bits(table.index_select(0, self.index.rows()).reshape(-1), numbers):
                return Rows(table, self.index, saving)
        if not rest:  # made of the weights alone: the same for all learners
            agreed(self.w.detach().contiguous().view(torch.int16), saving.group)
        copied = not saving.marshal and saving.group is None
        return Piece(numbers.clone() if copied else numbers, saving, share=not rest)


def _place(t: torch.Tensor) -> tuple[int, ...]:
    return t.untyped_storage()._cdata, t._version, int(t.storage_offset()), t.numel(), t.dtype.itemsize
