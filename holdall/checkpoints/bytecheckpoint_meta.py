"""The one global file of a checkpoint: of each tensor what it is, which boxes of it are stored, and where."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdall.checkpoints.boxes import Box
from holdall.checkpoints.bytecheckpoint_files import Entry, Files
from holdall.errors import CorruptArtefact
from holdall.optional import lazy

torch = lazy("torch", extra="checkpoints")

OWN = ("loader", "extra")  # kinds of which every rank has its own: random numbers, where the data stands
Place = tuple[str, int, int, str]  # file, first byte, last + 1, checksum


@dataclass
class Stored:
    """basics: of each tensor [type, shape, strides, device, requires_grad]. alias: names of tied tensors. trees: for
    each kind who wrote each rank's plain part, and where that lies. phases: what each rank did, and how long."""

    step: int
    world: int
    basics: dict[str, Any]
    entries: list[Entry]
    alias: dict[str, str] = field(default_factory=dict)
    owners: dict[str, list[int]] = field(default_factory=dict)
    trees: dict[str, dict[int, Place]] = field(default_factory=dict)
    phases: list[Any] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        names = list(self.files)
        number = {name: i for i, name in enumerate(names)}
        tensors: dict[str, Any] = {
            name: [basic, []] for name, basic in self.basics.items() if name not in self.alias
        }
        for e in self.entries:
            place = [number[e.file], e.start, e.stop, e.xxh3]
            tensors[e.name][1].append([list(e.box.offset), list(e.box.lengths), *place])
        return {
            "step": self.step,
            "world": self.world,
            "files": list(self.files.items()),
            "tensors": tensors,
            "tied": {a: [b, self.basics[a]] for a, b in self.alias.items()},
            "owners": self.owners,
            "trees": {k: {str(r): list(p) for r, p in t.items()} for k, t in self.trees.items()},
            "phases": self.phases,
        }

    @classmethod
    def of(cls, told: Mapping[str, Any], path: str) -> Stored:
        """CorruptArtefact where it contradicts itself: what is read from here says which bytes are read."""
        try:
            files = {str(name): int(size) for name, size in told["files"]}
            if any("/" in name or name.startswith(".") for name in files):
                raise ValueError("a file outside of the folder")
            basics = {str(n): t[0] for n, t in told["tensors"].items()}
            entries = [e for n, t in told["tensors"].items() for e in _entries(n, t, list(files), files)]
            alias = {str(a): str(b) for a, (b, _) in told["tied"].items()}
            if not alias.keys().isdisjoint(basics) or not set(alias.values()) <= basics.keys():
                raise ValueError("a tied name of nothing")
            basics.update({a: basic for a, (_, basic) in told["tied"].items()})
            trees = {
                k: {int(r): (str(f), int(a), int(b), str(s)) for r, (f, a, b, s) in t.items()}
                for k, t in told["trees"].items()
            }
            told_owners = {str(k): [int(r) for r in some] for k, some in told["owners"].items()}
            _compare(basics, alias, entries)
            if any(not 0 <= a <= b <= files[f] for t in trees.values() for f, a, b, _ in t.values()):
                raise ValueError("a tree outside of its file")
            step, world = int(told["step"]), int(told["world"])
            return cls(step, world, basics, entries, alias, told_owners, trees, list(told["phases"]), files)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as fault:
            raise CorruptArtefact(path, f"its table of contents contradicts itself ({fault})") from None

    def shared(self, files: Files) -> list[list[Any]]:
        """Trees of what ranks hold together, of all that wrote one."""
        kinds = [k for k in self.trees if k not in OWN]
        return [self.tree(files, kind, owner) for kind in kinds for owner in sorted(self.trees[kind])]

    def own(self, files: Files, rank: int) -> list[list[Any]]:
        """Trees of what this rank had of its own; a rank that was not there gets what rank 0 had."""
        kinds = [k for k in self.trees if k in OWN]
        owners = [(k, self.owners[k][rank if rank < self.world else 0]) for k in kinds]
        return [self.tree(files, kind, owner) for kind, owner in owners if owner in self.trees[kind]]

    def tree(self, files: Files, kind: str, owner: int) -> list[Any]:
        import xxhash

        file, start, stop, xxh3 = self.trees[kind][owner]
        raw = bytearray(stop - start)
        files.read(file, start, raw)
        if xxhash.xxh3_128_hexdigest(raw) != xxh3:
            raise CorruptArtefact(file, f"the tree of {kind} does not match its checksum")
        return list(json.loads(raw))


def _compare(basics: Mapping[str, Any], alias: Mapping[str, str], entries: Sequence[Entry]) -> None:
    """What tensors are said to be, with what is stored of them, before memory is taken for any."""
    held: dict[str, int] = {}
    for e in entries:
        held[e.name] = held.get(e.name, 0) + e.box.elements
    each = {e.name: e.each for e in entries}
    for name, (dtype, shape, strides, _, grad) in basics.items():
        real, kind = alias.get(name, name), getattr(torch, dtype)
        numbers = [*shape, *(strides or [])]
        sane = (
            all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
            and min(shape, default=0) >= 0
        )
        fits = strides is None or len(strides) == len(shape)
        if not sane or not fits or not isinstance(grad, bool) or not isinstance(kind, torch.dtype):
            raise ValueError(f"{name} is said to be {dtype} {shape}")
        if math.prod(shape) > held.get(real, 0) or each.get(real, kind.itemsize) != kind.itemsize:
            raise ValueError(f"{name} is said to be {dtype} {shape}, of which not all is stored")


def _entries(name: str, told: Any, names: Sequence[str], files: Mapping[str, int]) -> list[Entry]:
    (_dtype, shape, _, _, _), boxes = told
    found = []
    for offset, lengths, file, start, stop, xxh3 in boxes:
        box = Box(tuple(map(int, offset)), tuple(map(int, lengths)))
        inside = len(box.offset) == len(box.lengths) == len(shape) and all(
            o >= 0 and n >= 0 and o + n <= s for o, n, s in zip(*box, shape, strict=True)
        )
        each = (stop - start) // max(math.prod(box.lengths), 1)
        sane = each in (1, 2, 4, 8, 16) and each * math.prod(box.lengths) == stop - start
        if not inside or not sane or not 0 <= start <= stop <= files[names[file]]:
            raise ValueError(f"box {box} of {name}")
        found.append(Entry(name, box, each, names[file], start, stop, str(xxh3)))
    return found
