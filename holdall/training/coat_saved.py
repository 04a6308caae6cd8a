"""What autograd keeps, in FP8: tensors by sixteens or with one scale, each stored once however often it is kept.

Within a block a tensor is known by its memory and version, so that q, k and v (or gate and up) share one copy of their
input, and attention's output is that of the projection behind it. The block's tensors live until it ends, so that no
memory is taken for what was there before.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

GROUP = 16  # numbers of a channel that share a scale
MAXIMA = 128  # numbers whose largest a producer tells
_TILE = 1 << 16  # numbers that are widened at a time; a multiple of what shares a scale
_TOPS = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
_WIDE = (torch.float32, torch.bfloat16, torch.float16)
_LEAST = 1024  # numbers; smaller tensors stay as they are
_here = threading.local()
_made: weakref.WeakSet[Any] = weakref.WeakSet()  # of Kept and Part, as long as somebody holds them


@dataclass(eq=False)
class Kept:
    """A tensor in FP8. scales: bfloat16 of each sixteen, or one float32."""

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        _made.add(self)

    def parts(self) -> tuple[Tensor, Tensor]:
        """What an operator gives to autograd, which lets it go after backward."""
        return self.codes, self.scales

    def like(self) -> Callable[[Tensor, Tensor], Kept]:
        """From its parts the same again."""
        told = self.shape, self.stride, self.dtype
        return lambda codes, scales: Kept(codes, scales, *told)

    def whole(self) -> Tensor:
        flat = torch.empty(self.codes.numel(), dtype=self.dtype, device=self.codes.device)
        for i in range(0, len(flat), _TILE):
            part = self.codes[i : i + _TILE].float()
            if self.scales.numel() == 1:
                flat[i : i + _TILE] = part * self.scales
                continue
            by = self.scales[i // GROUP : (i + _TILE) // GROUP].float().repeat_interleave(GROUP)
            flat[i : i + _TILE] = part * by[: len(part)]
        return flat.as_strided(self.shape, self.stride)


@dataclass(eq=False)
class Part:
    """Codes or scales that an operator gave to autograd."""

    tensor: Tensor

    def __post_init__(self) -> None:
        _made.add(self)

    def parts(self) -> tuple[Tensor, ...]:
        return (self.tensor,)


def narrow(flat: Tensor, scale: Tensor, kind: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Codes of flat numbers with one scale; never beyond the largest, where casts may give NaN."""
    top, out = _TOPS[kind], torch.empty(len(flat), dtype=kind, device=flat.device)
    for i in range(0, len(flat), _TILE):
        out[i : i + _TILE] = (flat[i : i + _TILE].float() / scale).clamp(-top, top).to(kind)
    return out


def maxima(flat: Tensor, size: int = MAXIMA) -> Tensor:
    """float32, the largest size of each group: what a producer knows of its output, at 1/128 of its numbers."""
    found = []
    tile = _TILE // size * size
    for i in range(0, max(len(flat), 1), tile):
        part = flat[i : i + tile]
        found.append(
            torch.nn.functional.pad(part, (0, -len(part) % size)).view(-1, size).abs().amax(1).float()
        )
    return torch.cat(found)


def one_scale(tops: Tensor, kind: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Stage two of group scaling: the tensor's scale from its groups' maxima."""
    top = tops.amax() / _TOPS[kind]
    return torch.where(top == 0, 1, top)


def by_groups(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(E4M3 codes, bfloat16 scales) of each sixteen."""
    codes, scales = torch.empty(len(flat), dtype=torch.float8_e4m3fn, device=flat.device), []
    for i in range(0, max(len(flat), 1), _TILE):
        part = flat[i : i + _TILE].float()
        rows = torch.nn.functional.pad(part, (0, -len(part) % GROUP)).view(-1, GROUP)
        by = (rows.abs().amax(1) / 448).bfloat16()
        by = torch.where(by == 0, 1, by)
        scales.append(by)
        codes[i : i + _TILE] = (
            (rows / by.float()[:, None]).clamp(-448, 448).to(codes.dtype).view(-1)[: len(part)]
        )
    return codes, torch.cat(scales)


@dataclass
class Shelf:
    """What one block keeps. strange: memory that is not the block's to narrow (weights, tables of positions)."""

    strange: set[int]
    held: dict[Any, tuple[Tensor, Kept]] = field(default_factory=dict)
    tops: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)

    def keep(self, x: Tensor, together: bool) -> Kept:
        """x in FP8, once. together: one scale for all, from what its producer said of it where that is known."""
        key, flat, stride = _laid(x)
        if key not in self.held:
            if together:
                known = self.tops.get(key)
                scale = one_scale(known[1] if known else maxima(flat))
                codes = narrow(flat, scale)
            else:
                codes, scale = by_groups(flat)
            self.own |= {codes.data_ptr(), scale.data_ptr()}
            self.held[key] = x, Kept(codes, scale, x.shape, stride, x.dtype)
        kept = self.held[key][1]
        same = kept.shape == x.shape and kept.stride == stride
        return kept if same else replace(kept, shape=x.shape, stride=stride)

    def tell(self, y: Tensor) -> None:
        """Stage one of group scaling, by who made y."""
        key, flat, _ = _laid(y)
        self.tops[key] = y, maxima(flat)

    def pack(self, x: Tensor) -> Any:
        if x.data_ptr() in self.own:
            return Part(x)
        ours = x.dtype in _WIDE and x.numel() >= _LEAST and x.untyped_storage().data_ptr() not in self.strange
        return self.keep(x.detach(), together=False) if ours else x

    def clear(self) -> None:
        self.held.clear()
        self.tops.clear()
        self.own.clear()


def unpack(x: Any) -> Tensor:
    if isinstance(x, Part):
        return x.tensor
    return x.whole() if isinstance(x, Kept) else x


def _laid(x: Tensor) -> tuple[Any, Tensor, tuple[int, ...]]:
    """(what x is known by, its numbers in a row, the strides that give them back)."""
    memory = x.untyped_storage()
    known = memory.data_ptr(), x._version, x.dtype
    if memory.nbytes() == x.numel() * x.itemsize and _dense(x):
        return known, x.detach().as_strided((x.numel(),), (1,), 0), x.stride()
    flat = x.detach().contiguous()
    return (*known, x.storage_offset(), x.shape, x.stride()), flat.view(-1), flat.stride()


def _dense(x: Tensor) -> bool:
    """Whether its numbers fill their memory, each place once, in any order of axes."""
    many = 1
    for step, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if step != many:
            return False
        many *= size
    return True


def shelf() -> Shelf | None:
    """That of the block which runs now."""
    found: Shelf | None = getattr(_here, "shelf", None)
    return found


@contextmanager
def block(strange: set[int]) -> Iterator[None]:
    """A block's forward: what autograd keeps of it goes to FP8."""
    before, _here.shelf = shelf(), Shelf(strange)
    try:
        with torch.autograd.graph.saved_tensors_hooks(_here.shelf.pack, unpack):
            yield
    finally:
        _here.shelf.clear()
        _here.shelf = before


@contextmanager
def whole() -> Iterator[None]:
    """What is kept here stays as it is."""
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


def saved_bytes(forward: Callable[[], Any], module: torch.nn.Module) -> int:
    """Bytes that autograd keeps for backward after `forward()`, each memory once, without the module's weights."""
    weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}
    alive = []

    def seen(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in weights:
            found[memory.data_ptr()] = memory.nbytes()
            alive.append(x.detach())  # or its memory could be another's before the count is over
        return x

    before = set(_made)
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        held = forward()
    kept = {t.data_ptr(): t.nbytes for k in set(_made) - before for t in k.parts()}
    del held
    return sum(found.values()) + sum(kept.values())
