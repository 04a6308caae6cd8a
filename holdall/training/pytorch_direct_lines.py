"""What a device asks for when it reads host rows itself: 128-byte lines, and the shift that aligns its reads.

A warp of 32 threads reads 32 numbers of a row at once, and each line that they touch is a request. Where a row does
not begin at a line every warp touches two. Shifted, thread t reads number (t + shift) mod width, with the shift from
the row's start to the next line, so that all warps but the ones at the seam touch one.
"""

from __future__ import annotations

import numpy as np

LINE = 128  # bytes of the largest read that goes over PCIe at once
WARP = 32


def shift_of(start: int, width: int, size: int) -> int:
    """Numbers from a row at byte `start` to the next line, circular: where thread 0 begins."""
    return (-start % LINE) // size % width


def lines(starts: np.ndarray, width: int, size: int, shifted: bool = True) -> np.ndarray:
    """Requests for rows at bytes `starts` [N], each of `width` numbers of `size` bytes. The same as `naive_lines`."""
    starts = np.asarray(starts, np.int64)
    first = np.arange(0, width, WARP)
    last = np.minimum(first + WARP, width) - 1
    shift = (-starts % LINE) // size % width if shifted else np.zeros_like(starts)
    low, high = (first + shift[:, None]), (last + shift[:, None])  # [N, warps], before they come round
    base = starts[:, None]

    def touched(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (base + a * size) // LINE, (base + b * size + size - 1) // LINE

    head = touched(np.minimum(low, width - 1), np.minimum(high, width - 1))
    count = np.where(low < width, head[1] - head[0] + 1, 0)
    tail = touched(np.maximum(low, width) - width, np.maximum(high, width) - width)
    count += np.where(high >= width, tail[1] - tail[0] + 1, 0)
    seam = (low < width) & (high >= width)  # a short row's end and beginning may share a line
    count -= np.where(seam, np.maximum(0, tail[1] - np.maximum(head[0], tail[0]) + 1), 0)
    return count.sum(1)


def naive_lines(start: int, width: int, size: int, shift: int) -> int:
    """Thread by thread."""
    total = 0
    for first in range(0, width, WARP):
        asked = set()
        for t in range(first, min(first + WARP, width)):
            at = start + (t + shift) % width * size
            asked |= {at // LINE, (at + size - 1) // LINE}
        total += len(asked)
    return total
