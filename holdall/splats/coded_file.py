"""The stream of a coded scene: a head of fixed size, then the parts in the order in which they are needed."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.splats import coded_columns, coded_layout, coded_places, coded_tree, coded_turns
from holdall.splats.coded_form import Prepared, quats_of
from holdall.splats.coded_layout import Near, buckets
from holdall.splats.coded_near import AXIS_BITS, keys
from holdall.splats.scene import Scene

PARTS = ("tree", "class", "shape", "turns", "colour", "places", "fits")


def _head(parts: tuple[str, ...]) -> struct.Struct:
    """Gaussians, harmonics, bits of the grid, -, corner, cell, dial, below, mixed, lengths."""
    return struct.Struct(f"<IBBH3d12f{len(parts)}I")


_HEAD = _head(PARTS)


class Passes:
    """The parts one after another. A subclass says what becomes of each: written, or read."""

    parts: ClassVar[tuple[str, ...]] = PARTS
    rough: ClassVar[coded_layout.Rough] = coded_layout.Rough()

    def __init__(self, places: np.ndarray, dial: float):
        self.near, self.places, self.dial = Near.of(places), places, dial
        self.dense = buckets(self.near.dense, 0.75, 0, 31)

    def columns(self, name: str, facts: list[np.ndarray], steps: np.ndarray, side: list[np.ndarray],
                groups: np.ndarray, near: Near | None = None) -> np.ndarray:  # fmt: skip
        """near: of those that the columns are of, where these are not all."""
        table, near = np.stack([np.ones(len(steps)), *facts], 1), near or self.near
        known = table, near.who, near.parts, np.ascontiguousarray(steps), np.stack(side, 1), groups
        shape = (len(groups), table.shape[1] + 2 + coded_columns.BEFORE)
        return self.column(name, known, coded_columns.used(shape, self.harmonic(name)))

    def harmonic(self, name: str) -> int | None:
        """The first of these columns that is of view-dependent colour."""
        return 3 if name == "colour" else None

    def column(self, name: str, known: tuple[Any, ...], used: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def turns(self, *known: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def run(self, harmonics: int) -> tuple[np.ndarray, ...]:
        n, dense, k = len(self.dense), self.near.dense, np.arange
        none = np.zeros(n, np.int64)
        level = np.rint(self.columns("class", [dense], np.ones((n, 2)), [self.dense, none, none], k(2)))
        level = np.clip(level, -coded_layout.CLASSES, coded_layout.CLASSES)
        self.level = np.clip(level[:, 0].astype(np.int64), 0, 31)
        base, form = coded_layout.base(level[:, 0], self.dial), coded_layout.base(level.sum(1), self.dial)
        lesser = np.clip(level[:, 1] + 6, 0, 15).astype(np.int64)
        rough = self.rough
        kinds = np.array([coded_layout.SCALE * rough.scale] * 3 + [coded_layout.ALPHA * rough.alpha])
        steps = coded_layout.bounded(form[:, None] * kinds, 4.0)
        shape = self.columns("shape", [dense, *level.T], steps, [self.level, lesser, self.dense // 2], k(4))
        scales = shape[:, :3]
        flat = buckets(shape[:, 0] - shape[:, 2], 0.4, 0, 15)
        needle, turning = coded_layout.turn_steps(scales, rough.turn * form)
        frames = self.turns(needle, turning, np.stack([self.level, flat], 1))
        opaque = buckets(-shape[:, 3], 0.25, 0, 15)
        facts = [dense, *level.T, *shape.T]
        return level, shape, frames, self.colours(harmonics, base, facts, [self.level, opaque, flat])

    def colours(self, harmonics: int, base: Any, facts: list[Any], side: list[Any]) -> np.ndarray:
        """[N, 3 * harmonics]. base: [N] steps of 1."""
        steps = coded_layout.bounded(coded_layout.COLOUR * base, 4.0)[:, None]
        steps = np.broadcast_to(steps, (len(base), 3 * harmonics))
        return self.columns("colour", facts, steps, side, groups_of(harmonics))


def groups_of(harmonics: int) -> np.ndarray:
    """Which columns of colour are of one kind: of a channel and a degree."""
    k, degree = np.arange(3), np.sqrt(np.arange(1, harmonics)).astype(np.int64)
    return np.concatenate([k, np.repeat(degree, 3) * 3 + np.tile(k, harmonics - 1)]).astype(np.int64)


class Writing(Passes):
    """order: where the Gaussians of x were before they were sorted; for those who know more of them."""

    def __init__(self, x: Prepared, places: np.ndarray, dial: float, order: np.ndarray):
        super().__init__(places, dial)
        self.x = x
        self.raw: dict[str, np.ndarray] = {}
        self.fits: list[np.ndarray] = []

    def values(self, name: str) -> np.ndarray:
        """What is to be written."""
        if name == "class":
            return coded_layout.classed(self.x.seen, self.dial)
        if name == "shape":
            return np.concatenate([self.x.scales, self.x.alphas[:, None]], 1)
        found: np.ndarray = self.x.colours
        return found

    def column(self, name: str, known: tuple[Any, ...], used: np.ndarray) -> np.ndarray:
        (facts, who, parts, steps, _, _), values = known, self.values(name)
        fits = coded_columns.fitted(values, facts, who, parts, 1 / steps**2, used)
        dead, harmonic = np.full(len(used), 0.5), self.harmonic(name)
        if harmonic is not None:
            dead[harmonic:] = 0.4
        self.raw[name], back, _ = coded_columns.written(values, dead, *known, fits, name == "class")
        self.fits.append(fits.astype("<f2")[used])
        return back

    def turns(self, *known: np.ndarray) -> np.ndarray:
        self.raw["turns"], back = coded_turns.written(self.x.frames, self.near.who, self.near.parts, *known)
        return back


class Reading(Passes):
    def __init__(self, raw: dict[str, np.ndarray], places: np.ndarray, dial: float):
        super().__init__(places, dial)
        self.raw, self.at = raw, 0

    def column(self, name: str, known: tuple[Any, ...], used: np.ndarray) -> np.ndarray:
        told = self.raw["fits"][2 * self.at : 2 * (self.at + used.sum())]
        if told.size != 2 * used.sum():
            raise CorruptArtefact("a coded scene", "its table of weights is cut short")
        self.at += int(used.sum())
        fits = np.zeros(used.shape, np.float32)
        fits[used] = told.copy().view("<f2")
        if not np.isfinite(fits).all():
            raise CorruptArtefact("a coded scene", "its weights are not numbers")
        found = coded_columns.read(self.raw[name], *known, fits, name == "class")
        if not (np.abs(found) < 1e6).all():
            raise CorruptArtefact("a coded scene", "its numbers run away")
        return found

    def turns(self, *known: np.ndarray) -> np.ndarray:
        return coded_turns.read(self.raw["turns"], self.near.who, self.near.parts, *known)


def write(
    x: Prepared, dial: float, made: type[Writing] = Writing, *known: Any
) -> tuple[np.ndarray, Scene, dict[str, int]]:
    """(the stream, uint8; the scene as it decodes; bytes by part). made: what writes the parts, and what more it
    is told."""
    dial = float(np.float32(dial))
    rough = made.rough
    low, cell = x.places.min(0), coded_layout.cell(x.places, x.scales, x.seen, dial, rough.place)
    at = (x.places - low) / cell
    grid = np.floor(at).astype(np.int64)
    order = np.lexsort((*coded_layout.classed(x.seen, dial).T, keys(grid)))
    x, grid, at = x.take(order), grid[order], at[order]
    bits = max(1, int(grid.max()).bit_length())
    work = made(x, grid, dial, order, *known)
    harmonics = x.colours.shape[1] // 3
    level, shape, frames, colours = work.run(harmonics)
    below = coded_layout.below(cell, dial * rough.place)
    fine = coded_layout.finer(shape[:, :3], level.sum(1), below)
    inside = np.floor((at - grid) * (1 << fine)[:, None]).astype(np.int64)
    inside = np.minimum(inside, ((1 << fine) - 1)[:, None])
    raw = work.raw | {
        "tree": coded_tree.written(grid, bits),
        "places": coded_places.written(inside, fine),
        "fits": np.concatenate(work.fits).view(np.uint8),
    }
    lengths = [raw[name].size for name in work.parts]
    head = _head(work.parts).pack(
        len(grid), harmonics, bits, 0, *low, cell, dial, below, *x.mixed.reshape(-1), *lengths
    )
    stream = np.concatenate([np.frombuffer(head, np.uint8), *(raw[name] for name in work.parts)])
    spare = max(0, _smallest(len(grid)) - stream.size)  # what packs too well to be believed is made longer
    means = low + cell * (grid + (inside + 0.5) / (1 << fine)[:, None])
    scene = _scene(means, shape, frames, colours, x.mixed)
    return np.append(stream, np.zeros(spare, np.uint8)), scene, dict(zip(work.parts, lengths, strict=True))


def read(stream: np.ndarray, made: type[Reading] = Reading) -> Scene:
    """CorruptArtefact for what `write` cannot have written."""
    n, harmonics, bits, low, cell, dial, below, mixed, raw = _opened(stream, made.parts)
    grid = coded_tree.read(raw["tree"], n, bits)
    if grid is None:
        raise CorruptArtefact("a coded scene", "its tree does not add up")
    level, shape, frames, colours = made(raw, grid, dial).run(harmonics)
    fine = coded_layout.finer(shape[:, :3], level.sum(1), below)
    inside = (coded_places.read(raw["places"], fine) + 0.5) / (1 << fine)[:, None]
    return _scene(low + cell * (grid + inside), shape, frames, colours, mixed)


def _scene(means: Any, shape: Any, frames: Any, colours: Any, mixed: Any) -> Scene:
    alphas = np.minimum(shape[:, 3], -1e-6)
    return Scene(
        means=means,
        scales=np.clip(shape[:, :3], -40, 40),
        quats=quats_of(frames),
        opacities=alphas - np.log(-np.expm1(alphas)),
        sh=colours.reshape(len(means), -1, 3) @ mixed,
    )


def _opened(stream: np.ndarray, parts: tuple[str, ...]) -> tuple[Any, ...]:
    wrong = CorruptArtefact("a coded scene", "its head is none")
    if stream.dtype != np.uint8 or stream.ndim != 1 or stream.size < _head(parts).size:
        raise wrong
    head, many = _head(parts), len(parts)
    told = head.unpack(stream[: head.size].tobytes())
    n, harmonics, bits, _, *numbers = told[:-many]
    low, (cell, dial, below), mixed, lengths = numbers[:3], numbers[3:6], np.array(numbers[6:]), told[-many:]
    if harmonics not in (1, 4, 9, 16) or not 1 <= bits <= AXIS_BITS or not (np.abs(numbers) < 1e30).all():
        raise wrong
    if not (cell > 0 and dial > 1e-20) or not n or _smallest(n) > stream.size:
        raise wrong
    ends = head.size + np.cumsum((0, *lengths))
    if ends[-1] > stream.size:
        raise wrong
    raw = {name: stream[a:b] for name, a, b in zip(parts, ends[:-1], ends[1:], strict=True)}
    return n, harmonics, bits, np.array(low), cell, dial, below, mixed.reshape(3, 3), raw


def _smallest(count: int) -> int:
    """Bytes below which nobody believes that a stream holds so many Gaussians."""
    return count - 4096
