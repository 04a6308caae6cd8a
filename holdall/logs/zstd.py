"""Floor: zstd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from holdall.errors import CorruptArtefact
from holdall.kinds import Spend
from holdall.logs.base import LogCodec, as_source, section
from holdall.logs.none import stream
from holdall.method import Paper, knob
from holdall.optional import lazy
from holdall.packed import Packed

zstandard = lazy("zstandard", extra="logs")


@dataclass(frozen=True, kw_only=True)
class Zstd(LogCodec):
    """A log through zstd: the fast general compressor that most people use today.

    Sees bytes, not lines. Unpacks ten times as fast as anything smaller; poor in size on structured logs.

    Shapes:
        bytes in, bytes out.
    Cost:
        level 19 packs at 1 to 2 MB/s and unpacks at hundreds.
    Knobs:
        level: 1 to 22.
    Differs from the paper:
        no paper; a floor. Long-distance matching is on, with a window of 128 MB.

    Example:
        >>> Zstd().decode(Zstd().encode(b"a line\\n" * 9)) == b"a line\\n" * 9
        True

    Paper: none.
    Test: tests/logs/test_floors.py
    """

    name: ClassVar[str] = "zstd"
    paper: ClassVar[Paper] = Paper(
        0, "Zstandard", "Collet and Kucherawy, RFC 8878", "https://www.rfc-editor.org/rfc/rfc8878"
    )

    level: int = knob(19, "effort, 1 to 22", other=1)

    def encode(self, x: Any, budget: Spend = None, *, to: str | None = None) -> Packed:
        told = zstandard.ZstdCompressionParameters.from_level(self.level, window_log=27, enable_ldm=True)
        coder = zstandard.ZstdCompressor(compression_params=told).compressobj()
        return stream(self, as_source(x), coder.compress, coder.flush, budget, to)

    def decode(self, packed: Packed) -> bytes:
        size, raw = packed.meta.get("size"), bytearray()
        if not isinstance(size, int):
            raise CorruptArtefact("artefact", "it does not say how long it is")
        try:
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(section(packed, "0")) as f:
                while len(raw) <= size and (
                    piece := f.read(1 << 20)
                ):  # never more than was packed, whatever it says
                    raw += piece
        except zstandard.ZstdError as fault:
            raise CorruptArtefact("artefact", f"its zstd stream does not decode ({fault})") from fault
        if len(raw) != size:
            raise CorruptArtefact("artefact", f"{len(raw)} bytes where {size} were packed")
        return bytes(raw)
