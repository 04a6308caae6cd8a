"""Adapters as a `.hold` file: all numbers of levels in one section, all means and spreads in another.

    codes   uint8, for each matrix ceil(rows columns bits / 8) bytes, lowest bits first (half and single precision
            for 16 and 32 bits)
    grids   float32 [matrices, 2], mean and spread; not there for 16 and 32 bits
    head    float32, where the head is kept whole

One section each, because what a section costs in the header is more than a small adapter. Imported only where torch is.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdall.errors import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.parts.entropy import pack_fixed, unpack_fixed
from holdall.weights.adapter_linear import FLOATS, codes, restored
from holdall.weights.adapter_modules import Adapters, digest
from holdall.weights.adapter_places import Places, Spot
from holdall.weights.stored import section

if TYPE_CHECKING:
    from holdall.weights.binary_adapters import BinaryAdapters

_LONGEST = -1.23456e-101  # no figure takes more digits


def matrix_bytes(numbers: int, bits: int) -> int:
    """Of the sections, for one matrix."""
    return -(-numbers * bits // 8) + (0 if bits in FLOATS else 8)


def figures(before: float, after: float) -> dict[str, Any]:
    """The report as the header has it: losses of the base, and with what was kept."""
    return {"rows": {"base": {"loss": float(f"{before:.6g}")}, "adapted": {"loss": float(f"{after:.6g}")}}}


def write(adapters: Adapters) -> Packed:
    """What has to be kept of trained adapters."""
    streams, grids = [], []
    for matrix in adapters.matrices():
        if matrix.bits in FLOATS:
            streams.append(_floats(matrix.weight, matrix.bits))
            continue
        found, grid = codes(matrix.weight, matrix.bits)
        streams.append(pack_fixed(found, matrix.bits))
        grids.append(grid)
    arrays = {"codes": np.concatenate(streams)}
    if grids:
        arrays["grids"] = np.stack(grids)
    whole = adapters.whole()
    if whole is not None:
        arrays["head"] = whole.weight.detach().numpy()
    return Packed(arrays, _meta(adapters))


def planned(recipe: BinaryAdapters, places: Places, width: int, head: tuple[str, int, int] | None) -> int:
    """Bytes of the file at most, header and all, before anything is made. head: (path, columns, rows)."""
    shell = Adapters(recipe, places, width, None if head is None else head[0], "0" * 32)
    bits = recipe.bits
    sizes = [n for s in places.spots for n in (s.columns * width, s.rows * width)] * places.blocks
    apart = recipe.head == "full"
    if head is not None and not apart:
        sizes.append(head[1] * head[2])
    grids = 0 if bits in FLOATS else len(sizes)
    arrays = {"codes": np.zeros(sum(matrix_bytes(n, bits) for n in sizes) - 8 * grids, np.uint8)}
    if grids:
        arrays["grids"] = np.zeros((grids, 2), np.float32)
    if head is not None and apart:
        arrays["head"] = np.zeros((head[2], head[1]), np.float32)
    return Packed(arrays, _meta(shell) | {"report": figures(_LONGEST, _LONGEST)}).nbytes


def widest(
    recipe: BinaryAdapters, module: torch.nn.Module, places: Places, head: str | None, limit: int | None
) -> int:
    """The largest width within so many bytes, the paper's without a limit; BudgetError with the least that would do."""
    top: Any = module.get_submodule(head) if head else None
    told = None if head is None else (head, top.in_features, top.out_features)
    if limit is None:
        return recipe.width or 32
    least = recipe.width or 1
    wide = min(s.columns for s in places.spots) * (
        1 if recipe.placement == "lora" else 4
    )  # more adds nothing
    fits, most = least - 1, recipe.width or wide
    while fits < most:
        middle = (fits + most + 1) // 2
        fits, most = (middle, most) if planned(recipe, places, middle, told) <= limit else (fits, middle - 1)
    if fits < least:
        why = f"width {least} at {recipe.bits} bits"
        raise BudgetError(limit, planned(recipe, places, least, told), who=recipe.full_name(), why=why)
    return fits


def _meta(adapters: Adapters) -> dict[str, Any]:
    places = adapters.places
    return {
        "room": "weights", "method": adapters.recipe.to_dict(), "base": adapters.base, "width": adapters.width,
        "stack": places.stack, "blocks": places.blocks, "spots": [list(astuple(s)) for s in places.spots],
        "head": adapters.head,
    }  # fmt: skip


def opened(packed: Packed, module: torch.nn.Module, recipe: BinaryAdapters) -> Adapters:
    """The frame of what was kept, for the module that it was made for and no other."""
    meta = packed.meta
    width, blocks = _count(meta.get("width")), _count(meta.get("blocks"))
    try:
        spots = tuple(Spot(*spot) for spot in meta["spots"])
    except (KeyError, TypeError) as fault:
        raise CorruptArtefact("an adapter", f"its header contradicts itself ({fault})") from None
    base, stack, head = meta.get("base"), meta.get("stack"), meta.get("head")
    words = [base, stack, head or "", *(w for s in spots for w in (s.source, s.sink))]
    if not spots or not all(isinstance(w, str) for w in words):
        raise CorruptArtefact("an adapter", "its header contradicts itself")
    mine = digest(module)
    if base != mine:
        raise BadInput("adapter", f"one for the base {base}", f"one for this base, {mine}")
    for spot in spots:
        _count(spot.columns), _count(spot.rows), _count(spot.start + 1 if type(spot.start) is int else None)
    wide = sum(s.columns + s.rows for s in spots) * blocks * width * recipe.bits
    if wide > 8 * len(section(packed, "codes")):  # before any of it is made
        raise CorruptArtefact("an adapter", "fewer codes than its header promises")
    return Adapters(recipe, Places(str(stack), blocks, spots), width, head, mine)


def _count(number: Any) -> int:
    if type(number) is not int or number < 1:
        raise CorruptArtefact("an adapter", f"{number} where a count was written")
    return number


def fill(packed: Packed, adapters: Adapters) -> None:
    """Put kept numbers into adapters that were just made; they do not learn any more."""
    stream, at, count = section(packed, "codes"), 0, 0
    if stream.dtype != np.uint8 or stream.ndim != 1:
        raise CorruptArtefact("an adapter", f"codes of {stream.dtype}")
    for matrix in adapters.matrices():
        bits, shape = matrix.bits, (matrix.out_features, matrix.in_features)
        numbers = shape[0] * shape[1]
        size = matrix_bytes(numbers, bits) - (0 if bits in FLOATS else 8)
        piece, at = np.ascontiguousarray(stream[at : at + size]), at + size
        if len(piece) != size:
            raise CorruptArtefact("an adapter", "fewer codes than its header promises")
        if bits in FLOATS:
            matrix.settle(_plain(piece.view(FLOATS[bits]).reshape(shape), shape))
            continue
        grid, count = _grid(packed, count), count + 1
        matrix.settle(_finite(restored(unpack_fixed(piece, numbers, bits), grid, bits, shape)))
    if at != len(stream):
        raise CorruptArtefact("an adapter", "more codes than its header promises")
    whole = adapters.whole()
    if whole is not None:
        whole.settle(_plain(section(packed, "head"), (whole.out_features, whole.in_features)))


def _grid(packed: Packed, at: int) -> np.ndarray:
    grids = section(packed, "grids")
    if grids.dtype != np.float32 or grids.ndim != 2 or grids.shape[1] != 2 or at >= len(grids):
        raise CorruptArtefact("an adapter", f"{grids.dtype} {grids.shape} for means and spreads")
    found: np.ndarray = grids[at]
    return found


def _plain(array: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    if array.dtype.kind != "f" or array.shape != shape:
        raise CorruptArtefact("an adapter", f"{array.dtype} {array.shape} where floats {shape} were written")
    return _finite(torch.from_numpy(array.astype(np.float32)))


def _finite(weight: torch.Tensor) -> torch.Tensor:
    if not bool(weight.isfinite().all()):
        raise CorruptArtefact("an adapter", "numbers that are not finite")
    return weight


def _floats(weight: torch.Tensor, bits: int) -> np.ndarray:
    found: np.ndarray = weight.detach().numpy().astype(FLOATS[bits]).reshape(-1).view(np.uint8)
    return found
