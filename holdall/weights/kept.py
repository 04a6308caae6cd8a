"""Tensors that a trainer leaves as they are, on end in a section for each type, at their own or at half precision.

Names are not written: whoever loads has a module of the same form, and its tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from holdall.errors import BadInput, CorruptArtefact
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.stored import raw, section, unraw

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")


def keep(state: Mapping[str, torch.Tensor], half: bool = False) -> dict[str, np.ndarray]:
    """Sections `kept/<type>` of a state dict (or of a part of it); tied tensors once."""
    found: dict[str, list[np.ndarray]] = {}
    for name, tensor in distinct(state):
        kind = _kind(tensor, half)
        made = tensor.detach().to(getattr(torch, kind))
        if made.is_floating_point() and not bool(made.isfinite().all()):
            if bool(tensor.isfinite().all()):
                wanted = "a budget that holds whole ones"
                raise BadInput(f"tensor {name}", "numbers beyond half precision", wanted)
            raise BadInput(f"tensor {name}", "NaN or infinity", "finite numbers")
        found.setdefault(kind, []).append(raw(made))
    return {f"kept/{kind}": np.concatenate(parts) for kind, parts in sorted(found.items())}


def put_back(packed: Packed, state: Mapping[str, torch.Tensor], half: bool = False) -> None:
    """Fill the tensors of a state dict of the same form, in place."""
    used: dict[str, int] = {}
    for name, tensor in distinct(state):
        kind = _kind(tensor, half)
        array, start = section(packed, f"kept/{kind}"), used.get(kind, 0)
        size = tensor.numel() * getattr(torch, kind).itemsize
        if array.dtype != np.uint8 or array.ndim != 1:
            raise CorruptArtefact(f"kept/{kind}", f"{array.dtype} where bytes were written")
        with torch.no_grad():
            tensor.copy_(unraw(array[start : start + size], kind, tuple(tensor.shape)))
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CorruptArtefact(f"tensor {name}", "numbers that are not finite")
        used[kind] = start + size
    for kind, end in used.items():
        if len(section(packed, f"kept/{kind}")) != end:
            raise CorruptArtefact(f"kept/{kind}", "not of the module that it is to be put into")


def distinct(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that do not share all their memory with one before."""
    seen = set()
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place not in seen:
            seen.add(place)
            yield name, tensor


def _kind(tensor: torch.Tensor, half: bool) -> str:
    narrow = half and tensor.is_floating_point() and tensor.element_size() > 2
    return "float16" if narrow else str(tensor.dtype).removeprefix("torch.")
