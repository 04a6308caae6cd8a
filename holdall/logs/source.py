"""What a log codec packs: bytes, an open file, or a file at a URL, read in blocks that end with a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, cast

import xxhash

from holdall.errors import BadInput
from holdall.files import open_stream

_MOST_OVER = 1 << 20  # a line may make a block this much longer; then it is cut inside the line


class Source:
    """Read once, from front to back; `size` and `digest` are known when it was."""

    def __init__(self, opener: Callable[[], AbstractContextManager[BinaryIO]]):
        self._opener = opener
        self.size = 0
        self._sum = xxhash.xxh3_128()

    @classmethod
    def of(cls, x: Any) -> Source:
        if isinstance(x, bytes | bytearray | memoryview):
            import io

            return cls(lambda: nullcontext(cast(BinaryIO, io.BytesIO(bytes(x)))))
        if not hasattr(x, "read"):
            raise BadInput("log", type(x).__name__, "bytes, or a file open for binary reading")
        return cls(lambda: nullcontext(x))

    @classmethod
    def at(cls, url: str) -> Source:
        with open_stream(url):  # a missing file fails here, not in the middle of the work
            pass
        return cls(lambda: open_stream(url))

    @property
    def digest(self) -> str:
        return self._sum.hexdigest()

    def blocks(self, size: int) -> Iterator[bytes]:
        """Blocks of about `size` bytes that end with a line end, where there is one."""
        self.size, self._sum = 0, xxhash.xxh3_128()
        with self._opener() as f:
            carried = b""
            while True:
                more = _exactly(f, size - len(carried)) if len(carried) < size else b""
                if not more and len(carried) < size:
                    break
                block = carried + more
                cut = block.rfind(b"\n") + 1 if len(block) >= size else len(block)
                if not cut or len(block) - cut > _MOST_OVER:
                    cut = len(block)
                carried = block[cut:]
                yield self._count(block[:cut])
            if carried:
                yield self._count(carried)

    def _count(self, block: bytes) -> bytes:
        self.size += len(block)
        self._sum.update(block)
        return block


def _exactly(f: BinaryIO, n: int) -> bytes:
    """n bytes, or what is left; pipes give less at a time."""
    pieces = []
    while n > 0:
        piece = f.read(n)
        if not piece:
            break
        if not isinstance(piece, bytes):
            raise BadInput("log", "a text file", "a file open for binary reading")
        pieces.append(piece)
        n -= len(piece)
    return b"".join(pieces)
