"""The tensor cache: what autograd saves goes to disk while the step computes, and comes back before it is wanted."""

from __future__ import annotations

import math
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as trees

from holdall.errors import BadInput
from holdall.memory import release, return_early
from holdall.parts.paging import Arena
from holdall.training.ssdtrain_disk import Disk
from holdall.training.ssdtrain_entry import Entry, Handle, Kept, extent, region
from holdall.training.ssdtrain_passes import Limit, Plans
from holdall.training.ssdtrain_plan import YEAR, life_years
from holdall.training.ssdtrain_scopes import Scopes, backward_now

if TYPE_CHECKING:
    from holdall.training.ssdtrain import SSDTrain


class TensorCache:
    """Around forward and backward of one step or of many. `traffic` counts; `flow` tells what hung on the moment."""

    def __init__(self, recipe: SSDTrain, module: nn.Module, arena: Arena, limit: int | None):
        self.recipe, self.module = recipe, module
        window = recipe.window if limit is None else min(recipe.window, limit // 4)
        self.disk = Disk(arena, window, recipe.choose != "all")
        self.limit = None if limit is None else Limit(limit, recipe.full_name())
        self._plans = Plans(recipe.choose, window, self.limit, self.disk.writes, self.disk.reads)
        self._table: dict[Any, list[weakref.ref[Entry]]] = {}
        self._live: weakref.WeakSet[Entry] = weakref.WeakSet()
        self._strange: dict[int, Any] = {}
        self._pass = self._plans.begin(None, 0.0)
        self._task, self._turned, self._open, self._since = -1, False, True, 0.0
        self._counts: Counter[str] = Counter()
        self._scopes = Scopes(module, self._begins)
        self._hooks: Any = None
        return_early()  # or what was freed would stay resident

    def __enter__(self) -> Self:
        self._check()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: object, trace: TracebackType | None) -> None:
        self.leave()
        self.close()

    def leave(self) -> None:
        """What is saved from now on is not its business; what was still is."""
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None
        self._scopes.reset()
        if self.limit is not None:
            self.limit.stop()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._scopes.close()
            self.disk.close()
            release()

    # forward

    def pack(self, x: Tensor) -> Any:
        self._counts["saves"] += 1
        if not self._ours(x):
            return Kept(x)
        self._check()
        self.disk.check()
        low, high = extent(x)
        self._counts["saved_bytes"] += x.nbytes
        owner = StorageWeakRef(x.untyped_storage())
        known = self._table.setdefault((owner.cdata, x._version), [])
        found = [e for e in (r() for r in known) if e is not None and e.covers(low, high)]
        entry = found[0] if found else self._enter(x, owner, known)
        return Handle(x, entry, self._scopes.add(entry))

    def _ours(self, x: Tensor) -> bool:
        """Large, of no parameter and no input; what is saved during backward is wanted at once."""
        if x.device.type != "cpu" or x.layout != torch.strided or type(x) not in (Tensor, nn.Parameter):
            return False
        if (x.is_leaf and x.requires_grad) or x.is_conj() or x.is_neg() or backward_now() != -1:
            return False
        low, high = extent(x)
        return high - low >= self.recipe.small and x.untyped_storage()._cdata not in self._strange

    def _enter(self, x: Tensor, owner: Any, known: list[weakref.ref[Entry]]) -> Entry:
        entry = Entry(x, owner, *region(x))
        goes = entry.goes = self._pass.enter(entry, self.disk.clock.now())
        self._counts["unique_bytes"] += entry.nbytes
        if self._pressed() and not self._relieved():
            assert self.limit is not None
            self.limit.refuse()
        if goes or (self.limit is not None and self.limit.tight):
            entry.goes = True
            self.disk.send(entry)
        known.append(weakref.ref(entry))
        self._live.add(entry)
        return entry

    def _pressed(self) -> bool:
        return self.limit is not None and self.limit.over(self._held())

    def _relieved(self) -> bool:
        """All that waits is written, and what is free is given back."""
        self.disk.wait_for(lambda: False)
        release()
        return not self._pressed()

    def _begins(self, module: nn.Module, args: Any, named: Any) -> None:
        """An outermost call: of a new step, if there was a backward since the last one or nothing is wanted of it."""
        self._check()
        self.disk.sweep()
        self._scopes.purge()
        self._table = {k: v for k, v in self._table.items() if any(r() is not None for r in v)}
        given = [x for x in trees.tree_leaves((args, named)) if isinstance(x, Tensor)]
        mine = (*module.parameters(), *module.buffers(), *self.module.parameters())
        self._strange = {t.untyped_storage()._cdata: None for t in mine}
        for x in given:  # while they are held, nothing else has their numbers
            owner = StorageWeakRef(x.untyped_storage())
            self._strange[owner.cdata] = owner
        key = id(module), tuple((x.shape, x.dtype) for x in given)
        if self._live and not self._turned:
            return
        self._plans.ended(self._pass)
        if not self._live and self.limit is not None:
            grads = sum(p.grad.nbytes for p in self.module.parameters() if p.grad is not None)
            self.limit.begin(grads + self.disk.buffers.nbytes, self._plans.profiles(key))
        self._pass, self._turned = self._plans.begin(key, self.disk.clock.now()), False
        self._counts["steps"] += 1
        self._since = self._since or time.perf_counter()

    # backward

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Kept):
            return packed.again()
        self._check()
        self.disk.check()
        self.disk.sweep()
        entry, task = packed.entry, backward_now()
        if task not in (-1, self._task):
            self._turns(task)
        entry.place.used(entry, self.disk.clock.now())
        entry.task = task
        storage = entry.alive()
        if storage is not None:
            self.disk.flow["forwarded"] += entry.goes
            tensor = packed.over(storage)
        else:
            tensor = packed.over(torch.from_numpy(self.disk.read(entry)).untyped_storage(), entry.low)
        entry.used()
        if self._pressed():
            self.disk.buffers.drop(self.disk.buffers.nbytes)
        if task != -1 and self.recipe.ahead:
            self.disk.ahead(self._scopes.back_from(packed.scope, self.recipe.ahead), task)
        return tensor

    def _turns(self, task: int) -> None:
        self._task, self._turned = task, True
        if self.limit is not None:
            torch.autograd.Variable._execution_engine.queue_callback(self.limit.ended)
        self.disk.turn()

    # what it holds and tells

    def _held(self) -> int:
        return sum(e.nbytes for e in self._live if e.here) + self.disk.buffers.nbytes

    def traffic(self) -> Mapping[str, float]:
        """Steps, tensors that autograd saved, bytes of those that were large enough, of these each memory once, and
        what was given to the disk; how long a disk lives with that."""
        self._check()
        self.disk.drain()
        names = ("steps", "saves", "saved_bytes", "unique_bytes")
        told: dict[str, float] = {n: self._counts[n] for n in names}
        told["written_bytes"] = self.disk.writes.told()[0]
        each = told["written_bytes"] / max(told["steps"], 1)
        seconds = (time.perf_counter() - self._since) / max(told["steps"], 1)
        told["written_bytes_a_step"] = each
        told["life_steps"] = self.recipe.endurance / each if each else math.inf
        years = life_years(self.recipe.endurance, each, seconds)
        return {**told, "life_seconds": years * YEAR, "waited_seconds": self.disk.clock.stalled}

    def flow(self) -> Mapping[str, float]:
        """Tensors that were forwarded, read ahead, read unforeseen, late; bytes that stayed at the last moment, that
        were read; and up to which byte of a step goes to disk."""
        names = ("forwarded", "prefetched", "unforeseen", "late", "stayed_bytes")
        told: dict[str, float] = {n: self.disk.flow[n] for n in names}
        told["read_bytes"], told["read_seconds"] = self.disk.reads.told()
        told["write_seconds"] = self.disk.writes.told()[1]
        return {**told, "cut_bytes": self._pass.cut, "working_bytes": self.limit.working if self.limit else 0}

    def _check(self) -> None:
        if not self._open:
            raise BadInput("offloaded", "a block that has ended", "forward and backward within it")
