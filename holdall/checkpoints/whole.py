"""The floors' folder: each state is one file of torch.save, which any torch reads, and appears whole or not at all."""

from __future__ import annotations

import copy
import io
import pickle
import queue
import secrets
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import xxhash

from holdall.checkpoints.awaited import Awaited
from holdall.checkpoints.publish import Folder, Lock, nobody
from holdall.checkpoints.refill import fill_from
from holdall.checkpoints.state import flatten
from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.files import atomic_write, is_local, local_path, open_reader
from holdall.kinds import Keeper, Receipt, Spend
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

LEAST = 4_000_000  # bytes that torch.save takes beside the state
_FILE = "state.pt"
_CHUNK = 1 << 20  # larger writes were several times slower on a virtual disk


class Whole(Keeper):
    """background: the state is copied into fresh memory while the caller waits, and a thread writes the copy."""

    def __init__(self, recipe: Any, url: str, memory: Spend, background: bool):
        self.recipe, self._limit = recipe, recipe.allowed(memory, LEAST, "what torch.save takes")
        self._folder = Folder(url, recipe.full_name())
        self._lock = Lock(self._folder)
        self._counts = dict[str, float](saves=0, loads=0, copied_bytes=0, written_bytes=0, read_bytes=0)
        self._open, self._last = True, None  # type: bool, Awaited | None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._work, name="holdall-save", daemon=True)
            self._thread.start()

    def save(self, step: int, state: Any, wait: bool = False) -> Receipt:
        self._check()
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise BadInput("step", repr(step), "a whole number, 0 or more")
        last, self._last = self._last, None
        began, saved = time.perf_counter(), Awaited(step)
        if last is not None and not last.told:
            last.wait()  # one at a time; what went wrong with it is told now
        nbytes = sum(leaf.nbytes for leaf in flatten(state).leaves.values())  # odd things are refused
        if self._thread is None:
            self._follow(saved, state)
        else:
            self._copy(saved, state, nbytes)
            self._last = saved
        self._counts["saves"] += 1
        if wait or self._thread is None:
            self._last = None
            saved.wait()
        saved.blocked = time.perf_counter() - began
        return saved

    def _copy(self, saved: Awaited, state: Any, nbytes: int) -> None:
        if self._limit is not None and nbytes + LEAST > self._limit:
            raise BudgetError(self._limit, nbytes + LEAST, who=self.recipe.full_name(), why="a whole copy")
        held = [copy.deepcopy(state)]  # what shares memory still does
        self._counts["copied_bytes"] += nbytes
        self._jobs.put(lambda: self._follow(saved, held.pop()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # and with it the copy

    def _follow(self, saved: Awaited, state: Any) -> None:
        try:
            saved.end(self._write(saved.step, state))
        except BaseException as fault:  # noqa: BLE001 (the receipt raises it)
            saved.end(0, fault)

    def _write(self, step: int, state: Any) -> int:
        token = f"{step}-{secrets.token_hex(4)}"
        self._lock.hold()
        try:
            self._folder.begin(token)
            with atomic_write(f"{self._folder.data(token)}/{_FILE}") as f:
                out = _Summed(f)
                try:
                    torch.save(state, out)
                except RuntimeError:
                    if out.fault is not None:
                        raise out.fault from None
                    raise
                f.publish()
            said = {"bytes": out.nbytes, "xxh3": out.sum.hexdigest()}
            self._folder.publish(step, said, token, self.recipe.keep, nobody)
        except BaseException:
            if not self._is_there(step, token):
                self._folder.drop(token)
            raise
        finally:
            self._lock.release()
        self._counts["written_bytes"] += out.nbytes
        return out.nbytes

    def _is_there(self, step: int, token: str) -> bool:
        """Whether the step is this save: a sync may fail after the renaming."""
        return step in self._folder.steps() and self._folder.read(step)[1] == self._folder.data(token)

    def ready(self) -> float:
        self._check()
        return 0.0

    def load(self, step: int | None = None, like: Any = None) -> Any:
        self._check()
        if self._last is not None:
            self._last.ended.wait()
        said, data = self._folder.read(self._folder.chosen(step))
        found = self._read(f"{data}/{_FILE}", said)
        self._counts["loads"] += 1
        if like is None:
            return found
        flat = flatten(found)
        return fill_from(like, flat.tree, lambda n: _bytes(flat.leaves[n]))

    def _read(self, url: str, said: Mapping[str, Any]) -> Any:
        try:
            reader = open_reader(url)
        except BadInput:
            raise CorruptArtefact(url, "a file of the checkpoint is missing") from None
        with reader:
            if reader.size != said.get("bytes"):
                raise CorruptArtefact(url, f"{reader.size} bytes where there were {said.get('bytes')}")
            total = xxhash.xxh3_128()
            for start in range(0, reader.size, _CHUNK):
                total.update(reader.read(start, min(start + _CHUNK, reader.size)))
            if total.hexdigest() != said.get("xxh3"):
                raise CorruptArtefact(url, "it does not match its checksum")
            self._counts["read_bytes"] += reader.size
            source = local_path(url) if is_local(url) else io.BytesIO(reader.read(0, reader.size))
        try:
            return torch.load(source, weights_only=True)
        except (
            RuntimeError,
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            pickle.UnpicklingError,
        ) as f:
            why = " ".join(str(f).split())[:90]
            raise CorruptArtefact(url, f"torch does not load it as plain data ({why})") from None

    def steps(self) -> list[int]:
        self._check()
        return self._folder.steps()

    def traffic(self) -> Mapping[str, float]:
        self._check()
        return dict(self._counts)

    def _check(self) -> None:
        if not self._open:
            raise BadInput("checkpoints", "closed", "ones that are open")

    def close(self) -> None:
        if self._open:
            self._open = False
            self._jobs.put(None)
            if self._thread is not None:
                self._thread.join()
            if self._last is not None and not self._last.told:
                self._last.wait()


class _Summed:
    """What torch.save writes to: into the file in pieces that the disk likes, and into a checksum."""

    def __init__(self, file: atomic_write):
        self._file, self.sum, self.nbytes = file, xxhash.xxh3_128(), 0
        self.fault: OSError | None = None

    def write(self, piece: Any) -> int:
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            self.sum.update(part)
            try:
                self._file.write(part)
            except OSError as fault:  # torch would say something else
                self.fault = fault
                raise
        self.nbytes += len(view)
        return len(view)

    def flush(self) -> None:
        """atomic_write does so when it publishes."""


def _bytes(leaf: Any) -> Any:
    return leaf.contiguous().reshape(-1).view(torch.uint8)
