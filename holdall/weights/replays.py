"""What autograd's graph says a tensor was made of, and doing that again: views, casts and clamps only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

Step = Callable[[torch.Tensor], torch.Tensor]

_SHAPED = (
    "ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "UnsqueezeBackward", "SqueezeBackward",
    "AliasBackward", "CloneBackward",
)  # fmt: skip


def ancestors(node: Any, hops: int) -> Iterator[tuple[Any, tuple[Step, ...]]]:
    """(a node, what is to be done to its output): the node itself first, then its forebears as far as that is known."""
    steps: tuple[Step, ...] = ()
    yield node, steps
    for _ in range(hops):
        step = _step(node)
        if step is None:
            return
        steps = (step, *steps)
        node = node.next_functions[0][0]
        if node is None:
            return
        yield node, steps


def _step(node: Any) -> Step | None:
    """What the node does to its input; None for all that is not cheap to do again."""
    name, made = node.name(), node._input_metadata[0]
    if name.startswith("ToCopyBackward"):
        dtype = made.dtype
        return lambda x: x.to(dtype)
    if name.startswith("ClampBackward"):
        low, high = node._saved_min, node._saved_max
        return lambda x: x.clamp(low, high)
    if name.startswith("TBackward"):
        return lambda x: x.t()
    if name.startswith("TransposeBackward"):
        one, other = (_signed(d) for d in (node._saved_dim0, node._saved_dim1))
        return lambda x: x.transpose(one, other)
    if name.startswith(_SHAPED):
        shape = tuple(made.shape)
        return lambda x: x.reshape(shape)
    return None


def _signed(dim: int) -> int:
    """Negative dimensions come as 64 bits without sign."""
    return dim - (1 << 64) if dim >= 1 << 63 else dim


def dense(t: torch.Tensor) -> bool:
    """Whether its numbers lie side by side without holes or twins, in some order of dimensions."""
    size = 1
    for stride, count in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != size:
            return False
        size *= count
    return True


def flattened(t: torch.Tensor) -> torch.Tensor:
    """The numbers of a dense tensor as they lie in memory."""
    return t.detach().as_strided((t.numel(),), (1,))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of flat tensors. -0 is not 0, and a NaN is itself."""
    if a.dtype != b.dtype or a.numel() != b.numel():
        return False
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return bool(torch.equal(a.contiguous().view(whole), b.contiguous().view(whole)))


def laid(found: torch.Tensor, layout: tuple[Any, Any]) -> torch.Tensor:
    """The same numbers with that shape and those strides: products may be summed otherwise in another layout."""
    shape, stride = layout
    if found.shape == shape and found.stride() == stride:
        return found
    return torch.empty_strided(shape, stride, dtype=found.dtype).copy_(found.reshape(shape))
