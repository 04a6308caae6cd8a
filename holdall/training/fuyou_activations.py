"""What a block keeps for its backward pass: all of it in memory, all of it on disk, or its input, from which the rest
is worked out again."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from holdall.optional import lazy
from holdall.parts.paging import Arena
from holdall.training.fuyou_pager import Pager

torch = lazy("torch", extra="training")
checkpointing = lazy("torch.utils.checkpoint", extra="training")
_SMALL = 1 << 16  # bytes: below that a place on disk costs more than it frees
_STAGED = 64 << 20  # bytes that wait to be written before the forward pass is held up


class Stored:
    """A saved tensor on disk, or on its way there or back."""

    def __init__(self, x: Any, arena: Arena):
        dense = x.as_strided((x.numel(),), (1,)) if _dense(x) else x.contiguous().view(-1)
        self.shape, self.dtype, self.nbytes = x.shape, x.dtype, x.nbytes
        self.stride = x.stride() if _dense(x) else x.contiguous().stride()
        self._arena, self._span, self._back = arena, arena.place(x.nbytes), None
        staged = arena.buffer(x.nbytes)
        torch.from_numpy(staged).view(x.dtype).copy_(dense)
        self.written: Future[int] = arena.write(self._span, staged)
        weakref.finalize(self, _freed, arena, self._span, self.written)

    _back: tuple[np.ndarray, Future[int]] | None

    def fetch(self) -> None:
        if self._back is None:
            self.written.result()
            held = self._arena.buffer(self.nbytes)
            self._back = held, self._arena.read(self._span, held)

    def tensor(self) -> Any:
        self.fetch()
        assert self._back is not None
        held, read = self._back
        read.result()
        self._back = None
        return torch.from_numpy(held).view(self.dtype).as_strided(self.shape, self.stride)


def _dense(x: Any) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def _freed(arena: Arena, span: Any, written: Future[int]) -> None:
    written.exception()  # a place is used again only when nothing is written to it any more
    arena.free(span)


class Activations:
    """How each block's forward is done. modes: "keep", "disk" or "recompute", by number; all others recompute."""

    def __init__(self, blocks: list[Any], arena: Arena, pager: Pager):
        self._blocks, self._arena, self._pager = blocks, arena, pager
        self.modes: dict[int, str] = {}
        self.told = {"blocks_kept": 0, "blocks_swapped": 0, "blocks_recomputed": 0, "bytes_swapped": 0}
        self._staged: deque[Stored] = deque()
        self._on_disk: dict[int, list[weakref.ref[Stored]]] = {}
        self.before: Callable[[int, Any, Any, Any], None] | None = None  # sees a block's inputs first
        for i, block in enumerate(blocks):
            block.forward = self._wrapped(i, block.forward)

    def close(self) -> None:
        for block in self._blocks:
            del block.forward  # the class's own is there again
        self._staged.clear()

    def _wrapped(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **named: Any) -> Any:
            if self.before is not None:
                self.before(i, real, args, named)
            way = [1]

            def inner(*args: Any, **named: Any) -> Any:
                self._pager.need(i, way[0])
                way[0] = -1  # a second call is the backward pass, which works it out again
                return real(*args, **named)

            if not torch.is_grad_enabled():
                out = inner(*args, **named)
            else:
                out = self._saving(i, inner, args, named)
            self._pager.release(i)
            return out

        return forward

    def _saving(self, i: int, inner: Callable[..., Any], args: Any, named: Any) -> Any:
        mode = self.modes.get(i, "recompute")
        if mode == "recompute":
            self.told["blocks_recomputed"] += 1
            return checkpointing.checkpoint(inner, *args, use_reentrant=False, **named)
        if mode == "keep":
            self.told["blocks_kept"] += 1
            out = inner(*args, **named)
        else:
            self.told["blocks_swapped"] += 1
            mine: list[weakref.ref[Stored]] = []
            self._on_disk[i] = mine
            seen: dict[Any, Any] = {}
            own = {p.untyped_storage().data_ptr() for p in self._blocks[i].parameters()}

            def pack(x: Any) -> Any:
                return self._packed(x, mine, seen, own)

            with torch.autograd.graph.saved_tensors_hooks(pack, _unpacked):
                out = inner(*args, **named)
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.requires_grad:
                x.register_hook(lambda _grad: self._backward_begins(i))
                break
        return out

    def _packed(self, x: Any, mine: list[weakref.ref[Stored]], seen: dict[Any, Any], own: set[int]) -> Any:
        from torch.multiprocessing.reductions import StorageWeakRef

        if x.untyped_storage().data_ptr() in own or x.nbytes < _SMALL or x.device.type != "cpu":
            return x
        owner = StorageWeakRef(x.untyped_storage())  # while it is held, no other storage has its name
        key = (owner.cdata, x.storage_offset(), x.shape, x.stride(), x.dtype, x._version)
        stored = seen[key][1]() if key in seen else None
        if stored is None:
            while self._staged and sum(s.nbytes for s in self._staged) + x.nbytes > _STAGED:
                self._staged.popleft().written.result()
            stored = Stored(x, self._arena)
            self._staged = deque(s for s in (*self._staged, stored) if not s.written.done())
            self.told["bytes_swapped"] += stored.nbytes
            seen[key] = owner, weakref.ref(stored)
            mine.append(seen[key][1])
        return stored

    def _backward_begins(self, i: int) -> None:
        """Its parameters are there before its first gradient is; what the block before it left on disk is read."""
        self._pager.need(i, -1)
        for block in (i, i - 1):
            for ref in self._on_disk.pop(block, ()):
                stored = ref()
                if stored is not None:
                    stored.fetch()


def _unpacked(packed: Any) -> Any:
    return packed.tensor() if isinstance(packed, Stored) else packed
