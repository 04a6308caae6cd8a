"""Awaited in the background: what training waits for is the copy into the ring; files, votes and publishing follow."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash

from holdall.checkpoints.awaited import Awaited
from holdall.checkpoints.bytecheckpoint_files import Entry
from holdall.checkpoints.bytecheckpoint_header import header, tag
from holdall.checkpoints.bytecheckpoint_meta import Stored
from holdall.checkpoints.bytecheckpoint_plan import Contents, Planner, Share
from holdall.checkpoints.bytecheckpoint_ranks import Ranks
from holdall.checkpoints.bytecheckpoint_state import Taken
from holdall.checkpoints.monitoring import Watch
from holdall.checkpoints.publish import Folder, nobody
from holdall.errors import HoldallError
from holdall.files import atomic_write
from holdall.optional import lazy
from holdall.parts.ring import BLOCK, Ring

torch = lazy("torch", extra="checkpoints")

_CHUNK = 1 << 20  # larger writes were several times slower on a virtual disk


class Job:
    """A save under way. `slots`: copies of boxes in the ring, in the order of the share's files."""

    def __init__(self, saving: Awaited, share: Share, basics: dict[str, str], contents: Contents | None):
        self.saving, self.share, self.dtypes, self.contents = saving, share, basics, contents
        self.slots: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.watch = Watch()

    def copy(self, taken: Taken, ring: Ring) -> None:
        """All of this rank's boxes, into the ring; afterwards the state may change."""
        left = sum(len(some) for _, some in self.share.files)
        try:
            for _, some in self.share.files:
                for item in some:
                    slot = ring.take(item.nbytes)
                    try:
                        _copy(taken.parts[item.name].view(item.box), slot)
                    finally:
                        self.slots.put(slot)
                        left -= 1
        except BaseException as fault:
            for _ in range(left):
                self.slots.put(fault)
            raise


def _copy(view: Any, slot: np.ndarray) -> None:
    if view.device.type == "cpu" and view.is_contiguous():
        slot[:] = view.reshape(-1).view(torch.uint8).numpy()  # memcpy; torch's own copy was a third slower
    else:
        torch.from_numpy(slot).view(view.dtype).view(view.shape).copy_(view)


class Writer:
    """The thread that writes what is in the ring, votes with the other ranks, and on rank 0 publishes."""

    def __init__(self, folder: Folder, ranks: Ranks, ring: Callable[[], Ring], keep: int):
        self._folder, self._ranks, self._ring, self._keep = folder, ranks, ring, keep
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.reports: list[Any] = []
        self.written = 0
        self._thread = threading.Thread(target=self._run, name="holdall-save", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.saving.end(self._save(job))
            except BaseException as fault:  # noqa: BLE001 (the caller gets it from the receipt)
                job.saving.end(0, fault)

    def _save(self, job: Job) -> int:
        vote: dict[str, Any] = {"fault": None, "number": job.share.number}
        fault: Exception | None = None
        try:
            vote.update(self._write(job))
        except (HoldallError, OSError) as failed:
            fault, vote["fault"] = failed, str(failed) or type(failed).__name__
        vote["phases"] = job.watch.told()
        try:
            total: int = self._ranks.together(vote, lambda said: self._publish(job, said), "it ends a save")
        except HoldallError as failed:
            raise fault or failed from failed
        return total

    def _write(self, job: Job) -> dict[str, Any]:
        """This rank's files: of each box and tree where it lies, and of each file its size."""
        told: dict[str, Any] = {"boxes": [], "trees": {}, "sizes": {}}
        trees = dict(job.share.trees)
        files = [(name, some) for name, some in job.share.files]
        left = sum(len(some) for _, some in files)
        named = {name.split("_")[0] for name, _ in files}
        files += [(f"{kind}_{self._ranks.rank}", ()) for kind in trees if kind not in named]
        try:
            self._folder.begin(job.share.token)
            for i, (name, some) in enumerate(files):
                kind = name.split("_")[0]
                last = not any(n.split("_")[0] == kind for n, _ in files[i + 1 :])
                tree = trees.pop(kind, None) if last else None
                with atomic_write(f"{self._folder.data(job.share.token)}/{name}") as f:
                    head = header(some, job.dtypes, tree)
                    f.write(head)
                    at = len(head)
                    for item in some:
                        slot = job.slots.get()
                        left -= 1
                        if isinstance(slot, BaseException):
                            raise HoldallError(f"the state could not be copied ({slot})") from slot
                        try:
                            with job.watch.phase("write", item.nbytes):
                                told["boxes"].append(
                                    [name, at, at + item.nbytes, xxhash.xxh3_128_hexdigest(slot.data)]
                                )
                                _chunks(f, slot.data)
                        finally:
                            self._ring().free(slot)
                        at += item.nbytes
                    if tree is not None:
                        f.write(tree)
                        told["trees"][kind] = [name, at, at + len(tree), xxhash.xxh3_128_hexdigest(tree)]
                        at += len(tree)
                    with job.watch.phase("upload", at):
                        f.publish()
                told["sizes"][name] = at
                self.written += at
        finally:
            for _ in range(left):  # the training's side may wait for room
                slot = job.slots.get()
                if not isinstance(slot, BaseException):
                    self._ring().free(slot)
        return told

    def _publish(self, job: Job, said: Sequence[Any]) -> list[int]:
        faults = [f"rank {r}: {s['fault']}" for r, s in enumerate(said) if s["fault"] is not None]
        if faults:
            self._folder.drop(job.share.token)
            raise HoldallError(f"step {job.saving.step} is not saved; {faults[0]}")
        assert job.contents is not None
        stored = Stored(
            job.saving.step, len(said), job.contents.basics, [], job.contents.alias, job.share.owners
        )
        stored.trees = {}
        for rank, s in enumerate(said):
            stored.files.update(s["sizes"])
            items = [i for _, some in job.contents.files[rank] for i in some]
            for item, (file, start, stop, xxh3) in zip(items, s["boxes"], strict=True):
                stored.entries.append(Entry(item.name, item.box, item.each, file, start, stop, xxh3))
            for kind, place in s["trees"].items():
                stored.trees.setdefault(kind, {})[rank] = tuple(place)
            stored.phases.append(s["phases"])
        self._folder.publish(stored.step, stored.to_dict(), job.share.token, self._keep, nobody)
        self.reports.append((job.saving.step, stored.phases))
        return [sum(stored.files.values())] * len(said)


def _chunks(f: atomic_write, data: memoryview) -> None:
    for start in range(0, len(data), _CHUNK):
        f.write(data[start : start + _CHUNK])


def begin(
    taken: Taken, planner: Planner, ring: Callable[[int], Ring], writer: Writer, saving: Awaited
) -> Job:
    """Plan, copy and hand over: what the training waits for."""
    watch = Watch()
    try:
        with watch.phase("plan"):
            share = planner.share(taken, saving.step)
    except BaseException as fault:
        saving.end(0, fault)  # nobody will write it
        raise
    dtypes = {name: tag(part.data.dtype) for name, part in taken.parts.items()}
    job = Job(saving, share, dtypes, planner.contents.get(share.number))
    job.watch = watch
    needed = sum(-(-i.nbytes // BLOCK) * BLOCK for _, some in share.files for i in some)
    room = ring(needed)
    streams = room.capacity < needed  # else the disk waits: what is written meanwhile makes the copy slower
    if streams:
        writer.add(job)
    try:
        with watch.phase("copy", share.nbytes):
            job.copy(taken, room)
    finally:
        if not streams:
            writer.add(job)
    return job
