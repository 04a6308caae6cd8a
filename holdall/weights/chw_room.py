"""Where things stand in a net's one array, and when their room is free again; and the streams that rows read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from holdall.weights.spmm_kernels import LINE, stride_of


@dataclass(eq=False)
class Value:
    """Channels of pixels somewhere in the array; a vector has one pixel and a stride of one."""

    at: int
    channels: int
    h: int = 1
    w: int = 1
    vector: bool = False
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom: zeros asked for around it
    names: int = 0  # results that are this value, or it with zeros around it
    root: Value | None = None  # which this is, but for the zeros

    @property
    def pixels(self) -> int:
        return self.h * self.w

    @property
    def stride(self) -> int:
        return 1 if self.vector else stride_of(self.pixels)

    @property
    def size(self) -> int:
        return -(-self.channels * self.stride // LINE) * LINE


class Streams:
    """What rows read: one array of each sort for the whole net."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {"stream": [], "steps": [], "counts": []}
        self.ends = dict.fromkeys(self.parts, 0)

    def add(self, stream: np.ndarray, steps: Any = (), counts: Any = ()) -> dict[str, int]:
        """Where it stands: value, step and count."""
        placed = {"value": self.ends["stream"], "step": self.ends["steps"], "count": self.ends["counts"]}
        kinds = {"stream": np.float32, "steps": np.int32, "counts": np.int32}
        for (name, kind), array in zip(kinds.items(), (stream, steps, counts), strict=True):
            self.parts[name].append(np.asarray(array, kind).reshape(-1))
            self.ends[name] += self.parts[name][-1].size
        return placed

    def arrays(self) -> list[np.ndarray]:
        """Stream, steps and counts; one more number each, for a net that has none."""
        return [
            np.append(np.concatenate(parts or [np.zeros(0)]), 0).astype(
                np.float32 if n == "stream" else np.int32
            )
            for n, parts in self.parts.items()
        ]


class Room:
    """Places in the array: what is no longer read is given again."""

    def __init__(self) -> None:
        self.end = 0
        self.free: list[tuple[int, int]] = []  # where and how much

    def take(self, size: int) -> int:
        fitting = [(n, at) for at, n in self.free if n >= size]
        if not fitting:
            self.end += size
            return self.end - size
        n, at = min(fitting)
        self.free.remove((at, n))
        if n > size:
            self.free.append((at + size, n - size))
        return at

    def give(self, at: int, size: int) -> None:
        self.free.append((at, size))
