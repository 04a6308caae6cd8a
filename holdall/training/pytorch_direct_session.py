"""Batches of irregular rows out of a file: what `training.pytorch_direct` opens."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kinds import Session
from holdall.optional import lazy
from holdall.parts.paging import buffer
from holdall.training.pytorch_direct_crew import Crew
from holdall.training.pytorch_direct_table import Table

torch = lazy("torch", extra="training")
_EACH = 64  # bytes for each row of a batch while it is planned: its number, its order, where reads begin
_FEW = 32  # reads that are not worth a thread of their own


class Rows(Session):
    """Open rows: `step(indices)` gives them as one tensor, [*indices' shape, *a row's shape].

    The tensor's memory is used again for the next batch as soon as nobody holds the tensor (autograd included).
    """

    def __init__(self, recipe: Any, table: Table, limit: int | None):
        self.recipe, self.table, self.limit = recipe, table, limit
        self._fd = table.opened()
        window = max(int(recipe.window), 4096)
        self._held = [buffer(window) for _ in range(recipe.threads)]
        self._free: np.ndarray | None = None
        self._lent: dict[int, int] = {}  # which views are with somebody, and their bytes
        self._crew: Crew | None = None
        names = ("steps", "rows", "asked_bytes", "reads", "read_bytes", "pages")
        self._told = dict.fromkeys(names, 0.0)

    def least(self, rows: int = 1) -> int:
        """Bytes that a batch of so many rows takes: itself, its plan, the windows of the threads."""
        return rows * (self.table.width + _EACH) + sum(h.nbytes for h in self._held) + (1 << 16)

    def step(self, x: Any) -> Any:
        rows, shape = self._rows(x)
        return self._as_tensor(self._gathered(rows), shape)

    def into(self, x: Any, out: Any) -> Any:
        """The same rows into a contiguous host tensor of one's own (pinned for a device, shared with a process)."""
        rows, shape = self._rows(x)
        if not out.is_contiguous() or out.dtype != self.table.dtype or tuple(out.shape) != shape:
            raise BadInput(
                "out", f"{list(out.shape)} {out.dtype}", f"contiguous {list(shape)} {self.table.dtype}"
            )
        self._fill(rows, out.data_ptr())
        return out

    def traffic(self) -> Mapping[str, float]:
        self.fileno()
        return dict(self._told)

    def close(self) -> None:
        if self._fd >= 0:
            if self._crew is not None:
                self._crew.close()
            os.close(self._fd)
            self._fd, self._free, self._held, self._crew = -1, None, [], None

    def fileno(self) -> int:
        if self._fd < 0:
            raise BadInput("rows", "closed", "a session that is open")
        return self._fd

    def _rows(self, x: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        """int64 [n] from 0 on, and the shape of what they give."""
        self.fileno()
        given = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
        if given.size and given.dtype.kind not in "iu":
            raise BadInput("indices", str(given.dtype), "whole numbers")
        rows = given.reshape(-1).astype(np.int64)
        count = self.table.rows
        if rows.size and not (-count <= rows.min() and rows.max() < count):
            worst = rows.max() if rows.max() >= count else rows.min()
            raise BadInput("indices", int(worst), f"rows of a table of {count}")
        rows[rows < 0] += count
        return rows, (*given.shape, *self.table.shape)

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        need = max(len(rows) * self.table.width, 1)
        raw = self._free if self._free is not None and self._free.nbytes >= need else None
        held = sum(self._lent.values())
        if self.limit is not None and held + self.least(len(rows)) > self.limit:
            why = f"{len(rows)} rows" + (
                f" beside {held} bytes of batches that are still held" if held else ""
            )
            raise BudgetError(self.limit, held + self.least(len(rows)), who=self.recipe.full_name(), why=why)
        self._free = None  # a smaller one goes before a larger one comes
        raw = buffer(need) if raw is None else raw
        try:
            self._fill(rows, raw.ctypes.data)
        except BaseException:
            self._free = raw
            raise
        return raw

    def _as_tensor(self, raw: np.ndarray, shape: tuple[int, ...]) -> Any:
        view = raw[: int(np.prod(shape, dtype=np.int64)) * self.table.dtype.itemsize]
        key, this = id(view), weakref.ref(self)
        self._lent[key] = raw.nbytes

        def back() -> None:  # the last tensor over it is gone
            session = this()
            if session is not None and session._lent.pop(key, 0) and session._fd >= 0:
                session._free = raw

        weakref.finalize(view, back).atexit = False
        tensor = torch.from_numpy(view)
        return (tensor.view(self.table.dtype) if view.size else tensor.to(self.table.dtype)).reshape(shape)

    def _fill(self, rows: np.ndarray, out: int) -> None:
        from holdall.training.pytorch_direct_kernels import reads_of

        places = np.argsort(rows) if self.recipe.sort else np.arange(len(rows))
        rows, width = rows[places], self.table.width
        gap, window = (self.recipe.gap, self.recipe.window) if self.recipe.sort else (-1, 0)
        if not len(rows) or not width:
            ends, nbytes, pages = np.zeros(1, np.int64), 0, 0
        elif self.recipe.sort:
            ends, nbytes, pages = reads_of(rows, width, self.table.start, gap, window)
        else:
            ends, nbytes = np.arange(len(rows) + 1), len(rows) * width
            at = self.table.start + rows * width
            pages = int(((at + width - 1) // 4096 - at // 4096 + 1).sum())
        left = self._cached(out, rows, places, ends)
        parts = min(self.recipe.threads, -(-len(left) // _FEW))
        tasks = [
            (out, rows, places, ends, which, i) for i, which in enumerate(np.array_split(left, max(parts, 1)))
        ]
        if len(tasks) == 1:
            self.fetch(*tasks[0])
        else:
            self._threads().do(self.fetch, tasks)
        told = (1, len(rows), len(rows) * width, len(ends) - 1, nbytes, pages)
        for name, more in zip(self._told, told, strict=True):
            self._told[name] += more

    def _cached(self, out: int, rows: np.ndarray, places: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Which reads have to wait for the disk; the others are done, without a thread's being woken for them."""
        from holdall.training.pytorch_direct_kernels import NOWAIT, fill_cached

        if NOWAIT is None:
            return np.arange(len(ends) - 1)
        width, held = self.table.width, self._held[0].ctypes.data
        return fill_cached(self._fd, out, rows, places, ends, width, self.table.start, held, NOWAIT)

    def fetch(
        self, out: int, rows: np.ndarray, places: np.ndarray, ends: np.ndarray, which: np.ndarray, i: int
    ) -> None:
        """Some of a batch's reads, in the i-th thread."""
        from holdall.training.pytorch_direct_kernels import fill

        width, start, held = self.table.width, self.table.start, self._held[i].ctypes.data
        while len(which):
            done = fill(self._fd, out, rows, places, ends, which, width, start, held)
            which = which[done:]
            if len(which):
                first, last = int(rows[ends[which[0]]]), int(rows[ends[which[0] + 1] - 1])
                self._again(start + first * width, (last - first + 1) * width)

    def _again(self, at: int, size: int) -> None:
        """A read that fell short, done once more where its error can be told; an interrupted one is no error."""
        got = os.pread(self._fd, size, at)
        if len(got) < size and not os.pread(self._fd, 1, at + len(got)):
            raise CorruptArtefact(self.table.path, f"cut short while it was read at byte {at + len(got)}")

    def _threads(self) -> Crew:
        """Of this process: a data loader's workers are forks, and threads stay behind."""
        if self._crew is None or self._crew.process != os.getpid():
            self._crew = Crew(self.recipe.threads)
        return self._crew
