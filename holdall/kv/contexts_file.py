"""Contexts in a `.hold` file: the prefix, and each document under its digest, so that they come and go one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.kv.contexts import Context
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.writer import Writer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_PARTS = ("ids", "k", "v")
_SPILL, _HEADER = 8 << 20, 8 + (64 << 10)  # a file beyond the first has at least so much header
_WHY = "16 bits a number"
Piece = tuple[Sequence[int], "Tensor", "Tensor"]  # ids, keys [L, H, T, D], values [L, H, T, E]


def stored(ids: Sequence[int], keys: Tensor, values: Tensor, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """The sections of one document."""
    yield "ids", np.asarray(ids, np.int32)
    for name, t in (("k", keys), ("v", values)):
        if dtype == "bfloat16":
            yield name, t.bfloat16().contiguous().view(torch.uint16).numpy()
        else:
            limit = 65504.0 if dtype == "float16" else torch.finfo(torch.float32).max
            yield name, t.float().clamp(-limit, limit).numpy().astype(_STORED[dtype])


def listed(packed: Packed) -> tuple[str, dict[str, Any], list[dict[str, Any]], str]:
    """(model, prefix, documents, dtype) of a file of contexts; each has a name, a digest and a number of tokens."""
    try:
        told, dtype = packed.meta["contexts"], packed.meta["contexts"]["dtype"]
        rows = [told["prefix"], *told["documents"]]
        if not isinstance(told["model"], str) or dtype not in _STORED:
            raise ValueError("it names no model, or no type of numbers")
        for row in rows:
            if not (
                isinstance(row["name"], str) and isinstance(row["digest"], str) and row["digest"].isalnum()
            ):
                raise ValueError("a document has no name")
            if type(row["tokens"]) is not int or row["tokens"] < 0:
                raise ValueError(f"{row['name']} has {row['tokens']} tokens")
        if len({r["name"] for r in rows[1:]}) < len(rows) - 1:
            raise ValueError("a document stands twice")
        return told["model"], rows[0], rows[1:], dtype
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise CorruptArtefact("the contexts", f"its header contradicts itself ({fault})") from fault


def read(packed: Packed, row: dict[str, Any], dtype: str, place: str) -> Context:
    """One document out of a file; `place` is where its sections lie."""
    try:
        ids, keys, values = (packed.arrays[f"{place}/{part}"] for part in _PARTS)
    except KeyError as missing:
        raise CorruptArtefact("the contexts", f"section {missing} is not there") from missing
    tokens = row["tokens"]
    fits = keys.ndim == values.ndim == 4 and keys.shape[:3] == values.shape[:3] and keys.shape[2] == tokens
    kinds = ids.dtype == np.int32 and keys.dtype == values.dtype == np.dtype(_STORED[dtype])
    if not fits or not kinds or ids.shape != (tokens,):
        raise CorruptArtefact("the contexts", f"{row['name']} is not what its header says")
    return Context(row["name"], row["digest"], ids, _tensor(keys, dtype), _tensor(values, dtype))


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    made = torch.from_numpy(array.copy())
    return made.view(torch.bfloat16) if dtype == "bfloat16" else made


def row(name: str, mark: str, tokens: int) -> dict[str, Any]:
    """A document in the header."""
    return {"name": name, "digest": mark, "tokens": tokens}


def width(piece: Piece, tokens: int, documents: int, limit: int | None) -> str:
    """The numbers of a file of so many tokens within the limit: 32 bits only if there is room, and use, for them."""
    each = sum(t.shape[0] * t.shape[1] * t.shape[3] for t in piece[1:])
    if limit is not None and limit < 2 * each * tokens:
        raise BudgetError(limit, _bound(2 * each, tokens, documents), who="kv.ape", why=_WHY)
    if piece[1].element_size() == 4 and limit is not None and _bound(4 * each, tokens, documents) <= limit:
        return "float32"
    return "bfloat16" if piece[1].dtype == torch.bfloat16 else "float16"


def _bound(each: int, tokens: int, documents: int) -> int:
    """No file is larger: numbers, ids, and a header with long names."""
    return (each + 4) * tokens + _HEADER + 4096 * (documents + 1)


def write(
    meta: Mapping[str, Any], pieces: Iterator[Piece], old: Packed | None, limit: int | None, to: str | None
) -> Packed:
    """A file of what `meta` lists: sections that `old` has are copied, the others are the next of `pieces`."""
    told, done = meta["contexts"], set()
    places = [("prefix", told["prefix"]), *((f"d/{r['digest']}", r) for r in told["documents"])]
    with Writer(to) as writer:
        total = 0
        for place, _ in places:
            if place in done:  # two names of one text
                continue
            done.add(place)
            if old is not None and f"{place}/ids" in old.arrays:
                sections = [(part, old.arrays[f"{place}/{part}"]) for part in _PARTS]
            else:
                sections = list(stored(*next(pieces), told["dtype"]))
            for part, array in sections:
                total += array.nbytes
                writer.add(f"{place}/{part}", array)
        size = writer.size(meta) + (_HEADER if to is not None and total > _SPILL else 0)
        if limit is not None and size > limit:
            raise BudgetError(limit, size, who="kv.ape", why=_WHY)
        if to is None:
            return Packed.from_bytes(writer.to_bytes(meta))
        writer.finish(meta)
    return Packed.open(to)


def without(packed: Packed, names: Sequence[str], to: str) -> Packed:
    """The same file without those documents; their bytes are gone."""
    told = packed.meta["contexts"]
    _, _, rows, _ = listed(packed)
    for name in names:
        if name not in {r["name"] for r in rows}:
            raise BadInput(
                "document", name, f"one of {', '.join(r['name'] for r in rows) or 'none: there are none'}"
            )
    meta = {**packed.meta, "contexts": {**told, "documents": [r for r in rows if r["name"] not in names]}}
    return write(meta, iter(()), packed, None, to)
