"""Tensors on a GPU: a pinned ring, and copies in a stream of their own. Written by the book and not run here: this
project's machines have no GPU; the CPU's way through the same code is what the tests and figures are about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")


def pinned(capacity: int) -> Any:
    """Memory for a ring that a GPU copies to at full speed; None where there is no GPU in use."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return torch.empty(capacity, dtype=torch.uint8, pin_memory=True).numpy()


class Side:
    """Copies from a device, after what the training had put into its own stream when the save was asked for."""

    def __init__(self, leaves: Iterable[Any]):
        self._streams = {}
        for device in {leaf.device for leaf in leaves if leaf.device.type == "cuda"}:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            self._streams[device] = stream

    def copy(self, place: np.ndarray, source: Any) -> None:
        stream = self._streams.get(source.device)
        if stream is None:  # another kind of device: a plain copy
            torch.from_numpy(place).copy_(source)
            return
        with torch.cuda.stream(stream):
            torch.from_numpy(place).copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Until what was copied is there."""
        for stream in self._streams.values():
            stream.synchronize()
