"""Floor: xz."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.errors import CorruptArtefact
from holdall.kinds import Spend
from holdall.logs.base import LogCodec, as_source, section
from holdall.logs.none import stream
from holdall.method import Paper, knob
from holdall.packed import Packed


@dataclass(frozen=True, kw_only=True)
class Xz(LogCodec):
    """A log through xz: the strongest compressor that every machine has.

    Sees bytes, not lines. The honest baseline for size; packs at 1 to 2 MB/s.

    Shapes:
        bytes in, bytes out.
    Cost:
        preset 9 extreme takes about 700 MB to pack and 65 MB to unpack.
    Knobs:
        preset: 0 to 9, always extreme.
    Differs from the paper:
        no paper; a floor.

    Example:
        >>> Xz().decode(Xz().encode(b"a line\\n" * 9)) == b"a line\\n" * 9
        True

    Paper: none.
    Test: tests/logs/test_floors.py
    """

    name: ClassVar[str] = "xz"
    paper: ClassVar[Paper] = Paper(
        0, "The .xz file format", "Collin", "https://tukaani.org/xz/xz-file-format.txt"
    )

    preset: int = knob(9, "effort, 0 to 9, always extreme", other=0)

    def encode(self, x: Any, budget: Spend = None, *, to: str | None = None) -> Packed:
        coder = lzma.LZMACompressor(preset=self.preset | lzma.PRESET_EXTREME)
        return stream(self, as_source(x), coder.compress, coder.flush, budget, to)

    def decode(self, packed: Packed) -> bytes:
        size = packed.meta.get("size")
        if not isinstance(size, int) or size < 0:
            raise CorruptArtefact("artefact", "it does not say how long it is")
        try:
            raw = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(section(packed, "0"), size + 1)
        except (lzma.LZMAError, EOFError) as fault:
            raise CorruptArtefact("artefact", f"its xz stream does not decode ({fault})") from fault
        if len(raw) != size:
            raise CorruptArtefact("artefact", f"{len(raw)} bytes where {size} were packed")
        return raw
