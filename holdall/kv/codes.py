"""Keys and values become packed codes: grids by channel or by token, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdall.kv.affine import Bands, ByChannel, ByToken, pack_bands
from holdall.optional import lazy
from holdall.parts.quant import cut, encode, grid, lengths, pack, width

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch", extra="kv")


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
