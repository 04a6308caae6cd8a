"""The contract of the room: a codec of bytes that are lines, which can also be searched while packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from holdall.budget import Budget
from holdall.errors import BudgetError, CorruptArtefact
from holdall.files import atomic_write
from holdall.kinds import Codec, Spend
from holdall.logs.lines import needle, whole_lines
from holdall.logs.source import Source

if TYPE_CHECKING:
    from holdall.packed import Packed

_NAMES = (".log", ".jsonl", ".ndjson", ".out", ".err", ".trace")
_LINE = 64 << 10  # a text file whose first 64 kB hold no line end is no log


@dataclass(frozen=True, kw_only=True)
class LogCodec(Codec):
    """Packs bytes, an open binary file, or a `Source` (a file that is read block by block), without loss."""

    room: ClassVar[str] = "logs"
    lossless: ClassVar[bool] = True

    def pieces(self, packed: Packed) -> Iterator[bytes]:
        """The text in blocks, so that more than memory can be unpacked."""
        yield self.decode(packed)

    def restore(self, packed: Packed, to: str, form: str | None = None) -> None:
        if form is not None:
            return super().restore(packed, to, form)
        return self.write_output(self.pieces(packed), to)

    def grep(self, packed: Packed, pattern: str | bytes, *, regex: bool = False,
             ignore_case: bool = False) -> Iterator[tuple[int, bytes]]:  # fmt: skip
        """(line number from 1, line without its end) of each line that holds `pattern`."""
        wanted = needle(pattern, regex, ignore_case)
        for number, line in enumerate(whole_lines(self.pieces(packed)), 1):
            if wanted.search(line):
                yield number, line

    @staticmethod
    def fits(packed_bytes: int, original: int, budget: Spend, who: str) -> None:
        """Raise BudgetError if an exact packing is larger than was allowed."""
        asked = Budget.parse(budget)
        if asked is not None and packed_bytes > asked.limit(original, original):
            raise BudgetError(
                asked.limit(original, original), packed_bytes, who=who, why="it keeps every byte"
            )

    @classmethod
    def sniff(cls, url: str, head: bytes) -> bool:
        if not head or head[:4] in (b"GGUF", b"ply\n", b"ply\r") or b"\0" in head[:8192]:
            return False
        known = PurePosixPath(url.lower().removesuffix(".1")).suffix in _NAMES
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:  # safetensors and .hold
            return False
        odd = sum(b < 9 or (13 < b < 32 and b != 27) for b in head[:4096])
        texty = odd * 100 <= len(head[:4096]) and (b"\n" in head or len(head) < _LINE)
        return texty and (known or head.count(b"\n") >= 2)

    @classmethod
    def read_input(cls, url: str) -> Source:
        return Source.at(url)

    @classmethod
    def write_output(cls, x: Any, url: str) -> None:
        with atomic_write(url) as f:
            for piece in [x] if isinstance(x, bytes | bytearray | memoryview) else x:
                f.write(piece)
            f.publish()


def section(packed: Packed, name: str) -> bytes:
    """The bytes of a section."""
    if name not in packed.arrays:
        raise CorruptArtefact("artefact", f"section {name!r} is missing")
    return bytes(packed.arrays[name].tobytes())


def as_source(x: bytes | BinaryIO | Source) -> Source:
    return x if isinstance(x, Source) else Source.of(x)
