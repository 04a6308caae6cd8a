"""Freed memory, given back to the kernel."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def release() -> None:
    """Give back the pages of tensors that were freed.

    glibc keeps them for later in holes between what is still used: after a prompt, a cache of a tenth would still
    cost the whole in resident memory. Some milliseconds; does nothing where the C library has no such call.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
