"""Who writes what at a save: worked out once for a layout by rank 0, then each rank only says that nothing changed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from holdall.checkpoints import planning
from holdall.checkpoints.boxes import Box
from holdall.checkpoints.bytecheckpoint_ranks import Ranks
from holdall.checkpoints.bytecheckpoint_state import Taken, written
from holdall.checkpoints.planning import Item


@dataclass(frozen=True)
class Share:
    """One rank's part of a save: files with their boxes, and the trees that it writes for all that have the same.

    owners: on rank 0, for each kind the rank that writes each rank's tree.
    """

    number: int
    token: str
    files: tuple[tuple[str, tuple[Item, ...]], ...]
    trees: dict[str, bytes]
    owners: dict[str, list[int]]

    @property
    def nbytes(self) -> int:
        return sum(i.nbytes for _, some in self.files for i in some)


@dataclass(frozen=True)
class Contents:
    """What rank 0 knows of a plan: of each tensor its type and shape, names that are tied, each rank's files."""

    basics: dict[str, Any]
    alias: dict[str, str]
    files: list[list[tuple[str, list[Item]]]]


class Planner:
    """Plans of one open folder. part: bytes of a box at most; most: of a file."""

    def __init__(self, ranks: Ranks, part: int, most: int, keep: int):
        self._ranks, self._part, self._most = ranks, part, most
        self.cache = planning.Cache(keep)
        self.contents: dict[int, Contents] = {}
        self._made = 0
        self._owners: dict[str, list[int]] = {}

    def share(self, taken: Taken, step: int) -> Share:
        key = repr(hash(_form(taken)))
        trees = {k: written(t) for k, t in taken.trees.items()}
        number, files = self.cache.get(key) or (0, ())
        said = {"number": number, "trees": {k: xxhash.xxh3_64_hexdigest(raw) for k, raw in trees.items()}}
        told = self._ranks.together(said, self._agree, "it agrees on what to save")
        if not told["number"]:
            plan = {"items": list(taken.items()), "basics": taken.basics()}
            number, plain = self._ranks.together(plan, self._deal, "it plans to save")
            files = tuple((name, tuple(_item(i) for i in some)) for name, some in plain)
            self.cache.put(key, (number, files))
        token = f"{step}-{told['token']}"
        return Share(number, token, files, {k: trees[k] for k in told["write"]}, self._owners)

    def _agree(self, said: Sequence[Any]) -> list[Any]:
        """Whether all have the same plan still; and which rank writes which tree: of equal ones the first."""
        numbers = {s["number"] for s in said}
        known = len(numbers) == 1 and numbers <= self.contents.keys()
        self._owners = {}
        for kind in dict.fromkeys(k for s in said for k in s["trees"]):
            first: dict[str, int] = {}
            digests = [s["trees"].get(kind, "") for s in said]
            self._owners[kind] = [first.setdefault(d, r) for r, d in enumerate(digests)]
        writes = [
            [k for k, owners in self._owners.items() if r in owners and k in s["trees"]]
            for r, s in enumerate(said)
        ]
        number, token = numbers.pop() if known else 0, secrets.token_hex(4)
        return [{"number": number, "write": w, "token": token} for w in writes]

    def _deal(self, said: Sequence[Any]) -> list[Any]:
        plans = [[_item(i) for i in s["items"]] for s in said]
        basics: dict[str, Any] = {}
        for s in said:
            basics = {**s["basics"], **basics}
        left, tied = planning.aliases(plans)
        given = planning.deal(left)
        self._made += 1
        while len(self.contents) > 8:
            self.contents.pop(next(iter(self.contents)))
        files = [planning.files(some, rank, self._part, self._most) for rank, some in enumerate(given)]
        self.contents[self._made] = Contents(basics, tied, files)
        return [[self._made, f] for f in files]


def _form(taken: Taken) -> Any:
    """What a plan depends on, cheap to make and to compare."""
    parts = tuple((n, p.data.dtype, p.shape, p.base, p.start, p.stop) for n, p in taken.parts.items())
    return parts, tuple(taken.alias.items())


def _item(plain: Any) -> Item:
    name, (offset, lengths), each, kind, alias = plain
    return Item(name, Box(tuple(offset), tuple(lengths)), each, kind, alias)
