"""The user's own names of vectors, whole numbers or strings, each once, and which row of an index has which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, CorruptArtefact

if TYPE_CHECKING:
    from holdall.vectors.bits import Bits


class Ids:
    """Ids of rows 0 to N - 1. names: int64 [N], or a numpy array of strings; None where ids were counted from 0, and
    then `there` tells which of these are left, None for all."""

    def __init__(self, count: int, names: np.ndarray | None = None, there: Bits | None = None):
        self.count, self.names, self.there = count, names, there

    @classmethod
    def of(cls, given: Any, count: int) -> Ids:
        """As a user gives them; BadInput for what is no list of `count` different ids."""
        return cls(count) if given is None else cls(count, distinct(given, count))

    @property
    def text(self) -> bool:
        return self.names is not None and self.names.dtype.kind == "U"

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.names, self.there) if a is not None)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows; of row -1, -1 or "" """
        if self.names is None:
            rows = rows.astype(np.int64)
            return (
                rows if self.there is None else np.where(rows < 0, -1, self.there.select(np.maximum(rows, 0)))
            )
        found = self.names[np.maximum(rows, 0)] if len(self.names) else np.zeros(rows.shape, self.names.dtype)
        return np.where(rows < 0, "" if self.text else -1, found)

    def rows(self, given: Any) -> np.ndarray:
        """int64: the row of each of these ids, -1 where there is none."""
        asked = listed(given)
        if self.names is None:
            if asked.dtype.kind == "U":
                return np.full(len(asked), -1)
            size = self.count if self.there is None else self.there.size
            fine = (asked >= 0) & (asked < size)
            if self.there is None or not fine.any():
                return np.where(fine, asked, -1)
            known = np.where(fine, asked, 0)
            return np.where(fine & self.there.has(known), self.there.rank(known), -1)
        if self.text != (asked.dtype.kind == "U"):
            return np.full(len(asked), -1)
        if not self.count:
            return np.full(len(asked), -1)
        order = np.argsort(self.names, kind="stable")  # not kept: it would take as much as the numbers do
        found = order[np.minimum(np.searchsorted(self.names, asked, sorter=order), self.count - 1)]
        return np.where(self.names[found] == asked, found, -1)

    def kept(self, keep: np.ndarray) -> Ids:
        """Of the rows where `keep` is true."""
        if self.names is not None:
            return Ids(int(keep.sum()), self.names[keep])
        from holdall.vectors.bits import Bits

        flags = np.ones(self.count, bool) if self.there is None else self.there.flags
        flags[np.flatnonzero(flags)[~keep]] = False
        return Ids(int(keep.sum()), None, Bits(flags))

    def more(self, given: Any, count: int, used: int) -> Ids:
        """With `count` new ones behind; BadInput for those that are there. used: where counting from 0 has come to."""
        if given is None and self.names is None:
            if self.there is None and used == self.count:
                return Ids(self.count + count)
            if self.there is not None and used == self.there.size:
                from holdall.vectors.bits import Bits

                flags = np.concatenate([self.there.flags, np.ones(count, bool)])
                return Ids(self.count + count, None, Bits(flags))
        new = np.arange(used, used + count) if given is None else distinct(given, count)
        mine = self.at(np.arange(self.count))
        if self.count and (new.dtype.kind == "U") != self.text:
            raise BadInput(
                "ids", f"{new.dtype}", "strings, as the others are" if self.text else "whole numbers"
            )
        known = new[self.rows(new) >= 0] if self.count else new[:0]
        if len(known):
            raise BadInput("id", str(known[0]), "one that is not in the index yet")
        return Ids(self.count + count, np.concatenate([mine, new]) if self.count else new)

    def sections(self) -> dict[str, np.ndarray]:
        if self.names is None:
            if self.there is None:
                return {}
            return {"ids/there": self.there.packed, "ids/size": np.array([self.there.size])}
        if not self.text:
            return {"ids": self.names}
        raw = [str(n).encode() for n in self.names]
        ends = np.cumsum([len(r) for r in raw], dtype=np.int64)
        return {"ids/text": np.frombuffer(b"".join(raw), np.uint8), "ids/ends": ends}

    @classmethod
    def of_sections(cls, arrays: Mapping[str, np.ndarray], count: int) -> Ids:
        if "ids" in arrays:
            names = arrays["ids"]
            if names.dtype != np.int64 or names.shape != (count,):
                raise CorruptArtefact("the ids", f"{names.dtype} {names.shape} for {count} vectors")
            return cls(count, names)
        if "ids/there" in arrays:
            return cls(count, None, _there(arrays, count))
        if "ids/ends" not in arrays:
            return cls(count)
        text, ends = arrays.get("ids/text", np.zeros(0)), arrays["ids/ends"]
        whole = text.dtype == np.uint8 and ends.dtype == np.int64 and ends.shape == (count,)
        if not whole or (count and (np.diff(ends, prepend=0).min() < 0 or ends[-1] != text.size)):
            raise CorruptArtefact("the ids", "they do not add up")
        raw = text.tobytes()
        try:
            found = [raw[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
        except UnicodeDecodeError as fault:
            raise CorruptArtefact("the ids", "text that is not UTF-8") from fault
        return cls(count, np.array(found, dtype=np.str_))


def _there(arrays: Mapping[str, np.ndarray], count: int) -> Bits:
    from holdall.vectors.bits import Bits

    packed, size = arrays["ids/there"], arrays.get("ids/size", np.zeros(0))
    fits = packed.dtype == np.uint8 and packed.ndim == 1 and size.dtype == np.int64 and size.shape == (1,)
    if not fits or not 0 <= size[0] <= 8 * len(packed) < size[0] + 8:
        raise CorruptArtefact("the ids", "they do not add up")
    found = Bits.of(packed, int(size[0]))
    if found.count != count:
        raise CorruptArtefact("the ids", f"{found.count} for {count} vectors")
    return found


def listed(given: Any) -> np.ndarray:
    """int64 or strings [N]."""
    if hasattr(given, "to_numpy"):  # columns of Arrow and pandas
        given = given.to_numpy(zero_copy_only=False) if hasattr(given, "null_count") else given.to_numpy()
    found = np.atleast_1d(np.asarray(given))
    if found.dtype == object and all(isinstance(v, str) for v in found):
        found = found.astype(np.str_)
    if found.size == 0:
        return np.zeros(0, np.int64) if found.dtype.kind != "U" else found.reshape(-1)
    if found.ndim != 1 or found.dtype.kind not in "iuU":
        raise BadInput("ids", f"{found.dtype} {found.shape}", "a list of whole numbers or of strings")
    if found.dtype.kind == "u" and int(found.max()) > np.iinfo(np.int64).max:
        raise BadInput("ids", str(found.max()), "whole numbers below 2**63")
    return found if found.dtype.kind == "U" else found.astype(np.int64)


def distinct(given: Any, count: int) -> np.ndarray:
    """`listed`, and `count` of them, each once."""
    found = listed(given)
    if len(found) != count:
        raise BadInput("ids", f"{len(found)} for {count} vectors", "one for each vector")
    ordered = np.sort(found)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise BadInput("ids", f"{twice[0]} twice", "each id once")
    return found
