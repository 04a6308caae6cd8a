"""What attention on a drive takes: the paper's cost formula. Every number it gives is computed, none is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from holdall.errors import BadInput

PIECE = 512  # tokens of a prompt that are on their way to a drive at a time


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a drive is to hold: keys and values of `rows` contexts of up to `length` tokens; folder: where files lie."""

    layers: int
    heads: int
    dim: int
    rows: int = 1
    length: int = 2048
    folder: str = ""

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.dim, self.rows, self.length) < 1:
            raise BadInput("task", repr(self), "sizes of at least 1")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A drive and its link; the defaults are the paper's: PCIe 4.0 x4, 8 channels of flash, an FPGA at 285 MHz."""

    link: float = 7e9  # bytes a second
    lanes: int = 8
    lane: float = 1.4e9  # bytes a second
    flops: float = 650e9  # upper bound of its engine
    command: float = 20e-6  # seconds a request
    host: float = 0.0  # seconds of attention on the host, where keys and values are moved there

    def modelled(
        self, page_bytes: float, flops: float, link_bytes: float, kv_bytes: float
    ) -> dict[str, float | str]:
        """Seconds for one layer and token in the drive, and where keys and values cross the link instead."""
        inside = max(page_bytes / (self.lanes * self.lane), flops / self.flops)
        stored = inside + link_bytes / self.link + self.command
        moved = kv_bytes / self.link + self.host
        return {
            "in_storage_seconds": stored,
            "offload_seconds": moved,
            "ratio": moved / stored,
            "how": "modelled",
        }


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine as a drive, fitted to its own runs: seconds = a page_bytes + b."""

    each: float  # seconds a byte of pages
    fixed: float  # seconds a step

    @classmethod
    def fitted(cls, observed: Sequence[tuple[float, float]]) -> Self:
        """From (page bytes, seconds) of steps at two lengths or more."""
        if len({pages for pages, _ in observed}) < 2:
            raise BadInput("observations", f"{len(observed)} of one length", "steps at two lengths or more")
        pages, seconds = np.array(observed, dtype=np.float64).T
        each, fixed = np.polyfit(pages, seconds, 1)
        return cls(each=max(0.0, float(each)), fixed=max(0.0, float(fixed)))

    def modelled(self, page_bytes: float) -> float:
        return self.each * page_bytes + self.fixed
