"""Floor: the bytes as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.kinds import Spend
from holdall.logs.base import LogCodec, as_source, section
from holdall.method import Paper
from holdall.packed import Packed
from holdall.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Nothing(LogCodec):
    """Stores a log as it is: what every other method has to beat.

    Copies the bytes into a checksummed file; larger than the log by the header. Poor at everything but speed.

    Shapes:
        bytes in, bytes out.
    Cost:
        one copy.
    Knobs:
        none.
    Differs from the paper:
        no paper; a floor.

    Example:
        >>> Nothing().decode(Nothing().encode(b"a line\\n"))
        b'a line\\n'

    Paper: none.
    Test: tests/logs/test_floors.py
    """

    name: ClassVar[str] = "none"
    paper: ClassVar[Paper] = Paper(0, "Stored as it is", "a floor")

    def encode(self, x: Any, budget: Spend = None, *, to: str | None = None) -> Packed:
        return stream(self, as_source(x), lambda b: b, lambda: b"", budget, to)

    def decode(self, packed: Packed) -> bytes:
        return section(packed, "0")


def stream(method: LogCodec, source: Any, press: Any, flush: Any, budget: Spend, to: str | None) -> Packed:
    """One section that a streaming kernel fills, in bounded memory."""
    with Writer(to) as writer:

        def pieces() -> Any:
            for block in source.blocks(4 << 20):
                yield press(block)
            yield flush()

        writer.add("0", pieces())
        meta = {"room": method.room, "method": method.to_dict(), "size": source.size, "digest": source.digest}
        method.fits(writer.size(meta), source.size, budget, method.full_name())
        if to is None:
            return Packed.from_bytes(writer.to_bytes(meta))
        writer.finish(meta)
    return Packed.open(to)
