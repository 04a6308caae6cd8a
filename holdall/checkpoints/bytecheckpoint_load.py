"""Reading what a rank wants of stored boxes: each byte by one rank only, which sends it to the others that want it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

from holdall.checkpoints import boxes, planning
from holdall.checkpoints.boxes import Box
from holdall.checkpoints.bytecheckpoint_files import Entry, Files
from holdall.checkpoints.bytecheckpoint_parts import Piece
from holdall.checkpoints.bytecheckpoint_ranks import Ranks
from holdall.checkpoints.monitoring import Watch
from holdall.checkpoints.planning import Read
from holdall.errors import CorruptArtefact, HoldallError
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

_NUMBERS = {
    1: "u1",
    2: "u2",
    4: "u4",
    8: "u8",
    16: "c16",
}  # numpy knows no bfloat16: elements are only moved here


class Wanted:
    """What this rank wants: stored names to the parts of tensors that are to be filled."""

    def __init__(self, entries: Sequence[Entry], parts: Mapping[str, Sequence[Piece]]):
        self.entries, self.parts = entries, parts
        self.wants: list[tuple[int, Box]] = []
        named: dict[str, list[int]] = {}
        for i, entry in enumerate(entries):
            named.setdefault(entry.name, []).append(i)
        for name, pieces in parts.items():
            wanted = dict.fromkeys(box for piece in pieces for box in piece.boxes())
            for box in wanted:
                met = [
                    (i, m) for i in named.get(name, ()) if (m := boxes.meet(entries[i].box, box)) is not None
                ]
                if sum(m.elements for _, m in met) != box.elements:
                    raise CorruptArtefact(name, f"the checkpoint has no element of some of {box}")
                self.wants += met

    def put(self, entry: Entry, box: Box, data: np.ndarray) -> None:
        """The elements of a box, as bytes in row-major order, into every part that has some of them."""
        for piece in self.parts[entry.name]:
            source = torch.from_numpy(data).view(piece.data.dtype).reshape(box.lengths)
            for own in piece.boxes():
                both = boxes.meet(own, box)
                if both is not None:
                    piece.view(both).copy_(source[both.slices(box)])

    def place(self, entry: Entry, box: Box) -> np.ndarray | None:
        """The memory of a box, as bytes, where it lies in one piece in this process."""
        piece = self.parts[entry.name][0]
        if len(self.parts[entry.name]) > 1 or piece.data.device.type != "cpu":
            return None
        view = piece.view(box).detach()
        return view.reshape(-1).view(torch.uint8).numpy() if view.is_contiguous() else None


def fill(
    wanted: Wanted,
    ranks: Ranks,
    files: Files,
    watch: Watch,
    threads: int,
    window: int,
    waste: int,
    once: bool,
) -> None:
    """Fill all parts on all ranks. window: bytes that a rank reads in a round; two rounds are under way at a time."""
    entries = wanted.entries
    stored = [(e.box, e.each) for e in entries]

    def decide(said: Sequence[Any]) -> list[Any]:
        wants = [[(i, Box(tuple(o), tuple(n))) for i, (o, n) in some] for some in said]
        reads = planning.share(stored, wants, 1 << 62, once)
        cost: Callable[[Read], int] = lambda r: r.box.elements * entries[r.entry].each  # noqa: E731
        found = planning.rounds(reads, len(wants), cost, window)
        return [[[r for r in some if _concerns(r, n)] for some in found] for n in range(len(wants))]

    with watch.phase("plan"):
        mine = ranks.together(wanted.wants, decide, "it plans to load")
        rounds = [[_read(r) for r in some] for some in mine]
    with ThreadPoolExecutor(threads, "holdall-read") as pool:
        ahead: list[list[Future[Any]]] = []
        fault: Exception | None = None
        for n, some in enumerate(rounds):
            for following in rounds[n : n + 2][len(ahead) :]:
                ahead.append([pool.submit(_fetch, r, wanted, ranks, files, watch, waste) for r in following])
            try:
                got = [f.result() for f in ahead.pop(0)]
            except (
                HoldallError,
                OSError,
            ) as failed:  # the others wait for this rank's part: it goes on, with zeros
                got, fault = [], failed
            _exchange(some, dict(got), wanted, ranks, watch)
    agreed(fault, ranks)


def agreed(fault: Exception | None, ranks: Ranks) -> None:
    """All ranks go on, or none: an error of one is raised on all."""

    def decide(said: Sequence[Any]) -> list[Any]:
        bad = [f"rank {r}: {s}" for r, s in enumerate(said) if s is not None]
        if bad:
            raise HoldallError(bad[0])
        return list(said)

    try:
        ranks.together(None if fault is None else str(fault), decide, "it loads")
    except HoldallError as failed:
        raise fault or failed from None


def _concerns(read: Read, rank: int) -> bool:
    return read.reader == rank or any(r == rank for r, _ in read.takers)


def _read(plain: Any) -> Read:
    entry, box, reader, takers = plain
    return Read(entry, _box(box), reader, tuple((r, _box(b)) for r, b in takers))


def _box(plain: Any) -> Box:
    return Box(tuple(plain[0]), tuple(plain[1]))


def _fetch(
    read: Read, wanted: Wanted, ranks: Ranks, files: Files, watch: Watch, waste: int
) -> tuple[Read, np.ndarray | None]:
    """What a rank has to read of one stored box: bytes, or None where they went where they belong."""
    if read.reader != ranks.rank:
        return read, None
    entry = wanted.entries[read.entry]
    nbytes = read.box.elements * entry.each
    alone = read.takers == ((ranks.rank, read.box),)
    place = wanted.place(entry, read.box) if alone else None
    into = np.empty(nbytes, np.uint8) if place is None else place
    with watch.phase("read", nbytes):
        read_box(files, entry, read.box, into, waste)
    return read, None if place is not None else into


def read_box(files: Files, entry: Entry, box: Box, into: np.ndarray, waste: int) -> None:
    """Elements of a box of a stored one, as bytes row by row; the checksum is compared where that is all of it."""
    for sub in boxes.pieces(box, entry.box, waste // entry.each):
        first, stop, strides = boxes.span(sub, entry.box)
        if (stop - first) * entry.each == len(into):
            files.read(entry.file, entry.start + first * entry.each, into)
            continue
        raw = np.empty((stop - first) * entry.each, np.uint8)
        files.read(entry.file, entry.start + first * entry.each, raw)
        number = np.dtype(_NUMBERS[entry.each])
        seen = np.ndarray(sub.lengths, number, raw, 0, [s * entry.each for s in strides])
        into.view(number).reshape(box.lengths)[sub.slices(box)] = seen
    if box == entry.box and xxhash.xxh3_128_hexdigest(into.data) != entry.xxh3:
        raise CorruptArtefact(entry.file, f"{entry.name!r} does not match its checksum")


def _exchange(
    some: Sequence[Read], got: Mapping[Read, np.ndarray | None], wanted: Wanted, ranks: Ranks, watch: Watch
) -> None:
    """Give others what was read for them, take what they read for this rank, put all of it where it belongs."""
    out: list[list[np.ndarray]] = [[] for _ in range(ranks.world)]
    sizes = [0] * ranks.world
    for read, rank, box in _taken(some):
        entry = wanted.entries[read.entry]
        nbytes = box.elements * entry.each
        if read.reader == ranks.rank:
            data = got.get(read)
            if rank != ranks.rank:
                out[rank].append(
                    np.zeros(nbytes, np.uint8) if data is None else _cut(data, read, box, entry.each)
                )
            elif data is not None:
                with watch.phase("place", nbytes):
                    wanted.put(entry, box, _cut(data, read, box, entry.each))
        elif rank == ranks.rank:
            sizes[read.reader] += nbytes
    if ranks.world == 1:
        return
    with watch.phase("exchange", sum(sizes)):
        none = np.empty(0, np.uint8)
        came = ranks.exchange([np.concatenate([none, *x]) for x in out], sizes)
    at = [0] * ranks.world
    for read, rank, box in _taken(some):
        if rank == ranks.rank and read.reader != ranks.rank:
            entry, start = wanted.entries[read.entry], at[read.reader]
            at[read.reader] += box.elements * entry.each
            with watch.phase("place", at[read.reader] - start):
                wanted.put(entry, box, came[read.reader][start : at[read.reader]].copy())


def _taken(some: Sequence[Read]) -> Iterator[tuple[Read, int, Box]]:
    for read in some:
        for rank, box in read.takers:
            yield read, rank, box


def _cut(data: np.ndarray, read: Read, box: Box, each: int) -> np.ndarray:
    """Of the bytes of what was read, those of a box."""
    if box == read.box:
        return data
    part = data.view(_NUMBERS[each]).reshape(read.box.lengths)[box.slices(read.box)]
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
