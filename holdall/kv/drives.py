"""Drives: a session of `kv.instinfer`. A task's heads are split over drives; only q, k, v and o cross their links."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput
from holdall.kinds import Session
from holdall.kv.drive import TYPES
from holdall.kv.drive_model import PIECE, Task
from holdall.kv.link import Link

if TYPE_CHECKING:
    from holdall.kv.instinfer import InstInfer

Ask = tuple[
    int, np.ndarray | None, np.ndarray, np.ndarray
]  # layer, q [B, H, G, D] or None, k and v [B, H, T, D]


class Drives(Session):
    """Answers `step((layer, q, k, v))` with the attention of q, after k and v were appended; q None only appends.

    Appending does not wait for the drive: a prompt's layer is stored while the next is computed. A fault of such a
    write comes with the next answer. One session is one task: closing it ends the drives and frees their space.
    """

    def __init__(self, method: InstInfer, task: Task):
        self.method, self.task = method, task
        self.heads = [part for part in np.array_split(np.arange(task.heads), method.drives) if len(part)]
        self.tokens = [0] * task.layers
        self.seconds = 0.0
        self.closed = False
        self.links: list[Link] = []
        self.payload = 0
        spec, folder = {**asdict(task), **asdict(method)}, task.folder or tempfile.gettempdir()
        try:
            for part in self.heads:
                self.links.append(Link({**spec, "heads": len(part)}, folder))
        except BaseException:
            self.close()
            raise

    def step(self, x: Ask) -> np.ndarray | None:
        self._open()
        layer, q, k, v = x
        self._check(layer, q, k, v)
        kind, start = TYPES[self.method.bits], time.perf_counter()
        k, v = k.astype(kind), v.astype(kind)
        for link, part in zip(self.links, self.heads, strict=True):
            if q is None:
                for at in range(0, k.shape[2], PIECE):
                    some = slice(at, at + PIECE)
                    link.tell("append", k[:, part, some], v[:, part, some], layer=layer)
            else:
                link.settle()
                link.tell("attend", q[:, part].astype(kind), k[:, part], v[:, part], layer=layer)
        self.tokens[layer] += k.shape[2]
        if q is None:
            return None
        out = np.concatenate([link.hear()[1][0] for link in self.links], axis=1).astype(np.float32)
        self.payload += 2 * q.astype(kind).nbytes + k.nbytes + v.nbytes
        self.seconds += time.perf_counter() - start
        return out

    def _check(self, layer: int, q: np.ndarray | None, k: np.ndarray, v: np.ndarray) -> None:
        t = self.task
        fits = (
            k.ndim == 4
            and k.shape == v.shape
            and (k.shape[0], k.shape[1], k.shape[3]) == (t.rows, t.heads, t.dim)
        )
        if (
            not 0 <= layer < t.layers
            or not fits
            or (q is not None and (q.ndim != 4 or q.shape[:2] != k.shape[:2]))
        ):
            got = f"layer {layer}, keys {k.shape}, queries {None if q is None else q.shape}"
            raise BadInput("step", got, f"what {t} has, [rows, heads, tokens, dimension]")
        if self.tokens[layer] + k.shape[2] > t.length:
            got = f"{self.tokens[layer] + k.shape[2]} tokens"
            raise BadInput("context", got, f"at most {t.length}, the length of this task")
        if q is not None and not self.tokens[layer] + k.shape[2]:
            raise BadInput("step", "queries before any key", "tokens first")

    def traffic(self) -> dict[str, float]:
        """Sums over drives: what crossed the links (`payload_bytes`: q, k, v, o of steps alone), pages, bytes wanted of
        them, pages that dense attention would read, and pages of the busiest lane, step by step."""
        self._open()
        found: dict[str, float] = {}
        for link in self.links:
            for name, count in link.ask("traffic")[0].items():
                found[name] = found.get(name, 0) + (float(count) if isinstance(count, str) else count)
        found["page_bytes"] = found["pages_read"] * self.method.page
        found["link_bytes"] = sum(link.bytes for link in self.links)
        found["messages"] = sum(link.sent for link in self.links)
        return {**found, "payload_bytes": self.payload, "seconds": self.seconds}

    def settle(self) -> None:
        """Wait until everything that was appended is stored."""
        self._open()
        for link in self.links:
            link.settle()

    def close(self) -> None:
        links: Sequence[Any] = self.links
        self.links, self.closed = [], True
        for link in links:
            link.close()

    def _open(self) -> None:
        if self.closed:
            raise BadInput("drive", "a session that is closed", "an open one")
