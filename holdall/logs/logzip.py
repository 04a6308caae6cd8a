"""Logzip: templates and columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdall.errors import BudgetError, CorruptArtefact
from holdall.kinds import Spend
from holdall.logs.base import LogCodec, as_source
from holdall.method import Paper, knob
from holdall.packed import Packed
from holdall.writer import Writer

if TYPE_CHECKING:
    from holdall.logs.source import Source

_SPLIT = 48 << 10  # packed blocks of more bytes keep their index apart, so that a search can read it alone


@dataclass(frozen=True, kw_only=True)
class Logzip(LogCodec):
    """Logs at a half to two thirds of the size that xz -9e needs, and they can be searched while packed.

    Finds the header and the templates of the log by itself (iterative structure extraction), cuts each line into
    an event number and parameters, and stores every column in the layout that measures smallest: numbers as they
    are, as steps from the last one or from the last one of the same event; words as ids of a dictionary or as
    recency ranks; columns that hardly change as their changes. Symbols are coded by a context-mixing kernel whose
    contexts are the column, the event and a parent column; texts by PPMd, brotli or as binary numbers. A block
    that a general kernel (PPMd, lzma) packs smaller, as a sample foretells, is stored so: on 132 files it was never
    larger than 1.01 of xz -9e and the header. Exact on any bytes. Poor where lines have little in common (free text,
    random identifiers): there it is about as good as PPMd, and slower than xz to unpack.

    Shapes:
        bytes in, bytes out; blocks of about `block` bytes that end with a line.
    Cost:
        O(bytes) to cut lines, some 5 coded decisions a parameter; memory about 15 times `block` for each worker.
    Knobs:
        level: 1 header fields, 2 also templates, 3 also dictionaries and numbers (paper: 3).
        sample, theta, target: of the extraction (paper: 1 % of the unmatched lines a round, .5, 90 %).
        block: bytes; segment: lines that are unpacked together by a search.
        lossy: drop the parameters where the budget is below the exact size, or if there is none.
        workers: blocks packed at once.
    Differs from the paper:
        Lines are grouped by equal form first, so that clustering and matching see each form once; at least 1000 lines
        are sampled a round; a star may be empty; no log level or component is asked for. Columns are shared by
        templates whose values overlap. Numeric layouts, the choice by measure, the mixing kernel, the fall-back,
        the search and the decoder are not in the paper, whose kernels are gzip, bzip2 and lzma. Parameters that no
        template explains are dropped only in lossy mode, and lines that no template matches never.

    Example:
        >>> log = b"".join(b"081109 2035%02d INFO block blk_%d ok\\n" % (i % 60, 7919 * i) for i in range(500))
        >>> packed = Logzip().encode(log)
        >>> Logzip().decode(packed) == log, packed.nbytes < len(log) / 8
        (True, True)
        >>> list(Logzip().grep(packed, "blk_7919 "))
        [(2, b'081109 203501 INFO block blk_7919 ok')]

    Paper: 29.
    Test: tests/logs/test_logzip.py
    """

    name: ClassVar[str] = "logzip"
    paper: ClassVar[Paper] = Paper(
        29,
        "Logzip: Extracting Hidden Structures via Iterative Clustering for Log Compression",
        "Liu, Zhu, He, He, Zheng and Lyu, ASE 2019",
        "https://arxiv.org/abs/1910.00409",
    )

    level: int = knob(3, "1 header fields, 2 also templates, 3 also dictionaries and numbers", other=1)
    sample: float = knob(0.01, "share of the unmatched lines sampled a round", other=0.9)
    theta: float = knob(0.5, "share of words in common that joins two lines", other=0.95)
    target: float = knob(0.99, "share of matched lines at which the rounds end", paper=0.9, other=0.0)
    block: int = knob(32 << 20, "text of one block", unit="bytes", other=16 << 10)
    segment: int = knob(
        0, "lines unpacked together by a search; 0: 512 in blocks of 65,536 or more, else all", other=300
    )
    lossy: bool = knob(False, "drop parameters rather than miss the budget", other=True)
    workers: int = knob(1, "blocks packed at once", other=2, changes="nothing")

    def encode(self, x: Any, budget: Spend = None, *, to: str | None = None) -> Packed:
        source = as_source(x)
        if not self.lossy:
            return self._exact(source, budget, to)
        data = x if isinstance(x, bytes) else b"".join(source.blocks(1 << 20))
        if budget is not None:
            try:
                return self.but(lossy=False)._exact(as_source(data), budget, to)
            except BudgetError:
                pass  # then without parameters
        return self._exact(as_source(data), budget, to)

    def _exact(self, source: Source, budget: Spend, to: str | None) -> Packed:
        """What the recipe gives, within the budget; nothing is written if it does not fit."""
        found: dict[str, float] = {}
        with Writer(to) as writer:
            for k, (index, data, more) in enumerate(self._blocks(source)):
                writer.add(f"{k}", index)
                if data:
                    writer.add(f"{k}c", data)
                for key, value in more.items():
                    found[key] = found.get(key, 0) + value
            meta = self._meta(source, found)
            self.fits(writer.size(meta), source.size, budget, self.full_name())
            if to is None:
                return Packed.from_bytes(writer.to_bytes(meta))
            writer.finish(meta)
        return Packed.open(to)

    def _meta(self, source: Source, found: dict[str, float]) -> dict[str, Any]:
        told: dict[str, Any] = {"room": self.room, "method": self.to_dict(), "size": source.size}
        told["digest"] = source.digest
        if found.get("lines"):
            told["lines"] = int(found["lines"])
            told["matched"] = round(found["matched"] / found["lines"], 4)
            told["sampled"] = round(found["sampled"] / found["lines"], 4)
        if self.lossy:
            told["whole_lines"] = found.get("whole_lines", 0) / max(1, found.get("lines", 0))
            told["kept_fields"] = found.get("kept_fields", 0) / max(1, found.get("fields", 0))
        return told

    def _blocks(self, source: Source) -> Iterator[tuple[bytes, bytes, dict[str, float]]]:
        """Packed blocks in order; at most `workers` and one are in memory."""
        if self.workers <= 1:
            yield from (self._block(raw) for raw in source.blocks(self.block))
            return
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Future[tuple[bytes, bytes, dict[str, float]]]] = deque()
            for raw in source.blocks(self.block):
                waiting.append(pool.submit(self._block, raw))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _block(self, raw: bytes) -> tuple[bytes, bytes, dict[str, float]]:
        from holdall.logs import blocks, plain
        from holdall.logs.bytestreams import varints

        how = blocks.Recipe(self.level, self.segment, self.sample, self.theta, self.target, self.lossy)
        found: dict[str, float] = {}
        index, data = b"", b""
        if plain.has_structure(raw) and (
            self.lossy
            or not plain.is_lost(raw, lambda x: sum(map(len, blocks.encode_structured(x, how)[:2])))
        ):
            index, data, found = blocks.encode_structured(raw, how)
        if not (self.lossy and index):
            instead = plain.contest(raw, len(index) + len(data) if index else None)
            if instead is not None:
                return instead, b"", found
        if len(index) + len(data) < _SPLIT:
            return varints([2, len(index)]) + index + data, b"", found
        return index, data, found

    def decode(self, packed: Packed) -> bytes:
        return b"".join(self.pieces(packed))

    def pieces(self, packed: Packed) -> Iterator[bytes]:
        from holdall.logs.search import block_parts, block_text

        size, k = 0, 0
        while f"{k}" in packed.arrays:
            text = block_text(*block_parts(packed, k))
            size += len(text)
            yield text
            k += 1
        if not packed.meta.get("method", {}).get("lossy") and packed.meta.get("size") != size:
            raise CorruptArtefact("artefact", f"{size} bytes where {packed.meta.get('size')} were packed")

    def grep(self, packed: Packed, pattern: str | bytes, *, regex: bool = False,
             ignore_case: bool = False) -> Iterator[tuple[int, bytes]]:  # fmt: skip
        from holdall.logs.search import find_lines

        return find_lines(packed, pattern, regex, ignore_case)
