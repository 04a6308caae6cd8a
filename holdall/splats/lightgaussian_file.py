"""The stream of a light scene: as a coded one, but harmonics of what is seen less are entries of a book."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.splats import coded_file, coded_layout, lightgaussian_codes
from holdall.splats.coded_form import Prepared
from holdall.splats.coded_layout import Near
from holdall.splats.coded_near import NEAR
from holdall.splats.lightgaussian_books import LARGEST, Split
from holdall.splats.scene import Scene

PARTS = ("told", "tree", "class", "shape", "turns", "base", "mask", "own", "book", "index", "places", "fits")
_TOLD = struct.Struct("<HHff")  # entries, columns that all have, step of the book, of colours beside the dial
# Of what was pruned and taught: fewer Gaussians, of which each place matters less and each turn more.
ROUGH = coded_layout.Rough(scale=0.8, alpha=0.8, turn=0.75, place=2.5)
_BOOK_STEP = 0.25  # of what an entry misses its vectors by


@dataclass(frozen=True)
class Told:
    """codes: entries of the book; plain: how many columns of colour all Gaussians have of their own; step: of the
    book's numbers; tint: by how much steps of colour are larger than the dial says."""

    codes: int
    plain: int
    step: float
    tint: float

    def packed(self) -> np.ndarray:
        return np.frombuffer(_TOLD.pack(self.codes, self.plain, self.step, self.tint), np.uint8)

    @classmethod
    def of(cls, raw: np.ndarray) -> Told:
        if raw.size != _TOLD.size:
            raise _wrong("its book is told by no numbers")
        codes, plain, step, tint = _TOLD.unpack(raw.tobytes())
        if codes > LARGEST or plain not in (0, 3) or not 0 < step < 1e9 or not 0 < tint < 1e9:
            raise _wrong("its book is none")
        return cls(codes, plain, step, tint)


class _Light(coded_file.Passes):
    """The walk over colours, whether they are written or read: base, mask, own, book, index."""

    parts: ClassVar[tuple[str, ...]] = PARTS
    rough: ClassVar[coded_layout.Rough] = ROUGH
    told: Told

    def harmonic(self, name: str) -> int | None:
        return {"base": 3, "own": 3 - self.told.plain, "book": 3 - self.told.plain}.get(name)

    def codes(self, name: str, bits: int, near: Near, side: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def colours(self, harmonics: int, base: Any, facts: list[Any], side: list[Any]) -> np.ndarray:
        n, wide, told = len(base), 3 * harmonics, self.told
        groups = coded_file.groups_of(harmonics)
        steps = coded_layout.bounded(told.tint * self.rough.colour * coded_layout.COLOUR * base, 4.0)[:, None]
        out, plain = np.zeros((n, wide)), min(told.plain, wide)
        if plain:
            out[:, :3] = self.columns("base", facts, np.broadcast_to(steps, (n, 3)), side, groups[:3])
        if plain == wide:
            return out
        top = self.codes("mask", 1, self.near, self.level) == 1
        facts = [*facts, *out[:, :plain].T]
        if top.any():
            facts, side = [f[top] for f in facts], [s[top] for s in side]
            steps = np.broadcast_to(steps[top], (len(side[0]), wide - plain))
            near = Near.of(self.places[top])
            out[top, plain:] = self.columns("own", facts, steps, side, groups[plain:], near)
        if not top.all():
            out[~top, plain:] = self.entries(wide - plain, groups[plain:])[self.index(~top)]
        return out

    def entries(self, wide: int, groups: np.ndarray) -> np.ndarray:
        """The book, as it decodes."""
        count = self.told.codes
        if not count:
            raise _wrong("its mask asks for a book that it has not")
        before = np.arange(count)[:, None] - 1 - np.arange(NEAR)
        line = Near(
            np.maximum(before, -1), np.where(before >= 0, 1.0 / (1 + np.arange(NEAR)), 0.0), np.zeros(count)
        )
        none, steps = np.zeros(count, np.int64), np.full((count, wide), self.told.step)
        return self.columns("book", [], steps, [none] * 3, groups, line)

    def index(self, rest: np.ndarray) -> np.ndarray:
        bits = max(1, (self.told.codes - 1).bit_length())
        found = self.codes("index", bits, Near.of(self.places[rest]), self.level[rest])
        if found.max() >= self.told.codes:
            raise _wrong("its codes name entries that there are not")
        return found


class _Writing(_Light, coded_file.Writing):
    def __init__(self, x: Prepared, places: np.ndarray, dial: float, order: np.ndarray, cut: Split, told: Told,
                 orders: list[np.ndarray]):  # fmt: skip
        super().__init__(x, places, dial, order)
        orders.append(order)
        self.told, self.cut = told, cut.take(order)
        self.raw = {name: np.zeros(0, np.uint8) for name in PARTS} | {"told": told.packed()}

    def values(self, name: str) -> np.ndarray:
        if name not in ("base", "own", "book"):
            return super().values(name)
        plain, colours = self.told.plain, self.x.colours
        found = {"base": colours[:, :3], "own": colours[self.cut.top, plain:], "book": self.cut.book}[name]
        return np.ascontiguousarray(found, np.float64)

    def codes(self, name: str, bits: int, near: Near, side: np.ndarray) -> np.ndarray:
        cut = self.cut
        values = cut.top.astype(np.int64) if name == "mask" else cut.owner[~cut.top]
        self.raw[name] = lightgaussian_codes.written(values, bits, near.who, side)
        return values


class _Reading(_Light, coded_file.Reading):
    def __init__(self, raw: dict[str, np.ndarray], places: np.ndarray, dial: float):
        super().__init__(raw, places, dial)
        self.told = Told.of(raw["told"])

    def codes(self, name: str, bits: int, near: Near, side: np.ndarray) -> np.ndarray:
        return lightgaussian_codes.read(self.raw[name], bits, near.who, side)


def write(
    x: Prepared, cut: Split, dial: float, tint: float = 1.0
) -> tuple[np.ndarray, Scene, dict[str, int], np.ndarray]:
    """(the stream, uint8; the scene as it decodes; bytes by part; which of x each of its Gaussians was)."""
    plain = x.colours.shape[1] - cut.book.shape[1]
    step = float(np.float32(np.clip(_BOOK_STEP * cut.miss, 1e-4, 4.0)))
    orders: list[np.ndarray] = []
    told = Told(len(cut.book), plain, step, float(np.float32(tint)))
    stream, scene, parts = coded_file.write(x, dial, _Writing, cut, told, orders)
    return stream, scene, parts, orders[0]


def read(stream: np.ndarray) -> Scene:
    """CorruptArtefact for what `write` cannot have written."""
    return coded_file.read(stream, _Reading)


def _wrong(why: str) -> CorruptArtefact:
    return CorruptArtefact("a light scene", why)
