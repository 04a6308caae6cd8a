"""Tensors as sections: what `none` keeps whole and the others keep beside what they round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from holdall.errors import CorruptArtefact
from holdall.optional import lazy
from holdall.packed import Packed
from holdall.weights.layout import DTYPES, expand_file, pack_file
from holdall.weights.model import Model

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's own bits, as a flat array of bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)


def absorb(total: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Names, types, shapes and bits of tensors, for a running hash."""
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(raw(tensor).data)


def unraw(array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    made = torch.zeros(shape, dtype=getattr(torch, dtype))
    if array.dtype != np.uint8 or array.size != made.numel() * made.element_size():
        raise CorruptArtefact("a tensor", f"{array.size} bytes for {dtype} {shape}")
    if made.numel():
        made.view(-1).view(torch.uint8).copy_(torch.from_numpy(array.copy()))
    return made


def describe(model: Model) -> dict[str, Any]:
    """name and tensors, for the header."""
    tensors = [[n, str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in model.state.items()]
    return {"name": model.name, "tensors": tensors}


def described(packed: Packed) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of each tensor, checked; their bytes cannot exceed a few times the file's."""
    try:
        found = [(str(n), str(d), tuple(s)) for n, d, s in packed.meta["tensors"]]
        for name, dtype, shape in found:
            if dtype not in DTYPES or any(type(v) is not int or v < 0 for v in shape):
                raise ValueError(f"tensor {name} is {dtype} {shape}")
        if len({n for n, _, _ in found}) != len(found):
            raise ValueError("a tensor stands twice")
        return found
    except (KeyError, TypeError, ValueError) as fault:
        raise CorruptArtefact("the header", f"it contradicts itself ({fault})") from fault


def section(packed: Packed, name: str) -> np.ndarray:
    try:
        return packed.arrays[name]
    except KeyError as missing:
        raise CorruptArtefact("the file", f"section {missing} is not there") from missing


def files_of(packed: Packed) -> dict[str, bytes]:
    return {
        n.removeprefix("file/"): expand_file(packed.arrays[n], n)
        for n in packed.arrays
        if n.startswith("file/")
    }


def file_sections(model: Model) -> dict[str, np.ndarray]:
    return {f"file/{name}": pack_file(content) for name, content in sorted(model.files.items())}
