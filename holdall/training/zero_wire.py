"""What workers of ZeRO say to each other: a vector gathered, a vector summed and shared, and who did not come.

All is counted as it is sent. Gloo makes its reduce-scatter of a whole all-reduce and sends everything twice, so here
parts go to their owners by an all-to-all, and owners sum them in the order of ranks: as many bytes as the formula
has, and the same sum however the vector is cut.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from holdall.errors import HoldallError

_SLICES = 4  # after this part of the timeout a worker says that it waits
_sessions: Counter[str] = Counter()


class Pending:
    """Something under way. `wait` finishes it, once; what it gives is given again to who asks again."""

    def __init__(self, finish: Callable[[], Any]):
        self._finish: Callable[[], Any] | None = finish
        self._value: Any = None

    def wait(self) -> Any:
        if self._finish is not None:
            finish, self._finish = self._finish, None
            self._value = finish()
        return self._value


class Wire:
    """The workers of one run. With one worker nothing is sent, and torch.distributed is not asked at all."""

    def __init__(self, group: Any = None, timeout: float = 600.0):
        self.counts: Counter[str] = Counter()
        self.waited, self.broken, self._timeout = 0.0, False, timeout
        self.rank, self.size, self.ranks, self._group = 0, 1, [0], None
        if not dist.is_initialized() or dist.get_world_size(group) == 1:
            return
        self._group = group or dist.distributed_c10d._get_default_group()
        self.ranks = dist.get_process_group_ranks(self._group)
        self.rank, self.size = dist.get_rank(self._group), len(self.ranks)
        self._native = dist.get_backend(self._group) == "nccl"
        self._backend = self._group._get_backend(torch.device("cuda" if self._native else "cpu"))
        self._before = self._backend.options._timeout
        self._backend._set_default_timeout(timedelta(seconds=timeout))
        self._store = dist.distributed_c10d._get_default_store()
        _sessions[self._group.group_name] += (
            1  # workers open the same sessions, so that this is one name for all
        )
        self._place = f"holdall/zero/{self._group.group_name}/{_sessions[self._group.group_name]}"

    def close(self) -> None:
        if self._group is not None:
            self._backend._set_default_timeout(self._before)
        self._group = None

    def gather(self, part: Tensor, parts: list[Tensor]) -> Pending:
        """Everybody's part into `parts`, in the order of ranks; `part` may be one of them."""
        self._count("gathers", part)
        if self.size == 1:
            if parts[0].data_ptr() != part.data_ptr():
                parts[0].copy_(part)
            return Pending(lambda: None)
        work = dist.all_gather(parts, part, group=self._group, async_op=True)
        return Pending(lambda: self._done(work, "gathering parameters"))

    def scatter(self, vector: Tensor, space: Tensor) -> Pending:
        """This worker's part of the mean of everybody's vectors, as a new tensor. space: as large as the vector."""
        each = vector.numel() // self.size
        self._count("reductions", vector[:each])
        if self.size == 1:
            return Pending(vector.clone)
        if self._native:
            part = vector.new_empty(each)
            work = dist.reduce_scatter_tensor(part, vector, group=self._group, async_op=True)

            def mean() -> Tensor:
                self._done(work, "reducing gradients")
                return part.div_(self.size)

            return Pending(mean)
        work = dist.all_to_all_single(space, vector, group=self._group, async_op=True)

        def summed() -> Tensor:
            self._done(work, "reducing gradients")
            parts = space.view(self.size, each)
            total = parts[0].to(torch.promote_types(vector.dtype, torch.float32), copy=True)
            for part in parts[1:]:
                total += part
            return total.div_(self.size).to(vector.dtype)

        return Pending(summed)

    def sum(self, numbers: Tensor) -> Tensor:
        """A few numbers, summed over all workers, in place."""
        if self.size > 1:
            work = dist.all_reduce(numbers, group=self._group, async_op=True)
            self._done(work, "adding up a number")
        return numbers

    def send_first(self, vector: Tensor) -> None:
        """The first worker's vector to all, in place."""
        if self.size > 1:
            work = dist.broadcast(vector, src=self.ranks[0], group=self._group, async_op=True)
            self._done(work, "sending the first worker's parameters")

    def _count(self, what: str, part: Tensor) -> None:
        self.counts[what] += 1
        self.counts["sent_elements"] += part.numel() * (self.size - 1)
        self.counts["sent_bytes"] += part.nbytes * (self.size - 1)

    def _done(self, work: Any, what: str) -> None:
        """Until the work is done. Who waits long says so in the store; who is missing there is named."""
        start = time.perf_counter()
        self.counts["waits"] += 1
        try:
            if self._native:
                work.wait()  # on the device's own clock; its watchdog knows the timeout
                return
            try:
                work.wait(timedelta(seconds=self._timeout / _SLICES))
            except RuntimeError:  # not yet, or never: the second call says which
                self._store.set(self._key(self.rank), "waits")
                work.wait(
                    timedelta(seconds=self._timeout)
                )  # gloo gives up sooner: its time began with the work
                self._store.delete_key(self._key(self.rank))
        except RuntimeError as fault:
            self.broken = True
            raise HoldallError(self._missing(what)) from fault
        finally:
            self.waited += time.perf_counter() - start

    def _missing(self, what: str) -> str:
        """One line about who did not come."""
        try:
            ranks = [f"rank {self.ranks[r]}" for r in self._silent()]
        except RuntimeError:  # the store is gone with the process that held it
            ranks = ["the rank that holds the store"]
        return (
            f"{' and '.join(ranks) or 'a rank'} did not come to {what} (wait {self.counts['waits']}) within "
            f"{self._timeout:g} s: hung, or gone; start all {self.size} ranks again from the last checkpoint"
        )

    def _silent(self) -> list[int]:
        """Who did not say that they wait, after a moment in which they may."""
        ends = time.monotonic() + min(2.0, self._timeout / 2)
        missing = [r for r in range(self.size) if r != self.rank]
        while len(missing) > 1 and time.monotonic() < ends:
            missing = [r for r in missing if not self._store.check([self._key(r)])]
            time.sleep(0.02)
        return missing

    def _key(self, rank: int) -> str:
        return f"{self._place}/{rank}"
