"""Packed keys and values, every one the same affine code: x[t, c] = (a[t] * q[t, c] + m[t]) * s[c] + z[c].

Keys are packed channel by channel, in parts of tokens with grids (s, z) of their own, and channels may have different
widths; values token by token, with grids (a, m). Either may have the other's factors too. All parameters are float16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from holdall.optional import lazy
from holdall.parts.quant import cut, encode, grid, lengths, pack, unpack, width

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
        codes = self.codes.gather(2, order[..., None].expand_as(self.codes))
        return self.but(codes=codes, a=self.a.gather(2, order), m=self.m.gather(2, order))


def channel_bytes(count: int, channels: int, bands: Bands, group: int) -> int:
    """Bytes of keys by channel of one head, without `order`."""
    return sum(4 * channels + sum(n * width(t, b) for n, b in bands) for t in lengths(cut(count, group)))


def by_channel(
    x: Tensor, shown: Tensor, bands: Bands, group: int, fit: int, order: Tensor | None = None
) -> ByChannel:
    """Keys [B, H, N, D] with a grid for each channel in parts of `group` tokens; shown [B, H, N] have a say.

    order [B, H, D]: which channel gets which place in the bands.
    """
    x = x.float()
    if order is not None:
        x = x.gather(3, order.long()[:, :, None].expand_as(x))
    ends, start = cut(x.shape[2], group), 0
    codes = [torch.zeros(*x.shape[:2], 0, dtype=torch.uint8, device=x.device)]
    grids = [torch.zeros(2, *x.shape[:2], 0, x.shape[3], dtype=torch.float16, device=x.device)]
    while ends and start < ends[-1]:
        n = next(e for e in ends if e > start) - start
        many = lengths(ends).count(n)
        end = start + n * many  # parts of one length, at once
        part = x[:, :, start:end].unflatten(2, (many, n))  # [B, H, P, n, D]
        see = shown[:, :, start:end].unflatten(2, (many, n))[..., None]
        packed, params = _bands(part, see, bands, fit)
        codes.append(packed)
        grids.append(params)
        start = end
    s, z = torch.cat(grids, dim=3)
    return ByChannel(codes=torch.cat(codes, dim=2), ends=tuple(ends), bands=bands, s=s, z=z, order=order)


def _bands(part: Tensor, see: Tensor, bands: Bands, fit: int) -> tuple[Tensor, Tensor]:
    """Bytes [B, H, P * bytes] and grids [2, B, H, P, D] of parts [B, H, P, n, D]."""
    codes, grids, place = [], [], 0
    for count, bits in bands:
        some = part[..., place : place + count]
        step, low = grid(some, bits, 3, fit=_rounds(fit, bits), shown=see)
        codes.append(encode(some, step, low, bits).masked_fill_(~see, 0))
        grids.append(torch.stack([step[..., 0, :], low[..., 0, :]]))
        place += count
    return pack_bands(torch.cat(codes, dim=4), bands), torch.cat(grids, dim=4)


def pack_bands(codes: Tensor, bands: Bands) -> Tensor:
    """Codes [B, H, P, n, D] of parts, channel by channel: bytes [B, H, P * bytes]."""
    slices = codes.transpose(3, 4).split([count for count, _ in bands], dim=3)  # [B, H, P, count, n]
    packed = [pack(part, bits).flatten(3) for part, (_, bits) in zip(slices, bands, strict=True)]
    return torch.cat(packed, dim=3).flatten(2)


def by_token(
    x: Tensor, shown: Tensor, bits: int, s: Tensor, fit: int, joined: bool, z: Tensor | None = None
) -> ByToken:
    """Values [B, H, N, D], less z and divided by s [B, H, D], with a grid for each token, of one head or `joined`."""
    s, z = s.half(), None if z is None else z.half()
    y = x.float() if z is None else x.float() - z.float()[:, :, None]
    y = y.masked_fill(~shown[..., None], 0) / s.float()[:, :, None]
    a, m = token_grid(y, shown, bits, fit, joined)
    q = encode(y, a[..., None], m[..., None], bits).masked_fill(~shown[..., None], 0)
    return ByToken(codes=pack(q, bits), bits=bits, a=a, m=m, s=s, z=z)


def keys_by_token(
    x: Tensor, shown: Tensor, bits: int, s: Tensor, fit: int, z: Tensor | None = None
) -> ByChannel:
    """Keys [B, H, N, D], less z, divided by s [B, H, D], with a grid for each token, packed by channel in one part."""
    s, z = s.half()[:, :, None], None if z is None else z.half()[:, :, None]
    y = x.float() if z is None else x.float() - z.float()
    y = y.masked_fill(~shown[..., None], 0) / s.float()
    a, m = token_grid(y, shown, bits, _rounds(fit, bits), joined=False)
    q = encode(y, a[..., None], m[..., None], bits).masked_fill(~shown[..., None], 0)
    bands = ((x.shape[3], bits),)
    return ByChannel(
        codes=pack_bands(q[:, :, None], bands), ends=(x.shape[2],), bands=bands, s=s, z=z, a=a, m=m
    )


def _rounds(fit: int, bits: int) -> int:
    """Least squares cut off extremes, which in keys are often what queries look for: only where bits are few."""
    return fit if bits < 3 else 0


def token_grid(y: Tensor, shown: Tensor, bits: int, fit: int, joined: bool) -> tuple[Tensor, Tensor]:
    """(a, m), [B, H or 1, N]."""
    b, h, n, d = y.shape
    if not joined:
        step, low = grid(y, bits, 3, fit=fit, shown=shown[..., None])
        return step[..., 0], low[..., 0]
    side = y.transpose(1, 2).reshape(b, n, h * d)
    see = shown.transpose(1, 2)[..., None].expand(b, n, h, d).reshape(b, n, h * d)
    step, low = grid(side, bits, 2, fit=fit, shown=see)
    return step[:, None, :, 0], low[:, None, :, 0]
