"""The layout with codes while vectors come and go: what comes stands behind the rest, what goes is a bit each, until
there are many of either, and all is written again in the order of lists."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.vectors.bits import Bits
from holdall.vectors.entries import Entries
from holdall.vectors.numbered import GONE
from holdall.vectors.scratch import Scratch
from holdall.vectors.spann_build import wide
from holdall.vectors.spann_codes_build import laid, scaled

if TYPE_CHECKING:
    from holdall.vectors.folder import Change
    from holdall.vectors.given import State
    from holdall.vectors.source import Vectors
    from holdall.vectors.spann_codes import Coded

_LEARNED = ("heads", "heads/scale", "groups", "groups/of", "turn", "tables")
_SEGMENTS = 8  # stretches, from which all is written again


def grown(shelf: Coded, change: Change, vectors: Vectors) -> State:
    before, stored = shelf.stored, shelf.stored + vectors.count
    there = shelf.there
    if there is not None:
        there = Bits(np.concatenate([there.flags, np.ones(vectors.count, bool)]))
    new = ((np.arange(before + at, before + at + len(raw)), raw) for at, raw in vectors.blocks())
    dtype = wide(shelf.entries.dtype, vectors)
    if dtype != shelf.entries.dtype or len(shelf.starts) >= _SEGMENTS:
        return _again(shelf, change, there, stored, dtype, new)
    made = {n: shelf.folder.arrays[n] for n in _LEARNED}
    entries = Entries(shelf.entries.name, shelf.dim, dtype, list(shelf.entries.stretches))
    work = Scratch(change.scratch, None)
    more = laid(shelf.recipe, change, work, entries, made, new, stored, shelf.reach)
    bias = shelf.bias * shelf.scale[1] + shelf.scale[0]
    arrays = {
        "codes": np.concatenate([shelf.codes, more["codes"]]), "bias": np.concatenate([bias, more["bias"]]),
        "rows": np.concatenate([shelf.rows, more["rows"]]),
        "starts": np.concatenate([shelf.starts, more["starts"] + shelf.entries.count], dtype=np.int32),
    }  # fmt: skip
    return _state(shelf, made, arrays, entries, stored, there)


def shrunk(shelf: Coded, change: Change, keep: np.ndarray) -> State:
    flags = np.ones(shelf.stored, bool) if shelf.there is None else shelf.there.flags
    flags[np.flatnonzero(flags)[~keep]] = False
    there = Bits(flags)
    if there.count and shelf.stored - there.count > GONE * shelf.stored:
        return _again(shelf, change, there, shelf.stored, shelf.entries.dtype, iter(()))
    names = ("codes", "rows", "starts")
    arrays = {n: getattr(shelf, n) for n in names}
    arrays["bias"] = shelf.bias * shelf.scale[1] + shelf.scale[0]
    made = {n: shelf.folder.arrays[n] for n in _LEARNED}
    return _state(shelf, made, arrays, shelf.entries, shelf.stored, there)


def _again(
    shelf: Coded, change: Change, there: Bits | None, stored: int, dtype: np.dtype[Any], new: Iterator[Any]
) -> State:  # fmt: skip
    """All that is left in a new file, in the order of lists; rows are numbered anew."""

    def old() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows, raw in shelf.alive():
            left = slice(None) if there is None else there.has(rows)
            yield rows[left], raw[left]

    count = stored if there is None else there.count
    named = ((rows if there is None else there.rank(rows), raw) for rows, raw in chain(old(), new))
    made = {n: shelf.folder.arrays[n] for n in _LEARNED}
    name = f"vectors-{int(shelf.entries.name.rpartition('-')[2]) + 1}"
    entries = Entries(name, shelf.dim, dtype)
    work = Scratch(change.scratch, None)
    arrays = laid(shelf.recipe, change, work, entries, made, named, count, shelf.reach)
    change.drop(shelf.entries.name)
    return _state(shelf, made, arrays, entries, count, None)


def _state(
    shelf: Coded, made: dict[str, np.ndarray], arrays: dict[str, np.ndarray], entries: Entries, stored: int,
    there: Bits | None,
) -> State:  # fmt: skip
    own = {**made, **scaled(arrays)}
    if there is not None and there.count < stored:
        own["there"] = there.packed
    return own, {"entries": entries.to_meta(), "reach": shelf.reach, "stored": stored}
