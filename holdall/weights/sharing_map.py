"""Where each weight of a network reads in one shared array: a place and a sign from hashes, no table of either.

All shared weights stand end to end in a virtual vector; weight j reads `sign(j) * psi[place(j)]`. Maps:

    permute  slices of length m, each laid over psi by a random permutation of its chunks (RANDOMFOLD)
    shift    slices of length m, each laid over psi turned by a random distance (RANDOMFOLD)
    roast    each chunk starts anywhere (ROBE-Z, ROAST)
    hashed   each weight stands anywhere (HashedNet); `local` gives every tensor a stretch of psi of its own

The functions here are the slow truth in torch, for any device; `sharing_kernels` has the fast ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdall.errors import BadInput
from holdall.optional import lazy

if TYPE_CHECKING:
    import torch
else:
    torch = lazy("torch", extra="weights")

KINDS = ("permute", "shift", "roast", "hashed", "local")
MOST = 1 << 31  # entries: a 32-bit hash times the count must stay below 2^63
_WORD = (1 << 64) - 1
_ADD, _MUL, _MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def splitmix64(x: int) -> int:
    """The mixing hash of Steele, Lea and Flood: the output of their generator in state x."""
    z = (x + _ADD) & _WORD
    z = ((z ^ (z >> 30)) * _MUL) & _WORD
    z = ((z ^ (z >> 27)) * _MUL2) & _WORD
    return z ^ (z >> 31)


@dataclass(frozen=True)
class Map:
    """params: entries of psi, m. chunk: weights that stay neighbours."""

    kind: str
    params: int
    chunk: int
    seed: int

    def __post_init__(self) -> None:
        whole = all(type(v) is int for v in (self.params, self.chunk, self.seed))
        if self.kind not in KINDS or not whole or not 0 < self.params <= MOST or self.chunk < 1:
            raise BadInput("map", str(self), f"one of {', '.join(KINDS)}, 1 to 2^31 params, chunks of 1 on")
        object.__setattr__(self, "chunk", min(self.chunk, self.params))

    @property
    def keys(self) -> tuple[int, int]:
        """Of places and of signs."""
        root = splitmix64(self.seed & _WORD)
        return splitmix64(root ^ 1), splitmix64(root ^ 2)


@dataclass(frozen=True)
class Segment:
    """A tensor's part of the virtual vector.

    scale: lambda. base, size: the stretch of psi for `local`. blank: a row that stays zero (padding), -1 for none.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    scale: float
    base: int
    size: int
    dtype: str = "float32"
    blank: int = -1

    @property
    def count(self) -> int:
        total = 1
        for n in self.shape:
            total *= n
        return total


def naive_places(m: Map, j: torch.Tensor, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
    """(index into psi, sign) of virtual positions j of a segment; for tiles, since both are as long as j."""
    place, sign = (_signed(k) for k in m.keys)
    if m.kind in ("hashed", "local"):
        base, size = (segment.base, segment.size) if m.kind == "local" else (0, m.params)
        index, of = base + _below(_hash(place, j), size), j
    elif m.kind == "roast":
        of = j // m.chunk
        index = (_below(_hash(place, of), m.params) + j % m.chunk) % m.params
    else:
        fold, at = j // m.params, j % m.params
        full, c = m.params // m.chunk, at // m.chunk
        of = fold * (full + 1) + c
        if m.kind == "shift":
            index = (at + _below(_hash(place, fold), m.params)) % m.params
        else:
            moved = _permuted(_hash(place, fold), c.clamp(max=full - 1), full)
            index = torch.where(c < full, moved * m.chunk + at % m.chunk, at)
    return index, 1.0 - 2.0 * (_hash(sign, of) & 1).float()


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # torch's own shift copies the sign


def _hash(key: int | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    z = (x + 1) * _signed(_ADD) + key  # whole numbers of 64 bits wrap around
    z = (z ^ _shifted(z, 30)) * _signed(_MUL)
    z = (z ^ _shifted(z, 27)) * _signed(_MUL2)
    return z ^ _shifted(z, 31)


def _below(h: torch.Tensor, count: int) -> torch.Tensor:
    return (_shifted(h, 32) * count) >> 32


def _permuted(key: torch.Tensor, c: torch.Tensor, count: int) -> torch.Tensor:
    """A permutation of `count` things: a Feistel network on the next power of two, walked until it is in range."""
    bits = (count - 1).bit_length()
    low = bits // 2
    left, right = (1 << (bits - low)) - 1, (1 << low) - 1
    out, todo = c.clone(), torch.ones_like(c, dtype=torch.bool)
    while bool(todo.any()):
        a, b = out >> low, out & right
        for turn in range(2):
            a = a ^ (_hash(key, 4 * b + 2 * turn) & left)
            b = b ^ (_hash(key, 4 * a + 2 * turn + 1) & right)
        out = torch.where(todo, (a << low) | b, out)
        todo = out >= count
    return out
