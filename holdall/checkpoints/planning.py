"""Plans of saving: who writes what, each element once, as many bytes each; and who reads what for whom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from holdall.checkpoints import boxes
from holdall.checkpoints.boxes import Box

_SHARES = 16  # a box that several hold is cut to this part of a mean load, so that the fullest is within it of the mean


class Item(NamedTuple):
    """A box of a tensor that a rank holds: `each` bytes an element, for the file of one `kind`.

    alias: the name under which the same memory is in the plan already (tied weights).
    """

    name: str
    box: Box
    each: int
    kind: str
    alias: str = ""

    @property
    def nbytes(self) -> int:
        return self.box.elements * self.each


def aliases(plans: Sequence[Sequence[Item]]) -> tuple[list[list[Item]], dict[str, str]]:
    """Plans without what every rank that holds it has under one other name, too; and these names."""
    told: dict[str, set[str]] = {}
    for item in (i for plan in plans for i in plan):
        told.setdefault(item.name, set()).add(item.alias)
    tied = {name: min(names) for name, names in told.items() if len(names) == 1 and names != {""}}
    left = [[i._replace(alias="") for i in plan if i.name not in tied] for plan in plans]
    return left, tied


def deal(plans: Sequence[Sequence[Item]], shares: int = _SHARES) -> list[list[Item]]:
    """What each rank writes of what it holds: every element once, replicas to whoever has the least to write.

    shares: a replica is cut to this part of a mean load; 0 leaves it whole.

    What one rank alone holds is its own; then the largest of the others goes to the least loaded that holds it.
    """
    groups = list(_apart(plans))
    total = sum(i.nbytes for i, _ in groups)
    most = total // (shares * max(len(plans), 1)) if shares else total
    given: list[list[Item]] = [[] for _ in plans]
    loads = [0] * len(plans)
    shared = []
    for item, holders in groups:
        if len(holders) > 1:
            cut = boxes.rows(item.box, max(1, most // item.each)) if item.nbytes > most else [item.box]
            shared += [(item._replace(box=b), holders) for b in cut]
        else:
            given[holders[0]].append(item)
            loads[holders[0]] += item.nbytes
    for item, holders in sorted(shared, key=lambda g: (-g[0].nbytes, g[0].name, g[0].box)):
        owner = min(holders, key=lambda r: (loads[r], r))
        given[owner].append(item)
        loads[owner] += item.nbytes
    order = {name: i for i, name in enumerate(dict.fromkeys(i.name for p in plans for i in p))}
    return [sorted(some, key=lambda i: (i.kind, order[i.name], i.box)) for some in given]


def _apart(plans: Sequence[Sequence[Item]]) -> Iterator[tuple[Item, list[int]]]:
    """Boxes that do not overlap, each with the ranks that hold all of it."""
    named: dict[str, dict[Box, tuple[Item, list[int]]]] = {}
    for rank, plan in enumerate(plans):
        for item in plan:
            holders = named.setdefault(item.name, {}).setdefault(item.box, (item, []))[1]
            if not holders or holders[-1] != rank:
                holders.append(rank)
    for found in named.values():
        if len(found) == 1:
            yield from found.values()
            continue
        open_: list[Box] = []  # earlier boxes that reach this far along the first axis
        for box, (item, holders) in sorted(found.items(), key=lambda f: f[0]):
            open_ = [b for b in open_ if not b.offset or b.offset[0] + b.lengths[0] > box.offset[0]]
            for rest in boxes.uncovered(box, open_):
                yield item._replace(box=rest), holders
            open_.append(box)


def files(items: Sequence[Item], rank: int, part: int, most: int) -> list[tuple[str, list[Item]]]:
    """A rank's files, `kind_rank`, and `kind_rank.1` and so on where one would have more than `most` bytes; each with
    its boxes, which are cut so that none has more than `part` bytes."""
    found: list[tuple[str, list[Item]]] = []
    for kind in dict.fromkeys(i.kind for i in items):
        name, number, held, some = f"{kind}_{rank}", 0, 0, list[Item]()
        for item in (i for i in items if i.kind == kind):
            for box in boxes.rows(item.box, max(1, part // item.each)):
                cut = item._replace(box=box)
                if some and held + cut.nbytes > most:
                    found.append((name, some))
                    number, held, some = number + 1, 0, []
                    name = f"{kind}_{rank}.{number}"
                held += cut.nbytes
                some.append(cut)
        found.append((name, some))
    return found


def imbalance(given: Sequence[Sequence[Item]]) -> float:
    """The fullest writer's bytes over the mean."""
    loads = [sum(i.nbytes for i in some) for some in given]
    return max(loads) * len(loads) / max(sum(loads), 1)


class Cache:
    """What was worked out once for a digest; the last few are kept."""

    def __init__(self, most: int = 4):
        self._most, self._held = most, dict[str, Any]()
        self.hits = self.misses = 0

    def get(self, key: str) -> Any:
        """None where it is not there."""
        found = self._held.get(key)
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: str, value: Any) -> None:
        self._held.pop(key, None)
        self._held[key] = value
        while len(self._held) > self._most:
            self._held.pop(next(iter(self._held)))


def digest(*things: Any) -> str:
    """Of plain things: names, numbers, tuples. Two layouts differ exactly where their digests do."""
    return hashlib.blake2b(repr(things).encode(), digest_size=16).hexdigest()


class Tree:
    """How messages of many ranks come to rank 0: within a machine to its first rank, then by groups of `fanout`.

    No rank hears more than `machine - 1 + fanout` others.
    """

    def __init__(self, world: int, machine: int = 8, fanout: int = 8):
        self.world, self._machine, self._fanout = world, machine, fanout

    def parent(self, rank: int) -> int | None:
        if rank == 0:
            return None
        if rank % self._machine:
            return rank - rank % self._machine
        return (rank // self._machine - 1) // self._fanout * self._machine

    def children(self, rank: int) -> list[int]:
        if rank % self._machine:
            return []
        own = range(rank + 1, min(rank + self._machine, self.world))
        first = rank // self._machine * self._fanout + 1
        others = (n * self._machine for n in range(first, first + self._fanout))
        return [*own, *(r for r in others if r < self.world)]

    def height(self, rank: int) -> int:
        """Messages from the farthest below a rank to it."""
        return max((1 + self.height(child) for child in self.children(rank)), default=0)


class Read(NamedTuple):
    """Part of a stored box: who reads it, and which part of it goes to whom."""

    entry: int
    box: Box
    reader: int
    takers: tuple[tuple[int, Box], ...]


def share(
    stored: Sequence[tuple[Box, int]],
    wants: Sequence[Sequence[tuple[int, Box]]],
    part: int,
    once: bool = True,
) -> list[Read]:
    """Reads that give every rank what it wants of stored boxes, each byte read by one rank only (`once`).

    stored: boxes and bytes an element. wants: for each rank (number of a stored box, the part it wants). Boxes are cut
    to `part` bytes, and each cut goes to whoever of those that want it has the least to read.
    """
    takers: dict[int, list[tuple[int, Box]]] = {}
    for rank, some in enumerate(wants):
        for entry, box in some:
            takers.setdefault(entry, []).append((rank, box))
    loads, reads = [0] * len(wants), []
    for entry in sorted(takers):
        box, each = stored[entry]
        for cut in boxes.rows(box, max(1, part // each)):
            met = [(r, m) for r, b in takers[entry] if (m := boxes.meet(cut, b)) is not None]
            groups = [met] if once else [[one] for one in met]
            for group in filter(None, groups):
                reader = min({r for r, _ in group}, key=lambda r: (loads[r], r))
                hull = _hull([b for _, b in group])
                loads[reader] += hull.elements * each
                reads.append(Read(entry, hull, reader, tuple(group)))
    return reads


def _hull(some: Sequence[Box]) -> Box:
    if not some[0].offset:
        return some[0]
    low = tuple(map(min, zip(*(b.offset for b in some), strict=True)))
    ends = [tuple(o + n for o, n in zip(*b, strict=True)) for b in some]
    high = tuple(map(max, zip(*ends, strict=True)))
    return Box(low, tuple(h - o for o, h in zip(low, high, strict=True)))


def rounds(reads: Sequence[Read], world: int, each: Callable[[Read], int], window: int) -> list[list[Read]]:
    """Reads in rounds: nobody reads more than `window` bytes in one (but always one read)."""
    at, filled = [0] * world, [0] * world
    found: list[list[Read]] = []
    for read in reads:
        cost, reader = each(read), read.reader
        if filled[reader] and filled[reader] + cost > window:
            at[reader], filled[reader] = at[reader] + 1, 0
        filled[reader] += cost
        while len(found) <= at[reader]:
            found.append([])
        found[at[reader]].append(read)
    return found
