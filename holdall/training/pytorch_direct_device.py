"""Host rows read by a CUDA device itself: pinned memory under a device's address. No device has run this yet."""

from __future__ import annotations

from typing import Any

import torch
from numba import cuda

from holdall.errors import BadInput
from holdall.training.pytorch_direct_cuda import shifted_rows
from holdall.training.pytorch_direct_lines import LINE

_THREADS = 128


class _Seen:
    """Pinned host memory as a thing that says it is a device's array: addresses are the same for both."""

    def __init__(self, host: Any):
        self.held = host
        kind = {1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}[host.element_size()]
        self.__cuda_array_interface__ = {
            "shape": tuple(host.shape), "typestr": kind, "data": (host.data_ptr(), False), "version": 2,
        }  # fmt: skip


def alias(host: Any, device: Any) -> Any:
    """A device's tensor over the same pinned memory; nothing is copied."""
    if not host.is_pinned() or not host.is_contiguous():
        raise BadInput("table", "ordinary memory", "pinned, contiguous host memory (x.pin_memory())")
    seen = torch.as_tensor(_Seen(host.detach()), device=device)
    if seen.data_ptr() != host.data_ptr():
        raise BadInput("device", str(device), "one that addresses host memory as the host does")
    return seen.view(host.dtype)


def gather(seen: Any, rows: Any) -> Any:
    """Rows of an aliased table [N, ...], read over the bus by the device: a tensor of the device's own."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[seen.element_size()]
    flat = seen.view(kind).reshape(len(seen), -1)
    rows = rows.to(seen.device).long()
    rows = torch.where(rows < 0, rows + len(seen), rows)
    torch._assert_async(((rows >= 0) & (rows < len(seen))).all())  # a kernel would read whatever lies there
    out = torch.empty(len(rows), flat.shape[1], dtype=kind, device=seen.device)
    if out.numel():
        stream = cuda.external_stream(torch.cuda.current_stream(seen.device).cuda_stream)
        args = (flat, rows, out, seen.data_ptr() % LINE, seen.element_size())
        shifted_rows[len(rows), _THREADS, stream](*args)
    return out.view(seen.dtype).reshape(len(rows), *seen.shape[1:])
