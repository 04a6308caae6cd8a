"""How ranks of one job talk about a checkpoint: over torch.distributed, or alone (or as threads: bytecheckpoint_hall).

Messages are JSON and raw bytes; nothing is unpickled. What all say to rank 0, and what it answers, goes along a tree.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from holdall.checkpoints.planning import Tree
from holdall.errors import HoldallError
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

PATIENCE = 600.0  # seconds that a rank waits for another


class RankLost(HoldallError):
    """A rank did not answer in time, or its process is gone."""

    def __init__(self, rank: int, why: str, while_: str = ""):
        self.rank, self.why, self.while_ = rank, why, while_
        super().__init__(
            f"rank {rank} {why}{f' while {while_}' if while_ else ''}; the last whole checkpoint stands"
        )


class Ranks(ABC):
    """One rank's line to the others. `twin` is a second line, for talk that goes on in the background."""

    def __init__(self, rank: int, world: int, tree: Tree, patience: float):
        self.rank, self.world, self.tree, self.patience = rank, world, tree, patience

    @abstractmethod
    def send(self, to: int, raw: bytes) -> None: ...

    @abstractmethod
    def receive(self, of: int, patience: float) -> bytes: ...

    @abstractmethod
    def exchange(self, out: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
        """To each rank its bytes; from each as many as `sizes` says."""

    @abstractmethod
    def twin(self) -> Ranks: ...

    def gather(self, value: Any, while_: str = "") -> list[Any] | None:
        """What every rank says, on rank 0; None on others. A rank that does not speak is named."""
        found, lost = {self.rank: value}, []
        for child in self.tree.children(self.rank):
            try:
                told = _plain(self.receive(child, self.patience * (1 + self.tree.height(child))))
                found.update({int(r): v for r, v in told["said"].items()})
                lost += told["lost"]
            except RankLost as fault:
                lost.append([child, fault.why])
        parent = self.tree.parent(self.rank)
        if parent is None:
            if lost:
                rank, why = max(lost)  # the farthest down: those above it only wait for it
                raise RankLost(rank, why, while_)
            return [found[r] for r in range(self.world)]
        self.send(parent, _raw({"said": found, "lost": lost}))
        return None

    def scatter(self, values: Sequence[Any] | None, while_: str = "") -> Any:
        """Rank 0 gives every rank its value."""
        parent = self.tree.parent(self.rank)
        if parent is None:
            assert values is not None
            given = dict(enumerate(values))
        else:
            try:
                told = _plain(self.receive(parent, self.patience * (2 + self.tree.height(0))))
            except RankLost as fault:
                raise RankLost(fault.rank, fault.why, while_) from None
            given = {int(r): v for r, v in told.items()}
        lost: RankLost | None = None
        for child in self.tree.children(self.rank):
            below = {r: v for r, v in given.items() if self._under(r, child)}
            try:
                self.send(child, _raw(below))
            except RankLost as fault:  # the others are to hear all the same
                lost = fault
        if lost is not None:
            raise lost
        return given[self.rank]

    def _under(self, rank: int, top: int) -> bool:
        at: int | None = rank
        while at is not None and at != top:
            at = self.tree.parent(at)
        return at == top

    def together(self, value: Any, decide: Any, while_: str = "") -> Any:
        """Rank 0 decides on what all said: (values) -> one value for each rank. Its errors are raised on every rank."""
        if self.rank:
            self.gather(value, while_)
            told = self.scatter(None, while_)
        else:
            try:
                told = [{"is": v} for v in decide(self.gather(value, while_))]
            except HoldallError as fault:
                with contextlib.suppress(RankLost):  # it is lost already, and that is what is raised
                    self.scatter([{"fault": str(fault)}] * self.world)
                raise
            told = self.scatter(told)
        if "fault" in told:
            raise HoldallError(told["fault"])
        return told["is"]


class Alone(Ranks):
    """One rank."""

    def __init__(self) -> None:
        super().__init__(0, 1, Tree(1), PATIENCE)

    def send(self, to: int, raw: bytes) -> None:
        raise AssertionError("there is nobody else")

    def receive(self, of: int, patience: float) -> bytes:
        raise AssertionError("there is nobody else")

    def exchange(self, out: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
        return [out[0]]

    def twin(self) -> Ranks:
        return Alone()


class Distributed(Ranks):
    """A rank of torch.distributed, over a gloo group of its own, so that the training's groups are not held up."""

    def __init__(self, patience: float = PATIENCE, machine: int = 8, fanout: int = 8):
        dist = torch.distributed
        world = dist.get_world_size()
        super().__init__(dist.get_rank(), world, Tree(world, machine, fanout), patience)
        self._machine, self._fanout = machine, fanout
        self._group = dist.new_group(
            backend="gloo", timeout=timedelta(seconds=patience * (4 + self.tree.height(0)))
        )

    def send(self, to: int, raw: bytes) -> None:
        size = torch.tensor([len(raw)])
        try:
            torch.distributed.send(size, to, group=self._group)
            torch.distributed.send(torch.frombuffer(bytearray(raw), dtype=torch.uint8), to, group=self._group)
        except RuntimeError as fault:
            raise RankLost(to, _reason(fault, 0)) from fault

    def receive(self, of: int, patience: float) -> bytes:
        wait, size = timedelta(seconds=patience), torch.zeros(1, dtype=torch.int64)
        try:
            torch.distributed.irecv(size, of, group=self._group).wait(wait)
            raw = torch.empty(int(size), dtype=torch.uint8)
            torch.distributed.irecv(raw, of, group=self._group).wait(wait)
        except RuntimeError as fault:
            raise RankLost(of, _reason(fault, patience)) from fault
        return bytes(raw.numpy())

    def exchange(self, out: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
        own, sizes = out[self.rank], [n if r != self.rank else 0 for r, n in enumerate(sizes)]
        there = [x if r != self.rank else x[:0] for r, x in enumerate(out)]
        sent = torch.from_numpy(np.concatenate(there))
        got = torch.empty(sum(sizes), dtype=torch.uint8)
        dist = torch.distributed
        try:
            dist.all_to_all_single(got, sent, sizes, [len(x) for x in there], group=self._group)
        except RuntimeError as fault:
            raise HoldallError(f"a rank was lost while loading: {str(fault).splitlines()[0]}") from fault
        found = [part.numpy() for part in got.split(list(sizes))]
        found[self.rank] = own
        return found

    def twin(self) -> Ranks:
        return Distributed(self.patience, self._machine, self._fanout)


def _reason(fault: RuntimeError, patience: float) -> str:
    return f"has said nothing for {patience:.3g} s" if "imed out" in str(fault) else "is gone"


def _raw(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _plain(raw: bytes) -> Any:
    return json.loads(zlib.decompress(raw))


def here(patience: float = PATIENCE, machine: int = 8, fanout: int = 8) -> Ranks:
    """The ranks of torch.distributed where it was started, else one alone."""
    import sys

    if "torch" in sys.modules and torch.distributed.is_available() and torch.distributed.is_initialized():
        return Distributed(patience, machine, fanout)
    return Alone()
