"""Packed keys and values, every one the same affine code: x[t, c] = (a[t] * q[t, c] + m[t]) * s[c] + z[c].

Keys are packed channel by channel, in parts of tokens with grids (s, z) of their own, and channels may have different
widths; values token by token, with grids (a, m). Either may have the other's factors too. All parameters are float16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from holdall.optional import lazy
from holdall.parts.quant import lengths, pack, unpack, width

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")

Bands = tuple[tuple[int, int], ...]  # (channels, bits of each), one after the other


@dataclass(frozen=True, eq=False, kw_only=True)
class Codes:
    """What both kinds share: tensors whose first axes are [B, H or 1]."""

    codes: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All that is held."""
        return {k: v for k, v in vars(self).items() if hasattr(v, "index_select")}

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With `change` applied to each tensor."""
        return self.but(**{k: change(t) for k, t in self.tensors().items()})

    def but(self, **more: Any) -> Self:
        return dataclasses.replace(self, **more)

    def _view(self, name: str, rank: int) -> np.ndarray:
        """What is held under a name, rows and heads as one and halves as 16 bits, or nothing of that rank."""
        held = getattr(self, name)
        if held is None:
            heads = self.codes.shape[0] * self.codes.shape[1]
            return np.empty((heads,) + (0,) * (rank - 1), np.uint8 if name == "order" else np.uint16)
        flat = held.flatten(0, 1).contiguous()
        return flat.view(torch.uint16).numpy() if flat.dtype == torch.float16 else flat.numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class ByChannel(Codes):
    """Keys: codes uint8 [B, H, bytes], part by part, band by band, channel by channel, the tokens of the part.

    ends: of the P parts, in tokens; bands: channels and bits; order [B, H, D]: the channel at each place of the bands
    (None: as they come); s, z [B, H, P or 1, D] by place; a, m [B, H, N], None: 1 and 0.
    """

    ends: tuple[int, ...]
    bands: Bands
    s: Tensor
    z: Tensor | None = None
    a: Tensor | None = None
    m: Tensor | None = None
    order: Tensor | None = None

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """codes, bands, ends, order, s, z, a, m for the kernels: views, nothing is held twice."""
        bands = np.array(self.bands, np.int64).reshape(-1, 2)
        views = (
            self._view(name, rank) for name, rank in (("order", 2), ("s", 3), ("z", 3), ("a", 2), ("m", 2))
        )
        return self._view("codes", 2), bands, np.array(self.ends, np.int64), *views

    @property
    def count(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def channels(self) -> int:
        return sum(n for n, _ in self.bands)

    def whole_numbers(self) -> Tensor:
        """q, by place: [B, H, N, D] uint8."""
        at, start, parts = 0, 0, []
        for end in self.ends:
            n, rows = end - start, []
            for count, bits in self.bands:
                size = count * width(n, bits)
                rows.append(unpack(self.codes[..., at : at + size].unflatten(-1, (count, -1)), bits, n))
                at += size
            parts.append(torch.cat(rows, dim=2))  # [B, H, D, n]
            start = end
        if not parts:
            return self.codes.new_zeros((*self.codes.shape[:2], 0, self.channels))
        return torch.cat(parts, dim=3).transpose(2, 3)

    def numbers(self) -> Tensor:
        """[B, H, N, D] float32."""
        x = self.whole_numbers().float()
        if self.a is not None and self.m is not None:
            x = x * self.a[..., None].float() + self.m[..., None].float()
        x = x * self._spread(self.s) if self.z is None else x * self._spread(self.s) + self._spread(self.z)
        if self.order is None:
            return x
        return torch.empty_like(x).scatter_(3, self.order.long()[:, :, None].expand_as(x), x)

    def _spread(self, t: Tensor) -> Tensor:
        """A parameter of each part, at each of its tokens."""
        if t.shape[2] == 1:
            return t.float()
        each = torch.tensor(lengths(self.ends), dtype=torch.int64, device=t.device)
        return t.float().repeat_interleave(each, dim=2)

    def joined(self, other: ByChannel) -> ByChannel:
        """With the parts of `other` behind, of the same bands; where tokens have grids, s and order are the same."""
        n, more = self.count, {}
        for k in ("codes", "a", "m") if self.a is not None else ("codes", "s", "z"):
            more[k] = torch.cat([getattr(self, k), getattr(other, k)], dim=2)
        return self.but(**more, ends=self.ends + tuple(n + e for e in other.ends))

    def at(self, order: Tensor) -> ByChannel:
        """The tokens in another order [B, H, N], as one part; only where the tokens have grids."""
        if self.codes.device.type == "cpu":
            a, m = (None if t is None else _in_order(t, order) for t in (self.a, self.m))
            return self.but(codes=_keys_in_order(self, order), ends=(order.shape[2],), a=a, m=m)
        q = self.whole_numbers().gather(2, order[..., None].expand(*order.shape, self.channels))
        a, m = (None if t is None else t.gather(2, order) for t in (self.a, self.m))
        return self.but(codes=pack_bands(q[:, :, None], self.bands), ends=(q.shape[2],), a=a, m=m)


@dataclass(frozen=True, eq=False, kw_only=True)
class ByToken(Codes):
    """Values: codes uint8 [B, H, N, width]; a and m [B, H or 1, N], of one head or all; s, z [B, H, D] (z None: 0)."""

    bits: int
    a: Tensor
    m: Tensor
    s: Tensor
    z: Tensor | None = None

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """codes, a, m, s, z for the kernels: views, nothing is held twice."""
        return tuple(
            self._view(name, rank) for name, rank in (("codes", 3), ("a", 2), ("m", 2), ("s", 2), ("z", 2))
        )

    @property
    def count(self) -> int:
        return self.codes.shape[2]

    @property
    def channels(self) -> int:
        return self.s.shape[2]

    def numbers(self) -> Tensor:
        """[B, H, N, D] float32."""
        x = (
            unpack(self.codes, self.bits, self.channels) * self.a[..., None].float()
            + self.m[..., None].float()
        )
        x = x * self.s[:, :, None].float()
        return x if self.z is None else x + self.z[:, :, None].float()

    def joined(self, other: ByToken) -> ByToken:
        """With the tokens of `other` behind; s and z are the same."""
        more = {k: torch.cat([getattr(self, k), getattr(other, k)], dim=2) for k in ("codes", "a", "m")}
        return self.but(**more)

    def at(self, order: Tensor) -> ByToken:
        """The tokens in another order [B, H, N]; only where every head has its own grids."""
        if self.codes.device.type == "cpu":
            return self.but(**{k: _in_order(getattr(self, k), order) for k in ("codes", "a", "m")})
        codes = self.codes.gather(2, order[..., None].expand_as(self.codes))
        return self.but(codes=codes, a=self.a.gather(2, order), m=self.m.gather(2, order))


def pack_bands(codes: Tensor, bands: Bands) -> Tensor:
    """Codes [B, H, P, n, D] of parts, channel by channel: bytes [B, H, P * bytes]."""
    slices = codes.transpose(3, 4).split([count for count, _ in bands], dim=3)  # [B, H, P, count, n]
    packed = [pack(part, bits).flatten(3) for part, (_, bits) in zip(slices, bands, strict=True)]
    return torch.cat(packed, dim=3).flatten(2)


def _in_order(held: Tensor, order: Tensor) -> Tensor:
    """`held` [B, H, N, ...] at `order` [B, H, N], which is mostly runs of neighbours."""
    from holdall.kv.code_kernels import reorder_rows

    out, (b, h, n) = torch.empty_like(held), order.shape
    source, target = (t.contiguous().view(b * h, -1).view(torch.uint8).numpy() for t in (held, out))
    reorder_rows(source, source.shape[1] // n, order.flatten(0, 1).numpy(), target, 0, b * h)
    return out


def _keys_in_order(keys: ByChannel, order: Tensor) -> Tensor:
    """The codes of keys [B, H, N, D] at `order`, as one part."""
    from holdall.kv.code_kernels import reorder_keys

    (b, h, n), (codes, bands, ends) = order.shape, keys.arrays[:3]
    out = torch.empty(b, h, sum(count * width(n, bits) for count, bits in keys.bands), dtype=torch.uint8)
    reorder_keys(codes, bands, ends, order.flatten(0, 1).numpy(), out.flatten(0, 1).numpy(), 0, b * h)
    return out
