"""Tenants: their names, which vectors they are given, and conditions on them (`acme AND NOT trial`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import xxhash

from holdall.errors import BadInput, CorruptArtefact
from holdall.vectors.ids import Ids

Name = str | int
_MOST = 300  # parts of a condition: brackets are read by functions that call themselves
_PART = re.compile(r"""\s*(\(|\)|"[^"]*"|'[^']*'|[^\s()"']+)""")


class Names:
    """Whole numbers or strings, each once. Number 0 is everyone, who has no name; others count from 1."""

    def __init__(self, names: Sequence[Name]):
        self.numbers = {name: i + 1 for i, name in enumerate(names)}
        self.tokens = np.array([0, *(_token(n) for n in names)], np.uint64)  # who they are to filters

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Any:
        return iter(self.numbers)

    @property
    def nbytes(self) -> int:
        each = sum(sys.getsizeof(n) + sys.getsizeof(i) for n, i in self.numbers.items())
        return sys.getsizeof(self.numbers) + each + self.tokens.nbytes

    def number(self, name: Any) -> int:
        """BadInput for one that has no vectors here."""
        fine = type(name) is not bool and isinstance(name, str | int | np.integer)
        found = self.numbers.get(name) if fine else None
        if found is None:
            raise BadInput("tenant", name, "one that has vectors in this index")
        return found

    def more(self, given: Sequence[Name]) -> Self:
        """With those that are new; BadInput where strings and whole numbers would mix."""
        both = list(dict.fromkeys([*self.numbers, *given]))
        odd = next((n for n in both if isinstance(n, str) != isinstance(both[0], str)), None)
        if odd is not None:
            kind = "strings" if isinstance(both[0], str) else "whole numbers"
            raise BadInput("tenant", odd, f"{kind}, as the others are")
        return type(self)(both)

    def kept(self, keep: np.ndarray) -> Self:
        """keep: bool [T + 1], of numbers."""
        return type(self)([n for n, i in self.numbers.items() if keep[i]])

    def sections(self) -> dict[str, np.ndarray]:
        if not self.numbers:
            return {}
        told = Ids.of(list(self.numbers), len(self.numbers)).sections()
        return {f"tenants/{n}": a for n, a in told.items()}

    @classmethod
    def of_sections(cls, arrays: Mapping[str, np.ndarray], count: int) -> Self:
        mine = {n.removeprefix("tenants/"): arrays[n] for n in arrays if n.startswith("tenants/")}
        if not mine:
            return cls([])
        found = Ids.of_sections(mine, count)
        if found.names is None or len(np.unique(found.names)) != count:
            raise CorruptArtefact("the tenants", "their names do not add up")
        return cls(found.names.tolist())


def _token(name: Name) -> int:
    return (
        xxhash.xxh3_64_intdigest(name)
        if isinstance(name, str)
        else xxhash.xxh3_64_intdigest(str(name), seed=1)
    )


def named(name: Any) -> Name:
    """A name as a user gives it."""
    if isinstance(name, np.integer | int) and type(name) is not bool and -(2**63) <= int(name) < 2**63:
        return int(name)
    if isinstance(name, str) and name:
        return str(name)
    raise BadInput("tenant", name, "a whole number, or a string that is not empty")


def shared(given: Any, ids: Ids, first: int = 0) -> dict[Name, np.ndarray]:
    """The rows from `first` on that each tenant is to have, rising.

    given: None; one name, whose all of them are; names to lists of ids; or for each row a name, a list of names, or
    None. BadInput for anything else, and for ids that there are not.
    """
    rows = range(first, ids.count)
    if given is None:
        return {}
    if isinstance(given, str | int | np.integer):
        return {named(given): np.arange(first, ids.count)}
    if isinstance(given, Mapping):
        return {named(name): known(ids, some) for name, some in given.items()}
    told = given.to_pylist() if hasattr(given, "to_pylist") else list(given)
    if len(told) != len(rows):
        raise BadInput(
            "tenants", f"{len(told)} for {len(rows)} vectors", "one, a list, or None for each vector"
        )
    found: dict[Name, list[int]] = {}
    for row, who in zip(rows, told, strict=True):
        several = [who] if isinstance(who, str) or not isinstance(who, Sequence | set | np.ndarray) else who
        for name in several:
            if name is not None:
                found.setdefault(named(name), []).append(row)
    return {name: np.unique(np.array(some)) for name, some in found.items()}


def known(ids: Ids, given: Any) -> np.ndarray:
    """Rows, rising, each once; BadInput for an id that there is not."""
    from holdall.vectors.ids import listed

    asked = listed(given)
    rows = ids.rows(asked)
    if (rows < 0).any():
        raise BadInput("id", str(asked[rows < 0][0]), "one that is in the index")
    return np.unique(rows)


def chosen(condition: str, count: int, rows_of: Callable[[str], np.ndarray]) -> np.ndarray:
    """bool [count]: the rows that `a AND (b OR NOT "c d")` holds for; names with spaces, or called NOT, in quotes."""
    parts, at = [], 0
    while condition[at:].strip():
        found = _PART.match(condition, at)
        if found is None:
            raise BadInput(
                "tenants", condition, "names with AND, OR, NOT and brackets; a quote is not closed"
            )
        parts.append(found[1])
        at = found.end()
    if len(parts) > _MOST:
        raise BadInput("tenants", condition, f"at most {_MOST} names and words")
    return _Reader(condition, parts, count, rows_of).whole()


class _Reader:
    def __init__(self, text: str, parts: list[str], count: int, rows_of: Callable[[str], np.ndarray]):
        self.text, self.parts, self.count, self.rows_of = text, parts[::-1], count, rows_of

    def whole(self) -> np.ndarray:
        found = self._any()
        if self.parts:
            raise self._odd()
        return found

    def _odd(self) -> BadInput:
        at = f"{self.parts[-1]!r} where it should not be" if self.parts else "an end where a name should be"
        return BadInput("tenants", self.text, f"names with AND, OR, NOT and brackets; it has {at}")

    def _next(self, word: str) -> bool:
        if self.parts and self.parts[-1].upper() == word:
            self.parts.pop()
            return True
        return False

    def _any(self) -> np.ndarray:
        found = self._all()
        while self._next("OR"):
            found = found | self._all()
        return found

    def _all(self) -> np.ndarray:
        found = self._one()
        while self._next("AND"):
            found = found & self._one()
        return found

    def _one(self) -> np.ndarray:
        if self._next("NOT"):
            return ~self._one()
        if self._next("("):
            found = self._any()
            if not self._next(")"):
                raise self._odd()
            return found
        if not self.parts or self.parts[-1].upper() in ("AND", "OR", ")"):
            raise self._odd()
        name, mask = self.parts.pop(), np.zeros(self.count, bool)
        mask[self.rows_of(name[1:-1] if name[0] in "\"'" else name)] = True
        return mask
